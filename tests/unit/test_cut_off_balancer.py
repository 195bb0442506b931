"""A balancer whose BGP sessions end: its routes come back once a copy of its peers' flows has come."""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import IPv4Address
from pathlib import Path
from typing import cast

import pytest

from tests.unit.test_balancer import TEXT, VIP, BgpSpeaker, Surroundings, probe, turn
from vc5py.balancer import Balancer, Parts
from vc5py.bfd.supervisor import Supervisor
from vc5py.dataplane.driver import Driver
from vc5py.loading import load
from vc5py.model import BackendId, IPAddress, Neighbor, RhiConfig
from vc5py.rhi.speaker import SessionState, Speaker, Standing
from vc5py.routes import Routes
from vc5py.sharing import Sharing, not_shared
from vc5py.snapshot import SharingSnapshot

ONE, TWO = IPv4Address("10.0.0.254"), IPv4Address("10.0.0.253")
UP, DOWN, CONNECTING = SessionState.ESTABLISHED, SessionState.DOWN, SessionState.CONNECTING


@dataclass
class Sessions(BgpSpeaker):
    """With two routers; `why`: what ended the last session, as ExaBGP says."""

    states: dict[IPAddress, SessionState] = field(default_factory=lambda: {ONE: UP, TWO: UP})
    why: dict[IPAddress, str] = field(default_factory=dict)

    def sessions(self) -> dict[IPAddress, SessionState]:
        return self.states

    def standings(self) -> dict[Neighbor, Standing]:
        return {
            n: Standing(self.states[n.address], 7.0, self.why.get(n.address, ""), 1)
            for n in self.config.neighbors
        }

    def become(self, state: SessionState, *peers: IPAddress, why: str = "") -> None:
        self.states = self.states | dict.fromkeys(peers, state)
        self.why = self.why | dict.fromkeys(peers, why)


@dataclass
class Peers:
    """Stands for the sharing process: whether a copy has come."""

    has_had_peers: bool = True
    alone: bool = False
    asked: int = 0
    granted: int = 0

    def is_alone(self) -> bool:
        return self.alone

    def ask_for_copy(self) -> int:
        self.asked += 1
        return self.asked

    def snapshot(self) -> SharingSnapshot:
        return not_shared().snapshot()

    def is_granted(self, wish: int) -> bool:
        return self.granted >= wish


@dataclass
class Rig:
    """A balancer that announces its VIP to two routers."""

    balancer: Balancer
    speaker: Sessions
    peers: Peers

    async def look(self) -> bool:
        """Whether the VIP is announced, once the sessions have been looked at."""
        self.balancer._look_at_sessions()
        await turn()
        return VIP in self.speaker.routes


def adopted(backend: BackendId) -> bool:
    """Nothing needs to be learned at the start."""
    return True


@pytest.fixture
async def rig(tmp_path: Path) -> Rig:
    around, speakers, peers = Surroundings(tmp_path), [], Peers()
    around.file.write_text(TEXT.replace(f"peers: [{ONE}]", f"peers: [{ONE}, {TWO}]") + "learn: 30\n")

    def speaker(rhi: RhiConfig) -> Speaker:
        speakers.append(Sessions(rhi, around.order))
        return cast(Speaker, speakers[-1])

    loaded = load(around.file)
    routes = Routes(loaded.config.rhi, speaker)
    bfd = Supervisor(tmp_path / "bfd", routes.set_reachable)
    driver, sharing = cast(Driver, around), cast(Sharing, peers)
    around.dataplane.was_up = adopted  # type: ignore[method-assign]
    made = Balancer(
        Parts(loaded, driver, routes, around.memory, IPv4Address("10.0.0.9"), bfd, sharing), around.hangup
    )
    await made.startup()
    probe(made, 0, True)
    rig = Rig(made, speakers[0], peers)
    assert await rig.look()
    return rig


async def test_routes_come_back_with_a_copy(rig: Rig) -> None:
    rig.speaker.become(DOWN, ONE, TWO, why="BFD")
    assert not await rig.look()
    rig.speaker.become(UP, TWO)
    assert not await rig.look()
    assert rig.peers.asked == 1, "once a router is back, and no sooner"
    assert not await rig.look()
    rig.peers.granted = 1
    assert await rig.look()
    assert rig.peers.asked == 1


async def test_one_router_that_is_left_suffices(rig: Rig) -> None:
    rig.speaker.become(DOWN, ONE, why="BFD")
    assert await rig.look()
    rig.speaker.become(UP, ONE)
    assert await rig.look()
    assert rig.peers.asked == 0


async def test_it_is_the_last_session_that_counts(rig: Rig) -> None:
    rig.speaker.become(DOWN, ONE, why="hold time")
    assert await rig.look()
    rig.speaker.become(CONNECTING, TWO, why="hold time")
    assert not await rig.look()


async def test_while_nobody_speaks_with_exabgp_its_sessions_may_be_up(rig: Rig) -> None:
    """Its relay has died, say; the routes are where they were."""
    rig.speaker.become(DOWN, ONE, TWO)
    assert await rig.look()
    rig.speaker.become(UP, ONE, TWO)
    assert await rig.look()
    assert rig.peers.asked == 0


async def test_nor_does_one_router_that_is_long_gone_say_that_the_other_is(rig: Rig) -> None:
    """The other balancer is gone as well, or what heard it was just started again."""
    rig.speaker.become(DOWN, ONE, why="connection refused")
    assert await rig.look()
    rig.peers.alone = True
    rig.speaker.become(DOWN, TWO)
    assert not rig.balancer._is_cut_off()
    rig.speaker.become(DOWN, TWO, why="hold time")
    assert rig.balancer._is_cut_off()


async def test_without_other_balancers_nothing_is_waited_for(rig: Rig) -> None:
    rig.peers.has_had_peers = False
    rig.speaker.become(DOWN, ONE, TWO, why="BFD")
    assert await rig.look()
    rig.speaker.become(UP, ONE)
    assert await rig.look()
    assert rig.peers.asked == 0


async def test_copy_of_an_earlier_return_is_not_that_of_a_later_one(rig: Rig) -> None:
    for number in (1, 2):
        rig.speaker.become(DOWN, ONE, TWO, why="BFD")
        assert not await rig.look()
        rig.speaker.become(UP, ONE, TWO)
        assert not await rig.look()
        assert rig.peers.asked == number
    rig.peers.granted = 1
    assert not await rig.look()
    rig.peers.granted = 2
    assert await rig.look()


async def test_copy_that_comes_when_the_routers_are_lost_again_is_too_early(rig: Rig) -> None:
    for state, why in ((DOWN, "BFD"), (UP, ""), (DOWN, "BFD")):
        rig.speaker.become(state, ONE, TWO, why=why)
        assert not await rig.look()
    rig.peers.granted = rig.peers.asked
    assert not await rig.look()


async def test_cut_off_is_who_has_lost_its_sessions_by_exabgps_word_and_all_peers(rig: Rig) -> None:
    for why, alone, cut_off in (("", True, False), ("BFD", False, False), ("BFD", True, True)):
        rig.speaker.become(DOWN, ONE, TWO, why=why)
        rig.peers.alone = alone
        assert rig.balancer._is_cut_off() is cut_off
    rig.speaker.become(UP, TWO)
    assert not rig.balancer._is_cut_off()


async def test_without_routers_in_the_configuration_none_is_waited_for(rig: Rig) -> None:
    rig.speaker.become(DOWN, ONE, TWO, why="BFD")
    assert not await rig.look()
    rig.speaker.states = {}
    rig.peers.granted = 1
    assert await rig.look()
