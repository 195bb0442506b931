"""What an earlier run left, taken over: its maps as they are, or what they hold into new ones.

The steps of a start, in order: `open_maps` finds the maps that packets go by and adopts them, or makes new
ones and carries everything over; `prepare` comes right before the programs are attached, `follow` while they
are, and `finish` after that. Killed at any moment, either the old maps are in charge or the new ones, and the
next start finds out which. Knows the order of these things; not how programs are attached.
"""

from __future__ import annotations

import logging
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from vc5py.core.flowhash import FlowKey
from vc5py.dataplane import layouts, libbpf, maps, pins, servicemap
from vc5py.dataplane.inherit import Carried, Carrier, Source, structure
from vc5py.dataplane.layouts import Layout
from vc5py.dataplane.maps import Maps, Sizes
from vc5py.dataplane.ticks import TickClock

_log = logging.getLogger(__name__)

_FOLLOWS = 4  # readings of the old table before and after the exchange, at most


class StartKind(StrEnum):
    """What became of what an earlier run had."""

    FIRST = "first"
    ADOPTED = "adopted"
    ENLARGED = "enlarged"
    LAYOUT = "layout"
    KEY = "key"
    UNREADABLE = "unreadable"


@dataclass(frozen=True, slots=True)
class Start:
    """`exchanged`: a program of an earlier run was attached. `carried`: where flows were carried over."""

    kind: StartKind
    exchanged: bool = False
    carried: Carried | None = None

    @property
    def whole(self) -> bool:
        """Whether no flow of an earlier run had to be left behind for what this one is."""
        return self.kind not in (StartKind.KEY, StartKind.UNREADABLE)

    def __str__(self) -> str:
        if self.kind is StartKind.ADOPTED:
            return f"adopted from an earlier run: {'program exchanged, ' if self.exchanged else ''}maps kept"
        first = "program exchanged, " if self.exchanged and self.kind is not StartKind.LAYOUT else ""
        return f"{first}{_WORDS[self.kind]}{_words_of(self.carried) if self.carried else ''}"


_WORDS = {
    StartKind.FIRST: "first start",
    StartKind.ENLARGED: "maps of another size",
    StartKind.LAYOUT: "layout changed",
    StartKind.KEY: "the flow hash key is another one: flows can't be carried over",
    StartKind.UNREADABLE: "layout changed, and no description of the old one: flows can't be carried over",
}


def _words_of(carried: Carried) -> str:
    full = f", {carried.without_room} without room" if carried.without_room else ""
    return f": {carried.flows} flows carried over, {carried.without_backend} without a backend here{full}"


@dataclass(frozen=True, slots=True)
class _Found:
    """What is in charge. `same_key`: its flows have the names that they have here."""

    place: Path
    layout: Layout | None
    table: int
    same_key: bool

    @property
    def own(self) -> bool:
        return pins.is_own(self.place)


class Takeover:
    """`maps` are those to use."""

    def __init__(
        self, found: _Found | None, current: Maps, kind: StartKind, carrier: Carrier | None, own: _Own
    ) -> None:
        self.maps = current
        self.kind = kind
        self._found = found
        self._carrier = carrier
        self._own = own
        adopted = kind is StartKind.ADOPTED and found is not None
        self._pins = pins.Pins(own.bpf_dir, found.place if adopted and found is not None else None)

    def prepare(self) -> None:
        """The last step before programs are attached."""
        self._own.describe(self.maps, self._found)
        self._pins.prepare(self.maps, self._found.place if self._found else None)
        self._follow_closely()

    def follow(self) -> int:
        """One more program has been exchanged; returns how many flows have changed in the old maps."""
        return self._carrier.follow() if self._carrier is not None else 0

    def finish(self, *, exchanged: bool) -> Start:
        """All programs are exchanged. `exchanged`: there were any."""
        self._follow_closely()
        carried = self._carrier.carried() if self._carrier is not None else None
        if self.kind not in (StartKind.ENLARGED, StartKind.LAYOUT):
            carried = None
        self._carrier = None
        self._pins.commit()
        self._own.forget_others(self.maps)
        return Start(self.kind, exchanged, carried)

    def give_up(self) -> None:
        """No program of this run is attached."""
        self._pins.give_up(self._found.place if self._found else None)
        if self._found is None:
            self._own.forget()

    def _follow_closely(self) -> None:
        for _ in range(_FOLLOWS):
            if not self.follow():
                break


