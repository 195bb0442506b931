"""What people want of reals at run time: states and weights that stand over those of the file.

Must not know: where it is stored, who asked. The most specific word counts, for the state and for the weight
each on its own: one on (service, real), then one on the real in all services, then the file's.

Invariants: a value is never changed, `with_...` return new ones; an `Override` that says nothing is not kept.
What is said of reals that the file doesn't have (any more) is kept until it is set back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from types import MappingProxyType

from vc5py.model import AdminState, IPAddress, Real, VipState

MAX_WEIGHT = 1000
"""The most that a weight may be, in the file or at run time."""

Key = tuple[str | None, IPAddress]
"""A service's name, None for all services, and a real's address."""


@dataclass(frozen=True, slots=True)
class Override:
    """None: no word on that."""

    state: AdminState | None = None
    weight: int | None = None


_NOTHING = Override()
_NO_REALS: Mapping[Key, Override] = MappingProxyType({})
_NO_VIPS: Mapping[IPAddress, VipState] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Overrides:
    """Everything that was said at run time, of reals and of VIPs."""

    reals: Mapping[Key, Override] = field(default_factory=lambda: _NO_REALS)
    vips: Mapping[IPAddress, VipState] = field(default_factory=lambda: _NO_VIPS)

    def with_state(self, real: IPAddress, service: str | None, state: AdminState | None) -> Overrides:
        """`state` None sets it back to what the next less specific word is."""
        return self._with((service, real), replace(self._of(service, real), state=state))

    def with_weight(self, real: IPAddress, service: str | None, weight: int | None) -> Overrides:
        """Likewise for the weight (0 to MAX_WEIGHT)."""
        return self._with((service, real), replace(self._of(service, real), weight=weight))

    def with_vip(self, vip: IPAddress, state: VipState | None) -> Overrides:
        """`state` None leaves it to the health of its services again."""
        others = {other: said for other, said in self.vips.items() if other != vip}
        if state is not None:
            others[vip] = state
        return replace(self, vips=MappingProxyType(others))

    def state_of(self, service: str, real: Real) -> AdminState:
        """The state that counts for this real in this service."""
        if not self.reals:
            return real.admin
        for name in (service, None):
            state = self._of(name, real.address).state
            if state is not None:
                return state
        return real.admin

    def weight_of(self, service: str, real: Real) -> int:
        """The weight that counts for this real in this service."""
        if not self.reals:
            return real.weight
        for name in (service, None):
            weight = self._of(name, real.address).weight
            if weight is not None:
                return weight
        return real.weight

    def _of(self, service: str | None, real: IPAddress) -> Override:
        return self.reals.get((service, real), _NOTHING)

    def _with(self, key: Key, override: Override) -> Overrides:
        others = {k: o for k, o in self.reals.items() if k != key}
        if override != _NOTHING:
            others[key] = override
        return replace(self, reals=MappingProxyType(others))


NO_OVERRIDES = Overrides()


def to_json(overrides: Overrides) -> object:
    """Plain values for `json.dumps`, in a stable order; `from_json` takes them back."""
    keys = sorted(overrides.reals, key=lambda key: (key[0] is not None, key[0] or "", key[1].version, key[1]))
    document: dict[str, object] = {"reals": [_entry(key, overrides.reals[key]) for key in keys]}
    if overrides.vips:
        vips = sorted(overrides.vips, key=lambda vip: (vip.version, vip))
        document["vips"] = [{"vip": str(vip), "state": str(overrides.vips[vip])} for vip in vips]
    return document


def _entry(key: Key, override: Override) -> dict[str, object]:
    entry: dict[str, object] = {"real": str(key[1])}
    if key[0] is not None:
        entry["service"] = key[0]
    if override.state is not None:
        entry["state"] = str(override.state)
    if override.weight is not None:
        entry["weight"] = override.weight
    return entry


def from_json(value: object) -> Overrides:
    """Raises ValueError, with a message for a person, for anything that `to_json` doesn't give."""
    match value:
        case {"reals": [*entries], **rest} if not rest.keys() - {"vips"}:
            vips = _parsed_vips(rest.get("vips", []))
        case _:
            raise ValueError('expected {"reals": [...], "vips": [...]}')
    reals: dict[Key, Override] = {}
    for number, entry in enumerate(entries, 1):
        key, override = _parsed(entry, f"entry {number}")
        if key in reals:
            raise ValueError(f"entry {number}: a second one for real {key[1]}")
        reals[key] = override
    return Overrides(MappingProxyType(reals), MappingProxyType(vips))


def _parsed_vips(entries: object) -> dict[IPAddress, VipState]:
    vips: dict[IPAddress, VipState] = {}
    if not isinstance(entries, list):
        raise ValueError("vips: expected a list")
    for number, entry in enumerate(entries, 1):
        match entry:
            case {"vip": str(text), "state": ("announced" | "withdrawn") as state, **rest} if not rest:
                pass
            case _:
                message = "expected a vip, and a state of announced or withdrawn"
                raise ValueError(f"vips, entry {number}: {message}")
        try:
            vip = ip_address(text)
        except ValueError:
            raise ValueError(f"vips, entry {number}: {text!r} is not an address") from None
        if vip in vips:
            raise ValueError(f"vips, entry {number}: a second one for {vip}")
        vips[vip] = VipState(state)
    return vips


def _parsed(entry: object, where: str) -> tuple[Key, Override]:
    if not isinstance(entry, dict):
        raise ValueError(f"{where}: expected a mapping")
    unknown = entry.keys() - {"real", "service", "state", "weight"}
    if unknown:
        raise ValueError(f"{where}: unknown key {min(map(str, unknown))!r}")
    address, service = entry.get("real"), entry.get("service")
    if not isinstance(address, str):
        raise ValueError(f"{where}: real must be an address")
    if service is not None and not isinstance(service, str):
        raise ValueError(f"{where}: service must be a name")
    try:
        real = ip_address(address)
    except ValueError:
        raise ValueError(f"{where}: {address!r} is not an address") from None
    override = Override(_state(entry.get("state"), where), _weight(entry.get("weight"), where))
    if override == _NOTHING:
        raise ValueError(f"{where}: neither state nor weight")
    return (service, real), override


def _state(value: object, where: str) -> AdminState | None:
    if value is None:
        return None
    if value not in list(AdminState):
        raise ValueError(f"{where}: state must be one of {', '.join(AdminState)}")
    return AdminState(str(value))


def _weight(value: object, where: str) -> int | None:
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MAX_WEIGHT:
        raise ValueError(f"{where}: weight must be a whole number from 0 to {MAX_WEIGHT}")
    return value
