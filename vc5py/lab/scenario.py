"""What the lab shows, step by step: routes, direct server return, IPv6, tunnels, VLANs, dead hosts.

Must not know: how the network is made or how lines are printed. A step does something to the lab, looks
at what an operator could look at, and returns the figures; it raises NotObservedError where the thing
didn't happen. Invariant: every wait has a deadline, and a step leaves the lab whole where it succeeds.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from .assembly import Lab
from .capture import Capture, Frame
from .errors import LabError, NotObservedError
from .layout import (
    BALANCERS,
    BIG_BYTES,
    CLIENT,
    FAR_REAL,
    FAR_VIPS,
    GUE_PORT,
    REALS,
    ROUTER,
    SWITCH,
    TAGGED_REAL,
    TAGGED_VIP,
    VIP,
    VIP6,
    VLAN,
    Host,
    IPAddress,
)
from .observe import (
    Counters,
    Sample,
    bird_routes,
    everyone_says,
    interface_counters,
    kernel_route,
    metrics,
    next_hops,
    total,
)
from .report import Observation, Outcome, Report
from .traffic import Downloads, Load, curl, download

REQUESTS = 60
FEW = 20  # where one real answers all
ROUTE_TIMEOUT_S = 120.0
DETECTION_TIMEOUT_S = 120.0
SETTLE_S = 0.25  # between a balancer's metrics saying so and the last old request having been sent
DOWNLOADS = 6
BYPASS_LIMIT = 0.1  # of what the client received; acknowledgements are about 0.02

Figures = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Step:
    title: str
    perform: Callable[[Lab, Report], Figures]


def learned(lab: Lab, report: Report) -> Figures:
    """The VIP reaches the router by BGP from both balancers and becomes one route with two next hops."""
    took_s = wait_for_next_hops(lab, *BALANCERS)
    report.say(f"BIRD has the VIP from both balancers {took_s:.1f} s after their start:")
    report.block(bird_routes(lab.layout))
    report.say("and the kernel's route has both as next hops:")
    report.block(kernel_route(lab.layout))
    return (f"2 next hops, {took_s:.1f} s after the balancers' start",)


def served(lab: Lab, report: Report) -> Figures:
    """All reals answer, over http and https, through both balancers; no request fails."""
    wait_for_reals(lab)
    before = _packets_per_balancer(lab)
    figures = []
    for scheme in ("http", "https"):
        answers = curl(lab.layout, REQUESTS, scheme)
        figures.append(f"{scheme}: {_describe(answers)}")
        report.say(figures[-1])
        _require(answers["failed"] == 0, f"{answers['failed']} of {REQUESTS} {scheme} requests failed")
        silent = [real.name for real in REALS if not answers[real.name]]
        _require(not silent, f"no {scheme} request was answered by {', '.join(silent)}")
    after = _packets_per_balancer(lab)
    forwarded = {name: after[name] - before[name] for name in after}
    report.say("packets the balancers forwarded, by their own metrics: " + _join(forwarded))
    _require(all(forwarded.values()), "a balancer forwarded nothing")
    return tuple(figures)


def bypassed(lab: Lab, report: Report) -> Figures:
    """A download's bytes arrive at the client, and no balancer has transmitted them."""
    hosts = (CLIENT, *BALANCERS, *REALS)
    packets = {lb.name: metrics(lab.layout, lb) for lb in BALANCERS}
    before = {host.name: interface_counters(lab.layout, host) for host in hosts}
    fetched = download(lab.layout)
    _require(fetched.size == BIG_BYTES, f"the client got {fetched.size} of {BIG_BYTES} bytes")
    after = {host.name: interface_counters(lab.layout, host) for host in hosts}
    moved = {name: after[name] - before[name] for name in after}
    report.say(f"the client downloaded {_mb(fetched.size)} from {fetched.real} in {fetched.took_s:.2f} s")
    report.block(_counter_table(moved))
    for lb in BALANCERS:
        for line in _forwarded_table(packets[lb.name], metrics(lab.layout, lb)):
            report.say(f"{lb.name} counted towards {line}")
    received = moved[CLIENT.name].received
    transmitted = sum(moved[lb.name].transmitted for lb in BALANCERS)
    _require(fetched.real in moved, f"an unknown real answered: {fetched.real}")
    _require(moved[fetched.real].transmitted >= BIG_BYTES, f"{fetched.real} didn't transmit the file")
    _require(transmitted < BYPASS_LIMIT * received, f"the balancers transmitted {_mb(transmitted)}")
    sent = moved[fetched.real].transmitted
    return (
        f"client received {_mb(received)}, {fetched.real} transmitted {_mb(sent)},",
        f"both balancers together {_mb(transmitted)}",
    )


