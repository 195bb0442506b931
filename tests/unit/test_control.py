"""The control socket from end to end but for the balancer: commands typed, requests served, lines printed."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from http import HTTPStatus
from ipaddress import ip_address
from pathlib import Path

import pytest

from vc5py import app, cli
from vc5py.control import client, server, status, table
from vc5py.control.interface import (
    Effective,
    Outcome,
    ReloadRefusedError,
    ReloadReport,
    UnknownTargetError,
    VipOutcome,
)
from vc5py.core.diff import Change, Kind
from vc5py.errors import ConfigError, Diagnostic, Vc5Error
from vc5py.model import AdminState, IPAddress, VipState, VirtualServiceId
from vc5py.snapshot import (
    NeighborSnapshot,
    OverrideSnapshot,
    PeerSnapshot,
    RealSnapshot,
    ReloadSnapshot,
    ServiceSnapshot,
    SharingSnapshot,
    Snapshot,
    StartSnapshot,
    ToldSnapshot,
)

VIP, VIP6 = ip_address("192.0.2.1"), ip_address("fd00::1")
REAL = ip_address("10.0.0.1")
WEB = VirtualServiceId("web", VIP)
NOW = 1_000_000.0
SNAPSHOT = Snapshot(
    version="1.2.3",
    services=(
        ServiceSnapshot(
            WEB,
            True,
            1,
            (
                RealSnapshot(REAL, True, 9, 900, 3, admin=AdminState.DRAINING, serving=False, since=NOW - 5),
                RealSnapshot(
                    ip_address("10.0.0.2"), False, 0, 0, 0, "down", serving=False, why="http: refused", tier=1
                ),
            ),
            ("80/tcp", "443/tcp"),
            1,
            count="0 of 2 can serve, 2 draining, 1 needed",
        ),
        ServiceSnapshot(VirtualServiceId("dns", VIP6), False, 2, (), ("53/udp",), count="0 of 0 can serve"),
    ),
    vips={VIP: True, VIP6: False},
    vip_why={VIP6: "withdrawn by command"},
    vip_told={VIP: ToldSnapshot(1, 2), VIP6: ToldSnapshot(0, 1)},
    sharing=SharingSnapshot(
        enabled=True,
        running=True,
        copied=True,
        peers=(PeerSnapshot("00ff", "10.0.0.8", 1.4), PeerSnapshot("0fff", "10.0.0.9", 62.0)),
    ),
    sessions={ip_address("10.0.0.254"): False},
    neighbors=(
        NeighborSnapshot(ip_address("10.0.0.254"), 65000, "down", NOW - 65, 2, "hold timer"),
        NeighborSnapshot(ip_address("fd00::254"), 65001, "established", NOW - 3, 0),
    ),
    vip_overrides={VIP6: VipState.WITHDRAWN},
    verdicts=(),
    probes={},
    probe_lag_s=0.0,
    interfaces={"eth0": "native"},
    warnings=("no IPv4 address of ours",),
    flow_capacity=1024,
    reload=ReloadSnapshot("/etc/vc5.yaml", False, NOW - 60),
    start=StartSnapshot("layout", "layout changed: 9 flows carried over", 9, 2, 1),
    overrides=(
        OverrideSnapshot(REAL, "web", AdminState.DRAINING, None),
        OverrideSnapshot(REAL, None, None, 7),
    ),
    at=NOW,
)
FINDINGS = [Diagnostic("/etc/vc5.yaml", 3, 5, "found 'prot'"), Diagnostic("/etc/vc5.yaml", 0, 0, "empty")]

Output = pytest.CaptureFixture[str]


class Balancer:
    """Implements `Controllable`: notes what was asked, and answers or raises what it was told to."""

    def __init__(self) -> None:
        self.asked: list[object] = []
        self.unsaved: str | None = None
        self.warnings: tuple[str, ...] = ()
        self.report = ReloadReport(())
        self.error: Exception | None = None

    def _outcome(self, *asked: object) -> Outcome:
        self.asked.append(asked)
        if self.error is not None:
            raise self.error
        return Outcome(REAL, (Effective(WEB, AdminState.DRAINING, 5),), self.unsaved, self.warnings)

    async def set_state(self, real: IPAddress, service: str | None, state: AdminState) -> Outcome:
        return self._outcome("state", real, service, state)

    async def set_weight(self, real: IPAddress, service: str | None, weight: int | None) -> Outcome:
        return self._outcome("weight", real, service, weight)

    async def reset(self, real: IPAddress, service: str | None) -> Outcome:
        return self._outcome("reset", real, service)

    async def set_vip(self, vip: IPAddress, state: VipState | None) -> VipOutcome:
        self._outcome("vip", vip, state)
        announced = state is VipState.ANNOUNCED and vip == VIP
        return VipOutcome(vip, state, announced, self.unsaved, "" if announced else "nobody can serve dns")

    async def reload(self) -> ReloadReport:
        self._outcome("reload")
        return self.report

    async def snapshot(self) -> Snapshot:
        return SNAPSHOT

    def configuration(self) -> str:
        return "services: [] # ü\n"


@contextmanager
def serving(state_dir: Path, balancer: Balancer) -> Iterator[None]:
    """A server in a thread of its own, as the balancer's is in a process of its own."""
    up, stops = threading.Event(), []

    async def serve() -> None:
        loop, done = asyncio.get_running_loop(), asyncio.Event()
        stops.append(lambda: loop.call_soon_threadsafe(done.set))
        async with server.serve(state_dir, balancer):
            up.set()
            await done.wait()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    try:
        assert up.wait(60)
        yield
    finally:
        stops[0]()
        thread.join()


