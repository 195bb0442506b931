"""Starting, stopping, dying and starting again: what stays, what goes, and in which order.

The first part breaks a balancer of the standing lab under load and mends it again; the second runs
`vc5py run` in a namespace of its own, where nothing but errors and leftovers is of interest.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from tests import leftovers
from tests.e2e.operating import command, main_process
from vc5py.dataplane import abi, flows, libbpf, maps
from vc5py.dataplane import pins as pins_module
from vc5py.dataplane.libbpf import MapType
from vc5py.lab.assembly import Lab
from vc5py.lab.kernel import pin_pass_program
from vc5py.lab.layout import BALANCERS, REALS
from vc5py.lab.network import run
from vc5py.lab.observe import JITTER_S, established, metrics, next_hops, reals_up, since_s, total
from vc5py.lab.scenario import wait_for_next_hops
from vc5py.lab.traffic import Downloads, Load

VC5PY = str(Path(sys.executable).with_name("vc5py"))
VICTIM = BALANCERS[0]
# What an orderly stop leaves in `Solo`'s bpf filesystem: the maps, for the next start.
MAPS = sorted(f"vc5py/{abi.layout_hash()}/{name}" for name in maps.NAMES)


def xdp_program(namespace: str, interface: str = "eth0") -> int | None:
    """The id of the XDP program on an interface."""
    link = json.loads(run("ip", "-n", namespace, "-d", "-j", "link", "show", "dev", interface))[0]
    return link["xdp"]["prog"]["id"] if "xdp" in link else None


def egress_filters(namespace: str, interface: str = "eth0") -> str:
    return run("tc", "-n", namespace, "filter", "show", "dev", interface, "egress", check=False).strip()


def pins(directory: Path) -> list[str]:
    """The files below a bpf file system's root, less the kernel's own."""
    found = (str(path.relative_to(directory)) for path in directory.rglob("*") if not path.is_dir())
    return sorted(name for name in found if name not in ("maps.debug", "progs.debug"))


def until(what: str, happened: Callable[[], bool], timeout_s: float = 180.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not happened():
        assert time.monotonic() < deadline_s, f"not within {timeout_s} s: {what}"
        time.sleep(0.02)


@contextmanager
def sampled(look: Callable[[], object]) -> Iterator[list[object]]:
    """What `look` sees, again and again, while the block runs, and once more at its end."""
    seen: list[object] = []
    stop = threading.Event()

    def work() -> None:
        while not stop.wait(0.01):
            seen.append(look())

    watcher = threading.Thread(target=work)
    watcher.start()
    try:
        yield seen
    finally:
        stop.set()
        watcher.join()
    seen.append(look())


# A balancer among others, under load


def answered_since(load: Load) -> Callable[[], bool]:
    begun_s = time.monotonic()
    return lambda: sum(reply.started_s > begun_s for reply in list(load.replies)) > 60


def packets(lab: Lab) -> float:
    return total(metrics(lab.layout, VICTIM), "vc5_real_packets_total")


def in_service(lab: Lab) -> bool:
    return (reals_up(lab.layout, VICTIM) or {}) == {real.address: True for real in REALS}


def test_killed_balancer_goes_on_and_its_successor_takes_over(lab: Lab) -> None:
    namespace = lab.layout.namespace(VICTIM.name)
    before, since, old = packets(lab), since_s(lab.layout, VICTIM), xdp_program(namespace)
    assert old and len(since) == 2
    pinned = pins(lab.layout.bpffs(VICTIM.name))
    with (
        Load(lab.layout) as load,
        Downloads(lab.layout, 4) as downloads,
        sampled(lambda: xdp_program(namespace)) as programs,
    ):
        lab.wait_for("requests flow", answered_since(load))
        assert downloads.under_way() == 4
        lab.kill_program(VICTIM)
        until("requests flow", answered_since(load))
        assert xdp_program(namespace) == old
        assert next_hops(lab.layout) == {balancer.address for balancer in BALANCERS}
        lab.start(VICTIM)
        lab.wait_for("it is back", lambda: in_service(lab))
        counted = [packets(lab)]
        lab.wait_for("the program is exchanged", lambda: xdp_program(namespace) != old)
        lab.wait_for("requests flow", answered_since(load))
        counted.append(packets(lab))
        assert downloads.completed() == 4
    assert load.failed() == []
    assert list(dict.fromkeys(programs)) == [old, xdp_program(namespace)]
    assert before < counted[0] < counted[1]
    assert since_s(lab.layout, VICTIM) == pytest.approx(since, abs=JITTER_S)
    assert pins(lab.layout.bpffs(VICTIM.name)) == pinned


def test_stopped_balancer_withdraws_before_it_detaches_and_leaves_only_its_maps(lab: Lab) -> None:
    namespace, directory = lab.layout.namespace(VICTIM.name), lab.layout.node_directory(VICTIM.name)
    program = lab.programs[VICTIM.name]
    logged = len(program.log.read_text())

    def look() -> tuple[bool, bool]:
        attached = xdp_program(namespace) is not None  # first, so that a route seen later is one too many
        return attached, VICTIM.address in next_hops(lab.layout)

    with Load(lab.layout) as load:
        lab.wait_for("requests flow", answered_since(load))
        with sampled(look) as seen:
            until("a look", lambda: bool(seen))
            os.kill(main_process(lab, VICTIM), signal.SIGTERM)
            until("it has ended", lambda: program.ended() is not None)
        status = program.ended()
        program.reap()
        until("requests flow", answered_since(load))
        try:
            assert status == 0, program.log_tail()
            # Whoever looks too seldom may miss the second between the two, but not see the wrong one first.
            assert list(dict.fromkeys(seen)) in (
                [(True, True), (True, False), (False, False)],
                [(True, True), (False, False)],
            )
            left = {Path(pin).name for pin in pins(lab.layout.bpffs(VICTIM.name))}
            assert left == set(maps.NAMES)
            assert egress_filters(namespace) == ""
            until("the router knows", lambda: not established(lab.layout, VICTIM))
            assert lab.network.pids(VICTIM.name) == []
            files = {path.name for path in (directory / "state").rglob("*") if not path.is_dir()}
            assert files == {"lock", "exabgp.log", f"layout-{abi.layout_hash()}.json"}
            text = program.log.read_text()[logged:]
            assert "Traceback" not in text and " ERROR " not in text
        finally:
            lab.start(VICTIM)
            wait_for_next_hops(lab, *BALANCERS)
        lab.wait_for("requests flow", answered_since(load))
    assert load.failed() == []


@pytest.mark.long
def test_balancer_whose_place_somebody_takes_withdraws_and_comes_back(lab: Lab) -> None:
    """Where only its program is taken off, nothing is withdrawn."""
    namespace, program = lab.layout.namespace(VICTIM.name), lab.layout.bpffs(VICTIM.name) / "foreign"
    ours = xdp_program(namespace)
    run("ip", "-n", namespace, "link", "set", "eth0", "xdpdrv", "off")
    until("it is back", lambda: xdp_program(namespace) == ours)
    assert VICTIM.address in next_hops(lab.layout)
    pin_pass_program(program)
    try:
        run("ip", "-force", "-n", namespace, "link", "set", "eth0", "xdpdrv", "pinned", str(program))
        wait_for_next_hops(lab, *(balancer for balancer in BALANCERS if balancer is not VICTIM))
        shown = command(lab, VICTIM, "status").stdout
        assert shown.count("interface eth0 has an XDP program of somebody else's: remove it first") > 1
        with Load(lab.layout) as load:
            lab.wait_for("requests flow", answered_since(load))
        assert load.failed() == []
    finally:
        program.unlink()
        run("ip", "-n", namespace, "link", "set", "eth0", "xdpdrv", "off")
    wait_for_next_hops(lab, *BALANCERS)
    assert xdp_program(namespace) == ours


# A balancer by itself

CONFIG = """
services: [{name: a, addr: 192.0.2.1, port: 80, real: g, checks: []}]
reals: {g: [10.9.0.2]}
metrics: {address: 127.0.0.1, port: 9955}
"""


LOGGED = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} ")


class Solo:
    """A namespace with interfaces eth0 and eth1, and what is needed to run a balancer in it."""

    namespace = "vc5e2e-solo"

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.config = directory / "vc5.yaml"
        self.config.write_text(CONFIG)
        self.state_dir = directory / "state"
        self.bpffs = directory / "bpf"
        self.bpf_dir = self.bpffs / "vc5py"
        self.processes: list[subprocess.Popen[str]] = []

    def build(self) -> None:
        run("ip", "netns", "add", self.namespace)
        for n in (0, 1):
            run("ip", "-n", self.namespace, *f"link add eth{n} type veth peer name peer{n}".split())
            for end in (f"eth{n}", f"peer{n}"):
                run("ip", "-n", self.namespace, "link", "set", end, "up")
            run("ip", "-n", self.namespace, *f"addr add 10.9.{n}.1/24 dev eth{n}".split())
        run("ip", "-n", self.namespace, "link", "set", "lo", "up")
        self.bpffs.mkdir()
        run("mount", "-t", "bpf", "bpf", str(self.bpffs))

    def remove(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()
            assert process.stderr
            process.stderr.close()
        leftovers.remove(self.namespace)
        run("umount", "--lazy", str(self.bpffs), check=False)

    def start(self, *interfaces: str, **options: object) -> subprocess.Popen[str]:
        chosen = {"config": self.config, "state-dir": self.state_dir, "bpf-dir": self.bpf_dir}
        chosen["data-dir"] = self.directory / "data"
        chosen |= {name.replace("_", "-"): value for name, value in options.items()}  # type: ignore[misc]
        words = [f"--{name}={value}" for name, value in chosen.items()]
        process = subprocess.Popen(
            ["ip", "netns", "exec", self.namespace, VC5PY, "run", *words, *interfaces],
            stderr=subprocess.PIPE,
            text=True,
        )
        self.processes.append(process)
        return process

    def start_and_wait(self, *interfaces: str) -> subprocess.Popen[str]:
        old = {name: xdp_program(self.namespace, name) for name in interfaces}
        process = self.start(*interfaces)

        def attached() -> bool:
            assert process.poll() is None, process.communicate()[1]
            new = {name: xdp_program(self.namespace, name) for name in interfaces}
            pinned = [path.name for path in self.bpf_dir.glob("vc5_ingress*")]
            return all(new[n] not in (None, old[n]) for n in interfaces) and pinned == ["vc5_ingress"]

        until("attached", attached)
        return process

    def fails(self, *interfaces: str, **options: object) -> tuple[int, str]:
        """Exit status and what was said beside the log, of a run that ends by itself."""
        process = self.start(*interfaces, **options)
        _, said = process.communicate(timeout=180)
        lines = said.splitlines(keepends=True)
        return process.returncode, "".join(line for line in lines if not LOGGED.match(line))

    def put_foreign_program_on(self, interface: str, *how: str) -> int:
        """`-force`: in place of another one."""
        path = self.bpffs / "foreign"
        pin_pass_program(path)
        run("ip", *how, "-n", self.namespace, "link", "set", interface, "xdpdrv", "pinned", str(path))
        path.unlink()
        program = xdp_program(self.namespace, interface)
        assert program is not None
        return program

    def traces(self) -> list[object]:
        """All that a balancer may leave on the machine: programs, filters, pins."""
        both = ("eth0", "eth1")
        programs = [xdp_program(self.namespace, name) for name in both]
        filters = [egress_filters(self.namespace, name) for name in both]
        return [*filter(None, programs), *filter(None, filters), *pins(self.bpffs)]


@pytest.fixture
def solo(tmp_path: Path) -> Iterator[Solo]:
    one = Solo(tmp_path)
    one.remove()
    one.build()
    yield one
    one.remove()


def stop(process: subprocess.Popen[str], number: signal.Signals = signal.SIGTERM) -> str:
    process.send_signal(number)
    _, said = process.communicate(timeout=180)
    assert process.returncode == (-number if number is signal.SIGKILL else 0), said
    return said


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stop_leaves_only_the_maps(
    solo: Solo, number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And systemd is told of all: signs of life, that the programs are attached, and the end."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(solo.directory / "notify"))
        systemd.settimeout(180)
        monkeypatch.setenv("NOTIFY_SOCKET", str(solo.directory / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "80000000")
        process = solo.start("eth0", "eth1")
        told = iter(lambda: systemd.recv(99), b"")
        assert next(told) == b"WATCHDOG=1"
        assert next(word for word in told if word != b"WATCHDOG=1") == b"READY=1"
        assert len(solo.traces()) > 10
        said = stop(process, number)
        assert next(word for word in told if word != b"WATCHDOG=1") == b"STOPPING=1"
    assert [f"interface=eth{n} kind=veth: its peer needs GRO" in said for n in (0, 1)] == [True, True]
    assert solo.traces() == MAPS


def test_stop_leaves_nothing_else_that_a_killed_predecessor_had(solo: Solo) -> None:
    stop(solo.start_and_wait("eth0", "eth1"), signal.SIGKILL)
    assert len(solo.traces()) > 10
    process = solo.start_and_wait("eth0")
    until("eth1 is left", lambda: xdp_program(solo.namespace, "eth1") is None)
    stop(process)
    assert solo.traces() == MAPS


def pinned_maps(solo: Solo) -> maps.Maps:
    """The maps that the balancer has or had."""
    found, old = maps.open_or_create(solo.bpf_dir, maps.Sizes(256, 1, 1, 1, 1, 1, maps.running_cpus(), 1))
    return old or found


def test_stop_keeps_flows_and_lets_every_real_prove_itself_again(solo: Solo) -> None:
    stop(solo.start_and_wait("eth0"))
    shared = pinned_maps(solo)
    identity = shared.backends["identity"][0]
    assert identity
    assert not int(shared.backends["link"][0]) >> 48 & abi.BACKEND_UP
    value = abi.FLOW_VALID | flows.owner(0, 0)
    shared.flows[3, 2] = (value ^ 3, value)
    process = solo.start_and_wait("eth0")
    assert (pinned_maps(solo).flows[3, 2]["tag"], shared.backends["identity"][0]) == (value ^ 3, identity)
    assert int(shared.backends["link"][0]) >> 48 & abi.BACKEND_UP, "nothing checks it: up at once"
    stop(process)
    assert pinned_maps(solo).flows[3, 2]["tag"] == value ^ 3


def test_maps_of_other_layouts_are_removed(solo: Solo) -> None:
    old, foreign = solo.bpf_dir / "0123456789ab", solo.bpf_dir / "somebody"
    fd = libbpf.create_map(MapType.ARRAY, "old", 4, 8, 1)
    for directory in (old, foreign):
        directory.mkdir(parents=True)
        libbpf.pin(fd, directory / "flows")
    os.close(fd)
    process = solo.start_and_wait("eth0")
    until("the old ones are gone", lambda: not old.exists())
    assert (foreign / "flows").exists()
    stop(process)


@pytest.mark.long  # tests/unit/test_killed_starts.py has every moment
@pytest.mark.parametrize("name", ["vc5_ingress_new", "vc5_ingress_4711"])
def test_killed_between_attaching_and_naming_is_taken_over(solo: Solo, name: str) -> None:
    """Of earlier versions, too."""
    stop(solo.start_and_wait("eth0"), signal.SIGKILL)
    (solo.bpf_dir / "vc5_ingress").rename(solo.bpf_dir / name)
    stop(solo.start_and_wait("eth0"))
    assert solo.traces() == MAPS


def generations(solo: Solo) -> list[str]:
    return sorted(path.name for path in solo.bpf_dir.iterdir() if path.is_dir())


def test_killed_after_pinning_new_maps_finds_those_that_packets_go_by(solo: Solo) -> None:
    """A run that was to exchange the maps has pinned its own, and was killed before it attached anything."""
    stop(solo.start_and_wait("eth0"), signal.SIGKILL)
    sizes = replace(pinned_maps(solo).sizes, flow_sets=512)
    unused = pins_module.Pins(solo.bpf_dir, None)
    unused.prepare(maps.create(sizes), [solo.bpf_dir / abi.layout_hash()])
    assert len(generations(solo)) == 2
    said = stop(solo.start_and_wait("eth0"))
    assert "start='adopted from an earlier run: program exchanged, maps kept'" in said
    assert generations(solo) == [abi.layout_hash()]
    assert solo.traces() == MAPS


@pytest.mark.parametrize("suffix", [pytest.param("_new", marks=pytest.mark.long), "_4711"])
def test_killed_before_its_maps_had_their_name_is_taken_over(solo: Solo, suffix: str) -> None:
    """Its program was attached; other maps, which nothing uses, are there too."""
    stop(solo.start_and_wait("eth0"), signal.SIGKILL)
    used = solo.bpf_dir / abi.layout_hash()
    table = pins_module.flow_table_id(used)
    used.rename(used.with_name(used.name + suffix))
    sizes = replace(pinned_maps(solo).sizes, flow_sets=512)
    pins_module.Pins(solo.bpf_dir, None).prepare(maps.create(sizes), [Path(f"{used}{suffix}")])
    said = stop(solo.start_and_wait("eth0"))
    assert "start='adopted from an earlier run: program exchanged, maps kept'" in said
    assert generations(solo) == [abi.layout_hash()]
    assert pins_module.flow_table_id(used) == table


def test_another_cluster_secret_is_said_to_cost_the_flows(solo: Solo) -> None:
    stop(solo.start_and_wait("eth0"), signal.SIGKILL)
    layouts = list(solo.state_dir.glob("layout-*"))
    described = json.loads(layouts[0].read_text())
    described["keys"] = dict.fromkeys(described["keys"], "0" * 16)
    layouts[0].write_text(json.dumps(described))
    said = stop(solo.start_and_wait("eth0"), signal.SIGKILL)
    assert "the flow hash key is another one: flows can't be carried over" in said
    assert "start='adopted from an earlier run: program exchanged, maps kept'" in stop(
        solo.start_and_wait("eth0")
    )


def test_reconfigured_successor_of_a_killed_balancer_keeps_what_fits(solo: Solo) -> None:
    """Larger maps are made for it, in which everything is found again; smaller ones are not."""
    stop(solo.start_and_wait("eth0"), signal.SIGKILL)
    solo.config.write_text(CONFIG + "flows: 2048\n")
    stop(solo.start_and_wait("eth0"), signal.SIGKILL)
    services = [
        f"{{name: s{n}, addr: 192.0.2.{n}, port: [80, 81], real: g, checks: []}}" for n in range(2, 200)
    ]
    solo.config.write_text(CONFIG.replace("services: [", "services: [" + ", ".join(services) + ", "))
    stop(solo.start_and_wait("eth0"), signal.SIGKILL)
    solo.config.write_text(CONFIG + "flows: 4096\n")
    said = stop(solo.start_and_wait("eth0"))
    told = "program exchanged, maps of another size: 0 flows carried over, 0 without a backend here"
    assert f"start={told!r}" in said
    assert solo.traces() == MAPS


def test_foreign_program_is_left_alone(solo: Solo) -> None:
    foreign = solo.put_foreign_program_on("eth1")
    status, said = solo.fails("eth0", "eth1")
    assert (status, xdp_program(solo.namespace, "eth1")) == (1, foreign)
    assert said.endswith("vc5py: interface eth1 has an XDP program of somebody else's: remove it first\n")
    assert "Traceback" not in said
    assert solo.traces() == [foreign]


def test_foreign_program_that_took_our_place_is_not_detached(solo: Solo) -> None:
    process = solo.start_and_wait("eth0")
    foreign = solo.put_foreign_program_on("eth0", "-force")
    assert "isn't ours any more" in stop(process)
    assert solo.traces() == [foreign, *MAPS]


def test_interface_that_has_gone_does_not_keep_the_rest_from_being_cleaned_up(solo: Solo) -> None:
    process = solo.start_and_wait("eth0", "eth1")
    run("ip", "-n", solo.namespace, "link", "del", "eth0")
    said = stop(process)
    assert "interface eth0: No such device" in said and "Traceback" not in said
    run("ip", "-n", solo.namespace, *["link", "add", "eth0", "type", "veth", "peer", "name", "peer0"])
    assert solo.traces() == MAPS


def test_second_balancer_with_the_same_state_directory_is_refused(solo: Solo) -> None:
    first = solo.start_and_wait("eth0")
    before = solo.traces()
    said = f"vc5py: another vc5py runs with the state directory {solo.state_dir}\n"
    assert solo.fails("eth1") == (1, said)
    assert solo.traces() == before
    assert first.poll() is None


def test_second_balancer_with_another_state_directory_is_refused_too(solo: Solo) -> None:
    """The maps are another's, or where it has its own the interface is."""
    first = solo.start_and_wait("eth0")
    before = solo.traces()
    solo.config.write_text(CONFIG.replace("9955", "9956"))
    other = {"state_dir": solo.directory / "s2", "data_dir": solo.directory / "d2"}
    status, said = solo.fails("eth1", **other)
    assert (status, said.count("\n")) == (1, 1)
    assert said.startswith(
        f"vc5py: another vc5py runs with the bpf directory {solo.bpf_dir} (process {first.pid}: "
    )
    assert f" --state-dir={solo.state_dir} " in said
    foreign = "vc5py: interface eth0 has an XDP program of somebody else's: remove it first\n"
    assert solo.fails("eth0", **other, bpf_dir=solo.bpffs / "b2") == (1, foreign)
    assert solo.traces() == before
    assert first.poll() is None


