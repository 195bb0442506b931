"""The keys of `rhi:` and what becomes of them: neighbors, with settings that cascade from `rhi` to groups to
them.

Must not know: files, services, how routes are announced. Invariant: `build` can't fail on what `language` and
`check` found good; the lowest level that has a setting counts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag

from vc5py.config.bgp_scalars import (
    MOST_COMMUNITIES,
    Attribute32,
    BfdSwitch,
    Communities,
    FamilyName,
    HoldTime,
    Hops,
    Milliseconds,
    Multiplier,
    NextHop4,
    NextHop6,
    Prepend,
    RestartTime,
    Rule,
    SecretFile,
    Variable,
)
from vc5py.config.mapping import Mapping
from vc5py.config.report import Path
from vc5py.config.scalars import (
    AsNumber,
    Duration,
    HostAddress,
    Name,
    NonEmpty,
    OneOrMore,
    Optionally,
    Port,
    ReachableAddress,
    TrueOrFalse,
)
from vc5py.config.view import Place, View, parsed_address
from vc5py.model import Bfd, IPAddress, Neighbor, RhiConfig, RouteAttributes, Secret

_RHI = RhiConfig(as_number=1, neighbors=())
_NEIGHBOR = Neighbor(parsed_address("192.0.2.1"), 1, 1)
_BFD = Bfd()
_PAIR = 2


class BfdSpec(Mapping):
    """Bidirectional forwarding detection (RFC 5880): a silent neighbor is given up in milliseconds."""

    interval: Milliseconds = Field(_BFD.interval_ms, description="Milliseconds between packets, each way.")
    multiplier: Multiplier = Field(_BFD.multiplier, description="Gone after so many intervals of silence.")


BfdItem = Annotated[
    Annotated[BfdSwitch, Tag("<switch>")] | Annotated[BfdSpec, Tag("<mapping>")],
    Discriminator(lambda value: "<mapping>" if isinstance(value, dict) else "<switch>"),
]


class _Settings(Mapping):
    """Of a session, and of the routes announced over it; what is left out is as in the level above."""

    peer_as: Optionally[AsNumber] = Field(
        None, description="The neighbor's AS number. Default: `as_number` (iBGP); another one means eBGP."
    )
    local_as: Optionally[AsNumber] = Field(None, description="Ours towards it. Default: `as_number`.")
    hold_time: Optionally[HoldTime] = Field(
        None, description=f"BGP's hold time in seconds. Default: {_NEIGHBOR.hold_time_s}."
    )
    graceful_restart: Optionally[RestartTime] = Field(
        None,
        description="Seconds for which the neighbor is asked to keep our routes when ExaBGP dies, until"
        " another has taken over (RFC 4724); at most `hold`. Default: 0, not at all.",
    )
    source: Optionally[HostAddress] = Field(
        None, description="Our address of the session. Default: our own, or the kernel's choice for IPv6."
    )
    port: Optionally[Port] = Field(None, description=f"Port to connect to. Default: {_NEIGHBOR.port}.")
    passive: Optionally[TrueOrFalse] = Field(
        None, description="Wait for the neighbor to connect. Default: false."
    )
    listen: Optionally[Port] = Field(
        None, description=f"Port to wait on where we are passive. Default: {_NEIGHBOR.listen}."
    )
    multihop: Optionally[Hops] = Field(
        None, description="Hops that an eBGP neighbor may be away. Default: it is on our link."
    )
    ttl_security: Optionally[Hops] = Field(
        None, description="Drop packets that came over more hops than this (GTSM, RFC 5082). Default: off."
    )
    password_file: Optionally[SecretFile] = Field(
        None, description="File with the TCP MD5 password (RFC 2385). Default: none."
    )
    password_env: Optionally[Variable] = Field(
        None, description="Variable of the environment with it, in place of `password_file`. Default: none."
    )
    next_hop4: Optionally[NextHop4] = Field(
        None, description="Next hop of IPv4 VIPs. Default: our own address."
    )
    next_hop6: Optionally[NextHop6] = Field(
        None, description="Next hop of IPv6 VIPs. Default: an address of our interface."
    )
    families: Optionally[OneOrMore[FamilyName]] = Field(
        None, description="What is announced: ipv4, ipv6 or a list of both. Default: both."
    )
    med: Optionally[Attribute32] = Field(None, description="Multi-exit discriminator. Default: none.")
    local_preference: Optionally[Attribute32] = Field(
        None, description="Local preference (iBGP). Default: 100."
    )
    communities: Optionally[Communities] = Field(
        None,
        description="Communities, large ones, or names of well-known ones;"
        f" at most {MOST_COMMUNITIES}. Default: none.",
    )
    prepend: Optionally[Prepend] = Field(
        None, description="How many times more our AS number is in the path (eBGP). Default: 0."
    )
    accept: Optionally[OneOrMore[Rule]] = Field(
        None, description="Only VIPs in these prefixes are announced. Default: all."
    )
    reject: Optionally[OneOrMore[Rule]] = Field(
        None, description="VIPs in these prefixes are not announced, whatever `accept` says. Default: none."
    )
    bfd: Optionally[BfdItem] = Field(
        None, description="Whether to watch the neighbor by BFD; a mapping sets the times. Default: false."
    )


class NeighborSpec(_Settings):
    """A neighbor that is not quite like the others of its list."""

    address: ReachableAddress = Field(description="Address of the neighbor.")


NeighborItem = Annotated[
    Annotated[ReachableAddress, Tag("<address>")] | Annotated[NeighborSpec, Tag("<mapping>")],
    Discriminator(lambda value: "<mapping>" if isinstance(value, dict) else "<address>"),
]


class NeighborGroupSpec(_Settings):
    """Neighbors that are alike."""

    neighbors: NonEmpty[NeighborItem] = Field(
        description="Addresses, or mappings with settings of their own."
    )


class RhiSpec(_Settings):
    """Route health injection: BGP sessions over which the VIPs of healthy services are announced."""

    as_number: AsNumber = Field(description="Our autonomous system number.")
    peers: Optionally[NonEmpty[ReachableAddress]] = Field(
        None, description="Addresses of neighbors without settings of their own. Default: none."
    )
    neighbors: Optionally[NonEmpty[NeighborItem]] = Field(
        None, description="Neighbors: addresses, or mappings with settings of their own. Default: none."
    )
    groups: dict[Name, NeighborGroupSpec] = Field({}, description="Groups of neighbors by name.")
    router_id: Optionally[NextHop4] = Field(
        None, description="BGP identifier. Default: our own IPv4 address."
    )
    hold: Duration = Field(
        _RHI.hold_s,
        description="Seconds the routes outlive a director that died or hangs, until they are withdrawn.",
    )
    graceful: Duration = Field(
        _RHI.graceful_s,
        description="Seconds that routes are marked for graceful shutdown (RFC 8326) at the end, before they"
        " are withdrawn.",
    )


MODELS: dict[Path, type[Mapping]] = {
    ("rhi",): RhiSpec,
    ("rhi", "bfd"): BfdSpec,
    ("rhi", "neighbors", 0): NeighborSpec,
    ("rhi", "neighbors", 0, "bfd"): BfdSpec,
    ("rhi", "groups", "*"): NeighborGroupSpec,
    ("rhi", "groups", "*", "bfd"): BfdSpec,
    ("rhi", "groups", "*", "neighbors", 0): NeighborSpec,
    ("rhi", "groups", "*", "neighbors", 0, "bfd"): BfdSpec,
}
"""The model of every mapping with fixed keys (any index written as 0, any group as `*`)."""


# From the specification to the model


def build(spec: RhiSpec) -> RhiConfig:
    """The neighbors in the order of the file: `peers`, `neighbors`, then group by group."""
    neighbors = [_neighbor(address, spec, (spec,)) for address in spec.peers or ()]
    neighbors += _listed(spec, spec.neighbors or (), (spec,))
    for group in spec.groups.values():
        neighbors += _listed(spec, group.neighbors, (group, spec))
    return RhiConfig(spec.as_number, tuple(neighbors), spec.hold, spec.graceful, spec.router_id)


def _listed(
    spec: RhiSpec, items: Sequence[IPAddress | NeighborSpec], above: tuple[_Settings, ...]
) -> Iterator[Neighbor]:
    for item in items:
        if isinstance(item, NeighborSpec):
            yield _neighbor(item.address, spec, (item, *above))
        else:
            yield _neighbor(item, spec, above)


def _lowest(key: str, levels: Sequence[_Settings], otherwise: Any) -> Any:
    values = (getattr(level, key) for level in levels)
    return next((value for value in values if value is not None), otherwise)


def _several(key: str, levels: Sequence[_Settings]) -> tuple[Any, ...]:
    value = _lowest(key, levels, [])
    return tuple(value) if isinstance(value, list) else (value,)


def _neighbor(address: IPAddress, spec: RhiSpec, levels: tuple[_Settings, ...]) -> Neighbor:
    families = frozenset(int(family.removeprefix("ipv")) for family in _several("families", levels))
    return Neighbor(
        address=address,
        as_number=_lowest("peer_as", levels, spec.as_number),
        local_as=_lowest("local_as", levels, spec.as_number),
        hold_time_s=_lowest("hold_time", levels, _NEIGHBOR.hold_time_s),
        restart_time_s=_lowest("graceful_restart", levels, _NEIGHBOR.restart_time_s),
        port=_lowest("port", levels, _NEIGHBOR.port),
        passive=_lowest("passive", levels, _NEIGHBOR.passive),
        listen=_lowest("listen", levels, _NEIGHBOR.listen),
        source=_lowest("source", levels, None),
        multihop=_lowest("multihop", levels, None),
        ttl_security=_lowest("ttl_security", levels, None),
        password=_password(levels),
        next_hop4=_lowest("next_hop4", levels, None),
        next_hop6=_lowest("next_hop6", levels, None),
        families=families or _NEIGHBOR.families,
        attributes=_attributes(levels),
        accept=_several("accept", levels),
        reject=_several("reject", levels),
        bfd=_bfd(levels),
    )


def _attributes(levels: tuple[_Settings, ...]) -> RouteAttributes:
    communities = _several("communities", levels)
    return RouteAttributes(
        med=_lowest("med", levels, None),
        local_preference=_lowest("local_preference", levels, None),
        prepend=_lowest("prepend", levels, 0),
        communities=tuple(one for one in communities if len(one) == _PAIR),
        large_communities=tuple(one for one in communities if len(one) > _PAIR),
    )


def _password(levels: tuple[_Settings, ...]) -> Secret | None:
    for level in levels:
        if level.password_file is not None or level.password_env is not None:
            return Secret(level.password_file, level.password_env)
    return None


def _bfd(levels: tuple[_Settings, ...]) -> Bfd | None:
    """Times that a level leaves out are the defaults, whatever the levels above it say."""
    item = _lowest("bfd", levels, False)
    if isinstance(item, BfdSpec):
        return Bfd(item.interval, item.multiplier)
    return Bfd() if item else None


# What takes two places of the file


def check(view: View) -> None:
    """Report neighbors that are there twice, or nowhere, and settings that exclude each other."""
    rhi = view.node(("rhi",))
    if not isinstance(rhi, dict):
        return
    if not rhi.keys() & {"peers", "neighbors", "groups"}:
        view.add(("rhi",), "found no key 'peers', 'neighbors' or 'groups', expected one")
    members = [*view.several(("rhi", "peers")), *_addresses(view, ("rhi", "neighbors"))]
    levels: list[Path] = [("rhi",), *_mappings(view, ("rhi", "neighbors"))]
    for name in view.keys(("rhi", "groups")):
        group: Path = ("rhi", "groups", name)
        levels += [group, *_mappings(view, (*group, "neighbors"))]
        members += _addresses(view, (*group, "neighbors"))
    view.once(members, parsed_address)
    hold = rhi.get("hold", _RHI.hold_s)
    for level in levels:
        _level(view, level)
        _restart_time(view, (*level, "graceful_restart"), hold)


def _mappings(view: View, path: Path) -> list[Path]:
    return [item.path for item in view.several(path) if isinstance(item.value, dict)]


def _addresses(view: View, path: Path) -> Iterator[Place]:
    for item in view.several(path):
        inner = (*item.path, "address") if isinstance(item.value, dict) else item.path
        address = view.node(inner)
        if isinstance(address, str):
            yield Place(inner, address)


def _restart_time(view: View, path: Path, hold: Any) -> None:
    """Routes without an owner are there for `hold` at most, whoever has died."""
    seconds = view.node(path)
    if isinstance(seconds, int) and isinstance(hold, int | float) and seconds > hold:
        view.add(path, f"found {seconds}, expected no more than `hold`, which is {hold:g}")


def _level(view: View, level: Path) -> None:
    node = view.node(level)
    if not isinstance(node, dict):
        return
    for one, other in (("password_env", "password_file"), ("ttl_security", "multihop")):
        if one in node and other in node and not view.spoilt((*level, one)):
            view.add_at_key((*level, one), f"found beside '{other}', expected one of them")
