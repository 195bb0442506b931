"""Parses the head of an HTTP/1.x response from bytes as they come (RFC 9112), without any I/O.

Must not know: streams, checks. Invariants: holds at most `MAX_HEADER` bytes and one read of unparsed input;
refuses at the first byte that can't be part of a status line, so that a peer speaking another protocol fails
at once and not by the deadline. The status line is taken strictly (it ends in CRLF, never in a bare LF);
fields are taken leniently, since an odd field disturbs no client and must not take a real down.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from vc5py.checks.result import ProbeFailure, Reason

MAX_HEADER = 16 * 1024
"""Bytes of status line and header section together."""

_STATUS_LINE = re.compile(rb"HTTP/1\.[01] ([1-5][0-9]{2})(?: [\t\x20-\x7e\x80-\xff]*)?")
_CONTENT_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]{1,19})[ \t]*(?:\r\n|\Z)", re.IGNORECASE)
_TRANSFER_ENCODING = re.compile(rb"\r\ntransfer-encoding:([^\r\n]*)", re.IGNORECASE)
_PREFIX = b"HTTP/1."
_SWITCHING_PROTOCOLS = 101


@dataclass(frozen=True, slots=True)
class ResponseHead:
    """`content_length` in bytes as announced, None without one, or where a transfer coding overrides it."""

    status: int
    content_length: int | None
    chunked: bool = False

    @property
    def is_interim(self) -> bool:
        """Another response follows (RFC 9110 section 15.2); after 101 it would be another protocol's."""
        return self.status < 200 and self.status != _SWITCHING_PROTOCOLS


class ResponseParser:
    """Feed bytes, ask for the final head. Raises `ProbeFailure` with the reason for what isn't HTTP."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._searched = 0
        self.consumed = 0
        """Bytes fed so far."""

    def feed(self, data: bytes) -> None:
        self._buffer += data
        self.consumed += len(data)

    @property
    def rest(self) -> bytes:
        """What was fed beyond the heads returned so far."""
        return bytes(self._buffer)

    def next_final(self) -> ResponseHead | None:
        """The first head that isn't interim; None as long as it is incomplete."""
        while (block := self._next_block()) is not None:
            head = _parse_head(block)
            if not head.is_interim:
                return head
        return None

    def _next_block(self) -> bytes | None:
        """Cuts off the next head, without the empty line at its end."""
        self._refuse_early()
        end = self._buffer.find(b"\r\n\r\n", self._searched)
        if end > MAX_HEADER or (end < 0 and len(self._buffer) > MAX_HEADER):
            raise ProbeFailure(Reason.HEADER_TOO_LARGE, f"more than {MAX_HEADER} bytes of header")
        if end < 0:
            self._searched = max(0, len(self._buffer) - 3)
            return None
        block = bytes(self._buffer[:end])
        del self._buffer[: end + 4]
        self._searched = 0
        return block

    def _refuse_early(self) -> None:
        line_end = self._buffer.find(b"\n", 0, MAX_HEADER)
        line = bytes(self._buffer[: len(_PREFIX)])
        if line != _PREFIX[: len(line)] or (line_end >= 0 and self._buffer[line_end - 1 : line_end] != b"\r"):
            raise _bad_status_line(bytes(self._buffer[: line_end if line_end >= 0 else None]))


def _parse_head(block: bytes) -> ResponseHead:
    status_line = block.partition(b"\r\n")[0]
    status = _STATUS_LINE.fullmatch(status_line)
    if status is None:
        raise _bad_status_line(status_line)
    if codings := _TRANSFER_ENCODING.findall(block):  # RFC 9112 section 6.3: it wins, and its last one counts
        last = codings[-1].rpartition(b",")[2].strip().lower()
        return ResponseHead(int(status[1]), None, last == b"chunked")
    length = _CONTENT_LENGTH.search(block)
    return ResponseHead(int(status[1]), int(length[1]) if length else None)


def _bad_status_line(line: bytes) -> ProbeFailure:
    return ProbeFailure(Reason.BAD_STATUS_LINE, f"bad status line {_quote(line)}")


def _quote(data: bytes) -> str:
    """A peer's bytes, short and harmless in a log or on a page."""
    return repr(data[:40])[1:] + ("..." if len(data) > 40 else "")
