"""The lab, put up once for all end-to-end tests: real BIRD, real nginx, real balancers, real packets."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from vc5py.lab.assembly import Lab
from vc5py.lab.layout import ALL_VIPS, BALANCERS, Layout
from vc5py.lab.scenario import wait_for_next_hops, wait_for_reals


@pytest.fixture(scope="session", autouse=True)
def root() -> None:
    if os.geteuid() != 0:
        pytest.fail("end-to-end tests make network namespaces: run them as root", pytrace=False)


@pytest.fixture(scope="session")
def standing_lab(root: None) -> Iterator[Lab]:
    with Lab(Layout("vc5e2e")) as lab:
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
