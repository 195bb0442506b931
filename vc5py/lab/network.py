"""Namespaces, links, addresses and mounts of the lab: built, cut, mended and swept away.

Must not know: what runs on the nodes, or what is shown with them. `*_plan` functions are pure and give
lines for `ip -batch`. Invariant: `sweep` needs nothing but the lab's name, so it also removes what a
run that was killed has left behind, and does nothing where there is nothing.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterable
from ipaddress import IPv4Interface, IPv6Interface
from pathlib import Path

from .errors import LabError
from .kernel import (
    NETNS_DIRECTORY,
    entered,
    pin_pass_program,
    pin_programs,
    transmit_checksums_off,
    write_sysctl,
)
from .layout import (
    ALL_REALS,
    CLIENT,
    FAR_REAL,
    FAR_VIPS,
    PROGRAM_MACROS,
    REALS,
    ROUTER,
    ROUTER_CLIENTS,
    ROUTER_CLIENTS6,
    ROUTER_FAR,
    ROUTER_FAR6,
    ROUTER_LAN,
    ROUTER_LAN6,
    ROUTER_TAGGED,
    SWITCH,
    TAGGED_NETWORK,
    TAGGED_REAL,
    TAGGED_VIP,
    THREE_BALANCERS,
    VIP,
    VIP6,
    Host,
    IPAddress,
    Layout,
)

_COMMAND_TIMEOUT_S = 60.0
_KILL_TIMEOUT_S = 30.0

_EVERYWHERE = {
    "net.ipv4.conf.all.rp_filter": 0,
    "net.ipv4.conf.default.rp_filter": 0,
    # Addresses are ready at once, and only those that were given.
    "net.ipv6.conf.all.accept_dad": 0,
    "net.ipv6.conf.default.accept_dad": 0,
    "net.ipv6.conf.default.accept_ra": 0,
    "net.ipv6.conf.default.router_solicitations": 0,
}
_ON_SWITCH = {
    "net.ipv6.conf.all.disable_ipv6": 1,
    "net.ipv6.conf.default.disable_ipv6": 1,
}
_ON_ROUTER = {
    "net.ipv4.ip_forward": 1,
    "net.ipv6.conf.all.forwarding": 1,
    "net.ipv4.fib_multipath_hash_policy": 1,  # choose a balancer by addresses and ports
    "net.ipv6.fib_multipath_hash_policy": 1,
    "net.ipv4.conf.all.send_redirects": 0,
    "net.ipv4.conf.default.send_redirects": 0,
}
_ON_REALS = {
    "net.ipv4.conf.all.arp_ignore": 1,  # the VIP on lo is not to be answered for
    "net.ipv4.conf.all.arp_announce": 2,  # nor to be told to others
}


def run(*command: str, text: str = "", check: bool = True, timeout_s: float = _COMMAND_TIMEOUT_S) -> str:
    """Runs a command to its end and returns its standard output; LabError with its words if it fails."""
    try:
        done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=timeout_s)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise LabError(f"{' '.join(command)}: {error}") from error
    if check and done.returncode != 0:
        raise LabError(f"{' '.join(command)}: {(done.stderr or done.stdout).strip()}")
    return done.stdout


def _batch(namespace: str | None, lines: Iterable[str]) -> None:
    within = ("-n", namespace) if namespace else ()
    run("ip", *within, "-batch", "-", text="\n".join(lines) + "\n")


def switch_plan() -> list[str]:
    return ["link add br0 type bridge forward_delay 0 mcast_snooping 0", "link set br0 up"]


def port_plan(port: str, namespace: str, interface: str, mac: str | None = None) -> list[str]:
    """A bridge port named after the node, and the node's end of it in `namespace`."""
    address = f" address {mac}" if mac else ""
    return [
        f"link add {port} type veth peer name {interface}{address} netns {namespace}",
        f"link set {port} master br0",
        f"link set {port} up",
    ]


def address_plan(interface: str, *addresses: IPv4Interface | IPv6Interface | None) -> list[str]:
    given = [f"addr add {address} dev {interface}" for address in addresses if address]
    return [*given, f"link set {interface} up"]


