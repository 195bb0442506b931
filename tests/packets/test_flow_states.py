"""The life of a flow's entry: every (state, packet, passing of a tick), replacement, wrapping ticks."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from itertools import product
from typing import NamedTuple

import pytest

from tests.packets import frames
from tests.packets.cases_base import REAL_11, WEB, WEB_11_DOWN, entry, sampled_port
from tests.packets.frames import IP_AT, lying
from tests.packets.harness import Entry, Kernel
from tests.packets.oracle import SAMPLE, UDP_OVER_TICKS, Tuple5, fragment_name, maglev_choice, read_tuple
from tests.packets.world import DARK_VIP, STICKY_VIP, WORLD
from vc5py.dataplane import abi
from vc5py.dataplane.abi import FlowState

UNPROVEN, PROVING, CLOSING = FlowState.UNPROVEN, FlowState.PROVING, FlowState.CLOSING
ESTABLISHED, STREAM = FlowState.ESTABLISHED, FlowState.STREAM
# Of these flows every packet is looked up, as if it were in the tick of its sampling.
tcp = partial(frames.tcp, sport=sampled_port())
udp = partial(frames.udp, sport=sampled_port("udp", dport=443))
FLOW: Tuple5 = read_tuple(tcp())
HASH = FLOW.hash
FIRST, SECOND = False, True
HALF_CLOSED = 2  # ticks after its FIN a client that still sends has closed only its own direction

# What one more packet makes of a state. Rows: the state; columns: SYN, SYN-ACK, data, FIN, RST, SYN-FIN.
PACKETS = ("S", "SA", "A", "FA", "R", "SF")
SAME_TICK = {
    UNPROVEN: (UNPROVEN, UNPROVEN, UNPROVEN, CLOSING, CLOSING, CLOSING),
    PROVING: (PROVING, PROVING, PROVING, CLOSING, CLOSING, CLOSING),
    ESTABLISHED: (ESTABLISHED, ESTABLISHED, ESTABLISHED, CLOSING, CLOSING, CLOSING),
    CLOSING: (UNPROVEN, CLOSING, CLOSING, CLOSING, CLOSING, CLOSING),
}
LATER = {
    UNPROVEN: (PROVING, PROVING, PROVING, CLOSING, CLOSING, CLOSING),
    PROVING: (ESTABLISHED, ESTABLISHED, ESTABLISHED, CLOSING, CLOSING, CLOSING),
    ESTABLISHED: (ESTABLISHED, ESTABLISHED, ESTABLISHED, CLOSING, CLOSING, CLOSING),
    CLOSING: (UNPROVEN, CLOSING, CLOSING, CLOSING, CLOSING, CLOSING),
}


def occupy(kernel: Kernel, flow_set: int) -> None:
    """Established flows of others in every way of a set."""
    for way in range(abi.FLOW_WAYS):
        kernel.put_word(flow_set, way, 0x1000 + way, kernel.value_of(entry(state=ESTABLISHED)))


def test_a_connections_start_in_a_stable_slot_is_not_recorded(kernel: Kernel) -> None:
    """Its packets are known to go where the slot leads, and a flood costs no more than they do."""
    other = next(n for n in range(50001, 51000) if not read_tuple(tcp(sport=n)).sampled)
    assert kernel.run(tcp(sport=other, flags="S")).verdict == "forwarded_stable"
    assert not len(kernel.hashes())
    assert kernel.run(tcp(flags="S")).verdict == "forwarded_new"  # in the tick of its sampling
    assert kernel.hashes().tolist() == [HASH]


@pytest.mark.parametrize(
    ("state", "column", "age", "second"),
    list(product(SAME_TICK, range(len(PACKETS)), (0, 1, HALF_CLOSED, 500), (FIRST, SECOND))),
)
def test_every_state_and_packet(
    kernel: Kernel, state: FlowState, column: int, age: int, second: bool
) -> None:
    before = entry(state=state, age=age, second=second)
    if second:  # where an entry is only while its first set is full
        occupy(kernel, kernel.sets_of(HASH)[FIRST])
    kernel.put(HASH, before)
    verdict = kernel.run(tcp(flags=PACKETS[column])).verdict
    if PACKETS[column] == "S" and age > kernel.timeout(state):  # a port used again
        assert verdict == "forwarded_new"
        assert kernel.entry(HASH) == Entry("web", maglev_choice(WEB, HASH), UNPROVEN, 0, second)
        return
    assert verdict == "forwarded_flow"
    after = (LATER if age else SAME_TICK)[state][column]
    if state is CLOSING and after is CLOSING and PACKETS[column] in ("SA", "A"):
        if age >= HALF_CLOSED:
            after = PROVING
        else:
            assert kernel.entry(HASH) == before, "an entry that is closing tells when the end was seen"
            return
    assert kernel.entry(HASH) == replace(before, state=after, age=0)


@pytest.mark.parametrize("state", [UNPROVEN, PROVING, ESTABLISHED])
def test_udp_proves_itself_too(kernel: Kernel, state: FlowState) -> None:
    flow_hash = read_tuple(udp()).hash
    kernel.put(flow_hash, entry(state=state, age=1))
    kernel.run(udp())
    later = LATER[state][PACKETS.index("A")]
    assert kernel.entry(flow_hash) == entry(state=STREAM if state is PROVING else later)


def test_a_stream_stays_one(kernel: Kernel) -> None:
    flow_hash = read_tuple(udp()).hash
    kernel.put(flow_hash, entry(state=STREAM, age=1))
    kernel.run(udp())
    assert kernel.entry(flow_hash) == entry(state=STREAM)


def test_a_flow_within_one_tick_proves_nothing(kernel: Kernel) -> None:
    for flags in ("S", "A", "PA", "A"):
        kernel.run(tcp(flags=flags))
    recorded = kernel.entry(HASH)
    assert recorded is not None and recorded.state is UNPROVEN


@pytest.mark.parametrize("state", list(SAME_TICK))
def test_a_port_used_again_after_its_flows_time_begins_another(kernel: Kernel, state: FlowState) -> None:
    """To the tick; and only a SYN does that, or a silent connection would move."""
    chosen = maglev_choice(WEB, HASH)
    other = next(real for real in WEB.reals if real != chosen)
    kept = kernel.timeout(state)
    for age, flags, verdict, real in (
        (kept, "S", "forwarded_flow", other),
        (kept + 1, "A", "forwarded_flow", other),
        (kept + 1, "SF", "forwarded_flow", other),
        (kept + 1, "SA", "forwarded_flow", other),
        (kept + 1, "S", "forwarded_new", chosen),
    ):
        kernel.put(HASH, entry(other.address, state=state, age=age))
        assert kernel.run(tcp(flags=flags)).verdict == verdict, (age, flags)
        recorded = kernel.entry(HASH)
        assert recorded is not None and recorded.real == real, (age, flags)


@pytest.mark.parametrize("state", [UNPROVEN, STREAM])
def test_datagrams_after_a_long_silence_begin_another_flow(kernel: Kernel, state: FlowState) -> None:
    flow = read_tuple(udp())
    chosen = maglev_choice(WEB, flow.hash)
    other = next(real for real in WEB.reals if real != chosen)
    for age, verdict, real in (
        (kernel.timeout(state) + 1, "forwarded_flow", other),
        (UDP_OVER_TICKS, "forwarded_flow", other),
        (UDP_OVER_TICKS + 1, "forwarded_new", chosen),
    ):
        kernel.put(flow.hash, entry(other.address, state=state, age=age))
        assert kernel.run(udp()).verdict == verdict, age
        recorded = kernel.entry(flow.hash)
        assert recorded is not None and recorded.real == real, age


def test_datagrams_of_a_flow_that_is_kept_for_longer_go_on(kernel: Kernel) -> None:
    flow = read_tuple(udp())
    kernel.maps.settings["timeout"][0][STREAM] = 2 * UDP_OVER_TICKS
    for age, verdict in ((2 * UDP_OVER_TICKS, "forwarded_flow"), (2 * UDP_OVER_TICKS + 1, "forwarded_new")):
        kernel.put(flow.hash, entry(state=STREAM, age=age))
        assert kernel.run(udp()).verdict == verdict, age


def test_promotion_over_real_ticks(ticking: Kernel) -> None:
    """By the kernel's own clock: one packet in each of three different ticks establishes a flow."""
    frame = frames.tcp(STICKY_VIP)  # always looked up
    for _ in range(20):
        begun, states = ticking.tick(), []
        ticking.clear_flows()
        for _ in range(4):
            started = ticking.tick()
            ticking.run(frame)
            recorded = ticking.entry(read_tuple(frame).hash)
            states.append(recorded and recorded.state)
            wait_for_next_tick(ticking, started)
        if ticking.tick() - begun & 0xFFFF < ticking.timeout(UNPROVEN):
            break  # else we stood still meanwhile, and the entry may have expired
    assert states == [UNPROVEN, PROVING, ESTABLISHED, ESTABLISHED]


