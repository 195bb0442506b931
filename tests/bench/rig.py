"""What is measured: our data plane, the textbook design, and the harness that feeds them packets.

All programs run by BPF_PROG_TEST_RUN, called by tests/bench/c/shaker.c with one packet after another. Ours is
installed through `KernelDataplane` as the balancer does it. Knows nothing of scenarios or reports.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from dataclasses import dataclass
from enum import IntEnum
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import cast

import numpy as np

from vc5py.core import maglev
from vc5py.core.flowhash import FlowKey
from vc5py.core.identity import real_identity
from vc5py.dataplane import abi, compiler, libbpf, maps
from vc5py.dataplane.base import Neighbour
from vc5py.dataplane.compiler import Module, ProgramType
from vc5py.dataplane.kernel import KernelDataplane
from vc5py.dataplane.libbpf import MapType
from vc5py.dataplane.links import Record
from vc5py.dataplane.ports import PortTable
from vc5py.dataplane.ticks import TickClock, measure
from vc5py.model import (
    BackendId,
    BackendState,
    Desired,
    Forwarding,
    ForwardMode,
    IPAddress,
    Protocol,
    ServiceState,
    VirtualServiceId,
)

C_DIR = Path(__file__).parent / "c"
LOOPBACK = 1  # the ifindex that a test run's packets come from
REALS = 16
RING = 65537  # slots of the textbook's ring
PORT = 80
OUR_MAC, ROUTER_MAC = "02:00:00:00:00:01", "02:00:00:00:00:fe"
SYN, ACK = 0x02, 0x10
_PERCPU_ARRAY = cast(MapType, 6)  # not among those that the balancer uses

VIP4, VIP6 = IPv4Address("192.0.2.1"), IPv6Address("2001:db8::1")
VIP_IPIP, VIP_GUE = IPv4Address("192.0.2.2"), IPv4Address("192.0.2.3")
VIP6_IPIP, VIP6_GUE = IPv6Address("2001:db8::2"), IPv6Address("2001:db8::3")
_MODES: dict[IPAddress, Forwarding] = {
    VIP4: Forwarding(),
    VIP6: Forwarding(),
    VIP_IPIP: Forwarding(ForwardMode.IPIP),
    VIP_GUE: Forwarding(ForwardMode.GUE, port=6080),
    VIP6_IPIP: Forwarding(ForwardMode.IPIP),
    VIP6_GUE: Forwarding(ForwardMode.GUE, port=6080),
}


class Order(IntEnum):
    """enum order in shaker.c."""

    RANDOM = 0
    SEQUENTIAL = 1
    ENDLESS = 2


@dataclass(frozen=True, slots=True)
class Stream:
    """Packets to one VIP, TCP with the given flags, from `flows` clients (a power of two) in some order."""

    vip: IPAddress
    flags: int = ACK
    flows: int = 1
    order: Order = Order.RANDOM

    def frame(self) -> bytes:
        """64 bytes without the FCS's four, as short as Ethernet has them; 74 for IPv6."""
        macs = bytes.fromhex(OUR_MAC.replace(":", "") + ROUTER_MAC.replace(":", ""))
        tcp = struct.pack("!HHIIBBHHH", 1024, PORT, 1, 1, 5 << 4, self.flags, 0xFFFF, 0, 0)
        if self.vip.version == 6:
            client = IPv6Address("2001:db8:1::").packed
            ip = struct.pack("!IHBB16s16s", 6 << 28, len(tcp), 6, 64, client, self.vip.packed)
            return macs + b"\x86\xdd" + ip + tcp
        client = IPv4Address("10.0.0.0").packed
        ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 40, 0, 0x4000, 64, 6, 0, client, self.vip.packed)
        return (macs + b"\x08\x00" + ip + tcp).ljust(64, b"\0")

    def shake(self, start: int) -> bytes:
        """struct shake in shaker.c."""
        frame = self.frame()
        head, source, ports = (74, 34, 54) if self.vip.version == 6 else (54, 26, 34)
        return frame[:head].ljust(80, b"\0") + struct.pack(
            "<6IQ", head, len(frame), source, ports, self.flows - 1, self.order, start
        )