@pytest.fixture
def balancer() -> Balancer:
    return Balancer()


@pytest.fixture
def state_dir(tmp_path: Path, balancer: Balancer) -> Iterator[Path]:
    with serving(tmp_path, balancer):
        yield tmp_path


@pytest.fixture
def vc5py(state_dir: Path) -> Callable[..., int]:
    return lambda *words: cli.main([*words, f"--state-dir={state_dir}"])


# Commands on reals


@pytest.mark.parametrize(
    ("words", "asked"),
    [
        (["drain", "10.0.0.1"], ("state", REAL, None, AdminState.DRAINING)),
        (["disable", "fd00::1"], ("state", VIP6, None, AdminState.DISABLED)),
        (["enable", "10.0.0.1", "--service", "web"], ("state", REAL, "web", AdminState.ENABLED)),
        (["weight", "10.0.0.1", "0"], ("weight", REAL, None, 0)),
        (["weight", "10.0.0.1", "1000", "--service", "w b"], ("weight", REAL, "w b", 1000)),
        (["weight", "10.0.0.1", "default"], ("weight", REAL, None, None)),
        (["reset", "10.0.0.1", "--service", "web"], ("reset", REAL, "web")),
    ],
)
def test_command_is_carried_out_and_says_what_holds_now(
    words: list[str], asked: object, vc5py: Callable[..., int], balancer: Balancer, capsys: Output
) -> None:
    assert vc5py(*words) == 0
    assert balancer.asked == [asked]
    out, err = capsys.readouterr()
    assert (out.split(" ", 1)[1], err) == ("in web@192.0.2.1: draining, weight 5\n", "")


@pytest.mark.parametrize(
    ("words", "asked", "told", "ends"),
    [
        (["announce", "192.0.2.1"], VipState.ANNOUNCED, "VIP 192.0.2.1: to be announced", 0),
        (["withdraw", "192.0.2.1"], VipState.WITHDRAWN, "VIP 192.0.2.1: not announced", 0),
        (["default", "fd00::1"], None, "VIP fd00::1: not announced: nobody can serve dns", 0),
        (
            ["announce", "fd00::1"],
            VipState.ANNOUNCED,
            "VIP fd00::1: not announced: nobody can serve dns",
            1,
        ),
    ],
)
def test_command_on_a_vip(
    words: list[str],
    asked: VipState | None,
    told: str,
    ends: int,
    vc5py: Callable[..., int],
    balancer: Balancer,
    capsys: Output,
) -> None:
    assert vc5py("vip", *words) == ends
    assert balancer.asked == [("vip", ip_address(words[1]), asked)]
    assert capsys.readouterr() == (f"{told}\n", "")


