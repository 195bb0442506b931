"""The driver where somebody else puts programs on its interfaces, or takes its own off: on a real kernel.

The programs are stand-ins that only use the maps.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.unit.starts import CLOCK, StandIn
from tests.unit.test_netlink_bonds import (
    BOND,
    CONFIG,
    InNetwork,
    bpf_dir,
    has_program,
    in_network,
    ip,
    modes_are,
    root,
    running,
    until,
)
from vc5py.dataplane import compiler, libbpf, ticks
from vc5py.dataplane.compiler import ProgramType
from vc5py.dataplane.driver import Driver, Options
from vc5py.dataplane.libbpf import MapType
from vc5py.errors import DataplaneError

__all__ = ["bpf_dir", "in_network", "root"]

FOREIGN = "interface {} has an XDP program of somebody else's: remove it first"


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "compile_file", lambda path, macros: StandIn(macros["FD_flows"]))
    monkeypatch.setattr(ticks, "measure", lambda: CLOCK)


@contextmanager
def foreign_program() -> Iterator[Path]:
    """Pinned."""
    table = libbpf.create_map(MapType.ARRAY, "foreign", 4, 8, 1)
    program = StandIn(table).load("foreign", ProgramType.XDP)
    path = Path("/sys/fs/bpf") / f"vc5test-{os.getpid()}"
    libbpf.pin(program, path)
    os.close(program)
    os.close(table)
    try:
        yield path
    finally:
        path.unlink()


def put_foreign_program_on(name: str) -> None:
    """In one step, where there is another one."""
    with foreign_program() as path:
        ip(f"-force link set {name} xdpgeneric pinned {path}")


async def is_unserved(driver: Driver, *names: str) -> bool:
    return driver.unserved == "; ".join(FOREIGN.format(name) for name in names)


@pytest.mark.parametrize("name", ["m1", "far"])
def test_our_program_is_put_on_again_where_somebody_took_it_off(
    in_network: InNetwork, bpf_dir: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    async def play() -> None:
        async with running(bpf_dir, BOND, "far") as driver:
            for number in (1, 2):
                ip(f"link set {name} xdpgeneric off")
                await until("it is back", lambda: has_program(name))
                await until("all of them have it", lambda: modes_are(driver, {"m1", "m2", "far"}))
                assert caplog.text.count(f"somebody took our XDP program off interface={name}") == number
            assert (driver.unserved, driver.warnings) == ("", ())
            await driver.detach()
            assert not await has_program(name)

    in_network(play)


@pytest.mark.parametrize("name", ["m1", "far"])
def test_interface_with_a_program_of_somebody_elses_serves_nobody(
    in_network: InNetwork, bpf_dir: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    async def play() -> None:
        async with running(bpf_dir, BOND, "far") as driver:
            put_foreign_program_on(name)
            await until("it is found", lambda: is_unserved(driver, name))
            warning = f"{FOREIGN.format(name)}; VIPs are not served by this interface"
            assert driver.warnings == (warning,)
            assert set(driver.modes) == {"m1", "m2", "far"} - {name}
            ip("link set m3 master bond")
            everywhere = {"m1", "m2", "m3", "far"}
            await until("links were looked at again", lambda: modes_are(driver, everywhere - {name}))
            assert caplog.text.count(warning) == 1
            ip(f"link set {name} xdpgeneric off")
            await until("it is back", lambda: is_unserved(driver))
            assert set(driver.modes) == everywhere and not driver.warnings
            assert f"VIPs no longer lack interface={name}" in caplog.text
            await driver.detach()

    caplog.set_level("INFO")
    in_network(play)


def test_of_a_member_that_takes_no_program_it_counts_whether_frames_come_by_it(
    in_network: InNetwork, bpf_dir: Path
) -> None:
    async def play() -> None:
        put_foreign_program_on("m3")
        async with running(bpf_dir, BOND) as driver:
            ip("link set m3 master bond")
            await until("frames may come by m3", lambda: is_unserved(driver, "m3"))
            ip("link set peer-m3 down")
            await until("none do", lambda: is_unserved(driver))
            assert len(driver.warnings) == 1
            ip("link set peer-m3 up")
            await until("they do again", lambda: is_unserved(driver, "m3"))
            ip("link set m3 nomaster")
            await until("m3 has left", lambda: is_unserved(driver))
            assert not driver.warnings
            await driver.detach()

    in_network(play)


def test_second_run_is_refused_the_directory_and_the_interfaces(in_network: InNetwork, bpf_dir: Path) -> None:
    """It leaves no trace."""

    async def play() -> None:
        other = bpf_dir.with_name("other")
        async with running(bpf_dir, "far") as driver:
            before = sorted(bpf_dir.rglob("*"))
            with pytest.raises(DataplaneError, match=rf"bpf directory {bpf_dir} \(process {os.getpid()}: "):
                async with Driver.open(CONFIG, Options([BOND], bpf_dir)):
                    pass
            with pytest.raises(DataplaneError, match=FOREIGN.format("far")):
                async with running(other, BOND, "far"):
                    pass
            assert sorted(bpf_dir.rglob("*")) == before
            assert not any(path.is_file() for path in other.rglob("*"))
            assert set(driver.modes) == {"far"} and await has_program("far") and not await has_program("m1")
            await driver.detach()

    in_network(play)
