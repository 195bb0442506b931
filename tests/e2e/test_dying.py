"""Balancers, their parts, and reals that die, come back and come anew while a crowd of connections talks."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterator

import pytest

from tests.e2e import mortal
from tests.e2e.crowding import Crowd, View
from tests.e2e.mortal import FALL, INTERVAL_S, Balancers, until
from tests.e2e.operating import real
from vc5py.lab.assembly import Lab
from vc5py.lab.layout import (
    BALANCERS,
    BIG_BYTES,
    FAR_REAL,
    REALS,
    ROUTER,
    SWITCH,
    THREE_BALANCERS,
    VIP,
    VIP6,
    Host,
)
from vc5py.lab.network import run
from vc5py.lab.observe import JITTER_S, since_s
from vc5py.lab.scenario import wait_for_next_hops
from vc5py.lab.traffic import Downloads

ONE, TWO, THREE = REALS
FOUR = FAR_REAL
CROWD = 900
LARGE_CROWD = 3000
DOWNLOADS = 4
DOWNLOAD_S = 200
GUESTS = 100  # a second
CUT_S = 1.0
STEPS = 20
# By a part of a balancer: the words of its command line, with null bytes between them.
PARTS = {
    "relay": "rhi/relay.py\0",
    "sharer": "vc5py.sharer\0",
    "balancer": "vc5py\0run\0",
    "exabgp": "\0server\0",
}

Death = Callable[[Balancers, Host], None]
DEATHS: dict[str, Death] = {
    "killed": Balancers.kill_all_of,
    "cut off": Balancers.cut_off,
    "terminated": Balancers.terminate,
}


@pytest.fixture(scope="module")
def mortal_lab(root: None) -> Iterator[Lab]:
    yield from mortal.standing("vc5dying")


@pytest.fixture
def two(mortal_lab: Lab) -> Iterator[Balancers]:
    yield from mortal.fresh(mortal_lab, BALANCERS)


@pytest.fixture
def three(mortal_lab: Lab) -> Iterator[Balancers]:
    yield from mortal.fresh(mortal_lab, THREE_BALANCERS)


@pytest.fixture
def crowd(mortal_lab: Lab) -> Iterator[Crowd]:
    """A third of it by IPv6."""
    with Crowd(mortal_lab, VIP, VIP, VIP6) as crowd:
        yield crowd


@pytest.fixture
def crowd4(mortal_lab: Lab) -> Iterator[Crowd]:
    with Crowd(mortal_lab, VIP) as crowd:
        yield crowd


def broken_but_for(view: View, *reals: Host) -> list[object]:
    """The connections that broke, less those whose real died."""
    return [one for one in view.broken if one.real not in {real.name for real in reals}]


def grow_while_reals_change(balancers: Balancers, crowd: Crowd, count: int, *hosts: Host) -> View:
    """A third of the crowd each before, between and after these: one real dies, one is added, one drained."""
    balancers.configure(ONE, TWO, FOUR)
    balancers.start(*(hosts or balancers.hosts))
    crowd.grow("first", count // 3)
    mortal.kill_server(balancers.lab, FOUR)
    balancers.wait_for_real(FOUR, serving=False)
    balancers.configure(ONE, TWO, THREE, FOUR)
    balancers.reload()
    balancers.wait_for_real(THREE, serving=True)
    crowd.grow("second", count // 3)
    balancers.say("drain", ONE)
    crowd.grow("third", count - 2 * (count // 3))
    crowd.mark()
    view = crowd.all_heard()
    assert broken_but_for(view, FOUR) == []
    assert {group for group, real in view.open if real == ONE.name} == {"first", "second"}
    assert {group for group, real in view.open if real == THREE.name} == {"second", "third"}
    assert view.on(FOUR.name) == 0 < sum(one.real == FOUR.name for one in view.broken)
    return view


def dies(balancers: Balancers, crowd: Crowd, victim: Host, how: str) -> None:
    """None of the crowd breaks; prints how long the unluckiest of them had to wait."""
    crowd.mark()
    before = crowd.view()
    DEATHS[how](balancers, victim)
    balancers.wait_for_routes()
    after = crowd.all_heard()
    left = len(balancers.alive())
    count = f"{after.open.total()} connections, {after.open6} of them IPv6"
    print(f"{victim.name} {how}, {left} left: {count}, broken:", end=" ")
    print(f"{len(after.broken) - len(before.broken)}, longest gap {after.longest_s:.2f} s ({after.longest})")
    assert after.broken == before.broken
    assert after.open == before.open


def moves_onto(balancers: Balancers, crowd: Crowd, newcomer: Host, come: Callable[[], None]) -> None:
    """Connections move, and none breaks."""
    crowd.mark()
    before = crowd.view()
    come()
    after = crowd.all_heard()
    print(f"{newcomer.name} joins: {after.open.total()} connections, broken:", end=" ")
    print(f"{len(after.broken) - len(before.broken)}, longest gap {after.longest_s:.2f} s ({after.longest})")
    assert after.broken == before.broken
    assert after.open == before.open
    first = balancers.forwarded()[newcomer.name]
    balancers.lab.wait_for(
        "it forwards its share", lambda: balancers.forwarded()[newcomer.name] > first + 100
    )
    assert crowd.all_heard().broken == before.broken


@pytest.mark.parametrize(
    ("count", "deaths", "bfd"),
    [
        (CROWD, ("killed", "cut off"), True),
        pytest.param(LARGE_CROWD, ("killed", "terminated"), False, marks=pytest.mark.long),
        pytest.param(LARGE_CROWD, ("cut off", "killed"), True, marks=pytest.mark.long),
        pytest.param(LARGE_CROWD, ("terminated", "cut off"), False, marks=pytest.mark.long),
    ],
)
def test_a_third_balancer_joins_and_then_one_dies_and_then_another(
    three: Balancers, crowd: Crowd, count: int, deaths: tuple[str, ...], bfd: bool
) -> None:
    three.rhi["bfd"] = bfd
    *others, newcomer = three.hosts
    grow_while_reals_change(three, crowd, count, *others)
    with Downloads(three.lab.layout, DOWNLOADS, BIG_BYTES // DOWNLOAD_S) as downloads:
        three.lab.wait_for("downloads are under way", lambda: downloads.under_way() == DOWNLOADS)
        moves_onto(three, crowd, newcomer, lambda: three.start(newcomer))
        for victim, how in zip(others, deaths, strict=True):
            dies(three, crowd, victim, how)
        assert downloads.completed() == DOWNLOADS


@pytest.mark.long
def test_without_flow_sharing_connections_do_break(two: Balancers, crowd: Crowd) -> None:
    """That is, the tests here would see it."""
    two.configure(ONE, TWO, cluster=None, multicast=None)
    two.start(*two.hosts, sharing=False)
    crowd.grow("first", CROWD)
    two.configure(ONE, TWO, THREE, cluster=None, multicast=None)
    two.reload()
    two.wait_for_real(THREE, serving=True)
    crowd.grow("second", CROWD)
    crowd.all_heard()
    two.terminate(two.hosts[0])
    assert {one.group for one in crowd.all_heard().broken} == {"first"}


def returns_into_a_changed_world(two: Balancers, crowd: Crowd, victim: Host, how: str) -> None:
    """While it was away a real was added and another one drained, and connections began."""
    dies(two, crowd, victim, how)
    two.configure(ONE, TWO, THREE)
    two.reload(*two.alive())
    two.wait_for_real(THREE, serving=True)
    crowd.grow("while it was away", CROWD // 4)
    two.say("drain", TWO)
    two.wait_for_real(TWO, serving=False)
    crowd.grow("and then", CROWD // 4)


def test_a_balancer_returns_after_its_death_into_a_changed_world(two: Balancers, crowd: Crowd) -> None:
    victim, survivor = two.hosts
    two.configure(ONE, TWO)
    two.start(*two.hosts)
    crowd.grow("first", CROWD // 2)
    returns_into_a_changed_world(two, crowd, victim, "killed")
    moves_onto(two, crowd, victim, lambda: two.start(victim))
    dies(two, crowd, survivor, "cut off")


def wait_for_routes_by(balancers: Balancers, *hosts: Host) -> None:
    for vip in mortal.VIPS.values():
        wait_for_next_hops(balancers.lab, *hosts, vip=vip)


def set_link(balancers: Balancers, host: Host, state: str) -> None:
    run("ip", "-n", balancers.lab.layout.namespace(SWITCH), "link", "set", host.name, state)


def test_a_cable_that_is_cut_and_mended_breaks_nothing(two: Balancers, crowd: Crowd) -> None:
    """The balancer behind it goes on, alone, and finds out late what has changed."""
    victim, survivor = two.hosts
    two.configure(ONE, TWO)
    two.start(*two.hosts)
    crowd.grow("first", CROWD // 2)
    crowd.mark()
    set_link(two, victim, "down")
    wait_for_routes_by(two, survivor)
    assert crowd.all_heard().broken == ()
    two.configure(ONE, TWO, THREE)
    two.reload()
    two.wait_for_real(THREE, serving=True, hosts=(survivor,))
    crowd.grow("meanwhile", CROWD // 2)

    def mend() -> None:
        set_link(two, victim, "up")
        two.wait_for_routes()

    moves_onto(two, crowd, victim, mend)
    dies(two, crowd, survivor, "terminated")


def test_a_cable_that_is_cut_for_a_second_breaks_nothing(two: Balancers, crowd: Crowd) -> None:
    """With BFD routes go and come back before any balancer is silent. What began elsewhere meanwhile, and
    has said nothing since, must be known by then, because the slots that it went by are not.
    """
    victim, survivor = two.hosts
    two.rhi["bfd"] = True
    two.configure(*REALS)
    two.start(*two.hosts)
    crowd.grow("first", CROWD // 2)
    two.configure(*REALS, weights={ONE: 5})
    crowd.pause()
    cut_s = time.monotonic()
    set_link(two, victim, "down")
    wait_for_routes_by(two, survivor)
    two.reload(survivor)
    before = crowd.grow("meanwhile", CROWD // 2)
    until("a second is over", lambda: time.monotonic() > cut_s + CUT_S)
    lasted_s = time.monotonic() - cut_s
    set_link(two, victim, "up")
    two.wait_for_routes()
    print(f"cut for {lasted_s:.2f} s, routes came back {time.monotonic() - cut_s - lasted_s:.2f} s later")
    two.kill_all_of(survivor)
    two.wait_for_routes()
    crowd.resume()
    after = crowd.all_heard()
    assert after.broken == ()
    assert after.open == before.open


def test_router_that_starts_again_breaks_nothing(two: Balancers, crowd: Crowd) -> None:
    """Both balancers lose their only session at once: each asks the other for a copy before it announces."""
    lab = two.lab
    grow_while_reals_change(two, crowd, CROWD)
    crowd.mark()
    before = crowd.view()
    lab.programs[ROUTER].kill()
    try:
        for host in two.hosts:
            lab.wait_for(f"{host.name} announces nothing", lambda h=host: two.total(h, "vc5_vip_up") == 0)  # type: ignore[misc]
    finally:
        began_s = time.monotonic()
        lab.programs[ROUTER].start()
    for host in two.hosts:
        lab.wait_for(f"{host.name} is in order", lambda h=host: two.is_in_order(h))  # type: ignore[misc]
    two.wait_for_routes()
    print(f"routes are back {time.monotonic() - began_s:.2f} s after the router", end=", ")
    after = crowd.all_heard()
    print(f"longest gap {after.longest_s:.2f} s ({after.longest})")
    assert after.broken == before.broken
    assert after.open == before.open


def test_no_new_connection_goes_to_a_dead_real_and_those_of_others_stay(two: Balancers, crowd: Crowd) -> None:
    two.configure(ONE, TWO, THREE)
    two.start(*two.hosts)
    crowd.grow("steady", CROWD)
    served = crowd.tell(rate=GUESTS).open
    two.lab.wait_for("guests are served", lambda: any(name == TWO.name for _, name in crowd.view().guests))
    killed_s = mortal.kill_server(two.lab, TWO)
    two.wait_for_real(TWO, serving=False)
    found_s = time.monotonic()
    until("the time is over", lambda: time.monotonic() > found_s + 2 * FALL * INTERVAL_S)
    view = crowd.tell(rate=0)
    refused = sorted(one.began for one in view.broken if one.group == "guest")
    last_s = refused[-1] - killed_s
    print(f"new connections to the dead real: {len(refused)}, the last one after {last_s:.2f} s")
    # How soon it is found, unit tests tell; here the machine has a say in it, too.
    assert 0 < last_s < found_s - killed_s
    view = crowd.all_heard()
    assert {one.real for one in view.broken if one.group == "steady"} == {TWO.name}
    assert view.on(ONE.name) + view.on(THREE.name) == sum(
        count for (_, name), count in served.items() if name != TWO.name
    )


def test_balancers_with_different_files_share_what_both_know(two: Balancers, crowd: Crowd) -> None:
    """One has a new file: another real, another service. What it alone knows is its own."""
    new, old = two.hosts
    two.configure(ONE, TWO)
    two.start(*two.hosts)
    crowd.grow("first", CROWD // 2)
    more = mortal.service(81, name="more", checks=[])
    two.configure(ONE, TWO, THREE, only=new, services=[*mortal.services(), more])
    two.reload(new)
    two.wait_for_real(THREE, serving=True, hosts=(new,))
    crowd.grow("second", CROWD // 2)
    view = crowd.all_heard()
    assert view.broken == ()
    assert view.on(THREE.name) > 0
    two.lab.wait_for(
        "the other one hears of it", lambda: two.total(old, "vc5_sync_flows_total", result="unknown") > 0
    )
    assert two.total(new, "vc5_sync_flows_total", result="unknown") == 0
    two.cut_off(new)
    two.wait_for_routes()
    after = crowd.all_heard()
    assert {one.real for one in after.broken} == {THREE.name}
    assert (after.on(ONE.name), after.on(TWO.name)) == (view.on(ONE.name), view.on(TWO.name))


# Anything, in any order


class Walk:
    """Random things that happen to balancers and reals; none of them may break a connection."""

    def __init__(self, balancers: Balancers, crowd: Crowd, seed: int) -> None:
        self._random = random.Random(seed)
        self._balancers, self._crowd = balancers, crowd
        self._drained: set[Host] = set()

    def step(self) -> str:
        alive, dead = self._balancers.alive(), set(self._balancers.hosts) - set(self._balancers.alive())
        kinds = [self._weigh, self._drain_or_enable, self._grow]
        kinds += [self._kill] * (len(alive) > 1) + [self._revive] * bool(dead)
        said = self._random.choice(kinds)()
        assert self._crowd.all_heard().broken == (), said
        return said

    def _weigh(self) -> str:
        weights = {host: self._random.randint(1, 3) for host in REALS}
        self._balancers.configure(*REALS, weights=weights)
        self._balancers.reload()
        return f"weights {[*weights.values()]}"

    def _drain_or_enable(self) -> str:
        victim = self._random.choice(REALS)
        if victim in self._drained:
            self._drained.remove(victim)
        elif len(self._drained) < len(REALS) - 1:
            self._drained.add(victim)
        word = "drain" if victim in self._drained else "enable"
        self._balancers.say(word, victim)
        return f"{word} {victim.name}"

    def _grow(self) -> str:
        self._crowd.grow("walk", 100)
        return "100 more connections"

    def _kill(self) -> str:
        victim, how = self._random.choice(self._balancers.alive()), self._random.choice(sorted(DEATHS))
        DEATHS[how](self._balancers, victim)
        self._balancers.wait_for_routes()
        return f"{victim.name} {how}"

    def _revive(self) -> str:
        """What was commanded meanwhile, it is told late."""
        alive = self._balancers.alive()
        back = next(host for host in self._balancers.hosts if host not in alive)
        self._balancers.start(back)
        for host in REALS:
            self._balancers.say("drain" if host in self._drained else "enable", host)
        return f"{back.name} comes back"


@pytest.mark.long
@pytest.mark.parametrize("seed", [1, 2])
def test_random_walk(three: Balancers, crowd: Crowd, seed: int) -> None:
    three.configure(*REALS)
    three.start(*three.hosts)
    crowd.grow("first", CROWD)
    walk = Walk(three, crowd, seed)
    crowd.mark()
    for number in range(STEPS):
        print(f"{number}: {walk.step()}")
    view = crowd.view()
    print(f"{view.open.total()} connections, longest gap {view.longest_s:.2f} s ({view.longest})")


# Parts of one balancer


class Count:
    """Packets that the client has sent, and those that the balancers have forwarded, since it was made."""

    def __init__(self, balancers: Balancers) -> None:
        self._balancers = balancers
        self._sent, self._forwarded = 0, 0.0
        self._sent, self._forwarded = self.now()

    def now(self) -> tuple[int, float]:
        forwarded = sum(self._balancers.forwarded().values())
        return self._balancers.client_sent() - self._sent, forwarded - self._forwarded

    def must_agree(self) -> None:
        """While nothing is sent. The balancers' counters are some tenths of a second old."""
        try:
            self._balancers.lab.wait_for("packets add up", lambda: len(set(self.now())) == 1)
        finally:
            print("packets sent by the client: {}, forwarded by the balancers: {:.0f}".format(*self.now()))


