"""Brings the kernel's data plane up and down: maps, programs, attachment, neighbours.

Invariants: whatever an earlier run left is adopted, and its program exchanged in one step; cancelling or
killing leaves packets flowing; only `detach` takes the data plane off the interfaces.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from vc5py.core.flowhash import FlowKey
from vc5py.dataplane import abi, compiler, flows, libbpf, maps, ticks
from vc5py.dataplane.kernel import KernelDataplane, room_for
from vc5py.dataplane.maps import Maps, Sizes
from vc5py.dataplane.neighbours import NeighbourWatch
from vc5py.dataplane.netlink import Interface, Netlink, XdpMode
from vc5py.dataplane.tables import lines_for
from vc5py.errors import DataplaneError
from vc5py.model import Config, Desired

_log = logging.getLogger(__name__)

_PROGRAM_PIN = "vc5_ingress"


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line says of the data plane. `mode` None: native, else generic with a warning."""

    interfaces: Sequence[str]
    bpf_dir: Path
    mode: XdpMode | None = None


def _power_of_two(n: int) -> int:
    return 1 << max(0, n - 1).bit_length()


def sizes_for(config: Config, highest_ifindex: int) -> Sizes:
    """Maps as large as the configuration needs, with as much again to grow into."""
    services = [service for service in config.services for _ in service.vips]
    ports = sum(len(s.ports) * len(s.protocols) + 1 for s in services)
    return Sizes(
        flow_sets=config.flows // abi.FLOW_WAYS,
        services=min(abi.MAX_SERVICES, max(64, 2 * len(services))),
        backends=_power_of_two(max(256, 2 * sum(room_for(len(s.reals)) for s in services))),
        slot_lines=max(1024, 3 * sum(lines_for(len(s.reals)) for s in services)),
        service_keys=max(256, 2 * ports),
        cpus=maps.possible_cpus(),
        interfaces=_power_of_two(max(64, highest_ifindex + 1)),
    )


def _carry_over(old: Maps, new: Maps) -> None:
    """Everything an earlier run knew, into larger maps; the places of services and backends stay."""
    for name in ("services", "backends", "slots"):
        source, target = getattr(old, name), getattr(new, name)
        n = min(len(source), len(target))
        target[:n] = source[:n]
    cpus = min(old.sizes.cpus, new.sizes.cpus)
    n = min(old.sizes.backends, new.sizes.backends)
    new.backend_counts[:cpus, :n] = old.backend_counts[:cpus, :n]
    new.verdict_counts[:cpus] = old.verdict_counts[:cpus]
    lost = flows.carry_over(old.flows, new.flows)
    for key in libbpf.keys(old.fds["services4"], 8):
        value = libbpf.lookup(old.fds["services4"], key, 4)
        if value is not None:
            libbpf.update(new.fds["services4"], key, value)
    _log.info("maps enlarged flows_without_place=%d", lost)


class Driver:
    """The data plane, attached. `dataplane` is what the rest of the balancer talks to."""

    def __init__(
        self, netlink: Netlink, interfaces: list[Interface], dataplane: KernelDataplane, options: Options
    ) -> None:
        self._netlink = netlink
        self.interfaces = interfaces
        self._options = options
        self.dataplane = dataplane
        self.modes: dict[str, XdpMode] = {}
        indexes = [interface.index for interface in interfaces]
        self.neighbours = NeighbourWatch(netlink, indexes, dataplane.set_neighbour)

    @classmethod
    @asynccontextmanager
    async def open(cls, config: Config, options: Options) -> AsyncIterator[Driver]:
        """Maps open or adopted; nothing is attached yet. Raises DataplaneError, and leaves no trace then."""
        async with Netlink.open() as netlink:
            interfaces = [await netlink.interface(name) for name in options.interfaces]
            wanted = sizes_for(config, await netlink.highest_ifindex())
            current, old = maps.open_or_create(options.bpf_dir, wanted)
            clock = ticks.measure()
            if old is not None:
                _carry_over(old, current)
            dataplane = KernelDataplane(current, clock)
            for interface in interfaces:
                dataplane.set_interface(interface.index, interface.mac)
            driver = cls(netlink, interfaces, dataplane, options)
            driver._load(current, clock)
            try:
                yield driver
            finally:
                os.close(driver._ingress_fd)
                os.close(driver._egress_fd)

    def _load(self, current: Maps, clock: ticks.TickClock) -> None:
        key = FlowKey.derive()
        macros = current.macros() | {
            "FLOW_KEY": key.start,
            "FLOW_KEY_ODD": key.odd,
            "TICK_SHIFT": clock.shift,
        }
        module = compiler.compile_file(abi.XDP_DIR / "vc5.c", macros)
        self._ingress_fd = module.load("vc5_ingress", compiler.ProgramType.XDP)
        self._egress_fd = module.load("vc5_egress", compiler.ProgramType.TC)
        self._maps = current

    async def resolve(self, desired: Desired, timeout_s: float = 1.0) -> None:
        """Waits a moment until the reals' places are known, so that the first packets find them."""
        reals = frozenset(b.id.real for service in desired.services for b in service.backends)
        self.neighbours.want(reals)
        deadline = asyncio.get_running_loop().time() + timeout_s
        while asyncio.get_running_loop().time() < deadline:
            await self.neighbours.refresh()
            if self.neighbours.complete:
                return
            await asyncio.sleep(0.05)

    async def attach(self) -> None:
        """Puts the programs on all interfaces, exchanging those of an earlier run."""
        modes = (self._options.mode,) if self._options.mode else (XdpMode.NATIVE, XdpMode.GENERIC)
        pin = self._options.bpf_dir / _PROGRAM_PIN
        for interface in self.interfaces:
            replaces = await self._own_program(interface, pin)
            mode, refusal = await self._netlink.attach_xdp(interface, self._ingress_fd, modes, replaces)
            if replaces is not None:
                os.close(replaces)
            self.modes[interface.name] = mode
            if mode is XdpMode.GENERIC:
                _log.warning("XDP runs in generic mode: slow interface=%s %s", interface.name, refusal)
            await self._netlink.attach_egress(interface, self._egress_fd)
            _log.info("attached interface=%s mode=%s adopted=%s", interface.name, mode, replaces is not None)
        maps.replace_pins(self._maps, self._options.bpf_dir)
        fresh = pin.with_name(_PROGRAM_PIN + "_new")
        fresh.unlink(missing_ok=True)
        libbpf.pin(self._ingress_fd, fresh)
        fresh.rename(pin)

    async def _own_program(self, interface: Interface, pin: Path) -> int | None:
        """A file descriptor of the program on the interface, if an earlier run of ours pinned it."""
        attached = await self._netlink.attached_xdp(interface)
        if attached is None or not pin.exists():
            return None
        fd = libbpf.get_pinned(pin)
        if libbpf.program_id(fd) == attached:
            return fd
        os.close(fd)
        return None

    async def detach(self) -> None:
        """Takes the programs off all interfaces and forgets the maps: an orderly stop."""
        for interface in self.interfaces:
            try:
                await self._netlink.detach_xdp(interface)
                await self._netlink.detach_egress(interface)
            except DataplaneError as error:
                _log.error("detach failed interface=%s error=%s", interface.name, error)
        (self._options.bpf_dir / _PROGRAM_PIN).unlink(missing_ok=True)
        maps.remove_pins(self._options.bpf_dir)
        _log.info("detached interfaces=%s", ",".join(i.name for i in self.interfaces))
