"""What is legal but unwise: in the text of a case, `▸` stands before the node that a warning is about."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path

import pytest

from tests.unit.test_config_errors import MARK
from vc5py.config import load_with_warnings, parse_with_warnings
from vc5py.errors import ConfigError

OWN = frozenset({ip_address("10.9.9.9"), ip_address("fd00::9"), ip_address("127.0.0.1")})


def judge(marked: str) -> tuple[list[str], list[str]]:
    """Places marked in the text, and the warnings."""
    places = []
    for number, line in enumerate(marked.split("\n"), 1):
        column = 1
        for part in line.split(MARK)[:-1]:
            column += len(part)
            places.append(f"f:{number}:{column}")
    _, warnings = parse_with_warnings(marked.replace(MARK, ""), "f", OWN)
    return places, [str(warning) for warning in warnings]


def one(*lines: str, top: str = "", item: str = "") -> str:
    """A configuration of one service without a warning, but for these lines."""
    keys = {
        "name": "a",
        "addr": "10.0.0.1",
        "port": "80",
        "reals": "[10.0.1.1, 10.0.1.2]",
        "checks": "[{name: c, type: tcp}]",
    }
    for line in lines:
        key, _, value = line.partition(":")
        keys.pop(key, None)
        keys[key] = value
    return f"services:\n  - {item}" + "    ".join(f"{key}: {value}\n" for key, value in keys.items()) + top


def check(keys: str) -> str:
    return (
        f"checks: [▸{{name: c, type: {keys}}}]"
        if MARK not in keys
        else f"checks: [{{name: c, type: {keys}}}]"
    )


def other(address: str, port: int, dscp: str) -> str:
    return (
        f"  - {{name: b, addr: {address}, port: {port}, reals: [10.0.1.2], mode: dscp, dscp: {dscp},"
        " checks: [{name: c, type: tcp}]}\n"
    )


REALS = "reals: [{{address: 10.0.1.1{}}}, {{address: 10.0.1.2{}}}]"

SHARED = "cluster: {secret_file: /s}\nmulticast: 224.0.0.1:9999\nrhi: {as_number: 65000, peers: [10.0.8.1]}\n"

FAMILIES = (
    "rhi: {as_number: 1, peers: [10.0.8.1], families: ipv4, neighbors: [{address: 10.0.8.2, families: ipv6}]}"
)
NOBODY = "without 'multicast' or 'cluster.peers': there is nobody to learn from"

CASES = [
    (one("need: ▸3"), "services[0].need: found 3, but the service has 2 reals: it is never healthy"),
    (
        one("need: ▸2", REALS.format(", state: disabled", "")),
        "services[0].need: found 2, but 1 of 2 reals are enabled: it is not healthy",
    ),
    (
        "defaults: {need: ▸3}\n" + one(),
        "defaults.need: found 3, but service 'a' has 2 reals: it is never healthy",
    ),
    (
        "defaults: {need: ▸2}\n" + one(REALS.format(", state: disabled", "")),
        "defaults.need: found 2, but 1 of 2 reals of service 'a' are enabled: it is not healthy",
    ),
    (
        "defaults: {min_up: ▸2}\n" + one(REALS.format("", ", tier: 1")),
        "defaults.min_up: found 2, but tier 0 of service 'a' has 1 real: the next always stands in",
    ),
    (
        "defaults: {interval: ▸0.5}\n" + one("checks: [{name: c, type: tcp}, {name: d, type: syn}]"),
        "defaults.interval: found a timeout of 1 s: a real that falls silent is out after up to 3.75 s, not"
        " 3 intervals (1.5 s)",
    ),
    (
        one(REALS.format(", tier: 2", ", tier: 1"), item=MARK),
        "services[0]: found no real in tier 0: tier 1 stands by for nobody",
    ),
    (
        one(REALS.format("", ", tier: 1"), "min_up: ▸2"),
        "services[0].min_up: found 2, but tier 0 has 1 real: the next always stands in",
    ),
    (
        one(REALS.format(", weight: 0", ", weight: 0"), item=MARK),
        "services[0]: found weight 0 for every real: it takes no new flows",
    ),
    (
        one("need: ▸1", REALS.format(", state: draining", ", state: disabled"), item=MARK),
        "services[0]: found no real that is enabled: it takes no new flows\n"
        "services[0].need: found 1, but 0 of 2 reals are enabled: it is not healthy",
    ),
    (one("checks: ▸[]"), "services[0].checks: found no check: a real that is dead stays in service"),
    (
        one("sorry: {reals: [10.0.1.3], checks: ▸[]}"),
        "services[0].sorry.checks: found no check: a real that is dead stays in service",
    ),
    (
        one(check("tcp, interval: 1, timeout: ▸2")),
        "services[0].checks[0].timeout: found a timeout of 2 s: a real that falls silent is out after up to"
        " 7.5 s, not 3 intervals (3 s)",
    ),
    (
        one(check("tcp, interval: 1, timeout: ▸1.1")),
        "services[0].checks[0].timeout: found a timeout of 1.1 s: a real that falls silent is out after up to"
        " 4.6 s, not 3 intervals (3 s)",
    ),
    (
        one(check("tcp, fall: ▸1")),
        "services[0].checks[0].fall: found a timeout of 1 s: a real that falls silent is out after up to"
        " 3 s, not 1 interval (2 s)",
    ),
    (
        one(check("tcp, pass: 4 of 5, interval: ▸1")),
        "services[0].checks[0].interval: found a timeout of 1 s: a real that falls silent is out after up to"
        " 3.25 s, not 2 intervals (2 s)",
    ),
    (
        one(check("tcp, interval: ▸1, timeout: 1.5, fall: 4")),
        "services[0].checks[0].interval: found an interval of 1 s below the timeout of 1.5 s: while a real is"
        " silent, it is probed less often than that",
    ),
    (
        "defaults: {interval: ▸0.5}\n" + one(check("tcp").replace(MARK, "")),
        "defaults.interval: found a timeout of 1 s: a real that falls silent is out after up to 3.75 s, not"
        " 3 intervals (1.5 s)",
    ),
    (
        one("timeout: ▸3", check("tcp").replace(MARK, "")),
        "services[0].timeout: found a timeout of 3 s: a real that falls silent is out after up to 12 s, not"
        " 3 intervals (6 s)",
    ),
    (
        one(check("tcp, interval: ▸30, fall: 3")),
        "services[0].checks[0].interval: found 3 failures to take a real down, which takes up to 90 s",
    ),
    (
        one(check("tcp, pass: ▸1 of 50")),
        "services[0].checks[0].pass: found 50 failures to take a real down, which takes up to 100 s",
    ),
    (
        one(check("https, port: 443, ▸verify: true").replace("▸verify: true", "verify: ▸true")),
        "services[0].checks[0].verify: found without 'host':"
        " the certificate must be good for the VIP's address",
    ),
    (
        one(check("https, port: 443, ca_file: ▸/a")),
        "services[0].checks[0].ca_file: found without 'verify: true': no certificate is verified",
    ),
    (
        one(check("http, method: HEAD, body: ▸a")),
        "services[0].checks[0].body: found with method HEAD: such a response has no body",
    ),
    (
        one(check("http, method: HEAD, body_regex: ▸a")),
        "services[0].checks[0].body_regex: found with method HEAD: such a response has no body",
    ),
    (
        one(check("dns, port: 53, rcode: nxdomain, answer: ▸a")),
        "services[0].checks[0].answer: found with rcode nxdomain: such a response has no answers",
    ),
    (
        one("sorry: ▸{reals: [{address: 10.0.1.3, state: draining}]}"),
        "services[0].sorry: found no real that is enabled and has a weight: it can't serve",
    ),
    (
        one("sorry: {reals: [10.0.1.3], checks: [{name: s, type: tcp, interval: 1, timeout: ▸2}]}"),
        "services[0].sorry.checks[0].timeout: found a timeout of 2 s: a real that falls silent is out after"
        " up to 7.5 s, not 3 intervals (3 s)",
    ),
    (
        one("addr: [10.0.0.1, ▸10.9.9.9]"),
        "services[0].addr[1]: found 10.9.9.9, an address of this machine: it would answer clients itself",
    ),
    (
        one("addr: ▸'fd00:0::9'"),
        "services[0].addr: found fd00::9, an address of this machine: it would answer clients itself",
    ),
    (
        one("sorry: {reals: [10.9.9.9]}", item=MARK),
        "services[0]: found the real 10.9.9.9, an address of this machine",
    ),
    (
        one(top="rhi: {as_number: 1, peers: [127.0.0.1, ▸10.9.9.9]}"),
        "rhi.peers[1]: found 10.9.9.9, an address of this machine",
    ),
    (
        one("mode: dscp", "dscp: 7") + other("10.0.0.2", 80, "▸7"),
        "services[1].dscp: found 7 for 2 VIPs on the real 10.0.1.2, which can't tell them apart by it",
    ),
    (
        one(top="rhi: {as_number: 1, prepend: ▸2, peers: [10.0.8.1], neighbors: [{address: 10.0.8.2}]}"),
        "rhi.prepend: found where all neighbors are iBGP: it has no effect",
    ),
    (
        one(top="rhi: {as_number: 1, peer_as: 2, local_preference: ▸50, peers: [10.0.8.1]}"),
        "rhi.local_preference: found where all neighbors are eBGP: it has no effect",
    ),
    (
        one(
            top="rhi: {as_number: 1, prepend: 2, groups: {here: {prepend: ▸1, neighbors: [10.0.8.1]},"
            " there: {peer_as: 2, neighbors: [10.0.8.2], local_preference: ▸7}}}"
        ),
        "rhi.groups.here.prepend: found where all neighbors are iBGP: it has no effect\n"
        "rhi.groups.there.local_preference: found where all neighbors are eBGP: it has no effect",
    ),
    (one(top="reals: {g: ▸[10.0.1.3]}"), "reals.g: found a group that no service uses"),
    (one(top="learn: ▸5"), f"learn: found 5 {NOBODY}"),
    (
        one(top="learn: ▸5\ncluster: ▸{secret_file: /s}\n"),
        f"learn: found 5 {NOBODY}\n"
        "cluster: found neither 'peers' in it nor 'multicast': flows are shared with nobody",
    ),
    ("services: ▸[]\n", "services: found none: nothing is served, and a reload removes all that was"),
    (
        one("port: [http, https]", check("https")),
        "services[0].checks[0].port: found 80 in an https check: servers speak no TLS there; say"
        " 'port: https'",
    ),
    (
        one("sorry: {reals: [10.0.1.3], checks: [{name: s, type: https, port: ▸http}]}"),
        "services[0].sorry.checks[0].port: found 80 in an https check: servers speak no TLS there; say"
        " 'port: https'",
    ),
    (
        one("port: https", check("http")),
        "services[0].checks[0].port: found 443 in an http check: servers speak TLS there; say 'type: https'",
    ),
    (
        one(top="rhi: {as_number: 1, accept: 10.1.0.0/16, peers: [▸10.0.8.1]}"),
        "rhi.peers[0]: found 10.0.8.1, which is told of no VIP ('accept', 'reject', 'families')",
    ),
    (
        one(top="rhi: {as_number: 1, peers: [10.0.8.1], neighbors: [▸{address: 10.0.8.2, families: ipv6}]}"),
        "rhi.neighbors[0]: found 10.0.8.2, which is told of no VIP ('accept', 'reject', 'families')",
    ),
    (
        one("addr: [10.0.0.1, ▸'fd00::1']", top="rhi: {as_number: 1, families: ipv4, peers: [10.0.8.1]}"),
        "services[0].addr[1]: found fd00::1, which no BGP neighbor is told of ('accept', 'reject',"
        " 'families')",
    ),
    (
        one(top="rhi: {as_number: 1, peers: [10.0.8.1, ▸10.0.0.1]}"),
        "rhi.peers[1]: found 10.0.0.1, which is a VIP",
    ),
    (
        one(top=f"learn: ▸1\n{SHARED}"),
        "learn: found learn 1, expected 2 or more where flows are shared: VIPs are announced before those of"
        " the other balancers have come",
    ),
    (
        one(top=SHARED.replace("{s", "▸{peers: [10.0.9.1], s").replace("multicast: 224.0.0.1:9999\n", "")),
        "cluster: found learn 0, expected 2 or more where flows are shared: VIPs are announced before those"
        " of the other balancers have come",
    ),
    (
        one(top="timeouts: {established: ▸60}"),
        "timeouts.established: found 60, less than unproven (120)",
    ),
]


@pytest.mark.parametrize(("text", "expected"), CASES)
def test_warnings(text: str, expected: str) -> None:
    places, warnings = judge(text)
    assert warnings == [
        f"{place}: warning: {line}" for place, line in zip(places, expected.split("\n"), strict=True)
    ]


@pytest.mark.parametrize(
    "text",
    [
        one(),
        one("need: 2"),
        one("need: 2", "below_need: serve", "sorry: {reals: [10.0.1.3]}"),
        one(REALS.format(", weight: 0", "")),
        one(REALS.format(", state: draining", "")),
        one(REALS.format("", ", tier: 1")),
        one("min_up: 2", REALS.format("", "")),
        one(check("tcp, interval: 1, timeout: 1").replace(MARK, "")),
        one(check("tcp, interval: 20, fall: 3").replace(MARK, "")),
        one(check("https, port: 443, verify: true, host: a, ca_file: /a, body: x").replace(MARK, "")),
        one("mode: dscp", "dscp: 7") + other("10.0.0.2", 80, "8"),
        one("mode: dscp", "dscp: 7") + other("10.0.0.1", 81, "7"),
        one("real: g", top="reals: {g: [10.0.1.3]}"),
        one("sorry: {real: g}", top="reals: {g: [10.0.1.3]}"),
        one(top="learn: 5\nmulticast: 224.0.0.1:9999"),
        one(top=f"learn: 2\n{SHARED}"),
        one(top="rhi: {as_number: 1, peers: [10.0.8.1]}"),
        one(top="cluster: {secret_file: /s, peers: [10.0.9.1]}"),
        one("addr: [10.0.0.1, 'fd00::1']", top=FAMILIES),
        one("port: 8443", check("https").replace(MARK, "")),
        one(top="rhi: {as_number: 1, med: 5, prepend: 0, local_preference: 7, peers: [10.0.8.1]}"),
        one(
            top="rhi: {as_number: 1, prepend: 2, peers: [10.0.8.1], groups: {g: {peer_as: 2, neighbors:"
            " [10.0.8.2]}}}"
        ),
        one(top="multicast: 224.0.0.1:9999\ncluster: {secret_file: /s}\n"),
    ],
)
def test_no_warning_where_all_is_well(text: str) -> None:
    assert judge(text) == ([], [])


def test_warnings_come_in_the_order_of_the_file_and_only_where_there_are_no_errors(tmp_path: Path) -> None:
    text = one("need: 3", top="learn: 5\n")
    file = tmp_path / "vc5.yaml"
    file.write_text(text)
    settings, warnings = load_with_warnings(file)
    assert settings.services[0].need == 3
    assert [warning.line for warning in warnings] == sorted(warning.line for warning in warnings)
    assert len(warnings) == 2
    with pytest.raises(ConfigError) as caught:
        parse_with_warnings(text + "flows: 1\n", "f", OWN)
    assert len(caught.value.diagnostics) == 1
