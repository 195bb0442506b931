"""Who the peers are and what of theirs counts: presence, freshness, order, and copies of everything.

Sans-IO: told of datagrams that a member of the cluster has signed, and of the time, it says what to do with
them and what to send. Invariants: no datagram counts twice; a node counts only after it has named, in a
HELLO, the boot that we made up when we started, so that nothing recorded before can be played to us, and no
clocks need to agree.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from vc5py.core.flowsync import MAX_PEERS, Datagram, Kind, Outcome

WINDOW = 4096  # datagrams that may overtake each other
HELLO_S = 1.0
PROMPT_S = 0.1  # at the earliest so long after the last one a HELLO is answered
FORGET_S = 10.0
COPY_RETRY_S = 5.0
SILENCE_S = 3.0  # of a peer that was silent for so long, or cut off from us, something may have been missed


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
    """One boot of a node. `proven`: it has named our boot."""

    boot: int
    heard_at: float
    proven: bool = False
    copied: bool = False
    windows: dict[int, Window] = field(default_factory=dict)  # by addressee
    candidates: dict[int, float] = field(default_factory=dict)  # other boots that were heard of, and when

    @property
    def lost(self) -> int:
        return sum(window.lost for window in self.windows.values())


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
        self.copied = False
        self._asked_at = float("-inf")
        self._hello_at = now
        self._said_at = float("-inf")
        self._actions: list[Action] = []
        self.lost_before = 0  # of boots that are forgotten

    def want_copy(self) -> None:
        """There is something new here that we ignored flows of until now."""
        self.copied = False

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
            peer.copied = self.copied = True
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
            peer.proven = True
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
        proven = {node: peer for node, peer in self.peers.items() if peer.proven}
        talking = [node for node, peer in proven.items() if now - peer.heard_at <= SILENCE_S]
        if len(talking) < len(proven):
            self.copied, self._asked_at = False, float("-inf")
        asks = bool(talking) and not self.copied and now - self._asked_at >= COPY_RETRY_S
        if now >= self._hello_at or asks:  # a node does nothing for one that hasn't named it
            self._hello_at, self._said_at = now + HELLO_S, now
            actions.append(Hello(self._heard(now)))
        if asks:
            self._asked_at = now
            node = talking[int(now / COPY_RETRY_S) % len(talking)]
            actions.append(AskForCopy(node, self.peers[node].boot))
        return actions

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