def wait_for_next_tick(kernel: Kernel, tick: int) -> None:
    """Spins until a tick after any that a packet since `tick` can have seen: some milliseconds."""
    seen = kernel.tick()
    while kernel.tick() == seen:
        pass
    assert kernel.tick() != tick


def test_the_tick_is_the_kernels(ticking: Kernel) -> None:
    before = ticking.tick()
    frame = frames.tcp(STICKY_VIP)
    ticking.run(frame)
    word = int(ticking.maps.flows[ticking.sets_of(read_tuple(frame).hash)[0]]["value"].max())
    recorded = word >> abi.FLOW_TICK_SHIFT & 0xFFFF
    assert (recorded - before) & 0xFFFF <= (ticking.tick() - before) & 0xFFFF


def test_connection_from_syn_to_reuse(kernel: Kernel) -> None:
    """A client that comes back with the same port finds the same real, and proves itself anew."""
    verdicts, states = [], []
    for flags in ("S", "A", "FA", "A", "S"):
        verdicts.append(kernel.run(tcp(flags=flags)).verdict)
        recorded = kernel.entry(HASH)
        assert recorded is not None
        states.append(recorded.state)
    assert verdicts == ["forwarded_new"] + ["forwarded_flow"] * 4
    assert states == [UNPROVEN, UNPROVEN, CLOSING, CLOSING, UNPROVEN]


