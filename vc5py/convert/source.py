"""The configuration to convert, as a tree with places, and the notes about what could not be carried over.

Must not know: what the keys mean. Invariant: whatever is asked, the answer has the right type; what is in the
file instead is noted.
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from ipaddress import ip_address
from typing import Any

from pydantic import TypeAdapter, ValidationError

from vc5py.config.report import Path, about, found
from vc5py.config.yaml_tree import Tree
from vc5py.errors import Diagnostic

_TRUE, _FALSE = ("true", "yes", "on", "y"), ("false", "no", "off", "n")


class Source:
    """One file. `notes` grows while it is read, with its places."""

    def __init__(self, tree: Tree, filename: str) -> None:
        self._tree, self._filename = tree, filename
        self._notes: dict[tuple[Path, str], Diagnostic] = {}

    @property
    def notes(self) -> tuple[Diagnostic, ...]:
        return tuple(sorted(self._notes.values()))

    def note(self, path: Path, message: str, *, key: bool = False) -> None:
        """Of the node at `path`, or of the nearest that is written; `key`: of the key itself."""
        marks = self._tree.key_marks if key and path in self._tree.key_marks else self._tree.marks
        there = next(path[:n] for n in range(len(path), -1, -1) if path[:n] in marks)
        mark = marks[there]
        self._notes[path, message] = Diagnostic(self._filename, mark.line, mark.column, about(path, message))

    def node(self, path: Path) -> Any:
        node: Any = self._tree.root
        for part in path:
            if isinstance(part, int):
                node = node[part] if isinstance(node, list) and part < len(node) else None
            else:
                node = node.get(part) if isinstance(node, dict) else None
        return node

    def keys(self, path: Path) -> list[str]:
        """The keys of a mapping; nothing is an empty one."""
        node = self.node(path)
        if not isinstance(node, dict | None):
            self.note(path, f"found {found(node)}, expected a mapping: left out")
        return list(node) if isinstance(node, dict) else []

    def several(self, path: Path) -> Iterator[tuple[Path, Any]]:
        """The items of a list, or the one value that stands in its place."""
        node = self.node(path)
        if isinstance(node, list):
            for index, item in enumerate(node):
                yield (*path, index), item
        elif node is not None:
            yield path, node

    def strange(self, path: Path, known: Container[str]) -> None:
        for key in self.keys(path):
            if key not in known:
                self.note((*path, key), "found an unknown key: left out", key=True)

    def left_out(self, path: Path, reasons: dict[str, str]) -> None:
        """Notes the keys that are known but have no counterpart, each with a reason."""
        for key in self.keys(path):
            if key in reasons:
                self.note((*path, key), f"not carried over: {reasons[key]}", key=True)

    def fitting(self, path: Path, kind: TypeAdapter[Any]) -> Any:
        """The value as it is written where it fits our language's type, else None."""
        node = self.node(path)
        if node is None:
            return None
        try:
            kind.validate_python(node)
        except ValidationError as error:
            self.note(path, f"found {found(node)}, expected {error.errors()[0]['msg']}: left out")
            return None
        return node

    def number(self, path: Path, lowest: int, highest: int) -> int | None:
        """A whole number, also where it is written as text."""
        node = self.node(path)
        if isinstance(node, str) and node.isascii() and node.isdigit():
            node = int(node[:20])
        if isinstance(node, int) and not isinstance(node, bool) and lowest <= node <= highest:
            return node
        if node is not None:
            self.note(path, f"found {found(node)}, expected a number from {lowest} to {highest}: left out")
        return None

    def truth(self, path: Path) -> bool | None:
        """A truth value in any of the words of YAML 1.1."""
        node = self.node(path)
        if isinstance(node, bool):
            return node
        if isinstance(node, str) and node.lower() in (*_TRUE, *_FALSE):
            return node.lower() in _TRUE
        if node is not None:
            self.note(path, f"found {found(node)}, expected true or false: left out")
        return None

    def addresses(self, path: Path, what: str, kind: TypeAdapter[Any]) -> Iterator[tuple[Path, str, bool]]:
        """The addresses of a list: place, address, and whether it has the `*` that disables it; each once."""
        seen = set()
        for inner, item in self.several(path):
            text = str(item).strip()
            address, disabled = text.rstrip("*"), text.endswith("*")
            try:
                kind.validate_python(address)
            except ValidationError:
                self.note(inner, f"found {found(item)}, expected the address of {what}: left out")
                continue
            if ip_address(address) in seen:
                self.note(inner, f"found {address} again: left out")
                continue
            seen.add(ip_address(address))
            yield inner, address, disabled
