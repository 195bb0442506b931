"""A connection's packets never change backend while that backend is up: random histories against a model.

The control plane is the real one, over arrays instead of maps; the XDP program is a plain restatement of
xdp/choose.h and xdp/flow.h. tests/packets/test_stability.py plays the same histories in the kernel.

The bound, in seconds of silence: `SETTLE_S` for any connection, and the timeout of its state for one that
has talked for `PROVEN_S` before.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vc5py.core.flowhash import FlowKey, client_hash, flow_hash
from vc5py.core.identity import service_identity
from vc5py.dataplane import abi, flows
from vc5py.dataplane.abi import FlowState
from vc5py.dataplane.base import Neighbour
from vc5py.dataplane.kernel import KernelDataplane
from vc5py.dataplane.maps import Maps, Sizes
from vc5py.dataplane.policy import SETTLE_S, Pace, Policy
from vc5py.dataplane.tables import lines_for
from vc5py.dataplane.ticks import TickClock
from vc5py.model import (
    BackendId,
    BackendState,
    Config,
    Desired,
    Protocol,
    Scheduling,
    ServiceState,
    Timeouts,
    VirtualServiceId,
)

KEY = FlowKey.derive(b"stability")
SIZES = Sizes(
    flow_sets=1024,
    services=128,
    backends=2048,
    slot_lines=2048,
    service_sets4=16,
    service_sets6=16,
    cpus=256,
    interfaces=16,
)
OUR_MAC = "02:00:00:00:00:01"
VIPS = (IPv4Address("192.0.2.1"), IPv4Address("192.0.2.2"))
REALS = tuple(IPv4Address("10.0.0.10") + n for n in range(9))
SAMPLE_TICKS = 64  # xdp/choose.h
UDP_OVER_TICKS = 768  # the same
PROVEN_S = 200  # three sampled ticks
INTERVALS_S = (1, 4, 30, 90, 250)  # between a connection's packets; the longest is within UDP's timeout
MODES = {"gone": None, "down": (False, 0), "drain": (True, 0), "up": (True, 1), "heavy": (True, 5)}

# The flow table is read in eight calls of `maintain`, as large ones are in many.
PIECEMEAL = Pace(sets=SIZES.flow_sets // 8, budget_s=0.0)

Entry = tuple[int, int]


class Ticks(TickClock):
    """Ticks of a second, by a clock that the test sets."""

    def __init__(self, bench: Bench) -> None:
        super().__init__(100)
        object.__setattr__(self, "_bench", bench)

    __slots__ = ("_bench",)
    _bench: Bench

    def now(self) -> int:
        return self._bench.tick()

    @property
    def tick_s(self) -> float:
        return 1.0


@dataclass(eq=False)
class Connection:
    """`real`: where its last packet went, None where that one has been down since."""

    service: int
    client: IPv4Address
    port: int
    protocol: Protocol
    interval_s: float
    due_s: float
    real: int | None = None
    until_s: float = float("inf")  # when the client is done

    def hash(self) -> int:
        return flow_hash(KEY, self.client, VIPS[self.service], self.port, 80, self.protocol.number)


def array_maps(slot_lines: int = SIZES.slot_lines, flow_sets: int = SIZES.flow_sets) -> Maps:
    """What `Maps` has for the control plane, without a kernel."""
    s = replace(SIZES, slot_lines=slot_lines, flow_sets=flow_sets)
    backend_counts = np.zeros((s.cpus, s.backends), abi.BACKEND_COUNT)
    maps = SimpleNamespace(
        sizes=s,
        flows=np.zeros((s.flow_sets, abi.FLOW_WAYS), abi.FLOW_ENTRY),
        services=np.zeros(s.services, abi.SERVICE),
        backends=np.zeros(s.backends, abi.BACKEND),
        slots=np.zeros((s.slot_lines, abi.SLOTS_PER_LINE), np.uint16),
        backend_counts=backend_counts,
        verdict_counts=np.zeros((s.cpus, abi.VERDICT_SLOTS), np.uint64),
        interfaces=np.zeros(s.interfaces, abi.INTERFACE),
        settings=np.zeros(1, abi.SETTINGS),
        services4=np.zeros((s.service_sets4, abi.SERVICE_WAYS4), abi.SERVICE_ENTRY4),
        services6=np.zeros((s.service_sets6, abi.SERVICE_WAYS6), abi.SERVICE_ENTRY6),
    )
    return cast(Maps, maps)


@dataclass
class Bench:
    """Two services over the same reals, each in a state of its own, connections, and time."""

    maps: Maps = field(default_factory=array_maps)
    now_s: float = 70000.0  # the tick wraps at 65,536
    modes: list[dict[int, str]] = field(default_factory=lambda: [{}, {}])
    scheduling: list[Scheduling] = field(default_factory=lambda: [Scheduling.MAGLEV] * 2)
    connections: list[Connection] = field(default_factory=list)
    pace: Pace = field(default_factory=Pace)
    opened: int = 0
    packets: int = 0
    moves: int = 0

    def __post_init__(self) -> None:
        self.restart()

    def tick(self) -> int:
        return int(self.now_s) & 0xFFFF

    # What the control plane does

    def restart(self) -> None:
        policy = Policy(pace=self.pace)
        self.dataplane = KernelDataplane(self.maps, Ticks(self), policy, clock=lambda: self.now_s)
        for n, real in enumerate(REALS):
            self.dataplane.set_neighbour(real, Neighbour(1, f"02:00:00:00:10:{n:02x}"))

    def desired(self, *, up: bool = True) -> Desired:
        return Desired(tuple(self._service(which, up) for which in (0, 1) if self.modes[which]))

    def _service(self, which: int, up: bool) -> ServiceState:
        backends: list[BackendState] = []
        for n, mode in sorted(self.modes[which].items()):
            is_up, weight = MODES[mode] or (False, 0)
            backend = BackendId(f"s{which}", VIPS[which], REALS[n])
            backends.append(BackendState(backend, is_up and up, weight if up else 0))
        ports = tuple((80, protocol) for protocol in Protocol)
        id_ = VirtualServiceId(f"s{which}", VIPS[which])
        return ServiceState(id_, ports, tuple(backends), self.scheduling[which])

    def is_up(self, which: int, real: int) -> bool:
        mode = MODES[self.modes[which].get(real, "gone")]
        return mode is not None and mode[0]

    def change(self, which: int, modes: dict[int, str]) -> None:
        for real, mode in modes.items():
            self.modes[which][real] = mode
            if mode == "gone":
                del self.modes[which][real]
        self.apply()

    def apply(self, *, up: bool = True) -> None:
        self.dataplane.apply(self.desired(up=up))
        for connection in self.connections:
            at = connection.real
            if at is not None and not (up and self.is_up(connection.service, at)):
                connection.real = None

    def stop_and_start(self) -> None:
        """In order: every real must pass its checks before it is used."""
        self.dataplane.rest()
        self.restart()
        self.apply(up=False)
        self.apply()

    # What the clients do

    def open(self, which: int, count: int, protocol: Protocol, interval_s: float, *, syn: bool) -> None:
        """`syn` False: TCP connections that began at another balancer."""
        for _ in range(count):
            self.opened += 1
            client = IPv4Address("198.51.100.0") + self.opened % 251
            made = Connection(
                which, client, 1024 + self.opened, protocol, interval_s, self.now_s + interval_s
            )
            self.connections.append(made)
            self.talk(made, syn=syn and protocol is Protocol.TCP)

    def talk(self, connection: Connection, *, syn: bool = False) -> None:
        went = self.send(connection, syn)
        self.packets += 1
        connection.due_s = self.now_s + connection.interval_s
        self.moves += connection.real is None
        ups = [n for n in self.modes[connection.service] if self.is_up(connection.service, n)]
        if connection.real is not None:
            assert went == connection.real, f"{connection} went to {went} at {self.now_s}"
        elif went is None:
            assert not any(self._weight(connection.service, n) for n in ups), "no backend"
        else:
            assert went in ups
        connection.real = went

    def _weight(self, which: int, real: int) -> int:
        mode = MODES[self.modes[which][real]]
        return mode[1] if mode else 0

    def pass_time(self, seconds: int, *, step_s: int = 1, silent: bool = False) -> None:
        for _ in range(0, seconds, step_s):
            self.now_s += step_s
            self.connections = [one for one in self.connections if one.until_s > self.now_s]
            for connection in self.connections:
                if connection.due_s <= self.now_s and not silent:
                    self.talk(connection)
            self.dataplane.maintain(self.now_s)

    def pass_busy_time(self, which: int, seconds: int) -> None:
        """A new UDP flow every five seconds, each for a few minutes."""
        for number in range(seconds // 5):
            known = len(self.connections)
            self.open(which, 1, Protocol.UDP, (30, 90, 250)[number % 3], syn=False)
            for connection in self.connections[known:]:
                connection.until_s = self.now_s + 260
            self.pass_time(5, step_s=5)

    def all_talk(self) -> None:
        for connection in self.connections:
            self.talk(connection)

    # The data plane

    def send(self, connection: Connection, syn: bool) -> int | None:
        return Model(self, connection, syn).choose()

    def service_index(self, which: int) -> int | None:
        identity = np.uint64(service_identity(VirtualServiceId(f"s{which}", VIPS[which])))
        found = np.flatnonzero(self.maps.services["identity"] == identity)
        return int(found[0]) if len(found) else None


class Model:
    """One packet through xdp/choose.h. Crowded tables, moved entries and endings are left out."""

    def __init__(self, bench: Bench, connection: Connection, syn: bool) -> None:
        self.maps, self.now, self.starts = bench.maps, bench.tick(), syn
        self.connection = connection
        self.hash = connection.hash()
        index = bench.service_index(connection.service)
        self.index = -1 if index is None else index
        self.record = self.maps.services[self.index]
        self.flags = int(self.record["flags"])
        sticky = self.flags & abi.SERVICE_STICKY
        self.slot_hash = client_hash(KEY, connection.client) if sticky else self.hash

    def _local_up(self, local: int) -> bool:
        word = int(self.record["backends"])
        if local >= word >> abi.BACKEND_ROOM_SHIFT:
            return False
        link = int(self.maps.backends["link"][(word & 0xFFFFFFFF) + local])
        return bool(link >> 48 & abi.BACKEND_UP)

    def _slot(self, word: int, number: int) -> int:
        slot = number & (1 << (word >> abi.TABLE_LOG2_SHIFT & 31)) - 1
        return int(self.maps.slots.reshape(-1)[(word & 0xFFFFFFFF) * abi.SLOTS_PER_LINE + slot])

    def choose(self) -> int | None:
        if self.index < 0:
            return None
        slot = self._slot(int(self.record["table"]), self.slot_hash >> 40 & 0xFFFF)
        sampled = not (self.now + (self.hash >> 56)) % SAMPLE_TICKS
        by_slot = not (slot & abi.SLOT_UNSTABLE or self.flags & abi.SERVICE_BY_FLOW or sampled)
        local = slot if by_slot and self._local_up(slot) else self._by_flow(slot)
        if local is None:
            return None
        base = int(self.record["backends"]) & 0xFFFFFFFF
        return int(self.maps.backends["link"][base + local]) >> 40 & 0xFF

    def _by_flow(self, slot: int) -> int | None:
        place = self._find()
        if place is not None and not self._is_another(place):
            value = int(self.maps.flows[place]["value"])
            local = value & (1 << abi.FLOW_LOCAL_BITS) - 1
            if value >> abi.FLOW_SERVICE_SHIFT & abi.MAX_SERVICES - 1 == self.index and self._local_up(local):
                self._refresh(place, value)
                return local
            slot &= ~abi.SLOT_UNSTABLE
        local = slot & abi.SLOT_NONE
        if slot & abi.SLOT_UNSTABLE and not self.starts:
            was = self._slot(int(self.record["previous"]), self.slot_hash >> 40 & 0xFFFF)
            local = was if self._local_up(was & abi.SLOT_NONE) else local
        elif self.flags & abi.SERVICE_LEAST_CONNS:
            local = self._less_loaded(local)
        if not self._local_up(local):
            return None
        self._write(place or self._room(), FlowState.UNPROVEN, local)
        return local

    def _is_another(self, place: Entry) -> bool:
        """Whether the entry is of an earlier flow of the same name."""
        value = int(self.maps.flows[place]["value"])
        age = self.now - (value >> abi.FLOW_TICK_SHIFT) & 0xFFFF
        if age <= int(self.maps.settings["timeout"][0][value >> abi.FLOW_STATE_SHIFT & 7]):
            return False
        return self.starts or (self.connection.protocol is Protocol.UDP and age > UDP_OVER_TICKS)

    def _less_loaded(self, local: int) -> int:
        other = self._slot(int(self.record["table"]), self.hash >> 48) & abi.SLOT_NONE
        if not self._local_up(other) or not self._local_up(local):
            return other if self._local_up(other) else local
        base = int(self.record["backends"]) & 0xFFFFFFFF
        loads = [int(self.maps.backends["how"][base + one]) >> 48 for one in (local, other)]
        return other if loads[1] < loads[0] else local

    def _refresh(self, place: Entry, value: int) -> None:
        state = FlowState(value >> abi.FLOW_STATE_SHIFT & 7)
        if value >> abi.FLOW_TICK_SHIFT & 0xFFFF == self.now:
            return
        proven = FlowState.ESTABLISHED if self.connection.protocol is Protocol.TCP else FlowState.STREAM
        next_state = {FlowState.UNPROVEN: FlowState.PROVING, FlowState.PROVING: proven}
        self._write(place, next_state.get(state, state), value & (1 << abi.FLOW_LOCAL_BITS) - 1)

    def _sets(self) -> tuple[int, int]:
        mask = len(self.maps.flows) - 1
        return self.hash & mask, self.hash >> 24 & mask

    def _places(self) -> list[Entry]:
        return [(index, way) for index in self._sets() for way in range(abi.FLOW_WAYS)]

    def _find(self) -> Entry | None:
        for place in self._places():
            entry = self.maps.flows[place]
            value = int(entry["value"])
            if value & abi.FLOW_VALID and value ^ int(entry["tag"]) == self.hash:
                return place
        return None

    def _room(self) -> Entry:
        empty = [place for place in self._places() if not int(self.maps.flows[place]["value"])]
        assert empty, "the model's table is to be roomy"
        return empty[0]

    def _write(self, place: Entry, state: FlowState, local: int) -> None:
        low = flows.owner(self.index, local) | state << abi.FLOW_STATE_SHIFT
        value = abi.FLOW_VALID | self.now << abi.FLOW_TICK_SHIFT | low
        self.maps.flows[place]["value"] = value
        self.maps.flows[place]["tag"] = value ^ self.hash


# Histories: lists of steps that any bench can play

Step = tuple[Any, ...]


def play(bench: Bench, step: Step) -> None:
    match step:
        case ("change", which, modes):
            bench.change(which, modes)
        case ("pass", seconds, step_s):
            bench.pass_time(seconds, step_s=step_s)
        case ("busy", which, seconds):
            bench.pass_busy_time(which, seconds)
        case ("open", which, count, protocol, interval_s, syn):
            bench.open(which, count, protocol, interval_s, syn=syn)
        case ("restart",):
            bench.restart()
            bench.apply()
        case ("crash", which, modes):
            bench.restart()
            bench.change(which, modes)
        case ("stop",):
            bench.stop_and_start()
        case ("lose",):
            bench.pass_time(SETTLE_FULLY_S, step_s=30)
            if not unstable_slots(bench):
                bench.maps.flows[:] = 0
        case _:
            raise AssertionError(step)


SETTLE_FULLY_S = int(SETTLE_S) + 120


def unstable_slots(bench: Bench) -> int:
    found = 0
    for which in (0, 1):
        index = bench.service_index(which)
        word = 0 if index is None else int(bench.maps.services["table"][index])
        start = (word & 0xFFFFFFFF) * abi.SLOTS_PER_LINE
        table = bench.maps.slots.reshape(-1)[start : start + (1 << (word >> 32))]
        found += int(np.count_nonzero(table & abi.SLOT_UNSTABLE)) if word else 0
    return found


def random_step(source: random.Random, *, lossy: bool) -> Step:
    which = source.randrange(2)
    modes = {source.randrange(len(REALS)): source.choice(list(MODES)) for _ in range(source.randrange(1, 4))}
    protocol = source.choice(list(Protocol))
    kinds: list[Step] = [
        ("change", which, modes),
        ("change", which, modes),
        ("change", which, modes),
        ("pass", source.randrange(1, 5), 1),
        ("pass", source.randrange(5, 120), source.choice([1, 3])),
        ("pass", 300, 10),
        ("busy", which, source.choice([30, 120])),
        ("open", which, source.randrange(1, 20), protocol, source.choice(INTERVALS_S), source.random() < 0.8),
        ("open", which, source.randrange(1, 20), protocol, source.choice(INTERVALS_S), True),
        ("restart",),
        ("crash", which, modes),
        ("stop",),
        ("lose",) if lossy else ("restart",),
    ]
    return source.choice(kinds)


def begin(bench: Bench) -> None:
    for which in (0, 1):
        bench.change(which, dict.fromkeys(range(5), "up"))
    for which in (0, 1):
        for protocol in Protocol:
            for interval_s in INTERVALS_S:
                bench.open(which, 3, protocol, interval_s, syn=interval_s != 4)


def play_random(bench: Bench, seed: int, steps: int, *, lossy: bool) -> None:
    source = random.Random(seed)
    begin(bench)
    for _ in range(steps):
        step = random_step(source, lossy=lossy)
        if lossy:
            bench.dataplane._lossy_until = float("inf")
        play(bench, step)


def play_health(bench: Bench, seed: int, steps: int) -> None:
    """As `play_random`, but that reals neither come nor go: what happens between reloads."""
    source = random.Random(seed)
    begin(bench)
    for _ in range(steps):
        step = random_step(source, lossy=False)
        if step[0] in ("change", "crash"):
            kept = {real % 5: "down" if mode == "gone" else mode for real, mode in step[2].items()}
            step = step[0], step[1], kept
        play(bench, step)


# New UDP flows don't say that they are new: they come all the time, and where they go in the end


def new_flows(bench: Bench, count: int, *, stay: int) -> Counter[int | None]:
    """Where so many go. The first of them stay, the others are heard of no more."""
    known = len(bench.connections)
    bench.open(0, count, Protocol.UDP, 90, syn=False)
    went = Counter(connection.real for connection in bench.connections[known:])
    del bench.connections[known + stay :]
    return went


def play_steady(bench: Bench, modes: dict[int, str], *, restless: bool) -> Counter[int | None]:
    """Four reals, a change, and 24 new flows a second from when its slots could settle. `restless`: something
    else changes every 100 s. Returns where 1,000 new flows go a minute after `SETTLE_S`.
    """
    bench.change(0, dict.fromkeys(range(4), "up"))
    for interval_s in INTERVALS_S:
        bench.open(0, 20, Protocol.UDP, interval_s, syn=False)
    bench.pass_time(5)
    bench.change(0, modes)
    for second in range(0, int(SETTLE_S) + 60, 10):
        if restless and second % 100 == 50:
            bench.change(0, {3: "heavy" if second % 200 == 50 else "up"})
        if second > SETTLE_S - 150:
            new_flows(bench, 240, stay=2)
        bench.pass_time(10, step_s=5)
    return new_flows(bench, 1000, stay=0)


def play_reuse(bench: Bench, scheduling: Scheduling, protocol: Protocol) -> None:
    """Clients use their ports again, each once the timeout of the flow before has passed: whatever that left
    behind, a drained real gets none of them, an added one its share, and a sticky client has one real.
    """
    bench.scheduling = [scheduling] * 2
    silence_s = 130 if protocol is Protocol.TCP else int(SETTLE_S) + 200
    bench.change(0, dict.fromkeys(range(3), "up"))
    bench.open(0, 500, protocol, 10**9, syn=True)
    for modes, real, fair in (({0: "drain"}, 0, range(1)), ({4: "up"}, 4, range(90, 260))):
        bench.change(0, modes)
        for _ in range(2):
            bench.pass_time(silence_s, step_s=10)
            went = Counter(_begins_anew(bench, connection, protocol) for connection in bench.connections)
            assert went[real] in fair, (modes, went)
    if scheduling is Scheduling.STICKY:
        pairs = {(connection.client, connection.real) for connection in bench.connections}
        assert len(pairs) == len({client for client, _ in pairs})


def _begins_anew(bench: Bench, connection: Connection, protocol: Protocol) -> int | None:
    """The first packets of another connection by the same ports, which go the same way. Where they go."""
    connection.real = None
    for syn in (protocol is Protocol.TCP, False):
        bench.talk(connection, syn=syn)
    return connection.real


def test_loads_outlast_a_change() -> None:
    """A real whose weight changes is as loaded as before, not idle until its flows are counted anew; one that
    comes with a record used before is idle.
    """
    bench = Bench(scheduling=[Scheduling.LEAST_CONNS] * 2)
    bench.change(0, dict.fromkeys(range(3), "up"))
    bench.open(0, 300, Protocol.TCP, 1, syn=True)
    bench.pass_time(30)
    loads = loads_of(bench)
    assert min(loads[:3]) > 0
    bench.change(0, {0: "heavy"})
    assert loads_of(bench) == loads
    bench.change(0, {0: "gone"})
    bench.connections.clear()
    bench.pass_time(int(SETTLE_S) + 4000, step_s=20)
    bench.change(0, {5: "up"})
    assert loads_of(bench)[0] == 0


def loads_of(bench: Bench) -> list[int]:
    """Of the first service's backends, by place."""
    base = int(bench.maps.services["backends"][bench.service_index(0)]) & 0xFFFFFFFF
    return [int(how) >> 48 for how in bench.maps.backends["how"][base : base + 4]]


