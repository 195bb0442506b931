"""The peers: who counts, when, and what is asked of whom. Read as transcripts."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

from vc5py.core.flowsync import MAX_PEERS, Datagram, Kind, Outcome, addressee, heard_body
from vc5py.core.peering import (
    COPY_RETRY_S,
    COPY_WAITS_S,
    FORGET_S,
    HELLO_S,
    PROMPT_S,
    WINDOW,
    Action,
    AskForCopy,
    GiveCopy,
    Hello,
    Peering,
    Window,
)
from vc5py.core.peering import Stream as Order

US, OUR_BOOT = 1, 100
THEM, THEIR_BOOT = 2, 200


OURS = addressee(US, OUR_BOOT)


def datagram(kind: Kind, sequence: int, *, node: int = THEM, boot: int = THEIR_BOOT, to: int = 0) -> Datagram:
    return Datagram(kind, to, node, boot, sequence, 0)


def us(now: float) -> tuple[int, int]:
    """How a HELLO names us that was made after we said at `now` what our clock showed."""
    return US, OUR_BOOT + int(now * 1000)


def hello(
    sequence: int, *heard: tuple[int, int], node: int = THEM, boot: int = THEIR_BOOT, to: int = 0
) -> Datagram:
    return Datagram(Kind.HELLO, to, node, boot, sequence, len(heard), heard_body(heard))


def hellos(actions: list[Action]) -> list[set[tuple[int, int]]]:
    """Whom those name that are to be sent, besides ourselves."""
    said = [action.heard for action in actions if isinstance(action, Hello)]
    return [{(node, number) for node, number in heard if node != US} for heard in said]


def peering() -> Peering:
    return Peering(US, OUR_BOOT, 0.0)


def proven() -> Peering:
    """Of a node that has named us, in its datagram 10 to all and 0 to us."""
    made = peering()
    assert made.receive(hello(10, (US, OUR_BOOT)), 0.0) is Outcome.ACCEPTED
    assert made.receive(hello(0, (US, OUR_BOOT), to=OURS), 0.0) is Outcome.ACCEPTED
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
    made = proven()
    assert made.receive(datagram(Kind.FLOWS, 11), 0.0) is Outcome.ACCEPTED
    assert made.receive(datagram(Kind.FLOWS, 1, to=OURS), 0.0) is Outcome.ACCEPTED
    assert made.receive(datagram(Kind.FLOWS, 1, to=OURS), 0.0) is Outcome.REPLAYED
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
    assert hellos(made.tick(0.5)) == [{(THEM, THEIR_BOOT), (THEM, 201)}]  # at once
    assert made.receive(hello(1, us(0.5), boot=201), 0.6) is Outcome.ACCEPTED
    assert made.receive(datagram(Kind.FLOWS, 2, boot=201), 0.6) is Outcome.ACCEPTED
    assert made.receive(datagram(Kind.FLOWS, 12), 0.6) is Outcome.REPLAYED


def test_hello_every_second_and_sooner_to_newcomers_but_never_in_a_flood() -> None:
    made = peering()
    assert made.tick(0.0) == [Hello((us(0.0),))]
    assert made.tick(HELLO_S - 0.01) == []
    assert made.tick(HELLO_S) == [Hello((us(HELLO_S),))]
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
    made.receive(datagram(Kind.COPIED, 1, to=OURS), COPY_RETRY_S + 1)
    assert made.copied
    assert not [a for a in made.tick(3 * COPY_RETRY_S) if isinstance(a, AskForCopy)]


def test_copy_is_asked_for_again_where_there_are_new_backends() -> None:
    made = proven()
    made.tick(0.0)
    made.receive(datagram(Kind.COPIED, 1, to=OURS), 1.0)
    made.want_copy()
    assert not [a for a in made.tick(2.0) if isinstance(a, AskForCopy)]  # not so soon
    made.receive(hello(11, (US, OUR_BOOT)), COPY_RETRY_S)
    assert AskForCopy(THEM, THEIR_BOOT) in made.tick(COPY_RETRY_S)


# Loss


class Stream:
    """A peer's HELLOs, one every tenth of a second, each of which may be lost."""

    def __init__(self) -> None:
        self.peering, self.now, self.sequence = proven(), 0.0, 10
        self.asked: list[float] = []
        self.pass_time(1.0)

    def pass_time(self, seconds: float, *, losing: Callable[[], bool] = lambda: False) -> list[float]:
        """When copies were asked for, seconds from the beginning of this; each is given at once."""
        began, asked = self.now, []
        for _ in range(round(seconds * 10)):
            self.now = round(self.now + 0.1, 1)
            self.sequence += 1
            if not losing():
                self.peering.receive(hello(self.sequence, us(self.now)), self.now)
            if AskForCopy(THEM, THEIR_BOOT) in self.peering.tick(self.now):
                asked.append(round(self.now - began, 1))
                self.given(self.now)
        return asked

    def given(self, now: float) -> None:
        self.asked.append(now)
        number = 2 * len(self.asked)
        self.peering.receive(hello(number - 1, us(now), to=OURS), now)
        assert self.peering.receive(datagram(Kind.COPIED, number, to=OURS), now) is Outcome.ACCEPTED


