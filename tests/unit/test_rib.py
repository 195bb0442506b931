"""The difference between announced and desired routes."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address

from hypothesis import given
from hypothesis import strategies as st

from vc5py.core.rib import RouteAction, RouteChange, diff
from vc5py.model import IPAddress

VIPS = st.frozensets(st.one_of(st.integers(1, 6).map(IPv4Address), st.integers(1, 6).map(IPv6Address)))


def addresses(*texts: str) -> frozenset[IPAddress]:
    return frozenset(map(ip_address, texts))


def applied(announced: frozenset[IPAddress], changes: tuple[RouteChange, ...]) -> frozenset[IPAddress]:
    for change in changes:
        one = frozenset({change.vip})
        announced = announced | one if change.action is RouteAction.ANNOUNCE else announced - one
    return announced


def test_withdrawals_come_first_and_each_kind_is_ordered() -> None:
    changes = diff(
        addresses("192.0.2.10", "192.0.2.9", "2001:db8::1"),
        addresses("192.0.2.10", "2001:db8::2", "192.0.2.200", "192.0.2.30"),
    )
    assert [(str(change.action), str(change.vip)) for change in changes] == [
        ("withdraw", "192.0.2.9"),
        ("withdraw", "2001:db8::1"),
        ("announce", "192.0.2.30"),
        ("announce", "192.0.2.200"),
        ("announce", "2001:db8::2"),
    ]


def test_routes_that_only_some_routers_have_are_announced_again_or_withdrawn() -> None:
    partial = addresses("192.0.2.1", "192.0.2.2")
    assert diff(frozenset(), addresses("192.0.2.1"), partial) == (
        RouteChange(RouteAction.WITHDRAW, IPv4Address("192.0.2.2")),
        RouteChange(RouteAction.ANNOUNCE, IPv4Address("192.0.2.1")),
    )


@given(VIPS, VIPS)
def test_applying_the_difference_gives_what_is_desired(
    announced: frozenset[IPAddress], desired: frozenset[IPAddress]
) -> None:
    changes = diff(announced, desired)
    assert applied(announced, changes) == desired
    assert len(changes) == len(announced ^ desired)


@given(VIPS, VIPS, VIPS)
def test_partial_routes_always_get_a_change_of_their_own(
    announced: frozenset[IPAddress], desired: frozenset[IPAddress], partial: frozenset[IPAddress]
) -> None:
    changes = diff(announced, desired, partial)
    assert partial <= {change.vip for change in changes}
    assert applied(announced | partial, changes) == desired
