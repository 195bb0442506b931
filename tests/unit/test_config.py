"""Valid configurations: what the file says is what the model holds."""

from __future__ import annotations

import re
import socket
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from tests.unit.neighboring import ibgp
from vc5py.config import load, parse, parse_with_warnings, yaml_tree
from vc5py.config.bgp import NeighborGroupSpec, NeighborSpec, RhiSpec
from vc5py.config.cluster import ClusterSpec
from vc5py.config.language import (
    DEFAULTS,
    DEFAULTS_IN_WORDS,
    MODELS,
    CheckSpec,
    ConfigSpec,
    DampingSpec,
    DefaultsSpec,
    RealSpec,
    ServiceSpec,
    VipSpec,
    fields,
)
from vc5py.config.ports import PORTS
from vc5py.config.report import Report
from vc5py.model import (
    AdminState,
    BelowNeed,
    Check,
    CheckType,
    Config,
    Damping,
    DnsQuestion,
    Forwarding,
    ForwardMode,
    HttpRequest,
    MulticastGroup,
    Protocol,
    Real,
    Scheduling,
    Service,
    Sorry,
    Standby,
    Timeouts,
    UdpExchange,
    Unknown,
    Vlan,
)

EXAMPLE = Path(__file__).parents[2] / "config.example.yaml"

FULL = """
learn: 10
multicast: 224.0.0.1:9999
rhi:
  as_number: 65000
  peers: [10.10.100.3, 10.10.100.4]
services:
  - name: nginx
    desc: web server
    addr: 192.168.101.1          # or a list
    port: [80, 443]              # or one
    real: nginx                  # a group, or a list of groups
    need: 1
    checks:
      - {name: http check,  type: http,  port: 80,  path: /alive}
      - {name: https check, type: https, port: 443, path: /alive}
  - {name: iperf, desc: bandwidth test, addr: 192.168.101.2, port: 5001, real: iperf,
     checks: [{name: tcp check, type: tcp}]}
reals:
  nginx: [10.10.100.10, 10.10.100.11]
  iperf: [10.10.100.12, 10.10.100.13]
"""

MINIMAL = "{services: [{name: a, addr: 10.0.0.1, port: 80, real: g, checks: []}], reals: {g: [10.0.1.1]}}"


def service(extra: str) -> Service:
    """The one service of a small configuration, with `extra` keys."""
    text = f"""
services:
  - name: a
    addr: 10.0.0.1
{"".join(f"    {line}{chr(10)}" for line in extra.splitlines())}
reals:
  g: [10.0.1.1, 10.0.1.2]
  h: [10.0.1.3]
  k:
    - 10.0.2.1
    - {{address: 10.0.2.2, weight: 0}}
    - {{address: 10.0.2.3, weight: 5, mode: ipip, mtu: 1500}}
  l:
    - {{address: "fd00::1", mode: fou, tunnel_port: 7777}}
    - {{address: 10.0.2.4, mode: dscp}}
    - {{address: 10.0.2.5, mode: dscp, dscp: 0}}
    - {{address: 10.0.2.6, mode: l2}}
"""
    (only,) = parse(text, "a.yaml").services
    return only


def reals(*addresses: str) -> tuple[Real, ...]:
    return tuple(Real(ip_address(address)) for address in addresses)


def test_the_whole_language_arrives_in_the_model() -> None:
    assert parse(FULL, "vc5.yaml") == Config(
        learn_s=10.0,
        multicast=MulticastGroup(IPv4Address("224.0.0.1"), 9999),
        rhi=ibgp(65000, "10.10.100.3", "10.10.100.4"),
        services=(
            Service(
                name="nginx",
                desc="web server",
                vips=(IPv4Address("192.168.101.1"),),
                ports=(80, 443),
                protocols=(Protocol.TCP,),
                reals=reals("10.10.100.10", "10.10.100.11"),
                need=1,
                checks=(
                    Check("http check", CheckType.HTTP, 80, HttpRequest("/alive")),
                    Check("https check", CheckType.HTTPS, 443, HttpRequest("/alive")),
                ),
            ),
            Service(
                name="iperf",
                desc="bandwidth test",
                vips=(IPv4Address("192.168.101.2"),),
                ports=(5001,),
                protocols=(Protocol.TCP,),
                reals=reals("10.10.100.12", "10.10.100.13"),
                need=1,
                checks=(Check("tcp check", CheckType.TCP, 5001),),
            ),
        ),
    )


