"""What the process that shares flows does about loss, over a real link: it asks for a copy of everything.

The walk, which repeats all flows, takes a minute here: what arrives sooner came by a copy.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.bench.sync_rig import GROUP4, LINK, WAIT_S, Node, Process, pair
from vc5py.dataplane import abi, flows

COUNT = 500
RING = 1 << 10


@dataclass
class Pair:
    """Two nodes, each with its process; both have had a copy."""

    sender: Node
    receiver: Node
    first: Process
    second: Process

    def learn(self, start: int, count: int, *, told: bool = True) -> None:
        """The sender has so many more flows; `told`: its ring says so."""
        service = int(np.flatnonzero(self.sender.ours.maps.services["identity"])[0])
        state = abi.FlowState.ESTABLISHED << abi.FLOW_STATE_SHIFT
        rest = abi.FLOW_VALID | self.sender.ours.clock.now() << abi.FLOW_TICK_SHIFT | state
        numbers = np.arange(start, start + count, dtype=np.uint64)
        values: NDArray[np.uint64] = np.uint64(rest | flows.owner(service, 0)) | numbers % np.uint64(16)
        hashes = numbers * np.uint64(0x9E3779B97F4A7C15)
        entries = np.zeros((count, 1), abi.FLOW_ENTRY)
        entries["value"][:, 0], entries["tag"][:, 0] = values, values ^ hashes
        flows.carry_over(entries, self.sender.ours.maps.flows)
        if told:
            self.sender.change(values, hashes)

    def set_link(self, state: str) -> None:
        subprocess.run(["ip", "-n", self.receiver.namespace, "link", "set", LINK, state], check=True)

    def ask(self, number: int) -> None:
        assert self.second.popen.stdin is not None
        self.second.popen.stdin.write(json.dumps({"copy": number}).encode() + b"\n")
        self.second.popen.stdin.flush()

    def wait_for_answer(self, number: int) -> None:
        with self.second.news:
            assert self.second.news.wait_for(lambda: {"copied": number} in self.second.said, WAIT_S)


@pytest.fixture(scope="module")
def nodes() -> Iterator[tuple[Node, Node]]:
    with pair(1 << 13, RING, "vc5loss") as nodes:
        yield nodes


@pytest.fixture
def both(nodes: tuple[Node, Node]) -> Iterator[Pair]:
    for node in nodes:
        node.ours.forget_flows()
        node.ours.maps.flow_log_heads[:] = 0
    made = Pair(*nodes, *[node.start(node.order(GROUP4)) for node in nodes])
    try:
        for process in (made.first, made.second):
            assert process.wait_for("copied", 1)["copied"]
        yield made
    finally:
        for process in (made.first, made.second):
            process.stop()


def test_what_was_said_while_the_link_was_down_comes_soon_after(both: Pair) -> None:
    both.set_link("down")
    both.learn(1, COUNT)
    both.first.wait_for("sent", COUNT)
    assert both.receiver.flows() == 0
    both.set_link("up")
    assert both.second.wait_for("received", COUNT)["lost"] > 0
    assert both.receiver.flows() == COUNT


def test_what_was_written_over_before_it_was_read_comes_soon_after(both: Pair) -> None:
    """The ring is too small for so many at once."""
    both.learn(1, RING + COUNT)
    assert both.first.wait_for("missed", COUNT)["missed"] == COUNT
    assert both.second.wait_for("received", 2 * RING + COUNT)["copied"]
    assert both.receiver.flows() == RING + COUNT == both.sender.flows()


def test_copy_comes_when_somebody_waits_for_it(both: Pair) -> None:
    for number in (1, 2):
        both.learn(1 + number * COUNT, COUNT, told=False)
        both.ask(number)
        both.wait_for_answer(number)
        assert both.receiver.flows() == number * COUNT
