"""The data plane's maps: made to the configuration's size, pinned, adopted after a restart.

Maps are pinned in `<bpf_dir>/<layout hash>/`, so that a program with another layout never reads them, and
whatever outlives the control plane (packets, flows, counters) is found again. Knows the maps' shapes and
sizes; not what their contents mean.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vc5py.dataplane import abi, libbpf
from vc5py.dataplane.libbpf import BPF_F_MMAPABLE, MapType
from vc5py.errors import DataplaneError

# Up to this size an array is one single value, which a program addresses like memory (ELEMENT in xdp/maps.h);
# the verifier allows that up to half a gigabyte. A map that is adopted was made by the same rule.
DIRECT_MAX_BYTES = 1 << 28

LEARN_BATCH = 1 << 12  # flows of other balancers that are taken into the flow table in one go

_USUAL_MOUNT = Path("/sys/fs/bpf")
_POINTER_BYTES = 8  # of a devmap's entries, to the kernel

_ARRAYS: Mapping[str, np.dtype[np.void]] = {
    "flows": np.dtype((abi.FLOW_ENTRY, abi.FLOW_WAYS)),
    "services": abi.SERVICE,
    "backends": abi.BACKEND,
    "slots": abi.SLOT_LINE,
    "backend_counts": abi.BACKEND_COUNT,
    "verdict_counts": abi.VERDICT_COUNTS,
    "interfaces": abi.INTERFACE,
    "settings": abi.SETTINGS,
    "icmp_budgets": abi.ICMP_BUDGET,
    "flow_log": abi.FLOW_ENTRY,
    "flow_log_heads": abi.FLOW_LOG_HEAD,
    "learn_batch": abi.LEARNED,
    "learn_control": abi.LEARN_CONTROL,
    "services4": np.dtype((abi.SERVICE_ENTRY4, abi.SERVICE_WAYS4)),
    "services6": np.dtype((abi.SERVICE_ENTRY6, abi.SERVICE_WAYS6)),
}


@dataclass(frozen=True, slots=True)
class Sizes:
    """Numbers of entries. `flow_sets`, the two `service_sets` and `log` are powers of two; `log` is for each
    CPU, and 1 says that there is no log: flows are not shared.
    """

    flow_sets: int
    services: int
    backends: int
    slot_lines: int
    service_sets4: int
    service_sets6: int
    cpus: int
    interfaces: int
    log: int = 1

    def at_least(self, other: Sizes) -> Sizes:
        """No smaller than the other in anything that indices point into, so that all of it can be copied."""
        kept = ("services", "backends", "slot_lines", "service_sets4", "service_sets6", "interfaces")
        return replace(self, **{name: max(getattr(self, name), getattr(other, name)) for name in kept})

    def serve(self, wanted: Sizes) -> bool:
        """Whether maps of these sizes do where those are wanted. Many small logs are no large one."""
        same_flows = self.flow_sets == wanted.flow_sets
        log = wanted.log == 1 or self.log >= wanted.log
        return same_flows and log and all(self.entries(name) >= wanted.entries(name) for name in NAMES)

    def bytes(self, name: str) -> int:
        """Memory that the map of that name takes, as the kernel allocates it at once."""
        entry = _ARRAYS[name].itemsize if name in _ARRAYS else _POINTER_BYTES
        return self.entries(name) * entry

    def entries(self, name: str) -> int:
        """How many entries the map of that name has."""
        return {
            "flows": self.flow_sets,
            "services": self.services,
            "backends": self.backends,
            "slots": self.slot_lines,
            "backend_counts": self.backends * self.cpus,
            "verdict_counts": self.cpus,
            "interfaces": self.interfaces,
            "settings": 1,
            "icmp_budgets": self.cpus,
            "flow_log": self.cpus * self.log,
            "flow_log_heads": self.cpus,
            "learn_batch": LEARN_BATCH if self.log > 1 else 1,
            "learn_control": 1,
            "services4": self.service_sets4,
            "services6": self.service_sets6,
            "ports": self.interfaces,
        }[name]


def running_cpus() -> int:
    """Up to which number CPUs run now (`/sys/devices/system/cpu/online`, as "0-7"), as a power of two. The
    kernel of a virtual machine may be prepared for many times as many: counters for all of those would be
    most of the memory.
    """
    text = Path("/sys/devices/system/cpu/online").read_text(encoding="ascii").strip()
    return 1 << int(text.replace(",", "-").split("-")[-1]).bit_length()


def _create(name: str, entries: int) -> int:
    if name == "ports":
        return libbpf.create_map(MapType.DEVMAP, name, 4, 4, entries)
    size = _ARRAYS[name].itemsize
    if _is_direct(name, entries):
        size, entries = size * entries, 1
    return libbpf.create_map(MapType.ARRAY, name, 4, size, entries, BPF_F_MMAPABLE)


def _is_direct(name: str, entries: int) -> bool:
    return _ARRAYS[name].itemsize * entries <= DIRECT_MAX_BYTES


NAMES = (*_ARRAYS, "ports")


class Maps:
    """All maps, open: file descriptors by name, and the arrays as numpy views of the shared memory.

    A view's element is one map entry; `flows` has shape (sets, ways), `backend_counts` (cpus, backends),
    `flow_log` (cpus, entries).
    """

    def __init__(self, fds: Mapping[str, int], sizes: Sizes) -> None:
        self.fds = dict(fds)
        self.sizes = sizes
        self.flows = self._view("flows")
        self.services = self._view("services")
        self.backends = self._view("backends")
        self.slots = self._view("slots")["slot"]
        self.backend_counts = self._view("backend_counts").reshape(sizes.cpus, sizes.backends)
        self.verdict_counts = self._view("verdict_counts")["packets"]
        self.interfaces = self._view("interfaces")
        self.settings = self._view("settings")
        self.flow_log = self._view("flow_log").reshape(sizes.cpus, sizes.log)
        self.flow_log_heads = self._view("flow_log_heads")
        self.learn_batch = self._view("learn_batch")
        self.learn_control = self._view("learn_control")
        self.services4 = self._view("services4")
        self.services6 = self._view("services6")

    def _view(self, name: str) -> NDArray[np.void]:
        dtype, entries = _ARRAYS[name], self.sizes.entries(name)
        size = entries * dtype.itemsize
        pages = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        memory = mmap.mmap(self.fds[name], pages)
        return np.frombuffer(memory, dtype=dtype, count=entries)

    def macros(self) -> dict[str, int]:
        """What the C file needs to know of the maps."""
        entries = {name: self.sizes.entries(name) for name in _ARRAYS}
        direct = {f"DIRECT_{name}": int(_is_direct(name, n)) for name, n in entries.items()}
        counts = {f"COUNT_{name}": n for name, n in entries.items()}
        return (
            {f"FD_{name}": fd for name, fd in self.fds.items()}
            | direct
            | counts
            | {
                "FLOW_SETS": self.sizes.flow_sets,
                "FLOW_LOG": self.sizes.log if self.sizes.log > 1 else 0,
                "BACKEND_CAPACITY": self.sizes.backends,
                "STRIPE_MASK": (1 << self.sizes.cpus.bit_length() - 1) - 1,
                "SERVICE_SETS4": self.sizes.service_sets4,
                "SERVICE_SETS6": self.sizes.service_sets6,
            }
        )

    def close(self) -> None:
        for fd in self.fds.values():
            os.close(fd)


def create(sizes: Sizes) -> Maps:
    """New maps, not pinned: they are gone with the last reference."""
    return Maps({name: _create(name, sizes.entries(name)) for name in NAMES}, sizes)


def prepare_directory(bpf_dir: Path) -> Path:
    """Makes `bpf_dir`, which must be on a bpf filesystem; returns where pins of this layout are in it."""
    point = _USUAL_MOUNT if bpf_dir.is_relative_to(_USUAL_MOUNT) else bpf_dir
    advice = f"{bpf_dir} is not on a bpf filesystem: mount -t bpf bpf {point}"
    try:
        bpf_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if point.exists() and not _is_bpffs(point):  # sysfs takes no directories
            raise DataplaneError(advice) from error
        raise DataplaneError(f"can't make {bpf_dir}: {error.strerror}") from error
    if not _is_bpffs(bpf_dir):
        raise DataplaneError(advice)
    return bpf_dir / abi.layout_hash()


def _is_bpffs(path: Path) -> bool:
    best, kind = "", ""
    resolved = str(path.resolve())
    for line in Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines():
        _, point, fstype, *_ = line.split(" ")
        inside = resolved == point or resolved.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):
            best, kind = point, fstype
    return kind == "bpf"


def _open_pinned(directory: Path) -> tuple[dict[str, int], Sizes] | None:
    """The maps of an earlier run, or None where there are none or not all."""
    if not all((directory / name).exists() for name in NAMES):
        return None
    fds = {name: libbpf.get_pinned(directory / name) for name in NAMES}
    entries = {name: _entries_of(name, fd) for name, fd in fds.items()}
    sizes = Sizes(
        flow_sets=entries["flows"],
        services=entries["services"],
        backends=entries["backends"],
        slot_lines=entries["slots"],
        service_sets4=entries["services4"],
        service_sets6=entries["services6"],
        cpus=entries["verdict_counts"],
        interfaces=entries["interfaces"],
        log=entries["flow_log"] // entries["verdict_counts"],
    )
    return fds, sizes


def _entries_of(name: str, fd: int) -> int:
    """Of a map made by `_create`, however it is laid out."""
    info = libbpf.map_info(fd)
    entry = _ARRAYS[name].itemsize if name in _ARRAYS else info.value_size
    return info.max_entries * info.value_size // entry


def open_or_create(
    bpf_dir: Path, wanted: Sizes, place: Path | None = None, *, fresh: bool = False
) -> tuple[Maps, Maps | None]:
    """Adopts the pinned maps where they are large enough, else makes new ones.

    `place`: the directory of the pins; None: the one named after the layout. `fresh`: make new ones anyhow.
    Returns the maps to use and, where those are new and there were old ones, the old ones, whose contents
    the caller carries over.
    """
    found = _open_pinned(place or prepare_directory(bpf_dir))
    if found is None:
        return create(wanted), None
    old = Maps(*found)
    serves = old.sizes.serve(wanted) and not fresh
    return (old, None) if serves else (create(wanted.at_least(old.sizes)), old)
