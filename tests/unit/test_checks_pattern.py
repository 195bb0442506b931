"""Patterns: those that take others minutes, those that are refused, and what they match."""

from __future__ import annotations

import asyncio
import random

import pytest

from vc5py.checks.pattern import INLINE_STEPS, MAX_PROGRAM, compile_pattern, found

MOST = b"a" * 65_536


@pytest.mark.parametrize(
    ("pattern", "data", "matches"),
    [
        ("up|ok", b"status: ok", True),
        ("^ok$", b"status: ok", False),
        ("(?i)OK", b"ok", True),
        ("a.c", b"a\xffc", True),
        ("a.c", b"a\nc", False),
        ("(?s)a.c", b"a\nc", True),
        ("^b", b"a\nb", False),
        ("(?m)^b", b"a\nb", True),
        ("é", "café".encode(), True),
        (r"\x00", b"\x00", True),
        ("", b"", True),
    ],
)
async def test_matches_anywhere_in_bytes(pattern: str, data: bytes, matches: bool) -> None:
    assert await found(pattern, data) is matches


@pytest.mark.parametrize("pattern", ["(", "a**", "(?=x)", "(?<!x)", r"(a)\1", "[", "a{1001}", "\\"])
def test_refuses_with_a_plain_message(pattern: str) -> None:
    with pytest.raises(ValueError, match=r"^[ -~]{3,100}$"):
        compile_pattern(pattern)


def test_refuses_what_is_too_large() -> None:
    with pytest.raises(ValueError, match=f"^too large: [0-9]+ instructions, at most {MAX_PROGRAM}$"):
        compile_pattern("(.*){1,1000}x")


@pytest.mark.parametrize("pattern", ["(a+)+b", "(a*)*(a*)*b", "(a|aa)+b", "(.*)(.*)(.*)(.*)b", "([a-z]+)*x$"])
async def test_what_backtracks_for_ever_elsewhere_takes_no_time(pattern: str) -> None:
    async with asyncio.timeout(30.0):
        assert not await found(pattern, MOST)


async def test_the_event_loop_goes_on_during_a_long_search() -> None:
    pattern = "[ab]*a[ab]{500}c"  # linear, but with a large factor
    data = bytes(random.Random(1).choices(b"ab", k=65_536))
    assert compile_pattern(pattern).programsize * len(data) > 100 * INLINE_STEPS
    search = asyncio.create_task(found(pattern, data), name="search")
    turns = 0
    while not search.done():
        await asyncio.sleep(0.001)
        turns += 1
    assert search.result() is False
    assert turns > 2, "the loop has stood still"
