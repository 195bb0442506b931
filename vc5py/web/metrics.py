"""Prometheus metrics of one snapshot (https://prometheus.io/docs/practices/naming/).

A custom collector, so that every number of a scrape is of the same moment and nothing is kept twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from vc5py.model import AdminState
from vc5py.snapshot import RealSnapshot, ServiceSnapshot, Snapshot
from vc5py.web import sharing

_SERVICE_METRICS: tuple[tuple[str, str, Callable[[ServiceSnapshot], float]], ...] = (
    ("vc5_service_up", "1 while enough reals of the service are healthy", lambda s: s.healthy),
    ("vc5_service_need", "Reals that the service needs", lambda s: s.need),
    ("vc5_service_sorry", "1 while the sorry reals serve", lambda s: s.sorry),
    (
        "vc5_service_serving_tier",
        "The highest tier of reals that gets new flows; -1 where none does",
        lambda s: -1 if s.serving_tier is None else s.serving_tier,
    ),
)

_REAL_METRICS: tuple[tuple[str, str, str, Callable[[RealSnapshot], float]], ...] = (
    ("gauge", "vc5_real_up", "1 while all checks of the real succeed", lambda r: r.up),
    ("gauge", "vc5_real_serving", "1 while the real gets new flows", lambda r: r.serving),
    (
        "gauge",
        "vc5_real_draining",
        "1 where the real is to get no new flows",
        lambda r: r.admin is AdminState.DRAINING,
    ),
    (
        "gauge",
        "vc5_real_disabled",
        "1 where the real is to get no packets",
        lambda r: r.admin is AdminState.DISABLED,
    ),
    (
        "gauge",
        "vc5_real_damped",
        "1 while the real flaps, and is kept out where enough others can serve",
        lambda r: r.damped,
    ),
    ("gauge", "vc5_real_weight", "The real's share of new flows", lambda r: r.weight),
    (
        "gauge",
        "vc5_real_tier",
        "The tier of the real; 0 serves first, -1 is a sorry real",
        lambda r: -1 if r.sorry else r.tier,
    ),
    (
        "gauge",
        "vc5_real_last_transition_timestamp_seconds",
        "When the state of the real last changed",
        lambda r: r.since,
    ),
    ("counter", "vc5_real_packets_total", "Packets sent to the real", lambda r: r.packets),
    (
        "counter",
        "vc5_real_bytes_total",
        "Bytes sent to the real, counted as the frames came in",
        lambda r: r.bytes,
    ),
    ("gauge", "vc5_real_flows", "Entries of the flow table for the real", lambda r: r.flows),
)


class _SnapshotCollector(Collector):
    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterable[Metric]:
        yield from _node(self._snapshot)
        yield from _config(self._snapshot)
        yield from _services(self._snapshot)
        yield from _probes(self._snapshot)
        yield from sharing.metrics(self._snapshot.sharing)


def _node(snapshot: Snapshot) -> Iterable[Metric]:
    info = GaugeMetricFamily("vc5_info", "The running version, as a label; always 1", labels=["version"])
    info.add_metric([snapshot.version], 1)
    yield info
    native = GaugeMetricFamily(
        "vc5_interface_xdp_native",
        "1 where XDP runs in the driver, 0 where it runs in slow generic mode",
        labels=["interface"],
    )
    for name, mode in snapshot.interfaces.items():
        native.add_metric([name], mode == "native")
    yield native
    verdicts = CounterMetricFamily(
        "vc5_verdicts", "Packets by how they ended in the data plane", labels=["verdict", "action"]
    )
    for verdict in snapshot.verdicts:
        verdicts.add_metric([verdict.name, verdict.action], verdict.packets)
    yield verdicts
    sessions = GaugeMetricFamily("vc5_bgp_session_up", "1 while BGP is established", labels=["peer"])
    for peer, up in snapshot.sessions.items():
        sessions.add_metric([str(peer)], up)
    yield sessions
    yield from _neighbors(snapshot)
    yield from _bfd(snapshot)
    capacity = GaugeMetricFamily("vc5_flow_table_entries", "Entries that the flow table has room for")
    capacity.add_metric([], snapshot.flow_capacity)
    yield capacity


def _bfd(snapshot: Snapshot) -> Iterable[Metric]:
    up = GaugeMetricFamily("vc5_bfd_session_up", "1 while the BFD session is up", labels=["peer"])
    reachable = GaugeMetricFamily(
        "vc5_bfd_peer_reachable", "0 where the BFD session was up and found the path broken", labels=["peer"]
    )
    changes = CounterMetricFamily(
        "vc5_bfd_transitions", "Changes of the state of the BFD session", labels=["peer"]
    )
    for session in snapshot.bfd.sessions:
        peer = [str(session.neighbor)]
        up.add_metric(peer, session.state == "up")
        reachable.add_metric(peer, session.reachable)
        changes.add_metric(peer, session.transitions)
    yield from (up, reachable, changes)
    rejected = CounterMetricFamily(
        "vc5_bfd_rejected_packets", "BFD packets thrown away, by reason", labels=["reason"]
    )
    for reason, count in snapshot.bfd.rejected.items():
        rejected.add_metric([reason], count)
    yield rejected
    if snapshot.bfd.sessions:
        yield from _bfd_process(snapshot)


def _bfd_process(snapshot: Snapshot) -> Iterable[Metric]:
    lag = GaugeMetricFamily(
        "vc5_bfd_lag_seconds", "How late the BFD process woke up, at the worst of the last second"
    )
    lag.add_metric([], snapshot.bfd.lag_s)
    yield lag
    real_time = GaugeMetricFamily(
        "vc5_bfd_real_time", "1 where the BFD process runs, and with real-time priority"
    )
    real_time.add_metric([], snapshot.bfd.scheduling == "fifo")
    yield real_time


def _neighbors(snapshot: Snapshot) -> Iterable[Metric]:
    labels = ["peer"]
    routes = GaugeMetricFamily("vc5_bgp_routes", "VIPs that a BGP neighbor is told of", labels=labels)
    since = GaugeMetricFamily(
        "vc5_bgp_session_since_timestamp_seconds",
        "When the BGP session came up, or where it is not up, when it went down",
        labels=labels,
    )
    for neighbor in snapshot.neighbors:
        routes.add_metric([str(neighbor.address)], neighbor.routes)
        since.add_metric([str(neighbor.address)], neighbor.since)
    yield routes
    yield since
    withdrawn = GaugeMetricFamily("vc5_vip_overrides", "VIPs announced or withdrawn by command")
    withdrawn.add_metric([], len(snapshot.vip_overrides))
    yield withdrawn


def _config(snapshot: Snapshot) -> Iterable[Metric]:
    successful = GaugeMetricFamily(
        "vc5_config_last_reload_successful", "1 where the last attempt to load the configuration succeeded"
    )
    successful.add_metric([], snapshot.reload.successful)
    yield successful
    loaded = GaugeMetricFamily(
        "vc5_config_last_reload_success_timestamp_seconds",
        "When the configuration in force was loaded",
    )
    loaded.add_metric([], snapshot.reload.loaded_at)
    yield loaded
    overrides = GaugeMetricFamily("vc5_overrides", "States and weights of reals commanded at run time")
    overrides.add_metric([], len(snapshot.overrides))
    yield overrides


def _services(snapshot: Snapshot) -> Iterable[Metric]:
    names = [[service.id.service, str(service.id.vip)] for service in snapshot.services]
    for name, documentation, value in _SERVICE_METRICS:
        family = GaugeMetricFamily(name, documentation, labels=["service", "vip"])
        for labels, service in zip(names, snapshot.services, strict=True):
            family.add_metric(labels, value(service))
        yield family
    vips = GaugeMetricFamily(
        "vc5_vip_up", "1 while the VIP is to be announced: all of its services are up", labels=["vip"]
    )
    for vip, announced in snapshot.vips.items():
        vips.add_metric([str(vip)], announced)
    yield vips
    told = GaugeMetricFamily(
        "vc5_vip_told_neighbors",
        "BGP neighbors that are told of the VIP in an established session",
        labels=["vip"],
    )
    for vip, count in snapshot.vip_told.items():
        told.add_metric([str(vip)], count.told)
    yield told


def _reals(snapshot: Snapshot) -> Iterable[str]:
    """The families that have a sample for every real, as text: for a hundred thousand reals the library takes
    many times as long.
    """
    reals = [
        (f'{{service="{_escaped(service.id.service)}",vip="{service.id.vip}",real="{real.address}"}}', real)
        for service in snapshot.services
        for real in service.reals
    ]
    for kind, name, documentation, value in _REAL_METRICS:
        yield f"# HELP {name} {documentation}\n# TYPE {name} {kind}\n"
        for labels, real in reals:
            number = value(real)
            yield (
                f"{name}{labels} {number!r}\n"
                if isinstance(number, float)
                else f"{name}{labels} {number:d}\n"
            )


def _escaped(label: str) -> str:
    return label.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def _probes(snapshot: Snapshot) -> Iterable[Metric]:
    probes = CounterMetricFamily("vc5_probes", "Probes by check type and outcome", labels=["type", "outcome"])
    for (kind, outcome), count in snapshot.probes.items():
        probes.add_metric([kind, outcome], count)
    yield probes
    lag = GaugeMetricFamily("vc5_probe_lag_seconds", "How much later than planned the last probe began")
    lag.add_metric([], snapshot.probe_lag_s)
    yield lag


def render(snapshot: Snapshot) -> bytes:
    """The text exposition format."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_SnapshotCollector(snapshot))
    return generate_latest(registry) + "".join(_reals(snapshot)).encode()
