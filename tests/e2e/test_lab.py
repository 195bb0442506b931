"""The whole appliance in a network of namespaces, and the command that shows it.

The tests of the balancer break things in one standing lab and mend them again; those of the command run
it in a lab of another name, beside the first one.
"""

from __future__ import annotations

import io
import re
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from vc5py.lab.assembly import Lab
from vc5py.lab.capture import Capture
from vc5py.lab.errors import LabError, NotObservedError
from vc5py.lab.kernel import NETNS_DIRECTORY, entered
from vc5py.lab.layout import (
    ALL_VIPS,
    BALANCERS,
    BIG_BYTES,
    CLIENT,
    FAR_REAL,
    FAR_VIPS,
    NODES,
    REALS,
    ROUTER,
    SWITCH,
    TAGGED_REAL,
    TAGGED_VIP,
    VIP,
    VIP6,
    VLAN,
    Host,
    IPAddress,
    Layout,
)
from vc5py.lab.network import Network, run
from vc5py.lab.observe import (
    bird_routes,
    established,
    everyone_says,
    interface_counters,
    metrics,
    next_hops,
    reals_up,
    total,
)
from vc5py.lab.report import Outcome, Report
from vc5py.lab.scenario import STEPS, Step, outside, perform, served, wait_for_next_hops
from vc5py.lab.traffic import Downloads, Load, curl, download

LAB_COMMAND = [str(Path(sys.executable).with_name("vc5py")), "lab", "--name", "vc5cmd"]
COMMAND_LAYOUT = Layout("vc5cmd")


# The network by itself


def test_reals_have_the_vip_but_do_not_answer_arp_for_it(lab: Lab) -> None:
    namespace = lab.layout.namespace(ROUTER)
    run("ip", "-n", namespace, "neigh", "flush", "dev", "lan")
    assert lab.serves(REALS[0])
    run("ip", "-n", namespace, "route", "add", f"{VIP}/32", "dev", "lan")  # so the VIP is asked for by ARP
    try:
        asked = ["ip", "netns", "exec", namespace, "curl", "-s", "--connect-timeout", "1", f"http://{VIP}/"]
        assert subprocess.run(asked, capture_output=True).returncode != 0
        neighbour = run("ip", "-n", namespace, "neigh", "show", str(VIP))
    finally:
        run("ip", "-n", namespace, "route", "del", f"{VIP}/32", "dev", "lan", "metric", "0")
    assert "lladdr" not in neighbour


def test_reals_do_not_answer_neighbour_solicitations_for_an_ipv6_vip(lab: Lab) -> None:
    namespace = lab.layout.namespace(ROUTER)
    run("ip", "-n", namespace, "route", "add", f"{VIP6}/128", "dev", "lan", "metric", "1")
    try:
        asked = [
            "ip",
            "netns",
            "exec",
            namespace,
            "curl",
            "-s",
            "--connect-timeout",
            "1",
            f"http://[{VIP6}]/",
        ]
        assert subprocess.run(asked, capture_output=True).returncode != 0
        neighbour = run("ip", "-n", namespace, "neigh", "show", str(VIP6))
    finally:
        run("ip", "-n", namespace, "route", "del", f"{VIP6}/128", "dev", "lan", "metric", "1")
    assert "lladdr" not in neighbour


def test_entered_leaves_the_thread_where_it_was(lab: Lab) -> None:
    here = Path("/proc/thread-self/ns/net").readlink()
    with entered(lab.layout.namespace(ROUTER)):
        assert Path("/proc/thread-self/ns/net").readlink() != here
        assert Path("/proc/sys/net/ipv4/fib_multipath_hash_policy").read_text() == "1\n"
    assert Path("/proc/thread-self/ns/net").readlink() == here


def test_a_missing_namespace_is_named() -> None:
    with pytest.raises(LabError, match="nowhere"), entered("nowhere"):
        pass


# The balancer


