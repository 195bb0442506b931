"""What the speaker believes of its sessions, and who knows of a VIP: ExaBGP's events and its answers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest

from vc5py.model import IPAddress, Neighbor, RhiConfig
from vc5py.rhi.link import Link
from vc5py.rhi.relay import PROTOCOL
from vc5py.rhi.speaker import Machine, SessionState, Speaker

LOCAL = IPv4Address("127.0.0.1")
PEER, OTHER = IPv4Address("127.0.0.9"), IPv4Address("127.0.0.10")
VIP, VIP2 = IPv4Address("192.0.2.1"), IPv4Address("192.0.2.2")
NEIGHBORS = tuple(Neighbor(peer, 65001, 65001) for peer in (PEER, OTHER))


def line(message: dict[str, Any]) -> bytes:
    return json.dumps(message).encode() + b"\n"


def answer(**states: str) -> bytes:
    """To "show neighbor": each one's state, by what it is called here."""
    names = {"peer": PEER, "other": OTHER}
    shown = [
        {"peer": {"address": str(names[name])}, "fsm": state, "messages": {"sent": {"update": 0}}}
        for name, state in states.items()
    ]
    return line({"answer": "done", "lines": [json.dumps(shown)]})


def event(peer: IPAddress, state: str) -> bytes:
    about = {"address": {"peer": str(peer)}, "state": state, "reason": "so it is"}
    return line({"event": {"type": "state", "neighbor": about}})


@asynccontextmanager
async def observing(directory: Path, said: bytes) -> AsyncIterator[tuple[Speaker, Link]]:
    """A speaker, and a relay that says this to its first command, all at once."""
    one = Speaker(RhiConfig(65001, NEIGHBORS), Machine(LOCAL, LOCAL), directory)
    one._resolve()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(line({"relay": PROTOCOL, "exabgp": 2}))
        await reader.readline()
        writer.write(said)
        await reader.read()
        writer.close()

    async with asyncio.timeout(30):
        server = await asyncio.start_unix_server(serve, directory / "relay")
        link = await Link.connect(directory / "relay", one._event)
        try:
            yield one, link
        finally:
            await link.close()
            server.close()


@pytest.mark.parametrize("late", [False, True], ids=["before the answer", "behind it"])
async def test_an_answer_that_an_event_has_overtaken_is_not_believed(tmp_path: Path, late: bool) -> None:
    """ExaBGP wrote it down a moment before the session was up; the other neighbor's part holds."""
    shown, news = answer(peer="connect", other="established"), event(PEER, "up")
    async with observing(tmp_path, shown + news if late else news + shown) as (one, link):
        await one._observe_sessions(link)
        assert dict(one.sessions()) == dict.fromkeys((PEER, OTHER), SessionState.ESTABLISHED)


async def test_nor_one_that_does_not_know_the_neighbor_yet(tmp_path: Path) -> None:
    async with observing(tmp_path, answer(other="connect") + event(PEER, "up")) as (one, link):
        await one._observe_sessions(link)
        assert one.sessions()[PEER] is SessionState.ESTABLISHED


async def test_the_next_answer_is_believed_again(tmp_path: Path) -> None:
    """An event counts against the answer that was waited for then, and no other."""
    async with observing(tmp_path, answer(peer="idle", other="idle")) as (one, link):
        one._event({"type": "state", "neighbor": {"address": {"peer": str(PEER)}, "state": "up"}})
        await one._observe_sessions(link)
        assert one.sessions()[PEER] is SessionState.DOWN


async def test_who_knows_of_a_vip_has_a_session(tmp_path: Path) -> None:
    """What ExaBGP keeps for a neighbor that is away nobody was told."""
    async with observing(tmp_path, answer(peer="established", other="connect")) as (one, link):
        said = dict.fromkeys([(PEER, VIP), (OTHER, VIP), (OTHER, VIP2)], "next-hop self")
        one._told.update(said)
        assert one.told() == {}
        await one._observe_sessions(link)
        assert one.told() == {VIP: 1}
        one._event({"type": "state", "neighbor": {"address": {"peer": str(OTHER)}, "state": "up"}})
        assert one.told() == {VIP: 2, VIP2: 1}
