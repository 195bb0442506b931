"""Which routes to announce and withdraw so that what the routers know becomes what the director wants.

Must not know: BGP, ExaBGP, sockets, time. A route is a host route to a VIP told to one neighbor; what is said
of it besides (its next hop, attributes) is a text that is compared and never looked into.

Invariants: applying the changes of `diff` in order to `told` gives exactly `wanted`, and the `diff` of equal
tables is empty (so reconciling again and again is free). No change is for more than MOST_NEIGHBORS.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from vc5py.model import IPAddress

Route = tuple[IPAddress, IPAddress]
"""A neighbor and a VIP."""
UNKNOWN = ""
"""In place of what is said of a route that somebody else has announced."""
MOST_NEIGHBORS = 30
"""So that a change, in whatever words, has a bounded length."""


class RouteAction(StrEnum):
    ANNOUNCE = "announce"
    WITHDRAW = "withdraw"


@dataclass(frozen=True, slots=True)
class RouteChange:
    """One thing to say of one VIP to some neighbors, who are in order; at most MOST_NEIGHBORS."""

    action: RouteAction
    vip: IPAddress
    neighbors: tuple[IPAddress, ...]
    said: str


def diff(told: Mapping[Route, str], wanted: Mapping[Route, str]) -> tuple[RouteChange, ...]:
    """The changes from `told` to `wanted`, in the order in which to make them.

    A withdrawal says what the announcement said. Withdrawals come first: each moment one waits, a router
    sends clients to a VIP that nothing serves here while another balancer could; an announcement that waits
    only delays an improvement. Within each kind the order is by IP version and address, so that the same
    input gives the same output.
    """
    withdrawn = {route: said for route, said in told.items() if route not in wanted}
    missing = {route: said for route, said in wanted.items() if told.get(route) != said}
    return (*_changes(RouteAction.WITHDRAW, withdrawn), *_changes(RouteAction.ANNOUNCE, missing))


def alike(
    wanted: Mapping[Route, str],
) -> Iterable[tuple[tuple[IPAddress, ...], tuple[IPAddress, ...], str]]:
    """`wanted` as (neighbors, VIPs, what is said of each of these to those), in the order of `diff`."""
    together: dict[tuple[tuple[IPAddress, ...], str], list[IPAddress]] = {}
    for change in _changes(RouteAction.ANNOUNCE, wanted):
        together.setdefault((change.neighbors, change.said), []).append(change.vip)
    for (neighbors, said), vips in together.items():
        yield neighbors, tuple(vips), said


def complete(told: Mapping[Route, str], wanted: Iterable[Route]) -> frozenset[IPAddress]:
    """The VIPs that every neighbor has been told which is wanted to know of them."""
    there: set[IPAddress] = set()
    lacking: set[IPAddress] = set()
    for route in wanted:
        (there if route in told else lacking).add(route[1])
    return frozenset(there - lacking)


def _changes(action: RouteAction, routes: Mapping[Route, str]) -> Iterable[RouteChange]:
    alike: dict[tuple[IPAddress, str], list[IPAddress]] = {}
    for (neighbor, vip), said in routes.items():
        alike.setdefault((vip, said), []).append(neighbor)
    for (vip, said), neighbors in sorted(alike.items(), key=lambda item: (*_order(item[0][0]), item[0][1])):
        ordered = sorted(neighbors, key=_order)
        for first in range(0, len(ordered), MOST_NEIGHBORS):
            yield RouteChange(action, vip, tuple(ordered[first : first + MOST_NEIGHBORS]), said)


def _order(address: IPAddress) -> tuple[int, int]:
    return address.version, int(address)
