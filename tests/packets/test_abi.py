"""What Python believes of the C: the compiler's own sizes, offsets, constants and hashes."""

from __future__ import annotations

import os
import random
import re
import struct
from collections.abc import Callable, Iterator, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

import numpy as np
import pytest

from tests.packets.harness import KEY
from vc5py.core.flowhash import client_hash, flow_hash, fragment_hash, other_slot, table_slot
from vc5py.dataplane import abi, compiler, libbpf
from vc5py.dataplane.servicemap import ServiceKey, ServiceMap, sets_for
from vc5py.model import IPAddress

TYPES_H = (abi.XDP_DIR / "types.h").read_text(encoding="utf-8")
# The C field, where Python's is not called the same; a link word begins with the MAC.
FIELDS = {"link": "mac", "place": "ifindex", "how": "mode"}
STRUCTS = {
    "flow_entry": abi.FLOW_ENTRY,
    "flow_set": np.dtype([("way", abi.FLOW_ENTRY, abi.FLOW_WAYS)]),
    "service_entry4": abi.SERVICE_ENTRY4,
    "service_entry6": abi.SERVICE_ENTRY6,
    "service_set4": np.dtype([("way", abi.SERVICE_ENTRY4, abi.SERVICE_WAYS4)]),
    "service_set6": np.dtype([("way", abi.SERVICE_ENTRY6, abi.SERVICE_WAYS6)]),
    "service": abi.SERVICE,
    "slot_line": abi.SLOT_LINE,
    "backend": abi.BACKEND,
    "backend_count": abi.BACKEND_COUNT,
    "verdict_counts": abi.VERDICT_COUNTS,
    "interface": abi.INTERFACE,
    "settings": abi.SETTINGS,
    "icmp_budget": abi.ICMP_BUDGET,
    "flow_log_head": abi.FLOW_LOG_HEAD,
    "learned": abi.LEARNED,
    "learn_control": abi.LEARN_CONTROL,
}
_HEADERS = ("linux/bpf.h", "linux/if_ether.h", "linux/in.h", "linux/ip.h", "linux/tcp.h", "linux/udp.h")
_INCLUDES = "".join(f"#include <{name}>\n" for name in _HEADERS)
_ASK = """
#include "verdicts.h"
#include "types.h"
int answer(struct xdp_md *ctx)
{{
	u64 *out = (void *)(long)ctx->data;

	if ((void *)(out + {count}) > (void *)(long)ctx->data_end)
		return XDP_ABORTED;
{stores}
	return XDP_PASS;
}}
"""
_HASH = """
#include "hash.h"
struct question {
	u64 saddr[2], daddr[2], last;
	u64 protocol, ipv6;
	u64 hash, slot, other;
};
int answer(struct xdp_md *ctx)
{
	struct question *q = (void *)(long)ctx->data;

	if ((void *)(q + 1) > (void *)(long)ctx->data_end)
		return XDP_ABORTED;
	q->hash = hash_end(hash_addresses(q->saddr, q->daddr, q->ipv6), q->last, q->protocol);
	q->slot = hash_slot(q->hash);
	q->other = hash_other_slot(q->hash);
	return XDP_PASS;
}
"""
_QUESTION = struct.Struct("<16s16sQQQ")
Hash = Callable[[bytes, bytes, int, int], tuple[int, int, int]]


@pytest.fixture(scope="module")
def c_hash(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hash]:
    """Hash, slot and other slot, by the C, of two addresses, the last word and the protocol."""
    fd = load(tmp_path_factory.mktemp("hash"), _HASH, {"FLOW_KEY": KEY.start, "FLOW_KEY_ODD": KEY.odd})

    def compute(source: bytes, destination: bytes, last: int, protocol: int) -> tuple[int, int, int]:
        question = _QUESTION.pack(source, destination, last, protocol, len(source) == 16)
        answer = libbpf.test_run(fd, question + bytes(24)).data
        found, slot, other = struct.unpack_from("<3Q", answer, _QUESTION.size)
        return found, slot, other

    yield compute
    os.close(fd)


def load(directory: Path, text: str, macros: dict[str, int]) -> int:
    path = directory / "answer.c"
    path.write_text(_INCLUDES + text, encoding="utf-8")
    return compiler.compile_file(path, macros).load("answer", compiler.ProgramType.XDP)


def ask(directory: Path, expressions: Sequence[str]) -> list[int]:
    """The values of C constant expressions, as the compiler of the data plane computes them."""
    stores = "\n".join(f"\tout[{i}] = (u64)({text});" for i, text in enumerate(expressions))
    fd = load(directory, _ASK.format(count=len(expressions), stores=stores), {})
    try:
        result = libbpf.test_run(fd, bytes(8 * max(8, len(expressions))))
    finally:
        os.close(fd)
    assert result.retval == 2
    return list(struct.unpack_from(f"<{len(expressions)}Q", result.data))


def defined_constants() -> list[str]:
    return re.findall(r"^#define (\w+)[ \t]+\S", TYPES_H, re.MULTILINE)


def offset_in(dtype: np.dtype[np.void], field: str) -> int:
    assert dtype.fields is not None
    return int(dtype.fields[field][1])