def kill_part(balancers: Balancers, host: Host, part: str) -> None:
    """And waits until there is another one, which does its work."""
    lab, victim = balancers.lab, balancers.process(host, PARTS[part])
    os.kill(victim, signal.SIGKILL)
    if part == "balancer":
        lab.programs[host.name].reap()
        lab.programs[host.name].start()
    lab.wait_for(
        f"{part} runs again", lambda: balancers.find_process(host, PARTS[part]) not in (None, victim)
    )
    lab.wait_for("it is in order", lambda: balancers.is_in_order(host))


@pytest.mark.parametrize("rounds", [1, pytest.param(4, marks=pytest.mark.long)])
def test_parts_die_again_and_again_and_no_packet_is_lost(two: Balancers, crowd4: Crowd, rounds: int) -> None:
    """IPv4 alone, whose packets the client's kernel counts apart from those of neighbour discovery."""
    victim, crowd = two.hosts[0], crowd4
    two.rhi["graceful_restart"] = 20  # the hold
    grow_while_reals_change(two, crowd, CROWD)
    two.lab.wait_for("it is in order", lambda: two.is_in_order(victim))
    crowd.pause()
    count = Count(two)
    broken, flows = crowd.view().broken, two.total(victim, "vc5_real_flows")
    crowd.resume()
    crowd.mark()
    for part in PARTS:
        for _ in range(rounds):
            before = since_s(two.lab.layout, victim)
            kill_part(two, victim, part)
            after = since_s(two.lab.layout, victim)
            kept = [what for what in before if after[what] == pytest.approx(before[what], abs=JITTER_S)]
            assert len(before) == 2
            assert kept == [what for what in before if what.startswith("route") or part != "exabgp"], part
            assert real(two.lab, victim, mortal.SERVICE, ONE)["admin"] == "draining"
            assert crowd.all_heard().broken == broken
    two.lab.wait_for("flows are there", lambda: two.total(victim, "vc5_real_flows") >= flows)
    crowd.pause()
    print(f"longest gap {crowd.view().longest_s:.2f} s")
    count.must_agree()


@pytest.mark.long
def test_routes_of_a_killed_balancer_go_after_the_hold_and_its_flows_live_on(
    two: Balancers, crowd: Crowd
) -> None:
    hold_s = 3.0
    victim, survivor = two.hosts
    two.rhi["hold"] = hold_s
    two.configure(ONE, TWO)
    two.start(*two.hosts)
    crowd.grow("first", CROWD // 2)
    two.configure(ONE, TWO, THREE)
    two.reload()
    two.wait_for_real(THREE, serving=True)
    crowd.mark()
    killed_s = time.monotonic()
    two.lab.kill_program(victim)
    wait_for_routes_by(two, survivor)
    after_s = time.monotonic() - killed_s
    view = crowd.all_heard()
    print(f"routes went after {after_s:.2f} s, longest gap {view.longest_s:.2f} s")
    assert hold_s <= after_s < hold_s + 2
    assert view.broken == ()
