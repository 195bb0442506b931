"""What the rest of the balancer may ask of a data plane, the kernel's or a fake one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from vc5py.model import BackendId, Config, Desired, IPAddress


@dataclass(frozen=True, slots=True)
class Traffic:
    """Packets and bytes (of the frames as received) since the maps were made."""

    packets: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Counters:
    """One reading. `flows` counts live entries of the flow table by backend, as of the last whole look at it,
    which began at `flows_at` by the clock of `maintain` (None: none has ended): large tables are read bit by
    bit.
    """

    traffic: Mapping[BackendId, Traffic] = field(default_factory=dict)
    verdicts: Mapping[str, int] = field(default_factory=dict)
    flows: Mapping[BackendId, int] = field(default_factory=dict)
    flows_at: float | None = None


@dataclass(frozen=True, slots=True)
class Neighbour:
    """The way to a real: the interface, and the MAC address (`02:00:00:00:00:01`) that frames go to there.

    `on_link`: the address is the real's own, not its gateway's. `vlan` and `svlan` are the tags that frames
    need on the interface, 0 for none, None where they keep those they came with. `source`: our own address
    that outer headers have on the way there, None where we have none.
    """

    ifindex: int
    mac: str
    on_link: bool = True
    vlan: int | None = None
    svlan: int = 0
    source: IPAddress | None = None


class Dataplane(Protocol):
    def apply(self, desired: Desired) -> None:
        """Makes the data plane equal to `desired.services`. Idempotent; raises DataplaneError.

        What is the very same value as before costs next to nothing; a service that hasn't changed loses no
        packet and no flow.
        """

    def set_policy(self, config: Config) -> None:
        """What holds for all services (timeouts, fragments) from now on; no flow is lost."""

    def was_up(self, backend: BackendId) -> bool:
        """Whether an earlier run left this backend up."""

    def mark_of(self, backend: BackendId) -> int | None:
        """The SO_MARK that steers a probe to this backend, or None where it isn't installed."""

    def set_neighbour(self, real: IPAddress, neighbour: Neighbour | None) -> None:
        """Says where a real is, or that nobody knows."""

    def maintain(self, now: float) -> None:
        """Housekeeping, about once a second, in a few hundredths of a second. `now`: of a monotonic clock."""

    def busy(self) -> bool:
        """Whether housekeeping has more to do: the sooner `maintain` is called again, the sooner large flow
        tables are counted, and settled after a change.
        """

    def counters(self) -> Counters: ...
