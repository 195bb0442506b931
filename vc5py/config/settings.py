"""Judges settings of one level against each other: how results are judged, and damping.

Must not know: types and ranges. A level is `defaults`, a service or a check.
"""

from __future__ import annotations

from typing import Any

from vc5py.config.language import DEFAULTS
from vc5py.config.report import Path
from vc5py.config.view import View


def check_levels(view: View) -> None:
    """Report contradictions within `defaults` and every service. Checks: `check_judgement` of each."""
    for path in (("defaults",), *(place.path for place in view.several(("services",)))):
        check_judgement(view, path)
        _damping(view, (*path, "damping"))


def check_judgement(view: View, level: Path) -> None:
    """`pass` stands in place of `rise` and `fall`: of both on one level, neither is the lower one."""
    node = view.node(level)
    if not isinstance(node, dict) or "pass" not in node:
        return
    for key in ("rise", "fall"):
        if key in node and not view.spoilt((*level, key)):
            view.add_at_key((*level, key), "found beside 'pass', expected one way to judge on a level")


def _damping(view: View, path: Path) -> None:
    node = view.node(path)
    if not isinstance(node, dict):
        return
    suppress, reuse = _points(view, path, "suppress"), _points(view, path, "reuse")
    if suppress is not None and reuse is not None and reuse >= suppress:
        place = (*path, "reuse") if "reuse" in node else (*path, "suppress")
        view.add(place, f"found reuse {reuse:g} and suppress {suppress:g}, expected reuse to be less")


def _points(view: View, path: Path, key: str) -> Any:
    """The value that holds; None where one on the way to it has a finding."""
    for inner in ((*path, key), ("defaults", "damping", key)):
        if view.spoilt(inner):
            return None
        if isinstance(value := view.node(inner), int | float):
            return value
    return DEFAULTS[key]
