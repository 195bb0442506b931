"""The BFD process and the director's end of it, without a neighbor: start, adoption, hanging, the end."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import struct
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from vc5py import claim
from vc5py.bfd import messages, supervisor
from vc5py.bfd.messages import Wish, parse_status, parse_wishes
from vc5py.bfd.protocol import Settings
from vc5py.bfd.sessions import Status
from vc5py.bfd.supervisor import Supervisor
from vc5py.errors import RhiError
from vc5py.model import Bfd, IPAddress, Neighbor, RhiConfig
from vc5py.watching import shown, watch

NEIGHBOR, OTHER = ip_address("127.0.0.9"), ip_address("127.0.0.10")


def wish(neighbor: IPAddress) -> dict[IPAddress, Wish]:
    return {neighbor: Wish(str(neighbor), None, Settings())}


async def until(test: Callable[[], object], timeout_s: float = 60.0) -> None:
    """Polls: what happens in another process sends no event here."""
    async with asyncio.timeout(timeout_s):
        while not test():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def nobody(neighbor: IPAddress, reachable: bool) -> None:
    raise AssertionError(f"{neighbor} {reachable}: nothing was ever up")


@asynccontextmanager
async def running(directory: Path) -> AsyncIterator[Supervisor]:
    """Cancelled at the end, as when the director dies."""
    one = Supervisor(directory, nobody, scheduling="normal")
    task = asyncio.create_task(one.run())
    try:
        yield one
    finally:
        task.cancel()
        await asyncio.wait({task})


async def peer(directory: Path) -> int:
    """The process, which is busy with its director."""
    reader, writer = await asyncio.open_unix_connection(directory / "bfd.sock")
    assert json.loads(await reader.readline()) == {"busy": True}
    found = writer.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    writer.close()
    return int(struct.unpack("3i", found)[0])


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def known(one: Supervisor, *neighbors: IPAddress) -> Callable[[], bool]:
    def test() -> bool:
        found = one.sessions()
        return tuple(found) == neighbors and None not in found.values()

    return test


async def test_without_sessions_there_is_no_process(tmp_path: Path) -> None:
    async with running(tmp_path) as one:
        await asyncio.sleep(0)
        assert not (tmp_path / "bfd.sock").exists()
        one.configure(wish(NEIGHBOR), 5.0)
        assert one.sessions() == {NEIGHBOR: None}
        await until(known(one, NEIGHBOR))
        pid = await peer(tmp_path)
        one.configure(wish(OTHER), 5.0)
        await until(known(one, OTHER))
        assert await peer(tmp_path) == pid
        one.configure({}, 5.0)
        await until(lambda: not alive(pid))
        assert one.sessions() == {}


async def test_the_process_outlives_the_director_and_is_taken_over(tmp_path: Path) -> None:
    async with running(tmp_path) as one:
        one.configure(wish(NEIGHBOR), 30.0)
        await until(known(one, NEIGHBOR))
        pid = await peer(tmp_path)
    async with running(tmp_path) as two:
        two.configure(wish(NEIGHBOR), 30.0)
        await until(known(two, NEIGHBOR))
        assert await peer(tmp_path) == pid
        await two.shutdown()
        await until(lambda: not alive(pid))


async def test_the_process_does_not_outlive_the_hold(tmp_path: Path) -> None:
    async with running(tmp_path) as one:
        one.configure(wish(NEIGHBOR), 0.3)
        await until(known(one, NEIGHBOR))
        pid = await peer(tmp_path)
        left = time.monotonic()
    await until(lambda: not alive(pid))
    assert time.monotonic() - left >= 0.3


def processes(directory: Path) -> list[int]:
    """Those that listen in this directory, or will. Who still tries to claim it isn't one yet; who stands by
    behind one, its child, isn't another.
    """
    wanted, claiming = os.fsencode(directory / "bfd.sock"), os.fsencode(claim.__file__)
    found: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            arguments = (path / "cmdline").read_bytes().split(b"\0")
            if wanted in arguments and claiming not in arguments:
                found[int(path.name)] = int((path / "stat").read_text().rpartition(")")[2].split()[1])
    return [pid for pid, parent in found.items() if parent not in found]


async def test_cancelled_while_the_process_starts_the_next_run_has_the_only_one(tmp_path: Path) -> None:
    """After so many turns of the loop, the process has just been started, and doesn't listen."""
    for turns in range(2, 8):
        one = Supervisor(tmp_path, nobody, scheduling="normal")
        one.configure(wish(NEIGHBOR), 5.0)
        task = asyncio.create_task(one.run())
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task})
        async with running(tmp_path) as two:
            two.configure(wish(NEIGHBOR), 5.0)
            await until(known(two, NEIGHBOR))
            assert len(processes(tmp_path)) == 1, turns
            await two.shutdown()
        assert processes(tmp_path) == [], turns


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_a_dead_process_is_replaced(tmp_path: Path, number: signal.Signals) -> None:
    async with running(tmp_path) as one:
        one.configure(wish(NEIGHBOR), 1.0)
        await until(known(one, NEIGHBOR))
        pid = await peer(tmp_path)
        os.kill(pid, number)
        await until(lambda: one.sessions() == {NEIGHBOR: None})
        await until(known(one, NEIGHBOR))
        assert await peer(tmp_path) != pid
        assert not alive(pid)
        await one.shutdown()


