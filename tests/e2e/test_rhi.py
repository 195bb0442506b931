"""Route health injection against a real router: ExaBGP and BIRD 2 in namespaces on one bridge.

vc5t-rhi-r: br0 10.99.0.1 and fd99::1, BIRD      vc5t-rhi-a: 10.99.0.2, fd99::2      vc5t-rhi-b: 10.99.0.3
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, TypeVar

import pytest

from tests import leftovers
from tests.e2e.conftest import Lasted
from vc5py import claim
from vc5py.lab.observe import JITTER_S

ROUTER, A, B = "vc5t-rhi-r", "vc5t-rhi-a", "vc5t-rhi-b"
VIP, VIP2, VIP6 = "192.168.101.1", "192.168.101.2", "2001:db8::1"
PEER, PEER6 = "10.99.0.1", "fd99::1"
LATE_S = 5.0  # for a hold to be noticed, ExaBGP to be ended, and the router to be told, on a busy machine
T = TypeVar("T")
DRIVER = Path(__file__).with_name("rhi_driver.py")
BIRD = """
router id 10.99.0.1;
protocol device { scan time 1; }
protocol direct { ipv4; ipv6; }
template bgp balancer {
  passive yes; connect delay time 1; connect retry time 1; error wait time 1,2;
  ipv4 { import all; export none; };
  ipv6 { import all; export none; };
}
protocol bgp a from balancer { local 10.99.0.1 as 65001; neighbor 10.99.0.2 as 65001; }
protocol bgp b from balancer { local 10.99.0.1 as 65001; neighbor 10.99.0.3 as 65001; }
protocol bgp a6 from balancer { local fd99::1 as 65001; neighbor fd99::2 as 65001; }
"""


def eventually(probe: Callable[[], T], timeout_s: float = 120.0) -> T:
    """The first true value of `probe`; the test fails where there is none in time."""
    end = time.monotonic() + timeout_s
    while not (value := probe()):
        assert time.monotonic() < end, f"not within {timeout_s} s"
        time.sleep(0.02)
    return value


def run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def network() -> Iterator[None]:
    if os.geteuid() != 0:
        pytest.fail("these tests make network namespaces: run them as root")
    with ExitStack() as stack:
        for namespace in (ROUTER, A, B):
            leftovers.remove(namespace)
            run("ip", "netns", "add", namespace)
            stack.callback(run, "ip", "netns", "del", namespace)
            run("ip", "-n", namespace, "link", "set", "lo", "up")
        run("ip", "-n", ROUTER, "link", "add", "br0", "type", "bridge")
        up(ROUTER, "br0", 1)
        for host, namespace in ((2, A), (3, B)):
            port = f"port{host}"
            run(*f"ip -n {ROUTER} link add {port} type veth peer name eth0 netns {namespace}".split())
            run("ip", "-n", ROUTER, "link", "set", port, "master", "br0", "up")
            up(namespace, "eth0", host)
        yield


def up(namespace: str, device: str, host: int) -> None:
    run("ip", "-n", namespace, "addr", "add", f"10.99.0.{host}/24", "dev", device)
    run("ip", "-n", namespace, "addr", "add", f"fd99::{host}/64", "dev", device, "nodad")
    run("ip", "-n", namespace, "link", "set", device, "up")


class Learned(str):
    """A path as its protocol and the time it was learned at: "a 22:49:05.743". BIRD works the time out anew
    each time it is asked: what differs by some milliseconds is the same.
    """

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Learned):
            return False
        return self.protocol == other.protocol and abs(self.seconds() - other.seconds()) < JITTER_S

    __hash__ = None  # type: ignore[assignment]

    @property
    def protocol(self) -> str:
        return self.split()[0]

    def seconds(self) -> float:
        hours, minutes, seconds = map(float, self.split()[1].split(":"))
        return 3600 * hours + 60 * minutes + seconds


class Router:
    """BIRD, and what it says."""

    def __init__(self, directory: Path) -> None:
        self.control = directory / "bird.ctl"

    def ask(self, *words: str) -> str:
        """What BIRD answers; "Network not found" is an answer, with exit status 1."""
        command = ["birdc", "-s", str(self.control), *words]
        answer = subprocess.run(command, check=False, capture_output=True, text=True)
        assert "ready." in answer.stdout, answer
        return answer.stdout

    def routes(self, vip: str) -> list[Learned]:
        """The paths to the VIP. Times are too late by as long as BIRD was kept from running while it worked
        them out: where there are any, it is asked more than once.
        """
        found = self._paths(vip)
        for _ in range(2 if found else 0):
            again = self._paths(vip)
            if [one.protocol for one in again] != [one.protocol for one in found]:
                return again
            found = [min(pair, key=Learned.seconds) for pair in zip(found, again, strict=True)]
        return found

    def _paths(self, vip: str) -> list[Learned]:
        shown = self.ask("show", "route", "for", vip, "all")
        return [Learned(path) for path in re.findall(r"\[(\w+ \d+:\d+:[\d.]+)", shown)]

    def learned(self, vip: str) -> Callable[[], list[Learned]]:
        return lambda: self.routes(vip)

    def lost(self, vip: str) -> Callable[[], bool]:
        return lambda: not self.routes(vip)

    def withdraws(self, protocol: str) -> list[str]:
        return re.findall(r"Import withdraws: +(\d+)", self.ask("show", "protocols", "all", protocol))


@pytest.fixture(scope="module")
def router(network: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Router]:
    directory = tmp_path_factory.mktemp("bird")
    router = Router(directory)
    (directory / "bird.conf").write_text(BIRD)
    files = ["-c", str(directory / "bird.conf"), "-s", str(router.control), "-P", str(directory / "pid")]
    bird = subprocess.Popen(["ip", "netns", "exec", ROUTER, "bird", "-f", *files])
    try:
        eventually(router.control.exists)
        yield router
    finally:
        bird.terminate()
        bird.wait(60)


class Driver:
    """A director in a namespace, as a process."""

    def __init__(self, state: Path, namespace: str, *arguments: str) -> None:
        self.state = state
        command = ["ip", "netns", "exec", namespace, sys.executable, str(DRIVER), str(state), *arguments]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        )

    def tell(self, line: str) -> dict[str, Any]:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        assert isinstance(answer, dict)
        return answer

    def announced(self) -> list[str]:
        found = self.tell("status")["announced"]
        assert isinstance(found, list)
        return found

    def kill(self) -> None:
        self.process.kill()
        self.close()

    def close(self) -> None:
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()
        self.process.wait(60)

    def exabgp(self) -> int:
        return exabgp_pid(self.state)


def exabgp_pid(state: Path) -> int:
    return int((state / "exabgp.pid").read_text())


def alive(pid: int) -> bool:
    """Whether the process runs: a zombie that nobody has waited for yet doesn't."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


