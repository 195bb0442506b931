"""The https check: the http check within TLS.

Must not know: HTTP's grammar, TLS's bytes, deadlines. The certificate counts only where the check says
`verify`; then it must be for the configured host, or for the VIP where there is none.
"""

from __future__ import annotations

from ipaddress import ip_address

from vc5py.checks.http import exchange, prepare
from vc5py.checks.sockets import Attempt
from vc5py.checks.tls import Trust, open_tls
from vc5py.model import Check, HttpRequest, IPAddress


async def probe_https(attempt: Attempt, check: Check) -> str:
    """Returns the detail of a success; raises `ProbeFailure` or `OSError` otherwise."""
    request = prepare(attempt, check)
    async with open_tls(attempt, trust_of(request, attempt.vip)) as stream:
        return await exchange(stream, attempt, check)


def trust_of(request: HttpRequest, vip: IPAddress) -> Trust:
    if not request.verify:
        return Trust(server_name(request.host))
    return Trust(_host_only(request.host) or str(vip), True, request.ca_file)


def server_name(host: str | None) -> str | None:
    """The name for SNI out of a Host value: None for an address (RFC 6066 section 3)."""
    name = _host_only(host)
    try:
        ip_address(name)
    except ValueError:
        return name or None
    return None


def _host_only(host: str | None) -> str:
    """A Host value without a port and the brackets of an IPv6 address; "" without one."""
    if not host:
        return ""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    name = host if host.count(":") > 1 else host.partition(":")[0]
    return name.rstrip(".")
