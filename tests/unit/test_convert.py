"""Configurations of the Go program into ours: what is carried over, what is noted, and that it is good."""

from __future__ import annotations

import json
from ipaddress import IPv6Address, ip_address, ip_network
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.neighboring import ibgp
from vc5py import cli
from vc5py.config import parse
from vc5py.convert import convert
from vc5py.errors import ConfigError
from vc5py.model import (
    AdminState,
    Check,
    CheckType,
    Config,
    DnsQuestion,
    ForwardMode,
    HttpRequest,
    MulticastGroup,
    Neighbor,
    PrefixRule,
    Protocol,
    Real,
    RouteAttributes,
    Scheduling,
    Service,
    Vlan,
)

SHOP = """---
# a shop
bgp:
  as_number: 65010
  learn: 15
  peers: [10.20.0.1, 10.20.0.2]

multicast: 224.0.0.9:7000
webserver: 10.20.0.9:8000

vlans:
  30: 10.30.0.1/24
  40: 10.40.0.0/24
vlans6:
  40: fd00:40::1/64

services:
  - name: shop
    description: the shop's front
    virtual:
      - 192.0.2.10
      - 2001:db8::10
    servers:
      - 10.30.0.11
      - 10.30.0.12
      - 10.30.0.13*
    need: 2
    host: shop.example.com
    path: /ready
    policy:
      http:
        expect: 301
      https:
        need: 1
        sticky: true

  - name: resolver
    virtual: 192.0.2.53
    servers: names
    policy:
      domain:

  - name: queue
    virtual: 192.0.2.70
    servers: names
    policy:
      5672/tcp:
        checks:
          - type: syn
          - type: http
            port: 8500
            path: /alive
            method: HEAD
            expect: 200 210-208 any

servers:
  names:
    - 10.40.0.53
    - 10.40.0.54*
"""


def converted(text: str) -> tuple[Config, list[str]]:
    made, notes = convert(text, "f")
    return parse(made, "made"), [str(note) for note in notes]


def services(text: str) -> tuple[dict[str, Service], list[str]]:
    config, notes = converted(text)
    return {service.name: service for service in config.services}, notes


def one(policy: str, extra: str = "", servers: str = "[10.0.1.1]") -> tuple[dict[str, Service], list[str]]:
    """A service with this policy; `extra` are further lines of it."""
    lines = ["- name: a", "  virtual: 10.0.0.1", f"  servers: {servers}", f"  policy: {policy}"]
    lines += [f"  {line}" for line in extra.split("\n") if line]
    return services("services:\n" + "\n".join(lines))


def real(address: str, admin: AdminState = AdminState.ENABLED) -> Real:
    return Real(ip_address(address), admin=admin)


def test_the_settings_of_the_whole() -> None:
    config, _ = converted(SHOP)
    assert config.learn_s == 15
    assert config.multicast == MulticastGroup(ip_address("224.0.0.9"), 7000)
    assert (config.metrics_address, config.metrics_port) == (ip_address("10.20.0.9"), 8000)
    assert config.rhi == ibgp(65010, "10.20.0.1", "10.20.0.2")
    assert config.vlans == (
        Vlan(30, ip_network("10.30.0.0/24")),
        Vlan(40, ip_network("10.40.0.0/24")),
        Vlan(40, ip_network("fd00:40::/64")),
    )


def test_each_entry_of_a_policy_becomes_a_service() -> None:
    made, _ = services(SHOP)
    assert list(made) == [
        "shop-http", "shop-https", "resolver-domain-tcp", "resolver-domain-udp", "queue",
    ]  # fmt: skip
    http, https = made["shop-http"], made["shop-https"]
    assert http.desc == https.desc == "the shop's front"
    assert http.vips == https.vips == (ip_address("192.0.2.10"), ip_address("2001:db8::10"))
    assert (http.ports, https.ports) == ((80,), (443,))
    assert (http.need, https.need) == (2, 1)
    assert (http.scheduling, https.scheduling) == (Scheduling.MAGLEV, Scheduling.STICKY)
    assert http.reals == (real("10.30.0.11"), real("10.30.0.12"), real("10.30.0.13", AdminState.DISABLED))


