"""Who the peers are and what of theirs counts: presence, freshness, order, and copies of everything.

Sans-IO: told of datagrams that a member of the cluster has signed, and of the time, it says what to do with
them and what to send. Each HELLO tells the time that its sender's clock shows, and names the last one that it
heard of every other's. So one that names ours was made after that, whatever clocks say, and so was all that
follows it in its stream.

Invariants: no datagram counts twice, and none that was made more than FRESH_S ago, however often we or others
start or fall silent; what is remembered is bounded; a copy is asked for at once where something was lost, and
the less often the longer loss goes on.

Why forgetting is safe: what is remembered of a boot goes FORGET_S after the last datagram of it that counted.
All that counted was made before, so a HELLO from before any of it names a time of ours that is too old then.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Final, TypeVar

from vc5py.core.flowsync import EVERYBODY, MAX_PEERS, Datagram, Kind, Outcome

WINDOW = 4096  # datagrams that may overtake each other
HELLO_S = 1.0
PROMPT_S = 0.1  # at the earliest so long after the last one a HELLO is answered
FRESH_S = 10.0  # what was made longer ago doesn't count
FORGET_S = 10.0
COPY_RETRY_S = 5.0  # without a sign of the copy that was asked for
COPY_WAITS_S = (1.0, 60.0)  # between two that are asked for: the first, and where doubling ends
COPY_COMES_S = 1.0  # a copy of which nothing has come for so long isn't on its way
SILENCE_S = 3.0  # a peer that is silent for so long can't be asked
MAX_NAMED: Final = MAX_PEERS + 16  # boots that a HELLO names
MAX_STRANGERS = 8  # boots of one node, besides the one that counts
MAX_FORMER = 4 * MAX_PEERS  # that were replaced in the last FORGET_S

_CLOCK_HZ = 1000
_FRESH = round(FRESH_S * _CLOCK_HZ) - 1  # never longer than FORGET_S, although our clock is rounded down
_WORD = (1 << 64) - 1
_VOUCHERS = 128  # more than there are HELLOs in FRESH_S
assert FRESH_S <= FORGET_S
_Key = TypeVar("_Key")


class Window:
    """Which sequence numbers of one stream have been seen: each counts once, and late ones for a while."""

    __slots__ = ("_bits", "_next", "_started", "seen")

    def __init__(self) -> None:
        self._next = 0  # one more than the greatest number seen
        self._bits = 0  # bit n: _next - 1 - n was seen
        self._started = -1
        self.seen = 0

    def take(self, number: int) -> bool:
        """Whether it is new. What was sent before the first that was seen may be a recording."""
        if self._started < 0:
            self._started = number
        if number < self._started:
            return False
        ahead = number - self._next + 1
        if ahead > 0:
            self._bits = 1 if ahead >= WINDOW else (self._bits << ahead | 1) & (1 << WINDOW) - 1
            self._next = number + 1
        elif -ahead >= WINDOW or self._bits >> -ahead & 1:
            return False
        else:
            self._bits |= 1 << -ahead
        self.seen += 1
        return True

    def ignore(self, number: int) -> None:
        """It doesn't count, and so is missing if something after it does."""
        if not self.seen:
            self._started = number if self._started < 0 else min(self._started, number)

    @property
    def lost(self) -> int:
        """How many are missing between the first one seen and the greatest."""
        return self._next - self._started - self.seen if self.seen else 0


class Stream:
    """What one boot of a node sends to one addressee. `lost`: as its Window has it."""

    __slots__ = ("_vouchers", "window")

    def __init__(self) -> None:
        self.window = Window()
        self._vouchers: deque[tuple[int, int]] = deque(maxlen=_VOUCHERS)

    def vouch(self, sequence: int, named: int) -> None:
        """A HELLO of that number names that time of our clock: from there on all was made later."""
        last = self._vouchers[-1] if self._vouchers else (-1, -1)
        if sequence > last[0] and named > last[1]:
            self._vouchers.append((sequence, named))

    def take(self, sequence: int, oldest: int) -> Outcome:
        """Whether it counts. `oldest`: what was made before that time of our clock doesn't."""
        while self._vouchers and self._vouchers[0][1] < oldest:
            self._vouchers.popleft()
        if not self._vouchers:
            self.window.ignore(sequence)
            return Outcome.UNPROVEN
        if sequence < self._vouchers[0][0] or not self.window.take(sequence):
            return Outcome.REPLAYED
        return Outcome.ACCEPTED


