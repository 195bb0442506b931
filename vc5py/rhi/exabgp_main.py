"""Runs ExaBGP with a few things changed that nothing can configure. Run as a script, with ExaBGP's arguments;
knows nothing of the package.

The time between two attempts to connect is bounded to a few seconds, and so is an attempt. ExaBGP's bounds
are a minute, and two for a router that drops our packets: one that comes back after an outage would wait
for its routes for so long.

So it is where a router ends each session as soon as it is up: the wait begins anew only after a session that
lasted. ExaBGP would begin the next one at once, for ever.

All waits and timers go by a clock that nobody sets: by ExaBGP's, a wall clock set forward ends every session,
and one set back sends no KEEPALIVE for as long.

An attempt that fails says why, by an event like that of a session's end. ExaBGP takes a refused connection
for a good one, and says nothing of the others.

A port that can't be listened on, because another program has it, costs the neighbors that are to connect to
it, and they alone: ExaBGP would not start, or say nothing after a reload. It is tried again ever after.

A reload is carried out at once. ExaBGP 5.0 forgets one that comes while updates wait to be sent, as they do
for ever while any neighbor is away. It waits for the sake of routes in its configuration; ours has none.

A relay that somebody kills is replaced, however often: five in a minute would be ExaBGP's limit, and what it
can't tell to one that has just died would be the end too. One that ends by itself so often still ends ExaBGP;
the log's last line then says so.

Invariants. Without the methods that are replaced it ends with an error, so a new ExaBGP can't slip by. No
password is in anything that it logs.
"""

from __future__ import annotations

import atexit
import errno
import json
import math
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Container, Iterator
from typing import Any

LONGEST_S = 5
LASTING_S = 10.0
# Cease (RFC 4486): administrative shutdown and reset, other configuration change, collision.
BY_HAND = {(6, 2), (6, 4), (6, 6), (6, 7)}
ATTEMPT_S = 5.0
MAX_WHY = 200
REAP_S = 0.5
LISTEN_S = 2.0
KILLED = (-signal.SIGKILL, -signal.SIGTERM)
SECRET = "md5-password"
# The line that is wrong is quoted with spaces between its letters.
_SECRET_LINE = re.compile(r"\s*".join(map(re.escape, SECRET)) + ".*")
NO_ANSWER = "no answer to TCP: unreachable, filtered, or it expects an MD5 password"
NO_ANSWER_MD5 = "no answer to TCP: unreachable, filtered, or it has another MD5 password"


def longer(delay: Any) -> None:
    """In place of `Delay.increase`."""
    waited: int = delay._next
    delay._time = time.monotonic() + waited
    delay._next = min(int(1 + waited * 1.2), LONGEST_S)


class Clock:
    """In place of the module `time`, where ExaBGP measures how long something lasts."""

    @staticmethod
    def time() -> float:
        return time.monotonic()


def lasting(main: Callable[[Any], Iterator[Any]]) -> Callable[[Any], Iterator[Any]]:
    """In place of `Peer._main`, which is `main`: a session, from when it is up until it ends. It makes the
    wait for the next one short, which is not to be where it ended soon, unless somebody there or here wanted
    just that.
    """

    def lasting_main(peer: Any) -> Iterator[Any]:
        waited, began, by_hand = peer._delay._next, time.monotonic(), False
        try:
            yield from main(peer)
        except Exception as error:  # a NOTIFICATION that has come is one
            by_hand = (getattr(error, "code", 0), getattr(error, "subcode", 0)) in BY_HAND
            raise
        finally:
            if not (by_hand or peer._teardown) and time.monotonic() < began + LASTING_S:
                peer._delay._next = max(peer._delay._next, waited)

    return lasting_main


def nothing_pending(_reactor: Any) -> bool:
    """In place of `Reactor._pending_adjribout`."""
    return False


def listening(failure: type[Exception]) -> Callable[[Any], bool]:
    """In place of `Reactor._listen_for_neighbors`, which tells whether all could be listened on.
    `listener.deaf` is why some can't be, by the neighbor's name. `failure` is what `Listener._listen` raises.
    """

    def listen(reactor: Any) -> bool:
        listener = reactor.listener
        neighbors = {name: one for name, one in reactor.configuration.neighbors.items() if one["listen"]}
        listener.deaf = {name: deaf(listener, one, failure) for name, one in neighbors.items()}
        listener.again_at = 0.0  # or nobody would be told: at the start there is no relay yet
        places = {(ip.top(), reactor._port) for ip in reactor._ips}
        listener.close_unwanted(places | {(one["md5-ip"].top(), one["listen"]) for one in neighbors.values()})
        return True

    return listen