StartDriver = Callable[..., Driver]


@pytest.fixture
def start(router: Router, tmp_path: Path) -> Iterator[StartDriver]:
    """Start drivers, in namespace A and with one peer unless told otherwise; end all of it afterwards."""
    drivers: list[Driver] = []

    def start_driver(namespace: str = A, *arguments: str, state: str = "state", hold: float = 30.0) -> Driver:
        local = {A: "10.99.0.2", B: "10.99.0.3"}[namespace]
        options = arguments or ("--peer", PEER)
        drivers.append(Driver(tmp_path / state, namespace, local, *options, "--hold", str(hold)))
        return drivers[-1]

    yield start_driver
    for driver in drivers:
        driver.kill()
    for directory in {driver.state for driver in drivers}:
        if (directory / "exabgp.pid").exists() and alive(exabgp_pid(directory)):
            os.kill(exabgp_pid(directory), signal.SIGKILL)
        shutil.rmtree(directory, ignore_errors=True)
    eventually(lambda: not router.routes(VIP) and not router.routes(VIP6))


def relay_pid(exabgp: int) -> int:
    """0 where it has none at the moment."""
    children = Path(f"/proc/{exabgp}/task/{exabgp}/children").read_text().split()
    return int(children[0]) if children else 0


def test_a_vip_is_learned_and_withdrawn(start: StartDriver, router: Router) -> None:
    driver = start()
    driver.tell(f"routes {VIP}")
    (path,) = eventually(router.learned(VIP))
    assert path.startswith("a ")
    assert "BGP.next_hop: 10.99.0.2" in router.ask("show", "route", "for", VIP, "all")
    eventually(lambda: driver.tell("status") == {"sessions": {PEER: "established"}, "announced": [VIP]})
    driver.tell(f"routes {VIP2}")
    eventually(router.learned(VIP2))
    assert not router.routes(VIP), "withdrawals come first"
    driver.tell("routes")
    eventually(router.lost(VIP2))
    eventually(lambda: driver.tell("status") == {"sessions": {PEER: "established"}, "announced": []})