def test_what_a_command_costs_is_said(vc5py: Callable[..., int], balancer: Balancer, capsys: Output) -> None:
    balancer.warnings = ("VIP 192.0.2.1 is withdrawn: nobody can serve web", "VIP fd00::1 is withdrawn")
    assert vc5py("drain", "10.0.0.1") == 0
    out, err = capsys.readouterr()
    assert "draining" in out
    assert err.splitlines() == [f"vc5py: warning: {warning}" for warning in balancer.warnings]


def test_command_that_will_not_be_remembered_says_so(
    vc5py: Callable[..., int], balancer: Balancer, capsys: Output
) -> None:
    balancer.unsaved = "can't write /d/overrides.json: No space left on device"
    assert vc5py("drain", "10.0.0.1") == 1
    out, err = capsys.readouterr()
    assert "draining" in out
    assert err == f"vc5py: done, but lost at the next start: {balancer.unsaved}\n"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["drain"], "REAL"),
        (["drain", "web"], "'web' is no IP address"),
        (["weight", "10.0.0.1"], "N|default"),
        *((["weight", "10.0.0.1", weight], "from 0 to 1000") for weight in ("1001", "x", "1.5", "²", "")),
        (["reload", "now"], "now"),
        (["status", "--xml"], "--xml"),
    ],
)
def test_wrong_usage_is_status_2(words: list[str], told: str, balancer: Balancer, capsys: Output) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(words)
    assert end.value.code == 2
    assert told in capsys.readouterr().err
    assert balancer.asked == []


def test_unknown_name_is_status_2_and_one_line(
    vc5py: Callable[..., int], balancer: Balancer, capsys: Output
) -> None:
    balancer.error = UnknownTargetError("no real 10.0.0.1 in the configuration; did you mean 10.0.0.11?")
    assert vc5py("drain", "10.0.0.1") == 2
    assert capsys.readouterr() == ("", f"vc5py: {balancer.error}\n")


@pytest.mark.parametrize(
    "words",
    [["drain", "10.0.0.1"], ["weight", "10.0.0.1", "1"], ["reload"], ["status"], ["status", "--json"]],
)
def test_nobody_there_is_status_1_and_one_line(words: list[str], tmp_path: Path, capsys: Output) -> None:
    said = f"vc5py: no vc5py runs with the state directory {tmp_path}\n"
    assert cli.main([*words, f"--state-dir={tmp_path}"]) == 1
    assert capsys.readouterr() == ("", said)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "control.sock"))
    assert cli.main([*words, f"--state-dir={tmp_path}"]) == 1
    assert capsys.readouterr() == ("", said)


def test_one_that_starts_is_told_from_none(tmp_path: Path, capsys: Output) -> None:
    """It holds the lock long before it can answer, and after it."""
    for _ in range(2):
        with app._only_one(tmp_path):
            assert cli.main(["status", f"--state-dir={tmp_path}"]) == 1
            assert (
                f"vc5py with the state directory {tmp_path} is starting or stopping"
                in capsys.readouterr().err
            )
        assert cli.main(["status", f"--state-dir={tmp_path}"]) == 1
        assert "no vc5py runs" in capsys.readouterr().err


def test_bug_in_the_balancer_is_a_line_here_and_a_traceback_there(
    vc5py: Callable[..., int], balancer: Balancer, capsys: Output, caplog: pytest.LogCaptureFixture
) -> None:
    balancer.error = KeyError("secret")
    assert vc5py("drain", "10.0.0.1") == 1
    assert capsys.readouterr() == ("", "vc5py: internal error: see the balancer's log\n")
    assert "KeyError: 'secret'" in caplog.text


# Reload


def test_reload_says_what_has_changed(vc5py: Callable[..., int], balancer: Balancer, capsys: Output) -> None:
    balancer.report = ReloadReport(
        (
            Change(Kind.CHANGED, "service web", "need 1 -> 2", False),
            Change(Kind.ADDED, "service dns", "", False),
            Change(Kind.CHANGED, "flows", "1024 -> 2048", True),
        ),
        (Diagnostic("f", 1, 2, "warning: unwise"),),
        ("10.0.0.1 in web stays draining by command; the file says enabled",),
    )
    assert vc5py("reload") == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        "service web changed: need 1 -> 2",
        "service dns added",
        "flows changed: 1024 -> 2048 (at the next start)",
        "10.0.0.1 in web stays draining by command; the file says enabled",
    ]
    assert err == "f:1:2: warning: unwise\n"


