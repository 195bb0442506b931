"""Every type of check through every forwarding mode, to real servers: sockets on the reals, nginx, and a
witness that takes tunnels, marks and tags off. What the checks prove, clients' packets then do. Tags are put
on, taken off and exchanged, for IPv4 and IPv6.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_address

import pytest

from tests.e2e.answering import ANSWER, DNS, ECHO
from tests.e2e.operating import Editor, Settings, config_file, edited, state_dir, status
from tests.e2e.vlans import REAL6, UPLINK_VLAN, ipv6_in_vlan, tagged_uplink
from vc5py.control import client
from vc5py.lab.assembly import Lab
from vc5py.lab.capture import Capture
from vc5py.lab.layout import (
    BALANCERS,
    CLIENT,
    DSCP_VIP,
    DSCP_VIP6,
    FAR_REAL,
    OUTER_VLAN,
    REALS,
    SWITCH,
    TAGGED_NETWORK,
    TAGGED_REAL,
    VLAN,
    Host,
    IPAddress,
)
from vc5py.lab.network import run
from vc5py.lab.nodes import WEB_NAME
from vc5py.lab.scenario import wait_for_next_hops
from vc5py.lab.traffic import curl

FIRST = 20  # the number of the first VIP here, which is also its DSCP
IN_VLAN = [str(TAGGED_NETWORK), str(REAL6.network)]


@dataclass(frozen=True, slots=True)
class Way:
    """One way to a real: `vips` of both versions, unless the mode has one only."""

    name: str
    mode: str
    host: Host
    real: IPAddress
    number: int

    @property
    def vips(self) -> tuple[IPAddress, ...]:
        both = DSCP_VIP + self.number, DSCP_VIP6 + self.number
        if self.mode == "dscp":
            return tuple(vip for vip in both if vip.version == self.real.version)
        return both


def ways() -> list[Way]:
    found = [("l2", REALS[0], address) for address in REALS[0].addresses]
    for mode in ("ipip", "gre", "fou", "gue", "dscp"):
        found += [(mode, FAR_REAL, address) for address in FAR_REAL.addresses]
    found += [("l2", TAGGED_REAL, address) for address in (TAGGED_REAL.address, REAL6.ip)]
    return [
        Way(f"{mode}{real.version}-{host.name}", mode, host, real, FIRST + n)
        for n, (mode, host, real) in enumerate(found)
    ]


WAYS = ways()
SERVED_BY = {vip: way.host.name for way in WAYS for vip in way.vips}


def checks(lab: Lab) -> list[Settings]:
    """Every type, and every option of each."""
    times = {"interval": 1, "timeout": 1, "rise": 1, "fall": 3}
    dns = {"type": "dns", "port": DNS, "question": "www.lab.", "record": "A", "answer": str(ANSWER)}
    trusted = {"host": WEB_NAME, "verify": True, "ca_file": str(lab.layout.directory / "web.crt")}
    kinds: list[Settings] = [
        {"type": "http", "path": "/alive", "body": "alive"},
        {"type": "https", "port": 443, "path": "/alive"} | trusted,
        {"type": "tcp"},
        {"type": "syn"},
        dns,
        dns | {"transport": "tcp"},
        {"type": "udp", "port": ECHO, "payload": "ping", "reply": "ping"},
        {"type": "http", "method": "HEAD", "headers": {"X-Probe": "1"}, "expect": ["200-204", 301]},
        {"type": "http", "path": "/missing", "host": WEB_NAME, "expect": "any", "body_regex": "40[0-9]"},
        {"type": "https", "port": 443, "verify": False},
        dns | {"rcode": "noerror", "question": "other.lab."},
        {"type": "udp", "port": ECHO, "payload_hex": "0007ff", "reply_hex": "0007"},
    ]
    named = [{"name": f"{n} {kind['type']}"} | kind | times for n, kind in enumerate(kinds)]
    by_quorum = {key: value for key, value in named[-1].items() if key not in ("rise", "fall")}
    return [*named[:-1], by_quorum | {"pass": "2 of 3"}]


def as_service(lab: Lab, way: Way) -> Settings:
    tag = {"dscp": way.number} if way.mode == "dscp" else {}
    ports = [80, 443, DNS, ECHO]
    base = {"name": way.name, "addr": list(map(str, way.vips)), "port": ports, "protocol": ["tcp", "udp"]}
    return base | {"mode": way.mode, "reals": [str(way.real)], "damping": "off", "checks": checks(lab)} | tag


@contextmanager
def answering(lab: Lab, host: Host) -> Iterator[None]:
    """The host has the VIPs that are its own here, and answers on them."""
    namespace = lab.layout.namespace(host.name)
    vips = [vip for way in WAYS if way.host is host for vip in way.vips]
    for vip in vips:
        run("ip", "-n", namespace, "addr", "add", f"{vip}/{vip.max_prefixlen}", "dev", "lo")
    command = [sys.executable, "-m", "tests.e2e.answering", *map(str, vips)]
    process = subprocess.Popen(["ip", "netns", "exec", namespace, *command], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        yield
    finally:
        process.kill()
        process.communicate()
        for vip in vips:
            run("ip", "-n", namespace, "addr", "del", f"{vip}/{vip.max_prefixlen}", "dev", "lo")


@pytest.fixture(scope="module")
def in_force(standing_lab: Lab) -> Iterator[Editor]:
    lab = standing_lab
    wait_for_next_hops(lab, *BALANCERS)
    with (
        ipv6_in_vlan(lab),
        answering(lab, REALS[0]),
        answering(lab, FAR_REAL),
        answering(lab, TAGGED_REAL),
        edited(lab) as editor,
    ):
        write(lab, editor)
        reload(lab)
        yield editor


def write(lab: Lab, editor: Editor) -> None:
    editor.write(services=[as_service(lab, way) for way in WAYS], vlans={VLAN: IN_VLAN})


def reload(lab: Lab) -> None:
    for balancer in BALANCERS:
        answer = client.ask(state_dir(lab, balancer), "POST", "/v1/reload")
        assert answer.good, answer


def unhealthy(lab: Lab) -> list[str]:
    """Of what isn't healthy on a balancer: why."""
    return [
        f"{balancer.name}: {one['name']} {one['vip']}: {one['reals'][0]['why']}"
        for balancer in BALANCERS
        for one in status(lab, balancer)["services"]
        if one["name"] in {way.name for way in WAYS} and not one["healthy"]
    ]


