"""What an operator does to a running balancer of the lab: commands typed, the configuration edited."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml

from vc5py.control import client
from vc5py.lab.assembly import Lab
from vc5py.lab.layout import BALANCERS, Host

VC5PY = str(Path(sys.executable).with_name("vc5py"))

Settings = dict[str, Any]


def state_dir(lab: Lab, balancer: Host) -> Path:
    return lab.layout.node_directory(balancer.name) / "state"


def config_file(lab: Lab, balancer: Host) -> Path:
    return lab.layout.node_directory(balancer.name) / "vc5.yaml"


def command(lab: Lab, balancer: Host, *words: str) -> subprocess.CompletedProcess[str]:
    """`vc5py` with these words, for that balancer."""
    full = [VC5PY, *words, "--state-dir", str(state_dir(lab, balancer))]
    return subprocess.run(full, capture_output=True, text=True, timeout=120)


def main_process(lab: Lab, balancer: Host) -> int:
    """The process id of the balancer itself, not of one of its children."""
    (found,) = (pid for pid in lab.network.pids(balancer.name) if b"\0run\0" in command_line(pid))
    return found


def command_line(pid: int) -> bytes:
    """Empty where there is no such process any more."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def everywhere(lab: Lab, *words: str) -> None:
    """The command to both balancers, which must do it without a complaint."""
    with ThreadPoolExecutor() as pool:
        for done in pool.map(lambda balancer: command(lab, balancer, *words), BALANCERS):
            assert (done.returncode, done.stderr) == (0, ""), done


def status(lab: Lab, balancer: Host) -> Settings:
    """Its `/v1/status`."""
    answer = client.ask(state_dir(lab, balancer), "GET", "/v1/status")
    assert answer.good
    return dict(answer.document)


def service(lab: Lab, balancer: Host, name: str) -> Settings:
    """The first of the virtual services of that name."""
    (found, *_) = [one for one in status(lab, balancer)["services"] if one["name"] == name]
    return dict(found)


def real(lab: Lab, balancer: Host, name: str, host: Host) -> Settings:
    (found,) = [r for r in service(lab, balancer, name)["reals"] if r["address"] == str(host.address)]
    return dict(found)


class Editor:
    """The configuration files of both balancers, edited alike. `original` is what they began with."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._texts = {balancer: config_file(lab, balancer).read_text() for balancer in BALANCERS}
        self.original = {balancer: yaml.safe_load(text) for balancer, text in self._texts.items()}

    def write(self, **changes: object) -> None:
        """The original with other values of top-level keys; `services` and `reals` are added to."""
        for balancer, original in self.original.items():
            settings = deepcopy(original)
            for key, value in changes.items():
                settings[key] = self._combined(settings.get(key), value)
            config_file(self._lab, balancer).write_text(yaml.safe_dump(settings, sort_keys=False))

    @staticmethod
    def _combined(old: object, new: object) -> object:
        if isinstance(old, dict) and isinstance(new, dict):
            return old | new
        return old + new if isinstance(old, list) and isinstance(new, list) else new

    def restore(self) -> None:
        for balancer, text in self._texts.items():
            config_file(self._lab, balancer).write_text(text)


@contextmanager
def edited(lab: Lab) -> Iterator[Editor]:
    """Both configurations are as before afterwards, and in force."""
    editor = Editor(lab)
    try:
        yield editor
    finally:
        editor.restore()
        for balancer in BALANCERS:
            assert client.ask(state_dir(lab, balancer), "POST", "/v1/reload").good
