"""Starts of the driver in a network namespace of its own, each killed at a moment that is said before.

`python -m tests.unit.starts DIRECTORY INTERFACE...` takes a moment on each line of stdin, and the interfaces
of this start if it isn't one on all of them. It says on one line of stdout, as JSON, what came of it: whether
it died at that moment, or failed; the interfaces that have a program, and how many of these programs are
pinned and have their maps pinned, so that the next start can find them; of a start that came to its end, the
flows that it has lost, and what is pinned. After every start a flow begins at each interface.

The programs are stand-ins that do nothing but use the maps, so that a start takes some milliseconds; all else
is what `vc5py run` does.
"""

from __future__ import annotations

import asyncio
import ctypes
import itertools
import json
import logging
import mmap
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import numpy as np

from vc5py.dataplane import abi, compiler, flows, libbpf, pins, ticks
from vc5py.dataplane.compiler import ProgramType
from vc5py.dataplane.driver import Driver, Options
from vc5py.dataplane.netlink import Netlink, XdpMode
from vc5py.dataplane.takeover import Takeover
from vc5py.errors import DataplaneError
from vc5py.model import (
    BackendId,
    BackendState,
    Config,
    Desired,
    Protocol,
    Real,
    Service,
    ServiceState,
    VirtualServiceId,
)

VIP, REAL = IPv4Address("192.0.2.1"), IPv4Address("10.9.0.2")
SERVICE = Service("web", "", (VIP,), (80,), (Protocol.TCP,), (Real(REAL),), 1, ())
_UP = BackendState(BackendId("web", VIP, REAL), up=True, weight=1)
DESIRED = Desired((ServiceState(VirtualServiceId("web", VIP), ((80, Protocol.TCP),), (_UP,)),))
CLOCK = ticks.TickClock(100)
# Of the flow table: most starts need another one than the start before. There is room for all flows.
SIZES = (1 << 14, 1 << 15, 1 << 16, 1 << 16)
_PROGRAM = "vc5_ingress"
_CLONE_NEWNET = 0x40000000


@dataclass(frozen=True, slots=True)
class Moment:
    """Before the nth call of a function; of a program's pin or of others, where it is a method of paths."""

    owner: object
    name: str
    nth: int = 1
    program: bool | None = None

    def concerns(self, subject: object) -> bool:
        return self.program is None or str(subject).rpartition("/")[2].startswith(_PROGRAM) is self.program


MOMENTS: Mapping[str, Moment | None] = {
    "pin program": Moment(pins, "pin_program"),
    "prepare": Moment(Takeover, "prepare"),
    "pin maps": Moment(Path, "mkdir", 2),  # the first is the bpf directory itself
    "pin more maps": Moment(libbpf, "pin", 9),
    "attach": Moment(Netlink, "attach_xdp"),
    "attach egress": Moment(Netlink, "attach_egress"),
    "attach second": Moment(Netlink, "attach_xdp", 2),
    "attach second egress": Moment(Netlink, "attach_egress", 2),
    "finish": Moment(Takeover, "finish"),
    "unlink maps": Moment(Path, "unlink", program=False),
    "unlink more maps": Moment(Path, "unlink", 9, program=False),
    "rename maps": Moment(Path, "rename", program=False),
    "leave": Moment(Driver, "_leave_other_interfaces"),
    "rename program": Moment(Path, "rename", program=True),
    "unlink programs": Moment(Path, "unlink", program=True),
    "take off": Moment(Netlink, "detach_xdp"),
    "take off second": Moment(Netlink, "detach_xdp", 2),
    "forget": Moment(pins, "forget_programs"),
    "start": None,  # comes to its end, and is killed then
    "stop": None,  # comes to its end, and stops in order
}
STOPPING = ("take off", "take off second", "forget", "stop")


def die_at(moment: Moment) -> None:
    """From now on."""
    really, calls = getattr(moment.owner, moment.name), itertools.count(1)

    def called(*args: Any, **more: Any) -> Any:
        if moment.concerns(args[0]) and next(calls) == moment.nth:
            os.kill(os.getpid(), signal.SIGKILL)
        return really(*args, **more)

    setattr(moment.owner, moment.name, called)


@dataclass(frozen=True, slots=True)
class StandIn:
    """In place of a compiled module."""

    flows: int

    def load(self, function: str, kind: ProgramType, *, frags: bool = False) -> int:
        """r1 = the map; r0 = pass; exit."""
        passes = 2 if kind is ProgramType.XDP else 0
        code = ((0x18, 0x11, self.flows), (0, 0, 0), (0xB7, 0, passes), (0x95, 0, 0))
        text = b"".join(struct.pack("<BBhi", op, registers, 0, value) for op, registers, value in code)
        return libbpf.load_program(kind.value, function, text, 0)


