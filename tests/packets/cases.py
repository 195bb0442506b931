"""Whole-frame cases as data: what comes in, what is known of the flow, and the verdict that must follow.

The expected frame is the oracle's. The verdict is also written down by hand, so that oracle and program
can't be wrong in the same way unseen. New kinds of traffic get a function in a cases_*.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from typing import Any

from tests.packets.cases_base import REAL_11, REAL_12
from tests.packets.cases_flow import FLOW
from tests.packets.cases_forward import FORWARD
from tests.packets.cases_icmp import ICMP_CASES
from tests.packets.cases_ipv4 import IPV4
from tests.packets.cases_ipv6 import IPV6
from tests.packets.cases_mtu import MTU_CASES
from tests.packets.frames import ether, ip, patched, tcp, udp, vlan_tagged
from tests.packets.oracle_send import updated
from tests.packets.world import WAYS, WORLD, mode_vip
from vc5py.model import IPAddress

CASES = [*IPV4, *IPV6, *FORWARD, *ICMP_CASES, *FLOW, *MTU_CASES]


@dataclass(frozen=True, slots=True)
class ProbeCase:
    """One frame of our own. `target`: the service and real that its mark names; None: `mark` as it is."""

    id: str
    description: str
    verdict: str | None
    target: tuple[str, IPAddress] | None = None
    mark: int = 0
    frame: bytes = field(default_factory=tcp, repr=False)


def _every_way() -> Iterator[ProbeCase]:
    for way in [*WAYS, "dscp"]:
        for family in (4, 6):
            vip, name = mode_vip(way, family), f"{way}-for-{family}"
            target = name, WORLD.service(name).reals[0].address
            for protocol, frame in (("tcp", tcp(vip)), ("udp", udp(vip, 53))):
                yield ProbeCase(f"{name}-{protocol}", "by every way", "probe", target, frame=frame)


def _marked() -> Iterator[ProbeCase]:
    """What else L3 DSR leaves as it is: ECN and the flow label."""
    for family in (4, 6):
        vip, name = mode_vip("dscp", family), f"dscp-for-{family}"
        target = name, WORLD.service(name).reals[0].address
        fields: dict[str, Any] = {"fl": 0xABCDE} if family == 6 else {}
        for tos in (0x02, 0xFF):
            frame = tcp(vip, flags="A", tos=tos, **fields)
            yield ProbeCase(f"{name}-tos-{tos:02x}", "ECN stays", "probe", target, frame=frame)


def _zero_sums() -> Iterator[ProbeCase]:
    """A UDP checksum that is absent stays so; one that comes out as zero would say that it is."""
    for family, at in ((4, 40), (6, 60)):
        vip, name = mode_vip("dscp", family), f"dscp-for-{family}"
        to = WORLD.service(name).reals[0].address
        zero = next(n for n in range(1, 1 << 16) if not updated(n, vip.packed, to.packed))
        for what, check in (("absent", 0), ("zero", zero)):
            frame = patched(udp(vip, 53), at, check.to_bytes(2, "big"))
            yield ProbeCase(f"{name}-{what}", "its checksum", "probe", (name, to), frame=frame)


def _other_protocols() -> Iterator[ProbeCase]:
    """ICMPv6's number in an IPv4 packet, and ICMP's in an IPv6 one, have no checksum that we know of."""
    for family, number in ((4, 58), (6, 1), (6, 58)):
        vip, name = mode_vip("dscp", family), f"dscp-for-{family}"
        target = name, WORLD.service(name).reals[0].address
        fields: dict[str, Any] = {"proto" if family == 4 else "nh": number}
        frame = bytes(ether() / ip(vip, **fields) / bytes(32))
        yield ProbeCase(f"{name}-protocol-{number}", "by number", "probe", target, frame=frame)


def _unreadable() -> Iterator[ProbeCase]:
    """Frames that no socket sends are let go only where nothing but the Ethernet header changes."""
    for family in (4, 6):
        for way in ("gue6", "dscp"):
            vip, name = mode_vip(way, family), f"{way}-for-{family}"
            target = name, WORLD.service(name).reals[0].address
            whole, tagged = tcp(vip), vlan_tagged(tcp(vip))
            for what, frame in (("cut", whole[:-1]), ("tagged", tagged)):
                yield ProbeCase(f"{name}-{what}", "no socket's", "probe_no_backend", target, frame=frame)
    tagged = vlan_tagged(tcp())
    yield ProbeCase("near-tagged", "only Ethernet is looked at", "probe", ("web", REAL_11), frame=tagged)


PROBES = [
    *_every_way(),
    *_marked(),
    *_other_protocols(),
    *_zero_sums(),
    *_unreadable(),
    ProbeCase("near", "to a real beside us", "probe", ("web", REAL_11)),
    ProbeCase("far", "to a real on the other interface", "probe", ("far", IPv4Address("10.0.0.21"))),
    ProbeCase("down", "whether it is up again", "probe", ("dark", REAL_11)),
    ProbeCase("drained", "weight does not matter", "probe", ("mixed", IPv4Address("10.0.0.13"))),
    ProbeCase("udp", "any protocol", "probe", ("web", REAL_12), frame=udp()),
    ProbeCase("ttl", "our own packets keep their TTL", "probe", ("web", REAL_12), frame=tcp(ttl=1)),
    ProbeCase("no_mac", "its MAC is not known", "probe_no_backend", ("lost", IPv4Address("10.0.0.99"))),
    ProbeCase("behind", "L2 can't cross a router", "probe_no_backend", ("beyond", IPv4Address("10.0.0.98"))),
    ProbeCase("gone", "an unused record", "probe_no_backend", mark=0x5C5000F0),
    ProbeCase("beyond", "no such record", "probe_no_backend", mark=0x5C5FFFFF),
    ProbeCase("unmarked", "any other packet", None),
    ProbeCase("other_mark", "another program's mark", None, mark=0x5C600000),
    ProbeCase("index_only", "a small mark", None, mark=1),
]
