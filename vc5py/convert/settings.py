"""What is not a service: BGP, VLANs, and the few settings of the whole.

Must not know: how the result is written.
"""

from __future__ import annotations

from ipaddress import ip_network
from typing import Any

from pydantic import TypeAdapter

from vc5py.config.bgp_scalars import Attribute32, Community, HoldTime, NextHop6
from vc5py.config.report import Path, found
from vc5py.config.scalars import AsNumber, HostAddress, LocalAddress, Multicast, VlanKey
from vc5py.convert.source import Source

_AS, _PEER, _LISTEN = TypeAdapter(AsNumber), TypeAdapter(HostAddress), TypeAdapter(LocalAddress)
_MULTICAST, _VLAN = TypeAdapter(Multicast), TypeAdapter(VlanKey)

_KNOWN = {"services", "servers", "policy", "scheduler", "learn", "multicast", "webserver", "bgp", "rhi",
          "vlans", "vlans6"}  # fmt: skip
_NO_COUNTERPART = {
    "prefixes": "routes are filtered by neighbor: see 'accept' and 'reject'",
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
    "listen": "sessions are opened from here; see 'passive'",
    "multiprotocol": "IPv6 VIPs are announced anyway; see 'families'",
}
_BGP_SETTINGS: dict[str, tuple[str, TypeAdapter[Any]]] = {
    "hold_time": ("hold_time", TypeAdapter(HoldTime)),
    "med": ("med", TypeAdapter(Attribute32)),
    "local_pref": ("local_preference", TypeAdapter(Attribute32)),
    "source_ip": ("source", _PEER),
    "next_hop_6": ("next_hop6", TypeAdapter(NextHop6)),
}
"""By their key: ours, and what fits it."""
_BGP_LISTS = {"communities", "accept", "reject"}
_BGP_KEYS = {*_BGP_NO_COUNTERPART, *_BGP_SETTINGS, *_BGP_LISTS, "as_number", "peers"}
_COMMUNITY = TypeAdapter(Community)


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
    """Its AS numbers are ours and the peers' alike. A group without settings of its own needn't be one."""
    source.strange(path, {*_BGP_KEYS, "groups", "learn"})
    source.left_out(path, _BGP_NO_COUNTERPART)
    places = [inner for inner, _ in source.several((*path, "groups"))]
    for place in places:
        source.strange(place, {*_BGP_KEYS, "name"})
        source.left_out(place, _BGP_NO_COUNTERPART)
    usual = source.fitting((*path, "as_number"), _AS)
    numbers = {place: source.fitting((*place, "as_number"), _AS) or usual for place in places}
    number = usual or next(filter(None, numbers.values()), None)
    settings, peers = _bgp_settings(source, path), _peers(source, path)
    groups: dict[str, Any] = {}
    for place in places:
        inner = [peer for peer in _peers(source, place) if peer not in _all(peers, groups)]
        own = _bgp_settings(source, place)
        if numbers[place] != number:
            own = {"local_as": numbers[place], "peer_as": numbers[place], **own}
        if inner and own:
            groups[f"group {len(groups) + 1}"] = {**own, "neighbors": inner}
        else:
            peers += inner
    if number is None or not (peers or groups):
        if source.keys(path):
            source.note(path, "found no AS number with peers: VIPs are not announced")
        return {}
    lists = {key: value for key, value in (("peers", peers), ("groups", groups)) if value}
    return {"as_number": number, **settings, **lists}


def _all(peers: list[str], groups: dict[str, Any]) -> list[str]:
    return peers + [peer for group in groups.values() for peer in group["neighbors"]]


def _bgp_settings(source: Source, path: Path) -> dict[str, Any]:
    made = {ours: source.fitting((*path, key), kind) for key, (ours, kind) in _BGP_SETTINGS.items()}
    made["communities"] = [
        text
        for place, _ in source.several((*path, "communities"))
        if (text := source.fitting(place, _COMMUNITY))
    ]
    for key in ("accept", "reject"):
        made[key] = _rules(source, (*path, key))
    return {key: value for key, value in made.items() if value not in (None, [])}


def _rules(source: Source, path: Path) -> list[str]:
    """Prefixes may have bits behind their length there."""
    rules = []
    for place, text in source.several(path):
        try:
            rules.append(str(ip_network(str(text), strict=False)))
        except ValueError:
            source.note(place, f"found {found(text)}, expected a prefix: left out")
    return rules


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
