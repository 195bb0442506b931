"""Where our nanoseconds go: the same program with one part left out, against the whole one.

A copy of xdp/ is changed at places that are named here, text for text, so that the program itself knows
nothing of it; a text that is no longer there is an error. What is left out may have overlapped with the rest,
so the shares are lower bounds; what remains is parsing, hashing, rewriting and the overlap.
"""

from __future__ import annotations

import os
import re
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.bench.rig import VIP4, Harness, Ours, Stream
from vc5py.dataplane import abi

ENTRIES = 1 << 16


@dataclass(frozen=True, slots=True)
class Cut:
    """A part that can be left out: in that file, the text and what stands there instead."""

    name: str
    file: str
    text: str
    instead: str


CUTS = (
    Cut(
        "service look-up",
        "fast.h",
        "if (!fast_find(p, ports, ipv6, &index) || !interface)",
        "index = 0;\n\tif (!interface)",
    ),
    Cut(
        "addressed to us?",
        "fast.h",
        "if (mac_word(interface->mac) != (mac_of_frame(eth->h_dest) | (u64)INTERFACE_OURS << 48))",
        "if (!eth)",
    ),
    Cut(
        "the flow's name",
        "fast.h",
        "hash = hash_end(hash_addresses(p.saddr, p.daddr, ipv6), ports, p.protocol);",
        "hash = (u64)ports << 24 | p.saddr[0];",
    ),
    Cut(
        "slot of the Maglev table",
        "choose.h",
        "struct slot_line *line = slot_line_at((u32)table + slot / SLOTS_PER_LINE);",
        "struct slot_line *line = NULL;\n\n\treturn number % 16;",
    ),
    Cut("verdict counter", "maps.h", "counts->packets[verdict & (VERDICT_SLOTS - 1)]++;", "(void)counts;"),
    Cut("backend counter", "fast.h", "count_backend(index, end - (void *)eth);", "(void)index;"),
)


@dataclass(frozen=True, slots=True)
class Share:
    """`saved_ns`: how much cheaper an established flow's packet is without it."""

    name: str
    saved_ns: float


def _own_headers(source: Path) -> str:
    """The main file with our headers in it, so that one text can be changed and compiled anywhere."""
    text = source.read_text(encoding="utf-8")
    return re.sub(
        r'^#include "(\w+\.h)"$',
        lambda found: (source.parent / found[1]).read_text("utf-8"),
        text,
        flags=re.M,
    )


def without(cut: Cut) -> str:
    """vc5.c without that part. ValueError where the text isn't there exactly once."""
    whole = _own_headers(abi.XDP_DIR / "vc5.c")
    if (abi.XDP_DIR / cut.file).read_text("utf-8").count(cut.text) != 1 or whole.count(cut.text) != 1:
        raise ValueError(f"{cut.name}: not once in {cut.file}: {cut.text}")
    return whole.replace(cut.text, cut.instead)


def _load_all(ours: Ours) -> dict[str, int]:
    programs = {}
    with tempfile.TemporaryDirectory(prefix="vc5py-profile-") as folder:
        for cut in CUTS:
            source = Path(folder) / "vc5.c"
            source.write_text(without(cut), encoding="utf-8")
            programs[cut.name] = ours.load(source)
    return programs


def measure(packets: int, rounds: int, say: Callable[[str], None]) -> list[Share]:
    """One established flow in a stable slot; all programs take turns."""
    say("one established flow, part by part")
    harness, ours = Harness(), Ours(ENTRIES)
    programs = {"floor": harness.floor, "whole": ours.program} | _load_all(ours)
    try:
        runs = [
            {name: harness.run(program, Stream(VIP4), packets) for name, program in programs.items()}
            for _ in range(rounds + 1)
        ][1:]
    finally:
        for cut in CUTS:
            os.close(programs[cut.name])
        ours.close()
        harness.close()
    total = statistics.median(run["whole"] - run["floor"] for run in runs)
    shares = [Share(c.name, statistics.median(run["whole"] - run[c.name] for run in runs)) for c in CUTS]
    rest = total - sum(share.saved_ns for share in shares)
    return [*shares, Share("parsing, hashing, rewriting, overlap", rest), Share("all, over the floor", total)]


def table(shares: list[Share]) -> str:
    return "\n".join(f"{share.name:40}{share.saved_ns:6.1f} ns" for share in shares)
