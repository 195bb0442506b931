"""The udp check: a datagram is answered, where asked with what begins as expected.

Must not know: marks, deadlines.
"""

from __future__ import annotations

from vc5py.checks.datagram import exchange_datagrams
from vc5py.checks.result import ProbeFailure, Reason
from vc5py.checks.sockets import Attempt
from vc5py.model import Check, UdpExchange

_SHOWN = 40


async def probe_udp(attempt: Attempt, check: Check) -> str:
    """Returns the detail of a success; raises `ProbeFailure` or `OSError` otherwise."""
    exchange = check.detail
    assert isinstance(exchange, UdpExchange)
    reply = await exchange_datagrams(attempt, exchange.payload)
    if exchange.reply is not None and not reply.startswith(exchange.reply):
        begins = f", beginning with {reply[:_SHOWN].hex()}" if reply else ""
        raise ProbeFailure(Reason.UNEXPECTED_REPLY, f"a reply of {len(reply)} bytes{begins}")
    return f"a reply of {len(reply)} bytes"
