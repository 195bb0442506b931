"""Endless frames for the differential fuzzer: the packet tests' own, changed with an idea of their structure.

Pure: the same seed gives the same frames. Checksums are not put right again; nothing in the way checks them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence

from tests.packets.frames import IP_AT, MIN_FRAME
from tests.packets.world import OUR_MAC, WORLD, RealSpec, Side
from vc5py.model import ForwardMode

_LONGEST = 1600
_HEADERS = 110  # bytes in which most headers are
_PORTS = (80, 53, 443, 22, 81, 0)
_PROTOCOLS = (6, 17, 1, 58, 0, 43, 44, 60, 4, 41, 47, 51, 59, 255)
_EDGES = (0, 1, 2, 3, 4, 5, 7, 8, 15, 16, 31, 32, 63, 64, 127, 128, 129, 254, 255)
_VIPS = {
    4: tuple({s.vip.packed for s in WORLD.services if s.vip.version == 4}),
    6: tuple({s.vip.packed for s in WORLD.services if s.vip.version == 6}),
}
_MACS = tuple(bytes.fromhex(mac.replace(":", "")) for mac in OUR_MAC.values())
Mutation = Callable[[random.Random, bytearray], None]


def _l3(frame: bytearray) -> tuple[int, int]:
    """Where the IP header is, and its version; 0 where there is none that can be read."""
    at = IP_AT
    for _ in range(3):
        if frame[at - 2 : at] == b"\x08\x00" and len(frame) >= at + 20:
            return at, 4
        if frame[at - 2 : at] == b"\x86\xdd" and len(frame) >= at + 40:
            return at, 6
        at += 4
    return 0, 0


def _l4(frame: bytearray) -> int:
    """Where TCP, UDP or ICMP would be without extension headers; 0 where nowhere."""
    at, version = _l3(frame)
    l4 = at + (40 if version == 6 else (frame[at] & 15) * 4) if version else 0
    return l4 if 0 < l4 <= len(frame) - 8 else 0


def flip_bit(r: random.Random, frame: bytearray) -> None:
    frame[r.randrange(min(len(frame), _HEADERS))] ^= 1 << r.randrange(8)


def set_byte(r: random.Random, frame: bytearray) -> None:
    frame[r.randrange(12, min(len(frame), _HEADERS))] = r.choice(_EDGES)


def truncate(r: random.Random, frame: bytearray) -> None:
    del frame[r.randrange(MIN_FRAME, len(frame) + 1) :]


def cut_packet(r: random.Random, frame: bytearray) -> None:
    """Shortens what the IP header says, and sometimes the frame with it."""
    at, version = _l3(frame)
    if not version:
        return
    size = r.randrange(0, min(len(frame) - at, 120) + 1)
    said = max(0, size - 40 if version == 6 else size) + r.choice((0, 0, 0, 1, -1))
    field = at + (4 if version == 6 else 2)
    frame[field : field + 2] = max(0, said).to_bytes(2, "big")
    if r.random() < 0.5:
        del frame[max(MIN_FRAME, at + size) :]


def extend(r: random.Random, frame: bytearray) -> None:
    frame += r.randbytes(r.choice((1, 7, 46, 200)))
    del frame[_LONGEST:]


def tag(r: random.Random, frame: bytearray) -> None:
    """One to three more tags."""
    for _ in range(r.randrange(1, 4)):
        frame[12:12] = r.choice((b"\x81\x00", b"\x88\xa8")) + r.randbytes(2)


def length(r: random.Random, frame: bytearray) -> None:
    """Lies about a length: of the IP header, the packet, the TCP header, the datagram."""
    at, version = _l3(frame)
    l4 = _l4(frame)
    if not version or not l4:
        return
    word = r.choice((0, 1, 7, 8, 19, 20, 21, 39, 40, 41, 60, len(frame) - at, len(frame), 0xFFFF))
    choice = r.randrange(4)
    if choice == 0:
        frame[at] = frame[at] & 0xF0 | r.randrange(16)
    elif choice == 1:
        field = at + (4 if version == 6 else 2)
        frame[field : field + 2] = word.to_bytes(2, "big")
    elif choice == 2 and len(frame) > l4 + 12:
        frame[l4 + 12] = r.randrange(256)
    else:
        frame[l4 + 4 : l4 + 6] = word.to_bytes(2, "big")


def fragment(r: random.Random, frame: bytearray) -> None:
    at, version = _l3(frame)
    if version == 4:
        frame[at + 6 : at + 8] = r.choice((0x2000, 0x2001, 1, 0x1FFF, 0x4000, 0xFFFF)).to_bytes(2, "big")
        frame[at + 4 : at + 6] = r.choice((b"\0\1", b"\0\2"))
    elif version == 6:
        word = r.choice((0, 1, 8, 9, 0xFFF8, 0xFFF9, 6)).to_bytes(2, "big")
        _insert(frame, at, 44, b"\0" + word + r.choice((b"\0\0\0\1", b"\0\0\0\2")))


def _insert(frame: bytearray, at: int, number: int, rest: bytes) -> None:
    """One more extension header behind the IPv6 header; `rest` is all of it but its first byte."""
    header = bytes([frame[at + 6]]) + rest
    frame[at + 6] = number
    frame[at + 40 : at + 40] = header
    said = int.from_bytes(frame[at + 4 : at + 6], "big") + len(header)
    frame[at + 4 : at + 6] = min(0xFFFF, said).to_bytes(2, "big")


def extension(r: random.Random, frame: bytearray) -> None:
    """One to seven more extension headers, sometimes with a length that lies."""
    at, version = _l3(frame)
    if version != 6:
        return
    for _ in range(r.choice((1, 1, 2, 3, 5, 6, 7))):
        number, units = r.choice((0, 43, 60)), r.choice((0, 0, 0, 1, 2))
        said = units if r.random() < 0.9 else r.choice(_EDGES)
        left = r.choice((0, 0, 0, 1)) if number == 43 else r.randrange(2)
        _insert(frame, at, number, bytes([said, 4, left]) + bytes(4 + units * 8))


def protocol(r: random.Random, frame: bytearray) -> None:
    at, version = _l3(frame)
    if version:
        frame[at + (6 if version == 6 else 9)] = r.choice(_PROTOCOLS)


def ports(r: random.Random, frame: bytearray) -> None:
    l4 = _l4(frame)
    if l4:
        frame[l4 : l4 + 2] = r.randrange(40000, 40032).to_bytes(2, "big")
        frame[l4 + 2 : l4 + 4] = r.choice(_PORTS).to_bytes(2, "big")


def flags(r: random.Random, frame: bytearray) -> None:
    l4 = _l4(frame)
    if l4 and len(frame) > l4 + 13:
        frame[l4 + 13] = r.choice((2, 16, 17, 4, 18, 24, r.randrange(256)))


def vip(r: random.Random, frame: bytearray) -> None:
    at, version = _l3(frame)
    if version:
        field, packed = at + (24 if version == 6 else 16), r.choice(_VIPS[version])
        frame[field : field + len(packed)] = packed


def client(r: random.Random, frame: bytearray) -> None:
    at, version = _l3(frame)
    if version:
        frame[at + (23 if version == 6 else 15)] = r.randrange(8)


def hops(r: random.Random, frame: bytearray) -> None:
    at, version = _l3(frame)
    if version:
        frame[at + (7 if version == 6 else 8)] = r.choice((0, 1, 2, 255))


def traffic_class(r: random.Random, frame: bytearray) -> None:
    at, version = _l3(frame)
    if version == 4:
        frame[at + 1] = r.randrange(256)
    elif version == 6:
        frame[at : at + 2] = (0x6000 | r.randrange(0x1000)).to_bytes(2, "big")


def checksum(r: random.Random, frame: bytearray) -> None:
    """Around where sums carry."""
    at, version = _l3(frame)
    l4 = _l4(frame)
    if version == 4 and r.random() < 0.5:
        frame[at + 10 : at + 12] = r.choice((b"\0\0", b"\xff\xff", b"\xfe\xff", b"\xff\xfe", b"\xfe\xfe"))
    elif l4 and len(frame) >= l4 + 18:
        field = l4 + r.choice((2, 6, 16))
        frame[field : field + 2] = r.choice((b"\0\0", b"\xff\xff", b"\xfe\xff", r.randbytes(2)))


def mac(r: random.Random, frame: bytearray) -> None:
    frame[:6] = r.choice(_MACS)


def source(r: random.Random, frame: bytearray) -> None:
    """One of those that nobody may answer, or the next to it."""
    at, version = _l3(frame)
    if version == 4:
        frame[at + 12] = r.choice((0, 1, 126, 127, 128, 223, 224, 239, 240, 255))
    elif version == 6:
        frame[at + 8 : at + 24] = r.choice((b"", b"\xff\2", b"\xfe\xff")).ljust(15, b"\0") + r.choice(
            (b"\0", b"\1", b"\2")
        )


def quoted_ports(r: random.Random, frame: bytearray) -> None:
    """The VIP's port comes first: the quoted packet is from there."""
    l4 = _l4(frame)
    if l4:
        frame[l4 : l4 + 2] = r.choice(_PORTS).to_bytes(2, "big")
        frame[l4 + 2 : l4 + 4] = r.randrange(40000, 40032).to_bytes(2, "big")


