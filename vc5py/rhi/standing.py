"""How it is with the BGP neighbors, as values, and the book that is kept of them.

Must not know: who finds that out (speaker.py), or who shows it. Invariant: every change of a neighbor's state
is told to `on_change`, once, after it is in the book.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from vc5py.model import IPAddress, Neighbor
from vc5py.rhi import signatures
from vc5py.rhi.grammar import SessionState
from vc5py.rhi.signatures import Dropped

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Standing:
    """How it is with one neighbor. `since`: Unix timestamp of the last change of `state`. `why`: what ended
    the last session, or keeps one from coming up. `routes`: how many it was told in this session. `dropped`:
    what had been dropped for its MD5 signature then.
    """

    state: SessionState = SessionState.DOWN
    since: float = 0.0
    why: str = ""
    routes: int = 0
    dropped: Dropped = field(default_factory=Dropped)


def fresh() -> Standing:
    """Of a neighbor that nothing is known of yet."""
    return Standing(since=time.time(), dropped=signatures.dropped())


class Book:
    """Of these neighbors, `peers`; what is said of others is not heeded."""

    def __init__(
        self, peers: Iterable[IPAddress], on_change: Callable[[IPAddress, SessionState], None]
    ) -> None:
        self._on_change = on_change
        self._entries = dict.fromkeys(peers, fresh())
        self._missing: Mapping[IPAddress, str] = {}
        self._deaf: dict[IPAddress, str] = {}
        self._heard = False

    def keep(self, peers: Iterable[IPAddress]) -> None:
        """From now on of these."""
        new = fresh()
        self._entries = {peer: self._entries.get(peer, new) for peer in peers}

    def states(self) -> Mapping[IPAddress, SessionState]:
        return MappingProxyType({peer: one.state for peer, one in self._entries.items()})

    def shown(
        self, neighbors: Iterable[Neighbor], routes: Mapping[IPAddress, int]
    ) -> dict[Neighbor, Standing]:
        """Everything to know. `routes`: how many each was told."""
        dropped = signatures.dropped()
        return {neighbor: self._shown(neighbor, routes, dropped) for neighbor in neighbors}

    def _shown(self, neighbor: Neighbor, routes: Mapping[IPAddress, int], dropped: Dropped) -> Standing:
        one = self._entries[neighbor.address]
        if one.state is SessionState.ESTABLISHED:
            return replace(one, routes=routes.get(neighbor.address, 0))
        if not neighbor.passive or neighbor.address in self._missing or not self._heard:
            return one
        hint = self._deaf.get(neighbor.address) or signatures.hint(neighbor, one.dropped, dropped)
        return replace(one, why=f"{one.why}; {hint}" if one.why else hint)

    # Entries

    def hear(self) -> None:
        """ExaBGP says how it is with its sessions."""
        self._heard = True
        self._show_missing()

    def lack(self, missing: Mapping[IPAddress, str]) -> None:
        """From now on no session can be with these neighbors, and why."""
        for peer in (self._missing.keys() - missing.keys()) & self._entries.keys():
            self._entries[peer] = replace(self._entries[peer], why="")
        self._missing = missing
        self._show_missing()

    def _show_missing(self) -> None:
        for peer, why in self._missing.items():
            self.note(peer, SessionState.DOWN, why)

    def note(self, peer: IPAddress, state: SessionState, why: str = "") -> None:
        """What is known of its session now. Without a reason the former one stays, until it is up."""
        before = self._entries.get(peer)
        if before is None:
            return
        up = state is SessionState.ESTABLISHED
        notable = SessionState.ESTABLISHED in (state, before.state)  # attempts repeat for ever
        if why and why != before.why and not notable:
            log.info("session not up peer=%s why=%r", peer, why)
        after = replace(before, state=state, why="" if up else why or before.why)
        if state is not before.state and notable:
            after = replace(after, since=time.time(), dropped=signatures.dropped())
            log.info("session %s peer=%s why=%r", state, peer, after.why)
        self._entries[peer] = after
        if state is not before.state:
            self._on_change(peer, state)

    def note_listening(self, peer: IPAddress, why: str) -> None:
        """Why the neighbor can't connect to us; "" if it can."""
        if peer not in self._entries:
            return
        if why and why != self._deaf.get(peer):
            log.warning("session not up peer=%s why=%r", peer, why)
        self._deaf[peer] = why

    def forget(self, why: str = "") -> None:
        """Nobody can say any more what the routers know. `why` there is nobody, and so no session can begin;
        of one that has been up it tells nothing.
        """
        self._heard = False
        self._deaf.clear()
        for peer, one in list(self._entries.items()):
            self.note(peer, SessionState.DOWN, "" if one.state is SessionState.ESTABLISHED else why)
