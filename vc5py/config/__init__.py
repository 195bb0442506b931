"""The configuration: YAML text in, a validated `model.Config` out, or every finding with its place.

Must not know: what the configuration is for. Invariant: whatever the text, the outcome is a `Config` or a
`ConfigError`; all findings come in one pass, save that text which isn't YAML can't be judged any further.
"""

from __future__ import annotations

from pathlib import Path

from vc5py.config import build, language, references, yaml_tree
from vc5py.config.report import WHOLE_FILE, Mark, Report
from vc5py.config.yaml_tree import MAX_BYTES
from vc5py.errors import ConfigError, Diagnostic
from vc5py.model import Config

__all__ = ["load", "parse"]


def load(path: Path) -> Config:
    """Read the file at `path`, as `parse` does its text. `ConfigError` also where it can't be read."""
    filename = str(path)
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise _refused(filename, WHOLE_FILE, f"can't be read: {reason}") from None
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        if len(content) > MAX_BYTES:  # the cut may have split a character: let the size be the finding
            return parse(content.decode("latin-1"), filename)
        before = content[: error.start].decode("utf-8")
        mark = yaml_tree.place(before, len(before))
        message = f"found the byte 0x{content[error.start]:02x}, expected text in UTF-8"
        raise _refused(filename, mark, message) from None
    return parse(text, filename)


def parse(text: str, filename: str) -> Config:
    """The configuration in `text`; `filename` is for messages. Raises `ConfigError` with every finding."""
    report = Report(filename)
    tree = yaml_tree.read(text, report)
    spec = None
    if tree is not None:
        spec = language.validate(tree, report)
        references.check(tree, report)
    if report.diagnostics or spec is None:
        raise ConfigError(report.diagnostics)
    return build.build(spec)


def _refused(filename: str, mark: Mark, message: str) -> ConfigError:
    return ConfigError([Diagnostic(filename, mark.line, mark.column, message)])
