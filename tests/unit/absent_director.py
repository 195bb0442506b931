"""A director that can be stopped: keeps a BFD process and one that shares flows, and waits for neither long.

Argument: a directory. For each line on standard input it says, once both have reported again, which processes
these are: `bfd sharer`.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from tests.unit.test_bfd_supervisor import NEIGHBOR, wish
from tests.unit.test_sharing_process import on_port, running, until
from vc5py import claim
from vc5py import sharing as sharing_module
from vc5py.bfd import supervisor
from vc5py.bfd.supervisor import Supervisor

LIMIT_S = 1.5  # both report every second, or more often


async def main(directory: Path) -> None:
    bfd, sharer = directory / "bfd", directory / "sharer"
    sharer.mkdir()
    watching = Supervisor(bfd, lambda *_: None, scheduling="normal")
    watching.configure(wish(NEIGHBOR), 30.0)
    task = asyncio.create_task(watching.run())
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(lines), sys.stdin.buffer
    )
    async with running(on_port(1), sharer, pytest.MonkeyPatch()) as rig:
        while await lines.readline():
            before = watching.report(), rig.sharing._report
            await until(lambda before=before: _both_new(before, (watching.report(), rig.sharing._report)))  # type: ignore[misc]
            print(claim.holder(bfd / "bfd.pid"), claim.holder(sharer / "sharer.pid"), flush=True)
    task.cancel()
    await asyncio.wait({task})
    await watching.shutdown()


def _both_new(before: tuple[object, object], now: tuple[object, object]) -> bool:
    return all(one is not other for one, other in zip(before, now, strict=True))


if __name__ == "__main__":
    supervisor.SILENCE_S = sharing_module.MUTE_S = LIMIT_S
    asyncio.run(main(Path(sys.argv[1])))
