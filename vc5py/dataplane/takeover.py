"""What an earlier run left, taken over: its maps as they are, or what they hold into new ones.

The steps of a start, in order: `open_maps` finds the maps that packets go by and adopts them, or makes new
ones and carries everything over; `prepare` comes right before the programs are attached, `follow` while they
are, and `finish` after that. Killed at any moment, the old maps are in charge or the new ones, or each of
them on some interfaces: the next start finds out, goes on with the newest, and takes flows from all. Knows
the order of these things; not how programs are attached.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
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
    """One generation of what is in charge. `layout`: its description, None where there is none that can be
    read. `same_key`: its flows have the names that they have here.
    """

    place: Path
    layout: Layout | None
    table: int
    same_key: bool

    @property
    def own(self) -> bool:
        return pins.is_own(self.place)

    @property
    def worth(self) -> tuple[bool, bool]:
        return self.own or self.layout is not None, self.same_key


class Takeover:
    """`maps` are those to use; `found` is what is in charge, the best first. `carrier` follows that one,
    unless it is adopted, and `others` follow the rest.
    """

    def __init__(
        self,
        found: Sequence[_Found],
        current: Maps,
        kind: StartKind,
        carrier: Carrier | None,
        own: _Own,
        others: Sequence[Carrier] = (),
    ) -> None:
        self.maps = current
        self.kind = kind
        self._found = found
        self._carrier = carrier
        self._others = others
        self._own = own
        self._pins = pins.Pins(own.bpf_dir, found[0].place if kind is StartKind.ADOPTED else None)

    def prepare(self) -> None:
        """The last step before programs are attached."""
        self._own.describe(self.maps, self._found)
        self._pins.prepare(self.maps, [found.place for found in self._found])
        self._follow_closely()

    def follow(self) -> int:
        """One more program has been exchanged; returns how many flows have changed in the old maps."""
        carriers = self._others if self._carrier is None else (self._carrier, *self._others)
        return sum(carrier.follow() for carrier in carriers)

    def finish(self, *, exchanged: bool) -> Start:
        """All programs are exchanged. `exchanged`: there were any."""
        self._follow_closely()
        carried = self._carrier.carried() if self._carrier is not None else None
        if self.kind not in (StartKind.ENLARGED, StartKind.LAYOUT):
            carried = None
        for other in self._others:
            _log.info("maps of a killed run were in use too%s", _words_of(other.carried()))
        self._carrier, self._others = None, ()
        self._pins.commit()
        self._own.forget_others(self.maps)
        return Start(self.kind, exchanged, carried)

    def give_up(self) -> None:
        """No program of this run is attached."""
        self._pins.give_up()
        if not self._found:
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

    def describe(self, current: Maps, in_charge: Sequence[_Found]) -> None:
        """Says by which key our flows are named; of the maps that are still in charge that stays known."""
        if self.state_dir is not None:
            keys: dict[int, str] = {}
            for found in in_charge:
                keys |= found.layout.keys if found.own and found.layout is not None else {}
            keys[_id_of(current)] = self.check
            try:
                layouts.write(self.state_dir, replace(self.layout, keys=keys))
            except OSError as error:
                _log.warning("layout not described for other versions error=%s", error)

    def forget_others(self, current: Maps) -> None:
        if self.state_dir is not None:
            self.describe(current, ())
            layouts.remove_all_but(self.state_dir, self.layout.name)

    def forget(self) -> None:
        if self.state_dir is not None:
            layouts.path_of(self.state_dir, self.layout.name).unlink(missing_ok=True)


def _id_of(current: Maps) -> int:
    return libbpf.map_info(current.fds["flows"]).id


def _find(own: _Own, used: AbstractSet[int]) -> list[_Found]:
    def judged(place: Path, table: int) -> _Found:
        name = pins.layout_of(place)
        layout = layouts.read(own.state_dir, name) if own.state_dir is not None else None
        check = layout.keys.get(table) if layout is not None else None
        return _Found(place, layout, table, check in (None, own.check))

    places = pins.in_charge(own.bpf_dir, used, lambda place, table: judged(place, table).worth)
    tables = ((place, pins.flow_table_id(place)) for place in places)
    return [judged(place, table) for place, table in tables if table is not None]


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
    if not found:
        return Takeover(found, maps.create(wanted), StartKind.FIRST, None, own)
    best = found[0]
    if best.own:
        return _from_own(found, wanted, ticks, own)
    if best.layout is None:
        return Takeover(found, maps.create(wanted), StartKind.UNREADABLE, None, own)
    source = Source(_fds(best.place, best.layout), best.layout)
    current = maps.create(source.sizes(wanted))
    structure(source, current)
    return _carrying(found, source, current, StartKind.LAYOUT, ticks, own)


def _fds(place: Path, layout: Layout) -> dict[str, int]:
    return {name: libbpf.get_pinned(place / name) for name in layout.maps}


def _from_own(found: Sequence[_Found], wanted: Sizes, ticks: TickClock, own: _Own) -> Takeover:
    best = found[0]
    current, old = maps.open_or_create(own.bpf_dir, wanted, best.place, fresh=not best.same_key)
    if old is None:
        others = _joined(found[1:], current, ticks, own)
        return Takeover(found, current, StartKind.ADOPTED, None, own, others)
    for name in ("services", "backends", "slots"):
        source, target = getattr(old, name), getattr(current, name)
        target[: len(source)] = source
    for before, after in ((old.services4, current.services4), (old.services6, current.services6)):
        servicemap.carry_over(before, after)
    return _carrying(found, Source(old.fds, own.layout), current, StartKind.ENLARGED, ticks, own)


def _carrying(
    found: Sequence[_Found], source: Source, current: Maps, kind: StartKind, ticks: TickClock, own: _Own
) -> Takeover:
    best = found[0]
    carrier = Carrier(source, current, ticks, with_flows=best.same_key)
    carrier.begin()
    others = _joined(found[1:], current, ticks, own)
    return Takeover(found, current, kind if best.same_key else StartKind.KEY, carrier, own, others)


def _joined(found: Sequence[_Found], current: Maps, ticks: TickClock, own: _Own) -> list[Carrier]:
    """The flows of other generations added. What can't be read of them is left."""
    carriers = []
    for one in found:
        layout = own.layout if one.own else one.layout
        if layout is None or not pins.is_complete(one.place, layout.maps):
            continue
        carrier = Carrier(Source(_fds(one.place, layout), layout), current, ticks, with_flows=one.same_key)
        carrier.join()
        carriers.append(carrier)
    return carriers
