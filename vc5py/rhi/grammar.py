"""ExaBGP's text grammar: its configuration file, environment, commands and answers, as pure functions.

This is the only module that knows how ExaBGP (5.x) spells things; the relay, which has to run alone,
repeats the few words it needs. Must not know: sockets, processes, files, which routes are wanted.

Invariants: whatever is written is one line per command and made of validated values (addresses, numbers)
or of words checked by `_word`, so no name or path can smuggle in a second command. Whatever is read is
either understood or raises RhiError.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Address, ip_address, ip_interface
from typing import Any

from vc5py.errors import RhiError
from vc5py.model import IPAddress, RhiConfig

WITHDRAW_ALL = "clear adj-rib out"
SHOW_NEIGHBORS = "show neighbor json"
SHOW_ROUTES = "show adj-rib out"
# Short enough that a router notices a dead balancer soon, long enough for a busy machine's keepalives.
HOLD_TIME_S = 15
_RELAY = "relay"
_WORD = re.compile(r"[A-Za-z0-9_./:@%+=,-]+")


class SessionState(StrEnum):
    """How far the BGP session with one neighbor is. DOWN also stands for "nobody can say"."""

    DOWN = "down"
    CONNECTING = "connecting"
    ESTABLISHED = "established"


# States of the finite state machine (RFC 4271, 8.2.2) and of ExaBGP's own events.
_STATES = {
    "idle": SessionState.DOWN,
    "active": SessionState.CONNECTING,
    "connect": SessionState.CONNECTING,
    "opensent": SessionState.CONNECTING,
    "openconfirm": SessionState.CONNECTING,
    "established": SessionState.ESTABLISHED,
    "down": SessionState.DOWN,
    "connected": SessionState.CONNECTING,
    "up": SessionState.ESTABLISHED,
}


@dataclass(frozen=True, slots=True)
class Neighbor:
    """One BGP session to have. `hold_time_s` is BGP's hold time (RFC 4271, 4.2), at least 3 seconds."""

    address: IPAddress
    local_address: IPAddress
    local_as: int
    peer_as: int
    hold_time_s: int = HOLD_TIME_S


@dataclass(frozen=True, slots=True)
class NeighborStatus:
    """What ExaBGP says of a neighbor. `updates_sent` counts the UPDATE messages of this session."""

    address: IPAddress
    state: SessionState
    updates_sent: int


def neighbors(config: RhiConfig, local_addresses: Mapping[int, IPAddress]) -> tuple[Neighbor, ...]:
    """One iBGP neighbor per peer; `local_addresses` has an address for every IP version among the peers."""
    return tuple(
        Neighbor(peer, local_addresses[peer.version], config.as_number, config.as_number)
        for peer in config.peers
    )


def configuration(
    neighbors: Sequence[Neighbor],
    router_id: IPv4Address,
    next_hops: Mapping[int, IPAddress],
    relay: Sequence[str],
) -> str:
    """The text of ExaBGP's configuration file.

    `next_hops` gives, by IP version, the next hop of announcements; it decides the address families.
    It is written as a comment too: equal texts mean equal routes. `relay` is the relay's command line.
    Graceful restart is disabled: the hold of a planned restart is the relay's, bounded and ours.
    """
    hops = [f"# next-hop ipv{version} {next_hops[version]}" for version in sorted(next_hops)]
    process = f"process {_RELAY} {{\n  run {' '.join(map(_word, relay))};\n  encoder json;\n}}"
    families = " ".join(f"ipv{version} unicast;" for version in sorted(next_hops))
    sections = [_neighbor(neighbor, router_id, families) for neighbor in neighbors]
    return "\n".join([*hops, process, *sections, ""])