def test_checks_take_what_the_service_says() -> None:
    made, _ = services(SHOP)
    request = HttpRequest("/ready", "shop.example.com", expect=frozenset({301}))
    assert made["shop-http"].checks == (Check("http", CheckType.HTTP, 80, request),)
    request = HttpRequest("/ready", "shop.example.com")
    assert made["shop-https"].checks == (Check("https", CheckType.HTTPS, 443, request),)


def test_domain_is_two_services() -> None:
    made, notes = services(SHOP)
    for protocol in Protocol:
        service = made[f"resolver-domain-{protocol}"]
        assert (service.ports, service.protocols) == ((53,), (protocol,))
        assert service.checks == (Check("dns", CheckType.DNS, 53, DnsQuestion("localhost", "A", protocol)),)
        assert service.reals == (real("10.40.0.53"), real("10.40.0.54", AdminState.DISABLED))
    assert sum("took any response as good" in note for note in notes) == 1


def test_a_list_of_checks() -> None:
    made, notes = services(SHOP)
    syn, http = made["queue"].checks
    assert syn == Check("syn", CheckType.SYN, 5672)
    assert (http.name, http.port) == ("http", 8500)
    assert notes[-1].startswith(
        "f:54:21: services[2].policy['5672/tcp'].checks[1].expect: found '200 210-208 any'"
    )


def test_json_is_read_as_well() -> None:
    text = json.dumps(yaml.safe_load(SHOP), indent=3)
    assert converted(text)[0] == converted(SHOP)[0]


POLICIES = [
    ("{8080: }", 8080, Protocol.TCP, CheckType.SYN),
    ("{8080/tcp: }", 8080, Protocol.TCP, CheckType.SYN),
    ("{8080/udp: }", 8080, Protocol.UDP, None),
    ("{http: }", 80, Protocol.TCP, CheckType.HTTP),
    ("{8000/http: }", 8000, Protocol.TCP, CheckType.HTTP),
    ("{8443/https: }", 8443, Protocol.TCP, CheckType.HTTPS),
    ("{domain/udp: }", 53, Protocol.UDP, CheckType.DNS),
    ("{dns/tcp: }", 53, Protocol.TCP, CheckType.DNS),
    ("{smtp: }", 25, Protocol.TCP, CheckType.SYN),
    ("{pop2: }", 109, Protocol.TCP, CheckType.SYN),
    ("{imaps: }", 993, Protocol.TCP, CheckType.SYN),
    ("{http*: }", 80, Protocol.TCP, None),
    ("{8080/tcp*: }", 8080, Protocol.TCP, None),
    ("{'8080': 8080}", 8080, Protocol.TCP, CheckType.SYN),
    ('{"53/udp": {"checks": [{"type": "dns"}]}}', 53, Protocol.UDP, CheckType.DNS),
]


@pytest.mark.parametrize(("policy", "port", "protocol", "check"), POLICIES)
def test_kinds_of_policies(policy: str, port: int, protocol: Protocol, check: CheckType | None) -> None:
    made, notes = one(policy)
    (service,) = made.values()
    assert service.name == "a"
    assert (service.ports, service.protocols) == ((port,), (protocol,))
    assert [found.type for found in service.checks] == ([check] if check else [])
    assert all("dns check" in note for note in notes)


def test_a_check_over_the_other_protocol_names_its_port() -> None:
    made, _ = one("{53/udp: {checks: [{type: http}, {type: dns, method: tcp}]}}")
    assert [check.port for check in made["a"].checks] == [53, 53]


def test_two_checks_of_a_type_have_two_names() -> None:
    made, _ = one("{http: {checks: [{type: http}, {type: http, path: /b}, {type: syn}]}}")
    assert [check.name for check in made["a"].checks] == ["http", "http 2", "syn"]


