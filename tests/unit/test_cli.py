"""The command line: what is printed where, and the exit status. Commands that need a kernel are in e2e."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import subprocess
import sys
from ipaddress import IPv4Address
from pathlib import Path

import pytest

import vc5py
from vc5py import app, cli, lab
from vc5py.app import Options
from vc5py.dataplane.netlink import XdpMode
from vc5py.errors import DataplaneError
from vc5py.loading import Loaded

GOOD = """
services:
  - {name: a, addr: [10.0.0.1, 10.0.0.2], port: 80, real: g, checks: [{name: c, type: tcp}]}
  - {name: b, addr: 10.0.0.1, port: 81, real: g, checks: [{name: c, type: tcp}]}
reals: {g: [10.0.1.1]}
"""
BAD = GOOD.replace("port: 80", "port: 99999").replace("port: 81", "prot: 81")

Output = pytest.CaptureFixture[str]


@pytest.fixture
def good(tmp_path: Path) -> Path:
    path = tmp_path / "good.yaml"
    path.write_text(GOOD)
    return path


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    path = tmp_path / "bad.yaml"
    path.write_text(BAD)
    return path


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Loaded, Options]]:
    """What `run` was asked to run, instead of running it."""
    calls: list[tuple[Loaded, Options]] = []
    monkeypatch.setattr(app, "run", lambda *arguments: calls.append(arguments))
    return calls


def test_check_says_what_it_found(good: Path, capsys: Output) -> None:
    assert cli.main(["check", "-c", str(good)]) == 0
    assert capsys.readouterr() == (f"{good}: good: 2 services on 2 VIPs\n", "")


@pytest.mark.parametrize("command", [["check"], ["run", "eth0"]])
def test_every_error_of_a_configuration_has_its_place(
    command: list[str], bad: Path, capsys: Output, started: list[object]
) -> None:
    assert cli.main([*command, "-c", str(bad)]) == 2
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == ""
    assert len(lines) >= 2
    assert all(line.startswith(f"{bad}:") for line in lines)
    assert any(f"{bad}:3:" in line for line in lines) and any(f"{bad}:4:" in line for line in lines)
    assert started == []


@pytest.mark.parametrize("command", [["check"], ["run", "eth0"]])
def test_missing_configuration_is_a_configuration_error(
    command: list[str], tmp_path: Path, capsys: Output, started: list[object]
) -> None:
    missing = tmp_path / "none.yaml"
    assert cli.main([*command, "-c", str(missing)]) == 2
    assert capsys.readouterr().err == f"{missing}: can't be read: No such file or directory\n"
    assert started == []


def test_run_passes_on_what_it_was_told(
    good: Path, started: list[tuple[Loaded, Options]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "own_addresses", lambda: frozenset({IPv4Address("10.0.0.9")}))
    given = {
        "address": "10.0.0.9",
        "state-dir": "/s",
        "data-dir": "/d",
        "bpf-dir": "/b",
        "xdp-mode": "generic",
    }
    words = [*(f"--{name}={value}" for name, value in given.items()), "eth0", "eth1", "eth0"]
    assert cli.main(["run", "-c", str(good), *words]) == 0
    ((loaded, options),) = started
    assert len(loaded.config.services) == 2
    assert (loaded.file, loaded.text) == (good, GOOD)
    assert (str(options.address), options.state_dir) == ("10.0.0.9", Path("/s"))
    assert options.data_dir == Path("/d")
    assert options.dataplane.interfaces == ("eth0", "eth1")
    assert (options.dataplane.bpf_dir, options.dataplane.mode) == (Path("/b"), XdpMode.GENERIC)


def test_address_that_this_machine_does_not_have_is_refused(
    good: Path, capsys: Output, started: list[object]
) -> None:
    assert cli.main(["run", "-c", str(good), "--address", "192.0.2.99", "lo", "none0", "lo"]) == 1
    told = "--address 192.0.2.99: no interface of this machine has it; lo has 127.0.0.1"
    told += ", there is no interface none0"
    assert capsys.readouterr() == ("", f"vc5py: {told}\n")
    assert started == []


def test_own_address_of_any_interface_is_good(good: Path, started: list[tuple[Loaded, Options]]) -> None:
    assert cli.main(["run", "-c", str(good), "--address", "127.0.0.1", "none0"]) == 0
    assert str(started[0][1].address) == "127.0.0.1"


def test_where_own_addresses_cannot_be_had_any_is_taken(
    good: Path, started: list[tuple[Loaded, Options]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "own_addresses", frozenset)
    assert cli.main(["run", "-c", str(good), "--address", "192.0.2.99", "lo"]) == 0
    assert len(started) == 1


@pytest.mark.parametrize(("more", "address"), [([], "127.0.0.1"), (["--address", "127.0.0.2"], "127.0.0.2")])
def test_first_line_of_the_log_says_who_begins_with_what(
    more: list[str],
    address: str,
    bad: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cli, "own_addresses", lambda: frozenset({IPv4Address("127.0.0.2")}))
    caplog.set_level(logging.INFO)
    assert cli.main(["run", "-c", str(bad), *more, "lo", "eth9"]) == 2
    assert caplog.messages == [
        f"vc5py {vc5py.__version__} starting config={bad} address={address} interfaces=lo,eth9"
    ]


# Nobody reads


def cut_short(*words: str, reads: int, to: str = "stdout") -> tuple[int, str]:
    """Exit status of a command of whose output so many bytes are read, and what else it said."""
    mine, its = os.pipe()
    fcntl.fcntl(its, fcntl.F_SETPIPE_SZ, 4096)  # most will not fit, so that the end comes while it writes
    if not reads:
        os.close(mine)
    given = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, to: its}
    command = [sys.executable, "-m", "vc5py.cli", *words]
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with subprocess.Popen(command, text=True, env=buffered, **given) as process:  # type: ignore[call-overload]
        os.close(its)
        if reads:
            assert len(os.read(mine, reads)) == reads
            os.close(mine)
        out, err = process.communicate(timeout=60)
    return process.returncode, err if to == "stdout" else out


@pytest.mark.parametrize("reads", [0, 1])
def test_command_whose_reader_goes_ends_without_a_word(reads: int) -> None:
    assert cut_short("schema", reads=reads) == (141, "")


NO_ROOM = "vc5py: can't write what is to be printed: No space left on device\n"


@pytest.mark.parametrize(
    ("command", "end"),
    [
        ("schema > /dev/full", (1, NO_ROOM)),
        ("check -c {good} > /dev/full", (1, NO_ROOM)),
        ("check -c {bad} > /dev/full", (2, None)),
        ("check -c {bad} 2> /dev/full", (1, "")),
    ],
)
def test_output_for_which_there_is_no_room_is_one_line(
    command: str, end: tuple[int, str | None], good: Path, bad: Path
) -> None:
    words = f"{sys.executable} -m vc5py.cli {command.format(good=good, bad=bad)}"
    done = subprocess.run(["sh", "-c", words], capture_output=True, text=True, timeout=60)
    assert (done.returncode, None if end[1] is None else done.stderr) == end
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["run", "eth0"], OSError(errno.ENOSPC, "of another file")),
        (["lab"], OSError(errno.ENOSPC, "of another file", "its name")),
        (["lab"], OSError(errno.ENOENT, "something else")),
    ],
)
def test_other_failures_are_bugs_like_others(
    words: list[str], error: OSError, good: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(app, "run", fail)
    monkeypatch.setitem(cli._COMMANDS, "lab", fail)
    with pytest.raises(OSError, match=str(error.strerror)):
        cli.main([*words, *(["-c", str(good)] if words[0] == "run" else [])])


def test_run_without_any_capability_says_so(good: Path) -> None:
    code = "import os, sys; from vc5py import cli; os.setuid(65534); sys.exit(cli.main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", code, "run", "-c", str(good), "eth0"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (
        1,
        "vc5py: run needs root, or some capabilities: see 'Privileges' in docs/operations.md\n",
    )


@pytest.mark.parametrize("words", [["--help"], ["check", "--help"]])
def test_output_that_nobody_began_to_read_is_no_trouble(words: list[str]) -> None:
    assert cut_short(*words, reads=0) == (141, "")


def test_findings_that_nobody_reads_are_no_trouble(bad: Path) -> None:
    assert cut_short("check", "-c", str(bad), reads=0, to="stderr") == (141, "")


def test_end_of_another_pipe_is_a_bug_like_others(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr(app, "run", fail)
    with pytest.raises(BrokenPipeError):
        cli.main(["run", "-c", str(good), "eth0"])


def test_run_has_defaults(good: Path, started: list[tuple[Loaded, Options]]) -> None:
    assert cli.main(["run", "-c", str(good), "eth0"]) == 0
    ((_, options),) = started
    assert (options.address, options.dataplane.mode) == (None, None)
    assert (options.state_dir, options.dataplane.bpf_dir) == (Path("/run/vc5py"), Path("/sys/fs/bpf/vc5py"))
    assert options.data_dir == Path("/var/lib/vc5py")


def test_what_a_person_can_mend_is_a_line_and_status_1(
    good: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise DataplaneError("interface eth0: no such device")

    monkeypatch.setattr(app, "run", fail)
    assert cli.main(["run", "-c", str(good), "eth0"]) == 1
    assert capsys.readouterr() == ("", "vc5py: interface eth0: no such device\n")


def test_bug_is_not_hidden(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise KeyError("x")

    monkeypatch.setattr(app, "run", fail)
    with pytest.raises(KeyError):
        cli.main(["run", "-c", str(good), "eth0"])


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "COMMAND"),
        (["walk"], "walk"),
        (["stauts"], "; did you mean status?"),
        (["vip", "anounce", "10.0.0.1"], "; did you mean announce?"),
        (["run"], "INTERFACE"),
        (["run", "eth0", "--address", "10.0.0.256"], "10.0.0.256"),
        (["run", "eth0", "--address", "2001:db8::1"], "2001:db8::1"),
        (["run", "eth0", "--xdp-mode", "fast"], "fast"),
        (["check", "extra"], "extra"),
    ],
)
def test_wrong_usage_is_status_2(words: list[str], told: str, capsys: Output, started: list[object]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(words)
    assert end.value.code == 2
    assert told in capsys.readouterr().err
    assert started == []


def test_version(capsys: Output) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out == f"vc5py {vc5py.__version__}\n"


def test_lab_is_a_command(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["lab", "--name", "x"]
    assert cli._parser().parse_args(words).name == "x"
    monkeypatch.setitem(cli._COMMANDS, "lab", lambda args: 7)
    assert cli.main(words) == 7
    assert callable(lab.main)


def test_installed_command_and_module_return_the_status(bad: Path) -> None:
    for start in ([str(Path(sys.executable).with_name("vc5py"))], [sys.executable, "-m", "vc5py.cli"]):
        done = subprocess.run([*start, "check", "-c", str(bad)], capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (2, "")
        assert "Traceback" not in done.stderr


def test_check_needs_neither_bcc_nor_numpy(good: Path) -> None:
    """So that a configuration can be checked where the balancer doesn't run."""
    script = (
        "import sys; from vc5py import cli; status = cli.main(['check', '-c', sys.argv[1]]);"
        "sys.exit(status or bool({'bcc', 'numpy', 'pyroute2'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", script, str(good)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
