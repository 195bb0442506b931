"""Brings the kernel's data plane up and down: maps, programs, attachment, neighbours.

Invariants: whatever an earlier run left is adopted, and its program exchanged in one step; cancelling or
killing leaves packets flowing; only `detach` takes the data plane off the interfaces, and what it leaves
pinned forwards nothing. Where somebody else takes it off it is put on again, or `unserved` says so.
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
from vc5py.dataplane import abi, compiler, libbpf, maps, offloads, pins, ticks
from vc5py.dataplane.kernel import KernelDataplane
from vc5py.dataplane.links import LINEAR_MTU, Link, Port, ports_of, records_of, small_links
from vc5py.dataplane.maps import Maps, Sizes
from vc5py.dataplane.neighbours import NeighbourWatch
from vc5py.dataplane.netlink import Interface, Netlink, XdpMode
from vc5py.dataplane.policy import Policy
from vc5py.dataplane.ports import PortTable
from vc5py.dataplane.sizing import log_for, sizes_for
from vc5py.dataplane.takeover import Start, Takeover, open_maps
from vc5py.errors import DataplaneError
from vc5py.model import Config, Desired, ForwardMode, IPAddress, Vlan

_log = logging.getLogger(__name__)

RESOLVE_S = 1.0


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line says of the data plane. `mode` None: native, else generic with a warning.
    `state_dir`: where the maps' layout is described for other versions; None: nowhere.
    """

    interfaces: Sequence[str]
    bpf_dir: Path
    mode: XdpMode | None = None
    state_dir: Path | None = None


def tunnel_mtus(desired: Desired) -> dict[IPAddress, int]:
    """By real, of the largest one."""
    found: dict[IPAddress, int] = {}
    for backend in (backend for service in desired.services for backend in service.backends):
        if backend.forwarding.mode.is_tunnel:
            real = backend.id.real
            found[real] = max(backend.forwarding.mtu, found.get(real, 0))
    return found


def _reals(desired: Desired, *modes: ForwardMode) -> frozenset[IPAddress]:
    """Those that packets get to in one of these modes."""
    return frozenset(
        b.id.real for service in desired.services for b in service.backends if b.forwarding.mode in modes
    )


async def _maps_in_use(netlink: Netlink, bpf_dir: Path) -> frozenset[int]:
    """The ids of the maps of our programs that are attached."""
    programs = pins.programs(bpf_dir)
    attached = {program for _, program in await netlink.interfaces_with_xdp()} if programs else set()
    used = [libbpf.program_maps(fd) for number, fd in programs.items() if number in attached]
    for fd in programs.values():
        os.close(fd)
    return frozenset().union(*used)


