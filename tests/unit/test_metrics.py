"""`/metrics`: every number of a snapshot under its name, in the text format."""

from __future__ import annotations

import asyncio
import http.client
import random
import re
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from vc5py.errors import Vc5Error
from vc5py.model import AdminState, VipState, VirtualServiceId
from vc5py.snapshot import (
    NeighborSnapshot,
    OverrideSnapshot,
    PeerSnapshot,
    RealSnapshot,
    ReloadSnapshot,
    ServiceSnapshot,
    SharingSnapshot,
    Snapshot,
    ToldSnapshot,
    VerdictSnapshot,
)
from vc5py.web import metrics
from vc5py.web.server import serve

VIP, VIP2 = IPv4Address("192.0.2.1"), IPv4Address("192.0.2.2")
REALS = (
    RealSnapshot(IPv4Address("10.0.0.1"), True, 1 << 60, 200, 3, admin=AdminState.DRAINING, serving=False),
    RealSnapshot(
        IPv4Address("10.0.0.2"),
        False,
        4,
        5,
        6,
        "down",
        AdminState.DISABLED,
        7,
        2,
        serving=True,
        damped=True,
        since=1500.5,
    ),
)
SNAPSHOT = Snapshot(
    version="1.2.3",
    services=(
        ServiceSnapshot(VirtualServiceId('w\\e"b\n', VIP), True, 1, REALS, ("80/tcp",), 1, True),
        ServiceSnapshot(VirtualServiceId("dns", VIP2), False, 2, ()),
    ),
    vips={VIP: True, VIP2: False},
    vip_told={VIP: ToldSnapshot(1, 2), VIP2: ToldSnapshot(0, 2)},
    sessions={IPv4Address("10.0.0.254"): True, IPv4Address("10.0.0.253"): False},
    neighbors=(NeighborSnapshot(IPv4Address("10.0.0.254"), 65000, "established", 1700.5, 2),),
    vip_overrides={VIP: VipState.WITHDRAWN},
    sharing=SharingSnapshot(
        enabled=True,
        running=True,
        restarts=1,
        datagrams={"accepted": 10, "forged": 11},
        datagrams_sent=12,
        bytes_sent=13,
        send_errors=14,
        sent=15,
        received=16,
        results={"added": 17},
        missed=18,
        lost=19,
        dropped=21,
        ambiguous=20,
        copied=True,
        cpu_s=2.5,
        peers=(PeerSnapshot("00ff", "10.0.0.8", 0.5),),
    ),
    verdicts=(VerdictSnapshot("not_vip", "pass", 9),),
    probes={("http", "ok"): 7, ("tcp", "refused"): 8},
    probe_lag_s=0.25,
    interfaces={"eth0": "native", "eth1": "generic"},
    flow_capacity=4096,
    reload=ReloadSnapshot("vc5.yaml", False, 1600.25),
    overrides=(OverrideSnapshot(VIP, None, None, 7),),
)
EXPECTED = """
vc5_bgp_routes{peer="10.0.0.254"} 2
vc5_bgp_session_since_timestamp_seconds{peer="10.0.0.254"} 1700.5
vc5_bgp_session_up{peer="10.0.0.253"} 0
vc5_bgp_session_up{peer="10.0.0.254"} 1
vc5_config_last_reload_success_timestamp_seconds{} 1600.25
vc5_config_last_reload_successful{} 0
vc5_flow_table_entries{} 4096
vc5_info{version="1.2.3"} 1
vc5_interface_xdp_native{interface="eth0"} 1
vc5_interface_xdp_native{interface="eth1"} 0
vc5_overrides{} 1
vc5_probe_lag_seconds{} 0.25
vc5_probes_total{outcome="ok",type="http"} 7
vc5_probes_total{outcome="refused",type="tcp"} 8
vc5_real_bytes_total{real="10.0.0.1",service="WEB",vip="192.0.2.1"} 200
vc5_real_bytes_total{real="10.0.0.2",service="WEB",vip="192.0.2.1"} 5
vc5_real_damped{real="10.0.0.1",service="WEB",vip="192.0.2.1"} 0
vc5_real_damped{real="10.0.0.2",service="WEB",vip="192.0.2.1"} 1
vc5_real_disabled{real="10.0.0.1",service="WEB",vip="192.0.2.1"} 0
vc5_real_disabled{real="10.0.0.2",service="WEB",vip="192.0.2.1"} 1
vc5_real_draining{real="10.0.0.1",service="WEB",vip="192.0.2.1"} 1
vc5_real_draining{real="10.0.0.2",service="WEB",vip="192.0.2.1"} 0
vc5_real_flows{real="10.0.0.1",service="WEB",vip="192.0.2.1"} 3
vc5_real_flows{real="10.0.0.2",service="WEB",vip="192.0.2.1"} 6
vc5_real_last_transition_timestamp_seconds{real="10.0.0.1",service="WEB",vip="192.0.2.1"} 0
vc5_real_last_transition_timestamp_seconds{real="10.0.0.2",service="WEB",vip="192.0.2.1"} 1500.5
vc5_real_packets_total{real="10.0.0.1",service="WEB",vip="192.0.2.1"} 1.15292e+18
vc5_real_packets_total{real="10.0.0.2",service="WEB",vip="192.0.2.1"} 4
vc5_real_serving{real="10.0.0.1",service="WEB",vip="192.0.2.1"} 0
vc5_real_serving{real="10.0.0.2",service="WEB",vip="192.0.2.1"} 1
vc5_real_tier{real="10.0.0.1",service="WEB",vip="192.0.2.1"} 0
vc5_real_tier{real="10.0.0.2",service="WEB",vip="192.0.2.1"} 2
vc5_real_up{real="10.0.0.1",service="WEB",vip="192.0.2.1"} 1
vc5_real_up{real="10.0.0.2",service="WEB",vip="192.0.2.1"} 0
vc5_real_weight{real="10.0.0.1",service="WEB",vip="192.0.2.1"} 1
vc5_real_weight{real="10.0.0.2",service="WEB",vip="192.0.2.1"} 7
vc5_service_need{service="WEB",vip="192.0.2.1"} 1
vc5_service_need{service="dns",vip="192.0.2.2"} 2
vc5_service_serving_tier{service="WEB",vip="192.0.2.1"} 1
vc5_service_serving_tier{service="dns",vip="192.0.2.2"} -1
vc5_service_sorry{service="WEB",vip="192.0.2.1"} 1
vc5_service_sorry{service="dns",vip="192.0.2.2"} 0
vc5_service_up{service="WEB",vip="192.0.2.1"} 1
vc5_service_up{service="dns",vip="192.0.2.2"} 0
vc5_sync_ambiguous_backends{} 20
vc5_sync_copied{} 1
vc5_sync_cpu_seconds_total{} 2.5
vc5_sync_datagrams_total{outcome="accepted"} 10
vc5_sync_datagrams_total{outcome="forged"} 11
vc5_sync_dropped_datagrams_total{} 21
vc5_sync_enabled{} 1
vc5_sync_flows_total{result="added"} 17
vc5_sync_lost_datagrams_total{} 19
vc5_sync_missed_flows_total{} 18
vc5_sync_peer_age_seconds{address="10.0.0.8",peer="00ff"} 0.5
vc5_sync_received_flows_total{} 16
vc5_sync_restarts_total{} 1
vc5_sync_running{} 1
vc5_sync_send_errors_total{} 14
vc5_sync_sent_bytes_total{} 13
vc5_sync_sent_datagrams_total{} 12
vc5_sync_sent_flows_total{} 15
vc5_verdicts_total{action="pass",verdict="not_vip"} 9
vc5_vip_overrides{} 1
vc5_vip_told_neighbors{vip="192.0.2.1"} 1
vc5_vip_told_neighbors{vip="192.0.2.2"} 0
vc5_vip_up{vip="192.0.2.1"} 1
vc5_vip_up{vip="192.0.2.2"} 0
"""


