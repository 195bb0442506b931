"""A packet that comes between two stores of a change: it goes as before the change or as after it.

Every store of the control plane into services, backends and slots is followed by a frame, of a flow that
nobody has recorded, through the program in the kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from ipaddress import ip_address
from itertools import permutations
from typing import Any

import numpy as np
import pytest

from tests.packets.frames import tcp
from tests.packets.harness import ACTIONS, Kernel, Outcome, XdpAction
from tests.packets.oracle import Oracle
from tests.packets.test_matrix import ALL_WAYS
from tests.packets.world import HTTP, WORLD, RealSpec, ServiceSpec, Side, World
from vc5py.dataplane.abi import Action

NOTHING = World((), answers=False)
VIPS = {4: ip_address("192.0.2.1"), 6: ip_address("2001:db8::1")}
WATCHED = ("services", "backends", "slots", "services4", "services6")


class Watched(np.ndarray[Any, np.dtype[Any]]):
    """Memory whose every store is followed by a call, of it and of all views of it."""

    after: Callable[[], None] = staticmethod(lambda: None)

    def __setitem__(self, key: Any, value: Any) -> None:
        super().__setitem__(key, value)
        Watched.after()


@pytest.fixture
def kernel(frozen_kernel: Kernel) -> Iterator[Kernel]:
    plain = {name: getattr(frozen_kernel.maps, name) for name in WATCHED}
    for name, array in plain.items():
        setattr(frozen_kernel.maps, name, array.view(Watched))
    frozen_kernel.install(NOTHING)
    yield frozen_kernel
    for name, array in plain.items():
        setattr(frozen_kernel.maps, name, array)
    frozen_kernel.install(WORLD)


def fate(outcome: Outcome) -> tuple[XdpAction, bytes | str]:
    """What a packet's sender, or receiver, would know of it; of a lost one, why."""
    assert outcome.verdict is not None and isinstance(outcome.action, XdpAction)
    lost = ACTIONS[outcome.verdict] is Action.DROP
    return outcome.action, outcome.verdict if lost else outcome.frame


def fates_between(kernel: Kernel, before: World, after: World, frame: bytes) -> list[Any]:
    """Of the frame, after every store of the change."""
    kernel.install(before)
    seen = []

    def look() -> None:
        kernel.clear_flows()
        seen.append(fate(kernel.run_many([frame])[0]))

    Watched.after = staticmethod(look)
    try:
        kernel.change(after)
    finally:
        Watched.after = staticmethod(lambda: None)
    return seen


def check(kernel: Kernel, before: World, after: World, frame: bytes, *others: Any) -> None:
    """`others`: what may become of it besides."""
    ends = [fate(Oracle(world).predict(frame, {})) for world in (before, after)]
    seen = fates_between(kernel, before, after, frame)
    strange = [one for one in seen if one not in (*ends, *others)]
    assert seen, "no store was seen"
    assert not strange, f"{len(strange)} of {len(seen)}: {strange[0]}, neither {ends[0]} nor {ends[1]}"
    assert seen[-1] == ends[1]
    turns = [seen[n] for n in range(1, len(seen)) if seen[n] != seen[n - 1]]
    assert len(turns) <= 1 + 2 * len(others), "there and back again"


def world(*reals: RealSpec, family: int = 4) -> World:
    return World((ServiceSpec("web", VIPS[family], HTTP, reals),))


def real(n: int, way: str, family: int, **more: Any) -> RealSpec:
    """`family`: of its address; a way of the other one is left to it."""
    address = ip_address(f"10.0.0.{n}" if family == 4 else f"fd00::{n:x}")
    return replace(
        RealSpec(address, f"02:00:00:00:66:{n:02x}", forwarding=ALL_WAYS[way][0]),
        **more,
    )


FRAME = {family: tcp(vip, flags="A", sport=40003) for family, vip in VIPS.items()}
MODES = ("l2", "ipip4", "gre4", "fou4", "gue4", "dscp")


@pytest.mark.parametrize("on_link", [True, False], ids=["beside", "behind"])
@pytest.mark.parametrize("family", [4, 6])
def test_a_real_changes_its_mode(kernel: Kernel, family: int, on_link: bool) -> None:
    """From every mode to every other, beside us and behind a gateway, where one of them is unreachable."""
    for first, second in permutations(MODES, 2):
        before, after = (
            world(real(9, way, family, on_link=on_link), family=family) for way in (first, second)
        )
        check(kernel, before, after, FRAME[family])


