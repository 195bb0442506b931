"""Route health injection: keep ExaBGP running and its routes equal to what the director wants.

Must not know: services, health, ExaBGP's grammar (grammar.py), how the relay holds routes (relay.py).

The desired routes are a value that `set_routes` replaces; `run` alone talks to ExaBGP and makes the world
equal to it, again and again: after each change, after each reconnection, and every CHECK_S seconds from
what ExaBGP says it has.

Invariants. Routes outlive the director by at most `hold_s`, never an ExaBGP. Until the first `set_routes`,
routes adopted from a former director stay as they are, for `hold_s` at most: "not decided yet" must not
look like "nothing wanted". `announced` is what ExaBGP accepted for every neighbor, not what was wished.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
from collections.abc import Callable, Mapping
from ipaddress import IPv4Address
from pathlib import Path
from types import MappingProxyType
from typing import Any

from vc5py.core import rib
from vc5py.errors import RhiError
from vc5py.model import IPAddress, RhiConfig
from vc5py.rhi import child, grammar, relay
from vc5py.rhi.child import Child, StateFiles
from vc5py.rhi.grammar import SessionState as SessionState
from vc5py.rhi.link import CommandRefusedError, Link, LinkLostError, NoAnswerError, RelayBusyError

log = logging.getLogger(__name__)

CHECK_S = 30.0
FLUSH_S = 2.0
START_S = 15.0
RETRY_MIN_S = 0.25
RETRY_MAX_S = 30.0
_POLL_S = 0.05
# A relay that died is replaced by ExaBGP within this time, else ExaBGP is replaced.
_RELAY_S = 5.0
_BGP_PORT = 179

OnSession = Callable[[IPAddress, SessionState], None]


class Speaker:
    """BGP sessions with the configured peers and the routes announced on them.

    `local_address` is where sessions to peers of its IP version come from, and the next hop of VIPs of
    that version; `next_hops` adds a next hop for the other version. What is then still missing for a
    peer's version is the address that the kernel would send from. A VIP without a next hop of its version
    can't be announced, which is logged. `on_session` is called on every change of a session's state.
    Raises RhiError when there is no ExaBGP or `state_dir` can't be used.
    """

    def __init__(
        self,
        config: RhiConfig,
        router_id: IPv4Address,
        local_address: IPAddress,
        state_dir: Path,
        on_session: OnSession | None = None,
        *,
        next_hops: tuple[IPAddress, ...] = (),
    ) -> None:
        self._config = config
        self._router_id = router_id
        self._local_address = local_address
        self._files = StateFiles(state_dir.absolute())
        self._on_session = on_session
        self._given_hops: dict[int, IPAddress] = {hop.version: hop for hop in (*next_hops, local_address)}
        self._next_hops: Mapping[int, IPAddress] = self._given_hops
        self._exabgp = child.executable()
        self._files.prepare()
        self._sessions = dict.fromkeys(config.peers, SessionState.DOWN)
        self._desired: frozenset[IPAddress] | None = None
        self._announced: frozenset[IPAddress] = frozenset()
        self._partial: frozenset[IPAddress] = frozenset()
        self._refused: frozenset[IPAddress] = frozenset()
        self._impossible: frozenset[IPAddress] = frozenset()
        self._wake = asyncio.Event()
        self._worker: asyncio.Task[None] | None = None

    def set_routes(self, vips: frozenset[IPAddress]) -> None:
        """Want host routes to exactly these VIPs announced. Cheap, and may be repeated."""
        if vips == self._desired:
            return
        self._desired = vips
        self._wake.set()

    def sessions(self) -> Mapping[IPAddress, SessionState]:
        """The state of the session with every configured peer."""
        return MappingProxyType(dict(self._sessions))

    def announced(self) -> frozenset[IPAddress]:
        """The VIPs whose routes ExaBGP has, for all peers: sent to those whose session is established."""
        return self._announced

    async def run(self) -> None:
        """Supervise ExaBGP until cancelled, which leaves it alive for `hold_s`, or until `shutdown`."""
        worker = self._worker = asyncio.create_task(self._supervise(), name="rhi-supervise")
        try:
            await asyncio.wait({worker})
        finally:
            worker.cancel()
            await asyncio.wait({worker})
        if not worker.cancelled():
            worker.result()

    async def shutdown(self) -> None:
        """Withdraw all routes, give ExaBGP up to FLUSH_S to send that, end it, and remove the files.

        Ends `run` too. Leaves everything alone where another director has taken over.
        """
        if self._worker is not None:
            self._worker.cancel()
            await asyncio.wait({self._worker})
        try:
            await self._withdraw_all()
        except RelayBusyError as error:
            log.warning("rhi left running reason=%s", error)
            return
        except (RhiError, TimeoutError) as error:
            log.warning("rhi withdrawal not confirmed reason=%s", error or "timeout")
        await self._stop_exabgp()
        self._files.remove()
        self._forget()
        log.info("rhi stopped")

    async def _withdraw_all(self) -> None:
        try:
            link = await Link.connect(self._files.socket, self._event)
        except LinkLostError:
            return  # nobody to withdraw from
        try:
            async with asyncio.timeout(FLUSH_S):
                await link.command(grammar.WITHDRAW_ALL)
                await self._flush(link)
        finally:
            await link.close()

    async def _flush(self, link: Link) -> None:
        """Return when ExaBGP has sent its updates: between two commands it sends what is waiting, so when
        the count of UPDATE messages stands still, nothing was."""
        before = None
        while (now := await self._observe_sessions(link)) != before:
            before = now

    # Supervision.

    async def _supervise(self) -> None:
        retry_s = RETRY_MIN_S
        clock = asyncio.get_running_loop().time
        while True:
            started = clock()
            try:
                await self._serve()
            except NoAnswerError as error:
                log.error("exabgp hangs reason=%s", error)
                await self._stop_exabgp()
            except (RhiError, OSError) as error:
                log.warning("rhi interrupted reason=%s retry_s=%g", error, retry_s)
            self._forget()
            if clock() - started > RETRY_MAX_S:
                retry_s = RETRY_MIN_S
            await asyncio.sleep(retry_s)
            retry_s = min(2 * retry_s, RETRY_MAX_S)

    async def _serve(self) -> None:
        """Attach to ExaBGP and keep its routes right until the connection ends."""
        link = await self._attach()
        reconcile = asyncio.create_task(self._reconcile(link), name="rhi-reconcile")
        lost = asyncio.create_task(link.lost(), name="rhi-link-lost")
        try:
            await asyncio.wait({reconcile, lost}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            reconcile.cancel()
            lost.cancel()
            outcomes = await asyncio.gather(reconcile, lost, return_exceptions=True)
            await link.close()
        for outcome in outcomes:
            if isinstance(outcome, Exception):
                raise outcome
        raise LinkLostError("ExaBGP or its relay has gone")

    async def _attach(self) -> Link:
        """Adopt the living ExaBGP if it is just what we would start, else start one in its place."""
        text = self._configuration_text()
        link = await self._connect_to_former()
        if link is not None:
            self._files.pid.write_text(f"{link.exabgp}\n")
            if text == self._files.written_configuration():
                log.info("exabgp adopted pid=%d", link.exabgp)
                return link
            await link.close()
        await self._stop_exabgp()
        return await self._start(text)

    async def _connect_to_former(self) -> Link | None:
        """A former director's relay. One that has just died is waited for while its ExaBGP lives."""
        former = child.find(self._files)
        if former is None:
            return await self._try_connect()
        try:
            return await self._connect_while_alive(former, _RELAY_S)
        finally:
            former.close()

    async def _start(self, text: str) -> Link:
        exabgp = child.start(self._files, self._exabgp, text, grammar.environment(child.user()))
        log.info("exabgp started pid=%d", exabgp.pid)
        try:
            link = await self._connect_while_alive(exabgp, START_S)
        finally:
            exabgp.close()
        if link is None:
            raise RhiError(f"ExaBGP doesn't start: {self._files.last_log_line()} (see {self._files.log})")
        return link

    async def _connect_while_alive(self, exabgp: Child, timeout_s: float) -> Link | None:
        """Wait for the relay of this ExaBGP; None when time is over or ExaBGP ends."""
        clock = asyncio.get_running_loop().time
        end = clock() + timeout_s
        while clock() < end:
            link = await self._try_connect()
            if link is not None and link.exabgp == exabgp.pid:
                return link
            if link is not None:
                await link.close()
            if await exabgp.wait_gone(_POLL_S):
                return None
        return None

    async def _try_connect(self) -> Link | None:
        try:
            return await Link.connect(self._files.socket, self._event)
        except LinkLostError:
            return None

    async def _stop_exabgp(self) -> None:
        exabgp = child.find(self._files)
        if exabgp is None:
            return
        try:
            await exabgp.stop()
            log.info("exabgp stopped pid=%d", exabgp.pid)
        finally:
            exabgp.close()

    # Routes.

    async def _reconcile(self, link: Link) -> None:
        clock = asyncio.get_running_loop().time
        undecided_until = clock() + self._config.hold_s
        while True:
            await self._observe_sessions(link)
            await self._observe_routes(link)
            self._files.trim_log()
            check_at = clock() + CHECK_S
            while (left_s := check_at - clock()) > 0:
                if self._desired is None and clock() >= undecided_until:
                    log.warning(
                        "rhi undecided for hold_s=%g, withdrawing what was adopted", self._config.hold_s
                    )
                    self.set_routes(frozenset())
                self._wake.clear()
                await self._converge(link)
                if self._desired is None:
                    left_s = min(left_s, max(0.0, undecided_until - clock()))
                await self._wait_for_change(left_s)

    async def _wait_for_change(self, timeout_s: float) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                await self._wake.wait()
        except TimeoutError:
            pass

    async def _converge(self, link: Link) -> None:
        """Carry out the difference, and begin anew as soon as the desired routes change meanwhile."""
        while self._desired is not None:
            wanted = self._desired
            changes = rib.diff(self._announced, self._possible(wanted), self._partial)
            for change in changes:
                await self._carry_out(link, change)
                if self._desired != wanted:
                    break
            else:
                return

    def _possible(self, wanted: frozenset[IPAddress]) -> frozenset[IPAddress]:
        impossible = frozenset(vip for vip in wanted if vip.version not in self._next_hops)
        for vip in impossible - self._impossible:
            log.warning("route not announced vip=%s reason=no-next-hop-ipv%d", vip, vip.version)
        self._impossible = impossible
        return wanted - impossible - self._refused

    async def _carry_out(self, link: Link, change: rib.RouteChange) -> None:
        spell = {rib.RouteAction.ANNOUNCE: grammar.announce, rib.RouteAction.WITHDRAW: grammar.withdraw}
        vip = change.vip
        try:
            await link.command(spell[change.action](vip, self._next_hops[vip.version]))
        except CommandRefusedError as error:
            log.error("route refused vip=%s action=%s reason=%s", vip, change.action, error)
            self._refused |= {vip}  # until the next check
            return
        self._partial -= {vip}
        if change.action is rib.RouteAction.ANNOUNCE:
            self._announced |= {vip}
            log.info("route announced vip=%s", vip)
        else:
            self._announced -= {vip}
            log.info("route withdrawn vip=%s", vip)

    async def _observe_sessions(self, link: Link) -> Mapping[IPAddress, int]:
        """Update the sessions' states; the UPDATE messages sent, by established peer."""
        statuses = grammar.parse_neighbors(await link.command(grammar.SHOW_NEIGHBORS))
        for status in statuses:
            self._set_session(status.address, status.state)
        return {s.address: s.updates_sent for s in statuses if s.state is SessionState.ESTABLISHED}

    async def _observe_routes(self, link: Link) -> None:
        """Believe what ExaBGP has, not what we told it."""
        routes = grammar.parse_routes(await link.command(grammar.SHOW_ROUTES))
        per_peer = [frozenset(vip for peer, vip in routes if peer == p) for p in self._config.peers]
        if not per_peer:
            return
        everywhere, somewhere = per_peer[0].intersection(*per_peer), per_peer[0].union(*per_peer)
        if (everywhere, somewhere - everywhere) != (self._announced, self._partial):
            log.info("routes observed everywhere=%d somewhere=%d", len(everywhere), len(somewhere))
        self._announced, self._partial, self._refused = everywhere, somewhere - everywhere, frozenset()

    # Sessions.

    def _event(self, event: Mapping[str, Any]) -> None:
        news = grammar.parse_event(event)
        if news is not None:
            self._set_session(*news)

    def _set_session(self, peer: IPAddress, state: SessionState) -> None:
        if self._sessions.get(peer, state) is state:
            return  # no news, or a peer that isn't ours
        notable = SessionState.ESTABLISHED in (state, self._sessions[peer])  # attempts repeat for ever
        self._sessions[peer] = state
        log.log(logging.INFO if notable else logging.DEBUG, "session %s peer=%s", state, peer)
        if self._on_session is not None:
            self._on_session(peer, state)

    def _forget(self) -> None:
        """Nobody can say any more what the routers know."""
        self._announced = self._partial = self._refused = frozenset()
        for peer in self._config.peers:
            self._set_session(peer, SessionState.DOWN)

    # Addresses.

    def _configuration_text(self) -> str:
        local: dict[int, IPAddress] = {self._local_address.version: self._local_address}
        for peer in self._config.peers:
            if peer.version not in local:
                local[peer.version] = source_address(peer)
        self._next_hops = {**local, **self._given_hops}
        interpreter = [sys.executable, "-I", "-S", relay.__file__]
        command = [*interpreter, str(self._files.socket), "--hold", f"{self._config.hold_s:g}"]
        neighbors = grammar.neighbors(self._config, local)
        return grammar.configuration(neighbors, self._router_id, self._next_hops, command)


def source_address(peer: IPAddress) -> IPAddress:
    """The address the kernel would send from to `peer`. Sends nothing."""
    family = {4: socket.AF_INET, 6: socket.AF_INET6}[peer.version]
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((str(peer), _BGP_PORT))
            return type(peer)(probe.getsockname()[0])
    except OSError as error:
        raise RhiError(f"no local address to reach the BGP peer {peer} from: {error.strerror}") from error
