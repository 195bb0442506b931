"""BFD Control packets as bytes (RFC 5880, section 4.1), and what makes one malformed (section 6.8.6).

Pure, standard library only. Must not know: sessions, sockets. Invariant: `decode` never raises, whatever the
bytes; what it returns needs no more checks that a packet alone allows.

Intervals are in microseconds, as on the wire. Authentication is not spoken: a packet with it is refused.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum, StrEnum

VERSION = 1
LENGTH = 24
_MANDATORY = struct.Struct("!BBBBIIIII")
_POLL, _FINAL, _CONTROL_PLANE_INDEPENDENT, _AUTHENTICATION, _DEMAND, _MULTIPOINT = 32, 16, 8, 4, 2, 1


class State(IntEnum):
    ADMIN_DOWN = 0
    DOWN = 1
    INIT = 2
    UP = 3

    @property
    def word(self) -> str:
        return self.name.lower().replace("_", "-")


class Diagnostic(IntEnum):
    """Why a session last left Up; the values of RFC 5880 that single-hop sessions without echo send."""

    NONE = 0
    DETECTION_TIME_EXPIRED = 1
    NEIGHBOR_SIGNALED_DOWN = 3
    ADMINISTRATIVELY_DOWN = 7


class Reject(StrEnum):
    """Why a packet was thrown away; the first that applies, in the order of RFC 5880, section 6.8.6."""

    TTL = "ttl"
    SHORT = "short"
    VERSION = "version"
    LENGTH = "length"
    MULTIPLIER = "multiplier"
    MULTIPOINT = "multipoint"
    MY_DISCRIMINATOR = "my-discriminator"
    AUTHENTICATION = "authentication"
    POLL_AND_FINAL = "poll-and-final"
    YOUR_DISCRIMINATOR = "your-discriminator"
    NO_SESSION = "no-session"
    WRONG_NEIGHBOR = "wrong-neighbor"


@dataclass(frozen=True, slots=True)
class Packet:
    """The mandatory section. `multiplier` is Detect Mult, `diagnostic` any number up to 31."""

    state: State
    my_discriminator: int
    your_discriminator: int = 0
    desired_min_tx_us: int = 1_000_000
    required_min_rx_us: int = 1_000_000
    required_min_echo_rx_us: int = 0
    multiplier: int = 3
    diagnostic: int = 0
    poll: bool = False
    final: bool = False
    control_plane_independent: bool = False
    demand: bool = False


def encode(packet: Packet) -> bytes:
    flags = (
        _POLL * packet.poll
        | _FINAL * packet.final
        | _CONTROL_PLANE_INDEPENDENT * packet.control_plane_independent
        | _DEMAND * packet.demand
    )
    return _MANDATORY.pack(
        VERSION << 5 | packet.diagnostic,
        packet.state << 6 | flags,
        packet.multiplier,
        LENGTH,
        packet.my_discriminator,
        packet.your_discriminator,
        packet.desired_min_tx_us,
        packet.required_min_rx_us,
        packet.required_min_echo_rx_us,
    )


def decode(data: bytes) -> Packet | Reject:
    """The packet, or why it is none. A Length shorter than the payload is fine: what follows is ignored."""
    if len(data) < LENGTH:
        return Reject.SHORT
    first, second, multiplier, length, mine, yours, min_tx, min_rx, min_echo = _MANDATORY.unpack_from(data)
    reject = _judge(first >> 5, second, multiplier, length, len(data), mine)
    if reject is not None:
        return reject
    state = State(second >> 6)
    if not yours and state not in (State.DOWN, State.ADMIN_DOWN):
        return Reject.YOUR_DISCRIMINATOR
    return Packet(
        state,
        mine,
        yours,
        min_tx,
        min_rx,
        min_echo,
        multiplier,
        diagnostic=first & 31,
        poll=bool(second & _POLL),
        final=bool(second & _FINAL),
        control_plane_independent=bool(second & _CONTROL_PLANE_INDEPENDENT),
        demand=bool(second & _DEMAND),
    )


def _judge(version: int, flags: int, multiplier: int, length: int, size: int, mine: int) -> Reject | None:
    tests = (
        (version != VERSION, Reject.VERSION),
        (length < LENGTH + 2 * bool(flags & _AUTHENTICATION) or length > size, Reject.LENGTH),
        (multiplier == 0, Reject.MULTIPLIER),
        (bool(flags & _MULTIPOINT), Reject.MULTIPOINT),
        (mine == 0, Reject.MY_DISCRIMINATOR),
        (bool(flags & _AUTHENTICATION), Reject.AUTHENTICATION),
        (bool(flags & _POLL and flags & _FINAL), Reject.POLL_AND_FINAL),
    )
    return next((reason for failed, reason in tests if failed), None)
