"""Carries what an earlier run's maps hold into new ones, from another layout or into another size.

Services and backends keep their places and Maglev tables their slots, so that what is stable stays stable,
and flows that aren't recorded stay where they are; `KernelDataplane` then adopts the new maps as after any
restart. Flows and counters are carried over once, and what has changed since then again and again (`follow`),
the last time when the old program is off. Knows the old maps by their description alone (layouts.py).

Invariant: the old maps are only read. A flow's entry is taken over where its backend is one of the new maps',
by the stable identity of both.
"""

from __future__ import annotations

import mmap
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vc5py.dataplane import abi, flows, libbpf
from vc5py.dataplane.layouts import Field, Layout, own
from vc5py.dataplane.maps import Maps, Sizes
from vc5py.dataplane.ticks import TickClock

_Words = NDArray[np.uint64]
_Rows = NDArray[np.int64]

_PIECE = 1 << 16  # flow entries that are looked at in one go: what is computed of them stays in the cache
_MAX_AGE = 0x7FFF  # ticks: no timeout is longer
_SLACK = 16  # CLOCK_SLACK in xdp/flow.h
_NOBODY = np.int64(-1)
_MAX_LOG2 = 16  # of a table's slots: a slot is taken from 16 bits of the hash


class Source:
    """The maps of an earlier run, through their description. `fds`: their file descriptors, by name."""

    def __init__(self, fds: Mapping[str, int], layout: Layout) -> None:
        self.layout = layout
        self._memory = {name: _mapped(fd) for name, fd in fds.items() if name in layout.maps}
        self.cpus = self.count("verdict_counts")

    def count(self, name: str) -> int:
        """How many records a map has room for."""
        return len(self._memory[name]) // self.layout.maps[name].bytes

    def words(self, name: str, field: Field) -> NDArray[Any]:
        """The words that have a field, in the shared memory itself."""
        return np.ndarray(
            (self.count(name),),
            dtype=f"<u{field.size}",
            buffer=self._memory[name],
            offset=field.offset,
            strides=(self.layout.maps[name].bytes,),
        )

    def read(self, name: str, field: str) -> _Words:
        """A field of all records; 0 where the layout has no such field."""
        known = self.layout.maps[name].fields.get(field)
        if known is None:
            return np.zeros(self.count(name), dtype=np.uint64)
        return known.read(self.words(name, known))

    def sizes(self, wanted: Sizes) -> Sizes:
        """Those wanted, but room for all that there is in anything that indices point into."""
        lines = -(-self.count("slots") // abi.SLOTS_PER_LINE)
        there = Sizes(
            flow_sets=1,
            services=min(self.count("services"), abi.MAX_SERVICES),
            backends=min(self.count("backends"), abi.MAX_BACKENDS),
            slot_lines=lines,
            service_sets4=1,
            service_sets6=1,
            cpus=wanted.cpus,
            interfaces=1,
        )
        return wanted.at_least(there)


def _mapped(fd: int) -> NDArray[np.uint8]:
    info = libbpf.map_info(fd)
    size = (info.value_size + 7 & ~7) * info.max_entries
    pages = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
    memory = mmap.mmap(fd, pages, prot=mmap.PROT_READ)
    return np.frombuffer(memory, dtype=np.uint8, count=size)


# Services, backends and tables


def structure(source: Source, new: Maps) -> None:
    """Everything but flows and counters into (empty) new maps."""
    _copy_slots(source, new)
    _copy_backends(source, new)
    _copy_services(source, new)


def _fitting(source: Source, sizes: Sizes) -> _Rows:
    """The indices of the services that there is a place for."""
    base, room = (source.read("services", name).astype(np.int64) for name in ("base", "room"))
    fits = (source.read("services", "identity") != 0) & (base + room <= sizes.backends)
    fits &= (room <= abi.MAX_REALS_PER_SERVICE + 1) & (np.arange(len(fits)) < sizes.services)
    return np.flatnonzero(fits)


def _copy_services(source: Source, new: Maps) -> None:
    at = _fitting(source, new.sizes)
    read = {name: source.read("services", name)[at] for name in source.layout.maps["services"].fields}
    nothing = np.zeros(len(at), dtype=np.uint64)
    flags = nothing.copy()
    for name, mask in (
        ("sticky", abi.SERVICE_STICKY),
        ("least_conns", abi.SERVICE_LEAST_CONNS),
        ("by_flow", abi.SERVICE_BY_FLOW),
    ):
        flags |= read.get(name, nothing) * np.uint64(mask)
    new.services["flags"][at] = flags
    new.services["backends"][at] = read["base"] | read["room"] << np.uint64(abi.BACKEND_ROOM_SHIFT)
    for name in ("table", "previous"):
        new.services[name][at] = _table_words(source, new, read[f"{name}_line"], read[f"{name}_log2"])
    new.services["identity"][at] = read["identity"]


def _table_words(source: Source, new: Maps, line: _Words, log2: _Words) -> _Words:
    """Where tables are in the new arena: at the same slots; 0, none, for one that can't be there."""
    log2 = np.minimum(log2, np.uint64(_MAX_LOG2 + 1))
    first = line * np.uint64(source.layout.slots_per_line)
    fits = (line != 0) & (first % np.uint64(abi.SLOTS_PER_LINE) == 0) & (log2 <= _MAX_LOG2)
    fits &= first + (np.uint64(1) << log2) <= np.uint64(new.slots.size)
    words = first // np.uint64(abi.SLOTS_PER_LINE) | log2 << np.uint64(abi.TABLE_LOG2_SHIFT)
    return np.where(fits, words, np.uint64(0))


def _copy_slots(source: Source, new: Maps) -> None:
    local, unstable = source.read("slots", "local"), source.read("slots", "unstable")
    none = (local == source.layout.slot_none) | (local >= abi.SLOT_NONE)
    slots = np.where(none, np.uint64(abi.SLOT_NONE), local) | unstable * np.uint64(abi.SLOT_UNSTABLE)
    flat = new.slots.reshape(-1)
    flat[: len(slots)] = slots[: len(flat)]


def _copy_backends(source: Source, new: Maps) -> None:
    count = min(source.count("backends"), new.sizes.backends)

    def read(name: str) -> _Words:
        return source.read("backends", name)[:count]

    flags = np.zeros(count, dtype=np.uint64)
    for name, mask in BACKEND_FLAGS.items():
        flags |= read(name) * np.uint64(mask)
    records = new.backends[:count]
    records["identity"] = read("identity")
    records["place"] = read("ifindex") | read("vlan") << np.uint64(32) | read("svlan") << np.uint64(48)
    records["how"] = (
        _modes(source.layout)[read("mode").astype(np.uint8)]
        | read("outer6") * np.uint64(abi.MODE_OUTER6)
        | read("dscp") << np.uint64(8)
        | read("port") << np.uint64(16)
        | read("mtu") << np.uint64(32)
        | read("load") << np.uint64(48)
    )
    for name in ("source", "destination"):
        halves = np.stack([read(f"{name}_low"), read(f"{name}_high")], axis=1).astype("<u8")
        records[name] = halves.reshape(-1).view("S16")
    records["link"] = read("mac") | flags << np.uint64(48)


BACKEND_FLAGS = {
    "up": abi.BACKEND_UP,
    "reachable": abi.BACKEND_REACHABLE,
    "set_tags": abi.BACKEND_SET_TAGS,
    "on_link": abi.BACKEND_ON_LINK,
    "resting": abi.BACKEND_RESTING,
}


def _modes(layout: Layout) -> _Words:
    """Our number of each mode, by theirs."""
    ours = {str(mode): number for mode, number in abi.MODES.items()}
    numbers = np.zeros(256, dtype=np.uint64)
    for name, number in layout.modes.items():
        numbers[number & 0xFF] = ours.get(name, 0)
    return numbers


# Whose flows they are


class Places:
    """The backends of some maps, one row each: who it is, and where its flows' entries say they belong."""

    def __init__(self, source: Source) -> None:
        at = np.flatnonzero(source.read("services", "identity"))
        base, room = (source.read("services", name)[at].astype(np.int64) for name in ("base", "room"))
        total, fields = source.count("backends"), source.layout.maps["flows"].fields
        room = np.minimum(room, 1 << fields["local"].bits)
        first = np.cumsum(room) - room
        self._first = np.zeros(1 << fields["service"].bits, dtype=np.int64)
        self._room = np.zeros(1 << fields["service"].bits, dtype=np.int64)
        self._first[at], self._room[at] = first, room
        local = np.arange(int(room.sum())) - np.repeat(first, room)
        self.records = np.minimum(np.repeat(base, room) + local, total - 1)
        usable = source.read("backends", "resting") == 0
        self.identities = source.read("backends", "identity")[self.records] * usable[self.records]
        self.services, self.locals = np.repeat(at, room), local

    def rows(self, service: _Words, local: _Words) -> _Rows:
        """-1 where there is no such backend."""
        index, number = service.astype(np.int64), local.astype(np.int64)
        return np.where(number < self._room[index], self._first[index] + number, _NOBODY)

    def same_as(self, other: Places) -> _Rows:
        """For each of our rows that of the same backend there, or -1."""
        order = np.argsort(other.identities, kind="stable")
        names = other.identities[order]
        at = np.minimum(np.searchsorted(names, self.identities), max(0, len(names) - 1))
        if not len(names):
            return np.full(len(self.identities), _NOBODY)
        found = (names[at] == self.identities) & (self.identities != 0)
        return np.where(found, order[at], _NOBODY)


# Flows and counters


@dataclass(frozen=True, slots=True)
class Carried:
    """How many flows were carried over, how many have no backend here, how many found no room."""

    flows: int
    without_backend: int
    without_room: int


def folded(rows: _Words, cpus: int) -> _Words:
    """Counts by their CPUs as counts by ours, of which there may be fewer: the sums are the same."""
    out = np.zeros((min(len(rows), cpus), *rows.shape[1:]), dtype=np.uint64)
    for start in range(0, len(rows), cpus):
        part = rows[start : start + cpus]
        out[: len(part)] += part
    return out


class Carrier:
    """Carries flows and counters from old maps into new ones, whose structure has been copied already.

    `source` None of flows: these are named by another key, so that only counters can be carried over.
    """

    def __init__(self, source: Source, new: Maps, ticks: TickClock, *, with_flows: bool) -> None:
        self._source = source
        self._new = new
        self._ticks = ticks
        self._with_flows = with_flows
        self._ours = Source(new.fds, own(ticks.shift))
        self._old_places = Places(source)
        fields = source.layout.maps["flows"].fields
        self._fields = fields
        self._tags = source.words("flows", fields["tag"])
        self._values = source.words("flows", fields["value"])
        self._seen = np.zeros(len(self._tags) if with_flows else 0, dtype=np.uint64)
        self._of_row = np.zeros(
            len(self._old_places.records) + 1, dtype=np.int64
        )  # flows; the last: nobody's
        self._lost = 0
        self._counted = [np.zeros(0, dtype=np.uint64)] * 2
        self._verdicts = np.zeros((source.cpus, abi.VERDICT_SLOTS), dtype=np.uint64)
        self._states = np.zeros(1 << fields["state"].bits, dtype=np.uint64)
        for state in abi.FlowState:
            number = source.layout.states.get(state.name.lower())
            if number is not None:
                self._states[number] = state

    def begin(self) -> None:
        """All flows and counters, into maps that have none."""
        self._look_again()
        if self._with_flows:
            for start in range(0, len(self._tags), _PIECE):
                self._carry_piece(start)
        self._add_counters()

    def join(self) -> None:
        """All flows, into maps that have most of them already. They have the counters too, as those were when
        they were made: what is counted from now on is added.
        """
        self._look_again()
        if self._with_flows:
            for start in range(0, len(self._tags), _PIECE):
                self._carry_piece(start, among_others=True)
        self._counted = [self._source.read("backend_counts", name) for name in ("packets", "bytes")]
        for verdict in abi.verdicts():
            self._verdicts[:, verdict.number] = self._source.read("verdict_counts", verdict.name)

    def follow(self) -> int:
        """What has changed since the last time; returns how many flows that was."""
        changed = 0
        self._look_again()
        for start in range(0, len(self._seen), _PIECE):
            part = slice(start, start + _PIECE)
            at = np.flatnonzero(self._tags[part] != self._seen[part])
            if len(at):
                changed += self._merge(start + at)
        self._add_counters()
        return changed

    def carried(self) -> Carried:
        """As of now: by which backends there are at present."""
        self._look_again()
        here = np.append(self._new_rows, _NOBODY) >= 0
        total = int(self._of_row[here].sum())
        return Carried(total - self._lost, int(self._of_row[~here].sum()), self._lost)

    def _look_again(self) -> None:
        """Which backends there are here, and where."""
        places = Places(self._ours)
        self._new_rows = self._old_places.same_as(places)
        owners = places.services << abi.FLOW_SERVICE_SHIFT | places.locals
        self._owners = np.append(owners, 0)[self._new_rows].astype(np.uint64)
        self._records = np.append(places.records, 0)[self._new_rows]

    # Flows

    def _take(self, at: _Rows | slice) -> tuple[_Words, _Words]:
        """Entries' tags and values, as they are now; what is seen of them is seen."""
        tags, values = self._tags[at].copy(), self._values[at].copy()
        self._seen[at] = tags
        return tags, values

    def _carry_piece(self, start: int, *, among_others: bool = False) -> None:
        part = slice(start, start + _PIECE)
        tags, values = self._take(part)
        at, hashes, ours = self._translate(start + np.arange(len(tags)), tags, values)
        layout, table = self._source.layout, self._new.flows
        if (
            not among_others
            and layout.ways == abi.FLOW_WAYS
            and layout.set_shifts == flows.SET_SHIFTS
            and (len(self._tags) == table.size)
        ):
            flat = table.reshape(-1)
            flat["value"][at], flat["tag"][at] = ours, ours ^ hashes
        else:
            self._lost += self._merged(hashes, ours)[1]

    def _merge(self, at: _Rows) -> int:
        _, hashes, values = self._translate(at, *self._take(at), count=False)
        self._lost += self._merged(hashes, values)[1]
        return len(hashes)

    def _merged(self, hashes: _Words, values: _Words) -> tuple[int, int]:
        timeouts = self._new.settings["timeout"][0]
        return flows.merge(self._new.flows, hashes, values, timeouts, self._ticks.now())

    def _translate(
        self, at: _Rows, tags: _Words, values: _Words, *, count: bool = True
    ) -> tuple[_Rows, _Words, _Words]:
        """Of entries those that are valid and have a backend here: places, hashes, and values as ours are."""
        hashes = tags ^ values
        used = (self._fields["valid"].read(values) != 0) & self._is_there(at, hashes)
        at, hashes, values = at[used], hashes[used], values[used]
        read = {name: self._fields[name].read(values) for name in ("service", "local", "state", "tick")}
        rows = self._old_places.rows(read["service"], read["local"])
        if count:
            self._of_row += np.bincount(
                np.where(rows < 0, len(self._of_row) - 1, rows), minlength=len(self._of_row)
            )
        known = (rows >= 0) & (np.append(self._new_rows, _NOBODY)[rows] >= 0)
        ours = (
            np.uint64(abi.FLOW_VALID)
            | self._tick(read["tick"][known]) << np.uint64(abi.FLOW_TICK_SHIFT)
            | self._states[read["state"][known]] << np.uint64(abi.FLOW_STATE_SHIFT)
            | self._owners[rows[known]]
        )
        if "learned" in self._fields:
            ours |= self._fields["learned"].read(values[known]) * np.uint64(abi.FLOW_LEARNED)
        return at[known], hashes[known], ours

    def _is_there(self, at: _Rows, hashes: _Words) -> NDArray[np.bool_]:
        """Whether a flow is where it is looked for: else the entry is being written at this moment."""
        sets = np.uint64(len(self._tags) // self._source.layout.ways - 1)
        own_set = (at // self._source.layout.ways).astype(np.uint64)
        there = np.zeros(len(at), dtype=bool)
        for shift in self._source.layout.set_shifts:
            there |= hashes >> np.uint64(shift) & sets == own_set
        return there

    def _tick(self, theirs: _Words) -> _Words:
        """Our tick of when a flow was last seen."""
        bits, shift = self._fields["tick"].bits, self._source.layout.tick_shift
        jiffies = (time.clock_gettime(time.CLOCK_MONOTONIC) - self._ticks.epoch_s) * self._ticks.hz
        wrap = (1 << bits) - 1
        age = (np.uint64(int(jiffies) >> shift & wrap) - theirs) & np.uint64(wrap)
        age[age > wrap - _SLACK] = 0
        ours = np.minimum(age << np.uint64(shift) >> np.uint64(self._ticks.shift), np.uint64(_MAX_AGE))
        tick: _Words = (np.uint64(self._ticks.now()) - ours) & np.uint64((1 << abi.FLOW_TICK_BITS) - 1)
        return tick

    # Counters

    def _add_counters(self) -> None:
        """What has been counted since the last time, to whoever counts here. The program that is running may
        count at the same moment: only what isn't 0 is added, in one go.
        """
        known = np.flatnonzero(self._new_rows >= 0)
        for number, name in enumerate(("packets", "bytes")):
            counts = self._source.read("backend_counts", name)
            before = self._counted[number] if len(self._counted[number]) else np.zeros_like(counts)
            gained = folded((counts - before).reshape(self._source.cpus, -1), self._new.sizes.cpus)
            gained = gained[:, self._old_places.records[known]]
            self._counted[number] = counts
            cpu, at = np.nonzero(gained)
            self._new.backend_counts[name][cpu, self._records[known][at]] += gained[cpu, at]
        self._add_verdicts()

    def _add_verdicts(self) -> None:
        for verdict in abi.verdicts():
            counts = self._source.read("verdict_counts", verdict.name)
            gained = counts - self._verdicts[:, verdict.number]
            self._verdicts[:, verdict.number] = counts
            gained = folded(gained, self._new.sizes.cpus)
            (cpu,) = np.nonzero(gained)
            self._new.verdict_counts[cpu, verdict.number] += gained[cpu]
