"""Prometheus metrics of one snapshot (https://prometheus.io/docs/practices/naming/).

A custom collector, so that every number of a scrape is of the same moment and nothing is kept twice.
"""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from vc5py.snapshot import Snapshot


class _SnapshotCollector(Collector):
    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterable[Metric]:
        yield from _node(self._snapshot)
        yield from _services(self._snapshot)
        yield from _reals(self._snapshot)
        yield from _probes(self._snapshot)


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
    capacity = GaugeMetricFamily("vc5_flow_table_entries", "Entries that the flow table has room for")
    capacity.add_metric([], snapshot.flow_capacity)
    yield capacity


def _services(snapshot: Snapshot) -> Iterable[Metric]:
    labels = ["service", "vip"]
    up = GaugeMetricFamily("vc5_service_up", "1 while enough reals of the service are up", labels=labels)
    need = GaugeMetricFamily("vc5_service_need", "Reals that the service needs", labels=labels)
    for service in snapshot.services:
        values = [service.id.service, str(service.id.vip)]
        up.add_metric(values, service.healthy)
        need.add_metric(values, service.need)
    yield from (up, need)
    vips = GaugeMetricFamily(
        "vc5_vip_up", "1 while the VIP is to be announced: all of its services are up", labels=["vip"]
    )
    for vip, announced in snapshot.vips.items():
        vips.add_metric([str(vip)], announced)
    yield vips


def _reals(snapshot: Snapshot) -> Iterable[Metric]:
    labels = ["service", "vip", "real"]
    up = GaugeMetricFamily("vc5_real_up", "1 while all checks of the real succeed", labels=labels)
    packets = CounterMetricFamily("vc5_real_packets", "Packets sent to the real", labels=labels)
    octets = CounterMetricFamily(
        "vc5_real_bytes", "Bytes sent to the real, counted as the frames came in", labels=labels
    )
    flows = GaugeMetricFamily("vc5_real_flows", "Entries of the flow table for the real", labels=labels)
    for service in snapshot.services:
        for real in service.reals:
            values = [service.id.service, str(service.id.vip), str(real.address)]
            up.add_metric(values, real.up)
            packets.add_metric(values, real.packets)
            octets.add_metric(values, real.bytes)
            flows.add_metric(values, real.flows)
    yield from (up, packets, octets, flows)


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
    return generate_latest(registry)
