"""The maps `interfaces` and `ports`: which links frames get in by, and out by.

Knows nothing of why a link has the record it has (links.py).
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Mapping

import numpy as np

from vc5py.dataplane import abi, libbpf
from vc5py.dataplane.links import Record
from vc5py.dataplane.maps import Maps

_log = logging.getLogger(__name__)

_INDEX = struct.Struct("<I")


class PortTable:
    """Stores records, whole ones."""

    def __init__(self, maps: Maps) -> None:
        self._maps = maps

    def write(self, records: Mapping[int, Record]) -> None:
        """Makes these links known; the others stay as they are."""
        for index, record in records.items():
            if index >= self._maps.sizes.interfaces:
                _log.error("interface left out until the next start ifindex=%d", index)
                continue
            word = abi.mac_to_word(record.mac) | abi.INTERFACE_OURS << 48
            self._store(index, word, record.bond, record.mtu)
            self._lead(index, record.exit)

    def forget_all_but(self, records: Mapping[int, Record]) -> None:
        """Frames no longer get in or out by any other link."""
        for index in set(np.flatnonzero(self._maps.interfaces["link"]).tolist()) - records.keys():
            self._store(index, 0, 0, 0)
            self._lead(index, None)

    def _store(self, index: int, link: int, bond: int, mtu: int) -> None:
        """`link` last: it says whether frames get in or out."""
        record = self._maps.interfaces[index : index + 1]
        record["bond"] = bond
        record["mtu"] = mtu
        record["link"] = link

    def _lead(self, index: int, leaves_by: int | None) -> None:
        if leaves_by is None:
            libbpf.delete(self._maps.fds["ports"], _INDEX.pack(index))
        else:
            libbpf.update(self._maps.fds["ports"], _INDEX.pack(index), _INDEX.pack(leaves_by))
