"""`python -m tests.bench.memory`: how much memory each map takes, for configurations of several sizes.

The kernel allocates a map's memory when the map is made, so that this is known from the configuration alone:
nothing is made here. Must not know what maps are for.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from tests.bench.scale import FULL, Scale, text_of
from vc5py import config
from vc5py.dataplane import maps
from vc5py.dataplane.maps import Sizes
from vc5py.dataplane.sizing import log_for, sizes_for
from vc5py.model import Config

HIGHEST_IFINDEX = 16
_ROOT = Path(__file__).parents[2]
_SMALL = """
services:
  - {name: web, addr: 192.0.2.1, port: 80, real: web, checks: [{name: alive, type: tcp}]}
reals:
  web: [10.0.0.11, 10.0.0.12]
"""


@dataclass(frozen=True, slots=True)
class Memory:
    """One configuration: bytes by the name of the map. `backends`: reals of all services together."""

    name: str
    services: int
    backends: int
    maps: dict[str, int]

    @property
    def total(self) -> int:
        return sum(self.maps.values())


def sizes_of(loaded: Config) -> Sizes:
    """As the balancer makes them; with rings where flows are shared."""
    sizes = sizes_for(loaded, HIGHEST_IFINDEX)
    return sizes if loaded.cluster is None else replace(sizes, log=log_for(sizes.cpus))


def memory_of(name: str, loaded: Config) -> Memory:
    sizes = sizes_of(loaded)
    virtual = [service for service in loaded.services for _ in service.vips]
    reals = sum(len(service.reals) for service in virtual)
    return Memory(name, len(virtual), reals, {one: sizes.bytes(one) for one in maps.NAMES})


def configurations() -> Iterator[tuple[str, Config]]:
    """The smallest one, the one that comes with the program, and large ones."""
    yield "smallest", config.parse(_SMALL, "small.yaml")
    path = _ROOT / "config.example.yaml"
    yield "example", config.parse(path.read_text(encoding="utf-8"), str(path))
    for scale in (Scale(services=100, reals=10, distinct=1000), FULL):
        name = f"{scale.services} x {scale.reals}"
        yield name, config.parse(text_of(scale, scale.distinct), "scale.yaml")


def print_report(measured: list[Memory], write: Callable[[str], None] = print) -> None:
    """Writes the table line by line."""
    write(f"KiB of each map, on {maps.running_cpus()} CPUs")
    write(f"{'':18}" + "".join(f"{one.name:>14}" for one in measured))
    for title, count in (("services", "services"), ("backends", "backends")):
        write(f"{'number of ' + title:18}" + "".join(f"{getattr(one, count):>14}" for one in measured))
    for name in maps.NAMES:
        write(f"{name:18}" + "".join(f"{one.maps[name] / 1024:>14.1f}" for one in measured))
    write(f"{'total':18}" + "".join(f"{one.total / 1024:>14.1f}" for one in measured))


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="vc5.sh bench memory", description="How much memory the data plane's maps take."
    )
    parser.add_argument("--json", action="store_true", help="print JSON, not a table")
    arguments = parser.parse_args()
    measured = [memory_of(name, loaded) for name, loaded in configurations()]
    if arguments.json:
        out = [
            {"name": m.name, "services": m.services, "backends": m.backends, "maps": m.maps} for m in measured
        ]
        print(json.dumps(out, indent=2))
    else:
        print_report(measured)
    return 0


if __name__ == "__main__":
    sys.exit(main())
