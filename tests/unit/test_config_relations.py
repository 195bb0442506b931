"""Refused configurations: keys that go together or don't, settings of the levels, reals in the service."""

from __future__ import annotations

import pytest

from tests.unit.test_config_errors import (
    DAY,
    MARK,
    PROBE,
    STATUS,
    VIP,
    addresses,
    findings,
    judge,
    small,
)
from vc5py.config import parse
from vc5py.limits import MAX_REALS

# Keys that go together, or don't

PAIR = "text of at most 1200 bytes (numbers in quotes)"
HEX = "at most 1200 bytes, each as two hexadecimal digits, in quotes"
HEADER = "the name of a header, but Host (there is 'host'), Connection or one of the body's length"
HEADER_VALUE = "text in visible ASCII characters (numbers in quotes), without spaces at its ends"
PATTERN = "a regular expression of at most 1024 characters"
QUORUM = "so many of the last probes, as in '3 of 5', of 100 at most"
RECORD = "A, AAAA, CNAME, MX, NS, PTR, SOA, SRV or TXT"

DETAILS = [
    ("http", "headers: ▸[]", "headers: found an empty list, expected a mapping"),
    ("http", "headers: {▸Host: a}", f"headers.Host: found 'Host', expected {HEADER}"),
    (
        "http",
        "headers: {▸content-Length: '1'}",
        f"headers.content-Length: found 'content-Length', expected {HEADER}",
    ),
    ("http", "headers: {▸'X Y': a}", f"headers['X Y']: found 'X Y', expected {HEADER}"),
    (
        "http",
        'headers: {X: ▸"a\\r\\nHost: b"}',
        f"headers.X: found 'a\\r\\nHost: b', expected {HEADER_VALUE}",
    ),
    ("http", 'headers: {▸"X\\nY": a}', f"headers['X\\nY']: found 'X\\nY', expected {HEADER}"),
    ("http", "headers: {X: ▸1}", f"headers.X: found 1, expected {HEADER_VALUE}"),
    ("http", "headers: {X: ▸' a'}", f"headers.X: found ' a', expected {HEADER_VALUE}"),
    (
        "http",
        "headers: {X-a: '1', ▸x-A: '2'}",
        "headers.x-A: found again, expected once ('X-a' is the same header)",
    ),
    ("http", "expect: ▸300-299", f"expect: found '300-299', expected {STATUS}"),
    ("http", "expect: ▸200-600", f"expect: found '200-600', expected {STATUS}"),
    ("http", "expect: ▸200-", f"expect: found '200-', expected {STATUS}"),
    ("http", "expect: [any, ▸all]", f"expect[1]: found 'all', expected {STATUS}"),
    ("http", "body: ▸''", "body: found '', expected text of 1 to 1024 characters (numbers in quotes)"),
    (
        "http",
        "body_regex: ▸'a('",
        f"body_regex: found 'a(', expected {PATTERN}, in the syntax of RE2: missing ): a(",
    ),
    ("http", "body_regex: ▸''", f"body_regex: found '', expected {PATTERN}"),
    ("https", "verify: ▸yes", "verify: found 'yes', expected true or false"),
    (
        "https",
        "ca_file: ▸ca.pem",
        "ca_file: found 'ca.pem', expected the absolute path of a file with certificates in PEM",
    ),
    ("http", "▸verify: true", "verify: found in a http check, expected only in https checks"),
    ("tcp", "▸body: a", "body: found in a tcp check, expected only in http and https checks"),
    ("syn", "▸path: /", "path: found in a syn check, expected only in http and https checks"),
    ("udp", "▸answer: a", "answer: found in a udp check, expected only in dns checks"),
    ("dns", "▸payload: a", "payload: found in a dns check, expected only in udp checks"),
    ("dns", "question: ▸a..b", "question: found 'a..b', expected a domain name, or '.'"),
    ("dns", "question: ▸é.de", "question: found 'é.de', expected a domain name, or '.'"),
    ("dns", "record: ▸aaaa", f"record: found 'aaaa', expected {RECORD} (did you mean 'AAAA'?)"),
    ("dns", "transport: ▸tls", "transport: found 'tls', expected tcp or udp"),
    (
        "dns",
        "rcode: ▸nxdomian",
        "rcode: found 'nxdomian', expected noerror, formerr, servfail, nxdomain, notimp, refused, yxdomain,"
        " yxrrset, nxrrset, notauth or notzone (did you mean 'nxdomain'?)",
    ),
    (
        "dns",
        "record: A, answer: ▸web",
        "answer: found 'web', expected an IPv4 address, as the record is A",
    ),
    (
        "dns",
        "record: AAAA, answer: ▸10.0.0.1",
        "answer: found '10.0.0.1', expected an IPv6 address, as the record is AAAA",
    ),
    ("udp", "payload: ▸17", f"payload: found 17, expected {PAIR}"),
    ("udp", f"payload: ▸{'é' * 601}", f"payload: found '{'é' * 59}..., expected {PAIR}"),
    ("udp", "payload_hex: ▸'0g'", f"payload_hex: found '0g', expected {HEX}"),
    ("udp", "reply_hex: ▸'abc'", f"reply_hex: found 'abc', expected {HEX}"),
    ("udp", "payload: a, ▸payload_hex: '00'", "payload_hex: found beside 'payload', expected one of the two"),
    ("udp", "reply: a, ▸reply_hex: '00'", "reply_hex: found beside 'reply', expected one of the two"),
    ("tcp", "pass: ▸5 of 3", f"pass: found '5 of 3', expected {QUORUM}"),
    ("tcp", "pass: ▸0 of 3", f"pass: found '0 of 3', expected {QUORUM}"),
    ("tcp", "pass: ▸3 of 101", f"pass: found '3 of 101', expected {QUORUM}"),
    ("tcp", "pass: ▸3/5", f"pass: found '3/5', expected {QUORUM}"),
    ("tcp", "pass: 1 of 2, ▸rise: 2", "rise: found beside 'pass', expected one way to judge on a level"),
    ("tcp", "pass: 1 of 2, ▸fall: 2", "fall: found beside 'pass', expected one way to judge on a level"),
    ("▸icmp", "rise: 1", "type: found 'icmp', expected http, https, tcp, syn, dns or udp"),
    (
        "▸htps",
        "rise: 1",
        "type: found 'htps', expected http, https, tcp, syn, dns or udp (did you mean 'https'?)",
    ),
]


