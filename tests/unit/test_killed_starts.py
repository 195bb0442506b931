"""Starts killed at any moment, one after the other: the next one always takes over what they left."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.builds import REPOSITORY
from tests.unit.starts import MOMENTS
from vc5py.dataplane import abi

# Those after which something else is attached, pinned or in use than before, one of each kind.
ONE = ("prepare", "attach", "finish", "rename program")
TWO = (*ONE[1:], "attach second", "unlink more maps", "start", "stop")


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.fail("these tests make network namespaces: run them as root", pytrace=False)
    for name in ("bpf", "state"):
        (tmp_path / name).mkdir()
    subprocess.run(["mount", "-t", "bpf", "bpf", str(tmp_path / "bpf")], check=True)
    yield tmp_path
    subprocess.run(["umount", "--lazy", str(tmp_path / "bpf")], check=True)


def each_after_each(moments: Sequence[str]) -> list[str]:
    """Every moment follows upon every one (an Eulerian circuit), and a whole start upon the last."""
    ahead = {moment: list(moments) for moment in moments}
    path, circuit = [moments[0]], []
    while path:
        left = ahead[path[-1]]
        path.append(left.pop()) if left else circuit.append(path.pop())
    return [*reversed(circuit), "start"]


def each_after_each_and_then_a_start(moments: Sequence[str]) -> list[str]:
    return [moment for first in moments for second in moments for moment in (first, second, "start")]


def come_of(place: Path, interfaces: Sequence[str], lines: Sequence[str]) -> list[dict[str, Any]]:
    """What came of such starts, one after the other."""
    command = [sys.executable, "-P", "-m", "tests.unit.starts", str(place), *interfaces]
    run = subprocess.run(
        command,
        input="\n".join(lines),
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=1000,
    )
    return [json.loads(line) for line in run.stdout.splitlines()]


def must_be_found(came: Sequence[dict[str, Any]], lines: Sequence[str]) -> None:
    """After every start all that is attached, and all flows after those that were not killed."""
    assert len(came) == len(lines)
    for number, one in enumerate(came):
        before = lines[max(0, number - 2) : number + 1]
        assert not one["failed"], before
        assert one["found"] == one["attached"], before
        if not one["died"]:
            assert one["lost"] == 0, before
            assert one["pins"] == [abi.layout_hash()] + ["vc5_ingress"] * bool(one["attached"]), before


@pytest.mark.parametrize(
    ("interfaces", "lines"),
    [
        (("eth0",), each_after_each(ONE)),
        (("eth0", "eth1"), each_after_each(TWO)),
        pytest.param(("eth0",), each_after_each_and_then_a_start(tuple(MOMENTS)), marks=pytest.mark.long),
        pytest.param(("eth0", "eth1"), each_after_each(tuple(MOMENTS)), marks=pytest.mark.long),
        pytest.param(
            ("eth0", "eth1"), each_after_each_and_then_a_start(tuple(MOMENTS)), marks=pytest.mark.long
        ),
    ],
    ids=["one", "two", "one-all", "two-chain", "two-all"],
)
def test_whatever_two_moments_kill_the_next_start_has_it_all(
    place: Path, interfaces: tuple[str, ...], lines: list[str]
) -> None:
    came = come_of(place, interfaces, lines)
    must_be_found(came, lines)
    killed = {line for line, one in zip(lines, came, strict=True) if one["died"]}
    there = {line for line in lines if len(interfaces) > 1 or "second" not in line}
    assert killed == there - {"start", "stop"}, "each of them was a moment to die at"
    assert came[-1]["attached"] == len(interfaces)


def test_interfaces_that_are_left_and_named_again(place: Path) -> None:
    lines = ["start", "leave,eth0", "start", "rename program,eth0", "finish,eth1", "start", "start,eth1"]
    came = come_of(place, ("eth0", "eth1"), lines)
    must_be_found(came, lines)
    assert [one["attached"] for one in came] == [2, 2, 2, 1, 1, 2, 1]
