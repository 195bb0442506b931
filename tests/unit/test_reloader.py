"""One reload at a time, none forgotten, and the event loop goes on meanwhile."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Collection
from pathlib import Path

import pytest

from vc5py import reload as reload_module
from vc5py.control.interface import ReloadRefusedError
from vc5py.errors import DataplaneError
from vc5py.loading import Loaded, load
from vc5py.model import Config, IPAddress
from vc5py.reload import Reloader

TEXT = """
services: [{name: web, addr: 192.0.2.1, port: 80, real: g, checks: [], need: 1}]
reals: {g: [10.0.0.1]}
"""


def text(number: int) -> str:
    return TEXT + f"flows: {1024 << number}\n"


class Applied:
    """What was put into force; holds the next one up while `may` isn't set."""

    def __init__(self) -> None:
        self.configs: list[Config] = []
        self.began, self.may = asyncio.Event(), asyncio.Event()
        self.may.set()
        self.error: Exception | None = None

    async def __call__(self, config: Config) -> tuple[str, ...]:
        self.began.set()
        await self.may.wait()
        if self.error is not None:
            raise self.error
        self.configs.append(config)
        return ("a note",)

    @property
    def flows(self) -> list[int]:
        return [config.flows for config in self.configs]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "vc5.yaml"
    path.write_text(text(0))
    return path


async def test_those_that_ask_meanwhile_share_one_that_begins_afterwards(file: Path) -> None:
    applied = Applied()
    reloader = Reloader(load(file), applied)
    applied.may.clear()
    file.write_text(text(1))
    first = asyncio.create_task(reloader.reload())
    await applied.began.wait()
    others = [asyncio.create_task(reloader.reload()) for _ in range(5)]
    await asyncio.sleep(0)
    file.write_text(text(2))
    applied.may.set()
    reports = await asyncio.gather(first, *others)
    assert applied.flows == [2048, 4096]
    assert all(report is reports[1] for report in reports[1:])
    assert [report.changes[0].detail for report in reports[:2]] == ["1024 -> 2048", "2048 -> 4096"]
    assert reports[0].changes[0].restart
    assert reports[0].notes == ("a note",)
    assert reloader.loaded.text == text(2)


async def test_one_that_is_no_longer_waited_for_goes_on(file: Path) -> None:
    applied = Applied()
    reloader = Reloader(load(file), applied)
    applied.may.clear()
    file.write_text(text(1))
    asked = asyncio.create_task(reloader.reload())
    await applied.began.wait()
    asked.cancel()
    await asyncio.wait([asked])
    applied.may.set()
    await reloader.reload()
    assert applied.flows == [2048, 2048]


async def test_refusal_keeps_what_was_and_the_next_one_may_succeed(file: Path) -> None:
    applied = Applied()
    before = load(file)
    reloader = Reloader(before, applied)
    file.write_text(text(1))
    applied.error = DataplaneError("no room")
    with pytest.raises(ReloadRefusedError, match=r"^no room; the configuration in force is as before$"):
        await reloader.reload()
    assert reloader.loaded is before
    assert not reloader.snapshot().successful
    applied.error = None
    await reloader.reload()
    assert reloader.snapshot().successful
    assert reloader.snapshot().loaded_at > before.at


async def test_bug_is_not_taken_for_a_success(file: Path) -> None:
    applied = Applied()
    reloader = Reloader(load(file), applied)
    applied.error = KeyError("x")
    with pytest.raises(KeyError):
        await reloader.reload()
    assert not reloader.snapshot().successful


async def test_event_loop_goes_on_while_a_file_is_read(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reading, may = threading.Event(), threading.Event()

    def slow(path: Path, own: Collection[IPAddress]) -> Loaded:
        reading.set()
        assert may.wait(60)
        return load(path, own)

    reloader = Reloader(load(file), Applied())
    monkeypatch.setattr(reload_module, "load", slow)
    asked = asyncio.create_task(reloader.reload())
    async with asyncio.timeout(60):
        await asyncio.to_thread(reading.wait)
    assert not asked.done()
    may.set()
    await asked


async def test_stop_ends_what_is_under_way(file: Path) -> None:
    applied = Applied()
    reloader = Reloader(load(file), applied)
    applied.may.clear()
    asked = [asyncio.create_task(reloader.reload())]
    await applied.began.wait()
    asked.append(asyncio.create_task(reloader.reload()))
    await asyncio.sleep(0)
    await reloader.stop()
    applied.may.set()
    await asyncio.wait(asked)
    assert all(task.cancelled() for task in asked)
    assert applied.configs == []
