"""The process that shares flows: `python -m vc5py.sharer`, started and watched by `sharing`.

A process of its own, because a million flows a second take a good part of a CPU, and the balancer's event
loop must not wait for them. It shares the maps' memory with the balancer, decides nothing, and keeps nothing
that can't be had again: killed at any moment, it loses time and no more. On standard input it is told what it
needs in one line of JSON, and later in others that somebody waits for a copy, or another `hold`; on standard
output it reports every second (sharer_messages.py). Where nobody reads that, as the director hangs, it goes
on sharing: what must not get lost waits, the rest isn't said.

When either ends the director has died without a word, while packets go on by the maps, and routers send them
for `hold`. So it shares flows for as long, then the kernel ends it, whatever it does. The next director ends
it sooner, by SIGTERM, as one does that stops in order.
"""

from __future__ import annotations

import base64
import json
import os
import select
import signal
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
from vc5py.peers.sieve import Guard
from vc5py.peers.transport import Places, Transport

TICK_S = 0.1  # how often changed flows are told
REPORT_S = 1.0
REFRESH_S = 0.25
FLUSH_S = 0.002  # while something waits to be sent
STRAY_S = 1.0  # the same slot is reported again after so long
WALK_RATE = 250_000  # records a second of the walk that repeats all flows
COPY_RATE = 500_000  # of the walk for a node that has asked for a copy
_MOST_STRAYS = 1 << 15  # in one report
_MOST_WAITING = 1 << 20  # strays, for a director that doesn't read
_NO_STRAYS: NDArray[np.uint32] = np.zeros(0, dtype=np.uint32)


@dataclass(frozen=True, slots=True)
class Order:
    """What to do, as `sharing` writes it. `fds`: the maps'. `program`: file descriptor of vc5_learn.
    `hold_s`: how long to go on without a director.
    """

    fds: Mapping[str, int]
    sizes: Sizes
    ticks: TickClock
    program: int
    places: Places
    cluster: int
    node: int
    keys: tuple[Key, ...]
    datagram: int
    hold_s: float = 0.0

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
                "hold_s": self.hold_s,
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
            hold_s=said["hold_s"],
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
        self._reported = _NO_STRAYS
        self._strays: list[NDArray[np.uint32]] = []
        self._straying = 0  # how many are in `_strays`
        self._forgot = False  # some of them
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
                self._stray(learned.strays)
        return len(records)

    def _stray(self, words: NDArray[np.uint32]) -> None:
        """They are kept until somebody asks. What is too much comes again with a copy, asked for by then."""
        self._strays.append(words)
        self._straying += len(words)
        if self._straying > 2 * _MOST_WAITING:
            found = np.unique(np.concatenate(self._strays))
            self._forgot = self._forgot or len(found) > _MOST_WAITING
            self._keep(found[:_MOST_WAITING])

    def _keep(self, words: NDArray[np.uint32]) -> None:
        self._strays, self._straying = [words] if len(words) else [], len(words)

    def strays(self, now: float) -> NDArray[np.uint32]:
        """Flows in slots of other backends, since the last call; of every slot one, once a second."""
        if now - self._forgot_at >= STRAY_S:
            self._reported = _NO_STRAYS
            self._forgot_at = now
        if self._forgot:
            self._forgot = False
            self.exchange.peering.want_copy()
        if not self._strays:
            return _NO_STRAYS
        found = np.setdiff1d(np.concatenate(self._strays), self._reported)
        fresh = found[:_MOST_STRAYS]
        self._keep(found[_MOST_STRAYS:])
        self._reported = np.union1d(self._reported, fresh)
        return fresh

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


def start(order: Order, now: float) -> tuple[Sharer, Transport]:
    boot = int.from_bytes(os.urandom(8), "little")
    transport = Transport(order.places)
    peering = Peering(order.node, boot, now)
    codec = Codec(order.keys, order.cluster, order.node, boot)
    return Sharer(order, Exchange(codec, transport, peering, order.datagram), now), transport


