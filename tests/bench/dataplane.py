"""`python -m tests.bench.dataplane`: what a packet costs, in nanoseconds, ours against the textbook design.

The programs take turns within each round, between harness and floor. The machine may be shared, and be slower
for seconds: a round counts as quiet where these two, which know nothing of what is compared, cost hardly more
than at their best in this run, and rounds are added until there are enough quiet ones. A figure is the median
of the differences in these, its spread their quartiles. Every scenario says which verdict its packets must
get, so that nothing is measured by mistake. docs/performance.md explains the figures.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass

from tests.bench import profile
from tests.bench.report import Figure, Report, Spread, print_report
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
# Beside L2 over IPv4, by what they are called.
OTHERS = {
    "L2, IPv6": VIP6,
    "IPIP": VIP_IPIP,
    "IPIP, IPv6": VIP6_IPIP,
    "GUE": VIP_GUE,
    "GUE, IPv6": VIP6_GUE,
}


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is measured: entries of the flow tables, flows of the largest scenario, packets a run, quiet
    rounds that are wanted, and after how many they are no longer waited for.
    """

    entries: int = 1 << 21
    flows: int = 1 << 20
    packets: int = 500_000
    rounds: int = 15
    most_rounds: int = 60


FULL = Scale()
QUICK = Scale(packets=200_000, rounds=5, most_rounds=60)
QUIET = 1.1  # times what harness and floor cost at their best
FEWEST = 5  # quiet rounds; where there are fewer, all rounds are used
NEW_ROUNDS = 9  # of new flows: all rounds together make a given number of them, and short ones are cold


Round = dict[str, float]
"""What a packet cost by each program in its turn, in nanoseconds."""


class Calm:
    """Knows what harness and floor cost at their best in this run, for each kind of stream."""

    def __init__(self) -> None:
        self._best: dict[tuple[str, Order, int], float] = {}

    def quiet(self, stream: Stream, rounds: list[Round]) -> list[Round]:
        """Those in which nothing else slowed the machine down, by what is known with the last of them."""
        limits = {key: QUIET * self._learn(key, stream, rounds[-1][key]) for key in ("harness", "floor")}
        return [one for one in rounds if all(one[key] <= limit for key, limit in limits.items())]

    def _learn(self, key: str, stream: Stream, cost: float) -> float:
        kind = key, stream.order, stream.vip.version
        self._best[kind] = min(cost, self._best.get(kind, cost))
        return self._best[kind]


class Bench:
    """The scenarios, in the order in which they build on each other."""

    def __init__(self, scale: Scale, say: Callable[[str], None]) -> None:
        self._scale = scale
        self._say = say
        self._harness = Harness()
        self._ours = Ours(scale.entries)
        self._textbook = Textbook(scale.entries)
        self._calm = Calm()
        self._figures: list[Figure] = []

    def run(self) -> Report:
        for flows in self._flows():
            self._established(flows)
        self._modes()
        self._renew()
        self._new_flows()
        self._flood()
        return Report(tuple(self._figures), ENTRY_BYTES, self._scale.entries)

    def _flows(self) -> tuple[int, ...]:
        """One flow, many, and the most, each picked at random."""
        return 1, min(1 << 16, self._scale.flows), self._scale.flows

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
        packets = min(self._scale.packets, self._scale.entries // 2 // (NEW_ROUNDS + 1))
        stream = Stream(VIP4, SYN, order=Order.ENDLESS)
        self._measure("new flows, fresh tables", stream, STABLE, packets, most_rounds=NEW_ROUNDS)
        self._renew()
        self._ours.by_flow(True)
        self._measure("the same, all recorded by us", stream, NEW, packets, most_rounds=NEW_ROUNDS)
        self._fill()
        self._ours.expire()
        assert not self._ours.maintain(), "a table of expired flows is said to be crowded"
        self._measure("the same, tables long in use", stream, NEW, packets, most_rounds=NEW_ROUNDS)

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
        """In stable slots, ours alone: the textbook can't."""
        for name, vip in OTHERS.items():
            kinds = [
                (f"{flows} flows", Stream(vip, ACK, flows), ONE if flows == 1 else STABLE)
                for flows in self._flows()
            ]
            kinds.append(("endless new flows", Stream(vip, SYN, order=Order.ENDLESS), STABLE))
            for what, stream, verdicts in kinds:
                grows = not name.startswith("L2")
                packets = self._scale.packets
                self._measure(f"{name}, {what}", stream, verdicts, packets, textbook=False, grows=grows)

    def _measure(
        self,
        name: str,
        stream: Stream,
        verdicts: tuple[str, ...],
        packets: int,
        textbook: bool = True,
        grows: bool = False,
        most_rounds: int | None = None,
    ) -> None:
        self._say(name)
        harness = self._harness
        programs = {"harness": harness.nothing, "ours": self._ours.program}
        programs |= {"textbook": self._textbook.program} if textbook else {}
        programs |= {"grow": harness.grow} if grows else {}
        programs |= {"floor": harness.floor}
        before = self._ours.verdicts()
        for program in programs.values():  # warm caches and branch predictors
            harness.run(program, stream, packets // 10)
        rounds: list[Round] = []
        quiet: list[Round] = []
        most_rounds = min(most_rounds or self._scale.most_rounds, self._scale.most_rounds)
        while len(rounds) < most_rounds and len(quiet) < self._scale.rounds:
            rounds.append({key: harness.run(program, stream, packets) for key, program in programs.items()})
            quiet = self._calm.quiet(stream, rounds)
        after = self._ours.verdicts()
        gained = {verdict: after[verdict] - before[verdict] for verdict in after}
        hits = sum(gained[verdict] for verdict in verdicts)
        assert hits >= 0.9 * sum(gained.values()), f"{name}: {verdicts} expected, got {gained}"
        self._figures.append(_figure(name, rounds, quiet))


def _spread(values: list[float]) -> Spread:
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return middle, low, high


def _over_floor(key: str, rounds: list[Round]) -> Spread:
    """Where the frame has to be shortened again, less half of what lengthening and shortening it costs."""
    return _spread(
        [
            one[key] - one["floor"] - (one["grow"] - one["harness"] if "grow" in one else 0) / 2
            for one in rounds
        ]
    )


def _figure(name: str, rounds: list[Round], quiet: list[Round]) -> Figure:
    used = quiet if len(quiet) >= FEWEST else rounds
    has_textbook = "textbook" in rounds[0]
    return Figure(
        name=name,
        harness=_spread([one["harness"] for one in used]),
        floor=_spread([one["floor"] - one["harness"] for one in used]),
        textbook=_over_floor("textbook", used) if has_textbook else None,
        ours=_over_floor("ours", used),
        quiet=len(quiet),
        rounds=len(rounds),
        ratio_of_all=_over_floor("textbook", rounds)[0] / _over_floor("ours", rounds)[0]
        if has_textbook
        else None,
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
