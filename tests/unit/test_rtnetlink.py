"""rtnetlink's bytes: questions as pyroute2 reads them, answers as it writes them."""

from __future__ import annotations

import errno
import socket
from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyroute2.netlink import nlmsg
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.ndmsg import ndmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from vc5py.dataplane import rtnetlink
from vc5py.dataplane.base import Neighbour
from vc5py.dataplane.rtnetlink import (
    End,
    Found,
    LinksChanged,
    NeighbourEvent,
    Refused,
    Route,
    RoutesChanged,
)

MAC = "02:00:00:00:00:07"
REAL4, REAL6 = ip_address("10.0.0.7"), ip_address("fd00::7")
NEWROUTE, DELROUTE, NEWNEIGH, DELNEIGH = 24, 25, 28, 29
REACHABLE, STALE, DELAY, PROBE, FAILED, NOARP, PERMANENT = 0x02, 0x04, 0x08, 0x10, 0x20, 0x40, 0x80


def asked(kind: type[nlmsg], data: bytes) -> Any:
    message = kind(data)
    message.decode()
    assert message["header"]["length"] == len(data)
    return message


@pytest.mark.parametrize("address", [REAL4, REAL6], ids=str)
def test_question_for_a_route(address: Any) -> None:
    message = asked(rtmsg, rtnetlink.route_question(address, 5))
    header = message["header"]
    assert (header["type"], header["flags"], header["sequence_number"]) == (26, 1, 5)
    assert message["family"] == (socket.AF_INET if address.version == 4 else socket.AF_INET6)
    assert (message["dst_len"], message.get_attr("RTA_DST")) == (address.max_prefixlen, str(address))


def test_question_for_the_neighbour_table() -> None:
    message = asked(ndmsg, rtnetlink.neighbours_question(9))
    assert (message["header"]["type"], message["header"]["flags"], message["family"]) == (30, 0x301, 0)


@pytest.mark.parametrize("address", [REAL4, REAL6], ids=str)
def test_solicitation(address: Any) -> None:
    message = asked(ndmsg, rtnetlink.solicitation(address, 3, 4))
    assert (message["header"]["type"], message["header"]["flags"]) == (28, 0x501), "create or replace"
    assert (message["ifindex"], message["state"], message["flags"]) == (3, 0, 1), "NTF_USE"
    assert message.get_attr("NDA_DST") == str(address)


def said(
    kind: type[nlmsg], number: int, *attrs: tuple[str, object], sequence: int = 0, **fields: Any
) -> bytes:
    message: Any = kind()
    for name, value in fields.items():
        message[name] = value
    message["header"]["type"], message["header"]["sequence_number"] = number, sequence
    message["attrs"] = [list(attr) for attr in attrs]
    message.encode()
    return bytes(message.data)


def neighbour(state: int, kind: int = NEWNEIGH, mac: str | None = MAC, address: object = REAL4) -> bytes:
    family = socket.AF_INET if ip_address(str(address)).version == 4 else socket.AF_INET6
    attrs = [("NDA_DST", str(address)), *([("NDA_LLADDR", mac)] if mac else []), ("NDA_PROBES", 1)]
    return said(ndmsg, kind, *attrs, family=family, ifindex=3, state=state)


@pytest.mark.parametrize(
    ("state", "sure"),
    [(REACHABLE, True), (DELAY, True), (PROBE, True), (NOARP, True), (PERMANENT, True), (STALE, False)],
)
def test_neighbour(state: int, sure: bool) -> None:
    for address in (REAL4, REAL6):
        (event,) = rtnetlink.read(neighbour(state, address=address))
        assert event == NeighbourEvent(address, 3, Neighbour(3, MAC), sure)


@pytest.mark.parametrize(
    "data", [neighbour(FAILED), neighbour(REACHABLE, DELNEIGH), neighbour(REACHABLE, mac=None)]
)
def test_neighbour_of_which_nothing_is_known(data: bytes) -> None:
    assert list(rtnetlink.read(data)) == [NeighbourEvent(REAL4, 3, None, sure=False)]


def test_attributes_are_padded_and_in_any_order() -> None:
    attrs = [("NDA_LLADDR", MAC), ("NDA_DST", str(REAL4))]  # ten bytes, of twelve
    data = said(ndmsg, NEWNEIGH, *attrs, family=socket.AF_INET, ifindex=3, state=REACHABLE)
    assert list(rtnetlink.read(data)) == list(rtnetlink.read(neighbour(REACHABLE)))


