"""The lab behind `vc5py lab` and the end-to-end tests: a whole network in namespaces on one machine.

Must not know: the balancer's insides. It uses the product as an operator does: command line, BGP,
/metrics, packets. Invariant: nothing outside the lab's own namespaces and directory is touched.
"""

from __future__ import annotations

from .commands import add_parser, main
from .errors import LabError, NotObservedError

__all__ = ["LabError", "NotObservedError", "add_parser", "main"]
