"""Refused configurations: in the text of a case, `▸` stands before the node that a finding is about."""

from __future__ import annotations

import pytest

from vc5py.config import parse
from vc5py.dataplane import abi
from vc5py.dataplane.installed import room_for
from vc5py.errors import ConfigError
from vc5py.limits import (
    MAX_BACKENDS,
    MAX_ESTABLISHED_S,
    MAX_REALS,
    MAX_VIRTUAL_PORTS,
    MAX_VIRTUAL_SERVICES,
)

MARK = "▸"


def findings(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse(text, "f")
    return [str(one) for one in caught.value.diagnostics]


def judge(marked: str) -> tuple[list[str], list[str]]:
    """Places marked in the text, and the places and messages of the findings: `f:1:2`, `f:1:2: message`."""
    places = []
    for number, line in enumerate(marked.split("\n"), 1):
        column = 1
        for part in line.split(MARK)[:-1]:
            column += len(part)
            places.append(f"f:{number}:{column}")
    return places, findings(marked.replace(MARK, ""))


def small(service: str = "", check: str = "", top: str = "", reals: str = "[10.0.1.1, 10.0.1.2]") -> str:
    """A configuration that is right but for what the caller adds."""
    checks = f" [{{name: c, type: http{check}}}]"
    keys = {"name": " a", "addr": " 10.0.0.1", "port": " 80", "real": " g", "checks": checks}
    for line in filter(None, service.split("\n")):
        key, _, value = line.partition(":")
        keys.pop(key, None)
        keys[key] = value
    lines = "".join(f"    {key}:{value}\n" for key, value in keys.items())
    return f"services:\n  -\n{lines}reals:\n  g: {reals}\n{top}"


PORT = "a port number from 1 to 65535"
NAMED_PORT = "a port number from 1 to 65535, or the name of one such as http"
VIP = "the IPv4 or IPv6 address of a host, not loopback or link-local"
HOST = "the IPv4 or IPv6 address of a host"
LISTEN = "an IPv4 or IPv6 address to listen on"
GROUP = "a multicast address and port, such as '224.0.0.1:9999' or '[ff02::1]:9999'"
LINE = "text of 1 to 128 printable characters on one line"
URL_PATH = "a path that starts with '/', in visible ASCII characters (others percent-encoded)"
NEAR = f"{HOST}, not link-local (fe80::...)"
URL_HOST = "a host name or IPv4 address, if need be with ':port'"
METHOD = "one of GET, HEAD, OPTIONS, POST (did you mean 'GET'?)"
FLOWS = "a power of two from 1024 to 67108864"
STATUS = "an HTTP status code from 100 to 599, a range such as '200-299', or any"
PROBE = "seconds from 0.01 to 3600"
DAY = "seconds from 0 to 86400"
TOP_KEYS = (
    "one of learn, multicast, cluster, rhi, metrics, flows, fragments, timeouts, vlans, defaults, services,"
    " reals, vips"
)
LEVEL_KEYS = "interval, timeout, rise, fall, pass"
SERVICE_KEYS = (
    "one of name, desc, addr, port, protocol, real, reals, checks, dscp, sorry, mode, tunnel_port, mtu,"
    " schedule, unknown, need, below_need, min_up, standby, slow_start, damping, " + LEVEL_KEYS
)
MODE = "l2, ipip, gre, fou, gue or dscp"
WEIGHT = "a whole number from 0 to 1000"
TIMEOUT = "whole seconds from 1 to 28800"
PREFIX = "an IPv4 or IPv6 prefix without bits behind its length, such as '10.1.10.0/24'"
VLAN = "a VLAN from 1 to 4094, or 802.1ad and 802.1Q tags such as '100.10'"
CHECK_KEYS = (
    "one of name, type, port, path, host, method, headers, expect, body, body_regex, verify, ca_file,"
    " question, record, transport, answer, rcode, payload, payload_hex, reply, reply_hex, " + LEVEL_KEYS
)

SINGLE_VALUES = [
    ("port: ▸abc", "port: found 'abc'", NAMED_PORT),
    ("port: ▸'80'", "port: found '80'", NAMED_PORT),
    ("port: ▸0", "port: found 0", NAMED_PORT),
    ("port: ▸65536", "port: found 65536", NAMED_PORT),
    ("port: ▸-1", "port: found -1", NAMED_PORT),
    ("port: ▸80.0", "port: found 80.0", NAMED_PORT),
    ("port: ▸true", "port: found true", NAMED_PORT),
    ("port: ▸0080", "port: found '0080'", NAMED_PORT),
    ("port: ▸0x50", "port: found '0x50'", NAMED_PORT),
    ("port: ▸{a: 1}", "port: found a mapping", NAMED_PORT),
    ("port: ▸[]", "port: found an empty list", "at least one item"),
    ("port: [80, ▸[81]]", "port[1]: found a list", NAMED_PORT),
    ("port: [80, ▸htpp]", "port[1]: found 'htpp'", f"{NAMED_PORT} (did you mean 'http'?)"),
    ("addr: ▸nginx", "addr: found 'nginx'", VIP),
    ("addr: ▸10.0.0.256", "addr: found '10.0.0.256'", VIP),
    ("addr: ▸10.0.0.01", "addr: found '10.0.0.01'", VIP),
    ("addr: ▸10.0.0.0/24", "addr: found '10.0.0.0/24'", VIP),
    ("addr: ▸10.1", "addr: found 10.1", VIP),
    ("addr: ▸167772161", "addr: found 167772161", VIP),
    ("addr: ▸0.0.0.0", "addr: found '0.0.0.0'", VIP),
    ("addr: ▸224.0.0.1", "addr: found '224.0.0.1'", VIP),
    ("addr: ▸255.255.255.255", "addr: found '255.255.255.255'", VIP),
    ("addr: ▸fe80::1", "addr: found 'fe80::1'", VIP),
    ("addr: ▸2001:db8::/64", "addr: found '2001:db8::/64'", VIP),
    ("addr: ▸ff02::1", "addr: found 'ff02::1'", VIP),
    ("addr: [10.0.0.1, ▸'::1']", "addr[1]: found '::1'", VIP),
    ("addr: ▸127.0.0.1", "addr: found '127.0.0.1'", VIP),
    ("protocol: ▸sctp", "protocol: found 'sctp'", "tcp or udp"),
    ("protocol: ▸TCP", "protocol: found 'TCP'", "tcp or udp (did you mean 'tcp'?)"),
    ("protocol: [tcp, ▸6]", "protocol[1]: found 6", "tcp or udp"),
    ("need: ▸0", "need: found 0", "a whole number of reals, at least 1"),
    ("need: ▸1.5", "need: found 1.5", "a whole number of reals, at least 1"),
    ("name: ▸80", "name: found 80", LINE),
    ("name: ▸''", "name: found ''", LINE),
    ("name: ▸' a'", "name: found ' a'", LINE),
    ('name: ▸"a\\nannounce route"', "name: found 'a\\nannounce route'", LINE),
    ('name: ▸"a\\u202e"', "name: found 'a\\u202e'", LINE),
    ('name: ▸"a\\u2028b"', "name: found 'a\\u2028b'", LINE),
    (f"name: ▸{'x' * 129}", f"name: found '{'x' * 59}...", LINE),
    ("desc: ▸[]", "desc: found an empty list", "text of at most 256 printable characters on one line"),
    ('desc: ▸"\\e[2J"', "desc: found '\\x1b[2J'", "text of at most 256 printable characters on one line"),
    ("real: ▸h", "real: found 'h'", "the name of a group in reals"),
    ("real: [▸gg, g]", "real[0]: found 'gg'", "the name of a group in reals (did you mean 'g'?)"),
    ("checks: ▸{}", "checks: found a mapping", "a list"),
    ("checks:▸", "checks: found nothing", "a list"),
    ("checks: [▸http]", "checks[0]: found 'http'", "a mapping"),
    ("▸prot: udp", "prot: found an unknown key", f"{SERVICE_KEYS} (did you mean 'port'?)"),
    ("▸protcol: udp", "protcol: found an unknown key", f"{SERVICE_KEYS} (did you mean 'protocol'?)"),
    ("▸sticky: 1", "sticky: found an unknown key", SERVICE_KEYS),
    ("mode: ▸L2", "mode: found 'L2'", f"{MODE} (did you mean 'l2'?)"),
    ("mode:▸", "mode: found nothing", "a value, or no such key"),
    ("tunnel_port: ▸0", "tunnel_port: found 0", PORT),
    ("dscp: ▸64", "dscp: found 64", "a DSCP from 0 to 63"),
    ("dscp: ▸'AF11'", "dscp: found 'AF11'", "a DSCP from 0 to 63"),
    ("mtu: ▸575", "mtu: found 575", "bytes from 576 to 65535"),
    ("mtu: ▸1500.5", "mtu: found 1500.5", "bytes from 576 to 65535"),
    ("schedule: ▸rr", "schedule: found 'rr'", "maglev, sticky or least-conns"),
    ("unknown: ▸reject", "unknown: found 'reject'", "drop or pass"),
]


@pytest.mark.parametrize(("line", "found", "expected"), SINGLE_VALUES)
def test_service_keys(line: str, found: str, expected: str) -> None:
    places, messages = judge(small(service=line))
    assert messages == [f"{places[0]}: services[0].{found}, expected {expected}"]


CHECK_VALUES = [
    ("port: ▸HTTP", "port: found 'HTTP'", f"{NAMED_PORT} (did you mean 'http'?)"),
    ("port: ▸", "port: found nothing", "a value, or no such key"),
    ("path: ▸alive", "path: found 'alive'", URL_PATH),
    ("path: ▸/a b", "path: found '/a b'", URL_PATH),
    ("path: ▸/é", "path: found '/é'", URL_PATH),
    ('path: ▸"/ HTTP/1.1\\r\\nX: y"', "path: found '/ HTTP/1.1\\r\\nX: y'", URL_PATH),
    ('path: ▸"/a\\n"', "path: found '/a\\n'", URL_PATH),
    ('host: ▸"a\\r\\nX: y"', "host: found 'a\\r\\nX: y'", URL_HOST),
    ('host: ▸"a\\n"', "host: found 'a\\n'", URL_HOST),
    ("host: ▸a b", "host: found 'a b'", URL_HOST),
    ("host: ▸a..b", "host: found 'a..b'", URL_HOST),
    (f"host: ▸{'a' * 64}", f"host: found '{'a' * 59}...", URL_HOST),
    ("host: ▸-a", "host: found '-a'", URL_HOST),
    ("method: ▸get", "method: found 'get'", METHOD),
    ('method: ▸"GET\\n"', "method: found 'GET\\n'", METHOD),
    ("expect: ▸2xx", "expect: found '2xx'", STATUS),
    ("expect: ▸99", "expect: found 99", STATUS),
    ("expect: [200, ▸600]", "expect[1]: found 600", STATUS),
    ("expect: ▸[]", "expect: found an empty list", "at least one item"),
    ("interval: ▸0", "interval: found 0", PROBE),
    ("interval: ▸true", "interval: found true", PROBE),
    ("interval: ▸2s", "interval: found '2s'", f"{PROBE} as a bare number, without a unit"),
    ("timeout: ▸500 ms", "timeout: found '500 ms'", f"{PROBE} as a bare number, without a unit"),
    ("interval: ▸.nan", "interval: found '.nan'", PROBE),
    ("timeout: ▸1e999", "timeout: found inf", PROBE),
    ("timeout: ▸3601", "timeout: found 3601", PROBE),
    ("rise: ▸0", "rise: found 0", "a whole number from 1 to 100"),
    ("fall: ▸1.0", "fall: found 1.0", "a whole number from 1 to 100"),
    ("▸intervall: 1", "intervall: found an unknown key", f"{CHECK_KEYS} (did you mean 'interval'?)"),
]


@pytest.mark.parametrize(("line", "found", "expected"), CHECK_VALUES)
def test_check_keys(line: str, found: str, expected: str) -> None:
    places, messages = judge(small(check=f", {line}"))
    assert messages == [f"{places[0]}: services[0].checks[0].{found}, expected {expected}"]


TOP_VALUES = [
    ("learn: ▸-1", "learn: found -1", DAY),
    ("learn: ▸1:30", "learn: found '1:30'", DAY),
    ("learn: ▸no", "learn: found 'no'", DAY),
    (f"learn: ▸{'9' * 40}", f"learn: found '{'9' * 40}'", DAY),
    ("multicast: ▸224.0.0.1", "multicast: found '224.0.0.1'", GROUP),
    ("multicast: ▸10.0.0.1:9999", "multicast: found '10.0.0.1:9999'", GROUP),
    ("multicast: ▸224.0.0.1:0", "multicast: found '224.0.0.1:0'", GROUP),
    ("multicast: ▸224.0.0.1:65536", "multicast: found '224.0.0.1:65536'", GROUP),
    ("multicast: ▸ff02::1:9999", "multicast: found 'ff02::1:9999'", GROUP),
    ("multicast: ▸'[224.0.0.1]:9999'", "multicast: found '[224.0.0.1]:9999'", GROUP),
    ("multicast: ▸'[fd00::1]:9999'", "multicast: found '[fd00::1]:9999'", GROUP),
    ("multicast: ▸9999", "multicast: found 9999", GROUP),
    ("multicast:▸", "multicast: found nothing", "a value, or no such key"),
    ("flows: ▸1000", "flows: found 1000", FLOWS),
    ("flows: ▸512", "flows: found 512", FLOWS),
    ("flows: ▸134217728", "flows: found 134217728", FLOWS),
    ("flows: ▸1e6", "flows: found 1000000.0", FLOWS),
    ("metrics: ▸9955", "metrics: found 9955", "a mapping"),
    ("metrics: {port: ▸0}", "metrics.port: found 0", PORT),
    ("metrics: {address: ▸224.0.0.1}", "metrics.address: found '224.0.0.1'", LISTEN),
    ("metrics: {address: ▸host}", "metrics.address: found 'host'", LISTEN),
    (
        "metrics: {▸adress: 1}",
        "metrics.adress: found an unknown key",
        "one of address, port (did you mean 'address'?)",
    ),
    ("rhi:▸", "rhi: found nothing", "a value, or no such key"),
    (
        "rhi: {as_number: ▸0, peers: [10.0.2.1]}",
        "rhi.as_number: found 0",
        "an AS number from 1 to 4294967295",
    ),
    ("rhi: {as_number: 1, peers: ▸10.0.2.1}", "rhi.peers: found '10.0.2.1'", "a list"),
    ("rhi: {as_number: 1, peers: ▸[]}", "rhi.peers: found an empty list", "at least one item"),
    ("rhi: {as_number: 1, peers: [▸router]}", "rhi.peers[0]: found 'router'", NEAR),
    ("rhi: {as_number: 1, peers: [▸'fe80::1%a']}", "rhi.peers[0]: found 'fe80::1%a'", NEAR),
    ("rhi: {as_number: 1, neighbors: [▸'fe80::1']}", "rhi.neighbors[0]: found 'fe80::1'", NEAR),
    (
        "rhi: {as_number: 1, neighbors: [{address: ▸'fe80::1'}]}",
        "rhi.neighbors[0].address: found 'fe80::1'",
        NEAR,
    ),
    ("cluster: {secret_file: /s, peers: [▸'fe80::1']}", "cluster.peers[0]: found 'fe80::1'", NEAR),
    (
        "rhi: {as_number: 1, bfd: ▸100ms, peers: [10.0.2.1]}",
        "rhi.bfd: found '100ms'",
        "true, false or a mapping",
    ),
    (
        "flows: ▸64k",
        "flows: found '64k'",
        "a power of two from 1024 to 67108864 as a bare number, without a unit",
    ),
    ("fragments: ▸yes", "fragments: found 'yes'", "follow or drop"),
    ("timeouts: ▸60", "timeouts: found 60", "a mapping"),
    ("timeouts: {udp: ▸0}", "timeouts.udp: found 0", TIMEOUT),
    ("timeouts: {established: ▸28801}", "timeouts.established: found 28801", TIMEOUT),
    ("timeouts: {closing: ▸1.5}", "timeouts.closing: found 1.5", TIMEOUT),
    (
        "timeouts: {▸unproved: 1}",
        "timeouts.unproved: found an unknown key",
        "one of unproven, established, closing, udp (did you mean 'unproven'?)",
    ),
    ("vlans:▸", "vlans: found nothing", "a value, or no such key"),
    ("vlans: ▸[10]", "vlans: found a list", "a mapping"),
    ("vlans: {▸0: 10.1.0.0/24}", "vlans['0']: found '0'", VLAN),
    ("vlans: {▸4095: 10.1.0.0/24}", "vlans['4095']: found '4095'", VLAN),
    ("vlans: {▸010: 10.1.0.0/24}", "vlans['010']: found '010'", VLAN),
    ("vlans: {▸1.2.3: 10.1.0.0/24}", "vlans['1.2.3']: found '1.2.3'", VLAN),
    ("vlans: {▸eth0: 10.1.0.0/24}", "vlans.eth0: found 'eth0'", VLAN),
    ("vlans: {10: ▸10.1.0.1/24}", "vlans['10']: found '10.1.0.1/24'", PREFIX),
    ("vlans: {10: ▸10.1.0.0}", "vlans['10']: found '10.1.0.0'", PREFIX),
    ("vlans: {10: [10.1.0.0/24, ▸'fd00::1/64']}", "vlans['10'][1]: found 'fd00::1/64'", PREFIX),
    ("vlans: {10: ▸[]}", "vlans['10']: found an empty list", "at least one item"),
    ("▸service: 1", "service: found an unknown key", f"{TOP_KEYS} (did you mean 'services'?)"),
    ("▸<<: {learn: 1}", "['<<']: found an unknown key", TOP_KEYS),
]


@pytest.mark.parametrize(("line", "found", "expected"), TOP_VALUES)
def test_top_level_keys(line: str, found: str, expected: str) -> None:
    places, messages = judge(small(top=line))
    assert messages == [f"{places[0]}: {found}, expected {expected}"]


@pytest.mark.parametrize(
    ("reals", "found", "expected"),
    [
        ("▸10.0.1.1", "reals.g: found '10.0.1.1'", "a list"),
        ("▸[]", "reals.g: found an empty list", "at least one item"),
        ("[▸web]", "reals.g[0]: found 'web'", VIP),
        ("[10.0.1.1, ▸fe80::1]", "reals.g[1]: found 'fe80::1'", VIP),
        ("[▸[10.0.1.1]]", "reals.g[0]: found a list", VIP),
        ("[▸{weight: 2}]", "reals.g[0]: found no key 'address'", "one"),
        ("[{address: ▸web}]", "reals.g[0].address: found 'web'", VIP),
        ("[{address: 10.0.1.1, weight: ▸-1}]", "reals.g[0].weight: found -1", WEIGHT),
        ("[{address: 10.0.1.1, weight: ▸1001}]", "reals.g[0].weight: found 1001", WEIGHT),
        ("[{address: 10.0.1.1, mode: ▸vxlan}]", "reals.g[0].mode: found 'vxlan'", MODE),
        ("[{address: 10.0.1.1, dscp: ▸}]", "reals.g[0].dscp: found nothing", "a value, or no such key"),
        (
            "[{address: 10.0.1.1, ▸wieght: 1}]",
            "reals.g[0].wieght: found an unknown key",
            "one of address, weight, tier, state, mode, tunnel_port, dscp, mtu (did you mean 'weight'?)",
        ),
        (
            "[10.0.1.1, {address: ▸10.0.1.1}]",
            "reals.g[1].address: found '10.0.1.1' again",
            "it once (first on line 9)",
        ),
        ("[10.0.1.1, ▸10.0.1.1]", "reals.g[1]: found '10.0.1.1' again", "it once (first on line 9)"),
        ('[10.0.1.1]\n  ▸"a\\n": [10.0.1.2]', "reals['a\\n']: found 'a\\n'", LINE),
    ],
)
def test_groups_of_reals(reals: str, found: str, expected: str) -> None:
    places, messages = judge(small(reals=reals))
    assert messages == [f"{places[0]}: {found}, expected {expected}"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("▸{}", "found no key 'services', expected one"),
        ("▸[]", "found an empty list, expected a mapping"),
        ("▸vc5", "found 'vc5', expected a mapping"),
        ("services:▸\nreals: {}", "services: found nothing, expected a list"),
        ("services: []\nreals: ▸[]", "reals: found an empty list, expected a mapping"),
        (
            "services: [▸{name: a, addr: 10.0.0.1, real: g, checks: []}]\nreals: {g: [10.0.1.1]}",
            "services[0]: found no key 'port', expected one",
        ),
    ],
)
def test_missing_keys_and_wrong_shapes(text: str, message: str) -> None:
    places, messages = judge(text)
    assert messages == sorted(f"{places[0]}: {line}" for line in message.split("\n"))