def every(number: int) -> Callable[[], bool]:
    counter = itertools.count(1)
    return lambda: next(counter) % number == 0


def test_copy_is_asked_for_as_soon_as_something_is_lost() -> None:
    stream = Stream()
    assert stream.asked == [0.1]
    stream.sequence += 1
    assert stream.pass_time(1000.0) == [0.2]  # a tenth of a second for those that are only late
    assert stream.peering.lost == 1


def test_nothing_is_asked_for_what_is_only_late() -> None:
    stream = Stream()
    late = stream.sequence + 1
    stream.sequence += 1
    stream.pass_time(0.1)
    assert stream.peering.lost == 1
    assert stream.peering.receive(datagram(Kind.FLOWS, late), stream.now) is Outcome.ACCEPTED
    assert stream.pass_time(10.0) == []
    stream.sequence += 1
    assert stream.pass_time(10.0) == [0.2]  # what is lost later counts all the same


def test_what_comes_after_all_hides_no_later_loss() -> None:
    stream = Stream()
    late = stream.sequence + 1
    stream.sequence += 1
    assert stream.pass_time(9.0) == [0.2]
    assert stream.peering.receive(datagram(Kind.FLOWS, late), stream.now) is Outcome.ACCEPTED
    stream.pass_time(0.1)
    stream.sequence += 1
    assert stream.pass_time(10.0) == [0.2]


def test_while_loss_goes_on_copies_are_asked_for_less_and_less_often() -> None:
    stream = Stream()
    stream.pass_time(100.0)
    asked = stream.pass_time(600.0, losing=every(3))
    waits = [round(after - before, 1) for before, after in itertools.pairwise(asked)]
    first, longest = COPY_WAITS_S
    assert asked[0] < 1.0
    for wait, doubled in zip(
        waits, [first, 2 * first, 4 * first, 8 * first, 16 * first, 32 * first], strict=False
    ):
        assert doubled <= wait < doubled + 0.5
    assert all(longest <= wait < longest + 0.5 for wait in waits[6:])
    assert len(waits) > 12
    assert len(stream.pass_time(2 * longest + 1)) == 1  # for the last that were lost; then all is calm
    stream.sequence += 1
    assert stream.pass_time(60.0) == [0.2]


def test_copies_take_half_of_the_time_at_most_however_long_each_takes() -> None:
    asked: list[float] = []
    made, sequence, copied = proven(), 10, itertools.count(1)
    for tenth in range(6000):
        now, took = tenth / 10, 90.0
        sequence += 1
        if tenth % 7:
            made.receive(hello(sequence, us(now)), now)
        if asked and asked[-1] < now <= asked[-1] + took:
            last = now == asked[-1] + took
            made.receive(hello(next(copied), us(now), to=OURS), now)
            made.receive(datagram(Kind.COPIED if last else Kind.FLOWS, next(copied), to=OURS), now)
        asked += [now for action in made.tick(now) if isinstance(action, AskForCopy)]
    assert len(asked) >= 3
    assert all(after - before >= 2 * 90.0 for before, after in itertools.pairwise(asked))


def test_copy_that_never_comes_is_asked_for_less_and_less_often() -> None:
    made, asked = proven(), []
    for second in range(600):
        made.receive(hello(11 + second, us(second)), float(second))
        asked += [second for action in made.tick(float(second)) if isinstance(action, AskForCopy)]
    waits = [after - before for before, after in itertools.pairwise(asked)]
    assert waits[:5] == [5, 5, 5, 8, 16]
    assert set(waits[6:]) == {int(COPY_WAITS_S[1])}


def test_copy_is_asked_for_at_once_where_somebody_waits_for_it() -> None:
    stream = Stream()
    stream.pass_time(60.0, losing=every(3))
    for _ in range(3):
        stream.peering.want_copy(at_once=True)
        assert not stream.peering.copied
        assert stream.pass_time(0.1) == [0.1]
        assert stream.peering.copied
    assert stream.pass_time(30.0) == []  # nobody waits any more


