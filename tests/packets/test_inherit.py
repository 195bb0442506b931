"""Maps of another build of the program, with another layout, carried over into ours: in the kernel."""

from __future__ import annotations

import json
import mmap
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import builds
from tests.packets.harness import KEY, SIZES, Kernel
from tests.packets.predecessor import LATE, PORTS, SERVICE, TALKING, after_the_change, send
from tests.packets.world import WORLD
from vc5py.core.flowhash import FlowKey
from vc5py.dataplane import abi, layouts, libbpf, ticks
from vc5py.dataplane.kernel import KernelDataplane
from vc5py.dataplane.maps import Sizes
from vc5py.dataplane.takeover import StartKind, Takeover, open_maps


@dataclass(frozen=True, slots=True)
class Predecessor:
    """What a run of another build left, and what it said of its connections."""

    bpf_dir: Path
    state_dir: Path
    said: dict[str, Any]

    def take_over(self, sizes: Sizes = SIZES, key: FlowKey = KEY) -> Takeover:
        return open_maps(self.bpf_dir, self.state_dir, sizes, key, ticks.measure(), frozenset())

    @property
    def went(self) -> dict[int, str]:
        return {int(port): mac for port, mac in self.said["went"].items()}


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return builds.with_other_layout(tmp_path_factory.mktemp("build") / "other")


@pytest.fixture
def predecessor(build: Path, tmp_path: Path) -> Iterator[Predecessor]:
    mount, state_dir = tmp_path / "bpf", tmp_path / "state"
    mount.mkdir()
    state_dir.mkdir()
    subprocess.run(["mount", "-t", "bpf", "bpf", str(mount)], check=True)
    try:
        command = [
            sys.executable,
            "-P",
            "-m",
            "tests.packets.predecessor",
            str(mount / "vc5py"),
            str(state_dir),
        ]
        environment = os.environ | {"PYTHONPATH": f"{build}:{builds.REPOSITORY}"}
        run = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
        yield Predecessor(mount / "vc5py", state_dir, json.loads(run.stdout))
    finally:
        subprocess.run(["umount", "--lazy", str(mount)], check=True)


@pytest.mark.parametrize("flow_sets", [SIZES.flow_sets, 2 * SIZES.flow_sets])
def test_connections_go_on_where_they_went(predecessor: Predecessor, flow_sets: int) -> None:
    assert predecessor.said["layout"] != abi.layout_hash()
    takeover = predecessor.take_over(replace(SIZES, flow_sets=flow_sets))
    assert takeover.kind is StartKind.LAYOUT
    assert takeover.maps.sizes.flow_sets == flow_sets
    adopted = KernelDataplane(takeover.maps, ticks.measure())
    for service in WORLD.services:
        for real in service.reals:
            assert adopted.was_up(service.backend(real)) is real.up, (service.name, real)
    with Kernel(ticks.measure().shift, inherited=takeover.maps) as kernel:
        kernel.adopt(after_the_change())
        recorded = {
            f"{name:x}": [service, str(real), state.name]
            for name, (service, real, state) in kernel.recorded().items()
        }
        assert recorded == predecessor.said["flows"]
        assert int(kernel.maps.backend_counts["packets"].sum()) == predecessor.said["packets"]
        assert send(kernel, PORTS, "A") == predecessor.went


def test_backends_that_are_gone_are_counted_and_their_flows_hashed_again(predecessor: Predecessor) -> None:
    web = WORLD.service(SERVICE)
    rest = replace(web, reals=web.reals[1:])
    world = replace(WORLD, services=tuple(rest if s.name == SERVICE else s for s in WORLD.services))
    of_the_first = sum(real == str(web.reals[0].address) for _, real, _ in predecessor.said["flows"].values())
    takeover = predecessor.take_over()
    with Kernel(ticks.measure().shift, inherited=takeover.maps) as kernel:
        kernel.adopt(world)
        takeover.prepare()
        start = takeover.finish(exchanged=True)
        kept = len(predecessor.said["flows"]) - of_the_first
        assert start.carried is not None and of_the_first > 0
        assert (start.carried.flows, start.carried.without_backend) == (kept, of_the_first)
        assert str(start) == (
            f"layout changed: {kept} flows carried over, {of_the_first} without a backend here"
        )
        gone = str(web.reals[0].mac).replace(":", "")
        now = send(kernel, PORTS, "A")
        assert gone not in now.values()
        known = {port: mac for port, mac in predecessor.went.items() if port in (*TALKING, *LATE)}
        staying = {port: mac for port, mac in known.items() if mac != gone}
        assert {port: now[port] for port in staying} == staying
    assert [path.name for path in predecessor.bpf_dir.iterdir()] == [abi.layout_hash()]
    assert [path.name for path in predecessor.state_dir.iterdir()] == [f"layout-{abi.layout_hash()}.json"]


