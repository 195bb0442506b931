"""The language of the configuration file: its keys, one model per mapping, and how a tree is held against it.

Must not know: files, and anything that takes two places of the file to judge (`references` does). Invariant:
where `validate` returns a value and reports nothing, types and ranges are right: `build` can't fail.

The models are the one definition of the language: the JSON Schema and the reference are generated from them,
hence a description on every key. Validation is strict: no value is converted to please a type.
"""

from __future__ import annotations

from ipaddress import ip_address
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError

from vc5py.config.report import WHOLE_FILE, Node, Path, Report, about, mismatch
from vc5py.config.scalars import (
    EXPECTED,
    AsNumber,
    CheckTypeName,
    Count,
    Description,
    Dscp,
    Duration,
    FlowEntries,
    FlowTimeout,
    ForwardedAddress,
    Fragments,
    FragmentsName,
    HostAddress,
    LocalAddress,
    Method,
    ModeName,
    Mtu,
    Multicast,
    Name,
    Need,
    NonEmpty,
    OneOrMore,
    Optionally,
    Port,
    Prefix,
    ProbeTime,
    ProtocolName,
    SchedulingName,
    Status,
    UnknownName,
    UrlHost,
    UrlPath,
    VlanKey,
    Weight,
)
from vc5py.config.yaml_tree import Tree
from vc5py.model import (
    Check,
    CheckType,
    Config,
    Protocol,
    Real,
    RhiConfig,
    Scheduling,
    Timeouts,
    Unknown,
)

# The defaults are those of the model.
_CONFIG = Config(services=())
_CHECK = Check(name="", type=CheckType.TCP, port=1)
_RHI = RhiConfig(as_number=1, peers=())
_REAL = Real(ip_address("0.0.0.0"))
_FORWARDING = _REAL.forwarding
_TIMEOUTS = Timeouts()


class _Mapping(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class CheckSpec(_Mapping):
    """A check: how to find out whether a real serves the VIP. A healthy real passes all of its service."""

    name: Name = Field(description="Names the check in logs and metrics; unique in its service.")
    type: CheckTypeName = Field(description="What is probed: an HTTP(S) request, or only a TCP connection.")
    port: Optionally[Port] = Field(None, description="Port to probe. Default: the service's first port.")
    path: UrlPath = Field(_CHECK.path, description="Path and query to request (http, https).")
    host: Optionally[UrlHost] = Field(
        None, description="Host header, and server name in TLS (http, https). Default: the VIP."
    )
    method: Method = Field(_CHECK.method, description="Method of the request (http, https).")
    expect: OneOrMore[Status] = Field(
        sorted(_CHECK.expect), description="Accepted status code, or a list of them (http, https)."
    )
    interval: ProbeTime = Field(_CHECK.interval_s, description="Seconds between probes.")
    timeout: ProbeTime = Field(
        _CHECK.timeout_s, description="Seconds until a probe without an end has failed."
    )
    rise: Count = Field(_CHECK.rise, description="Successes in a row that bring a real up.")
    fall: Count = Field(_CHECK.fall, description="Failures in a row that take a real down.")


class ServiceSpec(_Mapping):
    """A service: the VIPs, ports and protocols that clients connect to, and the reals that answer."""

    name: Name = Field(description="Names the service in logs, metrics and the console; unique.")
    desc: Description = Field("", description="Free text for people.")
    addr: OneOrMore[ForwardedAddress] = Field(description="The VIP, or a list of VIPs.")
    port: OneOrMore[Port] = Field(description="The port, or a list of ports.")
    protocol: OneOrMore[ProtocolName] = Field(
        Protocol.TCP, description="The transport protocol (tcp, udp), or a list of both."
    )
    real: OneOrMore[Name] = Field(description="The group of reals that serve it, or a list of groups.")
    need: Need = Field(1, description="The service is healthy while at least so many reals are.")
    checks: list[CheckSpec] = Field(
        description="The checks of its reals. An empty list means: take every real as healthy, unchecked."
    )
    mode: ModeName = Field(
        _FORWARDING.mode, description="How packets get to its reals: l2, ipip, gre, fou, gue or dscp."
    )
    tunnel_port: Optionally[Port] = Field(
        None, description="UDP port of the tunnel (fou, gue). Default: 5555 for fou, 6080 for gue."
    )
    dscp: Optionally[Dscp] = Field(
        None, description="The DSCP that tells the reals which VIP it was; mode dscp requires it."
    )
    mtu: Mtu = Field(
        _FORWARDING.mtu, description="The largest packet that gets to the reals, outer headers included."
    )
    schedule: SchedulingName = Field(
        Scheduling.MAGLEV, description="How a new flow gets its real: maglev, sticky or least-conns."
    )
    unknown: UnknownName = Field(
        Unknown.DROP,
        description="Packets for a VIP that are for no service of it: drop them, or pass them to the host.",
    )


class RealSpec(_Mapping):
    """A real that is not quite like the others of its group; what is left out is as in the service."""

    address: ForwardedAddress = Field(description="Address of the real.")
    weight: Weight = Field(_REAL.weight, description="Its share of new flows; 0: none.")
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


class RhiSpec(_Mapping):
    """Route health injection: BGP sessions over which the VIPs of healthy services are announced."""

    as_number: AsNumber = Field(description="Our autonomous system number, and the peers' (iBGP).")
    peers: NonEmpty[HostAddress] = Field(description="Addresses of the BGP neighbors.")
    hold: Duration = Field(
        _RHI.hold_s, description="Seconds the routes outlive a director that died, until they are withdrawn."
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
    rhi: Optionally[RhiSpec] = Field(None, description="BGP. Default: VIPs are not announced.")
    metrics: MetricsSpec = Field(MetricsSpec(), description="The metrics endpoint.")
    flows: FlowEntries = Field(_CONFIG.flows, description="Entries in the flow table, a power of two.")
    fragments: FragmentsName = Field(
        Fragments.FOLLOW, description="Fragments: follow the first one to its real, or drop."
    )
    timeouts: TimeoutsSpec = Field(TimeoutsSpec(), description="When idle flows may be forgotten.")
    vlans: Optionally[dict[VlanKey, OneOrMore[Prefix]]] = Field(
        None, description="Which reals are behind which VLAN tag: a prefix, or a list of them, by VLAN."
    )
    services: list[ServiceSpec] = Field(description="The services.")
    reals: dict[Name, NonEmpty[RealItem]] = Field(description="Groups of reals by name.")


MODELS: dict[Path, type[BaseModel]] = {
    (): ConfigSpec,
    ("rhi",): RhiSpec,
    ("metrics",): MetricsSpec,
    ("timeouts",): TimeoutsSpec,
    ("services", 0): ServiceSpec,
    ("services", 0, "checks", 0): CheckSpec,
    ("reals", "*", 0): RealSpec,
}
"""The model of every mapping with fixed keys, by its path (any index written as 0, any group as `*`)."""

_CONTAINERS = {"list_type": "a list", "dict_type": "a mapping", "model_type": "a mapping"}


def validate(tree: Tree, report: Report) -> ConfigSpec | None:
    """The tree as a value of the language, or None with every finding reported."""
    try:
        return ConfigSpec.model_validate(tree.root)
    except ValidationError as error:
        for finding in error.errors(include_url=False, include_context=False, include_input=False):
            _report(tree, report, finding["type"], finding["loc"], finding["msg"])
    return None


def _report(tree: Tree, report: Report, kind: str, loc: Path, expected: str) -> None:
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
        report.add(mark, mismatch(path, node, what), path)


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
    return list(MODELS[general].model_fields)
