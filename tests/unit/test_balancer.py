"""The running balancer against a data plane in memory: order, coalescing, commands, whole reloads."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from ipaddress import IPv4Address, ip_address
from pathlib import Path
from typing import cast

import pytest

from vc5py import balancer as balancer_module
from vc5py.balancer import Balancer, Parts, metrics_place
from vc5py.bfd.supervisor import Supervisor
from vc5py.checks.result import ProbeResult, Reason
from vc5py.control.interface import ReloadRefusedError, UnknownTargetError, VipOutcome
from vc5py.control.memory import Memory
from vc5py.core.admin import Overrides
from vc5py.dataplane.driver import Driver
from vc5py.dataplane.fake import FakeDataplane, Room
from vc5py.errors import ConfigError, DataplaneError, RhiError, Vc5Error
from vc5py.loading import load
from vc5py.model import (
    AdminState,
    BackendId,
    Config,
    Desired,
    IPAddress,
    Neighbor,
    RhiConfig,
    VipState,
    Vlan,
)
from vc5py.rhi.speaker import SessionState, Speaker, Standing
from vc5py.routes import Routes
from vc5py.snapshot import NeighborSnapshot, ToldSnapshot
from vc5py.web.server import MetricsServer, Place

VIP, VIP2 = ip_address("192.0.2.1"), ip_address("192.0.2.2")
REALS = [ip_address(f"10.0.0.{n}") for n in range(1, 6)]
CHECKS = "[{name: c, type: tcp, rise: 1, fall: 1}]"
WEB = f"{{name: web, addr: {VIP}, port: 80, real: g, checks: {CHECKS}}}"
DNS = f"{{name: dns, addr: {VIP2}, port: 53, real: g, checks: []}}"
REST = f"""
reals: {{g: [{", ".join(map(str, REALS))}]}}
rhi: {{as_number: 65000, peers: [10.0.0.254]}}
"""
TEXT = f"services: [{WEB}]{REST}"
BOTH = f"services: [{WEB}, {DNS}]{REST}"


class Recorder(FakeDataplane):
    """Notes when it was told something, and refuses where it is broken."""

    def __init__(self, order: list[object]) -> None:
        super().__init__()
        self.order, self.broken = order, False

    def apply(self, desired: Desired) -> None:
        if self.broken:
            raise DataplaneError("no room")
        super().apply(desired)
        self.order.append("installed")


@dataclass
class BgpSpeaker:
    """Stands for ExaBGP: does at once what it is told."""

    config: RhiConfig
    order: list[object]
    routes: frozenset[IPAddress] = frozenset()
    running: bool = False
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    def set_routes(self, vips: frozenset[IPAddress]) -> None:
        self.routes = vips
        self.order.append(sorted(map(str, vips)))

    def announced(self) -> frozenset[IPAddress]:
        return self.routes

    def keeps_routes(self) -> bool:
        return True

    def sessions(self) -> dict[IPAddress, SessionState]:
        return dict.fromkeys(self.config.peers, SessionState.ESTABLISHED)

    def told(self) -> dict[IPAddress, int]:
        up = sum(state is SessionState.ESTABLISHED for state in self.sessions().values())
        return dict.fromkeys(self.routes, up)

    def reconfigure(self, config: RhiConfig) -> None:
        if config.as_number == 1:
            raise RhiError("no such AS")
        self.config = config

    def standings(self) -> dict[Neighbor, Standing]:
        return {n: Standing(SessionState.ESTABLISHED, 7.0, "", 1) for n in self.config.neighbors}

    async def run(self) -> None:
        self.running = True
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            self.running = False

    async def shutdown(self) -> None:
        self.set_routes(frozenset())
        self.ended.set()


class Neighbours:
    def __init__(self) -> None:
        self.vlans: tuple[Vlan, ...] = ()

    def set_vlans(self, vlans: tuple[Vlan, ...]) -> None:
        self.vlans = vlans

    async def run(self) -> None:
        await asyncio.get_running_loop().create_future()


class Surroundings:
    """What a balancer has around it: a driver whose data plane is in memory, a speaker, files."""

    def __init__(self, directory: Path) -> None:
        self.file = directory / "vc5.yaml"
        self.file.write_text(TEXT)
        self.order: list[object] = []
        self.dataplane = Recorder(self.order)
        self.neighbours = Neighbours()
        self.modes = {"eth0": "native"}
        self.warnings = ()
        self.unserved = ""
        self.start = None
        self.memory = Memory(directory / "data")
        self.speakers: list[BgpSpeaker] = []
        self.hangup = asyncio.Event()

    async def resolve(self, desired: Desired, timeout_s: float = 1.0) -> None:
        self.resolved = {b.id.real for s in desired.services for b in s.backends}

    async def attach(self) -> None:
        self.order.append("attached")

    def speaker(self, rhi: RhiConfig) -> Speaker:
        if rhi.as_number == 1:
            raise RhiError("no such AS")
        self.speakers.append(BgpSpeaker(rhi, self.order))
        return cast(Speaker, self.speakers[-1])

    def balancer(self) -> Balancer:
        loaded = load(self.file)
        routes = Routes(loaded.config.rhi, self.speaker)
        bfd = Supervisor(self.file.parent / "bfd", routes.set_reachable)
        parts = Parts(loaded, cast(Driver, self), routes, self.memory, IPv4Address("10.0.0.9"), bfd)
        return Balancer(parts, self.hangup)


@pytest.fixture
def around(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Surroundings:
    monkeypatch.setattr(balancer_module, "ROOM_S", 0.0)
    return Surroundings(tmp_path)


@pytest.fixture
async def balancer(around: Surroundings) -> Balancer:
    one = around.balancer()
    await one.startup()
    around.order.clear()
    return one


def backend(n: int, vip: IPAddress = VIP) -> BackendId:
    return BackendId("web", vip, REALS[n])


def probe(balancer: Balancer, n: int, ok: bool, failure: Reason = Reason.REFUSED) -> None:
    """A result, as the scheduler hands it over."""
    check = balancer.readings().state.config.services[0].checks[0]
    reason = Reason.OK if ok else failure
    balancer._probed(backend(n), check, ProbeResult(ok, reason, "", 0.0))


async def turn() -> None:
    """Lets everything happen that is due."""
    await asyncio.sleep(0)
    await asyncio.sleep(0)


def up(around: Surroundings) -> set[IPAddress]:
    return {b.id.real for s in around.dataplane.installed.values() for b in s.backends if b.up}


# Order


async def test_start_installs_then_attaches_then_announces(around: Surroundings) -> None:
    await around.balancer().startup()
    assert around.order == ["installed", "attached", []]
    assert around.resolved == set(REALS)


async def test_results_of_one_turn_are_installed_once_and_then_announced(
    balancer: Balancer, around: Surroundings
) -> None:
    for n in range(5):
        probe(balancer, n, True)
    assert around.order == []
    await turn()
    assert around.order == ["installed", [str(VIP)]]
    assert up(around) == set(REALS)
    for n in range(4):
        probe(balancer, n, False)
    await turn()
    assert up(around) == {REALS[4]}
    assert around.order.count("installed") == 2


async def test_dataplane_that_is_behind_holds_back_announcements_but_no_withdrawal(
    balancer: Balancer, around: Surroundings, caplog: pytest.LogCaptureFixture
) -> None:
    around.dataplane.broken = True
    probe(balancer, 0, True)
    await turn()
    assert around.order == [[]]
    around.dataplane.broken = False
    balancer._install()
    assert around.speakers[0].routes == {VIP}
    around.dataplane.broken = True
    for _ in range(3):
        probe(balancer, 0, False)
        await turn()
        assert around.speakers[0].routes == frozenset()
        probe(balancer, 0, True)
        await turn()
        assert around.speakers[0].routes == frozenset()
    around.dataplane.broken = False
    balancer._install()
    assert around.speakers[0].routes == {VIP}
    assert caplog.text.count("data plane behind") == 2, "once each time"


async def test_every_transition_is_one_line(balancer: Balancer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    for ok in (True, True, False, False, True):
        probe(balancer, 0, ok)
        await turn()
    lines = [r.getMessage() for r in caplog.records if r.getMessage().startswith("backend=")]
    states = [re.findall(r"state=(\w+)", line)[0] for line in lines]
    assert states == ["up", "down", "up"]
    assert lines[1].startswith(f"backend=web@{VIP}/{REALS[0]} state=down why='c: refused' after=0.0s")


# Commands


async def test_command_is_installed_and_remembered_before_it_is_answered(
    balancer: Balancer, around: Surroundings
) -> None:
    probe(balancer, 0, True)
    probe(balancer, 1, True)
    outcome = await balancer.set_state(REALS[0], None, AdminState.DRAINING)
    assert [str(e.admin) for e in outcome.effective] == ["draining"]
    assert outcome.unsaved is None
    (service,) = around.dataplane.installed.values()
    states = {b.id.real: (b.up, b.weight > 0) for b in service.backends}
    assert (states[REALS[0]], states[REALS[1]]) == ((True, False), (True, True))
    outcome = await balancer.set_weight(REALS[1], "web", 9)
    assert [e.weight for e in outcome.effective] == [9]
    assert around.memory.load().reals.keys() == {(None, REALS[0]), ("web", REALS[1])}
    successor = around.balancer()
    assert successor.readings().state.overrides == around.memory.load()
    await balancer.reset(REALS[0], None)
    await balancer.reset(REALS[1], "web")
    assert around.memory.load() == Overrides()


async def test_command_that_cannot_be_remembered_is_in_force_all_the_same(
    balancer: Balancer, around: Surroundings
) -> None:
    around.memory.path.parent.write_text("in the way")
    outcome = await balancer.set_state(REALS[0], "web", AdminState.DISABLED)
    assert outcome.unsaved is not None and str(around.memory.path) in outcome.unsaved
    assert outcome.effective[0].admin is AdminState.DISABLED


async def test_unknown_target_changes_nothing(balancer: Balancer, around: Surroundings) -> None:
    before = balancer.readings().state
    with pytest.raises(UnknownTargetError):
        await balancer.set_state(ip_address("10.0.0.77"), None, AdminState.DISABLED)
    with pytest.raises(UnknownTargetError):
        await balancer.set_weight(REALS[0], "nosuch", 1)
    with pytest.raises(UnknownTargetError):
        await balancer.reset(ip_address("10.0.0.77"), None)
    assert balancer.readings().state is before
    assert not around.memory.path.exists()


async def test_overrides_stay_over_a_reload(balancer: Balancer, around: Surroundings) -> None:
    await balancer.set_state(REALS[0], None, AdminState.DRAINING)
    around.file.write_text(BOTH)
    report = await balancer.reload()
    assert [o.real for o in (await balancer.snapshot()).overrides] == [REALS[0]]
    assert f"{REALS[0]} in dns stays draining by command; the file says enabled" in report.notes


# Reload


async def test_reload_adds_and_removes(balancer: Balancer, around: Surroundings) -> None:
    probe(balancer, 0, True)
    await turn()
    web = around.dataplane.installed
    around.file.write_text(BOTH)
    report = await balancer.reload()
    assert [(str(c.kind), c.what) for c in report.changes] == [("added", "service dns")]
    assert around.speakers[0].routes == {VIP, VIP2}
    assert balancer.configuration() == BOTH
    assert {id_.service for id_ in around.dataplane.installed} == {"web", "dns"}
    for id_, state in web.items():
        assert around.dataplane.installed[id_] is state, "not even touched"
    around.file.write_text(TEXT)
    await balancer.reload()
    await turn()
    assert around.speakers[0].routes == {VIP}
    assert (await balancer.reload()).changes == ()


async def test_reload_sets_what_holds_for_all_services(balancer: Balancer, around: Surroundings) -> None:
    around.file.write_text(TEXT + "timeouts: {udp: 7}\nfragments: drop\nvlans: {10: 10.0.0.0/24}\n")
    await balancer.reload()
    assert around.dataplane.policy is not None
    assert (around.dataplane.policy.timeouts.udp_s, around.dataplane.policy.drop_fragments) == (7, True)
    assert [vlan.id for vlan in around.neighbours.vlans] == [10]


async def test_bad_file_changes_nothing(
    balancer: Balancer, around: Surroundings, caplog: pytest.LogCaptureFixture
) -> None:
    before, loaded_at = balancer.readings().state, balancer.readings().reload.loaded_at
    around.file.write_text(BOTH.replace("port: 80", "port: 99999").replace("type: tcp", "type: tpc"))
    with pytest.raises(ConfigError) as error:
        await balancer.reload()
    assert len(error.value.diagnostics) == 2
    assert all(str(finding) in caplog.text for finding in error.value.diagnostics)
    after = balancer.readings()
    assert after.state is before
    assert (after.reload.successful, after.reload.loaded_at) == (False, loaded_at)
    assert (balancer.configuration(), around.order) == (TEXT, [])
    around.file.write_text(TEXT)
    await balancer.reload()
    assert balancer.readings().reload.successful


async def test_reload_without_room_is_refused_as_a_whole(balancer: Balancer, around: Surroundings) -> None:
    probe(balancer, 0, True)
    await turn()
    before, installed = balancer.readings().state, around.dataplane.installed
    around.dataplane.room = Room(services=1)
    around.file.write_text(BOTH + "fragments: drop\n")
    with pytest.raises(ReloadRefusedError, match=r"no room .* the configuration in force is as before$"):
        await balancer.reload()
    assert balancer.readings().state is before
    assert (around.dataplane.installed, around.dataplane.policy) == (installed, None)
    assert around.speakers[0].routes == {VIP}
    assert not balancer.readings().reload.successful


async def test_reload_waits_for_what_is_about_to_be_freed(balancer: Balancer, around: Surroundings) -> None:
    around.dataplane.room = Room(services=1)

    def maintain(now: float) -> None:
        around.dataplane.room = Room()

    around.dataplane.maintain = maintain  # type: ignore[method-assign]
    around.file.write_text(BOTH)
    await balancer.reload()
    assert len(around.dataplane.installed) == 2


class Somewhere:
    """Stands for the HTTP server."""

    def __init__(self) -> None:
        self.place: Place | None = None
        self.taken: set[int] = set()

    async def move(self, place: Place | None) -> None:
        if place is not None and place[1] in self.taken:
            raise Vc5Error(f"port {place[1]} is in use")
        self.place = place


async def test_metrics_move_and_what_is_refused_moves_nothing(
    balancer: Balancer, around: Surroundings
) -> None:
    server = Somewhere()
    await balancer.show_metrics(cast(MetricsServer, server))
    assert server.place == (None, 9955)
    around.file.write_text(TEXT + "metrics: {address: 127.0.0.1, port: 9000}")
    await balancer.reload()
    assert server.place == ("127.0.0.1", 9000)
    server.taken = {9001}
    around.file.write_text(BOTH + "metrics: {port: 9001}")
    with pytest.raises(ReloadRefusedError, match="port 9001 is in use"):
        await balancer.reload()
    assert (server.place, len(around.dataplane.installed)) == (("127.0.0.1", 9000), 1)
    around.dataplane.room = Room(services=1)
    around.file.write_text(BOTH + "metrics: {port: 9002}")
    with pytest.raises(ReloadRefusedError, match="no room"):
        await balancer.reload()
    assert server.place == ("127.0.0.1", 9000)


def test_metrics_can_be_off() -> None:
    assert metrics_place(Config((), metrics_port=0)) is None


# The main loop


@pytest.fixture
async def running(balancer: Balancer, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Balancer]:
    """Its own probes have no result: those that a test hands over are all there are."""

    async def probe(*_: object) -> ProbeResult:
        return await asyncio.get_running_loop().create_future()  # type: ignore[no-any-return]

    monkeypatch.setattr(balancer._scheduler, "_prober", probe)
    stop = asyncio.Event()
    task = asyncio.create_task(balancer.main_loop(stop))
    await turn()
    yield balancer
    stop.set()
    await task


async def until(happened: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not happened():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def test_hangup_reloads_and_a_bad_file_ends_nothing(running: Balancer, around: Surroundings) -> None:
    around.file.write_text("services: 7")
    around.hangup.set()
    await until(lambda: not running.readings().reload.successful)
    around.file.write_text(BOTH)
    around.hangup.set()
    await until(lambda: running.configuration() == BOTH)
    assert running.readings().reload.successful


async def test_speaker_takes_over_what_changes_of_rhi(running: Balancer, around: Surroundings) -> None:
    probe(running, 0, True)
    await until(lambda: around.speakers[0].running and around.speakers[0].routes == {VIP})
    around.file.write_text(TEXT.replace("65000", "65001"))
    await running.reload()
    (first,) = around.speakers
    assert first.config.as_number == 65001
    around.file.write_text(TEXT.replace("as_number: 65000", "as_number: 1"))
    with pytest.raises(ReloadRefusedError, match="no such AS"):
        await running.reload()
    assert first.running and first.config.as_number == 65001 and first.routes == {VIP}
    around.file.write_text(TEXT.split("rhi:")[0])
    await running.reload()
    await first.ended.wait()
    assert first.routes == frozenset() and not first.running
    assert (await running.snapshot()).sessions == {}
    around.file.write_text(TEXT)
    await running.reload()
    await until(lambda: around.speakers[1].running)
    assert around.speakers[1].routes == {VIP}


async def test_vips_by_command(balancer: Balancer, around: Surroundings) -> None:
    probe(balancer, 0, True)
    withdrawn = await balancer.set_vip(VIP, VipState.WITHDRAWN)
    assert withdrawn == VipOutcome(VIP, VipState.WITHDRAWN, False, why="withdrawn by command")
    assert (await balancer.snapshot()).vip_why == {VIP: "withdrawn by command"}
    assert around.speakers[0].routes == frozenset()
    assert around.memory.load().vips == {VIP: VipState.WITHDRAWN}
    assert (await balancer.snapshot()).vip_overrides == {VIP: VipState.WITHDRAWN}
    assert await balancer.set_vip(VIP, None) == VipOutcome(VIP, None, True)
    assert around.speakers[0].routes == {VIP}
    assert around.memory.load().vips == {}
    probe(balancer, 0, False)
    unable = await balancer.set_vip(VIP, VipState.ANNOUNCED)
    assert unable == VipOutcome(VIP, VipState.ANNOUNCED, False, why="nobody can serve web")
    with pytest.raises(UnknownTargetError, match=r"no VIP 192\.0\.2\.9 in the configuration"):
        await balancer.set_vip(ip_address("192.0.2.9"), VipState.ANNOUNCED)


async def test_neighbors_that_are_to_be_told_of_a_vip_are_counted(
    balancer: Balancer, around: Surroundings
) -> None:
    others = "10.0.0.253, {address: 10.0.0.252, families: ipv6}, {address: 10.0.0.251, reject: 0.0.0.0/0}"
    also = f"neighbors: [{others}]"
    around.file.write_text(TEXT.replace("peers: [10.0.0.254]", f"peers: [10.0.0.254], {also}"))
    await balancer.reload()
    assert (await balancer.snapshot()).vip_told[VIP].of == 2
    around.file.write_text("".join(line for line in TEXT.splitlines(True) if not line.startswith("rhi:")))
    await balancer.reload()
    assert (await balancer.snapshot()).vip_told == {VIP: ToldSnapshot(0, 0)}


async def test_snapshot_shows_what_holds(balancer: Balancer, around: Surroundings) -> None:
    probe(balancer, 0, True)
    await balancer.set_state(REALS[1], None, AdminState.DISABLED)
    around.dataplane.flows = {backend(0): 3}
    shown = await balancer.snapshot()
    (service,) = shown.services
    first, second = service.reals[:2]
    assert (service.healthy, service.need, service.ports, service.serving_tier) == (True, 1, ("80/tcp",), 0)
    assert (first.up, first.health, first.serving, first.flows, first.why) == (True, "up", True, 3, "c: ok")
    assert (second.up, second.admin, second.serving) == (False, AdminState.DISABLED, False)
    assert abs(shown.at - first.since) < 60
    assert shown.vips == {VIP: True}
    assert shown.vip_told == {VIP: ToldSnapshot(1, 1)}
    assert shown.sessions == {ip_address("10.0.0.254"): True}
    assert shown.neighbors == (NeighborSnapshot(ip_address("10.0.0.254"), 65000, "established", 7.0, 1),)
    assert shown.reload.file == str(around.file)
