"""DNS messages, as far as a check needs them (RFC 1035, RFC 3596, RFC 2782): one question out, a response in.

Must not know: sockets, ids being unique. Own code and not a library: a general one takes as long for the two
messages as all the rest of the check does, and nine types of records are all that a check may ask for.

Invariants: reading never goes beyond the message, and takes milliseconds whatever is in it: a name has at
most 255 bytes and `_MAX_HOPS` pointers, at most `MAX_ANSWERS` answers are looked at, and names that don't
matter are only skipped. A response is for this question, or refused with the reason.
"""

from __future__ import annotations

import functools
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address

from vc5py.checks.result import ProbeFailure, Reason

RECORDS = {"A": 1, "NS": 2, "CNAME": 5, "SOA": 6, "PTR": 12, "MX": 15, "TXT": 16, "AAAA": 28, "SRV": 33}
RCODES = (
    "noerror", "formerr", "servfail", "nxdomain", "notimp", "refused",
    "yxdomain", "yxrrset", "nxrrset", "notauth", "notzone",
)  # fmt: skip

_HEADER = struct.Struct("!HHHHHH")
_RECORD = struct.Struct("!HHIH")  # type, class, TTL, length
_IN = 1
_QR, _OPCODE, _TC, _RD, _RCODE = 0x8000, 0x7800, 0x0200, 0x0100, 0x000F
MAX_ANSWERS = 64
"""Of the type asked for."""

_LONGEST_NAME = 255
_MAX_HOPS = 16
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"')


@dataclass(frozen=True, slots=True)
class Response:
    """`answers`: the records of the type asked for, in the form of `canonical`."""

    rcode: str
    truncated: bool
    answers: tuple[str, ...]


def query(id_: int, name: str, record: str) -> bytes:
    return _HEADER.pack(id_, _RD, 1, 0, 0, 0) + _question(name, record)


def parse_response(message: bytes, id_: int, name: str, record: str) -> Response:
    """Raises `ProbeFailure` for what isn't a response to this very question."""
    if len(message) < _HEADER.size:
        raise _bad(f"{len(message)} bytes")
    got, flags, questions, answers, _, _ = _HEADER.unpack_from(message)
    if got != id_:
        raise ProbeFailure(Reason.WRONG_DNS_ID, f"id {got}, asked with {id_}")
    if not flags & _QR or flags & _OPCODE:
        raise _bad("not the response to a query")
    rcode = flags & _RCODE
    offset = _skip_question(message, questions, rcode, _question(name, record))
    found = _answers(message, offset, answers, record, bool(flags & _TC))
    return Response(RCODES[rcode] if rcode < len(RCODES) else f"rcode{rcode}", bool(flags & _TC), found)


@functools.lru_cache(maxsize=4096)
def canonical(record: str, text: str) -> str:
    """A record's data in presentation form, so that equal data give equal text: names in lower case with
    the last dot, addresses in their shortest form, the strings of a TXT record put together.
    """
    if record in ("A", "AAAA"):
        try:
            return str(ip_address(text.strip()))
        except ValueError:
            return text
    if record == "TXT":
        pieces = _QUOTED.findall(text) if text.startswith('"') else None
        return text if pieces is None else re.sub(r"\\(.)", r"\1", "".join(pieces))
    fields = text.lower().split()
    for index in (0, 1) if record == "SOA" else (-1,):
        if -len(fields) <= index < len(fields) and not fields[index].endswith("."):
            fields[index] += "."
    return " ".join(fields)


@functools.lru_cache(maxsize=4096)
def _question(name: str, record: str) -> bytes:
    labels = [label.encode("ascii") for label in name.rstrip(".").split(".") if label]
    encoded = b"".join(bytes([len(label)]) + label for label in labels)
    return encoded + b"\0" + struct.pack("!HH", RECORDS[record], _IN)


def _bad(detail: str) -> ProbeFailure:
    return ProbeFailure(Reason.BAD_DNS_MESSAGE, detail)


def _skip_question(message: bytes, questions: int, rcode: int, expected: bytes) -> int:
    """Where the answers begin. Who refuses to answer may leave the question out."""
    offset = _HEADER.size
    if questions == 0 and rcode:
        return offset
    end = offset + len(expected)
    if questions != 1 or message[offset:end].lower() != expected.lower():
        raise ProbeFailure(Reason.WRONG_DNS_QUESTION, "the response is to another question")
    return end


