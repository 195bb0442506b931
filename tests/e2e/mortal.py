"""Balancers that share flows, in a lab of their own, to be killed: how they are set up and changed.

Every start is a first one: nothing is left of an earlier test but the network, the router and the reals.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml

from tests.e2e.conftest import HOLD_S
from tests.e2e.crowd import PORT
from tests.e2e.crowding import server_program
from tests.e2e.operating import command, config_file, state_dir, status
from vc5py.control import client
from vc5py.lab.assembly import Lab
from vc5py.lab.layout import (
    AS_NUMBER,
    CLIENT,
    FAR_REAL,
    METRICS_PORT,
    PORTS,
    REALS,
    ROUTER_LAN,
    SWITCH,
    THREE_BALANCERS,
    VIP,
    VIP6,
    Host,
    IPAddress,
    Layout,
)
from vc5py.lab.network import run
from vc5py.lab.nodes import FAR_MODES, balancer_program
from vc5py.lab.observe import metrics, next_hops, total
from vc5py.lab.scenario import wait_for_next_hops

SERVERS = (*REALS, FAR_REAL)
SERVICE, SERVICE6 = "crowd", "crowd6"
VIPS: dict[str, IPAddress] = {SERVICE: VIP, SERVICE6: VIP6}
SERVED = (PORTS[0], PORT)
INTERVAL_S, FALL = 0.5, 2
_CHECK = {"name": "answers", "type": "tcp", "port": PORT, "interval": INTERVAL_S, "timeout": 4}
_ALIVE_S = 60.0
NO_WEIGHTS: Mapping[Host, int] = {}

Settings = dict[str, Any]


def _groups(reals: tuple[Host, ...], weights: Mapping[Host, int]) -> Settings:
    """By service. A real behind the router is reached through a tunnel."""
    groups: Settings = {SERVICE: [], SERVICE6: []}
    for host in reals:
        for group, address in zip(groups.values(), host.addresses, strict=True):
            mode = {"mode": FAR_MODES[address.version]} if host == FAR_REAL else {}
            group.append({"address": str(address), "weight": weights.get(host, 1)} | mode)
    return groups


def service(*ports: int, name: str = SERVICE, **more: object) -> Settings:
    checks = [_CHECK | {"rise": 2, "fall": FALL}]
    vip = str(VIPS.get(name, VIP))
    group = name if name in VIPS else SERVICE
    found = {"name": name, "addr": vip, "port": list(ports), "real": group, "checks": checks}
    return found | {"damping": "off"} | more


def services() -> list[Settings]:
    """By IPv4 and by IPv6, on the same reals."""
    return [service(*SERVED), service(PORT, name=SERVICE6)]


class Balancers:
    """The balancers of one test. `reals`: those of the service that all have in their files."""

    def __init__(self, lab: Lab, hosts: tuple[Host, ...]) -> None:
        self.lab, self.hosts = lab, hosts
        self._running: set[Host] = set()
        self.rhi: Settings = {"as_number": AS_NUMBER, "peers": [str(ROUTER_LAN.ip)], "hold": 20}
        self._secret = lab.layout.directory / "secret"
        self._secret.write_text("a secret of the lab's balancers\n")
        self._secret.chmod(0o600)

    # Files

    def configure(
        self, *reals: Host, only: Host | None = None, weights: Mapping[Host, int] = NO_WEIGHTS, **more: object
    ) -> None:
        """Writes the file of all, or of one; `more` are other top-level keys; None for none."""
        groups = {"reals": _groups(reals, weights)}
        for host in self.hosts if only is None else (only,):
            found = self._settings(host) | groups | more
            settings = {key: value for key, value in found.items() if value is not None}
            config_file(self.lab, host).write_text(yaml.safe_dump(settings, sort_keys=False))

    def _settings(self, host: Host) -> Settings:
        return {
            "learn": 2,
            "multicast": "239.255.9.9:9999",
            "cluster": {"secret_file": str(self._secret)},
            "rhi": self.rhi,
            "metrics": {"address": str(host.address), "port": METRICS_PORT},
            "services": services(),
        }

    def reload(self, *hosts: Host) -> None:
        """On these, or on all that run."""
        for host in hosts or self.alive():
            answer = client.ask(state_dir(self.lab, host), "POST", "/v1/reload")
            assert answer.good, answer

    def command(self, *words: str) -> None:
        """To all that run; none may complain."""
        with ThreadPoolExecutor() as pool:
            for done in pool.map(lambda host: command(self.lab, host, *words), self.alive()):
                assert (done.returncode, done.stderr) == (0, ""), done

    def say(self, word: str, server: Host) -> None:
        """Drain it, say, by all of its addresses."""
        for address in server.addresses:
            self.command(word, str(address))

    # Life

    def start(self, *hosts: Host, sharing: bool = True) -> None:
        """And waits until they announce, and have heard of each other."""
        for host in hosts:
            if not self.has_cable(host):
                self.lab.network.connect(host)
            self.lab.programs[host.name].start()
            self._running.add(host)
        alive = self.alive()
        self.wait_for_routes()
        for host in alive if sharing else ():
            self.lab.wait_for(f"{host.name} has its peers", lambda h=host: self.peers(h) >= len(alive) - 1)  # type: ignore[misc]

    def wait_for_routes(self) -> None:
        """To all VIPs, by those that run and by no others."""
        for vip in VIPS.values():
            wait_for_next_hops(self.lab, *self.alive(), vip=vip)

    def alive(self) -> tuple[Host, ...]:
        return tuple(host for host in self.hosts if host in self._running)

    def pids(self, host: Host) -> list[int]:
        return self.lab.network.pids(host.name)

    def has_cable(self, host: Host) -> bool:
        shown = run("ip", "-n", self.lab.layout.namespace(SWITCH), "-o", "link", "show")
        return f" {host.name}@" in shown

    def kill_all_of(self, host: Host) -> None:
        self._running.discard(host)
        self.lab.kill(host)

    def cut_off(self, host: Host) -> None:
        self._running.discard(host)
        self.lab.power_off(host)

    def terminate(self, host: Host) -> None:
        """Returns when it has ended, in order."""
        self._running.discard(host)
        os.kill(self.process(host, "vc5py\0run\0"), signal.SIGTERM)
        program = self.lab.programs[host.name]
        until(f"{host.name} has ended", lambda: program.ended() is not None, _ALIVE_S)
        assert program.ended() == 0, program.log_tail()
        program.reap()

    def find_process(self, host: Host, words: str) -> int | None:
        """The process of that balancer with these words in its command line, if there is exactly one."""
        found = [pid for pid in self.pids(host) if words.encode() in _command_line(pid)]
        return found[0] if len(found) == 1 else None

    def process(self, host: Host, words: str) -> int:
        found = self.find_process(host, words)
        assert found is not None, (words, [_command_line(pid) for pid in self.pids(host)])
        return found

    # What can be seen

    def peers(self, host: Host) -> int:
        samples = metrics(self.lab.layout, host)
        return sum(sample.name == "vc5_sync_peer_age_seconds" for sample in samples)

    def total(self, host: Host, name: str, **labels: str) -> float:
        return total(metrics(self.lab.layout, host), name, **labels)

    def forwarded(self) -> dict[str, float]:
        """Packets by balancer, since it began or found its predecessor's maps; nan where it doesn't say."""
        found = {}
        for host in self.hosts:
            samples = metrics(self.lab.layout, host)
            kinds = [s for s in samples if s.labels.get("verdict", "").startswith("forwarded")]
            found[host.name] = sum(s.value for s in kinds) if samples else float("nan")
        return found

    def is_in_order(self, host: Host) -> bool:
        """Whether all of its parts work: it is told of flows, and its route is there."""
        wanted = {"vc5_bgp_session_up": 1, "vc5_bgp_routes": len(VIPS), "vc5_sync_running": 1}
        samples = metrics(self.lab.layout, host)
        works = all(total(samples, name) == number for name, number in wanted.items())
        return (
            works and self.peers(host) == len(self.alive()) - 1 and host.address in next_hops(self.lab.layout)
        )

    def wait_for_real(self, server: Host, serving: bool, hosts: tuple[Host, ...] | None = None) -> None:
        for host in hosts or self.alive():
            self.lab.wait_for(
                f"{server.name} {'serves' if serving else 'does not serve'} at {host.name}",
                lambda h=host: self._serving(h, server) == {serving},  # type: ignore[misc]
            )

    def _serving(self, host: Host, server: Host) -> set[bool]:
        """What it says of all of that real's addresses."""
        addresses = set(map(str, server.addresses))
        found = [one["reals"] for one in status(self.lab, host)["services"] if one["name"] in VIPS]
        return {real["serving"] for reals in found for real in reals if real["address"] in addresses}

    def client_sent(self) -> int:
        """IPv4 packets, all of which were to the VIP."""
        shown = run("ip", "netns", "exec", self.lab.layout.namespace(CLIENT.name), "cat", "/proc/net/snmp")
        names, values = (line.split() for line in shown.splitlines() if line.startswith("Ip: "))
        return int(dict(zip(names, values, strict=True))["OutRequests"])


