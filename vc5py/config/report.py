"""Collects the findings of one reading of a configuration, and words them alike.

Must not know: YAML, pydantic. Invariants: a finding's place is the node it is about; a node someone has
already complained about can be recognised (`spoilt`), so that one mistake is reported once.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches
from typing import NamedTuple

from vc5py.errors import Diagnostic

Scalar = str | int | float | bool | None
Node = Scalar | list["Node"] | dict[str, "Node"]
Path = tuple[str | int, ...]

_LONGEST_SHOWN = 60
_LONGEST_SUGGESTED_FOR = 40
_MOST_SUGGESTIONS = 100
_PLAIN_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")


class Mark(NamedTuple):
    """A place in the text; both count from 1. (0, 0) is the whole file."""

    line: int
    column: int


WHOLE_FILE = Mark(0, 0)


class Report:
    """The findings about one file."""

    def __init__(self, filename: str) -> None:
        self.filename = filename
        self.diagnostics: list[Diagnostic] = []
        self.warnings: list[Diagnostic] = []
        self._spoilt: set[Path] = set()
        self._warned: set[Diagnostic] = set()
        self._suggestions_left = _MOST_SUGGESTIONS

    def add(self, mark: Mark, message: str, path: Path | None = None) -> None:
        """Record a finding. `path` names the node that can't be relied upon because of it."""
        self.diagnostics.append(Diagnostic(self.filename, mark.line, mark.column, message))
        if path is not None:
            self._spoilt.add(path)

    def warn(self, mark: Mark, message: str) -> None:
        """Record what is legal but unwise; once, however many services or checks a default is for."""
        warning = Diagnostic(self.filename, mark.line, mark.column, f"warning: {message}")
        if warning not in self._warned:
            self._warned.add(warning)
            self.warnings.append(warning)

    def spoilt(self, path: Path) -> bool:
        """Whether the node at `path`, or one that holds it, already has a finding."""
        return bool(self._spoilt) and any(path[:length] in self._spoilt for length in range(len(path) + 1))

    def suggestion(self, word: str, known: Iterable[str]) -> str:
        """` (did you mean 'port'?)`, or nothing where no known word is like it. Slow, hence rationed."""
        if len(word) > _LONGEST_SUGGESTED_FOR or not self._suggestions_left:
            return ""
        self._suggestions_left -= 1
        by_letters = {one.lower(): one for one in known}
        close = get_close_matches(word.lower(), list(by_letters), n=1)
        return f" (did you mean {shown(by_letters[close[0]])}?)" if close else ""


def dotted(path: Path) -> str:
    """`('services', 0, 'port')` as `services[0].port`."""
    text = ""
    for part in path:
        if isinstance(part, str) and _PLAIN_KEY.fullmatch(part) and len(part) <= _LONGEST_SHOWN:
            text += f".{part}" if text else part
        else:
            text += f"[{shown(part)}]"
    return text


def shown(value: Scalar) -> str:
    """A scalar as a message shows it: on one line, without control characters, and short."""
    if isinstance(value, bool):
        return "true" if value else "false"
    text = repr(value)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."


def found(value: Node) -> str:
    """What stands in the file, for "found X, expected Y"."""
    if value is None:
        return "nothing"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list" if value else "an empty list"
    return shown(value)


def about(path: Path, message: str) -> str:
    """The message with the node it is about in front; of the whole file, nothing needs saying."""
    return f"{dotted(path)}: {message}" if path else message


def mismatch(path: Path, value: Node, expected: str) -> str:
    """The usual message: `services[0].port: found 'abc', expected a port number`."""
    return about(path, f"found {found(value)}, expected {expected}")
