"""A BFD process that is killed: who goes on, who doesn't. Real processes, without a neighbor."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from vc5py.bfd import messages
from vc5py.bfd.child import Connection, Host
from vc5py.bfd.messages import Wish
from vc5py.bfd.process import NAME, STANDBY_NAME
from vc5py.bfd.protocol import Settings

NEIGHBOR, OTHER = "127.0.0.9", "127.0.0.10"
TIMEOUT_S = 60.0
LATE_S = 5.0  # on a busy machine


async def until(test: Callable[[], Any], timeout_s: float = TIMEOUT_S) -> Any:
    """Polls: what happens in another process sends no event here."""
    async with asyncio.timeout(timeout_s):
        while not (found := test()):  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    return found


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def named(files: Path, name: str) -> list[int]:
    """Processes of these files that are called so."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            ours = os.fsencode(files / "bfd.sock") in (path / "cmdline").read_bytes()
            if ours and (path / "comm").read_text().strip() == name:
                found.append(int(path.name))
        except OSError:
            continue
    return found


@pytest.fixture
def files(tmp_path: Path) -> Iterator[Path]:
    """The processes' directory."""
    yield tmp_path
    left = [pid for name in (STANDBY_NAME, NAME) for pid in named(tmp_path, name)]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    for pid in left:
        with suppress(ChildProcessError):  # a child of one of them
            os.waitpid(pid, 0)


async def connect(files: Path) -> Connection:
    return await Host(files).attach("normal")


def want(connection: Connection, *neighbors: str, hold_s: float = 30.0) -> None:
    connection.writer.write(messages.wishes([Wish(n, None, Settings()) for n in neighbors], hold_s))


async def status(connection: Connection, *neighbors: str) -> dict[str, Any]:
    """By neighbor, of the next report about just these."""
    async with asyncio.timeout(TIMEOUT_S):
        while True:
            message = json.loads(await connection.reader.readline())
            found = {one["neighbor"]: one for one in message.get("status", ())}
            if "status" in message and set(found) == set(neighbors):
                return found


async def standby(files: Path) -> int:
    (pid,) = await until(lambda: len(named(files, STANDBY_NAME)) == 1 and named(files, STANDBY_NAME))
    return int(pid)


async def test_the_standby_goes_on_and_has_one_again(files: Path) -> None:
    first = await connect(files)
    want(first, NEIGHBOR)
    before = (await status(first, NEIGHBOR))[NEIGHBOR]
    descriptors = []
    for _ in range(3):
        heir, dead = await standby(files), first.process.pid
        os.kill(dead, signal.SIGKILL)
        async with asyncio.timeout(TIMEOUT_S):
            await first.reader.read()  # until its end: no other process holds the connection
        await until(lambda heir=heir: heir in named(files, NAME))  # type: ignore[misc]
        await first.process.wait_gone(TIMEOUT_S)
        await first.leave()
        first = await connect(files)
        assert first.process.pid == first.hello["pid"] == heir
        after = (await status(first, NEIGHBOR))[NEIGHBOR]
        assert after["packets_out"] >= before["packets_out"] > 0
        assert after["since"] == before["since"]
        before = after
        await standby(files)
        descriptors.append(len(list(Path(f"/proc/{heir}/fd").iterdir())))
    assert len(set(descriptors)) == 1, "none is left over from those before"
    await standby(files)
    await first.end()
    await until(lambda: named(files, NAME) == named(files, STANDBY_NAME) == [])


async def test_sessions_that_were_added_are_known_to_the_standby(files: Path) -> None:
    first = await connect(files)
    want(first, NEIGHBOR)
    early = await standby(files)
    want(first, NEIGHBOR, OTHER)
    await until(lambda: early not in named(files, STANDBY_NAME) and named(files, STANDBY_NAME))
    heir = await standby(files)
    os.kill(first.process.pid, signal.SIGKILL)
    await until(lambda: heir in named(files, NAME))
    await first.leave()
    second = await connect(files)
    await status(second, NEIGHBOR, OTHER)
    await second.end()


async def test_without_sessions_there_is_no_standby(files: Path) -> None:
    first = await connect(files)
    await status(first)
    assert named(files, STANDBY_NAME) == []
    want(first, NEIGHBOR)
    heir = await standby(files)
    want(first)
    await until(lambda: not alive(heir))
    await first.end()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_nobody_goes_on_for_a_process_that_was_told_to_end(files: Path, number: int) -> None:
    first = await connect(files)
    want(first, NEIGHBOR)
    heir = await standby(files)
    os.kill(first.process.pid, number)
    await first.reader.read()
    await until(lambda: named(files, NAME) == [] and not alive(heir))
    await first.leave()


async def test_the_end_of_both_ends_both(files: Path) -> None:
    """As systemd does it."""
    first = await connect(files)
    want(first, NEIGHBOR)
    for pid in (await standby(files), first.process.pid):
        os.kill(pid, signal.SIGTERM)
    await first.reader.read()
    await until(lambda: named(files, NAME) == named(files, STANDBY_NAME) == [])
    await first.leave()


async def test_who_goes_on_waits_for_a_director_no_longer_than_the_hold(files: Path) -> None:
    hold_s = 0.3
    first = await connect(files)
    want(first, NEIGHBOR, hold_s=hold_s)
    heir = await standby(files)
    at = time.monotonic()
    os.kill(first.process.pid, signal.SIGKILL)
    await first.leave()
    await until(lambda: not alive(heir))
    assert hold_s <= time.monotonic() - at < hold_s + LATE_S


async def test_a_director_gets_an_answer_whenever_it_comes(files: Path) -> None:
    """The listening socket is the same, so there is no moment without one."""
    first = await connect(files)
    want(first, NEIGHBOR)
    await standby(files)
    os.kill(first.process.pid, signal.SIGKILL)
    with socket.socket(socket.AF_UNIX) as other:
        other.connect(str(files / "bfd.sock"))
        other.settimeout(TIMEOUT_S)
        assert b'"bfd":2' in await asyncio.to_thread(other.recv, 1 << 16)
    await first.leave()
