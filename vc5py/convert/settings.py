"""What is not a service: BGP, VLANs, and the few settings of the whole.

Must not know: how the result is written.
"""

from __future__ import annotations

from ipaddress import ip_network
from typing import Any

from pydantic import TypeAdapter

from vc5py.config.report import Path, found
from vc5py.config.scalars import AsNumber, HostAddress, LocalAddress, Multicast, VlanKey
from vc5py.convert.source import Source

_AS, _PEER, _LISTEN = TypeAdapter(AsNumber), TypeAdapter(HostAddress), TypeAdapter(LocalAddress)
_MULTICAST, _VLAN = TypeAdapter(Multicast), TypeAdapter(VlanKey)

_KNOWN = {"services", "servers", "policy", "scheduler", "learn", "multicast", "webserver", "bgp", "rhi",
          "vlans", "vlans6"}  # fmt: skip
_NO_COUNTERPART = {
    "prefixes": "there are no filters of routes; filter on the routers",
    "webroot": "the files of the web server are built in",
    "logging": "logs go to standard error",
    "defcon": "there is no such setting",
    "address": "give it on the command line: vc5py run --address ADDRESS",
    "interfaces": "give them on the command line: vc5py run INTERFACE...",
    "native": "native mode is used where the driver has it; see vc5py run --xdp-mode",
    "untagged": "without 'vlans', frames keep their tags",
    "host_id": "there is no such setting",
}
_BGP_NO_COUNTERPART = {
    "hold_time": "the hold time of sessions can't be set ('hold' is something else)",
    "med": "routes are announced without it",
    "local_pref": "routes are announced with the default",
    "communities": "routes are announced without them",
    "source_ip": "sessions are from the address given by vc5py run --address",
    "next_hop_6": "the next hop is this machine",
    "listen": "sessions are opened from here",
    "multiprotocol": "IPv6 VIPs are announced anyway",
    "accept": "there are no filters of routes; filter on the routers",
    "reject": "there are no filters of routes; filter on the routers",
}


def whole(source: Source) -> dict[str, Any]:
    """Our settings of the whole, in the order in which they are written."""
    source.strange((), {*_KNOWN, *_NO_COUNTERPART})
    source.left_out((), _NO_COUNTERPART)
    made: dict[str, Any] = {}
    learn = next(
        (place for place in (("bgp", "learn"), ("rhi", "learn"), ("learn",)) if source.node(place)), None
    )
    seconds = source.number(learn, 0, 86400) if learn else None
    if seconds is not None:
        made["learn"] = seconds
    if (multicast := source.fitting(("multicast",), _MULTICAST)) is not None:
        made["multicast"] = multicast
    if metrics := _webserver(source):
        made["metrics"] = metrics
    if rhi := _rhi(source, ("bgp",) if source.node(("bgp",)) is not None else ("rhi",)):
        made["rhi"] = rhi
    if vlans := _vlans(source):
        made["vlans"] = vlans
    return made


def _webserver(source: Source) -> dict[str, Any]:
    """`:80` or `address:80`."""
    text = source.node(("webserver",))
    if text is None:
        return {}
    address, _, port = str(text).rpartition(":")
    address = address.strip("[]")
    if not (port.isascii() and port.isdigit() and 1 <= int(port[:6]) <= 65535):
        source.note(("webserver",), f"found {found(text)}, expected an address and a port: left out")
        return {}
    try:
        known = {"address": str(_LISTEN.validate_python(address))} if address else {}
    except ValueError:
        source.note(("webserver",), f"found {found(text)}, expected an IP address: it listens on all of them")
        known = {}
    return {**known, "port": int(port)}


# BGP


def _rhi(source: Source, path: Path) -> dict[str, Any]:
    """One AS number and all its peers; ours knows no others."""
    source.strange(path, {*_BGP_NO_COUNTERPART, "as_number", "peers", "groups", "learn"})
    source.left_out(path, _BGP_NO_COUNTERPART)
    groups = [inner for inner, _ in source.several((*path, "groups"))]
    for group in groups:
        source.strange(group, {*_BGP_NO_COUNTERPART, "name", "as_number", "peers"})
        source.left_out(group, _BGP_NO_COUNTERPART)
    usual = source.fitting((*path, "as_number"), _AS)
    numbers = {group: source.fitting((*group, "as_number"), _AS) or usual for group in groups}
    number = usual or next(filter(None, numbers.values()), None)
    peers = _peers(source, path)
    for group in groups:
        if numbers[group] == number:
            peers += [peer for peer in _peers(source, group) if peer not in peers]
        else:
            source.note(group, f"found AS {numbers[group]}, and {number} before: its peers are left out")
    if number is None or not peers:
        if source.keys(path):
            source.note(path, "found no AS number with peers: VIPs are not announced")
        return {}
    return {"as_number": number, "peers": peers}


def _peers(source: Source, path: Path) -> list[str]:
    return [peer for _, peer, _ in source.addresses((*path, "peers"), "a BGP neighbor", _PEER)]


# VLANs


def _vlans(source: Source) -> dict[str, Any]:
    vlans: dict[str, list[str]] = {}
    for table in ("vlans", "vlans6"):
        for key in source.keys((table,)):
            try:
                _VLAN.validate_python(key)
            except ValueError:
                source.note((table, key), f"found {found(key)}, expected a VLAN: left out", key=True)
                continue
            for place, text in source.several((table, key)):
                try:
                    prefix = ip_network(str(text), strict=False)  # it may have the gateway's address in it
                except ValueError:
                    source.note(place, f"found {found(text)}, expected a prefix: left out")
                    continue
                vlans.setdefault(key, []).append(str(prefix))
    return {key: several if len(several) > 1 else several[0] for key, several in vlans.items()}