async def test_a_process_that_goes_on_never_waits_longer_than_the_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often the one before it was killed: else its sessions would end with a living director."""
    monkeypatch.setattr(supervisor, "RETRY_ALIVE_S", 0.2)
    hold_s = 3.0
    async with running(tmp_path) as one:
        one.configure(wish(NEIGHBOR), hold_s)
        await until(known(one, NEIGHBOR))
        for _ in range(7):
            victim = await peer(tmp_path)
            heir = await stands_by(victim)
            os.kill(victim, signal.SIGKILL)
            await until(lambda: one.sessions() == {NEIGHBOR: None})
            await until(known(one, NEIGHBOR))
            assert await peer(tmp_path) == heir
        await one.shutdown()


async def stands_by(speaker: int) -> int:
    """The process behind it."""
    children = Path(f"/proc/{speaker}/task/{speaker}/children")
    await until(children.read_text)
    return int(children.read_text())


@pytest.mark.parametrize("both", [False, True], ids=["alone", "with its standby"])
async def test_a_hanging_process_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, both: bool
) -> None:
    monkeypatch.setattr(supervisor, "SILENCE_S", 2.5)
    async with running(tmp_path) as one:
        one.configure(wish(NEIGHBOR), 30.0)
        await until(known(one, NEIGHBOR))
        pid = await peer(tmp_path)
        heir = await stands_by(pid)
        for hanging in [pid, heir] if both else [pid]:
            os.kill(hanging, signal.SIGSTOP)
        await until(lambda: one.sessions() == {NEIGHBOR: None})
        await until(known(one, NEIGHBOR))
        assert not alive(pid)
        assert (alive(heir), await peer(tmp_path) == heir) == (not both, not both)
        await one.shutdown()


async def test_a_process_that_hangs_when_a_director_comes_is_killed(tmp_path: Path) -> None:
    async with running(tmp_path) as one:
        one.configure(wish(NEIGHBOR), 30.0)
        await until(known(one, NEIGHBOR))
        pid = await peer(tmp_path)
        heir = await stands_by(pid)
    for hanging in (pid, heir):
        os.kill(hanging, signal.SIGSTOP)
    async with running(tmp_path) as two:
        two.configure(wish(NEIGHBOR), 30.0)
        await until(known(two, NEIGHBOR))
        assert not alive(pid) and not alive(heir)
        await two.shutdown()


async def test_a_second_director_leaves_the_first_alone(tmp_path: Path) -> None:
    async with running(tmp_path) as one, running(tmp_path) as two:
        one.configure(wish(NEIGHBOR), 1.0)
        await until(known(one, NEIGHBOR))
        pid = await peer(tmp_path)
        two.configure(wish(OTHER), 1.0)
        await two.shutdown()
        assert alive(pid)
        assert known(one, NEIGHBOR)()
        await one.shutdown()


def test_a_directory_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(RhiError, match="too long"):
        Supervisor(tmp_path / ("x" * 100), nobody)
    (tmp_path / "file").touch()
    with pytest.raises(RhiError, match="can't make"):
        Supervisor(tmp_path / "file" / "bfd", nobody)


async def test_who_is_watched(tmp_path: Path) -> None:
    """By the configuration, from the address that BGP comes from."""
    rhi = RhiConfig(
        65000,
        (
            Neighbor(NEIGHBOR, 65000, 65000, bfd=Bfd(50, 5)),
            Neighbor(OTHER, 65000, 65000),
            Neighbor(ip_address("::9"), 65000, 65000, bfd=Bfd()),
        ),
    )
    one = Supervisor(tmp_path, nobody)
    watch(one, rhi, ip_address("127.0.0.1"))
    assert one._wishes == {
        "127.0.0.9": Wish("127.0.0.9", "127.0.0.1", Settings(50_000, 5)),
        "::9": Wish("::9", None, Settings(100_000, 3)),
    }
    found = shown(one, 1000.0, 10.0)
    assert [(str(s.neighbor), s.state, s.reachable) for s in found.sessions] == [
        ("127.0.0.9", "unknown", True),
        ("::9", "unknown", True),
    ]
    one._learn(Status("127.0.0.9", "up", "up", 0, 0, True, 2, 5, 5, since=4.0, detection_ms=250.0))
    assert shown(one, 1000.0, 10.0).sessions[0].since == 994.0, "as a Unix timestamp"
    watch(one, None, ip_address("127.0.0.1"))
    assert shown(one, 1000.0, 10.0).sessions == ()


GOOD = {"neighbor": "192.0.2.1", "source": None, "interval_us": 100_000, "multiplier": 3}


@pytest.mark.parametrize(
    "item",
    [
        None,
        {},
        GOOD | {"neighbor": "nowhere"},
        GOOD | {"source": "nowhere"},
        GOOD | {"interval_us": 0},
        GOOD | {"interval_us": 1 << 32},
        GOOD | {"multiplier": 0},
        GOOD | {"multiplier": 256},
        GOOD | {"multiplier": "x"},
    ],
)
def test_wishes_that_are_none(item: Any) -> None:
    with pytest.raises(ValueError):
        parse_wishes({"sessions": [item]})
    with pytest.raises(ValueError):
        parse_wishes({"sessions": item or None})


def test_wishes_as_they_were_made() -> None:
    made = Wish("192.0.2.1", "192.0.2.2", Settings(50_000, 5))
    line = messages.wishes([made], 30.0)
    assert parse_wishes(messages.parse_line(line)) == {"192.0.2.1": made}


@pytest.mark.parametrize("item", [None, {}, {"neighbor": "192.0.2.1"}])
def test_a_status_that_is_none(item: Any) -> None:
    with pytest.raises(ValueError):
        parse_status(item)
