"""A director reduced to its BFD supervisor, for tests and benchmarks that run it in a namespace and kill it.

Reads commands from standard input: `want NEIGHBOR INTERVAL_MS MULTIPLIER ...` (three words a session; the
neighbor may be NEIGHBOR@OUR_ADDRESS), `status`, `shutdown`. Writes lines of JSON: an answer to each command,
{"reachable": ...} when a neighbor's changes, `at` the monotonic clock's time at which it heard of that, and
`since` when the BFD process says that its session changed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from dataclasses import asdict
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from vc5py.bfd.messages import Wish
from vc5py.bfd.protocol import Settings
from vc5py.bfd.supervisor import Supervisor
from vc5py.model import IPAddress


def say(message: dict[str, Any]) -> None:
    print(json.dumps(message), flush=True)


def wishes(words: list[str]) -> dict[IPAddress, Wish]:
    triples = zip(words[::3], words[1::3], words[2::3], strict=True)
    wanted = {}
    for ends, ms, multiplier in triples:
        neighbor, _, source = ends.partition("@")
        settings = Settings(int(ms) * 1000, int(multiplier))
        wanted[ip_address(neighbor)] = Wish(neighbor, source or None, settings)
    return wanted


def status(supervisor: Supervisor) -> dict[str, Any]:
    sessions = supervisor.sessions().items()
    return {
        "sessions": {str(neighbor): asdict(found) if found else None for neighbor, found in sessions},
        "report": asdict(supervisor.report()),
        "at": time.monotonic(),
    }


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("state_dir", type=Path)
    parser.add_argument("--scheduling", default="fifo")
    parser.add_argument("--hold", type=float, default=30.0)
    arguments = parser.parse_args()

    def on_reachable(neighbor: IPAddress, reachable: bool) -> None:
        session = supervisor.sessions().get(neighbor)
        since = session.since if session is not None else None
        say({"reachable": reachable, "neighbor": str(neighbor), "at": time.monotonic(), "since": since})

    supervisor = Supervisor(arguments.state_dir, on_reachable, scheduling=arguments.scheduling)
    running: asyncio.Task[None] | None = None
    while line := await asyncio.to_thread(sys.stdin.readline):
        word, *words = line.split()
        if word == "want":
            supervisor.configure(wishes(words), arguments.hold)
            running = running or asyncio.create_task(supervisor.run())
        elif word == "shutdown":
            await supervisor.shutdown()
        say(status(supervisor))
        if word == "shutdown":
            break
    if running is not None:
        running.cancel()
        await asyncio.wait({running})


asyncio.run(main())
