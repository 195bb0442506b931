"""Judges what takes two places of the file: names and addresses used twice, groups that are nowhere, totals.

Must not know: types and ranges (`language` judges those), how packets get to reals (`forwarding`). It works
on the tree and passes over every node that already has a finding, so that all findings come in one pass.
Invariant: the work is bounded by the size of the file and the totals in `limits`, which are checked before
anything is multiplied out.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from itertools import product

from vc5py.config import bgp, checks, cluster, forwarding, settings
from vc5py.config.ports import number
from vc5py.config.report import Path, Report, dotted, found, shown
from vc5py.config.view import Place, View, parsed_address
from vc5py.config.yaml_tree import Tree
from vc5py.limits import MAX_BACKENDS, MAX_REALS, MAX_VIRTUAL_PORTS, MAX_VIRTUAL_SERVICES

Member = tuple[Place | None, Place]
"""A real, and the place that names its group (none: it is listed in the service)."""


@dataclass(frozen=True, slots=True)
class _Service:
    """What of a service can be relied upon, each value once. `groups` and `listed`: those of `sorry` too."""

    path: Path
    addrs: list[Place]
    ports: list[Place]
    protocols: list[Place]
    groups: list[Place]
    listed: list[Place]


def check(tree: Tree, report: Report) -> None:
    """Report every finding about relations between the parts of the file."""
    _Checker(View(tree, report)).check()


class _Checker:
    def __init__(self, view: View) -> None:
        self._view = view
        self._groups: dict[str, list[Place]] = {}

    def check(self) -> None:
        view = self._view
        bgp.check(view)
        cluster.check(view)
        for name in view.keys(("reals",)):
            self._groups[name] = view.once(list(self._addresses(("reals", name))), parsed_address)
        settings.check_levels(view)
        services = [self._service(place.path) for place in view.several(("services",))]
        view.once([name for service in services for name in view.several((*service.path, "name"))])
        self._known_groups(services)
        forwarding.check_vlans(view)
        if self._within_totals(services):
            self._once_per_port(services)
            for service in services:
                self._reals(service)
            forwarding.check(view, [self._ways_of(service) for service in services])

    # What can be relied upon

    def _addresses(self, path: Path) -> Iterator[Place]:
        """The address of every real of a list, whichever way it is written."""
        for item in self._view.several(path):
            inner = (*item.path, "address") if isinstance(item.value, dict) else item.path
            address = self._view.node(inner)
            if address is not None:
                yield Place(inner, address)

    def _service(self, path: Path) -> _Service:
        view = self._view
        protocols = view.once(view.several((*path, "protocol")))
        if "protocol" not in view.node(path):
            protocols = [Place(path, "tcp")]
        holders = [path, (*path, "sorry")] if isinstance(view.node((*path, "sorry")), dict) else [path]
        for holder in holders:
            self._has_reals(holder)
            checks.check(view, holder, [protocol.value for protocol in protocols])
        return _Service(
            path,
            addrs=view.once(view.several((*path, "addr")), parsed_address),
            ports=view.once(view.several((*path, "port")), number),
            protocols=protocols,
            groups=[group for one in holders for group in view.once(view.several((*one, "real")))],
            listed=[
                real
                for one in holders
                for real in view.once(list(self._addresses((*one, "reals"))), parsed_address)
            ],
        )

    def _members(self, service: _Service) -> Iterator[Member]:
        for group in service.groups:
            for real in self._groups.get(group.value, ()):
                yield group, real
        for real in service.listed:
            yield None, real

    def _ways_of(self, service: _Service) -> forwarding.Ways:
        members = list(self._members(service))
        complete = bool(members) and self._all_known(service)
        return forwarding.Ways(service.path, service.addrs, members, complete)

    # What there is to find

    def _has_reals(self, holder: Path) -> None:
        node = self._view.node(holder)
        if isinstance(node, dict) and "real" not in node and "reals" not in node:
            self._view.add(holder, "found no key 'real' (groups) or 'reals' (a list), expected one")

    def _known_groups(self, services: list[_Service]) -> None:
        if self._view.spoilt(("reals",)):
            return
        everywhere = self._view.node(("reals",)) or {}
        for path, name in (place for service in services for place in service.groups):
            if name not in everywhere:
                hint = self._view.suggestion(name, list(self._groups))
                self._view.add(path, f"found {found(name)}, expected the name of a group in reals{hint}")

    def _within_totals(self, services: list[_Service]) -> bool:
        """Whether the file is of a size that can be multiplied out."""
        sizes = [
            len(one.listed) + sum(len(self._groups.get(group.value, ())) for group in one.groups)
            for one in services
        ]
        for one, size in zip(services, sizes, strict=True):
            if size > MAX_REALS:
                self._view.add(one.path, f"found {size} reals, expected at most {MAX_REALS}")
        vips = [max(1, len(one.addrs)) for one in services]
        ports = sum(len(one.addrs) * len(one.ports) * len(one.protocols) for one in services)
        backends = sum(size * n for size, n in zip(sizes, vips, strict=True))
        totals = (
            (sum(vips), "virtual services (services times VIPs)", MAX_VIRTUAL_SERVICES),
            (ports, "(VIP, port, protocol)", MAX_VIRTUAL_PORTS),
            (backends, "backends (VIPs times reals)", MAX_BACKENDS),
        )
        for count, what, most in totals:
            if count > most:
                self._view.add(("services",), f"found {count} {what}, expected at most {most}")
        return max(sizes, default=0) <= MAX_REALS and all(count <= most for count, _, most in totals)

    def _once_per_port(self, services: list[_Service]) -> None:
        first: dict[Hashable, Path] = {}
        for service in services:
            for addr, port, protocol in product(service.addrs, service.ports, service.protocols):
                key = (parsed_address(addr.value), number(port.value), protocol.value)
                earlier = first.setdefault(key, service.path)
                if earlier != service.path:
                    where = f"{dotted(earlier)}, line {self._view.line(earlier)}"
                    self._view.add(
                        port.path,
                        f"found {addr.value}:{number(port.value)}/{protocol.value},"
                        f" expected it in one service only (also in {where})",
                    )

    def _reals(self, service: _Service) -> None:
        """No real twice in a service. Of a list that repeats another one, the first real is told."""
        first: dict[Hashable, tuple[Path, str]] = {}
        told: set[Path] = set()
        for group, real in self._members(service):
            place = (group or real).path
            source = place if group else place[: len(service.path) + 1]
            where = f"in group {shown(group.value)}" if group else f"on line {self._view.line(real.path)}"
            earlier, there = first.setdefault(parsed_address(real.value), (source, where))
            if earlier != source and place not in told:
                told.add(place)
                self._view.add(
                    place,
                    f"found {real.value}{f' {where}' if group else ''},"
                    f" expected every real once in a service (also {there})",
                )

    def _all_known(self, service: _Service) -> bool:
        """Whether all reals of a service are known: nothing on the way to them has a finding."""
        view = self._view
        for holder in (service.path, (*service.path, "sorry")):
            if view.spoilt(holder):
                return False
            for key, places in (("real", service.groups), ("reals", service.listed)):
                path = (*holder, key)
                whole = view.node(path)
                if view.spoilt(path) or (
                    isinstance(whole, list)
                    and len(whole) != sum(place.path[: len(path)] == path for place in places)
                ):
                    return False
        named = [view.node(("reals", group.value)) for group in service.groups]
        return all(
            isinstance(items, list) and len(items) == len(self._groups[group.value])
            for items, group in zip(named, service.groups, strict=True)
        )
