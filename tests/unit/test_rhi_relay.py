"""The relay as a real process, between a director's socket and pipes on which the test plays ExaBGP.

Its parent, which it ends in the end, is a shell of its own, which starts another relay when one is killed.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from vc5py.rhi import relay as relay_module

TIMEOUT_S = 60.0
LATE_S = 5.0  # on a busy machine
EVENT = '{ "exabgp": "5.0.0", "type": "state", "neighbor": { "state": "up" } }'


def until(test: Callable[[], object]) -> None:
    """Polls: what happens in another process sends no event here."""
    end = time.monotonic() + TIMEOUT_S
    while not test():
        assert time.monotonic() < end
        time.sleep(0.01)


class Exabgp:
    """The relay's parent and its pipes. `constants` replace those of the relay."""

    def __init__(self, path: Path, hold_s: float, constants: dict[str, float]) -> None:
        self.path = path
        program = (
            f"import runpy; module = runpy.run_path({relay_module.__file__!r}); "
            f"module['main'].__globals__.update({constants!r}); module['main']()"
        )
        command = [sys.executable, "-I", "-S", "-c", program, str(path), "--hold", str(hold_s)]
        self.process = subprocess.Popen(
            ["sh", "-c", 'while "$@"; [ $? = 137 ]; do :; done; exit 7', "sh", *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,
        )
        self._text = ""

    def reads(self) -> str:
        """The next line that the relay sends to ExaBGP."""
        stdout = self.process.stdout
        assert stdout is not None
        while "\n" not in self._text:
            assert select.select([stdout], [], [], TIMEOUT_S)[0], "the relay sends nothing"
            data = stdout.read(4096)
            assert data, "the relay has gone"
            self._text += data.decode()
        line, self._text = self._text.split("\n", 1)
        return line

    def has_nothing_to_read(self) -> bool:
        return not self.sends_within(0)

    def sends_within(self, timeout_s: float) -> bool:
        assert self.process.stdout is not None
        return bool(self._text or select.select([self.process.stdout], [], [], timeout_s)[0])

    def says(self, *lines: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("".join(f"{line}\n" for line in lines).encode())

    def synchronises(self, *, after_another: bool = False) -> None:
        """`after_another`: which may have said something before it was killed."""
        first = self.reads()
        while after_another and first != "reset":
            first = self.reads()
        assert (first, self.reads()) == ("reset", "version")
        self.says("exabgp 5.0.15", "done")

    def relay(self) -> int:
        pid = self.process.pid
        (child,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return int(child)

    def left_behind(self) -> Path:
        return self.path.with_suffix(relay_module.MEMORY_SUFFIX)

    def kills_the_relay(self) -> None:
        """Returns when another one listens."""
        before = self.path.stat().st_ino
        os.kill(self.relay(), signal.SIGKILL)
        until(lambda: self.path.stat().st_ino != before)
        self.synchronises(after_another=True)

    def close(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            stream.close()
        self.process.wait(TIMEOUT_S)


class Director:
    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(TIMEOUT_S)
        end = time.monotonic() + TIMEOUT_S
        while True:
            try:
                self.socket.connect(str(path))
                break
            except OSError:
                assert time.monotonic() < end
                time.sleep(0.01)
        self._file = self.socket.makefile("r")

    def reads(self) -> Any:
        line = self._file.readline()
        return json.loads(line) if line else None

    def asks(self, *commands: str) -> None:
        self.sends(*(json.dumps({"command": command}) for command in commands))

    def sends(self, *lines: str) -> None:
        self.socket.sendall("".join(f"{line}\n" for line in lines).encode())

    def close(self) -> None:
        self._file.close()
        self.socket.close()


StartExabgp = Callable[..., Exabgp]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[StartExabgp]:
    started: list[Exabgp] = []

    def start_exabgp(hold_s: float = 30.0, **constants: float) -> Exabgp:
        started.append(Exabgp(tmp_path / "relay.sock", hold_s, {"FIRST_DIRECTOR_S": 30.0, **constants}))
        return started[-1]

    yield start_exabgp
    for exabgp in started:
        exabgp.close()


@pytest.fixture
def connect() -> Iterator[Callable[[Exabgp], Director]]:
    directors: list[Director] = []

    def connect_director(exabgp: Exabgp) -> Director:
        directors.append(Director(exabgp.path))
        return directors[-1]

    yield connect_director
    for director in directors:
        director.close()


Connect = Callable[[Exabgp], Director]


SIGN = '{"alive": true}'
SOON = {"LOOK_S": 0.1, "LEAST_SILENCE_S": 0.2}


def in_charge(exabgp: Exabgp, connect: Connect) -> Director:
    """A director that has given a sign of life, and heard that the relay has."""
    director = connect(exabgp)
    assert director.reads()["signs"]
    director.sends(SIGN)
    assert director.reads() == {"alive": True}
    return director


def test_it_introduces_itself_on_a_private_socket(start: StartExabgp, connect: Connect) -> None:
    exabgp = start()
    told = {"relay": relay_module.PROTOCOL, "exabgp": exabgp.process.pid, "parts": True, "signs": True}
    assert connect(exabgp).reads() == told
    assert stat.S_IMODE(exabgp.path.stat().st_mode) == 0o600
    assert sorted(path.name for path in exabgp.path.parent.iterdir()) == ["relay.alone", "relay.sock"]


def test_commands_go_one_at_a_time(start: StartExabgp, connect: Connect) -> None:
    exabgp = start()
    exabgp.synchronises()
    director = connect(exabgp)
    director.reads()
    director.asks("announce one", "show two", "bogus three")
    assert exabgp.reads() == "announce one"
    exabgp.says(EVENT)
    assert director.reads() == {"event": json.loads(EVENT)}
    assert exabgp.has_nothing_to_read()
    exabgp.says("done")
    assert director.reads() == {"answer": "done", "lines": []}
    assert exabgp.reads() == "show two"
    exabgp.says('{"10.0.0.1": {}}', EVENT, "second line", "done")
    assert director.reads() == {"event": json.loads(EVENT)}
    assert director.reads() == {"answer": "done", "lines": ['{"10.0.0.1": {}}', "second line"]}
    assert exabgp.reads() == "bogus three"
    exabgp.says("error")
    assert director.reads() == {"answer": "error", "lines": []}


def test_late_answers_to_a_former_relay_are_nobodys(start: StartExabgp, connect: Connect) -> None:
    exabgp = start()
    director = connect(exabgp)
    director.reads()
    director.asks("announce one")
    assert (exabgp.reads(), exabgp.reads()) == ("reset", "version")
    exabgp.says("10.0.0.1 ipv4 unicast 192.0.2.1/32", "done", "exabgp 5.0.15", "done")
    assert exabgp.reads() == "announce one"
    exabgp.says("mine", "done")
    assert director.reads() == {"answer": "done", "lines": ["mine"]}


def test_a_second_director_is_refused(start: StartExabgp, connect: Connect) -> None:
    exabgp = start()
    exabgp.synchronises()
    first = connect(exabgp)
    first.reads()
    second = connect(exabgp)
    assert second.reads() == {"busy": True}
    assert second.reads() is None
    first.asks("still here")
    assert exabgp.reads() == "still here"


@pytest.mark.parametrize(
    "line",
    [
        '{"command": "announce\\nshutdown"}',
        '{"command": ""}',
        '{"command": "\\u00e4"}',
        '{"command": 1}',
        "x",
        "{}",
    ],
)
def test_an_unclean_command_never_reaches_exabgp(start: StartExabgp, connect: Connect, line: str) -> None:
    exabgp = start()
    exabgp.synchronises()
    director = connect(exabgp)
    director.reads()
    director.sends(line, '{"command": "after"}')
    assert director.reads() is None
    successor = connect(exabgp)
    successor.reads()
    successor.asks("clean")
    assert exabgp.reads() == "clean"


def test_an_answer_is_not_given_to_a_successor(start: StartExabgp, connect: Connect) -> None:
    exabgp = start()
    exabgp.synchronises()
    first = connect(exabgp)
    first.reads()
    first.asks("one", "void")
    assert exabgp.reads() == "one"
    first.close()
    second = connect(exabgp)
    second.reads()
    second.asks("two")
    exabgp.says("of one", "done")
    assert exabgp.reads() == "two"
    exabgp.says("of two", "done")
    assert second.reads() == {"answer": "done", "lines": ["of two"]}


def test_without_a_director_it_withdraws_and_ends_exabgp(start: StartExabgp, connect: Connect) -> None:
    exabgp = start(hold_s=0.3)
    exabgp.synchronises()
    director = in_charge(exabgp, connect)
    director.close()
    closed_at = time.monotonic()
    assert exabgp.reads() == "clear adj-rib out"
    assert time.monotonic() - closed_at >= 0.3
    for _ in range(4):
        exabgp.says("done")
        assert exabgp.reads() == "version"
    exabgp.says("exabgp 5.0.15", "done")
    assert exabgp.process.wait(TIMEOUT_S) == -signal.SIGTERM


def test_an_exabgp_that_hangs_is_killed(start: StartExabgp, connect: Connect) -> None:
    exabgp = start(hold_s=0, FAREWELL_S=0.2, TERMINATE_S=0.2)
    exabgp.synchronises()
    director = in_charge(exabgp, connect)
    exabgp.process.send_signal(signal.SIGSTOP)
    director.close()
    assert exabgp.process.wait(TIMEOUT_S) == -signal.SIGKILL


def test_a_new_director_within_the_hold_stops_the_clock(start: StartExabgp, connect: Connect) -> None:
    exabgp = start(hold_s=2.0)
    exabgp.synchronises()
    connect(exabgp).close()
    adopting = connect(exabgp)
    adopting.reads()
    adopting.asks("mine")
    assert exabgp.reads() == "mine"
    assert not exabgp.sends_within(2.5), "withdrawn under a living director"


def test_the_hold_begins_with_the_last_sign_of_life(start: StartExabgp, connect: Connect) -> None:
    """Of a director that hangs: its connection stays."""
    hold_s = 1.5
    exabgp = start(hold_s, **SOON)
    exabgp.synchronises()
    director = in_charge(exabgp, connect)
    for _ in range(7):
        assert not exabgp.sends_within(0.25), "withdrawn under a living director"
        signed_at = time.monotonic()
        director.sends(SIGN)
        assert director.reads() == {"alive": True}
    assert exabgp.reads() == "clear adj-rib out"
    assert hold_s <= time.monotonic() - signed_at + relay_module.LOOK_S
    assert time.monotonic() - signed_at < hold_s + LATE_S
    assert director.reads() is None, "it would take the next connection for this one"


def test_a_director_may_be_busy_for_longer_than_a_short_hold(start: StartExabgp, connect: Connect) -> None:
    exabgp = start(0.0, **SOON | {"LEAST_SILENCE_S": 0.8})
    exabgp.synchronises()
    signed_at = time.monotonic()
    in_charge(exabgp, connect)
    assert exabgp.reads() == "clear adj-rib out"
    assert time.monotonic() - signed_at >= 0.8


def test_the_time_that_the_whole_machine_is_stopped_is_no_silence(
    start: StartExabgp, connect: Connect
) -> None:
    """The relay wakes first, and the director gives its sign a moment later."""
    hold_s = 1.5
    exabgp = start(hold_s, **SOON)
    exabgp.synchronises()
    director = in_charge(exabgp, connect)
    relay = exabgp.relay()
    os.kill(relay, signal.SIGSTOP)
    time.sleep(hold_s + 0.2)  # as long as both are stopped
    os.kill(relay, signal.SIGCONT)
    assert not exabgp.sends_within(0.3)
    director.sends(SIGN)
    assert director.reads() == {"alive": True}


def test_what_came_while_the_relay_was_stopped_is_read_first(start: StartExabgp, connect: Connect) -> None:
    exabgp = start(0.5, **SOON | {"LOOK_S": 10.0})  # all of the time counts, nothing else ends the wait
    exabgp.synchronises()
    director = in_charge(exabgp, connect)
    relay = exabgp.relay()
    os.kill(relay, signal.SIGSTOP)
    time.sleep(0.7)  # as long as it is stopped
    director.sends(SIGN)
    os.kill(relay, signal.SIGCONT)
    assert director.reads() == {"alive": True}
    assert not exabgp.sends_within(0.2)


def since(exabgp: Exabgp) -> float | None:
    """From when on the hold counts; None while a director is in charge."""
    told = json.loads(exabgp.left_behind().read_text())["since"]
    return None if told is None else float(told)


def test_who_merely_connects_or_asks_does_not_renew_the_hold(start: StartExabgp, connect: Connect) -> None:
    """One that can't write its files comes again and again; one that dies at each start asks each time."""
    hold_s = 2.5
    exabgp = start(hold_s)
    exabgp.synchronises()
    director = in_charge(exabgp, connect)
    closed_at = time.monotonic()
    director.close()
    until(lambda: since(exabgp) is not None)
    began = since(exabgp)
    for _ in range(2):
        visitor = connect(exabgp)
        visitor.reads()
        visitor.sends('{"command": "show", "asks": true}')
        assert exabgp.reads() == "show"
        exabgp.says("done")
        assert visitor.reads() == {"answer": "done", "lines": []}
        visitor.close()
    visitor = connect(exabgp)
    visitor.reads()
    assert since(exabgp) == began
    assert exabgp.reads() == "clear adj-rib out"
    assert hold_s <= time.monotonic() - closed_at < hold_s + LATE_S
    assert visitor.reads() is None


@pytest.mark.parametrize("silent_s", [0.0, 0.6])
def test_the_hold_of_one_that_hung_and_was_killed_goes_on(
    start: StartExabgp, connect: Connect, silent_s: float
) -> None:
    exabgp = start(**SOON | {"RECENT_S": 0.2 if silent_s else 5.0})
    exabgp.synchronises()
    director = in_charge(exabgp, connect)
    signed_at = relay_module.now()
    time.sleep(silent_s)  # the silence
    closed_at = relay_module.now()
    director.close()
    until(lambda: since(exabgp) is not None)
    began = since(exabgp)
    assert began is not None
    if silent_s:
        assert abs(began - signed_at) < (closed_at - signed_at) / 2
    else:
        assert began >= closed_at


def test_the_hold_goes_on_when_the_relay_is_killed(start: StartExabgp, connect: Connect) -> None:
    hold_s = 2.5
    exabgp = start(hold_s)
    exabgp.synchronises()
    director = connect(exabgp)
    director.reads()
    director.asks("mine")
    assert exabgp.reads() == "mine"
    closed_at = time.monotonic()
    director.close()
    until(lambda: json.loads(exabgp.left_behind().read_text())["since"])
    for _ in range(2):
        exabgp.kills_the_relay()
    assert exabgp.reads() == "clear adj-rib out"
    assert hold_s <= time.monotonic() - closed_at < hold_s + LATE_S
    exabgp.kills_the_relay()
    assert exabgp.reads() == "clear adj-rib out"


def test_a_living_director_has_time_to_connect_again(start: StartExabgp, connect: Connect) -> None:
    exabgp = start(hold_s=0)
    exabgp.synchronises()
    before = connect(exabgp)
    before.reads()
    before.asks("mine")
    assert exabgp.reads() == "mine"
    for _ in range(2):
        exabgp.kills_the_relay()
        assert not exabgp.sends_within(0.1)
    director = connect(exabgp)
    director.reads()
    director.asks("mine")
    assert exabgp.reads() == "mine"
    exabgp.says("done")
    director.close()
    assert exabgp.reads() == "clear adj-rib out"


CALLER = (
    "import socket, sys; one = socket.socket(socket.AF_UNIX); one.connect(sys.argv[1]); one.recv(99);"
    """one.sendall(b'{"command": "mine"}\\n'); print(flush=True); sys.stdin.read()"""
)


@pytest.mark.parametrize("order", ["before the next relay", "after it"])
def test_a_director_that_dies_with_the_relay_has_not(start: StartExabgp, order: str) -> None:
    exabgp = start(hold_s=0.5)
    exabgp.synchronises()
    command = [sys.executable, "-I", "-S", "-c", CALLER, str(exabgp.path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as director:
        assert director.stdout is not None
        director.stdout.readline()
        assert exabgp.reads() == "mine"
        if order == "after it":
            exabgp.kills_the_relay()
            director.kill()
        else:
            exabgp.process.send_signal(signal.SIGSTOP)
            os.kill(exabgp.relay(), signal.SIGKILL)
            director.kill()
            director.wait()
            exabgp.process.send_signal(signal.SIGCONT)
            exabgp.synchronises()
        killed_at = time.monotonic()
    assert exabgp.reads() == "clear adj-rib out"
    assert time.monotonic() - killed_at < 0.5 + LATE_S


def forget(told: dict[str, Any]) -> str:
    """As of another boot, or of an ExaBGP that had the same number."""
    boot, pid, started = told["exabgp"].split()
    return json.dumps({**told, "exabgp": f"{boot[::-1]} {pid} {started}", "since": 0.0})


def reuse(told: dict[str, Any]) -> str:
    boot, pid, started = told["exabgp"].split()
    return json.dumps({**told, "exabgp": f"{boot} {pid} {int(started) - 1}", "since": 0.0})


@pytest.mark.parametrize("spoil", [forget, reuse, lambda _: "nonsense", lambda _: '{"exabgp": []}'])
def test_what_another_exabgps_relay_left_behind_counts_for_nothing(
    start: StartExabgp, spoil: Callable[[dict[str, Any]], str]
) -> None:
    exabgp = start(hold_s=0)
    exabgp.synchronises()
    left = exabgp.left_behind()
    told = json.loads(left.read_text())
    left.write_text(spoil(told))
    exabgp.kills_the_relay()
    assert not exabgp.sends_within(0.2)
    left.write_text(json.dumps({**told, "since": 0.0}))
    exabgp.kills_the_relay()
    assert exabgp.reads() == "clear adj-rib out"


@pytest.mark.parametrize("since", [1e12, float("inf"), float("nan")])
def test_nobody_waits_longer_than_for_a_first_director(start: StartExabgp, since: float) -> None:
    exabgp = start(FIRST_DIRECTOR_S=0.5)
    exabgp.synchronises()
    exabgp.path.with_suffix(relay_module.HOLD_SUFFIX).write_text("0\n")
    left = exabgp.left_behind()
    left.write_text(json.dumps({**json.loads(left.read_text()), "since": since}))
    exabgp.kills_the_relay()
    assert exabgp.reads() == "clear adj-rib out"


def test_one_that_comes_too_late_takes_nobodys_place(tmp_path: Path) -> None:
    """Its ExaBGP has gone, and another's relay may listen by now."""
    path = tmp_path / "relay.sock"
    with socket.socket(socket.AF_UNIX) as successor:
        successor.bind(str(path))
        before = path.stat().st_ino
        command = [sys.executable, "-I", "-S", relay_module.__file__, str(path)]
        ours, theirs = os.pipe()
        os.close(theirs)
        assert subprocess.run(command, stdin=ours, check=False, timeout=TIMEOUT_S).returncode == 0
        os.close(ours)
        assert path.stat().st_ino == before


def test_it_goes_with_exabgp(start: StartExabgp, connect: Connect) -> None:
    exabgp = start()
    director = connect(exabgp)
    director.reads()
    assert exabgp.process.stdin is not None
    exabgp.process.stdin.close()
    assert director.reads() is None
    assert exabgp.process.wait(TIMEOUT_S) == 7, "the relay ended by itself"


ROUTE = "10.99.0.1 ipv4 unicast 192.168.101.1/32 next-hop 10.99.0.2"


@pytest.mark.parametrize("parts", [True, False], ids=["in parts", "as a whole"])
def test_an_answer_of_any_length_reaches_a_director_that_takes_it_in_parts(
    start: StartExabgp, connect: Connect, parts: bool
) -> None:
    """A director of an earlier version is given a whole one of as much as there is room for."""
    times = int((2 if parts else 0.5) * relay_module.MAX_BACKLOG / len(ROUTE) / 1000)
    exabgp = start()
    exabgp.synchronises()
    director = connect(exabgp)
    director.reads()
    director.sends(json.dumps({"command": "show", **({"parts": True} if parts else {})}))
    assert exabgp.reads() == "show"

    def says() -> None:
        for _ in range(times):
            exabgp.says(*[ROUTE] * 1000)
        exabgp.says("done")

    speaking = threading.Thread(target=says)
    speaking.start()
    messages = [director.reads()]
    while "answer" not in messages[-1]:
        messages.append(director.reads())
    speaking.join()
    assert [line for message in messages for line in message["lines"]] == [ROUTE] * 1000 * times
    assert (len(messages) > 1) is parts
    director.asks("next")
    assert exabgp.reads() == "next"


def test_a_long_answer_to_a_director_that_has_gone_is_nobodys(start: StartExabgp, connect: Connect) -> None:
    exabgp = start(MAX_PART=1000)
    exabgp.synchronises()
    first = connect(exabgp)
    first.reads()
    first.sends(json.dumps({"command": "show", "parts": True}))
    assert exabgp.reads() == "show"
    exabgp.says(*[ROUTE] * 100)
    assert "lines" in first.reads()
    first.close()
    until(lambda: json.loads(exabgp.left_behind().read_text())["since"] is not None)
    second = connect(exabgp)
    second.reads()
    exabgp.says(*[ROUTE] * 100, "done")
    second.asks("other")
    assert exabgp.reads() == "other"
    exabgp.says("mine", "done")
    assert second.reads() == {"answer": "done", "lines": ["mine"]}


def test_a_director_that_does_not_read_is_given_up(start: StartExabgp, connect: Connect) -> None:
    exabgp = start(hold_s=0.1)
    exabgp.synchronises()
    connect(exabgp).asks("mine")
    assert exabgp.reads() == "mine"
    exabgp.says("done")
    flood = [EVENT] * 1000
    written = 0
    while exabgp.has_nothing_to_read():
        assert written < 4 * relay_module.MAX_BACKLOG, "the backlog is not bounded"
        exabgp.says(*flood)
        written += len(EVENT) * len(flood)
    assert exabgp.reads() == "clear adj-rib out"
