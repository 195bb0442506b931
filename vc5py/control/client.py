"""Asks a running balancer over its control socket. Knows paths and HTTP, not what is asked.

With the standard library alone, so that a command answers at once.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

from vc5py.errors import Vc5Error

SOCKET_NAME = "control.sock"
LOCK_NAME = "lock"
"""Held by the director of the state directory, from its start to its end."""
ANSWER_S = 60.0
"""How long an answer may take: that to a reload of a large configuration takes a while."""


class NotRunningError(Vc5Error):
    """Nobody is there to ask, yet or any more."""


@dataclass(frozen=True, slots=True)
class Answer:
    """`document` is the JSON of the answer, an `error` among it where `status` is no success."""

    status: int
    document: Mapping[str, Any]

    @property
    def good(self) -> bool:
        return self.status == HTTPStatus.OK


class _Connection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("vc5py", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def _nobody(state_dir: Path) -> str:
    """Why nobody answers. Somebody who holds the lock isn't ready yet, or takes no more questions."""
    if _is_locked(state_dir / LOCK_NAME):
        return (
            f"vc5py with the state directory {state_dir} is starting or stopping: its log says how far it is"
        )
    return f"no vc5py runs with the state directory {state_dir}"


def _is_locked(file: Path) -> bool:
    """By what the kernel lists (proc_locks(5)): to try the lock might keep out a director that starts."""
    try:
        status, locks = file.stat(), Path("/proc/locks").read_text(encoding="ascii")
    except OSError:
        return False
    device = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}"
    return f" {device}:{status.st_ino} " in locks


def _exchange(state_dir: Path, method: str, path: str, body: str | None, timeout_s: float) -> tuple[int, str]:
    where = state_dir / SOCKET_NAME
    connection = _Connection(where, timeout_s)
    try:
        connection.request(method, path, body)
        response = connection.getresponse()
        return response.status, response.read().decode()
    except (FileNotFoundError, ConnectionRefusedError):
        raise NotRunningError(_nobody(state_dir)) from None
    except PermissionError:
        raise Vc5Error(f"not allowed to open {where}: only the user that vc5py runs as is") from None
    except TimeoutError:
        raise Vc5Error(f"vc5py did not answer within {timeout_s:g} s") from None
    except (OSError, http.client.HTTPException, UnicodeDecodeError) as error:
        raise Vc5Error(f"no good answer from {where}: {error or type(error).__name__}") from error
    finally:
        connection.close()


def ask(
    state_dir: Path,
    method: str,
    path: str,
    body: Mapping[str, object] | None = None,
    timeout_s: float = ANSWER_S,
) -> Answer:
    """One request. Raises NotRunningError, or Vc5Error where there is no answer that can be understood."""
    status, text = _exchange(state_dir, method, path, None if body is None else json.dumps(body), timeout_s)
    try:
        document = json.loads(text)
    except ValueError:
        document = None
    if not isinstance(document, dict):
        raise Vc5Error(f"no good answer from {state_dir / SOCKET_NAME}: status {status}, not JSON")
    return Answer(status, document)


def get_text(state_dir: Path, path: str, timeout_s: float = ANSWER_S) -> str:
    """The text at a path. Raises as `ask` does, and Vc5Error where there is none."""
    status, text = _exchange(state_dir, "GET", path, None, timeout_s)
    if status != HTTPStatus.OK:
        raise Vc5Error(f"no good answer from {state_dir / SOCKET_NAME}: status {status}")
    return text