TWICE = [
    (
        "  - {name: ▸a, addr: 10.0.0.2, port: 80, real: h, checks: []}",
        "services[1].name: found 'a' again, expected it once (first on line 2)",
    ),
    (
        "  - {name: b, addr: [10.0.0.2, 10.0.0.1], port: [81, ▸80], protocol: [udp, tcp], real: h,\n"
        "     checks: []}",
        "services[1].port[1]: found 10.0.0.1:80/tcp,"
        " expected it in one service only (also in services[0], line 2)",
    ),
    (
        "  - {name: b, addr: 10.0.0.2, port: 80, real: [g, ▸h], checks: []}",
        "services[1].real[1]: found 10.0.1.2 in group 'h',"
        " expected every real once in a service (also in group 'g')",
    ),
    (
        "  - {name: b, addr: 10.0.0.2, port: 80, real: [g, ▸g], checks: []}",
        "services[1].real[1]: found 'g' again, expected it once (first on line 3)",
    ),
    (
        "  - {name: b, addr: 10.0.0.2, port: [80, 81, ▸80], real: g, checks: []}",
        "services[1].port[2]: found 80 again, expected it once (first on line 3)",
    ),
    (
        "  - {name: b, addr: [10.0.0.2, ▸10.0.0.2], port: 80, real: g, checks: []}",
        "services[1].addr[1]: found '10.0.0.2' again, expected it once (first on line 3)",
    ),
    (
        "  - {name: b, addr: 10.0.0.2, port: 80, protocol: [tcp, ▸tcp], real: g, checks: []}",
        "services[1].protocol[1]: found 'tcp' again, expected it once (first on line 3)",
    ),
    (
        "  - {name: b, addr: 10.0.0.2, port: 80, real: g,\n"
        "     checks: [{name: c, type: tcp}, {name: ▸c, type: http}]}",
        "services[1].checks[1].name: found 'c' again, expected it once (first on line 4)",
    ),
]