def served6(lab: Lab, report: Report) -> Figures:
    """The same servers behind an IPv6 VIP, from the announcement on."""
    wait_for_next_hops(lab, *BALANCERS, vip=VIP6)
    report.block(kernel_route(lab.layout, VIP6))
    before = _packets_per_balancer(lab)
    answers = curl(lab.layout, REQUESTS, vip=VIP6)
    after = _packets_per_balancer(lab)
    report.say(f"http://[{VIP6}]/: {_describe(answers)}")
    _require(answers["failed"] == 0, f"{answers['failed']} of {REQUESTS} requests failed")
    _require(all(answers[real.name] for real in REALS), "a real has answered nothing")
    _require(all(after[name] > before[name] for name in after), "a balancer forwarded nothing")
    return (f"http: {_describe(answers)}",)


def tunnelled(lab: Lab, report: Report) -> Figures:
    """A real that isn't on the balancers' LAN gets the client's packets inside others, and answers it."""
    with Capture(lab.layout.namespace(ROUTER), "far") as capture:
        for vip in FAR_VIPS:
            wait_for_next_hops(lab, *BALANCERS, vip=vip)
            capture.frames()
            _all_from(FAR_REAL, lab, vip)
            seen = Counter(outside(frame, vip) for frame in capture.frames())
            del seen["others"]
            report.say(f"{FEW} requests to {vip}; what {FAR_REAL.name} got of them: {_join(seen)}")
            _require(seen["in GUE"] > 0, f"no packet to {vip} came in GUE")
            _require(seen["in IPv6"] > 0, f"no packet to {vip} came in IPv6")
            _require(seen["bare"] == 0, f"{seen['bare']} packets to {vip} came without a tunnel")
    return (f"{FAR_REAL.name} answered {FEW} requests over IPv4 and {FEW} over IPv6,", "in GUE and in IPv6")


def tagged(lab: Lab, report: Report) -> Figures:
    """A real that takes nothing but tagged frames is served, and nothing else reaches it."""
    wait_for_next_hops(lab, *BALANCERS, vip=TAGGED_VIP)
    with Capture(lab.layout.namespace(SWITCH), TAGGED_REAL.name) as capture:
        _all_from(TAGGED_REAL, lab, TAGGED_VIP)
        ours = [frame.vlan for frame in capture.frames() if frame.is_to(TAGGED_VIP)]
    with_tag = ours.count(VLAN)
    report.say(f"{FEW} requests answered by {TAGGED_REAL.name}, in {with_tag} frames of VLAN {VLAN}")
    _require(with_tag >= FEW, f"only {with_tag} frames were tagged")
    _require(with_tag == len(ours), f"{len(ours) - with_tag} frames for the VIP were not tagged")
    return (f"{TAGGED_REAL.name} answered {FEW} requests, in {with_tag} frames of VLAN {VLAN}",)


def outside(frame: Frame, vip: IPAddress) -> str:
    """What is around a packet from the client to the VIP on the far real's link."""
    real4, real6 = FAR_REAL.addresses
    (client,) = (address for address in CLIENT.addresses if address.version == vip.version)
    gue = frame.is_to(real4) and int.from_bytes(frame.packet[22:24], "big") == GUE_PORT
    if gue and frame.within(20 + 8 + 4, vip.version).is_to(vip, client):
        return "in GUE"
    if frame.is_to(real6) and frame.within(40, vip.version).is_to(vip, client):
        return "in IPv6"
    return "bare" if frame.is_to(vip, client) else "others"


def _all_from(real: Host, lab: Lab, vip: IPAddress) -> None:
    answers = curl(lab.layout, FEW, vip=vip)
    _require(
        answers[real.name] == FEW, f"{real.name} answered {answers[real.name]} of {FEW} requests to {vip}"
    )


