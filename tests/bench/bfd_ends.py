"""The two ends of a BFD session in namespaces with a bridge between them, for benchmarks and tests.

One end is the router, BIRD; the other is ours, or BIRD too. `Tap` tells what each of them does in the
network, and when, by the kernel's time stamps.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

from pyroute2 import IPRoute

from tests import leftovers
from vc5py.bfd.process import NAME
from vc5py.lab.kernel import entered, write_sysctl

ROUTER, BALANCER = "vc5b-bfd-r", "vc5b-bfd-a"
ROUTER_ADDRESS, ADDRESS = "10.97.0.1", "10.97.0.2"
INTERVAL_MS, MULTIPLIER = 100, 3
DETECTION_MS = INTERVAL_MS * MULTIPLIER
# What the scheduler, two processes and a log may add to it.
MARGIN_MS = 100
BFD_PORT = 3784
DAY_S = 86_400
DRIVER = Path(__file__).parents[1] / "e2e" / "bfd_driver.py"
_ETH_P_ALL, _SO_TIMESTAMPNS, _SO_RCVBUFFORCE = 0x0003, 35, 33
_TIMESPEC = struct.Struct("=qq")


def run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


# The network


def _ipv6(address: str) -> str:
    """The same host's."""
    return f"fd97::{address.rpartition('.')[2]}"


class Network:
    """Made by `network`. A cut takes the router's port off the bridge: nobody loses carrier."""

    def __init__(self, router: str) -> None:
        with entered(router):
            self._route = IPRoute()
        self._port, self._bridge = (self._route.link_lookup(ifname=name)[0] for name in ("port", "br0"))

    def cut(self) -> float:
        """From a moment after the one that is returned on: at once, however busy the machine is."""
        before = os.sched_getscheduler(0), os.sched_getparam(0)
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(20))
        try:
            at = time.monotonic()
            self._route.link("set", index=self._port, master=0)
            return at
        finally:
            os.sched_setscheduler(0, *before)

    def mend(self) -> None:
        self._route.link("set", index=self._port, master=self._bridge)

    def close(self) -> None:
        self._route.close()


@contextlib.contextmanager
def network(router: str = ROUTER, balancer: str = BALANCER) -> Iterator[Network]:
    with contextlib.ExitStack() as stack:
        for namespace in (router, balancer):
            leftovers.remove(namespace)
            run("ip", "netns", "add", namespace)
            stack.callback(run, "ip", "netns", "del", namespace)
            run("ip", "-n", namespace, "link", "set", "lo", "up")
        run(*f"ip -n {router} link add br0 type bridge".split())
        run(*f"ip -n {router} link add port type veth peer name eth0 netns {balancer}".split())
        run(*f"ip -n {router} link set port master br0 up".split())
        for namespace, device, address in ((router, "br0", ROUTER_ADDRESS), (balancer, "eth0", ADDRESS)):
            run("ip", "-n", namespace, "addr", "add", f"{address}/24", "dev", device)
            run("ip", "-n", namespace, "addr", "add", f"{_ipv6(address)}/64", "dev", device, "nodad")
            run("ip", "-n", namespace, "link", "set", device, "up")
        with entered(router):
            write_sysctl("net.ipv4.conf.port.rp_filter", 1)  # or the cut port itself takes the packets in
        with contextlib.closing(Network(router)) as net:
            yield net


class Tap:
    """When BFD packets over IPv4 passed a device, by whom they were sent: wall clock, in seconds."""

    def __init__(self, namespace: str, device: str) -> None:
        with entered(namespace):
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0)
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 1 << 26)
        self._socket.setblocking(False)
        self._socket.bind((device, _ETH_P_ALL))

    def take(self) -> list[tuple[str, str, float]]:
        """Source, destination, time; of all since the last call."""
        found: list[tuple[str, str, float]] = []
        while True:
            try:
                data, ancillary, _, _ = self._socket.recvmsg(128, 64)
            except BlockingIOError:
                return found
            if len(data) >= 24 and data[9] == 17 and data[22:24] == BFD_PORT.to_bytes(2, "big"):
                seconds, nanoseconds = _TIMESPEC.unpack_from(ancillary[0][2])
                ends = socket.inet_ntoa(data[12:16]), socket.inet_ntoa(data[16:20])
                found.append((*ends, seconds + nanoseconds * 1e-9))

    def close(self) -> None:
        self._socket.close()


