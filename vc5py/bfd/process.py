"""The BFD process: sockets, clock and priority around `sessions`, for one director at a time.

Runs apart from the director, for two reasons. A director is busy for longer than the 100 ms between two
packets, so this has a process of its own whose only work is BFD, with real-time priority (SCHED_FIFO) where
that is permitted, its memory locked. And like the routes, sessions outlive a director that died or restarts:
for `hold_s`; then they go administratively down and the process ends.

While it has sessions, a standby sleeps behind it, with the same sockets, and with what is known of the
sessions in shared memory. If this process is killed, the standby goes on where it was: to the neighbors,
nothing has happened, and silence is judged by when they were last heard, by whichever process. The director
sees its connection closed, and comes to the new process by the same socket.

Imports little but the standard library, so that it starts at once. Must not know: BGP.
Invariants: it never waits for the director, whose connection is dropped where it doesn't read; it judges
silence only after it has read what has arrived; no standby takes sessions up that were told to end.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import os
import random
import select
import signal
import socket
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from vc5py import claim
from vc5py.bfd import messages, standby
from vc5py.bfd.ledger import Ledger
from vc5py.bfd.messages import Wish
from vc5py.bfd.sessions import Sessions
from vc5py.bfd.sockets import Receiver, Sender
from vc5py.bfd.standby import Standby

PRIORITY = 10
NICE = -20
REPORT_S = 1.0
# A fresh process has no director yet; it gets at least this long to come.
FIRST_DIRECTOR_S = 5.0
RETRY_S = 1.0
# What ps(1) calls the process that speaks, and the one behind it.
NAME, STANDBY_NAME = "vc5-bfd", "vc5-bfd-standby"
_CONNECTIONS = 4
BACKLOG = 1 << 18
_MCL_CURRENT, _MCL_FUTURE = 1, 2
# Nothing waits in here for longer, whatever the clocks say.
_LONGEST_S = 1.0


def raise_priority(scheduling: str) -> str:
    """As high as asked for and permitted; what it is: fifo, nice or normal."""
    if scheduling == "fifo":
        with suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(PRIORITY))
            return "fifo"
    if scheduling in ("fifo", "nice"):
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, 0, NICE)
            return "nice"
    return "normal"


def lock_memory() -> None:
    """So that no page of ours has to come from a disk. Not permitted: then it isn't."""
    ctypes.CDLL(None).mlockall(_MCL_CURRENT | _MCL_FUTURE)


@dataclass(slots=True)
class Director:
    """The connection to the director: lines in, lines out, both bounded."""

    connection: socket.socket
    incoming: bytes = b""
    outgoing: bytearray = field(default_factory=bytearray)

    def read(self) -> list[dict[str, Any]] | None:
        """Messages; None when it has gone or talks nonsense."""
        try:
            data = self.connection.recv(1 << 16)
        except BlockingIOError:
            return []
        except OSError:
            return None
        *lines, self.incoming = (self.incoming + data).split(b"\n")
        if not data or len(self.incoming) > messages.MAX_LINE:
            return None
        try:
            return [messages.parse_line(line) for line in lines]
        except ValueError:
            return None

    def write(self, data: bytes) -> bool:
        """Whether it keeps up."""
        self.outgoing += data
        try:
            while self.outgoing:
                del self.outgoing[: self.connection.send(self.outgoing)]
        except BlockingIOError:
            return len(self.outgoing) <= BACKLOG
        except OSError:
            return False
        return True


