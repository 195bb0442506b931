"""`python -m tests.bench.sync`: how many flows a second one balancer tells another, and what that costs.

Two sharing processes on this machine, in two network namespaces: flows change in the one's rings as if CPUs
had written them there, are read, encoded, signed, sent by multicast, received, verified, and put into the
other's flow table. Then the same over a link that loses datagrams, a copy of everything, and what a packet
costs the data plane without sharing and with it.
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.bench.report import Aim
from tests.bench.rig import ACK, SYN, VIP4, Harness, Order, Ours, Stream
from tests.bench.sync_rig import GROUP4, Node, Process, pair
from vc5py.dataplane import abi, flows
from vc5py.dataplane.tables import first_slot, size

SLICE_S = 0.02
SETTLE_S = 3.0
LOSSY_RATE = 250_000  # flows a second
LOSS_LIMIT_S = 120.0
_LOCAL = np.uint64((1 << abi.FLOW_LOCAL_BITS) - 1)


@dataclass(frozen=True, slots=True)
class Scale:
    """`rates`: flows a second that are offered, each for so many seconds. `losses`: so many of a thousand
    datagrams, one after the other; `lossy`: flows offered then. `copied`: of the full copy.
    """

    rates: tuple[int, ...] = (250_000, 500_000, 1_050_000, 1_400_000)
    seconds: float = 4.0
    entries: int = 1 << 23
    log: int = 1 << 17
    losses: tuple[int, ...] = (1, 10, 100)
    lossy: int = 500_000
    copied: int = 1_000_000
    packets: int = 1_000_000
    rounds: int = 9


FULL = Scale()
QUICK = Scale((500_000, 1_050_000), 2.0, 1 << 22, lossy=100_000, copied=200_000, packets=200_000, rounds=3)


@dataclass(frozen=True, slots=True)
class Transfer:
    """One rate. `installed` a second; `missed` were written over before they were read; `lost` of the
    datagrams that were sent. CPU time is in nanoseconds a flow, of all that each process does.
    """

    offered: float
    installed: float
    missed: int
    lost: float
    sender_ns: float
    receiver_ns: float
    bytes_per_flow: float


@dataclass(frozen=True, slots=True)
class Loss:
    """Over a link that loses so many of a thousand datagrams, copies' too: flows that were there a tenth of a
    second after the last one was offered, and how long until none was missing any more; with all bytes that
    were sent for it.
    """

    per_mille: int
    flows: int
    at_once: int
    seconds: float
    bytes_per_flow: float


@dataclass(frozen=True, slots=True)
class Copy:
    """A process that was killed and has started again: how long until it has all flows of its peer."""

    flows: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Cost:
    """Nanoseconds a packet over the harness: without sharing and with it."""

    name: str
    off: float
    on: float


@dataclass(frozen=True, slots=True)
class Report:
    transfers: tuple[Transfer, ...]
    losses: tuple[Loss, ...]
    copy: Copy
    costs: tuple[Cost, ...]

    def aims(self) -> list[Aim]:
        best = max(self.transfers, key=lambda transfer: transfer.installed)
        return [
            Aim("flows a second, at best", best.installed, 1_000_000),
            *(
                Aim(f"{one.name}: percent more with sharing", 100 * (one.on / one.off - 1), 5.0, most=True)
                for one in self.costs
            ),
        ]


class Flows:
    """Endless new flows of the first service, each at the backend that its slot names."""

    def __init__(self, node: Node) -> None:
        self._maps = node.ours.maps
        self._clock = node.ours.clock
        self._random = np.random.default_rng(5)
        self._service = int(np.flatnonzero(self._maps.services["identity"])[0])
        word = int(self._maps.services["table"][self._service])
        slots = self._maps.slots.reshape(-1)[first_slot(word) : first_slot(word) + size(word)]
        self._slots = slots.astype(np.uint64) & np.uint64(abi.SLOT_NONE)

    def make(self, count: int) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
        """Values and hashes of so many established flows."""
        hashes = self._random.integers(0, 1 << 64, count, dtype=np.uint64)
        local = self._slots[(hashes >> np.uint64(40)).astype(np.int64) & len(self._slots) - 1]
        state = abi.FlowState.ESTABLISHED << abi.FLOW_STATE_SHIFT
        rest = (
            abi.FLOW_VALID | self._clock.now() << abi.FLOW_TICK_SHIFT | state | flows.owner(self._service, 0)
        )
        return np.uint64(rest) | (local & _LOCAL), hashes


class Bench:
    def __init__(self, scale: Scale, say: Callable[[str], None]) -> None:
        self._scale = scale
        self._say = say

    def run(self) -> Report:
        with pair(self._scale.entries, self._scale.log) as (first, second):
            made = Flows(first)
            transfers = tuple(self._transfer(first, second, made, rate) for rate in self._scale.rates)
            losses = tuple(self._loss(first, second, made, per_mille) for per_mille in self._scale.losses)
            copy = self._copy(first, second, made)
        return Report(transfers, losses, copy, self._costs())

    def _transfer(self, first: Node, second: Node, made: Flows, rate: int) -> Transfer:
        self._say(f"{rate} flows a second")
        second.ours.forget_flows()
        sender, receiver = first.start(first.order(GROUP4)), second.start(second.order(GROUP4))
        receiver.wait_for("copied", 1)
        sender.wait_for("copied", 1)
        before, begin = (sender.next_report(), receiver.next_report()), time.perf_counter()
        offered = _offer(first, made, rate, self._scale.seconds)
        elapsed = time.perf_counter() - begin
        time.sleep(SETTLE_S)  # what is under way is to arrive, and be reported
        after = sender.next_report(), receiver.next_report()
        for process in (sender, receiver):
            process.stop()
        return _figures(offered, elapsed, before, after)

    def _loss(self, first: Node, second: Node, made: Flows, per_mille: int) -> Loss:
        self._say(f"{per_mille} of 1,000 datagrams lost")
        for node in (first, second):
            node.ours.forget_flows()
        values, hashes = made.make(self._scale.lossy)
        placed = _place(first, values, hashes)
        sender, receiver = first.start(first.order(GROUP4)), second.start(second.order(GROUP4))
        for process in (sender, receiver):
            process.wait_for("copied", 1)
        second.ours.forget_flows()
        before = sender.next_report()
        with second.losing(per_mille):
            for part in np.array_split(np.arange(len(values)), max(1, len(values) * 50 // LOSSY_RATE)):
                first.change(values[part], hashes[part])
                time.sleep(1 / 50)
            begin = time.perf_counter()
            time.sleep(0.1)
            at_once = second.flows()
            while (found := second.flows()) < placed and time.perf_counter() - begin < LOSS_LIMIT_S:
                time.sleep(0.1)
            seconds = time.perf_counter() - begin
        if found < placed:
            raise SystemExit(f"{placed - found} of {placed} flows are missing {LOSS_LIMIT_S} s after a loss")
        sent = sender.next_report()["bytes_sent"] - before["bytes_sent"]
        for process in (sender, receiver):
            process.stop()
        return Loss(per_mille, placed, at_once, seconds, sent / placed)

    def _copy(self, first: Node, second: Node, made: Flows) -> Copy:
        count = self._scale.copied
        self._say(f"a full copy of {count} flows")
        values, hashes = made.make(count)
        for node in (first, second):
            node.ours.forget_flows()
        placed = _place(first, values, hashes)
        sender, receiver = first.start(first.order(GROUP4)), second.start(second.order(GROUP4))
        receiver.wait_for("copied", 1)
        receiver.popen.send_signal(signal.SIGKILL)
        receiver.stop()
        second.ours.forget_flows()
        begin = time.perf_counter()
        receiver = second.start(second.order(GROUP4))
        _wait_for_copy(receiver)
        seconds = time.perf_counter() - begin
        found = second.flows()
        for process in (sender, receiver):
            process.stop()
        if found < placed * 0.999:
            raise SystemExit(f"{placed - found} of {placed} flows are missing after a full copy")
        return Copy(found, seconds)

    # What packets cost

    def _costs(self) -> tuple[Cost, ...]:
        harness = Harness()
        off, on = Ours(1 << 21), Ours(1 << 21, log=self._scale.log)
        try:
            return tuple(self._cost(harness, off, on, *scenario) for scenario in _SCENARIOS)
        finally:
            for thing in (harness, off, on):
                thing.close()

    def _cost(self, harness: Harness, off: Ours, on: Ours, name: str, stream: Stream, by_flow: bool) -> Cost:
        self._say(name)
        scale = self._scale
        times: dict[int, list[float]] = {harness.nothing: [], off.program: [], on.program: []}
        for ours in (off, on):
            ours.forget_flows()
            ours.by_flow(by_flow)
            harness.run(ours.program, stream, scale.packets)  # the flows are there
        for _ in range(scale.rounds):
            for program, measured in times.items():
                measured.append(harness.run(program, stream, scale.packets))
        nothing, without, shared = times.values()
        cost = statistics.median(b - a for a, b in zip(nothing, without, strict=True))
        more = statistics.median(b - a for a, b in zip(without, shared, strict=True))
        return Cost(name, cost, cost + more)


_SCENARIOS = (
    ("one established flow", Stream(VIP4, ACK), False),
    ("65,536 established flows", Stream(VIP4, ACK, 1 << 16), False),
    ("new flows in stable slots", Stream(VIP4, SYN, 1 << 30, Order.ENDLESS), False),
    ("65,536 flows that are looked up", Stream(VIP4, ACK, 1 << 16), True),
    ("new flows that are recorded", Stream(VIP4, SYN, 1 << 30, Order.ENDLESS), True),
)


def _offer(node: Node, made: Flows, rate: int, seconds: float) -> int:
    begin, offered = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - begin) < seconds:
        due = int(elapsed * rate) - offered
        node.change(*made.make(due))
        offered += due
        time.sleep(SLICE_S)
    return offered


def _place(node: Node, values: NDArray[np.uint64], hashes: NDArray[np.uint64]) -> int:
    """Puts flows into a node's table; returns how many found a place."""
    entries = np.zeros((len(values), 1), abi.FLOW_ENTRY)
    entries["value"][:, 0], entries["tag"][:, 0] = values, values ^ hashes
    return len(values) - flows.carry_over(entries, node.ours.maps.flows)


