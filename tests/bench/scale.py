"""`python -m tests.bench.scale`: what large configurations and large flow tables cost the control plane.

Three parts. A thousand services of a hundred reals each, once all with the same hundred, once with 30,000
different ones: how long it takes to read the configuration, to decide and to install it in the kernel's
maps, and how long until one real's change of health is there; and for how long reloads that change all of it
keep the event loop. The ways to so many different reals, asked from the kernel: how long until all are known,
and what it takes to keep them fresh. And a flow table as large as they come, half
full: for how long at most one call keeps the event loop, and how long a turn of housekeeping takes.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from ipaddress import IPv4Address
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from tests.bench.reload import Reloaded, measure_reloads
from tests.bench.report import Aim
from tests.bench.resolve import Resolved, measure_resolving
from vc5py import config
from vc5py.core import director
from vc5py.dataplane import abi, flows, maps
from vc5py.dataplane.base import Neighbour
from vc5py.dataplane.kernel import KernelDataplane
from vc5py.dataplane.maps import Maps
from vc5py.dataplane.sizing import sizes_for
from vc5py.dataplane.ticks import TickClock
from vc5py.model import Config, Desired

_T = TypeVar("_T")

INSTALL_S = 10.0
BLOCK_MS = 250.0
RESOLVE_MS = 200.0
CHANGE_MS = 50.0
CALL_MS = 50.0
TICKS = TickClock(250)
_FIRST_REAL = IPv4Address("10.0.0.1")
_FIRST_VIP = IPv4Address("192.168.0.1")


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is measured: services, reals of each, different reals where they aren't all the same, and
    entries of the large flow table.
    """

    services: int = 1000
    reals: int = 100
    distinct: int = 30_000
    entries: int = 1 << 26
    changes: int = 20
    steady_s: float = 15.0


FULL = Scale()
QUICK = Scale(services=200, distinct=6000, entries=1 << 22)


@dataclass(frozen=True, slots=True)
class Installed:
    """One configuration. `cpu_s`: CPU time of reading, deciding and installing, which on a busy machine is
    less than what they take. `*_ms` are of one change of health: median and maximum. `rss_mib`: what the
    process has grown by, `maps_mib`: what the kernel holds.
    """

    name: str
    read_s: float
    decide_s: float
    install_s: float
    cpu_s: float
    step_ms: tuple[float, float]
    apply_ms: tuple[float, float]
    again_ms: float
    counters_ms: float
    maintain_ms: float
    rss_mib: float
    maps_mib: float

    @property
    def load_s(self) -> float:
        return self.read_s + self.decide_s + self.install_s

    @property
    def change_ms(self) -> float:
        return self.step_ms[1] + self.apply_ms[1]


@dataclass(frozen=True, slots=True)
class Scanned:
    """The large flow table. `turn_cpu_s`: time in `maintain` for one whole turn, `idle` with nothing to look
    for but counts, `busy` with every slot of the table to be looked at. `calls`: how many that took.
    """

    entries: int
    occupied: float
    start_s: float
    idle_cpu_s: float
    busy_cpu_s: float
    calls: int
    longest_ms: float


@dataclass(frozen=True, slots=True)
class Report:
    installed: tuple[Installed, ...]
    reloaded: tuple[Reloaded, ...]
    resolved: tuple[Resolved, ...]
    scanned: Scanned


def text_of(scale: Scale, distinct: int) -> str:
    """The configuration file: each service has a VIP and so many of `distinct` reals, one after the other."""
    out = ["flows: 1048576", "services:"]
    groups: dict[str, str] = {}
    for n in range(scale.services):
        first = n * scale.reals % distinct
        name = f"g{first}"
        groups[name] = ", ".join(str(_FIRST_REAL + (first + k) % distinct) for k in range(scale.reals))
        out.append(f"  - {{name: s{n}, addr: {_FIRST_VIP + n}, port: 80, real: {name},")
        out.append("     checks: [{name: alive, type: tcp}]}")
    out += ["reals:", *(f"  {name}: [{reals}]" for name, reals in groups.items())]
    return "\n".join(out) + "\n"