def test_what_is_left_out_has_the_defaults_of_the_model() -> None:
    config = parse(MINIMAL, "a.yaml")
    assert replace(config, services=()) == Config(services=())
    (only,) = config.services
    assert (only.desc, only.protocols, only.need, only.checks) == ("", (Protocol.TCP,), 1, ())


def test_every_key_of_a_check() -> None:
    checked = service("""\
port: 80
real: g
checks:
  - name: all
    type: https
    port: 8443
    path: /a?b=%20
    host: www.example.com:8443
    method: HEAD
    expect: [200, 204]
    interval: 0.5
    timeout: 3
    rise: 1
    fall: 5""").checks
    assert checked == (
        Check(
            name="all",
            type=CheckType.HTTPS,
            port=8443,
            detail=HttpRequest(
                path="/a?b=%20",
                host="www.example.com:8443",
                method="HEAD",
                expect=frozenset({200, 204}),
            ),
            interval_s=0.5,
            timeout_s=3.0,
            rise=1,
            fall=5,
        ),
    )
    assert isinstance(checked[0].timeout_s, float)


def test_every_key_about_the_way_to_the_reals() -> None:
    found = service("""\
port: 80
real: [k, l]
mode: gue
tunnel_port: 6081
dscp: 7
mtu: 9000
schedule: least-conns
unknown: pass
checks: []""")
    assert found.scheduling is Scheduling.LEAST_CONNS
    assert found.unknown is Unknown.PASS
    gue, ipip = Forwarding(ForwardMode.GUE, 6081, mtu=9000), Forwarding(ForwardMode.IPIP, mtu=1500)
    assert found.reals == (
        Real(ip_address("10.0.2.1"), 1, gue),
        Real(ip_address("10.0.2.2"), 0, gue),
        Real(ip_address("10.0.2.3"), 5, ipip),
        Real(ip_address("fd00::1"), 1, Forwarding(ForwardMode.FOU, 7777, mtu=9000)),
        Real(ip_address("10.0.2.4"), 1, Forwarding(ForwardMode.DSCP, dscp=7, mtu=9000)),
        Real(ip_address("10.0.2.5"), 1, Forwarding(ForwardMode.DSCP, dscp=0, mtu=9000)),
        Real(ip_address("10.0.2.6"), 1, Forwarding(ForwardMode.L2, mtu=9000)),
    )


@pytest.mark.parametrize(("mode", "port"), [("fou", 5555), ("gue", 6080), ("gre", 0), ("ipip", 0)])
def test_default_ports_of_tunnels(mode: str, port: int) -> None:
    first, second = service(f"port: 80\nreal: g\nmode: {mode}\nchecks: []").reals
    assert first.forwarding == second.forwarding == Forwarding(ForwardMode(mode), port)


def test_vips_and_reals_of_either_version_in_any_mix() -> None:
    text = """
services:
  - {name: a, addr: [10.0.0.1, 'fd00::1'], port: 80, real: g, checks: []}
  - {name: b, addr: [10.0.0.1, 'fd00::1'], port: 81, mode: ipip, real: g, checks: []}
  - {name: c, addr: fd00::1, port: 82, mode: dscp, dscp: 0, real: h, checks: []}
reals: {g: [10.0.1.1, 'fd00:1::1'], h: ['fd00:1::1']}
"""
    for one in parse(text, "a.yaml").services:
        assert IPv6Address("fd00::1") in one.vips
        assert one.reals[-1].address == IPv6Address("fd00:1::1")


def test_lists_in_place_of_single_values() -> None:
    many = service("""\
port: [443, 80]
protocol: [udp, tcp]
real: [h, g]
need: 3
checks: [{name: c, type: http, expect: 301}]""")
    assert many.ports == (80, 443)
    assert many.protocols == (Protocol.TCP, Protocol.UDP)
    assert many.reals == reals("10.0.1.3", "10.0.1.1", "10.0.1.2")
    assert many.need == 3
    assert many.checks[0].detail == HttpRequest(expect=frozenset({301}))


def test_a_check_without_a_port_takes_the_first_port_as_written() -> None:
    only = service("port: [443, 80]\nreal: g\nchecks: [{name: c, type: tcp}]")
    assert only.checks[0].port == 443


