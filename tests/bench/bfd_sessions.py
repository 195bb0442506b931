"""With how many sessions is the one BFD process still in time? Each has its own address at either end."""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench.bfd_ends import BALANCER, INTERVAL_MS, ROUTER, Bird, Ours, network
from tests.bench.machine import Canary, load, usage

COUNTS = (1, 10, 50, 100, 200, 400)
# The process reports the lateness of each second.
_LOOK_S = 0.5


@dataclass(frozen=True, slots=True)
class Row:
    """`late_ms`: by how much the process was late with anything, at the worst."""

    sessions: int
    packets_s: float
    late_ms: float
    stall_ms: float
    false_downs: int
    core: float


def measure(count: int, seconds: float, hogs: int) -> Row:
    ends = [f"{n // 250}.{1 + n % 250}" for n in range(count)]
    pairs = tuple((f"10.97.1{end}", f"10.97.2{end}") for end in ends)
    with tempfile.TemporaryDirectory() as folder, network() as _, contextlib.ExitStack() as stack:
        _add_addresses(BALANCER, "eth0", [ours for ours, _ in pairs])
        _add_addresses(ROUTER, "br0", [theirs for _, theirs in pairs])
        router = Bird(ROUTER, "br0", "", Path(folder, "r"), fifo=True, pairs=pairs)
        stack.callback(router.end)
        wanted = tuple(f"{theirs}@{ours}" for ours, theirs in pairs)
        ours = Ours(Path(folder, "a"), "fifo", BALANCER, neighbors=wanted)
        stack.callback(ours.end)
        ours.wait_up()
        stack.enter_context(load(hogs))
        return _watch(count, seconds, router, ours, stack.enter_context(Canary()))


def _add_addresses(namespace: str, device: str, addresses: list[str]) -> None:
    """With a prefix that has the other end in it: BIRD takes it for no neighbor otherwise."""
    lines = "".join(f"addr add {address}/16 dev {device} noprefixroute\n" for address in addresses)
    lines += f"route add 10.97.0.0/16 dev {device}\n"
    subprocess.run(["ip", "-n", namespace, "-batch", "-"], input=lines, text=True, check=True)


def _watch(count: int, seconds: float, router: Bird, ours: Ours, canary: Canary) -> Row:
    time.sleep(2.0)  # the load begins, the last intervals are told
    ours.wait_up()
    canary.take(), router.downs()
    before, _ = usage(ours.pids())
    began, late_s, packets = time.monotonic(), 0.0, _packets(ours.ask("status"))
    while time.monotonic() < began + seconds:
        time.sleep(_LOOK_S)
        status = ours.ask("status")
        late_s = max(late_s, status["report"]["late_s"])
    after, _ = usage(ours.pids())
    took_s = time.monotonic() - began
    return Row(
        count,
        (_packets(status) - packets) / took_s,
        late_s * 1e3,
        max((stall.seconds * 1e3 for stall in canary.take()), default=0.0),
        router.false_downs() + ours.false_downs(),
        (after - before) / took_s,
    )


def _packets(status: dict[str, Any]) -> int:
    return sum(session["packets_in"] + session["packets_out"] for session in status["sessions"].values())


def main(seconds: float, hogs: int) -> None:
    print(f"{'sessions':>9}{'packets/s':>11}{'late by':>13}{'machine still':>15}{'false':>7}{'core':>8}")
    for count in COUNTS:
        row = measure(count, seconds, hogs)
        late = "  late" if row.late_ms > INTERVAL_MS or row.false_downs else ""
        print(
            f"{row.sessions:>9}{row.packets_s:>11.0f}{row.late_ms:>10.0f} ms{row.stall_ms:>12.0f} ms"
            f"{row.false_downs:>7}{row.core:>8.1%}{late}",
            flush=True,
        )
