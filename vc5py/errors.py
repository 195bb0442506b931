"""The errors a user can meet, named by the part that is to blame.

Everything raised on purpose derives from `Vc5Error`; its text is one or more complete lines for a
person, and `cli` prints it without a traceback. Any other exception is a bug.
"""

from __future__ import annotations

from dataclasses import dataclass


class Vc5Error(Exception):
    """Base of all errors that vc5py raises on purpose."""


@dataclass(frozen=True, slots=True, order=True)
class Diagnostic:
    """One finding in a configuration file. `line` and `column` count from 1; 0 is "the whole file"."""

    file: str
    line: int
    column: int
    message: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}:{self.column}" if self.line else self.file
        return f"{place}: {self.message}"


class ConfigError(Vc5Error):
    """The configuration can't be used; `diagnostics` holds every finding, in the order of the file."""

    def __init__(self, diagnostics: list[Diagnostic]) -> None:
        self.diagnostics = sorted(diagnostics)
        super().__init__("\n".join(map(str, self.diagnostics)))


class DataplaneError(Vc5Error):
    """The kernel, bcc or an interface refused what the data plane needs."""


class RhiError(Vc5Error):
    """The BGP speaker can't be started or doesn't answer."""


class PeerError(Vc5Error):
    """Flow sharing with the other balancers can't be set up."""


class SecretError(Vc5Error):
    """A secret can't be read, or isn't fit for its use; the text never tells it."""
