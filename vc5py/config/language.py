"""The language of the configuration file: its keys, one model per mapping, and how a tree is held against it.

Must not know: files, and anything that takes two places of the file to judge (`references` does). Invariant:
where `validate` returns a value and reports nothing, types and ranges are right: `build` can't fail.

The models are the one definition of the language: the JSON Schema and the reference are generated from them,
hence a description on every key. Validation is strict: no value is converted to please a type.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from inspect import get_annotations
from ipaddress import ip_address
from typing import Annotated, Any

from pydantic import BaseModel, Discriminator, Field, Tag, ValidationError
from pydantic.fields import FieldInfo

from vc5py.config import bgp, cluster
from vc5py.config.bgp import RhiSpec
from vc5py.config.bgp_scalars import PolicyName, VipKey
from vc5py.config.check_scalars import (
    Answer,
    BodyPattern,
    BodyText,
    CaFile,
    CheckTypeName,
    HeaderName,
    HeaderValue,
    HexPayload,
    Method,
    Payload,
    Question,
    Quorum,
    Rcode,
    Record,
    Status,
    Transport,
    UrlHost,
    UrlPath,
)
from vc5py.config.cluster import ClusterSpec
from vc5py.config.mapping import Mapping as _Mapping
from vc5py.config.report import WHOLE_FILE, Node, Path, Report, about, mismatch
from vc5py.config.scalars import (
    EXPECTED,
    BelowNeedName,
    Count,
    Description,
    Dscp,
    Duration,
    FlowEntries,
    FlowTimeout,
    ForwardedAddress,
    Fragments,
    FragmentsName,
    LocalAddress,
    LongTime,
    ModeName,
    Mtu,
    Multicast,
    Name,
    NamedPort,
    Need,
    NonEmpty,
    Off,
    OneOrMore,
    Optionally,
    Penalty,
    Port,
    Prefix,
    ProbeTime,
    ProtocolName,
    SchedulingName,
    StandbyName,
    StateName,
    Tier,
    TrueOrFalse,
    UnknownName,
    VlanKey,
    Weight,
)
from vc5py.config.yaml_tree import Tree
from vc5py.model import (
    Check,
    CheckType,
    Config,
    Damping,
    DnsQuestion,
    HttpRequest,
    Protocol,
    Real,
    Service,
    Timeouts,
)

# The defaults are those of the model.
_CONFIG = Config(services=())
_CHECK = Check(name="", type=CheckType.TCP, port=1)
_HTTP = HttpRequest()
_DNS = DnsQuestion()
_REAL = Real(ip_address("0.0.0.0"))
_FORWARDING = _REAL.forwarding
_SERVICE = Service("", "", (), (), (), (), need=1, checks=())
_DAMPING = Damping()
_TIMEOUTS = Timeouts()


class _Probing(_Mapping):
    """How often to probe and how to judge the results; what is left out is as in the level above."""

    interval: Optionally[ProbeTime] = Field(None, description="Seconds between probes.")
    timeout: Optionally[ProbeTime] = Field(
        None, description="Seconds until a probe without an end has failed."
    )
    rise: Optionally[Count] = Field(None, description="Successes in a row that bring a real up.")
    fall: Optionally[Count] = Field(None, description="Failures in a row that take a real down.")
    quorum: Optionally[Quorum] = Field(
        None,
        alias="pass",
        description="In place of `rise` and `fall`: up while so many of the last probes pass (`3 of 5`).",
    )


class DampingSpec(_Mapping):
    """When a real that flaps is kept out. Every time it goes down costs a point, and points decay."""

    suppress: Optionally[Penalty] = Field(None, description="Kept out from so many points on.")
    reuse: Optionally[Penalty] = Field(None, description="Let in again when they have fallen to so many.")
    half_life: Optionally[LongTime] = Field(None, description="Seconds in which points halve.")
    longest: Optionally[LongTime] = Field(None, description="Kept out for so many seconds at most.")


DampingItem = Annotated[
    Annotated[Off, Tag("<off>")] | Annotated[DampingSpec, Tag("<mapping>")],
    Discriminator(lambda value: "<mapping>" if isinstance(value, dict) else "<off>"),
]


class _Serving(_Probing):
    """How a service is served; what is left out is as in the level above."""

    mode: Optionally[ModeName] = Field(
        None, description="How packets get to the reals: l2, ipip, gre, fou, gue or dscp."
    )
    tunnel_port: Optionally[Port] = Field(None, description="UDP port of the tunnel (fou, gue).")
    mtu: Optionally[Mtu] = Field(
        None, description="The largest packet that gets to the reals, outer headers included."
    )
    schedule: Optionally[SchedulingName] = Field(
        None, description="How a new flow gets its real: maglev, sticky or least-conns."
    )
    unknown: Optionally[UnknownName] = Field(
        None,
        description="Packets for a VIP that are for no service of it: drop them, or pass them to the host.",
    )
    need: Optionally[Need] = Field(
        None, description="The service is healthy while at least so many reals are."
    )
    below_need: Optionally[BelowNeedName] = Field(
        None,
        description="With fewer healthy reals than `need`: withdraw the VIPs, or serve with what is left.",
    )
    min_up: Optionally[Need] = Field(
        None, description="The next tier of reals stands in when fewer of those before it are healthy."
    )
    standby: Optionally[StandbyName] = Field(
        None, description="How the next tier stands in: replace the tiers before it, or join them."
    )
    slow_start: Optionally[Duration] = Field(
        None, description="Seconds in which the share of a real that came up grows to its weight."
    )
    damping: Optionally[DampingItem] = Field(
        None, description="When a real that flaps is kept out: a mapping, or off."
    )


class DefaultsSpec(_Serving):
    """What holds for all services, and their checks, that don't say otherwise."""

    announce: Optionally[PolicyName] = Field(
        None, description="When a VIP is announced: while all services on it are healthy, or any is."
    )


