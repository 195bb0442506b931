"""Every verdict and every shape of frame, whole frames compared byte by byte with the oracle's."""

from __future__ import annotations

from dataclasses import replace

import pytest
from scapy.layers.l2 import Ether

from tests.packets.cases import CASES, PROBES, ProbeCase
from tests.packets.cases_base import Case, entry, oracle_for
from tests.packets.frames import IP_AT, from_client, ip_checksum, patched, random_clients, tcp, udp
from tests.packets.harness import FLOW_SETS, Kernel, Outcome, XdpAction
from tests.packets.oracle import UNREACHABLE, expect_probe, name_of, read_tuple
from tests.packets.oracle_send import less_one_hop
from tests.packets.world import (
    FAR_VIP,
    MIXED_VIP,
    STICKY_VIP,
    STICKY_VIP6,
    WEB_VIP,
    WEB_VIP6,
    WORLD,
    ServiceSpec,
    World,
)
from vc5py.dataplane import abi
from vc5py.dataplane.abi import FlowState
from vc5py.model import IPAddress, Protocol

TORN_BIT = 1 << 37


def explain(expected: Outcome, got: Outcome) -> str:
    """Where two outcomes differ, for a person."""
    lines = [f"expected {expected.verdict} {expected.action!r}, got {got.verdict} {got.action!r}"]
    wanted, have = expected.frame, got.frame
    if wanted != have:
        span = range(max(len(wanted), len(have)))
        offsets = [i for i in span if wanted[i : i + 1] != have[i : i + 1]]
        lines.append(f"{len(wanted)} bytes expected, {len(have)} seen; they differ at {offsets}")
        lines += [f"expected {wanted.hex(' ')}", f"got      {have.hex(' ')}"]
        lines += ["expected:", Ether(wanted).show(dump=True), "got:", Ether(have).show(dump=True)]
    return "\n".join(lines)


def check(expected: Outcome, got: Outcome) -> None:
    if got.action is XdpAction.DROP:
        got = replace(got, frame=b"")  # nobody sees it
    assert got == expected, explain(expected, got)


def crowd(kernel: Kernel, flow_hash: int) -> None:
    """Fills both sets of a flow with established flows of others."""
    other = kernel.value_of(entry())
    for flow_set in kernel.sets_of(flow_hash):
        for way in range(abi.FLOW_WAYS):
            # Any hash but the flow's own; which sets it would lead to does not matter here.
            kernel.put_word(flow_set, way, flow_hash ^ (way + 1) << 50, other)


def prepare(kernel: Kernel, case: Case) -> None:
    kernel.install(case.world, case.before)
    if case.crowded:
        crowd(kernel, read_tuple(case.frame).hash)
    if case.entry is not None:
        kernel.put(name_of(case.frame), case.entry, way=3, tear=TORN_BIT if case.torn else 0)
    for frame in case.first:
        kernel.run(frame, case.side)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_frame(frozen_kernel: Kernel, case: Case) -> None:
    prepare(frozen_kernel, case)
    assert case.expected.verdict == case.verdict, "the oracle disagrees with the case"
    check(case.expected, frozen_kernel.run(case.frame, case.side, bare=case.bare))


@pytest.mark.parametrize("case", PROBES, ids=lambda case: case.id)
def test_probe(kernel: Kernel, case: ProbeCase) -> None:
    real, mark = None, case.mark
    if case.target is not None:
        service, address = case.target
        real = WORLD.service(service).real(address)
        mark = abi.PROBE_MARK | kernel.backend_index(service, real)
    got = kernel.run_egress(case.frame, mark)
    assert got.verdict == case.verdict
    if case.verdict is None:
        assert (got.action.name, got.frame) == ("OK", case.frame)
    else:
        check(expect_probe(case.frame, real), got)


def test_every_verdict_has_a_case() -> None:
    covered = {case.verdict for case in CASES} | {case.verdict for case in PROBES} - {None}
    assert covered | UNREACHABLE == {verdict.name for verdict in abi.verdicts()}
    assert not covered & UNREACHABLE
    assert len({case.id for case in CASES}) == len(CASES)


