"""In the kernel: a connection's packets never change backend while that backend is up.

Random histories of joins, leaves, drains, weights, restarts and silences, with packets between; see
tests/unit/test_stability_model.py for the steps and for the bound.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.packets.clocked import Kernel, KernelBench
from tests.unit import test_stability_model as model
from tests.unit.test_stability_model import (
    PIECEMEAL,
    PROVEN_S,
    REALS,
    SAMPLE_TICKS,
    SIZES,
    VIPS,
    begin,
    play_health,
    play_random,
    play_reuse,
    play_steady,
    unstable_slots,
)
from vc5py.dataplane.policy import SETTLE_S, Pace
from vc5py.dataplane.tables import lines_for
from vc5py.model import (
    BackendId,
    BackendState,
    Config,
    Desired,
    Forwarding,
    ForwardMode,
    Protocol,
    Scheduling,
    ServiceState,
    Timeouts,
    Unknown,
    VirtualServiceId,
)


@pytest.fixture(scope="module")
def clocked() -> Iterator[Kernel]:
    with Kernel() as kernel:
        yield kernel


@pytest.fixture
def bench(clocked: Kernel) -> KernelBench:
    clocked.clear()
    return KernelBench(kernel=clocked)


@pytest.mark.parametrize("pace", [Pace(), PIECEMEAL], ids=["at once", "piecemeal"])
@pytest.mark.parametrize("lossy", [False, True])
@pytest.mark.parametrize("seed", range(100, 108))
def test_random_history(bench: KernelBench, seed: int, lossy: bool, pace: Pace) -> None:
    """Lossy: all entries are lost now and then while every slot is stable, so that only slots are left."""
    bench.pace = pace
    bench.restart()
    play_random(bench, seed, 40, lossy=lossy)
    assert bench.packets > 1000


@pytest.mark.parametrize("seed", range(2))
def test_random_history_where_tables_have_no_room_beside_each_other(seed: int) -> None:
    """Two tables, what their slots named before, and nothing to spare."""
    with Kernel(replace(SIZES, slot_lines=1 + 4 * lines_for(5))) as kernel:
        bench = KernelBench(kernel=kernel)
        play_health(bench, seed, 40)
        assert bench.packets > 1000


def test_model_and_kernel_agree(bench: KernelBench) -> None:
    """Packet by packet: where each connection is after a history, and that each was moved as often."""
    other = model.Bench()
    for one in (bench, other):
        play_random(one, 7, 40, lossy=False)
    assert [c.real for c in bench.connections] == [c.real for c in other.connections]
    assert (bench.packets, bench.moves) == (other.packets, other.moves)


@pytest.mark.parametrize("protocol", Protocol)
@pytest.mark.parametrize("syn", [True, False])
def test_unrecorded_packets_go_where_a_stable_slot_led(
    bench: KernelBench, protocol: Protocol, syn: bool
) -> None:
    bench.change(0, dict.fromkeys(range(4), "up"))
    bench.open(0, 200, protocol, 30, syn=syn)
    bench.change(0, dict.fromkeys(range(4, 8), "up"))
    bench.all_talk()


def test_silent_connections(bench: KernelBench) -> None:
    """Seen in two sampled ticks at least, then nothing for a thousand seconds of changes."""
    bench.change(0, dict.fromkeys(range(4), "up"))
    bench.open(0, 100, Protocol.TCP, 1, syn=True)
    bench.pass_time(2 * SAMPLE_TICKS + 1)
    bench.change(0, {4: "up", 5: "up"})
    bench.pass_time(1000, step_s=10, silent=True)
    bench.all_talk()
    bench.pass_time(PROVEN_S)
    bench.change(0, {0: "heavy", 6: "up", 4: "drain"})
    bench.pass_time(3400, step_s=50, silent=True)
    bench.all_talk()


def test_clients_port_used_again(bench: KernelBench) -> None:
    """SYN and ACK of a new connection meet, whatever the old one of the same ports has left behind."""
    bench.change(0, dict.fromkeys(range(3), "up"))
    bench.open(0, 200, Protocol.TCP, 10**9, syn=True)
    bench.change(0, dict.fromkeys(range(3, 9), "up"))
    bench.pass_time(int(SETTLE_S) + 400, step_s=10)
    assert unstable_slots(bench) == 0
    for connection in bench.connections:
        connection.real = None
        for _ in range(3):
            bench.talk(connection, syn=connection.real is None)


@pytest.mark.parametrize("by_flow", [Scheduling.STICKY, Scheduling.LEAST_CONNS])
def test_random_history_of_a_service_that_goes_by_flow(bench: KernelBench, by_flow: Scheduling) -> None:
    """All of its packets are looked up; and what it had is kept when it goes by slot again."""
    bench.scheduling = [by_flow, Scheduling.MAGLEV]
    play_random(bench, 11, 30, lossy=False)
    bench.scheduling = [Scheduling.MAGLEV, Scheduling.MAGLEV]
    bench.apply()
    bench.pass_time(300, step_s=5)


def test_everything_settles_in_the_end(bench: KernelBench) -> None:
    begin(bench)
    bench.change(0, {5: "up", 1: "gone"})
    assert unstable_slots(bench)
    bench.connections.clear()
    bench.pass_time(int(SETTLE_S) + 150, step_s=10)
    assert unstable_slots(bench) == 0


@pytest.mark.parametrize("protocol", Protocol)
@pytest.mark.parametrize("scheduling", Scheduling)
def test_ports_used_again(bench: KernelBench, scheduling: Scheduling, protocol: Protocol) -> None:
    play_reuse(bench, scheduling, protocol)


def test_new_udp_flows_leave_a_drained_real(bench: KernelBench) -> None:
    """They don't say that they are new, and come all the time."""
    went = play_steady(bench, {0: "drain"}, restless=True)
    assert went[0] == 0
    assert any(connection.real == 0 for connection in bench.connections), "those it had go on"


