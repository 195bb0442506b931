"""What the maps count, by backend: taken at one moment, put together for whoever asks for a backend.

With a hundred thousand backends most of the time would go into making values that nobody looks at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from vc5py.dataplane import abi
from vc5py.dataplane.base import Counters, Traffic
from vc5py.dataplane.housekeeper import Housekeeper
from vc5py.dataplane.maps import Maps
from vc5py.model import BackendId

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a backend is: its record, and what its flows' entries say: service index and local index."""

    record: int
    index: int
    local: int


class ByBackend(Mapping[BackendId, _T], Generic[_T]):
    """A value for each backend, by its place; `value` reads what doesn't change any more."""

    def __init__(self, places: dict[BackendId, Place], value: Callable[[Place], _T]) -> None:
        self._places = places
        self._value = value

    def __getitem__(self, backend: BackendId) -> _T:
        return self._value(self._places[backend])

    def __iter__(self) -> Iterator[BackendId]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def _traffic(maps: Maps) -> Callable[[Place], Traffic]:
    packets: NDArray[np.uint64] = maps.backend_counts["packets"].sum(axis=0)
    octets: NDArray[np.uint64] = maps.backend_counts["bytes"].sum(axis=0)
    return lambda place: Traffic(int(packets[place.record]), int(octets[place.record]))


def _flows(housekeeper: Housekeeper) -> Callable[[Place], int]:
    counted = housekeeper.counted
    if counted is None:
        return lambda place: 0
    return lambda place: counted.count_of(place.index, place.local)


def read(maps: Maps, housekeeper: Housekeeper, places: dict[BackendId, Place]) -> Counters:
    """`places`: where each backend is now; not kept."""
    places = places.copy()
    sums = maps.verdict_counts.sum(axis=0)
    return Counters(
        traffic=ByBackend(places, _traffic(maps)),
        verdicts={verdict.name: int(sums[verdict.number]) for verdict in abi.verdicts()},
        flows=ByBackend(places, _flows(housekeeper)),
        flows_at=housekeeper.counted_at,
    )
