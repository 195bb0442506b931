"""Places for (VIP, port, protocol): found as xdp/services.h looks, never lost while others are moved."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from vc5py.core.flowhash import mix
from vc5py.dataplane import abi, servicemap
from vc5py.dataplane.servicemap import ServiceKey, ServiceMap, sets_for
from vc5py.errors import DataplaneError

View = NDArray[Any]

VIP, VIP6 = IPv4Address("192.0.2.1"), IPv6Address("2001:db8::1")
WAYS = {4: abi.SERVICE_WAYS4, 6: abi.SERVICE_WAYS6}


def empty(sets: int, version: int = 4) -> View:
    dtype = abi.SERVICE_ENTRY4 if version == 4 else abi.SERVICE_ENTRY6
    return np.zeros((sets, WAYS[version]), dtype=dtype)


def find(view: View, key: ServiceKey) -> int | None:
    """The value, as the XDP program finds it; None where the key isn't there."""
    word = abi.service_key(key.port, key.protocol)
    packed = key.vip.packed
    if len(packed) == 4:
        word |= int.from_bytes(packed, "little")
        h, vip = mix(0, word), None
    else:
        vip = [int.from_bytes(packed[:8], "little"), int.from_bytes(packed[8:], "little")]
        h = mix(mix(mix(0, vip[0]), vip[1]), word)
    h = mix(h, 0)
    for shift in (0, 40):
        for entry in view[h >> shift & len(view) - 1]:
            if int(entry["key"]) == word and (vip is None or entry["vip"].tolist() == vip):
                return int(entry["value"])
    return None


def key_number(n: int, version: int = 4) -> ServiceKey:
    vip = VIP + n // 7 if version == 4 else VIP6 + (n // 7 << 64 | n // 3)
    return ServiceKey(vip, 80 + n % 7, 6 if n % 2 else 17)


class Watched:
    """A view that looks, after every single store, for what was there and is to stay."""

    def __init__(self, view: View) -> None:
        self.view = view
        self.shape = view.shape
        self.kept: dict[ServiceKey, int] = {}
        self.changing: tuple[ServiceKey, frozenset[int | None]] | None = None

    def __len__(self) -> int:
        return len(self.view)

    def __getitem__(self, at: Any) -> Any:
        return _Column(self, at) if isinstance(at, str) else self.view[at]

    def check(self) -> None:
        for key, expected in self.kept.items():
            assert find(self.view, key) == expected
        if self.changing:
            key, allowed = self.changing
            assert find(self.view, key) in allowed


class _Column:
    def __init__(self, watched: Watched, name: str) -> None:
        self._watched, self._name = watched, name

    def __getitem__(self, at: Any) -> Any:
        return self._watched.view[self._name][at]

    def __setitem__(self, at: Any, value: Any) -> None:
        self._watched.view[self._name][at] = value
        self._watched.check()


@pytest.mark.parametrize("version", [4, 6])
def test_key_is_found_with_its_value(version: int) -> None:
    view = empty(16, version)
    places = ServiceMap(view)
    keys = [key_number(n, version) for n in range(10)]
    for n, key in enumerate(keys):
        places.set(key, n)
    assert [find(view, key) for key in keys] == list(range(10))
    assert find(view, key_number(11, version)) is None
    places.set(keys[3], 77)
    assert find(view, keys[3]) == 77
    assert np.count_nonzero(view["key"]) == 10


@pytest.mark.parametrize(
    "other",
    [
        ServiceKey(VIP, 81, 6),
        ServiceKey(VIP, 80, 17),
        ServiceKey(VIP + 1, 80, 6),
        ServiceKey(VIP, 0, 0),
        ServiceKey(VIP, 20480, 6),  # 80 in the other byte order
    ],
)
def test_every_part_of_the_key_counts(other: ServiceKey) -> None:
    view = empty(16)
    ServiceMap(view).set(ServiceKey(VIP, 80, 6), 5)
    assert find(view, other) is None


@pytest.mark.parametrize("bit", [0, 63, 64, 127])
def test_every_word_of_an_ipv6_address_counts(bit: int) -> None:
    view = empty(16, 6)
    ServiceMap(view).set(ServiceKey(VIP6, 80, 6), 5)
    assert find(view, ServiceKey(IPv6Address(int(VIP6) ^ 1 << bit), 80, 6)) is None