@dataclass(slots=True)
class Peer:
    """One boot of a node. `named`: the last time of our clock that it has named; `told`: the last of its own,
    since its start. `proven`: it has named ours lately. `late`: it came when we had a copy already, so it may
    know what that one didn't. `settled`: so many lost datagrams are made up for by a copy.
    `lost_when_asked`: so many were missing of what it sent to us alone when a copy was last asked for.
    """

    boot: int
    heard_at: float
    named: int = -1
    told: int = 0
    proven: bool = True
    late: bool = False
    settled: int = 0
    noticed: int = 0
    lost_when_asked: int = 0
    streams: dict[int, Stream] = field(default_factory=dict)  # by addressee

    @property
    def lost(self) -> int:
        return sum(stream.window.lost for stream in self.streams.values())

    def lost_of_copy(self) -> int:
        """Of what it has sent to us alone."""
        return sum(stream.window.lost for to, stream in self.streams.items() if to != EVERYBODY)

    def look_for_loss(self) -> bool:
        """Whether something of it was lost, or may have been. Datagrams that are missing may only be late:
        those count that were missing at the last look too.
        """
        before, self.noticed = self.noticed, self.lost
        self.settled = min(self.settled, self.noticed)
        return self.late or min(before, self.noticed) > self.settled

    def settle(self) -> None:
        self.late, self.settled = False, self.noticed

    def stream(self, to: int) -> Stream:
        found = self.streams.get(to)
        if found is None:
            found = self.streams[to] = Stream()
        return found


class Copies:
    """When a copy is to be asked for. `copied`: the one that was asked for last has come."""

    def __init__(self) -> None:
        self.copied = False
        self.attempts = 0  # since the last one that came
        self._at_once = self._urgent = False
        self._asked_at = self._sign_at = self._trouble_at = self._earliest = float("-inf")
        self._wait_s, self._longest_s = COPY_WAITS_S

    def want(self, *, at_once: bool = False) -> None:
        self.copied = False
        self._at_once = self._at_once or at_once
        self._urgent = self._urgent or at_once

    def is_due(self, lost: bool, now: float) -> bool:
        """`lost`: something has been since the last one was asked for."""
        if lost:
            self._trouble_at = now
        if now - max(self._trouble_at, self._asked_at) > self._longest_s:
            self._wait_s = COPY_WAITS_S[0]
        if self._at_once or (self._urgent and not self._has_begun() and now - self._asked_at >= COPY_COMES_S):
            return True
        if now < self._earliest:
            return False
        if lost and (self.copied or now - self._sign_at >= COPY_COMES_S):
            return True
        return not self.copied and now - max(self._asked_at, self._sign_at) >= COPY_RETRY_S

    def _has_begun(self) -> bool:
        """Whether anything has come of the copy that was asked for last."""
        return self._sign_at > self._asked_at

    def asked(self, now: float) -> None:
        self.copied = self._at_once = False
        self.attempts += 1
        self._asked_at, self._earliest = now, now + self._wait_s
        self._wait_s = min(2 * self._wait_s, self._longest_s)

    def comes(self, now: float) -> None:
        """A part of it."""
        self._sign_at = now

    def has_come(self, now: float) -> None:
        """Half of the time at most goes into copies, however long they take."""
        self.copied, self.attempts, self._urgent = True, 0, False
        self._earliest = max(self._earliest, 2 * now - self._asked_at)


@dataclass(frozen=True, slots=True)
class Hello:
    """To be sent: what our clock shows, and whom we hear, each with the last time of its clock: as nodes, and
    boots plus the milliseconds since.
    """

    heard: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class AskForCopy:
    """To be sent to one node, as it is since its start."""

    node: int
    boot: int


