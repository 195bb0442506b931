"""Secrets as they are read: the cluster's, and BGP passwords, each from a file or from the environment.

Must not know: what they are used for. Invariant: a message names the place, and never tells what is there.
These are the rules of `run` and `reload`; `check` asks by them what they would say.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from vc5py.errors import SecretError
from vc5py.model import Secret

MIN_SECRET = 16
MAX_KEYS = 2
_SPACE, _DELETE = 0x20, 0x7F
MAX_PASSWORD = 80
"""TCP_MD5SIG_MAXKEYLEN, tcp(7)."""


def cluster_secret(place: Secret) -> bytes:
    """What flows are named by. Raises SecretError."""
    return _lines(place, 1)[0]


def cluster_keys(place: Secret) -> list[bytes]:
    """What datagrams are signed with, the first by us. Raises SecretError."""
    return _lines(place, MAX_KEYS)


def _lines(place: Secret, most: int) -> list[bytes]:
    lines = [line.strip() for line in _content(place).splitlines() if line.strip()]
    if not 1 <= len(lines) <= most:
        expected = "one" if most == 1 else f"1 to {most}"
        raise SecretError(f"{_where(place)}: found {len(lines)} lines, expected {expected}")
    for line in lines:
        if len(line) < MIN_SECRET:
            raise SecretError(f"{_where(place)}: found {len(line)} bytes, expected {MIN_SECRET} or more")
    return lines


def _content(place: Secret) -> bytes:
    if place.file is None:
        return _variable(place)
    try:
        return Path(place.file).read_bytes()
    except OSError as error:
        raise SecretError(f"{place.file}: {error.strerror or error}") from error


def is_open(place: Secret) -> bool:
    """Whether it is in a file that everybody can read."""
    try:
        return place.file is not None and bool(Path(place.file).stat().st_mode & stat.S_IROTH)
    except OSError:
        return False


def bgp_password(place: Secret) -> bytes:
    """Of TCP's MD5 signatures: one line. What an editor may have left behind is refused, for the router's
    password hasn't got it, and all that anybody would see is that no session comes up. Raises SecretError.
    """
    text = _variable(place) if place.file is None else _password_file(Path(place.file))
    password = text.removesuffix(b"\n")
    if fault := _fault(password):
        raise SecretError(f"{_where(place)}: found {fault}, expected one line with the password alone")
    if not 0 < len(password) <= MAX_PASSWORD:
        raise SecretError(
            f"{_where(place)}: found {len(password)} bytes, expected a password of 1 to {MAX_PASSWORD}"
        )
    return password


def _fault(password: bytes) -> str:
    if b"\n" in password:
        return "more than one line"
    if b"\r" in password:
        return "a carriage return (an end of line as DOS has it)"
    if any(byte < _SPACE or byte == _DELETE for byte in password):
        return "a control character"
    return "" if password == password.strip() else "white space around the password"


def _password_file(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_mode & stat.S_IROTH:
                raise SecretError(f"{path}: a password that everybody can read: chmod 600 it")
            return file.read(MAX_PASSWORD + 3)
    except OSError as error:
        raise SecretError(f"{path}: the password can't be read: {error.strerror}") from error


def _variable(place: Secret) -> bytes:
    return os.environb.get((place.variable or "").encode(), b"")


def _where(place: Secret) -> str:
    return place.file or f"the variable {place.variable}"