class Starts:
    def __init__(self, directory: Path, interfaces: tuple[str, ...]) -> None:
        self._state_dir, self._bpf_dir = directory / "state", directory / "bpf" / "vc5py"
        self._interfaces = interfaces
        self._sizes = itertools.cycle(SIZES)
        self._flows: set[int] = set()
        self._names = (n * 0x9E3779B97F4A7C15 % (1 << 64) for n in itertools.count(1))

    def run(self, name: str, *interfaces: str) -> dict[str, object]:
        size, moment = next(self._sizes), MOMENTS[name]
        child = os.fork()
        if not child:
            self._start(name, size, moment, interfaces or self._interfaces)
        _, status = os.waitpid(child, 0)
        programs = asyncio.run(self._programs())
        known = pins.programs(self._bpf_dir)
        tables = [table for program in programs for table in self._tables(known.get(program, -1))]
        for fd in known.values():
            os.close(fd)
        lost = self._flows - set().union(*map(recorded, tables)) if status == 0 and tables else set()
        for table in tables:
            self._flows.add(begin_flow(table, next(self._names)))
        return {
            "died": os.WIFSIGNALED(status),
            "failed": os.WIFEXITED(status) and status != 0,
            "attached": len(programs),
            "found": len(tables),
            "lost": len(lost),
            "pins": sorted(path.name for path in self._bpf_dir.iterdir()) if status == 0 else [],
        }

    def _start(self, name: str, size: int, moment: Moment | None, interfaces: Sequence[str]) -> None:
        """In a process of its own, which ends."""
        if moment is not None:
            die_at(moment)
        try:
            asyncio.run(self._run(size, interfaces, stop=name in STOPPING))
        except DataplaneError as error:
            print(f"{name}: {error}", file=sys.stderr)
            os._exit(1)
        os._exit(0)

    async def _run(self, size: int, interfaces: Sequence[str], *, stop: bool) -> None:
        options = Options(interfaces, self._bpf_dir, XdpMode.GENERIC, self._state_dir)
        async with Driver.open(Config((SERVICE,), flows=size), options) as driver:
            driver.dataplane.apply(DESIRED)
            await driver.attach()
            if stop:
                await driver.detach()

    async def _programs(self) -> list[int]:
        async with Netlink.open() as netlink:
            return [program for _, program in await netlink.interfaces_with_xdp()]

    def _tables(self, program: int) -> Iterator[np.ndarray[Any, Any]]:
        """The flow table that a program uses, where that is pinned and the program, too."""
        used = libbpf.program_maps(program) if program >= 0 else frozenset()
        for directory in sorted(self._bpf_dir.iterdir()):
            if directory.is_dir() and pins.flow_table_id(directory) in used:
                yield table_in(directory)
                return


def table_in(directory: Path) -> np.ndarray[Any, Any]:
    fd = libbpf.get_pinned(directory / "flows")
    size = libbpf.map_info(fd).value_size
    memory = mmap.mmap(fd, -(-size // mmap.PAGESIZE) * mmap.PAGESIZE)
    os.close(fd)
    return np.frombuffer(memory, np.dtype((abi.FLOW_ENTRY, abi.FLOW_WAYS)), size // (16 * abi.FLOW_WAYS))


def recorded(table: np.ndarray[Any, Any]) -> set[int]:
    """The names of the flows in a table."""
    used = table["value"] & np.uint64(abi.FLOW_VALID) != 0
    return set((table["value"] ^ table["tag"])[used].tolist())


def begin_flow(table: np.ndarray[Any, Any], name: int) -> int:
    """What the program does; returns its name."""
    state = int(abi.FlowState.ESTABLISHED) << abi.FLOW_STATE_SHIFT
    value = abi.FLOW_VALID | CLOCK.now() << abi.FLOW_TICK_SHIFT | state | flows.owner(0, 0)
    timeouts = np.full(abi.FLOW_STATES, 0x7FFF, dtype=np.uint16)
    hashes, values = (np.array([word], dtype=np.uint64) for word in (name, value))
    assert flows.merge(table, hashes, values, timeouts, CLOCK.now()) == (1, 0)
    return name


def main(directory: Path, interfaces: tuple[str, ...]) -> None:
    logging.disable(logging.WARNING)
    assert ctypes.CDLL(None).unshare(_CLONE_NEWNET) == 0
    for name in interfaces:
        subprocess.run(f"ip link add {name} up type veth peer name peer-{name}".split(), check=True)
    compiler.compile_file = lambda path, macros: StandIn(macros["FD_flows"])  # type: ignore[assignment,return-value]
    ticks.measure = lambda: CLOCK
    starts = Starts(directory, interfaces)
    for line in sys.stdin:
        print(json.dumps(starts.run(*line.rstrip().split(","))), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), tuple(sys.argv[2:]))
