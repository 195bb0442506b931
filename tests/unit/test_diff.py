"""What changes from one configuration to another, in words."""

from __future__ import annotations

from dataclasses import fields, replace
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.neighboring import ibgp
from tests.unit.test_config import FULL, MINIMAL
from vc5py.config import parse
from vc5py.core.diff import Change, Kind, diff
from vc5py.model import (
    AdminState,
    BelowNeed,
    Bfd,
    Check,
    CheckType,
    Cluster,
    Config,
    Damping,
    DnsQuestion,
    Forwarding,
    ForwardMode,
    HttpRequest,
    MulticastGroup,
    Neighbor,
    PrefixRule,
    Protocol,
    Real,
    RhiConfig,
    RouteAttributes,
    Scheduling,
    Secret,
    Service,
    Sorry,
    Standby,
    Timeouts,
    Unknown,
    VipPolicy,
    Vlan,
)

A, B, C = (Real(ip_address(f"10.0.1.{number}")) for number in (1, 2, 3))
CHECK = Check("c", CheckType.HTTP, 80, HttpRequest())
WEB = Service(
    "web",
    "",
    (ip_address("10.0.0.1"),),
    (80,),
    (Protocol.TCP,),
    (A, B),
    1,
    (CHECK,),
    sorry=Sorry((C,), (CHECK,)),
)
OLD = Config(services=(WEB,))


def of(new: Config, old: Config = OLD) -> list[str]:
    return [str(change) for change in diff(old, new)]


def of_web(**changes: Any) -> list[str]:
    changed = diff(OLD, Config(services=(replace(WEB, **changes),)))
    assert all(change.kind is Kind.CHANGED and not change.restart for change in changed)
    return [f"{change.what}: {change.detail}" for change in changed]


def of_check(**changes: Any) -> list[str]:
    return of_web(checks=(replace(CHECK, **changes),))


def test_nothing_changes() -> None:
    for text in (FULL, MINIMAL):
        assert diff(parse(text, "a"), parse(text, "b")) == ()


WHOLE: list[tuple[dict[str, Any], str]] = [
    ({"learn_s": 1.5}, "learn changed: 0 -> 1.5 (at the next start)"),
    (
        {"multicast": MulticastGroup(ip_address("ff02::1"), 9)},
        "multicast changed: none -> [ff02::1]:9",
    ),
    (
        {"rhi": ibgp(65000, "10.0.2.1", "fd00::1")},
        "rhi changed: none -> AS 65000, neighbors 10.0.2.1, fd00::1",
    ),
    ({"vip_policy": VipPolicy.ANY}, "defaults.announce changed: all -> any"),
    ({"vip_policies": ((ip_address("10.0.0.1"), VipPolicy.ANY),)}, "vips changed: announce + 10.0.0.1 any"),
    ({"metrics_address": ip_address("::1")}, "metrics.address changed: all -> ::1"),
    (
        {"cluster": Cluster(Secret("/etc/secret"), peers=(ip_address("10.0.0.8"),), interface="eth1")},
        "cluster changed: none -> vc5, peers 10.0.0.8, port 9999, interface eth1, datagram 1400"
        " (at the next start)\ncluster.secret changed: none -> /etc/secret (at the next start)",
    ),
    ({"metrics_port": 1}, "metrics.port changed: 9955 -> 1"),
    ({"flows": 2048}, "flows changed: 1048576 -> 2048 (at the next start)"),
    ({"timeouts": Timeouts(udp_s=5)}, "timeouts.udp changed: 300 -> 5"),
    ({"timeouts": Timeouts(unproven_s=5)}, "timeouts.unproven changed: 120 -> 5"),
    ({"timeouts": Timeouts(established_s=5)}, "timeouts.established changed: 3600 -> 5"),
    ({"timeouts": Timeouts(closing_s=5)}, "timeouts.closing changed: 10 -> 5"),
    ({"drop_fragments": True}, "fragments changed: follow -> drop"),
    (
        {"vlans": (Vlan(10, ip_network("10.1.0.0/24"), 100),)},
        "vlans changed: prefixes + 10.1.0.0/24 in 100.10",
    ),
    ({"services": ()}, "service web removed: 10.0.0.1, 80/tcp, 2 reals"),
]


