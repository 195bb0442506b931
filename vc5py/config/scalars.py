"""The types of single values in the configuration: addresses, ports, seconds, names and the like.

Must not know: keys, files. Every type says in one phrase what it expects, whatever is wrong with a value;
that phrase is the message of a pydantic error of type `EXPECTED`. Invariant: no value that passes can carry
a line break or another control character into a protocol, a log or an API.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from ipaddress import IPv4Address, ip_network
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    Discriminator,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    PlainValidator,
    Tag,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WithJsonSchema,
    WrapValidator,
)
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from vc5py.config.ports import PORTS
from vc5py.config.view import parsed_address
from vc5py.limits import MAX_ESTABLISHED_S
from vc5py.model import (
    AdminState,
    BelowNeed,
    ForwardMode,
    IPAddress,
    IPNetwork,
    MulticastGroup,
    Protocol,
    Scheduling,
    Standby,
    Unknown,
)

EXPECTED = "expected"
"""Type of the errors raised here; their message is what was expected."""

T = TypeVar("T")


def expected(what: str, words: Iterable[str] = ()) -> PydanticCustomError:
    """The error of a value that isn't `what`; `words` are those it may have been meant to be."""
    return PydanticCustomError(EXPECTED, "{what}", {"what": what, "words": tuple(words)})


def expects(what: str, words: Iterable[str] = ()) -> WrapValidator:
    """Words whatever is wrong with a value in one way: what was expected instead."""

    def validate(value: Any, inner: ValidatorFunctionWrapHandler) -> Any:
        try:
            return inner(value)
        except ValidationError:
            raise expected(what, words) from None

    return WrapValidator(validate)


# Keys that may be left out, and values that may be lists.


@dataclass(frozen=True)
class _Given:
    """A key may be left out, but one with nothing after it is an oversight: null is refused."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_before_validator_function(self._refuse_nothing, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        described = handler(schema)
        choices = [choice for choice in described.pop("anyOf", []) if choice != {"type": "null"}]
        if len(choices) == 1:
            return {**described, **choices[0]}
        return {**described, "anyOf": choices} if choices else described

    @staticmethod
    def _refuse_nothing(value: Any) -> Any:
        if value is None:
            raise expected("a value, or no such key")
        return value


Optionally = Annotated[T | None, _Given()]
NonEmpty = Annotated[list[T], Field(min_length=1)]
# The tags appear in the places of pydantic's errors, so they are unlike any key of the language.
OneOrMore = Annotated[
    Annotated[T, Tag("<one>")] | Annotated[list[T], Field(min_length=1), Tag("<many>")],
    Discriminator(lambda value: "<many>" if isinstance(value, list) else "<one>"),
]


def _plain(pattern: re.Pattern[str]) -> str:
    """The pattern as JSON Schema has it: anchored, and without Python's names of groups."""
    return f"^{re.sub(r'[(][?]P<[a-z0-9]+>', '(?:', pattern.pattern)}$"


# Addresses. None takes a zone (`%eth0`): nothing that uses them could.


def _address(text: Any) -> IPAddress | None:
    try:
        return parsed_address(text) if isinstance(text, str) and "%" not in text else None
    except ValueError:
        return None


def _is_host(address: IPAddress) -> bool:
    broadcast = address == IPv4Address("255.255.255.255")
    return not (address.is_multicast or address.is_unspecified or broadcast)


def _host_address(value: Any) -> IPAddress:
    address = _address(value)
    if address is None or not _is_host(address):
        raise expected("the IPv4 or IPv6 address of a host")
    return address


def _reachable_address(value: Any) -> IPAddress:
    """What can be reached without being told by which interface."""
    address = _address(value)
    if address is None or not _is_host(address) or (address.version == 6 and address.is_link_local):
        raise expected("the IPv4 or IPv6 address of a host, not link-local (fe80::...)")
    return address


def _local_address(value: Any) -> IPAddress:
    address = _address(value)
    if address is None or address.is_multicast:
        raise expected("an IPv4 or IPv6 address to listen on")
    return address


