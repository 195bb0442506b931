"""What is changed of ExaBGP: attempts to connect, their bounds and reasons, what becomes of a relay that
dies, what is logged; what the kernel says of MD5.
"""

from __future__ import annotations

import asyncio
import base64
import errno
import logging
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, suppress
from ipaddress import IPv4Address, ip_address
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from exabgp.logger.option import option  # type: ignore[import-untyped]
from exabgp.protocol.family import AFI  # type: ignore[import-untyped]
from exabgp.reactor.network.error import NotConnected  # type: ignore[import-untyped]
from exabgp.reactor.network.outgoing import Outgoing  # type: ignore[import-untyped]

from vc5py.errors import RhiError
from vc5py.model import Neighbor, Secret
from vc5py.rhi import exabgp_main, grammar, signatures
from vc5py.rhi.hosting import Host
from vc5py.rhi.link import Link
from vc5py.rhi.sessions import Session
from vc5py.rhi.signatures import Dropped

# Closed connections are logged, and the logger isn't made before ExaBGP runs.
option.logger = logging.getLogger("exabgp")
LOOPBACK = "127.0.0.1"
TCP_MD5SIG = 14


def test_waiting_between_attempts_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    from exabgp.reactor.delay import Delay  # type: ignore[import-untyped]

    class Ours(Delay):  # type: ignore[misc]
        pass

    exabgp_main.replace(Ours, "increase", exabgp_main.longer)
    delay = Ours()
    waits = []
    monkeypatch.setattr(time, "monotonic", lambda: 1e6)
    for _ in range(30):
        delay.increase()
        waits.append(delay._time - 1e6)
    assert waits[:6] == [0, 1, 2, 3, 4, 5]
    assert max(waits) == exabgp_main.LONGEST_S


def test_the_methods_are_those_of_exabgp() -> None:
    from exabgp.reactor.loop import Reactor  # type: ignore[import-untyped]

    assert callable(Reactor._pending_adjribout)
    assert not exabgp_main.nothing_pending(None)
    with pytest.raises(SystemExit, match=r"no Reactor\.gone"):
        exabgp_main.replace(Reactor, "gone", exabgp_main.nothing_pending)


WITH_A_WALL_CLOCK_THAT_JUMPS = """
import logging, runpy, sys, time
wall, by = time.time, 0.0
steady, later = time.monotonic, 0.0
time.time = lambda: wall() + by
time.monotonic = lambda: steady() + later
runpy.run_path(sys.argv[1])["replace_all"]()
from exabgp.bgp.message.notification import Notify
from exabgp.bgp.message.open.holdtime import HoldTime
from exabgp.bgp.timer import ReceiveTimer, SendTimer
from exabgp.logger.option import option
from exabgp.reactor.delay import Delay
option.logger = logging.getLogger("exabgp")
hearing, sending, wait = ReceiveTimer(lambda: "", 15, 4, 0), SendTimer(lambda: "", HoldTime(15)), Delay()
wait.increase()
wait.increase()
for by in (3600.0, -3600.0):
    hearing.check_ka_timer()
    assert not sending.need_ka(), "at once"
    assert wait.backoff(), "at once"
later = 6.0
assert sending.need_ka(), "no KEEPALIVE"
assert not wait.backoff(), "no attempt"
later = 17.0
try:
    hearing.check_ka_timer()
except Notify:
    print("given up")
"""


def test_sessions_do_not_heed_the_wall_clock() -> None:
    """Neither set forward nor back, by an hour; by the other clock all goes as it should."""
    command = [sys.executable, "-c", WITH_A_WALL_CLOCK_THAT_JUMPS, exabgp_main.__file__]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert (done.stdout, done.stderr) == ("given up\n", "")


def test_another_clock_is_not_replaced() -> None:
    with pytest.raises(SystemExit, match="new has another clock"):
        exabgp_main.replace_clock(SimpleNamespace(__name__="new", time=object()))


@pytest.mark.parametrize(
    ("lasted_s", "teardown", "cease", "waits"),
    [
        (0.0, None, 1, [0, 1, 2, 3, 4, 5, 5]),
        (0.0, None, 4, [0] * 7),
        (0.0, 3, 1, [0] * 7),
        (exabgp_main.LASTING_S, None, 1, [0] * 7),
    ],
    ids=["ended soon", "reset by hand", "ended by us", "lasted"],
)
def test_the_wait_begins_anew_only_after_a_session_that_lasted(
    monkeypatch: pytest.MonkeyPatch, lasted_s: float, teardown: int | None, cease: int, waits: list[int]
) -> None:
    """By ExaBGP's order: up, its own reset, the end, the wait."""
    from exabgp.bgp.message import Notification
    from exabgp.reactor.delay import Delay

    now_s = [1e6]
    monkeypatch.setattr(time, "monotonic", lambda: now_s[0])
    peer = SimpleNamespace(_delay=Delay(), _teardown=None)

    def main(peer: Any) -> Iterator[int]:
        peer._delay.reset()
        yield 1
        peer._teardown = teardown
        now_s[0] += lasted_s
        raise Notification(6, cease)

    waited = []
    for _ in waits:
        peer._teardown = None
        with pytest.raises(Notification):
            list(exabgp_main.lasting(main)(peer))
        exabgp_main.longer(peer._delay)
        waited.append(round(peer._delay._time - now_s[0]))
    assert waited == waits


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.socket() as listening:
        listening.bind((LOOPBACK, 0))
        listening.listen(0)
        yield listening