@pytest.mark.parametrize(
    ("expect", "codes"),
    [
        ("204", {204}),
        ("any", set(range(100, 600))),
        ("200 204", {200, 204}),
        ("302-300", {300, 301, 302}),
        ("[200, 204]", {200, 204}),
    ],
)
def test_expected_codes(expect: str, codes: set[int]) -> None:
    made, notes = one("{http: }", f"expect: {expect}")
    detail = made["a"].checks[0].detail
    assert isinstance(detail, HttpRequest)
    assert detail.expect == codes
    assert notes == []


@pytest.mark.parametrize(
    ("extra", "schedule"),
    [
        ("sticky: true", Scheduling.STICKY),
        ("sticky: yes", Scheduling.STICKY),
        ("sticky: off", Scheduling.MAGLEV),
        ("leastconns: true", Scheduling.LEAST_CONNS),
        ("scheduler: leastconn", Scheduling.LEAST_CONNS),
        ("scheduler: maglev", Scheduling.MAGLEV),
        ("scheduler: maglev\nsticky: true", Scheduling.STICKY),
    ],
)
def test_schedules(extra: str, schedule: Scheduling) -> None:
    made, notes = one("{http: }", extra)
    assert (made["a"].scheduling, notes) == (schedule, [])


def test_what_the_policy_says_comes_before_the_service() -> None:
    policy = "{http: {need: 3, sticky: false, name: b, description: d, path: /p, method: HEAD}, 81: }"
    made, notes = one(policy, "sticky: true\nneed: 2\npath: /q")
    assert list(made) == ["b", "a-81"]
    service = made["b"]
    assert (service.need, service.scheduling, service.desc) == (3, Scheduling.MAGLEV, "d")
    assert service.checks[0].detail == HttpRequest("/p", method="HEAD")
    assert (made["a-81"].need, made["a-81"].scheduling) == (2, Scheduling.STICKY)
    assert notes == []


def test_tunnels() -> None:
    made, notes = one("{http: }", "tunnel-type: fou\ntunnel-port: 7000")
    assert made["a"].reals[0].forwarding.mode is ForwardMode.FOU
    assert made["a"].reals[0].forwarding.port == 7000
    assert one("{http: }", "tunnel-type: none")[0]["a"].reals[0].forwarding.mode is ForwardMode.L2
    assert notes == []


def test_policies_and_servers_by_name() -> None:
    made, notes = services("""
policy: {web: {http: , https: }}
servers: {pool: [10.0.1.1], unused: [10.0.1.2]}
services:
  - {name: a, virtual: 10.0.0.1, servers: pool, policy: web}
  - {name: a, virtual: 10.0.0.2, servers: pool, policy: web}
""")
    assert list(made) == ["a-http", "a-https", "a-http-2", "a-https-2"]
    assert {service.reals for service in made.values()} == {(real("10.0.1.1"),)}
    assert notes == []


def test_groups_of_peers() -> None:
    config, notes = converted("""
bgp:
  hold_time: 10
  groups:
    - {name: g, as_number: 65001, peers: [10.0.9.1], med: 5, accept: [any]}
    - {name: h, as_number: 65002, peers: [10.0.9.2], communities: ['65002:1']}
    - {name: i, as_number: 65001, peers: [10.0.9.3, 10.0.9.1]}
services: []
""")
    assert config.rhi is not None
    first, second, third = config.rhi.neighbors
    assert [str(neighbor.address) for neighbor in (first, second, third)] == [
        "10.0.9.3",
        "10.0.9.1",
        "10.0.9.2",
    ]
    assert {neighbor.hold_time_s for neighbor in config.rhi.neighbors} == {10}
    assert (third.as_number, third.local_as, third.attributes.communities) == (65002, 65002, ((65002, 1),))
    assert (second.as_number, second.attributes.med) == (65001, 5)
    assert first.attributes == RouteAttributes()
    assert [note.split(": ")[1] for note in notes] == ["bgp.groups[0].accept[0]"]


