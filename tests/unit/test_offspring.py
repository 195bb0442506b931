"""Processes that outlive the director: one of a place, found by the kernel's word, ended for certain."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import pytest

from vc5py import claim, offspring
from vc5py.errors import RhiError
from vc5py.offspring import Offspring, Place, Supervision

SLEEPER = "import time; print('ready', flush=True); time.sleep(60)"
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN);" + SLEEPER
PARENT = (
    "import subprocess, sys; child = subprocess.Popen([sys.executable, '-c', 'input()'], "
    "stdin=subprocess.PIPE, close_fds=False); print('ready', flush=True); "
    "import time; time.sleep(60)"
)


async def until(test: Callable[[], object], timeout_s: float = 60.0) -> None:
    """Polls: what happens in another process sends no event here."""
    async with asyncio.timeout(timeout_s):
        while not test():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    made = Place(tmp_path, "one")
    yield made
    while (left := Place(tmp_path, "one").find()) is not None:
        left.kill()
        await left.wait_gone(5)


async def started(place: Place, program: str = SLEEPER) -> Offspring:
    process = place.spawn(["-c", program], {"NAME": "value"})
    await until(lambda: place.last_words().startswith("ready"))
    return process


async def test_it_lives_apart_and_is_found_by_the_next_director(place: Place) -> None:
    process = await started(place)
    assert os.getsid(process.pid) == process.pid
    files = {int(path.name): str(path.readlink()) for path in Path(f"/proc/{process.pid}/fd").iterdir()}
    assert [files[number] for number in range(3)] == [os.devnull, str(place.log), str(place.log)]
    assert str(place.claim) in files.values()
    assert not [file for file in files.values() if "socket:" in file or "eventpoll" in file]
    environment = Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0")
    names = {entry.partition(b"=")[0] for entry in environment if entry}
    assert names - {b"LC_CTYPE"} == {b"PATH", b"NAME"}, "Python sets LC_CTYPE itself"
    assert place.claim.read_text() == f"{process.pid}\n"
    found = Place(place.claim.parent, "one").find()
    assert found is not None
    assert found.pid == process.pid
    assert not await found.wait_gone(0)
    await found.stop()
    assert process.gone()
    assert place.find() is None
    with pytest.raises(ProcessLookupError):
        Offspring(process.pid)


@pytest.mark.parametrize("attempt", range(5))
async def test_of_two_that_are_started_at_a_time_one_ends(place: Place, attempt: int) -> None:
    other = Place(place.claim.parent, "one")
    both = [place.spawn(["-c", SLEEPER], {}), other.spawn(["-c", SLEEPER], {})]
    await until(lambda: any(process.gone() for process in both))
    (left,) = [process for process in both if not process.gone()]
    await until(lambda: claim.holder(place.claim) == left.pid)
    for here in (place, other):
        found = here.find()
        assert found is not None
        assert found.pid == left.pid


async def test_who_comes_too_late_says_so(place: Place) -> None:
    process = await started(place)
    late = Place(place.claim.parent, "one")
    refused = late.spawn(["-c", SLEEPER], {})
    assert await refused.wait_gone(10)
    assert f"claimed by process {process.pid}" in late.last_words()
    assert not process.gone()


async def test_it_is_found_before_it_has_become_what_it_is_to_be(place: Place) -> None:
    process = place.spawn(["-c", SLEEPER], {})
    assert place.find() is process
    await process.stop()
    assert place.find() is None


async def test_what_is_written_in_the_file_counts_for_nothing(place: Place) -> None:
    for text in (f"{os.getpid()}\n", "nonsense", ""):
        place.claim.write_text(text)
        assert place.find() is None
    process = await started(place)
    place.claim.write_text("1\n")
    found = Place(place.claim.parent, "one").find()
    assert found is not None
    assert found.pid == process.pid


async def test_the_file_goes_only_while_nobody_has_claimed_it(place: Place) -> None:
    process = await started(place)
    Place(place.claim.parent, "one").clear()
    assert place.claim.exists()
    await process.stop()
    place.clear()
    assert not place.claim.exists()
    place.clear()


def test_a_claim_on_a_file_that_was_removed_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between opening it and claiming it, once."""
    file, lock, locked = tmp_path / "one.pid", claim._lock, 0

    def lock_later(fd: int) -> bool:
        nonlocal locked
        locked += 1
        if locked == 1:
            file.unlink()
        return lock(fd)

    monkeypatch.setattr(claim, "_lock", lock_later)
    assert claim.take(file)
    assert file.read_text() == f"{os.getpid()}\n"
    for path in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            if path.readlink() == file:
                os.close(int(path.name))


