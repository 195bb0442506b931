"""Cases of plain IPv4: what is not for us, services, shapes, lies, truncation and flows."""

from __future__ import annotations

from collections.abc import Iterator

from tests.packets import frames
from tests.packets.cases_base import (
    L4_AT,
    REAL_11,
    REAL_12,
    REAL_14,
    WEB_11_DOWN,
    WEB_11_DRAINING,
    Case,
    entry,
    sampled_port,
)
from tests.packets.frames import IP_AT, MIN_FRAME, ether, lying, padded, patched, tcp, udp
from tests.packets.harness import Entry
from tests.packets.world import (
    DARK_VIP,
    DRAINED_VIP,
    FAR_VIP,
    LOST_VIP,
    MIXED_VIP,
    NO_VIP,
    OUR_MAC,
    WEB_VIP,
    WORLD,
    Side,
)
from vc5py.dataplane.abi import FlowState

SAMPLED, SAMPLED_UDP = sampled_port(), sampled_port("udp", dport=443)
SAMPLED_MIXED = sampled_port(vip=MIXED_VIP)


def _not_for_us() -> Iterator[Case]:
    yield Case("arp", "who has the VIP?", frames.arp_request(), "not_ip")
    yield Case("ethertype_local", "no protocol of ours", bytes(ether(type=0x88B5)) + bytes(46), "not_ip")
    yield Case("ethernet_length", "802.3 with a length", bytes(ether(type=46)) + bytes(46), "not_ip")
    yield Case("ethernet_only", "a bare Ethernet header", bytes(ether(type=0x88B5)), "not_ip")
    yield Case("other_host", "TCP to another address", tcp(NO_VIP), "not_vip")
    yield Case("other_host_udp", "UDP to another address", udp(NO_VIP), "not_vip")
    yield Case("other_ping", "ICMP to another address", frames.ping(NO_VIP), "not_vip")
    yield Case("other_fragment", "a fragment to another address", tcp(NO_VIP, flags="A", frag=5), "not_vip")
    yield Case("other_ttl", "a dying packet to another address", tcp(NO_VIP, ttl=1), "not_vip")
    yield Case("other_lies", "a bad header to another address", lying(tcp(NO_VIP), IP_AT, b"\x44"), "not_vip")
    yield Case("real_address", "to a real itself", tcp(REAL_11), "not_vip")
    yield Case("from_vip", "a VIP as the source only", tcp(NO_VIP, src=WEB_VIP), "not_vip")


def _macs() -> Iterator[Case]:
    for name, mac in {
        "other_mac": "02:00:00:00:00:77",
        "broadcast_mac": "ff:ff:ff:ff:ff:ff",
        "multicast_mac": "01:00:5e:00:00:01",
        "far_mac_near": OUR_MAC[Side.FAR],
        "last_byte_differs": "02:00:00:00:00:03",
        "first_byte_differs": "00:00:00:00:00:01",
    }.items():
        yield Case(name, f"for a VIP, addressed to {mac}", tcp(link=ether(dst=mac)), "not_our_mac")
    near = tcp(link=ether(dst=OUR_MAC[Side.NEAR]))
    yield Case("near_mac_far", "the near MAC on the far interface", near, "not_our_mac", side=Side.FAR)