@pytest.mark.parametrize("flags", ["S", "SA", "A"])
@pytest.mark.parametrize("state", list(SAME_TICK))
@pytest.mark.parametrize("second", [FIRST, SECOND])
def test_rehash_replaces_the_entry_in_place(
    kernel: Kernel, flags: str, state: FlowState, second: bool
) -> None:
    kernel.install(WEB_11_DOWN)
    if second:
        occupy(kernel, kernel.sets_of(HASH)[FIRST])
    kernel.put(HASH, entry(state=state, age=5, second=second), way=2)
    assert kernel.run(tcp(flags=flags)).verdict == "forwarded_rehashed"
    chosen = maglev_choice(WEB_11_DOWN.service("web"), HASH)
    assert kernel.entry(HASH) == Entry("web", chosen, UNPROVEN, 0, second)
    assert kernel.run(tcp(flags="A")).verdict == "forwarded_flow"


@pytest.mark.parametrize("flags", ["FA", "R", "SF"])
def test_the_end_of_a_flow_whose_real_is_down_changes_nothing(kernel: Kernel, flags: str) -> None:
    kernel.install(WEB_11_DOWN)
    kernel.put(HASH, entry(age=9))
    before = kernel.entry(HASH)
    assert kernel.run(tcp(flags=flags)).verdict == "forwarded_ending"
    assert kernel.entry(HASH) == before


def test_a_flow_is_looked_up_in_one_tick_of_so_many(ticking: Kernel) -> None:
    """A known flow of another real than its stable slot's: only the sampled packets follow the entry."""
    frame = frames.tcp(flags="A")
    known = entry(next(r.address for r in WEB.reals if r != maglev_choice(WEB, read_tuple(frame).hash)))
    verdicts: dict[int, str | None] = {}  # by the tick's place among so many
    deadline = time.monotonic() + 120
    while len(verdicts) < SAMPLE and time.monotonic() < deadline:
        tick = ticking.tick()
        ticking.clear_flows()
        ticking.put(read_tuple(frame).hash, known)
        verdict = ticking.run(frame).verdict
        if ticking.tick() == tick:  # else nobody knows in which tick the packet came
            assert verdicts.setdefault(tick % SAMPLE, verdict) == verdict
    assert sorted(map(str, verdicts.values())) == ["forwarded_flow"] + ["forwarded_stable"] * (SAMPLE - 1)


