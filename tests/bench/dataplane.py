"""`python -m tests.bench.dataplane`: what a packet costs, in nanoseconds, ours against the textbook design.

Harness, floor, textbook and ours take turns within each round, since the machine may be shared; a figure is
the median of the rounds' differences, its spread their quartiles. Every scenario says which verdict its
packets must get, so that nothing is measured by mistake. docs/performance.md explains the figures.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass

from tests.bench import profile
from tests.bench.report import Figure, Report, print_report
from tests.bench.rig import (
    ACK,
    SYN,
    VIP4,
    VIP6,
    VIP6_GUE,
    VIP6_IPIP,
    VIP_GUE,
    VIP_IPIP,
    Harness,
    Order,
    Ours,
    Stream,
    Textbook,
)

NEW = ("forwarded_new",)
STABLE = ("forwarded_stable",)
ONE = ("forwarded_stable", "forwarded_flow")  # all of one flow's packets are sampled in one tick of 64
ENTRY_BYTES = 16


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is measured: entries of the flow tables, flows of the largest scenario, packets a run."""

    entries: int = 1 << 21
    flows: int = 1 << 20
    packets: int = 1_000_000
    rounds: int = 9


FULL = Scale()
QUICK = Scale(packets=300_000, rounds=3)


class Bench:
    """The scenarios, in the order in which they build on each other."""

    def __init__(self, scale: Scale, say: Callable[[str], None]) -> None:
        self._scale = scale
        self._say = say
        self._harness = Harness()
        self._ours = Ours(scale.entries)
        self._textbook = Textbook(scale.entries)
        self._figures: list[Figure] = []

    def run(self) -> Report:
        for flows in (1, 1 << 16, self._scale.flows):
            self._established(min(flows, self._scale.flows))
        self._modes()
        self._renew()
        self._new_flows()
        self._flood()
        return Report(tuple(self._figures), ENTRY_BYTES, self._scale.entries, self._scale.rounds)

    def close(self) -> None:
        for thing in (self._harness, self._ours, self._textbook):
            thing.close()

    def _renew(self) -> None:
        """Empty tables; an LRU map can't be emptied."""
        self._ours.forget_flows()
        self._textbook.close()
        self._textbook = Textbook(self._scale.entries)

    def _established(self, flows: int) -> None:
        stream = Stream(VIP4, ACK, flows)
        self._renew()
        opening = Stream(VIP4, SYN, flows, Order.SEQUENTIAL)
        self._ours.by_flow(True)
        for program in (self._ours.program, self._textbook.program):
            self._harness.run(program, opening, flows)
        self._ours.by_flow(False)
        known = self._ours.establish()
        assert known >= flows * 0.999, f"only {known} of {flows} flows are in the table"
        some = range(0, flows, max(1, flows // 1000))
        assert all(map(self._textbook.knows, some)), "the textbook's table lost flows"
        self._measure(
            f"established, {flows} flows", stream, ONE if flows == 1 else STABLE, self._scale.packets
        )

    def _new_flows(self) -> None:
        """As many as leave fresh tables half empty in the end; then with room that old flows left behind.

        In stable slots, and then with a service that has all of its flows recorded, as unstable slots have.
        """
        packets = min(self._scale.packets, self._scale.entries // 2 // (self._scale.rounds + 1))
        stream = Stream(VIP4, SYN, order=Order.ENDLESS)
        self._measure("new flows, fresh tables", stream, STABLE, packets)
        self._renew()
        self._ours.by_flow(True)
        self._measure("the same, all recorded by us", stream, NEW, packets)
        self._fill()
        self._ours.expire()
        assert not self._ours.maintain(), "a table of expired flows is said to be crowded"
        self._measure("the same, tables long in use", stream, NEW, packets)

    def _flood(self) -> None:
        self._fill()
        self._ours.by_flow(False)
        assert self._ours.maintain(), "the table is full and not said to be crowded"
        stream = Stream(VIP4, SYN, order=Order.ENDLESS)
        self._measure("endless new flows, full tables", stream, STABLE, self._scale.packets)

    def _fill(self) -> None:
        """An LRU map in use is always full; ours is when it is flooded."""
        for program in (self._ours.program, self._textbook.program):
            self._harness.run(program, Stream(VIP4, SYN, order=Order.ENDLESS), 4 * self._scale.entries)

    def _modes(self) -> None:
        self._measure("L2, IPv6", Stream(VIP6), ONE, self._scale.packets, textbook=False)
        for name, vip in (
            ("IPIP", VIP_IPIP),
            ("IPIP, IPv6", VIP6_IPIP),
            ("GUE", VIP_GUE),
            ("GUE, IPv6", VIP6_GUE),
        ):
            stream = Stream(vip)
            self._measure(name, stream, ONE, self._scale.packets, textbook=False, grows=True)

    def _measure(
        self,
        name: str,
        stream: Stream,
        verdicts: tuple[str, ...],
        packets: int,
        textbook: bool = True,
        grows: bool = False,
    ) -> None:
        self._say(name)
        harness = self._harness
        programs = {"harness": harness.nothing, "floor": harness.floor, "ours": self._ours.program}
        programs |= {"textbook": self._textbook.program} if textbook else {}
        programs |= {"grow": harness.grow} if grows else {}
        before = self._ours.verdicts()
        for program in programs.values():  # warm caches and branch predictors
            harness.run(program, stream, packets // 10)
        rounds = [
            {key: harness.run(program, stream, packets) for key, program in programs.items()}
            for _ in range(self._scale.rounds)
        ]
        after = self._ours.verdicts()
        gained = {verdict: after[verdict] - before[verdict] for verdict in after}
        hits = sum(gained[verdict] for verdict in verdicts)
        assert hits >= 0.9 * sum(gained.values()), f"{name}: {verdicts} expected, got {gained}"
        self._figures.append(_figure(name, rounds))


def _figure(name: str, rounds: list[dict[str, float]]) -> Figure:
    def spread(values: list[float]) -> tuple[float, float, float]:
        low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
        return middle, low, high

    def over_floor(key: str) -> tuple[float, float, float]:
        """Where the frame has to be shortened again, half of what lengthening and shortening it costs."""
        return spread(
            [r[key] - r["floor"] - (r["grow"] - r["harness"] if "grow" in r else 0) / 2 for r in rounds]
        )

    return Figure(
        name=name,
        harness=spread([r["harness"] for r in rounds]),
        floor=spread([r["floor"] - r["harness"] for r in rounds]),
        textbook=over_floor("textbook") if "textbook" in rounds[0] else None,
        ours=over_floor("ours"),
    )


def measure(scale: Scale, say: Callable[[str], None] = lambda text: None) -> Report:
    """Runs all scenarios; `say` is told of each as it begins."""
    bench = Bench(scale, say)
    try:
        return bench.run()
    finally:
        bench.close()


def main() -> int:
    parser = argparse.ArgumentParser(prog="vc5.sh bench", description="What a packet costs. Takes root.")
    parser.add_argument("--json", action="store_true", help="print JSON, not a table")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter runs, for a first impression")
    parser.add_argument("--profile", action="store_true", help="print where our nanoseconds go instead")
    arguments = parser.parse_args()
    scale = QUICK if arguments.quick else FULL

    def say(text: str) -> None:
        print(f"measuring: {text}", file=sys.stderr)

    if arguments.profile:
        shares = profile.measure(scale.packets, scale.rounds, say)
        print(json.dumps([asdict(s) for s in shares], indent=2) if arguments.json else profile.table(shares))
        return 0
    report = measure(scale, say)
    if arguments.json:
        print(json.dumps(asdict(report) | {"aims": [asdict(aim) for aim in report.aims()]}, indent=2))
    else:
        print_report(report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
