"""What the kernel says of TCP segments that it dropped for their MD5 signatures (RFC 2385).

Only who is called can know: whoever calls with another password gets no answer. The counters are those of the
whole network namespace, so a hint names no culprit.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vc5py.model import Neighbor

COUNTERS = Path("/proc/self/net/netstat")
WAITING = "waits for the neighbor to connect"


@dataclass(frozen=True, slots=True)
class Dropped:
    """Segments with another signature, without one that was expected, with one that wasn't; since boot."""

    other: int = 0
    missing: int = 0
    unexpected: int = 0


def dropped(text: str | None = None) -> Dropped:
    """As the kernel counts; nothing where it doesn't tell. `text`: in the format of /proc/net/netstat."""
    try:
        lines = (COUNTERS.read_text() if text is None else text).splitlines()
    except OSError:
        return Dropped()
    for names, values in zip(lines[::2], lines[1::2], strict=False):
        if names.startswith("TcpExt:"):
            count = dict(zip(names.split()[1:], map(int, values.split()[1:]), strict=False))
            kinds = ("TCPMD5Failure", "TCPMD5NotFound", "TCPMD5Unexpected")
            return Dropped(*(count.get(kind, 0) for kind in kinds))
    return Dropped()


def hint(neighbor: Neighbor, before: Dropped, now: Dropped) -> str:
    """Why a neighbor that is to connect to us may not have; `before` is when its session ended."""
    if neighbor.password is None:
        seen = {"with an MD5 password where none is configured": now.unexpected - before.unexpected}
    else:
        seen = {
            "with another MD5 password": now.other - before.other,
            "without the MD5 password": now.missing - before.missing,
        }
    counts = [f"{count} TCP segments {words} dropped" for words, count in seen.items() if count > 0]
    return "; ".join([WAITING, *counts])