def test_an_http_check_on_a_udp_service() -> None:
    only = service("port: 53\nprotocol: udp\nreal: g\nchecks: [{name: c, type: http, port: 80}]")
    assert only.protocols == (Protocol.UDP,)
    assert only.checks[0].port == 80


def test_one_port_in_two_protocols_may_be_two_services() -> None:
    text = """
services:
  - {name: a, addr: 10.0.0.1, port: 53, protocol: tcp, real: g, checks: []}
  - {name: b, addr: 10.0.0.1, port: 53, protocol: udp, real: g, checks: []}
  - {name: c, addr: 10.0.0.2, port: 53, protocol: udp, real: g, checks: []}
reals: {g: [10.0.1.1]}
"""
    assert [one.name for one in parse(text, "a.yaml").services] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("learn: 1.5", {"learn_s": 1.5}),
        ("flows: 1024", {"flows": 1024}),
        ("flows: 67108864", {"flows": 67108864}),
        ("metrics: {}", {}),
        ("fragments: drop", {"drop_fragments": True}),
        ("fragments: follow", {"drop_fragments": False}),
        ("timeouts: {udp: 28800}", {"timeouts": Timeouts(udp_s=28800)}),
        (
            "timeouts: {unproven: 1, established: 2, closing: 3, udp: 4}",
            {"timeouts": Timeouts(1, 2, 3, 4)},
        ),
        (
            "vlans: {10: 10.1.10.0/24, '100.10': [10.1.11.0/24, 'fd00:10::/64'], 100.20: 10.2.0.0/16}",
            {
                "vlans": (
                    Vlan(10, ip_network("10.1.10.0/24")),
                    Vlan(10, ip_network("10.1.11.0/24"), outer=100),
                    Vlan(10, ip_network("fd00:10::/64"), outer=100),
                    Vlan(20, ip_network("10.2.0.0/16"), outer=100),
                )
            },
        ),
        ("metrics: {port: 80}", {"metrics_port": 80}),
        ("metrics: {address: '::1'}", {"metrics_address": IPv6Address("::1")}),
        ("metrics: {address: 0.0.0.0}", {"metrics_address": IPv4Address("0.0.0.0")}),
        ("multicast: '[ff02::1]:9999'", {"multicast": MulticastGroup(IPv6Address("ff02::1"), 9999)}),
        (
            "rhi: {as_number: 4294967295, peers: [fd00::1], hold: 0}",
            {"rhi": replace(ibgp(4294967295, "fd00::1"), hold_s=0.0)},
        ),
    ],
)
def test_top_level_keys(line: str, expected: dict[str, Any]) -> None:
    config = parse(f"services: []\nreals: {{}}\n{line}\n", "a.yaml")
    assert config == replace(Config(services=()), **expected)


def test_text_that_other_yaml_readers_take_for_something_else() -> None:
    text = """
services:
  - {name: no, desc: 1:30, addr: 10.0.0.1, port: 80, real: on, checks: [{name: 2024-01-01, type: tcp}]}
  - {name: '17', desc: "0x10", addr: 10.0.0.2, port: 80, real: "1", checks: [{name: 0123, type: tcp}]}
reals:
  on: [10.0.1.1]
  '1': [10.0.1.1]
"""
    first, second = parse(text, "a.yaml").services
    assert (first.name, first.desc, first.checks[0].name) == ("no", "1:30", "2024-01-01")
    assert (second.name, second.desc, second.checks[0].name) == ("17", "0x10", "0123")


def test_a_byte_order_mark_and_dos_line_ends(tmp_path: Path) -> None:
    file = tmp_path / "vc5.yaml"
    file.write_bytes(b"\xef\xbb\xbf" + FULL.replace("\n", "\r\n").encode())
    assert load(file) == parse(FULL, "vc5.yaml")


# Levels, lists of reals, states


def only(text: str) -> Service:
    (one,) = parse(text, "a.yaml").services
    return one


def levels(defaults: str = "", service: str = "", check: str = "") -> Service:
    """The one service of a configuration that says these things on its levels."""
    usual = "name: a, addr: 10.0.0.1, port: 80, reals: [10.0.1.1]"
    checks = f"checks: [{{{', '.join(filter(None, ('name: c, type: tcp', check)))}}}]"
    one = ", ".join(filter(None, (usual, checks, service)))
    return only(f"defaults: {{{defaults}}}\nservices: [{{{one}}}]")