class Harness:
    """Runs programs on streams of packets."""

    def __init__(self) -> None:
        self._shake = libbpf.create_map(MapType.ARRAY, "shake", 4, 112, 1)
        self._stage = libbpf.create_map(MapType.PROG_ARRAY, "stage", 4, 4, 1)
        macros = {"FD_shake": self._shake, "FD_stage": self._stage}
        module = compiler.compile_file(C_DIR / "shaker.c", macros)
        self._program = module.load("shake", ProgramType.XDP)
        self.nothing = module.load("nothing", ProgramType.XDP)
        self.grow = module.load("grow", ProgramType.XDP)
        self.floor = module.load("mac_swap", ProgramType.XDP)
        self._start = time.time_ns()

    def run(self, program: int, stream: Stream, packets: int) -> float:
        """Nanoseconds of this thread's CPU time a packet, all of the harness included."""
        start = self._start if stream.order is Order.ENDLESS else 0
        self._start += packets
        libbpf.update(self._shake, bytes(4), stream.shake(start))
        libbpf.update(self._stage, bytes(4), program.to_bytes(4, "little"))
        frame = stream.frame()
        before = time.thread_time_ns()
        libbpf.test_run(self._program, frame, repeat=packets)
        return (time.thread_time_ns() - before) / packets

    def close(self) -> None:
        for fd in (self._shake, self._stage, self._program, self.nothing, self.grow, self.floor):
            os.close(fd)


def _desired() -> Desired:
    """One service a mode, of REALS reals each."""
    services = []
    for number, (vip, forwarding) in enumerate(_MODES.items()):
        name = f"bench{number}"
        backends = tuple(
            BackendState(BackendId(name, vip, real), up=True, weight=1, forwarding=forwarding)
            for real in reals(vip)
        )
        services.append(ServiceState(VirtualServiceId(name, vip), ((PORT, Protocol.TCP),), backends))
    return Desired(tuple(services))


def reals(vip: IPAddress) -> list[IPAddress]:
    """The reals of the service on that VIP."""
    numbers = range(1, REALS + 1)
    if vip.version == 6:
        return [IPv6Address("2001:db8:2::") + n for n in numbers]
    return [IPv4Address("198.51.100.0") + n for n in numbers]


def _sizes(entries: int, log: int) -> maps.Sizes:
    return maps.Sizes(
        flow_sets=entries // abi.FLOW_WAYS,
        services=64,
        backends=256,
        slot_lines=1024,
        service_sets4=64,
        service_sets6=64,
        cpus=maps.running_cpus(),
        interfaces=64,
        log=log,
    )


