"""Maglev consistent hashing with weights (Eisenbud et al., "Maglev", NSDI 2016, section 3.4).

Pure. Invariants: the table depends on the set of (identity, weight) and its size alone, never on order or
index; every slot is filled when any weight is positive; a real's share differs from its weight's by less
than one slot.

Each real walks through the slots in an order of its own until it holds as many as its quota. The paper lets
them take turns; here a slot is held by whoever comes to it in the fewest steps (of equals the first in rank),
whenever that is found out: the outcome is the one stable matching (Gale and Shapley, 1962) of reals and slots
by steps, so that many steps can be computed at once, and a real that joins or leaves moves fewer slots of
others. The paper makes the size a prime; here it is a power of two and the stride is odd, which visits every
slot as well.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

MIN_SLOTS = 256
MAX_SLOTS = 1 << 16
SLOTS_PER_REAL = 128


def table_size(reals: int) -> int:
    """Slots for that many reals: a power of two, at least 100 a real up to MAX_SLOTS."""
    wanted = max(MIN_SLOTS, reals * SLOTS_PER_REAL)
    return min(MAX_SLOTS, 1 << (wanted - 1).bit_length())


def quotas(weights: Sequence[int], size: int) -> NDArray[np.int64]:
    """Splits `size` slots by weight: floors, then one more each to the largest remainders, first first."""
    w = np.asarray(weights, dtype=np.int64)
    total = int(w.sum())
    if total == 0:
        return np.zeros(len(w), dtype=np.int64)
    exact = w * size
    shares = exact // total
    order = np.argsort(-(exact % total), kind="stable")
    shares[order[: size - int(shares.sum())]] += 1
    return shares


def build(identities: Sequence[int], weights: Sequence[int], size: int) -> NDArray[np.int32]:
    """Shape (size,): for each slot the index into `identities` of its real, -1 where there is none.

    `identities` are distinct 64-bit numbers, `weights` whole numbers from 0; `size` is a power of two.
    """
    given = np.asarray(identities, dtype=np.uint64)
    ranked = np.argsort(given, kind="stable")
    claims = _Claims(given[ranked], quotas([weights[i] for i in ranked], size), size)
    while claims.advance():
        pass
    return np.append(ranked, -1)[claims.holder].astype(np.int32)


class _Claims:
    """Who holds which slot so far. Reals are known by their rank, a claim is `step * reals + rank`."""

    def __init__(self, ids: NDArray[np.uint64], left: NDArray[np.int64], size: int) -> None:
        self._mask = size - 1
        self._offset = (ids >> np.uint64(8)).astype(np.int64) & self._mask
        self._stride = (ids >> np.uint64(32)).astype(np.int64) & self._mask | 1
        self._left = left  # how many slots each real still wants
        self._step = np.zeros(len(ids), dtype=np.int64)  # how far each has come on its way
        self._best = np.full(size, np.iinfo(np.int64).max)  # by slot: the claim it is held by
        self.holder = np.full(size, -1, dtype=np.int64)

    def advance(self) -> bool:
        """Lets every real claim what it wants, of the next slots on its way; False when all have it.

        Each looks as far ahead as it takes to find so many free ones, by their share among all.
        """
        short = np.flatnonzero(self._left)
        if not len(short):
            return False
        wanted = self._left[short]
        ahead = np.minimum(
            -(-wanted * len(self.holder) // wanted.sum()), len(self.holder) - self._step[short]
        )
        first = np.cumsum(ahead) - ahead
        rank = np.repeat(short, ahead)
        step = np.arange(len(rank)) + np.repeat(self._step[short] - first, ahead)
        slot = self._offset[rank] + step * self._stride[rank] & self._mask
        claim = step * len(self._step) + rank
        better = claim < self._best[slot]
        found = np.cumsum(better)
        count = found - np.repeat(found[first] - better[first], ahead)  # of each real's own
        made = better & (count <= self._left[rank])
        self._step[short] += ahead
        last = made & (count == self._left[rank])
        self._step[rank[last]] = step[last] + 1
        self._settle(slot[made], claim[made], rank[made])
        return True

    def _settle(self, slot: NDArray[np.int64], claim: NDArray[np.int64], rank: NDArray[np.int64]) -> None:
        """The best claim on each slot wins; whoever held it before wants another one."""
        np.minimum.at(self._best, slot, claim)
        won = self._best[slot] == claim
        slot, rank = slot[won], rank[won]
        lost = self.holder[slot]
        reals = len(self._left)
        self._left += np.bincount(lost[lost >= 0], minlength=reals) - np.bincount(rank, minlength=reals)
        self.holder[slot] = rank