@pytest.mark.parametrize(
    ("defaults", "service", "check", "expected"),
    [
        ("", "", "", {"interval_s": 2.0, "timeout_s": 1.0, "rise": 2, "fall": 3, "quorum": None}),
        ("interval: 5, rise: 4", "", "", {"interval_s": 5.0, "rise": 4, "fall": 3}),
        ("interval: 5", "interval: 6", "", {"interval_s": 6.0}),
        ("interval: 5, timeout: 2", "interval: 6", "interval: 7", {"interval_s": 7.0, "timeout_s": 2.0}),
        ("rise: 4, fall: 5", "", "rise: 1", {"rise": 1, "fall": 5, "quorum": None}),
        ("pass: 3 of 5", "", "", {"quorum": (3, 5)}),
        ("pass: 3 of 5", "fall: 1", "", {"quorum": None, "rise": 2, "fall": 1}),
        ("rise: 9", "", "pass: 1 of 1", {"quorum": (1, 1)}),
        ("rise: 9", "pass: 2 of 4", "fall: 7", {"quorum": None, "rise": 9, "fall": 7}),
    ],
)
def test_what_checks_take_from_the_levels_above(
    defaults: str, service: str, check: str, expected: dict[str, Any]
) -> None:
    (made,) = levels(defaults, service, check).checks
    assert {key: getattr(made, key) for key in expected} == expected


SERVED = {
    "schedule": ("sticky", "scheduling", Scheduling.STICKY),
    "unknown": ("pass", "unknown", Unknown.PASS),
    "need": ("7", "need", 7),
    "below_need": ("serve", "below_need", BelowNeed.SERVE),
    "min_up": ("3", "min_up", 3),
    "standby": ("join", "standby", Standby.JOIN),
    "slow_start": ("9.5", "slow_start_s", 9.5),
    "damping": ("off", "damping", None),
}


@pytest.mark.parametrize("key", SERVED)
def test_what_services_take_from_the_defaults(key: str) -> None:
    written, field, value = SERVED[key]
    usual = getattr(levels(), field)
    assert usual != value
    said = f"{key}: {written}"
    assert getattr(levels(defaults=said), field) == value
    assert getattr(levels(service=said), field) == value
    again = f"{key}: {'{}' if key == 'damping' else usual}"
    assert getattr(levels(defaults=said, service=again), field) == usual


@pytest.mark.parametrize(
    ("defaults", "service", "expected"),
    [
        ("", "damping: {suppress: 9}", Damping(suppress=9.0)),
        ("damping: {suppress: 9}", "damping: {longest: 5}", Damping(suppress=9.0, longest_s=5.0)),
        ("damping: off", "damping: {reuse: 2}", Damping(reuse=2.0)),
        ("damping: {half_life: 7, reuse: 0.5}", "", Damping(half_life_s=7.0, reuse=0.5)),
    ],
)
def test_damping_by_its_keys(defaults: str, service: str, expected: Damping) -> None:
    assert levels(defaults, service).damping == expected


def test_the_way_to_the_reals_from_the_defaults() -> None:
    made = only("""
defaults: {mode: gue, tunnel_port: 7000, mtu: 9000}
services:
  - {name: a, addr: 10.0.0.1, port: 80, checks: [],
     reals: [10.0.1.1, {address: 10.0.1.2, mode: ipip}, {address: 10.0.1.3, mtu: 1400, tunnel_port: 1}]}
""")
    assert [real.forwarding for real in made.reals] == [
        Forwarding(ForwardMode.GUE, 7000, mtu=9000),
        Forwarding(ForwardMode.IPIP, mtu=9000),
        Forwarding(ForwardMode.GUE, 1, mtu=1400),
    ]