def test_reload_without_a_change_says_so(vc5py: Callable[..., int], capsys: Output) -> None:
    assert vc5py("reload") == 0
    assert capsys.readouterr().out == "nothing has changed\n"


def test_bad_file_is_status_2_with_every_finding(
    vc5py: Callable[..., int], balancer: Balancer, capsys: Output
) -> None:
    balancer.error = ConfigError(FINDINGS)
    assert vc5py("reload") == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "/etc/vc5.yaml: empty",
        "/etc/vc5.yaml:3:5: found 'prot'",
        "vc5py: the configuration in force is as before",
    ]


def test_reload_that_cannot_be_carried_out_is_status_1(
    vc5py: Callable[..., int], balancer: Balancer, capsys: Output
) -> None:
    balancer.error = ReloadRefusedError("no room")
    assert vc5py("reload") == 1
    assert capsys.readouterr() == ("", "vc5py: no room\n")


# Status


def test_status_for_people(vc5py: Callable[..., int], capsys: Output) -> None:
    assert vc5py("status") == 0
    first, *lines = capsys.readouterr().out.splitlines()
    assert first.startswith("vc5py 1.2.3  /etc/vc5.yaml, loaded 1970-01-")
    assert lines == [
        "The last reload failed: this configuration is still in force. The log says why.",
        "XDP eth0 native",
        "Warning: no IPv4 address of ours",
        "At the start: layout changed: 9 flows carried over",
        "BGP 10.0.0.254 AS 65000 down for 1m05s, 2 routes: hold timer",
        "BGP fd00::254 AS 65001 established for 3s, 0 routes",
        "Sharing 10.0.0.8 heard 1s ago, copied",
        "Sharing 10.0.0.9 heard 1m02s ago, copied",
        "",
        "VIP 192.0.2.1  announced to 1 of 2 neighbors",
        "  service web  80/tcp,443/tcp  healthy  0 of 2 can serve, 2 draining, 1 needed  tier 1 serves",
        "    REAL      HEALTH  STATE     WEIGHT  TIER  FLOWS  FOR     WHY",
        "    10.0.0.1  up      draining  1       0     3      5s",
        "    10.0.0.2  down    idle      1       1     0      11d13h  http: refused",
        "",
        "VIP fd00::1  not announced: withdrawn by command",
        "  service dns  53/udp  unhealthy  0 of 0 can serve",
        "    REAL  HEALTH  STATE  WEIGHT  TIER  FLOWS  FOR  WHY",
        "",
        "Set by command (vc5py vip default undoes it):",
        "  fd00::1: withdrawn",
        "",
        "Set by command (vc5py reset undoes it):",
        "  10.0.0.1 in web: draining",
        "  10.0.0.1: weight 7",
    ]