@lru_cache(maxsize=1 << 17)
def _forwarded(text: str) -> IPAddress | None:
    """Addresses that mean a host only to itself, or only on one link, can't be forwarded to."""
    address = _address(text)
    local = address is not None and (address.is_loopback or (address.version == 6 and address.is_link_local))
    return address if address is not None and not local and _is_host(address) else None


def _forwarded_address(value: Any) -> IPAddress:
    address = _forwarded(value) if isinstance(value, str) else None
    if address is None:
        raise expected("the IPv4 or IPv6 address of a host, not loopback or link-local")
    return address


_GROUP = re.compile(r"(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<v4>[0-9.]+)):(?P<port>[0-9]{1,5})")


def _multicast_group(value: Any) -> MulticastGroup:
    match = _GROUP.fullmatch(value) if isinstance(value, str) else None
    if match:
        address, port = _address(match["v6"] or match["v4"]), int(match["port"])
        as_written = address is not None and address.version == (6 if match["v6"] else 4)
        if address is not None and as_written and address.is_multicast and 1 <= port <= 65535:
            return MulticastGroup(address, port)
    raise expected("a multicast address and port, such as '224.0.0.1:9999' or '[ff02::1]:9999'")


_ADDRESS = WithJsonSchema({"type": "string", "anyOf": [{"format": "ipv4"}, {"format": "ipv6"}]})

HostAddress = Annotated[IPAddress, PlainValidator(_host_address), _ADDRESS]
ReachableAddress = Annotated[IPAddress, PlainValidator(_reachable_address), _ADDRESS]
LocalAddress = Annotated[IPAddress, PlainValidator(_local_address), _ADDRESS]
ForwardedAddress = Annotated[IPAddress, PlainValidator(_forwarded_address), _ADDRESS]
Multicast = Annotated[
    MulticastGroup,
    PlainValidator(_multicast_group),
    WithJsonSchema(
        {"type": "string", "pattern": _plain(_GROUP), "examples": ["224.0.0.1:9999", "[ff02::1]:9999"]}
    ),
]


# VLANs.

_VLAN = re.compile(r"(?:(?P<outer>[1-9][0-9]{0,3})\.)?(?P<id>[1-9][0-9]{0,3})")
_MOST_VLAN = 4094


def _prefix(value: Any) -> IPNetwork:
    try:
        if isinstance(value, str) and "/" in value and "%" not in value:
            return ip_network(value)
    except ValueError:
        pass
    raise expected("an IPv4 or IPv6 prefix without bits behind its length, such as '10.1.10.0/24'")


def _vlan_key(value: Any) -> tuple[int, int]:
    """(802.1ad tag or 0, 802.1Q tag)."""
    match = _VLAN.fullmatch(value) if isinstance(value, str) else None
    if match:
        outer, inner = int(match["outer"] or 0), int(match["id"])
        if max(outer, inner) <= _MOST_VLAN:
            return outer, inner
    raise expected("a VLAN from 1 to 4094, or 802.1ad and 802.1Q tags such as '100.10'")


Prefix = Annotated[
    IPNetwork,
    PlainValidator(_prefix),
    WithJsonSchema(
        {
            "type": "string",
            "pattern": "^[0-9A-Fa-f:.]+/[0-9]{1,3}$",
            "examples": ["10.1.10.0/24", "fd00:10::/64"],
        }
    ),
]
VlanKey = Annotated[
    tuple[int, int],
    PlainValidator(_vlan_key),
    WithJsonSchema({"type": "string", "pattern": _plain(_VLAN)}),
]


# Numbers. Booleans are no numbers, and integers do where a fraction may stand.


def _power_of_two(value: int) -> int:
    if value & (value - 1):
        raise ValueError("not a power of two")
    return value


Port = Annotated[int, Field(ge=1, le=65535), expects("a port number from 1 to 65535")]


def _named_port(value: Any) -> int:
    if isinstance(value, str) and value in PORTS:
        return PORTS[value]
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 65535:
        return value
    raise expected("a port number from 1 to 65535, or the name of one such as http", PORTS)


