"""A running balancer: feeds events to the director and carries out its actions.

The only place where the parts meet while packets flow; `app` makes them and ends them. Invariants: the data
plane is brought up to date before the routes are, but no withdrawal waits for a data plane that is behind;
however many events come in one turn of the event loop, the data plane is brought up to date once; a reload,
however large, is carried out in small steps.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import random
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv6Address

from vc5py import overriding, watching
from vc5py.bfd.supervisor import Supervisor
from vc5py.checks.result import ProbeResult
from vc5py.checks.scheduler import Scheduler
from vc5py.control.interface import Outcome, ReloadReport, VipOutcome
from vc5py.control.memory import Memory
from vc5py.core import director
from vc5py.dataplane.driver import Driver
from vc5py.errors import DataplaneError, Vc5Error
from vc5py.loading import Loaded
from vc5py.model import AdminState, BackendId, Check, Config, Desired, IPAddress, ServiceState, VipState
from vc5py.moving import Move, parts
from vc5py.overriding import Target
from vc5py.readings import Readings, Reasons
from vc5py.reload import Reloader
from vc5py.routes import Routes
from vc5py.sharing import Sharing, flow_key, not_shared, read_secrets, why_off
from vc5py.snapshot import Snapshot
from vc5py.web.server import MetricsServer, Place

_log = logging.getLogger(__name__)

MAINTAIN_S = 1.0
# What the data plane has freed it may use again after a second: a reload that finds no room tries again then.
ROOM_TRIES = 3
ROOM_S = 1.2
# How long a reload waits for the MAC addresses of new reals; later ones come by themselves.
RESOLVE_S = 0.2
# How often the interfaces and BGP sessions are looked at: these stay away for longer, once they have gone.
SESSIONS_S = 0.1


@dataclass(frozen=True, slots=True)
class Parts:
    """What a balancer is made of. `address`: our own, for probes and BGP."""

    loaded: Loaded
    driver: Driver
    routes: Routes
    memory: Memory
    address: IPv4Address
    bfd: Supervisor
    sharing: Sharing = field(default_factory=not_shared)


_ANY6 = IPv6Address("::")  # whoever says so means IPv4 too, as with most programs


def metrics_place(config: Config) -> Place | None:
    """Where metrics are served; None where they aren't."""
    if config.metrics_port == 0:
        return None
    address = config.metrics_address
    return (str(address) if address and address != _ANY6 else None, config.metrics_port)


