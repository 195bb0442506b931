"""How it is with one BGP neighbor, as a value.

Must not know: who finds that out (speaker.py), or who shows it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from vc5py.rhi import signatures
from vc5py.rhi.grammar import SessionState
from vc5py.rhi.signatures import Dropped


@dataclass(frozen=True, slots=True)
class Standing:
    """How it is with one neighbor. `since`: Unix timestamp of the last change of `state`. `why`: what ended
    the last session, or keeps one from coming up. `routes`: how many it was told in this session. `dropped`:
    what had been dropped for its MD5 signature then.
    """

    state: SessionState = SessionState.DOWN
    since: float = 0.0
    why: str = ""
    routes: int = 0
    dropped: Dropped = field(default_factory=Dropped)


def fresh() -> Standing:
    """Of a neighbor that nothing is known of yet."""
    return Standing(since=time.time(), dropped=signatures.dropped())
