"""A director reduced to its Speaker, for tests that run it in a namespace and kill it.

Reads commands from standard input, answers each with one line of JSON: `routes VIP...`, `undecided`
(nothing), `status`, `flap VIP COUNT` (announce and withdraw in turns, each carried out before the next),
`shutdown`, `crash-free-exit` (cancel `run` and exit, as a restart does), `reload FILE` (another `rhi:`),
`reachable ADDRESS`, `unreachable ADDRESS`, `standings`, `again MOMENT HOW VIP...` (shut down, begin anew, and
be interrupted at that moment). Neighbors come by `--peer` or as `rhi:` in a file.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import asdict
from ipaddress import IPv4Address, ip_address
from pathlib import Path
from typing import Any

from vc5py.config import parse
from vc5py.errors import RhiError
from vc5py.model import IPAddress, Neighbor, RhiConfig
from vc5py.rhi.speaker import Machine, Speaker


def status(speaker: Speaker) -> dict[str, Any]:
    return {
        "sessions": {str(peer): str(state) for peer, state in speaker.sessions().items()},
        "announced": sorted(map(str, speaker.announced())),
    }


def standings(speaker: Speaker) -> dict[str, Any]:
    return {
        str(neighbor.address): {**asdict(one), "state": str(one.state)}
        for neighbor, one in speaker.standings().items()
    }


def rhi(file: Path) -> RhiConfig:
    config = parse("services: []\n" + file.read_text(), str(file)).rhi
    assert config is not None
    return config


async def flap(speaker: Speaker, vip: str, count: int) -> None:
    for _ in range(count):
        for wanted in (frozenset({ip_address(vip)}), frozenset[Any]()):
            speaker.set_routes(wanted)
            while speaker.announced() != wanted:  # noqa: ASYNC110 (the point is to see every change)
                await asyncio.sleep(0)


class Director:
    """One speaker after another."""

    def __init__(self, make: Callable[[], Speaker]) -> None:
        self._make = make
        self._begin()

    def _begin(self) -> None:
        self.speaker = self._make()
        self.running = asyncio.create_task(self.speaker.run())

    async def cancel(self) -> None:
        self.running.cancel()
        await asyncio.wait({self.running})

    async def again(self, moment: str, how: str, vips: frozenset[IPAddress]) -> None:
        """`moment`: seconds, or turns of the event loop ("7t"). `how`: what comes then. "die": nothing more;
        "same": the same speaker runs again; "another": another one does.
        """
        await self.cancel()
        await self.speaker.shutdown()
        self._begin()
        self.speaker.set_routes(vips)
        if moment.endswith("t"):
            for _ in range(int(moment[:-1])):
                await asyncio.sleep(0)
        else:
            await asyncio.sleep(float(moment))
        if how == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        await self.cancel()
        if how == "same":
            self.running = asyncio.create_task(self.speaker.run())
        else:
            self._begin()
        self.speaker.set_routes(vips)


async def obey(director: Director, line: str) -> bool:
    """Whether to go on."""
    word, *arguments = line.split()
    if word == "again":
        await director.again(arguments[0], arguments[1], frozenset(map(ip_address, arguments[2:])))
    speaker = director.speaker
    match word:
        case "routes":
            speaker.set_routes(frozenset(map(ip_address, arguments)))
        case "flap":
            await flap(speaker, arguments[0], int(arguments[1]))
        case "shutdown":
            await speaker.shutdown()
        case "reachable" | "unreachable":
            speaker.set_reachable(ip_address(arguments[0]), word == "reachable")
        case "reload":
            try:
                speaker.reconfigure(rhi(Path(arguments[0])))
            except RhiError as error:
                print(json.dumps({"error": str(error)}), flush=True)
                return True
        case "standings":
            print(json.dumps(standings(speaker)), flush=True)
            return True
    print(json.dumps(status(speaker)), flush=True)
    return word not in ("shutdown", "crash-free-exit")


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("state_dir", type=Path)
    parser.add_argument("local", type=ip_address)
    parser.add_argument("--peer", type=ip_address, action="append", default=[])
    parser.add_argument("--rhi", type=lambda name: rhi(Path(name)))
    parser.add_argument("--next-hop", type=ip_address, action="append", default=[])
    parser.add_argument("--hold", type=float, default=30.0)
    arguments = parser.parse_args()
    neighbors = tuple(Neighbor(peer, 65001, 65001) for peer in arguments.peer)
    config = arguments.rhi or RhiConfig(65001, neighbors, arguments.hold)
    machine = Machine(IPv4Address(str(arguments.local)), arguments.local, tuple(arguments.next_hop))
    director = Director(lambda: Speaker(config, machine, arguments.state_dir))
    while await obey(director, await asyncio.to_thread(sys.stdin.readline) or "crash-free-exit"):
        pass
    await director.cancel()


asyncio.run(main())
