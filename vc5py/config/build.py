"""Turns a configuration that passed every test into the values the rest of the program works with.

Must not know: YAML, places in the file. Invariant: it can't fail; `language` and `references` saw to that.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from vc5py.config import bgp, cluster
from vc5py.config.language import (
    DEFAULTS,
    CheckSpec,
    ConfigSpec,
    DampingSpec,
    DefaultsSpec,
    RealItem,
    RealSpec,
    ServiceSpec,
    SorrySpec,
)
from vc5py.config.scalars import Fragments
from vc5py.model import (
    Check,
    CheckType,
    Config,
    Damping,
    DnsQuestion,
    Forwarding,
    ForwardMode,
    HttpRequest,
    IPNetwork,
    Real,
    Service,
    Sorry,
    Timeouts,
    UdpExchange,
    Vlan,
)

T = TypeVar("T")

_TUNNEL_PORT = {ForwardMode.FOU: 5555, ForwardMode.GUE: 6080}

Level = DefaultsSpec | ServiceSpec | CheckSpec
"""Where a setting may be; the lowest one that has it counts, and the lowest comes first."""


def build(spec: ConfigSpec) -> Config:
    """The model of a validated configuration."""
    builder = _Builder(spec)
    return Config(
        services=tuple(builder.service(service) for service in spec.services),
        learn_s=spec.learn,
        multicast=spec.multicast,
        cluster=cluster.build(spec.cluster) if spec.cluster else None,
        rhi=bgp.build(spec.rhi) if spec.rhi else None,
        metrics_address=spec.metrics.address,
        metrics_port=spec.metrics.port,
        flows=spec.flows,
        timeouts=Timeouts(
            spec.timeouts.unproven, spec.timeouts.established, spec.timeouts.closing, spec.timeouts.udp
        ),
        drop_fragments=spec.fragments is Fragments.DROP,
        vlans=_vlans(spec),
        vip_policy=_lowest("announce", (spec.defaults,)),
        vip_policies=tuple((vip, one.announce) for vip, one in spec.vips.items() if one.announce is not None),
    )


def _several(value: T | list[T]) -> list[T]:
    return value if isinstance(value, list) else [value]


def _lowest(key: str, levels: Sequence[Level]) -> Any:
    """The setting that counts, or the default; None where there is none."""
    values = (getattr(level, key) for level in levels)
    return next((value for value in values if value is not None), DEFAULTS.get(key))


class _Builder:
    """Makes services. A group is made once for all services with the same settings: there are many."""

    def __init__(self, spec: ConfigSpec) -> None:
        self._defaults = spec.defaults
        self._groups = spec.reals
        self._made: dict[tuple[object, ...], tuple[Real, ...]] = {}

    def service(self, spec: ServiceSpec) -> Service:
        levels = (spec, self._defaults)
        ports = _several(spec.port)
        return Service(
            name=spec.name,
            desc=spec.desc,
            vips=tuple(_several(spec.addr)),
            ports=tuple(sorted(ports)),
            protocols=tuple(sorted(_several(spec.protocol), key=lambda protocol: protocol.number)),
            reals=self._reals(spec, spec),
            need=_lowest("need", levels),
            checks=tuple(_check(check, ports[0], levels) for check in spec.checks),
            scheduling=_lowest("schedule", levels),
            unknown=_lowest("unknown", levels),
            below_need=_lowest("below_need", levels),
            min_up=_lowest("min_up", levels),
            standby=_lowest("standby", levels),
            sorry=self._sorry(spec.sorry, spec) if spec.sorry else None,
            slow_start_s=_lowest("slow_start", levels),
            damping=_damping(levels),
        )

    def _sorry(self, spec: SorrySpec, service: ServiceSpec) -> Sorry:
        checks = [CheckSpec(name="tcp", type=CheckType.TCP)] if spec.checks is None else spec.checks
        first_port = _several(service.port)[0]
        return Sorry(
            self._reals(spec, service),
            tuple(_check(check, first_port, (service, self._defaults)) for check in checks),
        )

    def _reals(self, holder: ServiceSpec | SorrySpec, service: ServiceSpec) -> tuple[Real, ...]:
        levels = (service, self._defaults)
        mode, tunnel_port, mtu = (_lowest(key, levels) for key in ("mode", "tunnel_port", "mtu"))
        settings = (mode, tunnel_port, mtu, service.dscp)
        reals: list[Real] = []
        for group in _several(holder.real) if holder.real is not None else ():
            key = (group, *settings)
            if key not in self._made:
                self._made[key] = tuple(_list(self._groups[group], settings))
            reals.extend(self._made[key])
        reals.extend(_list(holder.reals or [], settings))
        return tuple(reals)


def _real(item: RealSpec, mode: ForwardMode, tunnel_port: int | None, mtu: int, dscp: int | None) -> Real:
    forwarding = _forwarding(
        item.mode or mode,
        item.tunnel_port or tunnel_port,
        item.mtu or mtu,
        dscp if item.dscp is None else item.dscp,
    )
    return Real(item.address, item.weight, forwarding, item.tier, item.state)


def _forwarding(mode: ForwardMode, tunnel_port: int | None, mtu: int, dscp: int | None) -> Forwarding:
    """The mode with only those parameters that it has."""
    return Forwarding(
        mode,
        port=tunnel_port or _TUNNEL_PORT[mode] if mode in _TUNNEL_PORT else 0,
        dscp=dscp or 0 if mode is ForwardMode.DSCP else 0,
        mtu=mtu,
    )


def _list(items: list[RealItem], settings: tuple[ForwardMode, int | None, int, int | None]) -> Iterator[Real]:
    usual = _forwarding(*settings)
    for item in items:
        yield _real(item, *settings) if isinstance(item, RealSpec) else Real(item, forwarding=usual)


def _damping(levels: Sequence[ServiceSpec | DefaultsSpec]) -> Damping | None:
    """Keys that a service's damping leaves out are as in the defaults', where that isn't off."""
    given = [level.damping for level in levels if level.damping is not None]
    if given and given[0] == "off":
        return None
    specs = [spec for spec in given if isinstance(spec, DampingSpec)]

    def lowest(key: str) -> float:
        values = (getattr(spec, key) for spec in specs)
        return float(next((value for value in values if value is not None), DEFAULTS[key]))

    return Damping(lowest("suppress"), lowest("reuse"), lowest("half_life"), lowest("longest"))


