"""Every verdict and every shape of frame, whole frames compared byte by byte with the oracle's."""

from __future__ import annotations

import pytest
from scapy.layers.l2 import Ether

from tests.packets import cases
from tests.packets.cases import CASES, PROBES, Case, ProbeCase
from tests.packets.frames import IP_AT, from_client, ip_checksum, patched, random_clients, tcp, udp
from tests.packets.harness import FLOW_SETS, Kernel, Outcome
from tests.packets.oracle import expect, expect_probe, less_one_ttl, read_tuple
from tests.packets.world import FAR_VIP, MIXED_VIP, WORLD
from vc5py.dataplane import abi
from vc5py.dataplane.abi import FlowState

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
    assert got == expected, explain(expected, got)


def crowd(kernel: Kernel, flow_hash: int) -> None:
    """Fills both sets of a flow with established flows of others."""
    other = kernel.value_of(cases.entry())
    for flow_set in kernel.sets_of(flow_hash):
        for way in range(abi.FLOW_WAYS):
            # Any hash but the flow's own; which sets it would lead to does not matter here.
            kernel.put_word(flow_set, way, flow_hash ^ (way + 1) << 50, other)


def prepare(kernel: Kernel, case: Case) -> None:
    kernel.install(case.world)
    if case.crowded:
        crowd(kernel, read_tuple(case.frame).hash)
    if case.entry is not None:
        kernel.put(read_tuple(case.frame).hash, case.entry, way=3, tear=TORN_BIT if case.torn else 0)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_frame(frozen_kernel: Kernel, case: Case) -> None:
    prepare(frozen_kernel, case)
    assert case.expected.verdict == case.verdict, "the oracle disagrees with the case"
    check(case.expected, frozen_kernel.run(case.frame, case.side))


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
    assert covered == {verdict.name for verdict in abi.verdicts()}
    assert len({case.id for case in CASES}) == len(CASES)


@pytest.mark.parametrize(
    "case", [c for c in CASES if c.entry is None and not c.crowded], ids=lambda case: case.id
)
def test_only_flows_of_services_are_recorded(frozen_kernel: Kernel, case: Case) -> None:
    """Nothing else leaves anything in the flow table."""
    prepare(frozen_kernel, case)
    frozen_kernel.run(case.frame, case.side)
    recorded = case.verdict in ("forwarded_new", "no_neighbour", "looped")
    assert len(frozen_kernel.hashes()) == recorded


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
    assert less_one_ttl(packet)[:20] == tcp(ttl=76)[IP_AT : IP_AT + 20]


def test_new_flows_go_where_the_maglev_table_says(kernel: Kernel) -> None:
    """Random clients, services of equal and unequal weights, near and far."""
    seen = set()
    templates = [tcp(), udp(), tcp(dport=22), tcp(MIXED_VIP), udp(FAR_VIP, 53)]
    for number, (source, sport) in zip(range(500), random_clients(1), strict=False):
        frame = from_client(templates[number % len(templates)], source, sport)
        kernel.clear_flows()
        got = kernel.run(frame)
        check(expect(WORLD, frame), got)
        seen.add(got.frame[:6])
    assert len(seen) == 5, "every real with a weight gets some"


def test_entry_is_named_by_pythons_hash(kernel: Kernel) -> None:
    """The flow table's tag ^ value is flow_hash4 of the 5-tuple, and the entry is in one of its two sets."""
    for (source, sport), template in zip(random_clients(2), [tcp(), udp(), tcp(dport=22)] * 50, strict=False):
        frame = from_client(template, source, sport)
        kernel.clear_flows()
        kernel.run(frame)
        flow_hash = read_tuple(frame).hash
        assert kernel.hashes().tolist() == [flow_hash]
        recorded = kernel.entry(flow_hash)
        assert recorded is not None and recorded.state is FlowState.UNPROVEN
        assert not recorded.second
    assert kernel.maps.flows.shape == (FLOW_SETS, abi.FLOW_WAYS)
