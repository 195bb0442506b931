"""Turns a configuration that passed every test into the values the rest of the program works with.

Must not know: YAML, places in the file. Invariant: it can't fail; `language` and `references` saw to that.
"""

from __future__ import annotations

from typing import TypeVar

from vc5py.config.language import CheckSpec, ConfigSpec, RealItem, RealSpec, RhiSpec, ServiceSpec
from vc5py.config.scalars import Fragments
from vc5py.model import (
    Check,
    Config,
    Forwarding,
    ForwardMode,
    IPNetwork,
    Real,
    RhiConfig,
    Service,
    Timeouts,
    Vlan,
)

T = TypeVar("T")

_TUNNEL_PORT = {ForwardMode.FOU: 5555, ForwardMode.GUE: 6080}


def build(spec: ConfigSpec) -> Config:
    """The model of a validated configuration."""
    groups = _Groups(spec.reals)
    return Config(
        services=tuple(_service(service, groups) for service in spec.services),
        learn_s=spec.learn,
        multicast=spec.multicast,
        rhi=_rhi(spec.rhi) if spec.rhi else None,
        metrics_address=spec.metrics.address,
        metrics_port=spec.metrics.port,
        flows=spec.flows,
        timeouts=Timeouts(
            spec.timeouts.unproven, spec.timeouts.established, spec.timeouts.closing, spec.timeouts.udp
        ),
        drop_fragments=spec.fragments is Fragments.DROP,
        vlans=_vlans(spec),
    )


def _several(value: T | list[T]) -> list[T]:
    return value if isinstance(value, list) else [value]


class _Groups:
    """The groups of reals, each made once for all services with the same settings: there may be thousands."""

    def __init__(self, items: dict[str, list[RealItem]]) -> None:
        self._items = items
        self._made: dict[tuple[object, ...], tuple[Real, ...]] = {}

    def of(self, group: str, service: ServiceSpec) -> tuple[Real, ...]:
        key = (group, service.mode, service.tunnel_port, service.dscp, service.mtu)
        if key not in self._made:
            self._made[key] = tuple(_real(item, service) for item in self._items[group])
        return self._made[key]


def _service(spec: ServiceSpec, groups: _Groups) -> Service:
    ports = _several(spec.port)
    return Service(
        name=spec.name,
        desc=spec.desc,
        vips=tuple(_several(spec.addr)),
        ports=tuple(sorted(ports)),
        protocols=tuple(sorted(_several(spec.protocol), key=lambda protocol: protocol.number)),
        reals=tuple(real for group in _several(spec.real) for real in groups.of(group, spec)),
        need=spec.need,
        checks=tuple(_check(check, ports[0]) for check in spec.checks),
        scheduling=spec.schedule,
        unknown=spec.unknown,
    )


def _real(item: RealItem, service: ServiceSpec) -> Real:
    if not isinstance(item, RealSpec):
        item = RealSpec.model_construct(address=item)
    mode = item.mode or service.mode
    port = item.tunnel_port or service.tunnel_port or _TUNNEL_PORT.get(mode, 0)
    dscp = item.dscp if item.dscp is not None else service.dscp
    forwarding = Forwarding(
        mode,
        port=port if mode in _TUNNEL_PORT else 0,
        dscp=dscp or 0 if mode is ForwardMode.DSCP else 0,
        mtu=item.mtu or service.mtu,
    )
    return Real(item.address, item.weight, forwarding)


def _vlans(spec: ConfigSpec) -> tuple[Vlan, ...]:
    vlans: list[Vlan] = []
    for (outer, inner), prefixes in (spec.vlans or {}).items():
        several: list[IPNetwork] = prefixes if isinstance(prefixes, list) else [prefixes]
        vlans.extend(Vlan(inner, prefix, outer) for prefix in several)
    return tuple(vlans)


def _check(spec: CheckSpec, first_port: int) -> Check:
    return Check(
        name=spec.name,
        type=spec.type,
        port=spec.port or first_port,
        path=spec.path,
        host=spec.host,
        method=spec.method,
        expect=frozenset(_several(spec.expect)),
        interval_s=spec.interval,
        timeout_s=spec.timeout,
        rise=spec.rise,
        fall=spec.fall,
    )


def _rhi(spec: RhiSpec) -> RhiConfig:
    return RhiConfig(as_number=spec.as_number, peers=tuple(spec.peers), hold_s=spec.hold)
