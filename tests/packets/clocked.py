"""The data plane in the kernel with a clock that the test sets, and floods: for tests of long times and of
many packets. The benches of tests/unit/test_stability_model.py play here with real packets.
"""

from __future__ import annotations

import mmap
import os
import struct
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from tests.unit.test_stability_model import KEY, OUR_MAC, SIZES, VIPS, Bench, Connection
from vc5py.dataplane import abi, compiler, libbpf, maps
from vc5py.dataplane.libbpf import BPF_F_MMAPABLE, MapType
from vc5py.dataplane.links import Record
from vc5py.dataplane.maps import Sizes
from vc5py.dataplane.ports import PortTable
from vc5py.model import Protocol

_C = Path(__file__).with_name("c")
_TX = 3  # enum xdp_action
_SYN, _ACK = 0x02, 0x10
_SOURCE = slice(26, 30)  # of an IPv4 frame


def frame_of(connection: Connection, flags: int = _ACK) -> bytes:
    """Ethernet, IPv4 and TCP or UDP; `flags`: of TCP."""
    ports = struct.pack("!HH", connection.port, 80)
    if connection.protocol is Protocol.TCP:
        l4 = ports + struct.pack("!IIBBHHH", 1, 1, 5 << 4, flags, 1024, 0, 0)
    else:
        l4 = ports + struct.pack("!HH", 8, 0)
    addresses = connection.client.packed + VIPS[connection.service].packed
    ip = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(l4), 1, 0, 64, connection.protocol.number, 0)
    return bytes.fromhex(OUR_MAC.replace(":", "")) + b"\2\0\0\0\0\xfe\x08\0" + ip + addresses + l4


class Kernel:
    """The program over maps of its own. Ticks are jiffies, and jiffies are what `set_clock` says."""

    def __init__(self, sizes: Sizes = SIZES) -> None:
        self.maps = maps.create(sizes)
        clock = libbpf.create_map(MapType.ARRAY, "clock", 4, 8, 1, BPF_F_MMAPABLE)
        flood = libbpf.create_map(MapType.ARRAY, "flood", 4, 72, 1)
        stage = libbpf.create_map(MapType.PROG_ARRAY, "stage", 4, 4, 1)
        self._fds = [clock, flood, stage]
        self._clock = np.frombuffer(mmap.mmap(clock, mmap.PAGESIZE), dtype=np.uint64, count=1)
        macros = self.maps.macros() | {"FLOW_KEY": KEY.start, "FLOW_KEY_ODD": KEY.odd, "TICK_SHIFT": 0}
        with tempfile.TemporaryDirectory() as name:
            source = Path(name) / "clocked.c"
            source.write_bytes((_C / "clock.h").read_bytes() + (abi.XDP_DIR / "vc5.c").read_bytes())
            module = compiler.compile_file(source, macros | {"FD_clock": clock})
        self.ingress = module.load("vc5_ingress", compiler.ProgramType.XDP)
        flooder = compiler.compile_file(_C / "flood.c", {"FD_flood": flood, "FD_stage": stage})
        self._flooder = flooder.load("flood", compiler.ProgramType.XDP)
        libbpf.update(stage, bytes(4), self.ingress.to_bytes(4, "little"))
        self._fds += [self.ingress, self._flooder]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for fd in self._fds:
            os.close(fd)
        self.maps.close()

    def set_clock(self, tick: int) -> None:
        self._clock[0] = tick

    def clear(self) -> None:
        m = self.maps
        for array in (m.flows, m.services, m.backends, m.slots, m.backend_counts, m.services4, m.settings):
            array[:] = 0

    def verdicts(self) -> NDArray[np.uint64]:
        total: NDArray[np.uint64] = self.maps.verdict_counts.sum(axis=0)
        return total

    def counted(self, before: NDArray[np.uint64]) -> dict[str, int]:
        """What the verdicts' counters have gained since."""
        gained = (self.verdicts() - before).tolist()
        return {v.name: gained[v.number] for v in abi.verdicts() if gained[v.number]}

    def prepare_flood(self, frame: bytes, mask: int = 0xFFFFFFFF) -> None:
        """Frames like this one, whose clients differ in the bits of the mask."""
        libbpf.update(self._fds[1], bytes(4), frame[:54].ljust(64, b"\0") + mask.to_bytes(8, "little"))

    def run_flood(self, frame: bytes, packets: int) -> None:
        libbpf.test_run(self._flooder, frame, repeat=packets)

    def run_flood_of(self, frame: bytes, packets: int) -> None:
        """Packets of random clients, from the CPU of the caller."""
        self.prepare_flood(frame)
        self.run_flood(frame, packets)

    def flood(self, frame: bytes, packets: int) -> dict[str, int]:
        """That many packets of random clients; returns how many got each verdict."""
        before = self.verdicts()
        self.run_flood_of(frame, packets)
        return self.counted(before)


@dataclass
class KernelBench(Bench):
    """A bench whose packets are real ones. `kernel` is left as it is found: clear it before."""

    kernel: Kernel | None = None

    def __post_init__(self) -> None:
        assert self.kernel
        self.maps = self.kernel.maps
        super().__post_init__()

    def restart(self) -> None:
        super().restart()
        PortTable(self.maps).write({1: Record(OUR_MAC, exit=1)})

    def send(self, connection: Connection, syn: bool) -> int | None:
        assert self.kernel
        self.kernel.set_clock(self.tick())
        result = libbpf.test_run(self.kernel.ingress, frame_of(connection, _SYN if syn else _ACK), room=0)
        return result.data[5] if result.retval == _TX else None
