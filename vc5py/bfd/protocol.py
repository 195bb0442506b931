"""One BFD session: asynchronous mode, single hop, active role (RFC 5880, section 6.8; RFC 5881).

Sans-IO and pure: the time and the jitter are parameters, packets are values, a session is a frozen value.
Standard library only. Must not know: sockets, addresses, BGP.

The state machine is TRANSITIONS: (our state, the neighbor's) to our next state. A session that isn't Up sends
once a second at most; when it comes up, it asks for its own interval by a poll sequence. No echo, no
authentication, and we never ask for demand mode but respect it.

`now` is in seconds of any clock that never goes back; for a packet it is the moment it arrived.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from vc5py.bfd.packet import Diagnostic, Packet, State

# Intervals of sessions that aren't Up must not be shorter (RFC 5880, section 6.8.3).
SLOW_US = 1_000_000
_MICRO = 1e-6

TRANSITIONS: dict[tuple[State, State], State] = {
    (State.DOWN, State.DOWN): State.INIT,
    (State.DOWN, State.INIT): State.UP,
    (State.INIT, State.INIT): State.UP,
    (State.INIT, State.UP): State.UP,
    (State.INIT, State.ADMIN_DOWN): State.DOWN,
    (State.UP, State.DOWN): State.DOWN,
    (State.UP, State.ADMIN_DOWN): State.DOWN,
}
"""What is not here changes nothing."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What is wanted of a session: the interval, both ways, and how many of them in silence are the end."""

    interval_us: int = 100_000
    multiplier: int = 3


@dataclass(frozen=True, slots=True)
class Session:
    """The variables of RFC 5880, section 6.8.1, by their names there.

    `transmit_at`, `expires_at`: when the next packet is due, and when the neighbor is taken for gone; None:
    never. `sent_tx_us` and `judged_rx_us` are the intervals in use where a poll sequence still has to
    tell the neighbor of others (section 6.8.3). `answer`: a packet with the Final bit is owed at once.
    """

    settings: Settings
    local_discr: int
    state: State = State.DOWN
    diagnostic: Diagnostic = Diagnostic.NONE
    remote_state: State = State.DOWN
    remote_discr: int = 0
    remote_min_rx_us: int = 1
    remote_min_tx_us: int = SLOW_US
    remote_multiplier: int = 3
    remote_demand: bool = False
    polling: bool = False
    answer: bool = False
    sent_tx_us: int = SLOW_US
    judged_rx_us: int = 0
    transmit_at: float | None = None
    heard_at: float | None = None

    @property
    def desired_min_tx_us(self) -> int:
        interval = self.settings.interval_us
        return interval if self.state is State.UP else max(SLOW_US, interval)

    @property
    def detection_s(self) -> float:
        """The Detection Time (section 6.8.4)."""
        rx_us = max(self.settings.interval_us, self.judged_rx_us if self.polling else 0)
        return _MICRO * self.remote_multiplier * max(rx_us, self.remote_min_tx_us)

    @property
    def expires_at(self) -> float | None:
        return None if self.heard_at is None else self.heard_at + self.detection_s

    @property
    def next_at(self) -> float | None:
        """When `tick` has something to do."""
        return min((at for at in (self.transmit_at, self.expires_at) if at is not None), default=None)


def start(settings: Settings, local_discr: int, now: float) -> Session:
    """A new session, Down, that sends at once. `local_discr`: not 0, unique on this system, hard to guess."""
    return Session(settings, local_discr, transmit_at=now)


def receive(session: Session, packet: Packet, now: float) -> Session:
    """Takes a packet that passed all tests of section 6.8.6, and arrived at `now`."""
    if session.state is State.ADMIN_DOWN:
        return session
    heard = replace(
        session,
        remote_discr=packet.my_discriminator,
        remote_state=packet.state,
        remote_demand=packet.demand,
        remote_min_rx_us=packet.required_min_rx_us,
        remote_min_tx_us=packet.desired_min_tx_us,
        remote_multiplier=packet.multiplier,
        heard_at=max(now, session.heard_at or now),
        answer=session.answer or packet.poll,
    )
    if packet.final:
        heard = _end_poll(heard)
    state = TRANSITIONS.get((session.state, packet.state), session.state)
    if state is not session.state:
        down = state is State.DOWN
        heard = _leave(heard, Diagnostic.NEIGHBOR_SIGNALED_DOWN, now) if down else _enter(heard, state, now)
    return _reschedule(session, heard, now)


