"""The datagrams of flow sharing: what is sent comes out, and nothing else does; whose word holds."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vc5py.core import flowsync
from vc5py.core.flowhash import FlowKey
from vc5py.core.flowsync import (
    EVERYBODY,
    HEADER_BYTES,
    MAC_BYTES,
    MIN_DATAGRAM,
    RECORD,
    Codec,
    Datagram,
    Key,
    Kind,
    Opinion,
    Outcome,
    prefers,
)

SECRET = b"a secret that is long enough"
KEY, OTHER_KEY = Key.derive(SECRET), Key.derive(b"another secret of the tests")
CLUSTER = flowsync.cluster_id("tests")
ALICE, BOB = flowsync.node_id("alice"), flowsync.node_id("bob")
alice = Codec([KEY], CLUSTER, ALICE, 11)
bob = Codec([KEY], CLUSTER, BOB, 22)


def flows(count: int) -> flowsync.Records:
    made = np.zeros(count, RECORD)
    made["hash"] = np.arange(count, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    made["identity"], made["age"], made["state"] = np.arange(count), np.arange(count) % 600, 4
    return made


def sealed(kind: Kind = Kind.FLOWS, to: int = EVERYBODY, count: int = 3) -> bytes:
    body = flows(count).tobytes() if kind is Kind.FLOWS else b""
    return alice.seal(kind, to, 7, count if kind is Kind.FLOWS else 0, body)


def opened(data: bytes) -> Datagram:
    datagram = bob.open(data)
    assert isinstance(datagram, Datagram)
    return datagram


def test_what_is_sealed_opens() -> None:
    datagram = opened(sealed())
    assert (datagram.kind, datagram.to, datagram.node, datagram.boot, datagram.sequence) == (
        Kind.FLOWS, EVERYBODY, ALICE, 11, 7,
    )  # fmt: skip
    assert (datagram.records() == flows(3)).all()


@given(st.integers(0, 500), st.integers(576, 8952))
def test_records_are_cut_into_datagrams_that_fit(count: int, size: int) -> None:
    made = flows(count)
    sizes, out = [], [np.zeros(0, RECORD)]
    for number, body in flowsync.cut(made, size):
        data = alice.seal(Kind.FLOWS, EVERYBODY, 0, number, body)
        sizes.append(len(data))
        out.append(opened(data).records())
    assert (np.concatenate(out) == made).all()
    assert all(one <= size for one in sizes)
    assert len(sizes) == -(-count // flowsync.records_per(size))


def test_layout_is_as_documented() -> None:
    data = sealed(count=1)
    assert (HEADER_BYTES, RECORD.itemsize, MAC_BYTES) == (48, 16, 16)
    head = struct.unpack_from("<4sBBHIIQQQII", data)
    assert head == (b"VC5S", 1, 1, 1, CLUSTER, 0, ALICE, 11, 7, KEY.id, 0)
    assert [RECORD.fields[name][1] for name in ("hash", "identity", "age", "state")] == [0, 8, 12, 14]  # type: ignore[index]
    assert flowsync.records_per(1400) == 83


def test_hello_says_who_is_heard() -> None:
    heard = [(BOB, 22), (BOB, 23), (1, 2)]
    datagram = opened(alice.seal(Kind.HELLO, EVERYBODY, 0, 3, flowsync.heard_body(heard)))
    assert datagram.heard() == set(heard)


def changed(data: bytes, at: int, value: bytes) -> bytes:
    return data[:at] + value + data[at + len(value) :]


def resealed(data: bytes) -> bytes:
    """Changed by somebody who has the key."""
    body = data[:-MAC_BYTES]
    return body + hashlib.blake2b(body, key=KEY.material, digest_size=MAC_BYTES).digest()


def test_addressees_are_told_apart_by_all_bits_of_a_boot_and_are_never_everybody() -> None:
    assert flowsync.addressee(0x1_0000_0003, 0x5_0000_0009) == 3 ^ 9 ^ 5
    assert flowsync.addressee(7, 7) == 1


REFUSED = {
    "empty": (b"", Outcome.SHORT),
    "a byte less than the least": (sealed(Kind.COPY)[:-1], Outcome.SHORT),
    "truncated": (sealed()[:-16], Outcome.FORGED),
    "longer": (sealed() + b"\0", Outcome.FORGED),
    "not ours": (changed(sealed(), 0, b"HTTP"), Outcome.FOREIGN),
    "of a later version": (resealed(changed(sealed(), 4, b"\2")), Outcome.VERSION),
    "of another cluster": (Codec([KEY], 5, ALICE, 1).seal(Kind.COPY, 0, 0, 0, b""), Outcome.CLUSTER),
    "with another key": (Codec([OTHER_KEY], CLUSTER, ALICE, 1).seal(Kind.COPY, 0, 0, 0, b""), Outcome.KEY),
    "with another key's secret and our key's name": (
        Codec([replace(OTHER_KEY, id=KEY.id)], CLUSTER, ALICE, 1).seal(Kind.COPY, 0, 0, 0, b""),
        Outcome.FORGED,
    ),
    "forged record": (changed(sealed(), HEADER_BYTES, b"\xff"), Outcome.FORGED),
    "forged sequence": (changed(sealed(), 32, b"\xff"), Outcome.FORGED),
    "forged signature": (changed(sealed(), -1 + len(sealed()), b"\xff"), Outcome.FORGED),
    "of an unknown kind": (resealed(changed(sealed(), 5, b"\x09")), Outcome.MALFORMED),
    "with more records than there are": (resealed(changed(sealed(), 6, b"\4")), Outcome.MALFORMED),
    "with fewer records than there are": (resealed(changed(sealed(), 6, b"\2")), Outcome.MALFORMED),
    "with records where there are none": (alice.seal(Kind.COPY, 0, 7, 1, b""), Outcome.MALFORMED),
    "with reserved bits": (resealed(changed(sealed(), 44, b"\1")), Outcome.MALFORMED),
    "from nobody": (Codec([KEY], CLUSTER, 0, 1).seal(Kind.COPY, 0, 0, 0, b""), Outcome.MALFORMED),
    "our own": (bob.seal(Kind.COPY, 0, 0, 0, b""), Outcome.OWN),
    "for another": (sealed(to=flowsync.addressee(ALICE, 1)), Outcome.ADDRESSEE),
    "for us before we started again": (sealed(to=flowsync.addressee(BOB, 21)), Outcome.ADDRESSEE),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    data, outcome = REFUSED[name]
    assert bob.open(data) is outcome
    assert bob.open(memoryview(data)) is outcome


def test_for_us() -> None:
    assert opened(sealed(Kind.COPY, flowsync.addressee(BOB, 22))).kind is Kind.COPY


@given(st.binary(max_size=300))
def test_random_bytes_say_nothing(data: bytes) -> None:
    assert isinstance(bob.open(data), Outcome)


def test_rotation_by_two_keys() -> None:
    """One balancer after another gets both keys, then signs with the new one, then forgets the old one."""
    steps = ([KEY], [KEY, OTHER_KEY], [OTHER_KEY, KEY], [OTHER_KEY])
    for before, after in pairwise(steps):
        for sender, receiver in ((before, after), (after, before)):
            data = Codec(sender, CLUSTER, ALICE, 1).seal(Kind.COPY, 0, 0, 0, b"")
            assert isinstance(Codec(receiver, CLUSTER, BOB, 2).open(data), Datagram)


# Keys


def test_every_bit_of_a_long_secret_counts() -> None:
    long = b"x" * 200
    other = long[:-1] + b"y"
    assert Key.derive(long) != Key.derive(other)
    assert FlowKey.derive(long) != FlowKey.derive(other)
    assert FlowKey.derive(long) != FlowKey.derive(long[:64])


def test_no_key_shows_itself() -> None:
    assert KEY.material.hex() not in repr(KEY)
    assert repr(KEY.material) not in repr(KEY)
    assert repr(KEY) == f"Key({KEY.id:08x})"


def test_signing_key_and_flow_key_say_nothing_of_each_other() -> None:
    flow_key = FlowKey.derive(SECRET)
    for number in (flow_key.start, flow_key.odd):
        assert number.to_bytes(8, "little") not in KEY.material


# Whose word holds

opinions = st.builds(
    Opinion,
    st.integers(1, 4),
    st.floats(-400, 0).map(lambda seen: round(seen, 1)),
    st.sampled_from([0, 1, 2, 4, 5]),
)


@given(opinions, opinions)
def test_of_two_different_opinions_exactly_one_holds(a: Opinion, b: Opinion) -> None:
    if a.identity != b.identity:
        assert prefers(a, b, 0) != prefers(b, a, 0)


@given(st.lists(opinions, min_size=2, max_size=2), st.integers(1, 6))
def test_two_nodes_that_tell_each_other_agree_and_stay(both: list[Opinion], rounds: int) -> None:
    """Whatever is told again: nobody changes backends twice."""
    held, changes = list(both), [0, 0]
    for _ in range(rounds):
        told = list(held)
        for me in (0, 1):
            theirs = told[1 - me]
            if theirs.identity != held[me].identity and prefers(theirs, held[me], 0):
                held[me] = theirs
                changes[me] += 1
    assert held[0].identity == held[1].identity
    assert sum(changes) <= 1


@given(
    st.lists(opinions, min_size=2, max_size=2),
    st.lists(st.tuples(st.integers(0, 1), st.integers(-1, 1), st.booleans()), max_size=40),
)
def test_clocks_that_are_a_second_off_make_nobody_swap_for_ever(
    both: list[Opinion], tellings: list[tuple[int, int, bool]]
) -> None:
    """Each telling adds an error of up to a second. A flow that isn't seen again changes backends once at
    most, because what is learned isn't told again (`own`), and once it is seen again all agree.
    """
    held, own = list(both), [True, True]
    changes = [0, 0]
    for sender, error, _ in tellings:
        receiver = 1 - sender
        if not own[sender]:
            continue
        told = replace(held[sender], seen=held[sender].seen + error)
        if told.identity != held[receiver].identity and prefers(told, held[receiver], 0):
            held[receiver], own[receiver] = told, False
            changes[receiver] += 1
    assert max(changes) <= 1
    seen = 1 if own[1] else 0
    held[seen] = replace(held[seen], seen=10.0, state=4)  # a packet, ten seconds later
    told = replace(held[seen], seen=9.0)
    if told.identity != held[1 - seen].identity and not held[1 - seen].is_sure(10):
        assert prefers(told, held[1 - seen], 10)


def test_minimum_is_a_header_and_a_signature() -> None:
    assert len(sealed(Kind.COPY)) == MIN_DATAGRAM == 64
