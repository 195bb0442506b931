"""A connection that moves from balancer to balancer keeps its backend: random histories against models.

Each node is that of test_stability_model, with the real control plane; what nodes tell each other is a plain
restatement of xdp/share.h, xdp/learn.h, and the walk and the copies of vc5py/sharer.py, once a second.

The bound: the backend is up on the node that the connection moves to; what was told before the move has
arrived; between two packets the connection is silent for less than `SETTLE_S`; and nodes don't disagree for
longer than that about which reals are up.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from itertools import pairwise

import numpy as np
import pytest

from tests.unit.test_stability_model import (
    REALS,
    SAMPLE_TICKS,
    VIPS,
    Bench,
    Connection,
    Entry,
    Model,
    Ticks,
    unstable_slots,
)
from vc5py.core.flowsync import Opinion, merged, prefers
from vc5py.core.identity import backend_identity
from vc5py.dataplane import abi, flows
from vc5py.dataplane.abi import FlowState
from vc5py.dataplane.base import Neighbour
from vc5py.dataplane.kernel import KernelDataplane
from vc5py.dataplane.policy import SETTLE_S, Policy
from vc5py.model import BackendId, Protocol

WALK_S = 60
LATEST_S = 5  # how much later than another one a node may find out
TICK_AND_LEARNED = (1 << abi.FLOW_TICK_BITS) - 1 << abi.FLOW_TICK_SHIFT | abi.FLOW_LEARNED
LOCAL = (1 << abi.FLOW_LOCAL_BITS) - 1


@dataclass(frozen=True)
class Told:
    """A record: the flow, the backend's identity, its state and when it was seen."""

    hash: int
    identity: int
    state: FlowState
    seen_s: float


@dataclass
class Node(Bench):
    log: list[Told] = field(default_factory=list)
    known: set[int] = field(default_factory=set)
    disturbed: int = 0

    def restart(self) -> None:
        policy = Policy(shared=True)
        self.dataplane = KernelDataplane(self.maps, Ticks(self), policy, clock=lambda: self.now_s)
        for n, real in enumerate(REALS):
            self.dataplane.set_neighbour(real, Neighbour(1, f"02:00:00:00:10:{n:02x}"))

    def packet(self, connection: Connection, *, syn: bool) -> int | None:
        return Packet(self, connection, syn).choose()

    # What is told

    def identities(self) -> dict[tuple[int, int], int]:
        """By service and local index; what is gone has none."""
        found = {}
        for index in np.flatnonzero(self.maps.services["identity"]).tolist():
            word = int(self.maps.services["backends"][index])
            base, room = word & 0xFFFFFFFF, word >> abi.BACKEND_ROOM_SHIFT
            for local in range(room):
                record = self.maps.backends[base + local]
                resting = int(record["link"]) >> 48 & abi.BACKEND_RESTING
                if int(record["identity"]) and not resting:
                    found[index, local] = int(record["identity"]) & 0xFFFFFFFF
        return found

    def told(self, value: int, hash_: int, names: dict[tuple[int, int], int]) -> Told | None:
        owner = value >> abi.FLOW_SERVICE_SHIFT & abi.MAX_SERVICES - 1, value & LOCAL
        age = self.tick() - (value >> abi.FLOW_TICK_SHIFT) & 0xFFFF
        state = FlowState(value >> abi.FLOW_STATE_SHIFT & 7)
        return Told(hash_, names[owner], state, self.now_s - age) if owner in names else None

    def has_new_names(self) -> bool:
        before, self.known = self.known, set(self.identities().values())
        return not self.known <= before

    def walk(self, *, learned: bool = False) -> list[Told]:
        names, out = self.identities(), []
        for entry in self.maps.flows.reshape(-1):
            value = int(entry["value"])
            if value & abi.FLOW_VALID and (learned or not value & abi.FLOW_LEARNED):
                out.append(self.told(value, value ^ int(entry["tag"]), names))
        return [told for told in out if told is not None]

    # What is heard

    def hear(self, records: list[Told]) -> None:
        owners: dict[int, tuple[int, int]] = {name: owner for owner, name in self.identities().items()}
        strays = []
        for told in records:
            if told.identity in owners:
                stray = self._learn(told, *owners[told.identity])
                strays += [stray] if stray is not None else []
        self.disturbed += len(strays)
        self.dataplane.disturb(np.array(strays, dtype=np.uint32))

    def _learn(self, told: Told, service: int, local: int) -> int | None:
        age = int(self.now_s - told.seen_s)
        if age > int(self.maps.settings["timeout"][0, told.state]):
            return None
        at = Hearing(self, told.hash)
        if at.place is None:
            at.write(at.room(), service, local, told.state, told.seen_s)
            fresh = True
        elif at.owner == (service, local):
            newer = told.seen_s - at.seen_s
            at.write(
                at.place, service, local, merged(at.state, told.state, newer), max(told.seen_s, at.seen_s)
            )
            fresh = False
        elif self._takes(told, service, local, at):
            at.write(at.place, service, local, told.state, told.seen_s)
            fresh = True
        else:
            return None
        slot = self._slot(service, told.hash)
        if slot & abi.SLOT_NONE == local or (slot & abi.SLOT_UNSTABLE and not fresh):
            return None
        return service << 16 | told.hash >> 40 & 0xFFFF

    def _takes(self, told: Told, service: int, local: int, at: Hearing) -> bool:
        ours_up, up = self._up(*at.owner), self._up(service, local)
        if ours_up != up:
            return up
        ours = Opinion(self.identities().get(at.owner, 0), at.seen_s, at.state)
        return prefers(Opinion(told.identity, told.seen_s, told.state), ours, self.now_s)

    def _up(self, service: int, local: int) -> bool:
        base = int(self.maps.services["backends"][service]) & 0xFFFFFFFF
        return bool(int(self.maps.backends["link"][base + local]) >> 48 & abi.BACKEND_UP)

    def _slot(self, service: int, hash_: int) -> int:
        word = int(self.maps.services["table"][service])
        slot = hash_ >> 40 & (1 << (word >> abi.TABLE_LOG2_SHIFT & 31)) - 1
        return int(self.maps.slots.reshape(-1)[(word & 0xFFFFFFFF) * abi.SLOTS_PER_LINE + slot])


