"""BFD against FRR, over IPv4 and IPv6: both come up, and each finds in time that the other has gone."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.bench.bfd_ends import (
    ADDRESS,
    DETECTION_MS,
    INTERVAL_MS,
    MARGIN_MS,
    MULTIPLIER,
    ROUTER_ADDRESS,
    Lines,
    Network,
    Ours,
    network,
)
from tests.e2e.conftest import Lasted

pytestmark = pytest.mark.timed
ROUTER, BALANCER = "vc5t-bff-r", "vc5t-bff-a"
ROUTER6, ADDRESS6 = "fd97::1", "fd97::2"
LIMIT_S = (DETECTION_MS + MARGIN_MS) / 1e3
TIMES = f"""
  receive-interval {INTERVAL_MS}
  transmit-interval {INTERVAL_MS}
  detect-multiplier {MULTIPLIER}
  no shutdown
 exit
"""
CONFIGURATION = f"""
hostname router
debug bfd peer
bfd
 peer {ADDRESS} interface br0{TIMES}
 peer {ADDRESS6} local-address {ROUTER6} interface br0{TIMES}
exit
"""


class Frr:
    """zebra, which tells of interfaces, and bfdd: as a user of their own, who can't look into pytest's
    directories, nor into that of a TMPDIR. `lines`: what bfdd logs.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        shutil.chown(directory, "frr", "frrvty")
        self._processes: list[subprocess.Popen[str]] = []
        self._start("zebra", "hostname router\n")
        _eventually((directory / "zserv").exists)
        bfdd = self._start("bfdd", CONFIGURATION, "--bfdctl", str(directory / "bfdd.sock"))
        assert bfdd.stdout is not None
        self.lines = Lines(bfdd.stdout)
        _eventually((directory / "bfdd.vty").exists)

    def _start(self, name: str, configuration: str, *more: str) -> subprocess.Popen[str]:
        file = self._directory / f"{name}.conf"
        file.write_text(configuration)
        shutil.chown(file, "frr", "frr")
        sockets = ["--vty_socket", str(self._directory), "-z", str(self._directory / "zserv")]
        files = ["-f", str(file), "-i", str(self._directory / f"{name}.pid"), "--log", "stdout"]
        command = [f"/usr/lib/frr/{name}", *files, "--log-level", "debug", *sockets, *more]
        output = subprocess.PIPE if name == "bfdd" else subprocess.DEVNULL
        process = subprocess.Popen(
            ["ip", "netns", "exec", ROUTER, "chrt", "-f", "10", *command],
            stdout=output,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self._processes.append(process)
        return process

    def peers(self) -> dict[str, Any]:
        command = ["vtysh", "--vty_socket", str(self._directory), "-c", "show bfd peers json"]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        return {one["peer"]: one for one in json.loads(done.stdout or "[]")}

    def wait_down(self, address: str) -> float:
        self.lines.next(lambda line: f"peer:{address}" in line and "up -> down" in line, 60.0)
        return time.monotonic()

    def kill(self) -> float:
        self._processes[-1].kill()
        at = time.monotonic()
        self._processes[-1].wait()
        return at

    def end(self) -> None:
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.wait(60)
        self.lines.close()
        shutil.rmtree(self._directory)


def _eventually(probe: Callable[[], object], timeout_s: float = 120.0) -> None:
    end = time.monotonic() + timeout_s
    while not probe():
        assert time.monotonic() < end, f"not within {timeout_s} s"
        time.sleep(0.05)


@pytest.fixture
def net() -> Iterator[Network]:
    with network(ROUTER, BALANCER) as made:
        yield made


@pytest.fixture
def ends(net: Network, tmp_path: Path) -> Iterator[tuple[Frr, Ours]]:
    """Both sessions up, with the intervals that are wanted."""
    with ExitStack() as stack:
        frr = Frr(Path(tempfile.mkdtemp(prefix="vc5t-frr-", dir="/run")))
        stack.callback(frr.end)
        ours = Ours(tmp_path / "ours", "fifo", BALANCER, neighbors=(ROUTER_ADDRESS, ROUTER6))
        stack.callback(ours.end)
        ours.wait_up()
        _eventually(lambda: [(p["status"]) for p in frr.peers().values()] == ["up", "up"])
        _eventually(lambda: {s["detection_ms"] for s in ours.sessions()} == {DETECTION_MS})
        yield frr, ours


def _both_down(ours: Ours) -> list[float]:
    return [ours.wait_down(), ours.wait_down()]


def test_a_cut_is_found_by_both(ends: tuple[Frr, Ours], net: Network, lasted: Lasted) -> None:
    frr, ours = ends
    assert set(frr.peers()) == {ADDRESS, ADDRESS6}
    at = net.cut()
    found = [*_both_down(ours), frr.wait_down(ADDRESS)]
    assert lasted(at, max(found)) < LIMIT_S
    _eventually(lambda: {p["status"] for p in frr.peers().values()} == {"down"})
    assert {p["diagnostic"] for p in frr.peers().values()} == {"control detection time expired"}
    net.mend()
    ours.wait_up()
    _eventually(lambda: {p["status"] for p in frr.peers().values()} == {"up"})


def test_a_death_is_found_by_the_other(ends: tuple[Frr, Ours], lasted: Lasted) -> None:
    frr, ours = ends
    at = frr.kill()
    assert lasted(at, max(_both_down(ours))) < LIMIT_S


def test_our_death_is_found_by_frr(ends: tuple[Frr, Ours], lasted: Lasted) -> None:
    frr, ours = ends
    at = ours.kill()
    assert lasted(at, frr.wait_down(ADDRESS)) < LIMIT_S


def test_session_that_is_not_wanted_any_more_is_said_to_end(ends: tuple[Frr, Ours]) -> None:
    frr, ours = ends
    ours.ask(f"want {ROUTER6} {INTERVAL_MS} {MULTIPLIER}")
    _eventually(lambda: frr.peers()[ADDRESS]["status"] == "down")
    found = frr.peers()[ADDRESS]
    assert (found["diagnostic"], found["remote-diagnostic"]) == (
        "neighbor signaled session down",
        "administratively down",
    )
    assert frr.peers()[ADDRESS6]["status"] == "up"


def test_a_killed_process_is_unknown_to_frr(ends: tuple[Frr, Ours]) -> None:
    frr, ours = ends
    _eventually(lambda: len(ours.pids()) == 2)
    before, dead = frr.peers(), ours.speaker()
    frr.lines.waiting()
    ours.kill_speaker()
    _eventually(lambda: ours.speaker() not in (0, dead) and len(ours.pids()) == 2)
    _eventually(lambda: all(s["packets_in"] > 5 for s in ours.sessions() if "packets_in" in s))
    assert not any("->" in line for line in frr.lines.waiting())
    assert [p["remote-id"] for p in frr.peers().values()] == [p["remote-id"] for p in before.values()]
