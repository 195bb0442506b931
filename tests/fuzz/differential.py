"""Differential fuzzing: mutated frames through the kernel's data plane and through the oracle, side by side.

    python -m tests.fuzz.differential --executions 1000000 --seed 1

Workers are forked, one for each CPU, each with maps of its own. Verdict, action and all bytes of every frame
are compared, and after each batch the whole flow table. What is found becomes a case in tests/packets.
Invariant: the same seed and number of workers try the same frames.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import sys
import time
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np

from tests.fuzz.mutate import frames, own_frames
from tests.packets.cases import CASES, PROBES
from tests.packets.cases_base import REAL_11, WEB_11_DOWN, WEB_11_DRAINING
from tests.packets.cases_flow import DROPPING, LOADED
from tests.packets.cases_forward import BONDS
from tests.packets.cases_ipv6 import WEB6_11_DOWN
from tests.packets.harness import Entry, Kernel, Outcome, XdpAction
from tests.packets.oracle import Flows, Known, Oracle, expect_probe, read_tuple
from tests.packets.oracle_read import Kind, read
from tests.packets.world import WORLD, RealSpec, Side, World
from vc5py.dataplane import abi
from vc5py.dataplane.abi import FlowState
from vc5py.model import Protocol

BATCH = 500  # few enough flows that none of them has to give way to another
_STRIDE = 1_000_003  # between the seeds of batches
SILENT = replace(WORLD, answers=False)
BONDED = replace(WORLD, bond=BONDS["bond"])
DOWN = WEB_11_DOWN
for _name in ("sticky", "least"):
    DOWN = DOWN.with_real(_name, REAL_11, up=False, weight=0)
CUT = replace(WORLD, bond=BONDS["bond_far"], cut=frozenset({Side.FAR}))


@dataclass(frozen=True, slots=True)
class Setting:
    """`before` as in `Kernel.install`. `side`: the one that frames come in on. `bare`: without headroom.
    `egress`: frames of our own, through the other program. `known`: many of the flows have an entry, of any
    real, state and age. `full`: the flow table is, of others' established ones.
    """

    world: World = WORLD
    before: World | None = None
    side: Side = Side.NEAR
    bare: bool = False
    egress: bool = False
    known: bool = False
    full: bool = False


SETTINGS = (  # taken in turn
    Setting(),
    Setting(bare=True),
    Setting(egress=True),
    Setting(side=Side.FAR),
    Setting(WEB_11_DRAINING, WORLD),
    Setting(WEB_11_DOWN, WORLD),
    Setting(WEB6_11_DOWN, WORLD),
    Setting(DROPPING),
    Setting(SILENT),
    Setting(LOADED),
    Setting(BONDED, side=Side.FAR),
    Setting(CUT),
    Setting(WEB_11_DRAINING, WORLD, known=True),
    Setting(DOWN, WORLD, known=True),
    Setting(WEB_11_DRAINING, WORLD, full=True),
)
AGES = (0, 0, 1, 2, 8, 9, 94, 95, 234, 235, 768, 769, 2812, 2813, 20000)  # in ticks
STATES = {
    Protocol.TCP: (FlowState.UNPROVEN, FlowState.PROVING, FlowState.CLOSING, FlowState.ESTABLISHED),
    Protocol.UDP: (FlowState.UNPROVEN, FlowState.PROVING, FlowState.STREAM),
}
_OTHER = abi.FLOW_VALID | FlowState.ESTABLISHED << abi.FLOW_STATE_SHIFT
OTHERS = np.array((_OTHER ^ 1, _OTHER), abi.FLOW_ENTRY)  # seen in tick 0, which it always is


@dataclass(frozen=True, slots=True)
class Mismatch:
    """`before`: how many frames of its batch came before it."""

    seed: int
    setting: int
    before: int
    frame: bytes
    expected: Outcome
    got: Outcome

    def __str__(self) -> str:
        return (
            f"seed={self.seed} setting={self.setting} before={self.before}\n"
            f"  frame    {self.frame.hex()}\n"
            f"  expected {self.expected.verdict} {self.expected.frame.hex()}\n"
            f"  got      {self.got.verdict} {self.got.frame.hex()}"
        )


@dataclass(frozen=True, slots=True)
class Result:
    executions: int
    mismatches: list[Mismatch]
    verdicts: dict[str, int]


# Frames that end so early are left out: there are many, and mutation makes them anew.
EARLY = ("unreadable", "bad_ip_header", "bad_l4_header", "not_vip")


def corpus() -> list[bytes]:
    """The frames of the named cases, each once."""
    cases = [case for case in CASES if case.verdict not in EARLY]
    return list(dict.fromkeys(frame for case in cases for frame in (*case.first, case.frame)))


class Fuzzer:
    """One kernel and the oracles of all settings."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._corpus = corpus()
        self._own = list(dict.fromkeys(probe.frame for probe in PROBES))
        self._oracles = [Oracle(setting.world, setting.before) for setting in SETTINGS]

    def batch(self, seed: int, setting: int, count: int) -> Result:
        chosen = SETTINGS[setting]
        self._kernel.install(chosen.world, chosen.before)
        if chosen.egress:
            return self._egress(seed, setting, count)
        side = chosen.side
        inputs = list(islice(frames(seed, self._corpus, side), count))
        oracle, headroom = self._oracles[setting], not chosen.bare
        flows = self._know(seed, inputs, chosen.world) if chosen.known else {}
        if chosen.full:
            self._kernel.maps.flows[:] = OTHERS
        outcomes = self._kernel.run_many(inputs, side, bare=chosen.bare)
        mismatches: list[Mismatch] = []
        verdicts: dict[str, int] = {}
        for at, (frame, got) in enumerate(zip(inputs, outcomes, strict=True)):
            expected = oracle.predict(frame, flows, side=side, room=not chosen.full, headroom=headroom)
            if got.action is XdpAction.DROP:
                got = Outcome(got.verdict, got.action, b"")
            if got != expected:
                mismatches.append(Mismatch(seed, setting, at, frame, expected, got))
            verdicts[str(got.verdict)] = verdicts.get(str(got.verdict), 0) + 1
        if not mismatches and not self._holds(flows, full=chosen.full):
            nothing = Outcome("flow_table", XdpAction.DROP, b"")
            mismatches.append(Mismatch(seed, setting, count, b"", nothing, nothing))
        return Result(count, mismatches, verdicts)

    def _know(self, seed: int, inputs: list[bytes], world: World) -> Flows:
        """Gives about half of the flows of these frames an entry."""
        r = random.Random(seed)
        services = {(s.vip, port, protocol): s for s in world.services for port, protocol in s.ports}
        flows: Flows = {}
        for frame in inputs:
            p, problem = read(frame)
            if problem is not None or p.kind is not Kind.FLOW or r.random() < 0.5:
                continue
            flow = read_tuple(frame)
            service = services.get((flow.vip, flow.dport, flow.protocol))
            if service is None or flow.hash in flows:
                continue
            real, state = r.choice(service.reals), r.choice(STATES[flow.protocol])
            entry = Entry(service.name, real, state, r.choice(AGES))
            way = self._kernel.free_way(flow.hash)
            if way is not None:
                self._kernel.put(flow.hash, entry, way)
                flows[flow.hash] = Known(service.name, real.address, state, entry.age)
        return flows

    def _holds(self, flows: Flows, *, full: bool) -> bool:
        """Whether the flow table holds just these, or where it is full what it did."""
        if full:
            return not flows and bool((self._kernel.maps.flows == OTHERS).all())
        return self._kernel.recorded() == {n: known.told for n, known in flows.items()}

    def _egress(self, seed: int, setting: int, count: int) -> Result:
        marks = self._marks()
        inputs = list(islice(own_frames(seed, self._own, list(marks)), count))
        outcomes = self._kernel.run_many_egress([(frame, marks[real]) for frame, real in inputs])
        mismatches: list[Mismatch] = []
        verdicts: dict[str, int] = {}
        for at, ((frame, real), got) in enumerate(zip(inputs, outcomes, strict=True)):
            expected = expect_probe(frame, real)
            if got != expected:
                mismatches.append(Mismatch(seed, setting, at, frame, expected, got))
            verdicts[str(got.verdict)] = verdicts.get(str(got.verdict), 0) + 1
        return Result(count, mismatches, verdicts)

    def _marks(self) -> dict[RealSpec | None, int]:
        """Of every real, and one of none. Reals with tags are left out: a test run doesn't show them."""
        marks: dict[RealSpec | None, int] = {None: abi.PROBE_MARK | ~abi.PROBE_MARK_MASK & 0xFFFFFFFF}
        for service in WORLD.services:
            for real in service.reals:
                if not real.vlan:
                    marks[real] = abi.PROBE_MARK | self._kernel.backend_index(service.name, real)
        return marks


