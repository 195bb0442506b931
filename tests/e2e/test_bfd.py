"""BFD against BIRD's, in namespaces: both come up, and each finds within 300 ms that the other has gone.

BIRD runs with real-time priority: the router is another machine, and what is tested is our end. The last
tests have a whole balancer, and BGP that would take minutes to find out by itself.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import pytest

from tests.bench.bfd_ends import (
    ADDRESS,
    DETECTION_MS,
    INTERVAL_MS,
    MARGIN_MS,
    MULTIPLIER,
    ROUTER_ADDRESS,
    Bird,
    Lines,
    Network,
    Ours,
    Tap,
    bfd_processes,
    kill_at_once,
    network,
    speaking,
)
from tests.bench.machine import load
from tests.e2e.conftest import Lasted
from vc5py.bfd.packet import Packet, State, encode
from vc5py.bfd.supervisor import RETRY_MIN_S
from vc5py.lab.kernel import entered

pytestmark = pytest.mark.timed
ROUTER, BALANCER = "vc5t-bfd-r", "vc5t-bfd-a"
ROUTER6, ADDRESS6 = "fd97::1", "fd97::2"
NOBODY = "10.97.0.99"
BFD_PORT = 3784
VIP = "192.168.101.1"
LIMIT_S = (DETECTION_MS + MARGIN_MS) / 1e3
HOGS, KILLS = 8, 20
T = TypeVar("T")


def eventually(probe: Callable[[], T], timeout_s: float = 120.0) -> T:
    """The first true value of `probe`; the test fails where there is none in time."""
    end = time.monotonic() + timeout_s
    while not (value := probe()):
        assert time.monotonic() < end, f"not within {timeout_s} s"
        time.sleep(0.02)
    return value


@pytest.fixture(scope="module")
def net() -> Iterator[Network]:
    with network(ROUTER, BALANCER) as made:
        yield made


@pytest.fixture
def bird(net: Network, tmp_path: Path) -> Iterator[Bird]:
    router = Bird(ROUTER, "br0", ADDRESS, tmp_path / "bird", fifo=True)
    yield router
    router.end()
    net.mend()


@pytest.fixture
def ours(net: Network, tmp_path: Path) -> Iterator[Ours]:
    one = Ours(tmp_path / "ours", "fifo", BALANCER)
    yield one
    one.end()


def session(ours: Ours, neighbor: str = ROUTER_ADDRESS) -> dict[str, Any]:
    found = ours.ask("status")["sessions"][neighbor]
    assert isinstance(found, dict)
    return found


def alive(pid: int) -> bool:
    """Whether the process runs: a zombie that nobody has waited for yet doesn't."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def settled(bird: Bird, ours: Ours) -> None:
    """Up, and both know the other's interval."""
    ours.wait_up()
    bird.wait_up()
    eventually(lambda: session(ours)["detection_ms"] == DETECTION_MS)
    eventually(lambda: re.search(r" Up .* 0\.100 +0\.300", bird.ask("show", "bfd", "sessions")))


def test_up_and_a_killed_router(bird: Bird, ours: Ours, lasted: Lasted) -> None:
    settled(bird, ours)
    eventually(lambda: session(ours)["remote_state"] == "up" and session(ours)["reachable"])
    at = bird.kill()
    assert lasted(at, ours.wait_down()) < LIMIT_S
    down = session(ours)
    assert (down["state"], down["diagnostic"], down["reachable"]) == ("down", 1, False)


def test_a_cut_link_is_found_by_both(bird: Bird, ours: Ours, net: Network, lasted: Lasted) -> None:
    settled(bird, ours)
    at = net.cut()
    assert lasted(at, ours.wait_down()) < LIMIT_S
    assert lasted(at, bird.wait_down()) < LIMIT_S
    net.mend()
    ours.wait_up()
    bird.wait_up()
    assert session(ours)["reachable"]


def test_our_death_is_found_by_bird(bird: Bird, ours: Ours, lasted: Lasted) -> None:
    settled(bird, ours)
    at = ours.kill()
    assert lasted(at, bird.wait_down()) < LIMIT_S


