"""ExaBGP's text grammar: its configuration file, environment, commands and answers, as pure functions.

This is the only module that knows how ExaBGP (5.x) spells things; the relay, which has to run alone,
repeats the few words it needs. Must not know: sockets, processes, files, which routes are wanted.

Invariants: whatever is written is one line per command and made of validated values (addresses, numbers)
or of words checked by `_word`, so no name or path can smuggle in a second command. Whatever is read is
either understood or raises RhiError.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Address, ip_address, ip_interface
from typing import Any

from vc5py.core.rib import Route
from vc5py.errors import RhiError
from vc5py.model import IPAddress
from vc5py.rhi.relay import MAX_COMMAND
from vc5py.rhi.sessions import Session

WITHDRAW_ALL = "clear adj-rib out"
NOTHING = "version"
RELOAD = "reload"
SHOW_NEIGHBORS = "show neighbor json"
SHOW_ROUTES = "show adj-rib out"
_RELAY = "relay"
_MAX_TTL = 255
_GRACEFUL_SHUTDOWN = (65535, 0)
_BFD_DOWN = 10
_LOCAL = re.compile(r"^neighbor ([0-9a-f.:]+) {(?:\n  .*)*?\n  local-address ([0-9a-f.:]+);$", re.MULTILINE)
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
class NeighborStatus:
    """What ExaBGP says of a neighbor. `updates_sent` counts the UPDATE messages of this session."""

    address: IPAddress
    state: SessionState
    updates_sent: int


def configuration(sessions: Sequence[Session], router_id: IPv4Address, relay: Sequence[str]) -> str:
    """The text of ExaBGP's configuration file; `relay` is the relay's command line. It may hold passwords.

    Where there is graceful restart, it is the speaker who says that all routes are there (`end_of_rib`):
    ExaBGP would do so before it has been told of them.
    """
    return "\n".join([_process(relay), *(_neighbor(session, router_id) for session in sessions), ""])


def reloadable(before: str, relay: Sequence[str]) -> bool:
    """Whether an ExaBGP of the configuration `before` can take another one over: the relay is the same."""
    return before.startswith(_process(relay))


def local_addresses(written: str) -> dict[IPAddress, IPAddress]:
    """Those of a configuration that `configuration` made, by neighbor; of another, none."""
    try:
        return {ip_address(peer): ip_address(local) for peer, local in _LOCAL.findall(written)}
    except ValueError:
        return {}


def holds(written: str, session: Session, router_id: IPv4Address) -> bool:
    """Whether the session is in the configuration, without a change."""
    return f"\n{_neighbor(session, router_id)}\n" in written


def _process(relay: Sequence[str]) -> str:
    return f"process {_RELAY} {{\n  run {' '.join(map(_word, relay))};\n  encoder json;\n}}"


def _neighbor(session: Session, router_id: IPv4Address) -> str:
    neighbor = session.neighbor
    families = " ".join(f"ipv{version} unicast;" for version in session.families)
    lines = [
        f"router-id {router_id};",
        f"local-address {session.local_address};",
        f"local-as {neighbor.local_as:d};",
        f"peer-as {neighbor.as_number:d};",
        f"hold-time {neighbor.hold_time_s:d};",
        *_transport(session),
        f"family {{ {families} }}",
        f"capability {{ graceful-restart {neighbor.restart_time_s or 'disable'}; route-refresh enable; }}",
        *(["manual-eor true;"] if neighbor.restart_time_s else []),
        f"api {{ processes [ {_RELAY} ]; neighbor-changes; }}",
    ]
    return "\n".join([f"neighbor {neighbor.address} {{", *(f"  {line}" for line in lines), "}"])


def _transport(session: Session) -> Iterator[str]:
    """Ports, TTLs, and the password in base64, in which it is one harmless word."""
    neighbor = session.neighbor
    if neighbor.passive:
        yield "passive true;"
        yield f"listen {neighbor.listen:d};"
    else:
        yield "passive false;"
        yield f"connect {neighbor.port:d};"
    if neighbor.ttl_security is not None:
        yield f"outgoing-ttl {_MAX_TTL};"
        yield f"incoming-ttl {_MAX_TTL + 1 - neighbor.ttl_security:d};"
    elif not neighbor.is_internal:
        yield f"outgoing-ttl {neighbor.multihop or 1:d};"
    if session.password is not None:
        yield "md5-base64 true;"
        yield f"md5-password {_word(base64.b64encode(session.password).decode())};"


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


def said(session: Session, version: int, graceful: bool = False) -> str | None:
    """What is said to the neighbor of routes of an IP version; None where it has no next hop.

    `graceful`: for graceful shutdown (RFC 8326), by its community, and within our autonomous system by the
    least local preference too, which works without anybody's configuration.
    """
    hop = session.next_hop(version)
    if hop is None:
        return None
    neighbor, told = session.neighbor, session.neighbor.attributes
    words = [f"origin igp next-hop {hop}"]
    if told.med is not None:
        words.append(f"med {told.med:d}")
    if neighbor.is_internal:
        preference = 0 if graceful else told.local_preference
        words += [f"local-preference {preference:d}"] if preference is not None else []
    elif told.prepend:
        words.append(f"as-path [ {' '.join([f'{neighbor.local_as:d}'] * (told.prepend + 1))} ]")
    communities = [*told.communities, *([_GRACEFUL_SHUTDOWN] if graceful else [])]
    words += _community("community", communities)
    words += _community("large-community", told.large_communities)
    return " ".join(words)


def _community(word: str, communities: Sequence[tuple[int, ...]]) -> list[str]:
    if not communities:
        return []
    numbers = (":".join(f"{number:d}" for number in one) for one in dict.fromkeys(communities))
    return [f"{word} [ {' '.join(numbers)} ]"]


def announce(neighbors: Sequence[IPAddress], vip: IPAddress, said: str) -> str:
    """The command to announce the host route to `vip`."""
    return f"{_to(neighbors)} announce route {_prefix(vip)} {said}"


def announce_all(
    neighbors: Sequence[IPAddress], vips: Sequence[IPAddress], said: str
) -> Iterator[tuple[str, int]]:
    """As few commands as can announce the host routes to all of `vips`, which are of one IP version, and how
    many VIPs are in each. They take ExaBGP a fraction of the time that a command for each VIP would.
    """
    start = f"{_to(neighbors)} announce attributes {said} nlri"
    command, count = start, 0
    for vip in vips:
        prefix = f" {_prefix(vip)}"
        if count and len(command) + len(prefix) > MAX_COMMAND:
            yield command, count
            command, count = start, 0
        command, count = command + prefix, count + 1
    if count:
        yield command, count


def withdraw(neighbors: Sequence[IPAddress], vip: IPAddress, said: str) -> str:
    """The command to withdraw the host route to `vip`.

    It repeats all the attributes of `announce`: ExaBGP queues unsent changes by their attributes, and
    only with equal ones does the later of two changes of one route surely win.
    """
    return f"{_to(neighbors)} withdraw route {_prefix(vip)} {said}"


def resend(neighbor: IPAddress) -> str:
    """The command to send a neighbor whose session is established all its routes again."""
    return f"{_to([neighbor])} flush adj-rib out"


def end_of_rib(neighbor: IPAddress, version: int) -> str:
    """The command to tell a neighbor that it has all routes of that IP version (RFC 4724, section 2)."""
    return f"{_to([neighbor])} announce eor ipv{version} unicast"


def tear_down(neighbor: IPAddress) -> str:
    """The command to end a session, which begins anew: Cease, BFD Down (RFC 9384)."""
    return f"{_to([neighbor])} teardown {_BFD_DOWN}"


def _to(neighbors: Sequence[IPAddress]) -> str:
    return " , ".join(f"neighbor {neighbor}" for neighbor in neighbors)


def parse_event(event: Mapping[str, Any]) -> tuple[IPAddress, SessionState, str] | None:
    """The neighbor, its new state and why, or None for an event that isn't about a session."""
    if event.get("type") != "state":
        return None
    try:
        neighbor = event["neighbor"]
        why = str(neighbor.get("reason", ""))
        return ip_address(neighbor["address"]["peer"]), _STATES[neighbor["state"]], why
    except (KeyError, TypeError, ValueError) as error:
        raise RhiError(f"ExaBGP sent an event that can't be understood: {error!r}") from error