def attempt(port: int, md5: str = "") -> Iterator[bool]:
    connection = Outgoing(AFI.ipv4, LOOPBACK, LOOPBACK, port, md5)
    yield from exabgp_main.attempting(NotConnected)(connection)
    connection.close()


def test_an_attempt_succeeds(listener: socket.socket) -> None:
    assert list(attempt(listener.getsockname()[1]))[-1]


def test_a_refused_attempt_says_so_at_once() -> None:
    """ExaBGP by itself takes it for an established one."""
    with socket.socket() as nobody:
        nobody.bind((LOOPBACK, 0))
        with pytest.raises(NotConnected, match=r"^connection refused$"):
            list(attempt(nobody.getsockname()[1]))


@pytest.mark.parametrize(("md5", "words"), [("", "it expects an MD5"), ("secret", "it has another MD5")])
def test_an_attempt_without_an_answer_ends(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch, md5: str, words: str
) -> None:
    monkeypatch.setattr(exabgp_main, "ATTEMPT_S", 0.2)
    with ExitStack() as stack:
        for _ in range(2):  # a full backlog, so the kernel drops what comes
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            assert waiting.connect_ex(listener.getsockname()) == errno.EINPROGRESS
        start = time.monotonic()
        with pytest.raises(NotConnected, match=f"^no answer to TCP.*{words}"):
            list(attempt(listener.getsockname()[1], md5))
        assert 0.2 <= time.monotonic() - start < 30, "the kernel by itself tries for two minutes"


def test_an_attempt_that_can_not_be_made_says_why() -> None:
    connection = Outgoing(AFI.ipv4, LOOPBACK, "192.0.2.99", 179)
    with pytest.raises(NotConnected, match=r"Could not bind to local ip 192\.0\.2\.99"):
        list(exabgp_main.attempting(NotConnected)(connection))


class Peer:
    """ExaBGP's, as far as the end of a session needs it."""

    def __init__(self, fsm: str, broken: bool = False) -> None:
        self.fsm = fsm
        self.neighbor = "the neighbor"
        self.reactor = SimpleNamespace(processes=self)
        self.told: list[tuple[str, str]] = []
        self.broken = broken

    def down(self, neighbor: str, reason: str) -> None:
        if self.broken:
            raise BrokenPipeError
        self.told.append((neighbor, reason))


@pytest.mark.parametrize(
    ("fsm", "message", "error", "told", "closed"),
    [
        ("IDLE", "closing connection", "connection refused", ["connection refused"], "connection refused"),
        ("CONNECT", "closing connection", "reset by peer", [], "reset by peer"),
        (
            "ESTABLISHED",
            "notification sent (4,0)",
            "Hold timer expired",
            [],
            "notification sent (4,0): Hold timer expired",
        ),
        ("IDLE", "stop, message [removed]", "", [], "stop, message [removed]"),
        ("IDLE", "", "", [], ""),
    ],
)
def test_the_end_of_a_session_has_a_reason(
    fsm: str, message: str, error: str, told: list[str], closed: str
) -> None:
    reasons: list[tuple[Any, str, str]] = []
    closing = exabgp_main.explaining(lambda *all_: reasons.append(all_), ("IDLE",), BrokenPipeError)
    peer = Peer(fsm)
    closing(peer, message, error)
    assert peer.told == [("the neighbor", reason) for reason in told]
    assert reasons == [(peer, closed, "")]
    closing(Peer("IDLE", broken=True), message, error)


def test_a_reason_is_one_short_line() -> None:
    assert exabgp_main.why("a\nb", "c \t d" + "x" * 300).startswith("a b: c dxxx")
    assert len(exabgp_main.why("", "x" * 300)) == exabgp_main.MAX_WHY


def sign(one: socket.socket, password: bytes) -> None:
    """Segments from and to the loopback address: struct tcp_md5sig of linux/tcp.h."""
    address = struct.pack("=H2x4s120x", socket.AF_INET, socket.inet_aton(LOOPBACK))
    key = struct.pack("=2xH4x80s", len(password), password)
    one.setsockopt(socket.IPPROTO_TCP, TCP_MD5SIG, address + key)


