"""What can be seen from outside: the router's routes, interface counters, the balancers' metrics.

Must not know: how the network was built, or what the values ought to be. Everything is read from where
an operator would read it: `ip`, `birdc`, `/metrics`. Invariant: reading moves no counter of an eth0
(metrics are fetched within the balancer's own namespace, over its loopback).
"""

from __future__ import annotations

import http.client
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address

from prometheus_client.parser import text_string_to_metric_families

from .kernel import entered
from .layout import BALANCERS, METRICS_PORT, ROUTER, SERVICE, SERVICE6, VIP, Host, IPAddress, Layout
from .network import run

# By so much may what `since_s` says differ from one time to the next.
JITTER_S = 0.1
_ANSWERS = 3
_ANSWER_S = 15.0  # nothing here is about how quick a server is
_TIME = r"(\d+):(\d+):([\d.]+)"


@dataclass(frozen=True, slots=True)
class Counters:
    """Bytes that an interface received and transmitted, with Ethernet headers."""

    received: int
    transmitted: int

    def __sub__(self, earlier: Counters) -> Counters:
        return Counters(self.received - earlier.received, self.transmitted - earlier.transmitted)


@dataclass(frozen=True, slots=True)
class Sample:
    name: str
    labels: dict[str, str]
    value: float


def interface_counters(layout: Layout, host: Host) -> Counters:
    """Of the host's eth0, counted by the kernel."""
    shown = run("ip", "-n", layout.namespace(host.name), "-s", "-j", "link", "show", "dev", "eth0")
    statistics = json.loads(shown)[0]["stats64"]
    return Counters(statistics["rx"]["bytes"], statistics["tx"]["bytes"])


def next_hops(layout: Layout, vip: IPAddress = VIP) -> frozenset[IPAddress]:
    """Where the router's kernel sends packets to the VIP; empty where it has no route."""
    return frozenset(_gateways(_kernel_route(layout, vip, "-j")))


def _kernel_route(layout: Layout, vip: IPAddress, *options: str) -> str:
    exact = ("route", "show", "exact", f"{vip}/{vip.max_prefixlen}")
    return run("ip", f"-{vip.version}", "-n", layout.namespace(ROUTER), *options, *exact)


def _gateways(routes_json: str) -> Iterator[IPAddress]:
    for route in json.loads(routes_json or "[]"):
        for hop in route.get("nexthops", [route]):
            yield ip_address(hop["gateway"])


def kernel_route(layout: Layout, vip: IPAddress = VIP) -> list[str]:
    """The router's route to the VIP, as `ip route` prints it."""
    shown = _kernel_route(layout, vip)
    return [" ".join(line.split()) for line in shown.splitlines()]


def bird_routes(layout: Layout) -> list[str]:
    """BIRD's routes to the VIP, as `birdc show route` prints them."""
    control = layout.node_directory(ROUTER) / "bird.ctl"
    shown = run("birdc", "-r", "-s", str(control), "show", "route", "for", str(VIP), check=False)
    lines = (line.rstrip() for line in shown.expandtabs().splitlines())
    return [line for line in lines if line.startswith((str(VIP), " "))]


def since_s(layout: Layout, *balancers: Host) -> dict[str, float]:
    """Since when BIRD has each balancer's session, and the VIP from it: seconds of the day, by "session lb1"
    and "route lb1". What isn't there isn't in it. BIRD works the times out anew each time: they jitter, and
    are too late by as long as it was kept from running amid that. So it is asked more than once.
    """
    answers = [_said_since_s(layout, *balancers) for _ in range(_ANSWERS)]
    return {what: min(one.get(what, at_s) for one in answers) for what, at_s in answers[-1].items()}


def _said_since_s(layout: Layout, *balancers: Host) -> dict[str, float]:
    control = layout.node_directory(ROUTER) / "bird.ctl"
    shown = run("birdc", "-r", "-s", str(control), "show", "protocols", check=False)
    routes = "\n".join(bird_routes(layout))
    found: dict[str, float] = {}
    for balancer in balancers:
        places = {
            "session": rf"^{balancer.name} +BGP +\S+ +up +{_TIME} +Established",
            "route": rf"\[{balancer.name} {_TIME}",
        }
        for what, pattern in places.items():
            match = re.search(pattern, shown if what == "session" else routes, re.MULTILINE)
            if match is not None:
                hours, minutes, seconds = map(float, match.groups())
                found[f"{what} {balancer.name}"] = 3600 * hours + 60 * minutes + seconds
    return found


def established(layout: Layout, balancer: Host) -> bool:
    """Whether BIRD has a BGP session with this balancer."""
    control = layout.node_directory(ROUTER) / "bird.ctl"
    shown = run("birdc", "-r", "-s", str(control), "show", "protocols", balancer.name, check=False)
    return "Established" in shown


def http_body(namespace: str, address: IPAddress, port: int, path: str, connect_s: float = _ANSWER_S) -> str:
    """GET over a new connection from within a namespace. Errors: OSError, http.client.HTTPException."""
    with entered(namespace):
        connection = http.client.HTTPConnection(str(address), port, timeout=connect_s)
        try:
            connection.connect()
            connection.sock.settimeout(_ANSWER_S)
            connection.request("GET", path, headers={"Connection": "close"})
            response = connection.getresponse()
            body = response.read().decode()
        finally:
            connection.close()
    if response.status != http.client.OK:
        raise http.client.HTTPException(f"status {response.status}")
    return body


def metrics(layout: Layout, balancer: Host) -> list[Sample]:
    """All samples of the balancer's /metrics; none where it doesn't answer."""
    try:
        text = http_body(layout.namespace(balancer.name), balancer.address, METRICS_PORT, "/metrics")
    except (OSError, http.client.HTTPException):
        return []
    families = text_string_to_metric_families(text)
    return [Sample(s.name, dict(s.labels), s.value) for family in families for s in family.samples]


def total(samples: list[Sample], name: str, **labels: str) -> float:
    """Sum of all samples of that name that carry at least these labels."""
    wanted = labels.items()
    return sum(s.value for s in samples if s.name == name and wanted <= s.labels.items())


def reals_up(
    layout: Layout, balancer: Host, services: tuple[str, ...] = (SERVICE,)
) -> dict[IPAddress, bool] | None:
    """Which reals the balancer says are up, in all of these services; None where it doesn't answer."""
    samples = [
        s for s in metrics(layout, balancer) if s.name == "vc5_real_up" and s.labels["service"] in services
    ]
    if not samples:
        return None
    found: dict[IPAddress, bool] = {}
    for sample in samples:
        real = ip_address(sample.labels["real"])
        found[real] = found.get(real, True) and sample.value == 1
    return found


def everyone_says(layout: Layout, real: Host, up: bool) -> bool:
    """Whether both balancers say that this real is up (or down), by all of its addresses."""
    views = [reals_up(layout, balancer, (SERVICE, SERVICE6)) for balancer in BALANCERS]
    return all(view is not None and all(view.get(a) == up for a in real.addresses) for view in views)
