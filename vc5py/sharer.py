"""The process that shares flows: `python -m vc5py.sharer`, started and watched by `sharing`.

A process of its own, because a million flows a second take a good part of a CPU, and the balancer's event
loop must not wait for them. It shares the maps' memory with the balancer, decides nothing, and keeps nothing
that can't be had again: killed at any moment, it loses time and no more. On standard input, whose end is its
own, it is told what it needs in one line of JSON, and later in others that somebody waits for a copy; on
standard output it reports, a line of JSON each.
"""

from __future__ import annotations

import base64
import json
import os
import select
import sys
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vc5py.core import flowsync
from vc5py.core.flowsync import Codec, Key
from vc5py.core.peering import Peering
from vc5py.dataplane import abi
from vc5py.dataplane.export import Exporter, Walk
from vc5py.dataplane.learn import Importer
from vc5py.dataplane.maps import Maps, Sizes
from vc5py.dataplane.names import Names
from vc5py.dataplane.ticks import TickClock
from vc5py.errors import PeerError
from vc5py.peers.exchange import QUEUE, Exchange, Recipient
from vc5py.peers.transport import Places, Transport

TICK_S = 0.1  # how often changed flows are told
REPORT_S = 1.0
REFRESH_S = 0.25
FLUSH_S = 0.002  # while something waits to be sent
STRAY_S = 1.0  # the same slot is reported again after so long
WALK_RATE = 250_000  # records a second of the walk that repeats all flows
COPY_RATE = 500_000  # of the walk for a node that has asked for a copy
_MOST_STRAYS = 1 << 15  # in one report


@dataclass(frozen=True, slots=True)
class Order:
    """What to do, as `sharing` writes it. `fds`: the maps'. `program`: file descriptor of vc5_learn."""

    fds: Mapping[str, int]
    sizes: Sizes
    ticks: TickClock
    program: int
    places: Places
    cluster: int
    node: int
    keys: tuple[Key, ...]
    datagram: int

    def to_json(self) -> str:
        places = self.places
        return json.dumps(
            {
                "fds": dict(self.fds),
                "sizes": {name: getattr(self.sizes, name) for name in self.sizes.__slots__},
                "hz": self.ticks.hz,
                "epoch_s": self.ticks.epoch_s,
                "program": self.program,
                "port": places.port,
                "group": str(places.group) if places.group is not None else None,
                "interface": places.interface,
                "peers": [str(peer) for peer in places.peers],
                "cluster": self.cluster,
                "node": self.node,
                "keys": [(key.material.hex(), key.id) for key in self.keys],
                "datagram": self.datagram,
            }
        )

    @classmethod
    def from_json(cls, text: str) -> Order:
        said: dict[str, Any] = json.loads(text)
        group = ip_address(said["group"]) if said["group"] is not None else None
        peers = tuple(map(ip_address, said["peers"]))
        return cls(
            fds=said["fds"],
            sizes=Sizes(**said["sizes"]),
            ticks=TickClock(said["hz"], said["epoch_s"]),
            program=said["program"],
            places=Places(said["port"], group, said["interface"], peers),
            cluster=said["cluster"],
            node=said["node"],
            keys=tuple(Key(bytes.fromhex(material), id_) for material, id_ in said["keys"]),
            datagram=said["datagram"],
        )


