"""Stable names of services and backends as 64-bit numbers: the same on every node, over every restart."""

from __future__ import annotations

import hashlib

from vc5py.model import BackendId, IPAddress, VirtualServiceId


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") or 1


def service_identity(service: VirtualServiceId) -> int:
    """64 bits, never 0."""
    return _digest(f"service {service}")


def backend_identity(backend: BackendId) -> int:
    """64 bits, never 0."""
    return _digest(f"backend {backend}")


def real_identity(real: IPAddress) -> int:
    """64 bits, never 0; what Maglev hashes on, so that services with the same reals share tables."""
    return _digest(f"real {real}")
