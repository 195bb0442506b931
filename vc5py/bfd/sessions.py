"""All BFD sessions of a node: which one a datagram is for, what is due, what has become of each.

Sans-IO: datagrams in and out as values, time and randomness are parameters. Standard library only. Must not
know: sockets, processes, BGP.

Invariants: a datagram that fails any test of RFC 5880, section 6.8.6, or of RFC 5881, section 5 (TTL 255), or
that names the discriminator of another neighbor's session, changes nothing but a counter. However late one
is looked at, silence is judged by when datagrams arrived. A round costs a comparison for each session that
has nothing to do.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from vc5py.bfd import packet as wire
from vc5py.bfd import protocol
from vc5py.bfd.packet import Packet, Reject, State
from vc5py.bfd.protocol import Session, Settings

TTL = 255
# A neighbor that was up, fell silent, and stays so for this long may have stopped to speak BFD: whether it is
# there is then for BGP alone to find out.
FORGIVE_S = 30.0
_NEVER = math.inf


@dataclass(frozen=True, slots=True)
class Datagram:
    """As it came: `at` is when it arrived, `ttl` its TTL or hop limit. The source port doesn't count: routers
    send from others than RFC 5881 has for it (BIRD from any).
    """

    source: str
    ttl: int
    data: bytes
    at: float


@dataclass(slots=True)
class Entry:
    """A session and its history. `lost`: it was up, and left that for a reason that tells of the path.
    `due_at`: when time alone has something to change in it.
    """

    session: Session
    due_at: float = 0.0
    remote_diagnostic: int = 0
    lost: bool = False
    lost_at: float = 0.0
    transitions: int = 0
    packets_in: int = 0
    packets_out: int = 0
    since: float = 0.0


@dataclass(frozen=True, slots=True)
class Status:
    """What is known of one neighbor. `reachable` is False only where BFD has found the path to be broken: not
    before the first time up, not after the neighbor said it is administratively down (RFC 5882, section 3.2).
    `since`: when the session came into its state, by the clock that the sessions go by.
    """

    neighbor: str
    state: str
    remote_state: str
    diagnostic: int
    remote_diagnostic: int
    reachable: bool
    transitions: int
    packets_in: int
    packets_out: int
    since: float
    detection_ms: float


@dataclass(slots=True)
class Leaving:
    """A session that isn't wanted any more: administratively down, which is told until `until`."""

    session: Session
    until: float

    @property
    def due_at(self) -> float:
        at = self.session.transmit_at
        return self.until if at is None else min(at, self.until)


