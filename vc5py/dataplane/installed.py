"""A virtual service as it is in the maps: its places there, and what was made of them.

Values only, which those who write the maps keep up to date: `placing` the backends' places, `switching` the
tables, `keys` the keys, `kernel` the rest.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from vc5py.dataplane.servicemap import ServiceKey
from vc5py.dataplane.tables import NO_TABLES, Members, Tables
from vc5py.model import BackendId, BackendState, ServiceState

MIN_ROOM = 4


def room_for(backends: int) -> int:
    """How many records a service of that many backends gets, so that it can grow a little in place."""
    return max(MIN_ROOM, 1 << (backends - 1).bit_length())


@dataclass(slots=True)
class Installed:
    """`index`: of its record. `base` and `room`: its run of backends' records. `torn`: the last change of it
    has not come to its end.
    """

    index: int
    base: int
    room: int
    locals: dict[int, int] = field(default_factory=dict)  # backend identity -> local index
    resting: dict[int, int] = field(default_factory=dict)  # likewise, freed but not yet usable
    names: dict[BackendId, int] = field(default_factory=dict)  # identities of what was wanted last
    tables: Tables = NO_TABLES
    promised: int = 0  # lines of the arena
    served: bool = False  # not new: there may be flows, even where there is no table
    shape: tuple[Members, int] | None = None  # what the tables were made of
    keys: frozenset[ServiceKey] = frozenset()
    state: ServiceState | None = None
    torn: bool = True

    def backends(self) -> list[tuple[BackendState, int]]:
        """What is wanted of each backend, and its local index."""
        return [(b, self.locals[self.names[b.id]]) for b in self.state.backends] if self.state else []
