"""Descriptions of the maps' layout, written for versions to come: what it takes to read our maps without us.

A description is a small JSON file in the state directory, named like the directory of the pins. It says where
in a map's memory each field is, what the numbers in it mean, and by which key the flows of a map are named
(by a check value, not the key itself). Knows files and bits; not what is done with what is read.
Invariant: what the file says is complete; nothing of a running version's own layout is assumed of another.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vc5py.core.flowhash import FlowKey, flow_hash, table_slot
from vc5py.dataplane import abi, flows

FORMAT = 1
_PREFIX = "layout-"
_MAPS = ("flows", "services", "backends", "slots", "backend_counts", "verdict_counts")
_SAMPLES = (("192.0.2.1", "198.51.100.2"), ("2001:db8::1", "2001:db8:1::2"))


@dataclass(frozen=True, slots=True)
class Field:
    """Some bits of a little-endian word of `size` bytes, `offset` bytes from the record's beginning."""

    offset: int
    size: int
    shift: int
    bits: int

    def read(self, words: NDArray[Any]) -> NDArray[np.uint64]:
        """Out of words of that size."""
        value: NDArray[np.uint64] = words.astype(np.uint64) >> np.uint64(self.shift)
        return value & np.uint64((1 << self.bits) - 1)


@dataclass(frozen=True, slots=True)
class RecordLayout:
    """One kind of record: its length in bytes, and its fields by name."""

    bytes: int
    fields: Mapping[str, Field]


@dataclass(frozen=True, slots=True)
class Layout:
    """How to read the maps of one version. `maps`: the records that each map is an array of. A flow is in one
    of the sets of `ways` entries that its hash, shifted right by one of `set_shifts`, names. `states` and
    `modes` are those of flows and backends, by number. `tick_shift`: a tick is 2^n jiffies. `keys`: check
    values of the flow keys, by the kernel's id of the flow table.
    """

    name: str
    maps: Mapping[str, RecordLayout]
    ways: int
    set_shifts: tuple[int, ...]
    slots_per_line: int
    slot_none: int
    states: Mapping[str, int]
    modes: Mapping[str, int]
    tick_shift: int
    keys: Mapping[int, str] = field(default_factory=dict)


def check_value(key: FlowKey) -> str:
    """Equal where flows have the same names, and the same slots, in both of two versions."""
    text = []
    for source, destination in _SAMPLES:
        name = flow_hash(key, ip_address(source), ip_address(destination), 40_000, 443, 6)
        text.append(f"{name:x} {table_slot(name, 1 << 16):x}")
    return hashlib.blake2b("\n".join(text).encode(), digest_size=8).hexdigest()


def _whole(dtype: np.dtype[np.void], name: str) -> tuple[int, int]:
    """Offset and size of a field of one word."""
    assert dtype.fields is not None
    kind, offset = dtype.fields[name][:2]
    return int(offset), kind.itemsize


def _record(dtype: np.dtype[np.void], fields: Mapping[str, tuple[str, int, int]]) -> RecordLayout:
    """`fields`: word of the dtype, first bit and number of bits, by the name in the description."""
    found = {}
    for name, (word, shift, bits) in fields.items():
        found[name] = Field(*_whole(dtype, word), shift, bits)
    return RecordLayout(dtype.itemsize, found)


def _flag(word: str, mask: int, above: int = 0) -> tuple[str, int, int]:
    return word, above + mask.bit_length() - 1, 1


def _flow_record() -> RecordLayout:
    value = {
        "local": ("value", 0, abi.FLOW_LOCAL_BITS),
        "service": ("value", abi.FLOW_SERVICE_SHIFT, abi.FLOW_SERVICE_BITS),
        "state": ("value", abi.FLOW_STATE_SHIFT, abi.FLOW_STATE_BITS),
        "tick": ("value", abi.FLOW_TICK_SHIFT, abi.FLOW_TICK_BITS),
        "learned": _flag("value", abi.FLOW_LEARNED),
        "valid": _flag("value", abi.FLOW_VALID),
    }
    return _record(abi.FLOW_ENTRY, {"tag": ("tag", 0, 64), "value": ("value", 0, 64), **value})


def _service_record() -> RecordLayout:
    tables = {
        f"{name}_{part}": (word, shift, bits)
        for name, word in (("table", "table"), ("previous", "previous"))
        for part, shift, bits in (("line", 0, 32), ("log2", abi.TABLE_LOG2_SHIFT, 8))
    }
    return _record(
        abi.SERVICE,
        tables
        | {
            "identity": ("identity", 0, 64),
            "base": ("backends", 0, 32),
            "room": ("backends", abi.BACKEND_ROOM_SHIFT, 32),
            "sticky": _flag("flags", abi.SERVICE_STICKY),
            "least_conns": _flag("flags", abi.SERVICE_LEAST_CONNS),
            "by_flow": _flag("flags", abi.SERVICE_BY_FLOW),
        },
    )


