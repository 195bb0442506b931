"""The https check: the http check within TLS. Certificates aren't verified.

Must not know: HTTP's grammar, TLS's bytes, deadlines.
"""

from __future__ import annotations

from ipaddress import ip_address

from vc5py.checks.connection import Attempt, open_tls
from vc5py.checks.http import exchange
from vc5py.model import Check


async def probe_https(attempt: Attempt, check: Check) -> str:
    """Returns the detail of a success; raises `ProbeFailure` or `OSError` otherwise."""
    async with open_tls(attempt, server_name(check.host)) as stream:
        return await exchange(stream, attempt, check)


def server_name(host: str | None) -> str | None:
    """The name for SNI out of a Host value: without a port; None for an address (RFC 6066 section 3)."""
    if not host or host.startswith("["):
        return None
    name = host if host.count(":") > 1 else host.partition(":")[0]
    try:
        ip_address(name)
    except ValueError:
        return name.rstrip(".")
    return None
