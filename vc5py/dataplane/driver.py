"""Brings the kernel's data plane up and down: maps, programs, attachment, neighbours.

Invariants: whatever an earlier run left is adopted, and its program exchanged in one step; cancelling or
killing leaves packets flowing; only `detach` takes the data plane off the interfaces, and what it leaves
pinned forwards nothing.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from vc5py.core.flowhash import FlowKey
from vc5py.dataplane import abi, compiler, libbpf, maps, offloads, ticks
from vc5py.dataplane.installed import room_for
from vc5py.dataplane.kernel import KernelDataplane
from vc5py.dataplane.links import LINEAR_MTU, Link, Port, ports_of, records_of
from vc5py.dataplane.maps import Maps, Sizes
from vc5py.dataplane.neighbours import NeighbourWatch
from vc5py.dataplane.netlink import Interface, Netlink, XdpMode
from vc5py.dataplane.policy import Policy
from vc5py.dataplane.ports import PortTable
from vc5py.dataplane.servicemap import sets_for
from vc5py.dataplane.tables import lines_for, lines_of_arena
from vc5py.dataplane.takeover import Start, Takeover, open_maps
from vc5py.errors import DataplaneError
from vc5py.model import Config, Desired, ForwardMode, IPAddress, Vlan

_log = logging.getLogger(__name__)

_PROGRAM_PIN = "vc5_ingress"
RESOLVE_S = 1.0
# What there is room for in any case: reloads may add some.
MIN_PORTS = 256  # (VIP, port, protocol)
MIN_BACKENDS = 256
MIN_LINES = 2048  # of Maglev slots: what as many backends may need


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line says of the data plane. `mode` None: native, else generic with a warning.
    `state_dir`: where the maps' layout is described for other versions; None: nowhere.
    """

    interfaces: Sequence[str]
    bpf_dir: Path
    mode: XdpMode | None = None
    state_dir: Path | None = None


def _power_of_two(n: int) -> int:
    return 1 << max(0, n - 1).bit_length()


def sizes_for(config: Config, highest_ifindex: int) -> Sizes:
    """Maps as large as the configuration needs, and as much again for what an earlier run has in them, or for
    a reload to something else altogether.

    Backends take once more: a service that exchanges all of its reals has the old and the new ones in one
    run of twice the length, beside the old run for as long as that rests.
    """
    services = [service for service in config.services for _ in service.vips]
    ports = max(MIN_PORTS, sum(len(s.ports) * len(s.protocols) + 1 for s in services))
    return Sizes(
        flow_sets=config.flows // abi.FLOW_WAYS,
        services=min(abi.MAX_SERVICES, max(64, 2 * len(services))),
        backends=min(abi.MAX_BACKENDS, max(MIN_BACKENDS, 3 * sum(room_for(len(s.reals)) for s in services))),
        slot_lines=max(MIN_LINES, lines_of_arena([lines_for(len(s.reals)) for s in services])),
        service_sets4=sets_for(ports, abi.SERVICE_WAYS4),
        service_sets6=sets_for(ports, abi.SERVICE_WAYS6),
        cpus=maps.running_cpus(),
        interfaces=_power_of_two(max(64, highest_ifindex + 1)),
    )


