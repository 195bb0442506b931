"""Reads YAML text into plain dicts, lists and scalars, with the place of every node.

Must not know: what the keys mean. It reads libyaml's events, the layer that `compose()` itself stands on:
there anchors are still visible, and depth is bounded before anything recurses.

A subset of YAML 1.2: one document; keys are strings and unique; no anchors, aliases or tags. Plain scalars
follow the JSON schema of YAML 1.2 (section 10.2) and the core schema's spellings of null and booleans, so
that `no`, `1:30` and `0123` are strings. A number that is a key is the text it is written as. Invariant: a
`Tree` has at most `MAX_DEPTH` levels and `MAX_NODES` nodes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml
from yaml.events import (
    AliasEvent,
    DocumentEndEvent,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    MappingStartEvent,
    NodeEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
    StreamStartEvent,
)

from vc5py.config.report import WHOLE_FILE, Mark, Node, Path, Report, Scalar, about, found, shown

MAX_BYTES = 8 << 20
MAX_DEPTH = 32
MAX_NODES = 600_000

_EMPTY = "found an empty file, expected a configuration"
_FORBIDDEN = re.compile(
    "(?!\\A\ufeff)[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]"
)
_LINE_BREAK = re.compile("\r\n|[\n\r\x85\u2028\u2029]")
_WORDS: dict[str, Scalar] = {
    "": None, "~": None, "null": None, "Null": None, "NULL": None,
    "true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False,
}  # fmt: skip
# Bounded in length: Python refuses to convert numbers of thousands of digits.
_INTEGER = re.compile(r"[-+]?(?:0|[1-9][0-9]{0,30})")
_FLOAT = re.compile(r"[-+]?(?:0|[1-9][0-9]{0,30})(?:\.[0-9]{0,30})?(?:[eE][-+]?[0-9]{1,3})?")


@dataclass(slots=True)
class Tree:
    """`marks` has the place of every node by its path, `key_marks` that of the key that leads to it."""

    root: Node = None
    marks: dict[Path, Mark] = field(default_factory=dict)
    key_marks: dict[Path, Mark] = field(default_factory=dict)


class _UnreadableError(Exception):
    """Reading can't go on after this finding."""

    def __init__(self, mark: Mark, message: str) -> None:
        super().__init__(message)
        self.mark, self.message = mark, message


def read(text: str, report: Report) -> Tree | None:
    """The tree in `text`, or None where reading had to stop; findings go to `report` either way."""
    try:
        _refuse_unfit_text(text)
        return _Builder(text, report).build()
    except yaml.YAMLError as error:
        report.add(*_syntax_error(error, text))
    except _UnreadableError as error:
        report.add(error.mark, error.message)
    return None


def place(text: str, offset: int) -> Mark:
    """Line and column of the character at `offset`."""
    breaks = [end.end() for end in _LINE_BREAK.finditer(text, 0, offset)]
    return Mark(len(breaks) + 1, offset - (breaks[-1] if breaks else 0) + 1)


def _refuse_unfit_text(text: str) -> None:
    if len(text.encode("utf-8", "surrogatepass")) > MAX_BYTES:
        raise _UnreadableError(WHOLE_FILE, f"found more than {MAX_BYTES} bytes, expected a smaller file")
    if unfit := _FORBIDDEN.search(text):
        code = f"U+{ord(unfit.group()):04X}"
        raise _UnreadableError(
            place(text, unfit.start()), f"found the character {code}, expected only printable text"
        )


def _syntax_error(error: yaml.YAMLError, text: str) -> tuple[Mark, str]:
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return WHOLE_FILE, f"not YAML: {' '.join(str(error).split())}"
    message = f"not YAML: {error.problem}"
    if _is_tab(text, error.problem_mark) and "tab" not in message:
        message += ", a tab: YAML is indented by spaces"
    if error.context and error.context_mark:
        message += f" ({error.context} at line {error.context_mark.line + 1})"
    return _mark(error.problem_mark), message


def _is_tab(text: str, mark: Any) -> bool:
    lines = _LINE_BREAK.split(text, mark.line + 1)
    line, column = int(mark.line), int(mark.column)
    return line < len(lines) and lines[line][column : column + 1] == "\t"


def _mark(mark: Any) -> Mark:
    # Any: the C and the Python parser each have a class of marks.
    return Mark(mark.line + 1, mark.column + 1)


def _start(event: Event) -> Mark:
    return _mark(event.start_mark)


def _resolve(event: ScalarEvent) -> Scalar:
    """The value of a scalar: only plain ones (not quoted, not a block) can be other than text."""
    text = str(event.value)
    if not event.implicit[0]:
        return text
    if text in _WORDS:
        return _WORDS[text]
    if _INTEGER.fullmatch(text):
        return int(text)
    return float(text) if _FLOAT.fullmatch(text) else text