def test_an_orderly_end_is_said_and_not_found(bird: Bird, ours: Ours, lasted: Lasted) -> None:
    ours.wait_up()
    bird.wait_up()
    pids = ours.pids()
    at = time.monotonic()
    ours.ask("shutdown")
    ended = time.monotonic()
    assert lasted(at, bird.wait_down()) < 0.1, "told, so not after 300 ms"
    assert lasted(at, ended) < 1.0
    eventually(lambda: not any(map(alive, pids)))


def test_session_that_is_not_wanted_any_more_is_said_to_end(bird: Bird, ours: Ours, lasted: Lasted) -> None:
    """The process goes on, with another one."""
    settled(bird, ours)
    pids = ours.pids()
    at = time.monotonic()
    ours.ask(f"want {NOBODY} {INTERVAL_MS} {MULTIPLIER}")
    assert lasted(at, bird.wait_down()) < 0.1, "told, so not after 300 ms"
    assert set(ours.pids()) & set(pids)
    ours.ask(f"want {NOBODY} {INTERVAL_MS} {MULTIPLIER} {ROUTER_ADDRESS} {INTERVAL_MS} {MULTIPLIER}")
    bird.wait_up()


def test_a_neighbor_that_is_taken_down_is_not_unreachable(ours: Ours, tmp_path: Path) -> None:
    """BIRD just falls silent: this router is one that says it, ours."""
    router = Ours(tmp_path / "router", "fifo", ROUTER, ADDRESS)
    ours.wait_up()
    router.ask("shutdown")
    router.end()
    eventually(lambda: session(ours)["state"] == "down")
    found = session(ours)
    assert (found["remote_state"], found["diagnostic"], found["reachable"]) == ("admin-down", 3, True)


def test_sessions_outlive_the_director_and_are_taken_over(bird: Bird, ours: Ours, tmp_path: Path) -> None:
    settled(bird, ours)
    before = session(ours)
    ours.kill_director()
    bird.settle(1.0)
    assert bird.false_downs() == 0
    second = Ours(tmp_path / "ours", "fifo", BALANCER)
    second.wait_up()
    after = session(second)
    assert after["transitions"] == before["transitions"]
    assert after["packets_in"] > before["packets_in"]
    second.ask("shutdown")
    second.end()


def test_sessions_end_after_the_hold(bird: Bird, net: Network, tmp_path: Path, lasted: Lasted) -> None:
    ours = Ours(tmp_path / "held", "fifo", BALANCER, hold_s=1.0)
    settled(bird, ours)
    at = ours.kill_director()
    found = bird.wait_down()
    assert found - at > 0.9
    assert lasted(at, found) < 1.0 + LIMIT_S
    ours.end()


def _new_speaker(ours: Ours, before: int) -> int:
    """Once it speaks, and has a standby of its own."""
    return eventually(lambda: len(ours.pids()) == 2 and (found := ours.speaker()) != before and found)


def test_a_killed_process_goes_on_as_another(
    bird: Bird, ours: Ours, capsys: pytest.CaptureFixture[str]
) -> None:
    """Again and again while all cores are busy; BIRD and we see nothing of it."""
    settled(bird, ours)
    tap, before = Tap(ROUTER, "br0"), session(ours)
    speaker = _new_speaker(ours, 0)
    bird.downs()
    with load(HOGS), closing(tap):
        for _ in range(KILLS):
            time.sleep(random.uniform(0.0, 0.3))  # at any moment between two packets
            os.kill(speaker, signal.SIGKILL)
            speaker = _new_speaker(ours, speaker)
        times = [at for source, _, at in tap.take() if source == ADDRESS]
    assert bird.downs() == []
    longest_ms = max(b - a for a, b in pairwise(times)) * 1e3
    with capsys.disabled():
        print(f"\nlongest gap with {KILLS} kill -9: {longest_ms:.0f} ms")
    assert longest_ms < DETECTION_MS
    after = eventually(
        lambda: ours.sessions()[0].get("packets_in", 0) > before["packets_in"] and session(ours)
    )
    assert (after["transitions"], after["state"]) == (before["transitions"], "up")