def _answers(message: bytes, offset: int, count: int, record: str, truncated: bool) -> tuple[str, ...]:
    """Those of the type and class asked for, whatever their name: aliases lead there."""
    found: list[str] = []
    for _ in range(count):
        if len(found) == MAX_ANSWERS:
            break
        if truncated and offset >= len(message):  # counted, but left out
            break
        offset = _skip_name(message, offset)
        if offset + _RECORD.size > len(message):
            raise _bad("ends within a record")
        type_, class_, _, length = _RECORD.unpack_from(message, offset)
        start, offset = offset + _RECORD.size, offset + _RECORD.size + length
        if offset > len(message):
            raise _bad("ends within a record's data")
        if type_ == RECORDS[record] and class_ == _IN:
            found.append(_READERS[record](message, start, offset))
    return tuple(found)


def _skip_name(message: bytes, offset: int) -> int:
    """Where the name ends; where a pointer in it leads doesn't matter."""
    while offset < len(message):
        size = message[offset]
        if size >= 0xC0:
            return offset + 2
        if size > 63:
            raise _bad(f"a label of type {size >> 6}")
        offset += 1 + size
        if not size:
            return offset
    raise _bad("ends within a name")


def _name(message: bytes, offset: int) -> tuple[str, int]:
    """The name at `offset` in lower case, and where it ends there (RFC 1035 section 4.1.4)."""
    labels: list[str] = []
    length, after, hops = 0, 0, 0
    while True:
        if offset >= len(message):
            raise _bad("ends within a name")
        size = message[offset]
        if size >= 0xC0:
            if offset + 2 > len(message):
                raise _bad("ends within a pointer")
            after = after or offset + 2
            offset = (size & 0x3F) << 8 | message[offset + 1]
            hops += 1
            if hops > _MAX_HOPS:
                raise _bad(f"more than {_MAX_HOPS} pointers in a name")
            continue
        if size > 63:
            raise _bad(f"a label of type {size >> 6}")
        length += size + 1
        if length > _LONGEST_NAME or offset + 1 + size > len(message):
            raise _bad("a name that is too long")
        offset += 1 + size
        if not size:
            return "".join(labels) or ".", after or offset
        labels.append(_label(message[offset - size : offset]))


def _label(label: bytes) -> str:
    text = label.decode("latin-1").lower()
    if text.isascii() and text.replace("-", "").replace("_", "").isalnum():
        return text + "."
    escaped = (f"\\{c}" if c in '."\\' else c if "!" <= c <= "~" else f"\\{ord(c):03}" for c in text)
    return "".join(escaped) + "."


def _read_address(message: bytes, start: int, end: int) -> str:
    data = message[start:end]
    if len(data) == 4:
        return str(IPv4Address(data))
    if len(data) == 16:
        return str(IPv6Address(data))
    raise _bad(f"an address of {len(data)} bytes")


def _read_fields(layout: str, message: bytes, start: int, end: int) -> str:
    """Numbers ("H": 16 bits, "I": 32 bits) and names ("n"), which fill the data exactly."""
    fields, offset = [], start
    for kind in layout:
        if kind == "n":
            name, offset = _name(message, offset)
            fields.append(name)
            continue
        size = struct.calcsize("!" + kind)
        if offset + size > end:
            raise _bad("a record's data is too short")
        fields.append(str(int.from_bytes(message[offset : offset + size], "big")))
        offset += size
    if offset != end:
        raise _bad("a record's data has another length than it says")
    return " ".join(fields)


def _read_text(message: bytes, start: int, end: int) -> str:
    parts, offset = [], start
    while offset < end:
        after = offset + 1 + message[offset]
        if after > end:
            raise _bad("a text is longer than its record")
        parts.append(message[offset + 1 : after])
        offset = after
    return b"".join(parts).decode("latin-1")


_READERS: dict[str, Callable[[bytes, int, int], str]] = {
    "A": _read_address,
    "AAAA": _read_address,
    "NS": functools.partial(_read_fields, "n"),
    "CNAME": functools.partial(_read_fields, "n"),
    "PTR": functools.partial(_read_fields, "n"),
    "MX": functools.partial(_read_fields, "Hn"),
    "SRV": functools.partial(_read_fields, "HHHn"),
    "SOA": functools.partial(_read_fields, "nnIIIII"),
    "TXT": _read_text,
}
