"""Measures BFD at 100 ms x 3 while the machine's cores are kept busy: ways to do it side by side.

Two namespaces with a bridge between them. At one end a router: BIRD with real-time priority, so that what is
measured is the other end. There, in turns: our BFD process with normal, raised and real-time priority, and
BIRD with normal and real-time priority, in case an established daemon does it better.

Measured for each: the gaps between the packets it sends (by the kernel's time stamps at the router's end;
300 ms are a down), how often either end took the other for gone while nothing was wrong, how long it takes to
find a cut (for ours: until the director is told, which has normal priority; for BIRD, until its log says so),
how long the router takes to find that all of its processes were killed, its CPU time and memory.

`--long`: ten minutes of what the balancer uses. `--json` for programs.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import queue
import random
import re
import signal
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import IO, Any, Protocol

from tests.bench.report import Aim
from vc5py.lab.kernel import entered, write_sysctl

ROUTER, BALANCER = "vc5b-bfd-r", "vc5b-bfd-a"
ROUTER_ADDRESS, ADDRESS = "10.97.0.1", "10.97.0.2"
INTERVAL_MS, MULTIPLIER = 100, 3
DETECTION_MS = INTERVAL_MS * MULTIPLIER
# What the scheduler, two processes and a log may add to it.
MARGIN_MS = 100
HOGS_PER_CORE = 4
LONG_S = 600
BFD_PORT = 3784
DRIVER = Path(__file__).parents[1] / "e2e" / "bfd_driver.py"
_ETH_P_IP, _SO_TIMESTAMPNS, _SO_RCVBUFFORCE = 0x0800, 35, 33


@dataclass(frozen=True, slots=True)
class Figure:
    """`gap_*`: between two packets sent, in ms. `false_downs`: taken for gone by either end. `found_ms`: from
    each cut until it knew; `killed_ms`: from each kill -9 until the router knew. `core`: what it used of one.
    """

    name: str
    seconds: float
    packets: int
    gap_median: float
    gap_p999: float
    gap_max: float
    false_downs: int
    found_ms: tuple[float, ...]
    killed_ms: tuple[float, ...]
    stall_ms: float
    long_gaps: tuple[tuple[float, float], ...]
    core: float
    rss_mb: float


def run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


# The network


def _ipv6(address: str) -> str:
    """The same host's."""
    return f"fd97::{address.rpartition('.')[2]}"


class Network:
    """Made by `network`. A cut takes the router's port off the bridge: nobody loses carrier."""

    def __init__(self, router: str) -> None:
        self._router = router

    def cut(self) -> float:
        """From a moment after the one that is returned on."""
        at = time.monotonic()
        run("ip", "-n", self._router, "link", "set", "port", "nomaster")
        return at

    def mend(self) -> None:
        run("ip", "-n", self._router, "link", "set", "port", "master", "br0")


@contextlib.contextmanager
def network(router: str = ROUTER, balancer: str = BALANCER) -> Iterator[Network]:
    with contextlib.ExitStack() as stack:
        for namespace in (router, balancer):
            subprocess.run(["ip", "netns", "del", namespace], capture_output=True, check=False)
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
        yield Network(router)


