"""Two balancers of the lab that share their flows: what one records, the other knows."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.e2e.operating import Editor, command, command_line, config_file, edited, main_process, state_dir
from tests.e2e.test_restart import until
from vc5py.control import client
from vc5py.lab import nodes
from vc5py.lab.assembly import Lab
from vc5py.lab.layout import ALL_VIPS, BALANCERS, SERVICE, Host, Layout
from vc5py.lab.observe import metrics, total
from vc5py.lab.scenario import wait_for_next_hops, wait_for_reals
from vc5py.lab.traffic import Downloads

GROUP = "239.255.5.9:9999"
CONNECTIONS = 12
FIRST_KEY, SECOND_KEY = "the first key of the lab\n", "the second key of the lab\n"


def secret_file(lab: Lab) -> Path:
    return lab.layout.directory / "cluster.key"


@pytest.fixture(scope="module")
def sharing_lab() -> Iterator[Lab]:
    with Lab(Layout("vc5share")) as lab, pytest.MonkeyPatch.context() as patch:
        plain = nodes.balancer_configuration

        def configuration(balancer: Host) -> str:
            settings = yaml.safe_load(plain(balancer))
            settings["multicast"] = GROUP
            settings["cluster"] = {
                "secret_file": str(secret_file(lab)),
                "keys_file": str(keys_file(lab, balancer)),
            }
            return yaml.safe_dump(settings, sort_keys=False)

        patch.setattr(nodes, "balancer_configuration", configuration)
        lab.put_up()
        secret_file(lab).write_text("a secret of the lab that nobody else knows\n")
        for balancer in BALANCERS:
            keys_file(lab, balancer).write_text(FIRST_KEY)
        lab.start_balancers()
        for vip in ALL_VIPS:
            wait_for_next_hops(lab, *BALANCERS, vip=vip)
        wait_for_reals(lab)
        yield lab


def keys_file(lab: Lab, balancer: Host) -> Path:
    return lab.layout.directory / f"{balancer.name}.keys"


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
    with Downloads(lab.layout, CONNECTIONS):
        until(
            "both know all flows",
            lambda: all(number(lab, b, "vc5_real_flows", service=SERVICE) >= CONNECTIONS for b in BALANCERS),
        )

    def told(name: str, **labels: str) -> bool:
        return sum(number(lab, balancer, name, **labels) for balancer in BALANCERS) >= CONNECTIONS

    # The processes report now and then.
    until("they say that they have sent them", lambda: told("vc5_sync_sent_flows_total"))
    until("they say that they have added them", lambda: told("vc5_sync_flows_total", result="added"))
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
    until("it is told of", lambda: number(lab, victim, "vc5_sync_restarts_total") >= 1)
    until("they hear each other again", lambda: hear_each_other(lab))
    until("a copy has come", lambda: number(lab, victim, "vc5_sync_copied") == 1)


@pytest.mark.long
def test_hanging_process_is_replaced(sharing_lab: Lab) -> None:
    lab, victim = sharing_lab, BALANCERS[0]
    until("they hear each other", lambda: hear_each_other(lab))
    [before] = sharers(lab, victim)
    os.kill(before, signal.SIGSTOP)
    until("another process", lambda: sharers(lab, victim) not in ([], [before]))
    until("they hear each other again", lambda: shares(lab, victim))


@pytest.mark.long
def test_hanging_director_s_process_goes_on_and_is_not_replaced(sharing_lab: Lab) -> None:
    lab, (victim, other) = sharing_lab, BALANCERS
    until("they hear each other", lambda: hear_each_other(lab))
    [before], restarts = sharers(lab, victim), number(lab, victim, "vc5_sync_restarts_total")
    director = main_process(lab, victim)
    os.kill(director, signal.SIGSTOP)
    try:
        for _ in range(20):
            time.sleep(1.0)  # it's the time that matters
            assert peers_of(lab, other) == {str(victim.address)}
    finally:
        os.kill(director, signal.SIGCONT)
    until("it goes on", lambda: hear_each_other(lab))
    assert sharers(lab, victim) == [before]
    assert number(lab, victim, "vc5_sync_restarts_total") == restarts


def shares(lab: Lab, balancer: Host) -> bool:
    """Its present process has had a copy of the other one, so they have heard each other."""
    return number(lab, balancer, "vc5_sync_copied") == 1 and hear_each_other(lab)


def test_keys_rotate_by_reload_node_by_node_and_sharing_goes_on(sharing_lab: Lab) -> None:
    """The new key second everywhere, then first, then the old one removed; no datagram has an unknown key."""
    lab = sharing_lab
    until("they hear each other", lambda: hear_each_other(lab))
    for keys in (FIRST_KEY + SECOND_KEY, SECOND_KEY + FIRST_KEY, SECOND_KEY):
        for balancer in BALANCERS:
            use_keys(lab, balancer, keys)
    for balancer in BALANCERS:
        assert number(lab, balancer, "vc5_sync_datagrams_total", outcome="key") == 0
        assert number(lab, balancer, "vc5_sync_datagrams_total", outcome="accepted") > 0


def use_keys(lab: Lab, balancer: Host, keys: str) -> None:
    before = sharers(lab, balancer)
    keys_file(lab, balancer).write_text(keys)
    assert client.ask(state_dir(lab, balancer), "POST", "/v1/reload").good
    until("another process", lambda: sharers(lab, balancer) not in ([], before))
    until("it shares", lambda: shares(lab, balancer))


# Reloads


@pytest.fixture
def editor(sharing_lab: Lab) -> Iterator[Editor]:
    until("they hear each other", lambda: hear_each_other(sharing_lab))
    with edited(sharing_lab) as editor:
        yield editor


def write(lab: Lab, editor: Editor, **changes: object) -> None:
    """What is None is left out."""
    editor.write(**changes)
    for balancer in BALANCERS:
        file = config_file(lab, balancer)
        settings = yaml.safe_load(file.read_text())
        kept = {key: value for key, value in settings.items() if value is not None}
        file.write_text(yaml.safe_dump(kept, sort_keys=False))


def reload(lab: Lab, *balancers: Host) -> list[str]:
    """What each says to it."""
    said = []
    for balancer in balancers or BALANCERS:
        done = command(lab, balancer, "reload")
        assert done.returncode == 0, done.stderr
        said.append(done.stdout + done.stderr)
    return said


def processes(lab: Lab) -> list[list[int]]:
    return [sharers(lab, balancer) for balancer in BALANCERS]


def share_again(lab: Lab, before: list[list[int]]) -> bool:
    """By processes that began after a reload, and have had a copy each."""
    fresh = all(one and one != old for one, old in zip(processes(lab), before, strict=True))
    copied = all(number(lab, balancer, "vc5_sync_copied") == 1 for balancer in BALANCERS)
    return fresh and copied and all(len(peers_of(lab, balancer)) == 1 for balancer in BALANCERS)


CHANGES: dict[str, dict[str, Any]] = {
    "group and port": {"multicast": "239.255.5.10:9998"},
    "IPv6 group": {"multicast": "[ff02::5:9]:9998"},
    "unicast": {
        "multicast": None,
        "cluster": {"peers": [str(one.address) for one in BALANCERS], "port": 9997},
    },
    "name and size": {"cluster": {"name": "another", "datagram": 8952, "interface": "eth0"}},
}


@pytest.mark.parametrize("change", CHANGES)
def test_other_ways_to_share_count_at_once(sharing_lab: Lab, editor: Editor, change: str) -> None:
    lab, before = sharing_lab, processes(sharing_lab)
    write(lab, editor, **CHANGES[change])
    assert not any("at the next start" in said for said in reload(lab))
    until("they share again", lambda: share_again(lab, before))


def test_another_name_makes_strangers_of_them(sharing_lab: Lab, editor: Editor) -> None:
    lab, (one, two) = sharing_lab, BALANCERS
    editor.write(cluster={"name": "another"})
    reload(lab, one)
    until("they count each other out", lambda: all(strangers(lab, balancer) for balancer in BALANCERS))
    assert not peers_of(lab, one)
    reload(lab, two)
    until("they hear each other", lambda: hear_each_other(lab))


def strangers(lab: Lab, balancer: Host) -> float:
    return number(lab, balancer, "vc5_sync_datagrams_total", outcome="cluster")


def test_sharing_is_turned_off_and_on(sharing_lab: Lab, editor: Editor) -> None:
    lab, before = sharing_lab, processes(sharing_lab)
    for off in ({"multicast": None}, {"cluster": None}):
        write(lab, editor, **off)
        reload(lab)
        until("it is off", lambda: processes(lab) == [[], []])
        assert all(number(lab, balancer, "vc5_sync_enabled") == 0 for balancer in BALANCERS)
        editor.restore()
        reload(lab)
        until("they share again", lambda: share_again(lab, before))
    with Downloads(lab.layout, CONNECTIONS):
        until("both know all flows", lambda: all(flows(lab, b) >= CONNECTIONS for b in BALANCERS))


def flows(lab: Lab, balancer: Host) -> float:
    return number(lab, balancer, "vc5_real_flows", service=SERVICE)


def test_another_secret_waits_for_the_next_start_and_says_so(sharing_lab: Lab, editor: Editor) -> None:
    """Flows would have other names; what is told by the old ones goes on meanwhile, whatever else changes."""
    lab, before = sharing_lab, processes(sharing_lab)
    other = lab.layout.directory / "other.key"
    other.write_text("another secret of the lab\n")
    editor.write(cluster={"secret_file": str(other), "name": "another"}, multicast="239.255.5.11:9996")
    for said in reload(lab):
        assert "cluster.secret changed" in said
        assert said.count("(at the next start)") == 3, said
        assert "flows are named by another secret than the cluster's until the next start" in said
    until("they hear each other", lambda: hear_each_other(lab))
    assert processes(lab) == before


def test_interface_that_is_not_there_changes_nothing(sharing_lab: Lab, editor: Editor) -> None:
    lab, before = sharing_lab, processes(sharing_lab)
    editor.write(cluster={"interface": "eth7"})
    for balancer in BALANCERS:
        done = command(lab, balancer, "reload")
        assert done.returncode != 0
        assert "cluster.interface: there is no interface eth7" in done.stdout + done.stderr
    until("they hear each other", lambda: hear_each_other(lab))
    assert processes(lab) == before


def test_nothing_of_the_secrets_is_written_anywhere(sharing_lab: Lab) -> None:
    for text in written(sharing_lab):
        assert "key of the lab" not in text
        assert "nobody else knows" not in text


def written(lab: Lab) -> Iterator[str]:
    """Logs, and whatever else the balancers leave in files."""
    for balancer in BALANCERS:
        for file in lab.layout.node_directory(balancer.name).rglob("*"):
            if file.is_file() and "bpf" not in file.parts:
                with suppress(FileNotFoundError):  # some are there for a moment only
                    yield file.read_text(errors="replace")


# The end: from here on one balancer after the other goes


def test_killed_director_s_process_tells_flows(sharing_lab: Lab) -> None:
    lab, (victim, other) = sharing_lab, BALANCERS
    until("they hear each other", lambda: hear_each_other(lab))
    process = sharers(lab, victim)
    lab.kill_program(victim)
    told = added(lab, other)
    with Downloads(lab.layout, CONNECTIONS):
        until("it tells of flows that began since", lambda: added(lab, other) > told)
    assert sharers(lab, victim) == process


def added(lab: Lab, balancer: Host) -> float:
    return number(lab, balancer, "vc5_sync_flows_total", result="added")


@pytest.mark.long
def test_next_director_has_a_process_of_its_own_and_never_two(sharing_lab: Lab) -> None:
    lab, victim = sharing_lab, BALANCERS[0]
    before = sharers(lab, victim)
    lab.kill_program(victim)
    assert sharers(lab, victim) == before
    lab.start(victim)
    beside = set[int]()

    def exchanged() -> bool:
        beside.add(len(sharers(lab, victim)))
        return sharers(lab, victim) not in ([], before)

    until("another process", exchanged)
    until("it shares", lambda: shares(lab, victim))
    assert max(beside) == 1


def test_orderly_stop_ends_the_process_too(sharing_lab: Lab) -> None:
    lab, leaving = sharing_lab, BALANCERS[1]
    assert len(sharers(lab, leaving)) == 1
    main = main_process(lab, leaving)
    os.kill(main, signal.SIGTERM)
    until("the balancer has ended", lambda: b"\0run\0" not in command_line(main))
    assert sharers(lab, leaving) == []