def quoted_client(r: random.Random, frame: bytearray) -> None:
    at, version = _l3(frame)
    if version:
        frame[at + (39 if version == 6 else 19)] = r.randrange(8)


_ERRORS = {(4, 1): (3, 11, 12), (6, 58): (1, 2, 3, 4)}
_QUOTED: Sequence[Mutation] = (
    flip_bit, set_byte, truncate, truncate, cut_packet, extend, length, length, fragment, fragment, extension,
    extension, protocol, protocol, quoted_ports, quoted_client,
)  # fmt: skip


def quote(r: random.Random, frame: bytearray) -> None:
    """Changes the packet that an ICMP error quotes; the packet around it mostly says how long it is then."""
    at, version = _l3(frame)
    l4 = _l4(frame)
    if not l4 or frame[l4] not in _ERRORS.get((version, frame[at + (6 if version == 6 else 9)]), ()):
        return
    inner = bytearray(12) + (b"\x86\xdd" if version == 6 else b"\x08\x00") + frame[l4 + 8 :]
    for _ in range(r.choice((1, 1, 2, 3))):
        r.choice(_QUOTED)(r, inner)
        if len(inner) < MIN_FRAME + 2:
            break
    frame[l4 + 8 :] = inner[MIN_FRAME:]
    if r.random() < 0.9:
        field, said = (at + 4, len(frame) - at - 40) if version == 6 else (at + 2, len(frame) - at)
        frame[field : field + 2] = said.to_bytes(2, "big")