def test_a_killed_process_forgets_no_silence(bird: Bird, ours: Ours, net: Network, lasted: Lasted) -> None:
    """Nobody is up for longer than the detection time: when the neighbor was last heard is known to all."""
    settled(bird, ours)
    speaker = _new_speaker(ours, 0)
    at = net.cut()
    for _ in range(3):
        os.kill(speaker, signal.SIGKILL)
        speaker = _new_speaker(ours, speaker)
    assert lasted(at, ours.wait_down()) < LIMIT_S + RETRY_MIN_S
    bird.wait_down()
    net.mend()
    ours.wait_up()


def test_a_standby_that_is_killed_is_replaced(bird: Bird, ours: Ours) -> None:
    settled(bird, ours)
    speaker = _new_speaker(ours, 0)
    for _ in range(2):
        (standby,) = set(ours.pids()) - {speaker}
        os.kill(standby, signal.SIGKILL)
        eventually(lambda gone=standby: gone not in ours.pids() and len(ours.pids()) == 2)  # type: ignore[misc]
    assert ours.speaker() == speaker
    assert bird.downs() == []


def test_both_killed_are_replaced_by_the_director(bird: Bird, ours: Ours, lasted: Lasted) -> None:
    """There is nobody left who knows of the session: BIRD finds it down, and it comes up anew."""
    settled(bird, ours)
    before = ours.pids()
    at = kill_at_once(before)
    assert lasted(at, bird.wait_down()) < LIMIT_S
    bird.wait_up()
    ours.wait_up()
    assert len(ours.pids()) == 2
    assert not set(before) & set(ours.pids())


def test_other_settings_leave_the_session_up(bird: Bird, ours: Ours) -> None:
    settled(bird, ours)
    before = session(ours)["transitions"]
    ours.ask(f"want {ROUTER_ADDRESS} 200 4")
    # We wait for the neighbor's multiplier times the larger one of both intervals.
    eventually(lambda: session(ours)["detection_ms"] == 600)
    ours.ask(f"want {ROUTER_ADDRESS} 50 3")
    eventually(lambda: session(ours)["detection_ms"] == DETECTION_MS)
    assert session(ours)["transitions"] == before
    assert bird.false_downs() == 0


def test_ipv6(net: Network, tmp_path: Path, lasted: Lasted) -> None:
    bird = Bird(ROUTER, "br0", ADDRESS6, tmp_path / "bird", fifo=True)
    ours = Ours(tmp_path / "ours", "fifo", BALANCER, neighbor=ROUTER6)
    try:
        ours.wait_up()
        bird.wait_up()
        at = bird.kill()
        assert lasted(at, ours.wait_down()) < LIMIT_S
    finally:
        ours.end()
        bird.end()


def _attacker(ttl: int) -> socket.socket:
    """On the router, and so with its address."""
    with entered(ROUTER):
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, ttl)
    sock.connect((ADDRESS, BFD_PORT))
    return sock


def test_packets_from_afar_never_reach_the_process(bird: Bird, ours: Ours) -> None:
    """A flood of what would end the session, over a hop: TTL 254 (RFC 5881, section 5)."""
    settled(bird, ours)
    deadly = encode(Packet(State.DOWN, 7, 0))
    with _attacker(254) as sock:
        for _ in range(20_000):
            sock.send(deadly)
    report = eventually(lambda: (r := ours.ask("status")["report"])["dropped"] >= 20_000 and r)
    assert report["rejects"] == {}
    assert ours.false_downs() == 0
    assert bird.false_downs() == 0


def test_malformed_packets_are_counted_by_reason(bird: Bird, ours: Ours) -> None:
    ours.wait_up()
    good = encode(Packet(State.UP, 7, 8))
    cases = {
        "short": good[:23],
        "version": b"\x40" + good[1:],
        "length": good[:3] + b"\xff" + good[4:],
        "multiplier": good[:2] + b"\0" + good[3:],
        "no-session": good,
    }
    with _attacker(255) as sock:
        for data in cases.values():
            sock.send(data)
    eventually(lambda: ours.ask("status")["report"]["rejects"] == dict.fromkeys(cases, 1))
    assert ours.false_downs() == 0


