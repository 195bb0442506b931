"""The types of single values about BGP: communities, prefix rules, hops, times.

Must not know: keys, files. As in `scalars`, every type says in one phrase what it expects; no value that
passes can carry a line break or a second word into a command.
"""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv6Address, ip_network
from typing import Annotated, Any

from pydantic import AfterValidator, Discriminator, Field, PlainValidator, Tag, WithJsonSchema

from vc5py.config.scalars import ForwardedAddress, expected, expects, one_of
from vc5py.config.view import parsed_address
from vc5py.model import IPAddress, PrefixRule, VipPolicy

HoldTime = Annotated[int, Field(ge=3, le=65535), expects("whole seconds from 3 to 65535")]
RestartTime = Annotated[int, Field(ge=0, le=4095), expects("whole seconds from 0 to 4095")]
Hops = Annotated[int, Field(ge=1, le=254), expects("a number of hops from 1 to 254")]
Attribute32 = Annotated[int, Field(ge=0, le=2**32 - 1), expects("a number from 0 to 4294967295")]
Prepend = Annotated[int, Field(ge=0, le=16), expects("a number from 0 to 16")]
Milliseconds = Annotated[int, Field(ge=10, le=60000), expects("milliseconds from 10 to 60000")]
Multiplier = Annotated[int, Field(ge=1, le=255), expects("a number from 1 to 255")]
BfdSwitch = Annotated[bool, expects("true, false or a mapping")]
PolicyName = Annotated[VipPolicy, Field(strict=False), one_of(VipPolicy)]
FamilyName = Annotated[
    str, Field(pattern="^ipv[46]$"), expects("ipv4 or ipv6"), WithJsonSchema({"enum": ["ipv4", "ipv6"]})
]
VipKey = Annotated[
    ForwardedAddress, WithJsonSchema({"type": "string", "pattern": "^[0-9.]+$|^[0-9A-Fa-f:.]+$"})
]
Variable = Annotated[
    str,
    Field(max_length=128, pattern="^[A-Za-z_][A-Za-z0-9_]*$"),
    expects("the name of a variable of the environment"),
]
SecretFile = Annotated[
    str, Field(max_length=4096, pattern=r"^/[^\x00-\x1f\x7f]+$"), expects("an absolute path")
]


def _of_version(version: int) -> Any:
    def validate(value: Any) -> IPAddress:
        try:
            address = parsed_address(value) if isinstance(value, str) and "%" not in value else None
        except ValueError:
            address = None
        wrong = address is None or address.version != version or address.is_multicast
        if address is None or wrong or address.is_unspecified or address.is_loopback:
            raise expected(f"the IPv{version} address of a host")
        return address

    return PlainValidator(validate)


NextHop4 = Annotated[IPv4Address, _of_version(4), WithJsonSchema({"type": "string", "format": "ipv4"})]
NextHop6 = Annotated[IPv6Address, _of_version(6), WithJsonSchema({"type": "string", "format": "ipv6"})]

# Communities: RFC 1997, RFC 8092, and the names that IANA has for some.

_COMMUNITIES = {
    "graceful-shutdown": (65535, 0),
    "blackhole": (65535, 666),
    "no-export": (65535, 65281),
    "no-advertise": (65535, 65282),
    "no-export-subconfed": (65535, 65283),
    "no-peer": (65535, 65284),
}
_NUMBERS = re.compile(r"[0-9]{1,10}(?::[0-9]{1,10}){1,2}")
_MOST_PLAIN, _MOST_LARGE = 2**16 - 1, 2**32 - 1
_PAIR = 2


def _community(value: Any) -> tuple[int, ...]:
    """Two numbers, or three of a large one."""
    if isinstance(value, str) and value in _COMMUNITIES:
        return _COMMUNITIES[value]
    if isinstance(value, str) and _NUMBERS.fullmatch(value):
        numbers = tuple(map(int, value.split(":")))
        if max(numbers) <= (_MOST_PLAIN if len(numbers) == _PAIR else _MOST_LARGE):
            return numbers
    raise expected(
        "a community such as '65000:100', a large one such as '65000:1:2', or a name such as no-export",
        _COMMUNITIES,
    )


Community = Annotated[
    tuple[int, ...],
    PlainValidator(_community),
    WithJsonSchema(
        {"anyOf": [{"type": "string", "pattern": f"^{_NUMBERS.pattern}$"}, {"enum": [*_COMMUNITIES]}]}
    ),
]

# So that what is said of a route fits into one command, and into one UPDATE message.
MOST_COMMUNITIES = 64


def _bounded(value: list[Any]) -> list[Any]:
    if len(value) > MOST_COMMUNITIES:
        raise expected(f"at most {MOST_COMMUNITIES} communities, not {len(value)}")
    return value


Communities = Annotated[
    Annotated[Community, Tag("<one>")]
    | Annotated[
        list[Community],
        Field(min_length=1, json_schema_extra={"maxItems": MOST_COMMUNITIES}),
        AfterValidator(_bounded),
        Tag("<many>"),
    ],
    Discriminator(lambda value: "<many>" if isinstance(value, list) else "<one>"),
]

# Filters.

_RULE = re.compile(
    r"(?P<prefix>[0-9A-Fa-f:.]+/[0-9]{1,3})(?: ge (?P<ge>[0-9]{1,3}))?(?: le (?P<le>[0-9]{1,3}))?"
)


def _prefix_rule(value: Any) -> PrefixRule:
    match = _RULE.fullmatch(value) if isinstance(value, str) else None
    if match:
        try:
            prefix = ip_network(match["prefix"])
        except ValueError:
            pass
        else:
            shortest = int(match["ge"]) if match["ge"] else prefix.prefixlen
            longest = int(match["le"]) if match["le"] else prefix.max_prefixlen
            if prefix.prefixlen <= shortest <= longest <= prefix.max_prefixlen:
                return PrefixRule(prefix, shortest, longest)
    raise expected("a prefix, if need be with lengths of what is in it, such as '192.0.2.0/24 ge 32 le 32'")


Rule = Annotated[
    PrefixRule,
    PlainValidator(_prefix_rule),
    WithJsonSchema(
        {
            "type": "string",
            "pattern": f"^{re.sub(r'[(][?]P<[a-z0-9]+>', '(?:', _RULE.pattern)}$",
            "examples": ["192.0.2.0/24", "2001:db8::/32 ge 128"],
        }
    ),
]
