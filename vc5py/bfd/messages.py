"""What the director and the BFD process say to each other: lines of JSON over a Unix stream socket.

    process -> director   {"bfd": 2, "pid": 4711, "scheduling": "fifo"}      once; or {"busy": true}
    director -> process   {"sessions": [{"neighbor": ...}, ...], "hold_s": 30}   the wishes, all of them
                          {"stop": true}                                     administratively down, and end
    process -> director   {"status": [{...}, ...], "rejects": {...}, ...}    all of it, every second
                          {"changed": [{...}, ...]}                          at once

Times are of the monotonic clock, which all processes of a machine share.

Pure, standard library only. Must not know: sockets, sessions' logic. Invariant: what the functions here
accept has the right types; everything else is a ValueError.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from ipaddress import ip_address
from typing import Any

from vc5py.bfd.protocol import Settings
from vc5py.bfd.sessions import Status

PROTOCOL = 2
MAX_LINE = 1 << 20
_KINDS = {field.name: field.type for field in fields(Status)}
_TYPES: Mapping[Any, type | tuple[type, ...]] = {"str": str, "int": int, "bool": bool, "float": (int, float)}


@dataclass(frozen=True, slots=True)
class Wish:
    """One session that the director wants. `source`: our address on it, None: the kernel's choice."""

    neighbor: str
    source: str | None
    settings: Settings


def line(message: Mapping[str, Any]) -> bytes:
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


def wishes(wanted: Iterable[Wish], hold_s: float) -> bytes:
    sessions = [
        {
            "neighbor": wish.neighbor,
            "source": wish.source,
            "interval_us": wish.settings.interval_us,
            "multiplier": wish.settings.multiplier,
        }
        for wish in wanted
    ]
    return line({"sessions": sessions, "hold_s": hold_s})


def parse_wishes(message: Mapping[str, Any]) -> dict[str, Wish]:
    """By neighbor. Raises ValueError."""
    try:
        found = [_wish(item) for item in message["sessions"]]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"no list of sessions: {error!r}") from error
    return {wish.neighbor: wish for wish in found}


def _wish(item: Mapping[str, Any]) -> Wish:
    source = item["source"]
    interval_us, multiplier = int(item["interval_us"]), int(item["multiplier"])
    if not (1000 <= interval_us < 1 << 32 and 1 <= multiplier <= 255):
        raise ValueError(f"no such session: {item!r}")
    return Wish(
        str(ip_address(item["neighbor"])),
        None if source is None else str(ip_address(source)),
        Settings(interval_us, multiplier),
    )


def parse_line(data: bytes) -> dict[str, Any]:
    """Raises ValueError."""
    message = json.loads(data)
    if not isinstance(message, dict):
        raise ValueError("not an object")
    return message


def statuses(found: list[Status]) -> list[dict[str, Any]]:
    return [asdict(status) for status in found]


def parse_status(item: Any) -> Status:
    """Raises ValueError."""
    if not isinstance(item, dict) or item.keys() != _KINDS.keys():
        raise ValueError("no status")
    if not all(isinstance(item[name], _TYPES[kind]) for name, kind in _KINDS.items()):
        raise ValueError("a status of the wrong types")
    return Status(**item)