class CheckSpec(_Probing):
    """A check: how to find out whether a real serves the VIP. A healthy real passes all of its service."""

    name: Name = Field(description="Names the check in logs and metrics; unique in its service.")
    type: CheckTypeName = Field(
        description="What is probed: an HTTP(S) response, a TCP connection, the answer to a SYN or a DNS"
        " question, or a UDP reply."
    )
    port: Optionally[NamedPort] = Field(
        None, description="Port to probe, or its name. Default: the service's first port."
    )
    path: UrlPath = Field(_HTTP.path, description="Path and query to request (http, https).")
    host: Optionally[UrlHost] = Field(
        None, description="Host header, and server name in TLS (http, https). Default: the VIP."
    )
    method: Method = Field(_HTTP.method, description="Method of the request (http, https).")
    headers: dict[HeaderName, HeaderValue] = Field(
        {}, description="Further headers of the request (http, https)."
    )
    expect: OneOrMore[Status] = Field(
        [frozenset({code}) for code in sorted(_HTTP.expect)],
        description="Accepted status code, range such as 200-299, a list of them, or any (http, https).",
    )
    body: Optionally[BodyText] = Field(
        None, description="Text that the body has to contain (http, https). Default: none."
    )
    body_regex: Optionally[BodyPattern] = Field(
        None, description="Pattern that the body has to match somewhere (http, https). Default: none."
    )
    verify: TrueOrFalse = Field(
        _HTTP.verify, description="Whether the certificate must be good for the host (https)."
    )
    ca_file: Optionally[CaFile] = Field(
        None, description="Authorities to verify by, a PEM file (https). Default: the system's."
    )
    question: Question = Field(_DNS.name, description="The name to ask for (dns).")
    record: Record = Field(_DNS.record, description="The type of record to ask for (dns).")
    transport: Transport = Field(_DNS.transport, description="Ask by udp or tcp (dns).")
    answer: Optionally[Answer] = Field(
        None, description="What one of the answers must be (dns). Default: anything, or nothing."
    )
    rcode: Rcode = Field(_DNS.rcode, description="The response code, by name in lower case (dns).")
    payload: Optionally[Payload] = Field(
        None, description="Text of the datagram to send (udp). Default: an empty datagram."
    )
    payload_hex: Optionally[HexPayload] = Field(
        None, description="The same in hexadecimal digits, in place of `payload` (udp). Default: none."
    )
    reply: Optionally[Payload] = Field(
        None, description="What the reply must begin with (udp). Default: any reply is good."
    )
    reply_hex: Optionally[HexPayload] = Field(
        None, description="The same in hexadecimal digits, in place of `reply` (udp). Default: none."
    )


