"""What the sharing process says, as values; and whatever else comes out of a pipe is a ValueError."""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vc5py.sharer_messages import Copied, Peer, Ready, Report, Strays, Trouble, parse

WORDS = np.array([1, 2, 1 << 31], dtype=np.uint32)
REPORT = {
    "datagrams": {"accepted": 3},
    "sent": 2,
    "cpu_s": 0.5,
    "copied": True,
    "ambiguous": 1,
    "results": {"added": 2},
    "peers": {"b": {"age_s": 0.1, "address": "fd00::2"}, "a": {"age_s": 1, "address": ""}},
}


def line(what: str, said: object) -> bytes:
    return json.dumps({what: said}).encode() + b"\n"


def test_what_is_understood() -> None:
    assert parse(line("ready", 1)) == Ready(1)
    assert parse(line("error", "no port")) == Trouble("no port")
    assert parse(line("copied", 3)) == Copied(3)
    assert parse(line("report", {})) == Report()
    assert parse(line("report", REPORT)) == Report(
        numbers={"sent": 2, "cpu_s": 0.5},
        datagrams={"accepted": 3},
        results={"added": 2},
        ambiguous=1,
        copied=True,
        peers=(Peer("a", "", 1), Peer("b", "fd00::2", 0.1)),
    )
    strays = parse(line("strays", base64.b64encode(WORDS.tobytes()).decode()))
    assert isinstance(strays, Strays)
    assert strays.words.tolist() == WORDS.tolist()


NONSENSE: list[bytes] = [
    b"",
    b"\xff\n",
    b"[]\n",
    b"{}\n",
    b"5\n",
    b"Traceback (most recent call last):\n",
    b'{"strays": "AAAA',
    b"[" * 100_000,
    b'{"report": {"sent": ' + b"9" * 5000 + b"}}\n",
    b'{"ready": 1, "copied": 2}\n',
    line("unheard of", 1),
    line("report", 5),
    line("report", []),
    line("report", {"peers": 1}),
    line("report", {"peers": {"a": {}}}),
    *(line("report", {"peers": {"a": {"age_s": age, "address": "x"}}}) for age in ("1", None, -1, 1e999)),
    *(line("report", {"sent": number}) for number in (-1, "1", True, float("nan"), 1 << 64)),
    line("report", {"results": {"added": 0.5}}),
    line("report", {"ambiguous": []}),
    line("copied", "1"),
    line("copied", 1.0),
    line("error", 1),
    *(line("strays", said) for said in ("A", "AAA=", "$$$$", 5)),
]


@pytest.mark.parametrize("said", NONSENSE, ids=range(len(NONSENSE)))
def test_nonsense_is_shown_in_part(said: bytes) -> None:
    with pytest.raises(ValueError, match="it talks nonsense") as error:
        parse(said)
    assert len(str(error.value)) < 400


ANYTHING: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*REPORT, "a"]), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(st.sampled_from(["ready", "error", "copied", "report", "strays"]), ANYTHING)
def test_whatever_is_said_is_understood_or_a_value_error(what: str, said: object) -> None:
    try:
        parse(line(what, said))
    except ValueError:
        pass
