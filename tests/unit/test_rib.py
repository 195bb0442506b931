"""The difference between what neighbors were told and what they are to be told."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address

from hypothesis import given
from hypothesis import strategies as st

from vc5py.core.rib import MOST_NEIGHBORS, UNKNOWN, Route, RouteAction, RouteChange, alike, complete, diff
from vc5py.model import IPAddress

ONE, TWO = IPv4Address("10.0.0.1"), IPv4Address("10.0.0.2")
VIPS = st.one_of(st.integers(1, 4).map(IPv4Address), st.integers(1, 4).map(IPv6Address))
ROUTES = st.tuples(st.sampled_from([ONE, TWO, IPv6Address("fd00::1")]), VIPS)
TABLES = st.dictionaries(ROUTES, st.sampled_from(["a", "b"]))


def table(said: str, *vips: str, neighbor: IPAddress = ONE) -> dict[Route, str]:
    return {(neighbor, ip_address(vip)): said for vip in vips}


def applied(told: dict[Route, str], changes: tuple[RouteChange, ...]) -> dict[Route, str]:
    told = dict(told)
    for change in changes:
        for neighbor in change.neighbors:
            if change.action is RouteAction.ANNOUNCE:
                told[neighbor, change.vip] = change.said
            else:
                assert told.pop((neighbor, change.vip)) == change.said, "a withdrawal says what was announced"
    return told


def test_withdrawals_come_first_and_each_kind_is_ordered() -> None:
    changes = diff(
        table("x", "192.0.2.10", "192.0.2.9", "2001:db8::1"),
        table("x", "192.0.2.10", "2001:db8::2", "192.0.2.200", "192.0.2.30"),
    )
    assert [(str(change.action), str(change.vip)) for change in changes] == [
        ("withdraw", "192.0.2.9"),
        ("withdraw", "2001:db8::1"),
        ("announce", "192.0.2.30"),
        ("announce", "192.0.2.200"),
        ("announce", "2001:db8::2"),
    ]


def test_neighbors_that_are_told_the_same_share_a_change() -> None:
    vip = ip_address("192.0.2.1")
    wanted = {(TWO, vip): "x", (ONE, vip): "x", (ip_address("fd00::1"), vip): "y"}
    assert diff({}, wanted) == (
        RouteChange(RouteAction.ANNOUNCE, vip, (ONE, TWO), "x"),
        RouteChange(RouteAction.ANNOUNCE, vip, (ip_address("fd00::1"),), "y"),
    )


def test_no_change_is_for_more_neighbors_than_fit_into_a_command() -> None:
    vip = ip_address("192.0.2.1")
    peers = [IPv4Address(f"10.0.1.{number}") for number in range(2 * MOST_NEIGHBORS + 1)]
    wanted: dict[Route, str] = {(peer, vip): "x" for peer in reversed(peers)}
    nothing: dict[Route, str] = {}
    for told, there in ((nothing, wanted), (wanted, nothing)):
        changes = diff(told, there)
        assert [len(change.neighbors) for change in changes] == [MOST_NEIGHBORS, MOST_NEIGHBORS, 1]
        assert [peer for change in changes for peer in change.neighbors] == peers
        assert applied(told, changes) == there
    assert [len(neighbors) for neighbors, _, _ in alike(wanted)] == [MOST_NEIGHBORS, MOST_NEIGHBORS, 1]


def test_what_is_alike_is_together_and_ordered() -> None:
    first, second, third = map(ip_address, ("192.0.2.9", "192.0.2.10", "192.0.2.11"))
    wanted: dict[Route, str] = {
        (TWO, second): "x",
        (ONE, second): "x",
        (ONE, third): "y",
        (TWO, first): "x",
        (ONE, first): "x",
    }
    assert list(alike(wanted)) == [((ONE, TWO), (first, second), "x"), ((ONE,), (third,), "y")]


@given(TABLES)
def test_nothing_is_lost_where_what_is_alike_is_together(wanted: dict[Route, str]) -> None:
    listed = [
        ((neighbor, vip), said)
        for neighbors, vips, said in alike(wanted)
        for neighbor in neighbors
        for vip in vips
    ]
    assert (dict(listed), len(listed)) == (wanted, len(wanted))


def test_what_is_said_otherwise_or_of_which_nothing_is_known_is_announced_again() -> None:
    vip = ip_address("192.0.2.1")
    for before in ("old", UNKNOWN):
        assert diff({(ONE, vip): before}, {(ONE, vip): "new"}) == (
            RouteChange(RouteAction.ANNOUNCE, vip, (ONE,), "new"),
        )


def test_a_vip_is_complete_when_all_were_told_who_are_to_know() -> None:
    first, second = ip_address("192.0.2.1"), ip_address("192.0.2.2")
    told = {(ONE, first): "x", (TWO, second): "x"}
    assert complete(told, [(ONE, first), (ONE, second), (TWO, second)]) == {first}


@given(TABLES, TABLES)
def test_applying_the_difference_gives_what_is_wanted(
    told: dict[Route, str], wanted: dict[Route, str]
) -> None:
    changes = diff(told, wanted)
    assert applied(told, changes) == wanted
    assert diff(wanted, wanted) == ()
