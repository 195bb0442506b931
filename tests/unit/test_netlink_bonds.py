"""The driver on a real kernel with an interface of several members, which join, fail and leave.

Where the kernel has no bonds, a bridge plays one: to netlink its ports are what a bond's members are, and XDP
sees frames before either does. What a bond alone says, which member is the active one, is in test_netlink.py.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import socket
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import Ether

from vc5py.dataplane import abi, compiler, libbpf, links, neighbours
from vc5py.dataplane.driver import Driver, Options
from vc5py.dataplane.netlink import Netlink, XdpMode
from vc5py.errors import DataplaneError
from vc5py.model import (
    BackendId,
    BackendState,
    Config,
    Desired,
    Protocol,
    Real,
    Service,
    ServiceState,
    VirtualServiceId,
    Vlan,
)


@pytest.fixture(autouse=True)
def root() -> None:
    if os.geteuid() != 0:
        pytest.fail("these tests make network namespaces: run them as root", pytrace=False)


VIP, REAL, CLIENT = IPv4Address("192.0.2.1"), IPv4Address("10.9.0.2"), IPv4Address("198.51.100.7")
REAL_MAC = "02:00:00:00:09:02"
MACS = {name: f"02:00:00:00:00:0{n}" for n, name in enumerate(("m1", "m2", "m3", "far", "bond"), start=1)}
BOND = "bond"
Play = Callable[[], Awaitable[None]]
InNetwork = Callable[[Play], None]
_CLONE_NEWNET = 0x40000000
_ETH_P_ALL = 3


def ip(command: str) -> None:
    subprocess.run(["ip", *command.split()], check=True, capture_output=True)


def _build() -> None:
    """Of every link a frame can be put in, and is seen, at its peer (`peer-m1`); `m3` is not a member yet.
    No address is tentative, for nothing is to change by itself later.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.unshare(_CLONE_NEWNET) == 0
    Path("/proc/sys/net/ipv6/conf/default/accept_dad").write_text("0", encoding="ascii")
    ip("link add bond type bridge")
    ip(f"link set bond address {MACS[BOND]} up")
    for name in ("m1", "m2", "m3", "far"):
        ip(f"link add name {name} address {MACS[name]} type veth peer name peer-{name}")
        ip(f"link set peer-{name} up")
        ip(f"link set {name} up")
    for name in ("m1", "m2"):
        ip(f"link set {name} master bond")
    ip("addr add 10.9.0.1/24 dev bond")
    ip("addr add 10.8.0.1/24 dev far")
    ip(f"neigh add {REAL} lladdr {REAL_MAC} dev bond nud permanent")


@pytest.fixture
def in_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[InNetwork]:
    """Runs a coroutine in a network namespace that vanishes with its thread; events alone count."""
    monkeypatch.setattr(neighbours, "REFRESH_S", 3600.0)
    monkeypatch.setattr(links, "BOND_KINDS", frozenset({"bridge"}))
    with ThreadPoolExecutor(max_workers=1) as thread:
        thread.submit(_build).result(timeout=60)

        def run(play: Play) -> None:
            async def bounded() -> None:
                async with asyncio.timeout(100):
                    await play()

            thread.submit(asyncio.run, bounded()).result(timeout=120)

        yield run


@pytest.fixture
def bpf_dir(tmp_path: Path) -> Iterator[Path]:
    mount = tmp_path / "bpf"
    mount.mkdir()
    subprocess.run(["mount", "-t", "bpf", "bpf", str(mount)], check=True)
    yield mount / "vc5py"
    subprocess.run(["umount", "--lazy", str(mount)], check=True)


CONFIG = Config((Service("web", "", (VIP,), (80,), (Protocol.TCP,), (Real(REAL),), 1, ()),))
_ID = VirtualServiceId("web", VIP)
_UP = BackendState(BackendId("web", VIP, REAL), up=True, weight=1)
DESIRED = Desired((ServiceState(_ID, ((80, Protocol.TCP),), (_UP,)),))


@asynccontextmanager
async def running(
    bpf_dir: Path, *names: str, mode: XdpMode | None = XdpMode.GENERIC
) -> AsyncIterator[Driver]:
    """A balancer's data plane, as the app runs it; it stays attached afterwards."""
    async with Driver.open(CONFIG, Options(names, bpf_dir, mode)) as driver:
        driver.dataplane.apply(DESIRED)
        await driver.resolve(DESIRED)
        await driver.attach()
        async with asyncio.TaskGroup() as group:
            task = group.create_task(driver.neighbours.run())
            await until("events are listened for", listening)
            yield driver
            task.cancel()


async def listening() -> bool:
    """Whether a netlink socket of this namespace is in the group of link events (its first one)."""
    rows = Path("/proc/thread-self/net/netlink").read_text(encoding="ascii").splitlines()[1:]
    return any(int(row.split()[3], 16) & 1 for row in rows if row.split()[1] == "0")


