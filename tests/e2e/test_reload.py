"""Reloads of running balancers, in the lab: what changes, what doesn't, and what clients notice of it."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address

import pytest
import yaml

from tests.e2e.operating import (
    Editor,
    command,
    config_file,
    edited,
    main_process,
    real,
    service,
    state_dir,
    status,
)
from vc5py.control import client
from vc5py.lab.assembly import Lab
from vc5py.lab.layout import (
    BALANCERS,
    METRICS_PORT,
    REALS,
    SERVICE,
    TAGGED_VIP,
)
from vc5py.lab.network import run
from vc5py.lab.observe import JITTER_S, http_body, metrics, next_hops, since_s, total
from vc5py.lab.scenario import wait_for_next_hops, wait_for_reals
from vc5py.lab.traffic import Downloads, Load, curl

ONE, TWO, THREE = REALS
VICTIM = BALANCERS[0]
EXTRA_VIP = ip_address("192.168.101.4")
CHECK = {
    "name": "alive",
    "type": "http",
    "path": "/alive",
    "interval": 0.5,
    "timeout": 3,
    "rise": 1,
    "fall": 2,
}
EXTRA = {"name": "extra", "addr": str(EXTRA_VIP), "port": 80, "real": "extra", "checks": [CHECK]}


@pytest.fixture(scope="module", autouse=True)
def extra_vip_on_reals(standing_lab: Lab) -> Iterator[None]:
    for host in REALS:
        namespace = standing_lab.layout.namespace(host.name)
        run("ip", "-n", namespace, "addr", "add", f"{EXTRA_VIP}/32", "dev", "lo")
    yield
    for host in REALS:
        namespace = standing_lab.layout.namespace(host.name)
        run("ip", "-n", namespace, "addr", "del", f"{EXTRA_VIP}/32", "dev", "lo")


@pytest.fixture
def editor(lab: Lab) -> Iterator[Editor]:
    with edited(lab) as editor:
        yield editor


def reload(lab: Lab) -> list[str]:
    """On both; what the first says of it."""
    with ThreadPoolExecutor() as pool:
        both = list(pool.map(lambda balancer: command(lab, balancer, "reload"), BALANCERS))
    for done in both:
        assert done.returncode == 0, done.stderr
    return both[0].stdout.splitlines()


def answering(lab: Lab, count: int = 40) -> set[str]:
    answers = curl(lab.layout, count, vip=EXTRA_VIP)
    assert answers.pop("failed") == 0
    return set(answers)


def extra(*reals: object, **more: object) -> dict[str, object]:
    return {"services": [EXTRA | more], "reals": {"extra": list(reals)}}


def last_reload(lab: Lab) -> tuple[float, float]:
    """Whether the victim's succeeded, and when the last good one was."""
    samples = metrics(lab.layout, VICTIM)
    name = "vc5_config_last_reload_success"
    return total(samples, f"{name}ful"), total(samples, f"{name}_timestamp_seconds")


def test_service_real_and_vip_come_and_go(lab: Lab, editor: Editor) -> None:
    editor.write(**extra(str(ONE.address)))
    (said,) = reload(lab)
    assert said.startswith(f"service extra added: {EXTRA_VIP}")
    wait_for_next_hops(lab, *BALANCERS, vip=EXTRA_VIP)
    assert answering(lab) == {ONE.name}
    editor.write(**extra(str(ONE.address), str(TWO.address)))
    assert any(str(TWO.address) in line for line in reload(lab))
    for balancer in BALANCERS:
        lab.wait_for("it is up", lambda b=balancer: real(lab, b, "extra", TWO)["serving"])  # type: ignore[misc]
    assert answering(lab, 80) == {ONE.name, TWO.name}
    editor.write(**extra(str(TWO.address)))
    reload(lab)
    assert answering(lab) == {TWO.name}
    editor.write()
    reload(lab)
    lab.wait_for("the route has gone", lambda: not next_hops(lab.layout, EXTRA_VIP))
    for balancer in BALANCERS:
        assert "extra" not in {one["name"] for one in status(lab, balancer)["services"]}
        text = client.get_text(config_file(lab, balancer).parent / "state", "/v1/config")
        assert text == config_file(lab, balancer).read_text()
    assert reload(lab) == ["nothing has changed"]


def test_bad_file_changes_nothing_and_says_so(lab: Lab, editor: Editor) -> None:
    before, (good, at) = status(lab, VICTIM), last_reload(lab)
    assert good == 1
    since = since_s(lab.layout, *BALANCERS)
    assert len(since) == 2 * len(BALANCERS)
    text = config_file(lab, VICTIM).read_text()
    bad = text.replace("type: http\n", "type: htp\n").replace("need: 1", "need: -1")
    config_file(lab, VICTIM).write_text(bad)
    done = command(lab, VICTIM, "reload")
    assert (done.returncode, done.stdout) == (2, "")
    findings = done.stderr.splitlines()
    assert len(findings) > 4 and findings[-1] == "vc5py: the configuration in force is as before"
    assert all(line.startswith(f"{config_file(lab, VICTIM)}:") for line in findings[:-1])
    assert all(line in lab.programs[VICTIM.name].log.read_text() for line in findings[:-1])
    assert last_reload(lab) == (0, at)
    after = status(lab, VICTIM)
    shown = [(s["name"], s["vip"], s["need"], s["healthy"]) for s in before["services"]]
    assert [(s["name"], s["vip"], s["need"], s["healthy"]) for s in after["services"]] == shown
    assert client.get_text(config_file(lab, VICTIM).parent / "state", "/v1/config") == text
    assert since_s(lab.layout, *BALANCERS) == pytest.approx(since, abs=JITTER_S)
    config_file(lab, VICTIM).unlink()
    assert command(lab, VICTIM, "reload").returncode == 2
    config_file(lab, VICTIM).write_text(text)
    assert command(lab, VICTIM, "reload").returncode == 0
    assert last_reload(lab) > (1, at)


