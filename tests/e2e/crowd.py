"""Thousands of long-lived TCP connections that talk, each watched: which broke, why, and how long it waited.

`crowd.py serve NAME PORT` answers on a real. `crowd.py talk PORT ADDRESS...` is all clients in one process,
who go to the addresses in turn; it is told what to do in lines of JSON on standard input and answers each
with one. A connection sends 16 bytes, and some time after the answer the next 16; an answer says who sent it,
how many it has sent on this connection, and what it answers to. So bytes that are lost, doubled, or somebody
else's are seen at once.

Must not know: balancers, the lab; `crowding` is what a test has in hand.
"""

from __future__ import annotations

import errno
import heapq
import itertools
import json
import random
import resource
import select
import socket
import struct
import sys
import time
from collections import Counter, deque
from typing import Any

PORT = 7000
PATIENCE_S = 25.0  # without an answer for so long, a connection has broken
OPEN_AT_ONCE = 64
_REQUEST = struct.Struct("!QQ")
_ANSWER = struct.Struct("!8sQQQ")


def _more_files() -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


# The server


def serve(name: str, port: int) -> None:
    """On all addresses, until killed."""
    listener = socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=4096)
    listener.setblocking(False)
    poll = select.epoll()
    poll.register(listener, select.EPOLLIN)
    guests: dict[int, tuple[socket.socket, list[int]]] = {}
    while True:
        for fd, _ in poll.poll():
            if fd == listener.fileno():
                _welcome(listener, poll, guests)
            elif not _answer(name.encode(), *guests[fd]):
                guests.pop(fd)[0].close()


def _welcome(
    listener: socket.socket, poll: select.epoll, guests: dict[int, tuple[socket.socket, list[int]]]
) -> None:
    for _ in range(OPEN_AT_ONCE):
        try:
            guest, _ = listener.accept()
        except OSError:
            return
        guest.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        guests[guest.fileno()] = guest, [0]
        poll.register(guest, select.EPOLLIN)


def _answer(name: bytes, guest: socket.socket, sent: list[int]) -> bool:
    """False where it has gone. A request is one segment, and always whole."""
    try:
        request = guest.recv(_REQUEST.size)
        if len(request) != _REQUEST.size:
            return False
        sent[0] += 1
        guest.send(_ANSWER.pack(name, sent[0], *_REQUEST.unpack(request)))
    except OSError:
        return False
    return True


# The clients


class Connection:
    """One of them. `real`: who answered first; `why`: how it broke, if it has."""

    __slots__ = ("answers", "asked_s", "began_s", "got", "group", "port", "real", "request", "sock", "why")

    def __init__(self, address: tuple[str, int], group: str, now_s: float) -> None:
        family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self.sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.group, self.began_s, self.asked_s = group, now_s, now_s
        self.got, self.real, self.why = b"", "", ""
        self.answers = self.request = 0
        error = self.sock.connect_ex(address)
        self.why = "" if error in (0, errno.EINPROGRESS) else errno.errorcode[error]
        self.port = self.sock.getsockname()[1]

    @property
    def is_waiting(self) -> bool:
        return self.request != 0 or self.answers == 0

    def ask(self, now_s: float) -> None:
        self.request, self.asked_s = random.getrandbits(64) | 1, now_s
        try:
            self.sock.send(_REQUEST.pack(self.answers, self.request))
        except OSError as error:
            self.why = errno.errorcode[error.errno or 0]

    def hear(self) -> bool:
        """Takes what has come; whether that was a whole answer."""
        try:
            data = self.sock.recv(_ANSWER.size - len(self.got))
        except OSError as error:
            self.why = errno.errorcode[error.errno or 0]
            return False
        self.got += data
        if not data:
            self.why = "closed by the other end"
        if not data or len(self.got) < _ANSWER.size:
            return False
        who, count, asked, request = _ANSWER.unpack(self.got)
        real = who.rstrip(b"\0").decode()
        if (self.real or real, self.answers + 1, self.answers, self.request) != (real, count, asked, request):
            self.why = f"wrong answer: {real} {count} {asked}"
            return False
        self.real, self.answers, self.request, self.got = real, self.answers + 1, 0, b""
        return True

    def describe(self, now_s: float) -> dict[str, Any]:
        return {
            "group": self.group,
            "real": self.real,
            "port": self.port,
            "why": self.why,
            "answers": self.answers,
            "began": self.began_s,
            "at": now_s,
        }