def test_settings_of_bgp() -> None:
    config, notes = converted("""
rhi: {as_number: 65001, peers: [10.0.9.1], local_pref: 7, source_ip: 10.0.9.9, next_hop_6: 'fd00::9',
      accept: [10.1.2.3/8], reject: ['fd00::/8'], med: -1, listen: true}
services: []
""")
    assert config.rhi is not None
    (neighbor,) = config.rhi.neighbors
    assert neighbor == Neighbor(
        ip_address("10.0.9.1"),
        65001,
        65001,
        source=ip_address("10.0.9.9"),
        next_hop6=IPv6Address("fd00::9"),
        attributes=RouteAttributes(local_preference=7),
        accept=(PrefixRule(ip_network("10.0.0.0/8"), 8, 32),),
        reject=(PrefixRule(ip_network("fd00::/8"), 8, 128),),
    )
    assert [note.split(": ")[1] for note in notes] == ["rhi.med", "rhi.listen"]


NOTED = [
    ("local_pref", "bgp:\n  as_number: 1\n  peers: [10.0.9.1]\n  local_pref: a\n", "4:15: bgp.local_pref:"),
    ("prefixes", "prefixes: {a: [10.0.0.0/8]}\n", "1:1: prefixes: not carried over"),
    ("interfaces", "interfaces: [ens1]\n", "1:1: interfaces: not carried over: give them on the"),
    ("logging", "logging: {alert: 4}\n", "1:1: logging: not carried over"),
    ("typo", "vlan: {1: 10.0.0.0/8}\n", "1:1: vlan: found an unknown key: left out"),
    ("vlan", "vlans: {5000: 10.0.0.0/8}\n", "1:9: vlans['5000']: found '5000', expected a VLAN: left out"),
    ("prefix", "vlans: {5: 10.0.0.0/33}\n", "1:12: vlans['5']: found '10.0.0.0/33', expected a prefix"),
    ("no peers", "bgp: {as_number: 1}\n", "1:6: bgp: found no AS number with peers: VIPs are not announced"),
    ("webserver", "webserver: ':99999'\n", "1:12: webserver: found ':99999', expected an address and a port"),
    ("as", "bgp: {groups: [{as_number: x, peers: [10.0.9.1]}]}\n", "1:6: bgp: found no AS number with peers"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "note"), [case[1:] for case in NOTED], ids=[case[0] for case in NOTED])
def test_what_of_the_whole_is_noted(text: str, note: str) -> None:
    _, notes = converted(text + "services: []\n")
    assert notes[0].startswith(f"f:{note}")


SERVICES_NOTED = [
    ("{http: 8080}", "", "found port 8080 on the servers: they get packets for port 80 as it is"),
    ("{http: {bind: 8080}}", "", "found port 8080 on the servers"),
    ("{http: , foo: }", "", "found a policy of no known kind: left out"),
    ("{http: , 70000/tcp: }", "", "found a policy of no known kind: left out"),
    ("{http: {chekcs: []}}", "", "found an unknown key: left out"),
    ("{http: {checks: [{type: icmp}]}}", "", "found a check of type 'icmp': left out"),
    ("{http: {checks: [{type: http, expct: 1}]}}", "", "found an unknown key: left out"),
    ("{http: }", "persist: 300", "not carried over: the schedule 'sticky' has no time to it"),
    ("{http: {reset: true}}", "", "not carried over: flows of a real that went down"),
    ("{http: }", "priority: high", "not carried over: there are no priorities"),
    ("{http: }", "fallback: true", "not carried over: there is no local fallback"),
    ("{http: }", "scheduler: roundrobin", "found the scheduler 'roundrobin': maglev is used instead"),
    ("{http: }", "expect: foo", "found 'foo', expected status codes: left out, 200 is good"),
    ("{http: }", "path: alive", "found 'alive', a path without '/' at its start: put there"),
    ("{http: }", "path: 'al ive'", "found 'al ive', expected a path that starts with '/'"),
    ("{http: }", "method: TRACE", "found 'TRACE', expected one of GET, HEAD, OPTIONS, POST: left out"),
    ("{http: }", "need: many", "found 'many', expected a number from 1 to 32766: left out"),
    ("{http: }", "sticky: maybe", "found 'maybe', expected true or false: left out"),
    ("{http: }", "tunnel-type: vxlan", "found 'vxlan', expected none, ipip, gre, fou or gue"),
]


