"""Who serves when reals fail, in the lab, by what clients see: sorry reals, a service below its need, slow
start, and a real that flaps.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Iterator

import pytest

from tests.e2e.operating import Editor, Settings, command, edited, everywhere, real, service, state_dir
from vc5py.control import client
from vc5py.lab.assembly import Lab
from vc5py.lab.layout import BALANCERS, DSCP_VIP, FAR_REAL, REALS, TAGGED_REAL, Host
from vc5py.lab.network import run
from vc5py.lab.observe import next_hops
from vc5py.lab.scenario import wait_for_next_hops
from vc5py.lab.traffic import Downloads, curl

# Nobody else would miss the first two's servers: they may die. ONE is behind a VLAN tag, TWO in a tunnel.
ONE, TWO, SORRY = TAGGED_REAL, FAR_REAL, REALS[0]
OWN_VIP = DSCP_VIP + 9
NAME = "own"
SLOW_START_S = 8.0
STEPS = 8
SAMPLE, ERROR = 200, 0.2  # of connections; more than five standard deviations of a share
# Between samples: together they must take fewer ports than a client has. A SYN from a port that was used a
# moment ago goes to where that port's flow went, whatever the shares are now.
PAUSE_S = 1.0
# Whoever is killed refuses at once; whoever only hangs for a moment isn't down.
CHECK: Settings = {"name": "alive", "type": "http", "path": "/alive", "interval": 0.4, "timeout": 4}
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


@pytest.fixture
def undrained(lab: Lab, editor: Editor) -> Iterator[None]:
    yield
    everywhere(lab, "reset", str(SORRY.address))
    everywhere(lab, "vip", "default", str(OWN_VIP))


@pytest.mark.usefixtures("undrained")
@pytest.mark.parametrize("kept", ["sorry", "any"])
def test_last_real_drains_in_peace_while_the_vip_stays(lab: Lab, editor: Editor, kept: str) -> None:
    """Kept by a sorry real, or by another service for the sake of which it is announced all the same."""
    other = {"name": "other", "addr": str(OWN_VIP), "port": 81, "checks": [], "reals": [as_real(ONE)]}
    own = {"name": NAME, "addr": str(OWN_VIP), "port": 80, "checks": [ALIVE], "reals": [as_real(SORRY)]}
    sorry = {"sorry": {"reals": [as_real(ONE)], "checks": [dict(ALIVE)]}} if kept == "sorry" else {}
    editor.write(services=[own | sorry, other])
    for balancer in BALANCERS:
        assert client.ask(state_dir(lab, balancer), "POST", "/v1/reload").good
    wait_for_next_hops(lab, *BALANCERS, vip=OWN_VIP)
    if kept == "any":
        everywhere(lab, "vip", "announce", str(OWN_VIP))
    with Downloads(lab.layout, 6, vip=OWN_VIP) as downloads:
        everywhere(lab, "drain", str(SORRY.address), "--service", NAME)
        assert shown(lab, "count") == ["0 of 1 can serve, 1 draining, 1 needed"] * 2
        assert downloads.completed() == 6
    assert next_hops(lab.layout, OWN_VIP) == {balancer.address for balancer in BALANCERS}


@pytest.mark.usefixtures("undrained")
def test_draining_the_last_real_withdraws_the_vip_and_says_so(lab: Lab, editor: Editor) -> None:
    install(lab, editor, SORRY)
    wait_for_next_hops(lab, *BALANCERS, vip=OWN_VIP)
    victim, left = BALANCERS
    done = command(lab, victim, "drain", str(SORRY.address), "--service", NAME)
    assert (done.returncode, done.stderr) == (
        0,
        f"vc5py: warning: VIP {OWN_VIP} is withdrawn: nobody can serve {NAME}; what is open through it ends,"
        " unless another balancer announces it\n",
    )
    wait_for_next_hops(lab, left, vip=OWN_VIP)
    printed = command(lab, victim, "status").stdout
    assert f"VIP {OWN_VIP}  not announced: nobody can serve {NAME}\n" in printed
    vain = command(lab, victim, "vip", "announce", str(OWN_VIP))
    assert (vain.returncode, vain.stdout) == (1, f"VIP {OWN_VIP}: not announced: nobody can serve {NAME}\n")


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
    """For how long both balancers have had it up. The machine's clock is theirs, too."""
    return min(time.time() - float(real(lab, balancer, NAME, host)["since"]) for balancer in BALANCERS)