@pytest.mark.parametrize(("changes", "lines"), WHOLE)
def test_settings_of_the_whole(changes: dict[str, Any], lines: str) -> None:
    assert of(replace(OLD, **changes)) == lines.split("\n")


SHARED = Cluster(Secret("/etc/secret"), peers=(ip_address("10.0.0.8"),))
LATER = " (at the next start)"
CLUSTER: list[tuple[Cluster | None, list[str]]] = [
    (
        replace(SHARED, name="other", peers=(), port=9, datagram=9000),
        [
            "cluster changed: vc5, peers 10.0.0.8, port 9999, datagram 1400"
            " -> other, peers none, port 9, datagram 9000"
        ],
    ),
    (replace(SHARED, keys=Secret(variable="K")), ["cluster.keys changed: none -> $K"]),
    (
        replace(SHARED, secret=Secret("/etc/another")),
        [f"cluster.secret changed: /etc/secret -> /etc/another{LATER}"],
    ),
    (
        replace(SHARED, secret=Secret("/etc/another"), keys=Secret("/k"), port=9),
        [
            "cluster changed: vc5, peers 10.0.0.8, port 9999, datagram 1400"
            f" -> vc5, peers 10.0.0.8, port 9, datagram 1400{LATER}",
            f"cluster.secret changed: /etc/secret -> /etc/another{LATER}",
            f"cluster.keys changed: none -> /k{LATER}",
        ],
    ),
    (
        None,
        [
            "cluster changed: vc5, peers 10.0.0.8, port 9999, datagram 1400 -> none",
            f"cluster.secret changed: /etc/secret -> none{LATER}",
        ],
    ),
]


@pytest.mark.parametrize(("cluster", "lines"), CLUSTER)
def test_all_of_a_cluster_but_its_secret_counts_at_once(cluster: Cluster | None, lines: list[str]) -> None:
    """With another secret nothing does: it renames all flows."""
    before, after = replace(OLD, cluster=SHARED), replace(OLD, cluster=cluster)
    assert [str(change) for change in diff(before, after)] == lines


def test_every_setting_of_the_whole_is_compared() -> None:
    assert {key for changes, _ in WHOLE for key in changes} == {field.name for field in fields(Config)}


ROUTER = ibgp(65000, "10.0.2.1").neighbors[0]
NEIGHBOR: list[tuple[dict[str, Any], str]] = [
    ({"as_number": 65001}, "peer_as 65000 -> 65001"),
    ({"local_as": 65001}, "local_as 65000 -> 65001"),
    ({"hold_time_s": 9}, "hold_time 15 -> 9"),
    ({"port": 1}, "port 179 -> 1"),
    ({"passive": True}, "passive False -> True"),
    ({"listen": 1}, "listen 179 -> 1"),
    ({"source": ip_address("10.0.2.2")}, "source none -> 10.0.2.2"),
    ({"multihop": 2}, "multihop none -> 2"),
    ({"ttl_security": 1}, "ttl_security none -> 1"),
    ({"password": Secret("/key")}, "password none -> /key"),
    ({"password": Secret(variable="KEY")}, "password none -> $KEY"),
    ({"next_hop4": ip_address("10.0.2.2")}, "next_hop4 none -> 10.0.2.2"),
    ({"next_hop6": ip_address("fd00::2")}, "next_hop6 none -> fd00::2"),
    ({"families": frozenset({4})}, "families ipv4, ipv6 -> ipv4"),
    ({"attributes": RouteAttributes(med=5)}, "med none -> 5"),
    ({"attributes": RouteAttributes(communities=((1, 2),))}, "communities none -> 1:2"),
    ({"accept": (PrefixRule(ip_network("10.0.0.0/8"), 24, 32),)}, "accept none -> 10.0.0.0/8 ge 24 le 32"),
    ({"reject": (PrefixRule(ip_network("10.0.0.0/8"), 8, 32),)}, "reject none -> 10.0.0.0/8 ge 8 le 32"),
    ({"restart_time_s": 9}, "graceful_restart 0 -> 9"),
    ({"bfd": Bfd()}, "bfd none -> every 100 ms times 3"),
]