def _rss_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize() / (1 << 20)


def _maps_mib(made: Maps) -> float:
    """Memory of the maps' arrays, as the kernel allocates it at once."""
    arrays = (made.flows, made.services, made.backends, made.slots, made.backend_counts, made.services4)
    return sum(array.nbytes for array in (*arrays, made.services6)) / (1 << 20)


def _timed(call: Callable[[], _T]) -> tuple[_T, float]:
    begin = time.perf_counter()
    result = call()
    return result, time.perf_counter() - begin


@contextmanager
def _open(loaded: Config) -> Iterator[tuple[Maps, KernelDataplane]]:
    made = maps.create(sizes_for(loaded, 16))
    try:
        yield made, KernelDataplane(made, TICKS)
    finally:
        made.close()


def measure_installed(scale: Scale, name: str, distinct: int) -> Installed:
    """Reads, decides, installs with every real up, then takes one real of one service down after another."""
    text = text_of(scale, distinct)
    before, cpu = _rss_mib(), time.process_time()
    loaded, read_s = _timed(lambda: config.parse(text, "scale.yaml"))
    with _open(loaded) as (made, dataplane):
        for n in range(distinct):
            dataplane.set_neighbour(_FIRST_REAL + n, Neighbour(2, abi.word_to_mac(2 + (n << 16))))
        state, decide_s = _timed(lambda: director.start(loaded, lambda _: True, 0.0))
        _, install_s = _timed(lambda: dataplane.apply(state.desired))
        cpu_s = time.process_time() - cpu
        steps, applies = [], []
        for n in range(scale.changes):
            state, step_s, apply_s = _one_change(state, dataplane, n)
            steps.append(step_s * 1e3)
            applies.append(apply_s * 1e3)
        _, again_s = _timed(lambda: dataplane.apply(state.desired))
        now = time.monotonic()
        maintain_s = max(_timed(partial(dataplane.maintain, now + second))[1] for second in range(300))
        _, counters_s = _timed(partial(_read_all, dataplane))
        return Installed(
            name,
            read_s,
            decide_s,
            install_s,
            cpu_s,
            (statistics.median(steps), max(steps)),
            (statistics.median(applies), max(applies)),
            again_s * 1e3,
            counters_s * 1e3,
            maintain_s * 1e3,
            _rss_mib() - before,
            _maps_mib(made),
        )


def _read_all(dataplane: KernelDataplane) -> int:
    """The counters of every backend, as a scrape of the metrics needs them."""
    counters = dataplane.counters()
    return sum(traffic.packets for traffic in counters.traffic.values()) + sum(counters.flows.values())


def _one_change(
    state: director.State, dataplane: KernelDataplane, n: int
) -> tuple[director.State, float, float]:
    """A real of the nth service fails until it is down: seconds of the step that decides, and of `apply`."""
    virtual = list(state.services.values())[n]
    backend, check = list(virtual.targets())[n]
    for _ in range(check.fall):
        event = director.Probed(backend, check, False, "refused")
        (state, actions), step_s = _timed(partial(director.step, state, event, 100.0 + n))
        for action in actions:
            if isinstance(action, director.Install):
                _, apply_s = _timed(partial(dataplane.apply, action.desired))
                return state, step_s, apply_s
    raise AssertionError(f"{backend} did not go down")


# The large flow table


