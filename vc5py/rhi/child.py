"""The files of one ExaBGP, and how it is started.

Must not know: BGP, routes, ExaBGP's grammar, the relay's protocol; what becomes of the process
(offspring.py).
"""

from __future__ import annotations

import os
import pwd
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from vc5py import offspring
from vc5py.errors import RhiError
from vc5py.offspring import Offspring, Place
from vc5py.rhi.relay import HOLD_SUFFIX, MEMORY_SUFFIX

MAX_LOG = 1 << 20


@dataclass(frozen=True, slots=True)
class StateFiles:
    """Everything of one speaker that lives in the file system."""

    directory: Path

    @property
    def configuration(self) -> Path:
        return self.directory / "exabgp.conf"

    @property
    def socket(self) -> Path:
        return self.directory / "relay.sock"

    @property
    def hold(self) -> Path:
        """Where the relay looks for how long it is to keep the routes."""
        return self.socket.with_suffix(HOLD_SUFFIX)

    @property
    def memory(self) -> Path:
        """The relay's own: since when it has been alone."""
        return self.socket.with_suffix(MEMORY_SUFFIX)

    def place(self) -> Place:
        return Place(self.directory, "exabgp")

    def prepare(self) -> None:
        """Make the directory, for its owner only."""
        offspring.prepare(self.directory, self.socket)

    def written_configuration(self) -> str | None:
        return _text(self.configuration)

    def write(self, configuration: str, hold_s: float) -> None:
        """What ExaBGP and the relay read, for the eyes of their user only: there may be passwords in it. What
        is there already needs no room.
        """
        for path, text in ((self.configuration, configuration), (self.hold, f"{hold_s:g}\n")):
            if _text(path) == text:
                continue
            fresh = path.with_name(f"{path.name}.new")
            try:
                fresh.unlink(missing_ok=True)
                with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                    file.write(text)
                fresh.replace(path)
            except OSError as error:
                raise RhiError(f"{path}: can't be written: {error.strerror}") from error

    def remove(self) -> None:
        """All that nobody needs without an ExaBGP."""
        unfinished = self.memory.with_name(f"{self.memory.name}.new")
        for path in (self.socket, self.configuration, self.hold, self.memory, unfinished):
            path.unlink(missing_ok=True)


def _text(path: Path) -> str | None:
    try:
        return path.read_text()
    except (OSError, ValueError):
        return None


def trim(log: Path) -> None:
    """Bound the log, where it can be written. ExaBGP appends, so it goes on at the new end."""
    with suppress(OSError):
        if log.stat().st_size > MAX_LOG:
            os.truncate(log, 0)


def relays(exabgp: int) -> list[Offspring]:
    """The living relays of this ExaBGP: it has no other children."""
    file = Path(f"/proc/{exabgp}/task/{exabgp}/children")
    found = []
    with suppress(OSError):
        for pid in file.read_text().split():
            one = Offspring(int(pid))
            if pid in file.read_text().split() and not one.gone():  # it has the number still
                found.append(one)
    return found


def program() -> Path:
    """The script that runs ExaBGP; RhiError where this Python environment has no ExaBGP."""
    path = Path(sys.executable).parent / "exabgp"
    if not path.is_file():
        raise RhiError(f"{path}: no such program; install ExaBGP 5 into this Python environment")
    return Path(__file__).with_name("exabgp_main.py")


def user() -> str:
    """The name of the user we run as."""
    return pwd.getpwuid(os.geteuid()).pw_name


def start(place: Place, files: StateFiles, exabgp: Path, environment: Mapping[str, str]) -> Offspring:
    """Start ExaBGP with the files that are written. `-P`: it imports nothing from beside the script."""
    return place.spawn(["-P", str(exabgp), "server", str(files.configuration)], environment)
