"""Three real routers learn VIPs from two balancers: BIRD 2, FRR and GoBGP, each in a namespace on one bridge.

vc5t-rtr-w: the bridge   bird 10.98.0.1 fd98::1   frr 10.98.0.2 fd98::2   gobgp 10.98.0.3
balancers: one 10.98.0.11 fd98::11, two 10.98.0.12 fd98::12
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from tests import leftovers
from tests.e2e.test_rhi import Driver, alive, eventually, exabgp_pid, run
from vc5py.rhi.exabgp_main import NO_ANSWER_MD5

SWITCH, BIRD, FRR, GOBGP, ONE, TWO = (f"vc5t-rtr-{name}" for name in ("w", "b", "f", "g", "1", "2"))
HOSTS = {BIRD: 1, FRR: 2, GOBGP: 3, ONE: 11, TWO: 12}
VIP, VIP2, VIP6 = "192.168.102.1", "192.168.102.2", "2001:db8:102::1"
HIDDEN = "192.168.103.1"
PASSWORD = "s3cret with; 'quotes' and spaces}"
RHI = """rhi:
  as_number: 4200000001
  hold: 30
  graceful: 1
  med: 50
  communities: ['65001:100', '4200000001:7:8', no-export]
  accept: [192.168.102.0/24 ge 32, '2001:db8:102::/64']
  neighbors:
    - {address: 10.98.0.1, peer_as: 65100, prepend: 2, ttl_security: 1, hold_time: 9,
       password_file: PASSWORD_FILE}
    - {address: 'fd98::1', peer_as: 65100, families: ipv6, passive: true, listen: 1790,
       reject: '2001:db8:102::f/128'}
    - {address: 10.98.0.2, local_preference: 150}
    - {address: 10.98.0.3, peer_as: 65300}
"""
BIRD_CONF = """
router id 10.98.0.1;
protocol device { scan time 1; }
protocol direct { ipv4; ipv6; }
protocol kernel { merge paths on; ipv4 { import none; export where source = RTS_BGP; }; }
protocol kernel { merge paths on; ipv6 { import none; export where source = RTS_BGP; }; }
template bgp balancer {
  passive yes; connect delay time 1; connect retry time 1; error wait time 1,2;
  ipv4 { import all; export none; };
  ipv6 { import all; export none; };
}
template bgp guarded from balancer { ttl security on; password "s3cret with; 'quotes' and spaces}"; }
protocol bgp one from guarded { local 10.98.0.1 as 65100; neighbor 10.98.0.11 as 4200000001; }
protocol bgp two from guarded { local 10.98.0.1 as 65100; neighbor 10.98.0.12 as 4200000001; }
template bgp active from balancer { passive no; }
protocol bgp one6 from active { local fd98::1 as 65100; neighbor fd98::11 port 1790 as 4200000001; }
protocol bgp two6 from active { local fd98::1 as 65100; neighbor fd98::12 port 1790 as 4200000001; }
"""
FRR_CONF = """
frr defaults traditional
hostname router
router bgp 4200000001
 bgp router-id 10.98.0.2
 neighbor balancers peer-group
 neighbor balancers remote-as 4200000001
 neighbor balancers passive
 neighbor 10.98.0.11 peer-group balancers
 neighbor 10.98.0.12 peer-group balancers
 address-family ipv4 unicast
  maximum-paths ibgp 4
 exit-address-family
 address-family ipv6 unicast
  neighbor balancers activate
  maximum-paths ibgp 4
 exit-address-family
"""
GOBGP_CONF = """
[global.config]
  as = 65300
  router-id = "10.98.0.3"
  port = 179
[global.use-multiple-paths.config]
  enabled = true
"""
GOBGP_NEIGHBOR = """
[[neighbors]]
  [neighbors.config]
    neighbor-address = "{address}"
    peer-as = 4200000001
  [neighbors.transport.config]
    passive-mode = true
  [neighbors.timers.config]
    idle-hold-time-after-reset = 1
  [[neighbors.afi-safis]]
    [neighbors.afi-safis.config]
    afi-safi-name = "ipv4-unicast"
  [[neighbors.afi-safis]]
    [neighbors.afi-safis.config]
    afi-safi-name = "ipv6-unicast"