# A whole balancer

BGP = f"""
log stderr all;
router id {ROUTER_ADDRESS};
protocol device {{ scan time 1; }}
protocol direct {{ ipv4; }}
protocol bfd {{ interface "br0" {{ interval {INTERVAL_MS} ms; multiplier {MULTIPLIER}; }}; }}
protocol bgp vc5 {{
  debug {{ states }};
  local {ROUTER_ADDRESS} as 65001;
  neighbor {ADDRESS} as 65001;
  direct;  # or BIRD takes an iBGP neighbor to be several hops away, and speaks BFD of another kind
  bfd on;
  hold time 240;
  connect delay time 1; connect retry time 1; error wait time 1, 2;
  ipv4 {{ import all; export none; }};
}}
"""
VC5 = f"""
rhi:
  as_number: 65001
  neighbors:
    - address: {ROUTER_ADDRESS}
      bfd: {{interval: {INTERVAL_MS}, multiplier: {MULTIPLIER}}}
      hold_time: 240
metrics: {{port: 9955}}
services:
  - {{name: web, addr: {VIP}, port: 80, reals: [10.97.0.77], checks: []}}
"""


class Router:
    """BIRD with BGP and BFD. Notes when its route to the VIP went."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        (directory / "bird.conf").write_text(BGP)
        self._control = str(directory / "ctl")
        files = ["-c", str(directory / "bird.conf"), "-s", self._control, "-P", str(directory / "pid")]
        self.process = subprocess.Popen(
            ["ip", "netns", "exec", ROUTER, "chrt", "-f", "10", "bird", "-f", *files],
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stderr is not None
        self.lines = Lines(self.process.stderr)

    def ask(self, *words: str) -> str:
        command = ["birdc", "-s", self._control, *words]
        return subprocess.run(command, check=False, capture_output=True, text=True).stdout

    def has_route(self) -> bool:
        return f"{VIP}/32" in self.ask("show", "route", "for", VIP)

    def works(self) -> bool:
        return self.has_route() and bool(
            re.search(rf"{ADDRESS} +br0 +Up", self.ask("show", "bfd", "sessions"))
        )

    def withdrawn(self) -> float:
        """When the route has gone. Asks again and again: a birdc takes some milliseconds."""
        eventually(lambda: not self.has_route())
        return time.monotonic()


class Balancer:
    """`vc5py run`, with everything it starts."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        self.state = directory / "state"
        (directory / "vc5.yaml").write_text(VC5)
        self.log = directory / "log"
        vc5py = Path(sys.executable).with_name("vc5py")
        bpf = f"mount -t bpf bpf /sys/fs/bpf && exec {vc5py} run -c {directory}/vc5.yaml --address {ADDRESS}"
        directories = f"--state-dir {self.state} --data-dir {directory}/data eth0"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                ["ip", "netns", "exec", BALANCER, "sh", "-c", f"{bpf} {directories}"],
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def status(self) -> dict[str, Any]:
        found = subprocess.run(
            [
                str(Path(sys.executable).with_name("vc5py")),
                "status",
                "--json",
                "--state-dir",
                str(self.state),
            ],
            check=True,
            capture_output=True,
            text=True,
        )
        answer = json.loads(found.stdout)
        assert isinstance(answer, dict)
        return answer

    def bfd(self) -> list[tuple[str, bool]]:
        return [(one["state"], one["reachable"]) for one in self.status()["bfd"]]

    def descendants(self) -> list[int]:
        """Of the director, itself included: what a crash of the machine would end."""
        found = [self.process.pid]
        for pid in found:
            for task in Path(f"/proc/{pid}/task").iterdir():
                found += map(int, (task / "children").read_text().split())
        return found

    @property
    def bfd_directory(self) -> Path:
        return self.state / "bfd"

    def kill(self) -> float:
        victims = set(self.descendants() if self.process.poll() is None else ())
        at = kill_at_once([*victims.union(bfd_processes(self.bfd_directory))])
        self.process.wait(10)
        return at


