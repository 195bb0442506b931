"""What is legal but unwise: warnings about a configuration without errors.

Must not know: the machine, whose addresses are a parameter. It judges the built values, where defaults
are filled in, and points at the nearest key that is written. Invariant: it is asked of good configurations
only, so the services and checks of the model are those of the file, in its order.
"""

from __future__ import annotations

from collections import defaultdict

from vc5py.config.report import Path, shown
from vc5py.config.view import View, parsed_address
from vc5py.core.detection import LATENCY_S, failures, longest_s
from vc5py.model import (
    AdminState,
    Check,
    CheckType,
    Config,
    DnsQuestion,
    ForwardMode,
    HttpRequest,
    IPAddress,
    Neighbor,
    Real,
    Service,
)

_SLOW_S = 60
"""A real that died and gets packets for longer than this is a failure that people notice."""

_LEARN_S = 2
"""What a process that shares flows may need to begin, hear its peers, and have a copy of their flows."""


_HTTP_PORT, _HTTPS_PORT = 80, 443


def check(config: Config, view: View, own: frozenset[IPAddress]) -> None:
    """Report what is unwise. `own`: the addresses of the balancer."""
    if not config.services:
        view.warn(("services",), "found none: nothing is served, and a reload removes all that was")
    for index, service in enumerate(config.services):
        path: Path = ("services", index)
        _need(view, path, service)
        _tiers(view, path, service)
        _reals(view, path, service)
        _checks(view, (*path, "checks"), service.checks)
        if service.sorry:
            _sorry(view, (*path, "sorry"), service)
    _own_addresses(config, view, own)
    _shared_dscp(config, view)
    _unused_groups(view)
    _bgp(config, view)
    _told(config, view)
    _vips(config, view)
    _whole(config, view)


def _enabled(reals: tuple[Real, ...]) -> list[Real]:
    return [real for real in reals if real.admin is AdminState.ENABLED]


def _reals_in_words(count: int) -> str:
    return f"{count} real{'' if count == 1 else 's'}"


# Services


def _need(view: View, path: Path, service: Service) -> None:
    there, enabled = len(service.reals), len(_enabled(service.reals))
    place, name = _said(view, path, "need", service)
    if service.need > there:
        view.warn(
            place, f"found {service.need}, but {name} has {_reals_in_words(there)}: it is never healthy"
        )
    elif service.need > enabled:
        whose = "" if name == _THIS else f" of {name}"
        view.warn(
            place,
            f"found {service.need}, but {enabled} of {there} reals{whose} are enabled: it is not healthy",
        )


_THIS = "the service"


def _said(view: View, path: Path, key: str, service: Service) -> tuple[Path, str]:
    """Where a setting of the service is written, and how to call the service there."""
    common = ("defaults", key)
    if view.node((*path, key)) is None and view.node(common) is not None:
        return common, f"service {shown(service.name)}"
    return (*path, key), _THIS


def _tiers(view: View, path: Path, service: Service) -> None:
    tiers = sorted({real.tier for real in service.reals})
    if tiers[0] > 0:
        view.warn(path, f"found no real in tier 0: tier {tiers[0]} stands by for nobody")
    first = [real for real in service.reals if real.tier == tiers[0]]
    if len(tiers) > 1 and service.min_up > len(first):
        place, name = _said(view, path, "min_up", service)
        whose = "" if name == _THIS else f" of {name}"
        view.warn(
            place,
            f"found {service.min_up}, but tier {tiers[0]}{whose} has {_reals_in_words(len(first))}:"
            " the next always stands in",
        )


def _reals(view: View, path: Path, service: Service) -> None:
    enabled = _enabled(service.reals)
    if not enabled:
        view.warn(path, "found no real that is enabled: it takes no new flows")
    elif all(real.weight == 0 for real in enabled):
        view.warn(path, "found weight 0 for every real: it takes no new flows")


def _sorry(view: View, path: Path, service: Service) -> None:
    assert service.sorry is not None
    _checks(view, (*path, "checks"), service.sorry.checks)
    if not any(real.weight for real in _enabled(service.sorry.reals)):
        view.warn(path, "found no real that is enabled and has a weight: it can't serve")


# Checks


def _checks(view: View, path: Path, checks: tuple[Check, ...]) -> None:
    if not checks:
        view.warn(path, "found no check: a real that is dead stays in service")
    for number, one in enumerate(checks):
        _check(view, (*path, number), one)


def _check(view: View, path: Path, check: Check) -> None:
    _detection(view, path, check)
    _scheme(view, path, check)
    if isinstance(check.detail, HttpRequest):
        _http(view, path, check.detail)
    if isinstance(check.detail, DnsQuestion) and check.detail.answer and check.detail.rcode != "noerror":
        view.warn((*path, "answer"), f"found with rcode {check.detail.rcode}: such a response has no answers")