def _vlans(spec: ConfigSpec) -> tuple[Vlan, ...]:
    vlans: list[Vlan] = []
    for (outer, inner), prefixes in (spec.vlans or {}).items():
        several: list[IPNetwork] = prefixes if isinstance(prefixes, list) else [prefixes]
        vlans.extend(Vlan(inner, prefix, outer) for prefix in several)
    return tuple(vlans)


def _check(spec: CheckSpec, first_port: int, above: tuple[ServiceSpec, DefaultsSpec]) -> Check:
    levels = (spec, *above)
    # Of a level that says how to judge, what is above it doesn't count.
    judge = next((level for level in levels if level.quorum or level.rise or level.fall), None)
    return Check(
        name=spec.name,
        type=spec.type,
        port=spec.port or first_port,
        detail=_detail(spec),
        interval_s=_lowest("interval", levels),
        timeout_s=_lowest("timeout", levels),
        rise=_lowest("rise", levels),
        fall=_lowest("fall", levels),
        quorum=judge.quorum if judge else None,
    )


def _detail(spec: CheckSpec) -> HttpRequest | DnsQuestion | UdpExchange | None:
    if spec.type in (CheckType.HTTP, CheckType.HTTPS):
        return _http(spec)
    if spec.type is CheckType.DNS:
        return DnsQuestion(spec.question, spec.record, spec.transport, spec.answer, spec.rcode)
    if spec.type is CheckType.UDP:
        payload = spec.payload if spec.payload is not None else spec.payload_hex
        return UdpExchange(payload or b"", spec.reply if spec.reply is not None else spec.reply_hex)
    return None


def _http(spec: CheckSpec) -> HttpRequest:
    accepted = spec.expect if isinstance(spec.expect, list) else [spec.expect]
    return HttpRequest(
        path=spec.path,
        host=spec.host,
        method=spec.method,
        headers=tuple(spec.headers.items()),
        expect=frozenset().union(*accepted),
        body=spec.body,
        body_regex=spec.body_regex,
        verify=spec.verify,
        ca_file=spec.ca_file,
    )