class Packet(Model):
    """Logs what is new or has another state, as flow_log does."""

    def _write(self, place: Entry, state: FlowState, local: int) -> None:
        before = int(self.maps.flows[place]["value"])
        super()._write(place, state, local)
        value = int(self.maps.flows[place]["value"])
        if (before ^ value) & ~TICK_AND_LEARNED:
            told = self.node.told(value, self.hash, self.node.identities())
            assert told is not None
            self.node.log.append(told)

    def __init__(self, node: Node, connection: Connection, syn: bool) -> None:
        self.node = node
        super().__init__(node, connection, syn)


class Hearing:
    """One flow's place in a node's table."""

    def __init__(self, node: Node, hash_: int) -> None:
        self.node, self.hash = node, hash_
        sets = len(node.maps.flows)
        self.places = [(s, way) for s in (hash_ % sets, (hash_ >> 24) % sets) for way in range(abi.FLOW_WAYS)]
        self.place: Entry | None = None
        for place in self.places:
            value = int(node.maps.flows[place]["value"])
            if value & abi.FLOW_VALID and value ^ int(node.maps.flows[place]["tag"]) == hash_:
                self.place = place
                self.owner = value >> abi.FLOW_SERVICE_SHIFT & abi.MAX_SERVICES - 1, value & LOCAL
                self.state = FlowState(value >> abi.FLOW_STATE_SHIFT & 7)
                self.seen_s = node.now_s - (node.tick() - (value >> abi.FLOW_TICK_SHIFT) & 0xFFFF)

    def room(self) -> Entry:
        return next(place for place in self.places if not int(self.node.maps.flows[place]["value"]))

    def write(self, place: Entry, service: int, local: int, state: int, seen_s: float) -> None:
        tick = int(seen_s) & 0xFFFF
        low = flows.owner(service, local) | state << abi.FLOW_STATE_SHIFT
        value = abi.FLOW_VALID | abi.FLOW_LEARNED | tick << abi.FLOW_TICK_SHIFT | low
        self.node.maps.flows[place]["value"] = value
        self.node.maps.flows[place]["tag"] = value ^ self.hash


