"""Files that can't be read, or aren't text, are findings like any other."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.unit.test_config import FULL
from tests.unit.test_config_errors import NAMED_PORT
from vc5py import cli
from vc5py.config import load, load_with_warnings, parse
from vc5py.errors import ConfigError


def test_the_file_is_named_as_it_was_given(tmp_path: Path) -> None:
    file = tmp_path / "vc5.yaml"
    file.write_text(FULL.replace("5001", "abc"))
    with pytest.raises(ConfigError) as caught:
        load(file)
    assert str(caught.value) == f"{file}:17:68: services[1].port: found 'abc', expected {NAMED_PORT}"


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
    assert str(caught.value) == "/dev/zero: found more than 8388608 bytes, expected a smaller file"


def test_a_file_cut_within_a_character(tmp_path: Path) -> None:
    file = tmp_path / "large.yaml"
    file.write_bytes(b"##" + "é".encode() * (4 << 20) + b"\n")
    with pytest.raises(ConfigError, match="found more than 8388608 bytes"):
        load(file)


# Files that a configuration names


CA = """
services:
  - name: a
    addr: 10.0.0.1
    port: 443
    reals: [10.0.1.1]
    checks: [{name: c, type: https, host: a, verify: true, ca_file: FILE}]
    sorry: {reals: [10.0.1.2], checks: [{name: c, type: https, host: a, verify: true, ca_file: FILE}]}
"""

# Self-signed, of no use but to be read.
CERTIFICATE = """-----BEGIN CERTIFICATE-----
MIIBdDCCARugAwIBAgIUJjLmmV5gfrhLG2Y0vjzTW4vAz1swCgYIKoZIzj0EAwIw
DzENMAsGA1UEAwwEdGVzdDAgFw0yNjExMjExMDQ1NThaGA8yMTI2MTAyODEwNDU1
OFowDzENMAsGA1UEAwwEdGVzdDBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABO2a
VVDG2AMoUEbHT85mrW/tvaQE8W/Aj78sO3rN+q9kTETo9Vu7wH9yjmiNuLID+Ust
xD2tqIofT4aPTiqAbvmjUzBRMB0GA1UdDgQWBBTm1kebV9Y+RsbFPejBspO0jeQv
7TAfBgNVHSMEGDAWgBTm1kebV9Y+RsbFPejBspO0jeQv7TAPBgNVHRMBAf8EBTAD
AQH/MAoGCCqGSM49BAMCA0cAMEQCIGIQ/5dAiV/5Qj1UJ9GM++yHFwPZN+cvkw/Z
n+7ZQsdtAiAkXj706h+t3k7DF/SBf3K1BDJhZFPwl3U4Tu90QoYD0g==
-----END CERTIFICATE-----
"""


def write(tmp_path: Path, authorities: Path) -> Path:
    file = tmp_path / "vc5.yaml"
    file.write_text(CA.replace("FILE", str(authorities)))
    return file


def test_authorities_that_can_be_read(tmp_path: Path) -> None:
    authorities = tmp_path / "ca.pem"
    authorities.write_text(CERTIFICATE)
    assert load(write(tmp_path, authorities)).services[0].checks[0].detail is not None


@pytest.mark.parametrize(
    ("content", "reason"),
    [(None, "No such file or directory"), ("", "it has none"), ("certificate", "it has none")],
)
def test_authorities_that_cannot_be_read(tmp_path: Path, content: str | None, reason: str) -> None:
    authorities = tmp_path / "ca.pem"
    if content is not None:
        authorities.write_text(content)
    file = write(tmp_path, authorities)
    with pytest.raises(ConfigError) as caught:
        load(file)
    assert [str(finding).split(", expected")[1] for finding in caught.value.diagnostics] == [
        f" a file with certificates in PEM: {reason}"
    ] * 2
    assert [(finding.line, finding.column) for finding in caught.value.diagnostics] == [(7, 69), (8, 96)]
    parse(file.read_text(), "only the text")


# Secrets and passwords

SECRETS = """
services: [{name: a, addr: 10.0.0.1, port: 80, reals: [10.0.1.1], checks: [{name: c, type: tcp}]}]
cluster: {keys_file: KEYS, secret_file: SECRET, peers: [10.0.9.1]}
learn: 2
rhi:
  as_number: 65000
  password_file: USUAL
  neighbors: [10.0.8.1, {address: 10.0.8.2, password_file: OWN}]
  groups: {g: {password_file: GROUP, neighbors: [{address: 10.0.8.3, password_file: MEMBER}]}}