def wait_until_all_are_healthy(lab: Lab) -> None:
    try:
        lab.wait_for("all checks succeed", lambda: not unhealthy(lab))
    except Exception as error:
        raise AssertionError(unhealthy(lab)) from error


def test_every_check_succeeds_through_every_mode(in_force: Editor, standing_lab: Lab) -> None:
    wait_until_all_are_healthy(standing_lab)
    shown = status(standing_lab, BALANCERS[0])["services"]
    there = {(one["name"], ip_address(one["vip"])) for one in shown}
    assert there >= {(way.name, vip) for way in WAYS for vip in way.vips}


@pytest.mark.parametrize("vip", SERVED_BY, ids=str)
def test_clients_are_served_through_every_mode(in_force: Editor, standing_lab: Lab, vip: IPAddress) -> None:
    wait_for_next_hops(standing_lab, *BALANCERS, vip=vip)
    assert curl(standing_lab.layout, 8, vip=vip) == {SERVED_BY[vip]: 8, "failed": 0}
    assert curl(standing_lab.layout, 4, "https", vip=vip) == {SERVED_BY[vip]: 4, "failed": 0}


def test_checks_fail_where_the_vip_is_missing(in_force: Editor, standing_lab: Lab) -> None:
    """All of them, through every mode: they prove the VIP on the real, not the real."""
    lab = standing_lab
    wait_until_all_are_healthy(lab)
    gone = [(lab.layout.namespace(way.host.name), vip) for way in WAYS for vip in way.vips]
    for namespace, vip in gone:
        run("ip", "-n", namespace, "addr", "del", f"{vip}/{vip.max_prefixlen}", "dev", "lo")
    try:
        lab.wait_for("all have failed", lambda: len(unhealthy(lab)) == 2 * len(gone))
    finally:
        for namespace, vip in gone:
            run("ip", "-n", namespace, "addr", "add", f"{vip}/{vip.max_prefixlen}", "dev", "lo")
    wait_until_all_are_healthy(lab)