class RealSpec(_Mapping):
    """A real that is not quite like the others of its list; what is left out is as in the service."""

    address: ForwardedAddress = Field(description="Address of the real.")
    weight: Weight = Field(_REAL.weight, description="Its share of new flows; 0: none.")
    tier: Tier = Field(_REAL.tier, description="0 serves, a higher one stands by for those before it.")
    state: StateName = Field(
        _REAL.admin, description="enabled, draining (no new flows) or disabled (no packets)."
    )
    mode: Optionally[ModeName] = Field(None, description="How packets get there. Default: as in the service.")
    tunnel_port: Optionally[Port] = Field(
        None, description="UDP port of the tunnel (fou, gue). Default: as in the service."
    )
    dscp: Optionally[Dscp] = Field(None, description="DSCP (mode dscp). Default: as in the service.")
    mtu: Optionally[Mtu] = Field(
        None, description="The largest packet that gets there. Default: as in the service."
    )


RealItem = Annotated[
    Annotated[ForwardedAddress, Tag("<address>")] | Annotated[RealSpec, Tag("<mapping>")],
    Discriminator(lambda value: "<mapping>" if isinstance(value, dict) else "<address>"),
]


class SorrySpec(_Mapping):
    """Reals that serve while fewer of the service's own than `need` are healthy. They take its settings."""

    real: Optionally[OneOrMore[Name]] = Field(
        None, description="The group of reals, or a list of groups. Default: `reals` has them."
    )
    reals: Optionally[NonEmpty[RealItem]] = Field(
        None, description="Reals of its own, as in a group. Default: `real` has them."
    )
    checks: Optionally[list[CheckSpec]] = Field(
        None, description="Their checks. Default: one of type tcp, to the service's first port."
    )


class ServiceSpec(_Serving):
    """A service: the VIPs, ports and protocols that clients connect to, and the reals that answer."""

    name: Name = Field(description="Names the service in logs, metrics and the console; unique.")
    desc: Description = Field("", description="Free text for people.")
    addr: OneOrMore[ForwardedAddress] = Field(description="The VIP, or a list of VIPs.")
    port: OneOrMore[NamedPort] = Field(description="The port or its name, or a list of them.")
    protocol: OneOrMore[ProtocolName] = Field(
        Protocol.TCP, description="The transport protocol (tcp, udp), or a list of both."
    )
    real: Optionally[OneOrMore[Name]] = Field(
        None, description="The group of reals that serve it, or a list of groups. Default: `reals` has them."
    )
    reals: Optionally[NonEmpty[RealItem]] = Field(
        None, description="Reals of its own, as in a group, beside `real` or in place of it. Default: none."
    )
    checks: list[CheckSpec] = Field(
        description="The checks of its reals. An empty list means: take every real as healthy, unchecked."
    )
    dscp: Optionally[Dscp] = Field(
        None,
        description="The DSCP that tells the reals which VIP it was; mode dscp requires it. Default: none.",
    )
    sorry: Optionally[SorrySpec] = Field(
        None, description="Who serves while fewer reals than `need` are healthy. Default: nobody."
    )


class VipSpec(_Mapping):
    """What holds for one VIP, whatever services are on it."""

    announce: Optionally[PolicyName] = Field(
        None,
        description="Announced while all services on it are healthy, or any is. Default: as in `defaults`.",
    )


