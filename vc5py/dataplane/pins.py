"""What is pinned in the bpf directory: programs, and maps by generation; and whose directory it is.

Every program is pinned under a name of its own (`vc5_ingress_ID`) until it is attached everywhere and has the
name to itself. A generation of maps is a directory, named after its layout; until it is the only one, the
number of its flow table is added. Which generation is in charge is not a matter of names: it is the one that
has the maps of a program that is attached, the newest where there are several. Knows directories and ids, not
what the maps mean.

Invariant: programs and maps are pinned, all of them, before they are used, and nothing goes that an attached
program is or uses: whenever we are killed, and however often, whatever packets go by is found again.
"""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Callable, Collection, Iterator
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from pathlib import Path

from vc5py.dataplane import abi, libbpf, maps
from vc5py.dataplane.maps import Maps
from vc5py.errors import DataplaneError

_PROGRAM = "vc5_ingress"
# `_new` and `_old`: of versions that had no numbers.
_GENERATION = re.compile(r"[0-9a-f]{12}(_new|_old|_[0-9]+)?")
_LAYOUT_DIGITS = 12


# Whose it is


@contextmanager
def hold(bpf_dir: Path) -> Iterator[None]:
    """One run per directory, by a lock that no crash leaves behind. DataplaneError says who has it."""
    fd = os.open(bpf_dir, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = _holder(fd)
        os.close(fd)
        raise DataplaneError(f"another vc5py runs with the bpf directory {bpf_dir}{holder}") from None
    try:
        yield
    finally:
        os.close(fd)


def _holder(fd: int) -> str:
    """Who has locked a file, in words; nothing where that is hidden from us (another PID namespace)."""
    found = os.fstat(fd)
    file = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
    try:
        rows = [row.split() for row in Path("/proc/locks").read_text(encoding="ascii").splitlines()]
        pid = next(row[4] for row in rows if row[1] == "FLOCK" and row[5] == file)
        words = Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8", errors="replace").split("\0")
    except (OSError, StopIteration):
        return ""
    return f" (process {pid}: {' '.join(words).strip()})"


# Programs


def _program_pins(bpf_dir: Path) -> list[Path]:
    return sorted(bpf_dir.glob(f"{_PROGRAM}*"))


def programs(bpf_dir: Path) -> dict[int, int]:
    """Those of earlier runs: file descriptors by program id."""
    found: dict[int, int] = {}
    for pin in _program_pins(bpf_dir):
        fd = libbpf.get_pinned(pin)
        if found.setdefault(libbpf.program_id(fd), fd) != fd:
            os.close(fd)
    return found


def pin_program(bpf_dir: Path, fd: int) -> Path:
    """To be done before it is attached anywhere. No other program gets its number while it is pinned."""
    pin = bpf_dir / f"{_PROGRAM}_{libbpf.program_id(fd)}"
    libbpf.pin(fd, pin)
    return pin


def keep_program(pin: Path) -> None:
    """No other of ours is attached anywhere any more."""
    pin.rename(pin.with_name(_PROGRAM))
    for other in _program_pins(pin.parent):
        if other.name != _PROGRAM:
            other.unlink()


def forget_programs(bpf_dir: Path) -> None:
    """None of ours is attached anywhere any more."""
    for pin in _program_pins(bpf_dir):
        pin.unlink()


# Maps


def layout_of(directory: Path) -> str:
    """The name of the layout of the maps in a directory."""
    return directory.name[:_LAYOUT_DIGITS]


def is_own(directory: Path) -> bool:
    """Whether the maps there have the layout of this version."""
    return layout_of(directory) == abi.layout_hash()


def _generations(bpf_dir: Path) -> list[Path]:
    if not bpf_dir.is_dir():
        return []
    return sorted(p for p in bpf_dir.iterdir() if _GENERATION.fullmatch(p.name) and p.is_dir())


def flow_table_id(directory: Path) -> int | None:
    """The kernel's id of the flow table that is pinned there."""
    if not (directory / "flows").exists():
        return None
    fd = libbpf.get_pinned(directory / "flows")
    try:
        return libbpf.map_info(fd).id
    finally:
        os.close(fd)


Worth = Callable[[Path, int], tuple[bool, bool]]
"""Of a directory and its flow table: whether the layout can be read, and whether the flows' names can."""


def in_charge(bpf_dir: Path, used: AbstractSet[int], worth: Worth) -> tuple[Path, ...]:
    """The directories of the maps that packets go by: the best one first, to go on with, and the newest of
    these; then all others that may have flows which it lacks, for packets still go by them, or did until it
    took their place and its run was killed. Empty where no run has left any. `used`: the ids of the maps of
    attached programs.
    """
    ids = {directory: flow_table_id(directory) for directory in _generations(bpf_dir)}
    tables = {directory: table for directory, table in ids.items() if table is not None}
    in_use = [directory for directory, table in tables.items() if table in used]
    if in_use:
        best = max(in_use, key=lambda d: (worth(d, tables[d]), tables[d]))
        others = (d for d, table in tables.items() if table in used or table < tables[best])
        return best, *(d for d in others if d != best)
    whole = [d for d in tables if is_complete(d, maps.NAMES) or not is_own(d)]
    # Nothing is attached: names that are longer are what a run left that was killed.
    ranked = sorted(whole, key=lambda d: (not is_own(d), not worth(d, tables[d])[0], d.name))
    return tuple(ranked[:1])


def is_complete(directory: Path, names: Collection[str]) -> bool:
    return all((directory / name).exists() for name in names)


def _remove(directory: Path) -> None:
    if directory.is_dir():
        for pin in directory.iterdir():
            pin.unlink()
        directory.rmdir()


class Pins:
    """The maps of this run. `place`: the directory that they are pinned in, None where they are new."""

    def __init__(self, bpf_dir: Path, place: Path | None) -> None:
        self._bpf_dir = bpf_dir
        self._final = bpf_dir / abi.layout_hash()
        self._place = place
        self._new = place is None

    def prepare(self, current: Maps, in_charge: Collection[Path] = ()) -> None:
        """Pins new maps, before any program that uses them is attached. Of those of runs that were killed
        before they attached anything, which are not in charge, none is kept: they may be large.
        """
        if self._place is not None:
            return
        for directory in _generations(self._bpf_dir):
            if directory not in in_charge:
                _remove(directory)
        number = libbpf.map_info(current.fds["flows"]).id
        self._place = self._final.with_name(f"{self._final.name}_{number}")
        self._place.mkdir(parents=True)
        for name, fd in current.fds.items():
            libbpf.pin(fd, self._place / name)

    def give_up(self) -> None:
        """No program that uses the maps is attached any more."""
        if self._place is not None and self._new:
            _remove(self._place)
            self._place = None

    def commit(self) -> None:
        """Our maps are in charge: all other generations go, and ours gets its name."""
        assert self._place is not None
        for directory in _generations(self._bpf_dir):
            if directory != self._place:
                _remove(directory)
        self._place.rename(self._final)
        self._place = self._final
