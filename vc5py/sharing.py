"""Flow sharing as the balancer has it: keeps the process that does it (`sharer`) running, hears its reports.

Reads the cluster's secrets, tells the process what it needs, and starts it again when it ends. The balancer
can live without it: its death costs the peers' knowledge of the last moments, and no packet. Invariant: a
secret is in no log, no argument and no environment of ours; the process gets it over a pipe.
"""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import os
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vc5py.core import flowsync
from vc5py.core.flowhash import FlowKey
from vc5py.core.flowsync import Key
from vc5py.core.peering import SILENCE_S
from vc5py.dataplane.driver import Driver
from vc5py.errors import PeerError
from vc5py.model import Cluster, Config, IPAddress, Secret
from vc5py.peers.transport import Places
from vc5py.sharer import Order
from vc5py.snapshot import PeerSnapshot, SharingSnapshot

_log = logging.getLogger(__name__)

MAX_KEYS = 2
STEADY_S = 10.0  # a process that has lived for so long begins with the shortest wait again
WAITS_S = (0.2, 1.0, 5.0)
STOP_S = 1.0
_LINE = 1 << 20
_MACHINE_ID = Path("/etc/machine-id")
_COUNTERS = ("datagrams_sent", "bytes_sent", "sent", "received", "missed", "lost", "failed", "cpu_s")


@dataclass(frozen=True, slots=True)
class Secrets:
    """What the cluster's nodes have in common. `keys`: the first one signs."""

    flow_key: FlowKey
    keys: tuple[Key, ...]


NO_SECRETS = Secrets(FlowKey.derive(), ())


def _read(place: Secret) -> bytes:
    """PeerError names the place, and never tells what is there."""
    if place.file is None:
        return os.environb.get((place.variable or "").encode(), b"")
    try:
        return Path(place.file).read_bytes()
    except OSError as error:
        raise PeerError(f"{place.file}: {error.strerror or error}") from error


def _lines(place: Secret, most: int) -> list[bytes]:
    where = place.file or f"the variable {place.variable}"
    lines = [line.strip() for line in _read(place).splitlines() if line.strip()]
    if not 1 <= len(lines) <= most:
        raise PeerError(
            f"{where}: found {len(lines)} lines, expected {'one' if most == 1 else f'1 to {most}'}"
        )
    for line in lines:
        if len(line) < flowsync.MIN_SECRET:
            raise PeerError(f"{where}: found {len(line)} bytes, expected {flowsync.MIN_SECRET} or more")
    return lines


def read_secrets(cluster: Cluster | None) -> Secrets:
    """All of them, read now. Without a cluster anybody knows them. Raises PeerError."""
    if cluster is None:
        return NO_SECRETS
    [secret] = _lines(cluster.secret, 1)
    keys = [secret] if cluster.keys is None else _lines(cluster.keys, MAX_KEYS)
    return Secrets(FlowKey.derive(secret), tuple(map(Key.derive, keys)))


def flow_key(config: Config, secrets: Secrets) -> FlowKey | None:
    """What flows are named by where they are shared; None where they aren't."""
    return secrets.flow_key if is_on(config) else None


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
    )


@dataclass(slots=True)
class _Totals:
    """Over all processes so far."""

    numbers: Counter[str] = field(default_factory=Counter)
    datagrams: Counter[str] = field(default_factory=Counter)
    results: Counter[str] = field(default_factory=Counter)
    restarts: int = 0

    def add(self, report: Mapping[str, Any]) -> None:
        """The last report of a process that has ended."""
        self.numbers.update({name: report.get(name, 0) for name in _COUNTERS})
        self.datagrams.update(report.get("datagrams", {}))
        self.results.update(report.get("results", {}))


class Sharing:
    """`order` None: flows are not shared. `disturb` is told of flows in slots of other backends."""

    def __init__(self, order: Order | None, disturb: Callable[[NDArray[np.uint32]], None]) -> None:
        self._order = order
        self._disturb = disturb
        self._process: asyncio.subprocess.Process | None = None
        self._report: dict[str, Any] = {}
        self._reported_at = 0.0
        self._had_peers = False
        self._totals = _Totals()
        self._trouble = ""

    # Keys

    def set_keys(self, keys: tuple[Key, ...]) -> None:
        """From now on; a process with others is exchanged for a new one."""
        if self._order is None or self._order.keys == keys:
            return
        self._order = replace(self._order, keys=keys)
        _log.info("flow sharing keys=%s", ",".join(f"{key.id:08x}" for key in keys))
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.terminate()

    # The process

    async def run(self) -> None:
        """Until cancelled."""
        if self._order is None:
            return
        failures = 0
        while True:
            began = time.monotonic()
            await self._live(self._order)
            failures = 0 if time.monotonic() - began > STEADY_S else failures + 1
            self._totals.restarts += 1
            await asyncio.sleep(WAITS_S[min(failures, len(WAITS_S)) - 1] if failures else 0)

    async def _live(self, order: Order) -> None:
        """One process, from start to end."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "vc5py.sharer",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            pass_fds=(*order.fds.values(), order.program),
            limit=_LINE,
        )
        assert process.stdin is not None and process.stdout is not None
        self._process = process
        try:
            with suppress(ConnectionError):
                process.stdin.write(order.to_json().encode() + b"\n")
                await process.stdin.drain()
            async for line in process.stdout:
                self._hear(line)
        finally:
            self._process = None
            self._totals.add(self._report)
            self._report = {}
            await _end(process)
        if not self._trouble:
            _log.warning("flow sharing ended status=%s", process.returncode)

    def _hear(self, line: bytes) -> None:
        ((what, said),) = json.loads(line).items()
        if what == "strays":
            self._disturb(np.frombuffer(base64.b64decode(said), dtype=np.uint32))
        elif what == "report":
            self._report, self._reported_at = said, time.monotonic()
            self._had_peers = self._had_peers or bool(said.get("peers"))
        elif what == "error":
            if said != self._trouble:
                _log.error("flow sharing error=%s", said)
            self._trouble = said
        elif what == "ready":
            self._trouble = ""
            _log.info("flow sharing begins version=%s", said)

    # What is shown

    def snapshot(self) -> SharingSnapshot:
        report, totals = self._report, _Totals(*(_copy(self._totals)))
        totals.add(report)
        numbers = totals.numbers
        return SharingSnapshot(
            enabled=self._order is not None,
            running=bool(report),
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
            ambiguous=report.get("ambiguous", 0),
            copied=report.get("copied", False),
            cpu_s=numbers["cpu_s"],
            peers=self._peers(),
        )

    def is_alone(self) -> bool:
        """Whether there were peers, and all of them have fallen silent."""
        return self._had_peers and all(peer.age_s > SILENCE_S for peer in self._peers())

    def _peers(self) -> tuple[PeerSnapshot, ...]:
        since = time.monotonic() - self._reported_at
        return tuple(
            PeerSnapshot(node, said["address"], said["age_s"] + since)
            for node, said in sorted(self._report.get("peers", {}).items())
        )


def _copy(totals: _Totals) -> tuple[Counter[str], Counter[str], Counter[str], int]:
    return totals.numbers.copy(), totals.datagrams.copy(), totals.results.copy(), totals.restarts


def not_shared() -> Sharing:
    return Sharing(None, lambda _: None)


async def _end(process: asyncio.subprocess.Process) -> None:
    """The end of its input is the process's end; one that doesn't care is killed."""
    if process.stdin is not None:
        process.stdin.close()
    try:
        async with asyncio.timeout(STOP_S):
            await process.wait()
    except TimeoutError:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
