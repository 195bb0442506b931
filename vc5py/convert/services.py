"""Services of the Go program into ours: one of ours for each (port, protocol) of a policy.

Must not know: how the result is written. Invariant: names are unique, and no (VIP, port, protocol) is in two
services.
"""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

from pydantic import TypeAdapter

from vc5py.config.report import Path, found, shown
from vc5py.config.scalars import Description, ForwardedAddress, Name
from vc5py.convert.policy import CHECK_KEYS, Entry, entries
from vc5py.convert.source import Source
from vc5py.model import IPAddress

_ADDRESS, _NAME, _DESC = TypeAdapter(ForwardedAddress), TypeAdapter(Name), TypeAdapter(Description)

_SETTINGS = ("need", "sticky", "scheduler", "leastconns", "name", "description")
_NO_COUNTERPART = {
    "persist": "the schedule 'sticky' has no time to it",
    "reset": "flows of a real that went down go to another one",
    "priority": "there are no priorities of alerts",
    "fallback": "there is no local fallback; see 'sorry'",
}
_OF_SERVICES = {*_SETTINGS, *_NO_COUNTERPART, *CHECK_KEYS, "virtual", "address", "servers", "policy",
                "tunnel-type", "tunnel-port"}  # fmt: skip
_OF_POLICIES = {*_SETTINGS, *_NO_COUNTERPART, *CHECK_KEYS, "checks", "bind"}
_SCHEDULES = {"maglev": "maglev", "leastconn": "least-conns", "leastconns": "least-conns", "sticky": "sticky"}
_MODES = {"none": "l2", "l2": "l2", "ipip": "ipip", "gre": "gre", "fou": "fou", "gue": "gue"}