@contextlib.contextmanager
def load(hogs: int) -> Iterator[None]:
    """Processes that do nothing but compute, with normal priority."""
    processes = [subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"]) for _ in range(hogs)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.wait()


# Prints when, by the wall clock, and for how many seconds it was kept from running.
_WATCHER = """
import os, sys, time
os.sched_setaffinity(0, {int(sys.argv[1])})
os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(50))
while True:
    before = time.monotonic()
    time.sleep(0.005)
    late = time.monotonic() - before - 0.005
    if late > 0.02:
        print(time.time(), late, flush=True)
"""


class Stalls:
    """A process on every core with higher real-time priority than BFD's, which only sees whether it
    is woken in time. Where it isn't, the machine stood still, and no process could have done better.
    """

    def __init__(self) -> None:
        self._processes = [
            subprocess.Popen(
                [sys.executable, "-S", "-c", _WATCHER, str(core)], stdout=subprocess.PIPE, text=True
            )
            for core in sorted(os.sched_getaffinity(0))
        ]
        self._lines = [Lines(process.stdout) for process in self._processes if process.stdout is not None]

    def take(self) -> list[tuple[float, float]]:
        """(when it was over, for how long), in seconds, since the last call."""
        found = [tuple(map(float, line.split())) for lines in self._lines for line in lines.waiting()]
        return [(when, late) for when, late in found]

    def end(self) -> None:
        for process, lines in zip(self._processes, self._lines, strict=True):
            process.kill()
            process.wait()
            lines.close()


class Gaps:
    """When BFD packets of the balancer arrived at the router, by the kernel's time stamps."""

    def __init__(self) -> None:
        with entered(ROUTER):
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_ETH_P_IP))
            self._socket.bind(("br0", _ETH_P_IP))
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 1 << 24)
        self._socket.setblocking(False)

    def take(self) -> list[float]:
        """The times since the last call, in seconds."""
        times = []
        while True:
            try:
                data, ancillary, _, _ = self._socket.recvmsg(128, 64)
            except BlockingIOError:
                return times
            to_bfd = len(data) >= 24 and data[9] == 17 and data[22:24] == BFD_PORT.to_bytes(2, "big")
            if to_bfd and data[12:16] == socket.inet_aton(ADDRESS):
                seconds, nanoseconds = struct.unpack("=qq", ancillary[0][2])
                times.append(seconds + nanoseconds * 1e-9)

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


class Speaker(Protocol):
    """One end. Times are of the monotonic clock, in seconds."""

    def wait_up(self) -> None: ...

    def wait_down(self) -> float: ...

    def false_downs(self) -> int:
        """Since the last call or wait."""

    def pids(self) -> list[int]: ...

    def said(self) -> str: ...

    def kill(self) -> float: ...

    def end(self) -> None:
        """Kills it if it lives, and lets go of everything."""


_FROM_UP = re.compile(r"^\S+ (\d+):(\d+):(\d+\.\d+) .* changed state from Up to Down")


