"""The backends' records in the maps: how packets get to each, and whether.

Knows one record at a time, by its index, and where the reals are; not which service has which. What changes
together is in one word and is written in one store.
"""

from __future__ import annotations

from ipaddress import ip_address

from vc5py.dataplane import abi
from vc5py.dataplane.base import Neighbour
from vc5py.dataplane.maps import Maps
from vc5py.model import BackendState, ForwardMode, IPAddress

_L2 = abi.MODES[ForwardMode.L2]


class Records:
    def __init__(self, maps: Maps) -> None:
        backends = maps.backends
        self._all = backends
        self._counts = maps.backend_counts
        self._link, self._place, self._how = backends["link"], backends["place"], backends["how"]
        self._source, self._destination = backends["source"], backends["destination"]
        self.identity = backends["identity"]
        self.neighbours: dict[IPAddress, Neighbour] = {}

    def clear(self, base: int, room: int) -> None:
        self._all[base : base + room] = 0
        self._counts[:, base : base + room] = 0

    def copy(self, old: int, new: int, length: int) -> None:
        """The records and counters of a run into another one."""
        for array in (self._all, self._counts.T):
            array[new : new + length] = array[old : old + length]

    def begin(self, index: int) -> None:
        """A new backend's counters begin at 0, and so does its load."""
        self._counts[:, index] = 0
        self._how[index] = 0

    def flags(self, index: int) -> int:
        return int(self._link[index]) >> 48

    def is_up(self, index: int) -> bool:
        return bool(self.flags(index) & abi.BACKEND_UP)

    def write_forwarding(self, index: int, backend: BackendState, identity: int) -> None:
        """How packets get there, in one store: what a packet sees of it and of the flags is checked to fit
        together (tunnel.h, way_open), whichever of the two is written first.
        """
        self.identity[index] = identity
        if backend.forwarding.mode is not ForwardMode.L2:
            self._destination[index] = backend.id.real.packed
        self.write_load(index, backend, int(self._how[index]) >> 48)  # loaded as it was

    def write_load(self, index: int, backend: BackendState, load: int) -> None:
        outer6 = backend.id.real.version == 6
        self._how[index] = abi.how_word(backend.forwarding, load, outer6=outer6)

    def take_off(self, index: int) -> None:
        """No packet goes there any more, and no flow is learned for it."""
        self._link[index] = abi.BACKEND_RESTING << 48

    def write_link(self, index: int, up: bool, real: IPAddress) -> None:
        """Whether packets go there, and where that is."""
        neighbour = self.neighbours.get(real)
        mode = int(self._how[index]) & abi.MODE_OUTER6 - 1
        flags, mac = (abi.BACKEND_UP if up else 0), 0
        if abi.FORWARD_MODES[mode].is_tunnel and neighbour is not None and neighbour.source is None:
            neighbour = None  # nothing to send from
        if neighbour is not None and (neighbour.on_link or mode != _L2):
            flags |= abi.BACKEND_REACHABLE
            flags |= abi.BACKEND_ON_LINK if neighbour.on_link else 0
            flags |= abi.BACKEND_SET_TAGS if neighbour.vlan is not None else 0
            mac = abi.mac_to_word(neighbour.mac)
            self._write_place(index, neighbour)
        self._link[index] = mac | flags << 48

    def _write_place(self, index: int, neighbour: Neighbour) -> None:
        """These are in other words than the MAC address: where they change, no packet goes there meanwhile.
        The source for every mode, as that may change.
        """
        place = abi.place_word(neighbour.ifindex, neighbour.vlan or 0, neighbour.svlan)
        source = b"" if neighbour.source is None else neighbour.source.packed.rstrip(b"\0")
        if (int(self._place[index]), bytes(self._source[index])) != (place, source):
            self._link[index] = int(self._link[index]) & ~(abi.BACKEND_REACHABLE << 48)
            self._source[index] = source
            self._place[index] = place

    def _source_at(self, index: int, version: int) -> IPAddress | None:
        length = 4 if version == 4 else 16
        packed = bytes(self._source[index]).ljust(length, b"\0")[:length]  # as numpy drops zeros at the end
        return ip_address(packed) if any(packed) else None

    def neighbour_at(self, index: int, real: IPAddress) -> Neighbour | None:
        """Where an earlier run knew the record's real to be."""
        flags = self.flags(index)
        if not flags & abi.BACKEND_REACHABLE:
            return None
        place = int(self._place[index])
        return Neighbour(
            ifindex=place & 0xFFFFFFFF,
            mac=abi.word_to_mac(int(self._link[index])),
            on_link=bool(flags & abi.BACKEND_ON_LINK),
            vlan=place >> 32 & 0xFFFF if flags & abi.BACKEND_SET_TAGS else None,
            svlan=place >> 48,
            source=self._source_at(index, real.version),
        )
