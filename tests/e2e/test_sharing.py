"""Two balancers of the lab that share their flows: what one records, the other knows."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import yaml

from tests.e2e.operating import command
from tests.e2e.test_restart import until
from vc5py.lab import nodes
from vc5py.lab.assembly import Lab
from vc5py.lab.layout import ALL_VIPS, BALANCERS, SERVICE, Host, Layout
from vc5py.lab.observe import metrics, total
from vc5py.lab.scenario import wait_for_next_hops, wait_for_reals
from vc5py.lab.traffic import Downloads

GROUP = "239.255.5.9:9999"
CONNECTIONS = 12


def secret_file(lab: Lab) -> Path:
    return lab.layout.directory / "cluster.key"


@pytest.fixture(scope="module")
def sharing_lab() -> Iterator[Lab]:
    with Lab(Layout("vc5share")) as lab, pytest.MonkeyPatch.context() as patch:
        plain = nodes.balancer_configuration

        def configuration(balancer: Host) -> str:
            settings = yaml.safe_load(plain(balancer))
            settings["multicast"] = GROUP
            settings["cluster"] = {"secret_file": str(secret_file(lab)), "keys_file": str(keys_file(lab))}
            return yaml.safe_dump(settings, sort_keys=False)

        patch.setattr(nodes, "balancer_configuration", configuration)
        lab.put_up()
        secret_file(lab).write_text("a secret of the lab that nobody else knows\n")
        keys_file(lab).write_text("the first key of the lab\n")
        lab.start_balancers()
        for vip in ALL_VIPS:
            wait_for_next_hops(lab, *BALANCERS, vip=vip)
        wait_for_reals(lab)
        yield lab


def keys_file(lab: Lab) -> Path:
    return lab.layout.directory / "sync.keys"


def number(lab: Lab, balancer: Host, name: str, **labels: str) -> float:
    return total(metrics(lab.layout, balancer), name, **labels)


def peers_of(lab: Lab, balancer: Host) -> set[str]:
    found = metrics(lab.layout, balancer)
    return {
        sample.labels["address"]
        for sample in found
        if sample.name == "vc5_sync_peer_age_seconds" and sample.value < 3
    }


def hear_each_other(lab: Lab) -> bool:
    one, two = BALANCERS
    return peers_of(lab, one) == {str(two.address)} and peers_of(lab, two) == {str(one.address)}


def sharers(lab: Lab, balancer: Host) -> list[int]:
    found = []
    for pid in lab.network.pids(balancer.name):
        with suppress(OSError):
            if b"vc5py.sharer" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
    return found


def test_what_one_records_the_other_knows(sharing_lab: Lab) -> None:
    lab = sharing_lab
    until("they hear each other", lambda: hear_each_other(lab))
    with Downloads(lab.layout, CONNECTIONS, bytes_per_s=400_000):
        until(
            "both know all flows",
            lambda: all(number(lab, b, "vc5_real_flows", service=SERVICE) >= CONNECTIONS for b in BALANCERS),
            30.0,
        )
    sent = [number(lab, balancer, "vc5_sync_sent_flows_total") for balancer in BALANCERS]
    added = [number(lab, balancer, "vc5_sync_flows_total", result="added") for balancer in BALANCERS]
    assert sum(sent) >= CONNECTIONS
    assert sum(added) >= CONNECTIONS
    for balancer in BALANCERS:
        assert number(lab, balancer, "vc5_sync_enabled") == 1
        for outcome in ("forged", "key", "cluster", "malformed"):
            assert number(lab, balancer, "vc5_sync_datagrams_total", outcome=outcome) == 0


def test_killed_process_is_started_again_and_knows_its_peer(sharing_lab: Lab) -> None:
    lab, victim = sharing_lab, BALANCERS[0]
    until("they hear each other", lambda: hear_each_other(lab))
    [before] = sharers(lab, victim)
    os.kill(before, signal.SIGKILL)
    until("another process", lambda: sharers(lab, victim) not in ([], [before]))
    until("they hear each other again", lambda: hear_each_other(lab))
    until("a copy has come", lambda: number(lab, victim, "vc5_sync_copied") == 1)
    assert number(lab, victim, "vc5_sync_restarts_total") >= 1


def test_keys_rotate_by_reload_and_sharing_goes_on(sharing_lab: Lab) -> None:
    lab = sharing_lab
    for keys in ("the first key of the lab\nthe second key of the lab", "the second key of the lab"):
        keys_file(lab).write_text(keys)
        for balancer in BALANCERS:
            done = command(lab, balancer, "reload")
            assert done.returncode == 0, done.stderr
        until("they hear each other", lambda: hear_each_other(lab))
    for text in written(lab):
        assert "key of the lab" not in text
        assert "nobody else knows" not in text


def written(lab: Lab) -> Iterator[str]:
    """Logs, and whatever else the balancers leave in files."""
    for balancer in BALANCERS:
        for file in lab.layout.node_directory(balancer.name).rglob("*"):
            if file.is_file() and "bpf" not in file.parts:
                yield file.read_text(errors="replace")
