"""The client's requests to the VIP: by curl, and a steady load while something is being broken.

Must not know: balancers, routes, or which replies are right. Invariant: every request is a connection of
its own, so each is balanced anew by router and balancer.
"""

from __future__ import annotations

import http.client
import subprocess
import threading
import time
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from types import TracebackType

from .layout import BIG_BYTES, CLIENT, PORTS, VIP, IPAddress, Layout
from .network import run
from .observe import http_body


@dataclass(frozen=True, slots=True)
class Reply:
    """How one request ended; `real` is who answered, None where nobody did. Monotonic seconds."""

    started_s: float
    ended_s: float
    real: str | None
    error: str = ""


def curl(layout: Layout, count: int, scheme: str = "http", vip: IPAddress = VIP) -> Counter[str]:
    """`count` requests by one curl, each over a new connection: replies per real; failed ones as "failed"."""
    host = f"[{vip}]" if vip.version == 6 else str(vip)
    shown = run(
        *("ip", "netns", "exec", layout.namespace(CLIENT.name), "curl", "--silent", "--insecure"),
        *("--noproxy", "*", "--connect-timeout", "1", "--max-time", "1.5"),
        *("--write-out", "%{http_code}\\n", f"{scheme}://{host}/?[1-{count}]"),
        check=False,
        timeout_s=count * 1.5 + 5,
    )
    answers: Counter[str] = Counter()
    lines = shown.splitlines()  # for each request the body, which is a real's name, if any; then the status
    for body, status in pairwise(lines):
        if status == "200":
            answers[body] += 1
    answers["failed"] = count - answers.total()
    return answers


@dataclass(frozen=True, slots=True)
class Download:
    real: str
    size: int
    took_s: float


_DOWNLOAD = (
    *("curl", "--silent", "--show-error", "--fail", "--insecure", "--noproxy", "*"),
    *("--dump-header", "-", "--output", "/dev/null", "--write-out", "%{size_download} %{time_total}"),
)


def download(layout: Layout, timeout_s: float = 20) -> Download:
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
    """Slow downloads of the big file, all going on at the same time while the block runs."""

    def __init__(self, layout: Layout, count: int, bytes_per_s: int = 4_000_000) -> None:
        within = ("ip", "netns", "exec", layout.namespace(CLIENT.name))
        self._command = [*within, *_DOWNLOAD, "--limit-rate", str(bytes_per_s), f"http://{VIP}/big"]
        self._count = count
        self._curls: list[subprocess.Popen[str]] = []

    def __enter__(self) -> Downloads:
        for _ in range(self._count):
            self._curls.append(
                subprocess.Popen(
                    self._command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                    start_new_session=True,
                )
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        for curl_process in self._curls:
            curl_process.kill()
            curl_process.communicate()

    def under_way(self) -> int:
        return sum(curl_process.poll() is None for curl_process in self._curls)

    def completed(self, timeout_s: float = 30.0) -> int:
        """Waits for all; how many have received the whole file over their one connection."""
        deadline_s = time.monotonic() + timeout_s
        whole = 0
        for curl_process in self._curls:
            try:
                shown, _ = curl_process.communicate(timeout=max(0.0, deadline_s - time.monotonic()))
            except subprocess.TimeoutExpired:
                continue
            whole += curl_process.returncode == 0 and f"\n{BIG_BYTES} " in shown
        return whole


class Load:
    """A steady stream of requests from the client while the block runs; `replies` holds how each ended.

    `workers` threads make one request after the other with `pause_s` in between; a request that isn't
    answered within `timeout_s` has failed.
    """

    def __init__(
        self, layout: Layout, workers: int = 4, pause_s: float = 0.03, timeout_s: float = 1.0
    ) -> None:
        self._namespace = layout.namespace(CLIENT.name)
        self._pause_s = pause_s
        self._timeout_s = timeout_s
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
            thread.join(timeout=5 * self._timeout_s)

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
            real = http_body(self._namespace, VIP, PORTS[0], "/", self._timeout_s).strip()
        except (OSError, http.client.HTTPException) as problem:
            error = str(problem) or type(problem).__name__
        return Reply(started_s, time.monotonic(), real, error)
