"""Measures BFD at 100 ms x 3 while the machine's cores are kept busy: ways to do it side by side.

Two namespaces with a bridge between them. At one end a router: BIRD with real-time priority, so that what is
measured is the other end. There, in turns: our BFD process with normal, raised and real-time priority, and
BIRD with normal and real-time priority, in case an established daemon does it better.

Measured for each: the gaps between the packets it sends (by the kernel's time stamps, when they leave it and
when they arrive at the router; 300 ms are a down), how often either end took the other for gone while nothing
was wrong, how long it takes to find a cut (since the last packet and since the cut; and how much later the
director is told, which has normal priority; of BIRD, what its log says), how long the router takes to find
that all of its processes were killed, its CPU time and memory. Beside that, for how long the machine itself
stood still (`machine.Canary`): so each down is put down to its cause.

`--long`: ten minutes of what the balancer uses. `--sessions`: with ever more sessions. `--json` for programs.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path

from tests.bench import bfd_sessions
from tests.bench.bfd_ends import (
    ADDRESS,
    BALANCER,
    DETECTION_MS,
    INTERVAL_MS,
    MARGIN_MS,
    MULTIPLIER,
    ROUTER,
    ROUTER_ADDRESS,
    Bird,
    Network,
    Ours,
    Speaker,
    Tap,
    network,
)
from tests.bench.machine import LEAST_MS, Canary, Stall, load, steal_s, usage
from tests.bench.report import Aim

HOGS_PER_CORE = 4
LONG_S = 600
# Until a timer that runs out is heeded, with real-time priority.
LATE_MS = 10
# What happened in so long before a down may be its cause.
BEFORE_S = 1.0


@dataclass(frozen=True, slots=True)
class Down:
    """A false one: who took the other for gone. Of the second before it, the longest, in ms: gap between the
    other's packets as they left, as they arrived, and moment in which the machine stood still.
    """

    by: str
    left_ms: float
    arrived_ms: float
    stall_ms: float

    @property
    def cause(self) -> str:
        lost_ms = DETECTION_MS - INTERVAL_MS
        if self.stall_ms > lost_ms:
            return "the machine stood still"
        if self.left_ms > lost_ms:
            return "the sender was late"
        return "the network was late" if self.arrived_ms > lost_ms else "who listens was late"


@dataclass(frozen=True, slots=True)
class Quiet:
    """While nothing was wrong. `gap_*`: between two packets that arrived, in ms; `left_max`: as they left.
    `stall_ms`: the longest that the machine stood still, `steal_ms`: all that its host took. `core`: what was
    used of one.
    """

    packets: int
    gap_median: float
    gap_p999: float
    gap_max: float
    left_max: float
    false_downs: int
    downs: tuple[Down, ...]
    stall_ms: float
    steal_ms: float
    core: float
    rss_mb: float


@dataclass(frozen=True, slots=True)
class Cut:
    """How long until it was found, in ms. Since the last packet had arrived, as the detection time is defined
    (RFC 5880, section 6.8.4), and since the cut; and from then until who acts on it was told.
    """

    silence_ms: float
    found_ms: float
    told_ms: float


@dataclass(frozen=True, slots=True)
class Figure:
    """`cuts`: what became of each; `killed_ms`: from each kill -9 until the router knew."""

    name: str
    seconds: float
    quiet: Quiet
    cuts: tuple[Cut, ...]
    killed_ms: tuple[float, ...]


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


def measure(name: str, seconds: float, cuts: int, hogs: int) -> Figure:
    with tempfile.TemporaryDirectory() as folder, network() as net, contextlib.ExitStack() as stack:
        router = Bird(ROUTER, "br0", ADDRESS, Path(folder, "r"), fifo=True)
        stack.callback(router.end)
        speaker = WAYS[name](Path(folder))
        stack.callback(lambda: speaker.end())  # which is another one then
        speaker.wait_up()
        router.wait_up()
        with load(hogs):
            with Watch() as watch:
                quiet = watch.watch(speaker, router, seconds)
            found = _cut_often(net, speaker, router, cuts)
            killed: list[float] = []
            for _ in range(cuts):
                at = speaker.kill()
                killed.append((router.wait_found().told - at) * 1e3)
                speaker.end()
                speaker = WAYS[name](Path(tempfile.mkdtemp(dir=folder)))
                speaker.wait_up()
                router.wait_up()
        return Figure(name, seconds, quiet, tuple(found), tuple(killed))


@dataclass(slots=True)
class Flow:
    """What one end sends the other: when packets left and when they arrived, on the monotonic clock."""

    left: list[float] = field(default_factory=list)
    arrived: list[float] = field(default_factory=list)


class Watch:
    """Both taps and the canary. Used as a context."""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self._flows: dict[str, Flow] = {ADDRESS: Flow(), ROUTER_ADDRESS: Flow()}
        self._stalls: list[Stall] = []

    def __enter__(self) -> Watch:
        self._near, self._far = Tap(BALANCER, "eth0"), Tap(ROUTER, "br0")
        self._stack.callback(self._near.close)
        self._stack.callback(self._far.close)
        self._canary = self._stack.enter_context(Canary())
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def watch(self, speaker: Speaker, router: Speaker, seconds: float) -> Quiet:
        time.sleep(1.0)
        self._near.take(), self._far.take(), self._canary.take()
        router.downs(), speaker.downs()
        before, _ = usage(speaker.pids())
        steal = steal_s()
        found, end = [], time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            time.sleep(min(left, 1.0))
            self._take()
            found += [("the router", at) for at in router.downs()]
            found += [("we", at) for at in speaker.downs()]
        after, rss = usage(speaker.pids())
        gaps = sorted(_gaps(self._flows[ADDRESS].arrived))
        return Quiet(
            len(gaps),
            statistics.median(gaps),
            gaps[int(len(gaps) * 0.999)],
            gaps[-1],
            max(_gaps(self._flows[ADDRESS].left)),
            sum(by == "the router" for by, _ in found) + speaker.false_downs(),
            tuple(self._down(by, at) for by, at in found),
            max((stall.seconds * 1e3 for stall in self._stalls), default=0.0),
            (steal_s() - steal) * 1e3,
            (after - before) / seconds,
            rss,
        )

    def _take(self) -> None:
        """Empties both taps' buffers, and the canary's."""
        offset = time.monotonic() - time.time()
        for tap, near in ((self._near, True), (self._far, False)):
            for source, _, at in tap.take():
                flow = self._flows[source]
                times = flow.left if near is (source == ADDRESS) else flow.arrived
                times.append(at + offset)
        self._stalls += self._canary.take()

    def _down(self, by: str, at: float) -> Down:
        flow = self._flows[ADDRESS if by == "the router" else ROUTER_ADDRESS]
        stalls = (stall.within(at - BEFORE_S, at) for stall in self._stalls)
        return Down(by, _longest(flow.left, at), _longest(flow.arrived, at), 1e3 * max(stalls, default=0.0))


def _gaps(times: list[float]) -> list[float]:
    return [(b - a) * 1e3 for a, b in pairwise(times)]


def _longest(times: Iterable[float], at: float) -> float:
    """The longest gap in the time before a down, in ms; the one that is open then, too."""
    around = [t for t in times if at - BEFORE_S <= t <= at]
    return max(_gaps([at - BEFORE_S, *around, at]))


def _cut_often(net: Network, speaker: Speaker, router: Speaker, cuts: int) -> list[Cut]:
    tap = Tap(BALANCER, "eth0")
    try:
        return [_cut(net, speaker, router, tap) for _ in range(cuts)]
    finally:
        tap.close()


def _cut(net: Network, speaker: Speaker, router: Speaker, tap: Tap) -> Cut:
    tap.take()
    time.sleep(random.uniform(0.5, 0.7))  # at any moment between two packets
    router.downs()
    at = net.cut()
    found = speaker.wait_found()
    offset = time.monotonic() - time.time()
    last = max(arrived for source, _, arrived in tap.take() if source == ROUTER_ADDRESS) + offset
    router.wait_found()
    net.mend()
    speaker.wait_up()
    router.wait_up()
    return Cut((found.judged - last) * 1e3, (found.judged - at) * 1e3, (found.told - found.judged) * 1e3)


# Report


def aims(figure: Figure) -> list[Aim]:
    worst_ms = max(max(cut.silence_ms, cut.found_ms) for cut in figure.cuts)
    return [
        Aim("false downs", figure.quiet.false_downs, 0, most=True),
        Aim("the longest gap between packets, ms", figure.quiet.gap_max, DETECTION_MS, most=True),
        Aim("a cut found, ms", worst_ms, DETECTION_MS + LATE_MS, most=True),
        Aim("the director told, ms later", max(cut.told_ms for cut in figure.cuts), MARGIN_MS, most=True),
        Aim("a kill -9 found by BIRD, ms", max(figure.killed_ms), DETECTION_MS + MARGIN_MS, most=True),
    ]


def _rows(figure: Figure) -> list[tuple[str, str]]:
    """What is printed of it: names, the same for all, and values."""
    quiet = figure.quiet
    return [
        ("watched", f"{figure.seconds:.0f} s"),
        ("false downs", str(quiet.false_downs)),
        ("gap between packets, median", f"{quiet.gap_median:.0f} ms"),
        ("  of a thousand the second longest", f"{quiet.gap_p999:.0f} ms"),
        ("  longest", f"{quiet.gap_max:.0f} ms"),
        ("  longest, as they left", f"{quiet.left_max:.0f} ms"),
        *_median_and_worst("silence until a cut was found", [cut.silence_ms for cut in figure.cuts]),
        *_median_and_worst("cut until found", [cut.found_ms for cut in figure.cuts]),
        *_median_and_worst("found until told", [cut.told_ms for cut in figure.cuts]),
        *_median_and_worst("kill -9 until the router knew", figure.killed_ms),
        ("share of a core", f"{quiet.core:.1%}"),
        ("resident memory", f"{quiet.rss_mb:.0f} MB"),
        (
            "the machine itself stood still",
            f"{quiet.stall_ms:.0f} ms" if quiet.stall_ms else f"< {LEAST_MS:.0f} ms",
        ),
        ("its host took", f"{quiet.steal_ms:.0f} ms"),
    ]


def _median_and_worst(name: str, values: Sequence[float]) -> list[tuple[str, str]]:
    middle = statistics.median(values)
    return [
        (f"{name}, median of {len(values)}", f"{middle:.1f} ms"),
        ("  worst", f"{max(values):.1f} ms"),
    ]


def print_report(figures: list[Figure], hogs: int) -> None:
    load_average = ", ".join(Path("/proc/loadavg").read_text().split()[:3])
    print(f"BFD {INTERVAL_MS} ms x {MULTIPLIER}; {hogs} computing processes on {os.cpu_count()} cores")
    print(f"load average at the end, whatever else ran here included: {load_average}\n")
    print(f"{'':<44}" + "".join(f"{figure.name:>18}" for figure in figures))
    for cells in zip(*(_rows(figure) for figure in figures), strict=True):
        print(f"{cells[0][0]:<44}" + "".join(f"{value:>18}" for _, value in cells))
    for figure in figures:
        for down in figure.quiet.downs:
            print(
                f"false down of {figure.name}, found by {down.by}: {down.cause}. In the second before it, the"
                f" longest gap was {down.left_ms:.0f} ms at the sender, {down.arrived_ms:.0f} ms where they"
                f" arrived; the machine itself stood still for {down.stall_ms:.0f} ms"
            )
        for aim in aims(figure) if figure.name == CHOSEN else ():
            print(f"{'met' if aim.met else 'MISSED':<8}{aim.name}: {aim.value:.1f} (aim {aim.wanted:g})")


def main() -> None:
    parser = argparse.ArgumentParser(prog="vc5.sh bench bfd", description="BFD under load. Takes root.")
    parser.add_argument("--json", action="store_true", help="print JSON, not a table")
    parser.add_argument("--long", action="store_true", help="ten minutes of what the balancer uses")
    parser.add_argument("--sessions", action="store_true", help="how many sessions one process can have")
    parser.add_argument("--only", choices=list(WAYS), help="one of the ways")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each")
    parser.add_argument("--cuts", type=int, default=5, help="of each")
    parser.add_argument("--hogs", type=int, default=HOGS_PER_CORE * (os.cpu_count() or 1))
    arguments = parser.parse_args()
    if arguments.sessions:
        bfd_sessions.main(arguments.seconds, arguments.hogs)
        return
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
