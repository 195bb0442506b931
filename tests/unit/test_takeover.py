"""Maps of several killed runs: which ones are gone on with, and what is taken from the others."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.unit.starts import CLOCK, DESIRED, begin_flow, recorded
from vc5py.core.flowhash import FlowKey
from vc5py.dataplane import abi, libbpf, maps, pins
from vc5py.dataplane.kernel import KernelDataplane
from vc5py.dataplane.maps import Maps, Sizes
from vc5py.dataplane.takeover import StartKind, Takeover, open_maps
from vc5py.errors import DataplaneError

SMALL = Sizes(64, 64, 256, 64, 64, 64, maps.running_cpus(), 64)
LARGE = replace(SMALL, flow_sets=128)
KEY, OTHER_KEY = FlowKey.derive(b"a secret"), FlowKey.derive(b"another one")


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    for name in ("bpf", "state"):
        (tmp_path / name).mkdir()
    subprocess.run(["mount", "-t", "bpf", "bpf", str(tmp_path / "bpf")], check=True)
    yield tmp_path
    subprocess.run(["umount", "--lazy", str(tmp_path / "bpf")], check=True)


class Runs:
    """Runs that are killed before they have all to themselves."""

    def __init__(self, place: Path) -> None:
        self.bpf_dir, self.state_dir = place / "bpf" / "vc5py", place / "state"

    def open(self, sizes: Sizes, *used: Maps, key: FlowKey = KEY) -> Takeover:
        """`used`: what packets go by."""
        ids = frozenset(libbpf.map_info(one.fds["flows"]).id for one in used)
        return open_maps(self.bpf_dir, self.state_dir, sizes, key, CLOCK, ids)

    def start(self, sizes: Sizes, *used: Maps, key: FlowKey = KEY) -> Maps:
        """As far as its programs are attached."""
        takeover = self.open(sizes, *used, key=key)
        KernelDataplane(takeover.maps, CLOCK).apply(DESIRED)
        takeover.prepare()
        return takeover.maps

    def left(self) -> int:
        return len(list(self.bpf_dir.iterdir()))


@pytest.fixture
def runs(place: Path) -> Runs:
    return Runs(place)


def test_the_newest_of_what_is_in_use_is_gone_on_with_and_has_the_flows_of_all(runs: Runs) -> None:
    old = runs.start(SMALL)
    first = begin_flow(old.flows, 5)
    new = runs.start(LARGE, old)
    there = {first, begin_flow(old.flows, 6), begin_flow(new.flows, 7)}
    takeover = runs.open(LARGE, old, new)
    assert (takeover.kind, recorded(takeover.maps.flows)) == (StartKind.ADOPTED, there)
    late = {begin_flow(old.flows, 8), begin_flow(new.flows, 9)}
    takeover.prepare()
    takeover.finish(exchanged=True)
    assert recorded(takeover.maps.flows) == there | late
    assert [path.name for path in runs.bpf_dir.iterdir()] == [abi.layout_hash()]


def test_flows_that_were_in_the_same_place_get_one_each(runs: Runs) -> None:
    old = runs.start(LARGE)
    new = runs.start(SMALL, old)
    assert begin_flow(old.flows, 5) and begin_flow(new.flows, 5 + LARGE.flow_sets)
    takeover = runs.open(replace(LARGE, services=128), old, new)
    assert takeover.kind is StartKind.ENLARGED
    assert recorded(takeover.maps.flows) == {5, 5 + LARGE.flow_sets}


def test_what_was_in_use_until_the_last_moment_is_read_too(runs: Runs) -> None:
    """All programs were exchanged, and that was not followed any more."""
    old = runs.start(SMALL)
    new = runs.start(LARGE, old)
    flow = begin_flow(old.flows, 5)
    takeover = runs.open(LARGE, new)
    assert (takeover.kind, recorded(takeover.maps.flows)) == (StartKind.ADOPTED, {flow})


def test_what_never_was_in_use_is_neither_read_nor_kept(runs: Runs) -> None:
    old = runs.start(SMALL)
    begin_flow(runs.start(LARGE, old).flows, 5)
    assert runs.left() == 2
    takeover = runs.open(LARGE, old)
    assert recorded(takeover.maps.flows) == set()
    takeover.prepare()
    assert runs.left() == 2


def test_counters_of_all_go_on(runs: Runs) -> None:
    """What both have counted counts once."""
    old = runs.start(SMALL)
    old.backend_counts["packets"][0, 0] = old.verdict_counts[0, 1] = 100
    new = runs.start(LARGE, old)
    new.backend_counts["packets"][0, 0] += np.uint64(10)
    takeover = runs.open(LARGE, old, new)
    old.backend_counts["packets"][0, 0] += np.uint64(1)
    old.verdict_counts[0, 1] += np.uint64(1)
    takeover.prepare()
    assert takeover.maps.backend_counts["packets"].sum() == 111
    assert takeover.maps.verdict_counts[:, 1].sum() == 101


def test_maps_whose_flows_are_named_by_our_key_come_first(runs: Runs) -> None:
    old = runs.start(SMALL)
    flow = begin_flow(old.flows, 5)
    new = runs.start(SMALL, old, key=OTHER_KEY)
    begin_flow(new.flows, 6)
    takeover = runs.open(SMALL, old, new)
    assert (takeover.kind, recorded(takeover.maps.flows)) == (StartKind.ADOPTED, {flow})
    assert runs.open(SMALL, old, new, key=OTHER_KEY).kind is StartKind.ADOPTED
    assert runs.open(SMALL, old, key=OTHER_KEY).kind is StartKind.KEY


def test_one_run_has_the_bpf_directory(runs: Runs) -> None:
    maps.prepare_directory(runs.bpf_dir)
    told = rf"another vc5py runs with the bpf directory {runs.bpf_dir} \(process {os.getpid()}: .*py"
    with pins.hold(runs.bpf_dir), pytest.raises(DataplaneError, match=told), pins.hold(runs.bpf_dir):
        pass
    with pins.hold(runs.bpf_dir):
        pass