@pytest.mark.parametrize(("changes", "detail"), NEIGHBOR)
def test_settings_of_a_neighbor(changes: dict[str, Any], detail: str) -> None:
    old = replace(OLD, rhi=RhiConfig(65000, (ROUTER,)))
    new = replace(OLD, rhi=RhiConfig(65000, (replace(ROUTER, **changes),)))
    assert of(new, old) == [f"rhi changed: neighbor 10.0.2.1: {detail}"]


def test_every_setting_of_a_neighbor_is_compared() -> None:
    told = {key for changes, _ in NEIGHBOR for key in changes} | {"address"}
    assert told == {field.name for field in fields(Neighbor)}


def test_neighbors_come_and_go() -> None:
    old, new = (replace(OLD, rhi=ibgp(65000, f"10.0.2.{host}")) for host in (1, 2))
    assert of(new, old) == ["rhi changed: neighbors + 10.0.2.2 - 10.0.2.1"]
    longer = replace(OLD, rhi=replace(ibgp(65000, "10.0.2.1"), hold_s=5.0, graceful_s=0.0, as_number=2))
    assert of(longer, old) == [
        "rhi changed: as_number 65000 -> 2",
        "rhi changed: hold 30 -> 5",
        "rhi changed: graceful 1 -> 0",
    ]


SERVICE: list[tuple[dict[str, Any], list[str]]] = [
    ({"desc": "a"}, ["desc '' -> 'a'"]),
    ({"need": 2}, ["need 1 -> 2"]),
    ({"vips": (ip_address("10.0.0.2"),)}, ["addr + 10.0.0.2 - 10.0.0.1"]),
    ({"ports": (80, 443)}, ["port + 443"]),
    ({"protocols": (Protocol.UDP,)}, ["protocol + udp - tcp"]),
    ({"reals": (A,)}, ["reals - 10.0.1.2"]),
    ({"reals": (B, A)}, ["reals in another order"]),
    (
        {"reals": (A, replace(B, weight=5, tier=1))},
        ["real 10.0.1.2: weight 1 -> 5", "real 10.0.1.2: tier 0 -> 1"],
    ),
    (
        {"reals": (replace(A, admin=AdminState.DRAINING), B)},
        ["real 10.0.1.1: state enabled -> draining"],
    ),
    (
        {"reals": (replace(A, forwarding=Forwarding(ForwardMode.GUE, 6080)), B)},
        ["real 10.0.1.1: mode l2 mtu 1500 -> mode gue tunnel_port 6080 mtu 1500"],
    ),
    (
        {"reals": (replace(A, forwarding=Forwarding(ForwardMode.DSCP, dscp=0)), B)},
        ["real 10.0.1.1: mode l2 mtu 1500 -> mode dscp dscp 0 mtu 1500"],
    ),
    ({"scheduling": Scheduling.STICKY}, ["schedule maglev -> sticky"]),
    ({"unknown": Unknown.PASS}, ["unknown drop -> pass"]),
    ({"below_need": BelowNeed.SERVE}, ["below_need withdraw -> serve"]),
    ({"min_up": 2}, ["min_up 1 -> 2"]),
    ({"standby": Standby.JOIN}, ["standby replace -> join"]),
    ({"slow_start_s": 30.0}, ["slow_start 0 -> 30"]),
    ({"damping": None}, ["damping suppress 4, reuse 1, half_life 60, longest 600 -> off"]),
    (
        {"damping": Damping(reuse=2.5)},
        [
            "damping suppress 4, reuse 1, half_life 60, longest 600"
            " -> suppress 4, reuse 2.5, half_life 60, longest 600"
        ],
    ),
    ({"sorry": None}, ["sorry none"]),
    ({"sorry": Sorry((C, B), (CHECK,))}, ["sorry reals + 10.0.1.2"]),
    ({"sorry": Sorry((C,), ())}, ["sorry checks - c"]),
    ({"checks": ()}, ["checks - c"]),
    ({"name": "other"}, []),
]


@pytest.mark.parametrize(("changes", "lines"), SERVICE[:-1])
def test_settings_of_a_service(changes: dict[str, Any], lines: list[str]) -> None:
    assert of_web(**changes) == [f"service web: {line}" for line in lines]


