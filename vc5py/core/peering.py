"""Who the peers are and what of theirs counts: presence, freshness, order, and copies of everything.

Sans-IO: told of datagrams that a member of the cluster has signed, and of the time, it says what to do with
them and what to send. Invariants: no datagram counts twice; a node counts only after it has named, in a
HELLO, the boot that we made up when we started, so that nothing recorded before can be played to us, and no
clocks need to agree; a copy is asked for at once where something was lost, and the less often the longer loss
goes on.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from vc5py.core.flowsync import EVERYBODY, MAX_PEERS, Datagram, Kind, Outcome

WINDOW = 4096  # datagrams that may overtake each other
HELLO_S = 1.0
PROMPT_S = 0.1  # at the earliest so long after the last one a HELLO is answered
FORGET_S = 10.0
COPY_RETRY_S = 5.0  # without a sign of the copy that was asked for
COPY_WAITS_S = (1.0, 60.0)  # between two that are asked for: the first, and where doubling ends
COPY_COMES_S = 1.0  # a copy of which nothing has come for so long isn't on its way
SILENCE_S = 3.0  # a peer that is silent for so long can't be asked


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

    @property
    def lost(self) -> int:
        """How many are missing between the first one seen and the greatest."""
        return self._next - self._started - self.seen if self.seen else 0


@dataclass(slots=True)
class Peer:
    """One boot of a node. `proven`: it has named our boot. `late`: it came when we had a copy already, so it
    may know what that one didn't. `settled`: so many lost datagrams are made up for by a copy.
    `lost_when_asked`: so many were missing of what it sent to us alone when a copy was last asked for.
    """

    boot: int
    heard_at: float
    proven: bool = False
    late: bool = False
    settled: int = 0
    noticed: int = 0
    lost_when_asked: int = 0
    windows: dict[int, Window] = field(default_factory=dict)  # by addressee
    candidates: dict[int, float] = field(default_factory=dict)  # other boots that were heard of, and when

    @property
    def lost(self) -> int:
        return sum(window.lost for window in self.windows.values())

    def lost_of_copy(self) -> int:
        """Of what it has sent to us alone."""
        return sum(window.lost for to, window in self.windows.items() if to != EVERYBODY)

    def look_for_loss(self) -> bool:
        """Whether something of it was lost, or may have been. Datagrams that are missing may only be late:
        those count that were missing at the last look too.
        """
        before, self.noticed = self.noticed, self.lost
        self.settled = min(self.settled, self.noticed)
        return self.late or min(before, self.noticed) > self.settled

    def settle(self) -> None:
        self.late, self.settled = False, self.noticed


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
    """To be sent: whom we hear."""

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
    """`node`, `boot`: our own; boots are random numbers."""

    def __init__(self, node: int, boot: int, now: float) -> None:
        self.node, self.boot = node, boot
        self.peers: dict[int, Peer] = {}
        self._copies = Copies()
        self._hello_at = now
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
        if peer is None or peer.boot != datagram.boot or not peer.proven:
            return Outcome.UNPROVEN
        if not self._take(peer, datagram):
            return Outcome.REPLAYED
        peer.heard_at = now
        if datagram.kind is Kind.COPY:
            self._actions.append(GiveCopy(datagram.node, datagram.boot))
        elif datagram.kind is Kind.COPIED:
            if peer.lost_of_copy() <= peer.lost_when_asked:
                self._copies.has_come(now)
        elif datagram.to != EVERYBODY:
            self._copies.comes(now)
        return Outcome.ACCEPTED

    def _take(self, peer: Peer, datagram: Datagram) -> bool:
        window = peer.windows.get(datagram.to)
        if window is None:
            window = peer.windows[datagram.to] = Window()
        return window.take(datagram.sequence)

    def _hello(self, datagram: Datagram, now: float) -> Outcome:
        named = (self.node, self.boot) in datagram.heard()
        peer = self.peers.get(datagram.node)
        if peer is not None and peer.boot != datagram.boot and peer.proven and not named:
            # Of another boot: a node that has started again, or a recording. Named back, it can tell.
            peer.candidates = {**dict(list(peer.candidates.items())[-3:]), datagram.boot: now}
            self._say_soon(now)
            return Outcome.UNPROVEN
        if peer is None or peer.boot != datagram.boot:
            if peer is None and len(self.peers) >= MAX_PEERS:
                return Outcome.CROWDED
            self.lost_before += peer.lost if peer is not None else 0
            peer = self.peers[datagram.node] = Peer(datagram.boot, now)
            self._say_soon(now)
        if named and not peer.proven:
            peer.proven, peer.late = True, self.copied
            self._say_soon(now)
        if not peer.proven:
            return Outcome.UNPROVEN
        if not self._take(peer, datagram):
            return Outcome.REPLAYED
        peer.heard_at = now
        return Outcome.ACCEPTED

    def _say_soon(self, now: float) -> None:
        self._hello_at = min(self._hello_at, max(now, self._said_at + PROMPT_S))

    def tick(self, now: float) -> list[Action]:
        """What is to be done now; to be called a few times a second."""
        for node in [node for node, peer in self.peers.items() if now - peer.heard_at > FORGET_S]:
            self.lost_before += self.peers.pop(node).lost
        actions, self._actions = self._actions, []
        asked = self._whom_to_ask(now)
        if now >= self._hello_at or asked is not None:  # a node does nothing for one that hasn't named it
            self._hello_at, self._said_at = now + HELLO_S, now
            actions.append(Hello(self._heard(now)))
        if asked is not None:
            actions.append(AskForCopy(asked, self.peers[asked].boot))
        return actions

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

    def _heard(self, now: float) -> tuple[tuple[int, int], ...]:
        """Every boot that has been heard of, new ones beside those that are known, so that they can prove
        themselves.
        """
        out: list[tuple[int, int]] = []
        for node, peer in self.peers.items():
            fresh = [boot for boot, at in peer.candidates.items() if now - at <= FORGET_S]
            out.extend((node, boot) for boot in fresh)
            out.append((node, peer.boot))
        return tuple(out[: MAX_PEERS + 16])

    @property
    def lost(self) -> int:
        return self.lost_before + sum(peer.lost for peer in self.peers.values())
