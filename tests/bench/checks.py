"""Measures the prober: checks a second, CPU per check, and how late probes begin at a steady rate.

One process probes, with the scheduler and the probes as the balancer runs them, over loopback with a mark on
every packet; another one, on the other core where there is one, plays 2,000 reals. `--json` for programs.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import multiprocessing
import os
import random
import socket
import ssl
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from ipaddress import IPv4Address
from pathlib import Path

from tests.bench.report import Aim
from vc5py.checks.result import ProbeResult, Reason
from vc5py.checks.scheduler import Scheduler
from vc5py.model import BackendId, Check, CheckType, DnsQuestion, HttpRequest, UdpExchange

VIP = IPv4Address("127.0.0.1")
FIRST_REAL = IPv4Address("10.0.0.1")
REALS = 2000
STEADY_RATE = 2000.0
SATURATING_RATE = 20_000.0
LIMIT = 200
STEADY_LIMIT = 512  # the scheduler's own
WARM_UP_S = 1.0
RESPONSE = b"HTTP/1.1 200 OK\r\nServer: bench\r\nContent-Type: text/plain\r\nContent-Length: 3\r\n\r\nok\n"


@dataclass(frozen=True, slots=True)
class Figure:
    """One kind of check: `cpu_us`, of user and system, for each; `core_per_s`: how many a second of a core's
    time does, whatever else the machine was busy with."""

    name: str
    per_s: float
    cpu_us: float
    failed: int

    @property
    def core_per_s(self) -> float:
        return 1e6 / self.cpu_us


@dataclass(frozen=True, slots=True)
class Steady:
    """At a steady rate: p99 of how late probes began (the median second's, the worst one's), and the share of
    a core that it took."""

    per_s: float
    lag_p99_ms: float
    lag_worst_ms: float
    core: float


# The reals


def _answer_streams(listener: socket.socket, context: ssl.SSLContext | None) -> None:
    """Answers connections one after the other; each has its request waiting."""
    while True:
        with contextlib.suppress(OSError):
            connection, _ = listener.accept()
            with connection:
                connection.settimeout(5.0)
                stream = context.wrap_socket(connection, server_side=True) if context else connection
                if stream.recv(4096):
                    stream.send(RESPONSE)
                if context:
                    stream.close()


def _answer_datagrams(sock: socket.socket) -> None:
    """An echo, made to look like a DNS response: without error, without answers."""
    while True:
        data, peer = sock.recvfrom(4096)
        with contextlib.suppress(OSError):
            sock.sendto(data[:2] + b"\x81\x80" + data[4:], peer)


@contextlib.contextmanager
def _serving(target: Callable[..., None], sock: socket.socket, *arguments: object) -> Iterator[int]:
    """A process that plays the reals, on the last core; yields the port."""

    def main() -> None:
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
        target(sock, *arguments)

    process = multiprocessing.get_context("fork").Process(target=main, daemon=True)
    process.start()
    try:
        yield sock.getsockname()[1]
    finally:
        process.kill()
        process.join()
        sock.close()


def _listener() -> socket.socket:
    sock = socket.socket()
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 5)
    sock.bind((str(VIP), 0))
    sock.listen(4096)
    return sock


def _datagrams() -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((str(VIP), 0))
    return sock


def _certificate() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.TemporaryDirectory() as folder:
        cert, key = Path(folder, "cert.pem"), Path(folder, "key.pem")
        command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2"
        files = ["-subj", "/CN=bench.invalid", "-keyout", str(key), "-out", str(cert)]
        subprocess.run([*command.split(), *files], check=True, capture_output=True)
        context.load_cert_chain(cert, key)
    return context


# The prober


class _Prober:
    """The scheduler with `REALS` backends of one check."""

    def __init__(self, check: Check, limit: int) -> None:
        self.done = 0
        self.failed = 0
        self.scheduler = Scheduler(self._mark_of, self._report, None, random.Random(1), limit=limit)
        self.scheduler.set_targets((BackendId("bench", VIP, FIRST_REAL + n), check) for n in range(REALS))

    def _mark_of(self, backend: BackendId) -> int:
        return 1 + int(backend.real) - int(FIRST_REAL)

    def _report(self, _backend: BackendId, _check: Check, result: ProbeResult) -> None:
        self.done += 1
        self.failed += result.reason is not Reason.OK

    async def measure(self, seconds: int) -> tuple[float, float, list[float]]:
        """Runs; returns wall and CPU seconds of the part that counts, and each second's p99 of lag."""
        task = asyncio.create_task(self.scheduler.run(), name="scheduler")
        await asyncio.sleep(WARM_UP_S)
        self.done = self.failed = 0
        lags_s = []
        wall, cpu = time.monotonic(), time.process_time()
        for _ in range(seconds):
            await asyncio.sleep(1.0)
            lags_s.append(self.scheduler.stats().lag_p99_s)
        wall, cpu = time.monotonic() - wall, time.process_time() - cpu
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return wall, cpu, lags_s