@pytest.mark.parametrize(("service", "message"), TWICE)
def test_what_may_stand_only_once(service: str, message: str) -> None:
    places, messages = judge(f"""services:
  - {{name: a, addr: 10.0.0.1, port: 80, real: g, checks: []}}
{service}
reals:
  g: [10.0.1.1, 10.0.1.2]
  h: [10.0.1.2]
""")
    assert messages == [f"{places[0]}: {message}"]


def test_a_peer_twice() -> None:
    places, messages = judge(small(top="rhi: {as_number: 1, peers: ['fd00::1', ▸'fd00:0::1']}"))
    assert messages == [
        f"{places[0]}: rhi.peers[1]: found 'fd00:0::1' again, expected it once (first on line 10)"
    ]


@pytest.mark.parametrize("key", ["path: /", "host: a", "method: GET", "expect: 200"])
def test_what_only_http_checks_have(key: str) -> None:
    places, messages = judge(small(service=f"checks: [{{name: c, type: tcp, ▸{key}}}]"))
    name = key.partition(":")[0]
    expected = "found in a tcp check, expected only in http and https checks"
    assert messages == [f"{places[0]}: services[0].checks[0].{name}: {expected}"]


def test_all_findings_come_at_once_in_the_order_of_the_file() -> None:
    places, messages = judge("""learn: ▸no
services:
  - name: ▸"a\\n"
    addr: 10.0.0.1
    port: [80, ▸htp]
    ▸prot: tcp
    real: [h, g, ▸i]
    checks: [{name: c, type: ▸ftp, ▸name: d}]
    desc: x
    ▸desc: y
  - {name: b, addr: 10.0.0.1, port: ▸80, real: g, need: ▸0, checks: [▸*c]}
reals:
  g: [10.0.1.1]
  h: ▸[]
""")
    assert [message.split(": ")[0] for message in messages] == places