# Who speaks


class Lines:
    """The lines of a stream with the time each was read at, by a thread."""

    def __init__(self, stream: IO[str]) -> None:
        self._queue: queue.Queue[str] = queue.Queue()
        self._stream = stream
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        for line in self._stream:
            self._queue.put(line)

    def close(self) -> None:
        """When the writer has ended."""
        self._thread.join(10)
        self._stream.close()

    def next(self, wanted: Callable[[str], Any], timeout_s: float) -> str:
        """The first line that is wanted. Raises queue.Empty."""
        end = time.monotonic() + timeout_s
        while True:
            line = self._queue.get(timeout=max(0.0, end - time.monotonic()))
            if wanted(line):
                return line

    def waiting(self) -> list[str]:
        found = []
        with contextlib.suppress(queue.Empty):
            while True:
                found.append(self._queue.get_nowait())
        return found


@dataclass(frozen=True, slots=True)
class Found:
    """When one end took the other for gone: `judged` by its BFD process, `told` to who acts on it. Of BIRD
    only one moment is known.
    """

    judged: float
    told: float


class Speaker(Protocol):
    """One end. Times are of the monotonic clock, in seconds."""

    def wait_up(self) -> None: ...

    def wait_found(self) -> Found: ...

    def downs(self) -> list[float]:
        """When it took the other for gone, since the last call or wait."""

    def false_downs(self) -> int:
        """How often; these include what `downs` has no time for."""

    def pids(self) -> list[int]: ...

    def kill(self) -> float: ...

    def end(self) -> None:
        """Kills it if it lives, and lets go of everything."""


_FROM_UP = re.compile(r"^\S+ (\d+):(\d+):(\d+\.\d+) .* changed state from Up to Down")