def _scheme(view: View, path: Path, check: Check) -> None:
    """A check without a port has the service's first one, which may be the other scheme's."""
    place = (*path, "port")
    if check.type is CheckType.HTTPS and check.port == _HTTP_PORT:
        view.warn(
            place, f"found {_HTTP_PORT} in an https check: servers speak no TLS there; say 'port: https'"
        )
    if check.type is CheckType.HTTP and check.port == _HTTPS_PORT:
        view.warn(place, f"found {_HTTPS_PORT} in an http check: servers speak TLS there; say 'type: https'")


def _detection(view: View, path: Path, check: Check) -> None:
    """How long a dead real gets packets."""
    count, longest = failures(check), longest_s(check)
    expected_s = count * check.interval_s
    if longest > expected_s + LATENCY_S:
        place = _setting(view, path, ("timeout", "interval", "fall", "pass"))
        view.warn(
            place,
            f"found a timeout of {check.timeout_s:g} s: a real that falls silent is out after up to"
            f" {longest:g} s, not {count} interval{'' if count == 1 else 's'} ({expected_s:g} s)",
        )
    elif check.interval_s < check.timeout_s:
        place = _setting(view, path, ("interval", "timeout"))
        view.warn(
            place,
            f"found an interval of {check.interval_s:g} s below the timeout of {check.timeout_s:g} s:"
            " while a real is silent, it is probed less often than that",
        )
    if longest > _SLOW_S:
        place = _setting(view, path, ("interval", "fall", "pass"))
        view.warn(place, f"found {count} failures to take a real down, which takes up to {longest:g} s")


def _setting(view: View, check: Path, keys: tuple[str, ...]) -> Path:
    """Where the first of the keys is written: at the check, its service, or in `defaults`."""
    for level in (check, check[:2], ("defaults",)):
        for key in keys:
            if view.node((*level, key)) is not None:
                return (*level, key)
    return check


def _http(view: View, path: Path, request: HttpRequest) -> None:
    if request.verify and request.host is None:
        view.warn(
            (*path, "verify"), "found without 'host': the certificate must be good for the VIP's address"
        )
    if request.ca_file and not request.verify:
        view.warn((*path, "ca_file"), "found without 'verify: true': no certificate is verified")
    if request.method == "HEAD":
        for key in ("body", "body_regex"):
            if getattr(request, key) is not None:
                view.warn((*path, key), "found with method HEAD: such a response has no body")


# The whole


def _own_addresses(config: Config, view: View, own: frozenset[IPAddress]) -> None:
    for index, service in enumerate(config.services):
        path: Path = ("services", index)
        for number, vip in enumerate(service.vips):
            if vip in own:
                place = _vip_place(view, path, number)
                view.warn(place, f"found {vip}, an address of this machine: it would answer clients itself")
        reals = (*service.reals, *(service.sorry.reals if service.sorry else ()))
        for real in reals:
            if real.address in own:
                view.warn(path, f"found the real {real.address}, an address of this machine")
    for peer in config.rhi.peers if config.rhi else ():
        if peer in own and not peer.is_loopback:
            view.warn(_neighbor(view, peer), f"found {peer}, an address of this machine")


def _vip_place(view: View, service: Path, number: int) -> Path:
    several = isinstance(view.node((*service, "addr")), list)
    return (*service, "addr", number) if several else (*service, "addr")


def _shared_dscp(config: Config, view: View) -> None:
    """By the DSCP a real tells VIPs apart: with the same one for two of them it can't."""
    users: dict[tuple[IPAddress, int], dict[IPAddress, int]] = defaultdict(dict)
    for index, service in enumerate(config.services):
        for real in (*service.reals, *(service.sorry.reals if service.sorry else ())):
            if real.forwarding.mode is ForwardMode.DSCP:
                for vip in service.vips:
                    users[real.address, real.forwarding.dscp].setdefault(vip, index)
    told: set[int] = set()
    for (address, dscp), vips in users.items():
        last = max(vips.values())
        if len(vips) > 1 and last not in told:
            told.add(last)
            view.warn(
                ("services", last, "dscp"),
                f"found {dscp} for {len(vips)} VIPs on the real {address}, which can't tell them apart by it",
            )


def _neighbor(view: View, peer: IPAddress) -> Path:
    """Where it is written."""
    lists: list[Path] = [("rhi", "peers"), ("rhi", "neighbors")]
    lists += [("rhi", "groups", name, "neighbors") for name in view.keys(("rhi", "groups"))]
    for item in (item for path in lists for item in view.several(path)):
        text = item.value.get("address") if isinstance(item.value, dict) else item.value
        if text is not None and parsed_address(text) == peer:
            return item.path
    return ("rhi",)


