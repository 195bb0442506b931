"""Judges whether packets can get to the reals as the file says: modes and their parameters, VLANs, probes.

Must not know: types and ranges. Looks at a service together with each of its reals, since either may set a
parameter. Invariant: a parameter is judged only where the mode is known.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Any

from vc5py.config.report import Path, dotted, shown
from vc5py.config.view import Place, View, parsed_address
from vc5py.model import ForwardMode

# Bytes between the outer IP header and the client's packet.
_OVERHEAD = {ForwardMode.IPIP: 0, ForwardMode.GRE: 4, ForwardMode.FOU: 8, ForwardMode.GUE: 12}
_OUTER_HEADER = {4: 20, 6: 40}
# The packets that every link of an IP version carries (RFC 791, 8200).
_LEAST_MTU = {4: 576, 6: 1280}

_SETTINGS = ("mode", "tunnel_port", "dscp", "mtu")
_DEFAULTS = ("defaults",)
_USERS = {
    "tunnel_port": ((ForwardMode.FOU, ForwardMode.GUE), "mode fou or gue"),
    "dscp": ((ForwardMode.DSCP,), "mode dscp"),
}


@dataclass(frozen=True, slots=True)
class Ways:
    """A service with its VIPs, and its reals, each with the service's item that names its group, if any does.

    `complete`: these are all of its reals.
    """

    path: Path
    vips: list[Place]
    members: list[tuple[Place | None, Place]]
    complete: bool


def check(view: View, services: list[Ways]) -> None:
    """Report what can't work between services and reals."""
    _Checker(view).check(services)


