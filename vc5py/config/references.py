"""Judges what takes two places of the file: names and addresses used twice, groups that are nowhere, totals.

Must not know: types and ranges (`language` judges those). It works on the tree and passes over every node
that already has a finding, so that all findings come in one pass. Invariant: the work is bounded by the size
of the file and the two totals below, which are checked before anything is multiplied out.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from ipaddress import ip_address
from itertools import product
from typing import Any, NamedTuple

from vc5py.config.report import Path, Report, about, dotted, found, mismatch, shown
from vc5py.config.yaml_tree import Tree

MAX_VIRTUAL_PORTS = 65536
"""Most (VIP, port, protocol) of all services together."""
MAX_BACKENDS = 65535
"""Most backends (VIPs times reals, over all services); the data plane numbers them with 16 bits."""

_HTTP_KEYS = ("path", "host", "method", "expect")


class _Place(NamedTuple):
    path: Path
    value: Any


class _Service(NamedTuple):
    """What of a service can be relied upon, each value once."""

    path: Path
    addrs: list[_Place]
    ports: list[_Place]
    protocols: list[_Place]
    groups: list[_Place]


def check(tree: Tree, report: Report) -> None:
    """Report every finding about relations between the parts of the file."""
    _Checker(tree, report).check()


class _Checker:
    def __init__(self, tree: Tree, report: Report) -> None:
        self._tree, self._report = tree, report
        self._groups: dict[str, list[_Place]] = {}

    def check(self) -> None:
        self._once(self._several(("rhi", "peers")), ip_address)
        for name in self._keys(("reals",)):
            self._groups[name] = self._once(self._several(("reals", name)), ip_address)
        services = [self._service(place.path) for place in self._several(("services",))]
        self._once([name for service in services for name in self._several((*service.path, "name"))])
        self._known_groups(services)
        if self._within_totals(services):
            self._once_per_port(services)
            for service in services:
                self._reals(service)

    # What can be relied upon

    def _node(self, path: Path) -> Any:
        """The node at `path`; None where there is none, or none to rely upon."""
        node: Any = self._tree.root
        for part in path:
            there = (
                isinstance(node, list) if isinstance(part, int) else isinstance(node, dict) and part in node
            )
            node = node[part] if there else None
        return None if self._report.spoilt(path) else node

    def _keys(self, path: Path) -> list[str]:
        node = self._node(path)
        return (
            [key for key in node if not self._report.spoilt((*path, key))] if isinstance(node, dict) else []
        )

    def _several(self, path: Path) -> list[_Place]:
        """The items of a list, or the one value that stands in its place."""
        node = self._node(path)
        if not isinstance(node, list):
            return [] if node is None else [_Place(path, node)]
        places = [_Place((*path, index), item) for index, item in enumerate(node)]
        return [place for place in places if not self._report.spoilt(place.path)]

    def _service(self, path: Path) -> _Service:
        checks = self._several((*path, "checks"))
        self._once([name for check in checks for name in self._several((*check.path, "name"))])
        for check in checks:
            self._http_keys(check)
        protocols = self._once(self._several((*path, "protocol")))
        if "protocol" not in self._node(path):
            protocols = [_Place(path, "tcp")]
        return _Service(
            path,
            addrs=self._once(self._several((*path, "addr")), ip_address),
            ports=self._once(self._several((*path, "port"))),
            protocols=protocols,
            groups=self._once(self._several((*path, "real"))),
        )

    # What there is to find

    def _line(self, path: Path) -> int:
        return self._tree.marks[path].line

    def _add(self, path: Path, message: str) -> None:
        self._report.add(self._tree.marks[path], about(path, message))

    def _once(self, places: list[_Place], same: Callable[[Any], Hashable] = str) -> list[_Place]:
        """The first place of every value; the others are findings."""
        first: dict[Hashable, _Place] = {}
        for place in places:
            earlier = first.setdefault(same(place.value), place)
            if earlier is not place:
                line = self._line(earlier.path)
                self._add(
                    place.path, f"found {found(place.value)} again, expected it once (first on line {line})"
                )
        return list(first.values())

    def _http_keys(self, check: _Place) -> None:
        if self._node((*check.path, "type")) != "tcp":
            return
        for key in _HTTP_KEYS:
            path = (*check.path, key)
            if key in check.value and not self._report.spoilt(path):
                message = "found in a tcp check, expected only in http and https checks"
                self._report.add(self._tree.key_marks[path], about(path, message))

    def _known_groups(self, services: list[_Service]) -> None:
        if "reals" not in self._keys(()):
            return
        everywhere = self._node(("reals",))
        for path, name in (place for service in services for place in service.groups):
            if name not in everywhere:
                hint = self._report.suggestion(name, self._groups)
                message = mismatch(path, name, f"the name of a group in reals{hint}")
                self._report.add(self._tree.marks[path], message)

    def _within_totals(self, services: list[_Service]) -> bool:
        """Whether the file is of a size that can be multiplied out."""
        ports = sum(len(one.addrs) * len(one.ports) * len(one.protocols) for one in services)
        backends = sum(max(1, len(one.addrs)) * self._size(one) for one in services)
        if ports > MAX_VIRTUAL_PORTS:
            self._add(
                ("services",), f"found {ports} (VIP, port, protocol), expected at most {MAX_VIRTUAL_PORTS}"
            )
        if backends > MAX_BACKENDS:
            self._add(
                ("services",),
                f"found {backends} backends (VIPs times reals), expected at most {MAX_BACKENDS}",
            )
        return ports <= MAX_VIRTUAL_PORTS and backends <= MAX_BACKENDS

    def _size(self, service: _Service) -> int:
        return sum(len(self._groups.get(group.value, ())) for group in service.groups)

    def _once_per_port(self, services: list[_Service]) -> None:
        first: dict[Hashable, Path] = {}
        for service in services:
            for addr, port, protocol in product(service.addrs, service.ports, service.protocols):
                key = (ip_address(addr.value), port.value, protocol.value)
                earlier = first.setdefault(key, service.path)
                if earlier != service.path:
                    self._add(
                        port.path,
                        f"found {addr.value}:{port.value}/{protocol.value}, expected it in one service only"
                        f" (also in {dotted(earlier)}, line {self._line(earlier)})",
                    )

    def _reals(self, service: _Service) -> None:
        """No real twice in a service, and enough of them."""
        first: dict[Hashable, str] = {}
        for group, real in self._members(service):
            earlier = first.setdefault(ip_address(real.value), group.value)
            if earlier != group.value:
                self._add(
                    group.path,
                    f"found {real.value} in group {shown(group.value)},"
                    f" expected every real once in a service (also in group {shown(earlier)})",
                )
        path = (*service.path, "need")
        need = self._node(path)
        if need is not None and first and need > len(first) and self._all_known(service):
            self._add(path, f"found {need}, expected at most {len(first)}, the number of reals")

    def _members(self, service: _Service) -> Iterator[tuple[_Place, _Place]]:
        for group in service.groups:
            for real in self._groups.get(group.value, ()):
                yield group, real

    def _all_known(self, service: _Service) -> bool:
        """Whether the reals of a service can be counted: nothing on the way to them has a finding."""
        whole = self._node((*service.path, "real"))
        if isinstance(whole, list) and len(whole) != len(service.groups):
            return False
        named = [self._node(("reals", group.value)) for group in service.groups]
        return all(
            isinstance(items, list) and len(items) == len(self._groups[group.value])
            for items, group in zip(named, service.groups, strict=True)
        )
