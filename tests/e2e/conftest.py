"""The lab, put up once for all end-to-end tests: real BIRD, real nginx, real balancers, real packets."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator

import pytest
from _pytest.runner import runtestprotocol

from tests.bench.machine import Canary, Stall
from vc5py.lab.assembly import Lab
from vc5py.lab.layout import ALL_VIPS, BALANCERS, Layout
from vc5py.lab.scenario import wait_for_next_hops, wait_for_reals

HOLD_S = 9
STALL_MS, ATTEMPTS = 50.0, 4
Lasted = Callable[[float, float], float]


def pytest_configure(config: pytest.Config) -> None:
    line = "timed: tenths of a second count; run again where it fails and the machine stood still meanwhile"
    config.addinivalue_line("markers", line)


def pytest_runtest_protocol(item: pytest.Function, nextitem: pytest.Item | None) -> bool | None:
    """A host that stops a virtual machine for long enough takes every BFD session down: that says nothing of
    the program, and of nothing else than BFD. See `tests/bench/machine.py`.
    """
    if item.get_closest_marker("timed") is None:
        return None
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for _ in range(ATTEMPTS):
        item._initrequest()  # fixtures anew
        with Canary() as canary:
            reports = runtestprotocol(item, log=False, nextitem=nextitem)
            if all(report.passed for report in reports) or (stalled_ms := canary.longest_ms()) < STALL_MS:
                break
        say_why_again(item, reports, stalled_ms)
    for report in reports:
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def say_why_again(item: pytest.Item, reports: list[pytest.TestReport], stalled_ms: float) -> None:
    """No failure is passed over in silence."""
    terminal = item.config.pluginmanager.get_plugin("terminalreporter")
    if terminal is not None:
        failed = next(report for report in reports if not report.passed)
        terminal.write_line(f"\n{item.nodeid} failed; the machine stood still for {stalled_ms:.0f} ms")
        terminal.write_line(failed.longreprtext)


@pytest.fixture(scope="session", autouse=True)
def root() -> None:
    if os.geteuid() != 0:
        pytest.fail("end-to-end tests make network namespaces: run them as root", pytrace=False)


@pytest.fixture
def lasted() -> Iterator[Lasted]:
    """Seconds between two moments, less those in which the machine kept processes waiting that had nothing to
    do: others were kept waiting, too.
    """
    with Canary() as first, Canary(fifo=False) as later:
        stalls: list[Stall] = []

        def measure(begin: float, end: float) -> float:
            time.sleep(0.2)  # until they have said it
            stalls.extend([*first.take(), *later.take()])
            return end - begin - sum(stall.within(begin, end) for stall in stalls)

        yield measure


@pytest.fixture(scope="session")
def standing_lab(root: None) -> Iterator[Lab]:
    # Sessions outlast a machine that stands still for some seconds; the tests say since when they are there.
    with Lab(Layout("vc5e2e", hold_s=HOLD_S)) as lab:
        lab.put_up()
        lab.start_balancers()
        yield lab


@pytest.fixture
def lab(standing_lab: Lab) -> Lab:
    """The lab in working order: all reals up, both balancers announcing all VIPs."""
    for vip in ALL_VIPS:
        wait_for_next_hops(standing_lab, *BALANCERS, vip=vip)
    wait_for_reals(standing_lab)
    return standing_lab