@pytest.mark.parametrize("protocol", Protocol)
@pytest.mark.parametrize("scheduling", Scheduling)
def test_ports_used_again(scheduling: Scheduling, protocol: Protocol) -> None:
    play_reuse(Bench(), scheduling, protocol)


def test_new_udp_flows_leave_a_drained_real() -> None:
    bench = Bench(array_maps(flow_sets=1 << 13))
    went = play_steady(bench, {0: "drain"}, restless=True)
    assert went[0] == 0
    assert any(connection.real == 0 for connection in bench.connections), "those it had go on"


def test_new_udp_flows_reach_an_added_real() -> None:
    went = play_steady(Bench(array_maps(flow_sets=1 << 13)), {4: "up"}, restless=True)
    assert went[4] > 80, "of 1,000, by five reals of which one is heavy"


def test_new_udp_flows_leave_a_drained_real_though_the_balancer_is_restarted() -> None:
    """The time begins anew then: what the earlier run has seen isn't known."""
    bench = Bench()
    bench.change(0, dict.fromkeys(range(4), "up"))
    bench.change(0, {0: "drain"})
    bench.pass_time(300, step_s=10)
    bench.restart()
    bench.apply()
    bench.pass_time(int(SETTLE_S) - 10, step_s=10)
    assert new_flows(bench, 300, stay=0)[0]
    bench.pass_time(70, step_s=10)
    assert new_flows(bench, 300, stay=0)[0] == 0