async def test_children_of_the_process_do_not_have_its_claim(place: Place) -> None:
    process = await started(place, PARENT)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.kill()
    assert await process.wait_gone(5)
    assert Place(place.claim.parent, "one").find() is None
    for child in map(int, children):
        os.kill(child, signal.SIGKILL)


async def test_one_that_ignores_sigterm_is_killed(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offspring, "STOP_S", 0.2)
    process = await started(place, STUBBORN)
    await process.stop()
    assert process.gone()


async def test_one_that_can_not_become_what_it_is_to_be(place: Place) -> None:
    place.claim.mkdir()
    process = place.spawn(["-c", SLEEPER], {})
    assert await process.wait_gone(10)
    assert "IsADirectoryError" in place.last_words()
    place.claim.rmdir()


async def test_a_cancelled_wait_leaves_the_process_and_no_file(place: Place) -> None:
    process = await started(place)
    before = open_files()
    waiting = asyncio.create_task(process.wait_gone(60))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait({waiting})
    assert not process.gone()
    assert open_files() == before


def test_a_directory_that_can_not_be_used(tmp_path: Path) -> None:
    with pytest.raises(RhiError, match="too long"):
        offspring.prepare(tmp_path / ("x" * 100), tmp_path / ("x" * 100) / "some.sock")
    (tmp_path / "file").touch()
    with pytest.raises(RhiError, match="can't make"):
        offspring.prepare(tmp_path / "file" / "state", tmp_path / "file" / "state" / "some.sock")
    with pytest.raises(RhiError, match="can't start"):
        Place(tmp_path / "missing", "one").spawn(["-c", SLEEPER], {})


def supervised(serve: Callable[[], Awaitable[None]]) -> Supervision:
    return Supervision("test", serve, first_s=0.01, longest_s=0.05)


async def test_what_fails_or_ends_is_run_again_ever_later(caplog: pytest.LogCaptureFixture) -> None:
    times: list[float] = []
    enough = asyncio.Event()

    async def serve() -> None:
        times.append(asyncio.get_running_loop().time())
        if len(times) == 6:
            enough.set()
        if len(times) % 2:
            raise RhiError("no luck")

    task = asyncio.create_task(supervised(serve).run())
    async with asyncio.timeout(10):
        await enough.wait()
    task.cancel()
    await asyncio.wait({task})
    waits = [after - before for before, after in pairwise(times)]
    assert all(
        wait >= least - 0.002 for wait, least in zip(waits, (0.01, 0.02, 0.04, 0.05, 0.05), strict=True)
    )
    assert "test interrupted reason=no luck retry_s=0.01" in caplog.text
    assert "retry_s=0.04" in caplog.text


async def test_who_is_waited_for_comes_in_time_and_says_no_more_for_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The back-off would be 60 s by now."""
    attempts = 0
    enough = asyncio.Event()

    async def serve() -> None:
        nonlocal attempts
        attempts += 1
        if attempts == 20:
            enough.set()
        raise RhiError("no luck" if attempts < 15 else "other reason")

    one = Supervision("test", serve, first_s=0.01, longest_s=60, patience=lambda: 0.02)
    task = asyncio.create_task(one.run())
    async with asyncio.timeout(30):
        await enough.wait()
    task.cancel()
    await asyncio.wait({task})
    said = [record.getMessage() for record in caplog.records]
    assert "test interrupted reason=other reason retry_s=0.02" in said
    assert len(said) < 15, "a repeat is told only as often as without the haste"


async def test_a_bug_ends_the_supervision() -> None:
    async def serve() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await supervised(serve).run()


async def test_whoever_is_impatient_there_is_one_at_a_time() -> None:
    """Its end takes a while and is cut short; the next begins only after it."""
    alive, most = 0, 0
    begun = asyncio.Event()

    async def serve() -> None:
        nonlocal alive, most
        alive += 1
        most = max(most, alive)
        begun.set()
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            try:
                await asyncio.sleep(0.05)
            finally:
                alive -= 1

    one = supervised(serve)
    async with asyncio.timeout(10):
        for cancellations in (1, 2, 3):
            begun.clear()
            task = asyncio.create_task(one.run())
            await begun.wait()
            for _ in range(cancellations):
                task.cancel()
                await asyncio.sleep(0)
            last = asyncio.create_task(one.run())
            begun.clear()
            await begun.wait()
            last.cancel()
            await one.end()
            await asyncio.wait({task, last})
    assert (alive, most) == (0, 1)