def test_reals_in_the_service_beside_its_groups() -> None:
    made = only("""
services:
  - name: a
    addr: 10.0.0.1
    port: 80
    checks: []
    mode: ipip
    real: g
    reals: [10.0.1.2, {address: 10.0.1.3, weight: 5, tier: 7, state: draining}]
    sorry: {real: g2, reals: [{address: 10.0.1.9, state: disabled}], checks: [{name: s, type: syn, port: 81}]}
reals: {g: [10.0.1.1], g2: [10.0.1.8]}
""")
    ipip = Forwarding(ForwardMode.IPIP)
    assert made.reals == (
        Real(ip_address("10.0.1.1"), forwarding=ipip),
        Real(ip_address("10.0.1.2"), forwarding=ipip),
        Real(ip_address("10.0.1.3"), 5, ipip, tier=7, admin=AdminState.DRAINING),
    )
    assert made.sorry == Sorry(
        (
            Real(ip_address("10.0.1.8"), forwarding=ipip),
            Real(ip_address("10.0.1.9"), forwarding=ipip, admin=AdminState.DISABLED),
        ),
        (Check("s", CheckType.SYN, 81),),
    )


def test_sorry_is_checked_by_tcp_unless_it_says_otherwise() -> None:
    usual = (Check("tcp", CheckType.TCP, 80, interval_s=3.0, fall=9),)
    for checks, expected in (("", usual), (", checks: []", ())):
        sorry = levels("interval: 3", f"fall: 9, sorry: {{reals: [10.0.1.2]{checks}}}").sorry
        assert sorry is not None
        assert sorry.checks == expected


# Ports by name, and the details of checks


def test_ports_by_name_are_those_of_the_machine_where_it_knows_them() -> None:
    different = {"rdp", "memcache", "git", "secure-mqtt"}  # registered by another name, or not everywhere
    for name, port in PORTS.items():
        for protocol in ("tcp", "udp"):
            try:
                assert socket.getservbyname(name, protocol) == port or name in different
            except OSError:
                continue


def test_ports_by_name() -> None:
    made = service("port: [https, 80, domain]\nreal: g\nchecks: [{name: c, type: http, port: http-alt}]")
    assert made.ports == (53, 80, 443)
    assert made.checks[0].port == 8080
    assert service("port: [https, 80]\nreal: g\nchecks: [{name: c, type: tcp}]").checks[0].port == 443


@pytest.mark.parametrize(
    ("check", "detail"),
    [
        ("type: tcp", None),
        ("type: syn", None),
        ("type: http", HttpRequest()),
        ("type: http, expect: any", HttpRequest(expect=frozenset(range(100, 600)))),
        ("type: http, expect: 200-203", HttpRequest(expect=frozenset({200, 201, 202, 203}))),
        ("type: http, expect: [404, 500-501]", HttpRequest(expect=frozenset({404, 500, 501}))),
        (
            "type: https, verify: true, host: a.example, ca_file: /no/such/file, body: ok, body_regex: ^o+",
            HttpRequest(host="a.example", verify=True, ca_file="/no/such/file", body="ok", body_regex="^o+"),
        ),
        (
            "type: http, headers: {User-Agent: vc5 1.0, X-Empty: ''}",
            HttpRequest(headers=(("User-Agent", "vc5 1.0"), ("X-Empty", ""))),
        ),
        ("type: dns", DnsQuestion()),
        (
            "type: dns, question: _x._tcp.a, record: SRV, transport: tcp, answer: 1 2 3 a., rcode: refused",
            DnsQuestion("_x._tcp.a", "SRV", Protocol.TCP, "1 2 3 a.", "refused"),
        ),
        ("type: dns, record: AAAA, answer: '::1'", DnsQuestion(record="AAAA", answer="::1")),
        ("type: dns, record: MX, answer: 1 a.", DnsQuestion(record="MX", answer="1 a.")),
        ("type: udp", UdpExchange()),
        ("type: udp, payload: é, reply: ''", UdpExchange("é".encode(), b"")),
        ("type: udp, payload_hex: '00fF', reply_hex: '0a'", UdpExchange(b"\x00\xff", b"\n")),
    ],
)
def test_details_of_checks(check: str, detail: object) -> None:
    made = service(f"port: 53\nprotocol: [tcp, udp]\nreal: g\nchecks: [{{name: c, {check}}}]")
    assert made.checks[0].detail == detail


def test_checks_over_udp_take_over_the_port_of_a_udp_service() -> None:
    checks = "[{name: a, type: udp}, {name: b, type: dns}, {name: c, type: dns, transport: tcp, port: 54}]"
    made = service(f"port: 53\nprotocol: udp\nreal: g\nchecks: {checks}")
    assert [check.port for check in made.checks] == [53, 53, 54]


# The example