"""


@pytest.fixture(scope="module")
def network() -> Iterator[None]:
    with ExitStack() as stack:
        for namespace in (SWITCH, *HOSTS):
            leftovers.remove(namespace)
            run("ip", "netns", "add", namespace)
            stack.callback(run, "ip", "netns", "del", namespace)
            run("ip", "-n", namespace, "link", "set", "lo", "up")
        run("ip", "-n", SWITCH, "link", "add", "br0", "type", "bridge")
        run("ip", "-n", SWITCH, "link", "set", "br0", "up")
        for namespace, host in HOSTS.items():
            run(*f"ip -n {SWITCH} link add p{host} type veth peer name eth0 netns {namespace}".split())
            run("ip", "-n", SWITCH, "link", "set", f"p{host}", "master", "br0", "up")
            run("ip", "-n", namespace, "addr", "add", f"10.98.0.{host}/24", "dev", "eth0")
            run("ip", "-n", namespace, "addr", "add", f"fd98::{host}/64", "dev", "eth0", "nodad")
            run("ip", "-n", namespace, "link", "set", "eth0", "up")
        yield


class Routers:
    """The three daemons; what each knows."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.bird_control = directory / "bird.ctl"
        self.frr_directory = Path(tempfile.mkdtemp(prefix="vc5t-frr-", dir="/run"))
        self.processes: list[subprocess.Popen[bytes]] = []

    def _spawn(self, namespace: str, *command: str) -> subprocess.Popen[bytes]:
        with (self.directory / "log").open("ab") as log:
            inside = ["ip", "netns", "exec", namespace, *command]
            self.processes.append(subprocess.Popen(inside, stdout=log, stderr=log))
        return self.processes[-1]

    def start(self) -> None:
        d = self.directory
        d.chmod(0o755)
        (d / "bird.conf").write_text(BIRD_CONF)
        self._start_bird()
        self._start_frr()
        neighbors = [GOBGP_NEIGHBOR.format(address=f"10.98.0.{host}") for host in (11, 12)]
        (d / "gobgp.toml").write_text(GOBGP_CONF + "".join(neighbors))
        self._spawn(GOBGP, "gobgpd", "-f", str(d / "gobgp.toml"))
        eventually(self.bird_control.exists)
        eventually((self.frr_directory / "bgpd.vty").exists)

    def _start_bird(self) -> None:
        files = ["-c", str(self.directory / "bird.conf"), "-P", str(self.directory / "b.pid")]
        self._bird = self._spawn(BIRD, "bird", "-f", *files, "-s", str(self.bird_control))

    def kill_bird(self) -> None:
        """kill -9; another takes its place."""
        self._bird.kill()
        self._bird.wait(60)
        self.processes.remove(self._bird)
        self.bird_control.unlink()
        self._start_bird()
        eventually(self.bird_control.exists)

    def cut_bird_off(self, cut: bool) -> None:
        """Nothing passes, while all links are up."""
        run("ip", "netns", "exec", SWITCH, "bridge", "link", "set", "dev", "p1", "state", "0" if cut else "3")

    def _start_frr(self) -> None:
        """It runs as a user of its own, who can't look into pytest's directories."""
        vty = self.frr_directory
        for name, text in (("zebra", "hostname router\n"), ("bgpd", FRR_CONF)):
            (vty / f"{name}.conf").write_text(text)
            shutil.chown(vty / f"{name}.conf", "frr", "frr")
        shutil.chown(vty, "frr", "frrvty")
        for name in ("zebra", "bgpd"):
            files = ["-f", str(vty / f"{name}.conf"), "-i", str(vty / f"{name}.pid")]
            sockets = ["--vty_socket", str(vty), "-z", str(vty / "zserv")]
            self._spawn(FRR, f"/usr/lib/frr/{name}", *files, *sockets)
            if name == "zebra":
                eventually((vty / "zserv").exists)

    def stop(self) -> None:
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            process.wait(60)
        shutil.rmtree(self.frr_directory)

    def birdc(self, *words: str) -> str:
        command = ["birdc", "-s", str(self.bird_control), *words]
        return subprocess.run(command, check=False, capture_output=True, text=True).stdout

    def bird(self, vip: str) -> str:
        text = self.birdc("show", "route", "for", vip, "all")
        return "" if "not found" in text else text

    def bird_count(self, protocol: str) -> int:
        text = self.birdc("show", "route", "protocol", protocol, "count")
        return sum(
            map(int, re.findall(r"^(\d+) of \d+ routes for \d+ networks in table", text, re.MULTILINE))
        )

    def established_since(self, protocol: str) -> str:
        """The time of day, "" while it isn't."""
        found = re.search(
            rf"^{protocol} .* up +([\d:.]+) +Established", self.birdc("show", "protocols"), re.M
        )
        return found[1] if found else ""

    def vtysh(self, words: str) -> str:
        command = ["vtysh", "--vty_socket", str(self.frr_directory), "-c", words]
        return run("ip", "netns", "exec", FRR, *command)

    def frr(self, vip: str) -> dict[str, Any]:
        family = "ipv6" if ":" in vip else "ipv4"
        found = json.loads(self.vtysh(f"show bgp {family} unicast {vip} json") or "{}")
        assert isinstance(found, dict)
        return found if found.get("paths") else {}

    def gobgp(self, vip: str) -> list[dict[str, Any]]:
        family = "ipv6" if ":" in vip else "ipv4"
        command = ["gobgp", "global", "rib", vip, "-a", family, "-j"]
        done = subprocess.run(
            ["ip", "netns", "exec", GOBGP, *command], check=False, capture_output=True, text=True
        )
        if done.returncode or not done.stdout.startswith("{"):
            return []
        return [path for paths in json.loads(done.stdout).values() for path in paths]

    def next_hops(self, namespace: str, vip: str) -> set[str]:
        """Those in the kernel's table."""
        family = "-6" if ":" in vip else "-4"
        text = run("ip", family, "-n", namespace, "route", "show", vip)
        return set(re.findall(r"via (?:inet6? )?([0-9a-f.:]+)", text))

    def know(self, vip: str) -> tuple[bool, bool, bool]:
        return bool(self.bird(vip)), bool(self.frr(vip)), bool(self.gobgp(vip))


