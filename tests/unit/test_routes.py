"""The BGP speaker of the moment: one after the other."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import cast

from tests.unit.neighboring import ibgp
from vc5py.model import IPAddress, RhiConfig
from vc5py.rhi.speaker import Speaker
from vc5py.routes import Routes


@dataclass(eq=False)
class Spoken:
    """A speaker that says what becomes of it."""

    started: int = 0
    leaving: asyncio.Event = field(default_factory=asyncio.Event)
    may_go: asyncio.Event = field(default_factory=asyncio.Event)
    running: asyncio.Event = field(default_factory=asyncio.Event)

    wanted: frozenset[IPAddress] | None = None

    def set_routes(self, vips: frozenset[IPAddress]) -> None:
        self.wanted = vips

    def announced(self) -> frozenset[IPAddress]:
        """ExaBGP isn't heard."""
        return frozenset()

    async def run(self) -> None:
        self.started += 1
        self.running.set()
        await asyncio.get_running_loop().create_future()

    async def shutdown(self) -> None:
        self.leaving.set()
        await self.may_go.wait()


async def test_a_leave_that_is_cut_short_is_taken_in_the_end() -> None:
    """The balancer stops while the speaker before it takes its leave."""
    spoken = Spoken()
    routes = Routes(ibgp(65000, "10.0.0.1"), lambda _: cast(Speaker, spoken))
    task = asyncio.create_task(routes.run())
    async with asyncio.timeout(60):
        await spoken.running.wait()
        routes.configure(None)
        await spoken.leaving.wait()
        task.cancel()
        await asyncio.wait({task})
        spoken.leaving.clear()
        spoken.may_go.set()
        assert not await routes.shutdown()
        assert spoken.leaving.is_set()


async def test_a_speaker_waits_for_the_one_before_it_and_is_started_once() -> None:
    rhi: RhiConfig = ibgp(65000, "10.0.0.1")
    made: list[Spoken] = []

    def make(config: RhiConfig) -> Speaker:
        made.append(Spoken())
        return cast(Speaker, made[-1])

    routes = Routes(rhi, make)
    task = asyncio.create_task(routes.run())
    async with asyncio.timeout(5):
        await made[0].running.wait()
        routes.configure(None)
        await made[0].leaving.wait()
        routes.configure(rhi)
        assert made[1].started == 0
        made[0].may_go.set()
        await made[1].running.wait()
        for _ in range(10):
            await asyncio.sleep(0)
        assert made[1].started == 1
        task.cancel()
        await asyncio.wait({task})


def test_a_withdrawal_while_nobody_hears_exabgp_is_of_that_route_alone() -> None:
    """And announces nothing that was not wanted before."""
    one, two, three = (ip_address(f"192.0.2.{host}") for host in (1, 2, 3))
    spoken = Spoken()
    routes = Routes(ibgp(65000, "10.0.0.1"), lambda _: cast(Speaker, spoken))
    routes.withdraw_all_but(frozenset({one}))
    assert spoken.wanted is None, "nothing has been decided"
    routes.set(frozenset({one, two}))
    routes.withdraw_all_but(frozenset({one, three}))
    assert spoken.wanted == frozenset({one})
    routes.withdraw_all_but(frozenset({one, two}))
    assert spoken.wanted == frozenset({one})


def test_what_was_withdrawn_without_a_speaker_is_not_announced_by_the_next() -> None:
    one, two = ip_address("192.0.2.1"), ip_address("192.0.2.2")
    spoken = Spoken()
    routes = Routes(None, lambda _: cast(Speaker, spoken))
    routes.set(frozenset({one, two}))
    routes.withdraw_all_but(frozenset({two}))
    routes.configure(ibgp(65000, "10.0.0.1"))
    assert spoken.wanted == frozenset({two})
