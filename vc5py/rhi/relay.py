"""The process between ExaBGP and the director: it owns the routes while no director is there.

ExaBGP starts this file as its API helper, with the standard library only and apart from the package (no
imports of it), so that it starts in milliseconds and an upgrade can't break it. It listens on a Unix
stream socket for one director at a time and must not know what routes mean: it passes commands.

    director -> relay   {"command": "announce route ...", "parts": true}
                        {"command": ..., "asks": true}           by somebody who only wants to know
                        {"alive": true}                          a sign of life, every SIGN_S
    relay -> director   {"relay": 1, "exabgp": <pid>, "parts": true, "signs": true}  first; or {"busy": true}
                        {"answer": "done" | "error", "lines": [...]}   one per command, in order
                        {"lines": [...]}                 before it: the beginning of a long one, where
                                                         the director takes it in parts
                        {"event": {...}}                         ExaBGP's own JSON, at any time
                        {"alive": true}                          to each sign, at once

Invariants. Commands go to ExaBGP one at a time, each after the answer to the one before. Never a route
without an owner: `hold` seconds after the last sign of life of the director in charge everything is
withdrawn and ExaBGP ended, by force if need be. In charge is who has commanded or given a sign, not who has
merely connected. Dying is a last sign; a director that hangs keeps its connection and gives none. Of its
silence only time counts in which the relay itself ran, for the whole machine may have been stopped; and
LEAST_SILENCE_S are allowed in any case. One of an earlier version is believed as long as it is connected.
The time without a director goes on when the relay is killed and ExaBGP starts another (`Memory`). When ExaBGP
goes, the relay goes. The socket file is replaced, never removed: it may be that of a successor.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import selectors
import signal
import socket
import struct
import sys
import time
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import Any

PROTOCOL = 1
SIGN_S = 1.0
# How often it is looked at the director's silence. Twice that is the most that counts between two looks.
LOOK_S = 0.5
LEAST_SILENCE_S = 3.0
# The hold of a director that dies counts from its death if it has given a sign since then.
RECENT_S = 2 * SIGN_S
# Beside the socket: a file with the seconds to hold the routes, which a director may rewrite at any time.
HOLD_SUFFIX = ".hold"
# And a file with what a relay leaves to the next one of the same ExaBGP.
MEMORY_SUFFIX = ".alone"
# A fresh ExaBGP has no director yet, and one whose relay was killed has to connect again: give it at least
# this long to come, however short the hold.
FIRST_DIRECTOR_S = 5.0
FAREWELL_S = 2.0
TERMINATE_S = 2.0
MAX_REQUEST = 1 << 16
MAX_COMMAND = 4096
MAX_BACKLOG = 1 << 23
# An answer of more bytes is passed on in parts: the whole of it may be more than the backlog.
MAX_PART = 1 << 18
# After the withdrawal, harmless commands: ExaBGP sends a share of its updates before it answers each one.
FAREWELL = ("clear adj-rib out", *("version",) * 4)

# Void what a relay before us had asked; the answer, "exabgp 5.x" and "done", tells where our own begin.
SYNCHRONISE = "reset\nversion\n"


class Director:
    """One connection to a director: bytes in, lines out, a bounded backlog of bytes to send. `in_charge`:
    whether the routes are its. Those of earlier versions take answers as a whole, and give no signs of life.
    """

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self.connection = connection
        self.in_charge = False
        self.signs = False
        self._incoming = b""
        self.takes_parts = False
        self.backlog = bytearray()

    def receive(self) -> list[bytes] | None:
        """Complete lines that have arrived; None when the director has gone or talks nonsense."""
        try:
            data = self.connection.recv(MAX_REQUEST)
        except BlockingIOError:
            return []
        except OSError:
            return None
        *lines, self._incoming = (self._incoming + data).split(b"\n")
        return lines if data and len(self._incoming) <= MAX_REQUEST else None

    def send(self, message: dict[str, Any]) -> bool:
        """Send, or queue behind what waits; False when the director is lost or doesn't read."""
        waiting = bool(self.backlog)
        self.backlog += json.dumps(message).encode() + b"\n"
        return len(self.backlog) <= MAX_BACKLOG if waiting else self.flush()

    def flush(self) -> bool:
        try:
            del self.backlog[: self.connection.send(self.backlog)]
        except BlockingIOError:
            pass
        except OSError:
            return False
        return len(self.backlog) <= MAX_BACKLOG