def test_router_learns_the_vip_from_both_balancers(lab: Lab) -> None:
    assert next_hops(lab.layout) == {balancer.address for balancer in BALANCERS}
    routes = "\n".join(bird_routes(lab.layout))
    for balancer in BALANCERS:
        assert established(lab.layout, balancer)
        assert f"[{balancer.name} " in routes
        assert f"via {balancer.address} on lan" in routes


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_all_reals_answer_through_both_balancers_and_no_request_fails(lab: Lab, scheme: str) -> None:
    before = {balancer: _packets(lab, balancer) for balancer in BALANCERS}
    answers = curl(lab.layout, 90, scheme)
    assert answers["failed"] == 0
    assert all(answers[real.name] >= 10 for real in REALS), answers
    assert all(_packets(lab, balancer) >= packets + 50 for balancer, packets in before.items())


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_an_ipv6_vip_is_announced_and_served_by_all_reals(lab: Lab, scheme: str) -> None:
    assert next_hops(lab.layout, VIP6) == {balancer.addresses[1] for balancer in BALANCERS}
    before = {balancer: _packets(lab, balancer, vip=VIP6) for balancer in BALANCERS}
    answers = curl(lab.layout, 90, scheme, VIP6)
    assert answers["failed"] == 0
    assert all(answers[real.name] >= 10 for real in REALS), answers
    assert all(_packets(lab, balancer, vip=VIP6) >= packets + 50 for balancer, packets in before.items())


@pytest.mark.parametrize("vip", ALL_VIPS)
def test_a_vip_answers_ping(lab: Lab, vip: IPAddress) -> None:
    before = [_verdicts(lab, balancer, "echo_answered") for balancer in BALANCERS]
    for number in range(3):
        assert _ping(lab, vip, b"%d" % number).endswith(b"%d" % number)
    after = [_verdicts(lab, balancer, "echo_answered") for balancer in BALANCERS]
    assert sum(after) - sum(before) == 3


@pytest.mark.parametrize("vip", FAR_VIPS)
def test_a_real_behind_the_router_is_served_through_tunnels(lab: Lab, vip: IPAddress) -> None:
    """GUE over IPv4 and plain IPv6, as the real has two addresses; and no packet without a tunnel."""
    with Capture(lab.layout.namespace(ROUTER), "far") as capture:
        assert curl(lab.layout, 40, vip=vip) == {FAR_REAL.name: 40, "failed": 0}
        seen = Counter(outside(frame, vip) for frame in capture.frames())
    assert seen["in GUE"] >= 40
    assert seen["in IPv6"] >= 40
    assert seen["bare"] == 0


@pytest.mark.parametrize("vip", FAR_VIPS)
def test_a_client_is_told_what_fits_a_tunnel(lab: Lab, vip: IPAddress) -> None:
    """An upload in packets as large as the client's link takes: some don't fit; smaller ones follow."""
    client = lab.layout.namespace(CLIENT.name)
    upload = lab.layout.directory / "upload"
    upload.write_bytes(bytes(100_000))
    told = sum(_verdicts(lab, balancer, "too_big_answered") for balancer in BALANCERS)
    run("ip", f"-{vip.version}", "-n", client, "route", "flush", "cache")
    host = f"[{vip}]" if vip.version == 6 else str(vip)
    options = ("--silent", "--fail", "--max-time", "30", "--header", "Expect:")
    sent = ("--write-out", "%{size_upload}", "--data-binary", f"@{upload}")
    shown = run("ip", "netns", "exec", client, "curl", *options, *sent, f"http://{host}/upload")
    assert shown == f"{FAR_REAL.name}\n100000"
    assert sum(_verdicts(lab, balancer, "too_big_answered") for balancer in BALANCERS) > told


def test_a_real_in_a_vlan_gets_tagged_frames_and_no_others(lab: Lab) -> None:
    with Capture(lab.layout.namespace(SWITCH), TAGGED_REAL.name) as capture:
        assert curl(lab.layout, 40, vip=TAGGED_VIP) == {TAGGED_REAL.name: 40, "failed": 0}
        vlans = {frame.vlan for frame in capture.frames() if frame.is_to(TAGGED_VIP, CLIENT.address)}
    assert vlans == {VLAN}


def test_reals_outside_the_vlan_get_frames_without_a_tag(lab: Lab) -> None:
    with Capture(lab.layout.namespace(SWITCH), REALS[0].name) as capture:
        assert curl(lab.layout, 30)["failed"] == 0
        vlans = {frame.vlan for frame in capture.frames() if frame.is_to(VIP, CLIENT.address)}
    assert vlans == {0}


