"""Frames larger than a page, in several buffers, by every way to a real; the oracle knows no buffers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.packets.cases_base import Case
from tests.packets.frames import padded, tcp, udp
from tests.packets.harness import Kernel
from tests.packets.test_frames import check
from tests.packets.world import WAYS, WEB_VIP, WEB_VIP6, WORLD, World, mode_vip, tags_vip

SIZES = (3600, 4096, 8000, 8900)  # bytes of payload


def _with_large_tunnels() -> World:
    services = tuple(
        replace(
            service,
            reals=tuple(replace(r, forwarding=replace(r.forwarding, mtu=9000)) for r in service.reals),
        )
        for service in WORLD.services
    )
    return replace(WORLD, services=services, near_mtu=9000, far_mtu=9000)


LARGE = _with_large_tunnels()


def _cases() -> Iterator[Case]:
    for size in SIZES:
        data = bytes(range(250)) * (size // 250) + bytes(size % 250)
        for vip in (WEB_VIP, WEB_VIP6):
            frame = tcp(vip, flags="A", payload=data)
            yield Case(f"l2_{size}_{vip.version}", "MAC addresses alone", frame, "forwarded_stable", LARGE)
            yield Case(
                f"padded_{size}_{vip.version}", "", padded(frame, len(frame) + 9), "forwarded_stable", LARGE
            )
            cut = frame[:-1]
            yield Case(f"cut_{size}_{vip.version}", "a byte is missing", cut, "bad_ip_header", LARGE)
        for family in (4, 6):
            pushed = tcp(tags_vip("qinq", "l2", family), flags="A", payload=data, sport=40003)
            yield Case(f"tags_{size}_{family}", "two tags", pushed, "forwarded_stable", LARGE)
            for way in [*WAYS, "dscp"]:
                datagram = udp(mode_vip(way, family), 53, payload=data, sport=40003)
                yield Case(f"{way}_{size}_{family}", "by every way", datagram, "forwarded_stable", LARGE)
            for way in WAYS:
                over = tcp(mode_vip(way, family), flags="A", payload=data, sport=40003)
                yield Case(f"{way}_{size}_{family}_too_big", "doesn't fit", over, "too_big_answered")


def _largest() -> Iterator[Case]:
    """An IPv6 packet can say of itself that it is larger than any that could be sent on, or told of."""
    for length, verdict in ((0xFFFF - 40, "forwarded_stable"), (0xFFFF - 39, "bad_ip_header"),
                            (0xFFFF, "bad_ip_header")):  # fmt: skip
        frame = tcp(WEB_VIP6, flags="A", payload=bytes(length - 20))
        yield Case(f"largest_{length}", "its length", frame, verdict)


CASES = [*_cases(), *_largest()]


@pytest.fixture(scope="module")
def kernel() -> Iterator[Kernel]:
    with Kernel(frags=True) as found:
        yield found


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_frame(kernel: Kernel, case: Case) -> None:
    kernel.install(case.world)
    assert case.expected.verdict == case.verdict, "the oracle disagrees with the case"
    check(case.expected, kernel.run(case.frame))