@dataclass
class Cluster:
    nodes: list[Node]
    source: random.Random
    sharing: bool = True
    at: dict[Connection, int] = field(default_factory=dict)
    later: list[tuple[float, int, dict[int, str]]] = field(default_factory=list)
    broken: int = 0
    moves: int = 0
    opened: int = 0
    cut: frozenset[int] = frozenset()  # nodes that neither tell nor are told, and get no packets

    @property
    def there(self) -> list[int]:
        return [number for number in range(len(self.nodes)) if number not in self.cut]

    @property
    def now_s(self) -> float:
        return self.nodes[0].now_s

    def open(self, count: int) -> None:
        for _ in range(count):
            self.opened += 1
            client = IPv4Address("198.51.100.0") + self.opened % 251
            made = Connection(0, client, 1024 + self.opened, Protocol.TCP, 1, self.now_s)
            self.at[made] = self._any()
            made.interval_s = self.source.choice([1, 2, 7])
            self._talk(made, syn=True)

    def _any(self) -> int:
        return self.there[self.source.randrange(len(self.there))]

    def cut_off(self, number: int) -> None:
        """Its connections go by others from now on."""
        self.cut = frozenset({number})
        for connection, at in self.at.items():
            self.at[connection] = self._any() if at == number else at

    def mend(self, *, copies: bool) -> None:
        """Each sees that something of the other was lost, and asks for a copy, before packets come again."""
        self.cut = frozenset()
        told = [node.walk(learned=True) for node in self.nodes]
        for number, node in enumerate(self.nodes) if copies else ():
            node.hear([one for other, records in enumerate(told) if other != number for one in records])

    def change(self, modes: dict[int, str]) -> None:
        """Every node finds out at its own time."""
        for node in range(len(self.nodes)):
            self.later.append((self.now_s + self.source.randrange(LATEST_S + 1), node, modes))

    def second(self) -> None:
        self._tell()
        for node in self.nodes:
            node.now_s += 1
        for due, number, modes in [one for one in self.later if one[0] <= self.now_s]:
            self.nodes[number].change(0, modes)
            self.later.remove((due, number, modes))
        for connection in list(self.at):
            if connection.due_s <= self.now_s:
                self._talk(connection)
        self._tell()
        for node in self.nodes:
            node.dataplane.maintain(node.now_s)

    def _tell(self) -> None:
        walk = self.now_s % WALK_S == 0
        told = [node.log + (node.walk() if walk else []) for node in self.nodes]
        for number, node in enumerate(self.nodes):
            node.log = []
            if self.sharing and number not in self.cut and node.has_new_names():  # it asks for a copy
                copies = [other.walk(learned=True) for other in self.nodes if other is not node]
                node.hear([told for copy in copies for told in copy])
            if self.sharing and number not in self.cut:
                node.hear([one for other in self.there if other != number for one in told[other]])

    def _talk(self, connection: Connection, *, syn: bool = False) -> None:
        if not syn and self.source.random() < 0.1:
            self.at[connection] = self._any()
            self.moves += 1
        node = self.nodes[self.at[connection]]
        went = node.packet(connection, syn=syn)
        connection.due_s = self.now_s + connection.interval_s
        if syn and went is not None:
            connection.real = went
        elif connection.real is None or not node.is_up(0, connection.real):
            del self.at[connection]  # its real is down: the end of any connection
        elif went != connection.real:
            self.broken += 1
            del self.at[connection]


def cluster(size: int, seed: int, *, sharing: bool = True) -> Cluster:
    made = Cluster([Node() for _ in range(size)], random.Random(seed), sharing)
    for node in made.nodes:
        node.change(0, dict.fromkeys(range(6), "up"))
        assert unstable_slots(node)  # as long as others may have flows that it doesn't know
        node.pass_time(int(SETTLE_S) + 60, step_s=10)
        assert not unstable_slots(node)
    return made


