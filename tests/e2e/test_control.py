"""Commands to a running balancer, in the lab: what clients notice of them, and what outlives the balancer."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path

import pytest
import yaml

from tests.e2e.operating import (
    command,
    config_file,
    edited,
    everywhere,
    main_process,
    real,
    service,
    state_dir,
    status,
)
from vc5py.control import client
from vc5py.errors import Vc5Error
from vc5py.lab.assembly import Lab
from vc5py.lab.layout import ALL_VIPS, BALANCERS, REALS, SERVICE, Host
from vc5py.lab.observe import metrics, next_hops, total
from vc5py.lab.scenario import wait_for_next_hops
from vc5py.lab.traffic import Downloads, curl

ONE, TWO, THREE = REALS
EXTRA = {"name": "extra", "addr": "192.168.101.4", "port": 80, "reals": [str(ONE.address)], "checks": []}
CONNECTIONS = 12  # so that each real surely has some


@pytest.fixture(autouse=True)
def no_overrides(lab: Lab) -> Iterator[None]:
    yield
    for balancer in BALANCERS:
        for host in {override["real"] for override in status(lab, balancer)["overrides"]}:
            assert client.ask(state_dir(lab, balancer), "POST", "/v1/reset", {"real": host}).good
        assert status(lab, balancer)["overrides"] == []


def answering(lab: Lab, count: int = 40) -> set[str]:
    """Who answers new connections; all must be answered."""
    answers = curl(lab.layout, count)
    assert answers.pop("failed") == 0
    return set(answers)


def packets(lab: Lab, *hosts: Host) -> float:
    return sum(
        total(metrics(lab.layout, balancer), "vc5_real_packets_total", real=str(host.address))
        for balancer in BALANCERS
        for host in hosts
    )


def test_drained_real_keeps_its_downloads_and_gets_no_new_ones(lab: Lab) -> None:
    with Downloads(lab.layout, CONNECTIONS) as downloads:
        before = packets(lab, ONE, TWO)
        lab.wait_for("they go to the first two as well", lambda: packets(lab, ONE, TWO) > before + 100)
        everywhere(lab, "drain", str(ONE.address))
        everywhere(lab, "drain", str(TWO.address), "--service", SERVICE)
        assert answering(lab) == {THREE.name}
        before = packets(lab, ONE, TWO)
        lab.wait_for("they go on there", lambda: packets(lab, ONE, TWO) > before + 100)
        assert downloads.completed() == CONNECTIONS
    for balancer in BALANCERS:
        shown = real(lab, balancer, SERVICE, ONE)
        assert (shown["health"], shown["admin"], shown["serving"]) == ("up", "draining", False)
    everywhere(lab, "enable", str(ONE.address))
    everywhere(lab, "enable", str(TWO.address), "--service", SERVICE)
    assert answering(lab, 80) == {host.name for host in REALS}


def test_disabled_real_gets_no_packet_and_is_still_checked(lab: Lab) -> None:
    everywhere(lab, "disable", str(ONE.address))
    before = packets(lab, ONE)
    assert answering(lab) == {TWO.name, THREE.name}
    assert packets(lab, ONE) == before
    for balancer in BALANCERS:
        samples = metrics(lab.layout, balancer)
        labels = {"real": str(ONE.address), "service": SERVICE}
        assert total(samples, "vc5_real_disabled", **labels) == 1
        assert total(samples, "vc5_real_up", **labels) == 1
    everywhere(lab, "enable", str(ONE.address))
    assert answering(lab, 80) == {host.name for host in REALS}


def test_weight_is_a_share_of_new_connections(lab: Lab) -> None:
    everywhere(lab, "weight", str(TWO.address), "0", "--service", SERVICE)
    assert answering(lab, 80) == {ONE.name, THREE.name}
    everywhere(lab, "weight", str(TWO.address), "8", "--service", SERVICE)
    answers = curl(lab.layout, 200)
    assert answers[TWO.name] > 120  # 160 are expected; that is seven standard deviations
    everywhere(lab, "weight", str(TWO.address), "default", "--service", SERVICE)
    assert [status(lab, balancer)["overrides"] for balancer in BALANCERS] == [[], []]


def test_all_reals_disabled_withdraw_the_vip(lab: Lab) -> None:
    victim = BALANCERS[0]
    for host in REALS:
        assert command(lab, victim, "disable", str(host.address), "--service", SERVICE).returncode == 0
    wait_for_next_hops(lab, BALANCERS[1])
    for host in REALS:
        assert command(lab, victim, "enable", str(host.address), "--service", SERVICE).returncode == 0
    wait_for_next_hops(lab, *BALANCERS)


def test_unknown_names_are_status_2_with_a_suggestion(lab: Lab) -> None:
    wrong = str(ONE.address) + "0"
    done = command(lab, BALANCERS[0], "drain", wrong)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith(f"vc5py: no real {wrong} in the configuration; did you mean ")
    done = command(lab, BALANCERS[0], "drain", str(ONE.address), "--service", "ngnix")
    assert (done.returncode, "did you mean nginx" in done.stderr) == (2, True)


def restart(lab: Lab, balancer: Host, number: signal.Signals, *forgotten: Path) -> None:
    """Ends the balancer, removes what a reboot would, starts it, and waits until it serves again."""
    if number is signal.SIGKILL:
        lab.kill_program(balancer)
    else:
        program = lab.programs[balancer.name]
        os.kill(main_process(lab, balancer), number)
        program.reap()
    for path in forgotten:
        shutil.rmtree(path)
    lab.start(balancer)

    def serves() -> bool:
        try:
            status(lab, balancer)
        except Vc5Error:
            return False
        return balancer.address in next_hops(lab.layout)

    lab.wait_for("it serves again", serves)


def test_commands_outlive_kill_stop_and_reboot(lab: Lab) -> None:
    victim = BALANCERS[0]
    assert command(lab, victim, "drain", str(ONE.address)).returncode == 0
    assert command(lab, victim, "weight", str(TWO.address), "7", "--service", SERVICE).returncode == 0
    said = status(lab, victim)["overrides"]
    assert len(said) == 2
    restart(lab, victim, signal.SIGKILL)
    assert status(lab, victim)["overrides"] == said
    assert real(lab, victim, SERVICE, ONE)["admin"] == "draining"
    pins = [path for path in lab.layout.bpffs(victim.name).iterdir() if path.is_dir()]
    restart(lab, victim, signal.SIGTERM, state_dir(lab, victim), *pins)
    assert status(lab, victim)["overrides"] == said
    assert not real(lab, victim, SERVICE, ONE)["serving"]
    wait_for_next_hops(lab, *BALANCERS)


def test_commands_outlive_reloads_and_a_real_that_is_not_in_the_file_meanwhile(lab: Lab) -> None:
    victim = BALANCERS[0]
    with edited(lab) as editor:
        assert command(lab, victim, "drain", str(ONE.address), "--service", SERVICE).returncode == 0
        assert command(lab, victim, "weight", str(TWO.address), "7").returncode == 0
        said = status(lab, victim)["overrides"]
        editor.write(timeouts={"udp": 77})
        done = command(lab, victim, "reload")
        assert (done.returncode, done.stdout.count("timeouts.udp changed")) == (0, 1)
        assert real(lab, victim, SERVICE, ONE)["admin"] == "draining"
        assert real(lab, victim, SERVICE, TWO)["weight"] == 7
        editor.write(reals={SERVICE: [str(TWO.address)]})
        assert command(lab, victim, "reload").returncode == 0
        assert [one["address"] for one in service(lab, victim, SERVICE)["reals"]] == [str(TWO.address)]
    assert real(lab, victim, SERVICE, ONE)["admin"] == "draining"
    assert status(lab, victim)["overrides"] == said


def test_vip_is_withdrawn_and_announced_by_command(lab: Lab) -> None:
    vip = ALL_VIPS[0]
    first, second = BALANCERS
    try:
        done = command(lab, first, "vip", "withdraw", str(vip))
        assert done.stdout == f"VIP {vip}: not announced\n"
        wait_for_next_hops(lab, second, vip=vip)
        assert answering(lab), "clients notice nothing"
        assert status(lab, first)["vip_overrides"] == {str(vip): "withdrawn"}
    finally:
        command(lab, first, "vip", "default", str(vip))
    wait_for_next_hops(lab, first, second, vip=vip)
    unknown = command(lab, first, "vip", "announce", "203.0.113.1")
    assert (unknown.returncode, unknown.stdout) == (2, "")
    assert "no VIP 203.0.113.1 in the configuration" in unknown.stderr


def test_diff_says_what_the_reload_then_does(lab: Lab) -> None:
    victim = BALANCERS[0]
    file = config_file(lab, victim)

    def diff() -> list[str]:
        done = command(lab, victim, "check", "-c", str(file), "--diff")
        assert done.returncode == 0
        good, *lines = done.stdout.splitlines()
        assert good.startswith(f"{file}: good: ")
        return lines

    with edited(lab) as editor:
        assert diff() == ["nothing changes"]
        settings = deepcopy(editor.original[victim])
        first, *others = settings["services"]
        gone = others.pop()
        settings["services"] = [first | {"need": 2, "slow_start": 5}, *others, EXTRA]
        settings["reals"][SERVICE][1] = {"address": str(TWO.address), "weight": 3}
        settings |= {"flows": 2048, "timeouts": {"udp": 77}}
        file.write_text(yaml.safe_dump(settings))
        told = diff()
        starts = [
            "flows changed: ",
            "timeouts.udp changed: ",
            f"service {gone['name']} removed",
            "service extra added",
        ]
        assert all(any(line.startswith(start) for line in told) for start in starts), told
        assert {line for line in told if line.endswith(" (at the next start)")} == {told[0]}
        assert diff() == told, "asking changes nothing"
        done = command(lab, victim, "reload")
        assert (done.returncode, done.stdout.splitlines()) == (0, told)
        assert diff() == ["nothing changes"]
        assert command(lab, victim, "reload").stdout == "nothing has changed\n"


def test_diff_of_a_file_that_is_bad_or_unwise(lab: Lab) -> None:
    victim = BALANCERS[0]
    file = config_file(lab, victim)
    with edited(lab):
        text = file.read_text()
        file.write_text(text.replace("need: 1", "need: 9", 1))
        done = command(lab, victim, "check", "-c", str(file), "--strict", "--diff")
        assert done.returncode == 1 and "warning: services[0].need: found 9" in done.stderr
        assert done.stdout.splitlines()[1:] == [f"service {SERVICE} changed: need 1 -> 9"]
        assert command(lab, victim, "check", "-c", str(file), "--diff").returncode == 0
        file.write_text(text.replace("need: 1", "need: no", 1))
        done = command(lab, victim, "check", "-c", str(file), "--diff")
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith(f"{file}:")