class Clients:
    """All connections of one process. `pace_s`: between an answer and the next request, at an average."""

    def __init__(self, port: int, addresses: list[str]) -> None:
        self._places = itertools.cycle([(address, port) for address in addresses])
        self._poll = select.epoll()
        self._poll.register(sys.stdin.fileno(), select.EPOLLIN)
        self._all: dict[int, Connection] = {}
        self._due: list[tuple[float, int, int]] = []  # when, file descriptor, answers so far
        self._broken: list[dict[str, Any]] = []
        self._to_open: deque[str] = deque()
        self._opening = 0
        self._paused = False
        self._pace_s = 1.0
        self._marked_s = time.monotonic()
        self._longest: dict[str, Any] = {"gap": 0.0}
        self._unheard: set[int] = set()
        self._rate = 0.0
        self._next_guest_s = 0.0
        self._guests: list[tuple[float, str]] = []  # of short connections: when they began, and who answered

    def run(self) -> None:
        """Until standard input ends."""
        while self._step():
            pass

    def _step(self) -> bool:
        now_s = time.monotonic()
        self._open_some(now_s)
        waits_s = [0.05, self._due[0][0] - now_s if self._due and not self._paused else 0.05]
        waits_s.append(self._next_guest_s - now_s if self._rate else 0.05)
        for fd, events in self._poll.poll(max(0.0, min(waits_s))):
            if fd == sys.stdin.fileno():
                line = sys.stdin.readline()
                if not line:
                    return False
                print(json.dumps(self._obey(json.loads(line))), flush=True)
            elif fd in self._all:
                self._happened(self._all[fd], events)
        self._ask_those_due(time.monotonic())
        return True

    def _obey(self, order: dict[str, Any]) -> dict[str, Any]:
        now_s = time.monotonic()
        if "open" in order:
            self._to_open.extend([order["group"]] * order["open"])
        if "mark" in order:
            self._marked_s, self._longest = now_s, {"gap": 0.0}
        if "mark" in order or "listen" in order:
            self._unheard = {fd for fd, one in self._all.items() if one.group != "guest"}
        self._paused = order.get("paused", self._paused)
        self._pace_s = order.get("pace", self._pace_s)
        self._rate = order.get("rate", self._rate)
        self._next_guest_s = max(self._next_guest_s, now_s)
        return self._report(now_s)

    def _report(self, now_s: float) -> dict[str, Any]:
        """`open`: how many connections of each group have each real; `open6`: how many use IPv6. `waiting`:
        how many lack an answer. `unheard`: how many have had none since they were listened to.
        """
        self._find_silent(now_s)
        steady = [one for one in self._all.values() if one.group != "guest"]
        counted = Counter((one.group, one.real) for one in steady if one.answers)
        guests, self._guests = self._guests, []
        return {
            "open": [[group, real, count] for (group, real), count in counted.items()],
            "open6": sum(one.sock.family == socket.AF_INET6 for one in steady if one.answers),
            "opening": len(self._to_open) + self._opening,
            "waiting": sum(one.is_waiting for one in self._all.values()),
            "unheard": len(self._unheard),
            "broken": self._broken,
            "longest": self._longest | {"since": self._marked_s},
            "guests": guests,
        }

    def _find_silent(self, now_s: float) -> None:
        for fd, one in list(self._all.items()):
            if one.is_waiting and now_s - one.asked_s > PATIENCE_S:
                one.why = "no answer"
                self._drop(fd, one)

    def _open_some(self, now_s: float) -> None:
        while self._to_open and self._opening < OPEN_AT_ONCE:
            self._begin(self._to_open.popleft(), now_s)
            self._opening += 1
        while self._rate and self._next_guest_s <= now_s:
            self._begin("guest", now_s)
            self._next_guest_s += 1 / self._rate

    def _begin(self, group: str, now_s: float) -> None:
        one = Connection(next(self._places), group, now_s)
        self._all[one.sock.fileno()] = one
        self._poll.register(one.sock, select.EPOLLOUT)

    def _happened(self, one: Connection, events: int) -> None:
        fd, now_s = one.sock.fileno(), time.monotonic()
        if one.answers == 0 and not one.request:
            error = one.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            one.why = errno.errorcode[error] if error else ""
            self._poll.modify(one.sock, select.EPOLLIN)
            if not error:
                one.ask(now_s)
        elif one.hear():
            self._heard(fd, one, now_s)
        if one.why:
            self._drop(fd, one)

    def _heard(self, fd: int, one: Connection, now_s: float) -> None:
        if one.group == "guest":
            self._guests.append((one.began_s, one.real))
            self._forget(fd, one)
            return
        self._opening -= one.answers == 1
        self._unheard.discard(fd)
        gap_s = now_s - max(one.asked_s, self._marked_s)
        if gap_s > self._longest["gap"]:
            self._longest = {"gap": gap_s, "port": one.port, "real": one.real, "group": one.group}
        due_s = now_s + self._pace_s * random.uniform(0.2, 1.8)
        heapq.heappush(self._due, (due_s, fd, one.answers))

    def _ask_those_due(self, now_s: float) -> None:
        while not self._paused and self._due and self._due[0][0] <= now_s:
            _, fd, answers = heapq.heappop(self._due)
            one = self._all.get(fd)
            if one is not None and one.answers == answers and not one.request:
                one.ask(now_s)
                if one.why:
                    self._drop(fd, one)

    def _drop(self, fd: int, one: Connection) -> None:
        self._broken.append(one.describe(time.monotonic()))
        self._opening -= one.group != "guest" and one.answers == 0
        self._forget(fd, one)

    def _forget(self, fd: int, one: Connection) -> None:
        self._unheard.discard(fd)
        del self._all[fd]
        one.sock.close()


if __name__ == "__main__":
    _more_files()
    if sys.argv[1] == "serve":
        serve(sys.argv[2], int(sys.argv[3]))
    else:
        Clients(int(sys.argv[2]), sys.argv[3:]).run()