@pytest.mark.parametrize(("policy", "extra", "note"), SERVICES_NOTED)
def test_what_of_a_service_is_noted(policy: str, extra: str, note: str) -> None:
    made, notes = one(policy, extra)
    assert list(made) == ["a"] or "a-http" in made
    assert len(notes) == 1
    assert note in notes[0]


def test_a_server_that_is_a_vip_is_left_out() -> None:
    made, notes = services("""
servers: {g: [10.0.1.1, 10.0.0.2]}
services:
  - {name: a, virtual: 10.0.0.1, servers: [10.0.1.1, 10.0.0.1], policy: {http: }}
  - {name: b, virtual: 10.0.0.2, servers: g, policy: {http: }}
""")
    assert {service.reals for service in made.values()} == {(real("10.0.1.1"),)}
    assert [note.split(": ", 2)[2] for note in notes] == [
        "found the server 10.0.0.2, which is a VIP: left out",
        "found the server 10.0.0.1, which is a VIP: left out",
    ]


def test_addresses_that_cannot_be_used() -> None:
    made, notes = services("""
services:
  - name: a
    virtual: [10.0.0.1, web, 10.0.0.2*, 10.0.0.1]
    servers: [10.0.1.1, 127.0.0.1, 10.0.1.1*]
    policy: {http: }
  - {name: b, virtual: web, servers: [10.0.1.1], policy: {https: }}
  - {name: c, virtual: 10.0.0.1, servers: nowhere, policy: {https: }}
  - {name: d, virtual: 10.0.0.1, servers: [10.0.1.1], policy: nowhere}
""")
    assert list(made) == ["a"]
    assert made["a"].vips == (ip_address("10.0.0.1"),)
    assert made["a"].reals == (real("10.0.1.1"),)
    assert [note.split(": ", 1)[1] for note in notes] == [
        "services[0].virtual[1]: found 'web', expected the address of a VIP: left out",
        "services[0].virtual[2]: found the VIP 10.0.0.2 disabled, which we don't know: left out",
        "services[0].virtual[3]: found 10.0.0.1 again: left out",
        "services[0].servers[1]: found '127.0.0.1', expected the address of a server: left out",
        "services[0].servers[2]: found 10.0.1.1 again: left out",
        "services[1]: found no VIP that can be used: the service is left out",
        "services[1].virtual: found 'web', expected the address of a VIP: left out",
        "services[2]: found no server that can be used: the service is left out",
        "services[2].servers: found 'nowhere', expected the name of a list in servers",
        "services[3]: found no policy that can be used: the service is left out",
        "services[3].policy: found 'nowhere', expected a policy in policy",
    ]


def test_the_later_of_two_services_on_a_port_has_it() -> None:
    made, notes = services("""
services:
  - {name: a, virtual: [10.0.0.1, 10.0.0.2], servers: [10.0.1.1], policy: {http: }}
  - {name: b, virtual: 10.0.0.1, servers: [10.0.1.2], policy: {80/tcp: }}
  - {name: c, virtual: 10.0.0.2, servers: [10.0.1.3], policy: {http: }}
""")
    assert {name: service.vips for name, service in made.items()} == {
        "b": (ip_address("10.0.0.1"),),
        "c": (ip_address("10.0.0.2"),),
    }
    assert len(notes) == 2


def test_what_the_go_programs_tool_makes_is_recognised() -> None:
    with pytest.raises(ConfigError, match="convert the file it was made from"):
        convert('{"services": {"10.0.0.1:80:tcp": {"need": 1}}}', "f")