async def until(what: str, happened: Callable[[], Awaitable[bool]]) -> None:
    for _ in range(3000):
        if await happened():
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"did not happen: {what}")


async def has_program(name: str) -> bool:
    async with Netlink.open() as netlink:
        return await netlink.attached_xdp(await link_of(netlink, name)) is not None


async def link_of(netlink: Netlink, name: str) -> links.Link:
    return next(link for link in await netlink.links() if link.name == name)


def exit_of(bpf_dir: Path, name: str) -> str | None:
    """The link that the devmap leads to."""
    fd = libbpf.get_pinned(bpf_dir / abi.layout_hash() / "ports")
    try:
        found = libbpf.lookup(fd, socket.if_nametoindex(name).to_bytes(4, "little"))
    finally:
        os.close(fd)
    return socket.if_indextoname(int.from_bytes(found, "little")) if found else None


def vlan_of(bpf_dir: Path, driver: Driver) -> int | None:
    """The tag that frames to the real get; None: they keep those they have."""
    mark = driver.dataplane.mark_of(_UP.id)
    assert mark is not None
    fd = libbpf.get_pinned(bpf_dir / abi.layout_hash() / "backends")
    try:
        everything = libbpf.lookup(fd, bytes(4))  # one value, which is the whole array
    finally:
        os.close(fd)
    assert everything is not None
    start = (mark & ~abi.PROBE_MARK_MASK) * abi.BACKEND.itemsize
    link, place = (int.from_bytes(everything[at : at + 8], "little") for at in (start, start + 8))
    return place >> 32 & 0xFFFF if link >> 48 & abi.BACKEND_SET_TAGS else None


def egress_filters(name: str) -> str:
    return subprocess.run(
        ["tc", "filter", "show", "dev", name, "egress"], check=False, capture_output=True, text=True
    ).stdout


@contextmanager
def tap(name: str) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL)) as found:
        found.bind((f"peer-{name}", _ETH_P_ALL))
        found.setblocking(False)
        yield found


async def forwarded(came_in: str, leaves: str, payload: int = 0) -> Ether:
    """The frame that leaves by one link for the real after a client's came in by another."""
    loop = asyncio.get_running_loop()
    packet = IP(src=str(CLIENT), dst=str(VIP)) / TCP(sport=4001, dport=80, flags="S") / bytes(payload)
    frame = bytes(Ether(dst=MACS[came_in], src="02:00:00:00:00:fe") / packet)
    with tap(came_in) as client, tap(leaves) as real:
        client.send(frame)
        async with asyncio.timeout(20):
            while True:
                seen = Ether(await loop.sock_recv(real, 10000))
                if seen.dst == REAL_MAC:
                    return seen


@pytest.mark.parametrize("member", ["m1", "m2"])
def test_frames_leave_by_the_member_they_came_in_by(
    in_network: InNetwork, bpf_dir: Path, member: str
) -> None:
    async def play() -> None:
        async with running(bpf_dir, BOND) as driver:
            assert driver.modes == {"m1": XdpMode.GENERIC, "m2": XdpMode.GENERIC}
            assert (await forwarded(member, member)).src == MACS[member]
            await driver.detach()

    in_network(play)


def test_frames_from_elsewhere_leave_by_a_member_that_can_send(in_network: InNetwork, bpf_dir: Path) -> None:
    async def play() -> None:
        async def leads_to(name: str | None) -> bool:
            return exit_of(bpf_dir, BOND) == name

        async with running(bpf_dir, BOND, "far") as driver:
            assert (await forwarded("far", "m1")).src == MACS[BOND]
            ip("link set peer-m1 down")
            await until("m2 takes over", lambda: leads_to("m2"))
            assert (await forwarded("far", "m2")).src == MACS[BOND]
            ip("link set peer-m2 down")
            await until("no way out", lambda: leads_to(None))
            ip("link set peer-m1 up")
            await until("m1 again", lambda: leads_to("m1"))
            assert exit_of(bpf_dir, "far") == "far"
            await driver.detach()

    in_network(play)


def test_members_join_and_leave(in_network: InNetwork, bpf_dir: Path) -> None:
    async def play() -> None:
        async with running(bpf_dir, BOND) as driver:
            assert not await has_program("m3")
            ip("link set m3 master bond")
            await until("m3 has joined", lambda: has_program("m3"))
            await forwarded("m3", "m3")
            assert set(driver.modes) == {"m1", "m2", "m3"}
            ip("link set m3 nomaster")
            await until("m3 has left", lambda: has_no_program("m3"))
            ip("link del m1")
            await until("m1 has left", lambda: modes_are(driver, {"m2"}))
            await forwarded("m2", "m2")
            await driver.detach()
            assert not await has_program("m2")

    in_network(play)


async def has_no_program(name: str) -> bool:
    return not await has_program(name)


