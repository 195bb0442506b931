"""Settings of BGP sessions with real routers: one beyond a hop, and two that connect to us on BGP's own port.

vc5t-set-w: the bridge, and a router: 10.97.0.254 to 10.96.0.254      far: BIRD, 10.96.0.1
near: BIRD 10.97.0.1, FRR 10.97.0.2      balancer: 10.97.0.11 and 10.97.0.12, fd97::11
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests import leftovers
from tests.e2e.test_rhi import Driver, alive, eventually, exabgp_pid, run
from vc5py.lab.kernel import entered, write_sysctl

SWITCH, FAR, BIRD, FRR, BALANCER = (f"vc5t-set-{name}" for name in ("w", "far", "b", "f", "1"))
LAN = {BIRD: 1, FRR: 2, BALANCER: 11}
VIP, VIP6 = "192.168.104.1", "2001:db8:104::1"
PASSWORDS = {"10.97.0.1": "the first; one's", "10.97.0.2": "another"}
RHI = """rhi:
  as_number: 4200000001
  neighbors:
    - {address: 10.96.0.1, peer_as: 65100, multihop: 2, source: 10.97.0.12,
       next_hop4: 10.97.0.50, next_hop6: 'fd97::50'}
    - {address: 10.97.0.1, peer_as: 65101, passive: true, password_file: FILE_OF_10.97.0.1}
    - {address: 10.97.0.2, peer_as: 65102, passive: true, password_file: FILE_OF_10.97.0.2}
"""
BIRD_CONF = """
router id ADDRESS;
protocol device { scan time 1; }
protocol direct { ipv4; ipv6; }
protocol bgp balancer {
  connect delay time 1; connect retry time 1; error wait time 1,1;
  ipv4 { import all; export none; };
  ipv6 { import all; export none; };
  SETTINGS
}
"""
FAR_SETTINGS = """
  local 10.96.0.1 as 65100; neighbor 10.97.0.12 as 4200000001; multihop 2; passive yes;
"""
NEAR_SETTINGS = f"""
  local 10.97.0.1 as 65101; neighbor 10.97.0.11 as 4200000001; password "{PASSWORDS["10.97.0.1"]}";
"""
FRR_CONF = f"""
frr defaults traditional
hostname router
router bgp 65102
 bgp router-id 10.97.0.2
 no bgp ebgp-requires-policy
 neighbor 10.97.0.11 remote-as 4200000001
 neighbor 10.97.0.11 password {PASSWORDS["10.97.0.2"]}
 neighbor 10.97.0.11 timers connect 1
 address-family ipv6 unicast
  neighbor 10.97.0.11 activate
 exit-address-family
"""


def ip(namespace: str, words: str) -> None:
    run("ip", "-n", namespace, *words.split())


@pytest.fixture(scope="module")
def network() -> Iterator[None]:
    with ExitStack() as stack:
        for namespace in (SWITCH, FAR, *LAN):
            leftovers.remove(namespace)
            run("ip", "netns", "add", namespace)
            stack.callback(run, "ip", "netns", "del", namespace)
            ip(namespace, "link set lo up")
        with entered(SWITCH):
            write_sysctl("net.ipv4.ip_forward", 1)
        ip(SWITCH, "link add br0 type bridge")
        ip(SWITCH, "addr add 10.97.0.254/24 dev br0")
        ip(SWITCH, "link set br0 up")
        for namespace, host in LAN.items():
            ip(SWITCH, f"link add p{host} type veth peer name eth0 netns {namespace}")
            ip(SWITCH, f"link set p{host} master br0 up")
            ip(namespace, f"addr add 10.97.0.{host}/24 dev eth0")
            ip(namespace, f"addr add fd97::{host}/64 dev eth0 nodad")
            ip(namespace, "link set eth0 up")
            ip(namespace, "route add default via 10.97.0.254")
        ip(BALANCER, "addr add 10.97.0.12/24 dev eth0")
        ip(SWITCH, f"link add far type veth peer name eth0 netns {FAR}")
        for namespace, device, host in ((SWITCH, "far", 254), (FAR, "eth0", 1)):
            ip(namespace, f"addr add 10.96.0.{host}/24 dev {device}")
            ip(namespace, f"link set {device} up")
        ip(FAR, "route add default via 10.96.0.254")
        yield


class Routers:
    """Two BIRDs and an FRR; what each knows."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._vty = Path(tempfile.mkdtemp(prefix="vc5t-frr-", dir="/run"))
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        self._directory.chmod(0o755)
        self._bird(FAR, "10.96.0.1", FAR_SETTINGS)
        self._bird(BIRD, "10.97.0.1", NEAR_SETTINGS)
        (self._vty / "bgpd.conf").write_text(FRR_CONF)
        shutil.chown(self._vty / "bgpd.conf", "frr", "frr")
        shutil.chown(self._vty, "frr", "frrvty")
        files = ["-f", str(self._vty / "bgpd.conf"), "-i", str(self._vty / "bgpd.pid")]
        self._spawn(FRR, "/usr/lib/frr/bgpd", "--no_zebra", *files, "--vty_socket", str(self._vty))
        for file in (self._control(FAR), self._control(BIRD), self._vty / "bgpd.vty"):
            eventually(file.exists)

    def _control(self, namespace: str) -> Path:
        return self._directory / f"{namespace}.ctl"

    def _bird(self, namespace: str, address: str, settings: str) -> None:
        file = self._directory / f"{namespace}.conf"
        file.write_text(BIRD_CONF.replace("ADDRESS", address).replace("SETTINGS", settings))
        pid = self._directory / f"{namespace}.pid"
        files = ["-c", str(file), "-P", str(pid), "-s", str(self._control(namespace))]
        self._spawn(namespace, "bird", "-f", *files)

    def _spawn(self, namespace: str, *command: str) -> None:
        with (self._directory / "log").open("ab") as log:
            inside = ["ip", "netns", "exec", namespace, *command]
            self._processes.append(subprocess.Popen(inside, stdout=log, stderr=log))

    def stop(self) -> None:
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.wait(60)
        shutil.rmtree(self._vty)

    def bird(self, namespace: str, *words: str) -> str:
        command = ["birdc", "-s", str(self._control(namespace)), *words]
        return subprocess.run(command, check=False, capture_output=True, text=True).stdout

    def next_hops(self, namespace: str) -> tuple[str, str]:
        """Of both VIPs, as that BIRD was told; "" of one that it doesn't know."""
        shown = (self.bird(namespace, "show", "route", "for", vip, "all") for vip in (VIP, VIP6))
        found = [re.search(r"BGP\.next_hop: (\S+)", text) for text in shown]
        return tuple(one[1] if one else "" for one in found)  # type: ignore[return-value]

    def frr_knows(self, vip: str) -> bool:
        family = "ipv6" if ":" in vip else "ipv4"
        command = ["vtysh", "--vty_socket", str(self._vty), "-c", f"show bgp {family} unicast {vip} json"]
        return bool(json.loads(run("ip", "netns", "exec", FRR, *command) or "{}").get("paths"))


