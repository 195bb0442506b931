"""The limits that the documents state, in the kernel's maps: as many services, reals and pairs as there may
be at all, and packets to many of them.
"""

from __future__ import annotations

from collections import Counter
from ipaddress import IPv4Address

import numpy as np
import pytest

from tests.bench.scale import Scale, text_of
from tests.packets.clocked import Kernel
from tests.packets.frames import tcp
from tests.packets.world import OUR_MAC, Side
from vc5py import config
from vc5py.core import director, maglev
from vc5py.dataplane import abi, libbpf
from vc5py.dataplane.base import Neighbour
from vc5py.dataplane.kernel import KernelDataplane
from vc5py.dataplane.links import Record
from vc5py.dataplane.ports import PortTable
from vc5py.dataplane.sizing import sizes_for
from vc5py.dataplane.ticks import TickClock
from vc5py.limits import MAX_BACKENDS, MAX_REALS, MAX_VIRTUAL_SERVICES

REALS = 32_768
_TX = 3  # enum xdp_action
MANY = Scale(MAX_VIRTUAL_SERVICES, MAX_BACKENDS // MAX_VIRTUAL_SERVICES, REALS)
LARGE = Scale(1, MAX_REALS, MAX_REALS)


def mac_of(n: int) -> str:
    return abi.word_to_mac(2 | n << 16)


def first_real(scale: Scale, service: int) -> int:
    return service * scale.reals % scale.distinct


@pytest.mark.parametrize("scale", [MANY, LARGE], ids=["many services", "many reals of one"])
def test_as_large_as_a_configuration_may_be(scale: Scale) -> None:
    loaded = config.parse(text_of(scale, scale.distinct), "limits.yaml")
    desired = director.start(loaded, lambda _: True, 0.0).desired
    assert len(desired.services) == scale.services
    assert sum(len(service.backends) for service in desired.services) == scale.services * scale.reals
    with Kernel(sizes_for(loaded, 16)) as kernel:
        for name, fd in kernel.maps.fds.items():
            info = libbpf.map_info(fd)
            assert name == "ports" or info.max_entries * info.value_size == kernel.maps.sizes.bytes(name)
        dataplane = KernelDataplane(kernel.maps, TickClock(250))
        for n in range(scale.distinct):
            dataplane.set_neighbour(IPv4Address("10.0.0.1") + n, Neighbour(1, mac_of(n)))
        dataplane.apply(desired)
        PortTable(kernel.maps).write({1: Record(OUR_MAC[Side.NEAR], exit=1)})
        slots = 1 << (kernel.maps.services["table"] >> np.uint64(abi.TABLE_LOG2_SHIFT))
        used = kernel.maps.services["identity"] != 0
        assert Counter(slots[used].tolist()) == {maglev.table_size(scale.reals): scale.services}
        for service in range(0, scale.services, max(1, scale.services // 500)):
            frames = [tcp(IPv4Address("192.168.0.1") + service, sport=1024 + n) for n in range(4)]
            first = first_real(scale, service)
            for frame in frames:
                result = libbpf.test_run(kernel.ingress, frame)
                assert result.retval == _TX
                real = abi.mac_to_word(":".join(f"{byte:02x}" for byte in result.data[:6])) >> 16
                assert first <= real < first + scale.reals