class Memory:
    """What the next relay goes on with if this one is killed. Only one of the same ExaBGP believes it.

    `since`: from when on the hold counts, by the clock of `now`; None: a director is in charge. `director`:
    the identity of the process that is, or was when a relay was killed; "" for none.
    """

    def __init__(self, file: Path, exabgp: int) -> None:
        self._file = file
        self._exabgp = identity(exabgp)

    def recall(self) -> tuple[float | None, str]:
        """`since` and `director`; None and "" where no relay was before us."""
        try:
            told = json.loads(self._file.read_text())
            if self._exabgp and told["exabgp"] == self._exabgp:
                since = told["since"]
                return None if since is None else float(since), str(told["director"])
        except (OSError, ValueError, KeyError, TypeError):
            pass
        return None, ""

    def note(self, since: float | None, director: str) -> None:
        """In one step. Rather nothing than what isn't true any more."""
        if abandoned():
            return  # the file may be that of another ExaBGP's relay
        told = {"exabgp": self._exabgp, "since": since, "director": director}
        fresh = self._file.with_name(f"{self._file.name}.new")
        try:
            fresh.write_text(json.dumps(told) + "\n")
            fresh.replace(self._file)
        except OSError as error:
            print(f"{self._file}: can't be written: {error.strerror}", file=sys.stderr)
            with suppress(OSError):
                self._file.unlink()


