"""Regular expressions on what a peer sent, in time linear in its length.

Must not know: HTTP. RE2 and not `re`: for some patterns a backtracking matcher takes minutes over bytes that
anybody may choose, and holds the interpreter's lock meanwhile, so that not even a thread would help. RE2's
syntax is that of `re` without look-around and back-references. Its worst case is proportional to the bytes
times the size of the compiled pattern, which is bounded here; what may take long runs in a thread, where RE2
lets go of the lock.
"""

from __future__ import annotations

import asyncio
import functools
from typing import Any

import re2  # type: ignore[import-untyped]

MAX_PROGRAM = 2000
"""Instructions of a compiled pattern; "status: (up|ok)" has 18."""
INLINE_STEPS = 100_000
"""Instructions times bytes, at most some 5 ns each, that the event loop may be held up for."""


@functools.lru_cache(maxsize=4096)
def compile_pattern(pattern: str) -> Any:
    """Matches bytes. Raises `ValueError` with a plain message for what isn't a pattern or is too large."""
    options = re2.Options()
    options.encoding = re2.Options.Encoding.LATIN1  # bytes, whatever they mean
    options.log_errors = False
    try:
        compiled = re2.compile(pattern.encode(), options)
    except re2.error as error:
        text = error.args[0] if error.args else "bad pattern"
        raise ValueError(text.decode(errors="replace") if isinstance(text, bytes) else str(text)) from None
    if compiled.programsize > MAX_PROGRAM:
        raise ValueError(f"too large: {compiled.programsize} instructions, at most {MAX_PROGRAM}")
    return compiled


async def found(pattern: str, data: bytes) -> bool:
    """Whether the pattern matches anywhere in `data`; raises as `compile_pattern`."""
    compiled = compile_pattern(pattern)
    if compiled.programsize * len(data) <= INLINE_STEPS:
        return compiled.search(data) is not None
    return await asyncio.to_thread(compiled.search, data) is not None