def test_the_example_loads_without_a_warning() -> None:
    example, warnings = parse_with_warnings(EXAMPLE.read_text(), "example")
    assert [one.name for one in example.services] == ["nginx", "cache", "iperf", "dns"]
    assert warnings == ()


def _nodes(node: Any, path: tuple[str | int, ...]) -> Iterator[dict[str, Any]]:
    """The mappings at a path of `MODELS`: 0 stands for any index, `*` for any key."""
    if not path:
        if isinstance(node, dict):
            yield node
        return
    if not isinstance(node, dict | list):
        return
    inner = node if path[0] == 0 else node.values() if path[0] == "*" else [node.get(path[0])]
    for one in inner:
        yield from _nodes(one, path[1:])


def _example_mappings() -> dict[type[BaseModel], dict[str, list[Any]]]:
    """The models, each with all keys of its kind in the example, and their values."""
    tree = yaml_tree.read(EXAMPLE.read_text(), Report("example"))
    assert tree is not None
    mappings: dict[type[BaseModel], dict[str, list[Any]]] = {}
    for path, model in MODELS.items():
        shown = mappings.setdefault(model, {})
        for node in _nodes(tree.root, path):
            for key, value in node.items():
                shown.setdefault(key, []).append(value)
    return mappings


# Shown as comments: with the other keys they would contradict, or name a file that isn't everywhere.
COMMENTED = {
    (DefaultsSpec, "pass"),
    (DefaultsSpec, "tunnel_port"),
    (CheckSpec, "ca_file"),
    (RhiSpec, "multihop"),
    (RhiSpec, "password_file"),
    (RhiSpec, "password_env"),
    (ClusterSpec, "secret_env"),
    (ClusterSpec, "keys_file"),
    (ClusterSpec, "keys_env"),
}


# The default is for those who share no flows, as the example does.
UNLIKE_DEFAULT = {(ConfigSpec, "learn")}


def test_the_example_shows_every_key_with_its_default() -> None:
    cascading = set(fields(DefaultsSpec))
    of_rhi = set(fields(NeighborGroupSpec)) & set(fields(RhiSpec)) - {"neighbors"}
    above = {ServiceSpec: cascading, CheckSpec: cascading, NeighborGroupSpec: of_rhi, NeighborSpec: of_rhi}
    for model, shown in _example_mappings().items():
        own = set(fields(model)) - above.get(model, set())
        assert {(model, key) for key in own - set(shown)} <= COMMENTED
        for key, field in fields(model).items():
            if key not in shown:
                continue
            default = DEFAULTS.get(key) if model in (DefaultsSpec, DampingSpec) else field.default
            stated = field.is_required() or default in (None, "") or isinstance(default, BaseModel)
            values = [frozenset({200}), [frozenset({200})]] if 200 in shown[key] else shown[key]
            by_name = key in ("reals", "vips", "groups") or (model, key) in UNLIKE_DEFAULT
            assert stated or by_name or default in values, f"{model.__name__}.{key}"
    for _, key in COMMENTED:
        assert re.search(rf"^ +# {key}: .*# .*Default: ", EXAMPLE.read_text(), re.MULTILINE), key


def test_every_line_of_the_example_that_could_be_left_out_names_its_default() -> None:
    lines = EXAMPLE.read_text().splitlines()
    cascading = {*fields(DefaultsSpec), *fields(DampingSpec)}
    without_default = Counter(
        key
        for model in _example_mappings()
        for key, field in fields(model).items()
        if field.default is None and (model is RealSpec or key not in cascading or model is VipSpec)
        if model not in (NeighborGroupSpec, NeighborSpec)
    )
    for key, count in without_default.items():
        about = [
            line
            for line in lines
            if line.strip().startswith((f"{key}:", f"# {key}:")) and "Default: " in line
        ]
        assert len(about) == count + (key == "tunnel_port"), key  # which has no single default either


# The models, from which the schema and the reference are generated


def test_every_key_has_a_description() -> None:
    for model in MODELS.values():
        for key, field in fields(model).items():
            assert field.description, f"{model.__name__}.{key}"


def test_every_default_of_a_level_is_known() -> None:
    names = {*DefaultsSpec.model_fields, *DampingSpec.model_fields}
    assert names == {*DEFAULTS, *DEFAULTS_IN_WORDS}
