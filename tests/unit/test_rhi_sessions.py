"""BGP sessions with what the machine adds; passwords; ExaBGP's changed methods."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_network
from pathlib import Path
from typing import Any

import pytest

from tests.unit.checks_rig import in_new_network
from vc5py.credentials import MAX_PASSWORD
from vc5py.errors import RhiError
from vc5py.model import Neighbor, PrefixRule, RhiConfig, Secret
from vc5py.rhi import sessions
from vc5py.rhi.sessions import Machine, Session, passwords, resolve

OURS, OURS6 = IPv4Address("192.0.2.9"), IPv6Address("2001:db8::9")
MACHINE = Machine(OURS, OURS, (OURS6,))
ROUTER = Neighbor(IPv4Address("192.0.2.1"), 65001, 65001)
ROUTER6 = replace(ROUTER, address=IPv6Address("::1"))


def test_addresses_are_the_neighbors_own_or_the_machines() -> None:
    config = RhiConfig(65001, (ROUTER, replace(ROUTER, source=IPv4Address("192.0.2.8"))))
    first, second = resolve(config, MACHINE, {}).sessions
    assert (first.local_address, first.next_hops, first.families) == (OURS, (OURS, OURS6), (4, 6))
    assert (second.local_address, second.next_hop(4)) == (IPv4Address("192.0.2.8"), OURS)


def test_ipv6_session_comes_from_where_the_kernel_says() -> None:
    async def main() -> None:
        own, with_other = ROUTER6, replace(ROUTER6, source=OURS)
        (session,) = resolve(RhiConfig(65001, (own,)), Machine(OURS, OURS), {}).sessions
        assert (session.local_address, session.next_hop(6)) == (IPv6Address("::1"), IPv6Address("::1"))
        (session,) = resolve(RhiConfig(65001, (with_other,)), Machine(OURS, OURS), {}).sessions
        assert session.local_address == IPv6Address("::1"), "a source of the other version isn't for it"

    in_new_network(main)


def test_next_hops_of_a_neighbor_go_first_and_families_bound_what_is_announced() -> None:
    hop = IPv6Address("2001:db8::7")
    neighbor = replace(ROUTER, next_hop6=hop, families=frozenset({6}))
    (session,) = resolve(RhiConfig(65001, (neighbor,)), MACHINE, {}).sessions
    assert (session.next_hop(6), session.next_hop(4), session.families) == (hop, OURS, (6,))
    (session,) = resolve(RhiConfig(65001, (ROUTER,)), Machine(OURS, OURS), {}).sessions
    assert (session.next_hop(6), session.families) == (None, (4,))


@pytest.mark.parametrize(
    ("accept", "reject", "admitted"),
    [
        ([], [], True),
        ([("192.0.2.0/24", 24, 32)], [], True),
        ([("192.0.2.0/24", 24, 31)], [], False),
        ([("198.51.100.0/24", 24, 32)], [], False),
        ([("::/0", 0, 128)], [], False),
        ([], [("192.0.2.77/32", 32, 32)], False),
        ([("192.0.2.0/24", 24, 32)], [("192.0.2.0/25", 25, 32)], False),
        ([("192.0.2.0/24", 24, 32)], [("192.0.2.0/25", 25, 31)], True),
    ],
)
def test_filters(
    accept: list[tuple[str, int, int]], reject: list[tuple[str, int, int]], admitted: bool
) -> None:
    rules = [
        tuple(PrefixRule(ip_network(prefix), ge, le) for prefix, ge, le in some) for some in (accept, reject)
    ]
    neighbor = replace(ROUTER, accept=rules[0], reject=rules[1])
    assert neighbor.admits(IPv4Address("192.0.2.77")) is admitted


def test_families_of_a_neighbor_are_a_filter_too() -> None:
    assert not replace(ROUTER, families=frozenset({6})).admits(IPv4Address("192.0.2.77"))


# Addresses that are missing

NOWHERE = replace(ROUTER, address=IPv4Address("255.255.255.255"))  # a host's own address reaches it nowhere
OURS_IS_6 = Machine(OURS, OURS6)
LOOPBACK, ABSENT = IPv4Address("127.0.0.1"), IPv4Address("192.0.2.77")


def test_a_neighbor_without_an_address_of_ours_is_left_out_alone() -> None:
    resolved = resolve(RhiConfig(65001, (ROUTER6, NOWHERE)), OURS_IS_6, {})
    assert [session.neighbor for session in resolved.sessions] == [ROUTER6]
    assert list(resolved.missing) == [NOWHERE.address]
    assert "no local address to reach the BGP peer 255.255.255.255" in resolved.missing[NOWHERE.address]


def test_one_that_is_to_connect_to_an_address_that_is_not_ours_is_left_out_alone() -> None:
    """ExaBGP would not start."""
    away = replace(ROUTER, passive=True, source=ABSENT)
    here = replace(away, address=IPv4Address("192.0.2.2"), source=LOOPBACK)
    resolved = resolve(RhiConfig(65001, (away, here)), MACHINE, {})
    assert [session.neighbor for session in resolved.sessions] == [here]
    assert "can't wait for the neighbor on 192.0.2.77: " in resolved.missing[away.address]
    active = replace(away, passive=False)
    assert resolve(RhiConfig(65001, (active,)), MACHINE, {}).missing == {}, "ExaBGP itself tries again"


@pytest.mark.parametrize("local", [LOOPBACK, ABSENT], ids=["still ours", "gone with its link"])
def test_a_session_that_was_there_stays_while_its_route_is_away(local: IPv4Address) -> None:
    before = Session(NOWHERE, local, (local,), b"old")
    kept = resolve(RhiConfig(65001, (NOWHERE,)), OURS_IS_6, {}, [before])
    assert kept.missing == {}
    assert [session.local_address for session in kept.sessions] == [local]
    other = replace(NOWHERE, hold_time_s=9)
    assert list(resolve(RhiConfig(65001, (other,)), OURS_IS_6, {}, [before]).missing) == [NOWHERE.address]


def test_a_session_that_was_there_has_the_password_of_now() -> None:
    secret = Secret(variable="KEY")
    neighbor = replace(ROUTER, password=secret)
    before = Session(neighbor, LOOPBACK, (LOOPBACK,), b"old")
    (session,) = resolve(RhiConfig(65001, (neighbor,)), MACHINE, {secret: b"new"}, [before]).sessions
    assert (session.local_address, session.password) == (LOOPBACK, b"new")


def test_one_that_waits_on_an_address_that_has_gone_stays() -> None:
    """It may come back; and in ExaBGP only that neighbor would suffer."""
    neighbor = replace(ROUTER, passive=True, source=ABSENT)
    before = Session(neighbor, ABSENT, (OURS, OURS6))
    assert resolve(RhiConfig(65001, (neighbor,)), MACHINE, {}, [before]).sessions == (before,)
    other = replace(neighbor, hold_time_s=9)
    assert list(resolve(RhiConfig(65001, (other,)), MACHINE, {}, [before]).missing) == [ROUTER.address]


@pytest.mark.parametrize(
    ("machine", "changes", "supposed"),
    [
        (OURS_IS_6, {}, True),
        (OURS_IS_6, {"source": ABSENT}, True),
        (OURS_IS_6, {"source": LOOPBACK}, False),
        (MACHINE, {}, False),
        (replace(MACHINE, address=ABSENT), {}, True),
        (OURS_IS_6, {"address": IPv4Address("192.0.2.3")}, False),
    ],
)
def test_an_address_that_exabgp_has_is_supposed_unless_another_is_given(
    machine: Machine, changes: dict[str, Any], supposed: bool
) -> None:
    config = RhiConfig(65001, (replace(NOWHERE, **changes),))
    found = sessions.supposed(config, machine, {}, {NOWHERE.address: ABSENT})
    assert [session.local_address for session in found] == [ABSENT] * supposed


# Passwords


def config(secret: Secret) -> RhiConfig:
    return RhiConfig(65001, (replace(ROUTER, password=secret),))


def test_password_from_a_file_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "key"
    file.write_bytes(b"se cret\xff\n")
    file.chmod(0o600)
    secret = Secret(str(file))
    assert passwords(config(secret)) == {secret: b"se cret\xff"}
    monkeypatch.setenv("KEY", "other")
    assert passwords(config(Secret(variable="KEY"))) == {Secret(variable="KEY"): b"other"}
    (session,) = resolve(config(secret), MACHINE, passwords(config(secret))).sessions
    assert session.password == b"se cret\xff"
    assert "se cret" not in repr(session)


@pytest.mark.parametrize(
    ("content", "mode", "message"),
    [
        (b"", 0o600, "found 0 bytes, expected a password of 1 to 80"),
        (b"\n", 0o600, "found 0 bytes"),
        (b"x" * (MAX_PASSWORD + 1), 0o600, "found 81 bytes"),
        (b"secret", 0o644, "everybody can read"),
        (b"secret\nand more", 0o600, "found more than one line, expected one line with the password alone"),
        (b"secret\n\n", 0o600, "found more than one line"),
        (b"secret\n" + b"x" * MAX_PASSWORD, 0o600, "found more than one line"),
        (b"secret\r\n", 0o600, "found a carriage return"),
        (b"secret\r", 0o600, "found a carriage return"),
        (b"secret \n", 0o600, "found white space around the password"),
        (b" secret", 0o600, "found white space around the password"),
        (b"sec\tret", 0o600, "found a control character"),
        (b"secret\0", 0o600, "found a control character"),
        (b"sec\x7fret", 0o600, "found a control character"),
    ],
)
def test_password_that_can_not_be_used(tmp_path: Path, content: bytes, mode: int, message: str) -> None:
    file = tmp_path / "key"
    file.write_bytes(content)
    file.chmod(mode)
    with pytest.raises(RhiError, match=message) as error:
        passwords(config(Secret(str(file))))
    assert str(file) in str(error.value) and "secret" not in str(error.value)


def test_password_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(RhiError, match="No such file"):
        passwords(config(Secret(str(tmp_path / "none"))))
    with pytest.raises(RhiError, match="the variable VC5_NONE: found 0 bytes"):
        passwords(config(Secret(variable="VC5_NONE")))
