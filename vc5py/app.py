"""The balancer as a whole: the only place where the parts meet.

startup -> main loop -> shutdown. Packets flow before routes are announced, and routes are withdrawn before
packets stop. Cancelling or killing takes nothing down: the data plane stays attached, ExaBGP keeps its
routes for `hold`, and the next run takes both over.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import random
import signal
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

import vc5py
from vc5py.checks.result import ProbeResult
from vc5py.checks.scheduler import Scheduler
from vc5py.core import director
from vc5py.dataplane import abi
from vc5py.dataplane.base import Traffic
from vc5py.dataplane.driver import Driver
from vc5py.dataplane.driver import Options as DataplaneOptions
from vc5py.dataplane.netlink import Interface
from vc5py.errors import DataplaneError, Vc5Error
from vc5py.model import BackendId, Check, Config, IPAddress
from vc5py.rhi.speaker import SessionState, Speaker
from vc5py.snapshot import RealSnapshot, ServiceSnapshot, Snapshot, VerdictSnapshot
from vc5py.web.server import serve

_log = logging.getLogger(__name__)

MAINTAIN_S = 1.0
# Between the withdrawal of the routes and the end of forwarding: what routers may take to converge.
DRAIN_S = 1.0


@dataclass(frozen=True, slots=True)
class Options:
    """What `vc5py run` is told. `address`: router id and source of probes; None: the first interface's."""

    dataplane: DataplaneOptions
    state_dir: Path
    address: IPv4Address | None = None


class App:
    """One running balancer: feeds events to the director and carries out its actions."""

    def __init__(self, config: Config, driver: Driver, address: IPv4Address, options: Options) -> None:
        self._config = config
        self._driver = driver
        self._dataplane = driver.dataplane
        self._state = director.start(config, driver.dataplane.was_up, time.monotonic())
        self._scheduler = Scheduler(self._dataplane.mark_of, self._probed, address, random.Random())
        self._behind = False
        self._speaker: Speaker | None = None
        if config.rhi is not None and config.rhi.peers:
            self._speaker = Speaker(
                config.rhi,
                address,
                address,
                options.state_dir / "rhi",
                next_hops=_next_hops6(driver.interfaces, address),
            )

    async def startup(self) -> None:
        """Services first, then the programs that use them; routes come with the main loop."""
        self._dataplane.apply(self._state.desired)
        await self._driver.resolve(self._state.desired)
        await self._driver.attach()
        self._scheduler.set_targets(self._state.targets())
        self._set_routes()

    async def main_loop(self, stop: asyncio.Event) -> None:
        """Until `stop`; what fails for good fails all."""
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(self._scheduler.run(), name="checks"),
                group.create_task(self._driver.neighbours.run(), name="neighbours"),
                group.create_task(self._maintain(), name="maintenance"),
            ]
            if self._speaker is not None:
                tasks.append(group.create_task(self._speaker.run(), name="rhi"))
            await stop.wait()
            for task in tasks:
                task.cancel()

    async def shutdown(self) -> None:
        """Withdraw, wait, detach."""
        _log.info("stopping")
        if self._speaker is not None:
            await self._speaker.shutdown()
            await asyncio.sleep(DRAIN_S)
        await self._driver.detach()

    # Events in, actions out

    def _probed(self, backend: BackendId, check: Check, result: ProbeResult) -> None:
        why = f"{result.reason}: {result.detail}" if result.detail else str(result.reason)
        self._step(director.Probed(backend, check, result.ok, why))

    def _step(self, event: director.Event) -> None:
        self._state, actions = director.step(self._state, event, time.monotonic())
        for action in actions:
            self._carry_out(action)

    def _carry_out(self, action: director.Action) -> None:
        match action:
            case director.Install():
                self._install()
            case director.Pace(backend, check, fast):
                self._scheduler.hurry(backend, check, fast)
            case director.Transition(what, name, state, why):
                _log.info("%s=%s state=%s why=%r", what, name, state, why)

    def _install(self) -> None:
        """Data plane, then routes. What the data plane refuses is tried again at the next maintenance; until
        then nothing more is announced, but what is to be withdrawn is."""
        try:
            self._dataplane.apply(self._state.desired)
        except DataplaneError as error:
            if not self._behind:
                _log.error("data plane behind error=%s", error)
            self._behind = True
            if self._speaker is not None:
                self._speaker.set_routes(self._speaker.announced() & self._state.desired.announce)
            return
        self._behind = False
        self._set_routes()

    def _set_routes(self) -> None:
        if self._speaker is not None:
            self._speaker.set_routes(self._state.desired.announce)

    async def _maintain(self) -> None:
        while True:
            self._dataplane.maintain(time.monotonic())
            self._step(director.Tick())
            if self._behind:
                self._install()
            await asyncio.sleep(MAINTAIN_S)

    # What is shown

    def snapshot(self) -> Snapshot:
        counters = self._dataplane.counters()
        nothing = Traffic(0, 0)
        services = []
        for id_, virtual in self._state.services.items():
            reals = []
            for backend in virtual.state.backends:
                traffic = counters.traffic.get(backend.id, nothing)
                flows = counters.flows.get(backend.id, 0)
                address = backend.id.real
                reals.append(RealSnapshot(address, backend.up, traffic.packets, traffic.bytes, flows))
            services.append(ServiceSnapshot(id_, virtual.healthy, virtual.service.need, tuple(reals)))
        vips = {id_.vip: id_.vip in self._state.desired.announce for id_ in self._state.services}
        stats = self._scheduler.stats()
        return Snapshot(
            version=vc5py.__version__,
            services=tuple(services),
            vips=vips,
            sessions=self._sessions(),
            verdicts=tuple(
                VerdictSnapshot(v.name, v.action, counters.verdicts.get(v.name, 0)) for v in abi.verdicts()
            ),
            probes={(str(kind), str(reason)): n for (kind, reason), n in stats.probes.items()},
            probe_lag_s=stats.lag_s,
            interfaces={name: str(mode) for name, mode in self._driver.modes.items()},
            flow_capacity=self._config.flows,
        )

    def _sessions(self) -> dict[IPAddress, bool]:
        sessions = self._speaker.sessions() if self._speaker else {}
        return {peer: state is SessionState.ESTABLISHED for peer, state in sessions.items()}


