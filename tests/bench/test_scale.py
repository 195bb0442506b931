"""That the benchmark of size runs and reports; never what it measures."""

from __future__ import annotations

from tests.bench.scale import Scale, aims, measure, print_report


def test_reports_every_part() -> None:
    report = measure(Scale(services=6, reals=5, distinct=20, entries=1 << 12, changes=3, steady_s=0.1))
    lines: list[str] = []
    print_report(report, lines.append)
    assert [one.name for one in report.installed] == ["the same reals", "20 reals"]
    assert all(one.step_ms[1] > 0 and one.apply_ms[1] > 0 for one in report.installed)
    assert report.scanned.occupied == 0.5
    assert len(report.reloaded) == 3 and all(one.took_s > 0 for one in report.reloaded)
    assert [one.reals for one in report.resolved] == [20, 20] and all(
        one.took_s > 0 for one in report.resolved
    )
    assert len(aims(report)) == 10
    assert sum(line.startswith(("met", "MISSED")) for line in lines) == 10
