"""What a whole-frame case is; the cases themselves are in cases_*.py, all of them together in cases.py."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from ipaddress import IPv4Address

from tests.packets import frames
from tests.packets.frames import IP_AT
from tests.packets.harness import Entry, Outcome
from tests.packets.oracle import Flows, Known, Oracle, name_of, read_tuple
from tests.packets.world import WORLD, Side, World
from vc5py.dataplane.abi import FlowState
from vc5py.model import IPAddress

L4_AT = IP_AT + 20
REAL_11, REAL_12, REAL_13, REAL_14 = (IPv4Address(f"10.0.0.{n}") for n in (11, 12, 13, 14))
WEB = WORLD.service("web")
WEB_11_DOWN = WORLD.with_real("web", REAL_11, up=False, weight=0)
WEB_11_DRAINING = WORLD.with_real("web", REAL_11, up=True, weight=0)


@cache
def oracle_for(world: World, before: World | None) -> Oracle:
    return Oracle(world, before)


@dataclass(frozen=True, slots=True)
class Case:
    """One frame, and the verdict that must follow.

    `entry` is in the flow table beforehand, of the flow or fragments that the frame is (about); `crowded`:
    all else there is established flows. `first`: frames that came before. `before` as in `Kernel.install`.
    `bare`: the driver left no room for more headers.
    """

    id: str
    description: str
    frame: bytes = field(repr=False)
    verdict: str
    world: World = field(default=WORLD, repr=False)
    side: Side = Side.NEAR
    entry: Entry | None = None
    torn: bool = False
    crowded: bool = False
    first: tuple[bytes, ...] = field(default=(), repr=False)
    before: World | None = field(default=None, repr=False)
    bare: bool = False

    @property
    def expected(self) -> Outcome:
        return self.predict()[0]

    def predict(self) -> tuple[Outcome, Flows]:
        """What should become of the frame, and what the flow table should hold then."""
        oracle = oracle_for(self.world, self.before)
        flows: Flows = {}
        if self.entry is not None and not self.torn:
            known = Known(self.entry.service, self.entry.real.address, self.entry.state, self.entry.age)
            flows[name_of(self.frame)] = known
        for frame in self.first:
            oracle.predict(frame, flows, side=self.side)
        outcome = oracle.predict(
            self.frame, flows, side=self.side, room=not self.crowded, headroom=not self.bare
        )
        return outcome, flows


def entry(
    address: IPAddress = REAL_11,
    state: FlowState = FlowState.ESTABLISHED,
    age: int = 0,
    second: bool = False,
    service: str = "web",
) -> Entry:
    """An entry of the web service, or another."""
    return Entry(service, WORLD.service(service).real(address), state, age, second)


def sampled_port(protocol: str = "tcp", vip: IPAddress = WEB.vip, dport: int = 80) -> int:
    """A source port with which the usual client's flow is looked up in tick 0, whatever its slot says."""
    make = frames.tcp if protocol == "tcp" else frames.udp
    return next(n for n in range(40001, 41000) if read_tuple(make(vip, dport, sport=n)).sampled)
