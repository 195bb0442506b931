"""Remembers over restarts what was commanded at run time: one file in the data directory.

Must not know: what overrides mean, when they change. Invariants: whatever happens while it is written, the
file is the old or the new one, never a part of it; a file that can't be understood is put aside, never
deleted and never a reason not to start.
"""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

from vc5py.core import admin
from vc5py.core.admin import Overrides

_log = logging.getLogger(__name__)

_VERSION = 1
_MAX_BYTES = 16 << 20


class Memory:
    """The file `overrides.json` in `directory`, which is made when there is something to remember."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "overrides.json"

    def load(self) -> Overrides:
        """What was saved last; nothing where that can't be had, with a line in the log that says why."""
        try:
            with self.path.open("rb") as file:
                content = file.read(_MAX_BYTES + 1)
        except FileNotFoundError:
            return Overrides()
        except OSError as error:
            _log.error("overrides not remembered file=%s error=%s", self.path, error.strerror)
            return Overrides()
        try:
            return _parsed(content)
        except ValueError as error:
            aside = self._put_aside()
            _log.error("overrides not remembered file=%s damaged=%s kept=%s", self.path, error, aside)
            return Overrides()

    def save(self, overrides: Overrides) -> None:
        """On the disk when it returns. Raises OSError. Blocks: to be called in a thread."""
        directory = self.path.parent
        directory.mkdir(parents=True, exist_ok=True)
        fresh = self.path.with_suffix(".tmp")
        document = {"version": _VERSION, "overrides": admin.to_json(overrides)}
        with fresh.open("w", encoding="utf-8") as file:
            os.fchmod(file.fileno(), 0o600)
            json.dump(document, file, indent=1)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(self.path)
        handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)  # the rename itself
        finally:
            os.close(handle)

    def _put_aside(self) -> str:
        """Under the first free name, so that nothing which was put aside before is lost."""
        number = 0
        while (aside := self.path.with_suffix(f".damaged{number or ''}")).exists():
            number += 1
        try:
            self.path.rename(aside)
        except OSError as error:
            return f"where it is ({error.strerror})"
        return str(aside)


def _parsed(content: bytes) -> Overrides:
    """ValueError with the place, where the text has one, of what is wrong."""
    if len(content) > _MAX_BYTES:
        raise ValueError(f"longer than {_MAX_BYTES} bytes")
    try:
        document = json.loads(content)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(document, dict) or document.get("version") != _VERSION:
        raise ValueError(f"no mapping with version {_VERSION}")
    return admin.from_json(document.get("overrides"))