def _neighbor(neighbor: Neighbor, router_id: IPv4Address, families: str) -> str:
    return f"""neighbor {neighbor.address} {{
  router-id {router_id};
  local-address {neighbor.local_address};
  local-as {neighbor.local_as:d};
  peer-as {neighbor.peer_as:d};
  hold-time {neighbor.hold_time_s:d};
  family {{ {families} }}
  capability {{ graceful-restart disable; route-refresh enable; }}
  api {{ processes [ {_RELAY} ]; neighbor-changes; }}
}}"""


def environment(user: str) -> dict[str, str]:
    """ExaBGP's settings that are environment variables.

    `user` is whom ExaBGP and every relay it starts run as: without it a restarted relay would run as
    nobody. No settings file of the host is read, no port listened on, no named pipe or pid file used, so
    several ExaBGPs can live on one machine. A lost relay that can't be replaced ends ExaBGP.
    """
    return {
        "EXABGP_ENVFILE": "/dev/null",
        "exabgp_api_ack": "true",
        "exabgp_api_chunk": "100",
        "exabgp_api_cli": "false",
        "exabgp_api_respawn": "true",
        "exabgp_api_terminate": "true",
        "exabgp_daemon_daemonize": "false",
        "exabgp_daemon_pid": "",
        "exabgp_daemon_user": _word(user),
        "exabgp_log_destination": "stdout",
        "exabgp_log_level": "INFO",
        "exabgp_log_statistics": "false",
        "exabgp_tcp_bind": "",
    }


def announce(vip: IPAddress, next_hop: IPAddress) -> str:
    """The command to announce the host route to `vip` to all neighbors."""
    return f"announce route {_prefix(vip)} next-hop {next_hop}"


def withdraw(vip: IPAddress, next_hop: IPAddress) -> str:
    """The command to withdraw the host route to `vip` from all neighbors.

    It repeats all the attributes of `announce`: ExaBGP queues unsent changes by their attributes, and
    only with equal ones does the later of two changes of one route surely win.
    """
    return f"withdraw route {_prefix(vip)} next-hop {next_hop}"


def parse_event(event: Mapping[str, Any]) -> tuple[IPAddress, SessionState] | None:
    """The neighbor and its new state, or None for an event that isn't about a session."""
    if event.get("type") != "state":
        return None
    try:
        neighbor = event["neighbor"]
        return ip_address(neighbor["address"]["peer"]), _STATES[neighbor["state"]]
    except (KeyError, TypeError, ValueError) as error:
        raise RhiError(f"ExaBGP sent an event that can't be understood: {error!r}") from error


def parse_neighbors(lines: Sequence[str]) -> tuple[NeighborStatus, ...]:
    """The answer to SHOW_NEIGHBORS."""
    try:
        return tuple(
            NeighborStatus(
                ip_address(entry["peer"]["address"]),
                _STATES[entry["fsm"].lower()],
                int(entry["messages"]["sent"]["update"]),
            )
            for entry in json.loads("".join(lines))
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise RhiError(f"ExaBGP's list of neighbors can't be understood: {error!r}") from error


def parse_routes(lines: Sequence[str]) -> frozenset[tuple[IPAddress, IPAddress]]:
    """The answer to SHOW_ROUTES: pairs of (neighbor, VIP); a line is
    `10.0.0.1 ipv4 unicast 192.0.2.1/32 next-hop 10.0.0.2`. Other than host routes are never announced."""
    return frozenset(map(_parse_route, lines))


def _parse_route(line: str) -> tuple[IPAddress, IPAddress]:
    try:
        neighbor, _family, _safi, prefix, *_attributes = line.split()
        return ip_address(neighbor), ip_interface(prefix).ip
    except ValueError as error:
        raise RhiError(f"ExaBGP's list of routes can't be understood: {line!r}") from error


def _prefix(vip: IPAddress) -> str:
    return f"{vip}/{vip.max_prefixlen}"


def _word(text: str) -> str:
    """`text` where it is one harmless word of the grammar; RhiError where not."""
    if not _WORD.fullmatch(text):
        raise RhiError(f"{text!r} can't be written into ExaBGP's configuration: use letters, digits and ._-/")
    return text
