"""What changes from one configuration to another, in words for people.

Must not know: files, YAML, how a change is carried out. Invariant: no changes are told exactly where the two
configurations are equal. The words are those of the configuration file.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from typing import Any, TypeVar

from vc5py.model import (
    Bfd,
    Check,
    Cluster,
    Config,
    Damping,
    Forwarding,
    MulticastGroup,
    Neighbor,
    Real,
    RhiConfig,
    RouteAttributes,
    Secret,
    Service,
    Sorry,
    Vlan,
)

T = TypeVar("T")

_MOST_LISTED = 8


class Kind(StrEnum):
    ADDED = "added"
    REMOVED = "removed"
    CHANGED = "changed"


@dataclass(frozen=True, slots=True)
class Change:
    """One difference. `what` it is in (`service web`), and the `detail` (`need 1 -> 2`).

    `restart`: a running balancer takes it over at its next start only.
    """

    kind: Kind
    what: str
    detail: str
    restart: bool = False

    def __str__(self) -> str:
        later = " (at the next start)" if self.restart else ""
        return f"{self.what} {self.kind}{f': {self.detail}' if self.detail else ''}{later}"


def diff(old: Config, new: Config) -> tuple[Change, ...]:
    """The changes from `old` to `new`: the settings of the whole first, then service by service."""
    return (*_whole(old, new), *_services(old, new))


# Settings of the whole


def _vlan(vlan: Vlan) -> str:
    return f"{vlan.prefix} in {f'{vlan.outer}.{vlan.id}' if vlan.outer else vlan.id}"


def _rhi(rhi: RhiConfig | None) -> str:
    if rhi is None:
        return "none"
    return f"AS {rhi.as_number}, neighbors {_listed(rhi.peers) or 'none'}"


def _routes(old: RhiConfig | None, new: RhiConfig | None) -> Iterator[str]:
    if old is None or new is None:
        if old is not new:
            yield f"{_rhi(old)} -> {_rhi(new)}"
        return
    yield from _values(
        old,
        new,
        {"as_number": "as_number", "router_id": "router_id", "hold_s": "hold", "graceful_s": "graceful"},
    )
    yield from _members("neighbors", old.peers, new.peers)
    for before, after in _common(old.neighbors, new.neighbors, lambda neighbor: neighbor.address):
        for detail in _neighbor(before, after):
            yield f"neighbor {after.address}: {detail}"


def _neighbor(old: Neighbor, new: Neighbor) -> Iterator[str]:
    """Of a password only where it is read from is known here."""
    for field in fields(Neighbor):
        before, after = getattr(old, field.name), getattr(new, field.name)
        if field.name == "attributes":
            names = {inner.name: inner.name for inner in fields(RouteAttributes)}
            yield from _values(before, after, names)
        elif before != after:
            name = _NEIGHBOR_KEYS.get(field.name, field.name)
            yield f"{name} {_setting(before)} -> {_setting(after)}"


def _setting(value: object) -> str:
    if isinstance(value, Secret):
        return value.file or f"${value.variable}"
    if isinstance(value, Bfd):
        return f"every {value.interval_ms} ms times {value.multiplier}"
    if isinstance(value, frozenset):
        return _listed(f"ipv{version}" for version in sorted(value))
    if isinstance(value, tuple):
        rules = (f"{rule.prefix} ge {rule.shortest} le {rule.longest}" for rule in value)
        return _listed(rules) or "none"
    return "none" if value is None else str(value)


_NEIGHBOR_KEYS = {"as_number": "peer_as", "hold_time_s": "hold_time", "restart_time_s": "graceful_restart"}


def _policies(config: Config) -> list[str]:
    return [f"{vip} {policy}" for vip, policy in config.vip_policies]


def _group(group: MulticastGroup | None) -> str:
    if group is None:
        return "none"
    return (
        f"[{group.address}]:{group.port}" if group.address.version == 6 else f"{group.address}:{group.port}"
    )


def _cluster(cluster: Cluster | None) -> str:
    """All but its secret and its keys."""
    if cluster is None:
        return "none"
    peers = _listed(cluster.peers) if cluster.peers else "none"
    interface = f", interface {cluster.interface}" if cluster.interface else ""
    port, size = cluster.port, cluster.datagram
    return f"{cluster.name}, peers {peers}, port {port}{interface}, datagram {size}"


def _cluster_but_secrets(config: Config) -> Cluster | None:
    return config.cluster and replace(config.cluster, keys=None, secret=Secret())


def _secret(config: Config) -> Secret | None:
    return config.cluster.secret if config.cluster else None


def _keys(config: Config) -> Secret | None:
    return config.cluster.keys if config.cluster else None


_SETTINGS: tuple[tuple[str, Callable[[Config], object], Callable[[Any], str], bool], ...] = (
    ("learn", lambda c: c.learn_s, lambda seconds: f"{seconds:g}", True),
    ("multicast", lambda c: c.multicast, _group, False),
    ("cluster", _cluster_but_secrets, _cluster, False),
    ("cluster.secret", _secret, _setting, True),
    ("cluster.keys", _keys, _setting, False),
    ("defaults.announce", lambda c: c.vip_policy, str, False),
    ("metrics.address", lambda c: c.metrics_address, lambda address: str(address or "all"), False),
    ("metrics.port", lambda c: c.metrics_port, str, False),
    ("flows", lambda c: c.flows, str, True),
    ("fragments", lambda c: c.drop_fragments, lambda drop: "drop" if drop else "follow", False),
    ("timeouts.unproven", lambda c: c.timeouts.unproven_s, str, False),
    ("timeouts.established", lambda c: c.timeouts.established_s, str, False),
    ("timeouts.closing", lambda c: c.timeouts.closing_s, str, False),
    ("timeouts.udp", lambda c: c.timeouts.udp_s, str, False),
)
"""Of the whole: name, value, its words, and whether it counts from the next start on only."""

_SHARING = ("multicast", "cluster", "cluster.keys")
"""What waits for the next start if the secret has to, by which flows are named."""


def _whole(old: Config, new: Config) -> Iterator[Change]:
    renamed = _secret(new) not in (None, _secret(old))
    for name, value, words, restart in _SETTINGS:
        before, after = value(old), value(new)
        if before != after:
            later = restart or (renamed and name in _SHARING)
            yield Change(Kind.CHANGED, name, f"{words(before)} -> {words(after)}", later)
    for detail in _routes(old.rhi, new.rhi):
        yield Change(Kind.CHANGED, "rhi", detail)
    for detail in _members("announce", _policies(old), _policies(new)):
        yield Change(Kind.CHANGED, "vips", detail)
    for detail in _members("prefixes", map(_vlan, old.vlans), map(_vlan, new.vlans)):
        yield Change(Kind.CHANGED, "vlans", detail)


# Services


def _services(old: Config, new: Config) -> Iterator[Change]:
    before = {service.name: service for service in old.services}
    after = {service.name: service for service in new.services}
    for name, service in before.items():
        if name not in after:
            yield Change(Kind.REMOVED, f"service {name}", _summary(service))
    for name, service in after.items():
        if name not in before:
            yield Change(Kind.ADDED, f"service {name}", _summary(service))
        elif service != before[name]:
            for detail in _service(before[name], service):
                yield Change(Kind.CHANGED, f"service {name}", detail)
    shared = [name for name in before if name in after]
    if shared != [name for name in after if name in before]:
        yield Change(Kind.CHANGED, "services", "another order")


def _summary(service: Service) -> str:
    ports = _listed(f"{port}/{protocol}" for port in service.ports for protocol in service.protocols)
    return f"{_listed(service.vips)}, {ports}, {len(service.reals)} reals"


def _service(old: Service, new: Service) -> Iterator[str]:
    yield from _values(
        old,
        new,
        {
            "desc": "desc",
            "need": "need",
            "scheduling": "schedule",
            "unknown": "unknown",
            "below_need": "below_need",
            "min_up": "min_up",
            "standby": "standby",
            "slow_start_s": "slow_start",
        },
    )
    for key, before, after in (
        ("addr", old.vips, new.vips),
        ("port", old.ports, new.ports),
        ("protocol", old.protocols, new.protocols),
    ):
        yield from _members(key, before, after)
    yield from _reals(old.reals, new.reals)
    yield from _checks(old.checks, new.checks)
    if old.damping != new.damping:
        yield f"damping {_damping(old.damping)} -> {_damping(new.damping)}"
    if old.sorry != new.sorry:
        yield from (f"sorry {detail}" for detail in _sorry(old.sorry, new.sorry))


def _damping(damping: Damping | None) -> str:
    if damping is None:
        return "off"
    return ", ".join(
        f"{name} {_number(value)}"
        for name, value in (
            ("suppress", damping.suppress),
            ("reuse", damping.reuse),
            ("half_life", damping.half_life_s),
            ("longest", damping.longest_s),
        )
    )


def _sorry(old: Sorry | None, new: Sorry | None) -> Iterator[str]:
    if old is None or new is None:
        yield "none" if new is None else f"with {len(new.reals)} reals"
        return
    yield from _reals(old.reals, new.reals)
    yield from _checks(old.checks, new.checks)


# Reals and checks


def _reals(old: tuple[Real, ...], new: tuple[Real, ...]) -> Iterator[str]:
    yield from _members("reals", [real.address for real in old], [real.address for real in new])
    for before, after in _common(old, new, lambda real: real.address):
        for detail in _real(before, after):
            yield f"real {after.address}: {detail}"


def _real(old: Real, new: Real) -> Iterator[str]:
    yield from _values(old, new, {"weight": "weight", "tier": "tier", "admin": "state"})
    if old.forwarding != new.forwarding:
        yield f"{_forwarding(old.forwarding)} -> {_forwarding(new.forwarding)}"


def _forwarding(way: Forwarding) -> str:
    port = f" tunnel_port {way.port}" if way.port else ""
    dscp = f" dscp {way.dscp}" if way.mode == "dscp" else ""
    return f"mode {way.mode}{port}{dscp} mtu {way.mtu}"


def _checks(old: tuple[Check, ...], new: tuple[Check, ...]) -> Iterator[str]:
    yield from _members("checks", [check.name for check in old], [check.name for check in new])
    for before, after in _common(old, new, lambda check: check.name):
        for detail in _check(before, after):
            yield f"check {after.name}: {detail}"


def _check(old: Check, new: Check) -> Iterator[str]:
    names = {
        "type": "type",
        "port": "port",
        "interval_s": "interval",
        "timeout_s": "timeout",
        "rise": "rise",
        "fall": "fall",
    }
    yield from _values(old, new, names)
    if old.quorum != new.quorum:
        yield f"pass {_quorum(old)} -> {_quorum(new)}"
    if type(old.detail) is type(new.detail) and old.detail is not None:
        yield from _values(old.detail, new.detail, {field.name: field.name for field in fields(old.detail)})


def _quorum(check: Check) -> str:
    return "off" if check.quorum is None else f"{check.quorum[0]} of {check.quorum[1]}"


# Words


def _common(old: Iterable[T], new: Iterable[T], key: Callable[[T], Hashable]) -> Iterator[tuple[T, T]]:
    """The items of both that aren't equal, in the order of the new."""
    before = {key(item): item for item in old}
    for item in new:
        earlier = before.get(key(item))
        if earlier is not None and earlier != item:
            yield earlier, item


