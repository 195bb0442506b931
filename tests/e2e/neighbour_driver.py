"""Runs a NeighbourWatch in the present namespace and prints each way to a real that it learns."""

from __future__ import annotations

import asyncio
import sys
from ipaddress import ip_address

from vc5py.dataplane import neighbours
from vc5py.dataplane.base import Neighbour
from vc5py.dataplane.neighbours import NeighbourWatch
from vc5py.dataplane.netlink import Netlink
from vc5py.model import IPAddress


def _show(real: IPAddress, neighbour: Neighbour | None) -> None:
    assert neighbour is not None
    print(real, neighbour.mac, "own" if neighbour.on_link else "gateway", flush=True)


async def _main(interface: str, near: str, far: str) -> None:
    neighbours.REFRESH_S = 3600.0  # what is seen after the first look is seen by events
    async with Netlink.open() as netlink:
        index = (await netlink.interface(interface)).index
        watch = NeighbourWatch(netlink, [index], _show)
        reals = frozenset(map(ip_address, (near, far)))
        watch.want(reals, frozenset({ip_address(far)}))
        await watch.run()


asyncio.run(_main(*sys.argv[1:]))