async def _saturated(name: str, check: Check, seconds: int) -> Figure:
    prober = _Prober(check, LIMIT)
    wall, cpu, _ = await prober.measure(seconds)
    return Figure(name, prober.done / wall, cpu / max(1, prober.done) * 1e6, prober.failed)


async def _steady(check: Check, seconds: int) -> Steady:
    prober = _Prober(check, STEADY_LIMIT)
    wall, cpu, lags_s = await prober.measure(seconds)
    return Steady(prober.done / wall, statistics.median(lags_s) * 1e3, max(lags_s) * 1e3, cpu / wall)


def _kinds() -> dict[str, tuple[Check, Callable[[], contextlib.AbstractContextManager[int]]]]:
    def streams(context: ssl.SSLContext | None = None) -> contextlib.AbstractContextManager[int]:
        return _serving(_answer_streams, _listener(), context)

    def datagrams() -> contextlib.AbstractContextManager[int]:
        return _serving(_answer_datagrams, _datagrams())

    body = HttpRequest(body="ok")
    return {
        "http": (_check(CheckType.HTTP, HttpRequest()), streams),
        "http, body": (_check(CheckType.HTTP, body), streams),
        "https": (
            _check(CheckType.HTTPS, HttpRequest(host="bench.invalid")),
            lambda: streams(_certificate()),
        ),
        "tcp": (_check(CheckType.TCP, None), streams),
        "syn": (_check(CheckType.SYN, None), streams),
        "dns": (_check(CheckType.DNS, DnsQuestion("bench.invalid.", "A")), datagrams),
        "udp": (_check(CheckType.UDP, UdpExchange(b"hello")), datagrams),
    }


def _check(kind: CheckType, detail: HttpRequest | DnsQuestion | UdpExchange | None) -> Check:
    return Check(str(kind), kind, 1, detail, interval_s=REALS / SATURATING_RATE, timeout_s=5.0)


def measure(names: list[str], seconds: int) -> tuple[list[Figure], Steady | None]:
    """All figures, and for http what a steady rate is like."""
    kinds = _kinds()
    figures, steady = [], None
    for name in names:
        check, serving = kinds[name]
        with serving() as port, _on_first_core():
            check = replace(check, port=port)
            figures.append(asyncio.run(_saturated(name, check, seconds)))
            if name == "http":
                steady = asyncio.run(_steady(replace(check, interval_s=REALS / STEADY_RATE), seconds))
    return figures, steady


@contextlib.contextmanager
def _on_first_core() -> Iterator[None]:
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


def aims(figures: list[Figure], steady: Steady | None) -> list[Aim]:
    aims = [Aim("http checks a second on one core", f.per_s, 4000.0) for f in figures if f.name == "http"]
    if steady is not None:
        aims.append(Aim("p99 of lag at 2,000 a second, ms", steady.lag_p99_ms, 250.0, most=True))
    return aims


def print_report(figures: list[Figure], steady: Steady | None) -> None:
    print(f"{REALS} reals on loopback, {LIMIT} probes in flight, the prober on one core\n")
    print(f"{'check':<12}{'a second':>10}{'CPU each':>12}{'a core-second':>16}{'failed':>8}")
    for f in figures:
        print(f"{f.name:<12}{f.per_s:>10.0f}{f.cpu_us:>9.0f} us{f.core_per_s:>16.0f}{f.failed:>8}")
    if steady is not None:
        print(
            f"\nhttp at {steady.per_s:.0f} a second: p99 of lag {steady.lag_p99_ms:.1f} ms"
            f" (worst second {steady.lag_worst_ms:.1f} ms), {steady.core:.0%} of a core"
        )
    for aim in aims(figures, steady):
        print(f"{'met' if aim.met else 'MISSED':<8}{aim.name}: {aim.value:.1f} (aim {aim.wanted:g})")


def main() -> None:
    names = list(_kinds())
    parser = argparse.ArgumentParser(prog="vc5.sh bench checks", description="What probes cost. Takes root.")
    parser.add_argument("--json", action="store_true", help="print JSON, not a table")
    parser.add_argument("--only", choices=names, help="one kind of check")
    parser.add_argument("--seconds", type=int, default=5, help="of each measurement")
    arguments = parser.parse_args()
    chosen = [arguments.only] if arguments.only else names
    figures, steady = measure(chosen, arguments.seconds)
    if not arguments.json:
        print_report(figures, steady)
        return
    found = [asdict(f) | {"core_per_s": f.core_per_s} for f in figures]
    result = {"checks": found, "steady": asdict(steady) if steady else None}
    print(json.dumps(result | {"aims": [asdict(a) for a in aims(figures, steady)]}, indent=2))


if __name__ == "__main__":
    main()