def test_flow_seen_once_may_be_silent_while_its_slot_settles() -> None:
    """It has begun, at the previous real, just before the slot is closed; that isn't opened at once."""
    bench = Bench()
    bench.change(0, dict.fromkeys(range(4), "up"))
    bench.change(0, {0: "drain"})
    bench.pass_time(int(SETTLE_S) - 10, step_s=10)
    bench.open(0, 200, Protocol.UDP, 10**9, syn=False)
    assert any(connection.real == 0 for connection in bench.connections)
    bench.pass_time(int(SETTLE_S) - 20, step_s=5)
    bench.all_talk()


modes = st.dictionaries(
    st.integers(0, len(REALS) - 1), st.sampled_from(sorted(MODES)), min_size=1, max_size=4
)
step = st.one_of(
    st.tuples(st.sampled_from(["change", "crash"]), st.integers(0, 1), modes),
    st.tuples(st.just("change"), st.integers(0, 1), modes),
    st.tuples(
        st.just("pass"), st.sampled_from([1, 40, 100, 119, 121, 130, 250]), st.sampled_from([1, 5, 10])
    ),
    st.tuples(
        st.just("open"),
        st.integers(0, 1),
        st.integers(1, 8),
        st.sampled_from(Protocol),
        st.sampled_from(INTERVALS_S),
        st.booleans(),
    ),
    st.tuples(st.just("busy"), st.integers(0, 1), st.sampled_from([50, 150])),
    st.tuples(st.just("restart")),
    st.tuples(st.just("stop")),
)


