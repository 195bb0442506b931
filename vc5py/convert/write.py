"""Writes plain values as YAML of our language: settings on lines, lists of values and checks each on one.

Must not know: what the keys mean, but for how much of a line they are worth.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

# What no reader of YAML takes for anything but text.
_PLAIN = re.compile(
    r"(?:[A-Za-z/_][A-Za-z0-9/_.-]*|[0-9]+\.[0-9]+\.[0-9]+\.[0-9]+(?:/[0-9]+)?|[1-5][0-9]{2}-[1-5][0-9]{2})"
)
_NOT_TEXT = {"true", "false", "null", "yes", "no", "on", "off", "y", "n"}


def write(values: dict[str, Any]) -> str:
    return "".join(f"{line}\n" for line in _lines(values))


def _lines(values: dict[str, Any]) -> Iterator[str]:
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield ""
            yield f"{_flow(key)}:"
            for inner, item in value.items():
                yield f"  {_flow(inner)}: {_flow(item)}"
        elif key == "services" and value:
            yield ""
            yield "services:"
            for service in value:
                yield from _service(service)
        else:
            yield f"{_flow(key)}: {_flow(value)}"


def _service(service: dict[str, Any]) -> Iterator[str]:
    lead = "  - "
    for key, value in service.items():
        if key == "checks" and value:
            yield f"{lead}{key}:"
            for check in value:
                yield f"      - {_flow(check)}"
        else:
            alone = isinstance(value, list) and len(value) == 1 and key == "addr"
            yield f"{lead}{key}: {_flow(value[0] if alone else value)}"
        lead = "    "


def _flow(value: Any) -> str:
    if isinstance(value, dict):
        return f"{{{', '.join(f'{_flow(key)}: {_flow(item)}' for key, item in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(_flow, value))}]"
    if isinstance(value, str) and _PLAIN.fullmatch(value) and value.lower() not in _NOT_TEXT:
        return value
    return json.dumps(value, ensure_ascii=False)