def _work(worker: int, workers: int, executions: int, seed: int) -> Result:
    """One worker's share, on a CPU of its own."""
    cpus = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cpus[worker % len(cpus)]})
    mismatches: list[Mismatch] = []
    verdicts: dict[str, int] = {}
    with Kernel() as kernel:
        fuzzer = Fuzzer(kernel)
        batches = -(-executions // BATCH)
        # In long runs of one setting: to install a world costs as much as some batches.
        mine = sorted(range(worker, batches, workers), key=lambda n: (n // workers) % len(SETTINGS))
        for n in mine:
            result = fuzzer.batch(seed + n * _STRIDE, (n // workers) % len(SETTINGS), BATCH)
            mismatches += result.mismatches
            for name, count in result.verdicts.items():
                verdicts[name] = verdicts.get(name, 0) + count
            if len(mismatches) > 20:
                break
    return Result(sum(verdicts.values()), mismatches, verdicts)


def run(executions: int, seed: int, workers: int | None = None) -> Result:
    """All of them, rounded up to whole batches."""
    workers = workers or len(os.sched_getaffinity(0))
    if workers == 1:
        return _work(0, 1, executions, seed)
    with multiprocessing.get_context("fork").Pool(workers) as pool:
        shares = pool.starmap(_work, [(n, workers, executions, seed) for n in range(workers)])
    verdicts: dict[str, int] = {}
    for share in shares:
        for name, count in share.verdicts.items():
            verdicts[name] = verdicts.get(name, 0) + count
    mismatches = [mismatch for share in shares for mismatch in share.mismatches]
    return Result(sum(share.executions for share in shares), mismatches, verdicts)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.differential", description=__doc__)
    parser.add_argument("--executions", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=None)
    arguments = parser.parse_args()
    started = time.monotonic()
    result = run(arguments.executions, arguments.seed, arguments.workers)
    seconds = time.monotonic() - started
    for mismatch in result.mismatches:
        print(mismatch)
    for name, count in sorted(result.verdicts.items(), key=lambda item: -item[1]):
        print(f"{count:>10} {name}")
    print(
        f"seed={arguments.seed} executions={result.executions} mismatches={len(result.mismatches)}"
        f" seconds={seconds:.1f}"
    )
    return bool(result.mismatches)


if __name__ == "__main__":
    sys.exit(main())
