"""Who serves when reals fail, in the lab, by what clients see: sorry reals, a service below its need, slow
start, and a real that flaps.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator

import pytest

from tests.e2e.operating import Editor, Settings, edited, real, service, state_dir
from vc5py.control import client
from vc5py.lab.assembly import Lab
from vc5py.lab.layout import BALANCERS, DSCP_VIP, FAR_REAL, REALS, TAGGED_REAL, Host
from vc5py.lab.network import run
from vc5py.lab.observe import next_hops
from vc5py.lab.scenario import wait_for_next_hops
from vc5py.lab.traffic import curl

# Nobody else would miss the first two's servers: they may die. ONE is behind a VLAN tag, TWO in a tunnel.
ONE, TWO, SORRY = TAGGED_REAL, FAR_REAL, REALS[0]
OWN_VIP = DSCP_VIP + 9
NAME = "own"
SLOW_START_S = 5.0
CHECK: Settings = {"name": "alive", "type": "http", "path": "/alive", "interval": 0.4, "timeout": 0.3}
ALIVE = CHECK | {"rise": 1, "fall": 1}


@pytest.fixture(scope="module", autouse=True)
def vip_on_reals(standing_lab: Lab) -> Iterator[None]:
    for host in (ONE, TWO, SORRY):
        namespace = standing_lab.layout.namespace(host.name)
        run("ip", "-n", namespace, "addr", "add", f"{OWN_VIP}/32", "dev", "lo")
    yield
    for host in (ONE, TWO, SORRY):
        namespace = standing_lab.layout.namespace(host.name)
        run("ip", "-n", namespace, "addr", "del", f"{OWN_VIP}/32", "dev", "lo")


@pytest.fixture
def editor(lab: Lab) -> Iterator[Editor]:
    """Afterwards all servers run again."""
    with edited(lab) as editor:
        yield editor
    for host in (ONE, TWO):
        if not lab.network.pids(host.name):
            lab.start(host)


def as_real(host: Host) -> Settings:
    return {"address": str(host.address), "mode": "gue" if host is TWO else "l2"}


def install(lab: Lab, editor: Editor, *reals: Host, **more: object) -> None:
    """The service of this test, in force on both balancers."""
    base = {"name": NAME, "addr": str(OWN_VIP), "port": 80, "damping": "off", "checks": [ALIVE]}
    editor.write(services=[base | {"reals": [as_real(host) for host in reals]} | more])
    for balancer in BALANCERS:
        answer = client.ask(state_dir(lab, balancer), "POST", "/v1/reload")
        assert answer.good, answer


def shown(lab: Lab, key: str) -> list[object]:
    """What both balancers say of the service."""
    return [service(lab, balancer, NAME)[key] for balancer in BALANCERS]


def until(lab: Lab, key: str, value: object) -> None:
    lab.wait_for(f"{key} is {value}", lambda: shown(lab, key) == [value, value])


def until_of(lab: Lab, host: Host, key: str, value: object) -> None:
    def all_say_so() -> bool:
        return all(real(lab, balancer, NAME, host)[key] == value for balancer in BALANCERS)

    lab.wait_for(f"{key} of {host.name} is {value}", all_say_so)


def answers(lab: Lab, count: int = 40) -> Counter[str]:
    found = curl(lab.layout, count, vip=OWN_VIP)
    assert found.pop("failed") == 0, found
    return found


def test_sorry_real_serves_below_the_need_and_the_vip_stays(lab: Lab, editor: Editor) -> None:
    sorry = {"reals": [as_real(SORRY)], "checks": [dict(ALIVE)]}
    install(lab, editor, ONE, TWO, need=2, sorry=sorry)
    wait_for_next_hops(lab, *BALANCERS, vip=OWN_VIP)
    until(lab, "healthy", True)
    assert answers(lab).keys() == {ONE.name, TWO.name}
    lab.kill(TWO)
    until(lab, "sorry", True)
    assert shown(lab, "healthy") == [False, False]
    assert answers(lab).keys() == {SORRY.name}
    wait_for_next_hops(lab, *BALANCERS, vip=OWN_VIP)
    lab.start(TWO)
    until(lab, "healthy", True)
    assert shown(lab, "sorry") == [False, False]
    assert answers(lab).keys() == {ONE.name, TWO.name}


@pytest.mark.parametrize("below", ["withdraw", "serve"])
def test_below_its_need_a_service_is_withdrawn_or_serves_on(lab: Lab, editor: Editor, below: str) -> None:
    install(lab, editor, ONE, TWO, need=2, below_need=below)
    until(lab, "healthy", True)  # with "serve" it is announced before
    wait_for_next_hops(lab, *BALANCERS, vip=OWN_VIP)
    lab.kill(TWO)
    until(lab, "healthy", False)
    if below == "serve":
        assert answers(lab).keys() == {ONE.name}
        assert next_hops(lab.layout, OWN_VIP) == {balancer.address for balancer in BALANCERS}
        lab.kill(ONE)  # nobody is left: now it is withdrawn all the same
    lab.wait_for("the route has gone", lambda: not next_hops(lab.layout, OWN_VIP))
    lab.start(TWO)
    if below == "serve":
        wait_for_next_hops(lab, *BALANCERS, vip=OWN_VIP)
        assert answers(lab).keys() == {TWO.name}
        lab.start(ONE)
    until(lab, "healthy", True)
    wait_for_next_hops(lab, *BALANCERS, vip=OWN_VIP)


def seconds_up(lab: Lab, host: Host) -> float:
    """For how long both balancers have had it up."""
    return min(time.time() - float(real(lab, balancer, NAME, host)["since"]) for balancer in BALANCERS)


def test_share_of_a_real_that_came_back_grows(lab: Lab, editor: Editor) -> None:
    """It has eight steps, of which the first gives it a ninth of all and the last one half."""
    install(lab, editor, ONE, TWO, slow_start=SLOW_START_S)
    wait_for_next_hops(lab, *BALANCERS, vip=OWN_VIP)
    until_of(lab, ONE, "serving", True)
    lab.kill(TWO)
    until_of(lab, TWO, "serving", False)
    assert answers(lab).keys() == {ONE.name}
    lab.wait_for("the other one's share is whole", lambda: seconds_up(lab, ONE) > SLOW_START_S)
    lab.start(TWO)
    until_of(lab, TWO, "serving", True)
    shares = [answers(lab, 100)[TWO.name] / 100]
    while seconds_up(lab, TWO) < SLOW_START_S:
        shares.append(answers(lab, 100)[TWO.name] / 100)
    last = answers(lab, 200)[TWO.name] / 200
    print("share of new connections:", shares, last)
    middle = len(shares) // 2
    assert middle >= 2 and sum(shares[:middle]) / middle < sum(shares[-middle:]) / middle
    assert shares[0] < 0.27 and 0.38 < last < 0.62


def test_real_that_flaps_is_kept_out_while_others_serve(lab: Lab, editor: Editor) -> None:
    damping = {"suppress": 2.5, "reuse": 1, "half_life": 2, "longest": 30}
    install(lab, editor, ONE, TWO, damping=damping)
    wait_for_next_hops(lab, *BALANCERS, vip=OWN_VIP)
    for _ in range(4):
        until_of(lab, TWO, "health", "up")
        lab.kill(TWO)
        until_of(lab, TWO, "health", "down")
        lab.start(TWO)
    until_of(lab, TWO, "health", "up")
    for balancer in BALANCERS:
        found = real(lab, balancer, NAME, TWO)
        assert (found["damped"], found["serving"]) == (True, False)
    assert answers(lab).keys() == {ONE.name}
    lab.kill(ONE)  # too few are left without it
    until_of(lab, TWO, "serving", True)
    assert answers(lab).keys() == {TWO.name}
    lab.start(ONE)
    until_of(lab, ONE, "serving", True)
    until_of(lab, TWO, "damped", False)
    until_of(lab, TWO, "serving", True)
    assert answers(lab).keys() == {ONE.name, TWO.name}