@pytest.mark.parametrize(("real", "vips"), [(FAR_REAL, FAR_VIPS), (TAGGED_REAL, (TAGGED_VIP,))])
def test_checks_take_the_way_of_the_packets(lab: Lab, real: Host, vips: tuple[IPAddress, ...]) -> None:
    """A real that is gone beyond its tunnel, or in its VLAN, takes its VIPs with it, and brings them back."""
    lab.kill(real)
    try:
        for vip in vips:
            lab.wait_for("no route", lambda vip=vip: next_hops(lab.layout, vip) == frozenset())
    finally:
        lab.start(real)
    for vip in vips:
        wait_for_next_hops(lab, *BALANCERS, vip=vip)
        assert curl(lab.layout, 10, vip=vip)[real.name] == 10


def test_balancers_agree_on_the_real_of_a_connection(lab: Lab) -> None:
    """A connection goes on when the router sends its packets to the other balancer."""
    router = lab.layout.namespace(ROUTER)
    with Downloads(lab.layout, 4) as downloads:
        try:
            for balancer in (*BALANCERS, *BALANCERS):
                # A route with a better metric than BIRD's: everything through this one.
                run("ip", "-n", router, "route", "replace", f"{VIP}/32", "via", str(balancer.address))
                enough = _packets(lab, balancer) + 50
                lab.wait_for("packets move", partial(_has_forwarded, lab, balancer, enough))
            assert downloads.under_way() == 4
        finally:
            run("ip", "-n", router, "route", "del", f"{VIP}/32", "metric", "0")
        assert downloads.completed() == 4


def test_replies_do_not_pass_a_balancer(lab: Lab) -> None:
    hosts = (CLIENT, *BALANCERS)
    before = {host: interface_counters(lab.layout, host) for host in hosts}
    packets = {lb: total(metrics(lab.layout, lb), "vc5_real_packets_total") for lb in BALANCERS}
    fetched = download(lab.layout)
    moved = {host: interface_counters(lab.layout, host) - before[host] for host in hosts}
    counted = [total(metrics(lab.layout, lb), "vc5_real_packets_total") - packets[lb] for lb in BALANCERS]
    assert fetched.size == BIG_BYTES
    assert moved[CLIENT].received > BIG_BYTES
    assert sum(moved[lb].transmitted for lb in BALANCERS) < BIG_BYTES / 10
    assert sum(moved[lb].received for lb in BALANCERS) < BIG_BYTES / 10
    # ... but the requests do, all packets of one connection through one of them.
    assert max(counted) > 50


def test_a_dead_real_is_taken_out_and_taken_in_again(lab: Lab) -> None:
    victim = REALS[2]
    lab.kill(victim)
    lab.wait_for("real is out", lambda: everyone_says(lab.layout, victim, up=False))
    assert all(_up(lab, balancer) == {"real1", "real2"} for balancer in BALANCERS)
    answers = curl(lab.layout, 60)
    assert answers["failed"] == 0
    assert answers[victim.name] == 0

    lab.start(victim)
    lab.wait_for("real is in", lambda: everyone_says(lab.layout, victim, up=True))
    answers = curl(lab.layout, 60)
    assert answers["failed"] == 0
    assert answers[victim.name] > 0


def test_without_reals_the_vip_is_withdrawn(lab: Lab) -> None:
    for real in REALS:
        lab.kill(real)
    try:
        lab.wait_for("no route", lambda: next_hops(lab.layout) == frozenset())
        assert all(established(lab.layout, balancer) for balancer in BALANCERS)
    finally:
        for real in REALS:
            lab.start(real)
    wait_for_next_hops(lab, *BALANCERS)
    assert curl(lab.layout, 30)["failed"] == 0


