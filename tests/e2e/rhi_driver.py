"""A director reduced to its Speaker, for tests that run it in a namespace and kill it.

Reads commands from standard input, answers each with one line of JSON: `routes VIP...`, `undecided`
(nothing), `status`, `flap VIP COUNT` (announce and withdraw in turns, each carried out before the next),
`shutdown`, `crash-free-exit` (cancel `run` and exit, as a restart does).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from ipaddress import IPv4Address, ip_address
from pathlib import Path
from typing import Any

from vc5py.model import RhiConfig
from vc5py.rhi.speaker import Speaker


def status(speaker: Speaker) -> dict[str, Any]:
    return {
        "sessions": {str(peer): str(state) for peer, state in speaker.sessions().items()},
        "announced": sorted(map(str, speaker.announced())),
    }


async def flap(speaker: Speaker, vip: str, count: int) -> None:
    for _ in range(count):
        for wanted in (frozenset({ip_address(vip)}), frozenset[Any]()):
            speaker.set_routes(wanted)
            while speaker.announced() != wanted:  # noqa: ASYNC110 (the point is to see every change)
                await asyncio.sleep(0)


async def obey(speaker: Speaker, line: str) -> bool:
    """Whether to go on."""
    word, *arguments = line.split()
    match word:
        case "routes":
            speaker.set_routes(frozenset(map(ip_address, arguments)))
        case "flap":
            await flap(speaker, arguments[0], int(arguments[1]))
        case "shutdown":
            await speaker.shutdown()
    print(json.dumps(status(speaker)), flush=True)
    return word not in ("shutdown", "crash-free-exit")


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("state_dir", type=Path)
    parser.add_argument("local", type=ip_address)
    parser.add_argument("--peer", type=ip_address, action="append", required=True)
    parser.add_argument("--hold", type=float, default=30.0)
    arguments = parser.parse_args()
    config = RhiConfig(65001, tuple(arguments.peer), arguments.hold)
    speaker = Speaker(config, IPv4Address(str(arguments.local)), arguments.local, arguments.state_dir)
    running = asyncio.create_task(speaker.run())
    while await obey(speaker, await asyncio.to_thread(sys.stdin.readline) or "crash-free-exit"):
        pass
    running.cancel()
    await asyncio.wait({running})


asyncio.run(main())
