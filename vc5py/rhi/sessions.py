"""The BGP sessions to have, with everything filled in that the configuration leaves to the machine.

Must not know: ExaBGP, its grammar. Invariant: a password is never part of a text that represents a value
here.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address

from vc5py import credentials
from vc5py.errors import RhiError, SecretError
from vc5py.model import IPAddress, Neighbor, RhiConfig, Secret

Passwords = Mapping[Secret, bytes]


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


def resolve(config: RhiConfig, machine: Machine, passwords: Passwords) -> tuple[Session, ...]:
    """RhiError where a neighbor can't be reached from any address of this machine."""
    return tuple(_session(neighbor, machine, passwords) for neighbor in config.neighbors)


def _session(neighbor: Neighbor, machine: Machine, passwords: Passwords) -> Session:
    """Depends on no other neighbor: else a change of one would end the sessions with others."""
    local = _local_address(neighbor, machine)
    password = passwords[neighbor.password] if neighbor.password is not None else None
    return Session(neighbor, local, _next_hops(neighbor, machine, local), password)


def _local_address(neighbor: Neighbor, machine: Machine) -> IPAddress:
    for address in (neighbor.source, machine.address):
        if address is not None and address.version == neighbor.address.version:
            return address
    return source_address(neighbor.address, neighbor.port)


def _next_hops(neighbor: Neighbor, machine: Machine, local: IPAddress) -> tuple[IPAddress, ...]:
    given: dict[int, IPAddress | None] = {4: neighbor.next_hop4, 6: neighbor.next_hop6}
    ours: dict[int, IPAddress] = {local.version: local}
    hops = (given[version] or machine.next_hop(version) or ours.get(version) for version in (4, 6))
    return tuple(hop for hop in hops if hop is not None)


def source_address(peer: IPAddress, port: int) -> IPAddress:
    """The address the kernel would send from to `peer`. Sends nothing."""
    family = {4: socket.AF_INET, 6: socket.AF_INET6}[peer.version]
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((str(peer), port))
            return type(peer)(probe.getsockname()[0])
    except OSError as error:
        raise RhiError(f"no local address to reach the BGP peer {peer} from: {error.strerror}") from error


def passwords(config: RhiConfig) -> dict[Secret, bytes]:
    """All of them, read now. RhiError names the place of one that can't be had, and never tells it."""
    places = [neighbor.password for neighbor in config.neighbors if neighbor.password is not None]
    try:
        return {place: credentials.bgp_password(place) for place in places}
    except SecretError as error:
        raise RhiError(str(error)) from error
