"""Native XDP on interfaces with large MTUs, on a real kernel: what a driver refuses and how that is said."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.unit.test_netlink_bonds import (
    BOND,
    InNetwork,
    bpf_dir,
    forwarded,
    in_network,
    ip,
    link_of,
    running,
)
from vc5py.dataplane import compiler
from vc5py.dataplane.netlink import Netlink, XdpMode
from vc5py.errors import DataplaneError

__all__ = ["bpf_dir", "in_network"]


@pytest.fixture(autouse=True)
def root() -> None:
    if os.geteuid() != 0:
        pytest.fail("these tests make network namespaces: run them as root", pytrace=False)


JUMBO = 9000


@contextmanager
def program(*, frags: bool) -> Iterator[int]:
    """An XDP program that leaves all frames alone."""
    with tempfile.NamedTemporaryFile("w", suffix=".c") as source:
        source.write("#include <linux/bpf.h>\nint leave(struct xdp_md *ctx) { return XDP_PASS; }\n")
        source.flush()
        module = compiler.compile_file(Path(source.name), {})
    fd = module.load("leave", compiler.ProgramType.XDP, frags=frags)
    try:
        yield fd
    finally:
        os.close(fd)


def set_mtu(mtu: int, *links: str) -> None:
    for name in links or ("far", "peer-far"):
        ip(f"link set dev {name} mtu {mtu}")


async def attach(fd: int, *modes: XdpMode) -> tuple[XdpMode, str]:
    async with Netlink.open() as netlink:
        link = await link_of(netlink, "far")
        result = await netlink.attach_xdp(link, fd, modes, None)
        await netlink.detach_xdp(link, fd)
        return result


def test_a_refusal_because_of_the_mtu_names_the_remedy(in_network: InNetwork) -> None:
    async def play() -> None:
        set_mtu(JUMBO)
        with program(frags=False) as fd:
            with pytest.raises(
                DataplaneError, match=r"far .*native: .*MTU of 9000.*ip link set dev far mtu 3050"
            ):
                await attach(fd, XdpMode.NATIVE)
            mode, refusal = await attach(fd, XdpMode.NATIVE, XdpMode.GENERIC)
            assert mode is XdpMode.GENERIC and "MTU of 9000" in refusal
            set_mtu(3050)
            assert await attach(fd, XdpMode.NATIVE) == (XdpMode.NATIVE, "")

    in_network(play)


def test_a_program_for_several_buffers_is_taken_natively(in_network: InNetwork) -> None:
    async def play() -> None:
        set_mtu(JUMBO)
        with program(frags=True) as fd:
            assert await attach(fd, XdpMode.NATIVE) == (XdpMode.NATIVE, "")

    in_network(play)


def test_jumbo_frames_are_forwarded_natively(in_network: InNetwork, bpf_dir: Path) -> None:
    """From one interface to another; the far ends need programs of their own, being veth's."""

    async def play() -> None:
        set_mtu(JUMBO, "far", "peer-far", "m1", "peer-m1", "m2", "peer-m2")
        with program(frags=True) as fd:
            async with Netlink.open() as netlink:
                for name in ("peer-far", "peer-m1"):
                    await netlink.attach_xdp(await link_of(netlink, name), fd, (XdpMode.NATIVE,), None)
            async with running(bpf_dir, BOND, "far", mode=None) as driver:
                assert driver.modes == dict.fromkeys(("m1", "m2", "far"), XdpMode.NATIVE)
                for came_in in ("far", "m1"):
                    seen = await forwarded(came_in, "m1", payload=8900)
                    assert len(seen) == 14 + 40 + 8900
                await driver.detach()

    in_network(play)