@pytest.mark.parametrize(
    "text",
    [
        "frontend: {bind: 80}",
        "bgp: {as_number: 65001, peers: [10.0.9.1]}",
        "services: [{name: a, addr: 10.0.0.1, port: 80, reals: [10.0.1.1]}]",
        "services: none",
    ],
)
def test_a_file_of_which_no_service_is_left_is_refused(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        convert(text, "f")
    first, *others = map(str, caught.value.diagnostics)
    assert first == "f: found no service that can be carried over: nothing is converted"
    assert others or "bgp" in text, "the notes say why"


def test_our_own_language_is_recognised() -> None:
    ours = "services: [{name: a, addr: 10.0.0.1, port: 80, reals: [10.0.1.1], checks: []}]"
    with pytest.raises(ConfigError) as caught:
        convert(ours, "f")
    assert str(caught.value) == "f: found our own language: there is nothing to convert"


@pytest.mark.parametrize(
    "name", ["true", "null", "on", "17", "1e5", "a: b", "a #b", "é", "- a", "*", "10.1", "''"]
)
def test_names_that_yaml_might_take_for_something_else(name: str) -> None:
    tree = {
        "services": [{"name": name, "virtual": "10.0.0.1", "servers": name, "policy": {"http": None}}],
        "servers": {name: ["10.0.1.1"]},
    }
    made, notes = services(json.dumps(tree))
    assert list(made) == [name]
    assert made[name].reals == (real("10.0.1.1"),)
    assert notes == []


@pytest.mark.parametrize("text", ["", "[]", "a: *b", "a: 1\na: 2", "a: [", "5"])
def test_text_that_is_no_configuration(text: str) -> None:
    with pytest.raises(ConfigError):
        convert(text, "f")


scalars = st.sampled_from(
    [
        "http",
        "10.0.0.1",
        "10.0.1.1*",
        "web",
        "a\nb: c",
        "true",
        "1e5",
        "any",
        80,
        0,
        -1,
        1.5,
        True,
        None,
        "200 300",
    ]
)
keys = st.sampled_from(
    ["name", "virtual", "servers", "policy", "checks", "http", "53/udp", "domain*", "type", "port", "host",
     "path", "expect", "need", "sticky", "services", "bgp", "peers", "groups", "as_number", "vlans", "10"]
)  # fmt: skip
trees = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(keys, inner, max_size=5)),
    max_leaves=25,
)
service = st.fixed_dictionaries(
    {
        "name": scalars,
        "virtual": st.one_of(scalars, st.just("10.0.0.1"), st.lists(scalars, max_size=3)),
        "servers": st.one_of(st.just(["10.0.1.1"]), st.just("web"), trees),
        "policy": st.one_of(st.dictionaries(keys, trees, max_size=3), trees),
    },
    optional={"expect": trees, "path": scalars, "host": scalars, "need": scalars, "description": scalars},
)


@settings(max_examples=200)
@given(
    st.fixed_dictionaries(
        {"services": st.lists(service, max_size=3)}, optional={"servers": trees, "bgp": trees, "vlans": trees}
    )
)
def test_whatever_comes_in_what_comes_out_is_good(tree: object) -> None:
    try:
        converted(json.dumps(tree))
    except ConfigError as error:
        assert "no service that can be carried over" in str(error)


# The command


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "go.yaml"
    file.write_text(SHOP)
    assert cli.main(["convert", str(file)]) == 0
    made, noted = capsys.readouterr()
    assert parse(made, "f") == converted(SHOP)[0]
    assert noted.startswith(f"{file}:")
    for line in noted.splitlines():
        _, number, _, message = line.split(":", 3)
        assert f"# line {number}:{message}" in made
    assert cli.main(["convert", "--strict", str(file)]) == 1
    file.write_text("services: [\n")
    assert cli.main(["convert", str(file)]) == 2
    file.write_text("frontend: {bind: 80}\n")
    capsys.readouterr()
    assert cli.main(["convert", str(file)]) == 2
    assert capsys.readouterr().out == ""
    ours = tmp_path / "vc5.yaml"
    ours.write_text(made)
    assert cli.main(["check", "-c", str(ours)]) == 0