class Balancer:
    """A director reduced to its speaker, that announces both VIPs."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        words = ("--rhi", str(self._file(PASSWORDS)), "--next-hop", "fd97::11")
        self._driver = Driver(directory / "state", BALANCER, "10.97.0.11", *words)
        self._driver.tell(f"routes {VIP} {VIP6}")

    def _file(self, passwords: dict[str, str]) -> Path:
        text = RHI
        for neighbor, password in passwords.items():
            key = self._directory / f"key of {neighbor}"
            key.touch(0o600)
            key.write_text(f"{password}\n")
            text = text.replace(f"FILE_OF_{neighbor}", f"'{key}'")
        file = self._directory / "rhi.yaml"
        file.write_text(text)
        return file

    def reload(self, passwords: dict[str, str]) -> None:
        self._driver.tell(f"reload {self._file(passwords)}")

    def standings(self) -> dict[str, dict[str, Any]]:
        return self._driver.tell("standings")

    def states(self) -> dict[str, str]:
        return {peer: str(one["state"]) for peer, one in self.standings().items()}

    def stop(self) -> None:
        self._driver.kill()
        if (self._driver.state / "exabgp.pid").exists() and alive(exabgp_pid(self._driver.state)):
            os.kill(exabgp_pid(self._driver.state), 9)


@pytest.fixture(scope="module")
def routers(network: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Routers]:
    routers = Routers(tmp_path_factory.mktemp("routers"))
    try:
        routers.start()
        yield routers
    finally:
        routers.stop()


@pytest.fixture(scope="module")
def balancer(routers: Routers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Balancer]:
    balancer = Balancer(tmp_path_factory.mktemp("balancer"))
    try:
        eventually(lambda: set(balancer.states().values()) == {"established"})
        yield balancer
    finally:
        balancer.stop()


def connections(namespace: str) -> set[tuple[str, str]]:
    """Both ends of those that BGP has, as the namespace sees them."""
    shown = run("ip", "netns", "exec", namespace, "ss", "-Htn", "state", "established")
    return {(fields[2], fields[3]) for fields in map(str.split, shown.splitlines()) if len(fields) > 3}


def test_a_neighbor_beyond_a_hop_is_spoken_to_from_the_source_given(
    balancer: Balancer, routers: Routers
) -> None:
    """It knows that address alone, and what has a TTL of 1 ends at the router between."""
    (ours,) = {local for local, remote in connections(BALANCER) if remote == "10.96.0.1:179"}
    assert ours.startswith("10.97.0.12:")
    shown = routers.bird(FAR, "show", "protocols", "all", "balancer")
    assert re.search(r"Neighbor address: +10\.97\.0\.12\b", shown)
    assert re.search(r"BGP state: +Established", shown)


def test_next_hops_are_those_given_for_that_neighbor_alone(balancer: Balancer, routers: Routers) -> None:
    eventually(lambda: routers.next_hops(FAR) == ("10.97.0.50", "fd97::50"))
    eventually(lambda: routers.next_hops(BIRD) == ("10.97.0.11", "fd97::11"))


def test_two_neighbors_connect_to_port_179_with_a_password_each(balancer: Balancer, routers: Routers) -> None:
    """With the passwords exchanged neither gets in, and the session with the third stays up."""
    for remote in ("10.97.0.1", "10.97.0.2"):
        ends = {local for local, other in connections(BALANCER) if other.startswith(f"{remote}:")}
        assert ends == {"10.97.0.11:179"}, remote
    eventually(lambda: routers.frr_knows(VIP) and routers.frr_knows(VIP6))
    before = balancer.standings()
    (first, second) = PASSWORDS
    balancer.reload({first: PASSWORDS[second], second: PASSWORDS[first]})
    refused = {"10.96.0.1": "established", first: "down", second: "down"}
    eventually(lambda: balancer.states() == refused)
    for peer in PASSWORDS:
        eventually(lambda p=peer: "MD5 password" in balancer.standings()[p]["why"])  # type: ignore[misc]
    assert balancer.states() == refused
    assert routers.next_hops(BIRD) == ("", "")
    balancer.reload(PASSWORDS)
    eventually(lambda: set(balancer.states().values()) == {"established"})
    eventually(lambda: "" not in routers.next_hops(BIRD) and routers.frr_knows(VIP))
    assert balancer.standings()["10.96.0.1"]["since"] == before["10.96.0.1"]["since"]