def _services() -> Iterator[Case]:
    yield Case("tcp_syn", "a new connection", tcp(), "forwarded_stable")
    yield Case("tcp_ack", "the middle of an unknown connection", tcp(flags="A"), "forwarded_stable")
    yield Case(
        "tcp_payload", "with data", tcp(flags="PA", payload=b"GET / HTTP/1.1\r\n\r\n"), "forwarded_stable"
    )
    yield Case("tcp_full_size", "1,500 bytes", tcp(flags="A", payload=bytes(1460)), "forwarded_stable")
    yield Case("tcp_null", "no flag at all", tcp(flags=""), "forwarded_stable")
    yield Case("tcp_xmas", "all flags", tcp(flags="FSRPAUEC"), "forwarded_ending")
    yield Case("tcp_fin", "the end of an unknown connection", tcp(flags="FA"), "forwarded_ending")
    yield Case("tcp_rst", "a reset of an unknown connection", tcp(flags="R"), "forwarded_ending")
    yield Case("udp", "a datagram", udp(), "forwarded_stable")
    yield Case("udp_empty", "without payload", udp(payload=b""), "forwarded_stable")
    yield Case("udp_no_checksum", "checksum 0", patched(udp(), L4_AT + 6, b"\0\0"), "forwarded_stable")
    yield Case(
        "udp_like_fin", "TCP's flags mean nothing in UDP", udp(payload=b"\xff" * 20), "forwarded_stable"
    )
    yield Case("port_22", "the other service of the VIP", tcp(dport=22), "forwarded_stable")
    yield Case("unknown_port", "no such service", tcp(dport=81), "no_service")
    yield Case("unknown_protocol", "port 80 by UDP", udp(dport=80), "no_service")
    yield Case("port_0_tcp", "port 0", tcp(dport=0), "no_service")
    yield Case("port_0_udp", "port 0", udp(dport=0), "no_service")
    yield Case("byte_swapped_port", "80 the wrong way round", tcp(dport=0x5000), "no_service")
    yield Case("dark", "no real is up", tcp(DARK_VIP), "no_backend")
    yield Case("drained", "up, but takes no new flow", tcp(DRAINED_VIP), "no_backend")
    yield Case("no_neighbour", "the real's MAC is not known", tcp(LOST_VIP), "no_neighbour")
    far_real = WORLD.service("far").reals[0]
    assert far_real.mac is not None
    looped = tcp(FAR_VIP, 53, link=ether(src=far_real.mac))
    yield Case("looped", "the real sends the client's packet back", looped, "looped")
    yield Case("land", "the VIP talks to itself", tcp(src=WEB_VIP, sport=80), "forwarded_stable")


def _interfaces() -> Iterator[Case]:
    yield Case("near_to_far", "the real is on the other interface", tcp(FAR_VIP, 53), "forwarded_stable")
    yield Case("near_to_far_udp", "the same by UDP", udp(FAR_VIP, 53), "forwarded_stable")
    far = ether(dst=OUR_MAC[Side.FAR])
    yield Case(
        "far_to_far", "out where it came in", tcp(FAR_VIP, 53, link=far), "forwarded_stable", side=Side.FAR
    )
    yield Case("far_to_near", "the other way", tcp(link=far), "forwarded_stable", side=Side.FAR)


def _shapes() -> Iterator[Case]:
    for words in range(1, 11):
        frame = tcp()
        header = bytes([0x45 + words]) + frame[IP_AT + 1 : L4_AT] + b"\x01" * (words * 4)
        longer = frame[:IP_AT] + header + frame[L4_AT:]
        sized = lying(longer, IP_AT + 2, (40 + words * 4).to_bytes(2, "big"))
        yield Case(f"ip_options_{words}", f"{words * 4} bytes of IP options", sized, "forwarded_stable")
    for n in range(1, 10):
        yield Case(
            f"odd_length_{n}", f"{n} bytes of payload", tcp(flags="A", payload=bytes(n)), "forwarded_stable"
        )
    yield Case("padding", "padded to 60 bytes", padded(udp(payload=b"x")), "forwarded_stable")
    yield Case("padding_noise", "padded with ones", padded(tcp(), 60, b"\xff"), "forwarded_stable")
    yield Case("long_padding", "padded to 1,514", padded(tcp(), 1514, b"\xaa"), "forwarded_stable")
    syn = [("MSS", 1460), ("SAckOK", b""), ("Timestamp", (1, 0)), ("NOP", None), ("WScale", 7)]
    yield Case("tcp_options", "the options of a real SYN", tcp(options=syn), "forwarded_stable")
    yield Case(
        "tcp_all_options", "60 bytes of TCP header", tcp(options=[("NOP", None)] * 40), "forwarded_stable"
    )
    for tos in (0x03, 0xB8, 0xFF):
        yield Case(f"tos_{tos:02x}", "traffic class and ECN are kept", tcp(tos=tos), "forwarded_stable")
    yield Case("df_bit", "DF set", lying(tcp(), IP_AT + 6, b"\x40\0"), "forwarded_stable")
    yield Case(
        "evil_bit", "the reserved bit (RFC 3514)", lying(tcp(), IP_AT + 6, b"\x80\0"), "forwarded_stable"
    )


