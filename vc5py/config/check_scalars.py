"""The types of single values in checks: status codes, headers, patterns, DNS names, bytes.

Must not know: keys, files, how a check is done. As in `scalars`, every type says in one phrase what it
expects; no value that passes can carry a line break into a request.
"""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import Field, PlainValidator, WithJsonSchema

from vc5py.config.scalars import expected, expects, one_of
from vc5py.model import CheckType, Protocol

_LABEL = "[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_METHODS = ("GET", "HEAD", "OPTIONS", "POST")
_MOST_TEXT = 1024
_MOST_PAYLOAD = 1200
"""With every header that may be around it, a datagram of so many bytes gets through anywhere."""

CheckTypeName = Annotated[CheckType, Field(strict=False), one_of(CheckType)]

# HTTP.

UrlPath = Annotated[
    str,
    Field(max_length=2048, pattern="^/[!-~]*$"),
    expects("a path that starts with '/', in visible ASCII characters (others percent-encoded)"),
]
UrlHost = Annotated[
    str,
    Field(max_length=259, pattern=rf"^{_LABEL}(?:\.{_LABEL})*(?::[0-9]{{1,5}})?$"),
    expects("a host name or IPv4 address, if need be with ':port'"),
]
Method = Annotated[
    str,
    Field(pattern=f"^(?:{'|'.join(_METHODS)})$"),
    expects(f"one of {', '.join(_METHODS)}", _METHODS),
    WithJsonSchema({"enum": list(_METHODS)}),
]

ANY = "any"
_LOWEST, _HIGHEST = 100, 599
_RANGE = re.compile(r"([1-5][0-9]{2})-([1-5][0-9]{2})")
_STATUS = "an HTTP status code from 100 to 599, a range such as '200-299', or any"


def _status(value: Any) -> frozenset[int]:
    """The codes that one item stands for."""
    if value == ANY:
        return frozenset(range(_LOWEST, _HIGHEST + 1))
    if isinstance(value, int) and not isinstance(value, bool) and _LOWEST <= value <= _HIGHEST:
        return frozenset({value})
    match = _RANGE.fullmatch(value) if isinstance(value, str) else None
    if match and int(match[1]) <= int(match[2]):
        return frozenset(range(int(match[1]), int(match[2]) + 1))
    raise expected(_STATUS)


Status = Annotated[
    frozenset[int],
    PlainValidator(_status),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer", "minimum": _LOWEST, "maximum": _HIGHEST},
                {"type": "string", "pattern": f"^(?:{_RANGE.pattern}|{ANY})$"},
            ]
        }
    ),
]

# A token of RFC 9110; what the request says of its own accord can't be said twice.
_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}"
_OWN_HEADERS = ("host", "connection", "content-length", "transfer-encoding")
_ANY_CASE = "|".join("".join(f"[{c}{c.upper()}]" if c.isalpha() else c for c in one) for one in _OWN_HEADERS)


def _header_name(value: Any) -> str:
    fits = isinstance(value, str) and re.fullmatch(_TOKEN, value)
    if not fits or value.lower() in _OWN_HEADERS:
        raise expected(
            "the name of a header, but Host (there is 'host'), Connection or one of the body's length"
        )
    return str(value)


HeaderName = Annotated[
    str,
    PlainValidator(_header_name),
    WithJsonSchema({"type": "string", "pattern": f"^(?!(?:{_ANY_CASE})$){_TOKEN}$"}),
]
HeaderValue = Annotated[
    str,
    Field(max_length=_MOST_TEXT, pattern="^(?:[!-~](?:[ -~]*[!-~])?)?$"),
    expects("text in visible ASCII characters (numbers in quotes), without spaces at its ends"),
]

BodyText = Annotated[
    str,
    Field(min_length=1, max_length=_MOST_TEXT),
    expects(f"text of 1 to {_MOST_TEXT} characters (numbers in quotes)"),
]


def _pattern(value: Any) -> str:
    what = f"a regular expression of at most {_MOST_TEXT} characters"
    if not isinstance(value, str) or not 0 < len(value) <= _MOST_TEXT:
        raise expected(what)
    # Only here: it loads RE2. What is matched in checks is what judges.
    from vc5py.checks.pattern import compile_pattern

    try:
        compile_pattern(value)
    except ValueError as error:
        raise expected(f"{what}, in the syntax of RE2: {error}") from None
    return value


BodyPattern = Annotated[
    str,
    PlainValidator(_pattern),
    WithJsonSchema({"type": "string", "minLength": 1, "maxLength": _MOST_TEXT, "format": "regex"}),
]
CaFile = Annotated[
    str,
    Field(max_length=1024, pattern=r"^/[^\x00-\x1f\x7f]+$"),
    expects("the absolute path of a file with certificates in PEM"),
]

# DNS.

RECORDS = ("A", "AAAA", "CNAME", "MX", "NS", "PTR", "SOA", "SRV", "TXT")
RCODES = (
    "noerror", "formerr", "servfail", "nxdomain", "notimp", "refused",
    "yxdomain", "yxrrset", "nxrrset", "notauth", "notzone",
)  # fmt: skip

Question = Annotated[
    str,
    Field(max_length=254, pattern=rf"^(?:\.|{_LABEL}(?:\.{_LABEL})*\.?)$"),
    expects("a domain name, or '.'"),
]
Record = Annotated[str, Field(pattern=f"^(?:{'|'.join(RECORDS)})$"), one_of(RECORDS),
                   WithJsonSchema({"enum": list(RECORDS)})]  # fmt: skip
Rcode = Annotated[str, Field(pattern=f"^(?:{'|'.join(RCODES)})$"), one_of(RCODES),
                  WithJsonSchema({"enum": list(RCODES)})]  # fmt: skip
Transport = Annotated[Protocol, Field(strict=False), one_of(Protocol)]
Answer = Annotated[
    str,
    Field(min_length=1, max_length=512, pattern="^[ -~]+$"),
    expects("an answer as text in ASCII, such as '192.0.2.1' or '10 mail.example.com.'"),
]

# UDP.

_HEX = f"^(?:[0-9A-Fa-f]{{2}}){{0,{_MOST_PAYLOAD}}}$"


def _payload(value: Any) -> bytes:
    if isinstance(value, str) and len(value.encode()) <= _MOST_PAYLOAD:
        return value.encode()
    raise expected(f"text of at most {_MOST_PAYLOAD} bytes (numbers in quotes)")


def _hexadecimal(value: Any) -> bytes:
    if isinstance(value, str) and re.fullmatch(_HEX, value):
        return bytes.fromhex(value)
    raise expected(f"at most {_MOST_PAYLOAD} bytes, each as two hexadecimal digits, in quotes")


Payload = Annotated[
    bytes, PlainValidator(_payload), WithJsonSchema({"type": "string", "maxLength": _MOST_PAYLOAD})
]
HexPayload = Annotated[
    bytes, PlainValidator(_hexadecimal), WithJsonSchema({"type": "string", "pattern": _HEX})
]

# Judging the results.

_QUORUM = re.compile(r"([1-9][0-9]?|100) of ([1-9][0-9]?|100)")


def _quorum(value: Any) -> tuple[int, int]:
    match = _QUORUM.fullmatch(value) if isinstance(value, str) else None
    if match and int(match[1]) <= int(match[2]):
        return int(match[1]), int(match[2])
    raise expected("so many of the last probes, as in '3 of 5', of 100 at most")


Quorum = Annotated[
    tuple[int, int],
    PlainValidator(_quorum),
    WithJsonSchema({"type": "string", "pattern": f"^{_QUORUM.pattern}$", "examples": ["3 of 5"]}),
]
