"""The peers: who counts, when, and what is asked of whom. Read as transcripts."""

from __future__ import annotations

import pytest

from vc5py.core.flowsync import MAX_PEERS, Datagram, Kind, Outcome, addressee, heard_body
from vc5py.core.peering import (
    COPY_RETRY_S,
    FORGET_S,
    HELLO_S,
    PROMPT_S,
    WINDOW,
    AskForCopy,
    GiveCopy,
    Hello,
    Peering,
    Window,
)

US, OUR_BOOT = 1, 100
THEM, THEIR_BOOT = 2, 200


def datagram(kind: Kind, sequence: int, *, node: int = THEM, boot: int = THEIR_BOOT, to: int = 0) -> Datagram:
    return Datagram(kind, to, node, boot, sequence, 0)


def hello(sequence: int, *heard: tuple[int, int], node: int = THEM, boot: int = THEIR_BOOT) -> Datagram:
    return Datagram(Kind.HELLO, 0, node, boot, sequence, len(heard), heard_body(heard))


def peering() -> Peering:
    return Peering(US, OUR_BOOT, 0.0)


def proven() -> Peering:
    """Of a node that has named us, in its datagram 10."""
    made = peering()
    assert made.receive(hello(10, (US, OUR_BOOT)), 0.0) is Outcome.ACCEPTED
    return made


def test_nothing_counts_of_a_node_that_has_not_named_us() -> None:
    made = peering()
    assert made.receive(datagram(Kind.FLOWS, 1), 0.0) is Outcome.UNPROVEN
    assert made.receive(hello(2), 0.0) is Outcome.UNPROVEN
    assert made.receive(hello(3, (US, 99)), 0.0) is Outcome.UNPROVEN  # as we were before
    assert made.receive(datagram(Kind.FLOWS, 4), 0.0) is Outcome.UNPROVEN
    assert made.receive(hello(5, (US, OUR_BOOT)), 0.0) is Outcome.ACCEPTED
    assert made.receive(datagram(Kind.FLOWS, 6), 0.0) is Outcome.ACCEPTED


def test_no_datagram_counts_twice() -> None:
    made = proven()
    for sequence in (11, 14, 12):
        assert made.receive(datagram(Kind.FLOWS, sequence), 0.0) is Outcome.ACCEPTED
        assert made.receive(datagram(Kind.FLOWS, sequence), 0.0) is Outcome.REPLAYED
    assert made.receive(hello(10, (US, OUR_BOOT)), 0.0) is Outcome.REPLAYED
    assert made.receive(datagram(Kind.FLOWS, 9), 0.0) is Outcome.REPLAYED  # from before it was proven
    assert made.lost == 1  # 13


def test_streams_to_all_and_to_us_are_apart() -> None:
    made, ours = proven(), addressee(US, OUR_BOOT)
    assert made.receive(datagram(Kind.FLOWS, 11), 0.0) is Outcome.ACCEPTED
    assert made.receive(datagram(Kind.FLOWS, 0, to=ours), 0.0) is Outcome.ACCEPTED
    assert made.receive(datagram(Kind.FLOWS, 0, to=ours), 0.0) is Outcome.REPLAYED
    assert made.lost == 0


def test_recordings_of_an_earlier_boot_change_nothing() -> None:
    made = proven()
    assert made.receive(hello(50, (US, 99), boot=150), 1.0) is Outcome.UNPROVEN
    assert made.receive(datagram(Kind.FLOWS, 51, boot=150), 1.0) is Outcome.UNPROVEN
    assert made.receive(datagram(Kind.FLOWS, 11), 1.0) is Outcome.ACCEPTED


def test_node_that_has_started_again_counts_once_it_has_heard_us() -> None:
    made = proven()
    made.tick(0.0)
    assert made.receive(hello(0, boot=201), 0.5) is Outcome.UNPROVEN
    [said] = [action for action in made.tick(0.5) if isinstance(action, Hello)]  # at once
    assert set(said.heard) == {(THEM, THEIR_BOOT), (THEM, 201)}
    assert made.receive(hello(1, (US, OUR_BOOT), boot=201), 0.6) is Outcome.ACCEPTED
    assert made.receive(datagram(Kind.FLOWS, 2, boot=201), 0.6) is Outcome.ACCEPTED
    assert made.receive(datagram(Kind.FLOWS, 12), 0.6) is Outcome.UNPROVEN