class MetricsSpec(_Mapping):
    """Where metrics are served over HTTP."""

    address: Optionally[LocalAddress] = Field(None, description="Address to listen on. Default: all of them.")
    port: Port = Field(_CONFIG.metrics_port, description="TCP port to listen on.")


class TimeoutsSpec(_Mapping):
    """Seconds that an idle flow keeps its entry in the flow table against newcomers."""

    unproven: FlowTimeout = Field(
        _TIMEOUTS.unproven_s, description="Flows that were not yet seen in three different seconds."
    )
    established: FlowTimeout = Field(_TIMEOUTS.established_s, description="TCP connections.")
    closing: FlowTimeout = Field(_TIMEOUTS.closing_s, description="TCP connections after FIN or RST.")
    udp: FlowTimeout = Field(_TIMEOUTS.udp_s, description="UDP flows.")


class ConfigSpec(_Mapping):
    """The whole configuration."""

    learn: Duration = Field(
        _CONFIG.learn_s,
        description="Seconds to learn the peers' flows after a start, before VIPs are announced.",
    )
    multicast: Optionally[Multicast] = Field(
        None, description="Multicast address and port for sharing flows with other balancers. Default: none."
    )
    cluster: Optionally[ClusterSpec] = Field(
        None, description="The balancers that share flows. Default: they are not shared."
    )
    rhi: Optionally[RhiSpec] = Field(None, description="BGP. Default: VIPs are not announced.")
    metrics: MetricsSpec = Field(MetricsSpec(), description="The metrics endpoint.")
    flows: FlowEntries = Field(_CONFIG.flows, description="Entries in the flow table, a power of two.")
    fragments: FragmentsName = Field(
        Fragments.FOLLOW, description="Fragments: follow the first one to its real, or drop."
    )
    timeouts: TimeoutsSpec = Field(TimeoutsSpec(), description="When idle flows may be forgotten.")
    vlans: Optionally[dict[VlanKey, OneOrMore[Prefix]]] = Field(
        None,
        description="Which reals are behind which VLAN tag: a prefix, or a list of them, by VLAN."
        " Default: frames keep their tags.",
    )
    defaults: DefaultsSpec = Field(
        DefaultsSpec(), description="Settings of all services, and their checks, that don't say otherwise."
    )
    services: list[ServiceSpec] = Field(description="The services.")
    reals: dict[Name, NonEmpty[RealItem]] = Field({}, description="Groups of reals by name.")
    vips: dict[VipKey, VipSpec] = Field(
        {}, description="What holds for single VIPs, by address; services say which VIPs there are."
    )


DEFAULTS: dict[str, Any] = {
    "interval": _CHECK.interval_s,
    "timeout": _CHECK.timeout_s,
    "rise": _CHECK.rise,
    "fall": _CHECK.fall,
    "mode": _FORWARDING.mode,
    "mtu": _FORWARDING.mtu,
    "schedule": _SERVICE.scheduling,
    "unknown": _SERVICE.unknown,
    "need": _SERVICE.need,
    "below_need": _SERVICE.below_need,
    "min_up": _SERVICE.min_up,
    "standby": _SERVICE.standby,
    "slow_start": _SERVICE.slow_start_s,
    "suppress": _DAMPING.suppress,
    "reuse": _DAMPING.reuse,
    "half_life": _DAMPING.half_life_s,
    "longest": _DAMPING.longest_s,
    "announce": _CONFIG.vip_policy,
}
"""What holds where no level says anything, by key of `DefaultsSpec` and `DampingSpec`."""

DEFAULTS_IN_WORDS = {
    "tunnel_port": "5555 for fou, 6080 for gue",
    "quorum": "`rise` and `fall` count",
    "damping": "the defaults of its keys",
}
"""The same for fields whose default is no single value."""