@settings(max_examples=40)
@given(st.lists(step, min_size=2, max_size=10), st.sampled_from([Pace(), PIECEMEAL]))
def test_no_connection_moves_while_its_real_is_up(history: list[Step], pace: Pace) -> None:
    bench = Bench(pace=pace)
    begin(bench)
    for one in history:
        play(bench, one)
    bench.pass_time(260, step_s=10)


health = st.dictionaries(
    st.integers(0, 4), st.sampled_from(sorted(MODES.keys() - {"gone"})), min_size=1, max_size=4
)
kept = st.one_of(
    st.tuples(st.sampled_from(["change", "change", "crash"]), st.integers(0, 1), health),
    st.tuples(st.just("pass"), st.sampled_from([1, 40, 121, 250]), st.sampled_from([1, 5, 10])),
    st.tuples(
        st.just("open"),
        st.integers(0, 1),
        st.integers(1, 8),
        st.sampled_from(Protocol),
        st.sampled_from(INTERVALS_S),
        st.booleans(),
    ),
)


@settings(max_examples=30)
@given(st.lists(kept, min_size=2, max_size=10), st.sampled_from([Pace(), PIECEMEAL]))
def test_no_connection_moves_where_tables_have_no_room_beside_each_other(
    history: list[Step], pace: Pace
) -> None:
    bench = Bench(array_maps(1 + 4 * lines_for(5)), pace=pace)
    begin(bench)
    for one in history:
        play(bench, one)
    bench.pass_time(260, step_s=10)


