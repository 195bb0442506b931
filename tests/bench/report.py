"""The benchmark's figures as values, what is aimed at, and the printed table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

Spread = tuple[float, float, float]  # median, lower and upper quartile, in nanoseconds


@dataclass(frozen=True, slots=True)
class Figure:
    """One scenario, in its quiet rounds. `floor` is over the harness; `textbook` (None: it can't) and `ours`
    over the floor. `quiet` of `rounds` were used, all where these are too few; `ratio_of_all`: of all.
    """

    name: str
    harness: Spread
    floor: Spread
    textbook: Spread | None
    ours: Spread
    quiet: int
    rounds: int
    ratio_of_all: float | None

    @property
    def ratio(self) -> float | None:
        """How many times dearer the textbook is."""
        return self.textbook[0] / self.ours[0] if self.textbook else None


@dataclass(frozen=True, slots=True)
class Aim:
    """Something to be reached: `value` at least `wanted`, or at most where `most`."""

    name: str
    value: float
    wanted: float
    most: bool = False

    @property
    def met(self) -> bool:
        return self.value <= self.wanted if self.most else self.value >= self.wanted


@dataclass(frozen=True, slots=True)
class Report:
    """All scenarios in their order: established flows (one, many, most), the modes, new flows (in stable
    slots; recorded in fresh tables, and in tables long in use), the flood."""

    figures: tuple[Figure, ...]
    bytes_per_flow: int
    entries: int

    def aims(self) -> list[Aim]:
        hot, _, most, *_, new, _, _, flood = self.figures
        return [
            Aim("one established flow: times cheaper", hot.ratio or 0.0, 3.0),
            Aim(f"{most.name}: times our cost of one", most.ours[0] / hot.ours[0], 1.5, most=True),
            Aim(f"{most.name}: times cheaper", most.ratio or 0.0, 10.0),
            Aim(f"{new.name}, in stable slots: times cheaper", new.ratio or 0.0, 4.0),
            Aim(f"{flood.name}: times cheaper", flood.ratio or 0.0, 5.0),
        ]


def _cell(spread: Spread | None) -> str:
    if spread is None:
        return "-"
    middle, low, high = spread
    return f"{middle:.1f} ({low:.1f}-{high:.1f})"


def print_report(report: Report, write: Callable[[str], None] = print) -> None:
    """Writes the table line by line."""
    write(
        "ns a packet: median (quartiles) of the quiet rounds; floor is over the harness, the others are over"
    )
    write("the floor; how many rounds were quiet (all are used where fewer than 5 are), and the ratio of all")
    write(
        f"{'':36}{'harness':>20}{'floor':>18}{'textbook':>24}{'ours':>24}{'ratio':>8}{'quiet':>9}{'all':>7}"
    )
    for figure in report.figures:
        ratio, of_all = (f"{x:.1f}" if x is not None else "-" for x in (figure.ratio, figure.ratio_of_all))
        cells = f"{_cell(figure.harness):>20}{_cell(figure.floor):>18}"
        cells += f"{_cell(figure.textbook):>24}{_cell(figure.ours):>24}{ratio:>8}"
        cells += f"{figure.quiet:>4} of{figure.rounds:>3}{of_all:>6}"
        write(f"{figure.name:36}{cells}")
    mib = report.entries * report.bytes_per_flow >> 20
    write(f"memory: {report.bytes_per_flow} bytes a flow; a table of {report.entries} flows is {mib} MiB")
    for aim in report.aims():
        sign = "<=" if aim.most else ">="
        write(
            f"{'met   ' if aim.met else 'MISSED'} {aim.name}: {aim.value:.1f} (wanted {sign} {aim.wanted:g})"
        )