def host_plan(host: Host) -> list[str]:
    plan = address_plan("eth0", host.interface, host.interface6)
    plan += [f"route replace default via {gateway}" for gateway in (host.gateway, host.gateway6) if gateway]
    if host in THREE_BALANCERS:
        # Nobody here has a VLAN device to ask for the MAC address by: it is told.
        plan.append(f"route add {TAGGED_NETWORK} dev eth0")
        plan.append(static_neighbour("eth0", TAGGED_REAL.address, TAGGED_REAL.mac))
    return plan


def static_neighbour(interface: str, address: IPAddress, mac: str) -> str:
    return f"neigh replace {address} lladdr {mac} dev {interface} nud permanent"


def vip_plan(real: Host) -> list[str]:
    vips: dict[Host, tuple[IPAddress, ...]] = {FAR_REAL: FAR_VIPS, TAGGED_REAL: (TAGGED_VIP,)}
    return [f"addr add {vip}/{vip.max_prefixlen} dev lo" for vip in vips.get(real, (VIP, VIP6))]


ROUTER_MAC = "02:00:00:00:00:03"


class Network:
    """The network of one lab. Errors: LabError."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout

    def build(self) -> None:
        """Makes everything; the caller sweeps, whether this succeeds or not."""
        layout = self.layout
        try:
            layout.directory.mkdir(mode=0o755)
            self._mount_bpffs(SWITCH)
            pin_pass_program(self._pass_program)
            pin_programs(self._programs, PROGRAM_MACROS)
            _batch(None, (f"netns add {namespace}" for namespace in layout.namespaces))
            self._set_sysctls()
            for namespace in layout.namespaces:
                _batch(namespace, ["link set lo up"])
            _batch(layout.namespace(SWITCH), switch_plan())
            self._add_router_and_client()
            for host in (*layout.balancers, *REALS, TAGGED_REAL):
                self.connect(host)
            self._add_far_real()
            self._put_in_vlan()
            for real in ALL_REALS:
                _batch(layout.namespace(real.name), vip_plan(real))
        except OSError as error:
            raise LabError(f"the lab's network can't be built: {error}") from error

    def connect(self, host: Host) -> None:
        """Plugs a host of the L2 segment in, with a new interface and an empty BPF file system."""
        namespace = self.layout.namespace(host.name)
        plan = port_plan(host.name, namespace, "eth0", host.mac)
        if host in THREE_BALANCERS:
            self._mount_bpffs(host.name)
            # XDP_TX on one end of a veth arrives at the other only where that has an XDP program, too.
            plan.append(f"link set {host.name} xdpdrv pinned {self._pass_program}")
        _batch(self.layout.namespace(SWITCH), plan)
        self._hand_over(namespace, "eth0")
        _batch(namespace, host_plan(host))

    def cut(self, host: Host) -> None:
        """What a power cut does to the network: the interface is gone, with all that was attached to it."""
        _batch(self.layout.namespace(SWITCH), [f"link del {host.name}"])

    def forget(self, host: Host) -> None:
        """What a power cut does to a balancer's memory; its processes must be dead."""
        _unmount_below(self.layout.node_directory(host.name))

    def pids(self, node: str) -> list[int]:
        """Processes in the node's namespace, whoever started them; never our own."""
        namespace = self.layout.namespace(node)
        if not (NETNS_DIRECTORY / namespace).exists():
            return []
        found = map(int, run("ip", "netns", "pids", namespace, check=False).split())
        return [pid for pid in found if pid != os.getpid()]

    def kill(self, *nodes: str) -> None:
        """SIGKILL for all processes of the nodes, until none is left; also those that forked meanwhile."""
        deadline = time.monotonic() + _KILL_TIMEOUT_S
        while pids := [pid for node in nodes for pid in self.pids(node) if not _is_zombie(pid)]:
            for pid in pids:
                _send_kill(pid)
            if time.monotonic() > deadline:
                raise LabError(f"processes {pids} of the lab don't die")
            time.sleep(0.01)

    def sweep(self) -> None:
        """Removes processes, mounts, namespaces and files of this lab, whatever there is of them."""
        possible = self.layout.possible_namespaces
        namespaces = [name for name in possible if (NETNS_DIRECTORY / name).exists()]
        self.kill(*(name.removeprefix(f"{self.layout.name}-") for name in namespaces))
        _unmount_below(self.layout.directory)
        for namespace in namespaces:
            run("ip", "netns", "del", namespace)
        shutil.rmtree(self.layout.directory, ignore_errors=True)

    @property
    def _pass_program(self) -> Path:
        return self._programs / "xdp_pass"

    @property
    def _programs(self) -> Path:
        return self.layout.bpffs(SWITCH)

    def _mount_bpffs(self, node: str) -> None:
        path = self.layout.bpffs(node)
        path.mkdir(parents=True, exist_ok=True)
        run("mount", "-t", "bpf", "-o", "mode=0700", "bpf", str(path))

    def _set_sysctls(self) -> None:
        special = {ROUTER: _ON_ROUTER, SWITCH: _ON_SWITCH} | {real.name: _ON_REALS for real in ALL_REALS}
        for namespace in self.layout.namespaces:
            node = namespace.removeprefix(f"{self.layout.name}-")
            with entered(namespace):
                for key, value in (_EVERYWHERE | special.get(node, {})).items():
                    write_sysctl(key, value)

    def _add_router_and_client(self) -> None:
        router, client = self.layout.namespace(ROUTER), self.layout.namespace(CLIENT.name)
        _batch(self.layout.namespace(SWITCH), port_plan(ROUTER, router, "lan", ROUTER_MAC))
        _batch(router, [f"link add clients type veth peer name eth0 address {CLIENT.mac} netns {client}"])
        for namespace, interface in ((router, "lan"), (router, "clients"), (client, "eth0")):
            self._hand_over(namespace, interface)
        lan = address_plan("lan", ROUTER_LAN, ROUTER_LAN6)
        _batch(router, [*lan, *address_plan("clients", ROUTER_CLIENTS, ROUTER_CLIENTS6)])
        _batch(client, host_plan(CLIENT))

    def _add_far_real(self) -> None:
        """A real on a link of its own behind the router, with the receiving end of the tunnels."""
        router, real = self.layout.namespace(ROUTER), self.layout.namespace(FAR_REAL.name)
        _batch(router, [f"link add far type veth peer name eth0 address {FAR_REAL.mac} netns {real}"])
        for namespace, interface in ((router, "far"), (real, "eth0")):
            self._hand_over(namespace, interface)
        _batch(router, address_plan("far", ROUTER_FAR, ROUTER_FAR6))
        decapsulate = f"link set eth0 xdpdrv pinned {self._programs / 'lab_decapsulate'}"
        _batch(real, [decapsulate, *host_plan(FAR_REAL)])

    def tag(self, *, twice: bool) -> None:
        """From now on real5 sends and takes nothing but tagged frames, or frames with two tags."""
        real, both = self.layout.namespace(TAGGED_REAL.name), "_both" if twice else ""
        self._filter(real, "eth0", "ingress", f"lab_untag{both}_only")
        self._filter(real, "eth0", "egress", f"lab_tag{both}")

    def _put_in_vlan(self) -> None:
        """real5 is in the VLAN, and the router is its gateway there."""
        router, real = self.layout.namespace(ROUTER), self.layout.namespace(TAGGED_REAL.name)
        self.tag(twice=False)
        self._filter(router, "lan", "ingress", "lab_untag")
        _batch(router, [f"addr add {ROUTER_TAGGED} dev lan"])
        _batch(real, [static_neighbour("eth0", ROUTER_TAGGED.ip, ROUTER_MAC)])

    def _filter(self, namespace: str, interface: str, direction: str, program: str) -> None:
        run("tc", "-n", namespace, "qdisc", "replace", "dev", interface, "clsact")
        run("tc", "-n", namespace, "filter", "del", "dev", interface, direction)
        pinned = ("bpf", "direct-action", "object-pinned", str(self._programs / program))
        run("tc", "-n", namespace, "filter", "add", "dev", interface, direction, *pinned)

    @staticmethod
    def _hand_over(namespace: str, interface: str) -> None:
        with entered(namespace):
            transmit_checksums_off(interface)


def _send_kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def _is_zombie(pid: int) -> bool:
    """True for a process that is dead and only waits for its parent to notice (proc(5), field 3)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return True
    return stat.rpartition(")")[2].split()[0] in "ZX"


def _mounts_below(directory: Path) -> list[Path]:
    points = (Path(line.split()[1]) for line in Path("/proc/self/mounts").read_text().splitlines())
    return [point for point in points if point.is_relative_to(directory)]


def _unmount_below(directory: Path) -> None:
    for point in reversed(_mounts_below(directory)):
        run("umount", "--lazy", str(point))
