"""What a BFD process leaves behind when it is killed, at whatever moment."""

from __future__ import annotations

import os
import random
from typing import Any

import pytest

from vc5py.bfd.ledger import Ledger
from vc5py.bfd.packet import Packet, State, encode
from vc5py.bfd.protocol import Settings
from vc5py.bfd.sessions import Datagram, Sessions

NEAR, FAR = "192.0.2.1", "2001:db8::1"
FAST = Settings(100_000, 3)
DETECTION_S = 0.3
RNG = random.Random(1)


def hear(sessions: Sessions, neighbor: str, state: State, at: float) -> None:
    ours = sessions.entries[neighbor].session.local_discr
    packet = Packet(state, 7, ours, 100_000, 100_000, multiplier=3)
    sessions.receive(Datagram(neighbor, 255, encode(packet), at))


def up() -> Sessions:
    """Since 1.0, last heard then."""
    sessions = Sessions()
    sessions.configure({NEAR: FAST, FAR: FAST}, 0.0, RNG)
    for neighbor in (NEAR, FAR):
        hear(sessions, neighbor, State.DOWN, 0.9)
        hear(sessions, neighbor, State.UP, 1.0)
    list(sessions.advance(1.0, RNG))
    return sessions


def resumed(ledger: Ledger) -> Sessions:
    """As the standby does it, which knows what there was when it was forked."""
    sessions = Sessions()
    sessions.configure({NEAR: FAST, FAR: FAST}, 0.0, RNG)
    sessions.restore(ledger.read())
    return sessions


def test_everything_is_as_it_was_noted() -> None:
    sessions = up()
    ledger = Ledger(sessions.entries)
    assert ledger.read() == sessions.entries
    hear(sessions, NEAR, State.UP, 1.1)
    assert ledger.read() != sessions.entries
    ledger.note(sessions.entries)
    assert ledger.read() == sessions.entries
    assert resumed(ledger).status(NEAR) == sessions.status(NEAR)


def test_a_neighbor_that_is_lost_stays_so_and_is_forgiven_in_time() -> None:
    sessions = up()
    ledger = Ledger(sessions.entries)
    list(sessions.advance(2.0, RNG))
    ledger.note(sessions.entries)
    later = resumed(ledger)
    assert not later.status(NEAR).reachable
    list(later.advance(31.9, RNG))
    assert not later.status(NEAR).reachable
    list(later.advance(32.0, RNG))
    assert later.status(NEAR).reachable
    ledger.note(later.entries)
    assert ledger.read()[NEAR].lost is False


@pytest.mark.parametrize(("after_s", "state"), [(DETECTION_S - 0.001, "up"), (DETECTION_S, "down")])
def test_silence_is_counted_from_what_the_dead_process_heard(after_s: float, state: str) -> None:
    ledger = Ledger(up().entries)
    later = resumed(ledger)
    list(later.advance(1.0 + after_s, RNG))
    assert later.status(NEAR).state == state


def test_what_waited_in_the_socket_is_heard_before_silence_is_judged() -> None:
    later = resumed(Ledger(up().entries))
    hear(later, NEAR, State.UP, 1.25)
    list(later.advance(1.4, RNG))
    assert [later.status(neighbor).state for neighbor in (NEAR, FAR)] == ["up", "down"]


def test_discriminators_and_timers_are_the_same() -> None:
    sessions = up()
    later = resumed(Ledger(sessions.entries))
    for neighbor, entry in sessions.entries.items():
        assert later.entries[neighbor].session == entry.session
    assert later.next_at == sessions.next_at
    assert list(later.advance(1.05, RNG)) == []


class _Mortal:
    """Memory whose writer dies in the middle of its `last` store."""

    def __init__(self, memory: Any, last: int) -> None:
        self.memory = memory
        self.left = last

    def __getitem__(self, at: Any) -> Any:
        return self.memory[at]

    def __setitem__(self, at: Any, value: Any) -> None:
        self.left -= 1
        if self.left:
            self.memory[at] = value
            return
        if isinstance(at, slice):
            half = (at.stop - at.start) // 2
            self.memory[at.start : at.start + half] = value[:half]
        raise InterruptedError


@pytest.mark.parametrize("last", [1, 2, 3, 4])
def test_a_process_that_is_killed_in_a_note_leaves_what_it_noted_before(last: int) -> None:
    """Two sessions change, with two stores each: each of them is as it was, or as it is."""
    sessions = up()
    ledger = Ledger(sessions.entries)
    before = ledger.read()
    hear(sessions, NEAR, State.DOWN, 1.1)
    hear(sessions, FAR, State.UP, 1.1)
    memory = ledger._memory
    ledger._memory = _Mortal(memory, last)  # type: ignore[assignment]
    with pytest.raises(InterruptedError):
        ledger.note(sessions.entries)
    ledger._memory = memory
    assert ledger.read() == {NEAR: (sessions.entries if last > 2 else before)[NEAR], FAR: before[FAR]}


def test_a_child_notes_for_its_parent() -> None:
    sessions = up()
    ledger = Ledger(sessions.entries)
    hear(sessions, NEAR, State.DOWN, 1.1)
    pid = os.fork()
    if not pid:
        ledger.note(sessions.entries)
        os._exit(0)
    os.waitpid(pid, 0)
    assert ledger.read() == sessions.entries


def test_a_record_has_room_for_any_session() -> None:
    sessions = Sessions()
    sessions.configure({NEAR: Settings(2**32 - 1, 255)}, 1e9, RNG)
    entry = sessions.entries[NEAR]
    entry.packets_in = entry.packets_out = entry.transitions = 2**62
    assert Ledger(sessions.entries).read() == sessions.entries