@pytest.fixture(scope="module")
def routers(network: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Routers]:
    routers = Routers(tmp_path_factory.mktemp("routers"))
    try:
        routers.start()
        yield routers
    finally:
        routers.stop()


class Balancers:
    """Directors reduced to their speakers, with the neighbors of a file each."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.key = directory / "key"
        self.write_key(PASSWORD)
        self.drivers: list[Driver] = []

    def write_key(self, text: str) -> None:
        self.key.write_text(text + "\n")
        self.key.chmod(0o600)

    def file(self, text: str = RHI) -> Path:
        file = self.directory / "rhi.yaml"
        file.write_text(text.replace("PASSWORD_FILE", str(self.key)))
        return file

    def start(self, namespace: str = ONE, text: str = RHI) -> Driver:
        host = HOSTS[namespace]
        words = ("--rhi", str(self.file(text)), "--next-hop", f"fd98::{host}")
        driver = Driver(self.directory / namespace, namespace, f"10.98.0.{host}", *words)
        self.drivers.append(driver)
        return driver

    def stop(self) -> None:
        for driver in self.drivers:
            driver.kill()
            if (driver.state / "exabgp.pid").exists() and alive(exabgp_pid(driver.state)):
                os.kill(exabgp_pid(driver.state), 9)


@pytest.fixture
def balancers(routers: Routers, tmp_path: Path) -> Iterator[Balancers]:
    balancers = Balancers(tmp_path)
    yield balancers
    balancers.stop()
    eventually(lambda: not any((*routers.know(VIP), *routers.know(VIP6))))


def test_three_routers_learn_and_forget(balancers: Balancers, routers: Routers) -> None:
    driver = balancers.start()
    driver.tell(f"routes {VIP} {VIP6} {HIDDEN}")
    for vip in (VIP, VIP6):
        eventually(lambda vip=vip: routers.know(vip) == (True, True, True))  # type: ignore[misc]
    assert routers.know(HIDDEN) == (False, False, False), "no filter accepts it"
    driver.tell(f"routes {VIP2}")
    eventually(lambda: routers.know(VIP2) == (True, True, True))
    eventually(lambda: not any((*routers.know(VIP), *routers.know(VIP6))))
    expected = {"10.98.0.1": 1, "fd98::1": 0, "10.98.0.2": 1, "10.98.0.3": 1}
    eventually(lambda: {peer: one["routes"] for peer, one in driver.tell("standings").items()} == expected)
    eventually(lambda: {one["state"] for one in driver.tell("standings").values()} == {"established"})


def test_attributes_are_as_configured(balancers: Balancers, routers: Routers) -> None:
    driver = balancers.start()
    driver.tell(f"routes {VIP} {VIP6}")
    eventually(lambda: routers.know(VIP) == routers.know(VIP6) == (True, True, True))
    bird = routers.bird(VIP)
    for line in (
        "BGP.as_path: 4200000001 4200000001 4200000001",
        "BGP.next_hop: 10.98.0.11",
        "BGP.med: 50",
        "BGP.community: (65001,100) (65535,65281)",
        "BGP.large_community: (4200000001, 7, 8)",
    ):
        assert line in bird
    assert "BGP.next_hop: fd98::11" in routers.bird(VIP6)
    assert "one6" in routers.bird(VIP6)
    (path,) = routers.frr(VIP)["paths"]
    assert (path["metric"], path["locPrf"], path["aspath"]["string"]) == (50, 150, "Local")
    assert path["largeCommunity"]["string"] == "4200000001:7:8"
    assert path["community"]["string"] == "65001:100 no-export"
    (path,) = routers.gobgp(VIP)
    attributes = {one["type"]: one for one in path["attrs"]}
    assert attributes[2]["as_paths"] == [{"segment_type": 2, "num": 1, "asns": [4200000001]}]
    assert attributes[4]["metric"] == 50
    assert attributes[8]["communities"] == [(65001 << 16) + 100, 0xFFFFFF01]


def test_two_balancers_are_two_next_hops_until_one_takes_its_leave(
    balancers: Balancers, routers: Routers
) -> None:
    slow = RHI.replace("graceful: 1", "graceful: 5")  # so long is what is between to be seen
    one, two = balancers.start(ONE, slow), balancers.start(TWO, slow)
    for driver in (one, two):
        driver.tell(f"routes {VIP} {VIP6}")
    both, both6 = {"10.98.0.11", "10.98.0.12"}, {"fd98::11", "fd98::12"}
    for namespace in (BIRD, FRR):
        eventually(lambda n=namespace: routers.next_hops(n, VIP) == both)  # type: ignore[misc]
        eventually(lambda n=namespace: routers.next_hops(n, VIP6) == both6)  # type: ignore[misc]
    eventually(lambda: len(routers.gobgp(VIP)) == 2)
    assert one.process.stdin is not None and one.process.stdout is not None
    one.process.stdin.write("shutdown\n")
    one.process.stdin.flush()
    # For some seconds its routes are there, marked, and nobody who knows of another way takes them.
    eventually(lambda: "(65535,0)" in routers.bird(VIP))
    eventually(lambda: routers.next_hops(FRR, VIP) == {"10.98.0.12"})
    (leaving,) = [path for path in routers.frr(VIP)["paths"] if path.get("locPrf") == 0]
    assert "graceful-shutdown" in leaving["community"]["string"]
    assert json.loads(one.process.stdout.readline())["announced"] == []
    eventually(lambda: routers.next_hops(BIRD, VIP) == {"10.98.0.12"})
    assert "10.98.0.11" not in routers.bird(VIP)


def test_a_wrong_password_is_no_session_and_the_right_one_needs_only_a_reload(
    balancers: Balancers, routers: Routers
) -> None:
    balancers.write_key("another")
    driver = balancers.start()
    driver.tell(f"routes {VIP}")
    eventually(lambda: routers.know(VIP)[1:] == (True, True))
    eventually(lambda: "it has another MD5 password" in driver.tell("standings")["10.98.0.1"]["why"])
    others = {peer: one["since"] for peer, one in driver.tell("standings").items() if peer != "10.98.0.1"}
    assert driver.tell("standings")["10.98.0.1"]["state"] == "down"
    assert not routers.bird(VIP)
    balancers.write_key(PASSWORD)
    driver.tell(f"reload {balancers.file()}")
    eventually(lambda: routers.bird(VIP))
    after = driver.tell("standings")
    assert {peer: after[peer]["since"] for peer in others} == others, "the other sessions stayed up"
    for path in driver.state.iterdir():
        if path.is_file():
            assert PASSWORD.encode() not in path.read_bytes(), path
            assert path.name == "exabgp.pid" or path.stat().st_mode & 0o077 == 0, path
    command = Path(f"/proc/{driver.exabgp()}/cmdline").read_bytes()
    environment = Path(f"/proc/{driver.exabgp()}/environ").read_bytes()
    assert b"s3cret" not in command + environment


def test_who_is_called_counts_calls_without_the_password(balancers: Balancers, routers: Routers) -> None:
    """BIRD has no password for its IPv6 session, in which it is the one that connects."""
    guarded = RHI.replace("listen: 1790,", "listen: 1790, password_file: PASSWORD_FILE,")
    driver = balancers.start(text=guarded)
    driver.tell(f"routes {VIP6}")
    words = r"waits for the neighbor to connect; \d+ TCP segments without the MD5 password dropped"
    eventually(lambda: re.fullmatch(words, driver.tell("standings")["fd98::1"]["why"]))
    driver.tell(f"reload {balancers.file()}")
    eventually(lambda: routers.bird_count("one6") == 1)
    assert driver.tell("standings")["fd98::1"]["why"] == ""


def test_a_router_that_is_away_is_told_apart(balancers: Balancers, routers: Routers) -> None:
    """Nobody listens; nobody answers; and when it is there again, nothing is left of that."""
    routers.birdc("disable", "one")
    routers.cut_bird_off(True)
    driver = balancers.start()

    def why() -> str:
        return str(driver.tell("standings")["10.98.0.1"]["why"])

    eventually(lambda: why() in ("no route to host", NO_ANSWER_MD5))
    routers.cut_bird_off(False)
    text = RHI.replace("peer_as: 65100, prepend: 2, ttl_security: 1", "peer_as: 65100, port: 1999")
    driver.tell(f"reload {balancers.file(text.replace('       password_file: PASSWORD_FILE', ''))}")
    eventually(lambda: why() == "connection refused")
    driver.tell(f"reload {balancers.file()}")
    routers.birdc("enable", "one")
    eventually(lambda: routers.established_since("one"))
    eventually(lambda: why() == "")


def test_who_does_not_agree_on_the_session_is_quoted(balancers: Balancers, routers: Routers) -> None:
    driver = balancers.start(text=RHI.replace("4200000001\n", "4200000002\n", 1))

    def why(peer: str) -> str:
        return str(driver.tell("standings")[peer]["why"])

    for peer in ("10.98.0.1", "10.98.0.3"):
        eventually(lambda p=peer: "notification received (2,2): OPEN message error / Bad Peer AS" in why(p))  # type: ignore[misc]
    eventually(lambda: "notification" in why("10.98.0.2"))


def test_ttl_security_is_both_ways(balancers: Balancers, routers: Routers) -> None:
    driver = balancers.start(text=RHI.replace("ttl_security: 1, ", ""))
    driver.tell(f"routes {VIP}")
    eventually(lambda: routers.know(VIP)[1:] == (True, True))
    assert not routers.bird(VIP), "BIRD drops what doesn't come with a TTL of 255"
    driver.tell(f"reload {balancers.file()}")
    routers.birdc("restart", "one")  # it waits for more of a connection whose end it has dropped too
    eventually(lambda: routers.bird(VIP))
    sockets = run("ip", "netns", "exec", ONE, "ss", "-tn", "dst", "10.98.0.1")
    assert "ESTAB" in sockets


def test_reload_touches_only_what_changes(balancers: Balancers, routers: Routers) -> None:
    driver = balancers.start()
    driver.tell(f"routes {VIP} {VIP6}")
    eventually(lambda: routers.know(VIP) == routers.know(VIP6) == (True, True, True))
    before, exabgp = driver.tell("standings"), driver.exabgp()
    without = "".join(line for line in RHI.splitlines(keepends=True) if "10.98.0.3" not in line)
    driver.tell(f"reload {balancers.file(without.replace('med: 50', 'med: 60'))}")
    eventually(lambda: routers.know(VIP) == (True, True, False))
    eventually(lambda: "BGP.med: 60" in routers.bird(VIP))
    after = driver.tell("standings")
    assert after.keys() == before.keys() - {"10.98.0.3"}
    assert {peer: one["since"] for peer, one in after.items()} == {
        peer: one["since"] for peer, one in before.items() if peer in after
    }
    driver.tell(f"reload {balancers.file(RHI.replace('hold_time: 9', 'hold_time: 12'))}")
    eventually(lambda: routers.know(VIP) == (True, True, True))
    eventually(lambda: driver.tell("standings")["10.98.0.1"]["since"] > before["10.98.0.1"]["since"])
    assert driver.tell("standings")["10.98.0.2"]["since"] == before["10.98.0.2"]["since"]
    assert driver.exabgp() == exabgp


def test_a_neighbor_that_can_not_be_reached_is_told_nothing(balancers: Balancers, routers: Routers) -> None:
    driver = balancers.start()
    driver.tell(f"routes {VIP}")
    eventually(lambda: routers.know(VIP) == (True, True, True))
    driver.tell("unreachable 10.98.0.1")
    eventually(lambda: routers.know(VIP) == (False, True, True))
    assert driver.announced() == [VIP], "all who are to know do"
    driver.tell("reachable 10.98.0.1")
    eventually(lambda: routers.know(VIP) == (True, True, True))


def test_a_thousand_vips(balancers: Balancers, routers: Routers) -> None:
    vips = [str(ip_address("192.168.102.0") + n) for n in range(250)]
    vips += [str(ip_address(VIP6) + n) for n in range(750)]
    driver = balancers.start()
    driver.tell(f"routes {VIP}")
    eventually(lambda: routers.bird(VIP))
    start = time.monotonic()
    driver.tell(f"routes {' '.join(vips)}")
    eventually(lambda: routers.bird_count("one") == 1000)
    print(f"\n1,000 VIPs to 4 neighbors: BIRD knew all after {time.monotonic() - start:.1f} s")
    eventually(lambda: driver.tell("standings")["10.98.0.3"]["routes"] == 1000)
    eventually(lambda: routers.bird_count("one6") >= 749)
    assert routers.bird_count("one6") == 749, "one is rejected there"
    driver.tell("routes")
    eventually(lambda: routers.bird_count("one") == 0)


def flaps(balancers: Balancers, routers: Routers, count: int) -> float:
    """The longest time from a session's end until the router knows all again."""
    vips = [VIP, VIP2, VIP6]
    driver = balancers.start()
    driver.tell(f"routes {' '.join(vips)}")
    eventually(lambda: routers.bird_count("one") == 3)
    eventually(lambda: routers.established_since("one"))
    longest = 0.0
    for number in range(count):
        wanted = vips if number % 2 else vips[:2]
        before = routers.established_since("one")
        routers.birdc("restart", "one")
        start = time.monotonic()
        driver.tell(f"routes {' '.join(wanted)}")
        eventually(lambda b=before: routers.established_since("one") not in ("", b))  # type: ignore[misc]
        expected = [vip in wanted for vip in vips]
        eventually(lambda e=expected: [bool(routers.bird(vip)) for vip in vips] == e)  # type: ignore[misc]
        longest = max(longest, time.monotonic() - start)
    return longest


