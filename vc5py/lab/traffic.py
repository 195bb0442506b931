"""The client's requests to the VIP: by curl, and a steady load while something is being broken.

Must not know: balancers, routes, or which replies are right. Invariants: every request is a connection of
its own, so each is balanced anew by router and balancer; a request fails for what happens to its packets,
and not because a process was kept waiting for a second.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
import time
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import TracebackType

from .errors import NotObservedError
from .kernel import entered
from .layout import BIG_BYTES, CLIENT, PORTS, VIP, IPAddress, Layout
from .network import run
from .observe import http_body

# A host's kernel connects in microseconds whatever its processes do. It sends a SYN that got lost again
# after one second: whoever is connected sooner than that has lost none.
_CONNECT_S = 0.9
# For all else, which processes have a part in.
_ANSWER_S = 15.0


@dataclass(frozen=True, slots=True)
class Reply:
    """How one request ended; `real` is who answered, None where nobody did. Monotonic seconds."""

    started_s: float
    ended_s: float
    real: str | None
    error: str = ""


def curl(layout: Layout, count: int, scheme: str = "http", vip: IPAddress = VIP) -> Counter[str]:
    """`count` requests by one curl, each over a new connection: replies per real; failed ones as "failed".

    Those count as failed, too, whose first SYN was lost. Nobody else may connect from the client meanwhile.
    """
    host = f"[{vip}]" if vip.version == 6 else str(vip)
    lost = -_repeated_syns(layout)
    shown = run(
        *("ip", "netns", "exec", layout.namespace(CLIENT.name), "curl", "--silent", "--insecure"),
        *("--noproxy", "*", "--max-time", str(_ANSWER_S), "--fail-early"),
        *("--write-out", "%{http_code}\\n", f"{scheme}://{host}/?[1-{count}]"),
        check=False,
        timeout_s=count + 2 * _ANSWER_S,
    )
    lost += _repeated_syns(layout)
    answers: Counter[str] = Counter()
    lines = shown.splitlines()  # for each request the body, which is a real's name, if any; then the status
    for body, status in pairwise(lines):
        if status == "200":
            answers[body] += 1
    answers["failed"] = max(count - answers.total(), lost)
    return answers


def _repeated_syns(layout: Layout) -> int:
    """How many SYNs the client's kernel has sent again because no answer came."""
    with entered(layout.namespace(CLIENT.name)):
        lines = Path("/proc/thread-self/net/netstat").read_text().splitlines()
    names, values = (line.split() for line in lines if line.startswith("TcpExt:"))
    return int(dict(zip(names, values, strict=True))["TCPSynRetrans"])


@dataclass(frozen=True, slots=True)
class Download:
    real: str
    size: int
    took_s: float


_CHUNK = 1 << 14
_SILENCE_S = 60.0  # the longest of a connection that is not broken; nginx waits as long
_DOWNLOAD = (
    *("curl", "--silent", "--show-error", "--fail", "--insecure", "--noproxy", "*"),
    *("--dump-header", "-", "--output", "/dev/null", "--write-out", "%{size_download} %{time_total}"),
)


def download(layout: Layout, timeout_s: float = 60) -> Download:
    """Fetches the big file from the VIP with curl. Errors: LabError."""
    shown = run(
        *("ip", "netns", "exec", layout.namespace(CLIENT.name), *_DOWNLOAD),
        *("--max-time", str(timeout_s), f"http://{VIP}/big"),
        timeout_s=timeout_s + 5,
    )
    *headers, figures = shown.splitlines()
    named = dict(header.split(": ", 1) for header in headers if ": " in header)
    size, took_s = figures.split()
    return Download(named.get("X-Real", "?"), int(size), float(took_s))


class Downloads:
    """Downloads of the big file, all of which go on while the block runs: slow ones, until `completed` is
    asked for. The block begins when each of them has its first bytes. Errors: NotObservedError.
    """

    def __init__(self, layout: Layout, count: int, bytes_per_s: int = 150_000, vip: IPAddress = VIP) -> None:
        self._namespace = layout.namespace(CLIENT.name)
        self._family = socket.AF_INET if vip.version == 4 else socket.AF_INET6
        self._address = str(vip), PORTS[0]
        self._pause_s = _CHUNK / bytes_per_s
        self._hurry = threading.Event()
        self._sockets: list[socket.socket] = []
        self._sizes = [0] * count
        self._threads = [
            threading.Thread(target=self._download, args=(number,), name=f"download-{number}", daemon=True)
            for number in range(count)
        ]

    def __enter__(self) -> Downloads:
        for _ in self._threads:
            with entered(self._namespace):
                sock = socket.socket(self._family, socket.SOCK_STREAM)
            # So little that the server has to wait for us, and acknowledgements go on all the time.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * _CHUNK)
            sock.settimeout(_SILENCE_S)
            self._sockets.append(sock)
        for thread in self._threads:
            thread.start()
        try:
            self._all_begin()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._end()

    def under_way(self) -> int:
        """How many have begun, and neither ended nor broken."""
        pairs = zip(self._threads, self._sizes, strict=True)
        return sum(thread.is_alive() and 0 < size < BIG_BYTES for thread, size in pairs)

    def completed(self, timeout_s: float = 60.0) -> int:
        """Waits for all, at full speed; how many have the whole file over their one connection."""
        self._hurry.set()
        deadline_s = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, deadline_s - time.monotonic()))
        return self._sizes.count(BIG_BYTES)

    def _all_begin(self) -> None:
        deadline_s = time.monotonic() + _SILENCE_S
        while not all(self._sizes):
            if time.monotonic() > deadline_s or not all(thread.is_alive() for thread in self._threads):
                raise NotObservedError(f"{self._sizes.count(0)} of {len(self._sizes)} downloads don't begin")
            time.sleep(0.01)

    def _end(self) -> None:
        self._hurry.set()
        for sock in self._sockets:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for sock in self._sockets:
            sock.close()

    def _download(self, number: int) -> None:
        sock = self._sockets[number]
        connection = http.client.HTTPConnection(*self._address)
        connection.sock = sock
        with contextlib.suppress(OSError, http.client.HTTPException):  # then it lacks something
            sock.connect(self._address)
            connection.request("GET", "/big", headers={"Connection": "close"})
            response = connection.getresponse()
            while data := response.read(_CHUNK):
                self._sizes[number] += len(data)
                self._hurry.wait(self._pause_s)


class Load:
    """A steady stream of requests from the client while the block runs; `replies` holds how each ended.

    `workers` threads make one request after the other with `pause_s` in between; one whose first SYN is lost
    has failed.
    """

    def __init__(self, layout: Layout, workers: int = 4, pause_s: float = 0.03) -> None:
        self._namespace = layout.namespace(CLIENT.name)
        self._pause_s = pause_s
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._work, name=f"load-{number}", daemon=True)
            for number in range(workers)
        ]
        self.replies: list[Reply] = []

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout=2 * _ANSWER_S)

    def failed(self) -> list[Reply]:
        return [reply for reply in self.replies if reply.real is None]

    def _work(self) -> None:
        while not self._stop.wait(self._pause_s):
            self.replies.append(self._request())

    def _request(self) -> Reply:
        started_s = time.monotonic()
        real: str | None = None
        error = ""
        try:
            real = http_body(self._namespace, VIP, PORTS[0], "/", _CONNECT_S).strip()
        except (OSError, http.client.HTTPException) as problem:
            error = str(problem) or type(problem).__name__
        return Reply(started_s, time.monotonic(), real, error)
