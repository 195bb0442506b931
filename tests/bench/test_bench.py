"""That the benchmark runs and reports; never what it measures."""

from __future__ import annotations

import pytest

from tests.bench import profile
from tests.bench.dataplane import Scale, measure
from tests.bench.report import print_report


def test_reports_every_scenario() -> None:
    report = measure(Scale(entries=1 << 12, flows=1 << 10, packets=2000, rounds=2, most_rounds=4))
    lines: list[str] = []
    print_report(report, lines.append)
    assert all(any(line.startswith(figure.name) for line in lines) for figure in report.figures)
    assert all(figure.harness[0] > 0 for figure in report.figures)
    assert len(report.figures) == 27
    assert len(report.aims()) == 5


@pytest.mark.parametrize("cut", profile.CUTS, ids=lambda cut: str(cut.name))
def test_what_the_profile_leaves_out_is_there(cut: profile.Cut) -> None:
    assert cut.instead in profile.without(cut)