def test_ipv6_sessions_and_routes(start: StartDriver, router: Router) -> None:
    driver = start(A, "--peer", PEER, "--peer", PEER6, "--next-hop", "fd99::2")
    driver.tell(f"routes {VIP} {VIP6}")
    eventually(lambda: len(router.routes(VIP)) == len(router.routes(VIP6)) == 2)
    assert "BGP.next_hop: fd99::2" in router.ask("show", "route", "for", VIP6, "all")
    eventually(lambda: driver.tell("status")["sessions"] == {PEER: "established", PEER6: "established"})
    driver.tell("routes")
    eventually(lambda: not router.routes(VIP) and not router.routes(VIP6))


def test_a_killed_exabgp_is_replaced(start: StartDriver, router: Router) -> None:
    driver = start()
    driver.tell(f"routes {VIP}")
    before = eventually(router.learned(VIP))
    victim = driver.exabgp()
    os.kill(victim, signal.SIGKILL)
    eventually(lambda: router.routes(VIP) not in ([], before))
    assert driver.exabgp() != victim
    eventually(lambda: driver.tell("status") == {"sessions": {PEER: "established"}, "announced": [VIP]})


def asking_for_graceful_restart(driver: Driver, directory: Path, seconds: int) -> Driver:
    file = directory / "rhi.yaml"
    file.write_text(f"rhi: {{as_number: 65001, peers: [{PEER}], graceful_restart: {seconds}}}\n")
    driver.tell(f"reload {file}")
    return driver


def test_with_graceful_restart_a_killed_exabgp_costs_no_route(
    start: StartDriver, router: Router, tmp_path: Path
) -> None:
    driver = asking_for_graceful_restart(start(), tmp_path, 30)
    driver.tell(f"routes {VIP} {VIP2}")
    eventually(lambda: driver.tell("standings")[PEER]["routes"] == 2)
    before, _ = eventually(router.learned(VIP)), eventually(router.learned(VIP2))
    withdrawn = router.withdraws("a")
    for _ in range(2):
        victim = driver.exabgp()
        os.kill(victim, signal.SIGKILL)
        pid = driver.state / "exabgp.pid"
        eventually(lambda pid=pid, victim=victim: pid.read_text().strip() not in ("", str(victim)))  # type: ignore[misc]
        eventually(lambda: driver.tell("standings")[PEER]["routes"] == 2)
        eventually(lambda: "Restarting" not in router.ask("show", "protocols", "all", "a"))
        assert router.routes(VIP) == before
    assert router.withdraws("a") == withdrawn
    os.kill(driver.exabgp(), signal.SIGKILL)
    driver.tell(f"routes {VIP}")
    eventually(router.lost(VIP2))
    assert router.routes(VIP) == before, "what is told no more goes, by the end of what was told"
    driver.tell("shutdown")


def test_with_graceful_restart_nothing_outlives_the_restart_time(
    start: StartDriver, router: Router, tmp_path: Path, lasted: Lasted
) -> None:
    seconds = 2
    driver = asking_for_graceful_restart(start(), tmp_path, seconds)
    driver.tell(f"routes {VIP}")
    eventually(lambda: driver.tell("standings")[PEER]["routes"] == 1)
    eventually(router.learned(VIP))
    killed_at = time.monotonic()
    exabgp = driver.exabgp()
    driver.kill()
    os.kill(exabgp, signal.SIGKILL)
    eventually(router.lost(VIP))
    gone_at = time.monotonic()
    assert gone_at - killed_at > seconds / 2, "the router kept it"
    assert lasted(killed_at, gone_at) < seconds + LATE_S


def test_a_hanging_exabgp_does_not_outlive_the_hold(
    start: StartDriver, router: Router, lasted: Lasted
) -> None:
    hold_s = 0.5
    driver = start(hold=hold_s)
    driver.tell(f"routes {VIP}")
    eventually(router.learned(VIP))
    os.kill(driver.exabgp(), signal.SIGSTOP)
    killed_at = time.monotonic()
    driver.kill()
    eventually(router.lost(VIP))
    assert lasted(killed_at, time.monotonic()) < hold_s + LATE_S
    eventually(lambda: not alive(driver.exabgp()))


@pytest.mark.long
def test_a_hanging_exabgp_is_replaced(start: StartDriver, router: Router, lasted: Lasted) -> None:
    """With the times as they are: the next question, the wait for its answer, the wait for its end."""
    driver = start()
    driver.tell(f"routes {VIP}")
    before = eventually(router.learned(VIP))
    hanging = driver.exabgp()
    os.kill(hanging, signal.SIGSTOP)
    stopped_at = time.monotonic()
    eventually(lambda: router.routes(VIP) not in ([], before))
    announced_after_s = time.monotonic() - stopped_at
    print(f"\nannounced by another ExaBGP after {announced_after_s:.1f} s")
    assert not alive(hanging)
    assert lasted(stopped_at, stopped_at + announced_after_s) < 5 + 15 + 3 + LATE_S


