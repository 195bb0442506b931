"""Finds the content of an HTTP/1.1 response's body from bytes as they come (RFC 9112 sections 6 and 7).

Must not know: streams, checks. Invariants: holds at most `limit` bytes of content, one read, and one line of
framing; whatever isn't framing as the RFC has it is refused at once. Trailers are never looked at.
"""

from __future__ import annotations

import re

from vc5py.checks.http_response import ResponseHead
from vc5py.checks.result import ProbeFailure, Reason

MAX_CHUNK_LINE = 1024
"""Bytes of a chunk's size with its extensions."""

_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[^\x00\r\n]*)?")
_WITHOUT_BODY = frozenset({204, 304})


class BodyReader:
    """Feed bytes until `complete`: at the end of the body, or, `cut`, at `limit` bytes of it."""

    def __init__(self, head: ResponseHead, limit: int, *, head_only: bool = False) -> None:
        self.content = bytearray()
        self.complete = head_only or head.status in _WITHOUT_BODY or head.content_length == 0
        self.cut = False
        self._limit = limit
        self._chunked = head.chunked
        self._left = head.content_length
        """Bytes to come of the body or chunk; None: all until the stream ends, or the first chunk is next."""
        self._line = bytearray()

    def feed(self, data: bytes) -> None:
        if self._chunked:
            self._feed_chunked(data)
        elif not self.complete:
            self._take(data)
            self.complete = self.complete or self._left == 0

    def end(self) -> None:
        """The stream has ended. Raises `ProbeFailure` if the body has not."""
        if not self.complete and (self._chunked or self._left is not None):
            raise ProbeFailure(Reason.SHORT_READ, f"closed after {len(self.content)} bytes of the body")
        self.complete = True

    def _take(self, data: bytes) -> bytes:
        """Takes what belongs to the body or the chunk; returns what comes after."""
        size = len(data) if self._left is None else min(self._left, len(data))
        room = self._limit - len(self.content)
        self.content += data[: min(size, room)]
        if size > room:
            self.complete = self.cut = True
        if self._left is not None:
            self._left -= size
        return data[size:]

    def _feed_chunked(self, data: bytes) -> None:
        while data and not self.complete:
            data = self._take(data) if self._left else self._next_line(data)

    def _next_line(self, data: bytes) -> bytes:
        """The end of a chunk, if one has just ended, and the size of the next one."""
        before = len(self._line)
        self._line += data[: MAX_CHUNK_LINE + 4]
        start = 2 if self._left == 0 else 0
        if not b"\r\n".startswith(self._line[:start]):
            raise ProbeFailure(Reason.BAD_CHUNK, "no end of line after a chunk")
        end = self._line.find(b"\r\n", start)
        if (end if end >= 0 else len(self._line) - 1) > start + MAX_CHUNK_LINE:
            raise ProbeFailure(Reason.BAD_CHUNK, f"a size line of more than {MAX_CHUNK_LINE} bytes")
        if end < 0:
            return b""
        size = _CHUNK_SIZE.fullmatch(self._line, start, end)
        if size is None:
            raise ProbeFailure(Reason.BAD_CHUNK, f"bad chunk size {bytes(self._line[start:end][:40])!r}")
        self._left = int(size[1], 16)
        self._line.clear()
        self.complete = self._left == 0
        return data[end + 2 - before :]