def _wait_for_copy(receiver: Process) -> None:
    if not receiver.wait_for("copied", 1, 120.0)["copied"]:
        raise SystemExit("the full copy did not arrive")


def _figures(
    offered: int,
    elapsed: float,
    before: tuple[dict[str, Any], dict[str, Any]],
    after: tuple[dict[str, Any], dict[str, Any]],
) -> Transfer:
    def gained(name: str, which: int) -> float:
        return float(after[which][name] - before[which][name])

    added = after[1]["results"]["added"] - before[1]["results"]["added"]
    sent = gained("sent", 0)
    return Transfer(
        offered=offered / elapsed,
        installed=added / elapsed,
        missed=int(gained("missed", 0)),
        lost=1 - gained("received", 1) / max(1.0, sent),
        sender_ns=gained("cpu_s", 0) / max(1.0, sent) * 1e9,
        receiver_ns=gained("cpu_s", 1) / max(1.0, gained("received", 1)) * 1e9,
        bytes_per_flow=gained("bytes_sent", 0) / max(1.0, sent),
    )


def print_report(report: Report, say: Callable[[str], None] = print) -> None:
    say("Flows from one balancer to another:")
    say("  offered/s  installed/s   missed    lost   sender ns/flow  receiver ns/flow  bytes/flow")
    for t in report.transfers:
        say(
            f"{t.offered:11,.0f} {t.installed:12,.0f} {t.missed:8,} {t.lost:7.2%} {t.sender_ns:16.0f}"
            f" {t.receiver_ns:17.0f} {t.bytes_per_flow:11.2f}"
        )
    for loss in report.losses:
        say(
            f"With {loss.per_mille / 10:g}% of datagrams lost, {loss.at_once:,} of {loss.flows:,} flows"
            f" are there at once, all after {loss.seconds:.1f} s, for {loss.bytes_per_flow:.1f} bytes each."
        )
    copy = report.copy
    say(f"All {copy.flows:,} flows of a peer are there {copy.seconds:.1f} s after the start of a process.")
    say("")
    say("Nanoseconds a packet, without the harness:      off      on")
    for cost in report.costs:
        say(f"  {cost.name:40} {cost.off:8.1f} {cost.on:7.1f}")
    say("")
    for aim in report.aims():
        word, sign = ("met   " if aim.met else "MISSED"), ("<=" if aim.most else ">=")
        say(f"{word} {aim.name}: {aim.value:,.1f} {sign} {aim.wanted:,.0f}")


def measure(scale: Scale, say: Callable[[str], None] = lambda _: None) -> Report:
    return Bench(scale, say).run()


def main() -> int:
    parser = argparse.ArgumentParser(prog="vc5.sh bench sync", description="Flow sharing. Takes root.")
    parser.add_argument("--json", action="store_true", help="print JSON, not tables")
    parser.add_argument("--quick", action="store_true", help="less of everything, for a first impression")
    arguments = parser.parse_args()
    report = measure(
        QUICK if arguments.quick else FULL, lambda text: print(f"measuring: {text}", file=sys.stderr)
    )
    if arguments.json:
        print(json.dumps(asdict(report) | {"aims": [asdict(aim) for aim in report.aims()]}, indent=2))
    else:
        print_report(report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
