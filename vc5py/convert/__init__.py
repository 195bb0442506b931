"""Converts a configuration of the Go program vc5 (its YAML, or the same as JSON) into ours.

Must not know: files, the command line. Invariants: what comes out is a configuration that `config.parse`
takes; whatever of the input is not in it has a note with its place. A file of which no service is left is
refused: most likely it is no configuration of that program at all.
"""

from __future__ import annotations

from vc5py import config
from vc5py.config import yaml_tree
from vc5py.config.report import Report
from vc5py.convert.services import Services
from vc5py.convert.settings import whole
from vc5py.convert.source import Source
from vc5py.convert.write import write
from vc5py.errors import ConfigError, Diagnostic

__all__ = ["convert"]


def _is_ours(text: str) -> bool:
    try:
        config.parse(text, "")
    except ConfigError:
        return False
    return True


def convert(text: str, filename: str) -> tuple[str, tuple[Diagnostic, ...]]:
    """Our YAML for `text`, and the notes. Raises ConfigError where `text` can't be read or used."""
    report = Report(filename)
    tree = yaml_tree.read(text, report)
    if tree is None or report.diagnostics:
        raise ConfigError(report.diagnostics)
    if not isinstance(tree.root, dict):
        raise ConfigError([Diagnostic(filename, 1, 1, "found no mapping, expected a configuration")])
    if tree.root.get("services") and _is_ours(text):
        raise ConfigError([Diagnostic(filename, 0, 0, "found our own language: there is nothing to convert")])
    source = Source(tree, filename)
    services = Services(source)
    services.convert()
    settings = whole(source)
    if not services.services and source.node(("services",)) != []:
        reason = "found no service that can be carried over: nothing is converted"
        raise ConfigError([Diagnostic(filename, 0, 0, reason), *source.notes])
    values = {**settings, "services": services.services, "reals": services.reals}
    lines = [f"# Converted from {filename!r}."]
    if source.notes:
        lines += [
            "# Not everything could be carried over:",
            *(f"# line {note.line}: {note.message}" for note in source.notes),
        ]
    made = "\n".join(lines) + "\n" + write(values)
    config.parse(made, f"{filename} (converted)")
    return made, source.notes
