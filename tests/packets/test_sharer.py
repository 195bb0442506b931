"""The process that shares flows, two of them over a real link: multicast, unicast, loss, death, its own and
its director's.
"""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.bench.sync_rig import ADDRESSES, GROUP4, GROUP6, KEYS, PORT, WAIT_S, Node, Process, pair
from vc5py.core.flowsync import Codec, Key, Kind, cluster_id
from vc5py.dataplane import abi, flows
from vc5py.lab.kernel import entered
from vc5py.model import IPAddress

COUNT = 500


@pytest.fixture(scope="module")
def both() -> Iterator[tuple[Node, Node]]:
    with pair(1 << 13, 1 << 10, "vc5test") as nodes:
        yield nodes


@pytest.fixture
def fresh(both: tuple[Node, Node]) -> tuple[Node, Node]:
    for node in both:
        node.ours.forget_flows()
        node.ours.maps.flow_log_heads[:] = 0
    return both


def made(node: Node, count: int = COUNT, first: int = 1) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Values and hashes of established flows, spread over the backends."""
    service = int(np.flatnonzero(node.ours.maps.services["identity"])[0])
    state = abi.FlowState.ESTABLISHED << abi.FLOW_STATE_SHIFT
    rest = abi.FLOW_VALID | node.ours.clock.now() << abi.FLOW_TICK_SHIFT | state | flows.owner(service, 0)
    numbers = np.arange(first, first + count, dtype=np.uint64)
    return np.uint64(rest) | numbers % np.uint64(16), numbers * np.uint64(0x9E3779B97F4A7C15)


def started(nodes: tuple[Node, Node], group: IPAddress | None) -> tuple[Process, Process]:
    first, second = (node.start(node.order(group)) for node in nodes)
    for process in (first, second):
        assert process.wait_for("copied", 1)["copied"]
    return first, second


@pytest.mark.parametrize("group", [GROUP4, GROUP6, None], ids=["IPv4 multicast", "IPv6 multicast", "unicast"])
def test_changed_flows_get_there(fresh: tuple[Node, Node], group: IPAddress | None) -> None:
    first, second = fresh
    processes = sender, receiver = started(fresh, group)
    try:
        values, hashes = made(first)
        first.change(values, hashes)
        report = receiver.wait_for("received", COUNT)
        assert report["results"]["added"] == COUNT
        assert second.flows() == COUNT
        entries = second.ours.maps.flows.reshape(-1)
        used = entries["value"] != 0
        assert set((entries["value"] ^ entries["tag"])[used].tolist()) == set(hashes.tolist())
        assert sender.reports[-1]["missed"] == 0
        assert receiver.strays  # they are spread regardless of the slots
        assert receiver.next_report()["lost"] == 0
    finally:
        for process in processes:
            process.stop()


def test_killed_process_has_all_of_its_peers_flows_soon_after(fresh: tuple[Node, Node]) -> None:
    first, second = fresh
    sender, receiver = started(fresh, GROUP4)
    try:
        receiver.popen.send_signal(signal.SIGKILL)
        receiver.stop()
        values, hashes = made(first)
        entries = np.zeros((COUNT, 1), abi.FLOW_ENTRY)
        entries["value"][:, 0], entries["tag"][:, 0] = values, values ^ hashes
        flows.carry_over(entries, first.ours.maps.flows)
        receiver = second.start(second.order(GROUP4))
        assert receiver.wait_for("copied", 1)["copied"]
        assert second.flows() == first.flows() == COUNT
    finally:
        sender.stop()
        receiver.stop()


def test_what_was_lost_is_told_again(fresh: tuple[Node, Node]) -> None:
    """The walk repeats every flow that is ours; here it lasts for two seconds."""
    first, second = fresh
    sender, receiver = started(fresh, GROUP4)
    timeouts = first.ours.maps.settings["timeout"]
    before = timeouts.copy()
    try:
        timeouts[0, [abi.FlowState.UNPROVEN, abi.FlowState.STREAM]] = 4
        values, hashes = made(first)
        entries = np.zeros((COUNT, 1), abi.FLOW_ENTRY)
        entries["value"][:, 0], entries["tag"][:, 0] = values, values ^ hashes
        flows.carry_over(entries, first.ours.maps.flows)  # in no ring: all of it was missed
        assert receiver.wait_for("received", COUNT)["results"]["added"] == COUNT
        assert second.flows() == COUNT
    finally:
        timeouts[:] = before
        for process in (sender, receiver):
            process.stop()


def test_strangers_are_counted_and_change_nothing(fresh: tuple[Node, Node]) -> None:
    first, second = fresh
    processes = _, receiver = started(fresh, None)
    try:
        stranger = Codec([Key.derive(b"a secret that nobody here knows")], cluster_id("bench"), 9, 9)
        forger = Codec([Key(b"x" * 64, KEYS[0].id)], cluster_id("bench"), 9, 9)
        with entered(first.namespace), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
            for codec in (stranger, forger):
                out.sendto(codec.seal(Kind.COPY, 0, 0, 0, b""), (str(ADDRESSES[1]), PORT))
            out.sendto(b"hello", (str(ADDRESSES[1]), PORT))
        with entered(second.namespace), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
            out.bind(("127.0.0.1", 0))
            out.sendto(b"from here", ("127.0.0.1", PORT))
        wrong = ("key", "forged", "short", "source")
        with receiver.news:
            receiver.news.wait_for(
                lambda: receiver.reports[-1]["datagrams"].keys() >= set(wrong), timeout=WAIT_S
            )
            seen = receiver.reports[-1]["datagrams"]
        assert {name: seen.get(name) for name in wrong} == dict.fromkeys(wrong, 1)
        assert second.flows() == 0
    finally:
        for process in processes:
            process.stop()


def test_port_that_is_taken_is_told(fresh: tuple[Node, Node]) -> None:
    first, _ = fresh
    with entered(first.namespace), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("", PORT))
        process = first.start(first.order(GROUP4))
        process.popen.wait(timeout=WAIT_S)
        with process.news:
            process.news.wait_for(lambda: bool(process.said), WAIT_S)
        assert process.popen.returncode == 1
        assert process.said == [{"error": f"can't share flows on port {PORT}: Address already in use"}]
        process.stop()


# Without a director

FOREVER_S = 3600.0
SHORT_S = 0.5


def lose_director(process: Process) -> None:
    """As the kernel does when it dies; of it only the ear goes on, which nobody else has."""
    assert process.popen.stdin is not None
    process.popen.stdin.close()


def test_flows_are_told_and_heard_without_a_director_until_the_next_one(fresh: tuple[Node, Node]) -> None:
    first, second = fresh
    processes = [node.start(replace(node.order(GROUP4), hold_s=FOREVER_S)) for node in fresh]
    try:
        for process in processes:
            assert process.wait_for("copied", 1)["copied"]
        for number, process in enumerate(processes, 1):
            lose_director(process)
            first.change(*made(first, first=number * COUNT))
            wait_for_flows(second, number * COUNT)
    finally:
        for process in processes:
            process.popen.terminate()
            process.stop()
    assert [process.popen.returncode for process in processes] == [-signal.SIGTERM] * 2


def wait_for_flows(node: Node, count: int) -> None:
    """Polls: memory that another process writes sends no event."""
    give_up_at = time.monotonic() + WAIT_S
    while node.flows() < count and time.monotonic() < give_up_at:
        time.sleep(0.01)
    assert node.flows() == count


def test_nobody_shares_flows_for_longer_than_hold_without_a_director(fresh: tuple[Node, Node]) -> None:
    """By the hold that was told last; and one that nobody hears any more has no director either."""
    first, second = fresh
    with entered(second.namespace):
        order = replace(second.order(GROUP4), hold_s=SHORT_S)
        unheard = subprocess.Popen(
            [sys.executable, "-m", "vc5py.sharer"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=(*order.fds.values(), order.program),
        )
    process = first.start(replace(first.order(GROUP4), hold_s=FOREVER_S))
    with unheard:
        tell(unheard, order.to_json())
        assert unheard.stdout is not None
        assert b"ready" in unheard.stdout.readline()
        unheard.stdout.close()
        process.next_report()
        tell(process.popen, json.dumps({"hold_s": SHORT_S}))
        began = time.monotonic()
        lose_director(process)
        process.stop()
        assert process.popen.returncode == -signal.SIGALRM
        assert time.monotonic() - began >= SHORT_S
        assert unheard.wait(WAIT_S) == -signal.SIGALRM


def tell(popen: subprocess.Popen[bytes], line: str) -> None:
    assert popen.stdin is not None
    popen.stdin.write(line.encode() + b"\n")
    popen.stdin.flush()
