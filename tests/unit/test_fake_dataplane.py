"""The data plane in memory: what it keeps, and what it refuses."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address

import pytest

from vc5py.dataplane.base import Dataplane, Neighbour, Traffic
from vc5py.dataplane.fake import FakeDataplane, Room
from vc5py.errors import DataplaneError
from vc5py.model import BackendId, BackendState, Desired, Protocol, ServiceState, VirtualServiceId

VIP = IPv4Address("192.0.2.1")
REALS = tuple(IPv4Address("10.0.0.1") + n for n in range(4))
HTTP, DNS = (80, Protocol.TCP), (53, Protocol.UDP)


def backend(n: int, *, service: str = "web", up: bool = True, weight: int = 1) -> BackendState:
    return BackendState(BackendId(service, VIP, REALS[n]), up, weight)


def web(*backends: BackendState) -> ServiceState:
    return ServiceState(VirtualServiceId("web", VIP), (HTTP,), backends)


def test_what_is_installed_is_what_was_wanted_last() -> None:
    fake: FakeDataplane = FakeDataplane()
    plane: Dataplane = fake
    plane.apply(Desired((web(backend(0), backend(1, up=False, weight=0)),)))
    assert plane.was_up(backend(0).id)
    assert not plane.was_up(backend(1).id)
    assert not plane.was_up(backend(2).id)
    assert fake.visible() == {
        (VIP, *HTTP): (web().id, frozenset({(REALS[0], 1, backend(0).forwarding)})),
    }
    plane.apply(Desired())
    assert not fake.installed
    assert not fake.visible()
    assert plane.mark_of(backend(0).id) is None


def test_marks_stay_while_a_backend_is_installed_and_are_nobody_elses() -> None:
    fake = FakeDataplane()
    fake.apply(Desired((web(backend(0), backend(1)),)))
    kept = fake.mark_of(backend(1).id)
    fake.apply(Desired((web(backend(1), backend(2), backend(3)),)))
    marks = [fake.mark_of(backend(n).id) for n in (1, 2, 3)]
    assert marks[0] == kept
    assert len(set(marks)) == 3
    assert None not in marks


def test_counters_and_neighbours_are_as_they_were_set() -> None:
    fake = FakeDataplane()
    fake.apply(Desired((web(backend(0), backend(1)),)))
    fake.traffic[backend(0).id], fake.flows[backend(0).id] = Traffic(3, 300), 2
    assert not fake.busy()
    counters = fake.counters()
    assert counters.traffic == {backend(0).id: Traffic(3, 300), backend(1).id: Traffic(0, 0)}
    assert counters.flows == {backend(0).id: 2, backend(1).id: 0}
    fake.set_neighbour(REALS[0], Neighbour(1, "02:00:00:00:00:01"))
    fake.set_neighbour(REALS[1], None)
    assert list(fake.neighbours) == [REALS[0]]


@pytest.mark.parametrize(
    ("services", "announce"),
    [
        ((web(backend(0), backend(0)),), ()),
        ((web(backend(0, service="other")),), ()),
        ((web(backend(0, up=False)),), ()),
        ((web(backend(0, weight=-1)),), ()),
        ((web(), web()), ()),
        ((web(), replace(web(), id=VirtualServiceId("web2", VIP))), ()),
        ((), (VIP,)),
    ],
)
def test_what_makes_no_sense_is_refused(
    services: tuple[ServiceState, ...], announce: tuple[IPv4Address, ...]
) -> None:
    fake = FakeDataplane()
    with pytest.raises(ValueError):
        fake.apply(Desired(services, frozenset(announce)))


def test_what_there_is_no_room_for_changes_nothing() -> None:
    fake = FakeDataplane(Room(services=1, backends=2))
    good = Desired((web(backend(0), backend(1)),))
    fake.apply(good)
    other = ServiceState(VirtualServiceId("dns", VIP), (DNS,), ())
    for refused in ((web(backend(0)), other), (web(backend(0), backend(1), backend(2)),)):
        with pytest.raises(DataplaneError, match="no room"):
            fake.apply(Desired(refused))
    assert set(fake.installed.values()) == set(good.services)
    assert fake.applied == 1