def _ttl() -> Iterator[Case]:
    for ttl in (0, 1):
        yield Case(f"ttl_{ttl}", "would die", tcp(ttl=ttl), "ttl_expired")
    for ttl in (2, 3, 64, 127, 128, 129, 254, 255):
        yield Case(f"ttl_{ttl}", "lives on", tcp(ttl=ttl), "forwarded_stable")
    for checksum in (0x0000, 0x0001, 0xFDFF, 0xFE00, 0xFEFE, 0xFEFF, 0xFF00, 0xFFFE):
        frame = with_ip_checksum(tcp(), checksum)
        yield Case(f"checksum_{checksum:04x}", "around the carry", frame, "forwarded_stable")
    for checksum in (0x1234, 0xFEFF, 0xFFFF):
        frame = patched(tcp(), IP_AT + 10, checksum.to_bytes(2, "big"))
        yield Case(
            f"wrong_checksum_{checksum:04x}", "stays wrong: the real decides", frame, "forwarded_stable"
        )


def with_ip_checksum(frame: bytes, checksum: int) -> bytes:
    """The frame with the IP ID that gives its header this checksum (not 0xffff, which no header has)."""
    zeroed = lying(frame, IP_AT + 4, b"\0\0")
    # Ones' complement: the ID adds to the sum what the checksum lacks.
    now = int.from_bytes(zeroed[IP_AT + 10 : IP_AT + 12], "big")
    wanted = (now - checksum) % 0xFFFF
    result = lying(zeroed, IP_AT + 4, wanted.to_bytes(2, "big"))
    assert result[IP_AT + 10 : IP_AT + 12] == checksum.to_bytes(2, "big")
    return result


def _protocols() -> Iterator[Case]:
    for number in (0, 2, 4, 5, 7, 16, 18, 41, 47, 50, 58, 132, 255):
        frame = frames.other_protocol(number)
        yield Case(f"protocol_{number}", "neither TCP nor UDP", frame, "unsupported_protocol")


def _lies() -> Iterator[Case]:
    """Headers that contradict themselves or the frame, the checksum right all the same."""
    for version in (0, 5, 6, 15):
        frame = lying(tcp(), IP_AT, bytes([version << 4 | 5]))
        yield Case(f"version_{version}", "not version 4", frame, "bad_ip_header")
    for ihl in range(5):
        frame = lying(tcp(), IP_AT, bytes([0x40 | ihl]))
        yield Case(f"ihl_{ihl}", "a header shorter than its fixed part", frame, "bad_ip_header")
    yield Case("ihl_beyond", "a header longer than the packet", lying(tcp(), IP_AT, b"\x4f"), "bad_ip_header")
    for total in (0, 1, 19, 41, 1500, 65535):
        frame = lying(tcp(), IP_AT + 2, total.to_bytes(2, "big"))
        yield Case(f"tot_len_{total}", "not 40", frame, "bad_ip_header")
    frame = lying(padded(tcp()), IP_AT + 2, (47).to_bytes(2, "big"))
    yield Case("tot_len_past_padding", "one byte more than there is", frame, "bad_ip_header")
    for total in (20, 21, 39):
        frame = lying(tcp(), IP_AT + 2, total.to_bytes(2, "big"))
        yield Case(f"tot_len_{total}", "the TCP header lies in the padding", frame, "bad_l4_header")
    for total in (20, 27):
        frame = lying(udp(), IP_AT + 2, total.to_bytes(2, "big"))
        yield Case(f"udp_tot_len_{total}", "the UDP header lies in the padding", frame, "bad_l4_header")
    for doff in (0, 1, 4):
        frame = patched(tcp(), L4_AT + 12, bytes([doff << 4]))
        yield Case(f"doff_{doff}", "a header shorter than its fixed part", frame, "bad_l4_header")
    for doff in (6, 15):
        frame = patched(tcp(), L4_AT + 12, bytes([doff << 4]))
        yield Case(f"doff_{doff}", "a header longer than the segment", frame, "bad_l4_header")
    for length in (0, 1, 7, 14, 65535):
        yield Case(f"udp_length_{length}", "not 13", udp(length=length), "bad_l4_header")
    for length in (0, 7, 41, 65535):  # a longer one, as a whole TCP header would be
        lie = udp(payload=bytes(32), length=length)
        yield Case(f"udp_long_length_{length}", "not 40", lie, "bad_l4_header")
    yield Case("udp_length_8", "less than the packet has: legal", udp(length=8), "forwarded_stable")


