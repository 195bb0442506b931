"""The balancer as a process: makes the parts, runs them until a signal, ends them in order.

startup -> main loop -> shutdown. Packets flow before routes are announced, and routes are withdrawn before
packets stop. Cancelling or killing takes nothing down: the data plane stays attached, ExaBGP keeps its
routes for `hold`, flows are shared as long, and the next run takes over.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import signal
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Address
from pathlib import Path

from vc5py import watchdog
from vc5py.balancer import Balancer, Parts
from vc5py.bfd.supervisor import Supervisor
from vc5py.control.client import LOCK_NAME
from vc5py.control.memory import Memory
from vc5py.control.server import serve as serve_control
from vc5py.dataplane.driver import Driver
from vc5py.dataplane.driver import Options as DataplaneOptions
from vc5py.dataplane.netlink import Interface
from vc5py.errors import Vc5Error
from vc5py.loading import Loaded
from vc5py.model import Config, IPAddress, RhiConfig
from vc5py.rhi.speaker import Machine, Speaker
from vc5py.routes import Routes
from vc5py.sharer_child import Host as SharerHost
from vc5py.sharing import Secrets, Sharing, flow_key, is_on, order_for, read_secrets, why_off
from vc5py.web.server import serve as serve_metrics

_log = logging.getLogger(__name__)

# Between the withdrawal of the routes and the end of forwarding: what routers may take to converge.
DRAIN_S = 1.0


@dataclass(frozen=True, slots=True)
class Options:
    """What `vc5py run` is told. `address`: router id and source of probes; None: the first interface's."""

    dataplane: DataplaneOptions
    state_dir: Path
    data_dir: Path
    address: IPv4Address | None = None


class Signals:
    """SIGTERM and SIGINT stop; SIGHUP reloads, as soon as there is something to reload."""

    def __init__(self) -> None:
        self.stop = asyncio.Event()
        self.hangup = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop.set)
        loop.add_signal_handler(signal.SIGHUP, self.hangup.set)


@contextmanager
def _only_one(state_dir: Path) -> Iterator[None]:
    """One balancer per state directory, by a lock that no crash leaves behind."""
    try:
        state_dir.mkdir(parents=True, exist_ok=True)
        lock = (state_dir / LOCK_NAME).open("w")
    except OSError as error:
        raise Vc5Error(f"can't use the state directory {state_dir}: {error.strerror}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Vc5Error(f"another vc5py runs with the state directory {state_dir}") from None
        yield


def _own_address(driver: Driver, given: IPv4Address | None) -> IPv4Address:
    if given is not None:
        return given
    for address in driver.interfaces[0].addresses:
        if isinstance(address, IPv4Address):
            return address
    raise Vc5Error(f"interface {driver.interfaces[0].name} has no IPv4 address: give one with --address")


def _next_hops6(interfaces: Sequence[Interface], own: IPv4Address) -> tuple[IPAddress, ...]:
    """Where IPv6 VIPs are announced to be: an address of the interface that has our own, else of the next."""
    ranked = sorted(interfaces, key=lambda interface: own not in interface.addresses)
    addresses = (address for interface in ranked for address in interface.addresses)
    return tuple(address for address in addresses if address.version == 6 and not address.is_link_local)[:1]


def _speaker(driver: Driver, address: IPv4Address, state_dir: Path, rhi: RhiConfig) -> Speaker:
    machine = Machine(address, address, _next_hops6(driver.interfaces, address))
    return Speaker(rhi, machine, state_dir / "rhi")


def _sharing(
    config: Config, secrets: Secrets, driver: Driver, address: IPv4Address, state_dir: Path
) -> Sharing:
    order = order_for(config, secrets, driver, address) if is_on(config) else None
    return Sharing(order, driver.dataplane.disturb, SharerHost(state_dir))


def _parts(loaded: Loaded, options: Options, driver: Driver, secrets: Secrets) -> Parts:
    address = _own_address(driver, options.address)
    routes = Routes(loaded.config.rhi, partial(_speaker, driver, address, options.state_dir))
    bfd = Supervisor(options.state_dir / "bfd", routes.set_reachable)
    sharing = _sharing(loaded.config, secrets, driver, address, options.state_dir)
    return Parts(loaded, driver, routes, Memory(options.data_dir), address, bfd, sharing)


async def _shutdown(parts: Parts) -> None:
    """Withdraw, wait, detach. BFD goes after the routes, and says so, lest it be taken for a failure. Flows
    that begin until then are shared.
    """
    _log.info("stopping")
    watchdog.tell(watchdog.STOPPING)
    if await parts.routes.shutdown():
        await asyncio.sleep(DRAIN_S)
    await parts.sharing.shutdown()
    await parts.bfd.shutdown()
    await parts.driver.detach()


async def _run(loaded: Loaded, options: Options) -> None:
    signals = Signals()
    for warning in loaded.warnings:
        _log.warning("configuration finding=%s", warning)
    secrets = read_secrets(loaded.config.cluster)
    if reason := why_off(loaded.config):
        _log.warning(reason)
    async with AsyncExitStack() as stack:
        stack.enter_context(_only_one(options.state_dir))
        await stack.enter_async_context(watchdog.watched())
        _log.info(
            "opening the data plane: maps flows=%d, and the programs, which takes a while",
            loaded.config.flows,
        )
        driver = await stack.enter_async_context(
            Driver.open(loaded.config, options.dataplane, flow_key(loaded.config, secrets))
        )
        parts = _parts(loaded, options, driver, secrets)
        balancer = Balancer(parts, signals.hangup)
        metrics = await stack.enter_async_context(serve_metrics(balancer.snapshot))
        await balancer.show_metrics(metrics)
        await balancer.startup()
        async with serve_control(options.state_dir, balancer):
            watchdog.tell(watchdog.READY)
            await balancer.main_loop(signals.stop)
        await _shutdown(parts)


def run(loaded: Loaded, options: Options) -> None:
    """Runs the balancer until SIGTERM or SIGINT. Raises Vc5Error for what a person can mend."""
    try:
        asyncio.run(_run(loaded, options))
    except* Vc5Error as group:
        first: BaseException = group
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        raise Vc5Error(str(first)) from first