@dataclass(frozen=True, slots=True)
class _Own:
    """What this version says of itself. `state_dir` None: nothing."""

    bpf_dir: Path
    state_dir: Path | None
    layout: Layout
    check: str

    def describe(self, current: Maps, found: _Found | None) -> None:
        """Says by which key our flows are named; of the maps that are still in charge that stays known."""
        if self.state_dir is not None:
            keys = {_id_of(current): self.check}
            if found is not None and found.own and found.layout is not None:
                keys = {**found.layout.keys, **keys}
            try:
                layouts.write(self.state_dir, replace(self.layout, keys=keys))
            except OSError as error:
                _log.warning("layout not described for other versions error=%s", error)

    def forget_others(self, current: Maps) -> None:
        if self.state_dir is not None:
            self.describe(current, None)
            layouts.remove_all_but(self.state_dir, self.layout.name)

    def forget(self) -> None:
        if self.state_dir is not None:
            layouts.path_of(self.state_dir, self.layout.name).unlink(missing_ok=True)


def _id_of(current: Maps) -> int:
    return libbpf.map_info(current.fds["flows"]).id


def _find(own: _Own, used: AbstractSet[int]) -> _Found | None:
    def read(name: str) -> Layout | None:
        return layouts.read(own.state_dir, name) if own.state_dir is not None else None

    place = pins.in_charge(own.bpf_dir, used, lambda name: read(name) is not None)
    table = pins.flow_table_id(place) if place is not None else None
    if place is None or table is None:
        return None
    layout = read(pins.layout_of(place))
    check = layout.keys.get(table) if layout is not None else None
    return _Found(place, layout, table, check in (None, own.check))


def open_maps(
    bpf_dir: Path,
    state_dir: Path | None,
    wanted: Sizes,
    flow_key: FlowKey,
    ticks: TickClock,
    used: AbstractSet[int],
) -> Takeover:
    """Maps to use, with what an earlier run had in its own; of these nothing is changed yet. `state_dir`:
    where descriptions are; `used`: the ids of the maps of programs that are attached.
    """
    own = _Own(bpf_dir, state_dir, layouts.own(ticks.shift), layouts.check_value(flow_key))
    maps.prepare_directory(bpf_dir)
    found = _find(own, used)
    if found is None:
        return Takeover(None, maps.create(wanted), StartKind.FIRST, None, own)
    if found.own:
        return _from_own(found, wanted, ticks, own)
    if found.layout is None:
        return Takeover(found, maps.create(wanted), StartKind.UNREADABLE, None, own)
    source = Source(_fds(found.place, found.layout), found.layout)
    current = maps.create(source.sizes(wanted))
    structure(source, current)
    return _carrying(found, source, current, StartKind.LAYOUT, ticks, own)


def _fds(place: Path, layout: Layout) -> dict[str, int]:
    return {name: libbpf.get_pinned(place / name) for name in layout.maps}


def _from_own(found: _Found, wanted: Sizes, ticks: TickClock, own: _Own) -> Takeover:
    current, old = maps.open_or_create(own.bpf_dir, wanted, found.place, fresh=not found.same_key)
    if old is None:
        return Takeover(found, current, StartKind.ADOPTED, None, own)
    for name in ("services", "backends", "slots"):
        source, target = getattr(old, name), getattr(current, name)
        target[: len(source)] = source
    for before, after in ((old.services4, current.services4), (old.services6, current.services6)):
        servicemap.carry_over(before, after)
    return _carrying(found, Source(old.fds, own.layout), current, StartKind.ENLARGED, ticks, own)


def _carrying(
    found: _Found, source: Source, current: Maps, kind: StartKind, ticks: TickClock, own: _Own
) -> Takeover:
    carrier = Carrier(source, current, ticks, with_flows=found.same_key)
    carrier.begin()
    return Takeover(found, current, kind if found.same_key else StartKind.KEY, carrier, own)