def _truncated() -> Iterator[Case]:
    """Every frame cut off at every byte."""
    whole = {"tcp": tcp(flags="PA", payload=b"12345"), "udp": udp(), "ping": frames.ping()}
    for name, frame in whole.items():
        for size in range(MIN_FRAME, len(frame)):
            verdict = "unreadable" if size < L4_AT else "bad_ip_header"
            yield Case(f"cut_{name}_{size}", f"{size} bytes of {len(frame)}", frame[:size], verdict)
    for name, first in (("tcp", 20), ("udp", 8)):
        frame = whole[name]
        for size in range(L4_AT, L4_AT + first):
            # The IP header agrees with the cut: only the next header is short.
            cut = lying(frame[:size], IP_AT + 2, (size - IP_AT).to_bytes(2, "big"))
            yield Case(f"short_{name}_{size - L4_AT}", "a truncated L4 header", cut, "bad_l4_header")


def _flows() -> Iterator[Case]:
    data, start, end = (tcp(flags=flags, sport=SAMPLED) for flags in ("A", "S", "FA"))
    yield Case("unknown_sampled", "recorded in the tick of its sampling", data, "forwarded_new")
    yield Case(
        "stable_known",
        "what the table knows isn't asked for",
        tcp(flags="A"),
        "forwarded_stable",
        entry=entry(),
    )
    yield Case("stable_udp_sampled", "recorded likewise", udp(sport=SAMPLED_UDP), "forwarded_new")
    for address in (REAL_11, REAL_12):
        for second in (False, True):
            where = "second" if second else "first"
            name = f"flow_{address.packed[3]}_{where}_set"
            yield Case(
                name,
                f"known, in its {where} set",
                data,
                "forwarded_flow",
                entry=entry(address, second=second),
            )
            rehashed = Case(
                f"{name}_down", "its real went down", data, "forwarded_rehashed",
                WORLD.with_real("web", address, up=False, weight=0), entry=entry(address, second=second),
            )  # fmt: skip
            yield rehashed
    yield Case("flow_end", "a known flow's FIN", end, "forwarded_flow", entry=entry())
    yield Case("flow_syn", "a SYN of a known flow", start, "forwarded_flow", entry=entry())
    yield Case("flow_end_down", "a FIN, real down", end, "forwarded_ending", WEB_11_DOWN, entry=entry())
    yield Case("flow_old", "an expired entry is still right", data, "forwarded_flow", entry=entry(age=40000))
    yield Case("flow_draining", "to its end", data, "forwarded_flow", WEB_11_DRAINING, entry=entry())
    yield Case("drain_new", "no new flow", start, "forwarded_new", WEB_11_DRAINING)
    mixed = WORLD.service("mixed")
    drained = Entry("mixed", mixed.reals[2], FlowState.ESTABLISHED)
    yield Case(
        "mixed_drained",
        "weight 0, one known flow",
        tcp(MIXED_VIP, flags="A", sport=SAMPLED_MIXED),
        "forwarded_flow",
        entry=drained,
    )
    far = Entry("mixed", mixed.reals[1], FlowState.PROVING)
    yield Case(
        "mixed_far",
        "a known flow to the far side",
        tcp(MIXED_VIP, flags="A", sport=SAMPLED_MIXED),
        "forwarded_flow",
        entry=far,
    )
    shell = Entry("shell", WORLD.service("shell").real(REAL_14), FlowState.ESTABLISHED)
    yield Case("entry_of_other_service", "hash alone is not enough", data, "forwarded_rehashed", entry=shell)
    yield Case("torn_first", "a torn entry is a miss", data, "forwarded_new", entry=entry(), torn=True)
    torn = entry(second=True)
    yield Case("torn_second", "a torn entry is a miss", data, "forwarded_new", entry=torn, torn=True)
    yield Case("crowded", "both sets hold established flows", start, "forwarded_unrecorded", crowded=True)
    yield Case("crowded_end", "a FIN is never recorded", end, "forwarded_ending", crowded=True)
    ttl = tcp(flags="A", ttl=1)
    yield Case("flow_ttl", "also known flows die", ttl, "ttl_expired", entry=entry())


IPV4 = [
    *_not_for_us(),
    *_macs(),
    *_services(),
    *_interfaces(),
    *_shapes(),
    *_ttl(),
    *_protocols(),
    *_lies(),
    *_truncated(),
    *_flows(),
]
