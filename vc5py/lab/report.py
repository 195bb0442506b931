"""What the lab says: a line for everything that happens, and a table at the end.

Must not know: how anything is done. Invariants: colour only on a terminal (and not with NO_COLOR), plain
text otherwise; a terminal that has gone away stops no clean-up.
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass
from enum import StrEnum
from typing import TextIO


class Outcome(StrEnum):
    OBSERVED = "observed"
    NOT_OBSERVED = "NOT OBSERVED"
    NOT_TRIED = "not tried"


_COLOURS = {Outcome.OBSERVED: "32", Outcome.NOT_OBSERVED: "1;31", Outcome.NOT_TRIED: "33"}
_BOLD = "1"
_FAINT = "2"


@dataclass(frozen=True, slots=True)
class Observation:
    """What became of one step; `figures` are the short facts that show it, one a line."""

    title: str
    outcome: Outcome
    figures: tuple[str, ...] = ()


class Report:
    """Prints to `stream` as things happen, with seconds since the report began."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stdout
        self._colour = self._stream.isatty() and not os.environ.get("NO_COLOR")
        self._started_s = time.monotonic()

    def heading(self, text: str) -> None:
        self._print(f"\n{self._paint(text, _BOLD)}")

    def say(self, text: str) -> None:
        stamp = self._paint(f"{self.elapsed_s():6.1f} s", _FAINT)
        self._print(f"{stamp}  {text}")

    def block(self, lines: list[str] | str) -> None:
        for line in lines.splitlines() if isinstance(lines, str) else lines:
            self._print(f"            {line}")

    def outcome(self, observation: Observation) -> None:
        word = self._paint(observation.outcome.value, _COLOURS[observation.outcome])
        self.say(word)

    def table(self, observations: list[Observation]) -> None:
        self.heading("Summary")
        width = max(len(observation.title) for observation in observations)
        column = max(len(outcome.value) for outcome in Outcome)
        for observation in observations:
            word = self._paint(f"{observation.outcome.value:<{column}}", _COLOURS[observation.outcome])
            first, *rest = observation.figures or ("",)
            self._print(f"  {observation.title:<{width}}  {word}  {first}".rstrip())
            for figure in rest:
                self._print(f"  {'':<{width}}  {'':<{column}}  {figure}")

    def elapsed_s(self) -> float:
        return time.monotonic() - self._started_s

    def _paint(self, text: str, code: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self._colour else text

    def _print(self, text: str) -> None:
        print(text, file=self._stream, flush=True)