@pytest.fixture
def router(net: Network, tmp_path: Path) -> Iterator[Router]:
    made = Router(tmp_path / "router")
    yield made
    made.process.terminate()
    made.process.wait(10)
    made.lines.close()
    net.mend()


@pytest.fixture
def balancer(router: Router, tmp_path: Path) -> Iterator[Balancer]:
    made = Balancer(tmp_path / "balancer")
    try:
        eventually(router.works)
        yield made
    finally:
        print(made.log.read_text())
        made.kill()
        subprocess.run(["ip", "-n", BALANCER, "link", "set", "eth0", "xdp", "off"], check=False)


def test_a_cut_link_costs_the_route_at_once(
    balancer: Balancer, router: Router, net: Network, lasted: Lasted
) -> None:
    assert balancer.bfd() == [("up", True)]
    at = net.cut()
    assert lasted(at, router.withdrawn()) < LIMIT_S
    eventually(lambda: balancer.bfd() == [("down", False)])
    assert balancer.status()["neighbors"][0]["state"] != "established"
    assert "state=down was=up why=detection-time-expired" in balancer.log.read_text()
    net.mend()
    eventually(router.works)
    eventually(lambda: balancer.bfd() == [("up", True)])


def test_a_node_that_hangs_loses_its_route_at_once(
    balancer: Balancer, router: Router, lasted: Lasted
) -> None:
    """Nothing is closed, no carrier is lost: BFD alone tells."""
    victims = balancer.descendants()
    at = time.monotonic()
    for pid in victims:
        os.kill(pid, signal.SIGSTOP)
    assert lasted(at, router.withdrawn()) < LIMIT_S


def test_a_killed_balancer_loses_its_route_at_once(
    balancer: Balancer, router: Router, lasted: Lasted
) -> None:
    at = balancer.kill()
    assert lasted(at, router.withdrawn()) < LIMIT_S


def test_a_killed_bfd_process_costs_no_route(balancer: Balancer, router: Router) -> None:
    """BIRD would end our BGP session, were BFD down for it."""
    eventually(lambda: balancer.bfd() == [("up", True)])
    router.lines.waiting()
    for _ in range(5):
        speaker = speaking(balancer.bfd_directory)
        os.kill(speaker, signal.SIGKILL)
        eventually(lambda gone=speaker: _speaker_is_not(balancer, gone))  # type: ignore[misc]
        assert router.has_route()
    eventually(lambda: balancer.bfd() == [("up", True)])
    assert router.works()
    lines = router.lines.waiting()
    assert not any("BFD session down" in line or "State changed" in line for line in lines), lines


def _speaker_is_not(balancer: Balancer, before: int) -> bool:
    directory = balancer.bfd_directory
    return len(bfd_processes(directory)) == 2 and speaking(directory) not in (0, before)


def test_a_router_that_died_is_told_no_routes(balancer: Balancer, router: Router, lasted: Lasted) -> None:
    at = time.monotonic()
    router.process.kill()
    eventually(lambda: balancer.bfd() == [("down", False)])
    (found,) = balancer.status()["bfd"]
    assert lasted(at, time.monotonic() - (time.time() - found["since"])) < LIMIT_S
    metrics = subprocess.run(
        ["ip", "netns", "exec", BALANCER, "curl", "-s", f"http://{ADDRESS}:9955/metrics"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert f'vc5_bfd_session_up{{peer="{ROUTER_ADDRESS}"}} 0.0' in metrics
    assert f'vc5_bfd_peer_reachable{{peer="{ROUTER_ADDRESS}"}} 0.0' in metrics


def test_an_orderly_end_withdraws_first(balancer: Balancer, router: Router) -> None:
    pids = bfd_processes(balancer.bfd_directory)
    assert len(pids) == 2
    balancer.process.terminate()
    assert balancer.process.wait(60) == 0
    assert not router.has_route()
    eventually(lambda: not any(map(alive, pids)))
    lines = router.lines.waiting()
    assert not any("BFD session down" in line for line in lines), lines