@pytest.mark.parametrize("case", [c for c in CASES if not c.torn and not c.crowded], ids=lambda case: case.id)
def test_flows_are_recorded(frozen_kernel: Kernel, case: Case) -> None:
    """What the flow table holds afterwards: those flows, and nothing else."""
    prepare(frozen_kernel, case)
    frozen_kernel.run(case.frame, case.side, bare=case.bare)
    flows = case.predict()[1]
    assert frozen_kernel.hashes().tolist() == sorted(flows)
    for name, known in flows.items():
        recorded = frozen_kernel.entry(name)
        assert recorded is not None
        assert (recorded.service, recorded.real.address, recorded.state) == known.told


@pytest.mark.parametrize("vip", [WEB_VIP, WEB_VIP6])
def test_every_one_of_many_ports_is_found(frozen_kernel: Kernel, vip: IPAddress) -> None:
    """So many keys that some are in their second sets, and none of them anywhere else."""
    ports = range(1, 501 if vip.version == 4 else 129)
    reals = WORLD.service("web" if vip.version == 4 else "web6").reals
    many = ServiceSpec("many", vip, tuple((port, Protocol.TCP) for port in ports), reals)
    frozen_kernel.install(World((many,)))
    template = tcp(vip)
    at = IP_AT + (20 if vip.version == 4 else 40) + 2
    frames = [patched(template, at, port.to_bytes(2, "big")) for port in range(1, 1001)]
    found = [frozen_kernel.run_many([frame])[0].verdict for frame in frames]
    assert set(found[: len(ports)]) <= {"forwarded_stable", "forwarded_new"}
    assert set(found[len(ports) :]) == {"no_service"}


def test_ttl_checksum_for_every_checksum(kernel: Kernel) -> None:
    """All 65,535 checksums that a header can have: the sent one is right, computed anew."""
    base = tcp(flags="A")
    zeroed = patched(base, IP_AT + 10, b"\0\0")
    for number in range(0xFFFF):
        header = patched(zeroed[IP_AT : IP_AT + 20], 4, number.to_bytes(2, "big"))
        frame = base[:IP_AT] + patched(header, 10, ip_checksum(header)) + base[IP_AT + 20 :]
        sent = kernel.run_raw(frame)[IP_AT:]
        assert sent[8] == frame[IP_AT + 8] - 1
        assert ip_checksum(patched(sent[:20], 10, b"\0\0")) == sent[10:12], number


def test_ttl_oracle_agrees_with_itself() -> None:
    """RFC 1624 and a fresh sum give the same, for a right checksum."""
    packet = tcp(ttl=77)[IP_AT:]
    assert less_one_hop(packet)[:20] == tcp(ttl=76)[IP_AT : IP_AT + 20]


def test_new_flows_go_where_the_maglev_table_says(kernel: Kernel) -> None:
    """Random clients, services of equal and unequal weights, near and far."""
    seen, oracle = set(), oracle_for(WORLD, None)
    templates = [tcp(), udp(), tcp(dport=22), tcp(MIXED_VIP), udp(FAR_VIP, 53)]
    for number, (source, sport) in zip(range(500), random_clients(1), strict=False):
        frame = from_client(templates[number % len(templates)], source, sport)
        kernel.clear_flows()
        got = kernel.run(frame)
        check(oracle.predict(frame, {}), got)
        seen.add(got.frame[:6])
    assert len(seen) == 5, "every real with a weight gets some"


def test_entry_is_named_by_pythons_hash(kernel: Kernel) -> None:
    """The flow table's tag ^ value is flow_hash4 of the 5-tuple, and the entry is in one of its two sets."""
    templates = [tcp(STICKY_VIP), udp(STICKY_VIP, 53), tcp(STICKY_VIP6), udp(STICKY_VIP6, 53)]
    for (source, sport), template in zip(random_clients(2), templates * 60, strict=False):
        frame = from_client(template, source, sport)
        kernel.clear_flows()
        kernel.run(frame)
        flow_hash = read_tuple(frame).hash
        assert kernel.hashes().tolist() == [flow_hash]
        recorded = kernel.entry(flow_hash)
        assert recorded is not None and recorded.state is FlowState.UNPROVEN
        assert not recorded.second
    assert kernel.maps.flows.shape == (FLOW_SETS, abi.FLOW_WAYS)