def parse_listening(event: Mapping[str, Any]) -> tuple[IPAddress, str] | None:
    """A neighbor that is to connect to us, and why it can't: nobody listens there, "" if somebody does. None
    for another event. It isn't one of ExaBGP's own (exabgp_main.py).
    """
    if event.get("type") != "listening":
        return None
    try:
        neighbor = event["neighbor"]
        return ip_address(neighbor["address"]["peer"]), str(neighbor["reason"])
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


def parse_routes(lines: Sequence[str]) -> dict[Route, str]:
    """The answer to SHOW_ROUTES: what suffices to withdraw each; a line is
    `10.0.0.1 ipv4 unicast 192.0.2.1/32 next-hop 10.0.0.2`. Other than host routes are never announced.

    What is said of them besides is not in it, so no text here equals one of `said`.
    """
    return dict(map(_parse_route, lines))


def _parse_route(line: str) -> tuple[Route, str]:
    try:
        neighbor, _family, _safi, prefix, word, hop, *_attributes = line.split()
        if word != "next-hop":
            raise ValueError(word)
        return (ip_address(neighbor), ip_interface(prefix).ip), f"next-hop {ip_address(hop)}"
    except ValueError as error:
        raise RhiError(f"ExaBGP's list of routes can't be understood: {line!r}") from error


def _prefix(vip: IPAddress) -> str:
    return f"{vip}/{vip.max_prefixlen}"


def _word(text: str) -> str:
    """`text` where it is one harmless word of the grammar; RhiError where not."""
    if not _WORD.fullmatch(text):
        raise RhiError(f"{text!r} can't be written into ExaBGP's configuration: use letters, digits and ._-/")
    return text
