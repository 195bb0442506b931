"""What may be asked of a running balancer, and how it answers; between `server` and whoever carries it out.

Values only. Must not know: HTTP, JSON, sockets.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from vc5py.core.diff import Change
from vc5py.errors import Diagnostic, Vc5Error
from vc5py.model import AdminState, IPAddress, VipState, VirtualServiceId
from vc5py.snapshot import Snapshot


class UnknownTargetError(Vc5Error):
    """No such real, no such service, or the real isn't in it."""


class ReloadRefusedError(Vc5Error):
    """The configuration is good, but can't be put into force now; everything is as before."""


@dataclass(frozen=True, slots=True)
class Effective:
    """What a real is set to in one virtual service, after a command."""

    service: VirtualServiceId
    admin: AdminState
    weight: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of a command on a real. `unsaved`: why it won't be remembered over a restart, where it won't.
    `warnings`: what came of it that may not have been wanted.
    """

    real: IPAddress
    effective: tuple[Effective, ...]
    unsaved: str | None = None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class VipOutcome:
    """Of a command on a VIP. `announced`: whether it is to be now; `why` it isn't."""

    vip: IPAddress
    state: VipState | None
    announced: bool
    unsaved: str | None = None
    why: str = ""


@dataclass(frozen=True, slots=True)
class ReloadReport:
    """What a reload has changed, what was found unwise, and what is worth knowing besides."""

    changes: tuple[Change, ...]
    warnings: tuple[Diagnostic, ...] = ()
    notes: tuple[str, ...] = ()


class Controllable(Protocol):
    """A running balancer. A service of None means all services that have the real."""

    async def set_state(self, real: IPAddress, service: str | None, state: AdminState) -> Outcome:
        """Raises UnknownTargetError, as do the next two."""

    async def set_weight(self, real: IPAddress, service: str | None, weight: int | None) -> Outcome:
        """None: as in the configuration."""

    async def reset(self, real: IPAddress, service: str | None) -> Outcome:
        """State and weight as in the configuration again."""

    async def set_vip(self, vip: IPAddress, state: VipState | None) -> VipOutcome:
        """None: as the health of its services says. Raises UnknownTargetError."""

    async def reload(self) -> ReloadReport:
        """Raises ConfigError with every finding, ReloadRefusedError."""

    async def snapshot(self) -> Snapshot: ...

    def configuration(self) -> str:
        """The text of the configuration in force."""
