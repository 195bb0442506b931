"""What holds for all services in the data plane: the part that is configured, and the thresholds that aren't.

Values only; `settings` puts them into the maps, and `kernel` acts on them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from vc5py.dataplane import abi
from vc5py.model import Timeouts

# How long a changed slot stays unstable: more than twice the time in which every talking flow is recorded
# (SAMPLE_TICKS in xdp/choose.h).
SETTLE_S = 600.0

FRAGMENT_TIMEOUT_S = 30  # RFC 791 suggests 15, RFC 8200 demands 60 of reassembly

# The share of live entries from which the flow table may lose flows, and from which it is crowded: no effort
# is made any more to find a place for one more.
LOSSY = 0.4
CROWDED = 0.9
OCCUPANCY_SAMPLE = 1 << 13  # sets looked at

ICMP_PER_SECOND = 1000  # "too big" answers that each CPU may send


def timeouts_s(timeouts: Timeouts) -> dict[abi.FlowState, int]:
    """Seconds that an idle entry of each state is kept against newcomers."""
    return {
        abi.FlowState.UNPROVEN: timeouts.unproven_s,
        abi.FlowState.PROVING: timeouts.unproven_s,
        abi.FlowState.CLOSING: timeouts.closing_s,
        abi.FlowState.FRAGMENT: FRAGMENT_TIMEOUT_S,
        abi.FlowState.ESTABLISHED: timeouts.established_s,
        abi.FlowState.STREAM: timeouts.udp_s,
    }


@dataclass(frozen=True, slots=True)
class Pace:
    """How the flow table is read in the course of time: pieces of so many `sets`, for about `budget_s` a call
    and never less than one piece, with a rest of `rest_s` between two turns that nobody waits for.
    """

    sets: int = 1 << 14
    budget_s: float = 0.015
    rest_s: float = 10.0


@dataclass(frozen=True, slots=True)
class Policy:
    """What holds for all services. `shared`: flows may be known to other balancers that we don't know of."""

    timeouts: Timeouts = field(default_factory=Timeouts)
    drop_fragments: bool = False
    settle_s: float = SETTLE_S
    pace: Pace = Pace()
    shared: bool = False