def _fill(made: Maps, owners: NDArray[np.uint64], tick: int) -> None:
    """Half of the entries are established flows of random owners, with random hashes that fit their sets."""
    source = np.random.default_rng(1)
    sets = len(made.flows)
    for part in flows.pieces(made.flows):
        first = (part.__array_interface__["data"][0] - made.flows.__array_interface__["data"][0]) // 64
        shape = (len(part), abi.FLOW_WAYS)
        hashes = source.integers(0, 1 << 64, size=shape, dtype=np.uint64) & ~np.uint64(sets - 1)
        hashes |= (np.arange(len(part), dtype=np.uint64) + np.uint64(first))[:, None]
        low = owners[source.integers(0, len(owners), size=shape)]
        values = low | np.uint64(abi.FLOW_VALID | abi.FlowState.ESTABLISHED << abi.FLOW_STATE_SHIFT)
        values |= np.uint64(tick << abi.FLOW_TICK_SHIFT)
        values[:, abi.FLOW_WAYS // 2 :] = 0
        part["value"] = values
        part["tag"] = values ^ hashes


def measure_scanned(scale: Scale) -> Scanned:
    """A service of a hundred reals with all its flows in a table of so many entries; then every slot changes
    and has to settle, with flows of other backends in nearly all.
    """
    loaded = config.parse(text_of(replace(scale, services=1), scale.reals), "scale.yaml")
    made = maps.create(sizes_for(replace(loaded, flows=scale.entries), 16))
    try:
        dataplane = KernelDataplane(made, TICKS)
        desired = director.start(loaded, lambda _: True, 0.0).desired
        dataplane.apply(desired)
        index = int(np.flatnonzero(made.services["identity"])[0])
        owners = np.array([flows.owner(index, local) for local in range(scale.reals)], dtype=np.uint64)
        _fill(made, owners, TICKS.now())
        dataplane, start_s = _timed(lambda: KernelDataplane(made, TICKS))
        dataplane.apply(desired)
        now = time.monotonic()
        idle = _turn(dataplane, now)
        heavy = [replace(b, weight=1 + n % 7) for n, b in enumerate(desired.services[0].backends)]
        dataplane.apply(Desired((replace(desired.services[0], backends=tuple(heavy)),)))
        busy = _turn(dataplane, now + 1000)
        calls = [*idle, *busy]
        occupied = float(np.count_nonzero(made.flows["value"][:1024]) / (1024 * abi.FLOW_WAYS))
        return Scanned(scale.entries, occupied, start_s, sum(idle), sum(busy), len(busy), max(calls) * 1e3)
    finally:
        made.close()


def _turn(dataplane: KernelDataplane, now: float) -> list[float]:
    """How long each call took until the flow table has been read once more."""
    before, calls = dataplane.counters().flows_at, []
    while dataplane.counters().flows_at == before:
        now += 1.0
        calls.append(_timed(partial(dataplane.maintain, now))[1])
    return calls


def measure(scale: Scale, say: Callable[[str], None] = lambda text: None) -> Report:
    """Everything; `say` is told of each part as it begins."""
    installed = []
    for name, distinct in (("the same reals", scale.reals), (f"{scale.distinct} reals", scale.distinct)):
        say(f"{scale.services} services, {name}")
        installed.append(measure_installed(scale, name, distinct))
    reloaded = measure_reloads(reloads_of(scale), say)
    text = text_of(scale, scale.distinct)
    resolved = measure_resolving(text, scale.distinct, say, scale.steady_s)
    say(f"{scale.entries} flows")
    return Report(tuple(installed), reloaded, resolved, measure_scanned(scale))


def reloads_of(scale: Scale) -> list[tuple[str, str]]:
    """What is there, and then each reload: its name and its file."""
    whole = text_of(scale, scale.distinct)
    other = text_of(replace(scale, reals=scale.reals - 1), scale.distinct)
    half = text_of(replace(scale, services=scale.services // 2), scale.distinct)
    names = "every service gets other reals", "all change, and half go", "the other half comes back"
    return [("", whole), *zip(names, (other, half, whole), strict=True)]


def aims(report: Report) -> list[Aim]:
    """What is aimed at, of the figures."""
    out = []
    for one in report.installed:
        out.append(Aim(f"{one.name}: s to load and install", one.load_s, INSTALL_S, most=True))
        out.append(Aim(f"{one.name}: ms for a change of health", one.change_ms, CHANGE_MS, most=True))
    for reload in report.reloaded:
        out.append(
            Aim(f"ms that a reload keeps all else: {reload.name}", reload.longest_ms, BLOCK_MS, most=True)
        )
    for ways in report.resolved:
        longest = max(ways.longest_ms, ways.steady_longest_ms)
        out.append(Aim(f"ms that finding reals keeps all else: {ways.name}", longest, RESOLVE_MS, most=True))
    out.append(Aim("ms that one call keeps the event loop", report.scanned.longest_ms, CALL_MS, most=True))
    return out


def print_report(report: Report, write: Callable[[str], None] = print) -> None:
    """Writes the tables line by line."""
    columns = [one.name for one in report.installed]
    write(f"{'':44}" + "".join(f"{name:>20}" for name in columns))
    rows: list[tuple[str, Callable[[Installed], str]]] = [
        ("read the configuration, s", lambda i: f"{i.read_s:.2f}"),
        ("decide, s", lambda i: f"{i.decide_s:.2f}"),
        ("install, s", lambda i: f"{i.install_s:.2f}"),
        ("CPU time of all that, s", lambda i: f"{i.cpu_s:.2f}"),
        ("one change: director, ms, median (most)", lambda i: f"{i.step_ms[0]:.2f} ({i.step_ms[1]:.2f})"),
        ("one change: data plane, ms, median (most)", lambda i: f"{i.apply_ms[0]:.2f} ({i.apply_ms[1]:.2f})"),
        ("apply what is there already, ms", lambda i: f"{i.again_ms:.3f}"),
        ("longest call of housekeeping, ms", lambda i: f"{i.maintain_ms:.1f}"),
        ("read all counters, ms", lambda i: f"{i.counters_ms:.1f}"),
        ("memory: process, MiB", lambda i: f"{i.rss_mib:.0f}"),
        ("memory: kernel's maps, MiB", lambda i: f"{i.maps_mib:.0f}"),
    ]
    for title, cell in rows:
        write(f"{title:44}" + "".join(f"{cell(one):>20}" for one in report.installed))
    for reload in report.reloaded:
        write(f"reload, {reload.name}: {reload.took_s:.1f} s, of which {reload.longest_ms:.0f} ms at a time")
    for ways in report.resolved:
        write(f"ways to {ways.reals} reals {ways.name}: all known in {ways.took_s:.1f} s, of which")
        write(f"  {ways.longest_ms:.0f} ms at a time, and {ways.reload_s:.2f} s before a reload goes on;")
        write(f"  kept fresh with {ways.share:.1%} of a CPU, {ways.steady_longest_ms:.0f} ms at a time")
    scanned = report.scanned
    million = scanned.entries / 1e6
    write(f"flow table of {scanned.entries} entries, {scanned.occupied:.0%} occupied:")
    write(f"  longest call {scanned.longest_ms:.1f} ms; a turn takes {scanned.calls} calls")
    write(f"  ms a million entries: {scanned.idle_cpu_s / million * 1e3:.1f} to count,")
    write(f"  {scanned.busy_cpu_s / million * 1e3:.1f} with all slots to look at; once at the start, before")
    write(f"  anything is attached: {scanned.start_s / million * 1e3:.1f}")
    for aim in aims(report):
        write(f"{'met   ' if aim.met else 'MISSED'} {aim.name}: {aim.value:.1f} (wanted <= {aim.wanted:g})")


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="vc5.sh bench scale", description="What size costs the control plane. Takes root."
    )
    parser.add_argument("--json", action="store_true", help="print JSON, not tables")
    parser.add_argument("--quick", action="store_true", help="less of everything, for a first impression")
    arguments = parser.parse_args()
    report = measure(
        QUICK if arguments.quick else FULL, lambda text: print(f"measuring: {text}", file=sys.stderr)
    )
    if arguments.json:
        print(json.dumps(asdict(report) | {"aims": [asdict(aim) for aim in aims(report)]}, indent=2))
    else:
        print_report(report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