def attended_since(state: Path, moment: float) -> bool:
    """Whether a director has connected to a relay since then, and is still there."""
    file = state / "relay.alone"
    return json.loads(file.read_text())["since"] is None and file.stat().st_mtime > moment


def test_killed_relays_cost_no_route(start: StartDriver, router: Router) -> None:
    """More of them than ExaBGP by itself allows; and by its back-off alone the director came too late."""
    driver = start(hold=1.0)
    driver.tell(f"routes {VIP}")
    before = eventually(router.learned(VIP))
    exabgp = driver.exabgp()
    for _ in range(8):
        victim, killed_at = eventually(lambda: relay_pid(exabgp)), time.time()
        os.kill(victim, signal.SIGKILL)
        eventually(lambda since=killed_at: attended_since(driver.state, since))  # type: ignore[misc]
    eventually(lambda: driver.announced() == [VIP])
    driver.tell(f"routes {VIP} {VIP2}")
    eventually(router.learned(VIP2))
    assert router.routes(VIP) == before
    assert driver.exabgp() == exabgp


def test_routes_of_a_dead_director_go_after_the_hold(
    start: StartDriver, router: Router, lasted: Lasted
) -> None:
    hold_s = 3.0
    driver = start(hold=hold_s)
    driver.tell(f"routes {VIP}")
    eventually(router.learned(VIP))
    killed_at = time.monotonic()
    driver.kill()
    eventually(router.lost(VIP))
    gone_at = time.monotonic()
    assert gone_at - killed_at >= hold_s
    assert lasted(killed_at, gone_at) < hold_s + LATE_S
    eventually(lambda: not alive(driver.exabgp()))


def test_a_new_director_adopts_without_a_flap(start: StartDriver, router: Router) -> None:
    first = start()
    first.tell(f"routes {VIP} {VIP2}")
    before = eventually(router.learned(VIP)), eventually(router.learned(VIP2)), router.withdraws("a")
    exabgp = first.exabgp()
    first.kill()
    second = start()
    eventually(lambda: second.announced() == [VIP, VIP2])
    assert second.tell(f"routes {VIP} {VIP2}")["sessions"] == {PEER: "established"}
    second.tell("crash-free-exit")
    second.process.wait(60)
    third = start()
    eventually(lambda: third.announced() == [VIP, VIP2])
    assert (router.routes(VIP), router.routes(VIP2), router.withdraws("a")) == before
    assert third.exabgp() == exabgp
    third.tell(f"routes {VIP2}")
    eventually(router.lost(VIP))
    assert router.routes(VIP2) == before[1]


def test_a_director_that_never_decides_loses_the_adopted_routes(start: StartDriver, router: Router) -> None:
    hold_s = 4.0
    first = start()
    first.tell(f"routes {VIP}")
    eventually(router.learned(VIP))
    first.kill()
    started_at = time.monotonic()
    second = start(hold=hold_s)
    eventually(lambda: second.announced() == [VIP])
    eventually(router.lost(VIP))
    assert time.monotonic() - started_at >= hold_s
    eventually(lambda: second.tell("status") == {"sessions": {PEER: "established"}, "announced": []})


def test_a_changed_configuration_is_taken_over_without_a_flap(start: StartDriver, router: Router) -> None:
    first = start()
    first.tell(f"routes {VIP}")
    before = eventually(router.learned(VIP))
    exabgp = first.exabgp()
    first.kill()
    second = start(A, "--peer", PEER, "--peer", PEER6, hold=29.0)
    second.tell(f"routes {VIP} {VIP6}")
    eventually(router.learned(VIP6))
    assert before[0] in router.routes(VIP), "the session that was there has not ended"
    assert second.exabgp() == exabgp
    assert (second.state / "relay.hold").read_text() == "29\n"


def test_an_exabgp_that_can_not_take_over_is_replaced(start: StartDriver, router: Router) -> None:
    first = start()
    first.tell(f"routes {VIP}")
    eventually(router.learned(VIP))
    exabgp = first.exabgp()
    first.kill()
    file = first.state / "exabgp.conf"
    file.write_text(file.read_text().replace("relay.sock", "other.sock"))
    second = start()
    second.tell(f"routes {VIP2}")
    eventually(router.learned(VIP2))
    assert second.exabgp() != exabgp
    assert not alive(exabgp)
    assert not router.routes(VIP)


