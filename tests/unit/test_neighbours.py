"""What is learned of neighbours from a look at the table while events of it come in."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator
from ipaddress import ip_address

import pytest

from vc5py.dataplane import lookups
from vc5py.dataplane.base import Neighbour
from vc5py.dataplane.lookups import AT_ONCE
from vc5py.dataplane.neighbours import NeighbourWatch
from vc5py.dataplane.netlink import Netlink
from vc5py.dataplane.rtnetlink import Event, NeighbourEvent, Route
from vc5py.errors import DataplaneError
from vc5py.model import IPAddress

ETH0 = 3
GATEWAY, NEAR = ip_address("10.0.0.1"), ip_address("10.0.0.9")
FAR = [ip_address("10.1.0.0") + n for n in range(3 * AT_ONCE)]


def event(address: IPAddress, mac: int) -> NeighbourEvent:
    return NeighbourEvent(address, ETH0, Neighbour(ETH0, f"02:00:00:00:00:{mac:02x}"), True)


def test_an_event_is_newer_than_what_a_look_had_read_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Others get turns while all behind a gateway are told; the event comes in one of these."""
    told: dict[IPAddress, str] = {}
    come = asyncio.Event()

    def tell(real: IPAddress, neighbour: Neighbour | None) -> None:
        assert neighbour is not None
        told[real] = neighbour.mac
        come.set()

    async def routes(reals: list[IPAddress]) -> AsyncGenerator[tuple[IPAddress, Route | None]]:
        for real in reals:
            yield real, Route(ETH0, None if real == NEAR else GATEWAY)

    async def table() -> AsyncGenerator[list[NeighbourEvent]]:
        yield [event(GATEWAY, 1), event(NEAR, 10)]

    async def events() -> AsyncGenerator[Event]:
        await come.wait()
        yield event(NEAR, 11)
        await asyncio.Event().wait()

    monkeypatch.setattr(lookups, "routes_to", routes)
    monkeypatch.setattr(lookups, "neighbours", table)
    monkeypatch.setattr(lookups, "watch", events)

    async def looked() -> None:
        async with Netlink.open() as netlink:
            watch = NeighbourWatch(netlink, [ETH0], tell)
            watch.want(frozenset([*FAR, NEAR]), frozenset(FAR))
            running = asyncio.create_task(watch.run(), name="watch")
            async with asyncio.timeout(10):
                while not watch.complete:
                    come.clear()
                    await come.wait()
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    asyncio.run(looked())
    assert told[NEAR] == "02:00:00:00:00:0b"
    assert {told[real] for real in FAR} == {"02:00:00:00:00:01"}


def test_a_socket_that_can_not_be_bound_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Unbound(socket.socket):
        def bind(self, address: object) -> None:
            raise OSError(13, "Permission denied")

    monkeypatch.setattr(socket, "socket", Unbound)
    with pytest.raises(DataplaneError, match="no netlink socket: Permission denied"):
        asyncio.run(lookups.solicit([]))
