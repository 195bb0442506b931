"""What `KernelDataplane` leaves in real BPF maps, over sequences of wanted states, moves and restarts.

The oracle is a fresh install: whatever led to a state, what a packet can see of it must be the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vc5py.core import maglev
from vc5py.core.identity import backend_identity, real_identity, service_identity
from vc5py.dataplane import abi, flows, maps
from vc5py.dataplane.base import Neighbour, Traffic
from vc5py.dataplane.installed import MIN_ROOM
from vc5py.dataplane.kernel import QUARANTINE_S, KernelDataplane
from vc5py.dataplane.links import Record
from vc5py.dataplane.maps import Maps, Sizes
from vc5py.dataplane.policy import FRAGMENT_TIMEOUT_S
from vc5py.dataplane.ports import PortTable
from vc5py.dataplane.servicemap import ServiceMap
from vc5py.dataplane.tables import first_slot, size
from vc5py.dataplane.ticks import TickClock
from vc5py.errors import DataplaneError
from vc5py.model import (
    BackendId,
    BackendState,
    Desired,
    Forwarding,
    ForwardMode,
    Protocol,
    ServiceState,
    VirtualServiceId,
)

SIZES = Sizes(
    flow_sets=64,
    services=32,
    backends=256,
    slot_lines=1024,
    service_sets4=16,
    service_sets6=16,
    cpus=2,
    interfaces=16,
)
TICKS = TickClock(250)
VIP, VIP2 = IPv4Address("192.0.2.1"), IPv4Address("192.0.2.2")
REALS = tuple(IPv4Address("10.0.0.10") + n for n in range(40))
HTTP, HTTPS, DNS = (80, Protocol.TCP), (443, Protocol.TCP), (53, Protocol.UDP)

Key = tuple[int, ...]  # as it is stored
# What a packet can find out: by key, the service, its backends by identity with their link words and
# interfaces, and the backend's identity in every slot of its table, stable or not.
Visible = dict[Key, tuple[int, dict[int, tuple[int, int]], tuple[int, ...]]]


def real_at(n: int) -> Neighbour:
    return Neighbour(2 + n % 2, abi.word_to_mac(0x020000000001 + (n << 40)))


@dataclass
class Bench:
    """Maps with a data plane over them that can be restarted, and a clock that stands still."""

    maps: Maps
    now: float = 100.0
    dataplane: KernelDataplane = field(init=False)

    def __post_init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        self.dataplane = KernelDataplane(self.maps, TICKS, clock=lambda: self.now)

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.dataplane.maintain(self.now)

    def meet(self, *reals: int) -> None:
        for n in reals or range(len(REALS)):
            self.dataplane.set_neighbour(REALS[n], real_at(n))

    def lookup(self, key: Key) -> int | None:
        return dict(ServiceMap(self.maps.services4).items()).get(key)

    def installed_keys(self) -> set[Key]:
        return {key for key, _ in ServiceMap(self.maps.services4).items()}

    def run_of(self, index: int) -> tuple[int, int]:
        word = int(self.maps.services["backends"][index])
        return word & 0xFFFFFFFF, word >> abi.BACKEND_ROOM_SHIFT

    def slots(self, index: int) -> list[int]:
        """The service's table as local indices, read as the XDP program reads it."""
        word = int(self.maps.services["table"][index])
        size = 1 << (word >> abi.TABLE_LOG2_SHIFT & 31)
        line = word & 0xFFFFFFFF
        lines = self.maps.slots[line : line + max(1, size // abi.SLOTS_PER_LINE)]
        table: list[int] = (lines.ravel()[:size] & ~np.uint16(abi.SLOT_UNSTABLE)).tolist()
        return table

    def visible(self) -> Visible:
        seen: Visible = {}
        for key in self.installed_keys():
            index = self.lookup(key)
            assert index is not None
            if not key[-1] >> 32 & 0xFFFFFF:
                assert index == 0
                seen[key] = (0, {}, ())
                continue
            base, room = self.run_of(index)
            records = self.maps.backends[base : base + room]
            used = [row for row in records if int(row["link"]) >> 48 & ~abi.BACKEND_RESTING]
            links = {int(r["identity"]): (int(r["link"]), int(r["place"])) for r in used}
            assert len(links) == len(used)
            table = tuple(
                0 if slot == abi.SLOT_NONE else int(records["identity"][slot]) for slot in self.slots(index)
            )
            seen[key] = (int(self.maps.services["identity"][index]), links, table)
        return seen

    def place(self, backend: BackendId) -> tuple[int, int, int]:
        """Service index, local index and index among all of an installed backend."""
        mark = self.dataplane.mark_of(backend)
        assert mark is not None and mark & abi.PROBE_MARK_MASK == abi.PROBE_MARK
        at = mark & ~abi.PROBE_MARK_MASK
        for index in np.flatnonzero(self.maps.services["identity"]).tolist():
            base, room = self.run_of(index)
            if base <= at < base + room:
                return index, at - base, at
        raise AssertionError(f"{backend} is in no service's run")

    def record_flow(self, backend: BackendId, flow_hash: int) -> tuple[int, int]:
        """Writes an entry for the backend into the flow's first set; returns where."""
        index, local, _ = self.place(backend)
        at = flow_hash % self.maps.sizes.flow_sets, flow_hash % abi.FLOW_WAYS
        value = flows.owner(index, local) | abi.FlowState.ESTABLISHED << abi.FLOW_STATE_SHIFT
        value |= abi.FLOW_VALID | TICKS.now() << abi.FLOW_TICK_SHIFT
        self.maps.flows[at]["value"], self.maps.flows[at]["tag"] = value, value ^ flow_hash
        return at

    def flow_goes_to(self, key: Key, at: tuple[int, int]) -> int | None:
        """The identity of the backend that the entry sends packets for this key to, None: to no one."""
        value, index = int(self.maps.flows[at]["value"]), self.lookup(key)
        if not value & abi.FLOW_VALID or index is None:
            return None
        if value >> abi.FLOW_SERVICE_SHIFT & abi.MAX_SERVICES - 1 != index:
            return None
        base, room = self.run_of(index)
        local = value & (1 << abi.FLOW_LOCAL_BITS) - 1
        if local >= room or not int(self.maps.backends["link"][base + local]) >> 48 & abi.BACKEND_UP:
            return None
        return int(self.maps.backends["identity"][base + local])


@contextmanager
def open_bench(sizes: Sizes = SIZES) -> Iterator[Bench]:
    made = maps.create(sizes)
    try:
        yield Bench(made)
    finally:
        made.close()


@pytest.fixture
def bench() -> Iterator[Bench]:
    with open_bench() as one:
        yield one


def backend(n: int, *, name: str = "web", vip: IPv4Address = VIP) -> BackendId:
    return BackendId(name, vip, REALS[n])


def service(
    up: str,
    *,
    name: str = "web",
    vip: IPv4Address = VIP,
    ports: tuple[tuple[int, Protocol], ...] = (HTTP,),
    weights: dict[int, int] | None = None,
    first: int = 0,
) -> ServiceState:
    """`up` says of each real in turn whether it is up (`+`), down (`-`) or not there (anything else)."""
    backends = tuple(
        BackendState(backend(n, name=name, vip=vip), sign == "+", (weights or {}).get(n, int(sign == "+")))
        for n, sign in enumerate(up, start=first)
        if sign in "+-"
    )
    return ServiceState(VirtualServiceId(name, vip), ports, backends)


def desired(*services: ServiceState) -> Desired:
    return Desired(services)


def key_of(vip: IPv4Address, port: int, protocol: int) -> Key:
    return (abi.service_key(port, protocol) | int.from_bytes(vip.packed, "little"),)


def http_key(vip: IPv4Address = VIP) -> Key:
    return key_of(vip, 80, 6)


def fresh(wanted: Desired) -> Visible:
    with open_bench() as other:
        other.meet()
        other.dataplane.apply(wanted)
        return other.visible()


# One service


def test_installed_service_is_what_was_wanted(bench: Bench) -> None:
    bench.meet(0, 1)
    bench.dataplane.apply(desired(service("+-+", ports=(HTTP, DNS))))
    mac = [abi.mac_to_word(real_at(n).mac) for n in range(3)]
    up, reachable = abi.BACKEND_UP, abi.BACKEND_REACHABLE | abi.BACKEND_ON_LINK
    identity, links, table = bench.visible()[http_key()]
    assert len(table) == maglev.table_size(3)
    assert bench.installed_keys() == {http_key(), key_of(VIP, 53, 17), key_of(VIP, 0, 0)}
    assert identity == service_identity(VirtualServiceId("web", VIP))
    assert links == {
        backend_identity(backend(0)): (mac[0] | (up | reachable) << 48, real_at(0).ifindex),
        backend_identity(backend(1)): (mac[1] | reachable << 48, real_at(1).ifindex),
        backend_identity(backend(2)): (up << 48, 0),
    }
    picks = maglev.build([real_identity(REALS[0]), real_identity(REALS[2])], [1, 1], len(table))
    assert table == tuple(backend_identity(backend((0, 2)[pick])) for pick in picks)


def test_service_without_a_backend_that_is_up_has_no_table(bench: Bench) -> None:
    for up in ("--", "++", "--"):
        bench.dataplane.apply(desired(service(up)))
    _, _, table = bench.visible()[http_key()]
    assert table == (0,)
    assert int(bench.maps.services["table"][bench.place(backend(0))[0]]) == 0


def test_weights_are_honoured_and_weight_0_keeps_its_flows(bench: Bench) -> None:
    bench.dataplane.apply(desired(service("+++", weights={0: 3, 1: 0})))
    _, links, table = bench.visible()[http_key()]
    counts = [table.count(backend_identity(backend(n))) for n in range(3)]
    assert counts == [len(table) * 3 // 4, 0, len(table) // 4]
    assert links[backend_identity(backend(1))][0] >> 48 & abi.BACKEND_UP


def test_a_change_of_health_moves_only_the_slots_of_that_real(bench: Bench) -> None:
    """Also where fewer reals would do with a smaller table: another size would move nearly all slots."""
    bench.dataplane.apply(desired(service("+++++")))
    _, _, before = bench.visible()[http_key()]
    bench.dataplane.apply(desired(service("++-++")))
    _, _, after = bench.visible()[http_key()]
    dead = backend_identity(backend(2))
    assert len(before) == len(after)
    assert dead in before and dead not in after
    moved = sum(was != now for was, now in zip(before, after, strict=True) if was != dead)
    assert moved < len(before) * 0.1


def test_settings_hold_the_timeouts_in_ticks(bench: Bench) -> None:
    timeouts = bench.maps.settings["timeout"][0].tolist()
    seconds = [120, 120, 10, FRAGMENT_TIMEOUT_S, 3600, 300]  # model.Timeouts, in the order of FlowState
    assert timeouts == [*(round(s / TICKS.tick_s) for s in seconds), 0, 0]


def test_applying_twice_writes_nothing(bench: Bench) -> None:
    bench.dataplane.apply(desired(service("+-"), service("+", name="dns", vip=VIP2)))
    before = [array.tobytes() for array in (bench.maps.services, bench.maps.backends, bench.maps.slots)]
    bench.dataplane.apply(desired(service("+-"), service("+", name="dns", vip=VIP2)))
    assert before == [
        array.tobytes() for array in (bench.maps.services, bench.maps.backends, bench.maps.slots)
    ]


def test_removed_service_leaves_nothing_that_a_packet_finds(bench: Bench) -> None:
    bench.dataplane.apply(desired(service("++", ports=(HTTP, HTTPS)), service("+", name="dns", vip=VIP2)))
    _, _, at = bench.place(backend(0))
    bench.dataplane.apply(desired(service("+", name="dns", vip=VIP2)))
    assert bench.installed_keys() == {http_key(VIP2), key_of(VIP2, 0, 0)}
    assert bench.maps.backends["link"][at] == abi.BACKEND_RESTING << 48
    assert bench.dataplane.mark_of(backend(0)) is None
    assert not bench.dataplane.was_up(backend(0))


def test_vip_stays_known_while_another_service_uses_it(bench: Bench) -> None:
    bench.dataplane.apply(desired(service("+"), service("+", name="dns", ports=(DNS,))))
    bench.dataplane.apply(desired(service("+")))
    assert bench.installed_keys() == {http_key(), key_of(VIP, 0, 0)}


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_port_moves_from_one_service_to_another(bench: Bench, order: tuple[int, int]) -> None:
    before = service("+", ports=(HTTP, HTTPS)), service("+", name="other", ports=(DNS,))
    after = service("+", ports=(HTTPS,)), service("+", name="other", ports=(DNS, HTTP))
    bench.dataplane.apply(desired(*(before[i] for i in order)))
    bench.dataplane.apply(desired(*(after[i] for i in order)))
    identity, _, _ = bench.visible()[http_key()]
    assert identity == service_identity(VirtualServiceId("other", VIP))
    assert len(bench.installed_keys()) == 4


# Space: room of a service, quarantine, shared tables


def test_service_grows_beyond_its_room_and_keeps_flows_and_counters(bench: Bench) -> None:
    bench.dataplane.apply(desired(service("+" * MIN_ROOM)))
    flow = bench.record_flow(backend(1), 0x1234)
    index, local, old_at = bench.place(backend(1))
    bench.maps.backend_counts["packets"][:, old_at] = 3, 4
    bench.maps.backend_counts["bytes"][:, old_at] = 30, 40
    bench.dataplane.apply(desired(service("+" * (MIN_ROOM + 1))))
    assert bench.place(backend(1))[:2] == (index, local)
    assert bench.place(backend(1))[2] != old_at
    bench.pass_time(0)
    assert bench.dataplane.counters().traffic[backend(1)] == Traffic(7, 70)
    assert bench.dataplane.counters().flows[backend(1)] == 1
    assert bench.flow_goes_to(http_key(), flow) == backend_identity(backend(1))


def test_what_a_service_has_outgrown_is_used_again() -> None:
    with open_bench(Sizes(64, 32, 7 * MIN_ROOM, 1024, 16, 16, 2, 16)) as bench:
        for count in (MIN_ROOM, 2 * MIN_ROOM, 4 * MIN_ROOM):
            bench.dataplane.apply(desired(service("+" * count)))
            bench.pass_time(QUARANTINE_S)
        wanted = desired(service("+" * count), service("+" * 2 * MIN_ROOM, name="other", vip=VIP2))
        bench.dataplane.apply(wanted)
        assert bench.visible() == fresh_without_neighbours(wanted)


def test_counters_of_a_new_backend_begin_at_0(bench: Bench) -> None:
    bench.dataplane.apply(desired(service("++")))
    bench.maps.backend_counts["packets"][1, bench.place(backend(1))[2]] = 9
    bench.dataplane.apply(desired(service("+")))
    bench.pass_time(QUARANTINE_S)
    bench.dataplane.apply(desired(service("+.+")))
    assert bench.dataplane.counters().traffic == {backend(0): Traffic(0, 0), backend(2): Traffic(0, 0)}


def test_place_of_a_removed_backend_rests_until_its_flows_are_purged(bench: Bench) -> None:
    bench.dataplane.apply(desired(service("++")))
    flow, other = bench.record_flow(backend(1), 5), bench.record_flow(backend(0), 6)
    _, local, _ = bench.place(backend(1))
    bench.dataplane.apply(desired(service("+.+")))
    assert bench.place(backend(2))[1] != local
    assert bench.flow_goes_to(http_key(), flow) is None
    bench.pass_time(QUARANTINE_S - 0.01)
    bench.dataplane.apply(desired(service("+.++")))
    assert bench.place(backend(3))[1] != local
    bench.pass_time(0.01)
    bench.dataplane.apply(desired(service("+.+++")))
    assert bench.place(backend(4))[1] == local
    assert bench.flow_goes_to(http_key(), flow) is None
    assert bench.flow_goes_to(http_key(), other) == backend_identity(backend(0))


def test_place_of_a_removed_service_rests_until_its_flows_are_purged(bench: Bench) -> None:
    bench.dataplane.apply(desired(service("+")))
    flow = bench.record_flow(backend(0), 5)
    index, _, at = bench.place(backend(0))
    bench.dataplane.apply(desired(service("+", name="second")))
    assert bench.place(backend(0, name="second"))[0] != index
    bench.pass_time(QUARANTINE_S)
    bench.dataplane.apply(desired(service("+", name="second"), service("+", name="third", ports=(DNS,))))
    assert bench.place(backend(0, name="third"))[::2] == (index, at)
    assert bench.flow_goes_to(key_of(VIP, 53, 17), flow) is None


def test_services_with_the_same_reals_share_a_table(bench: Bench) -> None:
    bench.dataplane.apply(desired(service("++"), service("++", name="other", vip=VIP2)))
    tables = bench.maps.services["table"][bench.maps.services["identity"] != 0]
    assert len(tables) == 2 and tables[0] == tables[1] != 0


def test_shared_table_outlives_one_of_its_users(bench: Bench) -> None:
    both = service("++"), service("++", name="other", vip=VIP2)
    bench.dataplane.apply(desired(*both))
    before = bench.visible()[http_key(VIP2)]
    for up in ("+-", "-+", "+++", "-++", "+-+"):
        bench.dataplane.apply(desired(service(up), both[1]))
        bench.pass_time(2 * QUARANTINE_S)
        assert bench.visible()[http_key(VIP2)] == before


def test_many_reals_come_up_one_by_one_within_a_moment(bench: Bench) -> None:
    """More tables are written than the arena holds, before any has rested its time."""
    for count in range(1, 33):
        bench.dataplane.apply(desired(service("+" * count + "-" * (32 - count))))
    assert bench.visible() == fresh_without_neighbours(desired(service("+" * 32)))


def fresh_without_neighbours(wanted: Desired) -> Visible:
    with open_bench() as other:
        other.dataplane.apply(wanted)
        return other.visible()


@pytest.mark.parametrize(
    ("sizes", "what"),
    [
        (Sizes(64, 1, 64, 1024, 16, 16, 2, 16), "services"),
        (Sizes(64, 32, MIN_ROOM, 1024, 16, 16, 2, 16), "backends"),
        (Sizes(64, 32, 256, 17, 16, 16, 2, 16), "lines of Maglev slots"),
    ],
)
def test_what_has_no_room_is_refused_and_tried_again_in_vain_without_harm(sizes: Sizes, what: str) -> None:
    first, second = service("+"), service(".+", name="other", vip=VIP2)
    with open_bench(sizes) as bench:
        bench.dataplane.apply(desired(first))
        before = bench.visible()
        for _ in range(40):
            with pytest.raises(DataplaneError, match=f"no room for .* {what}"):
                bench.dataplane.apply(desired(first, second))
        assert {key: seen for key, seen in bench.visible().items() if key in before} == before
        bench.dataplane.counters()
        bench.dataplane.apply(desired(first))
        bench.pass_time(QUARANTINE_S)
        assert bench.visible() == before
        bench.dataplane.apply(desired())
        bench.pass_time(QUARANTINE_S)
        bench.dataplane.apply(desired(second))
        assert http_key(VIP2) in bench.visible()


def test_what_a_refused_change_has_written_is_taken_back() -> None:
    """Room for one table: what leaves the members alone is done, the new one is refused."""
    first = service("++")
    tunnel = replace(first.backends[0], forwarding=Forwarding(ForwardMode.IPIP))
    refused = replace(first, backends=(tunnel, first.backends[1], *service(".." + "+").backends))
    with open_bench(Sizes(64, 32, 256, 17, 16, 16, 2, 16)) as bench:
        bench.dataplane.apply(desired(first))
        before = bench.visible()
        records = bench.maps.backends[["link", "how"]][bench.place(backend(0))[2] :][:2].copy()
        for _ in range(2):
            with pytest.raises(DataplaneError, match="Maglev slots"):
                bench.dataplane.apply(desired(refused))
        assert bench.dataplane.mark_of(backend(2)) is not None
        bench.dataplane.apply(desired(first))
        assert bench.visible() == before
        assert (bench.maps.backends[["link", "how"]][bench.place(backend(0))[2] :][:2] == records).all()
        assert bench.dataplane.mark_of(backend(2)) is None
        assert set(bench.dataplane.counters().traffic) == {backend(0), backend(1)}


def test_a_port_that_a_refused_change_has_taken_goes_back() -> None:
    """Room for two services."""
    first = service("++")
    heir, refused = service("++", name="heir"), service("..+", name="more", vip=VIP2)
    with open_bench(Sizes(64, 32, 256, 33, 16, 16, 2, 16)) as bench:
        bench.dataplane.apply(desired(first))
        before = bench.visible()
        with pytest.raises(DataplaneError, match="Maglev slots"):
            bench.dataplane.apply(desired(heir, refused))
        assert bench.visible() != before
        bench.dataplane.apply(desired(first))
        assert bench.visible() == before


def test_same_values_in_another_order_are_nothing_new(bench: Bench) -> None:
    one, other = service("+-"), service("+", name="dns", vip=VIP2)
    bench.dataplane.apply(desired(one, other))
    before = bench.visible(), bench.maps.services.tobytes(), bench.maps.slots.tobytes()
    bench.dataplane.apply(desired(other, one))
    assert before == (bench.visible(), bench.maps.services.tobytes(), bench.maps.slots.tobytes())
    bench.dataplane.apply(desired(one))
    assert bench.installed_keys() == {http_key(), key_of(VIP, 0, 0)}
    bench.dataplane.apply(desired(other))
    assert bench.installed_keys() == {http_key(VIP2), key_of(VIP2, 0, 0)}


# Neighbours and interfaces


def test_neighbour_is_written_to_every_backend_on_the_real(bench: Bench) -> None:
    both = service("+"), service("-", name="other", vip=VIP2)
    bench.dataplane.apply(desired(*both))
    bench.dataplane.set_neighbour(REALS[0], Neighbour(7, "02:00:00:00:00:77"))
    flags = abi.BACKEND_REACHABLE | abi.BACKEND_ON_LINK
    word = abi.mac_to_word("02:00:00:00:00:77") | flags << 48
    links = [link for _, links, _ in bench.visible().values() for link in links.values()]
    assert sorted(links) == [(word, 7), (word | abi.BACKEND_UP << 48, 7)]
    bench.dataplane.set_neighbour(REALS[0], None)
    bench.dataplane.set_neighbour(REALS[0], None)
    assert bench.visible()[http_key()][1] == {backend_identity(backend(0)): (abi.BACKEND_UP << 48, 7)}


def test_neighbour_of_a_backend_that_has_gone_is_written_nowhere(bench: Bench) -> None:
    bench.dataplane.apply(desired(service("++"), service("++", name="other", vip=VIP2)))
    places = [bench.place(backend(1))[2], bench.place(backend(1, name="other", vip=VIP2))[2]]
    bench.dataplane.apply(desired(service("+")))
    bench.meet()
    assert bench.maps.backends["link"][places].tolist() == [abi.BACKEND_RESTING << 48] * 2
    bench.dataplane.apply(desired(service("++")))
    assert bench.visible() == fresh(desired(service("++")))


def test_interface_is_ours(bench: Bench) -> None:
    ports, ours = PortTable(bench.maps), abi.mac_to_word("02:00:00:00:00:33") | abi.INTERFACE_OURS << 48
    ports.write({3: Record("02:00:00:00:00:33", bond=7, exit=3)})
    assert bench.maps.interfaces[3].tolist() == (ours, 7, 0)
    assert np.count_nonzero(bench.maps.interfaces["link"]) == 1
    ports.forget_all_but({})
    assert not bench.maps.interfaces["link"].any()


# Readings


def test_counters_are_summed_over_cpus_and_named(bench: Bench) -> None:
    bench.dataplane.apply(desired(service("+-")))
    _, _, at = bench.place(backend(1))
    bench.maps.backend_counts["packets"][:, at] = 1, 2
    bench.maps.backend_counts["bytes"][:, at] = 100, 200
    forwarded = next(v for v in abi.verdicts() if v.name == "forwarded_flow")
    bench.maps.verdict_counts[:, forwarded.number] = 5, 6
    for n in range(3):
        bench.record_flow(backend(n % 2), n)
    assert bench.dataplane.counters().flows_at is None
    assert not any(bench.dataplane.counters().flows.values())
    bench.pass_time(1)
    counters = bench.dataplane.counters()
    assert counters.flows_at == bench.now
    assert counters.traffic == {backend(0): Traffic(0, 0), backend(1): Traffic(3, 300)}
    assert counters.flows == {backend(0): 2, backend(1): 1}
    assert counters.verdicts.keys() == {verdict.name for verdict in abi.verdicts()}
    assert {name: n for name, n in counters.verdicts.items() if n} == {"forwarded_flow": 11}


# A second run over the same maps


def test_restart_adopts_everything(bench: Bench) -> None:
    wanted = desired(service("+-+"), service("+-+", name="other", vip=VIP2))
    bench.meet()
    bench.dataplane.apply(wanted)
    flow = bench.record_flow(backend(2), 77)
    before, place = bench.visible(), bench.place(backend(2))
    bench.maps.backend_counts["packets"][0, place[2]] = 12
    bench.restart()
    assert [bench.dataplane.was_up(backend(n)) for n in range(4)] == [True, False, True, False]
    assert bench.visible() == before
    bench.dataplane.apply(wanted)
    assert bench.visible() == before
    assert bench.place(backend(2)) == place
    assert bench.dataplane.counters().traffic[backend(2)].packets == 12
    assert bench.flow_goes_to(http_key(), flow) == backend_identity(backend(2))


def test_tables_shared_before_a_restart_are_given_back_once(bench: Bench) -> None:
    shared = [service("++", name=f"s{n}", ports=((1000 + n, Protocol.TCP),)) for n in range(3)]
    bench.dataplane.apply(desired(*shared))
    bench.restart()
    bench.dataplane.apply(desired(*shared))
    bench.pass_time(QUARANTINE_S)
    distinct = [service("++", name=f"s{n}", ports=s.ports, first=2 * n) for n, s in enumerate(shared)]
    bench.dataplane.apply(desired(*distinct))
    assert bench.visible() == fresh_without_neighbours(desired(*distinct))


def test_restart_takes_keys_away_that_nobody_wants_any_more(bench: Bench) -> None:
    bench.dataplane.apply(desired(service("+", ports=(HTTP, HTTPS)), service("+", name="gone", vip=VIP2)))
    bench.restart()
    bench.dataplane.apply(desired(service("+")))
    assert bench.installed_keys() == {http_key(), key_of(VIP, 0, 0)}


def test_restart_before_a_purge_sends_no_flow_to_the_wrong_backend(bench: Bench) -> None:
    bench.dataplane.apply(desired(service("++"), service("+", name="gone", ports=(DNS,))))
    gone, left = bench.record_flow(backend(1), 5), bench.record_flow(backend(0, name="gone"), 6)
    bench.dataplane.apply(desired(service("+")))
    bench.restart()
    after = desired(service("+.++++"), service(".+", name="new", ports=(DNS,)))
    bench.dataplane.apply(after)
    assert bench.flow_goes_to(http_key(), gone) is None
    assert bench.flow_goes_to(key_of(VIP, 53, 17), left) is None


def test_backend_that_left_and_came_back_is_up_after_a_restart(bench: Bench) -> None:
    bench.dataplane.apply(desired(service("+++")))
    bench.dataplane.apply(desired(service(".++")))
    bench.pass_time(QUARANTINE_S)
    flow = bench.record_flow(backend(1), 5)
    for up in ("..+", ".++"):
        bench.dataplane.apply(desired(service(up)))
    assert bench.flow_goes_to(http_key(), flow) == backend_identity(backend(1))
    bench.pass_time(2 * QUARANTINE_S)
    bench.restart()
    assert [bench.dataplane.was_up(backend(n)) for n in range(3)] == [False, True, True]
    assert bench.flow_goes_to(http_key(), flow) == backend_identity(backend(1))


def test_new_service_is_told_where_a_known_real_is_after_a_restart(bench: Bench) -> None:
    """Whatever the order of services: the place of the real is read from the old service's record."""
    old, new = service("+", vip=VIP2), service("+", name="new")
    bench.meet()
    bench.dataplane.apply(desired(old))
    bench.restart()
    bench.dataplane.apply(desired(new, old))
    bench.meet()
    assert bench.visible() == fresh(desired(new, old))


def test_after_an_orderly_stop_everything_is_there_but_nothing_is_up(bench: Bench) -> None:
    wanted = desired(service("+-+"), service("++", name="other", vip=VIP2))
    bench.meet()
    bench.dataplane.apply(wanted)
    flow = bench.record_flow(backend(2), 77)
    before = bench.visible()
    bench.dataplane.rest()
    bench.restart()
    assert not any(bench.dataplane.was_up(backend(n)) for n in range(3))
    assert bench.flow_goes_to(http_key(), flow) is None
    bench.dataplane.apply(desired(service("---"), service("--", name="other", vip=VIP2)))
    bench.pass_time(2 * QUARANTINE_S)
    bench.dataplane.apply(wanted)
    assert bench.visible() == before
    assert bench.flow_goes_to(http_key(), flow) == backend_identity(backend(2))


@pytest.mark.parametrize(
    ("share", "lossy", "crowded"), [(0.3, False, False), (0.5, True, False), (1.0, True, True)]
)
def test_restarted_control_plane_knows_how_full_the_flow_table_is(
    bench: Bench, share: float, lossy: bool, crowded: bool
) -> None:
    """... before the first change, which must remember what may have found no place."""
    for up in ("-", "+"):  # a first table of which nothing is known: nothing to remember
        bench.dataplane.apply(desired(service(up)))
    owner = flows.owner(*bench.place(backend(0))[:2])
    value = abi.FLOW_VALID | TICKS.now() << abi.FLOW_TICK_SHIFT | 4 << abi.FLOW_STATE_SHIFT | owner
    bench.maps.flows["value"].reshape(-1)[: int(256 * share)] = value
    bench.restart()
    bench.dataplane.apply(desired(service("++")))
    word = int(bench.maps.services["previous"][0])
    table = bench.maps.slots.reshape(-1)[first_slot(word) :][: size(word)]
    assert bool((table == bench.place(backend(0))[1]).any()) == lossy
    assert bool(int(bench.maps.settings["flags"][0]) & abi.SETTING_CROWDED) == crowded


# Any sequence


Step = tuple[Desired, float, bool]


@st.composite
def any_desired(draw: st.DrawFn) -> Desired:
    services = []
    for vip in (VIP, VIP2):
        owner = draw(st.fixed_dictionaries({p: st.sampled_from(["", "a", "b"]) for p in (HTTP, HTTPS, DNS)}))
        for name in draw(st.permutations("ab")):
            ports = tuple(port for port, who in owner.items() if who == name)
            up = draw(st.text("+-.", min_size=1, max_size=7).filter(lambda text: text.strip(".")))
            if ports:
                services.append(service(up, name=name, vip=vip, ports=ports))
    return desired(*services)


steps = st.lists(
    st.tuples(any_desired(), st.sampled_from([0.0, 0.5, 1.0, 2.0]), st.booleans()), min_size=1, max_size=7
)


@settings(max_examples=60)
@given(steps)
def test_whatever_came_before_the_outcome_is_that_of_a_fresh_install(sequence: list[Step]) -> None:
    with open_bench() as bench:
        bench.meet()
        for wanted, seconds, restart in sequence:
            if restart:
                bench.restart()
            bench.dataplane.apply(wanted)
            bench.meet()
            bench.pass_time(seconds)
        assert bench.visible() == fresh(sequence[-1][0])


@settings(max_examples=60)
@given(steps)
def test_no_flow_ever_goes_to_another_backend_than_its_own(sequence: list[Step]) -> None:
    """... nor does a packet count of one backend become another's, nor start again at 0."""
    with open_bench() as bench:
        bench.meet()
        flow_of: dict[tuple[int, int], BackendId] = {}
        counted: dict[BackendId, int] = {}
        before: set[BackendId] = set()
        for number, (wanted, seconds, restart) in enumerate(sequence):
            if restart:
                bench.restart()
            bench.dataplane.apply(wanted)
            installed = {b.id for s in wanted.services for b in s.backends}
            for at, owner in flow_of.items():
                for key in bench.installed_keys():
                    assert bench.flow_goes_to(key, at) in (None, backend_identity(owner))
            for one in installed:
                _, _, index = bench.place(one)
                packets = bench.dataplane.counters().traffic[one].packets
                assert packets == counted.get(one, 0) or (packets == 0 and one not in before)
                bench.maps.backend_counts["packets"][number % 2, index] += 1
                counted[one] = packets + 1
            for one in sorted(installed):
                flow_hash = (backend_identity(one) >> 8) + number
                flow_of[bench.record_flow(one, flow_hash)] = one
            before = installed
            bench.pass_time(seconds)
