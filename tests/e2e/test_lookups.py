"""Routes and neighbours asked from a real kernel, in a namespace: compared with what `ip` says of them; and
what the watch of neighbours makes of them for many reals.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import Iterator
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from vc5py.dataplane import lookups
from vc5py.dataplane.base import Neighbour
from vc5py.dataplane.neighbours import NeighbourWatch
from vc5py.dataplane.netlink import Netlink
from vc5py.dataplane.rtnetlink import LinksChanged, NeighbourEvent, Route, RoutesChanged
from vc5py.lab.kernel import entered

HERE = "vc5t-lk-here"
MANY = 3 * lookups.AT_ONCE + 7
NETWORK4, NETWORK6 = ip_network("10.98.0.0/16"), ip_network("fd98::/64")
NETWORKS = (NETWORK4, NETWORK6)
OWN = {network.version: network[1] for network in NETWORKS}
GATEWAY = ip_address("10.98.0.2")


def ip(*words: str, text: str = "") -> str:
    command = ["ip", "-n", HERE, *words]
    return subprocess.run(command, check=True, timeout=60, input=text, capture_output=True, text=True).stdout


def remove() -> None:
    subprocess.run(["ip", "netns", "del", HERE], capture_output=True, timeout=60, check=False)


def mac(n: int) -> str:
    return f"02:98:00:00:{n >> 8:02x}:{n & 0xFF:02x}"


@pytest.fixture
def here() -> Iterator[int]:
    """A namespace with a link whose other end answers nothing, and many neighbours; the link's index."""
    remove()
    subprocess.run(["ip", "netns", "add", HERE], check=True, timeout=60)
    try:
        ip("link", "add", "eth0", "type", "veth", "peer", "name", "other")
        for name in ("eth0", "other"):
            ip("link", "set", name, "up")
        ip("addr", "add", f"{NETWORK4[1]}/16", "dev", "eth0")
        ip("addr", "add", f"{NETWORK6[1]}/64", "dev", "eth0", "nodad")
        lines = [
            f"neigh add {network[n]} lladdr {mac(n)} dev eth0 nud permanent"
            for network in (NETWORK4, NETWORK6)
            for n in range(2, MANY)
        ]
        ip("-batch", "-", text="\n".join(lines) + "\n")
        with entered(HERE):
            yield int(json.loads(ip("-j", "link", "show", "eth0"))[0]["ifindex"])
    finally:
        remove()


async def ways(addresses: list[Any]) -> dict[Any, Route | None]:
    return {address: route async for address, route in lookups.routes_to(addresses)}


async def table() -> list[NeighbourEvent]:
    return [event async for events in lookups.neighbours() for event in events]


def test_routes(here: int) -> None:
    ip("route", "add", "10.99.0.0/16", "via", str(GATEWAY))
    ip("route", "add", "10.97.0.0/16", "via", "inet6", str(NETWORK6[2]), "dev", "eth0")
    ip("route", "add", "blackhole", "10.96.0.0/16")
    ip("rule", "add", "to", "10.95.0.0/16", "table", "95")
    ip("route", "add", "10.95.0.0/16", "via", str(GATEWAY), "table", "95")
    ip("route", "add", "fd99::/64", "via", str(NETWORK6[2]))
    ip("addr", "add", "10.94.0.1/32", "dev", "eth0")
    ip("addr", "add", "fd94::1/128", "dev", "eth0", "nodad")
    ip("route", "add", "10.94.1.0/24", "via", str(GATEWAY), "src", "10.94.0.1")
    ip("route", "add", "fd94:1::/64", "via", str(NETWORK6[2]), "src", "fd94::1")
    own4, own6 = OWN[4], OWN[6]
    near = {network[n]: Route(here, None, network[1]) for network in NETWORKS for n in range(2, MANY)}
    others: dict[Any, Route | None] = {
        ip_address("10.99.0.7"): Route(here, GATEWAY, own4),
        ip_address("10.97.0.7"): Route(here, NETWORK6[2], own4),
        ip_address("10.96.0.7"): None,
        ip_address("10.95.0.7"): Route(here, GATEWAY, own4),
        ip_address("10.94.1.7"): Route(here, GATEWAY, ip_address("10.94.0.1")),
        ip_address("192.0.2.7"): None,
        ip_address("fd99::7"): Route(here, NETWORK6[2], own6),
        ip_address("fd94:1::7"): Route(here, NETWORK6[2], ip_address("fd94::1")),
        ip_address("fd90::7"): None,
    }
    assert asyncio.run(ways([*near, *others])) == near | others


def test_neighbours(here: int) -> None:
    ip("neigh", "add", "10.98.99.1", "dev", "eth0", "lladdr", mac(1), "nud", "stale")
    events = {event.address: event for event in asyncio.run(table())}
    listed = {
        ip_address(row["dst"]): row
        for family in ("-4", "-6")
        for row in json.loads(ip("-j", family, "neigh", "show", "nud", "all", "dev", "eth0"))
    }
    assert len(listed) > 2 * MANY - 10
    for address, row in listed.items():
        if "lladdr" in row and not address.is_multicast:
            found = events[address].neighbour
            assert found is not None and (found.mac, found.ifindex) == (row["lladdr"], here)
            assert events[address].sure == (row["state"] != ["STALE"])


def test_solicitations(here: int) -> None:
    """Of neighbours that aren't known yet: the kernel begins to look for them."""
    asked = [(network[n], here) for network in (NETWORK4, NETWORK6) for n in range(9_000, 9_000 + 200)]
    assert asyncio.run(lookups.solicit(asked)) == []
    known = {(event.address, event.ifindex) for event in asyncio.run(table())}
    assert known >= set(asked)
    nowhere = (NETWORK4[9_999], 4_000)
    assert asyncio.run(lookups.solicit([asked[0], nowhere])) == [(nowhere, "No such device")]