def samples(text: str) -> Iterator[str]:
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(f'{name}="{value}"' for name, value in sorted(sample.labels.items()))
            yield f"{sample.name}{{{labels}}} {sample.value:g}".replace('w\\e"b\n', "WEB")


def test_every_number_has_its_name() -> None:
    assert sorted(samples(metrics.render(SNAPSHOT).decode())) == EXPECTED.strip().splitlines()


def test_sorry_real_is_in_no_tier() -> None:
    service = replace(SNAPSHOT.services[0], reals=(replace(REALS[1], sorry=True),))
    shown = samples(metrics.render(replace(SNAPSHOT, services=(service,))).decode())
    assert [line.split()[-1] for line in shown if line.startswith("vc5_real_tier")] == ["-1"]


def test_every_family_has_help_and_the_type_of_its_name() -> None:
    families = list(text_string_to_metric_families(metrics.render(SNAPSHOT).decode()))
    text = metrics.render(SNAPSHOT).decode()
    for family in families:
        assert family.documentation
        assert all(sample.name.endswith("_total") == (family.type == "counter") for sample in family.samples)
    assert "_created" not in text


def test_balancer_that_has_nothing_yet_can_be_scraped() -> None:
    nothing = replace(
        SNAPSHOT,
        services=(),
        vips={},
        vip_told={},
        sessions={},
        verdicts=(),
        probes={},
        interfaces={},
        overrides=(),
        neighbors=(),
        vip_overrides={},
        sharing=SharingSnapshot(),
    )
    assert len(list(samples(metrics.render(nothing).decode()))) == 8


