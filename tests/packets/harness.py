"""The data plane in the kernel, run one frame at a time by BPF_PROG_TEST_RUN.

Makes small maps of its own, compiles xdp/vc5.c over them, installs a world through `KernelDataplane` as
the balancer does, and says what happened to a frame: its verdict by what the counters gained, its action
and all of its bytes. Knows nothing of what should happen; that is the oracle's part.

Two interfaces are needed and neither sees a packet: the near one is the loopback interface, which a test run
comes from unless told otherwise; the far one is made in a network namespace of a thread of our own, and both
vanish with it.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from enum import IntEnum
from types import TracebackType
from typing import ParamSpec, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from tests.packets.world import BOND_MAC, OUR_MAC, RealSpec, ServiceSpec, Side, World
from vc5py.core.flowhash import FlowKey
from vc5py.core.identity import service_identity
from vc5py.dataplane import abi, compiler, libbpf, maps
from vc5py.dataplane.abi import FlowState
from vc5py.dataplane.kernel import KernelDataplane
from vc5py.dataplane.libbpf import TestRun
from vc5py.dataplane.links import Record
from vc5py.dataplane.policy import Policy
from vc5py.dataplane.ports import PortTable
from vc5py.dataplane.ticks import TickClock
from vc5py.model import IPAddress

KEY = FlowKey.derive(b"a secret of the tests")
FLOW_SETS = 1024
FROZEN = 40  # shifts all jiffies of the next hundred years away: the tick is always 0
BOND = 60  # an ifindex that is free
LOOPBACK = 1  # the ifindex of lo, in every network namespace
_CLONE_NEWNET = 0x40000000
CLOCK = TickClock(100)
_ENDLESS = 1 << 31
_METADATA = 216  # of 256 bytes of headroom, 40 are the kernel's
_MAX_TICK = (1 << abi.FLOW_TICK_BITS) - 1
SIZES = maps.Sizes(
    flow_sets=FLOW_SETS,
    services=128,
    backends=512,
    slot_lines=2048,
    service_sets4=256,
    service_sets6=256,
    cpus=maps.running_cpus(),
    interfaces=64,
)

ACTIONS = {verdict.name: verdict.action for verdict in abi.verdicts()}

P = ParamSpec("P")
R = TypeVar("R")


class XdpAction(IntEnum):
    """enum xdp_action (linux/bpf.h)."""

    ABORTED = 0
    DROP = 1
    PASS = 2
    TX = 3
    REDIRECT = 4


class TcAction(IntEnum):
    """TC_ACT_* (linux/pkt_cls.h)."""

    OK = 0
    SHOT = 2
    REDIRECT = 7


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one frame. `verdict` is None where none was counted."""

    verdict: str | None
    action: XdpAction | TcAction
    frame: bytes


@dataclass(frozen=True, slots=True)
class Entry:
    """A flow's entry. `age`: ticks since it was last seen, modulo 2^16; `second`: it is in its second set."""

    service: str
    real: RealSpec
    state: FlowState
    age: int = 0
    second: bool = False


