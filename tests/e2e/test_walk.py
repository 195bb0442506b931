"""Two hundred changes of running balancers in the lab, at random: reloads, commands, servers that die and
come back. Whatever becomes of the services they are about, clients of another one notice nothing.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy

import yaml

from tests.e2e.operating import Settings, config_file, edited, state_dir, status
from vc5py.control import client
from vc5py.lab.assembly import Lab
from vc5py.lab.layout import BALANCERS, BIG_BYTES, FAR_REAL, REALS, SERVICE6, TAGGED_REAL, Host
from vc5py.lab.scenario import wait_for_reals
from vc5py.lab.traffic import Downloads, Load

STEPS = 200
SEED = random.SystemRandom().randrange(1 << 32)
DOWNLOADS, DOWNLOAD_S = 6, 300
OTHERS = ("far", "tagged", SERVICE6)  # what is changed; clients are on the service beside them
CHECK: Settings = {"type": "http", "path": "/alive", "interval": 0.2, "timeout": 0.15}


def ask(lab: Lab, balancer: Host, path: str, **words: object) -> None:
    answer = client.ask(state_dir(lab, balancer), "POST", path, words or None)
    assert answer.good, (balancer.name, path, words, answer)


class Walk:
    """Changes one balancer after the other; `done` counts what was done."""

    def __init__(self, lab: Lab, originals: dict[Host, Settings], seed: int) -> None:
        self._lab, self._originals = lab, originals
        self._random = random.Random(seed)
        self.done: Counter[str] = Counter()
        self.dead: set[Host] = set()

    def step(self) -> None:
        kinds = [self.reload] * 4 + [self.command] * 4 + [self.server] * 2
        kind = self._random.choice(kinds)
        kind()
        self.done[kind.__name__] += 1

    def _service(self, name: str, original: Settings) -> Settings | None:
        """The service as one of very many; None where it goes."""
        choose = self._random.choice
        if choose([False] * 4 + [True]):
            return None
        changes: Settings = {
            "need": choose([1, 1, 2]),
            "schedule": choose(["maglev", "sticky", "least-conns"]),
            "below_need": choose(["withdraw", "serve"]),
            "slow_start": choose([0, 1, 30]),
            "damping": choose(["off", {"suppress": choose([2, 3])}]),
            "checks": [CHECK | {"name": choose("ab"), "rise": choose([1, 2]), "fall": choose([1, 2])}],
        }
        return original | changes

    def _group(self, reals: list[object]) -> list[object]:
        kept = self._random.sample(reals, self._random.randint(1, len(reals)))
        mapped = [one if isinstance(one, dict) else {"address": one} for one in kept]
        return [one | {"weight": self._random.randint(0, 3)} for one in mapped]

    def reload(self) -> None:
        balancer = self._random.choice(BALANCERS)
        settings = deepcopy(self._originals[balancer])
        services = [
            self._service(one["name"], one) if one["name"] in OTHERS else one for one in settings["services"]
        ]
        settings["services"] = [one for one in services if one is not None]
        self._random.shuffle(settings["services"])
        for name in OTHERS:
            settings["reals"][name] = self._group(settings["reals"][name])
        settings["fragments"] = self._random.choice(["follow", "drop"])
        settings["timeouts"] = {"udp": self._random.randint(10, 1000)}
        config_file(self._lab, balancer).write_text(yaml.safe_dump(settings, sort_keys=False))
        ask(self._lab, balancer, "/v1/reload")

    def command(self) -> None:
        """On a real of a service that is not the clients', if there is one."""
        balancer = self._random.choice(BALANCERS)
        there = [one for one in status(self._lab, balancer)["services"] if one["name"] in OTHERS]
        if not there:
            return
        service = self._random.choice(there)
        target: Settings = {
            "real": self._random.choice(service["reals"])["address"],
            "service": service["name"],
        }
        kinds: list[tuple[str, Settings]] = [
            ("/v1/state", {"state": self._random.choice(["draining", "disabled", "enabled"])}),
            ("/v1/weight", {"weight": self._random.randint(0, 5)}),
            ("/v1/reset", {}),
        ]
        path, words = self._random.choice(kinds)
        ask(self._lab, balancer, path, **target, **words)

    def server(self) -> None:
        """The one of a real that has no part in the clients' service dies, or comes back."""
        host = self._random.choice([FAR_REAL, TAGGED_REAL])
        if host in self.dead:
            self._lab.start(host)
        else:
            self._lab.kill(host)
        self.dead ^= {host}

    def mend(self) -> None:
        for host in self.dead:
            self._lab.start(host)
        for balancer in BALANCERS:
            for real in {override["real"] for override in status(self._lab, balancer)["overrides"]}:
                ask(self._lab, balancer, "/v1/reset", real=real)


@contextmanager
def walking(lab: Lab, seed: int) -> Iterator[Walk]:
    """All is as before afterwards."""
    with edited(lab) as editor:
        walk = Walk(lab, editor.original, seed)
        try:
            yield walk
        finally:
            walk.mend()


def test_two_hundred_changes_break_no_connection_of_an_untouched_service(lab: Lab) -> None:
    print(f"seed {SEED}")
    with (
        walking(lab, SEED) as walk,
        Downloads(lab.layout, DOWNLOADS, BIG_BYTES // DOWNLOAD_S) as downloads,
        Load(lab.layout) as load,
    ):
        lab.wait_for("requests flow", lambda: len(load.replies) > 20)
        for _ in range(STEPS):
            walk.step()
        assert walk.done.total() == STEPS and min(walk.done.values()) > STEPS // 20, walk.done
        begun = len(load.replies)
        lab.wait_for("requests flow", lambda: len(load.replies) > begun + 20)
        print(f"{dict(walk.done)}; {len(load.replies)} requests, {downloads.under_way()} downloads open")
        assert downloads.under_way() == DOWNLOADS, "they have lasted all the time"
        assert downloads.completed() == DOWNLOADS
    assert load.failed() == []
    assert {reply.real for reply in load.replies} == {host.name for host in REALS}
    wait_for_reals(lab)
