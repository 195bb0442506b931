"""Whatever becomes of the process that shares flows, the balancer lives, says so once, and starts it again;
and the process outlives the balancer, until the next one ends it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from tests.unit.test_sharing_process import ORDER, PROGRAM, Rig, on_port, running, until
from vc5py import claim, sharer_child
from vc5py import sharing as sharing_module
from vc5py.sharer_child import Host
from vc5py.sharing import Sharing

# The first process is the one that fails, after it has read its order or before.
FIRST_FAILS = """\
import os, signal, sys
with open(sys.argv[1], "a+") as notes:
    first = not notes.tell()
    notes.write("started ")
if first:
    pass; UNREAD
line = sys.stdin.readline()
if first:
    pass; FAILURE
os.write(1, b'{"ready": 1}\\n{"report": {"peers": {"1": {"age_s": 0.0, "address": ""}}}}\\n')
sys.stdin.read()
"""
KILLED = "os.kill(os.getpid(), signal.SIGKILL)"
FAILURES = {
    "killed in mid-line": (f'os.write(1, b\'{{"strays": "AAAA\'); {KILLED}', "was killed by signal 9"),
    "killed in a long line": (f"os.write(1, b'x' * 131072); {KILLED}", "was killed by signal 9"),
    "killed after a line": (f"os.write(1, b'{{\"ready\": 1}}\\n'); {KILLED}", "was killed by signal 9"),
    "ended": ("sys.exit('no luck')", "ended with status 1: no luck retry"),
    "nonsense": ("os.write(1, b'Hello?\\n'); signal.pause()", "it talks nonsense: b'Hello?\\n'"),
    "line without end": ("\n    while True: os.write(1, b'x' * 65536)", "Separator is not found"),
    "mute": ("os.close(0); os.close(1); signal.pause()", "talks no more"),
}
UNREAD = {"killed at once": (KILLED, "was killed by signal 9")}


@contextmanager
def said(caplog: pytest.LogCaptureFixture) -> Iterator[list[str]]:
    """What was logged for people to heed."""
    lines: list[str] = []
    with caplog.at_level(logging.WARNING):
        yield lines
    ours = [record for record in caplog.records if record.name == sharing_module.__name__]
    lines += [record.getMessage() for record in ours if record.levelno >= logging.WARNING]


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharing_module, "WAITS_S", (0.01,))


@pytest.mark.parametrize("failure", FAILURES | UNREAD)
async def test_balancer_lives_and_says_so_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, failure: str
) -> None:
    what, reason = (FAILURES | UNREAD)[failure]
    if failure == "mute":
        monkeypatch.setattr(sharer_child, "END_S", 0.1)
    program = FIRST_FAILS.replace("UNREAD" if failure in UNREAD else "FAILURE", what)
    program = program.replace("UNREAD", "").replace("FAILURE", "")
    with said(caplog) as lines:
        async with running(ORDER, tmp_path, monkeypatch, program) as rig:
            await until(rig.sharing.has_peers)
            assert rig.sharing.snapshot().restarts == 1
            assert rig.notes.read_text() == "started " * 2
    [line] = lines
    assert line.startswith("flow sharing interrupted reason=")
    assert reason in line


async def test_same_reason_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    program = 'import os; os.write(1, b\'{"error": "no port"}\\n\')'
    with said(caplog) as lines:
        async with running(ORDER, tmp_path, monkeypatch, program) as rig:
            await until(lambda: rig.sharing.snapshot().restarts >= 3)
    assert lines == ["flow sharing interrupted reason=no port retry_s=0.01"]


async def test_one_that_hangs_is_killed_and_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sharing_module, "MUTE_S", 1.5)
    with said(caplog) as lines:
        async with running(ORDER, tmp_path, monkeypatch) as rig:
            await until(rig.sharing.has_peers)
            hanging = holder(tmp_path)
            assert hanging is not None
            os.kill(hanging, signal.SIGSTOP)
            await until(lambda: rig.sharing.snapshot().restarts >= 1)
            await until(rig.sharing.has_peers)
            assert holder(tmp_path) not in (None, hanging)
    [line] = lines
    assert line.startswith("flow sharing interrupted reason=its process says nothing for 1.5 s")


async def test_one_that_never_says_anything_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sharing_module, "START_S", 0.5)
    with said(caplog) as lines:
        async with running(ORDER, tmp_path, monkeypatch, "import signal; signal.pause()") as rig:
            await until(lambda: rig.sharing.snapshot().restarts >= 2)
    assert lines == ["flow sharing interrupted reason=its process says nothing for 0.5 s retry_s=0.01"]


@contextmanager
def no_more_files() -> Iterator[None]:
    """Nothing more can be opened."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(
        resource.RLIMIT_NOFILE, (max(int(fd.name) for fd in Path("/proc/self/fd").iterdir()), hard)
    )
    opened = []
    try:
        with pytest.raises(OSError, match="Too many open files"):
            while True:
                opened.append(os.open("/dev/null", os.O_RDONLY))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in opened:
            os.close(fd)