"""


def secrets(tmp_path: Path, **files: tuple[bytes, int]) -> Path:
    """The configuration, with files that it names, each with a mode; by default they are fit for use."""
    text = SECRETS
    for name in ("KEYS", "SECRET", "USUAL", "OWN", "GROUP", "MEMBER"):
        place = tmp_path / name
        content, mode = files.get(name, (b"sixteen bytes ...", 0o600))
        place.write_bytes(content)
        place.chmod(mode)
        text = text.replace(f": {name}", f": {place}")
    file = tmp_path / "vc5.yaml"
    file.write_text(text)
    return file


def test_secrets_that_can_be_used(tmp_path: Path) -> None:
    assert load_with_warnings(secrets(tmp_path))[1] == ()


@pytest.mark.parametrize(
    ("name", "content", "mode", "place", "reason"),
    [
        ("KEYS", b"sixteen bytes ...\nshort", 0o600, "3:22: warning: cluster.keys_file", "found 5 bytes"),
        ("SECRET", b"short\n", 0o600, "cluster.secret_file", "found 5 bytes, expected 16 or more"),
        ("SECRET", b"", 0o600, "cluster.secret_file", "found 0 lines, expected one"),
        ("USUAL", b"secret", 0o644, "7:18: warning: rhi.password_file", "that everybody can read"),
        ("OWN", b"\n", 0o600, "rhi.neighbors[1].password_file", "found 0 bytes, expected a password of"),
        ("GROUP", b"x" * 81, 0o600, "rhi.groups.g.password_file", "found 81 bytes"),
        ("OWN", b"one\ntwo\n", 0o600, "rhi.neighbors[1].password_file", "found more than one line"),
        ("USUAL", b"secret\r\n", 0o600, "rhi.password_file", "found a carriage return"),
        ("MEMBER", b"", 0o600, "rhi.groups.g.neighbors[0].password_file", "found 0 bytes"),
    ],
)
def test_secrets_that_the_run_would_refuse(
    tmp_path: Path, name: str, content: bytes, mode: int, place: str, reason: str
) -> None:
    file = secrets(tmp_path, **{name: (content, mode)})
    (warning,) = map(str, load_with_warnings(file)[1])
    assert place in warning
    assert f"{tmp_path / name}: " in warning
    assert reason in warning
    assert cli.main(["check", "-c", str(file)]) == 0
    assert cli.main(["check", "--strict", "-c", str(file)]) == 1
    parse(file.read_text(), "only the text")


@pytest.mark.parametrize("name", ["SECRET", "KEYS"])
def test_a_secret_that_everybody_can_read_is_told_of_and_taken(tmp_path: Path, name: str) -> None:
    """MD5 passwords are refused then. `run` logs the same warnings at its start."""
    file = secrets(tmp_path, **{name: (b"sixteen bytes or more", 0o604)})
    (warning,) = map(str, load_with_warnings(file)[1])
    assert f"warning: cluster.{name.lower()}_file: " in warning
    assert warning.endswith(f"{tmp_path / name}: a secret that everybody can read: chmod 600 it")
    (tmp_path / name).chmod(0o660)
    assert load_with_warnings(file)[1] == ()


def test_the_same_key_twice_is_told_of_and_taken(tmp_path: Path) -> None:
    (warning,) = load_with_warnings(secrets(tmp_path, KEYS=(b"sixteen bytes ...\n" * 2, 0o600)))[1]
    assert str(warning).endswith(f"{tmp_path}/KEYS: the same key twice: no other one is accepted")


def test_secrets_that_are_not_there(tmp_path: Path) -> None:
    file = secrets(tmp_path)
    for name in ("SECRET", "USUAL"):
        (tmp_path / name).unlink()
    cluster, rhi = (str(warning) for warning in load_with_warnings(file)[1])
    assert cluster.endswith(f"{tmp_path}/SECRET: No such file or directory; so the balancer would not start")
    assert "USUAL: the password can't be read: No such file" in rhi


def test_a_pipe_is_left_for_the_run(tmp_path: Path) -> None:
    file = secrets(tmp_path)
    (tmp_path / "OWN").unlink()
    os.mkfifo(tmp_path / "OWN")
    pipe = os.open(tmp_path / "OWN", os.O_RDWR)
    try:
        os.write(pipe, b"x" * 200)  # more than a password: who reads it doesn't have to wait
        assert load_with_warnings(file)[1] == ()
        assert len(os.read(pipe, 300)) == 200
    finally:
        os.close(pipe)
