"""One BFD session: the state machine in every pair of states, the timers, poll sequences, the end."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vc5py.bfd.packet import Diagnostic, Packet, State
from vc5py.bfd.protocol import (
    SLOW_US,
    Session,
    Settings,
    close,
    configure,
    expire,
    receive,
    start,
    transmit,
)

ADMIN_DOWN, DOWN, INIT, UP = State.ADMIN_DOWN, State.DOWN, State.INIT, State.UP
SETTINGS = Settings(100_000, 3)
OURS, THEIRS = 17, 23

# RFC 5880, section 6.8.6, as the diagram of section 6.2 has it: by what we are, what becomes of us.
NEXT = {
    #            AdminDown   Down   Init  Up       is what the neighbor says it is
    ADMIN_DOWN: (ADMIN_DOWN, ADMIN_DOWN, ADMIN_DOWN, ADMIN_DOWN),
    DOWN: (DOWN, INIT, UP, DOWN),
    INIT: (DOWN, INIT, UP, UP),
    UP: (DOWN, DOWN, UP, UP),
}


def packet(state: State, **changes: int) -> Packet:
    return replace(Packet(state, THEIRS, OURS, 100_000, 100_000), **changes)


def session(state: State) -> Session:
    """As it has come to be in that state, at time 0."""
    made = start(SETTINGS, OURS, 0.0)
    if state is ADMIN_DOWN:
        return close(made, 0.0)
    for said in {DOWN: (), INIT: (DOWN,), UP: (DOWN, INIT)}[state]:
        made = receive(made, packet(said), 0.0)
    assert made.state is state
    return made


def settled() -> Session:
    """Up, its poll sequence over, having sent at time 0."""
    made = receive(session(UP), packet(UP, final=True), 0.0)
    made, sent = transmit(made, 0.0, jitter=0.0)
    assert sent is not None
    return made


@pytest.mark.parametrize(("ours", "theirs"), [*product(State, State)], ids=lambda state: state.word)
def test_every_pair_of_states(ours: State, theirs: State) -> None:
    before = session(ours)
    after = receive(before, packet(theirs), 1.0)
    assert after.state is NEXT[ours][theirs]
    if ours in (INIT, UP) and after.state is DOWN:
        assert after.diagnostic is Diagnostic.NEIGHBOR_SIGNALED_DOWN
    if after.state is UP:
        assert after.diagnostic is Diagnostic.NONE
    if after.state is not ours:
        assert after.transmit_at == 1.0, "the neighbor is to know at once"


def test_before_it_is_up_it_sends_once_a_second() -> None:
    made, sent = transmit(start(SETTINGS, OURS, 5.0), 5.0, jitter=0.0)
    assert sent == Packet(DOWN, OURS, 0, SLOW_US, 100_000, multiplier=3)
    assert made.transmit_at == 6.0
    assert transmit(made, 5.9, 0.0) == (made, None)


@given(st.floats(0, 1), st.integers(1, 10))
def test_jitter(jitter: float, multiplier: int) -> None:
    """Between 75% and 100% of the interval; 90% at most with a multiplier of 1."""
    up = replace(settled(), settings=Settings(100_000, multiplier))
    made, sent = transmit(replace(up, transmit_at=1.0), 1.0, jitter)
    assert sent is not None and made.transmit_at is not None
    most = 0.0901 if multiplier == 1 else 0.1001
    assert 0.0749 <= made.transmit_at - 1.0 <= most


def test_coming_up_asks_for_the_interval_by_a_poll() -> None:
    up = session(UP)
    up, sent = transmit(up, 0.0, jitter=0.0)
    assert sent == Packet(UP, OURS, THEIRS, 100_000, 100_000, multiplier=3, poll=True)
    up = receive(up, packet(UP, final=True), 0.05)
    up, sent = transmit(up, 0.1, jitter=0.0)
    assert sent == Packet(UP, OURS, THEIRS, 100_000, 100_000, multiplier=3)


@pytest.mark.parametrize("state", [DOWN, INIT, UP], ids=lambda state: state.word)
def test_a_poll_is_answered_at_once_and_once(state: State) -> None:
    made = session(state)
    made, _ = transmit(made, 0.0, 0.0)
    said = {DOWN: UP, INIT: DOWN, UP: UP}[state]
    polled = receive(made, packet(said, poll=True), 0.001)
    answered, sent = transmit(polled, 0.001, 0.0)
    assert sent is not None and sent.final and not sent.poll
    assert transmit(answered, 0.001, 0.0)[1] is None


def test_silence_is_judged_by_the_neighbors_interval_and_multiplier() -> None:
    up = receive(settled(), packet(UP, desired_min_tx_us=200_000, multiplier=4), 1.0)
    assert up.expires_at == pytest.approx(1.8)
    assert expire(up, 1.79) == up
    down = expire(up, 1.81)
    assert (down.state, down.diagnostic) == (DOWN, Diagnostic.DETECTION_TIME_EXPIRED)
    assert down.remote_discr == 0, "what comes next may be another neighbor"
    _, sent = transmit(down, 1.81, 0.0)
    assert sent == Packet(
        DOWN, OURS, 0, SLOW_US, 100_000, multiplier=3, diagnostic=Diagnostic.DETECTION_TIME_EXPIRED
    )
    assert expire(down, 100.0) == down


def test_our_own_slower_interval_lengthens_the_detection_time() -> None:
    slow = replace(settled(), settings=Settings(500_000, 3))
    assert receive(slow, packet(UP), 1.0).expires_at == pytest.approx(2.5)


def test_a_packet_that_was_overtaken_does_not_turn_back_the_clock() -> None:
    up = receive(settled(), packet(UP), 2.0)
    assert receive(up, packet(UP), 1.9).heard_at == 2.0


def test_a_silent_neighbor_is_forgotten_in_any_state() -> None:
    init = session(INIT)
    assert expire(init, 0.2) == init
    down = expire(init, 0.4)
    assert (down.state, down.remote_discr) == (DOWN, 0)


def test_the_neighbor_may_want_packets_less_often() -> None:
    up = receive(settled(), packet(UP, required_min_rx_us=400_000), 0.05)
    up, sent = transmit(replace(up, transmit_at=0.1), 0.1, 0.0)
    assert sent is not None
    assert up.transmit_at == pytest.approx(0.5)
    hurried = receive(up, packet(UP), 0.11)
    assert hurried.transmit_at is not None and hurried.transmit_at <= 0.21, "and more often again"


def test_no_packets_for_who_wants_none() -> None:
    up = receive(settled(), packet(UP, required_min_rx_us=0), 0.05)
    assert up.transmit_at is None
    assert receive(up, packet(UP), 0.1).transmit_at == 0.1
    assert receive(settled(), packet(UP, demand=True), 0.05).transmit_at is None
    assert receive(settled(), packet(UP, demand=True, poll=True), 0.05).answer


def test_a_longer_interval_waits_until_the_neighbor_knows_it() -> None:
    slower = configure(settled(), Settings(400_000, 5), 1.0)
    slower, sent = transmit(slower, 1.0, 0.0)
    assert sent == Packet(UP, OURS, THEIRS, 400_000, 400_000, multiplier=5, poll=True)
    assert slower.transmit_at == pytest.approx(1.1)
    slower = receive(slower, packet(UP, final=True), 1.11)
    slower, sent = transmit(slower, 1.2, 0.0)
    assert sent is not None and not sent.poll
    assert slower.transmit_at == pytest.approx(1.6)


def test_a_shorter_interval_is_not_expected_before_the_neighbor_knows_it() -> None:
    slow = receive(replace(settled(), settings=Settings(400_000, 3)), packet(UP), 1.0)
    faster = configure(slow, Settings(100_000, 3), 1.0)
    assert faster.detection_s == pytest.approx(1.2)
    assert receive(faster, packet(UP, final=True), 1.1).detection_s == pytest.approx(0.3)


def test_settings_of_a_session_that_is_not_up() -> None:
    down = configure(session(DOWN), Settings(50_000, 5), 0.0)
    _, sent = transmit(down, 0.0, 0.0)
    assert sent == Packet(DOWN, OURS, 0, SLOW_US, 50_000, multiplier=5)
    assert configure(down, Settings(50_000, 5), 1.0) == down


def test_the_end_is_said_at_the_usual_interval() -> None:
    closed = close(settled(), 1.0)
    for at in (1.0, 1.1, 1.2):
        assert closed.transmit_at == pytest.approx(at)
        closed, sent = transmit(closed, closed.transmit_at or at, 0.0)
        assert sent is not None
        assert (sent.state, sent.diagnostic) == (ADMIN_DOWN, Diagnostic.ADMINISTRATIVELY_DOWN)
    assert receive(closed, packet(DOWN), 1.3) == closed
