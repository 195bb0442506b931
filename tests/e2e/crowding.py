"""The crowd of `crowd.py` as a test has it in hand: its servers on the reals, its clients, what they say."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.e2e.crowd import PATIENCE_S, PORT
from vc5py.lab.assembly import Lab
from vc5py.lab.layout import CLIENT, Host, IPAddress
from vc5py.lab.nodes import Program

_PROGRAM = (sys.executable, str(Path(__file__).with_name("crowd.py")))


@dataclass(frozen=True, slots=True)
class Broken:
    """A connection that broke: its group, its real ("" where none ever answered), and why; when it began and
    when it broke, in monotonic seconds.
    """

    group: str
    real: str
    port: int
    why: str
    answers: int
    began: float
    at: float


@dataclass(frozen=True, slots=True)
class View:
    """What the clients say at one moment. `open6`: how many of those that are open use IPv6. `longest_s`: how
    long a connection had to wait, since the last mark.
    """

    open: Counter[tuple[str, str]]
    open6: int
    opening: int
    waiting: int
    unheard: int
    broken: tuple[Broken, ...]
    longest_s: float
    longest: str
    guests: tuple[tuple[float, str], ...]

    @classmethod
    def of(cls, said: dict[str, Any]) -> View:
        longest = said["longest"]
        return cls(
            Counter({(group, real): count for group, real, count in said["open"]}),
            said["open6"],
            said["opening"],
            said["waiting"],
            said["unheard"],
            tuple(Broken(**one) for one in said["broken"]),
            longest["gap"],
            f"{longest.get('group')} on {longest.get('real')}, port {longest.get('port')}",
            tuple((began_s, real) for began_s, real in said["guests"]),
        )

    def on(self, real: str) -> int:
        return sum(count for (_, name), count in self.open.items() if name == real)


class Crowd:
    """The clients, in the client's namespace, while the block runs; they go to the VIPs in turn. Guests are
    connections of one request, so many a second.
    """

    def __init__(self, lab: Lab, *vips: IPAddress) -> None:
        self._lab = lab
        within = ("ip", "netns", "exec", lab.layout.namespace(CLIENT.name))
        self._command = [*within, *_PROGRAM, "talk", str(PORT), *map(str, vips)]

    def __enter__(self) -> Crowd:
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()

    def tell(self, **order: object) -> View:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return View.of(json.loads(self._process.stdout.readline()))

    def view(self) -> View:
        return self.tell()

    def grow(self, group: str, count: int) -> View:
        """So many more connections, every one of which has been answered."""
        self.tell(open=count, group=group)
        self._lab.wait_for(f"{count} connections are open", lambda: self.view().opening == 0)
        return self.view()

    def mark(self) -> None:
        """Gaps are measured from now on."""
        self.tell(mark=True)

    def all_heard(self, timeout_s: float = 2 * PATIENCE_S) -> View:
        """Waits until each connection that is open now has been answered once more."""
        self.tell(listen=True)
        self._lab.wait_for("every connection is answered", lambda: self.view().unheard == 0, timeout_s)
        return self.view()

    def pause(self) -> None:
        """Nothing is sent any more, and nothing is on its way."""
        self.tell(paused=True)
        self._lab.wait_for("nothing is waited for", lambda: self.view().waiting == 0, 2 * PATIENCE_S)

    def resume(self) -> None:
        self.tell(paused=False)


def server_program(lab: Lab, real: Host) -> Program:
    """The server on a real, in a directory of its own."""
    return Program(lab.layout, real.name, [*_PROGRAM, "serve", real.name, str(PORT)])
