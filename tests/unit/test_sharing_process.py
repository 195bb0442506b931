"""The process that shares flows as the balancer keeps it: exchanged, turned off and on, asked for copies.

In its place runs a small program that speaks as it does, and writes down what it is told.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, ip_address
from pathlib import Path
from typing import Any, cast

import pytest

from vc5py import sharer_child
from vc5py import sharing as sharing_module
from vc5py.core import flowsync
from vc5py.core.flowhash import FlowKey
from vc5py.core.flowsync import Key
from vc5py.dataplane.driver import Driver
from vc5py.dataplane.maps import Sizes
from vc5py.dataplane.ticks import TickClock
from vc5py.errors import PeerError
from vc5py.model import Cluster, Config, MulticastGroup, RhiConfig, Secret
from vc5py.peers.transport import Places
from vc5py.sharer import Order
from vc5py.sharer_child import Host
from vc5py.sharing import HOLD_S, NOT_YET, Secrets, Sharing

SIZES = Sizes(64, 64, 256, 1024, 64, 64, 2, 64, 4096)
ORDER = Order(
    fds={},
    sizes=SIZES,
    ticks=TickClock(250, 1.5),
    program=0,
    places=Places(9999, None, 0, (ip_address("10.0.0.2"),)),
    cluster=1,
    node=2,
    keys=(Key.derive(b"a key of the tests"),),
    datagram=1400,
)
PROGRAM = """\
import json, select, sys
notes = open(sys.argv[1], "a")
report = {"report": {"peers": {"1": {"age_s": 0.0, "address": "10.0.0.2"}}}}
while True:
    answer = report
    if select.select([0], [], [], 0.1)[0]:
        line = sys.stdin.buffer.raw.readline()
        if not line:
            break
        said = json.loads(line)
        print(json.dumps({"port": said["port"]} if "port" in said else said), file=notes, flush=True)
        if "copy" in said:
            answer = {"copied": said["copy"]}
    print(json.dumps(answer), flush=True)
