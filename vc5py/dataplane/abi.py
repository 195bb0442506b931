"""What the control plane and the C program share, as numpy and ctypes see it.

Mirrors xdp/types.h and reads xdp/verdicts.h; knows nothing of how maps are made or programs loaded.
Invariant: every dtype has the size and the offsets of its C struct (tests/packets/test_abi.py asks the
compiler).
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from functools import cache
from ipaddress import IPv4Address
from pathlib import Path

import numpy as np

_PACKAGE = Path(__file__).resolve().parent.parent
# A wheel carries the C beside the modules; a checkout has it at the top.
XDP_DIR = _PACKAGE / "xdp" if (_PACKAGE / "xdp").is_dir() else _PACKAGE.parent / "xdp"

FLOW_WAYS = 4
FLOW_LOCAL_BITS = 15
FLOW_SERVICE_SHIFT = 15
FLOW_SERVICE_BITS = 13
FLOW_STATE_SHIFT = 28
FLOW_STATE_BITS = 3
FLOW_TICK_SHIFT = 32
FLOW_TICK_BITS = 16
FLOW_VALID = 1 << 63
FLOW_STATES = 8

SLOTS_PER_LINE = 32
SLOT_NONE = 0x7FFF
TABLE_LOG2_SHIFT = 32
BACKEND_ROOM_SHIFT = 32

BACKEND_UP = 0x0001
BACKEND_REACHABLE = 0x0002
INTERFACE_OURS = 0x0001

PROBE_MARK = 0x5C500000
PROBE_MARK_MASK = 0xFFF00000
MAX_BACKENDS = 1 << 20  # what fits beside the mark
MAX_SERVICES = 1 << FLOW_SERVICE_BITS
MAX_REALS_PER_SERVICE = SLOT_NONE

VERDICT_SLOTS = 64

FLOW_ENTRY = np.dtype([("tag", "<u8"), ("value", "<u8")])
SERVICE = np.dtype(
    [
        ("table", "<u8"),
        ("backends", "<u8"),
        ("identity", "<u8"),
        ("reserved", "<u8", 5),
    ]
)
# `link` is the C record's mac[6] and flags, as the one word they are written in.
BACKEND = np.dtype(
    [
        ("link", "<u8"),
        ("ifindex", "<u4"),
        ("reserved0", "<u4"),
        ("identity", "<u8"),
        ("reserved", "<u8", 5),
    ]
)
BACKEND_COUNT = np.dtype([("packets", "<u8"), ("bytes", "<u8")])
VERDICT_COUNTS = np.dtype([("packets", "<u8", VERDICT_SLOTS)])
INTERFACE = np.dtype([("link", "<u8")])
SETTINGS = np.dtype([("timeout", "<u2", FLOW_STATES), ("reserved", "<u8", 6)])
SLOT_LINE = np.dtype([("slot", "<u2", SLOTS_PER_LINE)])


class FlowState(IntEnum):
    """How far a flow has proven that a real connection is behind it."""

    UNPROVEN = 0
    PROVING = 1
    ESTABLISHED = 2
    CLOSING = 3


class Action(StrEnum):
    """What happens to a frame."""

    PASS = "pass"
    FORWARD = "forward"
    DROP = "drop"


@dataclass(frozen=True, slots=True)
class Verdict:
    """One way for a packet to end; `name` is the C name in lower case, as metrics show it."""

    number: int
    name: str
    action: Action
    description: str


_VERDICT_LINE = re.compile(r'V\((\d+),\s*(\w+),\s*(PASS|FORWARD|DROP),\s*"([^"]+)"\)')


@cache
def verdicts() -> tuple[Verdict, ...]:
    """All verdicts, in the order of their numbers, read from the C list itself."""
    text = (XDP_DIR / "verdicts.h").read_text(encoding="utf-8")
    rows = [
        Verdict(int(number), name.lower(), Action[action], description)
        for number, name, action, description in _VERDICT_LINE.findall(text)
    ]
    return tuple(sorted(rows, key=lambda v: v.number))


@cache
def layout_hash() -> str:
    """12 hex digits that change when the contents of the maps do."""
    return hashlib.sha256((XDP_DIR / "types.h").read_bytes()).hexdigest()[:12]


def mac_to_word(mac: str) -> int:
    """A MAC address as the low 48 bits of a link word: `02:00:00:00:00:01` -> 0x010000000002."""
    return int.from_bytes(bytes.fromhex(mac.replace(":", "")), "little")


def word_to_mac(word: int) -> str:
    """The inverse of `mac_to_word`; the flags in the high 16 bits are ignored."""
    return (word & (1 << 48) - 1).to_bytes(6, "little").hex(":")


def service_key4(vip: IPv4Address, port: int, protocol: int) -> bytes:
    """struct service_key4; port and protocol 0 stand for the VIP itself."""
    return vip.packed + port.to_bytes(2, "big") + bytes([protocol, 0])