class Ours:
    """Our data plane, with a flow table of the given number of entries (a power of two). `log`: entries of
    each CPU's ring of changed flows; 1: flows are not shared.
    """

    def __init__(self, entries: int, source: Path = abi.XDP_DIR / "vc5.c", log: int = 1) -> None:
        self._clock: TickClock = measure()
        self.maps = maps.create(_sizes(entries, log))
        self.dataplane = KernelDataplane(self.maps, self._clock)
        PortTable(self.maps).write({LOOPBACK: Record(OUR_MAC, exit=LOOPBACK)})
        for real in {real for vip in _MODES for real in reals(vip)}:
            mac = "02:00:00:00:01:" + real.packed[-1:].hex()
            address = VIP4 if real.version == 4 else VIP6
            self.dataplane.set_neighbour(real, Neighbour(LOOPBACK, mac, source=address))
        self.dataplane.apply(_desired())
        self.program = self.load(source)

    @property
    def clock(self) -> TickClock:
        return self._clock

    def load(self, source: Path, function: str = "vc5_ingress", kind: ProgramType = ProgramType.XDP) -> int:
        """Compiles a program over these maps; returns its file descriptor."""
        key = FlowKey.derive(b"benchmark")
        macros = {"FLOW_KEY": key.start, "FLOW_KEY_ODD": key.odd, "TICK_SHIFT": self._clock.shift}
        module = compiler.compile_file(source, self.maps.macros() | macros)
        return module.load(function, kind)

    def forget_flows(self) -> None:
        self.maps.flows[:] = 0

    def expire(self) -> None:
        """Takes all flows in the table back so far in time that they are past every timeout."""
        flows = self.maps.flows
        old = np.uint64(self._clock.now() - 0x7000 & 0xFFFF) << np.uint64(abi.FLOW_TICK_SHIFT)
        tick = np.uint64(0xFFFF << abi.FLOW_TICK_SHIFT)
        change = np.where(flows["value"] != 0, (flows["value"] & tick) ^ old, np.uint64(0))
        flows["value"] ^= change
        flows["tag"] ^= change

    def establish(self) -> int:
        """Makes all flows in the table established, as packets in three seconds do; returns how many."""
        flows = self.maps.flows
        valid = flows["value"] & np.uint64(abi.FLOW_VALID) != 0
        mask = np.uint64(((1 << abi.FLOW_STATE_BITS) - 1) << abi.FLOW_STATE_SHIFT)
        state = np.uint64(abi.FlowState.ESTABLISHED << abi.FLOW_STATE_SHIFT)
        change = np.where(valid, (flows["value"] & mask) ^ state, np.uint64(0))
        flows["value"] ^= change
        flows["tag"] ^= change
        return int(np.count_nonzero(valid))

    def maintain(self) -> bool:
        """What the balancer does once a second; returns whether the table is now said to be crowded."""
        self.dataplane.maintain(time.monotonic())
        return bool(int(self.maps.settings["flags"][0]) & abi.SETTING_CROWDED)

    def by_flow(self, on: bool) -> None:
        """Whether all services always look into the flow table."""
        self.maps.services["flags"] = abi.SERVICE_BY_FLOW if on else 0

    def verdicts(self) -> dict[str, int]:
        """Packets by the name of their verdict, since the maps were made."""
        sums = self.maps.verdict_counts.sum(axis=0)
        return {verdict.name: int(sums[verdict.number]) for verdict in abi.verdicts()}

    def close(self) -> None:
        os.close(self.program)
        self.maps.close()


class Textbook:
    """The usual design, with an LRU map of the given number of entries."""

    def __init__(self, entries: int) -> None:
        self._fds = {
            "vips": libbpf.create_map(MapType.HASH, "vips", 8, 8, 64),
            "lru": libbpf.create_map(MapType.LRU_HASH, "lru", 16, 16, entries),
            "ring": libbpf.create_map(MapType.ARRAY, "ring", 4, 4, RING),
            "reals": libbpf.create_map(MapType.ARRAY, "reals", 4, 8, REALS),
            "counters": libbpf.create_map(_PERCPU_ARRAY, "counters", 4, 16, REALS),
        }
        macros = {f"FD_{name}": fd for name, fd in self._fds.items()}
        module: Module = compiler.compile_file(C_DIR / "textbook.c", macros)
        self.program = module.load("textbook", ProgramType.XDP)
        key = VIP4.packed + socket.htons(PORT).to_bytes(2, "little") + b"\x06\0"
        libbpf.update(self._fds["vips"], key, bytes(8))
        picks = maglev.build([real_identity(real) for real in reals(VIP4)], [1] * REALS, 1 << 16).tolist()
        for slot in range(RING):
            pick = picks[slot % len(picks)]
            libbpf.update(self._fds["ring"], slot.to_bytes(4, "little"), pick.to_bytes(4, "little"))
        for real in range(REALS):
            mac = bytes.fromhex(f"0200000001{real + 1:02x}")
            libbpf.update(self._fds["reals"], real.to_bytes(4, "little"), mac + bytes(2))

    def knows(self, flow: int) -> bool:
        """Whether the flow that the shaker makes of that number is in the LRU map."""
        source = int.from_bytes(IPv4Address("10.0.0.0").packed, "little") + flow & 0xFFFFFFFF
        port = 1024 + (flow >> 16) + flow & 0xFFFF  # in the shaker's byte order, which is the frame's
        key = struct.pack("<I4sHHI", source, VIP4.packed, port, socket.htons(PORT), 6)
        return libbpf.lookup(self._fds["lru"], key) is not None

    def close(self) -> None:
        for fd in (*self._fds.values(), self.program):
            os.close(fd)