@pytest.mark.parametrize(("kind", "keys", "message"), DETAILS)
@pytest.mark.parametrize("holder", ["services[0]", "services[0].sorry"])
def test_keys_of_each_type_of_check(kind: str, keys: str, message: str, holder: str) -> None:
    checks = f"checks: [{{name: c, port: 53, type: {kind}, {keys}}}]"
    if holder != "services[0]":
        checks = f"sorry: {{reals: [10.0.1.3], {checks}}}"
    places, messages = judge(small(service=checks))
    assert messages == [f"{places[0]}: {holder}.checks[0].{message}"]


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        (r"(a)\1", "invalid escape sequence: \\1"),
        ("(?=a)", "invalid perl operator: (?="),
        ("a{900}" * 3, "too large: "),
    ],
)
def test_patterns_that_could_take_long(pattern: str, reason: str) -> None:
    places, (message,) = judge(small(check=f", body_regex: ▸'{pattern}'"))
    assert message.startswith(f"{places[0]}: ")
    assert f"in the syntax of RE2: {reason}" in message


POINTS = "points from 0.1 to 1000, one for every fall"
NEED = "a whole number of reals, at least 1"

LEVEL_VALUES = [
    ("need: ▸0", f"need: found 0, expected {NEED}"),
    ("min_up: ▸0", f"min_up: found 0, expected {NEED}"),
    ("below_need: ▸drop", "below_need: found 'drop', expected withdraw or serve"),
    ("standby: ▸joins", "standby: found 'joins', expected replace or join (did you mean 'join'?)"),
    ("slow_start: ▸1m", f"slow_start: found '1m', expected {DAY} as a bare number, without a unit"),
    ("damping: ▸no", "damping: found 'no', expected a mapping, or off"),
    ("damping: ▸false", "damping: found false, expected a mapping, or off"),
    ("damping: ▸", "damping: found nothing, expected a value, or no such key"),
    ("damping: {suppress: ▸0}", f"damping.suppress: found 0, expected {POINTS}"),
    ("damping: {half_life: ▸0.5}", "damping.half_life: found 0.5, expected seconds from 1 to 86400"),
    (
        "damping: {▸halflife: 5}",
        "damping.halflife: found an unknown key, expected one of suppress, reuse, half_life, longest"
        " (did you mean 'half_life'?)",
    ),
    (
        "damping: {reuse: ▸4, longest: 5}",
        "damping.reuse: found reuse 4 and suppress 4, expected reuse to be less",
    ),
    (
        "damping: {suppress: ▸0.5}",
        "damping.suppress: found reuse 1 and suppress 0.5, expected reuse to be less",
    ),
    ("pass: 1 of 2, ▸rise: 2", "rise: found beside 'pass', expected one way to judge on a level"),
    ("interval: ▸0", f"interval: found 0, expected {PROBE}"),
]


