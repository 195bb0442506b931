"""`vc5py check`: what it prints, and its exit status; the addresses of this machine."""

from __future__ import annotations

import socket
import subprocess
import threading
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest

from vc5py import cli
from vc5py.commands.addresses import own_addresses

GOOD = (
    "services:\n  - {name: web, addr: 192.0.2.1, port: 80, reals: [10.0.1.1, 10.0.1.2],"
    " checks: [{name: c, type: tcp}]}\n"
)
UNWISE = GOOD.replace("port: 80", "port: 80, need: 3")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "vc5.yaml"
    path.write_text(GOOD)
    return path


def test_a_good_file(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", "--strict", "-c", str(file)]) == 0
    assert capsys.readouterr() == (f"{file}: good: 1 service on 1 VIP\n", "")


def test_warnings_fail_only_where_that_is_asked_for(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text(UNWISE)
    assert cli.main(["check", "-c", str(file)]) == 0
    out, err = capsys.readouterr()
    assert out == f"{file}: good: 1 service on 1 VIP, 1 warning\n"
    assert err == (
        f"{file}:2:50: warning: services[0].need: found 3, but the service has 2 reals: it is never healthy\n"
    )
    assert cli.main(["check", "--strict", "-c", str(file)]) == 1


def test_errors_are_told_all_at_once(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text(GOOD.replace("port: 80", "prot: 80") + "flows: 5\n")
    assert cli.main(["check", "-c", str(file)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert [line.split(": ")[0] for line in err.splitlines()] == [
        f"{file}:2:5", f"{file}:2:34", f"{file}:3:8",
    ]  # fmt: skip


# What a reload would change


def test_two_files(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = tmp_path / "old.yaml"
    old.write_text(GOOD.replace("10.0.1.2", "10.0.1.3, 10.0.1.4") + "flows: 2048\n")
    assert cli.main(["check", "-c", str(file), "--diff", str(old)]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == [
        "flows changed: 2048 -> 1048576 (at the next start)",
        "service web changed: reals + 10.0.1.2 - 10.0.1.3, 10.0.1.4",
    ]
    assert cli.main(["check", "-c", str(file), "--diff", str(file)]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == ["nothing changes"]


def test_services_that_come_and_go(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = tmp_path / "old.yaml"
    old.write_text(GOOD.replace("web", "mail"))
    assert cli.main(["check", "-c", str(file), "--diff", str(old)]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == [
        "service mail removed: 192.0.2.1, 80/tcp, 2 reals",
        "service web added: 192.0.2.1, 80/tcp, 2 reals",
    ]


@pytest.fixture
def balancer(tmp_path: Path) -> Iterator[Path]:
    """The state directory of something that answers one request with an old configuration."""
    old = GOOD.replace("10.0.1.2", "10.0.1.3").encode()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "control.sock"))
        listener.listen(1)
        listener.settimeout(10)

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                assert connection.recv(4096).startswith(b"GET /v1/config ")
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(old), old))

        thread = threading.Thread(target=answer)
        thread.start()
        yield tmp_path
        thread.join(10)


def test_the_running_balancer(file: Path, balancer: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", "-c", str(file), "--state-dir", str(balancer), "--diff"]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == ["service web changed: reals + 10.0.1.2 - 10.0.1.3"]


def test_no_balancer_runs(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", "-c", str(file), "--state-dir", str(tmp_path), "--diff"]) == 1
    assert f"no vc5py runs with the state directory {tmp_path}" in capsys.readouterr().err


# The addresses of this machine


def test_own_addresses_are_those_that_the_kernel_lists() -> None:
    listed = subprocess.run(
        ["ip", "-o", "address", "show"], check=True, capture_output=True, text=True, timeout=10
    ).stdout
    expected = {ip_address(line.split()[3].split("/")[0]) for line in listed.splitlines()}
    assert {address for address in own_addresses() if not address.is_loopback} == {
        address for address in expected if not address.is_loopback
    }


def test_where_proc_says_nothing_there_are_none(tmp_path: Path) -> None:
    assert own_addresses(tmp_path) == frozenset()


def test_a_vip_of_this_machine(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = next(
        (address for address in own_addresses() if not address.is_loopback and address.version == 4), None
    )
    if own is None:
        own = ip_address("127.0.0.1")
        assert own in own_addresses()
        return
    file.write_text(GOOD.replace("192.0.2.1", str(own)))
    assert cli.main(["check", "-c", str(file)]) == 0
    assert f"found {own}, an address of this machine" in capsys.readouterr().err