@contextmanager
def no_more_processes() -> Iterator[None]:
    """As the kernel answers where there is no room for another; root has no limit that could be set."""

    def fail(*_: object, **__: object) -> int:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "posix_spawn", fail)
        yield


@pytest.mark.parametrize(
    ("shortage", "reason"),
    [(no_more_files, "Too many open files"), (no_more_processes, "Resource temporarily unavailable")],
)
async def test_where_it_cannot_be_started_the_balancer_tries_again(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    shortage: Callable[[], AbstractContextManager[None]],
    reason: str,
) -> None:
    with said(caplog) as lines:
        async with running(None, tmp_path, monkeypatch) as rig:
            with shortage():
                rig.sharing.configure(ORDER)
                await until(lambda: rig.sharing._trouble != "")
            await until(rig.sharing.has_peers)
    [line] = lines
    assert reason in line


# After the director's end

# Goes on where its input ends, and says so when asked; notes whether another one is still there.
LASTING = """\
import os, signal, sys
signal.signal(signal.SIGUSR1, lambda *_: print("here", file=open(sys.argv[1] + ".asked", "w"), flush=True))
sys.stdin.readline()
def alive(pid):
    try: os.kill(pid, 0)
    except ProcessLookupError: return False
    return True
with open(sys.argv[1], "a+") as notes:
    notes.seek(0)
    others = [int(line.split()[0]) for line in notes]
    print(os.getpid(), any(map(alive, others)), file=notes)
os.write(1, b'{"report": {"peers": {"1": {"age_s": 0.0, "address": ""}}}}\\n')
while True: signal.pause()
"""


def holder(directory: Path) -> int | None:
    return claim.holder(directory / "sharer.pid") if (directory / "sharer.pid").exists() else None


async def left_by_a_director(directory: Path, patch: pytest.MonkeyPatch) -> int:
    """The process of one that has died, in effect: it has let go of it."""
    notes = directory / "notes"
    patch.setattr(sharer_child, "PROGRAM", ("-c", LASTING, str(notes)))
    sharing = Sharing(ORDER, lambda _: None, Host(directory))
    task = asyncio.create_task(sharing.run())
    await until(sharing.has_peers)
    task.cancel()
    await asyncio.wait({task})
    pid = holder(directory)
    assert pid is not None
    answer = directory / "notes.asked"
    os.kill(pid, signal.SIGUSR1)
    await until(lambda: answer.exists() or holder(directory) is None)
    assert answer.exists(), "it has gone"
    return pid


async def test_next_director_ends_it_before_it_starts_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    former = await left_by_a_director(tmp_path, monkeypatch)
    with said(caplog) as lines:
        async with running(ORDER, tmp_path, monkeypatch, LASTING) as rig:
            await until(rig.sharing.has_peers)
            assert holder(tmp_path) not in (None, former)
            assert rig.notes.read_text().splitlines() == [f"{former} False", f"{holder(tmp_path)} False"]
    assert lines == [], "nothing was in its way"
    assert holder(tmp_path) is None, "an orderly stop ends it"
    assert not (tmp_path / "sharer.pid").exists()


async def test_one_that_died_without_a_director_is_replaced_by_the_next_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody else would; and nothing of it is in the way."""
    former = await left_by_a_director(tmp_path, monkeypatch)
    os.kill(former, signal.SIGKILL)
    await asyncio.to_thread(os.waitpid, former, 0)
    assert holder(tmp_path) is None
    assert (tmp_path / "sharer.pid").read_text() == f"{former}\n", "what is written there counts for nothing"
    with said(caplog) as lines:
        async with running(ORDER, tmp_path, monkeypatch, LASTING) as rig:
            await until(rig.sharing.has_peers)
            assert rig.notes.read_text().splitlines() == [f"{former} False", f"{holder(tmp_path)} False"]
            assert rig.sharing.snapshot().restarts == 0
    assert lines == []


async def test_director_that_shares_nothing_ends_it_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await left_by_a_director(tmp_path, monkeypatch)
    async with running(None, tmp_path, monkeypatch):
        await until(lambda: holder(tmp_path) is None)


async def test_one_that_heeds_no_signal_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vc5py.offspring.STOP_S", 0.1)
    stubborn = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + PROGRAM
    async with running(on_port(1), tmp_path, monkeypatch, stubborn) as rig:
        await until(rig.sharing.has_peers)
        rig.sharing.configure(on_port(2))
        await until(lambda: ports(rig) == [1, 2])
        await until(rig.sharing.has_peers)


def ports(rig: Rig) -> list[int]:
    return [said["port"] for said in rig.told()]


async def test_process_that_has_just_begun_is_ended_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before it has claimed its place, and so before anybody could find it there."""
    monkeypatch.setattr(sharer_child, "PROGRAM", ("-c", LASTING, str(tmp_path / "notes")))
    host = Host(tmp_path)
    child = await host.start(())
    child.tell(json.dumps({}))
    assert not child.process.gone()
    child.leave()
    await host.clear()
    assert child.process.gone()