def test_everybody_else_gets_turns_meanwhile(here: int) -> None:
    async def turns() -> list[int]:
        counts = []
        for call in (
            lambda: ways([GATEWAY] * MANY),
            table,
            lambda: lookups.solicit([(GATEWAY, here)] * MANY),
        ):
            count = 0

            async def others() -> None:
                nonlocal count
                while True:
                    await asyncio.sleep(0)
                    count += 1

            task = asyncio.create_task(others(), name="others")
            await call()
            counts.append(count)
            task.cancel()
        return counts

    routes, table_read, solicitations = asyncio.run(turns())
    assert min(routes, solicitations) >= 3
    assert table_read >= 1, "a turn for each datagram, which holds some hundreds"


def test_events(here: int) -> None:
    commands: list[tuple[str, type]] = [
        (f"neigh replace {GATEWAY} lladdr {mac(77)} dev eth0 nud permanent", NeighbourEvent),
        (f"neigh del {GATEWAY} dev eth0", NeighbourEvent),
        ("route add 10.99.0.0/16 dev eth0", RoutesChanged),
        ("route del 10.99.0.0/16 dev eth0", RoutesChanged),
        ("link add more type veth peer name less", LinksChanged),
    ]

    async def seen() -> list[object]:
        """The first event of its kind after each command; the kernel may tell more of it."""
        events = lookups.watch()
        coming = asyncio.ensure_future(anext(events))
        await asyncio.sleep(0)  # the socket is open
        found: list[object] = []
        for words, kind in commands:
            ip(*words.split())
            while not isinstance(event := await asyncio.wait_for(coming, 5), kind):
                coming = asyncio.ensure_future(anext(events))
            coming = asyncio.ensure_future(anext(events))
            found.append(event)
        coming.cancel()
        await asyncio.gather(coming, return_exceptions=True)
        return found

    changed, gone, *others = asyncio.run(seen())
    assert isinstance(changed, NeighbourEvent) and changed.neighbour is not None
    assert (changed.address, changed.neighbour.mac, changed.sure) == (GATEWAY, mac(77), True)
    assert isinstance(gone, NeighbourEvent) and gone.neighbour is None
    assert others == [RoutesChanged(), RoutesChanged(), LinksChanged()]


def test_more_events_than_there_is_room_for(here: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then anything may have changed."""
    monkeypatch.setattr(lookups, "_BUFFER", 1)

    async def seen() -> set[type]:
        events = lookups.watch()
        first = asyncio.ensure_future(anext(events))
        await asyncio.sleep(0)
        ip("-batch", "-", text="".join(f"neigh del {NETWORK4[n]} dev eth0\n" for n in range(2, MANY)))
        found = {type(await first)}
        while not {RoutesChanged, LinksChanged} <= found:
            found.add(type(await asyncio.wait_for(anext(events), 5)))
        await events.aclose()
        return found

    assert asyncio.run(seen()) >= {RoutesChanged, LinksChanged}


class Told:
    """What a watch tells of reals; `until` waits for it."""

    def __init__(self) -> None:
        self.ways: dict[Any, Neighbour | None] = {}
        self._news = asyncio.Event()

    def __call__(self, real: Any, neighbour: Neighbour | None) -> None:
        self.ways[real] = neighbour
        self._news.set()

    async def until(self, wanted: dict[Any, Neighbour]) -> None:
        async with asyncio.timeout(10):
            while not wanted.items() <= self.ways.items():
                self._news.clear()
                await self._news.wait()


def test_all_reals_behind_a_gateway_follow_it_and_those_that_are_not_wanted_do_not(here: int) -> None:
    ip("route", "add", "10.99.0.0/16", "via", str(GATEWAY))
    reals = [ip_address("10.99.0.0") + n for n in range(1, MANY)]
    near = NETWORK4[7]

    def gateway_is(n: int) -> None:
        ip("neigh", "replace", str(GATEWAY), "lladdr", mac(n), "dev", "eth0", "nud", "permanent")

    async def watched() -> None:
        told = Told()
        async with Netlink.open() as netlink:
            watch = NeighbourWatch(netlink, [here], told)
            watch.want(frozenset([*reals, near]), frozenset(reals))
            await watch.refresh()
            before = dict.fromkeys(reals, Neighbour(here, mac(2), on_link=False, source=OWN[4]))
            assert told.ways == before | {near: Neighbour(here, mac(7), source=OWN[4])}
            assert watch.complete
            task = asyncio.create_task(watch.run(), name="watch")
            await watch.refresh()  # by now events are followed
            gateway_is(77)
            after = dict.fromkeys(reals, Neighbour(here, mac(77), on_link=False, source=OWN[4]))
            await told.until(after)
            watch.want(frozenset(reals[:1]), frozenset(reals))
            gateway_is(78)
            last = Neighbour(here, mac(78), on_link=False, source=OWN[4])
            await told.until({reals[0]: last})
            assert told.ways == after | {near: Neighbour(here, mac(7), source=OWN[4]), reals[0]: last}
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    asyncio.run(watched())


def test_reload_looks_for_new_reals_for_no_longer_than_it_has_time(here: int) -> None:
    async def looked() -> None:
        told = Told()
        async with Netlink.open() as netlink:
            watch = NeighbourWatch(netlink, [here], told)
            watch.want(frozenset([NETWORK4[7]]))
            await watch.look_for_new(lambda: True)
            assert told.ways == {} and not watch.complete
            await watch.look_for_new(lambda: False)
            assert told.ways == {NETWORK4[7]: Neighbour(here, mac(7), source=OWN[4])} and watch.complete

    asyncio.run(looked())
