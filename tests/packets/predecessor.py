"""Runs in another build of the program: forwards some connections, and leaves its maps pinned.

`python -m tests.packets.predecessor BPF_DIR STATE_DIR`; prints where every connection's packets went. Most of
the connections that began before a change are silent after it: nothing but a slot tells where they belong.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from tests.packets import frames
from tests.packets.harness import KEY, Kernel
from tests.packets.world import WORLD, World
from vc5py.dataplane import layouts, libbpf, pins, ticks

PORTS = range(20_000, 20_400)
TALKING = range(20_000, 20_100)
LATE = range(20_300, 20_400)  # begin after the change
SERVICE = "web"


def after_the_change() -> World:
    """One of the service's reals takes no new connections any more."""
    web = WORLD.service(SERVICE)
    drained = replace(web, reals=(replace(web.reals[0], weight=0), *web.reals[1:]))
    services = tuple(drained if service.name == SERVICE else service for service in WORLD.services)
    return replace(WORLD, services=services)


def send(kernel: Kernel, ports: Iterable[int], flags: str) -> dict[int, str]:
    """The MAC address that each connection's packet goes to, by its port."""
    return {port: kernel.run(frames.tcp(sport=port, flags=flags)).frame[:6].hex() for port in ports}


def main(bpf_dir: Path, state_dir: Path) -> None:
    clock = ticks.measure()
    with Kernel(clock.shift) as kernel:
        kernel.install(WORLD)
        went = send(kernel, (port for port in PORTS if port not in LATE), "S")
        kernel.change(after_the_change())
        went |= send(kernel, TALKING, "A") | send(kernel, LATE, "S")
        keeper = pins.Pins(bpf_dir, None)
        keeper.prepare(kernel.maps)
        keeper.commit()
        table = libbpf.map_info(kernel.maps.fds["flows"]).id
        described = replace(layouts.own(clock.shift), keys={table: layouts.check_value(KEY)})
        layouts.write(state_dir, described)
        flows = {
            f"{name:x}": [service, str(real), state.name]
            for name, (service, real, state) in kernel.recorded().items()
        }
        counts = kernel.maps.backend_counts["packets"].sum()
        print(json.dumps({"went": went, "flows": flows, "packets": int(counts), "layout": described.name}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
