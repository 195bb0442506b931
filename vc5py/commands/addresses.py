"""The addresses of this machine, of every interface, as the kernel lists them in /proc or tells by ioctl.

Must not know: what they are for. Only for advice: where /proc says nothing, there are none.
"""

from __future__ import annotations

import fcntl
import re
import socket
import struct
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

from vc5py.model import IPAddress

_PROC = Path("/proc/net")
# An address of a local route: the line of the address is followed by that of its kind.
_LOCAL = re.compile(r"\|-- ([0-9.]+)\n\s+/32 host LOCAL\b")

_SIOCGIFADDR = 0x8915  # linux/sockios.h


def first_address(interface: str) -> IPv4Address | None:
    """The interface's first IPv4 address; None where there is none, or no such interface."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        try:
            answer = fcntl.ioctl(asking, _SIOCGIFADDR, struct.pack("256s", interface.encode()[:15]))
        except OSError:
            return None
    return IPv4Address(answer[20:24])  # struct ifreq: the name, then a struct sockaddr_in


def own_addresses(proc: Path = _PROC) -> frozenset[IPAddress]:
    """All addresses in this network namespace, loopback among them."""
    return frozenset({*map(IPv4Address, _LOCAL.findall(_read(proc / "fib_trie"))), *_version6(proc)})


def _version6(proc: Path) -> list[IPv6Address]:
    lines = _read(proc / "if_inet6").splitlines()
    return [IPv6Address(int(line.split()[0], 16)) for line in lines]


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="ascii")
    except OSError:
        return ""
