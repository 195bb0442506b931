"""The tcp check: the real completes a TCP handshake for the VIP and port.

Must not know: HTTP, marks, deadlines (the stream and the caller have those).
"""

from __future__ import annotations

from vc5py.checks.connection import open_tcp
from vc5py.checks.sockets import Attempt
from vc5py.model import Check


async def probe_tcp(attempt: Attempt, check: Check) -> str:
    """Returns the detail of a success; raises `ProbeFailure` or `OSError` otherwise."""
    async with open_tcp(attempt):
        return "connected"
