"""What came of one probe, as a value with a reason that can be counted.

Must not know: sockets, health, the scheduler. Invariant: `Reason` is a small closed set, fit for a metric's
label; what varies (a status code, an address) is in `detail`.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from enum import StrEnum


class Reason(StrEnum):
    OK = "ok"
    TIMEOUT = "timeout"
    """Nothing came of what was waited for."""
    TOO_SLOW = "too_slow"
    """Some of it came, but not all of it in time."""
    REFUSED = "refused"
    RESET = "reset"
    UNREACHABLE = "unreachable"
    PORT_UNREACHABLE = "port_unreachable"
    """An ICMP error from the real: nobody has that UDP port."""
    SHORT_READ = "short_read"
    TOO_MUCH_DATA = "too_much_data"

    TLS_FAILURE = "tls_failure"
    """Of the protocol: the handshake or a record."""
    CERTIFICATE_EXPIRED = "certificate_expired"
    CERTIFICATE_NAME = "certificate_name"
    CERTIFICATE_UNTRUSTED = "certificate_untrusted"
    CERTIFICATE_BAD = "certificate_bad"
    """Whatever else is wrong with it: not yet valid, revoked, not for servers."""

    BAD_STATUS_LINE = "bad_status_line"
    HEADER_TOO_LARGE = "header_too_large"
    BAD_CHUNK = "bad_chunk"
    REDIRECT = "redirect"
    UNEXPECTED_STATUS = "unexpected_status"
    UNEXPECTED_BODY = "unexpected_body"

    BAD_DNS_MESSAGE = "bad_dns_message"
    WRONG_DNS_ID = "wrong_dns_id"
    WRONG_DNS_QUESTION = "wrong_dns_question"
    UNEXPECTED_RCODE = "unexpected_rcode"
    UNEXPECTED_ANSWER = "unexpected_answer"
    TRUNCATED = "truncated"
    """A DNS response by UDP that had no room for the answer looked for."""
    UNEXPECTED_REPLY = "unexpected_reply"

    NO_BACKEND = "no_backend"
    """The data plane has no such backend (yet), so there is nothing to steer the probe by."""
    STALE = "stale"
    """The backend moved in the data plane during the probe, which proves nothing: counted, never reported."""
    LOCAL = "local"
    """This machine's fault, not the real's: no descriptors or ports left, no permission, a bad source."""
    INTERNAL = "internal"
    """A bug; the log has the traceback."""


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """The outcome of one probe. `detail` is for people; `duration_s` is from its start to the verdict."""

    ok: bool
    reason: Reason
    detail: str
    duration_s: float


class ProbeFailure(Exception):  # noqa: N818 - an outcome, not an error
    """Ends a probe from within; never leaves this package, where it becomes a `ProbeResult`."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


_REASON_OF_ERRNO = {
    errno.ECONNREFUSED: Reason.REFUSED,
    errno.ECONNRESET: Reason.RESET,
    errno.ECONNABORTED: Reason.RESET,
    errno.EPIPE: Reason.RESET,
    errno.EHOSTUNREACH: Reason.UNREACHABLE,
    errno.ENETUNREACH: Reason.UNREACHABLE,
    errno.EHOSTDOWN: Reason.UNREACHABLE,
    errno.ENETDOWN: Reason.UNREACHABLE,
    errno.ENOPROTOOPT: Reason.UNREACHABLE,  # ICMP "protocol unreachable"
    errno.EPROTO: Reason.UNREACHABLE,  # ICMPv6 "parameter problem"
    errno.EMSGSIZE: Reason.UNREACHABLE,
    errno.ETIMEDOUT: Reason.TIMEOUT,
    errno.EMFILE: Reason.LOCAL,
    errno.ENFILE: Reason.LOCAL,
    errno.ENOBUFS: Reason.UNREACHABLE,  # dropped on its way out: the data plane knows no way to the real
    errno.ENOMEM: Reason.LOCAL,
    errno.EPERM: Reason.LOCAL,
    errno.EACCES: Reason.LOCAL,
    errno.EINVAL: Reason.LOCAL,
    errno.EADDRNOTAVAIL: Reason.LOCAL,
    errno.EADDRINUSE: Reason.LOCAL,
    errno.EAFNOSUPPORT: Reason.LOCAL,
    errno.EPROTONOSUPPORT: Reason.LOCAL,
}


def reason_of(error: OSError) -> Reason | None:
    """The reason behind a socket's error; None if no network could cause it, so that it must be a bug."""
    return None if error.errno is None else _REASON_OF_ERRNO.get(error.errno)
