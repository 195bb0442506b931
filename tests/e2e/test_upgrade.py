"""Other builds of the program take over from the running one under load, in the lab: one with the same layout
of its maps, one with another, and back. Nobody notices, and the balancer says which happened.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import builds
from tests.e2e.arrivals import Arrivals
from tests.e2e.conftest import HOLD_S
from tests.e2e.test_restart import (
    answered_since,
    in_service,
    pins,
    sampled,
    until,
    xdp_program,
)
from vc5py.dataplane import abi, maps
from vc5py.lab.assembly import Lab
from vc5py.lab.layout import ALL_VIPS, BALANCERS, REALS, Layout
from vc5py.lab.network import run
from vc5py.lab.nodes import balancer_program
from vc5py.lab.observe import JITTER_S, metrics, since_s, total
from vc5py.lab.scenario import wait_for_next_hops, wait_for_reals
from vc5py.lab.traffic import Downloads, Load

NODE = BALANCERS[0]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the node's program is, as an installation has it: a link to the present build."""
    link = tmp_path_factory.mktemp("installed") / "current"
    link.symlink_to(builds.REPOSITORY)
    return link


def upgrade(installed: Path, build: Path) -> None:
    fresh = installed.with_name("next")
    fresh.symlink_to(build)
    fresh.rename(installed)


@pytest.fixture(scope="module")
def lab(installed: Path) -> Iterator[Lab]:
    with Lab(Layout("vc5up", hold_s=HOLD_S)) as lab:
        lab.put_up()
        for balancer in BALANCERS:
            program = lab.programs[balancer.name] = balancer_program(lab.layout, balancer)
            words = program.command[program.command.index("run") :]
            if balancer is NODE:
                run_it = [sys.executable, "-P", "-m", "vc5py.cli", *words]
                program.command = ["env", f"PYTHONPATH={installed}", *run_it]
            program.start()
        for vip in ALL_VIPS:
            wait_for_next_hops(lab, *BALANCERS, vip=vip)
        wait_for_reals(lab)
        yield lab


def said(lab: Lab) -> str:
    """What the last start made of the run before it, as the log tells."""
    log = lab.programs[NODE.name].log.read_text()
    return str(re.findall(r" start='([^']*)'", log)[-1])


def starts(lab: Lab) -> int:
    return lab.programs[NODE.name].log.read_text().count(" start='")


def command(lab: Lab, *words: str) -> str:
    """Of the balancer on the node."""
    state_dir = lab.layout.node_directory(NODE.name) / "state"
    vc5py = str(Path(sys.executable).with_name("vc5py"))
    within = ("ip", "netns", "exec", lab.layout.namespace(NODE.name))
    return run(*within, vc5py, words[0], "--state-dir", str(state_dir), *words[1:])


def status_line(lab: Lab) -> str:
    """What the last start made of the run before it, from `vc5py status`."""
    return next(line for line in command(lab, "status").splitlines() if line.startswith("At the start: "))


def upgrade_under_load(lab: Lab, installed: Path, build: Path) -> str:
    """Kills the running balancer and starts the build, with connections of all ages; returns what it says. No
    packet may be lost: TCP would make up for it, so they are counted, where they begin and where they end.
    """
    namespace = lab.layout.namespace(NODE.name)
    since, old, before = since_s(lab.layout, NODE), xdp_program(namespace), starts(lab)
    counted = total(metrics(lab.layout, NODE), "vc5_real_packets_total")
    with Arrivals(lab, REALS) as arrivals:
        with (
            Load(lab.layout) as load,
            Downloads(lab.layout, 8) as downloads,
            sampled(lambda: xdp_program(namespace)) as programs,
        ):
            lab.wait_for("requests flow", answered_since(load))
            assert downloads.under_way() == 8
            command(lab, "drain", str(REALS[0].address))  # connections there stay: their slots are unstable
            lab.kill_program(NODE)
            upgrade(installed, build)
            lab.start(NODE)
            until("it has started", lambda: starts(lab) > before)
            lab.wait_for("it is back", lambda: in_service(lab))
            lab.wait_for("requests flow", answered_since(load))
            assert downloads.completed() == 8
        assert arrivals.none_is_lost() > 2000
    command(lab, "reset", str(REALS[0].address))
    assert load.failed() == []
    assert list(dict.fromkeys(programs)) == [old, xdp_program(namespace)]
    assert since_s(lab.layout, NODE) == pytest.approx(since, abs=JITTER_S)
    assert total(metrics(lab.layout, NODE), "vc5_real_packets_total") > counted
    assert status_line(lab) == f"At the start: {said(lab)}"
    return said(lab)


