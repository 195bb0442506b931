"""What the sharing process says to the director, as values: lines of JSON, each an object with one key.

    {"ready": 1}           it shares flows; the version of its datagrams
    {"error": "..."}       it can't, and ends
    {"report": {...}}      all that is shown of it, every second
    {"strays": "..."}      flows in slots of other backends: base64 of little-endian 32-bit words
    {"copied": 3}          the copy that was asked for with this number has come

Pure. Must not know: processes, and what becomes of what is said. Invariant: what `parse` accepts has the
right types, and numbers in their bounds; everything else is a ValueError, as a broken process says anything.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_LINE = 1 << 20
_GREATEST = 1 << 64
_SHOWN = 80  # bytes of nonsense
COUNTERS = (
    *("datagrams_sent", "bytes_sent", "sent", "received", "missed", "lost", "failed", "dropped", "cpu_s"),
)


@dataclass(frozen=True, slots=True)
class Ready:
    version: int


@dataclass(frozen=True, slots=True)
class Trouble:
    text: str


@dataclass(frozen=True, slots=True)
class Strays:
    words: NDArray[np.uint32]


@dataclass(frozen=True, slots=True)
class Copied:
    wish: int


@dataclass(frozen=True, slots=True)
class Peer:
    """Heard of `age_s` seconds before the report."""

    node: str
    address: str
    age_s: float


@dataclass(frozen=True, slots=True)
class Report:
    """Numbers count from the start of the process; `numbers` are COUNTERS."""

    numbers: Mapping[str, float] = field(default_factory=dict)
    datagrams: Mapping[str, int] = field(default_factory=dict)
    results: Mapping[str, int] = field(default_factory=dict)
    ambiguous: int = 0
    copied: bool = False
    peers: tuple[Peer, ...] = ()


Message = Ready | Trouble | Strays | Copied | Report


def parse(line: bytes) -> Message:
    """Raises ValueError."""
    try:
        ((what, said),) = json.loads(line).items()
        return _PARSERS[what](said)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"it talks nonsense: {line[:_SHOWN]!r}") from error


def _report(said: Any) -> Report:
    return Report(
        numbers={name: _number(said[name]) for name in COUNTERS if name in said},
        datagrams=_counts(said.get("datagrams", {})),
        results=_counts(said.get("results", {})),
        ambiguous=_count(said.get("ambiguous", 0)),
        copied=said.get("copied", False) is True,
        peers=tuple(
            Peer(_text(node), _text(peer["address"]), _number(peer["age_s"]))
            for node, peer in sorted(said.get("peers", {}).items())
        ),
    )


def _counts(said: Any) -> dict[str, int]:
    return {_text(name): _count(number) for name, number in said.items()}


def _number(said: Any) -> float:
    if type(said) not in (int, float) or not math.isfinite(said) or not 0 <= said < _GREATEST:
        raise ValueError("no number")
    number: float = said
    return number


def _count(said: Any) -> int:
    if type(said) is not int:
        raise ValueError("no whole number")
    return int(_number(said))


def _text(said: Any) -> str:
    if type(said) is not str:
        raise ValueError("no text")
    return said


def _strays(said: Any) -> Strays:
    return Strays(np.frombuffer(base64.b64decode(_text(said), validate=True), dtype="<u4"))


_PARSERS: Mapping[str, Callable[[Any], Message]] = {
    "ready": lambda said: Ready(_count(said)),
    "error": lambda said: Trouble(_text(said)),
    "report": _report,
    "strays": _strays,
    "copied": lambda said: Copied(_count(said)),
}
