"""Takes flows of other balancers into the flow table, by a program in the kernel (xdp/learn.h).

So they are found a place by the very rules of packets' own flows, at the speed of those. Runs in a process of
its own; knows nothing of where the records come from.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vc5py.core.flowsync import Records
from vc5py.dataplane import abi, libbpf
from vc5py.dataplane.maps import LEARN_BATCH, Maps
from vc5py.dataplane.names import Names
from vc5py.dataplane.ticks import TickClock

_RESULTS = 8
_STRAY = np.uint8(abi.LearnResult.STRAY)
_SLOT_SHIFT = np.uint64(40)  # hash_slot in xdp/hash.h
_SERVICE_SHIFT = np.uint32(abi.FLOW_SERVICE_SHIFT)
_FRAME = bytes(64)


@dataclass(frozen=True, slots=True)
class Learned:
    """How many records had each result, by `abi.LearnResult`; and for every flow whose slot names another
    backend the index of the service (high 16 bits) and the bits that its slot is taken from (low 16 bits).
    """

    results: NDArray[np.int64]
    strays: NDArray[np.uint32]


class Importer:
    """`program`: file descriptor of vc5_learn."""

    def __init__(self, maps: Maps, names: Names, ticks: TickClock, program: int) -> None:
        self._batch, self._control = maps.learn_batch, maps.learn_control
        self._names = names
        self._tick_s = ticks.tick_s
        self._program = program

    def learn(self, records: Records) -> Learned:
        results = np.zeros(_RESULTS, dtype=np.int64)
        strays = [np.zeros(0, dtype=np.uint32)]
        owners, known = self._names.owners(records["identity"])
        results[abi.LearnResult.UNKNOWN] += len(records) - int(np.count_nonzero(known))
        records, owners = records[known], owners[known]
        for start in range(0, len(records), LEARN_BATCH):
            part = slice(start, start + LEARN_BATCH)
            result = self._run(records[part], owners[part])
            results += np.bincount(result & ~_STRAY, minlength=_RESULTS)
            stray = np.flatnonzero(result & _STRAY)
            bits = (records["hash"][part][stray] >> _SLOT_SHIFT).astype(np.uint32) & np.uint32(0xFFFF)
            strays.append(owners[part][stray] >> _SERVICE_SHIFT << np.uint32(16) | bits)
        return Learned(results, np.unique(np.concatenate(strays)))

    def _run(self, records: Records, owners: NDArray[np.uint32]) -> NDArray[np.uint8]:
        n = len(records)
        batch = self._batch[:n]
        for name in ("hash", "identity", "state"):
            batch[name] = records[name]
        batch["owner"] = owners
        age = records["age"]
        batch["age"] = np.minimum(np.rint(age / self._tick_s), 0x7FFF) if self._tick_s != 1.0 else age
        batch["result"] = abi.LearnResult.UNKNOWN
        self._control["next"] = 0
        while (left := n - int(self._control["next"][0])) > 0:
            libbpf.test_run(self._program, _FRAME, repeat=left)
        result: NDArray[np.uint8] = batch["result"].copy()
        return result
