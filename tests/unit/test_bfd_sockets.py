"""How BFD packets are sent: from one source port as long as the session lives, and without losing memory."""

from __future__ import annotations

import gc
import random
import socket
from collections.abc import Iterator
from contextlib import closing

import pytest

from vc5py.bfd.sockets import SOURCE_PORTS, Sender

NEIGHBOR, HERE, ELSEWHERE = "127.0.0.9", "127.0.0.1", "192.0.2.77"


@pytest.fixture
def no_collection() -> Iterator[None]:
    """As in the BFD process, where what makes a cycle is never freed."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def opened(sender: Sender) -> socket.socket:
    """Its socket, once it has sent."""
    sender.send(b"hello")
    assert sender._socket is not None
    return sender._socket


def port(sender: Sender) -> int:
    return int(opened(sender).getsockname()[1])


def test_the_source_port_stays_the_same_though_a_forked_process_holds_it() -> None:
    with closing(Sender(NEIGHBOR, HERE, random.Random(1))) as sender:
        before = port(sender)
        assert before in SOURCE_PORTS
        with opened(sender).dup():
            sender.close()
            assert port(sender) == before


def test_no_two_sessions_have_the_same() -> None:
    """Both try the same ones."""
    with (
        closing(Sender(NEIGHBOR, HERE, random.Random(1))) as one,
        closing(Sender(NEIGHBOR, HERE, random.Random(1))) as other,
    ):
        assert port(one) != port(other)


@pytest.mark.usefixtures("no_collection")
def test_failing_again_and_again_loses_no_memory() -> None:
    """While our address isn't there: many times a second, for days."""
    sender = Sender(NEIGHBOR, ELSEWHERE, random.Random(1))
    for _ in range(50):
        sender.send(b"hello")
    assert sender.errors == 50
    assert gc.collect() == 0
