"""The way to a real follows the kernel's routes and neighbours by netlink events, not by the next look."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import leftovers

DRIVER = Path(__file__).with_name("neighbour_driver.py")
HERE, THERE = "vc5t-nb-here", "vc5t-nb-there"
NEAR, FAR, OTHER_GATEWAY = "10.97.0.2", "10.97.9.9", "10.97.0.3"
MACS = {"first": "02:97:00:00:00:02", "second": "02:97:00:00:00:03"}


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, timeout=60)


@pytest.fixture
def namespaces() -> Iterator[None]:
    """A host `here` with one link to `there`, which answers as two gateways with a MAC address each."""
    leftovers.remove(HERE, THERE)
    try:
        for name in (HERE, THERE):
            ip("netns", "add", name)
        ip("link", "add", "eth0", "netns", HERE, "type", "veth", "peer", "name", "first", "netns", THERE)
        ip("-n", THERE, "link", "set", "first", "address", MACS["first"], "up")
        ip("-n", THERE, "link", "add", "second", "link", "first", "type", "macvlan", "mode", "bridge")
        ip("-n", THERE, "link", "set", "second", "address", MACS["second"], "up")
        for setting in ("all.arp_ignore=1", "all.arp_filter=0"):
            subprocess.run(
                ["ip", "netns", "exec", THERE, "sh", "-c", _sysctl(setting)], check=True, timeout=60
            )
        ip("-n", THERE, "addr", "add", f"{NEAR}/24", "dev", "first")
        ip("-n", THERE, "addr", "add", f"{OTHER_GATEWAY}/24", "dev", "second")
        ip("-n", HERE, "addr", "add", "10.97.0.1/24", "dev", "eth0")
        ip("-n", HERE, "link", "set", "eth0", "up")
        ip("-n", HERE, "route", "add", "10.97.9.0/24", "via", NEAR)
        yield
    finally:
        leftovers.remove(HERE, THERE)


def _sysctl(setting: str) -> str:
    name, value = setting.split("=")
    return f"echo {value} > /proc/sys/net/ipv4/conf/{name.replace('.', '/')}"


def test_the_way_follows_routes_and_neighbours(namespaces: None) -> None:
    command = ["ip", "netns", "exec", HERE, sys.executable, str(DRIVER), "eth0", NEAR, FAR]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as watch:
        assert watch.stdout is not None
        deadline = threading.Timer(60, watch.kill)  # then there is no more to read
        deadline.start()
        try:
            first = {watch.stdout.readline().strip() for _ in range(2)}
            assert first == {f"{NEAR} {MACS['first']} own", f"{FAR} {MACS['first']} gateway"}
            ip("-n", HERE, "route", "replace", "10.97.9.0/24", "via", OTHER_GATEWAY)
            assert watch.stdout.readline().strip() == f"{FAR} {MACS['second']} gateway"
        finally:
            deadline.cancel()
            watch.kill()