@contextmanager
def _only_one(state_dir: Path) -> Iterator[None]:
    """One balancer per state directory, by a lock that no crash leaves behind."""
    try:
        state_dir.mkdir(parents=True, exist_ok=True)
        lock = (state_dir / "lock").open("w")
    except OSError as error:
        raise Vc5Error(f"can't use the state directory {state_dir}: {error.strerror}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Vc5Error(f"another vc5py runs with the state directory {state_dir}") from None
        yield


@asynccontextmanager
async def _metrics(config: Config, app: App) -> AsyncIterator[None]:
    if config.metrics_port == 0:
        yield
        return
    address = str(config.metrics_address) if config.metrics_address else "0.0.0.0"
    async with serve(address, config.metrics_port, app.snapshot):
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


async def _run(config: Config, options: Options) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    if config.multicast is not None:
        _log.warning("flows are not shared with other balancers yet: multicast has no effect")
    async with AsyncExitStack() as stack:
        stack.enter_context(_only_one(options.state_dir))
        driver = await stack.enter_async_context(Driver.open(config, options.dataplane))
        app = App(config, driver, _own_address(driver, options.address), options)
        await stack.enter_async_context(_metrics(config, app))
        await app.startup()
        await app.main_loop(stop)
        await app.shutdown()


def run(config: Config, options: Options) -> None:
    """Runs the balancer until SIGTERM or SIGINT. Raises Vc5Error for what a person can mend."""
    try:
        asyncio.run(_run(config, options))
    except* Vc5Error as group:
        first: BaseException = group
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        raise Vc5Error(str(first)) from first