@pytest.mark.parametrize(("keys", "message"), LEVEL_VALUES)
@pytest.mark.parametrize("level", ["defaults", "services[0]"])
def test_settings_of_the_levels(keys: str, message: str, level: str) -> None:
    text = "{{name: a, addr: 10.0.0.1, port: 80, reals: [10.0.1.1], checks: []{}}}"
    if level == "defaults":
        text = f"defaults: {{{keys}}}\nservices: [{text.format('')}]"
    else:
        text = f"services: [{text.format(', ' + keys)}]"
    places, messages = judge(text)
    assert messages == [f"{places[0]}: {level}.{message}"]


def test_damping_of_a_service_is_judged_with_that_of_the_defaults() -> None:
    one = "{{name: a, addr: 10.0.0.1, port: 80, reals: [10.0.1.1], checks: [], damping: {}}}"
    good = "defaults: {damping: {suppress: 9}}\nservices: [" + one.format("{reuse: 8}") + "]"
    parse(good, "f")
    places, messages = judge(good.replace("reuse: 8", "reuse: ▸9"))
    expected = "found reuse 9 and suppress 9, expected reuse to be less"
    assert messages == [f"{places[0]}: services[0].damping.reuse: {expected}"]


def test_only_what_makes_sense_for_all_is_a_default() -> None:
    places, messages = judge(small(top="defaults: {▸dscp: 1}"))
    assert messages[0].startswith(f"{places[0]}: defaults.dscp: found an unknown key")


# Reals in the service, and sorry

NO_PORT = "checks[0]: found no key 'port', expected one: the service's port is"

INLINE = [
    ("reals: ▸[]", "reals: found an empty list, expected at least one item"),
    ("reals: [▸web]", f"reals[0]: found 'web', expected {VIP}"),
    ("reals: [10.0.1.1, ▸10.0.1.1]", "reals[1]: found '10.0.1.1' again, expected it once (first on line 6)"),
    ("reals: [{address: 10.0.1.1, tier: ▸8}]", "reals[0].tier: found 8, expected a tier from 0 to 7"),
    (
        "reals: [{address: 10.0.1.1, state: ▸drain}]",
        "reals[0].state: found 'drain', expected enabled, draining or disabled (did you mean 'draining'?)",
    ),
    ("reals: [▸10.0.0.1]", "reals[0]: found 10.0.0.1, which is a VIP, expected an address of a host"),
    (
        "reals: [10.0.1.1, {address: 10.0.1.2, ▸dscp: 1}]",
        "reals[1].dscp: found where nothing has mode dscp, expected with it",
    ),
    (
        "mode: dscp\ndscp: 1\nreals: [10.0.1.1, ▸fd00::1]",
        "reals[1]: found fd00::1 for the VIP 10.0.0.1, expected one of its IP version:"
        " mode dscp changes the address",
    ),
    (
        "real: g\nreals: [▸10.0.1.2]",
        "reals[0]: found 10.0.1.2, expected every real once in a service (also in group 'g')",
    ),
    (
        "real: g\nsorry: {real: ▸g}",
        "sorry.real: found 10.0.1.1 in group 'g', expected every real once in a service (also in group 'g')",
    ),
    (
        "reals: [10.0.1.1]\nsorry: {reals: [10.0.1.3, ▸10.0.1.1]}",
        "sorry.reals[1]: found 10.0.1.1, expected every real once in a service (also on line 6)",
    ),
    (
        "reals: [10.0.1.3]\nsorry: {real: ▸h}",
        "sorry.real: found 'h', expected the name of a group in reals",
    ),
    (
        "reals: [10.0.1.3]\nsorry: ▸{checks: []}",
        "sorry: found no key 'real' (groups) or 'reals' (a list), expected one",
    ),
    ("reals: [10.0.1.3]\nsorry: ▸10.0.1.1", "sorry: found '10.0.1.1', expected a mapping"),
    (
        "reals: [10.0.1.3]\nsorry: {reals: [10.0.1.1], ▸need: 1}",
        "sorry.need: found an unknown key, expected one of real, reals, checks",
    ),
    (
        "protocol: udp\nchecks: []\nreals: [10.0.1.3]\nsorry: ▸{reals: [10.0.1.1]}",
        "sorry: found no key 'checks', expected one: the service's port is UDP only, and the default is a"
        " tcp check",
    ),
    (
        "checks: [▸{name: c, type: udp}]\nreals: [10.0.1.3]",
        f"{NO_PORT} TCP only, and the check needs UDP",
    ),
    (
        "checks: [▸{name: c, type: dns}]\nreals: [10.0.1.3]",
        f"{NO_PORT} TCP only, and the check needs UDP",
    ),
    (
        "protocol: udp\nchecks: [▸{name: c, type: dns, transport: tcp}]\nreals: [10.0.1.3]",
        f"{NO_PORT} UDP only, and the check needs TCP",
    ),
]