@pytest.mark.parametrize(
    ("ours", "theirs", "kind"),
    [(b"one", b"two", "other"), (b"one", None, "missing"), (None, b"two", "unexpected")],
)
def test_the_kernel_counts_what_it_drops(
    listener: socket.socket, ours: bytes | None, theirs: bytes | None, kind: str
) -> None:
    before = signatures.dropped()
    with socket.socket() as caller:
        if ours is not None:
            sign(listener, ours)
        if theirs is not None:
            sign(caller, theirs)
        caller.settimeout(0.1)
        with pytest.raises(TimeoutError):
            caller.connect(listener.getsockname())
    after = signatures.dropped()
    assert getattr(after, kind) > getattr(before, kind)


@pytest.mark.parametrize("text", ["", "TcpExt: A B\nTcpExt: 1 2\n", "IpExt: A\nIpExt: 1\n"])
def test_a_kernel_that_does_not_count(text: str) -> None:
    assert signatures.dropped(text) == Dropped()


def test_hints_of_a_neighbor_that_is_to_connect() -> None:
    plain = Neighbor(ip_address("192.0.2.1"), 65000, 65001, passive=True)
    secret = Neighbor(ip_address("192.0.2.1"), 65000, 65001, passive=True, password=Secret(variable="X"))
    before = Dropped(1, 1, 1)
    waiting = "waits for the neighbor to connect"
    assert signatures.hint(plain, before, before) == signatures.hint(secret, before, before) == waiting
    now = Dropped(3, 5, 8)
    assert signatures.hint(secret, before, now) == (
        f"{waiting}; 2 TCP segments with another MD5 password dropped; "
        "4 TCP segments without the MD5 password dropped"
    )
    assert signatures.hint(plain, before, now) == (
        f"{waiting}; 7 TCP segments with an MD5 password where none is configured dropped"
    )


# With ExaBGP itself, and a neighbor that isn't there


PASSWORD = b"s3cret; with 'quotes' and spaces"
CODED = base64.b64encode(PASSWORD).decode()
LOCAL = IPv4Address(LOOPBACK)
GUARDED = Session(
    Neighbor(ip_address("127.0.0.9"), 65000, 65001, password=Secret(variable="X")), LOCAL, (LOCAL,), PASSWORD
)


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[Host]:
    one = Host(tmp_path, lambda _event: None)
    yield one
    await one.stop()


def configured(relay: tuple[str, ...]) -> str:
    return grammar.configuration([GUARDED], LOCAL, relay)


def relay(link: Link) -> int:
    (child,) = Path(f"/proc/{link.exabgp}/task/{link.exabgp}/children").read_text().split()
    return int(child)


def betrayed(text: str) -> bool:
    bare = "".join(text.split())
    return CODED in bare or "".join(PASSWORD.decode().split()) in bare


async def test_a_relay_may_be_killed_any_number_of_times(
    host: Host, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    text = configured(host.relay_command)
    link = await host.attach(text, 30)
    exabgp = link.exabgp
    for _ in range(9):
        os.kill(relay(link), signal.SIGKILL)
        with suppress(RhiError):
            async with asyncio.timeout(60):
                await link.lost()
        await link.close()
        link = await host.attach(text, 30)
    assert link.exabgp == exabgp
    (answer,) = await link.command(grammar.NOTHING)
    assert answer.startswith("exabgp ")
    await link.close()
    log = (tmp_path / "exabgp.log").read_text()
    assert "loaded new configuration" in log
    assert not betrayed(log + caplog.text)


async def test_a_relay_that_ends_by_itself_ever_again_ends_exabgp_and_says_so(host: Host) -> None:
    with pytest.raises(RhiError, match="start: relay: ends again and again, with exit status 1;"):
        await host.attach(configured(("/bin/false",)), 30)
    assert not host.former_lives()


def test_a_dead_relay_is_told_nothing() -> None:
    from exabgp.reactor.api.processes import ProcessError, Processes  # type: ignore[import-untyped]

    processes = Processes.__new__(Processes)
    processes.clean()
    with subprocess.Popen(["true"], stdin=subprocess.PIPE, bufsize=0) as helper:
        helper.wait(60)
        processes._process["relay"] = helper
        with pytest.raises(ProcessError):
            processes.write("relay", "x")
        assert processes._broken, "which would end ExaBGP"
        processes.clean()
        processes._process["relay"] = helper
        assert not exabgp_main.telling(Processes.write, ProcessError)(processes, "relay", "x")
        assert not processes._broken


@pytest.mark.parametrize("before", ["family {", "}\n"], ids=["in a section", "after the neighbor"])
async def test_a_refused_configuration_betrays_no_password(
    host: Host, tmp_path: Path, caplog: pytest.LogCaptureFixture, before: str
) -> None:
    caplog.set_level(logging.DEBUG)
    head, found, tail = configured(host.relay_command).rpartition(before)
    text = f"{head}{found} md5-password {CODED};{tail}"
    assert found and betrayed(text)
    with pytest.raises(RhiError, match=r"ExaBGP doesn't start: .*md5-password") as refused:
        await host.attach(text, 30)
    log = (tmp_path / "exabgp.log").read_text()
    assert "syntax error" in log
    assert not betrayed(log + caplog.text + str(refused.value))
