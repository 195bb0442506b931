"""Files that can't be read, or aren't text, are findings like any other."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.test_config import FULL
from tests.unit.test_config_errors import PORT
from vc5py.config import load
from vc5py.errors import ConfigError


def test_the_file_is_named_as_it_was_given(tmp_path: Path) -> None:
    file = tmp_path / "vc5.yaml"
    file.write_text(FULL.replace("5001", "http"))
    with pytest.raises(ConfigError) as caught:
        load(file)
    assert str(caught.value) == f"{file}:17:68: services[1].port: found 'http', expected {PORT}"


@pytest.mark.parametrize(
    ("name", "reason"),
    [("none.yaml", "No such file or directory"), (".", "Is a directory"), ("a\0b", "embedded null byte")],
)
def test_a_file_that_cannot_be_read(tmp_path: Path, name: str, reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path / name)
    assert str(caught.value) == f"{tmp_path / name}: can't be read: {reason}"


def test_a_file_that_is_not_utf_8(tmp_path: Path) -> None:
    file = tmp_path / "latin1.yaml"
    file.write_bytes("learn: 1\n# é: d\xe9j\xe0".encode() + b" \xe9\n")
    with pytest.raises(ConfigError) as caught:
        load(file)
    assert str(caught.value) == f"{file}:2:11: found the byte 0xe9, expected text in UTF-8"


def test_a_file_that_never_ends() -> None:
    with pytest.raises(ConfigError) as caught:
        load(Path("/dev/zero"))
    assert str(caught.value) == "/dev/zero: found more than 4194304 bytes, expected a smaller file"


def test_a_file_cut_within_a_character(tmp_path: Path) -> None:
    file = tmp_path / "large.yaml"
    file.write_bytes(b"##" + "é".encode() * (2 << 20) + b"\n")
    with pytest.raises(ConfigError, match="found more than 4194304 bytes"):
        load(file)