def real_dies(lab: Lab, report: Report) -> Figures:
    """A killed real is taken out by both balancers, and gets no request any more."""
    victim = REALS[1]
    with Load(lab.layout) as load:
        _wait_for_replies(lab, load, REQUESTS)
        _require(not load.failed(), f"{len(load.failed())} requests failed before anything was broken")
        report.say(f"nginx on {victim.name} is killed, with requests going on")
        lab.kill(victim)
        killed_s = time.monotonic()
        took_s = lab.wait_for(
            f"both balancers say that {victim.name} is down",
            lambda: everyone_says(lab.layout, victim, up=False),
            DETECTION_TIMEOUT_S,
        )
        report.say(f"both balancers have taken {victim.name} out after {took_s:.1f} s")
        _wait_for_replies(lab, load, REQUESTS)
    lost, later = _split(load, killed_s + took_s + SETTLE_S)
    answers = curl(lab.layout, REQUESTS)
    report.say(
        f"requests while it was found out: {_describe(lost)}; afterwards: {_describe(later + answers)}"
    )
    _require(later["failed"] + answers["failed"] == 0, "requests failed after the real was taken out")
    _require(answers[victim.name] == 0, f"{victim.name} still answers")
    return (
        f"taken out after {took_s:.1f} s; {lost['failed']} of {lost.total()} requests failed meanwhile,",
        f"0 of {(later + answers).total()} afterwards",
    )


def real_returns(lab: Lab, report: Report) -> Figures:
    """The real comes back, is taken in and answers requests; none fails."""
    victim = REALS[1]
    with Load(lab.layout) as load:
        report.say(f"nginx on {victim.name} is started")
        lab.start(victim)
        took_s = lab.wait_for(
            f"both balancers say that {victim.name} is up",
            lambda: everyone_says(lab.layout, victim, up=True),
            DETECTION_TIMEOUT_S,
        )
        report.say(f"both balancers have taken {victim.name} in after {took_s:.1f} s")
        _wait_for_replies(lab, load, REQUESTS)
    answers = curl(lab.layout, REQUESTS)
    report.say(f"requests afterwards: {_describe(answers)}")
    failed = len(load.failed()) + answers["failed"]
    _require(failed == 0, f"{failed} requests failed while the real came back")
    _require(answers[victim.name] > 0, f"no request was answered by {victim.name}")
    return (f"taken in after {took_s:.1f} s; {victim.name} answered {answers[victim.name]} of {REQUESTS}",)


def balancer_dies(lab: Lab, report: Report) -> Figures:
    """A balancer loses power: the router drops it, the other serves the VIP, connections live on."""
    victim, survivor = BALANCERS
    with Load(lab.layout, workers=8) as load, Downloads(lab.layout, DOWNLOADS) as downloads:
        _wait_for_replies(lab, load, REQUESTS)
        _require(not load.failed(), f"{len(load.failed())} requests failed before anything was broken")
        _require(downloads.under_way() == DOWNLOADS, "a download ended before anything was broken")
        report.say(f"{victim.name} loses power, with requests and {DOWNLOADS} downloads going on")
        lab.power_off(victim)
        killed_s = time.monotonic()
        took_s = wait_for_next_hops(lab, survivor)
        hold_s = lab.layout.hold_s
        report.say(f"the router has dropped {victim.name} after {took_s:.1f} s (hold time {hold_s} s):")
        report.block(kernel_route(lab.layout))
        _wait_for_replies(lab, load, REQUESTS)
        whole = downloads.completed()
    lost, later = _split(load, killed_s + took_s + SETTLE_S)
    report.say(f"requests before it was dropped: {_describe(lost)}; afterwards: {_describe(later)}")
    _require(later["failed"] == 0, f"{later['failed']} requests failed after the route had changed")
    report.say(f"{whole} of the {DOWNLOADS} downloads that were going on have completed")
    _require(whole == DOWNLOADS, f"{DOWNLOADS - whole} of {DOWNLOADS} connections broke")
    return (
        f"dropped after {took_s:.1f} s; {lost['failed']} of {lost.total()} requests failed meanwhile,",
        f"0 of {later.total()} afterwards; {whole} of {DOWNLOADS} open downloads completed",
    )


def balancer_returns(lab: Lab, report: Report) -> Figures:
    """The balancer is switched on again, announces the VIP and forwards its share; no request fails."""
    returning = BALANCERS[0]
    with Load(lab.layout) as load:
        report.say(f"{returning.name} is switched on")
        lab.power_on(returning)
        took_s = wait_for_next_hops(lab, *BALANCERS)
        report.say(f"the router has both next hops again after {took_s:.1f} s")
        before = _packets_per_balancer(lab)
        _wait_for_replies(lab, load, REQUESTS)
    after = _packets_per_balancer(lab)
    forwarded = {name: after[name] - before[name] for name in after}
    report.say("packets forwarded since: " + _join(forwarded))
    _require(not load.failed(), f"{len(load.failed())} requests failed while the balancer came back")
    _require(all(forwarded.values()), "a balancer forwarded nothing")
    return (f"back after {took_s:.1f} s; 0 of {len(load.replies)} requests failed",)


