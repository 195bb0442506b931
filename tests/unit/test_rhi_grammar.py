"""ExaBGP's grammar. The samples are what ExaBGP 5.0.15 wrote."""

from __future__ import annotations

import subprocess
import sys
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Any

import pytest

from vc5py.errors import RhiError
from vc5py.model import IPAddress, RhiConfig
from vc5py.rhi import child, grammar
from vc5py.rhi.grammar import Neighbor, NeighborStatus, SessionState

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


def configured(*relay: str) -> str:
    neighbors = grammar.neighbors(RhiConfig(65001, PEERS), LOCAL)
    return grammar.configuration(neighbors, IPv4Address("10.99.0.2"), LOCAL, relay)


def test_the_configuration_file() -> None:
    neighbor = Neighbor(PEERS[0], LOCAL[4], 65001, 65002, hold_time_s=9)
    text = grammar.configuration([neighbor], IPv4Address("192.0.2.7"), {4: LOCAL[4]}, ["/bin/relay", "/s"])
    assert (
        text
        == """\
# next-hop ipv4 10.99.0.2
process relay {
  run /bin/relay /s;
  encoder json;
}
neighbor 10.99.0.1 {
  router-id 192.0.2.7;
  local-address 10.99.0.2;
  local-as 65001;
  peer-as 65002;
  hold-time 9;
  family { ipv4 unicast; }
  capability { graceful-restart disable; route-refresh enable; }
  api { processes [ relay ]; neighbor-changes; }
}
"""
    )


def test_every_peer_is_an_ibgp_neighbor_from_the_address_of_its_version() -> None:
    assert grammar.neighbors(RhiConfig(65001, PEERS), LOCAL) == (
        Neighbor(PEERS[0], LOCAL[4], 65001, 65001),
        Neighbor(PEERS[1], LOCAL[6], 65001, 65001),
    )


def test_exabgp_accepts_the_configuration(tmp_path: Path) -> None:
    file = tmp_path / "exabgp.conf"
    file.write_text(configured(sys.executable, "-I", "/relay.py", "/state/relay.sock", "--hold", "1.5"))
    command = [str(child.executable()), "validate", "-nrv", str(file)]
    checked = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize("word", ["two words", "new\nline", "end;", "{", "", "#", '"'])
def test_nothing_but_plain_words_is_written(word: str) -> None:
    with pytest.raises(RhiError, match="can't be written"):
        configured("/bin/relay", word)
    with pytest.raises(RhiError, match="can't be written"):
        grammar.environment(word)


@pytest.mark.parametrize(
    ("vip", "next_hop", "route"),
    [
        ("192.0.2.1", "10.99.0.2", "route 192.0.2.1/32 next-hop 10.99.0.2"),
        ("2001:db8::1", "fd99::2", "route 2001:db8::1/128 next-hop fd99::2"),
    ],
)
def test_commands(vip: str, next_hop: str, route: str) -> None:
    assert grammar.announce(ip_address(vip), ip_address(next_hop)) == f"announce {route}"
    assert grammar.withdraw(ip_address(vip), ip_address(next_hop)) == f"withdraw {route}"


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
    assert grammar.parse_event(event) == (PEERS[0], state)


def test_other_events_are_not_about_sessions() -> None:
    assert grammar.parse_event({"exabgp": "5.0.0", "type": "notification"}) is None


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
        (PEERS[0], IPv4Address("192.168.101.1")),
        (PEERS[1], IPv6Address("2001:db8::1")),
    }
    assert grammar.parse_routes([]) == frozenset()


def test_what_is_not_understood_is_an_error() -> None:
    with pytest.raises(RhiError, match="list of routes"):
        grammar.parse_routes(["nonsense"])
    with pytest.raises(RhiError, match="list of neighbors"):
        grammar.parse_neighbors(['[{"fsm": "ESTABLISHED"}]'])
    with pytest.raises(RhiError, match="event"):
        grammar.parse_event({"type": "state", "neighbor": {"state": "sideways"}})