def test_the_routes_are_right_after_every_flap(balancers: Balancers, routers: Routers) -> None:
    print(f"\n50 flaps: routes again after {flaps(balancers, routers, 50):.1f} s at most")


@pytest.mark.long
def test_the_routes_are_right_after_every_one_of_a_thousand_flaps(
    balancers: Balancers, routers: Routers
) -> None:
    print(f"\n1,000 flaps: routes again after {flaps(balancers, routers, 1000):.1f} s at most")


def reset_frr(routers: Routers) -> None:
    routers.vtysh("clear bgp *")


def kill_bird(routers: Routers) -> None:
    routers.kill_bird()


def let_hold_time_expire(routers: Routers) -> None:
    """Packets vanish until the router has given the session up; then, or later, we do."""
    routers.cut_bird_off(True)
    eventually(lambda: not routers.established_since("one"))
    routers.cut_bird_off(False)


FLAPS: dict[Callable[[Routers], None], str] = {
    reset_frr: "10.98.0.2",
    kill_bird: "10.98.0.1",
    let_hold_time_expire: "10.98.0.1",
}


def disturbances(
    balancers: Balancers, routers: Routers, disturb: Callable[[Routers], None], count: int
) -> float:
    """The longest time from a disturbance until every router knows what is wanted now, and no more."""
    peer, vips, longest = FLAPS[disturb], [VIP, VIP2, VIP6], 0.0
    driver = balancers.start(text=RHI.replace("hold_time: 9", "hold_time: 3"))
    driver.tell(f"routes {' '.join(vips)}")
    eventually(lambda: all(all(routers.know(vip)) for vip in vips))

    def since() -> float:
        standing = driver.tell("standings")[peer]
        return float(standing["since"]) if standing["state"] == "established" else 0.0

    for number in range(count):
        before = eventually(since)
        wanted = vips if number % 2 else vips[:2]
        driver.tell(f"routes {' '.join(wanted)}")
        disturb(routers)
        start = time.monotonic()
        eventually(lambda b=before: since() > b)  # type: ignore[misc]
        expected = [(vip in wanted,) * 3 for vip in vips]
        eventually(lambda e=expected: [routers.know(vip) for vip in vips] == e)  # type: ignore[misc]
        longest = max(longest, time.monotonic() - start)
    return longest


