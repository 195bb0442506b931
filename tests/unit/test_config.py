"""Valid configurations: what the file says is what the model holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from vc5py.config import load, parse
from vc5py.config.language import MODELS, ConfigSpec
from vc5py.model import (
    Check,
    CheckType,
    Config,
    Forwarding,
    ForwardMode,
    MulticastGroup,
    Protocol,
    Real,
    RhiConfig,
    Scheduling,
    Service,
    Timeouts,
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
        rhi=RhiConfig(65000, (IPv4Address("10.10.100.3"), IPv4Address("10.10.100.4"))),
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
                    Check("http check", CheckType.HTTP, 80, "/alive"),
                    Check("https check", CheckType.HTTPS, 443, "/alive"),
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
            path="/a?b=%20",
            host="www.example.com:8443",
            method="HEAD",
            expect=frozenset({200, 204}),
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
    assert many.checks[0].expect == {301}


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
            {"rhi": RhiConfig(4294967295, (IPv6Address("fd00::1"),), 0.0)},
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


# The example


def test_the_example_loads() -> None:
    assert [one.name for one in load(EXAMPLE).services] == ["nginx", "iperf", "dns"]


def _nodes(node: Any, path: tuple[str | int, ...]) -> Iterator[dict[str, Any]]:
    """The mappings at a path of `MODELS`: 0 stands for any index, `*` for any key."""
    if not path:
        if isinstance(node, dict):
            yield node
        return
    inner = node if path[0] == 0 else node.values() if path[0] == "*" else [node.get(path[0], {})]
    for one in inner:
        yield from _nodes(one, path[1:])


def _example_mappings() -> Iterator[tuple[type[BaseModel], dict[str, Any]]]:
    """The models, each with all keys of its kind in the example, as they are shown first."""
    root = yaml.safe_load(EXAMPLE.read_text())
    for path, model in MODELS.items():
        shown: dict[str, Any] = {}
        for node in _nodes(root, path):
            shown = {**node, **shown}
        yield model, shown


def test_the_example_shows_every_key_with_its_default() -> None:
    for model, shown in _example_mappings():
        assert set(shown) == set(model.model_fields), model.__name__
        for key, field in model.model_fields.items():
            default = [field.default, *field.default] if isinstance(field.default, list) else [field.default]
            stated = (
                field.is_required() or field.default in (None, "") or isinstance(field.default, BaseModel)
            )
            assert stated or shown[key] in default, f"{model.__name__}.{key}"


def test_every_line_of_the_example_that_could_be_left_out_names_its_default() -> None:
    lines = EXAMPLE.read_text().splitlines()
    without_default = Counter(
        key
        for model, _ in _example_mappings()
        for key, field in model.model_fields.items()
        if field.default is None
    )
    for key, count in without_default.items():
        about = [line for line in lines if line.strip().startswith(f"{key}:") and "Default: " in line]
        assert len(about) == count, key


# The models, from which the schema and the reference are generated


def test_every_key_has_a_description() -> None:
    for model in MODELS.values():
        for key, field in model.model_fields.items():
            assert field.description, f"{model.__name__}.{key}"


def test_the_schema_has_no_null_and_no_unknown_keys() -> None:
    schema = ConfigSpec.model_json_schema()
    assert '"null"' not in str(schema).replace("'", '"')
    definitions = [schema, *schema["$defs"].values()]
    mappings = [one for one in definitions if one["type"] == "object"]
    assert len(mappings) == len(MODELS)
    assert all(one["additionalProperties"] is False for one in mappings)
    assert schema["properties"]["rhi"]["$ref"] == "#/$defs/RhiSpec"