def listening_again(incoming: Callable[[Any], bool], failure: type[Exception]) -> Callable[[Any], bool]:
    """In place of `Listener.incoming`, which is `incoming` and called in every turn."""

    def hearing(listener: Any) -> bool:
        if time.monotonic() >= getattr(listener, "again_at", math.inf):
            listen_again(listener, failure)
        return incoming(listener)

    return hearing


def listen_again(listener: Any, failure: type[Exception]) -> None:
    """Where it failed, and tell."""
    reactor = listener._reactor
    neighbors = reactor.configuration.neighbors
    still = {}
    for name in listener.deaf.keys() & neighbors.keys():
        reason = listener.deaf[name] and deaf(listener, neighbors[name], failure)
        tell_deaf(reactor.processes, neighbors[name], reason)
        if reason:
            still[name] = reason
    listener.serving = bool(listener._sockets)
    listener.deaf = still
    listener.again_at = time.monotonic() + LISTEN_S if still else math.inf


def deaf(listener: Any, neighbor: Any, failure: type[Exception]) -> str:
    """Why the neighbor can't be waited for; "" where it is, from now on."""
    address, port = neighbor["md5-ip"], neighbor["listen"]
    signed = neighbor["md5-password"], neighbor["md5-base64"]
    try:
        listener._listen(address, neighbor["peer-address"], port, *signed, neighbor["incoming-ttl"])
    except failure as error:
        number = getattr(error.__context__, "errno", None)
        if number == errno.EADDRINUSE:
            return f"port {port} of {address} is taken by another program"
        return f"can't listen on port {port} of {address}: {os.strerror(number) if number else error}"
    return ""


def tell_deaf(processes: Any, neighbor: Any, reason: str) -> None:
    """An event of our own."""
    about = {"address": {"peer": str(neighbor["peer-address"])}, "reason": reason}
    event = json.dumps({"exabgp": "5", "type": "listening", "neighbor": about})
    for name in neighbor.api["neighbor-changes"]:
        if name in processes._process:
            processes.write(name, event)


def attempting(failure: type[Exception]) -> Callable[[Any], Iterator[bool]]:
    """In place of `Outgoing.establish`: one attempt. Yields whether it has succeeded, until it has; raises
    `failure` with the reason.
    """

    def establish(connection: Any) -> Iterator[bool]:
        issue = connection._connect()
        if issue:
            raise failure(str(issue))
        end = time.monotonic() + ATTEMPT_S
        writable = select.poll()
        writable.register(connection.io, select.POLLOUT)
        while not writable.poll(0):
            if time.monotonic() >= end:
                connection.close()
                raise failure(NO_ANSWER_MD5 if connection.md5 else NO_ANSWER)
            yield False
        error = connection.io.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            connection.close()
            raise failure(os.strerror(error).lower())
        connection.success()
        if not connection.local:
            connection.local = connection.io.getsockname()[0]
        yield True

    return establish


def explaining(
    close: Callable[[Any, str, str], None], silent: Container[Any], broken: type[Exception]
) -> Callable[..., None]:
    """In place of `Peer._close`, which is `close`, tells no reasons, and nothing in the states `silent`.
    `broken` is raised where the relay can't be told.
    """

    def closing(peer: Any, message: str = "", error: object = "") -> None:
        reason = why(message, str(error))
        if error and peer.fsm in silent:
            try:
                peer.reactor.processes.down(peer.neighbor, reason)
            except broken:
                pass  # ExaBGP finds out by itself
        close(peer, reason, "")

    return closing


def why(message: str, error: str) -> str:
    """ExaBGP's words and the reason in one line. "closing connection" says nothing beside a reason."""
    words = [word for word in (message, error) if word]
    if error and message == "closing connection":
        words = [error]
    return " ".join(": ".join(words).split())[:MAX_WHY]