def test_a_flow_stays_when_its_real_comes_back(kernel: Kernel) -> None:
    """Once re-hashed, the connection is the new real's, however the table changes back."""
    kernel.put(HASH, entry())
    kernel.change(WEB_11_DOWN)
    moved = kernel.run(tcp(flags="A")).frame[:6]
    kernel.change(WORLD)
    again = kernel.run(tcp(flags="A"))
    assert (again.verdict, again.frame[:6]) == ("forwarded_flow", moved)


def test_known_flow_with_no_real_up_keeps_its_entry(kernel: Kernel) -> None:
    flow_hash = read_tuple(tcp(DARK_VIP)).hash
    dark = WORLD.service("dark")
    known = Entry("dark", dark.reals[0], ESTABLISHED, age=3)
    kernel.put(flow_hash, known)
    assert kernel.run(tcp(DARK_VIP, flags="A")).verdict == "no_backend"
    assert kernel.entry(flow_hash) == known


@pytest.mark.parametrize("state", list(SAME_TICK))
def test_only_a_fragments_entry_leads_fragments(kernel: Kernel, state: FlowState) -> None:
    """An entry of that name that isn't about fragments is a flow whose hash happens to be the same."""
    later = lying(frames.udp(), IP_AT + 6, b"\0\5")
    kernel.put(fragment_name(later), entry(state=state))
    assert kernel.run(later).verdict == "fragment_unknown"
    kernel.put(fragment_name(later), entry(state=FlowState.FRAGMENT))
    assert kernel.run(later).verdict == "forwarded_fragment"


def test_an_ending_unknown_flow_is_not_recorded(kernel: Kernel) -> None:
    for flags in ("FA", "R", "SF"):
        assert kernel.run(tcp(flags=flags)).verdict == "forwarded_ending"
    assert not len(kernel.hashes())


def test_every_torn_bit_is_a_miss(kernel: Kernel) -> None:
    for bit in range(64):
        kernel.clear_flows()
        kernel.put(HASH, entry(), tear=1 << bit)
        assert kernel.run(tcp(flags="A")).verdict == "forwarded_new", bit


def test_a_word_without_its_valid_bit_is_a_miss(kernel: Kernel) -> None:
    value = kernel.value_of(entry()) & ~abi.FLOW_VALID
    kernel.put_word(kernel.sets_of(HASH)[0], 0, HASH, value)
    assert kernel.run(tcp(flags="A")).verdict == "forwarded_new"


def test_an_entry_of_a_backend_beyond_its_service_is_rehashed(kernel: Kernel) -> None:
    """A local index past the service's run of records is never followed."""
    room = int(kernel.maps.services["backends"][0]) >> abi.BACKEND_ROOM_SHIFT
    for local in (room, room + 1, (1 << abi.FLOW_LOCAL_BITS) - 1):
        kernel.clear_flows()
        kernel.put_word(kernel.sets_of(HASH)[0], 0, HASH, kernel.value_of(entry()) & ~0x7FFF | local)
        assert kernel.run(tcp(flags="A")).verdict == "forwarded_rehashed"
        assert kernel.entry(HASH) == Entry("web", maglev_choice(WEB, HASH), UNPROVEN)


class Place(NamedTuple):
    """One of the eight entries that a flow may get."""

    second: bool
    way: int


PLACES = [Place(second, way) for second in (FIRST, SECOND) for way in range(abi.FLOW_WAYS)]


def fill(kernel: Kernel, rows: dict[Place, tuple[FlowState, int] | None]) -> None:
    """Other flows' entries (state, age) in both sets of the flow; None leaves one empty."""
    sets = kernel.sets_of(HASH)
    assert sets[0] != sets[1]
    for number, place in enumerate(PLACES):
        row = rows.get(place, (ESTABLISHED, 0))
        if row is not None:
            value = kernel.value_of(entry(state=row[0], age=row[1]))
            kernel.put_word(sets[place.second], place.way, HASH ^ (number + 1) << 50, value)