async def modes_are(driver: Driver, names: set[str]) -> bool:
    return set(driver.modes) == names


def test_a_bond_may_be_empty_at_first(in_network: InNetwork, bpf_dir: Path) -> None:
    async def play() -> None:
        ip("link set m1 nomaster")
        ip("link set m2 nomaster")
        async with running(bpf_dir, BOND, "far") as driver:
            assert set(driver.modes) == {"far"}
            ip("link set m2 master bond")
            await until("m2 has joined", lambda: has_program("m2"))
            await forwarded("m2", "m2")
            await driver.detach()

    in_network(play)


def test_probes_are_steered_once_on_the_bond_itself(in_network: InNetwork, bpf_dir: Path) -> None:
    """Also where an earlier run, killed since, steered them on what is a member now."""

    async def play() -> None:
        ip("link set m3 master bond")
        ip("link set m1 nomaster")
        async with running(bpf_dir, "m1"):
            assert "vc5_egress" in egress_filters("m1")
        ip("link set m1 master bond")
        async with running(bpf_dir, BOND) as driver:
            assert "vc5_egress" in egress_filters(BOND)
            assert not any(map(egress_filters, ("m1", "m2", "m3")))
            await driver.detach()
            assert not egress_filters(BOND)

    in_network(play)


def test_a_bond_that_is_no_longer_named_is_left(in_network: InNetwork, bpf_dir: Path) -> None:
    async def play() -> None:
        async with running(bpf_dir, BOND):
            assert await has_program("m1")
        async with running(bpf_dir, "far") as driver:
            assert not await has_program("m1") and not await has_program("m2")
            assert not egress_filters(BOND)
            assert exit_of(bpf_dir, BOND) is None
            await driver.detach()

    in_network(play)


def test_vlans_of_a_new_configuration_count_at_once(in_network: InNetwork, bpf_dir: Path) -> None:
    async def play() -> None:
        async def tagged() -> bool:
            return vlan_of(bpf_dir, driver) == 7

        async def untagged() -> bool:
            return vlan_of(bpf_dir, driver) is None

        async with running(bpf_dir, BOND) as driver:
            assert await untagged()
            driver.neighbours.set_vlans((Vlan(7, IPv4Network("10.9.0.0/24")),))
            await until("frames have the tag", tagged)
            driver.neighbours.set_vlans(())
            await until("frames have no tag any more", untagged)
            await driver.detach()

    in_network(play)


def test_members_are_adopted(in_network: InNetwork, bpf_dir: Path) -> None:
    async def play() -> None:
        async with running(bpf_dir, BOND):
            pass
        async with running(bpf_dir, BOND) as driver:
            await forwarded("m2", "m2")
            await driver.detach()
            assert not await has_program("m1") and not await has_program("m2")

    in_network(play)


def test_a_member_by_itself_is_refused(in_network: InNetwork, bpf_dir: Path) -> None:
    async def play() -> None:
        with pytest.raises(DataplaneError, match="m1 is a member of the bond bond"):
            async with Driver.open(CONFIG, Options(("m1",), bpf_dir)):
                pass

    in_network(play)


def put_foreign_program_on(name: str) -> None:
    module = compiler.compile_file(abi.XDP_DIR / "jiffies.c", {})
    fd = module.load("vc5_jiffies", compiler.ProgramType.XDP)
    path = Path("/sys/fs/bpf") / f"vc5test-{os.getpid()}"
    libbpf.pin(fd, path)
    os.close(fd)
    try:
        ip(f"link set {name} xdpgeneric pinned {path}")
    finally:
        path.unlink()


def test_all_members_or_none(in_network: InNetwork, bpf_dir: Path) -> None:
    async def play() -> None:
        put_foreign_program_on("m2")
        with pytest.raises(DataplaneError, match="interface m2 has an XDP program of somebody else's"):
            async with running(bpf_dir, BOND, "far"):
                pass
        assert not await has_program("m1") and not await has_program("far")
        assert not egress_filters(BOND) and not egress_filters("far")

    in_network(play)


def test_what_joins_with_a_program_of_somebody_elses_is_no_member_yet(
    in_network: InNetwork, bpf_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def play() -> None:
        async def said() -> bool:
            return "interface m3 has an XDP program of somebody else's" in caplog.text

        put_foreign_program_on("m3")
        async with running(bpf_dir, BOND) as driver:
            ip("link set m3 master bond")
            await until("m3 is refused", said)
            await forwarded("m1", "m1")
            assert set(driver.modes) == {"m1", "m2"}
            ip("link set m3 xdpgeneric off")
            await until("m3 has joined", lambda: modes_are(driver, {"m1", "m2", "m3"}))
            await forwarded("m3", "m3")
            await driver.detach()
        assert caplog.text.count("interface m3 has an XDP program of somebody else's") == 1

    in_network(play)