@pytest.mark.parametrize(
    "text",
    [
        small(service="need: 2", reals="[10.0.1.1, ▸web]"),
        small(service="need: 3\nreal: [g, ▸7]"),
        small(service="need: 3\nreal: [g, ▸h]"),
        small(reals="[10.0.1.1]").replace("\n  g: [10.0.1.1]", " ▸[]"),
        "services:\n"
        "  - {name: a, addr: 10.0.0.1, port: 53, real: g, checks: []}\n"
        "  - {name: b, addr: 10.0.0.1, port: 53, protocol: ▸dns, real: g, checks: []}\n"
        "reals: {g: [10.0.1.1]}",
    ],
)
def test_a_node_with_a_finding_leads_to_no_further_ones(text: str) -> None:
    """Neither a group nor a count is judged where a part of it is already known to be wrong."""
    places, messages = judge(text)
    assert [message.split(": ")[0] for message in messages] == places


def addresses(count: int) -> str:
    return ", ".join(f"10.1.{number >> 8}.{number & 255}" for number in range(1, count + 1))


def test_more_ports_than_the_data_plane_has_room_for() -> None:
    ports = ", ".join(map(str, range(1, 258)))
    messages = findings(small(service=f"addr: [{addresses(256)}]\nport: [{ports}]"))
    expected = f"found {256 * 257} (VIP, port, protocol), expected at most {MAX_VIRTUAL_PORTS}"
    assert messages == [f"f:2:3: services: {expected}"]


