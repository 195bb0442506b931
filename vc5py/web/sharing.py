"""Prometheus metrics of flow sharing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from vc5py.snapshot import SharingSnapshot

_Numbers = GaugeMetricFamily | CounterMetricFamily
_NUMBERS: tuple[tuple[type[_Numbers], str, str, Callable[[SharingSnapshot], float]], ...] = (
    (GaugeMetricFamily, "vc5_sync_enabled", "1 where flows are to be shared", lambda s: s.enabled),
    (
        GaugeMetricFamily,
        "vc5_sync_running",
        "1 while the process that shares flows reports",
        lambda s: s.running,
    ),
    (CounterMetricFamily, "vc5_sync_restarts", "Processes for flow sharing that ended", lambda s: s.restarts),
    (CounterMetricFamily, "vc5_sync_sent_datagrams", "Datagrams sent", lambda s: s.datagrams_sent),
    (CounterMetricFamily, "vc5_sync_sent_bytes", "UDP payload sent", lambda s: s.bytes_sent),
    (
        CounterMetricFamily,
        "vc5_sync_send_errors",
        "Datagrams that could not be sent",
        lambda s: s.send_errors,
    ),
    (CounterMetricFamily, "vc5_sync_sent_flows", "Flows that peers were told of", lambda s: s.sent),
    (CounterMetricFamily, "vc5_sync_received_flows", "Flows that peers have told of", lambda s: s.received),
    (
        CounterMetricFamily,
        "vc5_sync_missed_flows",
        "Changed flows that were not told at once, because too many changed",
        lambda s: s.missed,
    ),
    (
        CounterMetricFamily,
        "vc5_sync_lost_datagrams",
        "Datagrams of peers that did not arrive",
        lambda s: s.lost,
    ),
    (
        CounterMetricFamily,
        "vc5_sync_dropped_datagrams",
        "Datagrams that the kernel threw away: no room, or a flood of what can't count",
        lambda s: s.dropped,
    ),
    (
        GaugeMetricFamily,
        "vc5_sync_ambiguous_backends",
        "Backends whose flows can't be shared, because others have the same 32-bit name",
        lambda s: s.ambiguous,
    ),
    (
        GaugeMetricFamily,
        "vc5_sync_copied",
        "0 while a copy of a peer's flows is awaited",
        lambda s: s.copied,
    ),
    (CounterMetricFamily, "vc5_sync_cpu_seconds", "CPU time of the process", lambda s: s.cpu_s),
)


def metrics(sharing: SharingSnapshot) -> Iterable[Metric]:
    for kind, name, documentation, value in _NUMBERS if sharing.enabled else _NUMBERS[:1]:
        family = kind(name, documentation)
        family.add_metric([], float(value(sharing)))
        yield family
    yield from _by_label(
        "vc5_sync_datagrams", "Datagrams by what became of them", "outcome", sharing.datagrams
    )
    yield from _by_label("vc5_sync_flows", "Flows of peers by what became of them", "result", sharing.results)
    if sharing.peers:
        ages = GaugeMetricFamily(
            "vc5_sync_peer_age_seconds", "How long ago a peer was heard of", labels=["peer", "address"]
        )
        for peer in sharing.peers:
            ages.add_metric([peer.node, peer.address], peer.age_s)
        yield ages


def _by_label(name: str, documentation: str, label: str, counts: Mapping[str, int]) -> Iterable[Metric]:
    if counts:
        family = CounterMetricFamily(name, documentation, labels=[label])
        for value, count in counts.items():
            family.add_metric([value], count)
        yield family
