"""A configuration file as it was found good: its values, and its text for those who want to compare.

Must not know: what is done with it.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from vc5py import config
from vc5py.errors import Diagnostic
from vc5py.model import Config, IPAddress


@dataclass(frozen=True, slots=True)
class Loaded:
    """`text` is what `config` was made of, `own` the addresses it was judged with, `at` a Unix timestamp."""

    config: Config
    file: Path
    text: str
    warnings: tuple[Diagnostic, ...] = ()
    own: frozenset[IPAddress] = frozenset()
    at: float = 0.0


def load(file: Path, own: Collection[IPAddress] = ()) -> Loaded:
    """Reads and judges the file, once. Raises ConfigError with every finding. Takes seconds for a large one.

    `own`: addresses of this machine, which no VIP should be.
    """
    text = config.read_text(file)
    settings, warnings = config.parse_with_warnings(text, str(file), own, files=True)
    return Loaded(settings, file, text, tuple(warnings), frozenset(own), time.time())