def test_a_dead_balancer_is_survived(lab: Lab) -> None:
    victim, survivor = BALANCERS
    with Load(lab.layout) as load, Downloads(lab.layout, 4) as downloads:
        lab.wait_for("requests flow", lambda: len(load.replies) > 20)
        assert downloads.under_way() == 4
        lab.power_off(victim)
        wait_for_next_hops(lab, survivor)
        dropped_s = time.monotonic()
        lab.wait_for("requests flow", lambda: _begun_after(load, dropped_s) > 60)
        assert downloads.completed() == 4
    assert [reply for reply in load.failed() if reply.started_s > dropped_s] == []

    lab.power_on(victim)
    wait_for_next_hops(lab, *BALANCERS)
    answers = curl(lab.layout, 60)
    assert answers["failed"] == 0
    assert _packets(lab, victim) > 0


def test_a_killed_control_plane_stops_no_packet_and_no_route(lab: Lab) -> None:
    victim = BALANCERS[0]
    with Load(lab.layout) as load:
        lab.wait_for("requests flow", lambda: len(load.replies) > 20)
        lab.kill_program(victim)
        killed_s = time.monotonic()
        lab.wait_for("requests flow", lambda: _begun_after(load, killed_s) > 100)
        assert next_hops(lab.layout) == {balancer.address for balancer in BALANCERS}
        lab.start(victim)
        lab.wait_for("it is back", lambda: _up(lab, victim) == {real.name for real in REALS})
        back_s = time.monotonic()
        lab.wait_for("requests flow", lambda: _begun_after(load, back_s) > 100)
    assert load.failed() == []
    assert next_hops(lab.layout) == {balancer.address for balancer in BALANCERS}


# What the show says when something is wrong


def test_a_step_that_is_not_observed_is_said_so_and_ends_the_show(lab: Lab) -> None:
    def wait_in_vain(lab: Lab, report: Report) -> tuple[str, ...]:
        lab.wait_for("never", lambda: False, timeout_s=0.1)
        return ("not to be seen",)

    out = io.StringIO()
    report = Report(out)
    observations = perform(lab, report, (Step("waits", wait_in_vain), Step("is not reached", served)))
    report.table(observations)
    assert [seen.outcome for seen in observations] == [Outcome.NOT_OBSERVED, Outcome.NOT_TRIED]
    assert "NOT OBSERVED  not within 0 s: never" in out.getvalue()
    assert "\x1b" not in out.getvalue()


def test_a_program_that_ends_by_itself_is_noticed_at_once(lab: Lab) -> None:
    real = REALS[0]
    lab.network.kill(real.name)
    try:
        with pytest.raises(NotObservedError, match="nginx on real1 ended"):
            lab.wait_for("never", lambda: False)
    finally:
        lab.programs[real.name].reap()
        lab.start(real)


def test_a_second_process_is_kept_out(lab: Lab) -> None:
    with pytest.raises(LabError, match="another process is running the lab vc5e2e"):
        Lab(lab.layout).acquire()


# The command


@pytest.fixture
def command_lab() -> Iterator[Network]:
    """The network of the command's lab. What a failed test or a killed run leaves of it is removed."""
    network = Network(COMMAND_LAYOUT)
    network.sweep()
    yield network
    network.sweep()