def two_peers() -> tuple[Peering, tuple[int, int]]:
    """Both have proven themselves, and a copy has come."""
    made, third = proven(), (3, 300)
    made.receive(hello(10, (US, OUR_BOOT), node=3, boot=300), 0.0)
    made.tick(0.0)
    made.receive(datagram(Kind.COPIED, 1, to=OURS), 0.1)
    return made, third


def asked_for(made: Peering, now: float) -> list[int]:
    return [action.node for action in made.tick(now) if isinstance(action, AskForCopy)]


def test_of_several_peers_the_one_is_asked_of_which_something_was_lost() -> None:
    for lossy in (THEM, 3):
        made, (third, boot) = two_peers()
        for sequence in (11, 12, 13):
            if (lossy, sequence) != (THEM, 12):
                made.receive(datagram(Kind.FLOWS, sequence), 2.0)
            if (lossy, sequence) != (3, 12):
                made.receive(datagram(Kind.FLOWS, sequence, node=third, boot=boot), 2.0)
        assert asked_for(made, 2.0) == []
        assert asked_for(made, 2.1) == [lossy]


def test_loss_of_a_silent_peer_is_asked_for_once_it_talks_again() -> None:
    made, (third, boot) = two_peers()
    made.receive(datagram(Kind.FLOWS, 12), 2.0)
    assert asked_for(made, 2.0) == []
    made.receive(datagram(Kind.FLOWS, 11, node=third, boot=boot), 5.9)
    assert asked_for(made, 6.0) == []
    made.receive(datagram(Kind.FLOWS, 13), 6.1)
    assert asked_for(made, 6.1) == [THEM]


def test_each_copy_is_asked_of_the_next_one_first_and_who_is_asked_is_named_before() -> None:
    made, _ = two_peers()
    made.want_copy(at_once=True)
    said, asked = made.tick(0.2)
    assert isinstance(said, Hello)
    assert asked == AskForCopy(THEM, THEIR_BOOT)
    made.receive(datagram(Kind.COPIED, 2, to=OURS), 0.3)
    made.want_copy(at_once=True)
    assert asked_for(made, 0.4) == [THEM]


def test_one_copy_makes_up_for_the_loss_of_all() -> None:
    """A cable was cut: what either peer said was lost, and each has heard the other."""
    made, (third, boot) = two_peers()
    made.receive(datagram(Kind.FLOWS, 20), 2.0)
    made.receive(datagram(Kind.FLOWS, 20, node=third, boot=boot), 2.0)
    made.tick(2.0)
    [asked] = asked_for(made, 2.1)
    boot = made.peers[asked].boot
    made.receive(hello(2, us(2.1), node=asked, boot=boot, to=OURS), 2.2)
    made.receive(datagram(Kind.COPIED, 3, node=asked, boot=boot, to=OURS), 2.2)
    assert [asked_for(made, 2.0 + n / 10) for n in range(2, 29)] == [[]] * 27


def test_all_do_not_ask_the_same_one() -> None:
    """Three whose router has started again: each asks another one."""
    asked = []
    for own in (1, 2, 3):
        made = Peering(own, OUR_BOOT, 0.0)
        for node in {1, 2, 3} - {own}:
            made.receive(hello(0, (own, OUR_BOOT), node=node), 0.0)
        asked += asked_for(made, 0.0)
    assert sorted(asked) == [1, 2, 3]


def test_another_one_is_asked_where_the_first_does_not_answer() -> None:
    made = proven()
    made.receive(hello(10, (US, OUR_BOOT), node=3, boot=300), 0.0)
    asked = []
    for second in range(12):
        made.receive(hello(11 + second, us(second)), float(second))
        made.receive(hello(11 + second, us(second), node=3, boot=300), float(second))
        asked += asked_for(made, float(second))
    assert asked == [THEM, 3, THEM]


def test_newcomer_is_asked_for_a_copy_as_soon_as_it_is_known() -> None:
    """It may have been alone, with flows that nobody else knows; but not while we know nothing ourselves."""
    made = proven()
    assert asked_for(made, 0.0) == [THEM]
    made.receive(hello(0, (US, OUR_BOOT), node=3, boot=300), 0.5)
    assert asked_for(made, 1.5) == []
    made.receive(datagram(Kind.COPIED, 1, to=OURS), 2.0)
    assert asked_for(made, 3.0) == []
    made.receive(hello(0, (US, OUR_BOOT), node=4, boot=400), 3.5)
    assert asked_for(made, 4.0) == [4]


