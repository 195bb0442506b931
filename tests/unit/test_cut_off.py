"""A balancer that hears nobody any more learns anew before it announces: flows began elsewhere meanwhile."""

from __future__ import annotations

from tests.unit.directing import TCP, VIP1, bad, feed, good, service, start
from vc5py.core import director
from vc5py.core.director import CaughtUp, CutOff, Reloaded, RouterBack, RoutersLost, Tick, Transition
from vc5py.core.flowsync import Datagram, Kind, heard_body
from vc5py.core.peering import COPY_RETRY_S, FORGET_S, SILENCE_S, AskForCopy, Hello, Peering
from vc5py.model import BackendId, Config

LEARN_S = 5.0


def up(*_: BackendId) -> bool:
    return True


def announced(state: director.State) -> bool:
    return VIP1 in state.desired.announce


def test_being_cut_off_withdraws_until_learnt_anew() -> None:
    state = director.start(Config((service(),), LEARN_S), up, 0.0)
    assert announced(state)
    for now in (10.0, 11.0, 12.0):
        state, actions = feed(state, CutOff(), now=now)
        assert not announced(state)
        said = [action for action in actions if isinstance(action, Transition)]
        assert [one.why for one in said] == ["cut off: listens to the other balancers first"] * (now == 10.0)
    assert not announced(feed(state, Tick(), now=12.0 + LEARN_S - 0.1)[0])
    assert announced(feed(state, Tick(), now=12.0 + LEARN_S)[0])


def test_reals_that_come_back_meanwhile_do_not_shorten_it() -> None:
    state = director.start(Config((service(reals=1, checks=(TCP,)),), LEARN_S), up, 0.0)
    state, _ = feed(state, bad(0), bad(0), bad(0), CutOff(), now=10.0)
    state, _ = feed(state, good(0), good(0), now=11.0)
    assert not announced(state)
    assert announced(feed(state, Tick(), now=10.0 + LEARN_S)[0])


def test_without_learning_it_changes_nothing() -> None:
    state = start(service(), up=True)
    after, actions = feed(state, CutOff())
    assert (after.desired, actions) == (state.desired, [])


def test_successor_whose_routes_are_gone_learns_first() -> None:
    config = Config((service(),), LEARN_S)
    assert announced(director.start(config, up, 0.0, told=True))
    state = director.start(config, up, 0.0, told=False)
    assert not announced(state)
    assert announced(feed(state, Tick(), now=LEARN_S)[0])


# No router, but other balancers


def lost() -> director.State:
    """At 10.0; it was announced before."""
    state, actions = feed(director.start(Config((service(),), LEARN_S), up, 0.0), RoutersLost(), now=10.0)
    assert not announced(state)
    said = [action.why for action in actions if isinstance(action, Transition)]
    assert said == ["no BGP session; when one is back, it waits for the other balancers' flows first"]
    return state


def test_without_any_router_nothing_is_announced_for_as_long_as_that_lasts() -> None:
    assert not announced(feed(lost(), Tick(), now=1e6)[0])


def test_with_a_copy_it_is_announced_again_at_once() -> None:
    state, _ = feed(lost(), RouterBack(), now=20.0)
    assert not announced(state)
    state, actions = feed(state, CaughtUp(), now=20.1)
    assert announced(state)
    said = [action.why for action in actions if isinstance(action, Transition)]
    assert said == ["has learned what began elsewhere"]


def test_without_a_copy_it_is_announced_after_learning() -> None:
    state, _ = feed(lost(), RouterBack(), now=20.0)
    assert not announced(feed(state, Tick(), now=20.0 + LEARN_S - 0.1)[0])
    assert announced(feed(state, Tick(), now=20.0 + LEARN_S)[0])


def test_routers_that_are_lost_again_meanwhile_begin_it_anew() -> None:
    state, _ = feed(lost(), RouterBack(), RoutersLost(), now=20.0)
    assert not announced(feed(state, Tick(), now=1e6)[0])


def test_being_cut_off_weighs_more_than_a_copy() -> None:
    state, _ = feed(lost(), CutOff(), now=15.0)
    state, _ = feed(state, RouterBack(), CaughtUp(), now=16.0)
    assert not announced(feed(state, Tick(), now=15.0 + LEARN_S - 0.1)[0])
    assert announced(feed(state, Tick(), now=15.0 + LEARN_S)[0])


def test_the_learning_of_a_start_is_not_cut_short_by_a_copy() -> None:
    state = director.start(Config((service(),), LEARN_S), up, 0.0, told=False)
    state, _ = feed(state, RoutersLost(), RouterBack(), CaughtUp(), now=1.0)
    assert not announced(feed(state, Tick(), now=LEARN_S - 0.1)[0])
    assert announced(feed(state, Tick(), now=LEARN_S)[0])


def test_reload_meanwhile_changes_nothing_of_it() -> None:
    state, _ = feed(lost(), Reloaded(Config((service(need=1),), LEARN_S)), now=11.0)
    assert not announced(feed(state, Tick(), now=1e6)[0])
    state, _ = feed(state, RouterBack(), CaughtUp(), now=20.0)
    assert announced(state)


def test_without_learning_lost_routers_change_nothing() -> None:
    state = start(service(), up=True)
    for event in (RoutersLost(), RouterBack(), CaughtUp()):
        after, actions = feed(state, event)
        assert (after.desired, actions) == (state.desired, [])


# Copies


US, THEM = (1, 100), (2, 200)


def hello(peering: Peering, sequence: int, now: float) -> None:
    """It names what our clock showed just now."""
    ours = US[0], US[1] + int(now * 1000)
    peering.receive(Datagram(Kind.HELLO, 0, *THEM, sequence, 1, heard_body([ours])), now)


def copied() -> Peering:
    """It has had all flows of its peer, heard last at 1.0."""
    peering = Peering(*US, 0.0)
    hello(peering, 1, 0.0)
    assert AskForCopy(*THEM) in peering.tick(0.0)
    assert peering.receive(Datagram(Kind.COPIED, 0, *THEM, 2, 0), 1.0)
    assert peering.copied
    return peering


def test_copy_is_asked_for_after_a_silence_in_which_something_was_said() -> None:
    peering = copied()
    back = 2.0 + SILENCE_S
    assert AskForCopy(*THEM) not in peering.tick(back - 0.1), "nobody is there to answer"
    hello(peering, 6, back)  # those from 3 to 5 went into the void
    assert AskForCopy(*THEM) not in peering.tick(back), "they may only be late"
    assert AskForCopy(*THEM) in peering.tick(back + 0.1), "at once, not after COPY_RETRY_S"
    assert not peering.copied
    hello(peering, 7, back + 1.0)
    assert AskForCopy(*THEM) not in peering.tick(back + COPY_RETRY_S)


def test_copy_is_asked_for_of_one_that_was_forgotten_and_comes_back() -> None:
    peering = copied()
    peering.tick(1.1 + FORGET_S)
    assert not peering.peers
    hello(peering, 40, 30.0)
    assert AskForCopy(*THEM) in peering.tick(30.0)


def test_who_asks_names_the_other_one_first() -> None:
    """That one may not have heard it do so yet, and does nothing for strangers."""
    peering = Peering(*US, 0.0)
    peering.tick(0.0)
    hello(peering, 1, 0.01)
    [said, asked] = peering.tick(0.02)
    assert isinstance(said, Hello)
    assert THEM in said.heard
    assert asked == AskForCopy(*THEM)
