"""What a BFD process knows of its sessions, in memory that outlives it: for the standby that goes on as it.

Standard library only. Must not know: processes, sockets. Invariants: whoever dies in the middle of a `note`
leaves what the last one said; a note of what hasn't changed costs two comparisons; nothing here waits.
"""

from __future__ import annotations

import mmap
import pickle
import struct
from collections.abc import Mapping
from dataclasses import fields
from operator import attrgetter

from vc5py.bfd.protocol import Session
from vc5py.bfd.sessions import Entry

# Of each session: which of its two records counts, and the records: their length, then pickled values.
RECORD = 1024
_SLOT = 1 + 2 * RECORD
_LENGTH = struct.Struct("=H")
# Not the values themselves: a dataclass takes three times as long to pickle as the tuple of what is in it.
_session_values = attrgetter(*(f.name for f in fields(Session)))
_HISTORY = tuple(f.name for f in fields(Entry) if f.name != "session")
_history_values = attrgetter(*_HISTORY)


class Ledger:
    """One slot for each of these sessions; shared with children that are forked after it was made."""

    def __init__(self, entries: Mapping[str, Entry]) -> None:
        self._memory = mmap.mmap(-1, max(1, len(entries)) * _SLOT)
        self._slots = {neighbor: slot * _SLOT for slot, neighbor in enumerate(entries)}
        self._noted: dict[str, tuple[Session, bool]] = {}
        self.note(entries)

    def note(self, entries: Mapping[str, Entry]) -> None:
        """What has changed since the last time. The sessions are those that it was made for."""
        for neighbor, entry in entries.items():
            session, lost = self._noted.get(neighbor, (None, False))
            if session is not entry.session or lost is not entry.lost:
                self._write(self._slots[neighbor], entry)
                self._noted[neighbor] = entry.session, entry.lost

    def read(self) -> dict[str, Entry]:
        """All of them, as last noted by whoever did."""
        return {neighbor: self._read(at) for neighbor, at in self._slots.items()}

    def close(self) -> None:
        self._memory.close()

    def _write(self, at: int, entry: Entry) -> None:
        """Into the record that doesn't count; a single byte then makes it count."""
        other = 1 - self._memory[at]
        data = pickle.dumps((_session_values(entry.session), _history_values(entry)), pickle.HIGHEST_PROTOCOL)
        record = _LENGTH.pack(len(data)) + data
        start = at + 1 + other * RECORD
        self._memory[start : start + len(record)] = record
        self._memory[at] = other

    def _read(self, at: int) -> Entry:
        start = at + 1 + self._memory[at] * RECORD
        (length,) = _LENGTH.unpack_from(self._memory, start)
        start += _LENGTH.size
        session, history = pickle.loads(self._memory[start : start + length])
        return Entry(Session(*session), **dict(zip(_HISTORY, history, strict=True)))