def place_taken(kernel: Kernel) -> Place | None:
    """Where the flow's entry is."""
    sets = kernel.sets_of(HASH)
    for place in PLACES:
        tag, value = kernel.maps.flows[sets[place.second], place.way].tolist()
        if value and tag ^ value == HASH:
            return place
    return None


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("row", [None, (UNPROVEN, 0), (PROVING, 0), (CLOSING, 0)])
def test_any_unestablished_entry_makes_room(
    kernel: Kernel, place: Place, row: tuple[FlowState, int] | None
) -> None:
    fill(kernel, {place: row})
    assert kernel.run(tcp()).verdict == "forwarded_new"
    assert place_taken(kernel) == place


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("state", list(FlowState))
def test_expiry_to_the_tick(kernel: Kernel, place: Place, state: FlowState) -> None:
    """One tick past its timeout an entry goes before any younger one, and an established one only then."""
    timeout = kernel.timeout(state)
    other = PLACES[PLACES.index(place) - 1]
    for age, expected in ((timeout, other), (timeout + 1, place)):
        kernel.clear_flows()
        # Unseen for longer than the one under test, but not expired.
        fill(kernel, {place: (state, age), other: (PROVING, kernel.timeout(PROVING))})
        kernel.run(tcp())
        if state in (UNPROVEN, PROVING) and age == timeout:
            continue  # two of equal worth
        assert place_taken(kernel) == expected


def test_established_entries_are_never_replaced(kernel: Kernel) -> None:
    fill(kernel, dict.fromkeys(PLACES, (ESTABLISHED, kernel.timeout(ESTABLISHED))))
    before = kernel.maps.flows.copy()
    assert kernel.run(tcp()).verdict == "forwarded_unrecorded"
    assert (kernel.maps.flows == before).all()


def test_order_of_replacement(kernel: Kernel) -> None:
    """Empty (first set, then second), expired, then the longest unseen of all that are not established."""
    expired = kernel.timeout(UNPROVEN) + 1
    rows: dict[Place, tuple[FlowState, int] | None] = {
        Place(FIRST, 1): None,
        Place(SECOND, 2): (UNPROVEN, 2),
        Place(FIRST, 3): (UNPROVEN, 1),
        Place(SECOND, 0): (UNPROVEN, expired),
        Place(FIRST, 0): (PROVING, 3),
    }
    order = []
    while place := _replaced(kernel, rows):
        order.append(place)
        rows[place] = (ESTABLISHED, 0)
    assert order == [
        Place(FIRST, 1),
        Place(SECOND, 0),
        Place(FIRST, 0),
        Place(SECOND, 2),
        Place(FIRST, 3),
    ]


def _replaced(kernel: Kernel, rows: dict[Place, tuple[FlowState, int] | None]) -> Place | None:
    kernel.clear_flows()
    fill(kernel, rows)
    kernel.run(tcp())
    return place_taken(kernel)


def test_ages_are_counted_across_the_wrap(kernel: Kernel) -> None:
    """The frozen tick is 0, so an entry seen one tick ago says 65535."""
    assert kernel.tick() == 0
    word = kernel.value_of(entry(age=1))
    assert word >> abi.FLOW_TICK_SHIFT & 0xFFFF == 0xFFFF
    kernel.put(HASH, entry(state=UNPROVEN, age=1))
    kernel.run(tcp(flags="A"))
    assert kernel.entry(HASH) == entry(state=PROVING)


@pytest.mark.parametrize("ahead", [1, 16])
def test_an_entry_from_the_next_tick_is_fresh(kernel: Kernel, ahead: int) -> None:
    """Another CPU may refresh an established flow after this one has read the clock: it must not expire."""
    fill(kernel, dict.fromkeys(PLACES, (ESTABLISHED, -ahead)))
    assert kernel.run(tcp()).verdict == "forwarded_unrecorded"


def test_a_new_world_leaves_no_trace_of_the_old(kernel: Kernel) -> None:
    kernel.run(tcp())
    kernel.install(WEB_11_DOWN)
    assert not len(kernel.hashes())
    assert not WEB_11_DOWN.service("web").real(REAL_11).up