def _backend_record() -> RecordLayout:
    flags = {
        "up": abi.BACKEND_UP,
        "reachable": abi.BACKEND_REACHABLE,
        "set_tags": abi.BACKEND_SET_TAGS,
        "on_link": abi.BACKEND_ON_LINK,
        "resting": abi.BACKEND_RESTING,
    }
    record = _record(
        abi.BACKEND,
        {
            "identity": ("identity", 0, 64),
            "mac": ("link", 0, 48),
            "ifindex": ("place", 0, 32),
            "vlan": ("place", 32, 16),
            "svlan": ("place", 48, 16),
            "mode": ("how", 0, 7),
            "outer6": _flag("how", abi.MODE_OUTER6),
            "dscp": ("how", 8, 8),
            "port": ("how", 16, 16),
            "mtu": ("how", 32, 16),
            "load": ("how", 48, 16),
            **{name: _flag("link", mask, 48) for name, mask in flags.items()},
        },
    )
    halves = {}
    for name in ("source", "destination"):
        offset, _ = _whole(abi.BACKEND, name)
        halves[f"{name}_low"] = Field(offset, 8, 0, 64)
        halves[f"{name}_high"] = Field(offset + 8, 8, 0, 64)
    return replace(record, fields={**record.fields, **halves})


def own(tick_shift: int) -> Layout:
    """Of the maps that this version makes."""
    counts = _record(abi.BACKEND_COUNT, {"packets": ("packets", 0, 64), "bytes": ("bytes", 0, 64)})
    verdicts = {verdict.name: Field(8 * verdict.number, 8, 0, 64) for verdict in abi.verdicts()}
    slot = {"local": Field(0, 2, 0, 15), "unstable": Field(0, 2, *_flag("", abi.SLOT_UNSTABLE)[1:])}
    maps = {
        "flows": _flow_record(),
        "services": _service_record(),
        "backends": _backend_record(),
        "slots": RecordLayout(2, slot),
        "backend_counts": counts,
        "verdict_counts": RecordLayout(abi.VERDICT_COUNTS.itemsize, verdicts),
    }
    return Layout(
        abi.layout_hash(),
        maps,
        abi.FLOW_WAYS,
        flows.SET_SHIFTS,
        abi.SLOTS_PER_LINE,
        abi.SLOT_NONE,
        {state.name.lower(): int(state) for state in abi.FlowState},
        {str(mode): number for mode, number in abi.MODES.items()},
        tick_shift,
    )


# Files


def path_of(state_dir: Path, name: str) -> Path:
    """Where the description of the layout of that name is."""
    return state_dir / f"{_PREFIX}{name}.json"


def write(state_dir: Path, layout: Layout) -> None:
    """Whole or not at all."""
    path = path_of(state_dir, layout.name)
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps({"format": FORMAT, **asdict(layout)}) + "\n", encoding="utf-8")
    fresh.replace(path)


def read(state_dir: Path, name: str) -> Layout | None:
    """The description of a layout; None where there is none that this version understands."""
    try:
        document = json.loads(path_of(state_dir, name).read_text(encoding="utf-8"))
        return _layout(document) if document["format"] == FORMAT and document["name"] == name else None
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def remove_all_but(state_dir: Path, name: str) -> None:
    """Of maps that are gone."""
    for path in state_dir.glob(f"{_PREFIX}*"):
        if path != path_of(state_dir, name):
            path.unlink()


def _layout(document: Mapping[str, Any]) -> Layout:
    """Raises ValueError, TypeError or KeyError where something is missing, or isn't what it should be."""
    return Layout(
        str(document["name"]),
        {name: _record_of(document["maps"][name]) for name in _MAPS},
        int(document["ways"]),
        tuple(int(shift) for shift in document["set_shifts"]),
        int(document["slots_per_line"]),
        int(document["slot_none"]),
        {str(name): int(number) for name, number in document["states"].items()},
        {str(name): int(number) for name, number in document["modes"].items()},
        int(document["tick_shift"]),
        {int(number): str(check) for number, check in document["keys"].items()},
    )


def _record_of(document: Mapping[str, Any]) -> RecordLayout:
    fields = {str(name): _field_of(**words) for name, words in document["fields"].items()}
    record = RecordLayout(int(document["bytes"]), fields)
    if any(f.offset + f.size > record.bytes for f in fields.values()):
        raise ValueError("a field beyond its record")
    return record


def _field_of(offset: int, size: int, shift: int, bits: int) -> Field:
    if size not in (1, 2, 4, 8) or offset < 0 or shift < 0 or not 0 < bits <= 8 * size - shift:
        raise ValueError("no such bits")
    return Field(offset, size, shift, bits)
