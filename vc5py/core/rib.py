"""Which routes to announce and withdraw so that what the routers know becomes what the director wants.

Must not know: BGP, ExaBGP, next hops, sockets, time. A route is a host route to a VIP, named by the VIP.

Invariant: applying the changes of `diff` in order to `announced` gives exactly `desired`, and a `diff` of
equal sets is empty (so reconciling again and again is free).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from vc5py.model import IPAddress


class RouteAction(StrEnum):
    ANNOUNCE = "announce"
    WITHDRAW = "withdraw"


@dataclass(frozen=True, slots=True)
class RouteChange:
    action: RouteAction
    vip: IPAddress


def diff(
    announced: frozenset[IPAddress],
    desired: frozenset[IPAddress],
    partial: frozenset[IPAddress] = frozenset(),
) -> tuple[RouteChange, ...]:
    """The changes from `announced` to `desired`, in the order in which to make them.

    `partial` are routes that some routers were told and others not: they are announced again where
    desired and withdrawn where not. Announcing or withdrawing twice does no harm.

    Withdrawals come first: each moment a withdrawal waits, a router sends clients to a VIP that nothing
    serves here while another balancer could; an announcement that waits only delays an improvement. Within
    each kind the order is by IP version and address, so that the same input gives the same output.
    """
    withdrawn = (announced | partial) - desired
    missing = desired - (announced - partial)
    return tuple(
        RouteChange(action, vip)
        for action, vips in ((RouteAction.WITHDRAW, withdrawn), (RouteAction.ANNOUNCE, missing))
        for vip in _ordered(vips)
    )


def _ordered(vips: Iterable[IPAddress]) -> list[IPAddress]:
    return sorted(vips, key=lambda vip: (vip.version, int(vip)))