def random_walk(editor: Editor, number: int) -> None:
    """One of several configurations, each different from the one before in most of what can be changed."""
    reals = [{"address": str(host.address), "weight": 1 + number % 3} for host in REALS[: 1 + number % 3]]
    check = CHECK | {"interval": 0.5 + number % 2 / 10, "path": ["/alive", "/"][number % 2]}
    editor.write(
        **extra(*reals, checks=[check], need=1 + number % 2, port=[80, 443][: 1 + number % 2]),
        timeouts={"established": 3600 + number},
        fragments=["follow", "drop"][number % 2],
        metrics={"port": METRICS_PORT + number % 2},
    )


def test_twenty_reloads_break_no_connection_of_an_untouched_service(lab: Lab, editor: Editor) -> None:
    with Downloads(lab.layout, 6) as downloads, Load(lab.layout) as load:
        lab.wait_for("requests flow", lambda: len(load.replies) > 20)
        assert downloads.under_way() == 6
        for number in range(1, 21):
            random_walk(editor, number)
            for balancer in BALANCERS:
                answer = client.ask(state_dir(lab, balancer), "POST", "/v1/reload")
                assert answer.good and len(answer.document["changes"]) > 2, answer
            replies = len(load.replies)
            lab.wait_for("requests flow", lambda n=replies: len(load.replies) > n + 10)  # type: ignore[misc]
        assert downloads.under_way() == 6
        assert downloads.completed() == 6
    assert load.failed() == []
    assert len({reply.real for reply in load.replies}) == 3
    assert len(load.replies) > 200


def test_hangup_reloads(lab: Lab, editor: Editor) -> None:
    editor.write(**extra(str(THREE.address)))
    os.kill(main_process(lab, VICTIM), signal.SIGHUP)
    wait_for_next_hops(lab, VICTIM, vip=EXTRA_VIP)
    assert answering(lab) == {THREE.name}


def test_metrics_and_bgp_move(lab: Lab, editor: Editor) -> None:
    rhi = editor.original[VICTIM]["rhi"]
    editor.write(rhi=rhi | {"hold": 20}, metrics={"port": METRICS_PORT + 1})
    since = since_s(lab.layout, *BALANCERS)
    assert command(lab, VICTIM, "reload").returncode == 0
    namespace = lab.layout.namespace(VICTIM.name)
    assert "vc5_info" in http_body(namespace, VICTIM.address, METRICS_PORT + 1, "/metrics")
    assert metrics(lab.layout, VICTIM) == []
    wait_for_next_hops(lab, *BALANCERS)
    assert since_s(lab.layout, *BALANCERS) == pytest.approx(since, abs=JITTER_S)  # no session went down
    settings = {k: v for k, v in editor.original[VICTIM].items() if k != "rhi"}
    config_file(lab, VICTIM).write_text(yaml.safe_dump(settings))
    assert command(lab, VICTIM, "reload").returncode == 0
    wait_for_next_hops(lab, BALANCERS[1])
    config_file(lab, VICTIM).write_text(yaml.safe_dump(editor.original[VICTIM]))
    assert command(lab, VICTIM, "reload").returncode == 0
    wait_for_next_hops(lab, *BALANCERS)


def test_vlans_move(lab: Lab, editor: Editor) -> None:
    """Frames to the real in the VLAN lose their tag, and get it back."""
    settings = {k: v for k, v in editor.original[VICTIM].items() if k != "vlans"}
    config_file(lab, VICTIM).write_text(yaml.safe_dump(settings))
    assert command(lab, VICTIM, "reload").returncode == 0
    lab.wait_for("its check fails", lambda: not service(lab, VICTIM, "tagged")["healthy"])
    editor.restore()
    assert command(lab, VICTIM, "reload").returncode == 0
    lab.wait_for("its check succeeds", lambda: service(lab, VICTIM, "tagged")["healthy"])
    wait_for_next_hops(lab, *BALANCERS, vip=TAGGED_VIP)


def test_standby_takes_over_and_gives_back_without_breaking_what_it_serves(lab: Lab, editor: Editor) -> None:
    standby = {"address": str(TWO.address), "tier": 1}
    editor.write(**extra(str(ONE.address), standby, damping="off"))
    reload(lab)
    wait_for_next_hops(lab, *BALANCERS, vip=EXTRA_VIP)
    for balancer in BALANCERS:  # the standby serves where it was the first to be found healthy
        lab.wait_for(
            "the primary serves",
            lambda b=balancer: service(lab, b, "extra")["serving_tier"] == 0,  # type: ignore[misc]
        )
    assert answering(lab) == {ONE.name}
    lab.kill(ONE)
    try:
        for balancer in BALANCERS:
            lab.wait_for(
                "the standby serves",
                lambda b=balancer: service(lab, b, "extra")["serving_tier"] == 1,  # type: ignore[misc]
            )
        assert answering(lab) == {TWO.name}
        with Downloads(lab.layout, 1, vip=EXTRA_VIP) as downloads:
            lab.start(ONE)
            for balancer in BALANCERS:
                lab.wait_for(
                    "the primary serves again",
                    lambda b=balancer: service(lab, b, "extra")["serving_tier"] == 0,  # type: ignore[misc]
                )
            assert downloads.under_way() == 1
            assert answering(lab) == {ONE.name}
            assert downloads.completed() == 1
    finally:
        if lab.programs[ONE.name].ended() is None and not lab.network.pids(ONE.name):
            lab.start(ONE)
        wait_for_reals(lab)
    assert Counter(s["name"] for s in status(lab, VICTIM)["services"])[SERVICE] == 1
