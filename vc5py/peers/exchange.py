"""The conversation with the other balancers: takes records to send, gives records that have come.

Puts the codec, the peers' state and the sockets together; knows nothing of where flows come from or go to.
What is sent is paced, so that a burst fits the receivers' buffers.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field

import numpy as np

from vc5py.core import flowsync
from vc5py.core.flowsync import EVERYBODY, NO_RECORDS, Codec, Datagram, Kind, Look, Outcome, Records
from vc5py.core.peering import HELLO_S, AskForCopy, GiveCopy, Hello, Peering
from vc5py.peers.transport import Address, Transport

SEND_RATE = 1_500_000  # records a second
BURST_S = 0.02
QUEUE = 1 << 19  # records that wait to be sent, before no more are taken
MOST_STREAMS = 256  # whose sequence numbers are remembered


@dataclass(frozen=True, slots=True)
class Recipient:
    """One node, as it is since its start, and where it was heard from; `to` as datagrams name it."""

    to: int = EVERYBODY
    address: Address | None = None


ALL = Recipient()


@dataclass(slots=True)
class Counts:
    """Since the start. `received`: datagrams by what became of them."""

    received: Counter[Outcome] = field(default_factory=Counter)
    sent: int = 0
    records_sent: int = 0
    bytes_sent: int = 0
    records_received: int = 0


class Exchange:
    def __init__(self, codec: Codec, transport: Transport, peering: Peering, datagram_bytes: int) -> None:
        self._codec, self._transport, self.peering = codec, transport, peering
        self._datagram = datagram_bytes
        self._sequences: Counter[int] = Counter()
        self._first = 0  # what a stream that is new, or was forgotten, begins with
        self._greeted: dict[int, float] = {}  # by addressee: when a HELLO was sent to it alone
        self._queue: deque[tuple[Recipient, Kind, int, bytes | memoryview]] = deque()
        self.queued = 0  # records
        self.addresses: dict[int, Address] = {}
        self.copies: deque[Recipient] = deque()  # asked for, not begun
        self.counts = Counts()
        self._allowed = 0.0
        self._paced_at: float | None = None

    # Sending

    def put(self, records: Records, recipient: Recipient = ALL) -> None:
        for count, body in flowsync.cut(records, self._datagram):
            self._queue.append((recipient, Kind.FLOWS, count, body))
        self.queued += len(records)

    def leave_gap(self) -> None:
        """Something will never be told: peers see that as loss, and ask for a copy."""
        self._sequences[EVERYBODY] += 1

    def end_copy(self, recipient: Recipient) -> None:
        self._queue.append((recipient, Kind.COPIED, 0, b""))

    def flush(self, now: float) -> None:
        """Sends what may be sent by now."""
        elapsed = 0.0 if self._paced_at is None else now - self._paced_at
        self._paced_at = now
        self._allowed = min(self._allowed + elapsed * SEND_RATE, BURST_S * SEND_RATE)
        while self._queue and self._allowed > 0:
            recipient, kind, count, body = self._queue.popleft()
            self._greet(recipient, now)
            self._send(kind, recipient, count, body)
            self._allowed -= count
            self.queued -= count
            self.counts.records_sent += count

    def _greet(self, recipient: Recipient, now: float) -> None:
        """What is sent to one node counts if it comes after a HELLO that was sent to it alone lately."""
        if recipient.to == EVERYBODY or now - self._greeted.get(recipient.to, float("-inf")) < HELLO_S:
            return
        self._bound_streams()
        self._greeted[recipient.to] = now
        self._say(self.peering.hello(now), recipient)

    def _say(self, hello: tuple[tuple[int, int], ...], recipient: Recipient) -> None:
        self._send(Kind.HELLO, recipient, len(hello), flowsync.heard_body(hello))

    def _bound_streams(self) -> None:
        """A peer may start again without end. No number of a stream is ever used twice."""
        if len(self._sequences) >= MOST_STREAMS:
            everybody = self._sequences[EVERYBODY]
            self._first = max(self._sequences.values())
            self._sequences = Counter({EVERYBODY: everybody})
            self._greeted.clear()

    def _send(self, kind: Kind, recipient: Recipient, count: int = 0, body: bytes | memoryview = b"") -> None:
        sequence = self._sequences.get(recipient.to, self._first)
        self._sequences[recipient.to] = sequence + 1
        data = self._codec.seal(kind, recipient.to, sequence, count, body)
        self._transport.send(data, recipient.address)
        self.counts.sent += 1
        self.counts.bytes_sent += len(data)

    # Receiving

    def receive(self, now: float) -> Records:
        """All records of the datagrams that have come, up to a bound, and count."""
        bodies: list[memoryview | bytes] = []
        for data, address, welcome in self._transport.receive():
            datagram = self._judge(data, address, now) if welcome else Outcome.SOURCE
            if isinstance(datagram, Outcome):
                self.counts.received[datagram] += 1
            elif datagram.kind is Kind.FLOWS:
                bodies.append(datagram.body)
        if not bodies:
            return NO_RECORDS
        records = np.frombuffer(b"".join(bodies), flowsync.RECORD)
        self.counts.records_received += len(records)
        return records

    def unwanted(self) -> int:
        """How many have come, since the start, that no signature could have saved."""
        return sum(self.counts.received[outcome] for outcome in (*flowsync.BY_LOOK, Outcome.SOURCE))

    def look(self) -> Look:
        """Of all others."""
        return self._codec.look()

    def _judge(self, data: memoryview, address: Address, now: float) -> Datagram | Outcome:
        datagram = self._codec.open(data)
        if isinstance(datagram, Outcome):
            return datagram
        outcome = self.peering.receive(datagram, now)
        if outcome is not Outcome.ACCEPTED:
            return outcome
        self.addresses[datagram.node] = address
        self.counts.received[outcome] += 1
        return datagram

    # The peers

    def tick(self, now: float) -> None:
        """A few times a second: says hello, asks for a copy and notes who asked for one."""
        for action in self.peering.tick(now):
            match action:
                case Hello(heard):
                    self._say(heard, ALL)
                case AskForCopy(node, boot):
                    self._greet(self._recipient(node, boot), now)
                    self._send(Kind.COPY, self._recipient(node, boot))
                case GiveCopy(node, boot):
                    recipient = self._recipient(node, boot)
                    if recipient not in self.copies:
                        self.copies.append(recipient)
        for node in self.addresses.keys() - self.peering.peers.keys():
            del self.addresses[node]

    def _recipient(self, node: int, boot: int) -> Recipient:
        return Recipient(flowsync.addressee(node, boot), self.addresses.get(node))
