"""Route health injection: keep the routes that each neighbor is told equal to what the director wants.

Must not know: services, health, ExaBGP's grammar (grammar.py) and process (hosting.py), how the relay holds
routes (relay.py).

The desired routes are a value that `set_routes` replaces; `run` alone talks to ExaBGP and makes the world
equal to it, again and again: after each change, after each reconnection, and every CHECK_S seconds from
what ExaBGP says it has.

Invariants. Routes outlive the director's last sign of life by at most `hold_s` and a second (relay.py), never
an ExaBGP. Until the first `set_routes`, routes adopted from a former director stay as they are, for `hold_s`
at most: "not decided yet" must not look like "nothing wanted". `announced` is what ExaBGP accepted for every
neighbor, not what was wished.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import Counter
from collections.abc import Callable, Mapping
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from vc5py.core import rib
from vc5py.core.rib import Route, RouteAction, RouteChange
from vc5py.errors import RhiError
from vc5py.model import IPAddress, Neighbor, RhiConfig
from vc5py.offspring import Supervision
from vc5py.rhi import grammar, sessions
from vc5py.rhi.grammar import SessionState as SessionState
from vc5py.rhi.hosting import Host
from vc5py.rhi.link import CommandRefusedError, Link, LinkLostError, RelayBusyError
from vc5py.rhi.sessions import Machine as Machine
from vc5py.rhi.sessions import Resolved, Session
from vc5py.rhi.standing import Book
from vc5py.rhi.standing import Standing as Standing

log = logging.getLogger(__name__)

CHECK_S = 30.0
# Nothing can be said to ExaBGP while it shows its routes, so with many of them it is asked less often: it has
# so many times as long for the rest.
_REST = 20
_SLICE = 500
# ExaBGP takes about a millisecond for a command: so long it may take, and so much longer for every route.
FLUSH_S = 2.0
ROUTE_S = 0.003
# An address of ours that a session lacks is looked for again, and ExaBGP asked whether it is there.
LOOK_S = 5.0
RETRY_MIN_S = 0.25
RETRY_MAX_S = 30.0
# While the relay of a living ExaBGP waits for us, and for no longer than the hold.
RETRY_ALIVE_S = 1.0

OnSession = Callable[[IPAddress, SessionState], None]


class Speaker:
    """BGP sessions with the configured neighbors and the routes announced on them.

    A VIP without a next hop of its version can't be announced, which is logged. `on_session` is called on
    every change of a session's state. Raises RhiError when there is no ExaBGP, `state_dir` can't be used, or
    a password can't be read.
    """

    def __init__(
        self, config: RhiConfig, machine: Machine, state_dir: Path, on_session: OnSession | None = None
    ) -> None:
        self._passwords = sessions.passwords(config)
        self._config = config
        self._machine = machine
        self._host = Host(state_dir, self._event)
        self._on_session = on_session
        self._resolved = Resolved()
        self._book = Book(config.peers, self._session_changed)
        self._heard_of: set[IPAddress] = set()
        self._reconfigured = False
        self._desired: frozenset[IPAddress] | None = None
        self._unreachable: frozenset[IPAddress] = frozenset()
        self._to_tear_down: frozenset[IPAddress] = frozenset()
        self._told: dict[Route, str] = {}
        self._refused: frozenset[Route] = frozenset()
        self._replaced: frozenset[IPAddress] = frozenset()
        self._complete: frozenset[IPAddress] = frozenset()
        self._impossible: frozenset[Route] = frozenset()
        self._version = 0
        self._wake = asyncio.Event()
        self._supervision = Supervision(
            "rhi", self._attempt, first_s=RETRY_MIN_S, longest_s=RETRY_MAX_S, patience=self._patience
        )

    # What is wanted

    def set_routes(self, vips: frozenset[IPAddress]) -> None:
        """Want host routes to exactly these VIPs announced. Cheap, and may be repeated."""
        if vips != self._desired:
            self._desired = vips
            self._changed()

    def keeps_routes(self) -> bool:
        """Whether a router knows routes by a former director's ExaBGP. All of this process waits for the
        answer, for a moment; without one it is supposed.
        """
        if not self._host.former_lives():
            return False
        try:
            with self._host.inquiry() as ask:
                return _has_told(ask)
        except (RhiError, OSError, ValueError) as error:
            log.warning("rhi routes supposed to be known reason=%s", error)
            return True

    def set_reachable(self, neighbor: IPAddress, reachable: bool) -> None:
        """What somebody else (BFD) knows of a neighbor. One that can't be reached is told no routes, and its
        session ends at once.
        """
        others = self._unreachable - {neighbor}
        if not reachable and neighbor not in self._unreachable:
            self._to_tear_down |= {neighbor}
        self._unreachable = others if reachable else others | {neighbor}
        self._changed()

    def reconfigure(self, config: RhiConfig) -> None:
        """Other neighbors, or the same with other settings; those without a change stay up. Raises RhiError,
        and nothing has changed then.
        """
        passwords = sessions.passwords(config)
        if (config, passwords) == (self._config, self._passwords):
            return
        self._config, self._passwords = config, passwords
        self._book.keep(config.peers)
        self._reconfigured = True
        self._changed()

    def _changed(self) -> None:
        self._version += 1
        self._wake.set()

    # What is

    def sessions(self) -> Mapping[IPAddress, SessionState]:
        """The state of the session with every configured neighbor."""
        return self._book.states()

    def standings(self) -> Mapping[Neighbor, Standing]:
        """Everything to know of every configured neighbor."""
        return self._book.shown(self._config.neighbors, Counter(neighbor for neighbor, _ in self._told))

    def announced(self) -> frozenset[IPAddress]:
        """The VIPs whose routes ExaBGP has, for all neighbors that are to know of them: sent to those whose
        session is established.
        """
        vips = frozenset(vip for _, vip in self._told)
        return rib.complete(self._told, self._wanted(vips))

    def told(self) -> Mapping[IPAddress, int]:
        """How many neighbors know of each VIP now: told of it in a session that is established."""
        states = self.sessions()
        up = (vip for peer, vip in self._told if states.get(peer) is SessionState.ESTABLISHED)
        return Counter(up)

    # Life

    async def run(self) -> None:
        """Supervise ExaBGP until cancelled, which leaves it alive for `hold_s`, or until `shutdown`."""
        await self._supervision.run()

    async def shutdown(self) -> None:
        """Announce for graceful shutdown, wait, withdraw, give ExaBGP time to send each of both
        (`patience_s`), end it, and remove the files.

        Ends `run` too. Leaves everything alone where another director has taken over.
        """
        await self._supervision.end()
        try:
            await self._take_leave()
        except RelayBusyError as error:
            log.warning("rhi left running reason=%s", error)
            return
        except (RhiError, TimeoutError) as error:
            log.warning("rhi withdrawal not confirmed reason=%s", str(error) or "timeout")
        await self._host.stop()
        self._host.remove_files()
        self._forget()
        log.info("rhi stopped")

    async def _take_leave(self) -> None:
        link = await self._host.connect()
        if link is None:
            return  # nobody to withdraw from
        try:
            await self._observe_routes(link)
            limit_s = patience_s(len(self._told))
            if self._config.graceful_s and await self._observe_sessions(link):
                await self._announce_the_end(link, limit_s)
            async with asyncio.timeout(limit_s):
                await link.command(grammar.WITHDRAW_ALL)
                await self._flush(link)
        finally:
            await link.close()

    async def _announce_the_end(self, link: Link, limit_s: float) -> None:
        """Routers that know of another way take it from now on, while ours still works."""
        wanted = self._wanted(frozenset(vip for _, vip in self._told), graceful=True)
        told = {route: said for route, said in wanted.items() if route in self._told}
        if not told:
            return
        marked = 0
        try:
            async with asyncio.timeout(limit_s):
                for neighbors, vips, said in rib.alike(told):
                    for command, count in grammar.announce_all(neighbors, vips, said):
                        if await _try(link, command):
                            marked += count * len(neighbors)
                await self._flush(link)
        except TimeoutError:
            log.warning("rhi graceful shutdown cut short limit_s=%g", limit_s)
        wait_s = self._config.graceful_s
        log.info("rhi graceful shutdown announced routes=%d of=%d wait_s=%g", marked, len(told), wait_s)
        await asyncio.sleep(wait_s)

    async def _flush(self, link: Link) -> None:
        """Return when ExaBGP has sent its updates: between two commands it sends what is waiting, so when
        the count of UPDATE messages stands still, nothing was."""
        before = None
        while (now := await self._observe_sessions(link)) != before:
            before = now

    async def _attempt(self) -> None:
        """What was known is void when the connection has ended."""
        try:
            await self._serve()
        except (RhiError, OSError) as error:
            self._forget("" if self._host.former_lives() else str(error))
            await self._host.mend(error)
            raise

    def _patience(self) -> float:
        """How long no attempt may be made at most."""
        if not self._host.former_lives():
            return math.inf
        return max(RETRY_MIN_S, min(RETRY_ALIVE_S, self._config.hold_s / 2))

    async def _serve(self) -> None:
        """Keep the routes right as long as one connection to the relay lasts. Its end raises RhiError."""
        link = await self._host.attach(self._resolve(), self._config.hold_s)
        try:
            await self._reconcile_until_lost(link)
        finally:
            await link.close()

    async def _reconcile_until_lost(self, link: Link) -> None:
        reconcile = asyncio.create_task(self._reconcile(link), name="rhi-reconcile")
        lost = asyncio.create_task(link.lost(), name="rhi-link-lost")
        try:
            await asyncio.wait({reconcile, lost}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            reconcile.cancel()
            lost.cancel()
            outcomes = await asyncio.gather(reconcile, lost, return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, Exception):
                raise outcome
        raise LinkLostError("ExaBGP or its relay has gone")

    def _resolve(self) -> str:
        """Fills in what the configuration leaves to the machine; ExaBGP's configuration for that. Neighbors
        that lack an address of ours are left out.
        """
        self._reconfigured = False
        self._resolved = self._resolved_now()
        self._book.lack(self._resolved.missing)
        return grammar.configuration(self._resolved.sessions, self._router_id(), self._host.relay_command)

    def _resolved_now(self) -> Resolved:
        before = self._resolved.sessions or self._former_sessions()
        return sessions.resolve(self._config, self._machine, self._passwords, before)

    def _former_sessions(self) -> tuple[Session, ...]:
        """Those that a former director's ExaBGP has, of neighbors without a change since."""
        written = self._host.former_configuration() or ""
        places = grammar.local_addresses(written)
        supposed = sessions.supposed(self._config, self._machine, self._passwords, places)
        return tuple(one for one in supposed if grammar.holds(written, one, self._router_id()))

    def _router_id(self) -> IPv4Address:
        return self._config.router_id or self._machine.router_id

    def _look_for_missing(self) -> None:
        missing = self._resolved.missing.keys()
        if missing and missing - self._resolved_now().missing.keys():
            self._reconfigured = True

    # Routes

    async def _reconcile(self, link: Link) -> None:
        clock = asyncio.get_running_loop().time
        undecided_until = clock() + self._config.hold_s
        while True:
            await self._observe_sessions(link)
            began = clock()
            await self._observe_routes(link)
            self._host.trim_log()
            check_at = clock() + max(CHECK_S, _REST * (clock() - began))
            while (left_s := check_at - clock()) > 0 and not self._reconfigured:
                if self._desired is None and clock() >= undecided_until:
                    log.warning(
                        "rhi undecided for hold_s=%g, withdrawing what was adopted", self._config.hold_s
                    )
                    self.set_routes(frozenset())
                self._wake.clear()
                await self._converge(link)
                if self._desired is None:
                    left_s = min(left_s, max(0.0, undecided_until - clock()))
                if not await self._wait_for_change(min(left_s, LOOK_S)):
                    await link.command(grammar.NOTHING)  # one that hangs is found out by that
                self._look_for_missing()
            if self._reconfigured or self._host.is_behind:
                await self._reload(link)

    async def _reload(self, link: Link) -> None:
        if not await self._host.reconfigure(link, self._resolve(), self._config.hold_s):
            await self._host.stop()
            raise LinkLostError("ExaBGP begins anew with another relay")

    async def _wait_for_change(self, timeout_s: float) -> bool:
        """Whether something has changed within the time."""
        try:
            async with asyncio.timeout(timeout_s):
                return await self._wake.wait()
        except TimeoutError:
            return False

    async def _converge(self, link: Link) -> None:
        """Carry out the difference, and begin anew as soon as what is desired changes meanwhile."""
        while True:
            version = self._version
            await self._tear_down(link)
            if self._desired is None or self._reconfigured:
                return
            wanted = self._wanted(self._desired)
            for route in self._refused:
                wanted.pop(route, None)
            for change in rib.diff(self._told, wanted):
                await self._carry_out(link, change)
                if self._version != version:
                    break
            else:
                await self._resend(link)
                await self._end_of_rib(link)
                return

    def _wanted(self, vips: frozenset[IPAddress], graceful: bool = False) -> dict[Route, str]:
        """What every neighbor is to be told of these VIPs."""
        wanted: dict[Route, str] = {}
        impossible: set[Route] = set()
        for session in self._resolved.sessions:
            neighbor = session.neighbor
            if neighbor.address in self._unreachable:
                continue
            said = {version: grammar.said(session, version, graceful) for version in (4, 6)}
            for vip in vips:
                if neighbor.admits(vip):
                    words = said[vip.version]
                    if words is None:
                        impossible.add((neighbor.address, vip))
                    else:
                        wanted[neighbor.address, vip] = words
        for peer, vip in impossible - self._impossible:
            log.warning("route not announced vip=%s peer=%s reason=no-next-hop", vip, peer)
        self._impossible = frozenset(impossible)
        return wanted

    async def _carry_out(self, link: Link, change: RouteChange) -> None:
        spell = {RouteAction.ANNOUNCE: grammar.announce, RouteAction.WITHDRAW: grammar.withdraw}
        routes = [(neighbor, change.vip) for neighbor in change.neighbors]
        try:
            await link.command(spell[change.action](change.neighbors, change.vip, change.said))
        except CommandRefusedError as error:
            log.error("route refused vip=%s action=%s reason=%s", change.vip, change.action, error)
            self._refused |= {*routes}  # until the next check
            return
        if change.action is RouteAction.ANNOUNCE:
            self._replaced |= {neighbor for neighbor, vip in routes if (neighbor, vip) in self._told}
            self._told.update(dict.fromkeys(routes, change.said))
        else:
            for route in routes:
                self._told.pop(route, None)
        to = ",".join(map(str, change.neighbors))
        log.info("route %s vip=%s peers=%s", _DONE[change.action], change.vip, to)

    async def _resend(self, link: Link) -> None:
        """Where a route was replaced by one with other attributes before it was sent, ExaBGP may send them in
        the wrong order; what it has is right, and is sent once more.
        """
        for neighbor in self._replaced:
            if self.sessions().get(neighbor) is SessionState.ESTABLISHED:
                self._replaced -= {neighbor}
                await _try(link, grammar.resend(neighbor))

    async def _end_of_rib(self, link: Link) -> None:
        """Who kept the routes of an ExaBGP that died drops now what it was not told again (RFC 4724)."""
        for session in self._resolved.sessions:
            peer = session.neighbor.address
            is_waiting = session.neighbor.restart_time_s and peer not in self._complete
            if is_waiting and self.sessions().get(peer) is SessionState.ESTABLISHED:
                self._complete |= {peer}
                for version in session.families:
                    await _try(link, grammar.end_of_rib(peer, version))

    async def _tear_down(self, link: Link) -> None:
        for neighbor in self._to_tear_down:
            self._to_tear_down -= {neighbor}
            if self.sessions().get(neighbor) is SessionState.ESTABLISHED:
                await _try(link, grammar.tear_down(neighbor))

    async def _observe_sessions(self, link: Link) -> Mapping[IPAddress, int]:
        """Update the sessions' states; the UPDATE messages sent, by established peer."""
        self._heard_of.clear()
        statuses = grammar.parse_neighbors(await link.command(grammar.SHOW_NEIGHBORS))
        # An event that came meanwhile may be news to the answer; never the other way round.
        ours = {session.neighbor.address for session in self._resolved.sessions} - self._heard_of
        for status in statuses:
            if status.address in ours:
                self._book.note(status.address, status.state)
        for peer in ours - {one.address for one in statuses}:
            self._book.note(peer, SessionState.DOWN, _UNKNOWN)
        self._book.hear()
        return {s.address: s.updates_sent for s in statuses if s.state is SessionState.ESTABLISHED}

    async def _observe_routes(self, link: Link) -> None:
        """Believe what ExaBGP has, not what we told it. Of routes that aren't ours it isn't known what was
        said, so they are announced again.
        """
        observed: dict[Route, str] = {}
        lines = await link.command(grammar.SHOW_ROUTES)
        for start in range(0, len(lines), _SLICE):  # others have their turn between
            observed |= grammar.parse_routes(lines[start : start + _SLICE])
            await asyncio.sleep(0)
        if observed.keys() != self._told.keys():
            log.info("routes observed=%d expected=%d", len(observed), len(self._told))
        self._told = {route: self._told.get(route, said) for route, said in observed.items()}
        self._refused = frozenset()

    # Sessions

    def _event(self, event: Mapping[str, Any]) -> None:
        if news := grammar.parse_event(event):
            self._heard_of.add(news[0])
            self._book.note(*news)
        elif heard := grammar.parse_listening(event):
            self._book.note_listening(*heard)

    def _session_changed(self, peer: IPAddress, state: SessionState) -> None:
        if state is SessionState.ESTABLISHED:
            self._wake.set()
        else:
            self._complete -= {peer}
        if self._on_session is not None:
            self._on_session(peer, state)

    def _forget(self, why: str = "") -> None:
        """Nobody can say any more what the routers know, and `why`."""
        self._told, self._refused, self._replaced = {}, frozenset(), frozenset()
        self._book.forget(why)


def patience_s(routes: int) -> float:
    """How long ExaBGP may take to say something of so many routes."""
    return FLUSH_S + ROUTE_S * routes


_UNKNOWN = "ExaBGP doesn't know this neighbor: it refused its configuration, see its log"
_DONE = {RouteAction.ANNOUNCE: "announced", RouteAction.WITHDRAW: "withdrawn"}


def _has_told(ask: Callable[[str], list[str]]) -> bool:
    """Whether there is a route for somebody whose session is established."""
    neighbors = grammar.parse_neighbors(ask(grammar.SHOW_NEIGHBORS))
    up = {one.address for one in neighbors if one.state is SessionState.ESTABLISHED}
    return bool(up) and any(peer in up for peer, _ in grammar.parse_routes(ask(grammar.SHOW_ROUTES)))


async def _try(link: Link, command: str) -> bool:
    """Whether it was done."""
    try:
        await link.command(command)
    except CommandRefusedError as error:
        log.info("not done reason=%s", error)  # the session has ended meanwhile
        return False
    return True
