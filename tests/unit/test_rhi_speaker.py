"""The parts of the speaker that need no router: its files, its process, its refusals."""

from __future__ import annotations

import os
import signal
import sys
from ipaddress import IPv4Address, ip_address
from pathlib import Path

import pytest

from vc5py.errors import RhiError
from vc5py.model import Neighbor, RhiConfig
from vc5py.rhi import child
from vc5py.rhi.child import Child, StateFiles
from vc5py.rhi.sessions import source_address
from vc5py.rhi.speaker import Machine, SessionState, Speaker

LOCAL = IPv4Address("127.0.0.1")
PEER = IPv4Address("127.0.0.9")
# Stands for ExaBGP where only a process with the right arguments matters.
SLEEPER = "import sys, time; print('ready', flush=True); time.sleep(60)"


def speaker(state_dir: Path) -> Speaker:
    config = RhiConfig(65001, (Neighbor(PEER, 65001, 65001),))
    return Speaker(config, Machine(LOCAL, LOCAL), state_dir)


@pytest.fixture
def files(tmp_path: Path) -> StateFiles:
    return StateFiles(tmp_path)


@pytest.fixture
def sleeper(tmp_path: Path) -> Path:
    path = tmp_path / "sleeper.py"
    path.write_text(SLEEPER)
    return path


def started_with(files: StateFiles, sleeper: Path, text: str = "") -> Child:
    files.write(text, 2.5)
    return child.start(files, sleeper, {"NAME": "value"})


async def ready(started: Child, files: StateFiles) -> None:
    while files.last_log_line() != "ready":
        assert not await started.wait_gone(0.01)


def test_a_new_speaker_knows_of_no_session_and_no_route(tmp_path: Path) -> None:
    fresh = speaker(tmp_path / "deep" / "state")
    assert dict(fresh.sessions()) == {PEER: SessionState.DOWN}
    assert fresh.announced() == frozenset()
    assert (tmp_path / "deep" / "state").stat().st_mode & 0o777 == 0o700


def test_a_missing_exabgp_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python3"))
    with pytest.raises(RhiError, match=f"{tmp_path}/exabgp: no such program"):
        speaker(tmp_path / "state")
    assert not (tmp_path / "state").exists()


def test_a_path_too_long_for_a_socket_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RhiError, match="too long"):
        speaker(tmp_path / ("x" * 100))


def test_the_source_address_is_the_kernels_choice() -> None:
    assert source_address(PEER, 179) == LOCAL
    assert source_address(ip_address("::1"), 179) == ip_address("::1")


def test_no_source_address_is_an_error() -> None:
    with pytest.raises(RhiError, match="no local address"):
        source_address(ip_address("255.255.255.255"), 179)


async def test_shutdown_without_exabgp_does_nothing(tmp_path: Path) -> None:
    await speaker(tmp_path).shutdown()
    assert list(tmp_path.iterdir()) == []


async def test_exabgp_is_started_apart_found_again_and_stopped(files: StateFiles, sleeper: Path) -> None:
    started = started_with(files, sleeper, "text")
    await ready(started, files)
    try:
        assert os.getsid(started.pid) == started.pid
        assert files.written_configuration() == "text"
        assert files.hold.read_text() == "2.5\n"
        assert {path.stat().st_mode & 0o777 for path in (files.configuration, files.hold, files.log)} == {
            0o600
        }
        found = child.find(files)
        assert found is not None
        assert found.pid == started.pid
        assert not await found.wait_gone(0)
        await found.stop()
        found.close()
        assert await started.wait_gone(5)
        assert child.find(files) is None
    finally:
        started.close()


async def test_a_pid_that_was_given_away_is_left_alone(files: StateFiles) -> None:
    files.pid.write_text(f"{os.getpid()}\n")
    assert child.find(files) is None
    files.pid.write_text("nonsense")
    assert child.find(files) is None


async def test_one_that_ignores_sigterm_is_killed(
    files: StateFiles, sleeper: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child, "STOP_S", 0.2)
    sleeper.write_text("import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN);" + SLEEPER)
    started = started_with(files, sleeper)
    await ready(started, files)
    await started.stop()
    started.close()
    with pytest.raises(ProcessLookupError):
        os.kill(started.pid, signal.SIGCONT)


async def test_a_process_that_is_gone_can_not_be_held(files: StateFiles, sleeper: Path) -> None:
    started = started_with(files, sleeper)
    await started.stop()
    started.close()
    with pytest.raises(ProcessLookupError):
        Child(started.pid)


def test_the_log_is_bounded(files: StateFiles) -> None:
    files.trim_log()
    files.log.write_bytes(b"x" * child.MAX_LOG)
    files.trim_log()
    assert files.log.stat().st_size == child.MAX_LOG
    files.log.write_bytes(b"x" * (child.MAX_LOG + 1))
    files.trim_log()
    assert files.log.stat().st_size == 0
