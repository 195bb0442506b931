"""Other builds of the program, as an upgrade brings them: a copy of this one with changes.

Each is a directory to put first in PYTHONPATH. The changes are made by replacing words of the sources; a
build that can't be made any more fails here.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import vc5py
from vc5py.dataplane import abi

_SOURCES = Path(vc5py.__file__).parent
REPOSITORY = _SOURCES.parent
_Changes = Mapping[str, Sequence[tuple[str, str]]]

_BITS = {
    "FLOW_SERVICE_BITS": (13, 12),
    "FLOW_STATE_SHIFT": (28, 27),
    "FLOW_TICK_SHIFT": (32, 31),
}
_FLAGS = {"BACKEND_UP": ("0x0001", "0x0040"), "BACKEND_REACHABLE": ("0x0002", "0x0001")}


def _moved() -> _Changes:
    """Another layout: bits of flows and flags moved, a backend's identity elsewhere in its record."""
    header, mirror = [], []
    for name, (old, new) in _BITS.items():
        header.append((rf"(#define {name}\s+){old}\b", rf"\g<1>{new}"))
        mirror.append((rf"(?m)^({name} = ){old}$", rf"\g<1>{new}"))
    for name, (was, will) in _FLAGS.items():
        header.append((rf"(#define {name}\s+){was}\b", rf"\g<1>{will}"))
        mirror.append((rf"(?m)^({name} = ){was}$", rf"\g<1>{will}"))
    identity = r"\tu64 identity; +/\* stable name, the same on every node; 0: unused record \*/\n"
    header.append((identity, ""))
    header.append((r"(\tu8 mac\[6\];   /\* the real's)", r"\tu64 identity;\n\g<1>"))
    mirror.append((r'(        \("place", "<u8"\),\n)        \("identity", "<u8"\),\n', r"\g<1>"))
    mirror.append((r"(BACKEND = np.dtype\(\n    \[\n)", r'\g<1>        ("identity", "<u8"),\n'))
    return {"xdp/types.h": header, "vc5py/dataplane/abi.py": mirror}


def _copy(directory: Path) -> None:
    ignored = shutil.ignore_patterns("__pycache__", "xdp")
    shutil.copytree(_SOURCES, directory / "vc5py", ignore=ignored)
    shutil.copytree(abi.XDP_DIR, directory / "xdp")


def _change(directory: Path, changes: _Changes) -> Path:
    _copy(directory)
    for name, replacements in changes.items():
        path = directory / name
        text = path.read_text(encoding="utf-8")
        for pattern, replacement in replacements:
            text, times = re.subn(pattern, replacement, text)
            assert times == 1, f"{name}: {pattern} found {times} times"
        path.write_text(text, encoding="utf-8")
    return directory


def rebuilt(directory: Path) -> Path:
    """Another program with the same layout."""
    return _change(directory, {"xdp/choose.h": [(r"(#define SAMPLE_TICKS )64\n", r"\g<1>32\n")]})


def with_other_layout(directory: Path) -> Path:
    """Bits of flows and flags moved, a backend's identity elsewhere in its record."""
    return _change(directory, _moved())


def layout_of(build: Path) -> str:
    """The name of a build's layout, as it says itself."""
    ask = "from vc5py.dataplane import abi; print(abi.layout_hash())"
    environment = {"PYTHONPATH": str(build), "PATH": "/usr/bin:/bin"}
    command = [sys.executable, "-P", "-c", ask]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()
