"""Valid configurations: what the file says is what the model holds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from vc5py.config import load, parse
from vc5py.config.language import MODELS, ConfigSpec
from vc5py.model import Check, CheckType, Config, MulticastGroup, Protocol, Real, RhiConfig, Service

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
    assert [one.name for one in load(EXAMPLE).services] == ["nginx", "iperf"]


def _example_mappings() -> Iterator[tuple[type[BaseModel], dict[str, Any]]]:
    """The models, each with the first mapping of its kind in the example."""
    root = yaml.safe_load(EXAMPLE.read_text())
    for path, model in MODELS.items():
        node = root
        for part in path:
            node = node[part]
        yield model, node


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
    text = EXAMPLE.read_text()
    without_default = {
        key
        for model, _ in _example_mappings()
        for key, field in model.model_fields.items()
        if field.default is None
    }
    for key in without_default - {"port"}:
        (line,) = [line for line in text.splitlines() if line.strip().startswith(f"{key}:")]
        assert "Default: " in line


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