def _command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def until(what: str, happened: Callable[[], bool], timeout_s: float = 180.0) -> None:
    """For what `Lab.wait_for` can't wait for, because a program of the lab ends meanwhile."""
    deadline_s = time.monotonic() + timeout_s
    while not happened():
        assert time.monotonic() < deadline_s, f"not within {timeout_s} s: {what}"
        time.sleep(0.02)


def standing(name: str) -> Iterator[Lab]:
    """A lab with three balancers, none of which runs, and servers of the crowd on four reals."""
    with Lab(Layout(name, THREE_BALANCERS, hold_s=HOLD_S, bfd=True)) as lab:
        lab.put_up()
        for vip in VIPS.values():
            address = f"addr replace {vip}/{vip.max_prefixlen} dev lo"
            run("ip", "-n", lab.layout.namespace(FAR_REAL.name), *address.split())
        for server in SERVERS:
            start_server(lab, server)
        for host in THREE_BALANCERS:
            lab.network.cut(host)
            lab.network.forget(host)
        yield lab


def start_server(lab: Lab, server: Host) -> None:
    program = server_program(lab, server)
    lab.programs[f"{server.name} crowd"] = program
    program.start()


def kill_server(lab: Lab, server: Host) -> float:
    """All that runs on it. Returns when, in monotonic seconds."""
    pids = lab.network.pids(server.name)
    killed_s = time.monotonic()
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    lab.network.kill(server.name)
    lab.programs[server.name].reap()
    lab.programs[f"{server.name} crowd"].reap()
    return killed_s


def revive_server(lab: Lab, server: Host) -> None:
    if not lab.network.pids(server.name):
        lab.start(server)
        lab.programs[f"{server.name} crowd"].start()


def fresh(lab: Lab, hosts: tuple[Host, ...]) -> Iterator[Balancers]:
    """Balancers that have never run, with their cables in; all traces of them are removed afterwards."""
    for server in SERVERS:
        revive_server(lab, server)
    for host in hosts:
        shutil.rmtree(lab.layout.node_directory(host.name), ignore_errors=True)
        lab.network.connect(host)
        lab.programs[host.name] = balancer_program(lab.layout, host)
    balancers = Balancers(lab, hosts)
    lab.wait_for(
        "the router has forgotten earlier ones",
        lambda: not any(next_hops(lab.layout, vip) for vip in VIPS.values()),
    )
    try:
        yield balancers
    finally:
        for host in hosts:
            lab.network.kill(host.name)
            lab.programs.pop(host.name).reap()
            if balancers.has_cable(host):
                lab.network.cut(host)
            lab.network.forget(host)