def heed_signals() -> None:
    """Whoever runs these tests by nohup(1) or in the background has them ignore some, which is inherited."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


@pytest.fixture
def start_show(command_lab: Network) -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    """Starts `vc5py lab` and returns it when it has printed that text."""
    started: list[subprocess.Popen[str]] = []

    def start(until: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            LAB_COMMAND,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            preexec_fn=heed_signals,
        )
        started.append(process)
        assert process.stdout
        seen = []
        for line in process.stdout:
            seen.append(line)
            if until in line:
                return process
        pytest.fail(f"{until!r} was not printed:\n{''.join(seen)}")

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_whole_show_observes_everything_and_leaves_nothing(command_lab: Network) -> None:
    done = subprocess.run(LAB_COMMAND, capture_output=True, text=True, timeout=600)
    summary = done.stdout.partition("Summary\n")[2]
    assert done.returncode == 0, done.stdout + done.stderr
    for step in STEPS:
        assert re.search(rf"^  {re.escape(step.title)} +observed ", summary, re.MULTILINE), summary
    assert _left_over() == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signal_takes_the_lab_down(
    number: signal.Signals, command_lab: Network, start_show: Callable[[str], subprocess.Popen[str]]
) -> None:
    show = start_show("balancers started")
    pids = [pid for node in NODES for pid in command_lab.pids(node)]
    assert len(pids) >= 6
    show.send_signal(number)
    out, _ = show.communicate(timeout=120)
    assert show.returncode == 128 + number, out
    assert "Traceback" not in out
    assert _left_over() == []
    assert [pid for pid in pids if _runs(pid)] == []


def test_leftovers_of_a_killed_run_are_removed_and_lab_can_be_put_up(
    command_lab: Network, start_show: Callable[[str], subprocess.Popen[str]]
) -> None:
    show = start_show("balancers started")
    show.kill()
    show.wait()
    abandoned = [pid for node in NODES for pid in command_lab.pids(node)]
    assert abandoned

    assert "The lab is up." in _lab("up")
    assert not set(abandoned) & {pid for node in NODES for pid in command_lab.pids(node)}
    assert "Things to try" in _lab("up")  # a second time does no harm
    assert "standing" in _lab(status=1)
    answers = _lab("exec", "client", "curl", "-s", "--max-time", "15", f"http://{VIP}/?[1-60]")
    assert set(answers.split()) == {real.name for real in REALS}
    assert _lab("exec", "real2", "sh", "-c", "exit 7", status=7) == ""

    _lab("down")
    assert _left_over() == []
    assert "not up" in _lab("exec", "client", "true", status=1)


def test_without_root_the_command_says_so() -> None:
    """Whoever isn't root may not be able to read this tree, wherever it is: it is read before."""
    code = "import os, sys, vc5py.cli, vc5py.lab; os.setgid(65534); os.setuid(65534); "
    code += "sys.exit(vc5py.cli.main(['lab', '--name', 'vc5cmd']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode != 0
    assert "root" in done.stderr
    assert "Traceback" not in done.stderr


def _lab(*words: str, status: int = 0) -> str:
    done = subprocess.run([*LAB_COMMAND, *words], capture_output=True, text=True, timeout=300)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


def _left_over() -> list[str]:
    """Namespaces, mounts and files of the command's lab."""
    layout = COMMAND_LAYOUT
    namespaces = [name for name in layout.namespaces if (NETNS_DIRECTORY / name).exists()]
    mounts = [line for line in Path("/proc/mounts").read_text().splitlines() if str(layout.directory) in line]
    files = [str(layout.directory)] if layout.directory.exists() else []
    return namespaces + mounts + files


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def _packets(lab: Lab, balancer: Host, **labels: object) -> float:
    wanted = {name: str(value) for name, value in labels.items()}
    return total(metrics(lab.layout, balancer), "vc5_real_packets_total", **wanted)


def _ping(lab: Lab, address: IPAddress, data: bytes) -> bytes:
    """The answer to one ICMP echo request from the client, as a ping socket gives it (icmp(7))."""
    v6 = address.version == 6
    family, protocol = (
        (socket.AF_INET6, socket.IPPROTO_ICMPV6) if v6 else (socket.AF_INET, socket.IPPROTO_ICMP)
    )
    with entered(lab.layout.namespace(CLIENT.name)):
        Path("/proc/sys/net/ipv4/ping_group_range").write_text("0 0\n")
        asking = socket.socket(family, socket.SOCK_DGRAM, protocol)
    with asking:
        asking.settimeout(15)
        asking.connect((str(address), 0))
        asking.send(bytes([128 if v6 else 8, 0, 0, 0, 0, 0, 0, 0]) + data)
        return asking.recv(1500)


def _verdicts(lab: Lab, balancer: Host, name: str) -> float:
    return total(metrics(lab.layout, balancer), "vc5_verdicts_total", verdict=name)


def _begun_after(load: Load, at_s: float) -> int:
    return sum(reply.started_s > at_s for reply in list(load.replies))


def _has_forwarded(lab: Lab, balancer: Host, packets: float) -> bool:
    return _packets(lab, balancer) >= packets


def _up(lab: Lab, balancer: Host) -> set[str]:
    view = reals_up(lab.layout, balancer) or {}
    return {real.name for real in REALS if view.get(real.address)}