def test_wanted_keys_are_kept_all_others_deleted() -> None:
    view = empty(16)
    places = ServiceMap(view)
    for n in range(9):
        places.set(key_number(n), n)
    places.delete_all_but(frozenset({key_number(2), key_number(8), key_number(100)}))
    assert [n for n in range(9) if find(view, key_number(n)) is not None] == [2, 8]
    assert np.count_nonzero(view["key"]) == 2


def test_second_map_over_the_same_view_knows_what_is_there() -> None:
    view = empty(16)
    first = ServiceMap(view)
    for n in range(20):
        first.set(key_number(n), n)
    second = ServiceMap(view)
    assert sorted(second.items()) == sorted(first.items())
    second.set(key_number(5), 50)
    assert find(view, key_number(5)) == 50
    assert np.count_nonzero(view["key"]) == 20


@settings(max_examples=60)
@given(
    st.sampled_from([4, 6]),
    st.lists(st.tuples(st.booleans(), st.integers(0, 40), st.integers(0, 9)), max_size=80),
)
def test_against_a_dictionary(version: int, row: list[tuple[bool, int, int]]) -> None:
    """Whatever is added, changed and deleted; and what is in use is found at every moment."""
    view = empty(16, version)
    watched = Watched(view)
    places = ServiceMap(cast(View, watched))
    known: dict[ServiceKey, int] = {}
    for add, n, value in row:
        key = key_number(n, version)
        watched.kept = {k: v for k, v in known.items() if k != key}
        watched.changing = key, frozenset({known.get(key), value if add else None})
        if add:
            try:
                places.set(key, value)
            except DataplaneError:
                assert len(known) > 16, "a view that is half empty has room"
                continue
            known[key] = value
        else:
            known.pop(key, None)
            places.delete_all_but(frozenset(known))
        assert {k: find(view, k) for k in known} == known
        assert find(view, key) == known.get(key)
        assert np.count_nonzero(view["key"]) == len(known)


@pytest.mark.parametrize("version", [4, 6])
def test_entry_that_makes_room_is_never_lost_nor_mistaken(version: int) -> None:
    """A view so full that nearly every newcomer moves somebody."""
    view = empty(4, version)
    watched = Watched(view)
    places = ServiceMap(cast(View, watched))
    keys = [key_number(n, version) for n in range(200)]
    moved = 0
    for n, key in enumerate(keys):
        before = dict(places._places)
        watched.changing = key, frozenset({None, n})
        try:
            places.set(key, n)
        except DataplaneError:
            continue
        moved += any(places._places[words] != place for words, place in before.items())
        watched.kept[key] = n
    assert moved


@pytest.mark.parametrize("version", [4, 6])
def test_no_room_is_told_and_harms_nothing(version: int) -> None:
    view = empty(2, version)
    places = ServiceMap(view)
    stored = []
    with pytest.raises(DataplaneError, match=r"no room for \d+ \(VIP, port, protocol\)"):
        for n in range(20):
            places.set(key_number(n, version), n)
            stored.append(n)
    assert len(stored) >= 2
    assert [find(view, key_number(n, version)) for n in stored] == stored
    with pytest.raises(DataplaneError):
        places.set(key_number(len(stored), version), 9)
    places.delete_all_but(frozenset())
    places.set(key_number(30, version), 3)
    assert find(view, key_number(30, version)) == 3


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("count", [1, 50, 3000])
def test_sets_for_is_enough(version: int, count: int) -> None:
    view = empty(sets_for(count, WAYS[version]), version)
    assert len(view).bit_count() == 1
    places = ServiceMap(view)
    for n in range(count):
        places.set(key_number(n, version), n)
    assert all(find(view, key_number(n, version)) == n for n in range(0, count, 7))


@pytest.mark.parametrize("version", [4, 6])
def test_carried_over_to_a_larger_view(version: int) -> None:
    old, new = empty(16, version), empty(64, version)
    places = ServiceMap(old)
    for n in range(20):
        places.set(key_number(n, version), n)
    servicemap.carry_over(old, new)
    assert [find(new, key_number(n, version)) for n in range(20)] == list(range(20))