def test_what_is_too_much_is_not_compared() -> None:
    """The totals come first: comparing every port of such a file could take for ever."""
    one = f"addr: [{addresses(256)}], port: [{', '.join(map(str, range(1, 200)))}], real: g, checks: []"
    text = f"services:\n  - {{name: a, {one}}}\n  - {{name: b, {one}}}\nreals: {{g: [10.0.1.1]}}"
    (message,) = findings(text)
    assert f"expected at most {MAX_VIRTUAL_PORTS}" in message


def test_more_backends_than_the_data_plane_has_room_for() -> None:
    messages = findings(small(service=f"addr: [{addresses(512)}]", reals=f"[{addresses(513)}]"))
    expected = f"services: found {512 * 513} backends (VIPs times reals), expected at most {MAX_BACKENDS}"
    assert messages == [f"f:2:3: {expected}"]


def test_more_virtual_services_than_the_data_plane_has_room_for() -> None:
    messages = findings(small(service=f"addr: [{addresses(MAX_VIRTUAL_SERVICES + 1)}]"))
    what = f"found {MAX_VIRTUAL_SERVICES + 1} virtual services (services times VIPs)"
    assert messages == [f"f:2:3: services: {what}, expected at most {MAX_VIRTUAL_SERVICES}"]


def test_more_reals_than_a_service_can_have() -> None:
    messages = findings(small(reals=f"[{addresses(MAX_REALS + 1)}]"))
    assert messages == [f"f:3:5: services[0]: found {MAX_REALS + 1} reals, expected at most {MAX_REALS}"]


