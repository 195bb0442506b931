"""`vc5py status` for people: the document of `/v1/status` as lines. Pure.

Everything a real's line says is in its columns; what is out of the ordinary is a word, the ordinary isn't.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Document = Mapping[str, Any]

_HEAD = ("REAL", "HEALTH", "STATE", "WEIGHT", "TIER", "FLOWS", "FOR", "WHY")
_MINUTE, _HOUR, _DAY = 60, 3600, 86400


def duration(seconds: float) -> str:
    """In its two largest units: 5s, 3m05s, 2h10m, 4d03h."""
    whole = max(0, int(seconds))
    if whole < _MINUTE:
        return f"{whole}s"
    if whole < _HOUR:
        return f"{whole // _MINUTE}m{whole % _MINUTE:02d}s"
    if whole < _DAY:
        return f"{whole // _HOUR}h{whole % _HOUR // _MINUTE:02d}m"
    return f"{whole // _DAY}d{whole % _DAY // _HOUR:02d}h"


def lines(status: Document) -> Iterator[str]:
    yield from _node(status)
    services: dict[str, list[Document]] = {vip: [] for vip in status["vips"]}
    for service in status["services"]:
        services.setdefault(service["vip"], []).append(service)
    for vip, there in services.items():
        yield ""
        yield f"VIP {vip}  {_announced(status, vip)}"
        for service in there:
            yield f"  {_service(service)}"
            yield from (f"    {line}" for line in _aligned(_reals(service, status["at"])))
    if status["vip_overrides"]:
        yield ""
        yield "Set by command (vc5py vip default undoes it):"
        yield from (f"  {vip}: {state}" for vip, state in status["vip_overrides"].items())
    if status["overrides"]:
        yield ""
        yield "Set by command (vc5py reset undoes it):"
        yield from (f"  {_override(override)}" for override in status["overrides"])


def _node(status: Document) -> Iterator[str]:
    config = status["config"]
    loaded = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(config["loaded_at"]))
    yield f"vc5py {status['version']}  {config['file']}, loaded {loaded}"
    if not config["last_reload_successful"]:
        yield "The last reload failed: this configuration is still in force. The log says why."
    interfaces = ", ".join(f"{name} {mode}" for name, mode in status["interfaces"].items())
    yield f"XDP {interfaces or 'nowhere'}"
    yield from (f"Warning: {warning}" for warning in status["warnings"])
    if status["start"]["text"]:
        yield f"At the start: {status['start']['text']}"
    for neighbor in status["neighbors"]:
        since = duration(status["at"] - neighbor["since"])
        why = f": {neighbor['why']}" if neighbor["why"] else ""
        yield (
            f"BGP {neighbor['address']} AS {neighbor['as']} {neighbor['state']} for {since},"
            f" {neighbor['routes']} routes{why}"
        )
    for session in status["bfd"]:
        since = duration(status["at"] - session["since"])
        lost = "" if session["reachable"] else ": unreachable, told no routes"
        yield f"BFD {session['address']} {session['state']} for {since}{lost}"
    yield from _sharing(status["sharing"])


def _sharing(sharing: Document) -> Iterator[str]:
    if not sharing["enabled"]:
        why = sharing["why_off"].removeprefix("flows are not shared: ")
        yield f"Sharing off: {why or 'no cluster in the configuration'}"
    elif not sharing["running"]:
        yield "Sharing: its process does not report; the log says why"
    elif not sharing["peers"]:
        yield "Sharing: no peer heard"
    else:
        copied = "copied" if sharing["copied"] else "not copied yet"
        for peer in sharing["peers"]:
            yield f"Sharing {peer['address']} heard {duration(peer['age'])} ago, {copied}"


def _announced(status: Document, vip: str) -> str:
    if status["vips"].get(vip):
        return _told(status, vip)
    why = status["vip_why"].get(vip)
    return f"not announced: {why}" if why else "not announced"


def _told(status: Document, vip: str) -> str:
    """What routers know: that the VIP is to be announced is worth nothing where nobody hears of it."""
    told, of = status["vip_told"][vip]["neighbors"], status["vip_told"][vip]["of"]
    if told:
        return f"announced to {told} of {_neighbors(of)}"
    if not status["neighbors"]:
        return "to be announced, but there is no BGP neighbor"
    if not of:
        return "to be announced, but no BGP neighbor is to be told of it (accept, reject, families)"
    if not any(status["bgp"].values()):
        return "to be announced, but no BGP session is established"
    return f"to be announced, but told to none of {_neighbors(of)}"


def _neighbors(count: int) -> str:
    return f"{count} neighbor{'' if count == 1 else 's'}"


def _service(service: Document) -> str:
    words = [
        f"service {service['name']}",
        ",".join(service["ports"]),
        "healthy" if service["healthy"] else "unhealthy",
        service["count"],
    ]
    if service["sorry"]:
        words.append("sorry reals serve")
    elif service["serving_tier"]:
        words.append(f"tier {service['serving_tier']} serves")
    return "  ".join(words)


def _reals(service: Document, at: float) -> Iterator[Sequence[str]]:
    yield _HEAD
    for real in service["reals"]:
        yield (
            real["address"],
            "damped" if real["damped"] else real["health"],
            _state(real),
            str(real["weight"]),
            "sorry" if real["sorry"] else str(real["tier"]),
            str(real["flows"]),
            duration(at - real["since"]),
            real["why"],
        )


def _state(real: Document) -> str:
    if real["admin"] == "enabled":
        return "serving" if real["serving"] else "idle"
    return str(real["admin"])


def _aligned(rows: Iterator[Sequence[str]]) -> Iterator[str]:
    table = list(rows)
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _override(override: Document) -> str:
    where = f" in {override['service']}" if override["service"] is not None else ""
    state = [override["state"]] if override["state"] is not None else []
    weight = [f"weight {override['weight']}"] if override["weight"] is not None else []
    return f"{override['real']}{where}: {', '.join(state + weight)}"
