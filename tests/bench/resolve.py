"""What it costs to know the ways to very many reals: routes and neighbours from the kernel, over a veth pair.

Two namespaces: in one the data plane's maps and the watch of neighbours, in the other a machine that answers
for all addresses of the reals' network, or is the gateway to it. The kernel's own limit of neighbours is for
the whole machine: it is raised for as long as this takes.
"""

from __future__ import annotations

import asyncio
import gc
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from tests.bench.reload import TICKS, Heart
from vc5py import config
from vc5py.core import director
from vc5py.dataplane import maps
from vc5py.dataplane.driver import Driver, Options
from vc5py.dataplane.kernel import KernelDataplane
from vc5py.dataplane.netlink import Netlink
from vc5py.dataplane.sizing import sizes_for
from vc5py.dataplane.takeover import Takeover
from vc5py.lab.kernel import entered
from vc5py.model import Config, Desired, Forwarding, ForwardMode

HERE, THERE = "vc5t-rs-here", "vc5t-rs-there"
NETWORK, GATEWAY = "10.0.0.0/16", "10.1.0.2"
WAIT_S = 60.0
STEADY_S = 15.0
RELOAD_S = 0.2  # as long as a reload waits for new reals
_LIMIT = Path("/proc/sys/net/ipv4/neigh/default/gc_thresh3")


@dataclass(frozen=True, slots=True)
class Resolved:
    """`took_s`: until the ways to all reals were known. `*longest_ms`: the longest time in which nothing else
    got its turn in the event loop. `share`: of a CPU's time, with all of them known and kept fresh.
    """

    name: str
    reals: int
    reload_s: float
    took_s: float
    longest_ms: float
    share: float
    steady_longest_ms: float


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, timeout=10)


def _remove() -> None:
    for name in (HERE, THERE):
        subprocess.run(["ip", "netns", "del", name], capture_output=True, timeout=10, check=False)


@contextmanager
def _network(*, far: bool) -> Iterator[None]:
    _remove()
    try:
        for name in (HERE, THERE):
            _ip("netns", "add", name)
        _ip("link", "add", "eth0", "netns", HERE, "type", "veth", "peer", "name", "eth0", "netns", THERE)
        for name, address in ((HERE, "10.1.0.1"), (THERE, GATEWAY)):
            _ip("-n", name, "addr", "add", f"{address}/16", "dev", "eth0")
            _ip("-n", name, "link", "set", "eth0", "up")
            _ip("-n", name, "link", "set", "lo", "up")
        _ip("-n", THERE, "route", "add", "local", NETWORK, "dev", "lo")
        way = ("via", GATEWAY) if far else ("dev", "eth0", "src", "10.1.0.1")
        _ip("-n", HERE, "route", "add", NETWORK, *way)
        yield
    finally:
        _remove()


@contextmanager
def _limit_raised(reals: int) -> Iterator[None]:
    limit = _LIMIT.read_text(encoding="ascii")
    _LIMIT.write_text(f"{max(int(limit), 4 * reals)}\n", encoding="ascii")
    try:
        yield
    finally:
        _LIMIT.write_text(limit, encoding="ascii")


def _tunnelled(loaded: Config) -> Config:
    """The same with all reals beyond a router."""
    way = Forwarding(ForwardMode.IPIP)
    services = [
        replace(service, reals=tuple(replace(real, forwarding=way) for real in service.reals))
        for service in loaded.services
    ]
    return replace(loaded, services=tuple(services))


async def _measure(name: str, loaded: Config, steady_s: float) -> Resolved:
    made = maps.create(sizes_for(loaded, 16))
    try:
        dataplane = KernelDataplane(made, TICKS)
        desired = director.start(loaded, lambda _: True, 0.0).desired
        dataplane.apply(desired)
        gc.freeze()  # as a balancer does once it has started
        async with Netlink.open() as netlink:
            options = Options(("eth0",), Path("/nonexistent"))
            eth0 = await netlink.interface("eth0")
            driver = Driver(netlink, [eth0], dataplane, cast(Takeover, None), options)
            watch = asyncio.create_task(driver.neighbours.run(), name="neighbours")
            try:
                return await _watched(name, driver, desired, steady_s)
            finally:
                watch.cancel()
                with suppress(asyncio.CancelledError):
                    await watch
    finally:
        gc.unfreeze()
        made.close()


async def _watched(name: str, driver: Driver, desired: Desired, steady_s: float) -> Resolved:
    reals = len({backend.id.real for service in desired.services for backend in service.backends})
    await asyncio.sleep(0.5)  # the watch has begun
    begun = time.perf_counter()
    async with Heart.beating() as heart:
        await driver.resolve(desired, RELOAD_S)
        reload_s = time.perf_counter() - begun
        while not driver.neighbours.complete:
            await asyncio.sleep(0.05)
            if time.perf_counter() > begun + WAIT_S:
                raise AssertionError(f"{name}: not all known after {WAIT_S} s")
        took_s = time.perf_counter() - begun
    cpu, wall = time.process_time(), time.perf_counter()
    async with Heart.beating() as steady:
        await asyncio.sleep(steady_s)
    share = (time.process_time() - cpu) / (time.perf_counter() - wall)
    longest_ms = heart.longest_s * 1e3
    return Resolved(name, reals, reload_s, took_s, longest_ms, share, steady.longest_s * 1e3)


def measure_resolving(
    text: str, reals: int, say: Callable[[str], None], steady_s: float = STEADY_S
) -> tuple[Resolved, ...]:
    """A configuration with so many reals of 10.0.0.0/16, first on the link, then behind a gateway."""
    loaded = config.parse(text, "scale.yaml")
    out = []
    for name, wanted in (("on the link", loaded), ("behind a gateway", _tunnelled(loaded))):
        say(f"ways to {reals} reals {name}")
        with _limit_raised(reals), _network(far=wanted is not loaded), entered(HERE):
            out.append(asyncio.run(_measure(name, wanted, steady_s)))
    return tuple(out)