def test_the_limits_are_within_those_of_the_data_plane() -> None:
    """Twice, for the old and the new side by side; a run of records may be up to twice as long as asked."""
    assert 2 * MAX_VIRTUAL_SERVICES <= abi.MAX_SERVICES
    assert MAX_REALS < abi.MAX_REALS_PER_SERVICE
    assert room_for(MAX_REALS) <= 1 << abi.FLOW_LOCAL_BITS
    assert 2 * 2 * MAX_BACKENDS <= abi.MAX_BACKENDS
    assert MAX_ESTABLISHED_S < 1 << abi.FLOW_TICK_BITS - 1


WAYS = [
    (
        "mode: ▸dscp",
        "[10.0.1.1]",
        "services[0].mode: found dscp without a key 'dscp', expected one beside it (0 to 63)",
    ),
    (
        "dscp: 1",
        "[{address: 10.0.1.1, mode: dscp}, {address: 10.0.1.2, ▸dscp: 2}]",
        "reals.g[1].dscp: found where nothing has mode dscp, expected with it",
    ),
    (
        "mode: dscp\ndscp: 1\nreal: ▸g",
        "[10.0.1.1, fd00::1]",
        "services[0].real: found fd00::1 in group 'g' for the VIP 10.0.0.1, expected one of its IP version:"
        " mode dscp changes the address",
    ),
    (
        "mode: ipip\nmtu: ▸595",
        "[10.0.1.1]",
        "services[0].mtu: found 595, expected at least 596 for ipip to 10.0.1.1:"
        " 576 for IPv4 and 20 around it",
    ),
    (
        "mode: gre\nmtu: ▸1303\naddr: [10.0.0.1, fd00::1]",
        "[10.0.1.1, 10.0.1.2]",
        "services[0].mtu: found 1303, expected at least 1304 for gre to 10.0.1.2:"
        " 1280 for IPv6 and 24 around it",
    ),
    (
        "mode: fou\naddr: fd00::1",
        "[fd00:1::1, {address: fd00:1::2, mtu: ▸1327}]",
        "reals.g[1].mtu: found 1327, expected at least 1328 for fou to fd00:1::2:"
        " 1280 for IPv6 and 48 around it",
    ),
    (
        "mode: gue\naddr: fd00::1\nmtu: ▸1331",
        "[fd00:1::1]",
        "services[0].mtu: found 1331, expected at least 1332 for gue to fd00:1::1:"
        " 1280 for IPv6 and 52 around it",
    ),
    (
        "mode: gre\n▸tunnel_port: 5555",
        "[10.0.1.1]",
        "services[0].tunnel_port: found where nothing has mode fou or gue, expected with it",
    ),
    (
        "addr: 10.0.0.1",
        "[10.0.1.1, ▸10.0.0.1]",
        "reals.g[1]: found 10.0.0.1, which is a VIP, expected an address of a host",
    ),
    (
        "protocol: udp\nchecks: [▸{name: c, type: tcp}]",
        "[10.0.1.1]",
        "services[0].checks[0]: found no key 'port', expected one:"
        " the service's port is UDP only, and the check needs TCP",
    ),
]


