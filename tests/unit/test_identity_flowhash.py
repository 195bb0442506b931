"""Names that all nodes and all versions must compute alike: pinned values, and what must tell them apart."""

from __future__ import annotations

from collections import Counter
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vc5py.core.flowhash import FlowKey, client_hash, flow_hash, fragment_hash, other_slot, table_slot
from vc5py.core.identity import backend_identity, real_identity, service_identity
from vc5py.model import BackendId, VirtualServiceId

VIP, REAL = IPv4Address("192.0.2.1"), IPv4Address("10.0.0.1")
KEY = FlowKey(0x0123456789ABCDEF, 0xFEDCBA9876543211)

addresses = st.integers(0, 2**32 - 1).map(IPv4Address)
ports = st.integers(0, 65535)
flows = st.tuples(addresses, addresses, ports, ports, st.sampled_from([6, 17]))


def test_identities_never_change_between_versions() -> None:
    assert service_identity(VirtualServiceId("web", VIP)) == 0x1F3517A9CDC7BC1F
    assert backend_identity(BackendId("web", VIP, REAL)) == 0x77C1D5C40F835B13
    assert real_identity(REAL) == 0xEADD4A627E6BDA31


def test_identities_of_different_things_differ() -> None:
    names, reals = ("a", "a2", "b"), [REAL + n for n in range(9)]
    services = [VirtualServiceId(name, VIP + n) for name in names for n in range(9)]
    identities = {service_identity(service) for service in services}
    identities |= {backend_identity(BackendId(s.service, s.vip, real)) for s in services for real in reals}
    identities |= {real_identity(real) for real in reals}
    assert len(identities) == 27 + 27 * 9 + 9
    assert all(0 < identity < 1 << 64 for identity in identities)


@pytest.mark.parametrize(  # of xdp/hash.h with the same key
    ("source", "destination", "sport", "dport", "protocol", "expected"),
    [
        ("198.51.100.7", "192.0.2.1", 40001, 80, 6, 0xB31A17096B6F26F5),
        ("198.51.100.7", "192.0.2.1", 40001, 53, 17, 0xC50897291A52EB9C),
        ("0.0.0.0", "255.255.255.255", 65535, 1, 6, 0xFA35E5837AB27ECB),
    ],
)
def test_flow_hash_is_that_of_the_program(
    source: str, destination: str, sport: int, dport: int, protocol: int, expected: int
) -> None:
    assert flow_hash(KEY, ip_address(source), ip_address(destination), sport, dport, protocol) == expected


@given(flows, flows)
def test_every_part_of_the_tuple_counts(one: tuple[object, ...], other: tuple[object, ...]) -> None:
    mixed = [(*one[:i], other[i], *one[i + 1 :]) for i in range(5)]
    hashes = {flow: flow_hash(KEY, *flow) for flow in [one, other, *mixed]}  # type: ignore[arg-type]
    assert len(set(hashes.values())) == len(hashes)
    assert all(0 <= value < 1 << 64 for value in hashes.values())


@given(addresses, addresses.filter(int), st.integers(0, 65535))
def test_fragments_and_clients_have_names_of_their_own(
    client: IPv4Address, vip: IPv4Address, identification: int
) -> None:
    names = {
        flow_hash(KEY, client, vip, 0, identification, 6),
        fragment_hash(KEY, client, vip, identification),
        fragment_hash(KEY, client, vip, identification ^ 1),
        client_hash(KEY, client),
        client_hash(KEY, client + 1) if int(client) < 2**32 - 1 else 0,
    }
    assert len(names) == 5


def test_every_word_of_ipv6_addresses_counts() -> None:
    base = IPv6Address("2001:db8:1:2:3:4:5:6")
    sources = [IPv6Address(int(base) ^ 1 << bit) for bit in range(128)]
    names = {flow_hash(KEY, source, base, 1, 2, 6) for source in sources}
    names |= {flow_hash(KEY, base, destination, 1, 2, 6) for destination in sources}
    names |= {client_hash(KEY, source) for source in sources}
    names |= {fragment_hash(KEY, base, source, 2**32 - 1) for source in sources}
    assert len(names) == 4 * 128


def test_identifications_of_ipv6_have_32_bits() -> None:
    one = IPv6Address("2001:db8::1")
    assert fragment_hash(KEY, one, one, 1) != fragment_hash(KEY, one, one, 1 << 16 | 1)


@given(flows)
def test_both_halves_of_the_key_count(flow: tuple[IPv4Address, IPv4Address, int, int, int]) -> None:
    keys = KEY, FlowKey(KEY.start + 1, KEY.odd), FlowKey(KEY.start, KEY.odd + 2)
    assert len({flow_hash(key, *flow) for key in keys}) == 3


def test_key_is_derived_from_the_secret_alone() -> None:
    assert FlowKey.derive() == FlowKey.derive(b"")
    assert FlowKey.derive() == FlowKey(7505544033614793961, 15495644156227494923)
    assert FlowKey.derive(b"secret") == FlowKey(250275982387477243, 4400479944330195651)
    assert all(FlowKey.derive(bytes([n]) * 70).odd % 2 for n in range(32))


def test_slot_is_made_of_bits_40_to_55() -> None:
    assert table_slot(0xB31A17096B6F26F5, 65536) == 0x1A17
    assert table_slot(0xB31A17096B6F26F5, 256) == 0x17


def test_second_candidate_is_made_of_bits_48_to_63() -> None:
    assert other_slot(0xB31A17096B6F26F5, 65536) == 0xB31A
    assert other_slot(0xB31A17096B6F26F5, 256) == 0x1A


def test_flows_of_one_client_spread_over_sets_and_slots() -> None:
    """Ports in a row, as clients use them, must not meet in few places: 99.99 % bounds of a fair spread."""
    hashes = [flow_hash(KEY, REAL, VIP, 32768 + n, 80, 6) for n in range(16384)]
    for places in (
        Counter(h & 255 for h in hashes),
        Counter(h >> 24 & 255 for h in hashes),
        Counter(table_slot(h, 256) for h in hashes),
    ):
        chi2 = sum((places[n] - 64) ** 2 / 64 for n in range(256))
        assert 178 < chi2 < 347
