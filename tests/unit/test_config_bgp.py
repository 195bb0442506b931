"""`rhi:` and `vips:` of the configuration: what cascades, what is refused, what is unwise."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any

import pytest

from vc5py.config import parse, parse_with_warnings
from vc5py.errors import ConfigError
from vc5py.model import Bfd, Neighbor, PrefixRule, RhiConfig, RouteAttributes, Secret, VipPolicy


def rhi(text: str) -> RhiConfig:
    config = parse(f"services: []\nrhi: {{as_number: 65000, {text}}}\n", "f").rhi
    assert config is not None
    return config


def findings(text: str) -> list[str]:
    with pytest.raises(ConfigError) as error:
        rhi(text)
    return [diagnostic.message for diagnostic in error.value.diagnostics]


def only(text: str) -> Neighbor:
    (neighbor,) = rhi(text).neighbors
    return neighbor


def test_everything_that_can_be_said_of_a_neighbor() -> None:
    neighbor = only(
        """neighbors: [{address: 'fd00::1', peer_as: 4200000001, local_as: 65009, hold_time: 3, port: 1790,
        graceful_restart: 9, passive: true, listen: 1791, source: 'fd00::9', multihop: 4,
        password_env: BGP_KEY, next_hop4: 10.0.0.9, next_hop6: 'fd00::8', families: ipv6, med: 0,
        local_preference: 4294967295, prepend: 16,
        communities: ['0:65535', graceful-shutdown, '4294967295:0:1'],
        accept: 'fd01::/16 ge 64 le 128', reject: ['fd01::/16 le 64', 10.0.0.0/8], bfd: {interval: 50}}]"""
    )
    assert neighbor == Neighbor(
        IPv6Address("fd00::1"),
        4200000001,
        65009,
        hold_time_s=3,
        restart_time_s=9,
        port=1790,
        passive=True,
        listen=1791,
        source=IPv6Address("fd00::9"),
        multihop=4,
        password=Secret(variable="BGP_KEY"),
        next_hop4=IPv4Address("10.0.0.9"),
        next_hop6=IPv6Address("fd00::8"),
        families=frozenset({6}),
        attributes=RouteAttributes(0, 4294967295, 16, ((0, 65535), (65535, 0)), ((4294967295, 0, 1),)),
        accept=(PrefixRule(ip_network("fd01::/16"), 64, 128),),
        reject=(PrefixRule(ip_network("fd01::/16"), 16, 64), PrefixRule(ip_network("10.0.0.0/8"), 8, 32)),
        bfd=Bfd(50, 3),
    )


def test_settings_cascade_from_rhi_to_groups_to_neighbors() -> None:
    config = rhi(
        """med: 1, hold_time: 30, peers: [10.0.0.1], neighbors: [10.0.0.2, {address: 10.0.0.3, med: 3}],
        groups: {up: {med: 2, peer_as: 65001, communities: '1:1', neighbors:
        [10.0.0.4, {address: 10.0.0.5, med: 5}]}}"""
    )
    said = [(str(n.address), n.as_number, n.attributes.med, n.hold_time_s) for n in config.neighbors]
    assert said == [
        ("10.0.0.1", 65000, 1, 30),
        ("10.0.0.2", 65000, 1, 30),
        ("10.0.0.3", 65000, 3, 30),
        ("10.0.0.4", 65001, 2, 30),
        ("10.0.0.5", 65001, 5, 30),
    ]
    assert [n.attributes.communities for n in config.neighbors] == [(), (), (), ((1, 1),), ((1, 1),)]
    assert [n.is_internal for n in config.neighbors] == [True, True, True, False, False]


def test_the_lowest_level_that_names_a_password_names_it_alone() -> None:
    config = rhi(
        """password_file: /a, peers: [10.0.0.1], neighbors: [{address: 10.0.0.2, password_env: B},
        {address: 10.0.0.3, password_file: /c}]"""
    )
    assert [n.password for n in config.neighbors] == [Secret("/a"), Secret(None, "B"), Secret("/c")]


def test_as_many_communities_as_fit_into_a_command() -> None:
    words = ", ".join(f"'1:2:{number}'" for number in range(64))
    assert len(only(f"peers: [10.0.0.1], communities: [{words}]").attributes.large_communities) == 64


@pytest.mark.parametrize(
    ("text", "bfd"), [("true", Bfd()), ("false", None), ("{multiplier: 5}", Bfd(100, 5))]
)
def test_bfd_by_a_word_or_its_times(text: str, bfd: Bfd | None) -> None:
    assert only(f"neighbors: [{{address: 10.0.0.1, bfd: {text}}}]").bfd == bfd


def test_what_holds_for_all_sessions() -> None:
    config = rhi("peers: [10.0.0.1], hold: 5, graceful: 0, router_id: 192.0.2.1")
    assert (config.hold_s, config.graceful_s, config.router_id) == (5.0, 0.0, IPv4Address("192.0.2.1"))


NEIGHBOR = "peers: [10.0.0.1], "
REFUSED: list[tuple[str, str]] = [
    ("hold: 1", "rhi: found no key 'peers', 'neighbors' or 'groups', expected one"),
    ("peers: [10.0.0.1], neighbors: [10.0.0.1]", "rhi.neighbors[0]: found '10.0.0.1' again"),
    ("groups: {g: {neighbors: [10.0.0.1, {address: 10.0.0.1}]}}", "rhi.groups.g.neighbors[1].address: found"),
    ("groups: {g: {neighbors: []}}", "rhi.groups.g.neighbors: found an empty list"),
    ("groups: {g: {neighbors: [10.0.0.1], neighbours: []}}", "(did you mean 'neighbors'?)"),
    ("neighbors: [{med: 1}]", "rhi.neighbors[0]: found no key 'address'"),
    (NEIGHBOR + "password_file: key", "rhi.password_file: found 'key', expected an absolute path"),
    (NEIGHBOR + "password_file: /a, password_env: B", "rhi.password_env: found beside 'password_file'"),
    (NEIGHBOR + "password: secret", "rhi.password: found an unknown key"),
    (NEIGHBOR + "ttl_security: 1, multihop: 2", "rhi.ttl_security: found beside 'multihop'"),
    (NEIGHBOR + "hold_time: 2", "expected whole seconds from 3 to 65535"),
    (NEIGHBOR + "graceful_restart: 4096", "expected whole seconds from 0 to 4095"),
    (NEIGHBOR + "graceful_restart: 31", "found 31, expected no more than `hold`, which is 30"),
    (
        "hold: 5, groups: {g: {graceful_restart: 6, neighbors: [10.0.0.1]}}",
        "rhi.groups.g.graceful_restart: found 6",
    ),
    (NEIGHBOR + "ttl_security: 255", "expected a number of hops from 1 to 254"),
    (NEIGHBOR + "next_hop4: 'fd00::1'", "expected the IPv4 address of a host"),
    (NEIGHBOR + "next_hop6: 10.0.0.1", "expected the IPv6 address of a host"),
    (NEIGHBOR + "families: [ipv5]", "expected ipv4 or ipv6"),
    (NEIGHBOR + "communities: ['65536:1']", "expected a community such as"),
    (NEIGHBOR + "communities: noexport", "(did you mean 'no-export'?)"),
    (NEIGHBOR + "communities: '1:2:4294967296'", "expected a community such as"),
    (
        NEIGHBOR + f"communities: [{'blackhole, ' * 65}]",
        "rhi.communities: found a list, expected at most 64 communities, not 65",
    ),
    (
        f"neighbors: [{{address: 10.0.0.1, communities: [{'no-export, ' * 65}]}}]",
        "rhi.neighbors[0].communities: found a list, expected at most 64",
    ),
    (NEIGHBOR + "accept: 10.0.0.1/8", "expected a prefix"),
    (NEIGHBOR + "accept: 10.0.0.0/8 ge 7", "expected a prefix"),
    (NEIGHBOR + "accept: 10.0.0.0/8 le 33", "expected a prefix"),
    (NEIGHBOR + "accept: 10.0.0.0/8 ge 25 le 24", "expected a prefix"),
    (NEIGHBOR + "peer_as: 4294967296", "expected an AS number from 1 to 4294967295"),
    (NEIGHBOR + "bfd: {interval: 9}", "expected milliseconds from 10 to 60000"),
]


@pytest.mark.parametrize(("text", "message"), REFUSED)
def test_what_is_refused(text: str, message: str) -> None:
    (found,) = findings(text)
    assert message in found


# VIPs

SERVICE = (
    "services: [{name: a, addr: 192.0.2.1, port: 80, checks: [{name: c, type: tcp}], reals: [10.0.0.1]}]\n"
)


def whole(text: str) -> Any:
    return parse_with_warnings(SERVICE + text, "f", {ip_address("10.0.0.9")})


def test_policies_of_vips() -> None:
    config, warnings = whole("defaults: {announce: any}\nvips: {192.0.2.1: {announce: all}}\n")
    assert (config.vip_policy, config.vip_policies, warnings) == (
        VipPolicy.ANY,
        ((IPv4Address("192.0.2.1"), VipPolicy.ALL),),
        (),
    )
    assert whole("")[0].vip_policy is VipPolicy.ALL
    with pytest.raises(ConfigError, match="found 'some', expected all or any"):
        whole("defaults: {announce: some}\n")
    with pytest.raises(ConfigError, match="expected the IPv4 or IPv6 address of a host"):
        whole("vips: {web: {announce: all}}\n")
    with pytest.raises(ConfigError, match="did you mean 'announce'"):
        whole("vips: {192.0.2.1: {anounce: all}}\n")


@pytest.mark.parametrize(
    ("text", "warning"),
    [
        ("vips: {192.0.2.7: {announce: all}}\n", "vips['192.0.2.7']: found a VIP that no service has"),
        (
            "rhi: {as_number: 1, neighbors: [{address: 10.0.0.1, prepend: 2}]}\n",
            "rhi.neighbors[0].prepend: found for an iBGP neighbor: it has no effect",
        ),
        (
            "rhi: {as_number: 1, neighbors: [{address: 10.0.0.1, peer_as: 2, local_preference: 2}]}\n",
            "rhi.neighbors[0].local_preference: found for an eBGP neighbor: it has no effect",
        ),
        (
            "rhi: {as_number: 1, neighbors: [{address: 10.0.0.1, peer_as: 2, multihop: 2, bfd: true}]}\n",
            "rhi.neighbors[0]: found bfd for a neighbor over several hops: it works on one link only",
        ),
        (
            "rhi: {as_number: 1, next_hop4: 10.0.0.1, peers: [10.0.0.1]}\n",
            "rhi.peers[0]: found 10.0.0.1, the neighbor itself, as the next hop",
        ),
        (
            "rhi: {as_number: 1, groups: {g: {neighbors: [10.0.0.9]}}}\n",
            "rhi.groups.g.neighbors[0]: found 10.0.0.9, an address of this machine",
        ),
    ],
)
def test_what_is_unwise(text: str, warning: str) -> None:
    (found,) = whole(text)[1]
    assert warning in found.message