def test_new_udp_flows_reach_an_added_real(bench: KernelBench) -> None:
    went = play_steady(bench, {4: "up"}, restless=False)
    assert went[4] > 150, "of 1,000, by five reals"


# Reloads


def _reloaded(source: random.Random, untouched: ServiceState) -> Desired:
    """Anything else beside the untouched service: on its VIP and the other one, with the same reals."""
    services = [untouched]
    for name in source.sample(["a", "b", "c"], source.randrange(4)):
        vip = source.choice(VIPS)
        reals = source.sample(range(len(REALS)), source.randrange(1, len(REALS)))
        backends = []
        for n in reals:
            up = source.random() < 0.8
            weight = source.randrange(6) if up else 0
            forwarding = Forwarding(source.choice([ForwardMode.L2, ForwardMode.IPIP]))
            backends.append(BackendState(BackendId(name, vip, REALS[n]), up, weight, forwarding))
        ports = tuple((8000 + 100 * ord(name) + n, Protocol.TCP) for n in range(source.randrange(1, 4)))
        how = source.choice(list(Scheduling)), source.choice(list(Unknown))
        services.append(ServiceState(VirtualServiceId(name, vip), ports, tuple(backends), *how))
    source.shuffle(services)
    return Desired(tuple(services))


@pytest.mark.parametrize("pace", [Pace(), PIECEMEAL], ids=["at once", "piecemeal"])
@pytest.mark.parametrize("seed", [1, 2])
def test_reloads_and_changes_of_health_touch_no_other_service(
    bench: KernelBench, seed: int, pace: Pace
) -> None:
    """200 of them, with a packet of every connection of the untouched service after each."""
    bench.pace = pace
    bench.restart()
    source = random.Random(seed)
    bench.change(1, dict.fromkeys(range(6), "up") | {6: "drain", 7: "down"})
    (untouched,) = bench.desired().services
    for protocol in Protocol:
        bench.open(1, 40, protocol, 30, syn=True)
    places = [bench.dataplane.mark_of(b.id) for b in untouched.backends]
    for number in range(200):
        timeouts = Timeouts(established_s=source.choice([3600, 1800]))
        bench.dataplane.set_policy(Config((), timeouts=timeouts, drop_fragments=source.random() < 0.5))
        same = replace(untouched, backends=tuple(replace(b) for b in untouched.backends))
        bench.dataplane.apply(_reloaded(source, source.choice([untouched, same])))
        bench.all_talk()
        bench.pass_time(source.choice([0, 1, 3]), silent=True)
        if number % 50 == 20:
            bench.restart()
    assert [bench.dataplane.mark_of(b.id) for b in untouched.backends] == places
    assert bench.moves == 80, "a connection got a second backend"
    assert bench.packets == 80 * 201
