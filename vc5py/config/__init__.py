"""The configuration: YAML text in, a validated `model.Config` out, or every finding with its place.

Must not know: what the configuration is for, and the machine: its own addresses are a parameter. Invariant:
whatever the text, the outcome is a `Config` or a `ConfigError`; all findings come in one pass, save that text
which isn't YAML can't be judged any further. Warnings, of what is legal but unwise, come where there are no
errors.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from vc5py.config import build, language, references, unwise, yaml_tree
from vc5py.config.authorities import check_files, check_secrets
from vc5py.config.report import WHOLE_FILE, Mark, Report
from vc5py.config.view import View
from vc5py.config.yaml_tree import MAX_BYTES
from vc5py.errors import ConfigError, Diagnostic
from vc5py.model import Config, IPAddress

__all__ = ["Judged", "load", "load_with_warnings", "parse", "parse_with_warnings", "read_text"]

Judged = tuple[Config, tuple[Diagnostic, ...]]
"""A configuration, with the warnings about it in the order of the file."""


def load(path: Path) -> Config:
    """Read the file at `path`, as `parse` does its text. `ConfigError` also where it can't be read."""
    return load_with_warnings(path)[0]


def load_with_warnings(path: Path, own: Collection[IPAddress] = ()) -> Judged:
    """As `load`, with warnings; `own` are the addresses of this machine. Looks at the files it names."""
    return parse_with_warnings(read_text(path), str(path), own, files=True)


def parse(text: str, filename: str) -> Config:
    """The configuration in `text`; `filename` is for messages. Raises `ConfigError` with every finding."""
    return parse_with_warnings(text, filename)[0]


def parse_with_warnings(
    text: str, filename: str, own: Collection[IPAddress] = (), *, files: bool = False
) -> Judged:
    """As `parse`, with warnings; `own` are the addresses of this machine. `files`: look at those it names."""
    report = Report(filename)
    tree = yaml_tree.read(text, report)
    spec = None
    if tree is not None:
        spec = language.validate(tree, report)
        references.check(tree, report)
        if files:
            check_files(View(tree, report))
    if report.diagnostics or spec is None or tree is None:
        raise ConfigError(report.diagnostics)
    config = build.build(spec)
    view = View(tree, report)
    unwise.check(config, view, frozenset(own))
    if files:
        check_secrets(view)
    return config, tuple(sorted(report.warnings))


def read_text(path: Path) -> str:
    """The text of the file at `path`, cut where it is too large. `ConfigError` where there is none."""
    filename = str(path)
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise _refused(filename, WHOLE_FILE, f"can't be read: {reason}") from None
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        if len(content) > MAX_BYTES:  # the cut may have split a character: let the size be the finding
            return content.decode("latin-1")
        before = content[: error.start].decode("utf-8")
        mark = yaml_tree.place(before, len(before))
        message = f"found the byte 0x{content[error.start]:02x}, expected text in UTF-8"
        raise _refused(filename, mark, message) from None


def _refused(filename: str, mark: Mark, message: str) -> ConfigError:
    return ConfigError([Diagnostic(filename, mark.line, mark.column, message)])
