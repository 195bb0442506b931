"""Two balancers' data planes and their sharing processes, in two network namespaces with a link between them.

The maps belong to this process, which plays both balancers: it makes flows change, reads what arrives, and
may kill. Knows nothing of what is measured.
"""

from __future__ import annotations

import base64
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pyroute2 import IPRoute

from tests import leftovers
from tests.bench.rig import C_DIR, Ours
from vc5py.core import flowsync
from vc5py.core.flowsync import Key
from vc5py.dataplane import abi, compiler
from vc5py.dataplane.compiler import ProgramType
from vc5py.lab.kernel import entered
from vc5py.model import IPAddress
from vc5py.peers.transport import Places
from vc5py.sharer import Order

PORT = 9999
LINK = "sync0"
ADDRESSES = (IPv4Address("198.18.0.1"), IPv4Address("198.18.0.2"))
GROUP4, GROUP6 = IPv4Address("239.255.0.9"), IPv6Address("ff02::5:9")
KEYS = (Key.derive(b"the secret of the benchmark"),)
WAIT_S = 60.0


@dataclass
class Process:
    """A sharing process. Reports come in a thread, and whoever waits for one is woken."""

    popen: subprocess.Popen[bytes]
    reports: list[dict[str, Any]] = field(default_factory=list)
    strays: list[NDArray[np.uint32]] = field(default_factory=list)
    said: list[dict[str, Any]] = field(default_factory=list)
    news: threading.Condition = field(default_factory=threading.Condition)

    def __post_init__(self) -> None:
        self.ear = threading.Thread(target=self.listen, daemon=True)
        self.ear.start()

    def listen(self) -> None:
        assert self.popen.stdout is not None
        for line in self.popen.stdout:
            ((what, value),) = json.loads(line).items()
            with self.news:
                if what == "report":
                    self.reports.append(value)
                elif what == "strays":
                    self.strays.append(np.frombuffer(base64.b64decode(value), np.uint32))
                else:
                    self.said.append({what: value})
                self.news.notify_all()

    def next_report(self, timeout_s: float = WAIT_S) -> dict[str, Any]:
        with self.news:
            known = len(self.reports)
            assert self.news.wait_for(lambda: len(self.reports) > known, timeout_s), "no report"
            return self.reports[-1]

    def wait_for(self, name: str, number: int, timeout_s: float = WAIT_S) -> dict[str, Any]:
        """The first report in which a number has become so large; the last one where none is."""
        with self.news:
            self.news.wait_for(lambda: bool(self.reports) and self.reports[-1][name] >= number, timeout_s)
            return self.reports[-1]

    def stop(self) -> None:
        assert self.popen.stdin is not None
        with suppress(BrokenPipeError):
            self.popen.stdin.close()
        try:
            self.popen.wait(timeout=WAIT_S)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            self.popen.wait()
        self.ear.join(WAIT_S)
        assert self.popen.stdout is not None
        self.popen.stdout.close()


class Node:
    """One balancer. `number`: 0 or 1."""

    def __init__(self, namespace: str, number: int, entries: int, log: int) -> None:
        self.namespace, self.number = namespace, number
        self.ours = Ours(entries, log=log)
        self.learn = self.ours.load(abi.XDP_DIR / "vc5.c", "vc5_learn", ProgramType.TC)

    def order(self, group: IPAddress | None, keys: tuple[Key, ...] = KEYS, datagram: int = 1400) -> Order:
        with entered(self.namespace):
            interface = socket.if_nametoindex(LINK) if group else 0
        return Order(
            fds=self.ours.maps.fds,
            sizes=self.ours.maps.sizes,
            ticks=self.ours.clock,
            program=self.learn,
            places=Places(PORT, group, interface, () if group else (ADDRESSES[1 - self.number],)),
            cluster=flowsync.cluster_id("bench"),
            node=flowsync.node_id(f"bench {self.number}"),
            keys=keys,
            datagram=datagram,
        )

    def start(self, order: Order) -> Process:
        with entered(self.namespace):
            popen = subprocess.Popen(
                [sys.executable, "-m", "vc5py.sharer"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                pass_fds=(*order.fds.values(), order.program),
            )
        assert popen.stdin is not None
        popen.stdin.write(order.to_json().encode() + b"\n")
        popen.stdin.flush()
        return Process(popen)

    def change(self, values: NDArray[np.uint64], hashes: NDArray[np.uint64], cpu: int = 0) -> None:
        """As if a CPU had written these entries: they are in its ring of changed flows."""
        maps = self.ours.maps
        head, size = int(maps.flow_log_heads["written"][cpu]), maps.sizes.log
        at = np.arange(head, head + len(values)) & size - 1
        maps.flow_log["value"][cpu, at] = values
        maps.flow_log["tag"][cpu, at] = values ^ hashes
        maps.flow_log_heads["written"][cpu] = head + len(values)

    @contextmanager
    def losing(self, per_mille: int) -> Iterator[None]:
        """Of a thousand datagrams to this node so many are lost, each for itself."""
        module = compiler.compile_file(C_DIR / "lossy.c", {"PER_MILLE": per_mille})
        program = module.load("lossy", ProgramType.XDP)
        try:
            with entered(self.namespace):
                netlink = IPRoute()
            with netlink:
                index = netlink.link_lookup(ifname=LINK)[0]
                netlink.link("set", index=index, xdp_fd=program)
                try:
                    yield
                finally:
                    netlink.link("set", index=index, xdp_fd=-1)
        finally:
            os.close(program)

    def flows(self) -> int:
        values = self.ours.maps.flows["value"]
        return int(np.count_nonzero(values & np.uint64(abi.FLOW_VALID)))

    def close(self) -> None:
        os.close(self.learn)
        self.ours.close()


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


@contextmanager
def pair(entries: int, log: int, name: str = "vc5sync") -> Iterator[tuple[Node, Node]]:
    """Both nodes, with nothing running; all of it is gone afterwards."""
    leftovers.remove_those_of_the_dead(name)
    names = [f"{name}{os.getpid()}{letter}" for letter in "ab"]
    made: list[str] = []
    nodes: list[Node] = []
    try:
        for namespace in names:
            _ip("netns", "add", namespace)
            made.append(namespace)
        far = ("peer", "name", LINK, "netns", names[1])
        _ip("-n", names[0], "link", "add", LINK, "type", "veth", *far)
        for number, namespace in enumerate(names):
            _ip("-n", namespace, "address", "add", f"{ADDRESSES[number]}/24", "dev", LINK)
            _ip("-n", namespace, "address", "add", f"fd00::{number + 1}/64", "dev", LINK, "nodad")
            for link in ("lo", LINK):
                _ip("-n", namespace, "link", "set", link, "up")
        for number, namespace in enumerate(names):
            nodes.append(Node(namespace, number, entries, log))
        yield nodes[0], nodes[1]
    finally:
        for node in nodes:
            node.close()
        for namespace in made:
            _ip("netns", "delete", namespace)