def _idle(neighbor: Neighbor) -> tuple[str, tuple[str, ...]]:
    """The kind of session, and the settings without a meaning for it."""
    return ("iBGP", ("prepend", "multihop")) if neighbor.is_internal else ("eBGP", ("local_preference",))


def _bgp(config: Config, view: View) -> None:
    neighbors = config.rhi.neighbors if config.rhi else ()
    below: dict[Path, list[Neighbor]] = {("rhi",): list(neighbors)}
    for neighbor in neighbors:
        path = _neighbor(view, neighbor.address)
        if path[1:2] == ("groups",):
            below.setdefault(path[:3], []).append(neighbor)
        node = view.node(path)
        kind, idle = _idle(neighbor)
        for key in idle:
            if isinstance(node, dict) and key in node:
                view.warn((*path, key), f"found for an {kind} neighbor: it has no effect")
        if neighbor.bfd and neighbor.multihop and not neighbor.is_internal:
            view.warn(path, "found bfd for a neighbor over several hops: it works on one link only")
        if neighbor.address in (neighbor.next_hop4, neighbor.next_hop6):
            view.warn(path, f"found {neighbor.address}, the neighbor itself, as the next hop")
    for level, members in below.items():
        _level(view, level, members)


def _level(view: View, level: Path, neighbors: list[Neighbor]) -> None:
    """Settings that are for several neighbors, and have a meaning for none of them."""
    kinds = {_idle(neighbor) for neighbor in neighbors}
    if len(kinds) == 1:
        [(kind, idle)] = kinds
        for key in idle:
            if view.node((*level, key)) not in (None, 0):
                view.warn((*level, key), f"found where all neighbors are {kind}: it has no effect")


def _told(config: Config, view: View) -> None:
    """Neighbors that are told of no VIP, VIPs that no neighbor is told of, and a neighbor that is one."""
    vips = {
        vip: (("services", index), number)
        for index, service in enumerate(config.services)
        for number, vip in enumerate(service.vips)
    }
    neighbors = config.rhi.neighbors if config.rhi else ()
    rules = {_rules(neighbor): neighbor for neighbor in neighbors}  # a few, however many neighbors
    admitted = {rule: {vip for vip in vips if one.admits(vip)} for rule, one in rules.items()}
    for neighbor in neighbors:
        if neighbor.address in vips:
            view.warn(_neighbor(view, neighbor.address), f"found {neighbor.address}, which is a VIP")
        if vips and not admitted[_rules(neighbor)]:
            place = _neighbor(view, neighbor.address)
            view.warn(place, f"found {neighbor.address}, which is told of no VIP ({_RULES})")
    told = set().union(*admitted.values())
    if told:
        for vip in vips.keys() - told:
            place = _vip_place(view, *vips[vip])
            view.warn(place, f"found {vip}, which no BGP neighbor is told of ({_RULES})")


_RULES = "'accept', 'reject', 'families'"


def _rules(neighbor: Neighbor) -> tuple[object, ...]:
    return neighbor.families, neighbor.accept, neighbor.reject


def _vips(config: Config, view: View) -> None:
    served = {vip for service in config.services for vip in service.vips}
    for name in view.keys(("vips",)):
        if parsed_address(name) not in served:
            view.warn(("vips", name), "found a VIP that no service has")


def _unused_groups(view: View) -> None:
    used = {
        place.value
        for service in view.several(("services",))
        for holder in (service.path, (*service.path, "sorry"))
        for place in view.several((*holder, "real"))
    }
    for name in view.keys(("reals",)):
        if name not in used:
            view.warn(("reals", name), "found a group that no service uses")


def _whole(config: Config, view: View) -> None:
    shared = config.cluster is not None and (config.multicast is not None or bool(config.cluster.peers))
    if shared and config.rhi and config.rhi.neighbors and config.learn_s < _LEARN_S:
        view.warn(
            ("learn",) if view.node(("learn",)) is not None else ("cluster",),
            f"found learn {config.learn_s:g}, expected {_LEARN_S} or more where flows are shared: VIPs are"
            " announced before those of the other balancers have come",
        )
    with_whom = config.multicast is not None or (config.cluster is not None and bool(config.cluster.peers))
    if config.cluster is not None and not with_whom:
        view.warn(("cluster",), "found neither 'peers' in it nor 'multicast': flows are shared with nobody")
    if config.learn_s and not with_whom:
        view.warn(
            ("learn",),
            f"found {config.learn_s:g} without 'multicast' or 'cluster.peers': there is nobody to learn from",
        )
    if config.timeouts.established_s < config.timeouts.unproven_s:
        view.warn(
            ("timeouts", "established"),
            f"found {config.timeouts.established_s}, less than unproven ({config.timeouts.unproven_s})",
        )