class Driver:
    """The data plane, attached. `dataplane` is what the rest of the balancer talks to.

    `interfaces` are those named on the command line; `modes` has the links that the XDP program is on, which
    are the members where an interface is a bond. `unserved`: why packets that come in by some of them get to
    nobody, empty while they do.
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
        self._is_up = False
        self._changing = asyncio.Lock()
        self._trouble = ""
        self._lost: dict[str, str] = {}  # by link: why our program isn't on it
        self.unserved = ""
        self._hidden_tags: dict[str, str] = {}  # by link: why tags of its frames are not seen
        self._dropped_tags: dict[str, str] = {}  # by link: why some with tags don't come in
        self._tunnels: Mapping[IPAddress, int] = {}  # the MTUs of those to reals
        self._small_links: tuple[str, ...] = ()
        self.neighbours = NeighbourWatch(
            netlink, self._indexes(), dataplane.set_neighbour, vlans, self._follow_links
        )

    @property
    def warnings(self) -> tuple[str, ...]:
        """What keeps packets from where they should go, at present, in words."""
        tags = (*self._hidden_tags.values(), *filter(None, self._dropped_tags.values()))
        return (*self._lost.values(), *self.neighbours.warnings, *tags, *self._small_links)

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
            maps.prepare_directory(options.bpf_dir)
            with pins.hold(options.bpf_dir):
                clock = ticks.measure()
                driver = await cls._taking_over(netlink, interfaces, wanted, clock, config, options, flow_key)
                mtus = [member.mtu for port in ports for member in port.members]
                driver._load(clock, flow_key, frags=max(mtus, default=0) > LINEAR_MTU)
                try:
                    driver._know(ports)
                    yield driver
                finally:
                    driver._close()

    @classmethod
    async def _taking_over(
        cls,
        netlink: Netlink,
        interfaces: list[Interface],
        wanted: Sizes,
        clock: ticks.TickClock,
        config: Config,
        options: Options,
        flow_key: FlowKey | None,
    ) -> Driver:
        """With maps, and what an earlier run had in its own; without programs."""
        used = await _maps_in_use(netlink, options.bpf_dir)
        key = flow_key or FlowKey.derive()
        takeover = open_maps(options.bpf_dir, options.state_dir, wanted, key, clock, used)
        policy = Policy(config.timeouts, config.drop_fragments, shared=flow_key is not None)
        dataplane = KernelDataplane(takeover.maps, clock, policy)
        return cls(netlink, interfaces, dataplane, takeover, options, config.vlans)

    def _close(self) -> None:
        os.close(self._ingress_fd)
        os.close(self._egress_fd)
        if self._learn_fd is not None:
            os.close(self._learn_fd)

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

    def _load(self, clock: ticks.TickClock, flow_key: FlowKey | None, *, frags: bool) -> None:
        """`frags`: with code for frames in several buffers, where the kernel has that (Linux 5.18)."""
        key = flow_key or FlowKey.derive()
        current = self._takeover.maps
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
            self._load(clock, flow_key, frags=False)
            return
        if flow_key is not None:
            self._learn_fd = module.load("vc5_learn", compiler.ProgramType.TC)
        self._egress_fd = module.load("vc5_egress", compiler.ProgramType.TC)
        self._program = libbpf.program_id(self._ingress_fd)
        self._maps, self._clock = current, clock
        self._table = PortTable(current)

    async def resolve(self, desired: Desired, timeout_s: float | None = None) -> None:
        """Waits a moment until the reals' places are known, so that the first packets find them. `timeout_s`:
        no longer than that, however many there are, for the watch is running and finds them too.
        """
        tunnels = [mode for mode in ForwardMode if mode.is_tunnel]
        far = [mode for mode in ForwardMode if mode is not ForwardMode.L2]
        self.neighbours.want(_reals(desired, *ForwardMode), _reals(desired, *far), _reals(desired, *tunnels))
        await self._wait_for_neighbours(timeout_s)
        self._tunnels = tunnel_mtus(desired)
        self._look_at_links()

    async def _wait_for_neighbours(self, timeout_s: float | None) -> None:
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
        before it is attached, and the others until none of them is, so that whatever is attached is known as
        ours whenever we are killed.
        """
        earlier = pins.programs(self._options.bpf_dir)
        try:
            found = {link.index: await self._own_program(link, earlier) for link in self._members()}
            pin = pins.pin_program(self._options.bpf_dir, self._ingress_fd)
            self._takeover.prepare()
            await self._attach_all(found, pin)
            await self._leave_other_interfaces(earlier)
            start = self._takeover.finish(exchanged=any(found.values()))
            pins.keep_program(pin)
            self.start, self._is_up = start, True
            log = _log.info if start.whole else _log.warning
            log("start=%r", str(start))
        finally:
            for fd in earlier.values():
                os.close(fd)

    async def _attach_all(self, found: Mapping[int, int | None], pin: Path) -> None:
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
                pin.unlink()
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

    def _look_at_links(self) -> None:
        """Whether they let frames with tags in and are large enough for tunnels; says what is new."""
        members = self._members() if self.neighbours.vlans else []
        self._dropped_tags = self._dropped_tags if members else {}
        for name in {member.name for member in members} - self._dropped_tags.keys():
            outcome = offloads.take_all_tags(name)
            if outcome.turned_off:
                what = ",".join(outcome.turned_off)
                _log.info("frames with any tag come in from now on interface=%s turned_off=%s", name, what)
            self._dropped_tags[name] = ""
            if outcome.left_on:
                what = ",".join(outcome.left_on)
                self._dropped_tags[name] = warning = (
                    f"frames with tags may be dropped, where there is no VLAN device for them:"
                    f" interface={name} offload={what} not turned off: {outcome.why}"
                )
                _log.warning("%s", warning)
        small = small_links(self._tunnels, self.neighbours.exit_to, self._ports)
        for warning in small:
            if warning not in self._small_links:
                _log.warning("%s", warning)
        self._small_links = small

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
        logged once. Where somebody took the program off, it is put on again.
        """
        async with self._changing:
            if self._is_up:
                await self._follow(await self._netlink.links_and_xdp())

    async def _follow(self, links: Mapping[Link, int | None]) -> None:
        lost = await self._keep_attached(links)
        try:
            ports = ports_of(self._indexes(), list(links))
            if ports != self._ports:
                lost |= await self._become(ports, {link.index for link in links})
        except DataplaneError as error:
            if str(error) != self._trouble:
                _log.error("links not followed error=%s", error)
            self._trouble = str(error)
        else:
            self._trouble = ""
        self._note_lost(lost)
        self._look_at_links()

    async def _keep_attached(self, links: Mapping[Link, int | None]) -> dict[Link, str]:
        """Returns the links that our program isn't on although it was, and why."""
        ours = {member.index for member in self._members()}
        lost: dict[Link, str] = {}
        for link, program in links.items():
            if link.index not in ours or program == self._program:
                continue
            if self.modes.pop(link.name, None) is not None:
                _log.error("somebody took our XDP program off interface=%s", link.name)
            try:
                await self._attach(link, None)
            except DataplaneError as error:
                lost[link] = str(error)
        return lost

    def _note_lost(self, lost: Mapping[Link, str]) -> None:
        """Says what is new."""
        warnings = {link.name: f"{why}; VIPs are not served by this interface" for link, why in lost.items()}
        for name, warning in warnings.items():
            if warning != self._lost.get(name):
                _log.error("%s", warning)
        for name in self._lost.keys() - warnings.keys():
            _log.info("VIPs no longer lack interface=%s", name)
        self._lost = warnings
        self.unserved = "; ".join(why for link, why in lost.items() if link.takes_frames)

    async def _become(self, ports: tuple[Port, ...], present: AbstractSet[int]) -> dict[Link, str]:
        """A member that takes no program is none, and the next look tries again; returns these, and why.
        `present`: links there are.
        """
        before = {link.index: link for link in self._members()}
        now = {member.index: member for port in ports for member in port.members}
        for index in before.keys() - now.keys():
            self.modes.pop(before[index].name, None)
            self._hidden_tags.pop(before[index].name, None)
            self._dropped_tags.pop(before[index].name, None)
            if index in present:
                await self._take_off(before[index])
            _log.info("left interface=%s", before[index].name)
        refused: dict[Link, str] = {}
        for index in now.keys() - before.keys():
            try:
                await self._netlink.detach_egress(now[index])
                await self._attach(now[index], None)
            except DataplaneError as error:
                refused[now[index]] = str(error)
        self._know(tuple(port.without({link.index for link in refused}) for port in ports))
        self._table.forget_all_but(records_of(self._ports))
        return refused

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
        async with self._changing:
            self._is_up = False
        for port in self._ports:
            for member in port.members:
                await self._take_off(member)
            await self._take_egress_off(port.link)
        pins.forget_programs(self._options.bpf_dir)
        self.dataplane.rest()
        _log.info("detached interfaces=%s", ",".join(i.name for i in self.interfaces))
