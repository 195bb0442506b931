"""How large the maps are to be, by the configuration. Pure but for the number of CPUs."""

from __future__ import annotations

from vc5py.dataplane import abi, maps
from vc5py.dataplane.installed import room_for
from vc5py.dataplane.maps import Sizes
from vc5py.dataplane.servicemap import sets_for
from vc5py.dataplane.tables import lines_for, lines_of_arena
from vc5py.model import Config

# What there is room for in any case: reloads may add some.
MIN_PORTS = 256  # (VIP, port, protocol)
MIN_BACKENDS = 256
MIN_LINES = 2048  # of Maglev slots: what as many backends may need


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
