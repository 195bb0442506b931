"""What systemd is told, on a socket that the test has in its place."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from vc5py import watchdog
from vc5py.model import RhiConfig


@pytest.fixture(params=["path", "abstract"])
def systemd(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[socket.socket]:
    name = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(name if request.param == "path" else f"\0{name}")
        manager.settimeout(60.0)
        monkeypatch.setenv("NOTIFY_SOCKET", name if request.param == "path" else f"@{name}")
        yield manager


def test_it_is_told(systemd: socket.socket) -> None:
    watchdog.tell(watchdog.READY)
    assert systemd.recv(99) == b"READY=1"


def waiting(manager: socket.socket) -> int:
    """How many signs of life wait to be read; they are read."""
    manager.setblocking(False)
    for count in range(1000):
        try:
            assert manager.recv(99) == b"WATCHDOG=1"
        except BlockingIOError:
            return count
    raise AssertionError("too many")


@pytest.mark.parametrize("systemd", ["path"], indirect=True)
async def test_signs_of_life_come_from_the_loop(
    systemd: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At least two in the time that is allowed; one that is kept from running gives none."""
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    monkeypatch.setenv("WATCHDOG_USEC", "400000")
    async with watchdog.watched():
        await asyncio.sleep(0.4)
        assert 2 <= waiting(systemd) <= 6
        time.sleep(0.3)  # noqa: ASYNC251 - the loop hangs
        assert waiting(systemd) == 0
        await asyncio.sleep(0.2)
        assert waiting(systemd) > 0
    await asyncio.sleep(0.15)
    assert waiting(systemd) == 0


@pytest.mark.parametrize("systemd", ["path"], indirect=True)
@pytest.mark.parametrize(
    ("pid", "limit"), [("1", "10000"), (str(os.getpid()), "0"), (str(os.getpid()), "-1"), (None, "x")]
)
async def test_where_nobody_watches_there_are_no_signs(
    systemd: socket.socket, monkeypatch: pytest.MonkeyPatch, pid: str | None, limit: str
) -> None:
    if pid is not None:
        monkeypatch.setenv("WATCHDOG_PID", pid)
    monkeypatch.setenv("WATCHDOG_USEC", limit)
    async with watchdog.watched():
        await asyncio.sleep(0.02)
    assert waiting(systemd) == 0


@pytest.mark.parametrize("place", ["", "/nonexistent/notify"])
def test_nobody_to_tell_is_no_failure(monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", place)
    watchdog.tell(watchdog.READY)


def test_the_service_is_back_before_its_routes_go() -> None:
    """One that hangs: ended for certain, though it be stopped, and started again well within the hold."""
    unit = (Path(__file__).resolve().parents[2] / "deploy" / "vc5py.service").read_text()
    settings = dict(re.findall(r"^(\w+)=(.*)$", unit, re.MULTILINE))
    assert (settings["Type"], settings["WatchdogSignal"]) == ("notify", "SIGKILL")
    assert int(settings["WatchdogSec"]) + int(settings["RestartSec"]) <= RhiConfig(1, ()).hold_s - 5