class Balancer:
    """Implements `control.interface.Controllable`."""

    def __init__(self, parts: Parts, hangup: asyncio.Event) -> None:
        """`hangup` is set whenever the configuration is to be loaded again (SIGHUP)."""
        config = parts.loaded.config
        self._driver = parts.driver
        self._dataplane = parts.driver.dataplane
        self._routes = parts.routes
        self._sharing = parts.sharing
        self._named_by = flow_key(config, read_secrets(config.cluster))
        self._hearing: frozenset[IPAddress] = frozenset()
        self._away = False
        self._wish: int | None = None
        self._bfd = parts.bfd
        self._address = parts.address
        watching.watch(self._bfd, config.rhi, self._address)
        self._memory = parts.memory
        self._saving = asyncio.Lock()
        self._reloader = Reloader(parts.loaded, self._put_into_force)
        self._hangup = hangup
        self._flow_capacity = config.flows
        self._metrics: MetricsServer | None = None
        overrides = parts.memory.load()
        now, told = time.monotonic(), self._routes.are_kept()
        self._state = director.start(config, self._dataplane.was_up, now, overrides, told=told)
        self._scheduler = Scheduler(self._dataplane.mark_of, self._probed, parts.address, random.Random())
        self._reasons = Reasons()
        self._behind = False
        self._due = False
        self._move: Move | None = None
        self._leaving: tuple[ServiceState, ...] = ()

    async def startup(self) -> None:
        """Services first, then the programs that use them; routes come with the main loop."""
        _log.info("installing services=%d", len(self._state.desired.services))
        self._dataplane.apply(self._state.desired)
        _log.info("looking for the reals' MAC addresses")
        await self._driver.resolve(self._state.desired)
        await self._driver.attach()
        self._scheduler.set_targets(self._state.targets())
        self._routes.set(self._state.desired.announce)
        gc.freeze()  # what stays is not searched for garbage ever again, which with 100,000 reals takes 0.3 s

    async def show_metrics(self, server: MetricsServer) -> None:
        """Serves metrics where the configuration says, after reloads too. Raises Vc5Error."""
        await server.move(metrics_place(self._reloader.loaded.config))
        self._metrics = server

    async def main_loop(self, stop: asyncio.Event) -> None:
        """Until `stop`; what fails for good fails all."""
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(self._scheduler.run(), name="checks"),
                group.create_task(self._driver.neighbours.run(), name="neighbours"),
                group.create_task(self._maintain(), name="maintenance"),
                group.create_task(self._routes.run(), name="rhi"),
                group.create_task(self._bfd.run(), name="bfd"),
                group.create_task(self._heed_hangups(), name="hangups"),
                group.create_task(self._sharing.run(), name="sharing"),
                group.create_task(self._heed_sessions(), name="sessions"),
            ]
            await stop.wait()
            for task in tasks:
                task.cancel()
        await self._reloader.stop()

    # Events in, actions out

    def _probed(self, backend: BackendId, check: Check, result: ProbeResult) -> None:
        why = f"{result.reason}: {result.detail}" if result.detail else str(result.reason)
        event = director.Probed(backend, check, result.ok, why)
        self._step(event)
        self._reasons.note(self._state, event)

    def _step(self, event: director.Event) -> None:
        now = time.monotonic()
        self._state, actions = director.step(self._state, event, now)
        if self._move is not None:
            self._move.note(event, now, actions)
        for action in actions:
            self._carry_out(action)

    def _carry_out(self, action: director.Action) -> None:
        match action:
            case director.Install():
                self._install_soon()
            case director.Retarget():
                self._scheduler.set_targets(self._state.targets())
            case director.Pace(backend, check, fast):
                self._scheduler.hurry(backend, check, fast)
            case director.Transition():
                _log_transition(action)

    def _install_soon(self) -> None:
        """Once for all events of this turn of the event loop."""
        if not self._due:
            self._due = True
            asyncio.get_running_loop().call_soon(self._install_now)

    def _install_now(self) -> None:
        if self._due:
            self._install()

    def _install(self) -> None:
        """Data plane, then routes. What the data plane refuses is tried again at the next
        maintenance; until then nothing more is announced, but what is to be withdrawn is."""
        self._due = False
        desired = self._wanted()
        try:
            self._dataplane.apply(desired)
        except DataplaneError as error:
            if not self._behind:
                _log.error("data plane behind error=%s", error)
            self._behind = True
            self._routes.withdraw_all_but(desired.announce)
        else:
            self._behind = False
            self._routes.set(desired.announce)

    def _wanted(self) -> Desired:
        """What the director desires, as far as a reload has come."""
        desired = self._state.desired
        if self._move is not None:
            return self._move.mixed(desired)
        return replace(desired, services=desired.services + self._leaving) if self._leaving else desired

    async def _maintain(self) -> None:
        while True:
            self._dataplane.maintain(time.monotonic())
            if self._is_cut_off():
                self._step(director.CutOff())
            self._step(director.Tick())
            if self._behind:
                self._install()
            await asyncio.sleep(MAINTAIN_S)

    def _is_cut_off(self) -> bool:
        """Neither routers nor peers. Of every router ExaBGP must say so: perhaps only nobody asks it."""
        sessions = self._routes.sessions().values()
        if not sessions or any(sessions) or not self._sharing.is_alone():
            return False
        return all(neighbor.why for neighbor in self._routes.neighbors())

    # Routers that are lost and come back

    async def _heed_sessions(self) -> None:
        while True:
            self._look_at_interfaces()
            self._look_at_sessions()
            await asyncio.sleep(SESSIONS_S)

    def _look_at_interfaces(self) -> None:
        """Nothing is announced that somebody else's program would get instead of ours."""
        if self._driver.unserved != self._state.unserved:
            self._step(director.Unserved(self._driver.unserved))

    def _look_at_sessions(self) -> None:
        """While no router hears us flows begin elsewhere, and we may not hear of them: a cable that is
        cut for a second takes the sessions with it, by BFD. So a copy of them comes before the routes.
        """
        sessions = self._routes.sessions()
        up = frozenset(peer for peer, is_up in sessions.items() if is_up)
        if self._away and (up or not sessions):
            self._away, self._wish = False, self._sharing.ask_for_copy()
            self._step(director.RouterBack())
        elif self._hearing and not up and self._have_ended(self._hearing & sessions.keys()):
            self._hearing, self._wish = frozenset(), None
            self._away = self._sharing.has_had_peers
            if self._away:
                self._step(director.RoutersLost())
        self._hearing = up or self._hearing
        if self._wish is not None and self._sharing.is_granted(self._wish):
            self._wish = None
            self._step(director.CaughtUp())

    def _have_ended(self, sessions: frozenset[IPAddress]) -> bool:
        """By ExaBGP's word, who says why; while nobody speaks with ExaBGP they may all be up."""
        ended = {neighbor.address for neighbor in self._routes.neighbors() if neighbor.why}
        return sessions <= ended

    # Commands

    async def set_state(self, real: IPAddress, service: str | None, state: AdminState) -> Outcome:
        target = Target(real, service)
        overriding.must_exist(self._state, target)
        return await self._command(target, overriding.set_state(self._state, target, state))

    async def set_weight(self, real: IPAddress, service: str | None, weight: int | None) -> Outcome:
        target = Target(real, service)
        overriding.must_exist(self._state, target)
        return await self._command(target, overriding.set_weight(self._state, target, weight))

    async def reset(self, real: IPAddress, service: str | None) -> Outcome:
        target = Target(real, service)
        return await self._command(target, overriding.reset(self._state, target))

    async def _command(self, target: Target, events: Iterable[director.Event]) -> Outcome:
        """In force and remembered before anybody is told so."""
        before = self._state
        for event in tuple(events):  # all of them follow from the state before the first
            self._step(event)
        warnings = overriding.withdrawals(before, self._state, time.monotonic())
        for warning in warnings:
            _log.warning("real=%s note=%r", target.real, warning)
        unsaved = await self._remember()
        return Outcome(target.real, overriding.effective(self._state, target), unsaved, warnings)

    async def set_vip(self, vip: IPAddress, state: VipState | None) -> VipOutcome:
        overriding.must_be_vip(self._state, vip, state)
        self._step(director.VipChanged(vip, state))
        unsaved = await self._remember()
        why = self._state.why_withdrawn([vip], time.monotonic()).get(vip, "")
        return VipOutcome(vip, state, vip in self._state.desired.announce, unsaved, why)

    async def _remember(self) -> str | None:
        """Puts in force what was commanded, and saves it. Returns why it can't, where it can't."""
        self._install_now()
        unsaved = None
        async with self._saving:
            try:
                await asyncio.to_thread(self._memory.save, self._state.overrides)
            except OSError as error:
                unsaved = f"can't write {self._memory.path}: {error.strerror or error}"
                _log.error("overrides not remembered %s", unsaved)
        return unsaved

    # Reload

    async def _heed_hangups(self) -> None:
        while True:
            await self._hangup.wait()
            self._hangup.clear()
            with suppress(Vc5Error):  # which is in the log
                await self._reloader.reload()

    async def reload(self) -> ReloadReport:
        return await self._reloader.reload()

    def configuration(self) -> str:
        return self._reloader.loaded.text

    async def _put_into_force(self, config: Config) -> tuple[str, ...]:
        """All or nothing: what can be refused comes first, in an order in which it can be taken back."""
        before = self._state.config
        secrets = read_secrets(config.cluster)
        order, notes = self._sharing.plan(config, secrets, self._named_by, self._driver, self._address)
        if self._metrics is not None:
            await self._metrics.move(metrics_place(config))
        try:
            await self._redirect(config)
        except Vc5Error:
            if self._metrics is not None:
                await self._metrics.move(metrics_place(before))
            raise
        self._sharing.configure(order)
        await self._driver.resolve(self._state.desired, RESOLVE_S)
        return (*notes, *overriding.notes(self._state))

    async def _redirect(self, config: Config) -> None:
        for left in reversed(range(ROOM_TRIES)):
            try:
                await self._exchange(config)
                return
            except DataplaneError:
                if not left:
                    raise
            await asyncio.sleep(ROOM_S)
            self._dataplane.maintain(time.monotonic())

    async def _exchange(self, config: Config) -> None:
        """What may be refused, in steps; then, in one go, the director's new state; then what only goes."""
        self._move = move = Move()
        try:
            await move.prepare(self._state, config, time.monotonic())
            while move.forward():
                self._take_step(move)
                await asyncio.sleep(0)
            self._routes.configure(config.rhi)
        except Vc5Error:
            await self._go_back(move)
            raise
        finally:
            self._move = None
        await self._adopt(config, move)
        for left in parts(self._leaving):
            self._install()
            await asyncio.sleep(0)
            self._leaving = left
        self._install()
        gc.freeze()

    def _take_step(self, move: Move) -> None:
        """Routes first: a VIP of a service that is to serve nobody is withdrawn before it does."""
        desired = move.mixed(self._state.desired)
        if desired.announce < self._state.desired.announce:
            self._routes.withdraw_all_but(desired.announce)
        self._dataplane.apply(desired)

    async def _go_back(self, move: Move) -> None:
        """What is refused even then, maintenance tries again."""
        self._move = move
        with suppress(DataplaneError):
            while move.back():
                self._dataplane.apply(move.mixed(self._state.desired))
                await asyncio.sleep(0)
        self._move = None
        self._install()

    async def _adopt(self, config: Config, move: Move) -> None:
        watching.watch(self._bfd, config.rhi, self._address)
        self._dataplane.set_policy(config)
        if config.vlans != self._state.config.vlans:  # else nothing needs to be looked up anew
            self._driver.neighbours.set_vlans(config.vlans)
        self._leaving = move.leaving(self._state.desired)
        self._state = move.state
        self._reasons = Reasons()  # some are of what is gone; the others come back with the next failures
        for action in move.actions():
            if isinstance(action, director.Retarget):
                await self._scheduler.shift_targets(self._state.targets())
            else:
                self._carry_out(action)

    # What is shown

    async def snapshot(self) -> Snapshot:
        """In a thread, but for what has to be read at one moment."""
        return await asyncio.to_thread(self.readings().snapshot)

    def readings(self) -> Readings:
        stats, at = self._scheduler.stats(), time.time()
        return Readings(
            state=self._state,
            reasons=self._reasons.current(),
            counters=self._dataplane.counters(),
            probes={(str(kind), str(reason)): n for (kind, reason), n in stats.probes.items()},
            probe_lag_s=stats.lag_s,
            sessions=self._routes.sessions(),
            neighbors=self._routes.neighbors(),
            told=self._routes.told(),
            bfd=watching.shown(self._bfd, at, time.monotonic()),
            interfaces={name: str(mode) for name, mode in self._driver.modes.items()},
            warnings=self._driver.warnings,
            flow_capacity=self._flow_capacity,
            reload=self._reloader.snapshot(),
            start=self._driver.start,
            sharing=replace(self._sharing.snapshot(), why_off=self._why_not_shared()),
            now=time.monotonic(),
            at=at,
        )

    def _why_not_shared(self) -> str:
        config = self._state.config
        return why_off(config) or ("'cluster' takes effect at the next start" if config.cluster else "")


def _log_transition(transition: director.Transition) -> None:
    after = "" if transition.after_s is None else f" after={transition.after_s:.1f}s"
    what, name, state = transition.what, transition.name, transition.state
    said = state if "=" in state else f"state={state}"
    _log.info("%s=%s %s why=%r%s", what, name, said, transition.why, after)
