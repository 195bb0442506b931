"""What the control plane and the C program share, as numpy and ctypes see it.

Mirrors xdp/types.h and reads xdp/verdicts.h; knows nothing of how maps are made or programs loaded.
Invariant: every dtype has the size and the offsets of its C struct (tests/packets/test_abi.py asks the
compiler).
"""

from __future__ import annotations

import hashlib
import re
import socket
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from functools import cache
from pathlib import Path

import numpy as np

from vc5py.model import Forwarding, ForwardMode, Scheduling

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
FLOW_LEARNED = 1 << 48
FLOW_VALID = 1 << 63
FLOW_STATES = 8

SLOTS_PER_LINE = 32
SLOT_NONE = 0x7FFF
SLOT_UNSTABLE = 0x8000
TABLE_LOG2_SHIFT = 32
BACKEND_ROOM_SHIFT = 32

BACKEND_UP = 0x0001
BACKEND_REACHABLE = 0x0002
BACKEND_SET_TAGS = 0x0008
BACKEND_ON_LINK = 0x0010
BACKEND_RESTING = 0x0020
MODE_OUTER6 = 0x80
INTERFACE_OURS = 0x0001

SERVICE_STICKY = 0x1
SERVICE_LEAST_CONNS = 0x2
SERVICE_BY_FLOW = 0x4
VIP_PASS_UNKNOWN = 0x1
SETTING_DROP_FRAGMENTS = 0x1
SETTING_CROWDED = 0x2

KEY_VALID = 1 << 63
SERVICE_WAYS4 = 4
SERVICE_WAYS6 = 2

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
        ("previous", "<u8"),
        ("backends", "<u8"),
        ("identity", "<u8"),
        ("flags", "<u8"),
        ("reserved", "<u8", 3),
    ]
)
# Of words that are written in one go a field has the whole: `link` is mac[6] and flags; `place` is ifindex,
# vlan and svlan; `how` is mode, dscp, port, mtu and load.
BACKEND = np.dtype(
    [
        ("link", "<u8"),
        ("place", "<u8"),
        ("identity", "<u8"),
        ("source", "S16"),
        ("destination", "S16"),
        ("how", "<u8"),
    ]
)
SERVICE_ENTRY4 = np.dtype([("key", "<u8"), ("value", "<u8")])
SERVICE_ENTRY6 = np.dtype([("vip", "<u8", 2), ("key", "<u8"), ("value", "<u8")])
BACKEND_COUNT = np.dtype([("packets", "<u8"), ("bytes", "<u8")])
VERDICT_COUNTS = np.dtype([("packets", "<u8", VERDICT_SLOTS)])
INTERFACE = np.dtype([("link", "<u8"), ("bond", "<u4"), ("mtu", "<u4")])
SETTINGS = np.dtype(
    [
        ("timeout", "<u2", FLOW_STATES),
        ("flags", "<u4"),
        ("icmp_per_jiffy", "<u4"),
        ("reserved", "<u8", 5),
    ]
)
FLOW_LOG_HEAD = np.dtype([("written", "<u8"), ("read", "<u8"), ("reserved", "<u8", 6)])
LEARNED = np.dtype(
    [
        ("hash", "<u8"),
        ("identity", "<u4"),
        ("owner", "<u4"),
        ("age", "<u2"),
        ("state", "u1"),
        ("result", "u1"),
        ("reserved", "<u4"),
    ]
)
LEARN_CONTROL = np.dtype([("next", "<u8"), ("reserved", "<u8", 7)])
ICMP_BUDGET = np.dtype([("jiffy", "<u8"), ("sent", "<u8"), ("reserved", "<u8", 6)])
SLOT_LINE = np.dtype([("slot", "<u2", SLOTS_PER_LINE)])


class FlowState(IntEnum):
    """How far a flow has proven that a real connection is behind it."""

    UNPROVEN = 0
    PROVING = 1
    CLOSING = 2
    FRAGMENT = 3
    ESTABLISHED = 4
    STREAM = 5


class LearnResult(IntEnum):
    """What became of a flow that another balancer has told of; STRAY may stand beside another one."""

    ADDED = 0
    TAKEN = 1
    UPDATED = 2
    KEPT = 3
    EXPIRED = 4
    NO_ROOM = 5
    UNKNOWN = 6
    STRAY = 8


class Action(StrEnum):
    """What happens to a frame."""

    PASS = "pass"
    FORWARD = "forward"
    ANSWER = "answer"
    DROP = "drop"


@dataclass(frozen=True, slots=True)
class Verdict:
    """One way for a packet to end; `name` is the C name in lower case, as metrics show it."""

    number: int
    name: str
    action: Action
    description: str


_VERDICT_LINE = re.compile(r'V\((\d+),\s*(\w+),\s*(PASS|FORWARD|ANSWER|DROP),\s*"([^"]+)"\)')


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


def service_key(port: int, protocol: int) -> int:
    """The word that a service entry is found by, without the address that it has for IPv4."""
    return KEY_VALID | protocol << 48 | socket.htons(port) << 32


SCHEDULING_FLAGS = {
    Scheduling.MAGLEV: 0,
    Scheduling.STICKY: SERVICE_STICKY | SERVICE_BY_FLOW,
    Scheduling.LEAST_CONNS: SERVICE_LEAST_CONNS | SERVICE_BY_FLOW,
}

FORWARD_MODES = tuple(ForwardMode)  # in the order of enum forward_mode
MODES = {mode: number for number, mode in enumerate(FORWARD_MODES)}


def place_word(ifindex: int, vlan: int = 0, svlan: int = 0) -> int:
    """Where a backend is, as struct backend has it in its second word."""
    return ifindex | vlan << 32 | svlan << 48


def how_word(forwarding: Forwarding, load: int = 0, *, outer6: bool = False) -> int:
    """How packets get to a backend, as struct backend has it in its last word. `outer6`: its address is an
    IPv6 one, and so are those around packets in a tunnel.
    """
    port = socket.htons(forwarding.port)
    mode = MODES[forwarding.mode] | (MODE_OUTER6 if outer6 and forwarding.mode.is_tunnel else 0)
    return mode | forwarding.dscp << 8 | port << 16 | forwarding.mtu << 32 | load << 48
