"""The tables that lead from (VIP, port, protocol) to a service: places for keys, so that no set overflows.

An entry may be in either of two sets (xdp/services.h). What is in use is never moved away from where it is
found: an entry that makes room for another is written to its other place first.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from vc5py.core.flowhash import mix
from vc5py.dataplane import abi
from vc5py.errors import DataplaneError
from vc5py.model import IPAddress


@dataclass(frozen=True, slots=True, order=True)
class ServiceKey:
    """Port and protocol 0 stand for the VIP itself. `protocol` as numbered by IANA."""

    vip: IPAddress
    port: int
    protocol: int


def _words(key: ServiceKey) -> tuple[int, ...]:
    """What the C hashes: for IPv4 one word, for IPv6 the address's two words and the key."""
    word = abi.service_key(key.port, key.protocol)
    packed = key.vip.packed
    if len(packed) == 4:
        return (word | int.from_bytes(packed, "little"),)
    return int.from_bytes(packed[:8], "little"), int.from_bytes(packed[8:], "little"), word


def _hash(words: tuple[int, ...]) -> int:
    h = 0
    for word in words:
        h = mix(h, word)
    return mix(h, 0)


class ServiceMap:
    """Keys and values of one IP version, over a view of shape (sets, ways)."""

    def __init__(self, view: NDArray[Any]) -> None:
        self._view = view
        self._places: dict[tuple[int, ...], tuple[int, int]] = {}
        for index in range(len(view)):
            for way in range(view.shape[1]):
                if view["key"][index, way]:
                    self._places[self._words_at(index, way)] = (index, way)

    def _words_at(self, index: int, way: int) -> tuple[int, ...]:
        entry = self._view[index, way]
        vip = tuple(int(word) for word in entry["vip"]) if "vip" in (entry.dtype.names or ()) else ()
        return (*vip, int(entry["key"]))

    def set(self, key: ServiceKey, value: int) -> None:
        """Adds a key or changes its value. DataplaneError where there is no room."""
        self.put(_words(key), value)

    def items(self) -> Iterator[tuple[tuple[int, ...], int]]:
        """Every key, as the words it is stored as, with its value."""
        for words, place in list(self._places.items()):
            yield words, int(self._view["value"][place])

    def put(self, words: tuple[int, ...], value: int) -> None:
        """As `set`, of a key in the words it is stored as."""
        place = self._places.get(words)
        if place is None:
            place = self._places[words] = self._make_room(words)
        self._write(place, words, value)

    def _write(self, place: tuple[int, int], words: tuple[int, ...], value: int) -> None:
        """The key last: it makes the entry valid. An entry of another key is made invalid first, or its
        packets would be sent to this one's service.
        """
        if self._words_at(*place) != words:
            self._view["key"][place] = 0
            if len(words) > 1:
                self._view["vip"][place] = words[:2]
        self._view["value"][place] = value
        self._view["key"][place] = words[-1]

    def delete(self, words: tuple[int, ...]) -> None:
        place = self._places.pop(words)
        self._view["key"][place] = 0

    def delete_all_but(self, wanted: frozenset[ServiceKey]) -> None:
        keep = {_words(key) for key in wanted}
        for words in list(self._places):
            if words not in keep:
                self.delete(words)

    def _sets(self, words: tuple[int, ...]) -> tuple[int, int]:
        h, mask = _hash(words), len(self._view) - 1
        return h & mask, h >> 40 & mask

    def _free_way(self, index: int) -> tuple[int, int] | None:
        for way in range(self._view.shape[1]):
            if not self._view["key"][index, way]:
                return index, way
        return None

    def _make_room(self, words: tuple[int, ...]) -> tuple[int, int]:
        sets = self._sets(words)
        for index in sets:
            place = self._free_way(index)
            if place is not None:
                return place
        for index in sets:
            for way in range(self._view.shape[1]):
                resident = self._words_at(index, way)
                for other in self._sets(resident):
                    place = self._free_way(other)
                    if place is not None:
                        self._write(place, resident, int(self._view["value"][index, way]))
                        self._places[resident] = place
                        return index, way
        raise DataplaneError(f"no room for {len(self._places) + 1} (VIP, port, protocol)")


def carry_over(old: NDArray[Any], new: NDArray[Any]) -> None:
    """Copies all entries into a (larger, empty) view."""
    target = ServiceMap(new)
    for words, value in ServiceMap(old).items():
        target.put(words, value)


def sets_for(keys: int, ways: int) -> int:
    """A power of two of sets in which that many keys find room: a load of a quarter at most."""
    return 1 << max(4, (4 * keys // ways).bit_length())
