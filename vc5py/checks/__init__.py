"""Health checks: probes of a VIP on one real, and when to send them.

Must not know: what a failed check leads to, BPF, BGP. `probe` is one attempt, `scheduler.Scheduler` decides
when. A failed probe is a value, `ProbeResult`; an exception out of `probe` is a bug.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable

from vc5py.checks.dns import probe_dns
from vc5py.checks.http import probe_http
from vc5py.checks.https import probe_https
from vc5py.checks.result import ProbeFailure, ProbeResult, Reason, reason_of
from vc5py.checks.sockets import Attempt
from vc5py.checks.syn import probe_syn
from vc5py.checks.tcp import probe_tcp
from vc5py.checks.udp import probe_udp
from vc5py.model import Check, CheckType, IPAddress

__all__ = ["ProbeResult", "Reason", "probe"]

_PROBES: dict[CheckType, Callable[[Attempt, Check], Awaitable[str]]] = {
    CheckType.HTTP: probe_http,
    CheckType.HTTPS: probe_https,
    CheckType.TCP: probe_tcp,
    CheckType.SYN: probe_syn,
    CheckType.DNS: probe_dns,
    CheckType.UDP: probe_udp,
}


async def probe(vip: IPAddress, check: Check, mark: int, source: IPAddress | None) -> ProbeResult:
    """One attempt at `check` on the real that `mark` steers to.

    `mark` is the `SO_MARK` of every packet (0: unmarked), `source` the local address (None: as routed).
    Takes at most `check.timeout_s` in all, whatever the peer sends in between.
    """
    attempt = Attempt(vip, check.port, mark, source)
    clock = asyncio.get_running_loop().time
    started = clock()
    reason, detail = await _outcome(attempt, check)
    return ProbeResult(reason is Reason.OK, reason, detail, clock() - started)


async def _outcome(attempt: Attempt, check: Check) -> tuple[Reason, str]:
    try:
        async with asyncio.timeout(check.timeout_s):
            return Reason.OK, await _PROBES[check.type](attempt, check)
    except ProbeFailure as failure:
        return failure.reason, failure.detail
    except TimeoutError:
        reason = Reason.TOO_SLOW if attempt.received > attempt.received_before else Reason.TIMEOUT
        return reason, f"no {attempt.phase} in time, {attempt.received} bytes received"
    except OSError as error:
        found = reason_of(error)
        if found is None or error.errno is None:
            raise
        return found, f"{attempt.phase}: {os.strerror(error.errno)}"