@pytest.mark.parametrize("disturb", FLAPS)
def test_the_routes_are_right_after_every_disturbance(
    balancers: Balancers, routers: Routers, disturb: Callable[[Routers], None]
) -> None:
    longest = disturbances(balancers, routers, disturb, 2)
    print(f"\n{disturb.__name__} twice: routes again after {longest:.1f} s at most")


@pytest.mark.long
@pytest.mark.parametrize("disturb", FLAPS)
def test_the_routes_are_right_after_every_one_of_a_hundred_disturbances(
    balancers: Balancers, routers: Routers, disturb: Callable[[Routers], None]
) -> None:
    longest = disturbances(balancers, routers, disturb, 100)
    print(f"\n{disturb.__name__} 100 times: routes again after {longest:.1f} s at most")


@pytest.mark.long
def test_a_router_that_was_away_for_minutes_is_told_in_seconds(
    balancers: Balancers, routers: Routers
) -> None:
    driver = balancers.start()
    driver.tell(f"routes {VIP}")
    eventually(lambda: routers.know(VIP) == (True, True, True))
    routers.birdc("disable", "one")
    time.sleep(200)  # so long that ExaBGP by itself would wait for half a minute and more
    assert not routers.established_since("one")
    routers.birdc("enable", "one")
    start = time.monotonic()
    eventually(lambda: routers.bird(VIP))
    took_s = time.monotonic() - start
    print(f"\nafter an outage of 200 s: routes again after {took_s:.1f} s")
    assert took_s < 10