"""


@dataclass
class Rig:
    sharing: Sharing
    notes: Path

    def told(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.notes.read_text().splitlines()]


async def until(happened: Callable[[], bool]) -> None:
    """Polls: what happens in another process sends no event here."""
    async with asyncio.timeout(60):
        while not happened():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


@asynccontextmanager
async def running(
    order: Order | None, directory: Path, patch: pytest.MonkeyPatch, program: str = PROGRAM
) -> AsyncIterator[Rig]:
    """As in a balancer: it must not fail, and what it has started is ended by an orderly stop."""
    notes = directory / "notes"
    notes.touch()
    patch.setattr(sharer_child, "PROGRAM", ("-c", program, str(notes)))
    rig = Rig(Sharing(order, lambda _: None, Host(directory)), notes)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(rig.sharing.run())
        try:
            yield rig
        finally:
            task.cancel()
            await asyncio.wait({task})
            await rig.sharing.shutdown()


def on_port(port: int) -> Order:
    return replace(ORDER, places=replace(ORDER.places, port=port))


async def test_another_order_is_for_another_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(on_port(1), tmp_path, monkeypatch) as rig:
        await until(rig.sharing.has_peers)
        rig.sharing.configure(on_port(1))
        rig.sharing.configure(on_port(2))
        await until(lambda: rig.told() == [{"port": 1}, {"port": 2}])
        await until(rig.sharing.has_peers)
        assert rig.sharing.snapshot().restarts == 1


async def test_another_hold_is_told_to_the_same_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(on_port(1), tmp_path, monkeypatch) as rig:
        await until(rig.sharing.has_peers)
        rig.sharing.configure(replace(on_port(1), hold_s=7.0))
        await until(lambda: rig.told() == [{"port": 1}, {"hold_s": 7.0}])
        assert rig.sharing.snapshot().restarts == 0


async def test_off_and_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(None, tmp_path, monkeypatch) as rig:
        assert not rig.sharing.snapshot().enabled
        rig.sharing.configure(on_port(1))
        await until(rig.sharing.has_peers)
        assert rig.sharing.snapshot().enabled
        rig.sharing.configure(None)
        await until(lambda: not rig.sharing.has_peers())
        assert not rig.sharing.snapshot().enabled
        assert not rig.sharing.is_alone(), "who shares nothing has no peers to fall silent"
        rig.sharing.configure(on_port(2))
        await until(rig.sharing.has_peers)
        assert rig.told() == [{"port": 1}, {"port": 2}]


async def test_copy_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(on_port(1), tmp_path, monkeypatch) as rig:
        await until(rig.sharing.has_peers)
        for number in (1, 2):
            wish = rig.sharing.ask_for_copy()
            assert not rig.sharing.is_granted(wish)
            await until(lambda wish=wish: rig.sharing.is_granted(wish))  # type: ignore[misc]
            assert rig.told()[1:] == [{"copy": n} for n in range(1, number + 1)]


async def test_copy_is_asked_for_of_the_next_process_where_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(None, tmp_path, monkeypatch) as rig:
        wish = rig.sharing.ask_for_copy()
        rig.sharing.configure(on_port(1))
        await until(lambda: rig.sharing.is_granted(wish))
        assert rig.told() == [{"port": 1}, {"copy": 1}]


async def test_where_nobody_is_heard_no_copy_is_waited_for_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(None, tmp_path, monkeypatch) as rig:
        wish = rig.sharing.ask_for_copy()
        assert not rig.sharing.is_granted(wish)
        monkeypatch.setattr(sharing_module, "SILENCE_S", -1.0)
        assert rig.sharing.is_granted(wish)


async def test_process_that_ends_is_started_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(on_port(1), tmp_path, monkeypatch) as rig:
        await until(rig.sharing.has_peers)
        assert rig.sharing._child is not None
        rig.sharing._child.process.kill()
        await until(lambda: rig.told() == [{"port": 1}] * 2)


# Plans


SECRETS = Secrets(FlowKey.derive(b"the secret of the tests"), ORDER.keys)
CONFIG = Config((), cluster=Cluster(Secret("/s"), peers=(IPv4Address("10.0.0.2"),)))
ADDRESS = IPv4Address("10.0.0.1")


class Plane:
    """What a driver shares."""

    @dataclass
    class _Maps:
        fds: dict[str, int]
        sizes: Sizes

    interfaces = ()

    def shared(self) -> tuple[_Maps, TickClock, int]:
        return self._Maps({}, SIZES), ORDER.ticks, 0


def plan(
    config: Config, *, named_by: FlowKey | None = SECRETS.flow_key, now: Order | None = None
) -> tuple[Order | None, tuple[str, ...]]:
    sharing = Sharing(now, lambda _: None, None)
    return sharing.plan(config, SECRETS, named_by, cast(Driver, Plane()), ADDRESS)


def test_plan_for_a_configuration() -> None:
    order, notes = plan(CONFIG)
    assert order is not None
    assert (order.places.peers, order.keys, notes) == ((IPv4Address("10.0.0.2"),), SECRETS.keys, ())
    assert order.cluster == flowsync.cluster_id("vc5")


def test_plan_without_anybody_to_share_with_says_so() -> None:
    assert plan(Config(()), now=ORDER) == (None, ())
    group = MulticastGroup(IPv4Address("239.0.0.1"), 9)
    order, [note] = plan(Config((), multicast=group), now=ORDER)
    assert order is None
    assert note == "flows are not shared: 'multicast' needs a 'cluster' with a secret"


def test_by_another_secret_all_stays_as_it_is() -> None:
    for now in (replace(ORDER, hold_s=HOLD_S), None):
        for named_by in (FlowKey.derive(b"another secret of tests"), None):
            assert plan(CONFIG, named_by=named_by, now=now) == (now, (NOT_YET,))


def test_hold_is_that_of_the_routes_where_there_are_any() -> None:
    routed = replace(CONFIG, rhi=RhiConfig(65001, (), hold_s=7.0))
    for config, hold_s in ((CONFIG, HOLD_S), (routed, 7.0)):
        order, _ = plan(config)
        assert order is not None
        assert order.hold_s == hold_s
        order, notes = plan(config, named_by=None, now=ORDER)
        assert (order, notes) == (replace(ORDER, hold_s=hold_s), (NOT_YET,))


def test_interface_that_is_not_there_is_refused() -> None:
    assert CONFIG.cluster is not None
    cluster = replace(CONFIG.cluster, interface="eth99")
    group = MulticastGroup(IPv4Address("239.0.0.1"), 9)
    with pytest.raises(PeerError, match="there is no interface eth99"):
        plan(Config((), cluster=cluster, multicast=group))
