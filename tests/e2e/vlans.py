"""What the lab lacks of VLANs: IPv6 in the one that real5 is in, and a router that sends in another one."""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv6Interface
from pathlib import Path

from vc5py.dataplane import compiler, libbpf
from vc5py.lab.assembly import Lab
from vc5py.lab.kernel import entered
from vc5py.lab.layout import BALANCERS, DSCP_VIP, DSCP_VIP6, ROUTER, SWITCH, TAGGED_REAL
from vc5py.lab.network import ROUTER_MAC, run, static_neighbour

REAL6 = IPv6Interface("fd00:110::10/64")
ROUTER6 = IPv6Interface("fd00:110::1/64")
UPLINK_VLAN = 20

_C = Path(__file__).with_name("c")
_SIOCETHTOOL, _GET_FLAGS, _SET_FLAGS = 0x8946, 0x25, 0x26  # linux/sockios.h, linux/ethtool.h
_TRANSMIT_VLAN = 1 << 7


@contextmanager
def ipv6_in_vlan(lab: Lab) -> Iterator[None]:
    """As the lab has it for IPv4: nobody has a VLAN device, so MAC addresses are told."""
    real, router = lab.layout.namespace(TAGGED_REAL.name), lab.layout.namespace(ROUTER)
    plan = [
        (real, f"addr add {REAL6} dev eth0", f"addr del {REAL6} dev eth0"),
        (router, f"addr add {ROUTER6} dev lan", f"addr del {ROUTER6} dev lan"),
        (real, f"route add default via {ROUTER6.ip}", f"route del default via {ROUTER6.ip}"),
        (real, static_neighbour("eth0", ROUTER6.ip, ROUTER_MAC), f"neigh del {ROUTER6.ip} dev eth0"),
    ]
    for balancer in BALANCERS:
        namespace = lab.layout.namespace(balancer.name)
        route = f"{REAL6.network} dev eth0"
        told = static_neighbour("eth0", REAL6.ip, TAGGED_REAL.mac)
        plan.append((namespace, f"route add {route}", f"route del {route}"))
        plan.append((namespace, told, f"neigh del {REAL6.ip} dev eth0"))
    try:
        for namespace, begin, _ in plan:
            run("ip", "-6", "-n", namespace, *begin.split())
        yield
    finally:
        for namespace, _, end in reversed(plan):
            run("ip", "-6", "-n", namespace, *end.split(), check=False)


def _transmit_tags_in_frames(namespace: str, interface: str, *, on: bool) -> None:
    """As `ethtool -K INTERFACE txvlan off`: else a tag passes a virtual link beside the frame, not in it, and
    an XDP program doesn't see it.
    """
    with entered(namespace), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        value = ctypes.create_string_buffer(struct.pack("=II", _GET_FLAGS, 0))
        request = struct.pack("16sP16x", interface.encode(), ctypes.addressof(value))
        fcntl.ioctl(any_socket, _SIOCETHTOOL, request)
        (flags,) = struct.unpack_from("=I", value, 4)
        flags = flags & ~_TRANSMIT_VLAN if on else flags | _TRANSMIT_VLAN
        struct.pack_into("=II", value, 0, _SET_FLAGS, flags)
        fcntl.ioctl(any_socket, _SIOCETHTOOL, request)


@contextmanager
def tagged_uplink(lab: Lab) -> Iterator[None]:
    """The router sends all that is for the VIPs in a VLAN, while the block runs."""
    router, switch = lab.layout.namespace(ROUTER), lab.layout.namespace(SWITCH)
    pinned = lab.layout.bpffs(SWITCH) / "tag_uplink"
    macros = {"UPLINK_VLAN": UPLINK_VLAN, "VIPS": int(DSCP_VIP) >> 8, "VIPS6": int(DSCP_VIP6) >> 96}
    program = compiler.compile_file(_C / "uplink.c", macros).load("tag_uplink", compiler.ProgramType.TC)
    try:
        libbpf.pin(program, pinned)
        for balancer in lab.layout.balancers:
            _transmit_tags_in_frames(switch, balancer.name, on=True)
        bpf = ("bpf", "direct-action", "object-pinned", str(pinned))
        run("tc", "-n", router, "filter", "add", "dev", "lan", "egress", *bpf)
        yield
    finally:
        run("tc", "-n", router, "filter", "del", "dev", "lan", "egress", check=False)
        for balancer in lab.layout.balancers:
            _transmit_tags_in_frames(switch, balancer.name, on=False)
        pinned.unlink(missing_ok=True)
        os.close(program)