def test_names_and_units_are_as_prometheus_wants_them() -> None:
    """What `promtool check metrics` finds fault with."""
    for family in text_string_to_metric_families(metrics.render(SNAPSHOT).decode()):
        name = family.name
        assert re.fullmatch(r"vc5(_[a-z0-9]+)+", name)
        assert not re.search(r"_(count|sum|bucket|milliseconds|minutes|hours|kilobytes|info_total)$", name)
        assert family.type not in name.split("_")
        assert not re.search(r"_(total|created)$", name), "only the samples of counters end so"
        assert "timestamp" not in name or name.endswith("_timestamp_seconds")
        assert not family.documentation.endswith(".")
        names = [label for sample in family.samples for label in sample.labels]
        assert all(re.fullmatch(r"[a-z]+", label) for label in names)


def now(*moments: Snapshot) -> Callable[[], Awaitable[Snapshot]]:
    """What the balancer is asked for, again and again."""
    left = iter(moments)

    async def snapshot() -> Snapshot:
        return next(left)

    return snapshot


async def test_server_shows_the_snapshot_of_the_moment() -> None:
    port = free_port()
    moments = now(SNAPSHOT, replace(SNAPSHOT, flow_capacity=8192))
    async with serve(moments) as server, aiohttp.ClientSession() as client:
        await server.move(("127.0.0.1", port))
        for capacity in (4096, 8192):
            async with client.get(f"http://127.0.0.1:{port}/metrics") as response:
                assert response.status == http.client.OK
                assert response.headers["Content-Type"].startswith("text/plain; version=")
                assert f"vc5_flow_table_entries {capacity}.0\n" in await response.text()
        async with client.get(f"http://127.0.0.1:{port}/secret") as response:
            assert response.status == http.client.NOT_FOUND


async def test_what_others_than_prometheus_may_ask() -> None:
    """Whether it answers, and whether a router knows of every VIP."""
    told = replace(SNAPSHOT, vip_told=dict.fromkeys((VIP, VIP2), ToldSnapshot(1, 2)))
    port = free_port()
    async with serve(now(SNAPSHOT, told)) as server, aiohttp.ClientSession() as client:
        await server.move(("127.0.0.1", port))

        async def ask(path: str) -> tuple[int, str]:
            async with client.get(f"http://127.0.0.1:{port}/{path}") as response:
                return response.status, await response.text()

        assert await ask("healthy") == (200, "healthy\n")
        assert await ask("ready") == (503, "no router is told of 192.0.2.2\n")
        assert await ask("ready") == (200, "ready\n")


async def listens(address: str, port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection(address, port)
    except ConnectionRefusedError:
        return False
    writer.close()
    return True


async def test_server_moves() -> None:
    one, two = free_port(), free_port()
    async with serve(now()) as server:
        for place in (("127.0.0.1", one), ("127.0.0.1", one), ("127.0.0.1", two), ("0.0.0.0", two), None):
            await server.move(place)
            assert await listens("127.0.0.1", one) is (place == ("127.0.0.1", one))
            assert await listens("127.0.0.1", two) is (place is not None and place[1] == two)
            assert await listens("127.0.0.2", two) is (place == ("0.0.0.0", two))
        await server.move(("127.0.0.1", one))
    assert not await listens("127.0.0.1", one)


async def test_all_addresses_are_those_of_ipv6_too() -> None:
    port = free_port()
    async with serve(now()) as server:
        await server.move((None, port))
        assert await listens("127.0.0.2", port)
        assert await listens("::1", port)
        with pytest.raises(Vc5Error, match=rf"^can't serve metrics on all addresses, port {port}: .*in use$"):
            async with serve(now()) as other:
                await other.move((None, port))


async def test_move_that_fails_leaves_it_where_it_was() -> None:
    port = free_port()
    async with serve(now()) as server:
        await server.move(("127.0.0.1", port))
        with socket.create_server(("127.0.0.1", 0)) as other:
            with pytest.raises(Vc5Error, match=r"in use$"):
                await server.move(("127.0.0.1", other.getsockname()[1]))
            assert await listens("127.0.0.1", port)
        with socket.create_server(("127.0.0.2", port)), pytest.raises(Vc5Error, match=r"in use$"):
            await server.move(("127.0.0.2", port))
        assert await listens("127.0.0.1", port)


async def test_port_in_use_is_one_clear_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        async with serve(now()) as server:
            with pytest.raises(Vc5Error, match=rf"^can't serve metrics on 127.0.0.1 port {port}: .*in use$"):
                await server.move(("127.0.0.1", port))


def free_port() -> int:
    """None that the kernel gives away by itself: somebody might get it meanwhile, or who connects to it while
    nobody listens might get it as its own, and be connected to itself.
    """
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        port = random.randrange(max(1024, lowest - 10_000), lowest)
        with suppress(OSError), socket.create_server(("", port)):
            return port