def respawning(handle: Callable[[Any, str], None], too_many: type[Exception]) -> Callable[[Any, str], None]:
    """In place of `Processes._handle_problem`, which is `handle`: it starts a helper that died again, and
    raises `too_many` where it did that too often.
    """

    def handling(processes: Any, name: str) -> None:
        status = ended(processes._process.get(name))
        if status in KILLED:
            processes._respawning.pop(name, None)
        try:
            handle(processes, name)
        except too_many:
            last = f"ends again and again, with exit status {status}; the log may say why"
            atexit.register(print, f"{name}: {last}", flush=True)
            raise

    return handling


def ended(helper: subprocess.Popen[bytes] | None) -> int | None:
    """How it has: an exit status, or a signal's number below zero. Its pipes are closed a moment before."""
    try:
        return helper.wait(REAP_S) if helper is not None else None
    except subprocess.TimeoutExpired:
        return None


def telling(write: Callable[..., bool], broken: type[Exception]) -> Callable[..., bool]:
    """In place of `Processes.write`, which is `write`: a helper that has died is told nothing. ExaBGP finds
    that out by itself.
    """

    def writing(processes: Any, name: str, *text: Any) -> bool:
        before = list(processes._broken)
        try:
            return write(processes, name, *text)
        except broken:
            processes._broken[:] = before
            return False

    return writing


def discreet(emit: Callable[..., None]) -> Callable[..., None]:
    """In place of `log.logger`, which is `emit`. ExaBGP quotes its configuration in errors."""

    def logger(logging_: Any, message: Any, source: str, level: str) -> None:
        def said() -> str:
            return without_passwords(message() if callable(message) else str(message))

        emit(logging_, said, source, level)

    return logger


def without_passwords(text: str) -> str:
    """What follows the keyword is left out, to the end of the line."""
    return _SECRET_LINE.sub(f"{SECRET} (not shown)", text)


def replace_clock(module: Any) -> None:
    if module.time not in (time, Clock):
        raise SystemExit(f"{module.__name__} has another clock: install ExaBGP 5")
    module.time = Clock


def replace(owner: type, name: str, method: Callable[..., Any]) -> None:
    if not callable(getattr(owner, name, None)):
        raise SystemExit(f"this ExaBGP has no {owner.__name__}.{name}: install ExaBGP 5")
    setattr(owner, name, method)


def replace_all() -> None:
    """Everything that is changed."""
    from exabgp.bgp import timer  # type: ignore[import-untyped]
    from exabgp.bgp.fsm import FSM  # type: ignore[import-untyped]
    from exabgp.logger import log  # type: ignore[import-untyped]
    from exabgp.reactor import delay  # type: ignore[import-untyped]
    from exabgp.reactor.api.processes import ProcessError, Processes  # type: ignore[import-untyped]
    from exabgp.reactor.delay import Delay  # type: ignore[import-untyped]
    from exabgp.reactor.listener import Listener  # type: ignore[import-untyped]
    from exabgp.reactor.loop import Reactor  # type: ignore[import-untyped]
    from exabgp.reactor.network.error import NetworkError, NotConnected  # type: ignore[import-untyped]
    from exabgp.reactor.network.outgoing import Outgoing  # type: ignore[import-untyped]
    from exabgp.reactor.peer import Peer  # type: ignore[import-untyped]

    replace_clock(delay)
    replace_clock(timer)
    replace(Delay, "increase", longer)
    replace(Reactor, "_pending_adjribout", nothing_pending)
    replace(Reactor, "_listen_for_neighbors", listening(NetworkError))
    replace(Listener, "_listen", Listener._listen)
    replace(Listener, "incoming", listening_again(Listener.incoming, NetworkError))
    replace(Outgoing, "_connect", Outgoing._connect)
    replace(Outgoing, "establish", attempting(NotConnected))
    replace(Processes, "_handle_problem", respawning(Processes._handle_problem, ProcessError))
    replace(Processes, "write", telling(Processes.write, ProcessError))
    replace(log, "logger", discreet(log.logger))
    replace(Peer, "_main", lasting(Peer._main))
    replace(Peer, "_close", explaining(Peer._close, (FSM.IDLE, FSM.ACTIVE), ProcessError))


if __name__ == "__main__":
    from exabgp.application.main import main  # type: ignore[import-untyped]

    replace_all()
    sys.exit(main())