def test_status_for_programs(vc5py: Callable[..., int], capsys: Output) -> None:
    assert vc5py("status", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["vips"] == {"192.0.2.1": True, "fd00::1": False}
    assert document["vip_told"] == {
        "192.0.2.1": {"neighbors": 1, "of": 2},
        "fd00::1": {"neighbors": 0, "of": 1},
    }
    assert document["config"] == {
        "file": "/etc/vc5.yaml",
        "loaded_at": NOW - 60,
        "last_reload_successful": False,
    }
    assert document["vip_overrides"] == {"fd00::1": "withdrawn"}
    assert document["neighbors"][0] == {
        "address": "10.0.0.254",
        "as": 65000,
        "state": "down",
        "since": NOW - 65,
        "routes": 2,
        "why": "hold timer",
    }
    real = document["services"][0]["reals"][0]
    assert set(real) == set(RealSnapshot.__slots__)
    assert (real["admin"], real["flows"], real["since"]) == ("draining", 3, NOW - 5)
    assert document["overrides"][1] == {"real": "10.0.0.1", "service": None, "state": None, "weight": 7}


@pytest.mark.parametrize(
    ("told", "up", "neighbors", "said"),
    [
        (ToldSnapshot(1, 1), True, 1, "announced to 1 of 1 neighbor"),
        (ToldSnapshot(2, 3), True, 3, "announced to 2 of 3 neighbors"),
        (ToldSnapshot(0, 0), False, 0, "to be announced, but there is no BGP neighbor"),
        (ToldSnapshot(0, 2), False, 2, "to be announced, but no BGP session is established"),
        (ToldSnapshot(0, 2), True, 2, "to be announced, but told to none of 2 neighbors"),
        (
            ToldSnapshot(0, 0),
            True,
            1,
            "to be announced, but no BGP neighbor is to be told of it (accept, reject, families)",
        ),
    ],
)
def test_a_vip_that_nobody_is_told_of_is_not_called_announced(
    told: ToldSnapshot, up: bool, neighbors: int, said: str
) -> None:
    peer = ip_address("10.0.0.254")
    there = (NeighborSnapshot(peer, 65000, "", NOW, 0),) * neighbors
    sessions = {peer: up} if neighbors else {}
    shown = replace(SNAPSHOT, vip_told={VIP: told}, neighbors=there, sessions=sessions)
    assert f"VIP {VIP}  {said}" in list(table.lines(status.to_json(shown)))


def test_damped_and_sorry_reals_are_told_apart() -> None:
    damped = replace(SNAPSHOT.services[0].reals[0], damped=True, admin=AdminState.ENABLED)
    sorry = replace(damped, damped=False, sorry=True, serving=True)
    service = replace(SNAPSHOT.services[0], reals=(damped, sorry), sorry=True, serving_tier=None)
    document = status.to_json(replace(SNAPSHOT, services=(service,)))
    first, _, second, third = list(table.lines(document))[11:15]
    assert first.endswith("2 draining, 1 needed  sorry reals serve")
    assert second.split()[1:5] == ["damped", "idle", "1", "0"]
    assert third.split()[1:5] == ["up", "serving", "1", "sorry"]


@pytest.mark.parametrize(
    ("sharing", "told"),
    [
        (SharingSnapshot(), "Sharing off: no cluster in the configuration"),
        (SharingSnapshot(why_off="flows are not shared: no key"), "Sharing off: no key"),
        (SharingSnapshot(enabled=True), "Sharing: its process does not report; the log says why"),
        (SharingSnapshot(enabled=True, running=True), "Sharing: no peer heard"),
        (
            SharingSnapshot(enabled=True, running=True, peers=(PeerSnapshot("0f", "10.0.0.8", 0.2),)),
            "Sharing 10.0.0.8 heard 0s ago, not copied yet",
        ),
    ],
)
def test_status_of_sharing(sharing: SharingSnapshot, told: str) -> None:
    shown = list(table.lines(status.to_json(replace(SNAPSHOT, sharing=sharing))))
    assert [line for line in shown if line.startswith("Sharing")] == [told]


def test_status_into_a_pipe_that_nobody_reads_is_quiet(state_dir: Path) -> None:
    mine, its = os.pipe()
    os.close(mine)
    command = [sys.executable, "-m", "vc5py.cli", "status", f"--state-dir={state_dir}"]
    done = subprocess.run(command, stdout=its, stderr=subprocess.PIPE, timeout=60, check=False)
    os.close(its)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-1, "0s"), (59.9, "59s"), (60, "1m00s"), (3599, "59m59s"), (7800, "2h10m"), (360000, "4d04h")],
)
def test_duration(seconds: float, text: str) -> None:
    assert table.duration(seconds) == text


# The socket


def test_text_of_the_configuration(state_dir: Path) -> None:
    assert client.get_text(state_dir, "/v1/config") == "services: [] # ü\n"
    with pytest.raises(Vc5Error, match="status 404"):
        client.get_text(state_dir, "/v1/nothing")


def test_only_the_owner_may_open_the_socket(state_dir: Path) -> None:
    mode = (state_dir / "control.sock").stat().st_mode
    assert stat.S_ISSOCK(mode) and stat.S_IMODE(mode) == 0o600


def test_others_are_refused(state_dir: Path, capsys: Output) -> None:
    state_dir.chmod(0o755)
    for parent in state_dir.parents[:2]:
        parent.chmod(0o755)
    pid = os.fork()
    if not pid:
        os.setuid(65534)
        try:
            client.ask(state_dir, "GET", "/v1/status")
        except Vc5Error as error:
            os._exit(3 if "not allowed to open" in str(error) else 4)
        os._exit(5)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 3