def play(made: Cluster, seconds: int) -> None:
    for n in range(seconds):
        made.open(1)
        if n % 20 == 0:
            real = made.source.randrange(len(REALS))
            made.change({real: made.source.choice(["up", "up", "down", "drain", "heavy", "gone"])})
        made.second()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("size", [2, 3])
def test_connections_keep_their_backend_wherever_they_go(size: int, seed: int) -> None:
    made = cluster(size, seed)
    play(made, 200)
    assert made.broken == 0
    assert made.moves > 200
    assert sum(node.disturbed for node in made.nodes) > 0  # it was needed


def test_without_sharing_they_do_not() -> None:
    made = cluster(2, 1, sharing=False)
    play(made, 200)
    assert made.broken > 0


def broken_after_a_cut(size: int, seed: int, *, copies: bool) -> int:
    """The last node was cut off for ten seconds, between two walks, and did not find out that a real is to be
    drained. All connections may move as soon as it is back.
    """
    made = cluster(size, seed)
    play(made, 60)
    while made.now_s % WALK_S != 5:
        made.second()
    made.cut_off(size - 1)
    drained = {made.source.randrange(len(REALS)): "drain"}
    for number in made.there:
        made.nodes[number].change(0, drained)
    made.later.append((made.now_s + 10 + LATEST_S, size - 1, drained))
    for _ in range(10):
        made.open(5)
        made.second()
    assert made.broken == 0
    made.mend(copies=copies)
    play(made, 30)
    return made.broken


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("size", [2, 3])
def test_node_that_was_cut_off_knows_all_connections_by_a_copy(size: int, seed: int) -> None:
    assert broken_after_a_cut(size, seed, copies=True) == 0


def test_without_a_copy_it_does_not() -> None:
    assert sum(broken_after_a_cut(2, seed, copies=False) for seed in range(2)) > 0


def test_node_that_joins_knows_all_connections_within_a_walk() -> None:
    made = cluster(2, 7)
    play(made, 100)
    joined = Node()
    joined.now_s = made.now_s
    modes = made.nodes[0].modes[0]
    for _ in range(LATEST_S + 1):
        made.second()
        joined.now_s += 1
    joined.change(0, dict(made.nodes[0].modes[0]))
    assert joined.modes[0] == modes == made.nodes[1].modes[0]
    made.nodes.append(joined)
    for _ in range(WALK_S):
        made.source = Stay()
        made.second()
    made.source = random.Random(3)
    play(made, 100)
    assert made.broken == 0


class Stay(random.Random):
    """Nobody moves."""

    def random(self) -> float:
        return 1.0


def test_all_agree_on_a_flow_that_two_had_at_different_backends() -> None:
    """Neither knew of the other's; both have a proven flow. It ends at one backend, on both, for good."""
    made = cluster(2, 3)
    first, second = made.nodes
    hash_ = 0x1122_3344_5566_7788
    for node, local, seen in ((first, 1, 3.0), (second, 4, 2.0)):
        index = node.service_index(0)
        assert index is not None
        Hearing(node, hash_).write(
            Hearing(node, hash_).room(), index, local, FlowState.ESTABLISHED, node.now_s - seen
        )
        node.maps.flows["value"][node.maps.flows["value"] != 0] &= np.uint64(
            ~abi.FLOW_LEARNED & (1 << 64) - 1
        )
        entry = node.maps.flows.reshape(-1)
        used = entry["value"] != 0
        entry["tag"][used] = entry["value"][used] ^ np.uint64(hash_)
    seen_owners = []
    for _ in range(3 * WALK_S):
        made.second()
        seen_owners.append(tuple(Hearing(node, hash_).owner[1] for node in made.nodes))
    assert len(set(seen_owners[-1])) == 1
    changes = sum(before != after for before, after in pairwise(seen_owners))
    assert changes <= 1
    winner = max((1, 4), key=lambda n: backend_identity(BackendId("s0", VIPS[0], REALS[n])) & 0xFFFFFFFF)
    assert seen_owners[-1][0] == winner
    assert SAMPLE_TICKS == 64
