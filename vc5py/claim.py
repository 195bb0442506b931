"""Makes a process the only one of its kind: it claims a file and becomes a program, or ends.

Run as a script, with the standard library only: FILE PROGRAM ARGUMENT... Must not know: which program.

Invariants. A claim is a POSIX lock, fcntl(2). The kernel keeps it while the process becomes another program,
gives it to no child, drops it with the process however that ends, and says whose it is: so a claim is never
stale, and of two starts at a time it lets one be. What is written into the file is for people. A claim counts
only on the file that is in its place, which is removed only while nobody has claimed it. A program closes no
file that it didn't open, or it loses its claim.
"""

from __future__ import annotations

import fcntl
import os
import stat
import struct
import sys
from pathlib import Path

TAKEN = 75  # EX_TEMPFAIL, sysexits.h
_FLOCK = struct.Struct("hhqqi0q")  # l_type, l_whence, l_start, l_len, l_pid


def holder(file: Path) -> int | None:
    """The process that has claimed the file; None: nobody has."""
    try:
        fd = os.open(file, os.O_RDWR)
    except FileNotFoundError:
        return None
    try:
        asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        kind, _, _, _, pid = _FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_GETLK, asked))
    finally:
        os.close(fd)
    return int(pid) if kind != fcntl.F_UNLCK and pid > 0 else None


def take(file: Path) -> bool:
    """Claim the file for as long as this process lives; whether it could be had."""
    while True:
        fd = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
        if not _lock(fd):
            os.close(fd)
            return False
        if _is_in_place(fd, file):
            break
        os.close(fd)  # it was removed in between
    os.set_inheritable(fd, True)
    os.ftruncate(fd, 0)
    os.pwrite(fd, b"%d\n" % os.getpid(), 0)
    return True


def discard(file: Path) -> None:
    """Remove the file where nobody has claimed it."""
    try:
        fd = os.open(file, os.O_RDWR)
    except FileNotFoundError:
        return
    try:
        if _lock(fd) and _is_in_place(fd, file):
            file.unlink(missing_ok=True)
    finally:
        os.close(fd)


def _lock(fd: int) -> bool:
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True


def _is_in_place(fd: int, file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), file.stat())
    except FileNotFoundError:
        return False


def main() -> None:
    file, *command = sys.argv[1:]
    if not take(Path(file)):
        print(f"{file}: claimed by process {holder(Path(file))}", flush=True)
        sys.exit(TAKEN)
    if stat.S_ISREG(os.fstat(1).st_mode):
        os.ftruncate(1, 0)  # the log, of which an earlier process was in charge
    os.execv(command[0], command)


if __name__ == "__main__":
    main()
