"""Reading the rings of changed flows where their heads are not what one writer would leave."""

from __future__ import annotations

import numpy as np
import pytest

from tests.unit.test_stability_model import array_maps
from vc5py.dataplane import abi
from vc5py.dataplane.export import Exporter
from vc5py.dataplane.names import Names
from vc5py.dataplane.ticks import TickClock

RING = 64


@pytest.mark.parametrize(("written", "missed"), [(101, 99), (200, 0), (210, 0), (264, 0), (274, 10)])
def test_count_that_falls_is_missed_and_read_on_from(written: int, missed: int) -> None:
    """As where two CPUs share a ring and the slower one stores its own count over the other's."""
    maps = array_maps()
    maps.flow_log_heads = np.zeros(maps.sizes.cpus, abi.FLOW_LOG_HEAD)
    maps.flow_log = np.zeros((maps.sizes.cpus, RING), abi.FLOW_ENTRY)
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
