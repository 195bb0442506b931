"""Flow sharing as the balancer has it: keeps the process that does it (`sharer`) running, hears its reports.

Reads the cluster's secrets, tells the process what it needs, and starts it again when it ends, hangs, talks
nonsense, couldn't be started, or when that has changed. The balancer can live without it: its death costs the
peers' knowledge of the last moments, and no packet. It outlives a balancer that isn't stopped in order by
`hold`; the next one ends it before it starts its own. Invariants: a secret is in no log, no argument and no
environment of ours; the process gets it over a socket. What flows are named by never changes while the
balancer lives. At most one process, and whatever becomes of that, `run` goes on.
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vc5py import credentials, sharer_messages
from vc5py.core import flowsync
from vc5py.core.flowhash import FlowKey
from vc5py.core.flowsync import Key
from vc5py.core.peering import SILENCE_S
from vc5py.dataplane.driver import Driver
from vc5py.errors import PeerError, SecretError, Vc5Error
from vc5py.model import Cluster, Config, IPAddress
from vc5py.peers.transport import Places
from vc5py.sharer import Order
from vc5py.sharer_child import Child, Host
from vc5py.sharer_messages import Copied, Ready, Report, Strays, Trouble
from vc5py.silence import hear
from vc5py.snapshot import PeerSnapshot, SharingSnapshot

_log = logging.getLogger(__name__)

STEADY_S = 10.0  # a process that has lived for so long begins with the shortest wait again
WAITS_S = (0.2, 1.0, 5.0)
# The process reports every second, also where nothing comes and nobody has read it for long (sharer.py); one
# that hangs doesn't. A new one has to load its libraries first.
MUTE_S = 10.0
START_S = 30.0
HOLD_S = 30.0  # where there are no routes, which have a hold of their own
NOT_YET = (
    "flows are named by another secret than the cluster's until the next start: until then 'cluster' and"
    " 'multicast' are as before"
)
_MACHINE_ID = Path("/etc/machine-id")


@dataclass(frozen=True, slots=True)
class Secrets:
    """What the cluster's nodes have in common. `keys`: the first one signs."""

    flow_key: FlowKey
    keys: tuple[Key, ...]


NO_SECRETS = Secrets(FlowKey.derive(), ())


def read_secrets(cluster: Cluster | None) -> Secrets:
    """All of them, read now. Without a cluster anybody knows them. Raises PeerError."""
    if cluster is None:
        return NO_SECRETS
    try:
        secret = credentials.cluster_secret(cluster.secret)
        keys = [secret] if cluster.keys is None else credentials.cluster_keys(cluster.keys)
    except SecretError as error:
        raise PeerError(str(error)) from error
    return Secrets(FlowKey.derive(secret), tuple(map(Key.derive, keys)))


def flow_key(config: Config, secrets: Secrets) -> FlowKey | None:
    """What flows are named by where they are shared, or can be once there is somebody to share them with;
    else None.
    """
    return secrets.flow_key if config.cluster is not None else None


def is_on(config: Config) -> bool:
    """Whether flows are shared: there is a secret, and somebody to share them with."""
    return config.cluster is not None and (config.multicast is not None or bool(config.cluster.peers))


def why_off(config: Config) -> str:
    """For a person who may have expected them to be; empty where nobody could have."""
    if is_on(config):
        return ""
    if config.multicast is not None:
        return "flows are not shared: 'multicast' needs a 'cluster' with a secret"
    return "flows are not shared: the cluster has no 'multicast' and no 'peers'" if config.cluster else ""


def _interface(driver: Driver, name: str | None) -> int:
    if name is None:
        return driver.interfaces[0].index
    try:
        return socket.if_nametoindex(name)
    except OSError as error:
        raise PeerError(f"cluster.interface: there is no interface {name}") from error


def _machine() -> str:
    try:
        return _MACHINE_ID.read_text(encoding="ascii").strip()
    except OSError:
        return socket.gethostname()


def order_for(config: Config, secrets: Secrets, driver: Driver, address: IPAddress) -> Order:
    """`address`: our own, which tells balancers on one machine apart."""
    assert config.cluster is not None
    cluster, group = config.cluster, config.multicast
    maps, ticks, program = driver.shared()
    interface = _interface(driver, cluster.interface) if group is not None else 0
    places = Places(
        port=group.port if group is not None else cluster.port,
        group=group.address if group is not None else None,
        interface=interface,
        peers=cluster.peers,
    )
    return Order(
        fds=maps.fds,
        sizes=maps.sizes,
        ticks=ticks,
        program=program,
        places=places,
        cluster=flowsync.cluster_id(cluster.name),
        node=flowsync.node_id(f"{_machine()} {address}"),
        keys=secrets.keys,
        datagram=cluster.datagram,
        hold_s=_hold_s(config),
    )


