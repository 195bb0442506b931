"""The director's end of the connection to the relay: whose answer is whose."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from vc5py.rhi import link
from vc5py.rhi.link import Link, LinkLostError, NoAnswerError
from vc5py.rhi.relay import PROTOCOL


@dataclass
class Relay:
    """Answers when the test says so."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def command(self) -> str:
        return str(json.loads(await self.reader.readline())["command"])

    def answer(self, line: str) -> None:
        self.writer.write(json.dumps({"answer": "done", "lines": [line]}).encode() + b"\n")


@asynccontextmanager
async def linked(path: Path) -> AsyncIterator[tuple[Link, Relay]]:
    arrived: asyncio.Future[Relay] = asyncio.get_running_loop().create_future()

    def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(json.dumps({"relay": PROTOCOL, "exabgp": 2}).encode() + b"\n")
        arrived.set_result(Relay(reader, writer))

    server = await asyncio.start_unix_server(serve, path)
    async with asyncio.timeout(30):
        one = await Link.connect(path, lambda _: None)
        relay = await arrived
        try:
            yield one, relay
        finally:
            await one.close()
            relay.writer.close()
            server.close()


async def test_the_late_answer_to_a_cancelled_command_is_nobodys(tmp_path: Path) -> None:
    async with linked(tmp_path / "s") as (one, relay):
        first = asyncio.create_task(one.command("first"))
        assert await relay.command() == "first"
        first.cancel()
        await asyncio.wait({first})
        second = asyncio.create_task(one.command("second"))
        assert await relay.command() == "second"
        relay.answer("to the first")
        relay.answer("to the second")
        assert await second == ["to the second"]


async def test_the_late_answer_to_a_command_given_up_is_nobodys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with linked(tmp_path / "s") as (one, relay):
        with monkeypatch.context() as impatient:
            impatient.setattr(link, "ANSWER_S", 0.01)
            with pytest.raises(NoAnswerError):
                await one.command("first")
        second = asyncio.create_task(one.command("second"))
        assert [await relay.command(), await relay.command()] == ["first", "second"]
        relay.answer("to the first")
        relay.answer("to the second")
        assert await second == ["to the second"]


async def test_a_relay_that_goes_leaves_nobody_waiting(tmp_path: Path) -> None:
    async with linked(tmp_path / "s") as (one, relay):
        waiting = asyncio.create_task(one.command("first"))
        assert await relay.command() == "first"
        relay.writer.close()
        with pytest.raises(LinkLostError):
            await waiting
        with pytest.raises(LinkLostError):
            await one.command("second")