def test_a_tunnel_that_nothing_can_be_sent_from(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real that is beside us, but that no address of ours would be used for."""
    plain = RealSpec.neighbour

    def without_source(self: RealSpec, ifindex: int) -> Any:
        found = plain(self, ifindex)
        return found and replace(found, source=None)

    monkeypatch.setattr(RealSpec, "neighbour", without_source)
    for first, second in (("l2", "ipip4"), ("ipip4", "l2"), ("dscp", "gue4")):
        before, after = (world(real(9, way, 4)) for way in (first, second))
        seen = fates_between(kernel, before, after, FRAME[4])
        sound = {fate(Oracle(one).predict(FRAME[4], {})) for one, way in ((before, first), (after, second))
                 if way in ("l2", "dscp")}  # fmt: skip
        assert set(seen) <= sound | {(XdpAction.DROP, "no_neighbour")}


LOST = (XdpAction.DROP, "no_neighbour")


@pytest.mark.parametrize("way", ["l2", "gue4", "dscp"])
@pytest.mark.parametrize("family", [4, 6])
def test_a_real_moves(kernel: Kernel, family: int, way: str) -> None:
    """What is where is in two words: meanwhile nothing goes there, rather than to the wrong place."""
    old = real(9, way, family)
    for change in (
        {"mac": "02:00:00:00:66:ff"},
        {"side": Side.FAR},
        {"vlan": 200},
        {"vlan": 200, "svlan": 300, "side": Side.FAR, "mac": "02:00:00:00:66:ff"},
        {"vlan": 0},
    ):
        new = replace(old, **change)
        for before, after in ((old, new), (new, old)):
            check(kernel, world(before, family=family), world(after, family=family), FRAME[family], LOST)


def several(family: int, *ns: int, **more: Any) -> tuple[RealSpec, ...]:
    return tuple(real(n, "l2", family, **more) for n in ns)


DOWN = {"up": False, "weight": 0}
CHANGES = {
    "joins": (several(4, 1, 2), several(4, 1, 2, 3)),
    "leaves": (several(4, 1, 2, 3), several(4, 1, 2)),
    "drains": (several(4, 1, 2), (*several(4, 1), *several(4, 2, weight=0))),
    "down": (several(4, 1, 2), (*several(4, 1), *several(4, 2, **DOWN))),
    "up": ((*several(4, 1), *several(4, 2, **DOWN)), several(4, 1, 2)),
    "all_down": (several(4, 1, 2), several(4, 1, 2, **DOWN)),
    "all_up": (several(4, 1, 2, **DOWN), several(4, 1, 2)),
    "weight": (several(4, 1, 2), (*several(4, 1), *several(4, 2, weight=9))),
    "outgrows": (several(4, 1), several(4, *range(1, 41))),
    "others": (several(4, 1, 2), several(4, 3, 4)),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("flags", ["S", "A"], ids=["syn", "ack"])
def test_reals_come_and_go(kernel: Kernel, change: str, flags: str) -> None:
    """A packet of a connection goes on to where it went while that is up, others to the new place."""
    before, after = (world(*reals) for reals in CHANGES[change])
    for sport in range(40003, 40011):
        frame = tcp(VIPS[4], flags=flags, sport=sport)
        oracles = Oracle(before), Oracle(after)
        ends = {fate(oracle.predict(frame, {})) for oracle in oracles}
        seen = set(fates_between(kernel, before, after, frame))
        assert seen <= ends, f"{seen - ends} besides {ends}"


@pytest.mark.parametrize("family", [4, 6])
def test_services_come_and_go(kernel: Kernel, family: int) -> None:
    some, none = world(*(real(n, "l2", family) for n in (1, 2)), family=family), World(())
    other = World((ServiceSpec("other", ip_address("192.0.2.99"), HTTP, several(4, 7)),))
    for before, after in ((none, some), (some, none), (other, some), (some, other)):
        ends = {fate(Oracle(each).predict(FRAME[family], {})) for each in (before, after)}
        seen = set(fates_between(kernel, before, after, FRAME[family]))
        refused = {(XdpAction.DROP, verdict) for verdict in ("no_service", "no_backend")}
        assert seen <= ends | refused
