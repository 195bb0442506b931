"""The directories of pinned maps: which one packets go by, and how another takes its place.

A generation of maps is a directory, named after its layout; while another one of the same layout takes its
place, `_new` or `_old` is added. Which one is in charge is not a matter of names: it is the one that has the
maps of the program that is attached. Knows directories and ids, not what the maps mean.

Invariant: new maps are pinned, all of them, before a program that uses them is attached, and others' pins go
only afterwards: whenever we are killed, the maps that packets go by are found again.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from pathlib import Path

from vc5py.dataplane import abi, libbpf, maps
from vc5py.dataplane.maps import Maps

_NEW, _OLD = "_new", "_old"
_GENERATION = re.compile(rf"[0-9a-f]{{12}}({_NEW}|{_OLD})?")
_LAYOUT_DIGITS = 12


def layout_of(directory: Path) -> str:
    """The name of the layout of the maps in a directory."""
    return directory.name[:_LAYOUT_DIGITS]


def is_own(directory: Path) -> bool:
    """Whether the maps there have the layout of this version."""
    return layout_of(directory) == abi.layout_hash()


def _generations(bpf_dir: Path) -> list[Path]:
    if not bpf_dir.is_dir():
        return []
    return sorted(p for p in bpf_dir.iterdir() if _GENERATION.fullmatch(p.name) and p.is_dir())


def flow_table_id(directory: Path) -> int | None:
    """The kernel's id of the flow table that is pinned there."""
    if not (directory / "flows").exists():
        return None
    fd = libbpf.get_pinned(directory / "flows")
    try:
        return libbpf.map_info(fd).id
    finally:
        os.close(fd)


def in_charge(bpf_dir: Path, used: AbstractSet[int], described: Callable[[str], bool]) -> Path | None:
    """The directory of the maps that an earlier run went by, None where there is none. `used`: the ids of the
    maps of attached programs; `described`: whether a layout of that name can be read.
    """
    tables = {directory: flow_table_id(directory) for directory in _generations(bpf_dir)}
    for directory, table in tables.items():
        if table in used:
            return directory
    whole = [d for d, table in tables.items() if table is not None and not (is_own(d) and not _complete(d))]
    # Nothing is attached: `_new` and `_old` are what a run left that was killed.
    ranked = sorted(whole, key=lambda d: (not is_own(d), not described(layout_of(d)), d.name))
    return ranked[0] if ranked else None


def _complete(directory: Path) -> bool:
    return all((directory / name).exists() for name in maps.NAMES)


def _remove(directory: Path) -> None:
    if directory.is_dir():
        for pin in directory.iterdir():
            pin.unlink()
        directory.rmdir()


class Pins:
    """Those of this run. `place`: the directory that its maps are pinned in, None where they are new."""

    def __init__(self, bpf_dir: Path, place: Path | None) -> None:
        self._bpf_dir = bpf_dir
        self._final = bpf_dir / abi.layout_hash()
        self._place = place

    def prepare(self, current: Maps, in_charge: Path | None) -> None:
        """Pins new maps, before any program that uses them is attached."""
        if self._place is not None:
            return
        suffix = _OLD if in_charge is not None and in_charge.name.endswith(_NEW) else _NEW
        self._place = self._final.with_name(self._final.name + suffix)
        _remove(self._place)
        self._place.mkdir(parents=True)
        for name, fd in current.fds.items():
            libbpf.pin(fd, self._place / name)

    def give_up(self, in_charge: Path | None) -> None:
        """No program that uses the maps is attached any more."""
        if self._place is not None and self._place != in_charge:
            _remove(self._place)
            self._place = None

    def commit(self) -> None:
        """Our maps are in charge: all other generations go, and ours gets its name."""
        assert self._place is not None
        for directory in _generations(self._bpf_dir):
            if directory != self._place:
                _remove(directory)
        self._place.rename(self._final)
        self._place = self._final