@pytest.mark.parametrize(("keys", "message"), INLINE)
def test_reals_in_the_service_and_sorry(keys: str, message: str) -> None:
    usual = ["name: a", "addr: 10.0.0.1", "port: 80", *keys.split("\n")]
    usual += [] if "\nchecks" in f"\n{keys}" else ["checks: []"]
    lines = "".join(f"    {line}\n" for line in usual)
    places, messages = judge(f"services:\n  -\n{lines}reals: {{g: [10.0.1.1, 10.0.1.2]}}")
    assert messages == [f"{places[0]}: services[0].{message}"]


def test_a_service_without_reals() -> None:
    places, messages = judge("services: [▸{name: a, addr: 10.0.0.1, port: 80, checks: []}]")
    expected = "found no key 'real' (groups) or 'reals' (a list), expected one"
    assert messages == [f"{places[0]}: services[0]: {expected}"]


def test_a_port_by_name_and_by_number_is_the_same() -> None:
    places, messages = judge(small(service="port: [http, ▸80]"))
    assert messages == [
        f"{places[0]}: services[0].port[1]: found 80 again, expected it once (first on line 7)"
    ]
    places, messages = judge(
        "services:\n"
        "  - {name: a, addr: 10.0.0.1, port: http, reals: [10.0.1.1], checks: []}\n"
        "  - {name: b, addr: 10.0.0.1, port: [81, ▸80], reals: [10.0.1.1], checks: []}\n"
    )
    assert messages[0].startswith(
        f"{places[0]}: services[1].port[1]: found 10.0.0.1:80/tcp, expected it in one"
    )


def test_reals_of_sorry_count_as_reals_of_the_service() -> None:
    more = f"reals: [{addresses(MAX_REALS)}]\nsorry: {{reals: [10.255.0.1]}}"
    messages = findings(small(service=more, reals="[10.254.0.1]"))
    assert messages == [f"f:3:5: services[0]: found {MAX_REALS + 2} reals, expected at most {MAX_REALS}"]


def test_unknown_from_the_defaults_is_compared() -> None:
    both = (
        "services:\n"
        "  - {name: a, addr: 10.0.0.1, port: 80, reals: [10.0.1.1], checks: []}\n"
        "  - {name: b, addr: 10.0.0.1, port: 81, reals: [10.0.1.1], checks: [], unknown: ▸pass}\n"
    )
    parse(f"defaults: {{unknown: pass}}\n{both.replace(MARK, '')}", "f")
    places, messages = judge(both)
    assert [message.split(": ")[0] for message in messages] == places


def test_the_mtu_of_the_defaults_has_to_fit_every_tunnel() -> None:
    places, messages = judge(
        "defaults: {mode: gue, mtu: ▸607}\n"
        "services: [{name: a, addr: 10.0.0.1, port: 80, reals: [10.0.1.1], checks: []}]"
    )
    expected = "found 607, expected at least 608 for gue to 10.0.1.1: 576 for IPv4 and 32 around it"
    assert messages == [f"{places[0]}: defaults.mtu: {expected}"]
