"""`/v1/status`: a snapshot as JSON. Pure.

The format is an interface: keys may be added, but keep their names and meanings within /v1. Times are Unix
timestamps in seconds.
"""

from __future__ import annotations

from typing import Any

from vc5py.snapshot import (
    BfdSessionSnapshot,
    NeighborSnapshot,
    OverrideSnapshot,
    RealSnapshot,
    ServiceSnapshot,
    SharingSnapshot,
    Snapshot,
)


def to_json(snapshot: Snapshot) -> dict[str, Any]:
    return {
        "version": snapshot.version,
        "at": snapshot.at,
        "config": {
            "file": snapshot.reload.file,
            "loaded_at": snapshot.reload.loaded_at,
            "last_reload_successful": snapshot.reload.successful,
        },
        "start": {
            "kind": snapshot.start.kind,
            "text": snapshot.start.text,
            "flows": snapshot.start.flows,
            "without_backend": snapshot.start.without_backend,
            "without_room": snapshot.start.without_room,
        },
        "interfaces": dict(snapshot.interfaces),
        "warnings": list(snapshot.warnings),
        "bgp": {str(peer): established for peer, established in snapshot.sessions.items()},
        "neighbors": [_neighbor(neighbor) for neighbor in snapshot.neighbors],
        "bfd": [_bfd(session) for session in snapshot.bfd.sessions],
        "sharing": _sharing(snapshot.sharing),
        "vips": {str(vip): announced for vip, announced in snapshot.vips.items()},
        "vip_why": {str(vip): why for vip, why in snapshot.vip_why.items()},
        "vip_told": {str(vip): {"neighbors": n.told, "of": n.of} for vip, n in snapshot.vip_told.items()},
        "services": [_service(service) for service in snapshot.services],
        "overrides": [_override(override) for override in snapshot.overrides],
        "vip_overrides": {str(vip): str(state) for vip, state in snapshot.vip_overrides.items()},
    }


def _neighbor(neighbor: NeighborSnapshot) -> dict[str, Any]:
    return {
        "address": str(neighbor.address),
        "as": neighbor.as_number,
        "state": neighbor.state,
        "since": neighbor.since,
        "routes": neighbor.routes,
        "why": neighbor.why,
    }


def _bfd(session: BfdSessionSnapshot) -> dict[str, Any]:
    return {
        "address": str(session.neighbor),
        "state": session.state,
        "reachable": session.reachable,
        "since": session.since,
        "transitions": session.transitions,
    }


def _sharing(sharing: SharingSnapshot) -> dict[str, Any]:
    return {
        "enabled": sharing.enabled,
        "running": sharing.running,
        "copied": sharing.copied,
        "why_off": sharing.why_off,
        "peers": [{"node": p.node, "address": p.address, "age": p.age_s} for p in sharing.peers],
    }


def _service(service: ServiceSnapshot) -> dict[str, Any]:
    return {
        "name": service.id.service,
        "vip": str(service.id.vip),
        "ports": list(service.ports),
        "healthy": service.healthy,
        "need": service.need,
        "serving_tier": service.serving_tier,
        "sorry": service.sorry,
        "count": service.count,
        "reals": [_real(real) for real in service.reals],
    }


def _real(real: RealSnapshot) -> dict[str, Any]:
    return {
        "address": str(real.address),
        "up": real.up,
        "health": real.health,
        "admin": str(real.admin),
        "weight": real.weight,
        "tier": real.tier,
        "sorry": real.sorry,
        "serving": real.serving,
        "damped": real.damped,
        "flows": real.flows,
        "packets": real.packets,
        "bytes": real.bytes,
        "why": real.why,
        "since": real.since,
    }


def _override(override: OverrideSnapshot) -> dict[str, Any]:
    return {
        "real": str(override.real),
        "service": override.service,
        "state": None if override.state is None else str(override.state),
        "weight": override.weight,
    }
