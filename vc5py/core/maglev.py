"""Maglev consistent hashing with weights (Eisenbud et al., "Maglev", NSDI 2016, section 3.4).

Pure. Invariants: the table depends on the set of (identity, weight) and its size alone, never on order or
index, and is the same on every machine, as whole numbers decide; every slot is filled when any weight is
positive; a real's slots are less than 1% off its weight's share, or less than one slot.

Each real walks through all slots in an order of its own. The paper lets them take turns, one free slot each,
so that all get the same number; but a slot that one is too late for goes to another, and what that one would
have taken to a third, and when a real leaves all that is found out anew. Here a slot belongs to whoever comes
to it first, which no third real has a part in, and numbers are mended only where they would be off by 1%:

* A real comes to its n-th slot when the n-th of `size` exponential waiting times ends (on average), divided
  by its weight. The first of several such is each one's with the probability of its share (Schindelhauer and
  Schomaker, 2005), so that the numbers are close to the shares from the start.
* A real that has nearly 1% more than its share takes no more. The outcome is the one stable matching (Gale
  and Shapley, 1962) of reals and slots by time: it doesn't depend on the order in which it is found out, so
  that many steps are computed at once.
* A real left with 1% less than its share takes the first slots on its walk whose holders have more than that
  of theirs.

The paper makes the size a prime; here it is a power of two and the stride is odd, which visits every slot as
well. The order is scrambled, for all walks alike: of two plain ones whose strides are in a simple ratio, the
same one would come first to too many slots.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

MIN_SLOTS = 256
MAX_SLOTS = 1 << 16
SLOTS_PER_REAL = 128

# The mean waiting time. A claim is a time (below 2^46, as no table is larger) by reals (up to 2^16): 63 bits.
_MEAN = 1 << 42
_SCRAMBLE = 0x9E3779B1, 0x85EBCA6B, 0xC2B2AE35  # any odd numbers of well mixed bits do
_NEVER = np.iinfo(np.int64).max
# How much further all go each time: less is more rounds, more is more steps of reals that are full by then.
_FURTHER = 1.25

Ints = NDArray[np.int64]
Slots = NDArray[np.uint32]


def table_size(reals: int) -> int:
    """Slots for that many reals: a power of two, at least 100 a real up to MAX_SLOTS."""
    wanted = max(MIN_SLOTS, reals * SLOTS_PER_REAL)
    return min(MAX_SLOTS, 1 << (wanted - 1).bit_length())


def bounds(weights: Sequence[int] | Ints, size: int) -> tuple[Ints, Ints]:
    """The least and the most slots of each real: within 1% of its share or, if that is less, within a slot.

    The most leaves a slot more than rounding needs, which makes it the share itself below 200 slots: there
    taking no more moves less than taking from others. Weights are below 2^20.
    """
    w = np.asarray(weights, dtype=np.int64)
    unit = 100 * max(1, int(w.sum()))
    percent = w * size  # of the share, in parts of a slot: `unit` is one
    least = np.minimum(100 * percent, 99 * percent + unit)
    most = np.maximum(100 * percent, 101 * percent - 2 * unit)
    # Rounded so that they add up: rounding each by itself would change all when a real joins.
    low, high = _whole(least, unit, int(least.sum()) // unit), _whole(most, unit, -(-int(most.sum()) // unit))
    return np.minimum(low, high), high


def _whole(parts: Ints, unit: int, total: int) -> Ints:
    """Units that add up to `total`: floors, then one more each to the largest remainders, first first."""
    units, rest = np.divmod(parts, unit)
    units[np.argsort(-rest, kind="stable")[: total - int(units.sum())]] += 1
    return units


def build(identities: Sequence[int], weights: Sequence[int], size: int) -> NDArray[np.int32]:
    """Shape (size,): for each slot the index into `identities` of its real, -1 where there is none.

    `identities` are distinct 64-bit numbers, `weights` whole numbers from 0; `size` is a power of two.
    """
    given = np.asarray(identities, dtype=np.uint64)
    weight = np.asarray(weights, dtype=np.int64)
    ranked = np.argsort(given, kind="stable")
    ranked = ranked[weight[ranked] > 0]
    if not len(ranked):
        return np.full(size, -1, dtype=np.int32)
    walks = _Walks(given[ranked], weight[ranked], size)
    least, most = bounds(walks.weight, size)
    claims = _Claims(walks, most)
    while claims.advance():
        pass
    return ranked[_lift(walks, claims.holder, least)].astype(np.int32)


@lru_cache
def _scrambled(size: int) -> Slots:
    """Every number below `size` once."""
    x = np.arange(size, dtype=np.uint32)
    for factor in _SCRAMBLE:
        x = x * np.uint32(factor) & np.uint32(size - 1)
        x ^= x >> np.uint32(size.bit_length() // 2)
    x.flags.writeable = False
    return x


@lru_cache
def _times(size: int) -> Ints:
    """When the first, second... of `size` random (exponential) waiting times ends, on average."""
    times = np.cumsum(_MEAN // np.arange(size, 0, -1, dtype=np.int64))
    times.flags.writeable = False
    return times


class _Walks:
    """Where each real is at each of its steps, and when. Reals are known by their rank."""

    def __init__(self, ids: NDArray[np.uint64], weight: Ints, size: int) -> None:
        self.weight = weight
        self.size = size
        # Of products only the low bits matter, so 32 bits are enough.
        self._offset = (ids >> np.uint64(8)).astype(np.uint32)
        self._stride = (ids >> np.uint64(32)).astype(np.uint32) | np.uint32(1)
        self._order = _scrambled(size)
        self._times = _times(size)

    def slots(self, rank: Ints, begin: Ints, steps: Ints) -> Slots:
        """Where each of these reals is at so many steps from `begin`, one real's after the other's."""
        slot = self._order[_runs(begin, steps)]
        slot *= np.repeat(self._stride[rank], steps)
        slot += np.repeat(self._offset[rank], steps)
        slot &= np.uint32(self.size - 1)
        return slot

    def along(self, rank: int) -> Iterator[int]:
        """The slots of one walk from its start, computed some at a time."""
        who, start, end = np.array([rank]), 0, 16
        while start < self.size:
            yield from self.slots(who, np.array([start]), np.array([min(end, self.size) - start])).tolist()
            start, end = end, 2 * end

    def claim(self, rank: Ints, step: Ints) -> Ints:
        """The lower wins: by time, of equal ones by rank."""
        return self._times[step] // self.weight[rank] * len(self.weight) + rank

    def steps_until(self, rank: Ints, time: float) -> Ints:
        """How many steps each has made by then, about."""
        ends: Ints = np.searchsorted(
            self._times, np.minimum(self.weight[rank] * time, self._times[-1]), "right"
        )
        return ends


class _Claims:
    """Who holds which slot so far."""

    def __init__(self, walks: _Walks, most: Ints) -> None:
        self._walks = walks
        self._left = most.copy()  # how many more slots each real may take
        self._step = np.zeros(len(most), dtype=np.int64)  # how far each has come on its walk
        self._best = np.full(walks.size, _NEVER)  # by slot: the claim it is held by
        self._until = _MEAN / int(walks.weight.sum())
        self.holder = np.full(walks.size, -1, dtype=np.int64)

    def advance(self) -> bool:
        """Lets every real that may take more claim what is next on its walk; False when none could win."""
        rank = np.flatnonzero((self._left > 0) & (self._step < self._walks.size))
        claim = self._walks.claim(rank, self._step[rank])
        last = int(self._best.max())
        rank, claim = rank[claim < last], claim[claim < last]
        if not len(rank):
            return False
        self._until = min(_FURTHER * self._until, last / len(self._left))
        begin = self._step[rank]
        steps = np.maximum(self._walks.steps_until(rank, self._until) - begin, 1)
        slot = self._walks.slots(rank, begin, steps)
        # Most slots are beyond reach by now: all else is computed for the others only.
        kept = np.flatnonzero((self._best > claim.min())[slot])
        real = np.searchsorted(np.cumsum(steps), kept, "right")
        self._step[rank] += steps
        self._claim(slot[kept], rank[real], kept - (np.cumsum(steps) - steps - begin)[real])
        return True

    def _claim(self, slot: Slots, rank: Ints, step: Ints) -> None:
        """Of each real, as many claims as it may take and as are better than the slot's holder's."""
        claim = self._walks.claim(rank, step)
        better = claim < self._best[slot]
        slot, rank, step, claim = slot[better], rank[better], step[better], claim[better]
        count = np.arange(len(rank)) - np.searchsorted(rank, rank)  # of each real's own, from 0
        last = count == self._left[rank] - 1
        self._step[rank[last]] = step[last] + 1
        made = count < self._left[rank]
        self._settle(slot[made], claim[made], rank[made])

    def _settle(self, slot: Slots, claim: Ints, rank: Ints) -> None:
        """The best claim on each slot wins; whoever held it before may take another one."""
        np.minimum.at(self._best, slot, claim)
        won = self._best[slot] == claim
        slot, rank = slot[won], rank[won]
        lost = self.holder[slot]
        reals = len(self._left)
        self._left += np.bincount(lost[lost >= 0], minlength=reals) - np.bincount(rank, minlength=reals)
        self.holder[slot] = rank


def _runs(begin: Ints, lengths: Ints) -> Ints:
    """begin[0], begin[0] + 1, ... (lengths[0] of them), begin[1], begin[1] + 1, ..."""
    return np.arange(int(lengths.sum())) + np.repeat(begin - np.cumsum(lengths) + lengths, lengths)


def _lift(walks: _Walks, holder: Ints, least: Ints) -> Ints:
    """The holders after each real with less than the least, by rank, has taken from those with more."""
    spare = np.bincount(holder, minlength=len(least)) - least
    for rank in np.flatnonzero(spare < 0).tolist():
        for slot in walks.along(rank):
            if spare[holder[slot]] > 0:
                spare[holder[slot]] -= 1
                spare[rank] += 1
                holder[slot] = rank
            if spare[rank] == 0:
                break
    return holder
