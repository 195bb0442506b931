"""What a run of the tests that was killed may have left: network namespaces, with processes in them."""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

_NAMESPACES = Path("/run/netns")


def remove(*namespaces: str) -> None:
    """Those of them that are there, with all that runs in them."""
    for name in namespaces:
        if (_NAMESPACES / name).exists():
            for pid in _ip("pids", name).split():
                with suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            _ip("del", name)


def remove_those_of_the_dead(prefix: str) -> None:
    """Of the namespaces that are called PREFIX, a process id and a letter, those whose process is gone."""
    for path in _NAMESPACES.glob(f"{prefix}[0-9]*"):
        maker = path.name.removeprefix(prefix)[:-1]
        if maker.isdecimal() and not Path("/proc", maker).exists():
            remove(path.name)


def _ip(*words: str) -> str:
    return subprocess.run(["ip", "netns", *words], capture_output=True, text=True).stdout
