"""How much memory the maps take: what the configuration needs, not what the limits allow."""

from __future__ import annotations

import pytest

from tests.bench.memory import configurations, memory_of, print_report, sizes_of
from tests.bench.scale import Scale, text_of
from vc5py import config
from vc5py.dataplane import abi, maps
from vc5py.dataplane.tables import lines_for, lines_of_arena
from vc5py.limits import MAX_BACKENDS, MAX_VIRTUAL_SERVICES
from vc5py.model import Config

LINE_BYTES = abi.SLOT_LINE.itemsize
SMALL = ("smallest", "example")


def parsed(services: int, reals: int, distinct: int) -> Config:
    return config.parse(text_of(Scale(services, reals, distinct), distinct), "memory.yaml")


@pytest.mark.parametrize(("name", "loaded"), [one for one in configurations() if one[0] in SMALL])
def test_a_small_configuration_takes_little_but_for_the_flows(name: str, loaded: Config) -> None:
    memory = memory_of(name, loaded)
    assert memory.maps["flows"] == 16 * loaded.flows
    shared = memory.maps["flow_log"] + memory.maps["learn_batch"]
    assert (shared > 1024) == (loaded.cluster is not None), "nothing for sharing where nothing is shared"
    assert memory.total - memory.maps["flows"] - shared < 256 * 1024 + 8 * 1024 * maps.running_cpus()


@pytest.mark.parametrize(("services", "reals"), [(100, 10), (1000, 2), (3, 1000)])
def test_memory_is_in_proportion_to_the_configuration(services: int, reals: int) -> None:
    memory = memory_of("", parsed(services, reals, 3000))
    table = lines_for(reals) * LINE_BYTES
    assert memory.maps["slots"] <= max(128 * 1024, (4 * services + 3) * table)
    room = 3 * services * max(4, 1 << (reals - 1).bit_length())
    assert memory.maps["backends"] <= max(256, room) * abi.BACKEND.itemsize
    assert memory.maps["services"] <= 2 * max(32, services) * abi.SERVICE.itemsize


def test_twice_as_many_services_take_twice_as_much() -> None:
    small, large = (memory_of("", parsed(n, 50, 3000)) for n in (100, 200))
    for name in ("slots", "backends", "backend_counts", "services"):
        assert large.maps[name] < 2.01 * small.maps[name]


def test_room_for_the_old_and_the_new() -> None:
    assert lines_of_arena([]) == 1
    assert lines_of_arena([8]) == 1 + 4 * 8 + 2 * 8
    assert lines_of_arena([8, 64, 8]) == 1 + 4 * 80 + 2 * 64


def test_the_largest_configuration_is_within_what_indices_can_tell() -> None:
    sizes = sizes_of(parsed(MAX_VIRTUAL_SERVICES, MAX_BACKENDS // MAX_VIRTUAL_SERVICES, 32_768))
    assert 2 * MAX_VIRTUAL_SERVICES <= sizes.services <= abi.MAX_SERVICES
    assert 3 * MAX_BACKENDS <= sizes.backends <= abi.MAX_BACKENDS
    assert sizes.slot_lines < 1 << abi.TABLE_LOG2_SHIFT


def test_counters_are_for_the_cpus_that_run() -> None:
    cpus = maps.running_cpus()
    assert cpus & (cpus - 1) == 0
    memory = memory_of("", parsed(10, 10, 100))
    assert memory.maps["backend_counts"] == memory.maps["backends"] // 64 * 16 * cpus


def test_the_printed_table_has_every_map() -> None:
    lines: list[str] = []
    print_report([memory_of("one", parsed(1, 2, 2))], lines.append)
    assert {line.split()[0] for line in lines} >= {*maps.NAMES, "total"}