class _Builder:
    """Consumes the events of one document. Recursive, as deep as `MAX_DEPTH` at most."""

    def __init__(self, text: str, report: Report) -> None:
        self._events: Iterator[Event] = yaml.parse(text, Loader=yaml.CLoader)
        self._report = report
        self._tree = Tree()
        self._nodes = 0

    def build(self) -> Tree:
        event = self._next(StreamStartEvent)
        if not isinstance(event, DocumentStartEvent):
            raise _UnreadableError(WHOLE_FILE, _EMPTY)
        self._tree.root = self._node(next(self._events), ())
        if self._tree.root is None and not self._report.spoilt(()):
            raise _UnreadableError(WHOLE_FILE, _EMPTY)
        event = self._next(DocumentEndEvent)
        if isinstance(event, DocumentStartEvent):
            raise _UnreadableError(_start(event), "found a second YAML document, expected only one in a file")
        return self._tree

    def _next(self, *skip: type[Event]) -> Event:
        event = next(self._events)
        while isinstance(event, skip):
            event = next(self._events)
        return event

    def _node(self, event: Event, path: Path) -> Node:
        mark = _start(event)
        self._tree.marks[path] = mark
        self._nodes += 1
        if self._nodes > MAX_NODES:
            raise _UnreadableError(mark, f"found more than {MAX_NODES} values, expected fewer")
        self._refuse_decoration(event, path)
        if isinstance(event, MappingStartEvent):
            return self._mapping(path, mark)
        if isinstance(event, SequenceStartEvent):
            return self._sequence(path, mark)
        return _resolve(event) if isinstance(event, ScalarEvent) else None

    def _refuse_decoration(self, event: Event, path: Path) -> None:
        """Aliases hide where a value stands and expand without bound; tags call for types we don't have."""
        mark = _start(event)
        if isinstance(event, AliasEvent):
            message = f"found the alias *{event.anchor}, expected the value itself"
            self._report.add(mark, about(path, message), path)
        elif isinstance(event, NodeEvent) and event.anchor is not None:
            message = f"found the anchor &{event.anchor}, expected a value without it"
            self._report.add(mark, about(path, message))
        tag = getattr(event, "tag", None)
        if tag is not None:
            message = f"found the tag {shown(tag)}, expected a value without it"
            self._report.add(mark, about(path, message), path)

    def _deeper(self, path: Path, mark: Mark) -> None:
        if len(path) >= MAX_DEPTH:
            raise _UnreadableError(mark, f"found nesting deeper than {MAX_DEPTH} levels, expected less")

    def _sequence(self, path: Path, mark: Mark) -> list[Node]:
        self._deeper(path, mark)
        items: list[Node] = []
        while not isinstance(event := next(self._events), SequenceEndEvent):
            items.append(self._node(event, (*path, len(items))))
        return items

    def _mapping(self, path: Path, mark: Mark) -> dict[str, Node]:
        self._deeper(path, mark)
        entries: dict[str, Node] = {}
        while not isinstance(event := next(self._events), MappingEndEvent):
            self._entry(event, path, entries)
        return entries

    def _entry(self, event: Event, path: Path, entries: dict[str, Node]) -> None:
        mark, key = _start(event), self._key(event, path)
        if key is None:
            self._apart(next(self._events), path)
            return
        inner = (*path, key)
        if key in entries:
            first = self._tree.key_marks[inner].line
            message = f"found again, expected once (first on line {first})"
            self._report.add(mark, about(inner, message))
            self._apart(next(self._events), path)
            return
        self._tree.key_marks[inner] = mark
        entries[key] = self._node(next(self._events), inner)

    def _key(self, event: Event, path: Path) -> str | None:
        """The key, or None (reported) where it is not a string."""
        value = self._apart(event, path)
        if isinstance(value, str):
            return value
        if isinstance(event, ScalarEvent) and isinstance(value, int | float) and not isinstance(value, bool):
            return str(event.value)
        if not isinstance(event, AliasEvent):
            hint = " (put it in quotes)" if isinstance(event, ScalarEvent) and event.value else ""
            message = f"found {found(value)} as a key, expected text{hint}"
            self._report.add(_start(event), about(path, message))
        return None

    def _apart(self, event: Event, path: Path) -> Node:
        """Read a node that has no path in the tree: a key, or a value nobody can refer to."""
        kept, self._tree = self._tree, Tree()
        node = self._node(event, (*path, "?"))
        self._tree = kept
        return node
