"""BGP neighbors for tests."""

from __future__ import annotations

from ipaddress import ip_address

from vc5py.model import Neighbor, RhiConfig


def ibgp(as_number: int, *addresses: str) -> RhiConfig:
    """iBGP with these neighbors, and the default of everything else."""
    neighbors = tuple(Neighbor(ip_address(address), as_number, as_number) for address in addresses)
    return RhiConfig(as_number, neighbors)
