"""What a reload that changes everything costs a running balancer: how long it keeps the event loop at most.

A balancer over the kernel's maps, with a configuration of many services; every one of them changes at once,
then half of them go, then they come again. Nothing is attached and nothing is probed.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from ipaddress import IPv4Address, ip_address
from pathlib import Path
from typing import Self, cast

from vc5py.balancer import Balancer, Parts
from vc5py.bfd.supervisor import Supervisor
from vc5py.control.memory import Memory
from vc5py.core import director
from vc5py.dataplane import abi, maps
from vc5py.dataplane.base import Neighbour
from vc5py.dataplane.driver import Driver
from vc5py.dataplane.kernel import KernelDataplane
from vc5py.dataplane.sizing import sizes_for
from vc5py.dataplane.ticks import TickClock
from vc5py.loading import Loaded, load
from vc5py.model import Desired, Vlan
from vc5py.rhi.speaker import Speaker
from vc5py.routes import Routes

BEAT_S = 0.001
TICKS = TickClock(250)


@dataclass(frozen=True, slots=True)
class Reloaded:
    """One reload. `longest_ms`: the longest time in which nothing else got its turn in the event loop."""

    name: str
    took_s: float
    longest_ms: float


class _Neighbours:
    def set_vlans(self, vlans: tuple[Vlan, ...]) -> None:
        """There is nobody to look up."""


class _Surroundings:
    """What a balancer has around it, but for the data plane and the files."""

    def __init__(self, dataplane: KernelDataplane) -> None:
        self.dataplane = dataplane
        self.neighbours = _Neighbours()
        self.modes: dict[str, str] = {}

    async def resolve(self, desired: Desired, timeout_s: float = 1.0) -> None:
        """There is nobody to look for."""

    async def attach(self) -> None:
        """There is nothing to attach to."""

    @staticmethod
    def speaker(rhi: object) -> Speaker:
        raise AssertionError("the configurations have no `rhi`")


class Heart:
    """Beats in the event loop; the longest pause between two beats."""

    def __init__(self) -> None:
        self.longest_s = 0.0

    @classmethod
    @asynccontextmanager
    async def beating(cls) -> AsyncIterator[Self]:
        """While the block runs."""
        heart = cls()
        task = asyncio.create_task(heart._beat(), name="heart")
        try:
            yield heart
            await asyncio.sleep(2 * BEAT_S)
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def _beat(self) -> None:
        last = time.perf_counter()
        while True:
            await asyncio.sleep(BEAT_S)
            now = time.perf_counter()
            self.longest_s = max(self.longest_s, now - last - BEAT_S)
            last = now


def _neighbour(dataplane: KernelDataplane, loaded: Loaded) -> None:
    reals = {real.address for service in loaded.config.services for real in service.reals}
    for n, real in enumerate(reals):
        dataplane.set_neighbour(real, Neighbour(2, abi.word_to_mac(2 + (n << 16))))


async def _measure(texts: list[tuple[str, str]], say: Callable[[str], None]) -> list[Reloaded]:
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "vc5.yaml"
        file.write_text(texts[0][1])
        loaded = load(file)
        made = maps.create(sizes_for(loaded.config, 16))
        try:
            dataplane = KernelDataplane(made, TICKS)
            _neighbour(dataplane, loaded)
            dataplane.apply(director.start(loaded.config, lambda _: True, 0.0).desired)
            around = _Surroundings(dataplane)
            routes = Routes(None, around.speaker)
            parts = Parts(
                loaded,
                cast(Driver, around),
                routes,
                Memory(Path(directory) / "data"),
                cast(IPv4Address, ip_address("10.0.0.9")),
                Supervisor(Path(directory) / "bfd", routes.set_reachable),
            )
            balancer = Balancer(parts, asyncio.Event())
            await balancer.startup()
            return [await _reload(balancer, file, name, text, say) for name, text in texts[1:]]
        finally:
            made.close()


async def _reload(
    balancer: Balancer, file: Path, name: str, text: str, say: Callable[[str], None]
) -> Reloaded:
    say(f"reload: {name}")
    file.write_text(text)
    async with Heart.beating() as heart:
        begun = time.perf_counter()
        await balancer.reload()
        took_s = time.perf_counter() - begun
    return Reloaded(name, took_s, heart.longest_s * 1e3)


def measure_reloads(texts: list[tuple[str, str]], say: Callable[[str], None]) -> tuple[Reloaded, ...]:
    """`texts`: what each reload is called and its file; the first is what is there before."""
    return tuple(asyncio.run(_measure(texts, say)))
