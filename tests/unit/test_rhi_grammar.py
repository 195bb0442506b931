"""ExaBGP's grammar. The samples are what ExaBGP 5.0.15 wrote."""

from __future__ import annotations

import base64
import re
import subprocess
import sys
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from vc5py.config import bgp_scalars
from vc5py.core.rib import MOST_NEIGHBORS
from vc5py.errors import RhiError
from vc5py.model import IPAddress, Neighbor, RouteAttributes, Secret
from vc5py.rhi import exabgp_main, grammar, relay
from vc5py.rhi.grammar import NeighborStatus, SessionState
from vc5py.rhi.sessions import Session

PEERS = (IPv4Address("10.99.0.1"), IPv6Address("fd99::1"))
LOCAL: dict[int, IPAddress] = {4: IPv4Address("10.99.0.2"), 6: IPv6Address("fd99::2")}
NEIGHBORS = (
    '[{"state": "up", "duration": 4, "fsm": "ESTABLISHED", "local": {"address": "10.99.0.2", "as": 65001},'
    ' "peer": {"address": "10.99.0.1", "as": 65001, "id": "10.99.0.1", "hold": 240}, "messages": {"sent":'
    ' {"open": 1, "notification": 0, "keepalive": 2, "update": 4, "refresh": 0, "total": 7}}},'
    ' {"state": "down", "fsm": "IDLE", "peer": {"address": "fd99::1"}, "messages": {"sent": {"update": 0}}}]'
)
STATE_EVENT = {
    "exabgp": "5.0.0",
    "type": "state",
    "neighbor": {
        "address": {"local": "10.99.0.2", "peer": "10.99.0.1"},
        "asn": {"local": 65001, "peer": 65001},
        "state": "up",
    },
}


PLAIN = Neighbor(PEERS[0], 65001, 65001)
EBGP = Neighbor(
    PEERS[0],
    4200000001,
    65001,
    hold_time_s=9,
    port=1790,
    password=Secret(file="/key"),
    attributes=RouteAttributes(30, 200, 2, ((65001, 100), (65535, 65281)), ((65001, 1, 2),)),
)


def session(neighbor: Neighbor = PLAIN, password: bytes | None = None) -> Session:
    return Session(neighbor, LOCAL[neighbor.address.version], (LOCAL[4], LOCAL[6]), password)


def configured(*relay: str, sessions: tuple[Session, ...] = (session(),)) -> str:
    return grammar.configuration(sessions, IPv4Address("10.99.0.2"), relay)


def test_the_configuration_file() -> None:
    only4 = replace(session(replace(EBGP, password=None)), next_hops=(LOCAL[4],))
    text = grammar.configuration([only4], IPv4Address("192.0.2.7"), ["/bin/relay", "/s"])
    assert (
        text
        == """\
process relay {
  run /bin/relay /s;
  encoder json;
}
neighbor 10.99.0.1 {
  router-id 192.0.2.7;
  local-address 10.99.0.2;
  local-as 65001;
  peer-as 4200000001;
  hold-time 9;
  passive false;
  connect 1790;
  outgoing-ttl 1;
  family { ipv4 unicast; }
  capability { graceful-restart disable; route-refresh enable; }
  api { processes [ relay ]; neighbor-changes; }
}
"""
    )


def test_what_a_configuration_says_of_its_sessions() -> None:
    first, second = session(EBGP, b"secret"), session(replace(PLAIN, address=PEERS[1]))
    text = configured("/relay", sessions=(first, second))
    router_id = IPv4Address("10.99.0.2")
    assert grammar.local_addresses(text) == dict(zip(PEERS, LOCAL.values(), strict=True))
    for nothing in (
        "",
        "neighbor 1.2.3.4 {\n}\n",
        text.replace("local-address 10.99.0.2", "local-address 999"),
    ):
        assert grammar.local_addresses(nothing) == {}
    assert grammar.holds(text, first, router_id)
    assert grammar.holds(text, second, router_id)
    for other in (session(EBGP, b"other"), session(replace(EBGP, hold_time_s=99), b"secret"), session()):
        assert not grammar.holds(text, other, router_id)
    assert not grammar.holds(text, first, IPv4Address("192.0.2.7"))


def test_graceful_restart_leaves_the_end_of_rib_to_us() -> None:
    text = configured("/relay", sessions=(session(replace(PLAIN, restart_time_s=20)),))
    assert "  capability { graceful-restart 20; route-refresh enable; }\n  manual-eor true;\n" in text
    assert "manual-eor" not in configured("/relay")
    assert grammar.end_of_rib(PEERS[0], 4) == f"neighbor {PEERS[0]} announce eor ipv4 unicast"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"multihop": 3}, ["passive false;", "connect 1790;", "outgoing-ttl 3;"]),
        ({"ttl_security": 1}, ["passive false;", "connect 1790;", "outgoing-ttl 255;", "incoming-ttl 255;"]),
        ({"ttl_security": 2}, ["passive false;", "connect 1790;", "outgoing-ttl 255;", "incoming-ttl 254;"]),
        ({"as_number": 65001}, ["passive false;", "connect 1790;"]),
        ({"passive": True, "listen": 1179}, ["passive true;", "listen 1179;", "outgoing-ttl 1;"]),
    ],
)
def test_the_transport_of_a_session(changes: dict[str, Any], expected: list[str]) -> None:
    text = configured("/relay", sessions=(session(replace(EBGP, password=None, **changes)),))
    assert re.findall(r"(?:passive|connect|listen|\w+-ttl) [^;]*;", text) == expected