def test_sizes_and_offsets(tmp_path: Path) -> None:
    expected = {}
    for name, dtype in STRUCTS.items():
        expected[f"sizeof(struct {name})"] = dtype.itemsize
        for field, (_, offset, *_rest) in (dtype.fields or {}).items():
            expected[f"offsetof(struct {name}, {FIELDS.get(field, field)})"] = offset
    expected["offsetof(struct backend, flags)"] = 6  # above the MAC in the link word
    expected["offsetof(struct interface, flags)"] = 6
    # Within the words that are written in one go:
    at: dict[str, dict[str, int]] = {
        "place": {"vlan": 4, "svlan": 6},
        "how": {"dscp": 1, "port": 2, "mtu": 4, "load": 6},
    }
    for word, fields in at.items():
        start = offset_in(abi.BACKEND, word)
        expected |= {f"offsetof(struct backend, {name})": start + n for name, n in fields.items()}
    assert dict(zip(expected, ask(tmp_path, list(expected)), strict=True)) == expected


def test_every_struct_is_mirrored() -> None:
    assert set(re.findall(r"^struct (\w+) \{", TYPES_H, re.MULTILINE)) == set(STRUCTS)


def test_constants(tmp_path: Path) -> None:
    """Every constant that types.h defines is in abi.py, with the same value."""
    names = [name for name in defined_constants() if not name.endswith("_H")]
    assert len(names) > 15
    assert {name: getattr(abi, name) for name in names} == dict(zip(names, ask(tmp_path, names), strict=True))


def test_enumerations(tmp_path: Path) -> None:
    expected = {f"VERDICT_{verdict.name.upper()}": verdict.number for verdict in abi.verdicts()}
    expected |= {f"FLOW_{state.name}": state.value for state in abi.FlowState}
    expected |= {f"LEARN_{result.name}": result.value for result in abi.LearnResult}
    expected |= {"FLOW_STATES": abi.FLOW_STATES, "VERDICT_SLOTS": abi.VERDICT_SLOTS}
    assert dict(zip(expected, ask(tmp_path, list(expected)), strict=True)) == expected


def test_every_verdict_is_read() -> None:
    """The regular expression misses no line of the list, and numbers are dense from 0."""
    listed = re.findall(r"\bV\(\d+, ", (abi.XDP_DIR / "verdicts.h").read_text(encoding="utf-8"))
    assert [verdict.number for verdict in abi.verdicts()] == list(range(len(listed)))


def test_service_key(tmp_path: Path) -> None:
    (word,) = ask(tmp_path, ["KEY_VALID | 17ULL << 48 | (u64)bpf_htons(443) << 32"])
    assert word == abi.service_key(443, 17)


@pytest.mark.parametrize("mac", ["02:00:00:00:00:01", "fe:dc:ba:98:76:54"])
def test_mac_word(mac: str) -> None:
    assert abi.mac_to_word(mac).to_bytes(8, "little") == bytes.fromhex(mac.replace(":", "")) + b"\0\0"
    assert abi.word_to_mac(abi.mac_to_word(mac) | 0xFFFF << 48) == mac


def random_addresses(generator: random.Random, size: int) -> Iterator[IPAddress]:
    yield from map(
        address_of, (bytes(size), b"\xff" * size, b"\1" + bytes(size - 1), bytes(size - 1) + b"\1")
    )
    while True:
        yield address_of(generator.randbytes(size))


def address_of(packed: bytes) -> IPAddress:
    return IPv4Address(packed) if len(packed) == 4 else IPv6Address(packed)


@pytest.mark.parametrize("size", [4, 16])
def test_flow_hash_and_slots(c_hash: Hash, size: int) -> None:
    """A thousand random 5-tuples, and the extremes of every part."""
    generator = random.Random(size)
    addresses = random_addresses(generator, size)
    ports = [0, 0xFFFF, 1, 0x100, 80]
    for n in range(1000):
        source, vip = next(addresses), next(addresses)
        sport, dport = generator.choice(ports), generator.randrange(1 << 16)
        protocol = (6, 17)[n % 2]
        last = int.from_bytes(sport.to_bytes(2, "big") + dport.to_bytes(2, "big"), "little")
        found, slot, other = c_hash(source.packed, vip.packed, last, protocol)
        assert found == flow_hash(KEY, source, vip, sport, dport, protocol)
        assert (slot, other) == (table_slot(found, 1 << 16), other_slot(found, 1 << 16))
        assert slot & 0xFF == table_slot(found, 256)


@pytest.mark.parametrize("size", [4, 16])
def test_the_other_names(c_hash: Hash, size: int) -> None:
    """The client's alone, which sticky services go by, and the one that fragments have in common."""
    generator = random.Random(size)
    addresses = random_addresses(generator, size)
    for _ in range(200):
        source, vip = next(addresses), next(addresses)
        assert c_hash(source.packed, bytes(size), 0, 0)[0] == client_hash(KEY, source)
        identification = generator.randbytes(2 if size == 4 else 4)
        word = int.from_bytes(identification, "little")
        found = c_hash(source.packed, vip.packed, word, 0 if size == 4 else 44)[0]
        assert found == fragment_hash(KEY, source, vip, int.from_bytes(identification, "big"))


@pytest.mark.parametrize("family", [4, 6])
def test_many_services_of_one_vip_find_room(family: int) -> None:
    """Ports in a row on few VIPs, to the load that `sets_for` allows: the sets must not follow each other."""
    entry, ways = (
        (abi.SERVICE_ENTRY4, abi.SERVICE_WAYS4) if family == 4 else (abi.SERVICE_ENTRY6, abi.SERVICE_WAYS6)
    )
    keys = 4 * 2 * 250
    view = np.zeros((sets_for(keys, ways), ways), dtype=entry)
    places = ServiceMap(view)
    for vip in range(1, 5):
        address = ip_address(f"192.0.2.{vip}" if family == 4 else f"2001:db8::{vip}")
        for port in range(1, 251):
            for protocol in (6, 17):
                places.set(ServiceKey(address, port, protocol), port)
    assert np.count_nonzero(view["key"]) == keys