class Bird:
    """BIRD as either end; `fifo` gives it real-time priority, as systemd or chrt(1) would."""

    def __init__(self, namespace: str, device: str, neighbor: str, directory: Path, *, fifo: bool) -> None:
        directory.mkdir()
        self._control = directory / "ctl"
        (directory / "bird.conf").write_text(
            "log stderr all; router id 10.97.0.9;\nprotocol device { scan time 1; }\n"
            f'protocol bfd {{ debug {{ events }}; interface "{device}" {{ interval {INTERVAL_MS} ms;'
            f' idle tx interval 1 s; multiplier {MULTIPLIER}; }}; neighbor {neighbor} dev "{device}"; }}\n'
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
        self._lines.next(lambda line: "to Up" in line, 20.0)

    def wait_down(self) -> float:
        return _moment(self._lines.next(_FROM_UP.match, 20.0))

    def false_downs(self) -> int:
        return sum(bool(_FROM_UP.match(line)) for line in self._lines.waiting())

    def pids(self) -> list[int]:
        return [self._process.pid]

    def said(self) -> str:
        return ""

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
    now, local = time.time(), time.localtime()
    midnight = now - (local.tm_hour * 3600 + local.tm_min * 60 + local.tm_sec + now % 1)
    written = midnight + int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    return time.monotonic() - (now - written)


class Ours:
    """A director with its BFD process."""

    def __init__(
        self,
        directory: Path,
        scheduling: str,
        namespace: str = BALANCER,
        neighbor: str = ROUTER_ADDRESS,
        hold_s: float = 30.0,
    ) -> None:
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
        self._neighbor = neighbor
        self.ask(f"want {neighbor} {INTERVAL_MS} {MULTIPLIER}")

    def ask(self, line: str) -> dict[str, Any]:
        self._stdin.write(line + "\n")
        answer = json.loads(self._lines.next(lambda found: '"sessions"' in found, 20.0))
        assert isinstance(answer, dict)
        return answer

    def _session(self) -> dict[str, Any]:
        return self.ask("status")["sessions"][self._neighbor] or {"state": "unknown", "transitions": 0}

    def wait_up(self) -> None:
        end = time.monotonic() + 20.0
        while (session := self._session())["state"] != "up":
            assert time.monotonic() < end, session
            time.sleep(0.1)
        self._transitions = session["transitions"]

    def wait_down(self) -> float:
        return float(json.loads(self._lines.next(lambda line: '"reachable": false' in line, 20.0))["at"])

    def false_downs(self) -> int:
        found = self._session()["transitions"] - self._transitions
        return int(found)

    def said(self) -> str:
        return json.dumps(self.ask("status"))

    def pids(self) -> list[int]:
        return [int(pid) for pid in _bfd_processes(self._process.pid)]

    def kill(self) -> float:
        """The whole of it, as a crash of the machine would."""
        victims = [*self.pids(), self._process.pid]
        at = time.monotonic()
        for pid in victims:
            os.kill(pid, signal.SIGKILL)
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


def _bfd_processes(parent: int) -> list[str]:
    return Path(f"/proc/{parent}/task/{parent}/children").read_text().split()


# Measuring


WAYS: dict[str, Callable[[Path], Speaker]] = {
    "ours, normal": lambda directory: Ours(directory / "a", "normal"),
    "ours, nice -20": lambda directory: Ours(directory / "a", "nice"),
    "ours, SCHED_FIFO": lambda directory: Ours(directory / "a", "fifo"),
    "BIRD, normal": lambda directory: _bird(directory, fifo=False),
    "BIRD, SCHED_FIFO": lambda directory: _bird(directory, fifo=True),
}
CHOSEN = "ours, SCHED_FIFO"


def _bird(directory: Path, *, fifo: bool) -> Bird:
    return Bird(BALANCER, "eth0", ROUTER_ADDRESS, directory / "a", fifo=fifo)


def _usage(pids: list[int]) -> tuple[float, float]:
    """CPU seconds and resident megabytes."""
    cpu, rss = 0.0, 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        cpu += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        rss += int(fields[21]) * os.sysconf("SC_PAGE_SIZE")
    return cpu, rss / 1e6


def measure(name: str, seconds: float, cuts: int, hogs: int) -> Figure:
    with tempfile.TemporaryDirectory() as folder, network() as net, contextlib.ExitStack() as stack:
        router = Bird(ROUTER, "br0", ADDRESS, Path(folder, "r"), fifo=True)
        stack.callback(router.end)
        speaker = WAYS[name](Path(folder))
        stack.callback(lambda: speaker.end())  # which is another one then
        gaps = Gaps()
        stack.callback(gaps.close)
        stalls = Stalls()
        stack.callback(stalls.end)
        speaker.wait_up()
        router.wait_up()
        with load(hogs):
            quiet = _watch(speaker, router, gaps, seconds)
            stalled = stalls.take()
            found = [_cut(net, speaker, router) for _ in range(cuts)]
            killed: list[float] = []
            for _ in range(cuts):
                at = speaker.kill()
                killed.append((router.wait_down() - at) * 1e3)
                speaker.end()
                speaker = WAYS[name](Path(tempfile.mkdtemp(dir=folder)))
                speaker.wait_up()
                router.wait_up()
        stall_ms = max((late * 1e3 for _, late in stalled), default=0.0)
        return Figure(name, seconds, *quiet[:5], tuple(found), tuple(killed), stall_ms, quiet[7], *quiet[5:7])


def _watch(
    speaker: Speaker, router: Speaker, gaps: Gaps, seconds: float
) -> tuple[int, float, float, float, int, float, float, tuple[tuple[float, float], ...]]:
    """While nothing is wrong."""
    time.sleep(1.0)
    gaps.take(), router.false_downs()
    before, _ = _usage(speaker.pids())
    times: list[float] = []
    downs = 0
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        time.sleep(min(left, 1.0))
        times += gaps.take()
        downs += router.false_downs()
    after, rss = _usage(speaker.pids())
    downs += speaker.false_downs()
    found = sorted((b - a) * 1e3 for a, b in pairwise(times))
    return (
        len(times),
        statistics.median(found),
        found[int(len(found) * 0.999)],
        found[-1],
        downs,
        (after - before) / seconds,
        rss,
        tuple((b, (b - a) * 1e3) for a, b in pairwise(times) if b - a > 0.15),
    )


def _cut(net: Network, speaker: Speaker, router: Speaker) -> float:
    time.sleep(random.uniform(0.5, 0.7))  # at any moment between two packets
    router.false_downs()
    at = net.cut()
    found = speaker.wait_down()
    router.wait_down()
    net.mend()
    speaker.wait_up()
    router.wait_up()
    return (found - at) * 1e3


# Report


def aims(figure: Figure) -> list[Aim]:
    return [
        Aim("false downs", figure.false_downs, 0, most=True),
        Aim("the longest gap between packets, ms", figure.gap_max, DETECTION_MS, most=True),
        Aim("a cut found, ms", max(figure.found_ms), DETECTION_MS + MARGIN_MS, most=True),
        Aim("a kill -9 found by BIRD, ms", max(figure.killed_ms), DETECTION_MS + MARGIN_MS, most=True),
    ]


def print_report(figures: list[Figure], hogs: int) -> None:
    load_average = ", ".join(Path("/proc/loadavg").read_text().split()[:3])
    print(f"BFD {INTERVAL_MS} ms x {MULTIPLIER}; {hogs} computing processes on {os.cpu_count()} cores")
    print(f"load average at the end, whatever else ran here included: {load_average}\n")
    head = (
        "gaps: median",
        "p99.9",
        "longest",
        "false",
        "cut found: median",
        "worst",
        "killed: worst",
        "core",
        "RSS",
    )
    print(f"{'':<18}{'time':>7}" + "".join(f"{word:>{len(word) + 3}}" for word in head))
    for f in figures:
        cells = (
            f"{f.gap_median:.0f} ms",
            f"{f.gap_p999:.0f} ms",
            f"{f.gap_max:.0f} ms",
            str(f.false_downs),
            f"{statistics.median(f.found_ms):.0f} ms",
            f"{max(f.found_ms):.0f} ms",
            f"{max(f.killed_ms):.0f} ms",
            f"{f.core:.1%}",
            f"{f.rss_mb:.0f} MB",
        )
        columns = "".join(f"{cell:>{len(word) + 3}}" for cell, word in zip(cells, head, strict=True))
        print(f"{f.name:<18}{f.seconds:>5.0f} s{columns}")
    for figure in figures:
        for aim in aims(figure) if figure.name == CHOSEN else ():
            print(f"{'met' if aim.met else 'MISSED':<8}{aim.name}: {aim.value:.0f} (aim {aim.wanted:g})")


def main() -> None:
    parser = argparse.ArgumentParser(prog="vc5.sh bench bfd", description="BFD under load. Takes root.")
    parser.add_argument("--json", action="store_true", help="print JSON, not a table")
    parser.add_argument("--long", action="store_true", help="ten minutes of what the balancer uses")
    parser.add_argument("--only", choices=list(WAYS), help="one of the ways")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each")
    parser.add_argument("--cuts", type=int, default=5, help="of each")
    parser.add_argument("--hogs", type=int, default=HOGS_PER_CORE * (os.cpu_count() or 1))
    arguments = parser.parse_args()
    names = [CHOSEN] if arguments.long else [arguments.only] if arguments.only else list(WAYS)
    seconds = LONG_S if arguments.long else arguments.seconds
    figures = [measure(name, seconds, arguments.cuts, arguments.hogs) for name in names]
    if not arguments.json:
        print_report(figures, arguments.hogs)
        return
    met = [asdict(aim) for figure in figures if figure.name == CHOSEN for aim in aims(figure)]
    print(json.dumps({"bfd": [asdict(figure) for figure in figures], "aims": met}, indent=2))


if __name__ == "__main__":
    main()