@pytest.mark.parametrize("password", [b"plain", b'quo"te; } {\n#', bytes(range(1, 81))])
def test_a_password_is_one_word_of_base64(password: bytes) -> None:
    text = configured("/relay", sessions=(session(EBGP, password),))
    (word,) = re.findall("md5-password (.*);\n", text)
    assert base64.b64decode(word) == password
    assert "md5-base64 true;" in text
    assert repr(password) not in repr(session(EBGP, password))


def test_a_change_of_neighbors_can_be_taken_over_and_one_of_the_relay_can_not() -> None:
    text = configured("/relay", "/s")
    assert grammar.reloadable(text, ("/relay", "/s"))
    assert not grammar.reloadable(text, ("/relay", "/other"))


def test_what_is_said_of_routes() -> None:
    assert grammar.said(session(), 4) == "origin igp next-hop 10.99.0.2"
    assert grammar.said(session(), 6) == "origin igp next-hop fd99::2"
    assert grammar.said(replace(session(), next_hops=(LOCAL[4],)), 6) is None
    communities = "community [ 65001:100 65535:65281 ] large-community [ 65001:1:2 ]"
    assert grammar.said(session(EBGP), 4) == (
        f"origin igp next-hop 10.99.0.2 med 30 as-path [ 65001 65001 65001 ] {communities}"
    )
    assert grammar.said(session(replace(EBGP, as_number=65001)), 4) == (
        f"origin igp next-hop 10.99.0.2 med 30 local-preference 200 {communities}"
    )


def test_what_is_said_at_the_end() -> None:
    assert grammar.said(session(), 4, graceful=True) == (
        "origin igp next-hop 10.99.0.2 local-preference 0 community [ 65535:0 ]"
    )
    ebgp = Neighbor(PEERS[0], 65002, 65001)
    assert (
        grammar.said(session(ebgp), 4, graceful=True) == "origin igp next-hop 10.99.0.2 community [ 65535:0 ]"
    )


def test_exabgp_accepts_the_configuration(tmp_path: Path) -> None:
    file = tmp_path / "exabgp.conf"
    others = (
        session(replace(EBGP, ttl_security=3), bytes(range(1, 81))),
        session(replace(EBGP, address=PEERS[1], passive=True, multihop=4)),
    )
    relay = (sys.executable, "-I", "/relay.py", "/state/relay.sock")
    file.write_text(configured(*relay, sessions=others))
    exabgp = str(Path(sys.executable).parent / "exabgp")
    command = [exabgp, "validate", "-nrv", str(file)]
    checked = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize("word", ["two words", "new\nline", "end;", "{", "", "#", '"'])
def test_nothing_but_plain_words_is_written(word: str) -> None:
    with pytest.raises(RhiError, match="can't be written"):
        configured("/bin/relay", word)
    with pytest.raises(RhiError, match="can't be written"):
        grammar.environment(word)


def test_commands() -> None:
    vip, vip6 = ip_address("192.0.2.1"), ip_address("2001:db8::1")
    assert grammar.announce([PEERS[0]], vip, "next-hop 10.99.0.2") == (
        "neighbor 10.99.0.1 announce route 192.0.2.1/32 next-hop 10.99.0.2"
    )
    assert grammar.withdraw(PEERS, vip6, "next-hop fd99::2") == (
        "neighbor 10.99.0.1 , neighbor fd99::1 withdraw route 2001:db8::1/128 next-hop fd99::2"
    )
    assert grammar.resend(PEERS[0]) == "neighbor 10.99.0.1 flush adj-rib out"
    assert grammar.tear_down(PEERS[0]) == "neighbor 10.99.0.1 teardown 10"


@pytest.mark.parametrize("internal", [True, False], ids=["iBGP", "eBGP"])
def test_the_longest_command_fits_into_the_relay(internal: bool) -> None:
    """Everything as long as the configuration allows it."""
    most, ours = 2**32 - 1, 2**32 - 2
    longest = ip_address(":".join(["ffff"] * 8))
    large = tuple((most, most, most - number) for number in range(bgp_scalars.MOST_COMMUNITIES))
    told = RouteAttributes(most, most, 16, (), large)
    neighbor = replace(EBGP, as_number=ours if internal else most, local_as=ours, attributes=told)
    words = grammar.said(replace(session(neighbor), next_hops=(longest,)), 6, graceful=True)
    assert words is not None
    peers = [longest] * MOST_NEIGHBORS
    for spell in (grammar.announce, grammar.withdraw):
        assert len(spell(peers, longest, words)) <= relay.MAX_COMMAND
    ((command, count),) = grammar.announce_all(peers, [longest], words)
    assert (len(command) <= relay.MAX_COMMAND, count) == (True, 1)