def test_two_tags(in_force: Editor, standing_lab: Lab) -> None:
    """The real in the VLAN moves into one within another; whoever still sends it one tag gets no answer."""
    lab = standing_lab
    tagged = [way.name for way in WAYS if way.host is TAGGED_REAL]

    def failing() -> set[str]:
        return {line.split()[1] for line in unhealthy(lab)}

    wait_until_all_are_healthy(lab)
    lab.network.tag(twice=True)
    try:
        lab.wait_for("one tag is not enough", lambda: failing() == set(tagged))
        services = [as_service(lab, way) for way in WAYS]
        in_force.write(services=services, vlans={f"{OUTER_VLAN}.{VLAN}": IN_VLAN})
        for balancer in BALANCERS:  # `vlans` of the lab is not added to, but replaced
            text = config_file(lab, balancer).read_text()
            config_file(lab, balancer).write_text(text.replace(f"  {VLAN}: {TAGGED_NETWORK}\n", ""))
        reload(lab)
        wait_until_all_are_healthy(lab)
        for vip in IN_VLAN_VIPS:
            wait_for_next_hops(lab, *BALANCERS, vip=vip)
            assert curl(lab.layout, 8, vip=vip) == {TAGGED_REAL.name: 8, "failed": 0}
    finally:
        lab.network.tag(twice=False)
        write(lab, in_force)
        reload(lab)
    wait_until_all_are_healthy(lab)


def source_of(vip: IPAddress) -> IPAddress:
    return next(address for address in CLIENT.addresses if address.version == vip.version)


def served_with_tags(lab: Lab, vip: IPAddress, host: Host, tags: set[int]) -> None:
    """Waits until all requests are answered, and clients' packets have just these tags on the balancers'
    links, to them and from them: a moment after a change there may still be those of before.
    """
    switch = lab.layout.namespace(SWITCH)

    def so_it_is() -> bool:
        with Capture(switch, BALANCERS[0].name) as first, Capture(switch, BALANCERS[1].name) as second:
            answers = curl(lab.layout, 8, vip=vip)
            frames = first.frames() + second.frames()
        seen = {frame.vlan for frame in frames if frame.is_to(vip, source_of(vip))}
        return answers == {host.name: 8, "failed": 0} and seen == tags

    lab.wait_for(f"packets to {vip} have the tags {tags} and are answered", so_it_is)


UNTAGGED_VIPS = [vip for way in WAYS if way.host is REALS[0] for vip in way.vips]
IN_VLAN_VIPS = [vip for way in WAYS if way.host is TAGGED_REAL for vip in way.vips]


def test_tags_are_put_on(in_force: Editor, standing_lab: Lab) -> None:
    lab = standing_lab
    wait_until_all_are_healthy(lab)
    for vip in IN_VLAN_VIPS:
        wait_for_next_hops(lab, *BALANCERS, vip=vip)
        served_with_tags(lab, vip, TAGGED_REAL, {0, VLAN})


def test_tags_are_taken_off_and_exchanged(in_force: Editor, standing_lab: Lab) -> None:
    """Clients' packets come in a VLAN: whoever forgets a tag, or leaves the wrong one, is not answered."""
    lab = standing_lab
    wait_until_all_are_healthy(lab)
    for vip in SERVED_BY:
        wait_for_next_hops(lab, *BALANCERS, vip=vip)
    with tagged_uplink(lab):
        for vip in UNTAGGED_VIPS:
            served_with_tags(lab, vip, REALS[0], {UPLINK_VLAN, 0})
        for vip in IN_VLAN_VIPS:
            served_with_tags(lab, vip, TAGGED_REAL, {UPLINK_VLAN, VLAN})
        for vip, name in SERVED_BY.items():
            lab.wait_for(
                f"{vip} by https",
                lambda v=vip, n=name: curl(lab.layout, 4, "https", vip=v) == {n: 4, "failed": 0},  # type: ignore[misc]
            )
