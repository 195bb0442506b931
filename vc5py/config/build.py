"""Turns a configuration that passed every test into the values the rest of the program works with.

Must not know: YAML, places in the file. Invariant: it can't fail; `language` and `references` saw to that.
"""

from __future__ import annotations

from ipaddress import IPv4Address
from typing import TypeVar

from vc5py.config.language import CheckSpec, ConfigSpec, RhiSpec, ServiceSpec
from vc5py.model import Check, Config, IPAddress, Real, RhiConfig, Service

T = TypeVar("T")


def build(spec: ConfigSpec) -> Config:
    """The model of a validated configuration."""
    groups = {name: tuple(map(Real, addresses)) for name, addresses in spec.reals.items()}
    return Config(
        services=tuple(_service(service, groups) for service in spec.services),
        learn_s=spec.learn,
        multicast=spec.multicast,
        rhi=_rhi(spec.rhi) if spec.rhi else None,
        metrics_address=spec.metrics.address,
        metrics_port=spec.metrics.port,
        flows=spec.flows,
    )


def _several(value: T | list[T]) -> list[T]:
    return value if isinstance(value, list) else [value]


def _vips(value: IPv4Address | list[IPv4Address]) -> tuple[IPAddress, ...]:
    return tuple(_several(value))


def _service(spec: ServiceSpec, groups: dict[str, tuple[Real, ...]]) -> Service:
    ports = _several(spec.port)
    return Service(
        name=spec.name,
        desc=spec.desc,
        vips=_vips(spec.addr),
        ports=tuple(sorted(ports)),
        protocols=tuple(sorted(_several(spec.protocol), key=lambda protocol: protocol.number)),
        reals=tuple(real for group in _several(spec.real) for real in groups[group]),
        need=spec.need,
        checks=tuple(_check(check, ports[0]) for check in spec.checks),
    )


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
