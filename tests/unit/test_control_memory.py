"""Overrides on the disk: what was saved is found again, whole or as before, and damage costs no start."""

from __future__ import annotations

import json
import logging
import os
from ipaddress import ip_address
from pathlib import Path

import pytest

from vc5py.control.memory import Memory
from vc5py.core.admin import Overrides
from vc5py.model import AdminState

REAL, REAL6 = ip_address("10.0.0.1"), ip_address("fd00::1")
SAID = (
    Overrides()
    .with_state(REAL, "web", AdminState.DRAINING)
    .with_state(REAL6, None, AdminState.DISABLED)
    .with_weight(REAL6, None, 7)
)


def files(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def test_what_was_saved_is_found_again(tmp_path: Path) -> None:
    Memory(tmp_path / "not" / "yet").save(SAID)
    assert Memory(tmp_path / "not" / "yet").load() == SAID


def test_nothing_was_saved_yet(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert Memory(tmp_path / "none").load() == Overrides()
    assert not (tmp_path / "none").exists()
    assert caplog.records == []


def test_file_is_for_its_owner_and_nothing_else_is_left(tmp_path: Path) -> None:
    memory = Memory(tmp_path)
    memory.save(SAID)
    memory.save(Overrides())
    assert files(tmp_path) == {"overrides.json"}
    assert memory.path.stat().st_mode & 0o777 == 0o600
    assert memory.load() == Overrides()


def test_crash_while_it_is_written_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = Memory(tmp_path)
    memory.save(SAID)

    def crash(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", crash)
    with pytest.raises(OSError, match="No space left"):
        memory.save(Overrides())
    assert memory.load() == SAID


def test_contents_are_on_the_disk_before_the_name_leads_to_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory, steps = Memory(tmp_path), []
    sync, rename = os.fsync, Path.replace

    def synced(handle: int) -> None:
        steps.append(Path(f"/proc/self/fd/{handle}").readlink().name)
        sync(handle)

    def renamed(path: Path, target: Path) -> Path:
        steps.append(f"{path.name} -> {target.name}")
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", renamed)
    memory.save(SAID)
    assert steps == ["overrides.tmp", "overrides.tmp -> overrides.json", tmp_path.name]


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (b"", "line 1 column 1"),
        (b'{"version": 1,\n "overrides": {"re', "line 2 column"),
        (b'{"\xe9": 1}', "decode"),
        (b"[]", "no mapping with version 1"),
        (b'{"version": 2, "overrides": {"reals": []}}', "no mapping with version 1"),
        (b'{"version": 1}', "expected"),
        (b'{"version": 1, "overrides": {"reals": [{"real": "10.0.0", "weight": 1}]}}', "entry 1"),
        (b"[" * 200_000, "nested too deeply"),
    ],
)
def test_damaged_file_is_put_aside_and_named(
    damage: bytes, told: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    memory = Memory(tmp_path)
    memory.path.write_bytes(damage)
    assert memory.load() == Overrides()
    assert (tmp_path / "overrides.damaged").read_bytes() == damage
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    text = record.getMessage()
    assert told in text and str(memory.path) in text and str(tmp_path / "overrides.damaged") in text


def test_nothing_that_was_put_aside_is_lost(tmp_path: Path) -> None:
    memory = Memory(tmp_path)
    for damage in ("a", "b", "c"):
        memory.path.write_text(damage)
        memory.load()
        memory.save(SAID)
    assert files(tmp_path) == {f"overrides.{end}" for end in ("json", "damaged", "damaged1", "damaged2")}


def test_file_that_cannot_be_read_is_no_reason_not_to_start(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    memory = Memory(tmp_path)
    memory.path.mkdir()
    assert memory.load() == Overrides()
    assert "Is a directory" in caplog.text


def test_file_is_one_that_people_can_read(tmp_path: Path) -> None:
    memory = Memory(tmp_path)
    memory.save(SAID)
    document = json.loads(memory.path.read_text())
    assert document["version"] == 1
    assert {"real": "10.0.0.1", "service": "web", "state": "draining"} in document["overrides"]["reals"]