def log_for(cpus: int) -> int:
    """Entries of each CPU's ring of changed flows: a tenth of a second of a million a second."""
    return min(1 << 17, max(1 << 12, _power_of_two((1 << 20) // cpus)))


def _reals(desired: Desired, *modes: ForwardMode) -> frozenset[IPAddress]:
    """Those that packets get to in one of these modes."""
    return frozenset(
        b.id.real for service in desired.services for b in service.backends if b.forwarding.mode in modes
    )


def _pinned_programs(*pins: Path) -> dict[int, int]:
    """The programs of earlier runs: file descriptors by program id."""
    fds = [libbpf.get_pinned(pin) for pin in pins if pin.exists()]
    return {libbpf.program_id(fd): fd for fd in fds}


async def _maps_in_use(netlink: Netlink, bpf_dir: Path) -> frozenset[int]:
    """The ids of the maps of our programs that are attached."""
    programs = _pinned_programs(bpf_dir / _PROGRAM_PIN, bpf_dir / f"{_PROGRAM_PIN}_new")
    attached = {program for _, program in await netlink.interfaces_with_xdp()} if programs else set()
    used = [libbpf.program_maps(fd) for number, fd in programs.items() if number in attached]
    for fd in programs.values():
        os.close(fd)
    return frozenset().union(*used)


class Driver:
    """The data plane, attached. `dataplane` is what the rest of the balancer talks to.

    `interfaces` are those named on the command line; `modes` has the links that the XDP program is on, which
    are the members where an interface is a bond.
    """

    def __init__(
        self,
        netlink: Netlink,
        interfaces: list[Interface],
        dataplane: KernelDataplane,
        takeover: Takeover,
        options: Options,
        vlans: Sequence[Vlan] = (),
    ) -> None:
        self._netlink = netlink
        self.interfaces = interfaces
        self._options = options
        self._takeover = takeover
        self.dataplane = dataplane
        self.modes: dict[str, XdpMode] = {}
        self.start: Start | None = None  # what became of what an earlier run left, once that is known
        self._learn_fd: int | None = None
        self._ports: tuple[Port, ...] = ()
        self._trouble = ""
        self._hidden_tags: dict[str, str] = {}  # by link: why tags of its frames are not seen
        self.neighbours = NeighbourWatch(
            netlink, self._indexes(), dataplane.set_neighbour, vlans, self._follow_links
        )

    @property
    def warnings(self) -> tuple[str, ...]:
        """What keeps packets from where they should go, at present, in words."""
        return (*self.neighbours.warnings, *self._hidden_tags.values())

    def _indexes(self) -> list[int]:
        return [interface.index for interface in self.interfaces]

    @classmethod
    @asynccontextmanager
    async def open(
        cls, config: Config, options: Options, flow_key: FlowKey | None = None
    ) -> AsyncIterator[Driver]:
        """Maps open or adopted; nothing is attached yet. Raises DataplaneError, and leaves no trace then.

        `flow_key`: what flows are named by in a cluster that shares them.
        """
        async with Netlink.open() as netlink:
            interfaces = [await netlink.interface(name) for name in options.interfaces]
            links = await netlink.links()
            ports = ports_of([interface.index for interface in interfaces], links)
            wanted = sizes_for(config, max(link.index for link in links))
            if flow_key is not None:
                wanted = replace(wanted, log=log_for(wanted.cpus))
            clock = ticks.measure()
            used = await _maps_in_use(netlink, options.bpf_dir)
            key = flow_key or FlowKey.derive()
            takeover = open_maps(options.bpf_dir, options.state_dir, wanted, key, clock, used)
            current = takeover.maps
            policy = Policy(
                config.timeouts,
                config.drop_fragments,
                shared=flow_key is not None,
            )
            dataplane = KernelDataplane(current, clock, policy)
            driver = cls(netlink, interfaces, dataplane, takeover, options, config.vlans)
            mtus = [member.mtu for port in ports for member in port.members]
            driver._load(current, clock, flow_key, frags=max(mtus, default=0) > LINEAR_MTU)
            try:
                driver._know(ports)
                yield driver
            finally:
                os.close(driver._ingress_fd)
                os.close(driver._egress_fd)
                if driver._learn_fd is not None:
                    os.close(driver._learn_fd)

    def shared(self) -> tuple[Maps, ticks.TickClock, int]:
        """What a process needs to share flows: maps, their clock, and the file descriptor of vc5_learn. Only
        where there is a flow key.
        """
        assert self._learn_fd is not None
        return self._maps, self._clock, self._learn_fd

    def _know(self, ports: tuple[Port, ...]) -> None:
        """Frames may get in and out by these."""
        self._table.write(records_of(ports))
        self._ports = ports

    def _members(self) -> list[Link]:
        return [member for port in self._ports for member in port.members]

    def _load(self, current: Maps, clock: ticks.TickClock, flow_key: FlowKey | None, *, frags: bool) -> None:
        """`frags`: with code for frames in several buffers, where the kernel has that (Linux 5.18)."""
        key = flow_key or FlowKey.derive()
        macros = current.macros() | {
            "FLOW_KEY": key.start,
            "FLOW_KEY_ODD": key.odd,
            "TICK_SHIFT": clock.shift,
        }
        module = compiler.compile_file(abi.XDP_DIR / "vc5.c", macros | {"FRAGS": int(frags)})
        try:
            self._ingress_fd = module.load("vc5_ingress", compiler.ProgramType.XDP, frags=frags)
        except DataplaneError as error:
            if not frags:
                raise
            _log.warning("no native XDP for large MTUs error=%s", error)
            self._load(current, clock, flow_key, frags=False)
            return
        if flow_key is not None:
            self._learn_fd = module.load("vc5_learn", compiler.ProgramType.TC)
        self._egress_fd = module.load("vc5_egress", compiler.ProgramType.TC)
        self._maps, self._clock = current, clock
        self._table = PortTable(current)

    async def resolve(self, desired: Desired, timeout_s: float | None = None) -> None:
        """Waits a moment until the reals' places are known, so that the first packets find them. `timeout_s`:
        no longer than that, however many there are, for the watch is running and finds them too.
        """
        tunnels = [mode for mode in ForwardMode if mode.is_tunnel]
        far = [mode for mode in ForwardMode if mode is not ForwardMode.L2]
        self.neighbours.want(_reals(desired, *ForwardMode), _reals(desired, *far), _reals(desired, *tunnels))
        clock = asyncio.get_running_loop().time
        deadline = clock() + (RESOLVE_S if timeout_s is None else timeout_s)
        while clock() < deadline:
            if timeout_s is None:
                await self.neighbours.refresh()
            else:
                await self.neighbours.look_for_new(lambda: clock() >= deadline)
            if self.neighbours.complete:
                return
            await asyncio.sleep(0.05)

    async def attach(self) -> None:
        """Puts the programs on all interfaces, exchanging those of an earlier run.

        Nothing is touched where an interface has a program of somebody else's. The new program is pinned
        before it is attached, so that it is known as ours whenever we are killed.
        """
        pin = self._options.bpf_dir / _PROGRAM_PIN
        fresh = pin.with_name(_PROGRAM_PIN + "_new")
        earlier = _pinned_programs(pin, fresh)
        try:
            found = {link.index: await self._own_program(link, earlier) for link in self._members()}
            fresh.unlink(missing_ok=True)
            libbpf.pin(self._ingress_fd, fresh)
            self._takeover.prepare()
            await self._attach_all(found, fresh)
            self.start = self._takeover.finish(exchanged=any(found.values()))
            fresh.rename(pin)
            log = _log.info if self.start.whole else _log.warning
            log("start=%r", str(self.start))
            await self._leave_other_interfaces(earlier)
        finally:
            for fd in earlier.values():
                os.close(fd)

    async def _attach_all(self, found: Mapping[int, int | None], fresh: Path) -> None:
        """All or, on interfaces that had none of our programs, none. `found`: those they had, by ifindex."""
        try:
            for port in self._ports:
                for member in port.members:
                    await self._attach(member, found[member.index])
                    self._takeover.follow()
                await self._attach_egress(port)
        except DataplaneError:
            for port in self._ports:
                new = [member for member in port.members if found[member.index] is None]
                for member in new:
                    await self._take_off(member)
                if new == list(port.members):
                    await self._take_egress_off(port.link)
            if all(replaces is None for replaces in found.values()):
                fresh.unlink()
                self._takeover.give_up()
            raise

    async def _attach(self, link: Link, replaces: int | None) -> None:
        modes = (self._options.mode,) if self._options.mode else (XdpMode.NATIVE, XdpMode.GENERIC)
        mode, refusal = await self._netlink.attach_xdp(link, self._ingress_fd, modes, replaces)
        self.modes[link.name] = mode
        if mode is XdpMode.GENERIC:
            _log.warning("XDP runs in generic mode: slow interface=%s %s", link.name, refusal)
        _log.info("attached interface=%s mode=%s adopted=%s", link.name, mode, replaces is not None)
        if link.is_veth:
            needs = "its peer needs GRO or an XDP program, or drops what is forwarded; and txvlan off"
            _log.warning("interface=%s kind=veth: %s, or tags are not seen", link.name, needs)
        self._keep_tags_in_frames(link)

    def _keep_tags_in_frames(self, link: Link) -> None:
        """Once the link is ours, for some drivers start anew at that."""
        outcome = offloads.keep_tags_in_frames(link.name)
        self._hidden_tags.pop(link.name, None)
        if outcome.turned_off:
            what = ",".join(outcome.turned_off)
            _log.info("tags stay in frames from now on interface=%s turned_off=%s", link.name, what)
        if outcome.left_on:
            what = ",".join(outcome.left_on)
            self._hidden_tags[link.name] = warning = (
                f"tags are not seen, frames that come in with one are forwarded with a wrong one or none:"
                f" interface={link.name} offload={what} not turned off: {outcome.why}"
            )
            _log.warning("%s", warning)

    async def _attach_egress(self, port: Port) -> None:
        """A bond's own packets pass its hook and then the member's: only one of these may steer them."""
        if port.link.is_bond:
            for member in port.members:
                await self._netlink.detach_egress(member)
            if not port.members:
                _log.warning("the bond has no members yet interface=%s", port.link.name)
        await self._netlink.attach_egress(port.link, self._egress_fd)

    async def _own_program(self, link: Link, earlier: Mapping[int, int]) -> int | None:
        """A file descriptor of the program on the link; DataplaneError where it isn't ours."""
        attached = await self._netlink.attached_xdp(link)
        if attached is not None and attached not in earlier:
            raise DataplaneError(
                f"interface {link.name} has an XDP program of somebody else's: remove it first"
            )
        return None if attached is None else earlier[attached]

    async def _leave_other_interfaces(self, earlier: Mapping[int, int]) -> None:
        """Takes our programs off interfaces that an earlier run had and this one has not."""
        ours = {link.index for link in self._members()}
        links = {link.index: link for link in await self._netlink.links()}
        for link, program in await self._netlink.interfaces_with_xdp():
            if link.index not in ours and program in earlier:
                await self._take_off(link, earlier[program])
                bond = links.get(link.master)
                for steered in (link, bond) if bond is not None and bond.is_bond else (link,):
                    await self._take_egress_off(steered)
                _log.info("left interface=%s", link.name)
        self._table.forget_all_but(records_of(self._ports))

    async def _follow_links(self) -> None:
        """Members that join a bond get the program, those that leave it lose it. Of one that is down, or kept
        in reserve, only the records change; so do those of any link whose MAC address does. Trouble is
        logged once.
        """
        if not self._ports:
            return  # nothing is attached yet
        try:
            links = await self._netlink.links()
            ports = ports_of(self._indexes(), links)
            if ports != self._ports:
                await self._become(ports, {link.index for link in links})
        except DataplaneError as error:
            if str(error) != self._trouble:
                _log.error("links not followed error=%s", error)
            self._trouble = str(error)
        else:
            self._trouble = ""

    async def _become(self, ports: tuple[Port, ...], present: AbstractSet[int]) -> None:
        """A member that takes no program is none; the next look tries again. `present`: links there are."""
        before = {link.index: link for link in self._members()}
        now = {member.index: member for port in ports for member in port.members}
        for index in before.keys() - now.keys():
            self.modes.pop(before[index].name, None)
            self._hidden_tags.pop(before[index].name, None)
            if index in present:
                await self._take_off(before[index])
            _log.info("left interface=%s", before[index].name)
        refused: dict[int, str] = {}
        for index in now.keys() - before.keys():
            try:
                await self._netlink.detach_egress(now[index])
                await self._attach(now[index], None)
            except DataplaneError as error:
                refused[index] = str(error)
        self._know(tuple(port.without(refused) for port in ports))
        self._table.forget_all_but(records_of(self._ports))
        if refused:
            raise DataplaneError("; ".join(refused.values()))

    async def _take_off(self, link: Link, ingress_fd: int | None = None) -> None:
        """Takes our XDP program off, the present one or that of an earlier run."""
        try:
            await self._netlink.detach_xdp(link, self._ingress_fd if ingress_fd is None else ingress_fd)
        except DataplaneError as error:
            _log.error("detach failed interface=%s error=%s", link.name, error)

    async def _take_egress_off(self, link: Link) -> None:
        try:
            await self._netlink.detach_egress(link)
        except DataplaneError as error:
            _log.error("detach failed interface=%s error=%s", link.name, error)

    async def detach(self) -> None:
        """Takes the programs off all interfaces: an orderly stop. The maps stay, for the next start to adopt
        their flows; but what is up now need not be up then.
        """
        for port in self._ports:
            for member in port.members:
                await self._take_off(member)
            await self._take_egress_off(port.link)
        (self._options.bpf_dir / _PROGRAM_PIN).unlink(missing_ok=True)
        self.dataplane.rest()
        _log.info("detached interfaces=%s", ",".join(i.name for i in self.interfaces))