def _hold_s(config: Config) -> float:
    return config.rhi.hold_s if config.rhi is not None else HOLD_S


@dataclass(slots=True)
class _Totals:
    """Over all processes so far."""

    numbers: Counter[str] = field(default_factory=Counter)
    datagrams: Counter[str] = field(default_factory=Counter)
    results: Counter[str] = field(default_factory=Counter)
    restarts: int = 0

    def add(self, report: Report) -> None:
        """The last report of a process that has ended."""
        self.numbers.update(report.numbers)
        self.datagrams.update(report.datagrams)
        self.results.update(report.results)


class Sharing:
    """`order` None: flows are not shared. `disturb` is told of flows in slots of other backends. `host` None:
    they never are.
    """

    def __init__(
        self, order: Order | None, disturb: Callable[[NDArray[np.uint32]], None], host: Host | None
    ) -> None:
        self._order = order
        self._disturb = disturb
        self._host = host
        self._child: Child | None = None
        self._changed = asyncio.Event()
        self._report: Report | None = None
        self._reported_at = 0.0
        self.has_had_peers = False  # since flows are shared
        self._wish = self._granted = 0
        self._wished_at = 0.0
        self._totals = _Totals()
        self._trouble = ""

    def plan(
        self, config: Config, secrets: Secrets, named_by: FlowKey | None, driver: Driver, address: IPAddress
    ) -> tuple[Order | None, tuple[str, ...]]:
        """The order by a new configuration, and notes for people. `named_by`: what flows are named by until
        the next start. Raises PeerError.
        """
        if not is_on(config):
            return None, tuple(filter(None, [why_off(config)]))
        if secrets.flow_key != named_by:
            now = self._order
            return now and replace(now, hold_s=_hold_s(config)), (NOT_YET,)
        return order_for(config, secrets, driver, address), ()

    def configure(self, order: Order | None) -> None:
        """From now on this one; a process with another is exchanged for a new one."""
        before, self._order = self._order, order
        if before == order:
            return
        if before is not None and order is not None and replace(before, hold_s=order.hold_s) == order:
            self._tell(json.dumps({"hold_s": order.hold_s}))
            return
        self.has_had_peers = self.has_had_peers and order is not None
        self._trouble = ""
        self._changed.set()
        _log.info("flow sharing %s", "is off" if order is None else f"changes {_shown(order)}")

    # The process

    async def run(self) -> None:
        """Until cancelled, which leaves the process to itself."""
        failures = 0
        while True:
            self._changed.clear()
            began = time.monotonic()
            why = await self._live()
            failures = 0 if time.monotonic() - began > STEADY_S or not why else failures + 1
            wait_s = WAITS_S[min(failures, len(WAITS_S)) - 1] if failures else 0.0
            self._complain(why, wait_s)
            await self._wait_for_change(wait_s if why or self._order is not None else None)

    async def shutdown(self) -> None:
        """Ends the process, after `run` has ended."""
        if self._host is not None:
            try:
                await self._host.clear()
            except (Vc5Error, OSError) as error:
                _log.warning("flow sharing does not end reason=%s", error)

    async def _wait_for_change(self, timeout_s: float | None) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._changed.wait()

    async def _live(self) -> str:
        """One process, from its start to its end. Why it ended; empty where that was our wish."""
        try:
            if self._order is not None:
                return await self._serve(self._order)
            if self._host is not None:
                await self._host.end()
        except (Vc5Error, OSError, ValueError) as error:
            return str(error)
        return ""

    def _complain(self, why: str, wait_s: float) -> None:
        """Once for each reason, until it works again."""
        if why and why != self._trouble:
            _log.error("flow sharing interrupted reason=%s retry_s=%g", why, wait_s)
        self._trouble = why or self._trouble

    async def _serve(self, order: Order) -> str:
        assert self._host is not None
        child = self._child = await self._host.start((*order.fds.values(), order.program))
        self._tell((self._order or order).to_json())  # the first that it hears; it may be another by now
        listening = asyncio.create_task(self._converse(child), name="sharer")
        changed = asyncio.create_task(self._changed.wait(), name="sharing-changed")
        try:
            await asyncio.wait((listening, changed), return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._child = None
            child.leave()
            for task in (listening, changed):
                task.cancel()
            await asyncio.wait((listening, changed))
            self._totals.add(self._report or Report())
            self._totals.restarts += 1
            self._report = None
        await self._host.end()
        if listening.cancelled():
            return ""
        return ": ".join(filter(None, (f"its process {listening.result()}", self._host.last_words())))

    async def _converse(self, child: Child) -> str:
        """Until it ends; how it did. Raises ValueError, OSError, PeerError."""
        if self._wish > self._granted:
            self._tell_wish()
        limit_s = START_S
        try:
            while line := await hear(child.reader.readline, limit_s):
                if line.endswith(b"\n"):  # else it has died while it spoke
                    self._hear(line)
                limit_s = MUTE_S
        except ConnectionError:  # it has died before it read all
            pass
        except TimeoutError:
            child.process.kill()  # it heeds no signal while it hangs
            return f"says nothing for {limit_s:g} s"
        return await child.how_it_ended()

    def _tell(self, line: str) -> None:
        if self._child is not None:
            self._child.tell(line)

    # Copies

    def ask_for_copy(self) -> int:
        """Of all that peers know, at once. The number is for `is_granted`."""
        self._wish += 1
        self._wished_at = time.monotonic()
        self._tell_wish()
        return self._wish

    def _tell_wish(self) -> None:
        self._tell(json.dumps({"copy": self._wish}))

    def is_granted(self, wish: int) -> bool:
        """Whether a copy has come since it was asked for, or nobody is there to give one."""
        is_heard = self.has_peers() or time.monotonic() - self._wished_at <= SILENCE_S
        return self._granted >= wish or not is_heard

    def _hear(self, line: bytes) -> None:
        match sharer_messages.parse(line):
            case Strays(words):
                self._disturb(words)
            case Copied(wish):
                self._granted = min(wish, self._wish)
            case Report() as report:
                self._report, self._reported_at = report, time.monotonic()
                self.has_had_peers = self.has_had_peers or bool(report.peers)
            case Trouble(text):
                raise PeerError(text)
            case Ready(version):
                self._trouble = ""
                _log.info("flow sharing begins version=%s", version)

    # What is shown

    def snapshot(self) -> SharingSnapshot:
        report, totals = self._report or Report(), _Totals(*(_copy(self._totals)))
        totals.add(report)
        numbers = totals.numbers
        return SharingSnapshot(
            enabled=self._order is not None,
            running=self._report is not None,
            restarts=totals.restarts,
            datagrams=totals.datagrams,
            datagrams_sent=numbers["datagrams_sent"],
            bytes_sent=numbers["bytes_sent"],
            send_errors=numbers["failed"],
            sent=numbers["sent"],
            received=numbers["received"],
            results=totals.results,
            missed=numbers["missed"],
            lost=numbers["lost"],
            dropped=numbers["dropped"],
            ambiguous=report.ambiguous,
            copied=report.copied,
            cpu_s=numbers["cpu_s"],
            peers=self._peers(),
        )

    def is_alone(self) -> bool:
        """Whether there were peers, and all of them have fallen silent."""
        return self.has_had_peers and not self.has_peers()

    def has_peers(self) -> bool:
        """Whether another balancer is heard."""
        return any(peer.age_s <= SILENCE_S for peer in self._peers())

    def _peers(self) -> tuple[PeerSnapshot, ...]:
        since = time.monotonic() - self._reported_at
        peers = self._report.peers if self._report is not None else ()
        return tuple(PeerSnapshot(peer.node, peer.address, peer.age_s + since) for peer in peers)


def _copy(totals: _Totals) -> tuple[Counter[str], Counter[str], Counter[str], int]:
    return totals.numbers.copy(), totals.datagrams.copy(), totals.results.copy(), totals.restarts


def _shown(order: Order) -> str:
    places, keys = order.places, ",".join(f"{key.id:08x}" for key in order.keys)
    peers = ",".join(map(str, places.peers)) or "none"
    return f"group={places.group or 'none'} peers={peers} port={places.port} keys={keys}"


def not_shared() -> Sharing:
    return Sharing(None, lambda _: None, None)