NamedPort = Annotated[
    int,
    PlainValidator(_named_port),
    WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 1, "maximum": 65535}, {"enum": [*PORTS]}]}),
]
AsNumber = Annotated[int, Field(ge=1, le=2**32 - 1), expects("an AS number from 1 to 4294967295")]
Count = Annotated[int, Field(ge=1, le=100), expects("a whole number from 1 to 100")]
Need = Annotated[int, Field(ge=1), expects("a whole number of reals, at least 1")]
FlowEntries = Annotated[
    int,
    Field(ge=1 << 10, le=1 << 26),
    AfterValidator(_power_of_two),
    expects("a power of two from 1024 to 67108864"),
]
Weight = Annotated[int, Field(ge=0, le=1000), expects("a whole number from 0 to 1000")]
Tier = Annotated[int, Field(ge=0, le=7), expects("a tier from 0 to 7")]
Dscp = Annotated[int, Field(ge=0, le=63), expects("a DSCP from 0 to 63")]
Mtu = Annotated[int, Field(ge=576, le=65535), expects("bytes from 576 to 65535")]
FlowTimeout = Annotated[
    int, Field(ge=1, le=MAX_ESTABLISHED_S), expects(f"whole seconds from 1 to {MAX_ESTABLISHED_S}")
]
Duration = Annotated[float, Field(ge=0, le=86400), expects("seconds from 0 to 86400")]
ProbeTime = Annotated[float, Field(ge=0.01, le=3600), expects("seconds from 0.01 to 3600")]
Penalty = Annotated[float, Field(ge=0.1, le=1000), expects("points from 0.1 to 1000, one for every fall")]
LongTime = Annotated[float, Field(ge=1, le=86400), expects("seconds from 1 to 86400")]


# Words.


class Fragments(StrEnum):
    """What happens to fragments of packets for a VIP."""

    FOLLOW = "follow"
    DROP = "drop"


def one_of(words: Iterable[str]) -> WrapValidator:
    *most, last = map(str, words)
    return expects(f"{', '.join(most)} or {last}", (*most, last))


# \p{C} holds control characters and invisible changes of direction; \p{Z} all kinds of spaces.
_SEEN, _SEEN_OR_SPACE = r"[^\p{C}\p{Z}]", r"[^\p{C}\p{Zl}\p{Zp}]"

ProtocolName = Annotated[Protocol, Field(strict=False), one_of(Protocol)]
ModeName = Annotated[ForwardMode, Field(strict=False), one_of(ForwardMode)]
SchedulingName = Annotated[Scheduling, Field(strict=False), one_of(Scheduling)]
UnknownName = Annotated[Unknown, Field(strict=False), one_of(Unknown)]
FragmentsName = Annotated[Fragments, Field(strict=False), one_of(Fragments)]
StateName = Annotated[AdminState, Field(strict=False), one_of(AdminState)]
StandbyName = Annotated[Standby, Field(strict=False), one_of(Standby)]
BelowNeedName = Annotated[BelowNeed, Field(strict=False), one_of(BelowNeed)]
Off = Annotated[Literal["off"], expects("a mapping, or off")]
TrueOrFalse = Annotated[bool, expects("true or false")]
Name = Annotated[
    str,
    Field(max_length=128, pattern=rf"^{_SEEN}(?:{_SEEN_OR_SPACE}*{_SEEN})?$"),
    expects("text of 1 to 128 printable characters on one line"),
    # Editors know no Unicode classes.
    WithJsonSchema({"type": "string", "maxLength": 128, "pattern": r"^\S(?:[^\r\n]*\S)?$"}),
]
Description = Annotated[
    str,
    Field(max_length=256, pattern=rf"^{_SEEN_OR_SPACE}*$"),
    expects("text of at most 256 printable characters on one line"),
    WithJsonSchema({"type": "string", "maxLength": 256, "pattern": r"^[^\r\n]*$"}),
]