MUTATIONS: Sequence[Mutation] = (
    flip_bit, flip_bit, set_byte, truncate, cut_packet, extend, tag, length, fragment, extension, protocol,
    ports, flags, vip, client, hops, traffic_class, checksum, mac, source, quote, quote, quote,
)  # fmt: skip
# What may be wrong with a frame of our own: a socket's has neither tags nor extension headers.
_OWN: Sequence[Mutation] = tuple(
    change for change in MUTATIONS if change not in (tag, fragment, extension, mac, quote, flip_bit)
)


def mutated(
    r: random.Random, corpus: Sequence[bytes], side: Side, mutations: Sequence[Mutation] = MUTATIONS
) -> bytes:
    """One of the corpus with up to four changes, addressed to the interface of that side."""
    frame = bytearray(r.choice(corpus))
    frame[:6] = _MACS[list(OUR_MAC).index(side)]
    for _ in range(r.randrange(5)):
        r.choice(mutations)(r, frame)
        if len(frame) < MIN_FRAME + 2:
            break
    return bytes(frame[:_LONGEST])


def frames(seed: int, corpus: Sequence[bytes], side: Side) -> Iterator[bytes]:
    r = random.Random(seed)
    while True:
        yield mutated(r, corpus, side)


def own_frames(
    seed: int, corpus: Sequence[bytes], reals: Sequence[RealSpec | None]
) -> Iterator[tuple[bytes, RealSpec | None]]:
    """Frames of our own, each with the real that its mark names; for L3 DSR one of the frame's IP version.

    Frames that end within the IP header are left out: the kernel runs none.
    """
    r = random.Random(seed)
    while True:
        frame, real = mutated(r, corpus, Side.NEAR, _OWN), r.choice(reals)
        least, version = _OWN_TYPES.get(frame[12:14], (MIN_FRAME + 1, 0))
        marked = real is not None and real.forwarding.mode is ForwardMode.DSCP
        if len(frame) >= least and not (marked and real and real.address.version != version):
            yield frame, real


# The least bytes of a frame, and the IP version, by ethertype.
_OWN_TYPES = {b"\x08\x00": (IP_AT + 20, 4), b"\x86\xdd": (IP_AT + 40, 6)}