STEPS = (
    Step("VIP learned from both balancers", learned),
    Step("requests served by all reals", served),
    Step("replies bypass the balancers", bypassed),
    Step("IPv6 VIP served", served6),
    Step("real behind the router served", tunnelled),
    Step("real in a VLAN served", tagged),
    Step("dead real taken out", real_dies),
    Step("real taken in again", real_returns),
    Step("VIP survives a dead balancer", balancer_dies),
    Step("balancer back in service", balancer_returns),
)


def perform(lab: Lab, report: Report, steps: tuple[Step, ...] = STEPS) -> list[Observation]:
    """Performs the steps in order, up to the first that isn't observed."""
    observations: list[Observation] = []
    for step in steps:
        if observations and observations[-1].outcome is not Outcome.OBSERVED:
            observations.append(Observation(step.title, Outcome.NOT_TRIED))
            continue
        report.heading(f"{len(observations) + 1}. {step.title}")
        try:
            figures = step.perform(lab, report)
            observations.append(Observation(step.title, Outcome.OBSERVED, figures))
        except LabError as problem:
            report.say(str(problem))
            observations.append(Observation(step.title, Outcome.NOT_OBSERVED, (str(problem).split("\n")[0],)))
        report.outcome(observations[-1])
    return observations


def wait_for_next_hops(lab: Lab, *balancers: Host, vip: IPAddress = VIP) -> float:
    """Waits until exactly these are the router's next hops to the VIP; returns the seconds it took."""
    wanted = frozenset(a for balancer in balancers for a in balancer.addresses if a.version == vip.version)
    names = " and ".join(balancer.name for balancer in balancers)
    return lab.wait_for(
        f"the router's next hops to {vip} are {names}",
        lambda: next_hops(lab.layout, vip) == wanted,
        ROUTE_TIMEOUT_S,
    )


def wait_for_reals(lab: Lab) -> None:
    """Waits until both balancers say that all reals are up."""
    for real in REALS:
        lab.wait_for(f"{real.name} is up", partial(everyone_says, lab.layout, real, up=True))


def _require(observed: bool, otherwise: str) -> None:
    if not observed:
        raise NotObservedError(otherwise)


def _wait_for_replies(lab: Lab, load: Load, count: int) -> None:
    """Until `count` more requests were begun and ended."""
    now_s = time.monotonic()
    lab.wait_for(
        f"{count} more requests end",
        lambda: sum(reply.started_s > now_s for reply in list(load.replies)) >= count,
    )


def _split(load: Load, at_s: float) -> tuple[Counter[str], Counter[str]]:
    """Who answered requests that began before, and after, that time; "failed" for nobody."""
    before: Counter[str] = Counter()
    after: Counter[str] = Counter()
    for reply in load.replies:
        (after if reply.started_s > at_s else before)[reply.real or "failed"] += 1
    return before, after


def _packets_per_balancer(lab: Lab) -> dict[str, int]:
    return {lb.name: int(total(metrics(lab.layout, lb), "vc5_real_packets_total")) for lb in BALANCERS}


def _forwarded_table(before: list[Sample], after: list[Sample]) -> list[str]:
    """Packets and bytes towards each real that had any, from two readings of one balancer's metrics."""
    lines = []
    for real in REALS:
        packets, size = (
            int(total(after, name, real=str(real.address)) - total(before, name, real=str(real.address)))
            for name in ("vc5_real_packets_total", "vc5_real_bytes_total")
        )
        if packets:
            lines.append(f"{real.name}: {packets} packets, {_mb(size)}")
    return lines


def _counter_table(moved: dict[str, Counters]) -> list[str]:
    lines = [f"{'eth0 of':<8} {'received':>12} {'transmitted':>12}"]
    for name, counters in moved.items():
        lines.append(f"{name:<8} {_mb(counters.received):>12} {_mb(counters.transmitted):>12}")
    return lines


def _describe(answers: Counter[str]) -> str:
    return _join({name: answers[name] for name in (*(real.name for real in REALS), "failed")})


def _join(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items())


def _mb(size: int) -> str:
    return f"{size / 1e6:.3f} MB"
