"""What a running balancer tells people: reasons in its status, transitions and warnings in its log."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.unit import directing
from tests.unit.test_balancer import BOTH, REALS, TEXT, VIP, Surroundings, probe
from tests.unit.test_balancer import around as around
from tests.unit.test_balancer import backend as backend_of
from tests.unit.test_balancer import balancer as balancer
from vc5py.balancer import Balancer
from vc5py.checks.result import Reason
from vc5py.core import director
from vc5py.dataplane.takeover import Start, StartKind
from vc5py.model import AdminState, BackendId, Check, VipState
from vc5py.readings import Reasons


def test_reasons_are_those_of_checks_that_keep_a_real_down_and_no_others() -> None:
    state = directing.start(directing.service(reals=1, checks=(directing.TCP, directing.WEB)))
    backend, reasons = directing.backend(0), Reasons()

    def feed(check: Check, ok: bool, why: str) -> Mapping[BackendId, str]:
        nonlocal state
        event = director.Probed(backend, check, ok, why)
        state, _ = director.step(state, event, 1.0)
        reasons.note(state, event)
        return reasons.current()

    assert feed(directing.WEB, False, "refused") == {}, "the state has it"
    feed(directing.TCP, True, "ok")
    feed(directing.TCP, True, "ok")
    assert feed(directing.WEB, False, "timeout") == {backend: "web check: timeout"}
    assert feed(directing.TCP, False, "reset") == {backend: "web check: timeout"}, "it only begins to fail"
    assert feed(directing.TCP, True, "ok") == {backend: "web check: timeout"}
    assert feed(directing.WEB, False, "refused") == {}, "the state still has it"
    assert feed(directing.WEB, False, "timeout") != {}
    assert feed(directing.WEB, True, "ok") == {}
    gone = director.Probed(directing.backend(5), directing.WEB, False, "late")
    reasons.note(state, gone)
    assert reasons.current() == {}


@pytest.mark.parametrize(
    ("start", "told"),
    [
        (Start(StartKind.FIRST), "first start"),
        (
            Start(StartKind.ADOPTED, exchanged=True),
            "adopted from an earlier run: program exchanged, maps kept",
        ),
        (Start(StartKind.ADOPTED), "adopted from an earlier run: maps kept"),
        (Start(StartKind.ENLARGED, exchanged=True), "program exchanged, maps of another size"),
    ],
)
def test_what_a_start_found_in_words(start: Start, told: str) -> None:
    assert str(start) == told


async def test_command_that_costs_a_vip_says_so_and_is_logged(
    balancer: Balancer, caplog: pytest.LogCaptureFixture
) -> None:
    probe(balancer, 0, True)
    probe(balancer, 1, True)
    assert (await balancer.set_state(REALS[1], None, AdminState.DRAINING)).warnings == ()
    told = (
        f"VIP {VIP} is withdrawn: nobody can serve web; what is open through it ends,"
        " unless another balancer announces it"
    )
    assert (await balancer.set_weight(REALS[0], "web", 0)).warnings == (told,)
    (warning,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert warning.getMessage() == f"real={REALS[0]} note={told!r}"
    assert (await balancer.set_state(REALS[0], None, AdminState.DISABLED)).warnings == (), "said once"
    assert (await balancer.reset(REALS[0], None)).warnings == ()


async def test_what_is_said_at_run_time_is_logged_with_one_key_each(
    balancer: Balancer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    await balancer.set_state(REALS[1], None, AdminState.DRAINING)
    await balancer.set_weight(REALS[1], "web", 5)
    await balancer.reset(REALS[1], None)
    await balancer.set_vip(VIP, VipState.WITHDRAWN)
    await balancer.set_vip(VIP, None)
    assert caplog.messages == [
        f"real={REALS[1]} state=draining why='said at run time'",
        f"real=web/{REALS[1]} weight=5 why='said at run time'",
        f"real={REALS[1]} state=file why='said at run time'",
        f"real=web/{REALS[1]} weight=file why='said at run time'",
        f"vip={VIP} wanted=withdrawn why='said at run time'",
        f"vip={VIP} wanted=health why='said at run time'",
    ]


async def test_reason_of_a_real_that_stays_down_is_shown_and_not_logged_again(
    balancer: Balancer, around: Surroundings, caplog: pytest.LogCaptureFixture
) -> None:
    async def why() -> str:
        return (await balancer.snapshot()).services[0].reals[0].why

    caplog.set_level(logging.INFO)
    assert await why() == "not probed yet"
    probe(balancer, 0, False)
    assert await why() == "c: refused"
    state = balancer.readings().state
    for reason in (Reason.TIMEOUT, Reason.TIMEOUT, Reason.RESET):
        probe(balancer, 0, False, reason)
        assert await why() == f"c: {reason}"
    assert balancer.readings().state is state, "nothing is decided by it"
    (line,) = [line for line in caplog.messages if line.startswith("backend=")]
    assert line.startswith(f"backend={backend_of(0)} state=down why='c: refused' after=")
    around.file.write_text(BOTH)
    await balancer.reload()
    assert await why() == "c: refused", "until it fails again"
    probe(balancer, 0, False, Reason.RESET)
    assert await why() == "c: reset"
    probe(balancer, 0, True)
    assert await why() == "c: ok"
    probe(balancer, 0, False)
    assert await why() == "c: refused"


async def test_snapshot_says_why_flows_are_not_shared(
    balancer: Balancer, around: Surroundings, tmp_path: Path
) -> None:
    async def why() -> str:
        around.file.write_text(text)
        await balancer.reload()
        shown = (await balancer.snapshot()).sharing
        assert not shown.enabled
        return shown.why_off

    secret = tmp_path / "secret"
    secret.write_text("x" * 32)
    secret.chmod(0o600)
    text = TEXT
    assert await why() == ""
    text = f"{TEXT}cluster: {{secret_file: {secret}}}\n"
    assert await why() == "flows are not shared: the cluster has no 'multicast' and no 'peers'"
    text = f"{TEXT}cluster: {{secret_file: {secret}, peers: [10.0.0.8]}}\n"
    assert await why() == "'cluster' takes effect at the next start"
