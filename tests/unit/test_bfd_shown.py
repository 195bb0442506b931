"""What is shown of BFD: metrics, `/v1/status` and its table."""

from __future__ import annotations

from ipaddress import ip_address

from vc5py.control import status, table
from vc5py.snapshot import BfdSessionSnapshot, BfdSnapshot, Snapshot
from vc5py.web import metrics

NEAR, FAR = ip_address("192.0.2.1"), ip_address("192.0.2.2")
SNAPSHOT = Snapshot(
    version="1",
    services=(),
    vips={},
    sessions={},
    verdicts=(),
    probes={},
    probe_lag_s=0.0,
    interfaces={},
    flow_capacity=1,
    bfd=BfdSnapshot(
        (
            BfdSessionSnapshot(NEAR, "up", True, 40.0, 1),
            BfdSessionSnapshot(FAR, "down", False, 90.0, 2),
        ),
        {"ttl": 3},
        0.25,
        "fifo",
    ),
    at=100.0,
)


def test_metrics() -> None:
    lines = metrics.render(SNAPSHOT).decode().splitlines()
    assert [line for line in lines if line.startswith("vc5_bfd")] == [
        'vc5_bfd_session_up{peer="192.0.2.1"} 1.0',
        'vc5_bfd_session_up{peer="192.0.2.2"} 0.0',
        'vc5_bfd_peer_reachable{peer="192.0.2.1"} 1.0',
        'vc5_bfd_peer_reachable{peer="192.0.2.2"} 0.0',
        'vc5_bfd_transitions_total{peer="192.0.2.1"} 1.0',
        'vc5_bfd_transitions_total{peer="192.0.2.2"} 2.0',
        'vc5_bfd_rejected_packets_total{reason="ttl"} 3.0',
        "vc5_bfd_lag_seconds 0.25",
        "vc5_bfd_real_time 1.0",
    ]


def test_status() -> None:
    document = status.to_json(SNAPSHOT)
    assert document["bfd"][1] == {
        "address": "192.0.2.2",
        "state": "down",
        "reachable": False,
        "since": 90.0,
        "transitions": 2,
    }
    lines = [line for line in table.lines(document) if line.startswith("BFD")]
    assert lines == [
        "BFD 192.0.2.1 up for 1m00s",
        "BFD 192.0.2.2 down for 10s: unreachable, told no routes",
    ]
