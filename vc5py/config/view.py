"""The tree as `references` and `forwarding` look at it: only what can be relied upon.

Must not know: what the keys mean. Invariant: a node that has a finding, or is in one that has, is not there.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import lru_cache
from ipaddress import ip_address
from typing import Any, NamedTuple

from vc5py.config.report import Mark, Path, Report, about, found
from vc5py.config.yaml_tree import Tree

# The same few addresses are looked at once for every service that has them.
parsed_address = lru_cache(maxsize=1 << 17)(ip_address)


class Place(NamedTuple):
    path: Path
    value: Any


class View:
    """The nodes of one tree, and a way to complain about them."""

    def __init__(self, tree: Tree, report: Report) -> None:
        self._tree, self._report = tree, report

    def node(self, path: Path) -> Any:
        """The node at `path`; None where there is none, or none to rely upon."""
        node: Any = self._tree.root
        for part in path:
            there = (
                isinstance(node, list) if isinstance(part, int) else isinstance(node, dict) and part in node
            )
            node = node[part] if there else None
        return None if self._report.spoilt(path) else node

    def keys(self, path: Path) -> list[str]:
        node = self.node(path)
        return (
            [key for key in node if not self._report.spoilt((*path, key))] if isinstance(node, dict) else []
        )

    def several(self, path: Path) -> list[Place]:
        """The items of a list, or the one value that stands in its place."""
        node = self.node(path)
        if not isinstance(node, list):
            return [] if node is None else [Place(path, node)]
        places = [Place((*path, index), item) for index, item in enumerate(node)]
        return [place for place in places if not self._report.spoilt(place.path)]

    def spoilt(self, path: Path) -> bool:
        return self._report.spoilt(path)

    def mark(self, path: Path) -> Mark:
        return self._tree.marks[path]

    def line(self, path: Path) -> int:
        return self.mark(path).line

    def add(self, path: Path, message: str) -> None:
        self._report.add(self.mark(path), about(path, message))

    def add_at_key(self, path: Path, message: str) -> None:
        """As `add`, of the key itself rather than its value."""
        self._report.add(self._tree.key_marks[path], about(path, message))

    def warn(self, path: Path, message: str) -> None:
        """As `add`, of what is legal but unwise; at the nearest node that is written, as a default isn't."""
        there = next(
            path[:length] for length in range(len(path), -1, -1) if path[:length] in self._tree.marks
        )
        self._report.warn(self.mark(there), about(path, message))

    def suggestion(self, word: str, known: list[str]) -> str:
        return self._report.suggestion(word, known)

    def once(self, places: list[Place], same: Callable[[Any], Hashable] = str) -> list[Place]:
        """The first place of every value; the others are findings."""
        first: dict[Hashable, Place] = {}
        for place in places:
            earlier = first.setdefault(same(place.value), place)
            if earlier is not place:
                line = self.line(earlier.path)
                self.add(
                    place.path, f"found {found(place.value)} again, expected it once (first on line {line})"
                )
        return list(first.values())