class Process:
    """Made with a listening socket; `run` returns when it is over. `claimed`: the file whose claim says which
    process has these sessions (claim.py).
    """

    def __init__(self, listener: socket.socket, claimed: Path, scheduling: str) -> None:
        self._listener = listener
        self._claimed = claimed
        self._scheduling = scheduling
        self._rng = random.SystemRandom()
        self._sessions = Sessions()
        self._wishes: dict[str, Wish] = {}
        self._senders: dict[str, Sender] = {}
        self._receivers: dict[socket.AddressFamily, Receiver] = {}
        self._errors: dict[str, str] = {}
        self._director: Director | None = None
        self._hold_s = FIRST_DIRECTOR_S
        self._alone_since = time.monotonic()
        self._report_at = 0.0
        self._bind_at = 0.0
        self._end_at: float | None = None
        self._asked_to_stop = False
        self._late_s = 0.0
        self._standby: Standby | None = None
        self._standby_at = 0.0
        self._ledger: Ledger | None = None
        self._wait_for_events()

    def run(self) -> None:
        try:
            while self._end_at is None or time.monotonic() < self._end_at:
                self._have_standby()
                self._round()
        finally:
            self._end_standby()  # the program ends, or has failed: the standby's would fail too

    def _round(self) -> None:
        planned = self._sleep_until()
        for fd, _ in self._poll.poll(max(0.0, planned - time.monotonic())):
            self._heed(fd)
        self._late_s = max(self._late_s, time.monotonic() - planned)
        self._work()
        if self._ledger is not None:
            self._ledger.note(self._sessions.entries)
        if self._asked_to_stop:
            self.stop()

    def _wait_for_events(self) -> None:
        """An epoll of this process: one that was inherited would be the other's too."""
        self._poll = select.epoll()
        self._poll.register(self._listener.fileno(), select.EPOLLIN)
        for receiver in self._receivers.values():
            self._poll.register(receiver.fileno(), select.EPOLLIN)
        self._heed_signals()

    def _heed_signals(self) -> None:
        """A signal is a wish, carried out between two rounds; the wake-up pipe ends the wait for the next."""

        def ask(*_: object) -> None:
            self._asked_to_stop = True

        self._wakened, self._waker = os.pipe2(os.O_NONBLOCK)
        signal.set_wakeup_fd(self._waker, warn_on_full_buffer=False)
        self._poll.register(self._wakened, select.EPOLLIN)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, ask)

    def _ignore_signals(self) -> None:
        """As a process that has nothing to tidy up when it is ended."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        signal.set_wakeup_fd(-1)
        os.close(self._wakened)
        os.close(self._waker)

    def stop(self) -> None:
        """Administratively down, told for as long as the neighbors take to find out; then over."""
        if self._end_at is None:
            self._end_standby()
            now = time.monotonic()
            self._end_at = now + self._sessions.close(now)
            self._transmit()

    def _sleep_until(self) -> float:
        now = time.monotonic()
        ats = [self._sessions.next_at, self._end_at, now + _LONGEST_S]
        if self._director is not None:
            ats.append(self._report_at)
        if self._director is None and self._end_at is None:
            ats.append(self._alone_since + self._hold_s)
        return min(at for at in ats if at is not None)

    def _heed(self, fd: int) -> None:
        if fd == self._listener.fileno():
            self._accept()
        elif fd == self._wakened:
            os.read(fd, 64)
        elif self._standby is not None and fd == self._standby.fd:
            self._end_standby()  # it has died: have another
        elif self._director is not None and fd == self._director.connection.fileno():
            self._listen()

    def _work(self) -> None:
        """What has arrived first: then silence is silence."""
        for receiver in self._receivers.values():
            for datagram in receiver.read():
                self._sessions.receive(datagram)
        self._transmit()
        now = time.monotonic()
        if self._director is None and now - self._alone_since >= self._hold_s:
            self.stop()
        if self._errors and now >= self._bind_at:
            self._open_receivers()
        self._report(now)

    def _transmit(self) -> None:
        for neighbor, data in self._sessions.advance(time.monotonic(), self._rng):
            self._senders[neighbor].send(data)
        for neighbor in self._senders.keys() - self._wishes.keys() - self._sessions.leaving.keys():
            self._senders.pop(neighbor).close()  # it has been told

    # The standby

    def _have_standby(self) -> None:
        """Where there is none. In the standby itself this returns when it is to go on as this process."""
        while self._lacks_standby():
            self._standby_at = time.monotonic() + RETRY_S
            self._ledger = Ledger(self._sessions.entries)
            try:
                forked = standby.fork()
            except OSError:
                self._ledger = None
                return
            if isinstance(forked, Standby):
                self._standby = forked
                self._poll.register(forked.fd, select.EPOLLIN)
            else:
                self._stand_by(forked, self._ledger)

    def _lacks_standby(self) -> bool:
        if self._standby is not None or self._end_at is not None or self._asked_to_stop:
            return False
        return bool(self._wishes) and time.monotonic() >= self._standby_at

    def _end_standby(self) -> None:
        """Closing its descriptor also ends the waiting for it."""
        if self._standby is not None:
            self._standby.end()
        self._standby = self._ledger = None

    def _stand_by(self, speaker: standby.Speaker, ledger: Ledger) -> None:
        """Until the speaking process is dead; then take its place."""
        self._lose_director()
        self._ignore_signals()
        standby.name(STANDBY_NAME)
        standby.close_files(self._claimed)  # while that can't cost the claim
        lock_memory()  # that isn't inherited
        speaker.outlive()
        self._listener.listen(_CONNECTIONS)  # so that the kernel names this process to who connects
        if not claim.take(self._claimed):
            sys.exit("another BFD process was started meanwhile")
        standby.name(NAME)
        self._sessions.restore(ledger.read())
        self._ledger, self._standby_at = None, 0.0
        self._poll.close()
        self._wait_for_events()
        self._alone_since = time.monotonic()
        self._late_s = 0.0
        self._work()

    # The director

    def _accept(self) -> None:
        with suppress(OSError):
            connection, _ = self._listener.accept()
            connection.setblocking(False)
            if self._director is not None:
                self._listen()  # it may have just gone
            if self._director is not None:
                with connection, suppress(OSError):
                    connection.send(messages.line({"busy": True}))
                return
            self._director = Director(connection)
            self._poll.register(connection.fileno(), select.EPOLLIN)
            self._report_at = 0.0
            self._tell({"bfd": messages.PROTOCOL, "pid": os.getpid(), "scheduling": self._scheduling})

    def _listen(self) -> None:
        assert self._director is not None
        found = self._director.read()
        try:
            for message in found or []:
                self._obey(message)
        except (ValueError, TypeError):
            found = None
        if found is None:
            self._lose_director()

    def _lose_director(self) -> None:
        if self._director is not None:
            self._director.connection.close()
            self._director = None
            self._alone_since = time.monotonic()

    def _obey(self, message: dict[str, Any]) -> None:
        if message.get("stop"):
            self.stop()
        elif self._end_at is None and "sessions" in message:
            hold_s = float(message.get("hold_s", self._hold_s))
            self._configure(messages.parse_wishes(message), hold_s)

    def _configure(self, wanted: dict[str, Wish], hold_s: float) -> None:
        for neighbor in self._senders.keys() & wanted.keys():
            before = self._wishes.get(neighbor)
            if before is None or before.source != wanted[neighbor].source:
                self._senders.pop(neighbor).close()
        if (wanted, hold_s) != (self._wishes, self._hold_s):
            self._end_standby()  # it has sockets and memory for what there was
            self._standby_at = 0.0
        self._hold_s = hold_s
        self._wishes = wanted
        for neighbor, wish in wanted.items():
            if neighbor not in self._senders:
                self._senders[neighbor] = Sender(neighbor, wish.source, self._rng)
        settings = {neighbor: wish.settings for neighbor, wish in wanted.items()}
        self._sessions.configure(settings, time.monotonic(), self._rng)
        self._open_receivers()
        self._report_at = 0.0

    def _open_receivers(self) -> None:
        """One for each IP version that is needed; tried again while the port is taken."""
        self._bind_at = time.monotonic() + RETRY_S
        needed = {_family(neighbor) for neighbor in self._wishes}
        for family in self._receivers.keys() - needed:
            self._receivers.pop(family).close()
        self._errors = {}
        for family in needed - self._receivers.keys():
            try:
                receiver = Receiver(family)
            except OSError as error:
                self._errors[family.name] = error.strerror or str(error)
                continue
            self._receivers[family] = receiver
            self._poll.register(receiver.fileno(), select.EPOLLIN)

    def _report(self, now: float) -> None:
        changed = [n for n in sorted(self._sessions.changed) if n in self._sessions.entries]
        self._sessions.changed.clear()
        if self._director is None:
            return
        status = self._sessions.status
        if changed:
            self._tell({"changed": messages.statuses([status(neighbor) for neighbor in changed])})
        if now >= self._report_at:
            self._report_at = now + REPORT_S
            every = messages.statuses([status(neighbor) for neighbor in self._sessions.entries])
            self._tell({"status": every, **self._counters()})

    def _counters(self) -> dict[str, Any]:
        rejects = {str(reason): count for reason, count in self._sessions.rejects.items()}
        dropped = sum(receiver.dropped() for receiver in self._receivers.values())
        errors = sum(sender.errors for sender in self._senders.values())
        late_s, self._late_s = self._late_s, 0.0
        return {
            "rejects": rejects,
            "dropped": dropped,
            "send_errors": errors,
            "late_s": late_s,
            "errors": self._errors,
        }

    def _tell(self, message: dict[str, Any]) -> None:
        if self._director is not None and not self._director.write(messages.line(message)):
            self._lose_director()


def _family(neighbor: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ip_address(neighbor).version == 6 else socket.AF_INET


def listen(path: Path) -> socket.socket:
    """A listening socket in the file system, in place of a former one, for its owner only."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    os.umask(0o177)
    temporary.unlink(missing_ok=True)
    listener.bind(str(temporary))
    listener.listen(_CONNECTIONS)
    temporary.replace(path)
    return listener


def main() -> None:
    parser = argparse.ArgumentParser(description="the BFD sessions of a director")
    parser.add_argument("socket", type=Path)
    parser.add_argument("--scheduling", choices=("fifo", "nice", "normal"), default="fifo")
    arguments = parser.parse_args()
    claimed = arguments.socket.with_suffix(".pid")
    process = Process(listen(arguments.socket), claimed, raise_priority(arguments.scheduling))
    standby.name(NAME)
    lock_memory()
    gc.freeze()
    gc.disable()  # nothing here makes cycles; a collection is time that a packet may not have
    process.run()


if __name__ == "__main__":
    main()