def step_after(seconds: float) -> int:
    """The least of its steps that a real is at when it has been up for so long; it may be at the next one."""
    return min(STEPS, 1 + int(max(0.0, seconds) / (SLOW_START_S / (STEPS - 1))))


def share_at(step: int) -> float:
    """Of one of two reals, the other one of which is at its last step: from a ninth of all to one half."""
    return min(STEPS, step) / (min(STEPS, step) + STEPS)


def test_share_of_a_real_that_came_back_grows(lab: Lab, editor: Editor) -> None:
    """A sample may take long: its share is between those of when it began and of when it ended."""
    install(lab, editor, ONE, TWO, slow_start=SLOW_START_S)
    wait_for_next_hops(lab, *BALANCERS, vip=OWN_VIP)
    until_of(lab, ONE, "serving", True)
    lab.kill(TWO)
    until_of(lab, TWO, "serving", False)
    assert answers(lab).keys() == {ONE.name}
    lab.wait_for("the other one's share is whole", lambda: seconds_up(lab, ONE) > SLOW_START_S)
    lab.start(TWO)
    until_of(lab, TWO, "serving", True)
    shares: list[float] = []
    at_s = seconds_up(lab, TWO)
    while at_s < SLOW_START_S + 1:
        time.sleep(PAUSE_S)
        shares.append(answers(lab, SAMPLE)[TWO.name] / SAMPLE)
        began_s, at_s = at_s, seconds_up(lab, TWO)
        least, most = share_at(step_after(began_s - 0.5)), share_at(step_after(at_s + 0.5) + 1)
        assert least - ERROR < shares[-1] < most + ERROR, (began_s, at_s, shares)
    last = answers(lab, 2 * SAMPLE)[TWO.name] / (2 * SAMPLE)
    print("share of new connections:", shares, last)
    assert 0.5 - ERROR < last < 0.5 + ERROR


TRANSITION = re.compile(
    rf" (?P<what>(backend|service|vip)=({NAME}@)?{OWN_VIP}(/\S+)?)"
    r" state=(?P<state>\S+) why='.+' after=[0-9.]+s$"
)


def log_of(lab: Lab, balancer: Host) -> list[str]:
    return lab.programs[balancer.name].log.read_text().splitlines()


def test_every_transition_is_one_line_with_its_reason_and_how_long_it_was_otherwise(
    lab: Lab, editor: Editor
) -> None:
    install(lab, editor, ONE, TWO, need=2)
    until(lab, "healthy", True)
    before = [len(log_of(lab, balancer)) for balancer in BALANCERS]
    lab.kill(TWO)
    until_of(lab, TWO, "health", "down")
    lab.start(TWO)
    until(lab, "healthy", True)
    for balancer, start in zip(BALANCERS, before, strict=True):
        found = [TRANSITION.search(line) for line in log_of(lab, balancer)[start:]]
        told = [match.group("what", "state") for match in found if match]
        service, backend = f"service={NAME}@{OWN_VIP}", f"backend={NAME}@{OWN_VIP}/{TWO.address}"
        assert sorted(told) == [
            (backend, "down"),
            (backend, "up"),
            (service, "healthy"),
            (service, "unhealthy"),
            (f"vip={OWN_VIP}", "announced"),
            (f"vip={OWN_VIP}", "withdrawn"),
        ]


def test_real_that_flaps_is_kept_out_while_others_serve(lab: Lab, editor: Editor) -> None:
    damping = {"suppress": 2.5, "reuse": 1, "half_life": 10, "longest": 30}
    install(lab, editor, ONE, TWO, damping=damping)
    wait_for_next_hops(lab, *BALANCERS, vip=OWN_VIP)
    for _ in range(12):  # three falls are enough, unless they take so long that points are lost meanwhile
        until_of(lab, TWO, "health", "up")
        lab.kill(TWO)
        until_of(lab, TWO, "health", "down")
        lab.start(TWO)
        if all(real(lab, balancer, NAME, TWO)["damped"] for balancer in BALANCERS):
            break
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