@pytest.mark.parametrize(("service", "reals", "message"), WAYS)
def test_ways_that_lead_nowhere(service: str, reals: str, message: str) -> None:
    places, messages = judge(small(service=service, reals=reals))
    assert messages == [f"{places[0]}: {message}"]


@pytest.mark.parametrize(
    ("service", "reals"),
    [
        ("mode: ▸tunnel\ntunnel_port: 1", "[10.0.1.1]"),
        ("tunnel_port: 1", "[{address: 10.0.1.1, mode: ▸guo}]"),
        ("mode: dscp\ndscp: ▸64", "[10.0.1.1]"),
        ("mode: ipip\nmtu: ▸no", "[10.0.1.1]"),
    ],
)
def test_no_parameter_is_judged_where_something_it_hangs_on_is_wrong(service: str, reals: str) -> None:
    places, messages = judge(small(service=service, reals=reals))
    assert [message.split(": ")[0] for message in messages] == places


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (
            "",
            ", unknown: ▸pass",
            "services[1].unknown: found unknown pass for 10.0.0.1, expected all services on a VIP to agree"
            " (services[0], line 2, has drop)",
        ),
        (
            ", unknown: pass",
            "",
            "services[1]: found unknown drop for 10.0.0.1, expected all services on a VIP to agree"
            " (services[0], line 2, has pass)",
        ),
    ],
)
def test_services_on_one_vip_agree_on_what_is_unknown(first: str, second: str, message: str) -> None:
    mark = "" if second else MARK
    places, messages = judge(
        "services:\n"
        f"  - {{name: a, addr: 10.0.0.1, port: 80, real: g, checks: []{first}}}\n"
        f"  - {mark}{{name: b, addr: 10.0.0.1, port: 81, real: g, checks: []{second}}}\n"
        "reals: {g: [10.0.1.1]}"
    )
    assert messages == [f"{places[0]}: {message}"]