@pytest.mark.parametrize(
    ("interface", "told"),
    [("nosuch0", "No such device"), ("much-too-long-a-name", "")],
)
def test_unknown_interface_is_one_clear_line(solo: Solo, interface: str, told: str) -> None:
    status, said = solo.fails("eth0", interface)
    assert (status, said.count("\n")) == (1, 1)
    assert said.startswith(f"vc5py: interface {interface}: {told}")
    assert solo.traces() == []


def test_bpf_directory_must_be_on_a_bpf_filesystem(solo: Solo, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    status, said = solo.fails("eth0", bpf_dir=plain)
    assert (status, said.count("\n")) == (1, 1)
    assert f"{plain} is not on a bpf filesystem: mount -t bpf bpf {plain}\n" in said
    assert solo.traces() == []


def test_a_namespace_has_no_bpf_filesystem_in_the_usual_place(solo: Solo) -> None:
    status, said = solo.fails("eth0", bpf_dir="/sys/fs/bpf/vc5py")
    assert (status, said.count("\n")) == (1, 1)
    assert "is not on a bpf filesystem: mount -t bpf bpf /sys/fs/bpf\n" in said
    assert solo.traces() == []


def test_port_in_use_is_one_clear_line_and_nothing_is_attached(solo: Solo) -> None:
    solo.start_and_wait("eth0")
    before = solo.traces()
    status, said = solo.fails("eth1", state_dir=solo.directory / "s2", bpf_dir=solo.bpffs / "b2")
    assert (status, "Traceback" in said) == (1, False)
    assert "can't serve metrics on 127.0.0.1 port 9955" in said
    assert solo.traces() == before


def test_configuration_with_errors_touches_nothing(solo: Solo) -> None:
    solo.config.write_text(CONFIG.replace("port: 80", "port: eighty"))
    status, said = solo.fails("eth0")
    assert status == 2
    assert said.startswith(f"{solo.config}:2:")
    assert not solo.state_dir.exists() and not solo.bpf_dir.exists()
    assert solo.traces() == []
