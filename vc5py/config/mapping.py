"""What all mappings of the file have in common."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Mapping(BaseModel):
    """Knows its keys and no others; no value is converted to please a type."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
