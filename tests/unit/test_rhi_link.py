"""The director's end of the connection to the relay: whose answer is whose."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from vc5py.rhi import link
from vc5py.rhi.link import Link, LinkLostError, NoAnswerError, RelayHangsError
from vc5py.rhi.relay import PROTOCOL


@dataclass
class Relay:
    """Answers when the test says so."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def command(self) -> str:
        return str(json.loads(await self.reader.readline())["command"])

    def answer(self, *lines: str) -> None:
        self.writer.write(json.dumps({"answer": "done", "lines": lines}).encode() + b"\n")

    def part(self, *lines: str) -> None:
        self.writer.write(json.dumps({"lines": lines}).encode() + b"\n")


@asynccontextmanager
async def linked(path: Path, **hello: bool) -> AsyncIterator[tuple[Link, Relay]]:
    arrived: asyncio.Future[Relay] = asyncio.get_running_loop().create_future()

    def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(json.dumps({"relay": PROTOCOL, "exabgp": 2, **hello}).encode() + b"\n")
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


async def test_an_answer_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is waited for as long as parts come."""
    async with linked(tmp_path / "s", parts=True) as (one, relay):
        cancelled = asyncio.create_task(one.command("first"))
        assert await relay.command() == "first"
        cancelled.cancel()
        await asyncio.wait({cancelled})
        monkeypatch.setattr(link, "ANSWER_S", 0.2)
        asked = asyncio.create_task(one.command("show"))
        assert await relay.command() == "show"
        relay.part("of nobody's")
        relay.answer("the rest of it")
        for number in range(6):
            await asyncio.sleep(0.1)
            relay.part(f"{number} a", f"{number} b")
        relay.answer("the last")
        assert await asked == [*(f"{n} {x}" for n in range(6) for x in "ab"), "the last"]
        monkeypatch.undo()
        asked = asyncio.create_task(one.command("next"))
        assert await relay.command() == "next"
        relay.answer()
        assert await asked == []


@pytest.mark.parametrize("parts", [True, False], ids=["this version", "an earlier version"])
async def test_a_relay_that_breaks_off_amid_a_long_answer(tmp_path: Path, parts: bool) -> None:
    """One that was killed may be asked again; another never answers."""
    async with linked(tmp_path / "s", parts=parts) as (one, relay):
        asked = asyncio.create_task(one.command("show"))
        assert await relay.command() == "show"
        relay.writer.write(b'{"answer": "done", "lines": ["' + b"x" * 100_000)
        relay.writer.close()
        with pytest.raises(LinkLostError if parts else NoAnswerError, match="gone" if parts else "earlier"):
            await asked


def test_an_answer_that_came_while_this_process_was_stopped_is_heard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not with the tests' own loop, which doesn't count that time either."""
    monkeypatch.setattr(link, "ANSWER_S", 0.3)
    monkeypatch.setattr(link, "STEP_S", 0.1)

    async def main() -> None:
        async with linked(tmp_path / "s") as (one, relay):
            asked = asyncio.create_task(one.command("first"))
            assert await relay.command() == "first"
            time.sleep(0.5)  # noqa: ASYNC251 - stopped, together with the relay
            await asyncio.sleep(0)
            relay.answer("healthy")
            assert await asked == ["healthy"]
            started = time.monotonic()
            with pytest.raises(NoAnswerError):
                await one.command("second")
            assert time.monotonic() - started >= 0.3

    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        runner.run(main())


async def test_signs_of_life_go_with_commands_and_are_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None before the first command: who is refused its files is to renew no hold."""
    monkeypatch.setattr(link, "SIGN_S", 0.01)
    async with linked(tmp_path / "s", signs=True) as (one, relay):
        await asyncio.sleep(0.05)
        asked = asyncio.create_task(one.command("first"))
        assert await relay.command() == "first"
        relay.answer()
        await asked
        for _ in range(2 * link.SILENT_SIGNS):
            assert json.loads(await relay.reader.readline()) == {"alive": True}
            relay.writer.write(b'{"alive": true}\n')
        asked = asyncio.create_task(one.command("second"))
        with pytest.raises(RelayHangsError):
            await one.lost()
        with pytest.raises(RelayHangsError):
            await asked
        with pytest.raises(RelayHangsError):
            await one.command("third")


async def test_a_relay_of_an_earlier_version_is_given_no_signs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would take them for nonsense, and end the connection."""
    monkeypatch.setattr(link, "SIGN_S", 0.01)
    async with linked(tmp_path / "s") as (one, relay):
        for text in ("first", "second"):
            asked = asyncio.create_task(one.command(text))
            assert await relay.command() == text
            relay.answer()
            await asked
            await asyncio.sleep(0.05)