class Services:
    """Collects our `services` and `reals`."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._names: set[str] = set()
        self._all_vips: set[IPAddress] = set()
        self._owners: dict[tuple[str, int, str], dict[str, Any]] = {}
        self.services: list[dict[str, Any]] = []
        self.reals: dict[str, list[Any]] = {}

    def convert(self) -> None:
        source = self._source
        if isinstance(source.node(("services",)), dict):
            source.note(
                ("services",),
                "found a mapping, expected a list: this looks like what the Go program's tool makes;"
                " convert the file it was made from",
            )
            return
        places = [path for path, _ in source.several(("services",))]
        self._all_vips = {ip_address(vip) for path in places for vip in self._vips(path)}
        for name in source.keys(("servers",)):
            if reals := self._reals(("servers", name)):
                self.reals[name] = reals
        for path in places:
            self._service(path)
        self.services = [service for service in self.services if service["addr"]]

    def _service(self, path: Path) -> None:
        source = self._source
        source.strange(path, _OF_SERVICES)
        source.left_out(path, _NO_COUNTERPART)
        vips = self._vips(path)
        reals = self._servers(path)
        made = list(entries(source, self._policy(path), path))
        for what, there in (("VIP", vips), ("server", reals), ("policy", made)):
            if not there:
                source.note(path, f"found no {what} that can be used: the service is left out")
                return
        shared = self._shared(path, reals, made)
        for entry in made:
            self.services.append(self._one(path, entry, vips, shared, alone=len(made) == 1))

    # Parts of a service

    def _vips(self, path: Path) -> list[str]:
        source = self._source
        key = "virtual" if source.node((*path, "virtual")) is not None else "address"
        vips = []
        for place, address, disabled in source.addresses((*path, key), "a VIP", _ADDRESS):
            if disabled:
                source.note(place, f"found the VIP {address} disabled, which we don't know: left out")
            else:
                vips.append(address)
        return vips

    def _servers(self, path: Path) -> dict[str, Any]:
        """Our key with its value: a group's name, or a list."""
        place = (*path, "servers")
        node = self._source.node(place)
        if isinstance(node, str):
            if node in self.reals:
                return {"real": node}
            self._source.note(place, f"found {shown(node)}, expected the name of a list in servers")
            return {}
        reals = self._reals(place)
        return {"reals": reals} if reals else {}

    def _reals(self, path: Path) -> list[Any]:
        if isinstance(self._source.node(path), dict):
            self._source.note(path, f"found {found({})}, expected a list of servers: left out")
            return []
        reals: list[Any] = []
        for place, address, disabled in self._source.addresses(path, "a server", _ADDRESS):
            if ip_address(address) in self._all_vips:
                self._source.note(place, f"found the server {address}, which is a VIP: left out")
            else:
                reals.append({"address": address, "state": "disabled"} if disabled else address)
        return reals

    def _policy(self, path: Path) -> Path:
        place = (*path, "policy")
        name = self._source.node(place)
        if not isinstance(name, str):
            return place
        if self._source.node(("policy", name)) is None:
            self._source.note(place, f"found {shown(name)}, expected a policy in policy")
        return ("policy", name)

    def _shared(self, path: Path, reals: dict[str, Any], made: list[Entry]) -> dict[str, Any]:
        """A list that several services use becomes a group."""
        if len(made) == 1 or "real" in reals:
            return reals
        base = self._name(path, path)
        name = next(name for name in _numbered(base) if name not in self.reals)
        self.reals[name] = reals["reals"]
        return {"real": name}

    def _one(
        self, path: Path, entry: Entry, vips: list[str], reals: dict[str, Any], *, alone: bool
    ) -> dict[str, Any]:
        source = self._source
        if isinstance(source.node(entry.path), dict):
            source.strange(entry.path, _OF_POLICIES)
            source.left_out(entry.path, _NO_COUNTERPART)
        base = self._name(entry.path, path)
        if not alone and source.node((*entry.path, "name")) is None:
            both = entry.name in ("domain", "dns")
            base = f"{base}-{entry.name}{f'-{entry.protocol}' if both or entry.protocol == 'udp' else ''}"
        name = next(name for name in _numbered(base) if name not in self._names)
        self._names.add(name)
        service: dict[str, Any] = {"name": name}
        desc = source.fitting(self._lowest(entry.path, path, "description"), _DESC)
        if desc:
            service["desc"] = desc
        service |= {"addr": list(vips), "port": entry.port, "protocol": entry.protocol, **reals}
        service |= self._settings(entry.path, path)
        service["checks"] = entry.checks
        self._claim(entry, service)
        return service

    def _name(self, *levels: Path) -> str:
        place = self._lowest(*levels, "name")
        return str(self._source.fitting(place, _NAME) or "service")

    def _lowest(self, *levels_and_key: Any) -> Path:
        *levels, key = levels_and_key
        places = [(*level, key) for level in levels]
        return next((place for place in places if self._source.node(place) is not None), places[-1])

    def _settings(self, entry: Path, path: Path) -> dict[str, Any]:
        source = self._source
        settings: dict[str, Any] = {}
        need = source.number(self._lowest(entry, path, "need"), 1, 32766)
        if need is not None:
            settings["need"] = need
        if source.truth(self._lowest(entry, path, "sticky")):
            settings["schedule"] = "sticky"
        elif source.truth(self._lowest(entry, path, "leastconns")):
            settings["schedule"] = "least-conns"
        elif (schedule := self._scheduler(self._lowest(entry, path, "scheduler"))) is not None:
            settings["schedule"] = schedule
        return settings | self._tunnel(path)

    def _scheduler(self, place: Path) -> str | None:
        """Of the service, or the one at the top of the file."""
        if self._source.node(place) is None:
            place = ("scheduler",)
        name = self._source.node(place)
        if name is not None and name not in _SCHEDULES:
            self._source.note(place, f"found the scheduler {found(name)}: maglev is used instead")
        return _SCHEDULES.get(name) if isinstance(name, str) else None

    def _tunnel(self, path: Path) -> dict[str, Any]:
        source = self._source
        kind = source.node((*path, "tunnel-type"))
        if kind is None:
            return {}
        if kind not in _MODES:
            source.note((*path, "tunnel-type"), f"found {found(kind)}, expected none, ipip, gre, fou or gue")
            return {}
        mode = _MODES[kind]
        port = source.number((*path, "tunnel-port"), 1, 65535) if mode in ("fou", "gue") else None
        return {"mode": mode} if port is None else {"mode": mode, "tunnel_port": port}

    def _claim(self, entry: Entry, service: dict[str, Any]) -> None:
        """Of two services with one (VIP, port, protocol) the Go program takes the later."""
        for vip in service["addr"]:
            earlier = self._owners.get((vip, entry.port, entry.protocol))
            if earlier is not None:
                earlier["addr"].remove(vip)
                name = shown(earlier["name"])
                self._source.note(
                    entry.path,
                    f"found {vip}:{entry.port}/{entry.protocol} again: taken from service {name}",
                    key=True,
                )
            self._owners[vip, entry.port, entry.protocol] = service


def _numbered(base: str) -> Any:
    """base, base-2, base-3, ..."""
    yield base
    number = 2
    while True:
        yield f"{base}-{number}"
        number += 1
