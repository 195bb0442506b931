"""One lab as a whole: its network with its programs, put up, broken on purpose, mended and swept away.

Must not know: what is to be shown, or how it is printed. Invariants: a lab is used by one process at a
time (an abstract socket is the lock, so a killed process leaves none behind); whatever `put_up` began,
`sweep` ends.
"""

from __future__ import annotations

import http.client
import socket
import time
from collections.abc import Callable
from functools import partial
from types import TracebackType

from .errors import LabError, NotObservedError
from .layout import ALL_REALS, CLIENT, PORTS, REALS, Host, Layout
from .network import Network
from .nodes import Program, balancer_program, bird_program, make_web_files, nginx_program, require_programs
from .observe import http_body

_POLL_S = 0.05
_START_TIMEOUT_S = 120.0  # where nothing is wrong, a small part of it


class Lab:
    """The lab of that layout. As a context manager it is swept before and after. Errors: LabError."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.network = Network(layout)
        self.programs: dict[str, Program] = {}
        self._lock: socket.socket | None = None

    def __enter__(self) -> Lab:
        self.acquire()
        self.network.sweep()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.sweep()
        self.release()

    def acquire(self) -> None:
        """Makes this process the only user of the lab of this name."""
        lock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            lock.bind(f"\0vc5py-lab-{self.layout.name}")
        except OSError:
            lock.close()
            raise LabError(f"another process is running the lab {self.layout.name}") from None
        self._lock = lock

    def release(self) -> None:
        if self._lock:
            self._lock.close()
            self._lock = None

    def put_up(self) -> None:
        """Network, router and reals, proven to work; no balancer yet."""
        require_programs()
        self.network.build()
        make_web_files(self.layout)
        self._start(bird_program(self.layout))
        for real in ALL_REALS:
            self._start(nginx_program(self.layout, real))
        for real in REALS:
            self.wait_for(f"{real.name} answers the client", partial(self.serves, real))

    def start_balancers(self) -> None:
        for balancer in self.layout.balancers:
            self._start(balancer_program(self.layout, balancer))

    def sweep(self) -> None:
        self.network.sweep()
        for program in self.programs.values():
            program.reap()
        self.programs.clear()

    def serves(self, real: Host) -> bool:
        """Whether the real answers the client on its own address, with no balancer in between."""
        namespace = self.layout.namespace(CLIENT.name)
        try:
            return http_body(namespace, real.address, PORTS[0], "/") == f"{real.name}\n"
        except (OSError, http.client.HTTPException):
            return False

    def kill(self, host: Host) -> None:
        """SIGKILL for everything that runs on the host, and for what is only about to."""
        self.programs[host.name].kill()
        self.network.kill(host.name)

    def kill_program(self, host: Host) -> None:
        """SIGKILL for the program only, not for the children it has started."""
        self.programs[host.name].kill()

    def start(self, host: Host) -> None:
        self.programs[host.name].start()

    def power_off(self, host: Host) -> None:
        """The host falls silent at once: link first, so that no process can say goodbye."""
        self.network.cut(host)
        self.kill(host)
        self.network.forget(host)

    def power_on(self, host: Host) -> None:
        self.network.connect(host)
        self.start(host)

    def wait_for(self, what: str, happened: Callable[[], bool], timeout_s: float = _START_TIMEOUT_S) -> float:
        """Polls until `happened()`; returns the seconds it took.

        NotObservedError where it took too long, or where a program of the lab has ended by itself.
        """
        started_s = time.monotonic()
        while not happened():
            self._all_must_run()
            if time.monotonic() - started_s > timeout_s:
                raise NotObservedError(f"not within {timeout_s:.0f} s: {what}")
            time.sleep(_POLL_S)
        return time.monotonic() - started_s

    def _start(self, program: Program) -> None:
        self.programs[program.node] = program
        program.start()

    def _all_must_run(self) -> None:
        for program in self.programs.values():
            status = program.ended()
            if status is not None:
                log = "".join(f"\n  {program.node}: {line}" for line in program.log_tail())
                raise NotObservedError(f"{program.command[0]} on {program.node} ended ({status}){log}")