class Relay:
    """The event loop. `_deadline` is when this phase of being alone ends; None while a director is in charge.
    `_since`: from when on the hold counts. `_expected`: a pidfd of the director that is to connect again.
    `_silence`: how long the director has said nothing.
    """

    def __init__(self, path: Path, hold_s: float) -> None:
        self._hold_file = path.with_suffix(HOLD_SUFFIX)
        self._hold_s = hold_s
        self._exabgp = os.getppid()
        self._exabgp_fd = os.pidfd_open(self._exabgp)
        if abandoned():
            sys.exit(0)
        self._selector = selectors.DefaultSelector()
        self._listener = listen(path)
        self._director: Director | None = None
        self._queue: deque[tuple[Director | None, str]] = deque()
        self._in_flight: tuple[Director | None, str] | None
        self._lines: list[str] = []
        self._size = 0
        self._incoming = b""
        self._deadline: float | None = None
        self._expected: int | None = None
        self._silence = 0.0
        self._looked = now()
        self._memory = Memory(path.with_suffix(MEMORY_SUFFIX), self._exabgp)
        self._resume()
        os.set_blocking(0, False)
        self._synchronised = False
        self._in_flight = (None, SYNCHRONISE)
        write_all(SYNCHRONISE.encode("ascii"))
        self._selector.register(0, selectors.EVENT_READ, self._from_exabgp)
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)

    def run(self) -> None:
        """Serve until ExaBGP closes our input (SystemExit) or its time without a director is over."""
        while not self._expired():
            self._turn()
        self._farewell()
        self._end_exabgp()

    def _hold(self) -> float:
        """The director's last word on it; without any, that of our command line."""
        try:
            self._hold_s = max(0.0, float(self._hold_file.read_text()))
        except (OSError, ValueError):
            pass
        return self._hold_s

    def _expired(self) -> bool:
        if self._deadline is not None:
            return now() >= self._deadline
        signs = self._director is not None and self._director.signs
        return signs and LEAST_SILENCE_S <= self._silence >= self._hold()

    def _turn(self) -> None:
        """What has come while we were stopped is read before anybody judges."""
        timeout = LOOK_S if self._deadline is None else max(0.0, self._deadline - now())
        ready = self._selector.select(timeout)
        moment = now()
        self._silence += min(moment - self._looked, 2 * LOOK_S)
        self._looked = moment
        for key, _ in ready:
            key.data()

    # Being alone.

    def _resume(self) -> None:
        """Go on where a relay before us was killed. Who comes first has no route to hold yet."""
        since, director = self._memory.recall()
        latest = now() + max(0.0, FIRST_DIRECTOR_S - self._hold())
        self._alone(latest if since is None else min(latest, since), director)
        if not director:
            return
        self._expected = pidfd(director)
        if self._expected is None:
            self._alone(min(self._since, now()))
        else:
            self._selector.register(self._expected, selectors.EVENT_READ, self._expect_nobody)

    def _alone(self, since: float, director: str = "") -> None:
        self._since = since
        self._deadline = since + self._hold()
        self._memory.note(since, director)

    def _expect_nobody(self) -> None:
        """The director that was to connect again has died before it did."""
        self._forget_expected()
        self._alone(min(self._since, now()))

    def _forget_expected(self) -> None:
        if self._expected is not None:
            self._selector.unregister(self._expected)
            os.close(self._expected)
            self._expected = None

    # The director's side.

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return
        newcomer = Director(connection)
        if self._director is not None:
            newcomer.send({"busy": True})
            connection.close()
            return
        self._director = newcomer
        self._selector.register(connection, selectors.EVENT_READ, self._from_director)
        self._tell({"relay": PROTOCOL, "exabgp": self._exabgp, "parts": True, "signs": True})

    def _from_director(self) -> None:
        director = self._director
        if director is None:
            return
        lines = director.receive()
        if lines is None or not director.flush():
            self._lose_director()
            return
        self._silence = 0.0
        for line in lines:
            if self._director is director:
                self._request(director, line)
        self._watch_backlog()
        self._next()

    def _request(self, director: Director, line: bytes) -> None:
        """Queue one command, or heed a sign. The director is one of ours: what isn't clean ends the talk."""
        try:
            request = json.loads(line)
            if request.get("alive"):
                self._heed_sign(director)
                return
            command, asks = request["command"], request.get("asks")
            director.takes_parts = request.get("parts") is True
            clean = command.isascii() and command.isprintable() and 0 < len(command) <= MAX_COMMAND
        except (ValueError, KeyError, TypeError, AttributeError):
            clean = False
        if not clean:
            self._lose_director()
            return
        if not asks:
            self._take_charge(director)
        self._queue.append((director, command))

    def _heed_sign(self, director: Director) -> None:
        director.signs = True
        self._take_charge(director)
        self._tell({"alive": True})

    def _take_charge(self, director: Director) -> None:
        if not director.in_charge:
            director.in_charge = True
            self._deadline = None
            self._forget_expected()
            self._memory.note(None, identity(peer(director.connection)))

    def _tell(self, message: dict[str, Any]) -> None:
        if self._director is None:
            return
        if self._director.send(message):
            self._watch_backlog()
        else:
            unread = len(self._director.backlog)
            print(f"the director has gone, or left {unread} bytes unread", file=sys.stderr)
            self._lose_director()

    def _watch_backlog(self) -> None:
        if self._director is not None:
            write = selectors.EVENT_WRITE if self._director.backlog else 0
            self._selector.modify(
                self._director.connection, selectors.EVENT_READ | write, self._from_director
            )

    def _lose_director(self) -> None:
        """The hold begins where it was in charge, else goes on. What ExaBGP hasn't been told yet is void."""
        director = self._director
        if director is None:
            return
        self._selector.unregister(director.connection)
        director.connection.close()
        self._director = None
        self._queue.clear()
        if director.in_charge:
            self._alone(now() - (self._silence if director.signs and self._silence > RECENT_S else 0.0))

    # ExaBGP's side.

    def _from_exabgp(self) -> None:
        try:
            data = os.read(0, 1 << 16)
        except BlockingIOError:
            return
        if not data:
            sys.exit(0)
        *lines, self._incoming = (self._incoming + data).split(b"\n")
        for line in lines:
            self._line(line.decode("ascii", "replace"))

    def _line(self, line: str) -> None:
        event = exabgp_event(line)
        if event is not None:
            self._tell({"event": event})
        elif line in ("done", "error"):
            if self._in_step():
                self._answered(line)
            self._lines, self._size = [], 0
        else:
            self._lines.append(line)
            self._size += len(line)
            if self._size > MAX_PART and self._synchronised:
                self._pass_part()

    def _in_step(self) -> bool:
        """Whether this answer is ours, and not a late one to a relay that died: see SYNCHRONISE."""
        self._synchronised |= bool(self._lines) and self._lines[-1].startswith("exabgp ")
        return self._synchronised

    def _pass_part(self) -> None:
        """Of an answer for somebody who has gone, nothing is kept."""
        asker, _ = self._in_flight or (None, "")
        if asker is None or asker is not self._director:
            self._lines, self._size = [], 0
        elif asker.takes_parts:
            lines, self._lines, self._size = self._lines, [], 0
            self._tell({"lines": lines})

    def _answered(self, answer: str) -> None:
        (asker, _), self._in_flight = self._in_flight or (None, ""), None
        if asker is not None and asker is self._director:
            self._tell({"answer": answer, "lines": self._lines})
        self._next()

    def _next(self) -> None:
        if self._in_flight is None and self._queue:
            self._in_flight = self._queue.popleft()
            write_all(self._in_flight[1].encode("ascii") + b"\n")

    # The end.

    def _farewell(self) -> None:
        """Withdraw everything, for at most FAREWELL_S; nobody can adopt these routes any more."""
        self._selector.unregister(self._listener)
        self._listener.close()
        self._lose_director()
        self._forget_expected()
        self._deadline = now() + FAREWELL_S
        self._queue.extend((None, command) for command in FAREWELL)
        self._next()
        while (self._queue or self._in_flight) and not self._expired():
            self._turn()

    def _end_exabgp(self) -> None:
        """SIGTERM, and SIGKILL for one that hangs. Our input's end (SystemExit) tells that it has gone."""
        if self._exabgp <= 1:
            return  # ExaBGP went before we started, and init adopted us
        for number in (signal.SIGTERM, signal.SIGKILL):
            signal.pidfd_send_signal(self._exabgp_fd, number)
            self._deadline = now() + TERMINATE_S
            while not self._expired():
                self._turn()


