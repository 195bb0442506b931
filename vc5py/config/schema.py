"""The JSON Schema of the configuration file, by which editors complete and check. It ships as schema.json.

`python -m vc5py.config.schema` prints it. Must not know: YAML. It is generated from the models in `language`,
with what these say elsewhere: defaults of levels, and which keys go together. Draft 7, as that is what
editors know. Invariant: whatever `vc5py check` finds good is good by the schema; what takes two places of a
file to judge, it can't find.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vc5py.config.checks import KEYS, TWINS
from vc5py.config.language import DEFAULTS, ConfigSpec
from vc5py.model import CheckType

SHIPPED = Path(__file__).with_name("schema.json")

Schema = dict[str, Any]

_LEVELS = ("DefaultsSpec", "ServiceSpec", "CheckSpec")


def schema() -> Schema:
    """The schema as plain values."""
    made: Schema = _tidy(ConfigSpec.model_json_schema())
    made["$schema"] = "http://json-schema.org/draft-07/schema#"
    made["title"] = "Configuration of vc5py"
    parts = made["$defs"]
    for name in ("DefaultsSpec", "DampingSpec"):
        for key, described in parts[name]["properties"].items():
            if key in DEFAULTS:
                described["default"] = DEFAULTS[key]
    parts["CheckSpec"]["properties"]["expect"]["default"] = 200
    for name in _LEVELS:
        parts[name].setdefault("allOf", []).extend(_apart("pass", key) for key in ("rise", "fall"))
    for name in ("ServiceSpec", "SorrySpec"):
        parts[name]["anyOf"] = [{"required": ["real"]}, {"required": ["reals"]}]
    parts["CheckSpec"]["allOf"] += [_apart(*pair) for pair in TWINS] + [_keys_of(kind) for kind in CheckType]
    return made


def text() -> str:
    """The schema as it ships."""
    return json.dumps(schema(), indent=1, sort_keys=True) + "\n"


def _tidy(node: Any) -> Any:
    """Without titles, which repeat the names, and in the words of draft 7."""
    if isinstance(node, list):
        return [_tidy(item) for item in node]
    if not isinstance(node, dict):
        return node
    tidy = {
        key: _tidy(value)
        for key, value in node.items()
        if not (key == "title" and isinstance(value, str)) and not (key == "default" and value is None)
    }
    if isinstance(tidy.get("default"), dict):
        tidy["default"] = {key: value for key, value in tidy["default"].items() if value is not None}
    if "patternProperties" in tidy:
        tidy["additionalProperties"] = False
    if "$ref" in tidy and len(tidy) > 1:  # of a reference draft 7 sees no neighbours
        tidy["allOf"] = [{"$ref": tidy.pop("$ref")}]
    return tidy


def _apart(one: str, other: str) -> Schema:
    return {"not": {"required": [one, other]}}


def _keys_of(kind: CheckType) -> Schema:
    """A check of this type has no keys of other types."""
    strange = [key for key, kinds in KEYS.items() if kind not in kinds]
    return {
        "if": {"properties": {"type": {"const": str(kind)}}, "required": ["type"]},
        "then": {"properties": dict.fromkeys(strange, False)},
    }


if __name__ == "__main__":
    print(text(), end="")
