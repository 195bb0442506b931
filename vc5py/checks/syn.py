"""The syn check: the real answers a SYN with a SYN-ACK. No connection comes of it, no application sees it.

Must not know: segments' bytes, raw sockets, deadlines.
"""

from __future__ import annotations

from ipaddress import ip_address

from vc5py.checks.half_open import own_address, shared
from vc5py.checks.result import ProbeFailure, Reason
from vc5py.checks.sockets import Attempt
from vc5py.checks.tcp_segment import RST
from vc5py.model import Check


async def probe_syn(attempt: Attempt, check: Check) -> str:
    """Returns the detail of a success; raises `ProbeFailure` or `OSError` otherwise."""
    own = own_address(attempt)
    with shared(own, attempt.family) as half_open:
        answer = await half_open.knock(ip_address(own), attempt)
    if answer.flags & RST:
        raise ProbeFailure(Reason.REFUSED, "RST in answer to the SYN")
    return "SYN-ACK"