class Sharer:
    """All of it but the waiting: `receive` when something has come, `step` every now and then."""

    def __init__(self, order: Order, exchange: Exchange, now: float) -> None:
        self._maps = maps = Maps(order.fds, order.sizes)
        self._ticks = order.ticks
        self._names = Names(maps)
        self._exporter = Exporter(maps, self._names, order.ticks)
        self._importer = Importer(maps, self._names, order.ticks, order.program)
        self.exchange = exchange
        self._walk = Walk(self._exporter, order.sizes.flow_sets)
        self._copy: tuple[Recipient, Walk] | None = None
        self._results = np.zeros(8, dtype=np.int64)
        self._reported: set[int] = set()
        self._strays: list[NDArray[np.uint32]] = []
        self._ticked_at = self._refreshed_at = self._forgot_at = now
        self._live = 0.0
        self._wish = self._granted = 0

    def want_copy(self, wish: int) -> None:
        """At once. `wish`: a number greater than any before."""
        self._wish = wish
        self.exchange.peering.want_copy(at_once=True)

    def granted(self) -> int | None:
        """The last wish, once a copy has come since."""
        if self._granted == self._wish or not self.exchange.peering.copied:
            return None
        self._granted = self._wish
        return self._wish

    def receive(self, now: float) -> int:
        """Takes what has come; returns how many records."""
        records = self.exchange.receive(now)
        if len(records):
            learned = self._importer.learn(records)
            self._results += learned.results
            if len(learned.strays):
                self._strays.append(learned.strays)
        return len(records)

    def strays(self, now: float) -> NDArray[np.uint32]:
        """Flows in slots of other backends, since the last call; of every slot one, once a second."""
        if now - self._forgot_at >= STRAY_S:
            self._reported.clear()
            self._forgot_at = now
        if not self._strays:
            return np.zeros(0, dtype=np.uint32)
        found = sorted(set(np.unique(np.concatenate(self._strays)).tolist()) - self._reported)
        fresh, later = found[:_MOST_STRAYS], found[_MOST_STRAYS:]
        self._strays = [np.array(later, dtype=np.uint32)] if later else []
        self._reported.update(fresh)
        return np.array(fresh, dtype=np.uint32)

    def step(self, now: float) -> None:
        """Finds out what is to be sent."""
        if now - self._refreshed_at >= REFRESH_S:
            if self._names.refresh():
                self.exchange.peering.want_copy()
            self._live = self._exporter.live_share() * self._maps.flows.size
            self._refreshed_at = now
        elapsed, self._ticked_at = now - self._ticked_at, now
        self.exchange.tick(now)
        room = QUEUE - self.exchange.queued
        if room > 0:
            missed = self._exporter.missed
            self.exchange.put(self._exporter.changed(room // self._maps.sizes.cpus))
            if self._exporter.missed > missed:
                self.exchange.leave_gap()
        if self.exchange.queued < QUEUE // 2:
            most = max(1, QUEUE // (2 * abi.FLOW_WAYS))
            self.exchange.put(self._walk.advance(elapsed / self._period_s(), most))
            self._go_on_copying(elapsed, most)

    def _period_s(self) -> float:
        """Of a walk: half of the shortest timeout but that of closing flows, or longer in a large table."""
        timeouts = self._maps.settings["timeout"][0]
        states = (abi.FlowState.UNPROVEN, abi.FlowState.ESTABLISHED, abi.FlowState.STREAM)
        seconds = [int(timeouts[state]) * self._ticks.tick_s / 2 for state in states]
        return min(max(min(seconds), self._live / WALK_RATE), max(seconds))

    def _go_on_copying(self, elapsed: float, most: int) -> None:
        if self._copy is None and self.exchange.copies:
            walk = Walk(self._exporter, self._maps.sizes.flow_sets, learned=True)
            self._copy = self.exchange.copies.popleft(), walk
        if self._copy is not None:
            recipient, walk = self._copy
            self.exchange.put(walk.advance(elapsed * COPY_RATE / max(1.0, self._live), most), recipient)
            if walk.at_start:
                self.exchange.end_copy(recipient)
                self._copy = None

    def report(self, now: float) -> dict[str, Any]:
        """All that `sharing` shows; numbers count from the start of this process."""
        counts, peering = self.exchange.counts, self.exchange.peering
        return {
            "datagrams": {str(outcome): n for outcome, n in counts.received.items()},
            "datagrams_sent": counts.sent,
            "bytes_sent": counts.bytes_sent,
            "sent": counts.records_sent,
            "received": counts.records_received,
            "results": {
                r.name.lower(): int(self._results[r]) for r in abi.LearnResult if r < len(self._results)
            },
            "missed": self._exporter.missed,
            "lost": peering.lost,
            "ambiguous": self._names.ambiguous,
            "copied": peering.copied,
            "cpu_s": time.process_time(),
            "peers": {
                f"{node:016x}": {
                    "age_s": now - peer.heard_at,
                    "address": str(self.exchange.addresses.get(node, ("",))[0]),
                }
                for node, peer in peering.peers.items()
                if peer.proven
            },
        }


def _say(what: str, value: object) -> None:
    sys.stdout.write(json.dumps({what: value}) + "\n")
    sys.stdout.flush()


def start(order: Order, now: float) -> tuple[Sharer, Transport]:
    boot = int.from_bytes(os.urandom(8), "little")
    transport = Transport(order.places)
    peering = Peering(order.node, boot, now)
    codec = Codec(order.keys, order.cluster, order.node, boot)
    return Sharer(order, Exchange(codec, transport, peering, order.datagram), now), transport


def _tell_strays(sharer: Sharer, now: float) -> None:
    strays = sharer.strays(now)
    if len(strays):
        _say("strays", base64.b64encode(strays.tobytes()).decode())


class Lines:
    """Standard input: each line as soon as it is there. Blocks where there is nothing to read."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._rest = b""
        self._lines: deque[bytes] = deque()
        self.ended = False

    def read(self) -> None:
        data = os.read(self.fd, 1 << 16)
        self.ended = not data
        *lines, self._rest = (self._rest + data).split(b"\n")
        self._lines.extend(lines)

    def take(self) -> bytes | None:
        return self._lines.popleft() if self._lines else None


def _obey(sharer: Sharer, orders: Lines) -> bool:
    """Whether there was something to be done at once."""
    told = False
    while (line := orders.take()) is not None:
        sharer.want_copy(json.loads(line)["copy"])
        told = True
    return told


def _tell_wish(sharer: Sharer) -> None:
    wish = sharer.granted()
    if wish is not None:
        _say("copied", wish)


def _serve(sharer: Sharer, transport: Transport, orders: Lines) -> None:
    """Until standard input ends."""
    poll = select.poll()
    for fd in (*transport.filenos(), orders.fd):
        poll.register(fd, select.POLLIN)
    due = reported = time.monotonic()
    while True:
        now = time.monotonic()
        wait = FLUSH_S if sharer.exchange.queued else max(0.0, due - now)
        if any(fd == orders.fd for fd, _ in poll.poll(wait * 1000)):
            orders.read()
        if orders.ended:
            return
        now = time.monotonic()
        sharer.receive(now)
        _tell_strays(sharer, now)
        _tell_wish(sharer)
        if _obey(sharer, orders) or now >= due:
            due = now + TICK_S
            sharer.step(now)
        sharer.exchange.flush(now)
        if now - reported >= REPORT_S:
            reported = now
            _say("report", sharer.report(now) | {"failed": transport.failed})


def main() -> int:
    orders = Lines(sys.stdin.fileno())
    while (first := orders.take()) is None:
        orders.read()
        if orders.ended:
            return 0
    order = Order.from_json(first.decode())
    try:
        sharer, transport = start(order, time.monotonic())
    except PeerError as error:
        _say("error", str(error))
        return 1
    _say("ready", flowsync.VERSION)
    _serve(sharer, transport, orders)
    return 0


if __name__ == "__main__":
    sys.exit(main())