def test_flows_named_by_another_key_are_left_and_the_rest_is_carried_over(predecessor: Predecessor) -> None:
    takeover = predecessor.take_over(key=FlowKey.derive(b"another secret"))
    with Kernel(ticks.measure().shift, inherited=takeover.maps) as kernel:
        kernel.adopt(after_the_change())
        assert not len(kernel.hashes())
        assert int(kernel.maps.backend_counts["packets"].sum()) == predecessor.said["packets"]
        assert kernel.dataplane.was_up(WORLD.service(SERVICE).backend(WORLD.service(SERVICE).reals[1]))
        takeover.prepare()
        said = str(takeover.finish(exchanged=True))
    assert said == "program exchanged, the flow hash key is another one: flows can't be carried over"


@pytest.mark.parametrize("damage", ["", "{}", '{"format": 2}', "nonsense"])
def test_layout_that_is_not_described_is_said_to_be_so(predecessor: Predecessor, damage: str) -> None:
    (description,) = predecessor.state_dir.iterdir()
    description.write_text(damage) if damage else description.unlink()
    takeover = predecessor.take_over()
    assert takeover.kind is StartKind.UNREADABLE
    assert not takeover.maps.services["identity"].any()
    takeover.prepare()
    assert "no description of the old one: flows can't be carried over" in str(
        takeover.finish(exchanged=True)
    )
    takeover.maps.close()


def test_what_changes_while_programs_are_exchanged_is_followed(predecessor: Predecessor) -> None:
    """The old program goes on until it is off: here its table is written as it would."""
    takeover = predecessor.take_over()
    fd = libbpf.get_pinned(predecessor.bpf_dir / predecessor.said["layout"] / "flows")
    old = np.frombuffer(mmap.mmap(fd, SIZES.flow_sets * 64), dtype="<u8").reshape(-1, 2)
    os.close(fd)
    layout = layouts.read(predecessor.state_dir, predecessor.said["layout"])
    assert layout is not None
    used = np.flatnonzero(old[:, 1])
    seen = np.argsort(layout.maps["flows"].fields["tick"].read(old[used, 1]), kind="stable")
    first, second = (int(place) for place in used[seen[[0, -1]]])  # what was seen last counts
    tag, value = old[first].tolist()
    known, new = tag ^ value, tag ^ value ^ 1 << 60  # another flow, in the same sets
    other = old[second, 1].item()
    with Kernel(ticks.measure().shift, inherited=takeover.maps) as kernel:
        kernel.adopt(after_the_change())
        as_it_was = kernel.recorded()
        old[first] = value ^ new, value  # takes the other one's place, which is known here all the same
        assert [takeover.follow(), takeover.follow()] == [1, 0]
        takeover.prepare()
        assert kernel.recorded() == as_it_was | {new: as_it_was[known]}
        old[first] = other ^ new, other  # the last packet that the old program saw, after its real went down
        start = takeover.finish(exchanged=True)
        assert kernel.recorded() == as_it_was | {new: as_it_was[int(old[second, 0]) ^ other]}
        assert start.carried is not None and start.carried.without_backend == 0


def test_counters_go_on_until_the_old_program_is_off(predecessor: Predecessor) -> None:
    takeover = predecessor.take_over()
    fd = libbpf.get_pinned(predecessor.bpf_dir / predecessor.said["layout"] / "backend_counts")
    counts = np.frombuffer(mmap.mmap(fd, libbpf.map_info(fd).value_size), dtype="<u8").reshape(-1, 2)
    os.close(fd)
    with Kernel(ticks.measure().shift, inherited=takeover.maps) as kernel:
        kernel.adopt(after_the_change())
        busiest = int(counts[:, 0].argmax())
        counts[busiest] += np.array([5, 500], dtype=np.uint64)
        before = kernel.maps.backend_counts["bytes"].sum()
        takeover.prepare()
        takeover.finish(exchanged=True)
        assert int(kernel.maps.backend_counts["packets"].sum()) == predecessor.said["packets"] + 5
        assert int(kernel.maps.backend_counts["bytes"].sum()) == int(before) + 500