class Bird:
    """BIRD as either end; `fifo` gives it real-time priority, as systemd or chrt(1) would."""

    def __init__(
        self,
        namespace: str,
        device: str,
        neighbor: str,
        directory: Path,
        *,
        fifo: bool,
        pairs: tuple[tuple[str, str], ...] = (),
    ) -> None:
        """With one session, or with one for each pair of neighbor and source."""
        directory.mkdir()
        self._control = directory / "ctl"
        wanted = [f'neighbor {other} dev "{device}" local {source};' for other, source in pairs]
        (directory / "bird.conf").write_text(
            "log stderr all; router id 10.97.0.9;\nprotocol device { scan time 1; }\n"
            f'protocol bfd {{ debug {{ events }}; interface "{device}" {{ interval {INTERVAL_MS} ms;'
            f" idle tx interval 1 s; multiplier {MULTIPLIER}; }};"
            f'{" ".join(wanted) or f"""neighbor {neighbor} dev "{device}";"""} }}\n'
        )
        priority = ["chrt", "-f", "10"] if fifo else []
        files = [
            x
            for flag, name in (("-c", "bird.conf"), ("-s", "ctl"), ("-P", "pid"))
            for x in (flag, str(directory / name))
        ]
        self._process = subprocess.Popen(
            ["ip", "netns", "exec", namespace, *priority, "bird", "-f", *files],
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._process.stderr is not None
        self._lines = Lines(self._process.stderr)

    def wait_up(self) -> None:
        self._lines.next(lambda line: "to Up" in line, 60.0)

    def wait_found(self) -> Found:
        at = self.wait_down()
        return Found(at, at)

    def wait_down(self) -> float:
        return _moment(self._lines.next(_FROM_UP.match, 60.0))

    def downs(self) -> list[float]:
        return [_moment(line) for line in self._lines.waiting() if _FROM_UP.match(line)]

    def false_downs(self) -> int:
        return len(self.downs())

    def pids(self) -> list[int]:
        return [self._process.pid]

    def kill(self) -> float:
        self._process.kill()
        at = time.monotonic()
        self._process.wait()
        return at

    def end(self) -> None:
        if self._process.poll() is None:
            self.kill()
        self._lines.close()

    def ask(self, *words: str) -> str:
        """What birdc(8) answers."""
        command = ["birdc", "-s", str(self._control), *words]
        return subprocess.run(command, check=False, capture_output=True, text=True).stdout

    def settle(self, seconds: float) -> None:
        """Lets it go on for so long, and forgets how it came up."""
        self.false_downs()
        time.sleep(seconds)


def _moment(line: str) -> float:
    """When BIRD wrote the line, which has the time of day."""
    found = _FROM_UP.match(line)
    assert found is not None
    hours, minutes, seconds = found.groups()
    now, counted = time.time(), time.monotonic()
    local = time.localtime(now)
    today_s = local.tm_hour * 3600 + local.tm_min * 60 + local.tm_sec + now % 1
    written_s = int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    ago_s = (today_s - written_s + DAY_S / 2) % DAY_S - DAY_S / 2  # it may have been yesterday
    return counted - ago_s


class Ours:
    """A director with its BFD process."""

    def __init__(
        self,
        directory: Path,
        scheduling: str,
        namespace: str = BALANCER,
        neighbor: str = ROUTER_ADDRESS,
        hold_s: float = 30.0,
        neighbors: tuple[str, ...] = (),
    ) -> None:
        """With one neighbor, or with these."""
        self._directory = directory
        command = [sys.executable, str(DRIVER), str(directory), "--scheduling", scheduling]
        command += ["--hold", str(hold_s)]
        self._process = subprocess.Popen(
            ["ip", "netns", "exec", namespace, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._stdin = self._process.stdin
        self._lines = Lines(self._process.stdout)
        self._transitions = 0
        self.ask("want" + "".join(f" {n} {INTERVAL_MS} {MULTIPLIER}" for n in neighbors or (neighbor,)))

    def ask(self, line: str) -> dict[str, Any]:
        self._stdin.write(line + "\n")
        answer = json.loads(self._lines.next(lambda found: '"sessions"' in found, 60.0))
        assert isinstance(answer, dict)
        return answer

    def sessions(self) -> list[dict[str, Any]]:
        found = self.ask("status")["sessions"].values()
        return [session or {"state": "unknown", "transitions": 0} for session in found]

    def wait_up(self) -> None:
        end = time.monotonic() + 60.0
        sessions = self.sessions()
        while {session["state"] for session in sessions} != {"up"}:
            assert time.monotonic() < end, sessions
            time.sleep(0.1)
            sessions = self.sessions()
        self._transitions = sum(session["transitions"] for session in sessions)

    def wait_found(self) -> Found:
        return _found(self._lines.next(_UNREACHABLE.search, 60.0))

    def wait_down(self) -> float:
        return self.wait_found().told

    def downs(self) -> list[float]:
        return [_found(line).judged for line in self._lines.waiting() if _UNREACHABLE.search(line)]

    def false_downs(self) -> int:
        return int(sum(session["transitions"] for session in self.sessions())) - self._transitions

    def pids(self) -> list[int]:
        return bfd_processes(self._directory)

    def speaker(self) -> int:
        """The BFD process that speaks."""
        return speaking(self._directory)

    def kill_speaker(self) -> None:
        os.kill(self.speaker(), signal.SIGKILL)

    def kill(self) -> float:
        """The whole of it, as a crash of the machine would: none has time to go on for another."""
        at = kill_at_once([*self.pids(), self._process.pid])
        self._process.wait()
        return at

    def kill_director(self) -> float:
        """Alone: its BFD process lives on."""
        self._process.kill()
        at = time.monotonic()
        self._process.wait()
        return at

    def end(self) -> None:
        if self._process.poll() is None:
            self.kill()
        with contextlib.suppress(BrokenPipeError):
            self._stdin.close()
        self._lines.close()


_UNREACHABLE = re.compile('"reachable": false, "neighbor"')


def _found(line: str) -> Found:
    said = json.loads(line)
    return Found(float(said["since"]), float(said["at"]))


def bfd_processes(directory: Path) -> list[int]:
    """The one whose files are here, and its standby."""
    socket_file = os.fsencode(directory / "bfd.sock")
    return [pid for pid in _processes() if socket_file in _read(pid, "cmdline").split(b"\0")]


def speaking(directory: Path) -> int:
    """Which of them speaks; 0 in the moment of a change."""
    named = [pid for pid in bfd_processes(directory) if _read(pid, "comm").strip() == NAME.encode()]
    return named[0] if len(named) == 1 else 0


def kill_at_once(victims: list[int]) -> float:
    """So that none has time to go on for another; when."""
    for pid in victims:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
    at = time.monotonic()
    for pid in victims:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return at


def _processes() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]


def _read(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""  # it has gone
