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

from vc5py.config import forwarding
from vc5py.config.report import Path, Report, dotted, found, shown
from vc5py.config.view import Place, View, parsed_address
from vc5py.config.yaml_tree import Tree
from vc5py.limits import MAX_BACKENDS, MAX_REALS, MAX_VIRTUAL_PORTS, MAX_VIRTUAL_SERVICES

_HTTP_KEYS = ("path", "host", "method", "expect")


@dataclass(frozen=True, slots=True)
class _Service:
    """What of a service can be relied upon, each value once."""

    path: Path
    addrs: list[Place]
    ports: list[Place]
    protocols: list[Place]
    groups: list[Place]


def check(tree: Tree, report: Report) -> None:
    """Report every finding about relations between the parts of the file."""
    _Checker(View(tree, report)).check()


class _Checker:
    def __init__(self, view: View) -> None:
        self._view = view
        self._groups: dict[str, list[Place]] = {}

    def check(self) -> None:
        view = self._view
        view.once(view.several(("rhi", "peers")), parsed_address)
        for name in view.keys(("reals",)):
            self._groups[name] = view.once(list(self._addresses(name)), parsed_address)
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

    def _addresses(self, group: str) -> Iterator[Place]:
        """The address of every real of a group, whichever way it is written."""
        for item in self._view.several(("reals", group)):
            path = (*item.path, "address") if isinstance(item.value, dict) else item.path
            address = self._view.node(path)
            if address is not None:
                yield Place(path, address)

    def _service(self, path: Path) -> _Service:
        view = self._view
        checks = view.several((*path, "checks"))
        view.once([name for check in checks for name in view.several((*check.path, "name"))])
        for check in checks:
            self._http_keys(check)
        protocols = view.once(view.several((*path, "protocol")))
        if "protocol" not in view.node(path):
            protocols = [Place(path, "tcp")]
        if [protocol.value for protocol in protocols] == ["udp"]:
            for check in checks:
                self._port_of_check(check)
        return _Service(
            path,
            addrs=view.once(view.several((*path, "addr")), parsed_address),
            ports=view.once(view.several((*path, "port"))),
            protocols=protocols,
            groups=view.once(view.several((*path, "real"))),
        )

    def _members(self, service: _Service) -> Iterator[tuple[Place, Place]]:
        for group in service.groups:
            for real in self._groups.get(group.value, ()):
                yield group, real

    def _ways_of(self, service: _Service) -> forwarding.Ways:
        complete = bool(service.groups) and self._all_known(service)
        return forwarding.Ways(service.path, service.addrs, list(self._members(service)), complete)

    # What there is to find

    def _http_keys(self, check: Place) -> None:
        if self._view.node((*check.path, "type")) != "tcp":
            return
        for key in _HTTP_KEYS:
            path = (*check.path, key)
            if key in check.value and not self._view.spoilt(path):
                self._view.add_at_key(path, "found in a tcp check, expected only in http and https checks")

    def _port_of_check(self, check: Place) -> None:
        """All checks use TCP: of a service that is UDP only they can't take over the port."""
        if isinstance(check.value, dict) and "port" not in check.value:
            hint = "the service's port is UDP only, and the check needs TCP"
            self._view.add(check.path, f"found no key 'port', expected one: {hint}")

    def _known_groups(self, services: list[_Service]) -> None:
        if "reals" not in self._view.keys(()):
            return
        everywhere = self._view.node(("reals",))
        for path, name in (place for service in services for place in service.groups):
            if name not in everywhere:
                hint = self._view.suggestion(name, list(self._groups))
                self._view.add(path, f"found {found(name)}, expected the name of a group in reals{hint}")

    def _within_totals(self, services: list[_Service]) -> bool:
        """Whether the file is of a size that can be multiplied out."""
        sizes = [sum(len(self._groups.get(group.value, ())) for group in one.groups) for one in services]
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
                key = (parsed_address(addr.value), port.value, protocol.value)
                earlier = first.setdefault(key, service.path)
                if earlier != service.path:
                    self._view.add(
                        port.path,
                        f"found {addr.value}:{port.value}/{protocol.value}, expected it in one service only"
                        f" (also in {dotted(earlier)}, line {self._view.line(earlier)})",
                    )

    def _reals(self, service: _Service) -> None:
        """No real twice in a service, and enough of them."""
        first: dict[Hashable, str] = {}
        for group, real in self._members(service):
            earlier = first.setdefault(parsed_address(real.value), group.value)
            if earlier != group.value:
                self._view.add(
                    group.path,
                    f"found {real.value} in group {shown(group.value)},"
                    f" expected every real once in a service (also in group {shown(earlier)})",
                )
        path = (*service.path, "need")
        need = self._view.node(path)
        if need is not None and first and need > len(first) and self._all_known(service):
            self._view.add(path, f"found {need}, expected at most {len(first)}, the number of reals")

    def _all_known(self, service: _Service) -> bool:
        """Whether the reals of a service can be counted: nothing on the way to them has a finding."""
        whole = self._view.node((*service.path, "real"))
        if isinstance(whole, list) and len(whole) != len(service.groups):
            return False
        named = [self._view.node(("reals", group.value)) for group in service.groups]
        return all(
            isinstance(items, list) and len(items) == len(self._groups[group.value])
            for items, group in zip(named, service.groups, strict=True)
        )