@pytest.mark.parametrize("pace", [Pace(), PIECEMEAL], ids=["at once", "piecemeal"])
@pytest.mark.parametrize("lossy", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_random_history(seed: int, lossy: bool, pace: Pace) -> None:
    bench = Bench(pace=pace)
    play_random(bench, seed, 30, lossy=lossy)
    assert bench.packets > 1000


@pytest.mark.parametrize("protocol", Protocol)
@pytest.mark.parametrize("syn", [True, False])
def test_unrecorded_packets_go_where_a_stable_slot_led(protocol: Protocol, syn: bool) -> None:
    """Nothing of UDP, nor of a connection that began elsewhere, is recorded in a stable slot at once."""
    bench = Bench()
    bench.change(0, dict.fromkeys(range(4), "up"))
    bench.open(0, 200, protocol, 30, syn=syn)
    bench.change(0, dict.fromkeys(range(4, 8), "up"))
    bench.all_talk()


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_service_that_changes_later_does_not_inherit_a_settled_table(order: tuple[int, int]) -> None:
    """Both had the same reals; the second gets the new one after the first's table has settled."""
    bench = Bench()
    for which in (0, 1):
        bench.change(which, dict.fromkeys(range(3), "up"))
        bench.open(which, 100, Protocol.TCP, 90, syn=True)
    for which in order:
        bench.change(which, {3: "up", 4: "up"})
        bench.pass_time(400, step_s=10)


def test_proven_connections_may_be_silent_for_long() -> None:
    bench = Bench()
    bench.change(0, dict.fromkeys(range(4), "up"))
    for protocol in Protocol:
        bench.open(0, 60, protocol, 1, syn=True)
    bench.pass_time(PROVEN_S)
    for _ in range(2):
        bench.change(0, {4: "up", 5: "up"})
        bench.pass_time(130, step_s=10, silent=True)
        bench.change(0, {4: "gone", 5: "drain", 0: "heavy"})
        bench.pass_time(100, step_s=10, silent=True)  # a stream of UDP is kept for 300 s
        bench.all_talk()
        bench.pass_time(PROVEN_S)
    bench.connections = [c for c in bench.connections if c.protocol is Protocol.TCP]
    bench.change(0, {4: "up", 6: "up"})
    bench.pass_time(3400, step_s=50, silent=True)
    bench.all_talk()


def test_connection_that_talked_for_a_while_may_be_silent_for_long() -> None:
    """Too short to be seen in three sampled ticks, long enough for two."""
    bench = Bench()
    bench.change(0, dict.fromkeys(range(4), "up"))
    bench.open(0, 100, Protocol.TCP, 1, syn=True)
    bench.pass_time(2 * SAMPLE_TICKS + 1)
    bench.change(0, {4: "up", 5: "up"})
    bench.pass_time(1000, step_s=10, silent=True)
    bench.all_talk()


@pytest.mark.parametrize("back", [Scheduling.STICKY, Scheduling.LEAST_CONNS])
def test_service_that_no_longer_goes_by_flow_keeps_its_flows(back: Scheduling) -> None:
    bench = Bench()
    bench.scheduling[0] = back
    bench.change(0, dict.fromkeys(range(5), "up"))
    bench.open(0, 100, Protocol.TCP, 30, syn=True)
    bench.pass_time(200, step_s=10)
    for scheduling in (Scheduling.MAGLEV, back, Scheduling.MAGLEV):
        bench.scheduling[0] = scheduling
        bench.apply()
        bench.all_talk()
        bench.pass_time(300, step_s=10)


def test_clients_port_used_again_follows_the_slot_from_the_first_packet_on() -> None:
    """An old entry of another backend must not lead the SYN elsewhere than the packets after it."""
    bench = Bench()
    bench.change(0, dict.fromkeys(range(3), "up"))
    bench.open(0, 200, Protocol.TCP, 10**9, syn=True)
    bench.change(0, dict.fromkeys(range(3, 9), "up"))
    bench.pass_time(int(SETTLE_S) + 400, step_s=10)
    assert unstable_slots(bench) == 0
    for connection in bench.connections:
        connection.real = None
        for _ in range(3):
            bench.talk(connection, syn=connection.real is None)
    bench.pass_time(2, silent=True)
    bench.all_talk()


@pytest.mark.parametrize("protocol", Protocol)
def test_all_reals_drain(protocol: Protocol) -> None:
    """Nothing of these connections is recorded; they go on where they are, while new ones find nobody."""
    bench = Bench()
    bench.change(0, dict.fromkeys(range(4), "up"))
    bench.open(0, 100, protocol, 30, syn=False)
    bench.change(0, {0: "drain", 1: "drain"})
    bench.change(0, {2: "drain", 3: "drain"})
    bench.all_talk()
    bench.pass_time(300, step_s=5)
    bench.change(0, {4: "up"})
    bench.pass_time(300, step_s=5)


def test_all_reals_down_for_a_moment() -> None:
    """What was hashed again stays there; what wasn't goes back."""
    bench = Bench()
    bench.change(0, dict.fromkeys(range(4), "up"))
    for protocol in Protocol:
        bench.open(0, 100, protocol, 1, syn=True)
    bench.pass_time(3)
    bench.change(0, dict.fromkeys(range(4), "down"))
    bench.pass_time(2)
    for n in (2, 0, 3, 1):
        bench.change(0, {n: "up"})
        bench.pass_time(3)
    bench.pass_time(300, step_s=5)


def test_first_reals_of_a_start_are_not_remembered_for_connections_from_elsewhere() -> None:
    """Reals come up one by one; whoever then moves here from another balancer goes by the table of all."""
    bench, other = Bench(), Bench()
    other.change(0, dict.fromkeys(range(5), "up"))
    bench.change(0, dict.fromkeys(range(5), "down"))
    for n in range(5):
        bench.change(0, {n: "up"})
        bench.pass_time(1)
    for one in (bench, other):
        one.open(0, 100, Protocol.TCP, 30, syn=False)
    assert [c.real for c in bench.connections] == [c.real for c in other.connections]


def test_everything_settles_in_the_end() -> None:
    bench = Bench()
    begin(bench)
    bench.change(0, {5: "up", 1: "gone"})
    assert unstable_slots(bench)
    bench.connections.clear()
    bench.pass_time(int(SETTLE_S) + 150, step_s=10)
    assert unstable_slots(bench) == 0


def test_everything_settles_in_the_end_though_it_is_read_piece_by_piece() -> None:
    bench = Bench(pace=PIECEMEAL)
    begin(bench)
    bench.change(0, {5: "up", 1: "gone"})
    assert unstable_slots(bench)
    bench.pass_time(int(SETTLE_S) + 60, silent=True)
    bench.connections.clear()
    bench.pass_time(200)
    assert unstable_slots(bench) == 0


@pytest.mark.parametrize("seconds", range(1, 10))
def test_real_that_comes_back_while_its_flows_are_purged_keeps_its_new_ones(seconds: int) -> None:
    """It is up again, with more slots than before, when a part of the flow table has been read; the entries
    of its new connections in the rest must not be emptied.
    """
    bench = Bench(pace=PIECEMEAL)
    bench.change(0, dict.fromkeys(range(4), "up"))
    bench.pass_time(20)
    bench.change(0, {3: "gone"})
    bench.pass_time(seconds)
    bench.change(0, {3: "heavy"})
    bench.open(0, 100, Protocol.TCP, 30, syn=True)
    bench.pass_time(20)
    bench.all_talk()


def test_other_timeouts_hold_from_the_next_packet_on() -> None:
    bench = Bench(pace=PIECEMEAL)
    bench.change(0, dict.fromkeys(range(4), "up"))
    bench.open(0, 100, Protocol.TCP, 1, syn=True)
    bench.pass_time(PROVEN_S)
    bench.change(0, {4: "up", 5: "up"})
    bench.dataplane.set_policy(Config((), timeouts=Timeouts(established_s=7200)))
    assert int(bench.maps.settings["timeout"][0, FlowState.ESTABLISHED]) == 7200
    assert not int(bench.maps.settings["flags"][0]) & abi.SETTING_DROP_FRAGMENTS
    bench.pass_time(7000, step_s=10, silent=True)
    bench.all_talk()
    bench.dataplane.set_policy(Config((), drop_fragments=True))
    assert int(bench.maps.settings["timeout"][0, FlowState.ESTABLISHED]) == 3600
    assert int(bench.maps.settings["flags"][0]) & abi.SETTING_DROP_FRAGMENTS


def test_what_was_read_by_other_timeouts_counts_for_nothing() -> None:
    bench = Bench(pace=PIECEMEAL)
    bench.pass_time(5)
    bench.dataplane.set_policy(Config(()))  # nothing new
    bench.dataplane.set_policy(Config((), timeouts=Timeouts(udp_s=200)))
    bench.pass_time(7)
    assert bench.dataplane.counters().flows_at is None
    assert bench.dataplane.busy()
    bench.pass_time(1)
    assert bench.dataplane.counters().flows_at is not None
    assert not bench.dataplane.busy()