def now() -> float:
    """Seconds since the machine started, sleep included: every process of this boot agrees, whoever sets the
    clock on the wall.
    """
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def identity(pid: int) -> str:
    """What no other process has, of this boot or another; "" where there is no such process."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        started = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[19].decode()
    except OSError:
        return ""
    return f"{boot} {pid} {started}"


def pidfd(process: str) -> int | None:
    """A file that can be read when the process of this identity has ended; None where it has gone."""
    try:
        pid = int(process.split()[1])
        fd = os.pidfd_open(pid)
    except (IndexError, ValueError, OSError):
        return None
    if identity(pid) != process:
        os.close(fd)
        return None
    return fd


def peer(connection: socket.socket) -> int:
    """The process that has connected."""
    credentials = struct.Struct("3i")  # struct ucred: pid, uid, gid
    told = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, credentials.size)
    return int(credentials.unpack(told)[0])


def abandoned() -> bool:
    """Whether ExaBGP has gone before we came: then the place of the socket is its successor's."""
    poll = select.poll()
    poll.register(0, select.POLLIN)
    return any(event & (select.POLLHUP | select.POLLERR) for _, event in poll.poll(0))


def listen(path: Path) -> socket.socket:
    """A listening socket at `path`, mode 0600, put in place of what was there in one step."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.setblocking(False)
    os.umask(0o177)
    temporary.unlink(missing_ok=True)
    listener.bind(str(temporary))
    listener.listen(4)
    temporary.replace(path)
    return listener


def exabgp_event(line: str) -> dict[str, Any] | None:
    """ExaBGP's JSON message, or None for a line of an answer. Only messages name their sender."""
    if not line.startswith("{"):
        return None
    try:
        message = json.loads(line)
    except ValueError:
        return None
    return message if "exabgp" in message else None


def write_all(data: bytes) -> None:
    """Write to ExaBGP; it always reads, and at most one short command is ever under way."""
    try:
        while data:
            data = data[os.write(1, data) :]
    except BrokenPipeError:
        sys.exit(0)


def main() -> None:
    parser = argparse.ArgumentParser(description="keep ExaBGP's routes while the director is away")
    parser.add_argument("socket", type=Path)
    parser.add_argument("--hold", type=float, default=FIRST_DIRECTOR_S, metavar="SECONDS")
    arguments = parser.parse_args()
    Relay(arguments.socket, arguments.hold).run()


if __name__ == "__main__":
    main()