def test_many_vips_take_few_commands() -> None:
    vips = [IPv4Address("192.0.2.0") + number for number in range(500)]
    commands = list(grammar.announce_all(PEERS, vips, "next-hop 10.99.0.2"))
    assert commands[0][0].startswith(
        "neighbor 10.99.0.1 , neighbor fd99::1 announce attributes next-hop 10.99.0.2 nlri"
        " 192.0.2.0/32 192.0.2.1/32 "
    )
    lengths = [len(command) for command, _ in commands]
    assert max(lengths) <= relay.MAX_COMMAND < min(lengths[:-1]) + len(" 192.0.2.100/32")
    assert [count for _, count in commands] == [command.count("/32") for command, _ in commands]
    assert " ".join(command.partition(" nlri ")[2] for command, _ in commands) == " ".join(
        f"{vip}/32" for vip in vips
    )
    assert list(grammar.announce_all(PEERS, [], "next-hop 10.99.0.2")) == []


def test_commands_are_as_long_as_may_be_to_the_byte() -> None:
    vips = [IPv4Address("192.0.2.100")] * 300
    texts = ["next-hop 10.99.0.2 med " + "1" * digits for digits in range(1, 20)]
    commands = [command for text in texts for command, _ in grammar.announce_all(PEERS, vips, text)]
    assert max(map(len, commands)) == relay.MAX_COMMAND


@pytest.mark.parametrize(
    ("word", "state"),
    [
        ("up", SessionState.ESTABLISHED),
        ("connected", SessionState.CONNECTING),
        ("down", SessionState.DOWN),
    ],
)
def test_session_events(word: str, state: SessionState) -> None:
    event: dict[str, Any] = {**STATE_EVENT, "neighbor": {**STATE_EVENT["neighbor"], "state": word}}  # type: ignore[dict-item]
    assert grammar.parse_event(event) == (PEERS[0], state, "")
    event["neighbor"]["reason"] = "hold timer"
    assert grammar.parse_event(event) == (PEERS[0], state, "hold timer")


def test_other_events_are_not_about_sessions() -> None:
    other = {"exabgp": "5.0.0", "type": "notification"}
    assert grammar.parse_event(other) is None
    assert grammar.parse_listening(other) is None


class Peer(dict[str, Any]):
    """A neighbor as ExaBGP has it."""

    api: ClassVar = {"neighbor-changes": ["relay", "gone"]}


def test_nobody_listening_is_an_event_of_our_own() -> None:
    told: list[str] = []
    processes = SimpleNamespace(_process={"relay": 1}, write=lambda _, text: told.append(text))
    neighbor = Peer({"peer-address": PEERS[1]})
    exabgp_main.tell_deaf(processes, neighbor, "port 179 is taken")
    (text,) = told
    event = relay.exabgp_event(text)
    assert event is not None
    assert grammar.parse_event(event) is None
    assert grammar.parse_listening(event) == (PEERS[1], "port 179 is taken")


def test_neighbors_are_read() -> None:
    assert grammar.parse_neighbors([NEIGHBORS]) == (
        NeighborStatus(PEERS[0], SessionState.ESTABLISHED, 4),
        NeighborStatus(PEERS[1], SessionState.DOWN, 0),
    )


def test_routes_are_read() -> None:
    lines = [
        "10.99.0.1 ipv4 unicast 192.168.101.1/32 next-hop 10.99.0.2",
        "fd99::1 ipv6 unicast 2001:db8::1/128 next-hop fd99::2",
    ]
    assert grammar.parse_routes(lines) == {
        (PEERS[0], IPv4Address("192.168.101.1")): "next-hop 10.99.0.2",
        (PEERS[1], IPv6Address("2001:db8::1")): "next-hop fd99::2",
    }
    assert grammar.parse_routes([]) == {}


def test_what_is_not_understood_is_an_error() -> None:
    with pytest.raises(RhiError, match="list of routes"):
        grammar.parse_routes(["nonsense"])
    with pytest.raises(RhiError, match="list of routes"):
        grammar.parse_routes(["10.99.0.1 ipv4 unicast 192.168.101.1/32 via 10.99.0.2"])
    with pytest.raises(RhiError, match="list of neighbors"):
        grammar.parse_neighbors(['[{"fsm": "ESTABLISHED"}]'])
    with pytest.raises(RhiError, match="event"):
        grammar.parse_event({"type": "state", "neighbor": {"state": "sideways"}})
    with pytest.raises(RhiError, match="event"):
        grammar.parse_listening({"type": "listening", "neighbor": {"reason": ""}})