def test_hello_every_second_and_sooner_to_newcomers_but_never_in_a_flood() -> None:
    made = peering()
    assert made.tick(0.0) == [Hello(())]
    assert made.tick(HELLO_S - 0.01) == []
    assert made.tick(HELLO_S) == [Hello(())]
    for n in range(50):
        made.receive(hello(n), HELLO_S + 0.01)
        made.receive(hello(n, boot=300 + n), HELLO_S + 0.01)
    assert made.tick(HELLO_S + 0.02) == []
    [said] = made.tick(HELLO_S + PROMPT_S)
    assert isinstance(said, Hello)
    assert made.tick(HELLO_S + PROMPT_S + 0.01) == []


def test_copy_is_asked_for_until_one_has_come() -> None:
    made = proven()
    assert AskForCopy(THEM, THEIR_BOOT) in made.tick(0.0)
    made.receive(datagram(Kind.FLOWS, 11), 1.0)
    assert not [a for a in made.tick(1.0) if isinstance(a, AskForCopy)]
    made.receive(datagram(Kind.FLOWS, 12), COPY_RETRY_S)
    assert AskForCopy(THEM, THEIR_BOOT) in made.tick(COPY_RETRY_S)
    made.receive(datagram(Kind.COPIED, 0, to=addressee(US, OUR_BOOT)), COPY_RETRY_S + 1)
    assert made.copied
    assert not [a for a in made.tick(3 * COPY_RETRY_S) if isinstance(a, AskForCopy)]


def test_copy_is_asked_for_again_where_there_are_new_backends() -> None:
    made = proven()
    made.tick(0.0)
    made.receive(datagram(Kind.COPIED, 0, to=addressee(US, OUR_BOOT)), 1.0)
    made.want_copy()
    assert not [a for a in made.tick(2.0) if isinstance(a, AskForCopy)]  # not so soon
    made.receive(hello(11, (US, OUR_BOOT)), COPY_RETRY_S)
    assert AskForCopy(THEM, THEIR_BOOT) in made.tick(COPY_RETRY_S)


def test_copy_is_given_to_who_asks() -> None:
    made = proven()
    made.tick(0.0)
    made.receive(datagram(Kind.COPY, 0, to=addressee(US, OUR_BOOT)), 0.1)
    assert made.tick(0.2) == [GiveCopy(THEM, THEIR_BOOT)]


def test_silent_peer_is_forgotten_and_what_it_lost_is_not() -> None:
    made = proven()
    made.receive(datagram(Kind.FLOWS, 13), 0.0)
    made.tick(FORGET_S)
    assert THEM in made.peers
    made.tick(FORGET_S + 0.1)
    assert not made.peers
    assert made.lost == 2


def test_only_so_many_peers() -> None:
    made = peering()
    for node in range(2, 2 + MAX_PEERS):
        assert made.receive(hello(0, (US, OUR_BOOT), node=node), 0.0) is Outcome.ACCEPTED
    assert made.receive(hello(0, (US, OUR_BOOT), node=999), 0.0) is Outcome.CROWDED
    assert len(made.tick(0.0)[0].heard) == MAX_PEERS  # type: ignore[union-attr]


def test_recordings_never_keep_a_node_from_being_heard() -> None:
    """Somebody plays an old HELLO between any two of the node's own."""
    made, boots = peering(), [150, 151, 152]
    for n in range(20):
        made.receive(hello(n, (US, 99), boot=boots[n % 3]), n / 10)
        made.receive(hello(n), n / 10)
        heard = [action.heard for action in made.tick(n / 10) if isinstance(action, Hello)]
        if heard and (THEM, THEIR_BOOT) in heard[0]:
            break
    else:
        pytest.fail("the node is never named")
    assert made.receive(hello(99, (US, OUR_BOOT)), 2.0) is Outcome.ACCEPTED


@pytest.mark.parametrize(
    ("numbers", "taken"),
    [
        ([0, 1, 2], [True] * 3),
        ([5, 4, 6], [True, False, True]),
        ([0, 2, 1, 1, 2], [True, True, True, False, False]),
        ([0, WINDOW, 1, 0], [True, True, True, False]),
        ([0, WINDOW + 1, 1, 2], [True, True, False, True]),
        ([0, 10 * WINDOW, 9 * WINDOW, 10 * WINDOW - 1], [True, True, False, True]),
        ([1 << 63, (1 << 64) - 1], [True, True]),
    ],
)
def test_window(numbers: list[int], taken: list[bool]) -> None:
    window = Window()
    assert [window.take(number) for number in numbers] == taken