class _OtherNetwork:
    """A thread in a network namespace of its own, which holds the far interface."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1)
        self.ifindex = self.call(self._prepare)

    @staticmethod
    def _prepare() -> int:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(_CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), "unshare: packet tests need root")
        subprocess.run(["ip", "link", "add", "far0", "type", "veth", "peer", "name", "far1"], check=True)
        return socket.if_nametoindex("far0")

    def call(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        return self._thread.submit(function, *args, **kwargs).result(timeout=60)

    def close(self) -> None:
        self._thread.shutdown()


class Kernel:
    """Compiled once, then any number of worlds and frames. `tick_shift`: log2 of jiffies a tick. `frags`: for
    frames in several buffers. `inherited`: maps that hold something already (`adopt`).
    """

    def __init__(
        self, tick_shift: int = FROZEN, *, frags: bool = False, inherited: maps.Maps | None = None
    ) -> None:
        self._tick_shift = tick_shift
        self.maps = inherited or maps.create(SIZES)
        self._ports = PortTable(self.maps)
        self._network = _OtherNetwork()
        self.ifindex = {Side.NEAR: LOOPBACK, Side.FAR: self._network.ifindex}
        macros = self.maps.macros() | {
            "FLOW_KEY": KEY.start,
            "FLOW_KEY_ODD": KEY.odd,
            "TICK_SHIFT": tick_shift,
            "FRAGS": int(frags),
        }
        module = compiler.compile_file(abi.XDP_DIR / "vc5.c", macros)
        self._ingress = module.load("vc5_ingress", compiler.ProgramType.XDP, frags=frags)
        self._egress = module.load("vc5_egress", compiler.ProgramType.TC)
        clock = compiler.compile_file(abi.XDP_DIR / "jiffies.c", {})
        self._jiffies = clock.load("vc5_jiffies", compiler.ProgramType.XDP)
        self._world: World | None = None
        self._installed: tuple[World, World | None] | None = None
        self._index_by_name: dict[str, int] = {}
        self._owners: dict[tuple[int, int], tuple[ServiceSpec, RealSpec]] = {}
        self.dataplane: KernelDataplane

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._network.close()
        for fd in (self._ingress, self._egress, self._jiffies):
            os.close(fd)
        self.maps.close()

    # The world

    def install(self, world: World, before: World | None = None) -> None:
        """Puts a world into empty maps, and no flow. Cheap where it is there already.

        `before`: the world that was there a moment ago, so that slots that differ are unstable.
        """
        if (world, before) != self._installed:
            self._forget_everything()
            self._begin(world)
            if before is not None:
                self.change(before)
            self.change(world)
            self._installed = world, before
        self.clear_flows()

    def _begin(self, world: World) -> None:
        policy = Policy(drop_fragments=world.drop_fragments)
        self.dataplane = KernelDataplane(self.maps, CLOCK, policy)
        records = self._records(world)
        self._network.call(self._ports.write, records)
        self._ports.forget_all_but(records)

    def adopt(self, world: World) -> None:
        """Takes over what is in the maps, as a start does, and makes it into this world."""
        self._begin(world)
        self.change(world)

    def _records(self, world: World) -> dict[int, Record]:
        records = {}
        for side, mac in OUR_MAC.items():
            bonded, cut = side in world.bond, side in world.cut
            index = self.ifindex[side]
            if bonded:
                records[index] = Record(mac, BOND, mtu=world.mtu(side))
                records[BOND] = Record(BOND_MAC, exit=None if cut else index, mtu=world.mtu(side))
            elif not cut:
                records[index] = Record(mac, exit=index, mtu=world.mtu(side))
        return records

    def change(self, world: World) -> None:
        """Makes the installed world into this one; flows stay."""
        for real in (real for service in world.services for real in service.reals):
            ifindex = BOND if real.side in world.bond else self.ifindex[real.side]
            self.dataplane.set_neighbour(real.address, real.neighbour(ifindex))
        self.dataplane.apply(world.desired())
        self.maps.settings["icmp_per_jiffy"] = _ENDLESS if world.answers else 0
        self._world, self._installed = world, None
        self._index_by_name, self._owners = {}, {}
        for service in world.services:
            for real in service.reals:
                how = abi.how_word(real.forwarding, real.load, outer6=real.address.version == 6)
                place = self.backend_index(service.name, real)
                self.maps.backends["how"][place] = how
                index = self._service_index(service.name)
                self._owners[index, place - self._base(index)] = service, real

    def _forget_everything(self) -> None:
        for array in (self.maps.services, self.maps.backends, self.maps.slots, self.maps.backend_counts):
            array[:] = 0
        for keys in (self.maps.services4, self.maps.services6):
            keys[:] = 0

    def clear_flows(self) -> None:
        self.maps.flows[:] = 0

    def _service(self, name: str) -> ServiceSpec:
        assert self._world is not None
        return self._world.service(name)

    def backend_index(self, service: str, real: RealSpec) -> int:
        """The index of the backend's record, as a probe's mark names it."""
        mark = self.dataplane.mark_of(self._service(service).backend(real))
        assert mark is not None
        return mark & ~abi.PROBE_MARK_MASK

    def _service_index(self, service: str) -> int:
        if service not in self._index_by_name:
            identity = np.uint64(service_identity(self._service(service).id))
            found = np.flatnonzero(self.maps.services["identity"] == identity)
            self._index_by_name[service] = int(found[0])
        return self._index_by_name[service]

    def _base(self, service_index: int) -> int:
        return int(self.maps.services["backends"][service_index]) & 0xFFFFFFFF

    # Flows

    def tick(self) -> int:
        """The present tick, 0 to 65535, by the kernel's own jiffies."""
        jiffies = int.from_bytes(libbpf.test_run(self._jiffies, bytes(64)).data[:8], "little")
        return jiffies >> self._tick_shift & _MAX_TICK

    def timeout(self, state: FlowState) -> int:
        """Ticks for which an idle entry of that state is kept."""
        return int(self.maps.settings["timeout"][0, state])

    def sets_of(self, flow_hash: int) -> tuple[int, int]:
        return flow_hash & FLOW_SETS - 1, flow_hash >> 24 & FLOW_SETS - 1

    def value_of(self, entry: Entry) -> int:
        """The C entry's word; its age counts back from the present tick."""
        service = self._service_index(entry.service)
        local = self.backend_index(entry.service, entry.real) - self._base(service)
        tick = self.tick() - entry.age & _MAX_TICK
        owner = service << abi.FLOW_SERVICE_SHIFT | local
        return abi.FLOW_VALID | tick << abi.FLOW_TICK_SHIFT | entry.state << abi.FLOW_STATE_SHIFT | owner

    def put(self, flow_hash: int, entry: Entry, way: int = 0, tear: int = 0) -> None:
        """Writes an entry; `tear` spoils that many of its tag's bits, as a torn write would."""
        self.put_word(self.sets_of(flow_hash)[entry.second], way, flow_hash ^ tear, self.value_of(entry))

    def free_way(self, flow_hash: int) -> int | None:
        """Where in its first set the flow could be put; None where that is full."""
        free = np.flatnonzero(self.maps.flows[self.sets_of(flow_hash)[0]]["value"] == 0)
        return int(free[0]) if len(free) else None

    def put_word(self, flow_set: int, way: int, flow_hash: int, value: int) -> None:
        self.maps.flows[flow_set, way] = (flow_hash ^ value, value)

    def hashes(self) -> NDArray[np.uint64]:
        """The hash of every valid entry, ascending."""
        flows = self.maps.flows
        used = flows["value"] & np.uint64(abi.FLOW_VALID) != 0
        found: NDArray[np.uint64] = np.sort((flows["tag"] ^ flows["value"])[used])
        return found

    def recorded(self) -> dict[int, tuple[str, IPAddress, FlowState]]:
        """Service, real and state of every flow in the table, by hash."""
        found = {}
        for tag, value in self.maps.flows[self.maps.flows["value"] != 0].tolist():
            entry = self._decode(value, second=False)
            found[tag ^ value] = (entry.service, entry.real.address, entry.state)
        return found

    def entries(self, flow_hash: int) -> list[Entry]:
        """All valid entries of a flow in its two sets; more than one would be a bug."""
        first, second = self.sets_of(flow_hash)
        found = []
        for flow_set in {first, second}:
            for tag, value in self.maps.flows[flow_set].tolist():
                if value & abi.FLOW_VALID and tag ^ value == flow_hash:
                    found.append(self._decode(value, second=flow_set != first))
        return found

    def entry(self, flow_hash: int) -> Entry | None:
        found = self.entries(flow_hash)
        assert len(found) < 2, f"a flow with two entries: {found}"
        return found[0] if found else None

    def _decode(self, value: int, second: bool) -> Entry:
        assert self._world is not None
        index = value >> abi.FLOW_SERVICE_SHIFT & (1 << abi.FLOW_SERVICE_BITS) - 1
        local = value & (1 << abi.FLOW_LOCAL_BITS) - 1
        service, real = self._owners[index, local]
        state = FlowState(value >> abi.FLOW_STATE_SHIFT & (1 << abi.FLOW_STATE_BITS) - 1)
        age = self.tick() - (value >> abi.FLOW_TICK_SHIFT & _MAX_TICK) & _MAX_TICK
        return Entry(service.name, real, state, age, second)

    # Frames

    def run(self, frame: bytes, side: Side = Side.NEAR, *, bare: bool = False) -> Outcome:
        """One received frame through the XDP program, with what the counters gained checked on the way.

        `bare`: without any headroom.
        """
        verdicts, counts = self._verdicts(), self._backend_counts()
        result = self._test_run(frame, side, _METADATA if bare else 0)
        outcome = Outcome(_gained(verdicts, self._verdicts()), XdpAction(result.retval), result.data)
        assert outcome.verdict is not None, "the frame was not counted"
        gained = self._backend_counts() - counts
        expected = [1, len(frame)] if ACTIONS[outcome.verdict] is abi.Action.FORWARD else [0, 0]
        assert gained.sum(axis=0).tolist() == expected, "the backends' counters disagree with the action"
        return outcome

    def run_many(self, frames: list[bytes], side: Side = Side.NEAR, *, bare: bool = False) -> list[Outcome]:
        """Many received frames, quickly: of the counters only the verdicts' are looked at."""
        metadata = _METADATA if bare else 0
        if side is Side.NEAR:
            return self._run_many(frames, 0, metadata)
        return self._network.call(self._run_many, frames, self.ifindex[side], metadata)

    def _run_many(self, frames: list[bytes], ifindex: int, metadata: int) -> list[Outcome]:
        """`ifindex`: 0 is the loopback's."""
        names = [verdict.name for verdict in abi.verdicts()]
        counts, outcomes = self.maps.verdict_counts, []
        actions, usual = list(XdpAction), not ifindex and not metadata
        ahead = bytes(metadata)
        for frame in frames:
            counts[:] = 0
            ctx = None
            if not usual:
                ctx = struct.pack("<6I", metadata, metadata + len(frame), 0, ifindex, 0, 0)
            result = libbpf.test_run(self._ingress, ahead + frame, ctx=ctx)
            verdict = names[int(counts.argmax()) % abi.VERDICT_SLOTS]
            outcomes.append(Outcome(verdict, actions[result.retval], result.data[metadata:]))
        return outcomes

    def run_egress(self, frame: bytes, mark: int) -> Outcome:
        """One frame of our own through the TC program, on its way out of the near interface."""
        before = self._verdicts()
        # struct __sk_buff (linux/bpf.h): the mark at 8, ifindex at 40
        ctx = struct.pack("<8xI28xI", mark, LOOPBACK)
        result = libbpf.test_run(self._egress, frame, ctx=ctx)
        return Outcome(_gained(before, self._verdicts()), TcAction(result.retval), result.data)

    def run_many_egress(self, frames: list[tuple[bytes, int]]) -> list[Outcome]:
        """Many frames of our own, each with its mark, quickly."""
        names = [verdict.name for verdict in abi.verdicts()]
        counts, outcomes = self.maps.verdict_counts, []
        for frame, mark in frames:
            counts[:] = 0
            result = libbpf.test_run(self._egress, frame, ctx=struct.pack("<8xI28xI", mark, LOOPBACK))
            verdict = names[int(counts.argmax()) % abi.VERDICT_SLOTS] if counts.any() else None
            outcomes.append(Outcome(verdict, TcAction(result.retval), result.data))
        return outcomes

    def run_raw(self, frame: bytes) -> bytes:
        """The frame after the XDP program, quickly: nothing else is looked at."""
        return libbpf.test_run(self._ingress, frame, room=0).data

    def flood(self, frames: list[bytes]) -> dict[str, int]:
        """Many received frames, quickly; returns how many got each verdict."""
        before = self._verdicts()
        for frame in frames:
            libbpf.test_run(self._ingress, frame, room=0)
        gained = (self._verdicts() - before).tolist()
        return {verdict.name: gained[verdict.number] for verdict in abi.verdicts() if gained[verdict.number]}

    def _test_run(self, frame: bytes, side: Side, metadata: int = 0) -> TestRun:
        """`metadata`: bytes in front of the frame that the driver keeps for itself."""
        if side is Side.NEAR and not metadata:
            return libbpf.test_run(self._ingress, frame)
        # struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex
        ifindex = 0 if side is Side.NEAR else self.ifindex[side]
        ctx = struct.pack("<6I", metadata, metadata + len(frame), 0, ifindex, 0, 0)
        if side is Side.NEAR:
            result = libbpf.test_run(self._ingress, bytes(metadata) + frame, ctx=ctx)
        else:
            result = self._network.call(libbpf.test_run, self._ingress, bytes(metadata) + frame, ctx=ctx)
        return replace(result, data=result.data[metadata:])

    def _verdicts(self) -> NDArray[np.uint64]:
        total: NDArray[np.uint64] = self.maps.verdict_counts.sum(axis=0)
        return total

    def _backend_counts(self) -> NDArray[np.uint64]:
        """Shape (backends, 2): packets, bytes."""
        counts = self.maps.backend_counts
        return np.stack([counts["packets"].sum(axis=0), counts["bytes"].sum(axis=0)], axis=1)


def _gained(before: NDArray[np.uint64], after: NDArray[np.uint64]) -> str | None:
    """The one verdict that was counted, once."""
    gained = after - before
    hit = np.flatnonzero(gained)
    if not len(hit):
        return None
    assert len(hit) == 1 and gained[hit[0]] == 1, f"verdicts counted: {dict(enumerate(gained.tolist()))}"
    return abi.verdicts()[int(hit[0])].name