def _values(old: object, new: object, names: Mapping[str, str]) -> Iterator[str]:
    for field, name in names.items():
        before, after = getattr(old, field), getattr(new, field)
        if before != after:
            yield f"{name} {_shown(field, before)} -> {_shown(field, after)}"


def _shown(field: str, value: Any) -> str:
    if field in ("communities", "large_communities"):
        return _listed(":".join(map(str, one)) for one in value) or "none"
    if field == "expect":
        return _codes(value)
    if field == "headers":
        return _listed(f"{name}: {text}" for name, text in value) or "none"
    if field == "desc":
        return repr(value)
    return "none" if value is None else _number(value)


def _codes(codes: frozenset[int]) -> str:
    """`200, 204, 300-399`."""
    runs: list[list[int]] = []
    for code in sorted(codes):
        if runs and code == runs[-1][1] + 1:
            runs[-1][1] = code
        else:
            runs.append([code, code])
    return ", ".join(str(low) if low == high else f"{low}-{high}" for low, high in runs)


def _number(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _members(name: str, old: Iterable[Hashable], new: Iterable[Hashable]) -> Iterator[str]:
    """Who joined and who left, as `reals + 10.0.0.3 - 10.0.0.4`."""
    before, after = dict.fromkeys(old), dict.fromkeys(new)
    joined = [item for item in after if item not in before]
    left = [item for item in before if item not in after]
    if joined or left:
        parts = [f"{sign} {_listed(some)}" for sign, some in (("+", joined), ("-", left)) if some]
        yield f"{name} {' '.join(parts)}"
    elif list(before) != list(after):
        yield f"{name} in another order"


def _listed(items: Iterable[object]) -> str:
    """The first few, and how many more there are."""
    everything = [str(item) for item in items]
    more = len(everything) - _MOST_LISTED
    return ", ".join(everything[:_MOST_LISTED]) + (f" and {more} more" if more > 0 else "")
