"""A director that was stopped, as with its machine, goes on with the processes that it had."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit import absent_director
from tests.unit.absent_director import LIMIT_S


@pytest.fixture
def director(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", absent_director.__name__, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.send_signal(signal.SIGCONT)
            process.communicate(timeout=60)  # the end of its input ends it, and all that it keeps


def processes(director: subprocess.Popen[str]) -> str:
    assert director.stdin is not None and director.stdout is not None
    print(file=director.stdin, flush=True)
    return director.stdout.readline()


def test_director_that_was_stopped_kills_nobody(director: subprocess.Popen[str]) -> None:
    before = processes(director)
    assert "None" not in before
    director.send_signal(signal.SIGSTOP)
    time.sleep(1.2 * LIMIT_S)  # it's the time that matters
    director.send_signal(signal.SIGCONT)
    assert processes(director) == before
