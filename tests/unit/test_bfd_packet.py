"""BFD Control packets: the layout by the bytes, every reason to refuse one, and bytes at random."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vc5py.bfd.packet import LENGTH, Packet, Reject, State, decode, encode

PACKET = Packet(
    State.UP, 0x01020304, 0x05060708, 100_000, 300_000, 50_000, multiplier=3, diagnostic=1, poll=True
)
BYTES = bytes.fromhex("21 e0 03 18 01020304 05060708 000186a0 000493e0 0000c350")

numbers = st.integers(0, (1 << 32) - 1)
packets = st.builds(
    Packet,
    st.sampled_from(State),
    st.integers(1, (1 << 32) - 1),
    st.integers(1, (1 << 32) - 1),
    numbers,
    numbers,
    numbers,
    st.integers(1, 255),
    st.integers(0, 31),
    st.booleans(),
    st.just(False),
    st.booleans(),
    st.booleans(),
)


def test_the_layout() -> None:
    assert encode(PACKET) == BYTES
    assert decode(BYTES) == PACKET
    flags = replace(
        PACKET, state=State.INIT, poll=False, final=True, control_plane_independent=True, demand=True
    )
    assert encode(flags)[1] == 0x80 | 0x10 | 0x08 | 0x02
    assert decode(encode(flags)) == flags


@given(packets)
def test_what_is_encoded_is_decoded(packet: Packet) -> None:
    assert decode(encode(packet)) == packet


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", Reject.SHORT),
        (BYTES[:-1], Reject.SHORT),
        (b"\x01" + BYTES[1:], Reject.VERSION),
        (b"\x41" + BYTES[1:], Reject.VERSION),
        (BYTES[:3] + b"\x17" + BYTES[4:], Reject.LENGTH),
        (BYTES[:3] + b"\x19" + BYTES[4:], Reject.LENGTH),
        (BYTES[:1] + b"\xe4" + BYTES[2:], Reject.LENGTH),  # authentication, but no room for it
        (BYTES[:2] + b"\0" + BYTES[3:], Reject.MULTIPLIER),
        (BYTES[:1] + b"\xe1" + BYTES[2:], Reject.MULTIPOINT),
        (BYTES[:4] + bytes(4) + BYTES[8:], Reject.MY_DISCRIMINATOR),
        (BYTES[:1] + b"\xe4\x03\x1a" + BYTES[4:] + b"\x01\x02", Reject.AUTHENTICATION),
        (BYTES[:1] + b"\xf0" + BYTES[2:], Reject.POLL_AND_FINAL),
        (BYTES[:8] + bytes(4) + BYTES[12:], Reject.YOUR_DISCRIMINATOR),
        (BYTES[:1] + b"\xa0" + BYTES[2:8] + bytes(4) + BYTES[12:], Reject.YOUR_DISCRIMINATOR),
    ],
)
def test_malformed(data: bytes, reason: Reject) -> None:
    assert decode(data) is reason


@pytest.mark.parametrize("state", [State.DOWN, State.ADMIN_DOWN])
def test_the_first_packets_know_no_discriminator_of_ours(state: State) -> None:
    first = Packet(state, 1)
    assert decode(encode(first)) == first


def test_what_follows_the_packet_is_ignored() -> None:
    assert decode(BYTES + b"more") == PACKET


@given(st.binary(max_size=64))
def test_any_bytes(data: bytes) -> None:
    found = decode(data)
    if isinstance(found, Packet):
        assert encode(replace(found, final=found.final))[:LENGTH] == data[:3] + b"\x18" + data[4:LENGTH]


@given(packets, st.integers(0, LENGTH * 8 - 1))
def test_one_flipped_bit(packet: Packet, bit: int) -> None:
    data = bytearray(encode(packet))
    data[bit // 8] ^= 1 << bit % 8
    found = decode(bytes(data))
    assert found != packet
