"""What can go wrong in the lab, in words for a person."""

from __future__ import annotations

from vc5py.errors import Vc5Error


class LabError(Vc5Error):
    """The lab can't be built, entered or taken down on this machine."""


class NotObservedError(LabError):
    """Something the lab set out to show didn't happen in time, or happened differently."""