def expire(session: Session, now: float) -> Session:
    """What the silence of the neighbor has come to by `now`."""
    if session.expires_at is None or now < session.expires_at:
        return session
    # Forget the neighbor (section 6.8.1): it may come back as another.
    silent = replace(session, remote_discr=0, remote_min_rx_us=1, remote_demand=False, heard_at=None)
    if session.state in (State.INIT, State.UP):
        silent = _leave(silent, Diagnostic.DETECTION_TIME_EXPIRED, now)
    return _reschedule(session, silent, now)


def transmit(session: Session, now: float, jitter: float) -> tuple[Session, Packet | None]:
    """The packet that is due, if one is. `jitter`, from 0 to 1, is how much earlier the next one comes."""
    if session.answer:
        return replace(session, answer=False), _packet(session, final=True)
    if session.transmit_at is None or now < session.transmit_at:
        return session, None
    sent = replace(session, transmit_at=_next(session, now, jitter))
    return sent, _packet(session, poll=session.polling)


def configure(session: Session, settings: Settings, now: float) -> Session:
    """Other settings, told to the neighbor by a poll sequence; the session stays up."""
    if settings == session.settings:
        return session
    changed = replace(session, settings=settings)
    if session.state is not State.UP:
        return changed
    return replace(
        changed,
        polling=True,
        sent_tx_us=min(session.sent_tx_us, settings.interval_us),
        judged_rx_us=max(session.judged_rx_us if session.polling else 0, session.settings.interval_us),
        transmit_at=now,
    )


def close(session: Session, now: float) -> Session:
    """Administratively down: tells the neighbor that this says nothing about the path."""
    # The interval stays what the neighbor is used to: it is to know before our silence could tell.
    return replace(
        session,
        state=State.ADMIN_DOWN,
        diagnostic=Diagnostic.ADMINISTRATIVELY_DOWN,
        polling=False,
        transmit_at=now,
    )


def _enter(session: Session, state: State, now: float) -> Session:
    """Init, or Up: which clears the diagnostic and asks for the session's own interval."""
    if state is not State.UP:
        return replace(session, state=state, transmit_at=now)
    return replace(
        session,
        state=state,
        diagnostic=Diagnostic.NONE,
        polling=True,
        sent_tx_us=session.settings.interval_us,
        judged_rx_us=0,
        transmit_at=now,
    )


def _leave(session: Session, diagnostic: Diagnostic, now: float) -> Session:
    return replace(
        session,
        state=State.DOWN,
        diagnostic=diagnostic,
        polling=False,
        sent_tx_us=max(SLOW_US, session.settings.interval_us),
        judged_rx_us=0,
        transmit_at=now,
    )


def _end_poll(session: Session) -> Session:
    return replace(session, polling=False, sent_tx_us=session.desired_min_tx_us, judged_rx_us=0)


def _interval_s(session: Session) -> float:
    return _MICRO * max(session.sent_tx_us, session.remote_min_rx_us)


def _is_silent(session: Session) -> bool:
    """Whether the neighbor wants no periodic packets (section 6.8.7)."""
    both_up = session.state is State.UP and session.remote_state is State.UP
    return session.remote_min_rx_us == 0 or (session.remote_demand and both_up and not session.polling)


def _next(session: Session, now: float, jitter: float) -> float | None:
    """Up to a quarter early; with a multiplier of 1 at least a tenth (section 6.8.7)."""
    if _is_silent(session):
        return None
    least = 0.10 if session.settings.multiplier == 1 else 0.0
    return now + _interval_s(session) * (1.0 - least - (0.25 - least) * jitter)


def _reschedule(before: Session, after: Session, now: float) -> Session:
    """Never later than an interval from now, where the interval has become shorter; not at all where the
    neighbor wants none."""
    if _is_silent(after):
        return replace(after, transmit_at=None)
    if after.transmit_at is None:
        return replace(after, transmit_at=now)
    if _interval_s(after) < _interval_s(before):
        return replace(after, transmit_at=min(after.transmit_at, now + 0.75 * _interval_s(after)))
    return after


def _packet(session: Session, *, poll: bool = False, final: bool = False) -> Packet:
    return Packet(
        session.state,
        session.local_discr,
        session.remote_discr,
        desired_min_tx_us=session.desired_min_tx_us,
        required_min_rx_us=session.settings.interval_us,
        multiplier=session.settings.multiplier,
        diagnostic=session.diagnostic,
        poll=poll,
        final=final,
    )
