"""An interface that serves nobody, since somebody else's program is on it: nothing is announced meanwhile."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.unit.directing import VIP1, VIP2, feed, service
from tests.unit.test_balancer import BOTH, REALS, VIP, Surroundings, probe, turn
from tests.unit.test_balancer import VIP2 as SECOND
from vc5py.core import director
from vc5py.core.director import CutOff, Reloaded, Tick, Transition, Unserved, VipChanged
from vc5py.model import BackendId, Config, IPAddress, VipState

WHY = "interface eth0 has an XDP program of somebody else's"
LEARN_S = 5.0


def up(*_: BackendId) -> bool:
    return True


def announced(state: director.State) -> frozenset[IPAddress]:
    return state.desired.announce


def unserved() -> director.State:
    """At 10.0; two VIPs were announced before."""
    before = director.start(Config((service(vips=(VIP1, VIP2)),), LEARN_S), up, 0.0)
    assert announced(before) == {VIP1, VIP2}
    state, actions = feed(before, Unserved(WHY), now=10.0)
    said = [(one.state, one.why) for one in actions if isinstance(one, Transition)]
    assert said == [("withdrawn", WHY)] * 2
    return state


def test_nothing_is_announced_for_as_long_as_that_lasts() -> None:
    state = unserved()
    assert not announced(state) and not announced(feed(state, Tick(), now=1e6)[0])
    assert state.why_withdrawn([VIP1], 10.0) == {VIP1: WHY}


def test_all_is_announced_at_once_when_it_is_over() -> None:
    state, actions = feed(unserved(), Unserved(""), now=20.0)
    assert announced(state) == {VIP1, VIP2}
    said = [(one.state, one.why) for one in actions if isinstance(one, Transition)]
    assert said == [("announced", "all interfaces serve again")] * 2


@pytest.mark.parametrize(
    "event",
    [
        VipChanged(VIP1, VipState.ANNOUNCED),
        Reloaded(Config((service(vips=(VIP1, VIP2), need=2),), LEARN_S)),
        Unserved("another interface, too"),
    ],
)
def test_what_is_said_meanwhile_announces_nothing(event: director.Event) -> None:
    state, _ = feed(unserved(), event, now=11.0)
    assert not announced(state)
    assert announced(feed(state, Unserved(""), now=12.0)[0]) == {VIP1, VIP2}


def test_what_is_to_be_learnt_meanwhile_is_learnt_first() -> None:
    state, _ = feed(unserved(), CutOff(), Unserved(""), now=11.0)
    assert not announced(state)
    assert announced(feed(state, Tick(), now=11.0 + LEARN_S)[0]) == {VIP1, VIP2}


async def test_balancer_withdraws_its_routes_and_says_why(tmp_path: Path) -> None:
    around = Surroundings(tmp_path)
    around.file.write_text(BOTH)
    around.dataplane.was_up = up  # type: ignore[method-assign,assignment]
    balancer = around.balancer()
    await balancer.startup()
    for n in range(len(REALS)):
        probe(balancer, n, True)
    await turn()
    (speaker,) = around.speakers

    async def until(vips: set[IPAddress]) -> None:
        async with asyncio.timeout(60):
            while speaker.routes != vips:
                await turn()

    async with asyncio.TaskGroup() as group:
        task = group.create_task(balancer._heed_sessions())
        await until({VIP, SECOND})
        around.unserved = WHY
        await until(set())
        snapshot = await balancer.snapshot()
        assert snapshot.vips == {VIP: False, SECOND: False}
        assert snapshot.vip_why == {VIP: WHY, SECOND: WHY}
        around.unserved = ""
        await until({VIP, SECOND})
        task.cancel()