def test_every_setting_of_a_service_is_compared() -> None:
    assert {key for changes, _ in SERVICE for key in changes} == {field.name for field in fields(Service)}


def test_another_name_is_another_service() -> None:
    assert diff(OLD, Config(services=(replace(WEB, name="other"),))) == (
        Change(Kind.REMOVED, "service web", "10.0.0.1, 80/tcp, 2 reals"),
        Change(Kind.ADDED, "service other", "10.0.0.1, 80/tcp, 2 reals"),
    )


def test_the_order_of_services() -> None:
    other = replace(WEB, name="other")
    assert of(Config(services=(other, WEB)), Config(services=(WEB, other))) == [
        "services changed: another order"
    ]


CHECKS: list[tuple[dict[str, Any], list[str]]] = [
    ({"type": CheckType.HTTPS}, ["type http -> https"]),
    ({"type": CheckType.DNS, "detail": DnsQuestion()}, ["type http -> dns"]),
    ({"port": 81}, ["port 80 -> 81"]),
    ({"interval_s": 0.5, "timeout_s": 0.25}, ["interval 2 -> 0.5", "timeout 1 -> 0.25"]),
    ({"rise": 1, "fall": 9}, ["rise 2 -> 1", "fall 3 -> 9"]),
    ({"quorum": (3, 5)}, ["pass off -> 3 of 5"]),
    ({"detail": HttpRequest("/a", host="b")}, ["path / -> /a", "host none -> b"]),
    ({"detail": HttpRequest(expect=frozenset({200, 201, 404}))}, ["expect 200 -> 200-201, 404"]),
    ({"detail": HttpRequest(headers=(("X", "y"),))}, ["headers none -> X: y"]),
]


@pytest.mark.parametrize(("changes", "lines"), CHECKS)
def test_settings_of_a_check(changes: dict[str, Any], lines: list[str]) -> None:
    assert of_check(**changes) == [f"service web: check c: {line}" for line in lines]


def test_every_setting_of_a_check_is_compared() -> None:
    compared = {key for changes, _ in CHECKS for key in changes}
    assert compared == {field.name for field in fields(Check)} - {"name"}


def test_a_check_under_another_name_is_another_check() -> None:
    assert of_check(name="d") == ["service web: checks + d - c"]


def test_long_lists_are_cut() -> None:
    many = tuple(Real(ip_address(f"10.0.2.{number}")) for number in range(1, 12))
    (line,) = of_web(reals=(A, B, *many))
    assert line.endswith("10.0.2.8 and 3 more")


def test_vlans_that_differ_late_in_a_long_list() -> None:
    vlans = tuple(Vlan(number, ip_network(f"10.{number}.0.0/16")) for number in range(1, 20))
    assert of(replace(OLD, vlans=vlans), replace(OLD, vlans=vlans[:-1])) == [
        "vlans changed: prefixes + 10.19.0.0/16 in 19"
    ]


reals = st.lists(
    st.builds(
        Real,
        st.sampled_from([A.address, B.address, C.address]),
        weight=st.integers(0, 2),
        tier=st.integers(0, 1),
        admin=st.sampled_from(AdminState),
    ),
    max_size=3,
    unique_by=lambda real: real.address,
).map(tuple)
checks = st.lists(
    st.builds(
        Check,
        st.sampled_from("ab"),
        st.sampled_from([CheckType.TCP, CheckType.SYN]),
        st.integers(1, 2),
        quorum=st.sampled_from([None, (1, 2)]),
    ),
    max_size=2,
    unique_by=lambda check: check.name,
).map(tuple)
services = st.lists(
    st.builds(
        replace,
        st.just(WEB),
        name=st.sampled_from("abc"),
        need=st.integers(1, 2),
        reals=reals,
        checks=checks,
        sorry=st.one_of(st.none(), st.builds(Sorry, reals, checks)),
    ),
    max_size=3,
    unique_by=lambda service: service.name,
).map(tuple)
configs = st.builds(Config, services)


@given(configs, configs)
def test_changes_are_told_exactly_where_there_are_any(old: Config, new: Config) -> None:
    assert (diff(old, new) == ()) == (old == new)