def test_a_second_director_leaves_the_first_alone(start: StartDriver, router: Router) -> None:
    first = start()
    first.tell(f"routes {VIP}")
    before = eventually(router.learned(VIP))
    exabgp = first.exabgp()
    second = start()
    second.tell(f"routes {VIP2}")
    second.tell("shutdown")
    second.process.wait(60)
    eventually(lambda: first.tell("status") == {"sessions": {PEER: "established"}, "announced": [VIP]})
    assert (router.routes(VIP), router.routes(VIP2)) == (before, [])
    assert first.exabgp() == exabgp


def test_shutdown_withdraws_and_leaves_nothing(start: StartDriver, router: Router) -> None:
    driver = start()
    driver.tell(f"routes {VIP}")
    eventually(router.learned(VIP))
    exabgp = driver.exabgp()
    started_at = time.monotonic()
    assert driver.tell("shutdown") == {"sessions": {PEER: "down"}, "announced": []}
    assert time.monotonic() - started_at < 20
    assert not alive(exabgp)
    eventually(router.lost(VIP))
    assert sorted(path.name for path in driver.state.iterdir()) == ["exabgp.log"]
    driver.process.wait(60)
    assert driver.process.returncode == 0


MOMENTS = (*(f"{turns}t" for turns in range(4, 10)), *(f"{0.04 * n:.2f}" for n in range(1, 11)))
"""From ExaBGP's start until it has its first session: first in turns of the director's event loop."""
some_or_all = pytest.mark.parametrize(
    "moments", [MOMENTS[::4], pytest.param(MOMENTS, marks=pytest.mark.long)], ids=["some", "all"]
)


def exabgps(state: Path) -> list[int]:
    """Those that run by the configuration in this directory. Who still tries to claim it isn't one."""
    wanted, claiming = os.fsencode(state / "exabgp.conf"), os.fsencode(claim.__file__)
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            arguments = (directory / "cmdline").read_bytes().split(b"\0")
            if wanted in arguments and claiming not in arguments:
                found.append(int(directory.name))
    return found


@some_or_all
@pytest.mark.parametrize("how", ["same", "another"])
def test_interrupted_at_any_moment_of_its_start_it_announces(
    start: StartDriver, router: Router, how: str, moments: tuple[str, ...]
) -> None:
    driver = start(hold=300.0)
    longest = 0.0
    for moment in moments:
        begun = time.monotonic()
        driver.tell(f"again {moment} {how} {VIP}")
        eventually(router.learned(VIP))
        longest = max(longest, time.monotonic() - begun)
        eventually(lambda: driver.tell("status") == {"sessions": {PEER: "established"}, "announced": [VIP]})
        assert exabgps(driver.state) == [driver.exabgp()], moment
    print(f"\n{len(moments)} starts, interrupted: announced after {longest:.1f} s at most")


@some_or_all
def test_killed_at_any_moment_of_its_start_the_next_director_announces(
    start: StartDriver, router: Router, moments: tuple[str, ...]
) -> None:
    longest = 0.0
    for moment in moments:
        victim = start(hold=300.0)
        assert victim.process.stdin is not None
        victim.process.stdin.write(f"again {moment} die {VIP}\n")
        victim.process.stdin.flush()
        assert victim.process.wait(60) == -signal.SIGKILL
        begun = time.monotonic()
        heir = start(hold=300.0)
        heir.tell(f"routes {VIP}")
        eventually(router.learned(VIP))
        longest = max(longest, time.monotonic() - begun)
        eventually(lambda d=heir: d.announced() == [VIP])  # type: ignore[misc]
        assert exabgps(heir.state) == [heir.exabgp()], moment
        heir.tell("shutdown")
        assert exabgps(heir.state) == []
    print(f"\n{len(moments)} starts, killed: announced by the next after {longest:.1f} s at most")


def test_the_last_of_many_changes_wins(start: StartDriver, router: Router) -> None:
    driver = start()
    driver.tell(f"routes {VIP2}")
    eventually(router.learned(VIP2))
    driver.tell(f"flap {VIP} 100")
    driver.tell(f"routes {VIP}")
    eventually(lambda: router.routes(VIP) and driver.announced() == [VIP])
    driver.tell(f"flap {VIP} 100")
    eventually(router.lost(VIP))


def test_two_balancers_at_a_time(start: StartDriver, router: Router) -> None:
    one, two = start(A, state="one"), start(B, state="two")
    for driver in (one, two):
        driver.tell(f"routes {VIP}")
    eventually(lambda: len(router.routes(VIP)) == 2)
    one.tell("shutdown")
    eventually(lambda: [path.split()[0] for path in router.routes(VIP)] == ["b"])