def test_neighbour_with_an_address_of_another_kind_of_link() -> None:
    data = neighbour(REACHABLE).replace(b"\x0a\x00\x02\x00", b"\x08\x00\x02\x00")  # four bytes of it
    (event,) = rtnetlink.read(data)
    assert isinstance(event, NeighbourEvent) and event.neighbour is None


def route(number: int, *attrs: tuple[str, object], sequence: int = 7) -> bytes:
    return said(rtmsg, number, *attrs, sequence=sequence, family=socket.AF_INET, dst_len=32)


def test_routes() -> None:
    data = route(NEWROUTE, ("RTA_DST", "10.0.0.7"), ("RTA_OIF", 3), ("RTA_GATEWAY", "10.0.0.1"))
    assert list(rtnetlink.read(data)) == [Found(7, Route(3, ip_address("10.0.0.1")))]
    data = route(NEWROUTE, ("RTA_OIF", 3), sequence=8) + data
    assert list(rtnetlink.read(data)) == [
        Found(8, Route(3, None)),
        Found(7, Route(3, ip_address("10.0.0.1"))),
    ]
    assert list(rtnetlink.read(route(NEWROUTE))) == [Found(7, None)], "it leads nowhere"
    assert list(rtnetlink.read(route(DELROUTE, ("RTA_OIF", 3)))) == [RoutesChanged()]


def test_route_by_a_gateway_of_the_other_version() -> None:
    data = route(NEWROUTE, ("RTA_OIF", 3), ("RTA_VIA", {"family": socket.AF_INET6, "addr": "fd00::1"}))
    assert list(rtnetlink.read(data)) == [Found(7, Route(3, ip_address("fd00::1")))]


def test_route_with_the_address_to_send_from() -> None:
    data = route(NEWROUTE, ("RTA_OIF", 3), ("RTA_PREFSRC", "10.0.0.2"))
    assert list(rtnetlink.read(data)) == [Found(7, Route(3, None, ip_address("10.0.0.2")))]
    data = said(
        rtmsg, NEWROUTE, ("RTA_OIF", 3), ("RTA_PREFSRC", "fd00::2"), family=socket.AF_INET6, dst_len=128
    )
    assert list(rtnetlink.read(data)) == [Found(0, Route(3, None, ip_address("fd00::2")))]


@pytest.mark.parametrize("kind", [20, 21], ids=["NEWADDR", "DELADDR"])
def test_addresses_of_ours_change_what_routes_say(kind: int) -> None:
    data = said(ifaddrmsg, kind, ("IFA_ADDRESS", "10.0.0.2"), family=socket.AF_INET, index=3)
    assert list(rtnetlink.read(data)) == [RoutesChanged()]


def test_links() -> None:
    assert (
        list(rtnetlink.read(said(ifinfmsg, 16, index=3) + said(ifinfmsg, 17, index=4)))
        == [LinksChanged()] * 2
    )


def header(kind: int, body: bytes, sequence: int = 6) -> bytes:
    return rtnetlink._HEADER.pack(16 + len(body), kind, 0, sequence, 0) + body


def test_refusals_and_the_end() -> None:
    refused = header(2, (-errno.ENOBUFS).to_bytes(4, "little", signed=True) + bytes(16))
    assert list(rtnetlink.read(refused + header(3, bytes(4)))) == [Refused(6, errno.ENOBUFS), End()]
    assert list(rtnetlink.read(header(2, bytes(20)))) == [], "not an error, but a yes"


def test_what_is_unknown_or_cut_short_is_passed_over() -> None:
    good = neighbour(REACHABLE)
    assert list(rtnetlink.read(header(99, bytes(4)) + good)) == list(rtnetlink.read(good))
    for length in range(len(good)):
        assert list(rtnetlink.read(good[:length])) == []


@given(st.sampled_from([2, 3, 16, 20, 24, 25, 28, 29]), st.binary(max_size=60), st.binary(max_size=40))
def test_no_bytes_are_too_odd(kind: int, body: bytes, rest: bytes) -> None:
    list(rtnetlink.read(header(kind, body) + rest))
    list(rtnetlink.read(rest))