class _Checker:
    def __init__(self, view: View) -> None:
        self._view = view
        self._settings: dict[Path, dict[str, Place]] = {}
        self._said: set[tuple[Path, str]] = set()
        self._least_mtu: dict[Path, tuple[int, str]] = {}
        self._modes: dict[tuple[Path, Path], ForwardMode | None] = {}
        self._used: set[Path] = set()
        self._in_use: set[Path] = set()

    def check(self, services: list[Ways]) -> None:
        vips = {parsed_address(vip.value): vip for service in services for vip in service.vips}
        for service in services:
            self._in_use.add(service.path)
            versions: set[int] = {parsed_address(vip.value).version for vip in service.vips}
            for group, real in service.members:
                self._real(service, versions, group, real)
                if parsed_address(real.value) in vips:
                    self._add(real.path, f"found {real.value}, which is a VIP, expected an address of a host")
        self._small_mtus()
        self._unused_parameters(services)
        self._unknown_alike(services)

    def _real(self, service: Ways, versions: set[int], group: Place | None, real: Place) -> None:
        owner = self._owner(service.path, real)
        if (owner, service.path) not in self._modes:
            self._in_use.add(owner)
            mode = self._modes[owner, service.path] = self._mode(owner, service.path)
            self._note_used(mode, owner, service.path)
        mode = self._modes[owner, service.path]
        if mode is None:
            return
        if mode is ForwardMode.DSCP:
            self._dscp(service, group, real)
        elif mode.is_tunnel:
            self._mtu(service.path, versions, mode, real)

    @staticmethod
    def _owner(service: Path, real: Place) -> Path:
        """Who may say something of this real alone: its item, or the service where that is an address."""
        return real.path[:-1] if real.path[-1] == "address" else service

    def _settings_of(self, owner: Path) -> dict[str, Place]:
        """What a service, an item or `defaults` says of the way; a value with a finding is None."""
        if owner not in self._settings:
            node = self._view.node(owner)
            there = [key for key in _SETTINGS if key in node] if isinstance(node, dict) else []
            self._settings[owner] = {
                key: Place((*owner, key), self._view.node((*owner, key))) for key in there
            }
        return self._settings[owner]

    def _setting(self, key: str, *owners: Path) -> Place | None:
        """What holds: the first owner's setting that is there, or else that in `defaults`."""
        for owner in (*owners, _DEFAULTS):
            setting = self._settings_of(owner).get(key)
            if setting is not None:
                return setting
        return None

    def _mode(self, *owners: Path) -> ForwardMode | None:
        setting = self._setting("mode", *owners)
        if setting is None:
            return ForwardMode.L2
        return ForwardMode(setting.value) if isinstance(setting.value, str) else None

    def _note_used(self, mode: ForwardMode | None, *owners: Path) -> None:
        for key, (modes, _) in _USERS.items():
            setting = self._setting(key, *owners)
            if setting is not None and (mode is None or mode in modes):
                self._used.add(setting.path)

    def _dscp(self, service: Ways, group: Place | None, real: Place) -> None:
        owner = self._owner(service.path, real)
        if self._setting("dscp", owner, service.path) is None:
            mode = self._setting("mode", owner, service.path)
            assert mode is not None  # dscp isn't the default
            self._add(mode.path, "found dscp without a key 'dscp', expected one beside it (0 to 63)")
        version = parsed_address(real.value).version
        for vip in service.vips:
            if parsed_address(vip.value).version != version:
                where = f" in group {shown(group.value)}" if group else ""
                self._add(
                    (group or real).path,
                    f"found {real.value}{where} for the VIP {vip.value},"
                    " expected one of its IP version: mode dscp changes the address",
                )

    def _mtu(self, service: Path, versions: set[int], mode: ForwardMode, real: Place) -> None:
        setting = self._setting("mtu", self._owner(service, real), service)
        if setting is None or setting.value is None:
            return
        around = _OUTER_HEADER[parsed_address(real.value).version] + _OVERHEAD[mode]
        for version in versions:
            least = _LEAST_MTU[version] + around
            why = f"for {mode} to {real.value}: {_LEAST_MTU[version]} for IPv{version} and {around} around it"
            self._least_mtu[setting.path] = max((least, why), self._least_mtu.get(setting.path, (0, "")))

    def _small_mtus(self) -> None:
        """Of all the demands on one value the highest is told."""
        for path, (least, why) in self._least_mtu.items():
            value = self._view.node(path)
            if value < least:
                self._view.add(path, f"found {value}, expected at least {least} {why}")

    def _add(self, path: Path, message: str) -> None:
        """Once, however many services and reals it concerns."""
        if (path, message) not in self._said:
            self._said.add((path, message))
            self._view.add(path, message)

    def _unused_parameters(self, services: list[Ways]) -> None:
        """A parameter that nothing uses is a mode forgotten."""
        if not all(service.complete for service in services):
            return
        for owner in self._in_use:
            for key, (_, modes) in _USERS.items():
                setting = self._settings_of(owner).get(key)
                if setting is not None and setting.value is not None and setting.path not in self._used:
                    self._view.add_at_key(setting.path, f"found where nothing has {modes}, expected with it")

    def _unknown_alike(self, services: list[Ways]) -> None:
        """What is no service's packet can't be judged by each service on its own."""
        first: dict[Any, tuple[Path, Any]] = {}
        for service in services:
            path = (*service.path, "unknown")
            default = (*_DEFAULTS, "unknown")
            if self._view.spoilt(path) or self._view.spoilt(default):
                continue
            value = self._view.node(path) or self._view.node(default) or "drop"
            for vip in service.vips:
                earlier, other = first.setdefault(parsed_address(vip.value), (service.path, value))
                if other != value:
                    place = path if self._view.node(path) else service.path
                    self._add(
                        place,
                        f"found unknown {value} for {vip.value}, expected all services on a VIP to agree"
                        f" ({dotted(earlier)}, line {self._view.line(earlier)}, has {other})",
                    )


# VLANs

_Prefix = tuple[IPv4Network | IPv6Network, Place, str]


def check_vlans(view: View) -> None:
    """Report prefixes that are in two VLANs. Sorted, a prefix comes behind all that hold it."""
    holders: list[_Prefix] = []
    for prefix, place, vlan in sorted(_prefixes(view), key=lambda p: (p[0].version, p[0])):
        while holders and not _within(prefix, holders[-1][0]):
            holders.pop()
        if holders and holders[-1][2] != vlan:
            _overlap(view, (prefix, place, vlan), holders[-1])
        holders.append((prefix, place, vlan))


def _prefixes(view: View) -> Iterator[_Prefix]:
    for vlan in view.keys(("vlans",)):
        for place in view.once(view.several(("vlans", vlan)), ip_network):
            yield ip_network(place.value), place, vlan


def _within(inner: IPv4Network | IPv6Network, outer: IPv4Network | IPv6Network) -> bool:
    if isinstance(inner, IPv4Network):
        return isinstance(outer, IPv4Network) and inner.subnet_of(outer)
    return isinstance(outer, IPv6Network) and inner.subnet_of(outer)


def _overlap(view: View, one: _Prefix, other: _Prefix) -> None:
    """At the one that stands later in the file."""
    (_, early, vlan), (_, late, _) = sorted((one, other), key=lambda p: view.mark(p[1].path))
    view.add(
        late.path,
        f"found {late.value}, expected nothing of it in another VLAN"
        f" ({early.value} is in {vlan}, line {view.line(early.path)})",
    )
