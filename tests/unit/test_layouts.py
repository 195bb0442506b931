"""Descriptions of the maps' layout: what is written is what is read, whatever has become of the file."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vc5py.core.flowhash import FlowKey
from vc5py.dataplane import abi, layouts
from vc5py.dataplane.layouts import Field

OWN = replace(layouts.own(8), keys={7: "0123456789abcdef"})


def test_what_is_written_is_read(tmp_path: Path) -> None:
    layouts.write(tmp_path, OWN)
    assert layouts.read(tmp_path, OWN.name) == OWN
    assert [path.name for path in tmp_path.iterdir()] == [f"layout-{abi.layout_hash()}.json"]


def test_another_name_is_another_layout(tmp_path: Path) -> None:
    layouts.write(tmp_path, OWN)
    assert layouts.read(tmp_path, "0123456789ab") is None
    layouts.path_of(tmp_path, OWN.name).rename(layouts.path_of(tmp_path, "0123456789ab"))
    assert layouts.read(tmp_path, "0123456789ab") is None


def test_every_missing_key_makes_it_unreadable(tmp_path: Path) -> None:
    layouts.write(tmp_path, OWN)
    path = layouts.path_of(tmp_path, OWN.name)
    whole = json.loads(path.read_text())
    for name in whole:
        path.write_text(json.dumps({key: value for key, value in whole.items() if key != name}))
        assert layouts.read(tmp_path, OWN.name) is None, name
    for name in whole["maps"]:
        kept = {key: value for key, value in whole["maps"].items() if key != name}
        path.write_text(json.dumps(whole | {"maps": kept}))
        assert layouts.read(tmp_path, OWN.name) is None, name


@pytest.mark.parametrize(
    "words",
    [
        {"offset": 9},  # beyond the record
        {"offset": -1},
        {"size": 3},
        {"shift": 60},
        {"bits": 0},
        {"shift": "low"},
        {"colour": 1},
    ],
)
def test_bits_that_can_not_be_are_refused(tmp_path: Path, words: dict[str, object]) -> None:
    layouts.write(tmp_path, OWN)
    path = layouts.path_of(tmp_path, OWN.name)
    whole = json.loads(path.read_text())
    whole["maps"]["flows"]["fields"]["service"] |= words
    path.write_text(json.dumps(whole))
    assert layouts.read(tmp_path, OWN.name) is None


def test_descriptions_of_maps_that_are_gone_go(tmp_path: Path) -> None:
    layouts.write(tmp_path, OWN)
    layouts.write(tmp_path, replace(OWN, name="0123456789ab"))
    (tmp_path / "lock").touch()
    layouts.remove_all_but(tmp_path, OWN.name)
    assert {path.name for path in tmp_path.iterdir()} == {"lock", f"layout-{OWN.name}.json"}


def test_check_value_tells_keys_apart_and_does_not_tell_the_key() -> None:
    key = FlowKey.derive(b"secret")
    assert layouts.check_value(key) == layouts.check_value(FlowKey.derive(b"secret"))
    others = (FlowKey.derive(), replace(key, start=key.start ^ 1), replace(key, odd=key.odd ^ 2))
    assert len({layouts.check_value(other) for other in (key, *others)}) == 4
    assert f"{key.start:x}" not in layouts.check_value(key)


def test_field_reads_its_bits() -> None:
    field = Field(offset=0, size=2, shift=15, bits=1)
    assert field.read(np.array([0x8001, 0x7FFF], dtype="<u2")).tolist() == [1, 0]


def test_own_description_reads_what_the_flow_table_holds() -> None:
    fields = OWN.maps["flows"].fields
    value = (
        abi.FLOW_VALID
        | 9 << abi.FLOW_TICK_SHIFT
        | 4 << abi.FLOW_STATE_SHIFT
        | 3 << abi.FLOW_SERVICE_SHIFT
        | 2
    )
    read = {name: field.read(np.array([value], dtype="<u8")).tolist() for name, field in fields.items()}
    assert {name: read[name] for name in ("valid", "tick", "state", "service", "local", "learned")} == {
        "valid": [1],
        "tick": [9],
        "state": [4],
        "service": [3],
        "local": [2],
        "learned": [0],
    }