def test_socket_of_a_killed_run_is_replaced_and_ours_is_removed(tmp_path: Path, balancer: Balancer) -> None:
    path = tmp_path / "control.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with serving(tmp_path, balancer):
        assert client.ask(tmp_path, "GET", "/v1/status").good
    assert list(tmp_path.iterdir()) == []


async def test_no_place_for_a_socket_is_one_clear_line(tmp_path: Path, balancer: Balancer) -> None:
    deep = tmp_path / ("x" * 120)
    deep.mkdir()
    with pytest.raises(Vc5Error, match=rf"^can't make the control socket {deep}/control.sock: .*too long$"):
        async with server.serve(deep, balancer):
            pass


@pytest.mark.parametrize(
    ("method", "path", "body", "code", "told"),
    [
        ("GET", "/v1/nothing", None, HTTPStatus.NOT_FOUND, "Not Found"),
        ("GET", "/v1/reload", None, HTTPStatus.METHOD_NOT_ALLOWED, "Not Allowed"),
        ("POST", "/v1/state", "", HTTPStatus.BAD_REQUEST, "Invalid JSON"),
        ("POST", "/v1/state", "[]", HTTPStatus.BAD_REQUEST, "object"),
        ("POST", "/v1/state", "[" * 60_000, HTTPStatus.BAD_REQUEST, "Invalid JSON"),
        ("POST", "/v1/state", '{"real": "10.0.0.1"}', HTTPStatus.BAD_REQUEST, "state: "),
        ("POST", "/v1/state", '{"real": 7, "state": "enabled"}', HTTPStatus.BAD_REQUEST, "real: "),
        ("POST", "/v1/state", '{"real": "x", "state": "enabled"}', HTTPStatus.BAD_REQUEST, "real: "),
        ("POST", "/v1/state", '{"real": "10.0.0.1", "state": "off"}', HTTPStatus.BAD_REQUEST, "state: "),
        ("POST", "/v1/weight", '{"real": "10.0.0.1", "weight": 1001}', HTTPStatus.BAD_REQUEST, "weight: "),
        ("POST", "/v1/weight", '{"real": "10.0.0.1", "weight": true}', HTTPStatus.BAD_REQUEST, "weight: "),
        ("POST", "/v1/weight", '{"real": "10.0.0.1"}', HTTPStatus.BAD_REQUEST, "weight: "),
        ("POST", "/v1/reset", '{"real": "10.0.0.1", "x": 1}', HTTPStatus.BAD_REQUEST, "x: "),
        ("POST", "/v1/reset", "x" * 70_000, HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "65536"),
    ],
)
def test_bad_request_is_an_error_in_json(
    method: str,
    path: str,
    body: str | None,
    code: HTTPStatus,
    told: str,
    state_dir: Path,
    balancer: Balancer,
) -> None:
    got, text = client._exchange(state_dir, method, path, body, 60)
    assert got == code
    (error,) = json.loads(text).values()
    assert told in error and "Traceback" not in error
    assert balancer.asked == []


def test_body_that_does_not_come_is_not_waited_for(
    state_dir: Path, balancer: Balancer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "BODY_S", 0.05)
    with socket.socket(socket.AF_UNIX) as slow:
        slow.settimeout(60)
        slow.connect(str(state_dir / "control.sock"))
        slow.sendall(b"POST /v1/reset HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n{")
        assert slow.recv(65536).startswith(b"HTTP/1.1 400 ")
        assert client.ask(state_dir, "GET", "/v1/status").good
    assert balancer.asked == []


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (b"", "no good answer"),
        (b"SSH-2.0\r\n\r\n", "no good answer"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", "not JSON"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]", "not JSON"),
        (None, "did not answer within 0.1 s"),
    ],
)
def test_somebody_else_on_the_socket_is_one_clear_line(
    answer: bytes | None, told: str, tmp_path: Path
) -> None:
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(tmp_path / "control.sock"))
        other.listen()

        def talk() -> None:
            peer, _ = other.accept()
            with peer:
                peer.recv(65536)
                if answer is not None:
                    peer.sendall(answer)
                else:
                    peer.recv(1)  # until the client has gone

        thread = threading.Thread(target=talk)
        thread.start()
        with pytest.raises(Vc5Error, match=told):
            client.ask(tmp_path, "GET", "/v1/status", timeout_s=0.1 if answer is None else 60)
        thread.join()
