"""That the benchmark of flow sharing runs and reports; never what it measures."""

from __future__ import annotations

from tests.bench.sync import Scale, measure, print_report


def test_reports_every_part() -> None:
    report = measure(
        Scale((20_000,), 0.5, 1 << 15, 1 << 14, losses=(50,), lossy=2000, copied=5000, packets=2000, rounds=1)
    )
    lines: list[str] = []
    print_report(report, lines.append)
    assert report.transfers[0].installed > 0
    assert report.transfers[0].bytes_per_flow > 16
    assert report.losses[0].flows == 2000
    assert report.copy.flows > 0
    assert len(report.costs) == 5
    assert sum(line.startswith(("met", "MISSED")) for line in lines) == 6
