"""The flow table as a whole: floods against established flows, and how full it gets."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.packets.frames import from_client, random_clients, tcp
from tests.packets.harness import FLOW_SETS, Kernel
from vc5py.dataplane import abi
from vc5py.dataplane.abi import FlowState

CAPACITY = FLOW_SETS * abi.FLOW_WAYS
# Established connections, in proportion to the entries -> the least share of them that must have an entry.
OCCUPANCY = {0.25: 1.0, 0.5: 0.995, 0.8: 0.95, 0.9: 0.915, 1.0: 0.88}
_VALID = np.uint64(abi.FLOW_VALID)
_STATE_MASK = np.uint64((1 << abi.FLOW_STATE_BITS) - 1 << abi.FLOW_STATE_SHIFT)
_ESTABLISHED = np.uint64(FlowState.ESTABLISHED << abi.FLOW_STATE_SHIFT)


def clients(count: int, seed: int, flags: str = "S") -> list[bytes]:
    """That many frames, each of another client."""
    template = tcp(flags=flags)
    return [from_client(template, source, sport) for source, sport in islice(random_clients(seed), count)]


def establish(kernel: Kernel, frames: list[bytes]) -> NDArray[np.uint64]:
    """Makes these flows known, and all entries established; returns the hashes of all."""
    for start in range(0, len(frames), 64):  # few at a time: an unproven one would give way to the next
        kernel.flood(frames[start : start + 64])
        flows = kernel.maps.flows
        state = flows["value"] & _STATE_MASK
        # Tag and value change together: the hash stays.
        change = np.where(flows["value"] & _VALID, state ^ _ESTABLISHED, np.uint64(0))
        flows["value"] ^= change
        flows["tag"] ^= change
    return kernel.hashes()


def test_established_flows_survive_floods(kernel: Kernel) -> None:
    """100,000 SYNs and 100,000 ACKs of as many clients, against a table for 4,096, half of it established."""
    known = establish(kernel, clients(CAPACITY // 2, seed=1))
    before = kernel.maps.flows.copy()
    held = before["value"] & _VALID != 0
    for flags, seed in (("S", 2), ("A", 3)):
        verdicts = kernel.flood(clients(100_000, seed, flags))
        assert verdicts.keys() <= {"forwarded_new", "forwarded_unrecorded"}, verdicts
        assert sum(verdicts.values()) == 100_000
    assert held.sum() == len(known)
    assert (kernel.maps.flows[held] == before[held]).all()
    assert len(kernel.hashes()) == CAPACITY, "the flood fills what is free"


def test_established_flow_is_found_after_a_flood(kernel: Kernel) -> None:
    """The packets themselves: each of a hundred connections still goes where it went."""
    connections = clients(100, seed=4)
    establish(kernel, connections)
    went = [kernel.run(frame).frame[:6] for frame in connections]
    kernel.flood(clients(50_000, seed=5))
    again = [kernel.run(frame) for frame in connections]
    assert [outcome.frame[:6] for outcome in again] == went
    assert {outcome.verdict for outcome in again} == {"forwarded_flow"}


def test_unproven_flows_give_way_to_newer_ones(kernel: Kernel) -> None:
    """A table full of unproven flows still takes every new one."""
    kernel.flood(clients(4 * CAPACITY, seed=6))
    late = clients(1000, seed=7)
    assert kernel.flood(late) == {"forwarded_new": 1000}


@pytest.mark.parametrize(("load", "least"), OCCUPANCY.items())
def test_occupancy(kernel: Kernel, load: float, least: float) -> None:
    """How many of so many established connections, in proportion to the entries, have an entry."""
    wanted = round(CAPACITY * load)
    frames = clients(wanted, seed=8)
    stored = len(establish(kernel, frames)) / wanted
    print(f"load {load:.0%}: {stored:.3%} of {wanted} flows stored")
    assert stored >= least
