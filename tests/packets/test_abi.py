"""What Python believes of the C: the compiler's own sizes, offsets, constants and hashes."""

from __future__ import annotations

import os
import random
import re
import struct
from collections.abc import Sequence
from ipaddress import IPv4Address
from pathlib import Path

import numpy as np
import pytest

from tests.packets.harness import KEY
from vc5py.core.flowhash import flow_hash4, table_slot
from vc5py.dataplane import abi, compiler, libbpf

TYPES_H = (abi.XDP_DIR / "types.h").read_text(encoding="utf-8")
# The C field, where Python's is not called the same; a link word begins with the MAC.
FIELDS = {"link": "mac"}
STRUCTS = {
    "flow_entry": abi.FLOW_ENTRY,
    "flow_set": np.dtype([("way", abi.FLOW_ENTRY, abi.FLOW_WAYS)]),
    "service": abi.SERVICE,
    "slot_line": abi.SLOT_LINE,
    "backend": abi.BACKEND,
    "backend_count": abi.BACKEND_COUNT,
    "verdict_counts": abi.VERDICT_COUNTS,
    "interface": abi.INTERFACE,
    "settings": abi.SETTINGS,
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
struct question { __be32 saddr, daddr; __be16 sport, dport; u8 protocol; u8 zero[3]; u64 hash; u64 slot; };
int answer(struct xdp_md *ctx)
{
	struct question *q = (void *)(long)ctx->data;

	if ((void *)(q + 1) > (void *)(long)ctx->data_end)
		return XDP_ABORTED;
	q->hash = flow_hash4(q->saddr, q->daddr, q->sport, q->dport, q->protocol);
	q->slot = hash_slot(q->hash);
	return XDP_PASS;
}
"""
_QUESTION = struct.Struct("<4s4s2s2sB3x")


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


def test_sizes_and_offsets(tmp_path: Path) -> None:
    expected = {}
    for name, dtype in STRUCTS.items():
        expected[f"sizeof(struct {name})"] = dtype.itemsize
        for field, (_, offset, *_rest) in (dtype.fields or {}).items():
            expected[f"offsetof(struct {name}, {FIELDS.get(field, field)})"] = offset
    expected["sizeof(struct service_key4)"] = 8
    expected["offsetof(struct service_key4, port)"] = 4
    expected["offsetof(struct service_key4, protocol)"] = 6
    expected["offsetof(struct backend, flags)"] = 6  # above the MAC in the link word
    expected["offsetof(struct interface, flags)"] = 6
    assert dict(zip(expected, ask(tmp_path, list(expected)), strict=True)) == expected


def test_every_struct_is_mirrored() -> None:
    assert set(re.findall(r"^struct (\w+) \{", TYPES_H, re.MULTILINE)) == {*STRUCTS, "service_key4"}


def test_constants(tmp_path: Path) -> None:
    """Every constant that types.h defines is in abi.py, with the same value."""
    names = [name for name in defined_constants() if not name.endswith("_H")]
    assert len(names) > 15
    assert {name: getattr(abi, name) for name in names} == dict(zip(names, ask(tmp_path, names), strict=True))


def test_enumerations(tmp_path: Path) -> None:
    expected = {f"VERDICT_{verdict.name.upper()}": verdict.number for verdict in abi.verdicts()}
    expected |= {f"FLOW_{state.name}": state.value for state in abi.FlowState}
    expected |= {"FLOW_STATES": abi.FLOW_STATES, "VERDICT_SLOTS": abi.VERDICT_SLOTS}
    assert dict(zip(expected, ask(tmp_path, list(expected)), strict=True)) == expected


def test_every_verdict_is_read() -> None:
    """The regular expression misses no line of the list, and numbers are dense from 0."""
    listed = re.findall(r"\bV\(\d+, ", (abi.XDP_DIR / "verdicts.h").read_text(encoding="utf-8"))
    assert [verdict.number for verdict in abi.verdicts()] == list(range(len(listed)))


def test_service_key(tmp_path: Path) -> None:
    (word,) = ask(
        tmp_path,
        [
            "((union { struct service_key4 key; u64 word; }){ .key = { .vip = bpf_htonl(0xc0000201),"
            " .port = bpf_htons(443), .protocol = 17 } }).word"
        ],
    )
    assert word.to_bytes(8, "little") == abi.service_key4(IPv4Address("192.0.2.1"), 443, 17)


@pytest.mark.parametrize("mac", ["02:00:00:00:00:01", "fe:dc:ba:98:76:54"])
def test_mac_word(mac: str) -> None:
    assert abi.mac_to_word(mac).to_bytes(8, "little") == bytes.fromhex(mac.replace(":", "")) + b"\0\0"
    assert abi.word_to_mac(abi.mac_to_word(mac) | 0xFFFF << 48) == mac


def test_flow_hash_and_slot(tmp_path: Path) -> None:
    """2,000 random 5-tuples, and the extremes of every part."""
    generator = random.Random(1)
    tuples = [
        (
            generator.randrange(1 << 32),
            generator.randrange(1 << 32),
            *generator.choices(range(1 << 16), k=2),
            p,
        )
        for p in (6, 17)
        for _ in range(1000)
    ]
    tuples += [
        (0, 0, 0, 0, 0),
        (0xFFFFFFFF, 0xFFFFFFFF, 0xFFFF, 0xFFFF, 0xFF),
        (1, 0, 0, 0, 6),
        (0, 1, 0, 0, 6),
    ]
    fd = load(tmp_path, _HASH, {"FLOW_KEY": KEY.start, "FLOW_KEY_ODD": KEY.odd})
    try:
        for source, destination, sport, dport, protocol in tuples:
            saddr, daddr = IPv4Address(source), IPv4Address(destination)
            ports = sport.to_bytes(2, "big"), dport.to_bytes(2, "big")
            question = _QUESTION.pack(saddr.packed, daddr.packed, *ports, protocol)
            found, slot = struct.unpack("<16x2Q", libbpf.test_run(fd, question + bytes(16)).data)
            assert found == flow_hash4(KEY, saddr, daddr, sport, dport, protocol)
            assert slot == table_slot(found, 1 << 16)
            assert slot & 0xFF == table_slot(found, 256)
    finally:
        os.close(fd)
