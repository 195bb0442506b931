"""That the benchmark of probes runs and reports; never what it measures."""

from __future__ import annotations

import os

import pytest

from tests.bench.checks import aims, measure, print_report


def test_reports_every_part(capsys: pytest.CaptureFixture[str]) -> None:
    cores = os.sched_getaffinity(0)
    figures, steady = measure(["http", "dns"], seconds=1)
    assert os.sched_getaffinity(0) == cores
    assert [(f.name, f.failed) for f in figures] == [("http", 0), ("dns", 0)]
    assert all(f.per_s > 0 and f.cpu_us > 0 and f.core_per_s > 0 for f in figures)
    assert steady is not None
    assert steady.lag_p99_ms <= steady.lag_worst_ms
    assert len(aims(figures, steady)) == 2
    print_report(figures, steady)
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith(("met", "MISSED")) for line in lines) == 2
