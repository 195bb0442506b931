"""Reading the rings of changed flows where their heads are not what one writer would leave."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.unit.test_stability_model import array_maps
from vc5py.dataplane import abi
from vc5py.dataplane.export import Exporter, Walk
from vc5py.dataplane.maps import Maps
from vc5py.dataplane.names import Names
from vc5py.dataplane.ticks import TickClock

RING = 64


def ring_maps() -> Maps:
    """One service with one backend, and empty rings."""
    maps = array_maps()
    maps.flow_log_heads = np.zeros(maps.sizes.cpus, abi.FLOW_LOG_HEAD)
    maps.flow_log = np.zeros((maps.sizes.cpus, RING), abi.FLOW_ENTRY)
    maps.services["identity"][0] = 1
    maps.services["backends"][0] = 1 << abi.BACKEND_ROOM_SHIFT
    maps.backends["identity"][0] = 77
    return maps


@pytest.mark.parametrize(("written", "missed"), [(101, 99), (200, 0), (210, 0), (264, 0), (274, 10)])
def test_count_that_falls_is_missed_and_read_on_from(written: int, missed: int) -> None:
    """As where two CPUs share a ring and the slower one stores its own count over the other's."""
    maps = ring_maps()
    exporter = Exporter(maps, Names(maps), TickClock(250))
    heads = maps.flow_log_heads
    heads["written"][0], heads["read"][0] = written, 200
    exporter.changed(1 << 10)
    assert exporter.missed == missed
    assert int(heads["read"][0]) == written
    heads["written"][0] += 5
    exporter.changed(1 << 10)
    assert exporter.missed == missed
    assert int(heads["read"][0]) == written + 5


class _Overtaken:
    """The head of a ring whose writer goes on while it is read: `written` at each look."""

    def __init__(self, *written: int) -> None:
        self.written, self.read = list(written), 0

    def __getitem__(self, name: Any) -> Any:
        if isinstance(name, slice):
            return self
        return [self.written.pop(0)] if name == "written" else [self.read]

    def __setitem__(self, name: str, value: int) -> None:
        self.read = value


@pytest.mark.parametrize(("later", "missed"), [(RING, 0), (RING + 3, 3), (10 * RING, RING)])
def test_what_is_written_over_while_it_is_read_is_missed_and_not_told(later: int, missed: int) -> None:
    maps = ring_maps()
    maps.flow_log["value"][:] = abi.FLOW_VALID
    maps.flow_log["tag"][0] = np.arange(RING, dtype=np.uint64) ^ np.uint64(abi.FLOW_VALID)
    exporter = Exporter(maps, Names(maps), TickClock(250))
    maps.sizes = replace(maps.sizes, cpus=1)
    maps.flow_log_heads = _Overtaken(RING, later)  # type: ignore[assignment]
    assert exporter.changed(1 << 10)["hash"].tolist() == list(range(missed, RING))
    assert exporter.missed == missed


def test_an_age_beyond_what_can_be_told_is_the_greatest() -> None:
    """As of an entry in a ring that nothing was written to for most of a day."""
    maps, clock = ring_maps(), TickClock(100)
    tick = clock.now() - 60_000 & 0xFFFF
    value = abi.FLOW_VALID | tick << abi.FLOW_TICK_SHIFT
    maps.flow_log[0, 0] = (5 ^ value, value)
    maps.flow_log_heads["written"][0] = 1
    [record] = Exporter(maps, Names(maps), clock).changed(10)
    assert (int(record["hash"]), int(record["age"])) == (5, 0xFFFF)


def test_time_that_stood_still_is_not_made_up_for_at_once() -> None:
    maps = ring_maps()
    walk = Walk(Exporter(maps, Names(maps), TickClock(250)), maps.sizes.flow_sets)
    walk.advance(100.0, 8)
    walk.advance(0.0, 8)
    assert walk._next == 8


def test_backends_with_the_same_name_are_counted_and_nobody_learns_of_them() -> None:
    maps = ring_maps()
    maps.services["backends"][0] = 4 << abi.BACKEND_ROOM_SHIFT
    maps.backends["identity"][:4] = 77, 1 << 32 | 77, 78, 2 << 32 | 79
    names = Names(maps)
    owners, known = names.owners(np.array([77, 78, 79, 80], np.uint32))
    assert names.ambiguous == 2
    assert known.tolist() == [False, True, True, False]
    assert owners[known].tolist() == [2, 3]