@dataclass(slots=True)
class Sessions:
    """`changed`: neighbors whose session's state or reachability has changed; whoever looks empties it.
    `leaving`: who is still told that there is no session any more (RFC 5880, section 6.8.16); by silence they
    would find a broken path.
    """

    entries: dict[str, Entry] = field(default_factory=dict)
    leaving: dict[str, Leaving] = field(default_factory=dict)
    rejects: Counter[Reject] = field(default_factory=Counter)
    changed: set[str] = field(default_factory=set)

    def configure(self, wanted: Mapping[str, Settings], now: float, rng: random.Random) -> tuple[str, ...]:
        """Makes the sessions these; the neighbors whose sessions are gone, and who may have to be told. Those
        that stay, stay up.
        """
        gone = tuple(neighbor for neighbor in self.entries if neighbor not in wanted)
        for neighbor in gone:
            closed = protocol.close(self.entries.pop(neighbor).session, now)
            self.leaving[neighbor] = Leaving(closed, now + self._telling_s(closed))
        for neighbor, settings in wanted.items():
            self.leaving.pop(neighbor, None)
            entry = self.entries.get(neighbor)
            if entry is None:
                session = protocol.start(settings, self._discriminator(rng), now)
                self.entries[neighbor] = Entry(session, now, since=now)
            else:
                self._change(neighbor, entry, protocol.configure(entry.session, settings, now), now)
        return gone

    def restore(self, entries: Mapping[str, Entry]) -> None:
        """Goes on with these, from another process: silence is judged as if it had never been away."""
        self.entries |= entries

    def receive(self, datagram: Datagram) -> None:
        found = self._find(datagram)
        if isinstance(found, Reject):
            self.rejects[found] += 1
            return
        neighbor, packet = found
        entry = self.entries[neighbor]
        # It came too late where the detection time was over already when it arrived.
        self._change(neighbor, entry, protocol.expire(entry.session, datagram.at), datagram.at)
        entry.packets_in += 1
        entry.remote_diagnostic = packet.diagnostic
        self._change(neighbor, entry, protocol.receive(entry.session, packet, datagram.at), datagram.at)

    def advance(self, now: float, rng: random.Random) -> Iterable[tuple[str, bytes]]:
        """Judges silence; what to send now, by neighbor. Call it after every datagram was handed over."""
        for neighbor, entry in self.entries.items():
            if entry.due_at > now:
                continue
            self._change(neighbor, entry, protocol.expire(entry.session, now), now)
            self._forgive(neighbor, entry, now)
            while True:
                session, packet = protocol.transmit(entry.session, now, rng.random())
                self._change(neighbor, entry, session, now)
                if packet is None:
                    break
                entry.packets_out += 1
                yield neighbor, wire.encode(packet)
        yield from self._take_leave(now, rng)

    def _take_leave(self, now: float, rng: random.Random) -> Iterable[tuple[str, bytes]]:
        self.leaving = {neighbor: one for neighbor, one in self.leaving.items() if now < one.until}
        for neighbor, one in self.leaving.items():
            one.session, packet = protocol.transmit(one.session, now, rng.random())
            if packet is not None:
                yield neighbor, wire.encode(packet)

    def close(self, now: float) -> float:
        """Takes all administratively down; how long that should be told."""
        for neighbor, entry in self.entries.items():
            self._change(neighbor, entry, protocol.close(entry.session, now), now)
        telling = [self._telling_s(entry.session) for entry in self.entries.values()]
        return max((*telling, *(leaving.until - now for leaving in self.leaving.values())), default=0.0)

    @property
    def next_at(self) -> float | None:
        due = [entry.due_at for entry in self.entries.values()]
        due += [leaving.due_at for leaving in self.leaving.values()]
        due_at = min(due, default=_NEVER)
        return due_at if due_at < _NEVER else None

    def status(self, neighbor: str) -> Status:
        entry = self.entries[neighbor]
        session = entry.session
        return Status(
            neighbor,
            session.state.word,
            session.remote_state.word,
            int(session.diagnostic),
            entry.remote_diagnostic,
            not entry.lost,
            entry.transitions,
            entry.packets_in,
            entry.packets_out,
            entry.since,
            session.detection_s * 1e3,
        )

    @staticmethod
    def _telling_s(session: Session) -> float:
        """The Detection Time of the neighbor, or nothing where none listens."""
        if not session.remote_discr:
            return 0.0
        return 1e-6 * session.settings.multiplier * max(session.sent_tx_us, session.remote_min_rx_us)

    def _discriminator(self, rng: random.Random) -> int:
        taken = {entry.session.local_discr for entry in self.entries.values()}
        while True:
            candidate = rng.randrange(1, 1 << 32)
            if candidate not in taken:
                return candidate

    def _find(self, datagram: Datagram) -> tuple[str, Packet] | Reject:
        if datagram.ttl != TTL:
            return Reject.TTL
        packet = wire.decode(datagram.data)
        if isinstance(packet, Reject):
            return packet
        entry = self.entries.get(datagram.source)
        if not packet.your_discriminator:
            return (datagram.source, packet) if entry is not None else Reject.NO_SESSION
        if entry is not None and entry.session.local_discr == packet.your_discriminator:
            return datagram.source, packet
        ours = any(e.session.local_discr == packet.your_discriminator for e in self.entries.values())
        return Reject.WRONG_NEIGHBOR if ours else Reject.NO_SESSION

    def _change(self, neighbor: str, entry: Entry, after: Session, now: float) -> None:
        before, entry.session = entry.session, after
        silenced = after.remote_state is State.ADMIN_DOWN or after.state in (State.UP, State.ADMIN_DOWN)
        if entry.lost and silenced:
            entry.lost = False
            self.changed.add(neighbor)
        if after.state is not before.state:
            entry.transitions += 1
            entry.since = now
            if before.state is State.UP and not silenced:
                entry.lost, entry.lost_at = True, now
            self.changed.add(neighbor)
        entry.due_at = _due_at(entry)

    def _forgive(self, neighbor: str, entry: Entry, now: float) -> None:
        if entry.lost and now >= _forgiven_at(entry):
            entry.lost = False
            self.changed.add(neighbor)
            entry.due_at = _due_at(entry)


def _due_at(entry: Entry) -> float:
    session = entry.session
    at = (session.heard_at or 0.0) if session.answer else session.next_at
    at = _NEVER if at is None else at
    return min(at, _forgiven_at(entry)) if entry.lost else at


def _forgiven_at(entry: Entry) -> float:
    return max(entry.lost_at, entry.session.heard_at or 0.0) + FORGIVE_S