MODELS: dict[Path, type[BaseModel]] = {
    (): ConfigSpec,
    **bgp.MODELS,
    **cluster.MODELS,
    ("vips", "*"): VipSpec,
    ("metrics",): MetricsSpec,
    ("timeouts",): TimeoutsSpec,
    ("defaults",): DefaultsSpec,
    ("defaults", "damping"): DampingSpec,
    ("services", 0): ServiceSpec,
    ("services", 0, "damping"): DampingSpec,
    ("services", 0, "checks", 0): CheckSpec,
    ("services", 0, "reals", 0): RealSpec,
    ("services", 0, "sorry"): SorrySpec,
    ("services", 0, "sorry", "checks", 0): CheckSpec,
    ("services", 0, "sorry", "reals", 0): RealSpec,
    ("reals", "*", 0): RealSpec,
}
"""The model of every mapping with fixed keys, by its path (any index written as 0, any group as `*`)."""


def fields(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """The fields by the key that the file has: the model's own first, then those of every level."""
    own = [get_annotations(kind) for kind in model.__mro__]
    names = sorted(model.model_fields, key=lambda name: [name in some for some in own].index(True))
    return {model.model_fields[name].alias or name: model.model_fields[name] for name in names}


_WITH_UNIT = re.compile(r"[0-9]+(?:[.][0-9]+)? ?[A-Za-z]{1,5}")
_NUMERIC = re.compile(r"\b(?:(?:seconds|bytes|points) from|number|power of)\b")
_CONTAINERS = {"list_type": "a list", "dict_type": "a mapping", "model_type": "a mapping"}


def validate(tree: Tree, report: Report) -> ConfigSpec | None:
    """The tree as a value of the language, or None with every finding reported."""
    try:
        return ConfigSpec.model_validate(tree.root)
    except ValidationError as error:
        for finding in error.errors(include_url=False, include_input=False):
            words = finding.get("ctx", {}).get("words", ())
            _report(tree, report, finding["type"], finding["loc"], finding["msg"], words)
    return None


def _report(
    tree: Tree, report: Report, kind: str, loc: Path, expected: str, words: Iterable[str] = ()
) -> None:
    path, node = _locate(tree.root, loc)
    if report.spoilt(path):
        return
    mark = tree.marks.get(path, WHOLE_FILE)
    if kind == "missing":
        report.add(mark, about(path, f"found no key '{loc[-1]}', expected one"))
    elif kind == "extra_forbidden":
        known = _known_keys(path[:-1])
        hint = report.suggestion(str(path[-1]), known)
        message = f"found an unknown key, expected one of {', '.join(known)}{hint}"
        report.add(tree.key_marks[path], about(path, message), path)
    elif loc[-1:] == ("[key]",):
        report.add(tree.key_marks[path], mismatch(path, path[-1], expected), path)
    elif kind == "too_short":
        report.add(mark, mismatch(path, node, "at least one item"), path)
    else:
        what = expected if kind == EXPECTED else _CONTAINERS.get(kind, f"something else: {expected}")
        hint = report.suggestion(node, words) if isinstance(node, str) else ""
        if isinstance(node, str) and _WITH_UNIT.fullmatch(node) and _NUMERIC.search(what):
            hint = " as a bare number, without a unit"
        report.add(mark, mismatch(path, node, what + hint), path)


def _locate(root: Node, loc: Path) -> tuple[Path, Node]:
    """The node an error is about: `loc` without the parts that pydantic adds (tags, a missing key)."""
    path: Path = ()
    node: Any = root
    for part in loc:
        there = isinstance(node, list) if isinstance(part, int) else isinstance(node, dict) and part in node
        if there:
            node, path = node[part], (*path, part)
    return path, node


def _known_keys(path: Path) -> list[str]:
    general = tuple(0 if isinstance(part, int) else part for part in path)
    if path[:1] == ("reals",):
        general = ("reals", "*", 0)
    elif path[:1] == ("vips",):
        general = ("vips", "*")
    elif path[:2] == ("rhi", "groups"):
        general = ("rhi", "groups", "*", *general[3:])
    return list(fields(MODELS[general]))