@pytest.mark.parametrize(
    ("vlans", "message"),
    [
        (
            "{10: 10.1.10.0/24, 11: ▸10.1.0.0/16}",
            "vlans['11']: found 10.1.0.0/16, expected nothing of it in another VLAN"
            " (10.1.10.0/24 is in 10, line 10)",
        ),
        (
            "{10: [10.0.0.0/8, fd00::/16], 100.10: [10.1.0.0/16, ▸'fd00:1::/64']}",
            "vlans['100.10'][1]: found fd00:1::/64, expected nothing of it in another VLAN"
            " (fd00::/16 is in 10, line 10)",
        ),
        (
            "{10: [10.1.0.0/16, ▸10.1.0.0/16]}",
            "vlans['10'][1]: found '10.1.0.0/16' again, expected it once (first on line 10)",
        ),
    ],
)
def test_prefixes_of_several_vlans(vlans: str, message: str) -> None:
    places, messages = judge(small(top=f"vlans: {vlans}"))
    assert f"{places[0]}: {message}" in messages
    assert len(messages) == 2 if "100.10" in vlans else len(messages) == 1


def test_suggestions_are_rationed() -> None:
    messages = findings("services: []\nreals: {}\n" + "".join(f"learn{number}: 1\n" for number in range(150)))
    assert len(messages) == 150
    assert sum("did you mean 'learn'?" in message for message in messages) == 100