@dataclass(frozen=True, slots=True)
class GiveCopy:
    """All of our flows are to be sent to one node."""

    node: int
    boot: int


Action = Hello | AskForCopy | GiveCopy


class Peering:
    """`node`, `boot`: our own; boots are random numbers. `peers`: of each node the boot that counts."""

    def __init__(self, node: int, boot: int, now: float) -> None:
        self.node, self.boot = node, boot
        self.peers: dict[int, Peer] = {}
        self._former: dict[tuple[int, int], Peer] = {}  # replaced a moment ago
        self._strangers: dict[tuple[int, int], tuple[int, float]] = {}  # what they told, and when
        self._copies = Copies()
        self._started = self._hello_at = now
        self._said_at = float("-inf")
        self._actions: list[Action] = []
        self.lost_before = 0  # of boots that are forgotten

    @property
    def copied(self) -> bool:
        """Whether all that a peer knew has come since it was last asked for."""
        return self._copies.copied

    def want_copy(self, *, at_once: bool = False) -> None:
        """There is something new here that we ignored flows of until now; or somebody waits for it."""
        self._copies.want(at_once=at_once)

    def receive(self, datagram: Datagram, now: float) -> Outcome:
        """Whether it counts. Records of an ACCEPTED one may be used."""
        if datagram.kind is Kind.HELLO:
            return self._hello(datagram, now)
        peer = self.peers.get(datagram.node)
        if peer is None or peer.boot != datagram.boot:
            was_here = (datagram.node, datagram.boot) in self._former
            return Outcome.REPLAYED if was_here else Outcome.UNPROVEN
        outcome = self._take(peer, datagram, now)
        if outcome is not Outcome.ACCEPTED:
            return outcome
        if datagram.kind is Kind.COPY:
            self._actions.append(GiveCopy(datagram.node, datagram.boot))
        elif datagram.kind is Kind.COPIED:
            if peer.lost_of_copy() <= peer.lost_when_asked:
                self._copies.has_come(now)
        elif datagram.to != EVERYBODY:
            self._copies.comes(now)
        return outcome

    def _take(self, peer: Peer, datagram: Datagram, now: float) -> Outcome:
        outcome = peer.stream(datagram.to).take(datagram.sequence, self._clock(now) - _FRESH)
        if outcome is Outcome.ACCEPTED:
            peer.heard_at = now
        return outcome

    # Freshness

    def _clock(self, now: float) -> int:
        return int((now - self._started) * _CLOCK_HZ)

    def _read(self, datagram: Datagram, now: float) -> tuple[int, int]:
        """Of a HELLO: what its sender's clock showed; and the last time of ours that it names, -1 if none is
        fresh.
        """
        told, named, clock = 0, -1, self._clock(now)
        for node, number in datagram.heard():
            if node == datagram.node:
                told = max(told, number - datagram.boot & _WORD)
            elif node == self.node and 0 <= clock - (number - self.boot & _WORD) <= _FRESH:
                named = max(named, number - self.boot & _WORD)
        return told, named

    def _hello(self, datagram: Datagram, now: float) -> Outcome:
        told, named = self._read(datagram, now)
        peer = self.peers.get(datagram.node)
        if peer is None and len(self.peers) >= MAX_PEERS:
            return Outcome.CROWDED
        if peer is None or peer.boot != datagram.boot:
            if not self._replaces(peer, datagram, named):
                return self._note(datagram, told, now)
            peer = self._adopt(datagram, now)
        peer.told = max(peer.told, told)
        if named >= 0:
            peer.named, peer.proven = max(peer.named, named), True
            peer.stream(datagram.to).vouch(datagram.sequence, named)
        return self._take(peer, datagram, now)

    def _replaces(self, peer: Peer | None, datagram: Datagram, named: int) -> bool:
        """Whether another boot is the one that counts from now on: it has heard us after `peer` did. What a
        node said before it started again names times from before that.
        """
        if named < 0 or (peer is not None and named <= peer.named):
            return False
        return len(self._former) < MAX_FORMER or (datagram.node, datagram.boot) in self._former

    def _adopt(self, datagram: Datagram, now: float) -> Peer:
        """Takes up what was known of it."""
        node, boot = datagram.node, datagram.boot
        told, _ = self._strangers.pop((node, boot), (0, now))
        before = self.peers.pop(node, None)
        if before is not None:
            self._former[node, before.boot] = before
        peer = self._former.pop((node, boot), None) or Peer(boot, now, told=told)
        peer.late = self.copied
        self.peers[node] = peer
        self._bound_strangers()
        self._say_soon(now)
        return peer

    def _note(self, datagram: Datagram, told: int, now: float) -> Outcome:
        """Of a boot that doesn't count: of a node that has just started, or a recording. Named back, it can
        tell.
        """
        key = datagram.node, datagram.boot
        if key in self._former:
            return Outcome.REPLAYED
        before, _ = self._strangers.pop(key, (0, now))
        self._strangers[key] = max(told, before), now  # the last one heard is last
        for old in [one for one in self._strangers if one[0] == datagram.node][:-MAX_STRANGERS]:
            del self._strangers[old]
        self._bound_strangers()
        self._say_soon(now)
        return Outcome.UNPROVEN

    def _bound_strangers(self) -> None:
        """A HELLO names all of them."""
        surplus = len(self._strangers) + len(self.peers) - MAX_NAMED
        for old in list(self._strangers)[: max(0, surplus)]:
            del self._strangers[old]

    def _say_soon(self, now: float) -> None:
        self._hello_at = min(self._hello_at, max(now, self._said_at + PROMPT_S))

    def tick(self, now: float) -> list[Action]:
        """What is to be done now; to be called a few times a second."""
        self._forget(now)
        actions, self._actions = self._actions, []
        asked = self._whom_to_ask(now)
        if now >= self._hello_at or asked is not None:  # a node does nothing for one that hasn't named it
            self._hello_at, self._said_at = now + HELLO_S, now
            actions.append(Hello(self.hello(now)))
        if asked is not None:
            actions.append(AskForCopy(asked, self.peers[asked].boot))
        return actions

    def _forget(self, now: float) -> None:
        self.lost_before += _drop_silent(self.peers, now) + _drop_silent(self._former, now)
        for key in [key for key, (_, at) in self._strangers.items() if now - at > FORGET_S]:
            del self._strangers[key]
        for peer in self.peers.values():
            peer.proven = peer.named >= self._clock(now) - _FRESH

    def _whom_to_ask(self, now: float) -> int | None:
        """For a copy, if one is due. One is enough, whoever was not heard: it has what the others told it."""
        proven = {node: peer for node, peer in self.peers.items() if peer.proven}
        wanting = [node for node, peer in proven.items() if peer.look_for_loss()]
        talking = [node for node, peer in proven.items() if now - peer.heard_at <= SILENCE_S]
        wanting = [node for node in wanting if node in talking]
        if not talking or not self._copies.is_due(bool(wanting), now):
            return None
        # The next one after us, so that not all ask the same one.
        around = sorted(wanting or talking, key=lambda node: (node - self.node) % (1 << 64))
        chosen = around[self._copies.attempts % len(around)]
        for peer in proven.values():
            peer.settle()
            peer.lost_when_asked = peer.lost_of_copy()
        self._copies.asked(now)
        return chosen

    def hello(self, now: float) -> tuple[tuple[int, int], ...]:
        """What a HELLO says now: our clock, and every boot that has been heard of, so that new ones can prove
        themselves beside those that count.
        """
        told = {(self.node, self.boot): self._clock(now)}
        told |= {(node, peer.boot): peer.told for node, peer in self.peers.items()}
        told |= {key: clock for key, (clock, _) in self._strangers.items()}
        return tuple((node, boot + clock & _WORD) for (node, boot), clock in told.items())

    @property
    def lost(self) -> int:
        known = (*self.peers.values(), *self._former.values())
        return self.lost_before + sum(peer.lost for peer in known)


def _drop_silent(peers: dict[_Key, Peer], now: float) -> int:
    """Returns how many of their datagrams were lost."""
    silent = [key for key, peer in peers.items() if now - peer.heard_at > FORGET_S]
    return sum(peers.pop(key).lost for key in silent)
