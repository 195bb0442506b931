"""Flow sharing as the balancer has it: secrets, when it is on, and what the process is told."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, ip_address
from pathlib import Path

import pytest

from vc5py.config import parse
from vc5py.core.flowhash import FlowKey
from vc5py.core.flowsync import Key
from vc5py.dataplane.maps import Sizes
from vc5py.dataplane.ticks import TickClock
from vc5py.errors import ConfigError, PeerError
from vc5py.model import Cluster, Config, MulticastGroup, Secret
from vc5py.peers.transport import Places
from vc5py.sharer import Order
from vc5py.sharing import flow_key, is_on, not_shared, read_secrets, why_off

SECRET = "a secret of the tests"
GROUP = MulticastGroup(IPv4Address("239.0.0.1"), 9999)
CLUSTER = Cluster(Secret("/nowhere"))


def cluster(text: str) -> Cluster:
    found = parse(f"services: []\ncluster: {{{text}}}\n", "f").cluster
    assert found is not None
    return found


def test_everything_that_can_be_said_of_a_cluster() -> None:
    assert cluster(
        "name: edge, secret_file: /s, keys_env: KEYS, peers: [10.0.0.1, 'fd00::1'], port: 1, interface: eth1,"
        " datagram: 8952"
    ) == Cluster(
        Secret("/s"),
        Secret(variable="KEYS"),
        "edge",
        (ip_address("10.0.0.1"), ip_address("fd00::1")),
        1,
        "eth1",
        8952,
    )
    assert cluster("secret_env: S") == Cluster(Secret(variable="S"))


REFUSED = [
    ("name: a", "cluster: found no key 'secret_file' or 'secret_env', expected one"),
    ("secret_file: /a, secret_env: B", "cluster.secret_env: found beside 'secret_file'"),
    ("secret_file: /a, keys_file: /b, keys_env: B", "cluster.keys_env: found beside 'keys_file'"),
    ("secret_file: a", "expected an absolute path"),
    ("secret: abc", "cluster.secret: found an unknown key"),
    ("secret_file: /a, peers: []", "cluster.peers: found an empty list"),
    ("secret_file: /a, peers: [10.0.0.1, 10.0.0.1]", "cluster.peers[1]: found '10.0.0.1' again"),
    ("secret_file: /a, peers: [239.0.0.1]", "cluster.peers[0]: found '239.0.0.1'"),
    ("secret_file: /a, datagram: 575", "expected a whole number from 576 to 8952"),
    ("secret_file: /a, datagram: 8953", "expected a whole number from 576 to 8952"),
    ("secret_file: /a, interface: a/b", "expected the name of an interface"),
    ("secret_file: /a, interface: abcdefghijklmnop", "expected the name of an interface"),
]


@pytest.mark.parametrize(("text", "message"), REFUSED)
def test_what_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        cluster(text)
    assert any(message in diagnostic.message for diagnostic in error.value.diagnostics), error.value


def test_without_a_secret_or_anybody_to_share_with_it_is_off_and_says_so() -> None:
    nobody, group = Config(()), Config((), multicast=GROUP)
    assert not is_on(nobody)
    assert why_off(nobody) == ""
    assert not is_on(group)
    assert why_off(group) == "flows are not shared: 'multicast' needs a 'cluster' with a secret"
    alone = Config((), cluster=CLUSTER)
    assert not is_on(alone)
    assert why_off(alone) == "flows are not shared: the cluster has no 'multicast' and no 'peers'"
    for on in (
        replace(group, cluster=CLUSTER),
        Config((), cluster=replace(CLUSTER, peers=(IPv4Address("10.0.0.1"),))),
    ):
        assert is_on(on)
        assert why_off(on) == ""
    assert not not_shared().snapshot().enabled


def test_secrets_from_a_file_and_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "secret"
    file.write_text(SECRET + "\n")
    monkeypatch.setenv("VC5_TEST_SECRET", SECRET)
    found = read_secrets(Cluster(Secret(str(file))))
    assert found == read_secrets(Cluster(Secret(variable="VC5_TEST_SECRET")))
    assert found.flow_key == FlowKey.derive(SECRET.encode())
    assert found.keys == (Key.derive(SECRET.encode()),)
    assert flow_key(Config((), multicast=GROUP, cluster=CLUSTER), found) == found.flow_key
    assert flow_key(Config((), cluster=CLUSTER), found) == found.flow_key, "peers may come by a reload"
    assert flow_key(Config((), multicast=GROUP), found) is None


def test_other_keys_rename_no_flow(tmp_path: Path) -> None:
    secret, keys = tmp_path / "secret", tmp_path / "keys"
    secret.write_text(SECRET)
    seen = set()
    for text in ("the first of the keys\n", "the first of the keys\n\nthe second of the keys\n"):
        keys.write_text(text)
        found = read_secrets(Cluster(Secret(str(secret)), Secret(str(keys))))
        seen.add(found.flow_key)
        assert found.keys == tuple(Key.derive(line.encode()) for line in text.splitlines() if line)
    assert seen == {FlowKey.derive(SECRET.encode())}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "found 0 lines, expected one"),
        ("short", "found 5 bytes, expected 16 or more"),
        (f"{SECRET}\n{SECRET}2\n", "found 2 lines, expected one"),
        (None, "No such file or directory"),
    ],
)
def test_bad_secret_is_named_by_its_place_alone(tmp_path: Path, text: str | None, message: str) -> None:
    file = tmp_path / "secret"
    if text is not None:
        file.write_text(text)
    with pytest.raises(PeerError) as error:
        read_secrets(Cluster(Secret(str(file))))
    assert str(error.value) == f"{file}: {message}"


def test_three_keys_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VC5_TEST_SECRET", SECRET)
    monkeypatch.setenv("VC5_TEST_KEYS", "\n".join(f"key number {n} of three" for n in range(3)))
    with pytest.raises(PeerError, match="the variable VC5_TEST_KEYS: found 3 lines, expected 1 to 2"):
        read_secrets(Cluster(Secret(variable="VC5_TEST_SECRET"), Secret(variable="VC5_TEST_KEYS")))


def test_order_survives_the_pipe() -> None:
    order = Order(
        fds={"flows": 3, "slots": 4},
        sizes=Sizes(64, 64, 256, 1024, 64, 64, 2, 64, 4096),
        ticks=TickClock(250, 1.5),
        program=5,
        places=Places(9999, ip_address("ff02::1"), 7, (ip_address("10.0.0.1"),)),
        cluster=1,
        node=2,
        keys=(Key.derive(SECRET.encode()),),
        datagram=1400,
        hold_s=3.5,
    )
    assert Order.from_json(order.to_json()) == order
