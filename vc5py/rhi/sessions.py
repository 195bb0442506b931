"""The BGP sessions to have, with everything filled in that the configuration leaves to the machine.

Must not know: ExaBGP, its grammar. Invariants: what becomes of one neighbor depends on no other. A password
is never part of a text that represents a value here.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address

from vc5py import credentials
from vc5py.errors import RhiError, SecretError
from vc5py.model import IPAddress, Neighbor, RhiConfig, Secret

Passwords = Mapping[Secret, bytes]
_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}


@dataclass(frozen=True, slots=True)
class Machine:
    """What is ours: `address` is where sessions to neighbors of its IP version come from, and the next hop of
    VIPs of that version; `next_hops` may have one of the other version.
    """

    router_id: IPv4Address
    address: IPAddress
    next_hops: tuple[IPAddress, ...] = ()

    def next_hop(self, version: int) -> IPAddress | None:
        return next((hop for hop in (self.address, *self.next_hops) if hop.version == version), None)


@dataclass(frozen=True, slots=True)
class Session:
    """One neighbor. `next_hops`: at most one of each IP version; VIPs of a version without can't be
    announced.
    """

    neighbor: Neighbor
    local_address: IPAddress
    next_hops: tuple[IPAddress, ...]
    password: bytes | None = field(default=None, repr=False)

    @property
    def families(self) -> tuple[int, ...]:
        return tuple(sorted(self.neighbor.families & {hop.version for hop in self.next_hops}))

    def next_hop(self, version: int) -> IPAddress | None:
        return next((hop for hop in self.next_hops if hop.version == version), None)


@dataclass(frozen=True, slots=True)
class Resolved:
    """The sessions that can be, and of the other neighbors why there can be none for now."""

    sessions: tuple[Session, ...] = ()
    missing: Mapping[IPAddress, str] = field(default_factory=dict)


def resolve(
    config: RhiConfig, machine: Machine, passwords: Passwords, before: Sequence[Session] = ()
) -> Resolved:
    """What is missing may be there later: routes come and go, and addresses with their links. A session that
    was there before, of a neighbor without a change, stays as it is, so that its link may be down meanwhile.
    """
    former = {session.neighbor: session for session in before}
    sessions: list[Session] = []
    missing: dict[IPAddress, str] = {}
    for neighbor in config.neighbors:
        password = _password(neighbor, passwords)
        try:
            sessions.append(_session(neighbor, machine, password, former.get(neighbor)))
        except RhiError as error:
            missing[neighbor.address] = str(error)
    return Resolved(tuple(sessions), missing)


def supposed(
    config: RhiConfig, machine: Machine, passwords: Passwords, places: Mapping[IPAddress, IPAddress]
) -> tuple[Session, ...]:
    """The sessions of neighbors in `places`, as they would be with these addresses of ours; of none for which
    another is given.
    """
    return tuple(
        Session(neighbor, local, _next_hops(neighbor, machine, local), _password(neighbor, passwords))
        for neighbor in config.neighbors
        if (local := places.get(neighbor.address)) and _given(neighbor, machine) in (None, local)
    )


def _password(neighbor: Neighbor, passwords: Passwords) -> bytes | None:
    return passwords[neighbor.password] if neighbor.password is not None else None


def _session(neighbor: Neighbor, machine: Machine, password: bytes | None, former: Session | None) -> Session:
    if former is not None and _is_ours(former.local_address):
        return replace(former, password=password)
    try:
        local = _local_address(neighbor, machine)
    except RhiError:
        if former is None:
            raise
        local = former.local_address
    if neighbor.passive and former is None:
        _check_ours(local)
    return Session(neighbor, local, _next_hops(neighbor, machine, local), password)


def _local_address(neighbor: Neighbor, machine: Machine) -> IPAddress:
    return _given(neighbor, machine) or source_address(neighbor.address, neighbor.port)


def _given(neighbor: Neighbor, machine: Machine) -> IPAddress | None:
    """Not the kernel's choice."""
    addresses = (neighbor.source, machine.address)
    return next((one for one in addresses if one and one.version == neighbor.address.version), None)


def _check_ours(address: IPAddress) -> None:
    """RhiError where nobody can wait for a connection on it."""
    try:
        with socket.socket(_FAMILIES[address.version], socket.SOCK_STREAM) as probe:
            probe.bind((str(address), 0))
    except OSError as error:
        raise RhiError(f"can't wait for the neighbor on {address}: {_words(error)}") from error


def _is_ours(address: IPAddress) -> bool:
    try:
        _check_ours(address)
    except RhiError:
        return False
    return True


def _next_hops(neighbor: Neighbor, machine: Machine, local: IPAddress) -> tuple[IPAddress, ...]:
    given: dict[int, IPAddress | None] = {4: neighbor.next_hop4, 6: neighbor.next_hop6}
    ours: dict[int, IPAddress] = {local.version: local}
    hops = (given[version] or machine.next_hop(version) or ours.get(version) for version in (4, 6))
    return tuple(hop for hop in hops if hop is not None)


def source_address(peer: IPAddress, port: int) -> IPAddress:
    """The address the kernel would send from to `peer`. Sends nothing."""
    try:
        with socket.socket(_FAMILIES[peer.version], socket.SOCK_DGRAM) as probe:
            probe.connect((str(peer), port))
            return type(peer)(probe.getsockname()[0])
    except OSError as error:
        raise RhiError(f"no local address to reach the BGP peer {peer} from: {_words(error)}") from error


def _words(error: OSError) -> str:
    return error.strerror or str(error)


def passwords(config: RhiConfig) -> dict[Secret, bytes]:
    """All of them, read now. RhiError names the place of one that can't be had, and never tells it."""
    places = [neighbor.password for neighbor in config.neighbors if neighbor.password is not None]
    try:
        return {place: credentials.bgp_password(place) for place in places}
    except SecretError as error:
        raise RhiError(str(error)) from error