def test_copy_is_given_to_who_asks() -> None:
    made = proven()
    made.tick(0.0)
    made.receive(datagram(Kind.COPY, 1, to=OURS), 0.1)
    assert made.tick(0.2) == [GiveCopy(THEM, THEIR_BOOT)]


def test_copy_of_which_something_is_lost_does_not_count() -> None:
    """Not even where another one had been asked for meanwhile: its end may be that of the one before."""
    made, ours = proven(), OURS
    assert any(isinstance(action, AskForCopy) for action in made.tick(0.0))
    made.receive(datagram(Kind.FLOWS, 1, to=ours), 0.1)
    made.want_copy(at_once=True)
    assert any(isinstance(action, AskForCopy) for action in made.tick(1.0))
    made.receive(datagram(Kind.FLOWS, 900, to=ours), 1.1)
    made.receive(datagram(Kind.COPIED, 901, to=ours), 1.2)
    assert not made.copied
    assert any(isinstance(action, AskForCopy) for at in (1.3, 1.4, 2.0, 3.5) for action in made.tick(at))
    made.receive(datagram(Kind.FLOWS, 902, to=ours), 3.6)
    made.receive(datagram(Kind.COPIED, 903, to=ours), 3.7)
    assert made.copied


def test_request_that_somebody_waits_for_is_repeated_soon_if_nothing_comes() -> None:
    made, sequence = proven(), itertools.count(11)
    made.tick(0.0)
    made.receive(datagram(Kind.COPIED, 1, to=OURS), 0.1)
    made.want_copy(at_once=True)
    asked = []
    for tenth in range(100, 140):
        made.receive(hello(next(sequence), us(tenth / 10)), tenth / 10)
        asked += [tenth for action in made.tick(tenth / 10) if isinstance(action, AskForCopy)]
    assert asked == [100, 110, 120, 130]


def test_silent_peer_is_forgotten_and_what_it_lost_is_not() -> None:
    made = proven()
    made.receive(datagram(Kind.FLOWS, 13), 0.0)
    made.tick(FORGET_S)
    assert THEM in made.peers
    made.tick(FORGET_S + 0.1)
    assert not made.peers
    assert made.lost == 2


def test_what_was_lost_of_a_boot_that_is_replaced_stays_counted() -> None:
    made = proven()
    made.receive(datagram(Kind.FLOWS, 13), 0.0)
    assert made.receive(hello(0, us(0.5), boot=201), 0.6) is Outcome.ACCEPTED
    assert made.lost == 2


def test_only_so_many_peers() -> None:
    made = peering()
    for node in range(2, 2 + MAX_PEERS):
        assert made.receive(hello(0, (US, OUR_BOOT), node=node), 0.0) is Outcome.ACCEPTED
    assert made.receive(hello(0, (US, OUR_BOOT), node=999), 0.0) is Outcome.CROWDED
    assert len(hellos(made.tick(0.0))[0]) == MAX_PEERS


def test_recordings_never_keep_a_node_from_being_heard() -> None:
    """Somebody plays an old HELLO between any two of the node's own."""
    made, boots = peering(), [150, 151, 152]
    for n in range(20):
        made.receive(hello(n, (US, 99), boot=boots[n % 3]), n / 10)
        made.receive(hello(n), n / 10)
        heard = hellos(made.tick(n / 10))
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


def test_window_remembers_no_more_however_long_the_stream() -> None:
    window = Window()
    assert all(window.take(number) for number in range(2 * WINDOW))
    assert window._bits.bit_length() == WINDOW


def test_what_was_ignored_is_missing_only_before_something_counts() -> None:
    window = Window()
    for number in (5, 3, 4):
        window.ignore(number)
    assert window.take(6)
    assert window.lost == 3
    window.ignore(1)
    assert window.lost == 3


def test_a_hello_vouches_for_a_later_time_by_a_later_number_only() -> None:
    order = Order()
    order.vouch(10, 100)
    order.vouch(5, 200)
    assert order.take(11, 100) is Outcome.ACCEPTED
    assert order.take(12, 101) is Outcome.UNPROVEN


def test_hellos_that_name_the_same_time_take_no_room() -> None:
    order = Order()
    for sequence in range(1, 1000):
        order.vouch(sequence, 100)
    assert order.take(1, 100) is Outcome.ACCEPTED