class Director:
    """Who has started us: lines in, as soon as they are there, and out. `gone`, once either has ended. Never
    waits: what isn't taken is kept for the next `flush`, and until then no more should be said.
    """

    def __init__(self, reading: int, writing: int) -> None:
        self.fd = reading
        self._writing = writing
        for fd in (reading, writing):
            os.set_blocking(fd, False)
        self._rest = self._left = b""
        self._lines: deque[bytes] = deque()
        self.gone = False

    def read(self) -> None:
        try:
            data = os.read(self.fd, 1 << 16)
        except BlockingIOError:
            return
        except ConnectionError:
            data = b""
        self.gone = self.gone or not data
        *lines, self._rest = (self._rest + data).split(b"\n")
        self._lines.extend(lines)

    def take(self) -> bytes | None:
        return self._lines.popleft() if self._lines else None

    def say(self, what: str, value: object) -> None:
        self._left += json.dumps({what: value}).encode() + b"\n"
        self.flush()

    def flush(self) -> bool:
        """Whether all that was said is taken."""
        try:
            while self._left and not self.gone:
                self._left = self._left[os.write(self._writing, self._left) :]
        except BlockingIOError:
            return False
        except ConnectionError:
            self.gone = True
        self._left = b""
        return True


def _outlive(hold_s: float) -> bool:
    """Whether there is any time left without a director. The kernel ends us after it."""
    if hold_s <= 0:
        return False
    print(f"the director has gone: flows are shared for {hold_s:g} s more", file=sys.stderr, flush=True)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, hold_s)
    return True


class Service:
    """Until the director has gone, and for `hold` more."""

    def __init__(self, sharer: Sharer, transport: Transport, director: Director, hold_s: float) -> None:
        self._sharer, self._transport, self._director = sharer, transport, director
        self._hold_s = hold_s
        self._granted: int | None = None  # and not said yet
        self._guard = Guard()
        self._due = self._reported_at = time.monotonic()
        self._poll = select.poll()
        for fd in (*transport.filenos(), director.fd):
            self._poll.register(fd, select.POLLIN)

    def run(self) -> None:
        alone = False
        while True:
            self._wait()
            if self._director.gone and not alone:
                alone = True
                self._poll.unregister(self._director.fd)
                if not _outlive(self._hold_s):
                    return
            self._work(time.monotonic())

    def _wait(self) -> None:
        """Until something has come, or is to be done."""
        wait_s = FLUSH_S if self._sharer.exchange.queued else max(0.0, self._due - time.monotonic())
        if any(fd == self._director.fd for fd, _ in self._poll.poll(wait_s * 1000)):
            self._director.read()

    def _work(self, now: float) -> None:
        sharer = self._sharer
        sharer.receive(now)
        self._tell(now)
        if self._obey() or now >= self._due:
            self._due = now + TICK_S
            sharer.step(now)
            self._watch(now)
        sharer.exchange.flush(now)

    def _watch(self, now: float) -> None:
        """A flood of what can't count is left to the kernel for as long as it lasts."""
        exchange, transport = self._sharer.exchange, self._transport
        is_flood = self._guard.look(exchange.unwanted() + transport.dropped(), now)
        transport.sift(exchange.look() if is_flood else None)

    def _tell(self, now: float) -> None:
        """Nothing where the director still has something to read. Strays, and the news that a copy has come,
        wait for it, in this order, as it announces by the latter; of reports the next one says all.
        """
        sharer, director = self._sharer, self._director
        self._granted = sharer.granted() or self._granted
        if not director.flush():
            return
        strays = sharer.strays(now)
        if len(strays):
            director.say("strays", base64.b64encode(strays.tobytes()).decode())
        if self._granted is not None and len(strays) < _MOST_STRAYS:
            director.say("copied", self._granted)
            self._granted = None
        if now - self._reported_at >= REPORT_S:
            self._reported_at = now
            sockets = {"failed": self._transport.failed, "dropped": self._transport.dropped()}
            director.say("report", sharer.report(now) | sockets)

    def _obey(self) -> bool:
        """Whether there was something to be done at once."""
        told = False
        while (line := self._director.take()) is not None:
            said = json.loads(line)
            self._hold_s = said.get("hold_s", self._hold_s)
            if "copy" in said:
                self._sharer.want_copy(said["copy"])
                told = True
        return told


def main() -> int:
    director = Director(sys.stdin.fileno(), sys.stdout.fileno())
    while (first := director.take()) is None:
        select.select([director.fd], [], [])
        director.read()
        if director.gone:
            return 0
    order = Order.from_json(first.decode())
    try:
        sharer, transport = start(order, time.monotonic())
    except PeerError as error:
        director.say("error", str(error))
        return 1
    director.say("ready", flowsync.VERSION)
    Service(sharer, transport, director, order.hold_s).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