def pinned(lab: Lab) -> set[str]:
    return set(pins(lab.layout.bpffs(NODE.name)))


def expected_pins(layout: str) -> set[str]:
    return {f"{layout}/{name}" for name in maps.NAMES} | {"vc5_ingress"}


def descriptions(lab: Lab) -> set[str]:
    return {path.name for path in (lab.layout.node_directory(NODE.name) / "state").glob("layout-*")}


def test_first_start_says_so(lab: Lab) -> None:
    assert said(lab) == "first start"
    assert status_line(lab) == "At the start: first start"


def test_another_program_with_the_same_layout_adopts_the_maps(
    lab: Lab, installed: Path, tmp_path: Path
) -> None:
    build = builds.rebuilt(tmp_path / "build")
    assert builds.layout_of(build) == abi.layout_hash()
    before = pinned(lab)
    assert (
        upgrade_under_load(lab, installed, build)
        == "adopted from an earlier run: program exchanged, maps kept"
    )
    assert pinned(lab) == before


def test_another_layout_is_given_all_flows_and_gives_them_back(
    lab: Lab, installed: Path, tmp_path: Path
) -> None:
    build = builds.with_other_layout(tmp_path / "build")
    other = builds.layout_of(build)
    assert other != abi.layout_hash()
    for where, layout in ((build, other), (builds.REPOSITORY, abi.layout_hash())):
        told = re.fullmatch(
            r"layout changed: (\d+) flows carried over, 0 without a backend here",
            upgrade_under_load(lab, installed, where),
        )
        assert told and int(told[1]) > 0
        assert pinned(lab) == expected_pins(layout)
        assert descriptions(lab) == {f"layout-{layout}.json"}


def test_a_flow_table_of_another_size_is_given_all_flows(lab: Lab, installed: Path) -> None:
    config = lab.layout.node_directory(NODE.name) / "vc5.yaml"
    config.write_text(config.read_text() + "flows: 262144\n")
    told = re.fullmatch(
        r"program exchanged, maps of another size: (\d+) flows carried over, 0 without a backend here",
        upgrade_under_load(lab, installed, builds.REPOSITORY),
    )
    assert told and int(told[1]) > 0


def test_killed_in_the_middle_of_an_upgrade_either_is_in_charge(
    lab: Lab, installed: Path, tmp_path: Path
) -> None:
    """Killed as soon as its pins are there, as soon as its program is attached, and a little later."""
    build = builds.with_other_layout(tmp_path / "build")
    directory = lab.layout.bpffs(NODE.name) / builds.layout_of(build)
    namespace, before = lab.layout.namespace(NODE.name), starts(lab)
    old = xdp_program(namespace)
    moments: list[Callable[[], bool]] = [
        # Whoever looks too late finds them under their own name.
        lambda: directory.with_name(f"{directory.name}_new").exists() or directory.exists(),
        lambda: xdp_program(namespace) != old,
        lambda: starts(lab) > before,
    ]
    with Arrivals(lab, REALS) as arrivals:
        with Load(lab.layout) as load, Downloads(lab.layout, 8) as downloads:
            lab.wait_for("requests flow", answered_since(load))
            upgrade(installed, build)
            for moment in moments:
                lab.kill_program(NODE)
                lab.start(NODE)
                until("the moment has come", moment)
            lab.kill_program(NODE)
            before = starts(lab)
            lab.start(NODE)
            until("it has started", lambda: starts(lab) > before)
            lab.wait_for("it is back", lambda: in_service(lab))
            assert downloads.completed() == 8
        assert arrivals.none_is_lost() > 2000
    assert load.failed() == []
    assert said(lab) == "adopted from an earlier run: program exchanged, maps kept"
    assert pinned(lab) == expected_pins(directory.name)
