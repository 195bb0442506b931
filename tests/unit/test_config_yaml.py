"""The YAML layer: what text becomes which tree, what is refused, and that nothing else ever happens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from tests.unit.test_config import FULL
from tests.unit.test_config_errors import findings, judge
from vc5py.config import load, parse
from vc5py.config.report import Mark, Report
from vc5py.config.yaml_tree import MAX_BYTES, MAX_DEPTH, MAX_NODES, Tree, read
from vc5py.errors import ConfigError
from vc5py.model import Config


def tree(text: str) -> Tree:
    report = Report("f")
    result = read(text, report)
    assert result is not None
    assert report.diagnostics == []
    return result


@pytest.mark.parametrize(
    ("scalar", "value"),
    [
        ("", None), ("~", None), ("null", None), ("Null", None), ("nULL", "nULL"), ("'null'", "null"),
        ("true", True), ("False", False), ("yes", "yes"), ("no", "no"), ("on", "on"), ("y", "y"),
        ("0", 0), ("-0", 0), ("-7", -7), ("+7", 7), ("+", "+"), ("007", "007"), ("0x1F", "0x1F"),
        ("0o17", "0o17"), ("1_000", "1_000"), ("1:30", "1:30"), ("10.0.0.1", "10.0.0.1"), ("'1'", "1"),
        ("1.5", 1.5), ("1.", 1.0), ("1e3", 1000.0), ("-1.5E-3", -0.0015), (".5", ".5"), ("e5", "e5"),
        (".inf", ".inf"), (".NaN", ".NaN"), ('"1.5"', "1.5"), ("2024-01-01", "2024-01-01"), ("=", "="),
        ("<<", "<<"), ("|\n  1\n", "1\n"), ("-", [None]), ("9" * 5000, "9" * 5000), ("1e5000", "1e5000"),
        ("1." + "0" * 5000, "1." + "0" * 5000),
    ],
)  # fmt: skip
def test_scalars(scalar: str, value: Any) -> None:
    root = tree(f"- {scalar}").root
    assert isinstance(root, list)
    (item,) = root
    assert item == value
    assert type(item) is type(value)


def test_marks_of_keys_and_values() -> None:
    read_tree = tree("é: [1,\n  {b:  c}]\n'd':\n  - |\n    x\n")
    assert read_tree.root == {"é": [1, {"b": "c"}], "d": ["x\n"]}
    assert read_tree.marks == {
        (): Mark(1, 1),
        ("é",): Mark(1, 4),
        ("é", 0): Mark(1, 5),
        ("é", 1): Mark(2, 3),
        ("é", 1, "b"): Mark(2, 8),
        ("d",): Mark(4, 3),
        ("d", 0): Mark(4, 5),
    }
    assert read_tree.key_marks == {("é",): Mark(1, 1), ("é", 1, "b"): Mark(2, 4), ("d",): Mark(3, 1)}


BASE = "services: []\nreals: {}\n"

REFUSED = [
    (f"{BASE}learn: ▸&a 1", "learn: found the anchor &a, expected a value without it"),
    (f"{BASE}learn: ▸*a", "learn: found the alias *a, expected the value itself"),
    (f"{BASE}learn: ▸!x 1", "learn: found the tag '!x', expected a value without it"),
    (f"{BASE}learn: ▸!!int 1", "learn: found the tag 'tag:yaml.org,2002:int', expected a value without it"),
    (f"{BASE}metrics: ▸!x {{}}", "metrics: found the tag '!x', expected a value without it"),
    (f"{BASE}metrics: ▸!x []", "metrics: found the tag '!x', expected a value without it"),
    (f"{BASE}learn: 1\n▸learn: 2", "learn: found again, expected once (first on line 3)"),
    (f"{BASE}metrics: {{port: 1, ▸'port': 2}}", "metrics.port: found again, expected once (first on line 3)"),
    (f"{BASE}vlans: {{1: 10.0.0.0/8, ▸'1': 2}}", "vlans['1']: found again, expected once (first on line 3)"),
    (f"{BASE}metrics: {{▸~: 2}}", "metrics: found nothing as a key, expected text (put it in quotes)"),
    (f"{BASE}▸true: 2", "found true as a key, expected text (put it in quotes)"),
    (f"{BASE}? ▸[a, {{b: c}}]\n: [d, {{e: f}}]", "found a list as a key, expected text"),
    (f"{BASE}? ▸{{a: b}}\n: 2", "found a mapping as a key, expected text"),
    (f"{BASE}▸---\n{BASE}", "found a second YAML document, expected only one in a file"),
    ("a: ▸\x00", "found the character U+0000, expected only printable text"),
    ("é\r\na: é▸\x1b[2J", "found the character U+001B, expected only printable text"),
    ("a: ▸\ud800", "found the character U+D800, expected only printable text"),
    ("a: ▸\ufeff", "found the character U+FEFF, expected only printable text"),
]


@pytest.mark.parametrize(("text", "message"), REFUSED)
def test_refused_yaml(text: str, message: str) -> None:
    places, messages = judge(text)
    assert messages == [f"{places[0]}: {message}"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: {b: [▸}", "did not find expected node content (while parsing a flow node at line 1)"),
        ("a: 1▸: 2", "mapping values are not allowed in this context"),
        ("a: [b\nc▸: d", "did not find expected ',' or ']' (while parsing a flow sequence at line 1)"),
        ("\n'x▸", "found unexpected end of stream (while scanning a quoted scalar at line 2)"),
        (
            "a:\n▸\t- b",
            "found character that cannot start any token, a tab: YAML is indented by spaces"
            " (while scanning for the next token at line 2)",
        ),
        ("a: [ff02::1]▸:9999", "did not find expected key (while parsing a block mapping at line 1)"),
    ],
)
def test_syntax_errors(text: str, message: str) -> None:
    places, messages = judge(text)
    assert messages == [f"{places[0]}: not YAML: {message}"]


@pytest.mark.parametrize("text", ["", "\n\n", "# nothing\n", "\ufeff", "---\n...\n", "null", "--- # nothing"])
def test_empty_files(text: str) -> None:
    assert findings(text) == ["f: found an empty file, expected a configuration"]


def test_a_finding_before_a_syntax_error_is_kept() -> None:
    assert [line.split(": ")[0] for line in findings("a: 1\na: 2\nb: [")] == ["f:2:1", "f:4:1"]


# Bounds


def test_as_deep_as_allowed_and_one_deeper() -> None:
    assert tree("[" * MAX_DEPTH + "]" * MAX_DEPTH).root
    messages = findings("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1))
    assert messages == [f"f:1:{MAX_DEPTH + 1}: found nesting deeper than {MAX_DEPTH} levels, expected less"]


@pytest.mark.parametrize("opening", ["[", "{", "- ", "? ", "{a: ", "[{? ", "- a: \n  "])
def test_bottomless_nesting(opening: str) -> None:
    assert len(findings(opening * 500_000)) >= 1


def test_as_large_as_allowed_and_one_byte_more() -> None:
    fits = BASE + "#" * (MAX_BYTES - len(BASE))
    assert parse(fits, "f") == Config(services=())
    assert findings(fits + "#") == [f"f: found more than {MAX_BYTES} bytes, expected a smaller file"]


def test_more_values_than_allowed() -> None:
    assert findings("[" + "x," * MAX_NODES + "]") == [
        f"f:1:{2 * MAX_NODES}: found more than {MAX_NODES} values, expected fewer"
    ]


def test_values_under_refused_keys_count_too() -> None:
    (*_, last) = findings("a: 1\n" + "a: [" + "x," * MAX_NODES + "]")
    assert "more than" in last


def test_an_alias_bomb_is_only_a_list_of_findings() -> None:
    bomb = "a: &a [x, x]\n" + "".join(
        f"{b}: &{b} [*{a}, *{a}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
    )
    assert len(findings(bomb)) >= 9 + 16


# Whatever the text, the outcome is a Config or a ConfigError


def outcome(text: str) -> Config | ConfigError:
    try:
        return parse(text, "f")
    except ConfigError as error:
        assert error.diagnostics
        lines = text.count("\n") + text.count("\r") + sum(map(text.count, "\x85\u2028\u2029")) + 2
        for one in error.diagnostics:
            assert 0 <= one.line <= lines
            assert (one.line > 0) == (one.column > 0)
            assert one.message
            assert "\n" not in str(one)
        return error


ALPHABET = "ab:,-?!&*#|>@%'\"{}[] \n\t\r~<=._01\\\x00\x7f\x85\ufeff\u2028\ud800é"


@given(st.text())
def test_any_text(text: str) -> None:
    outcome(text)


@given(st.text(alphabet=ALPHABET))
@example("? ")
@example("*a : b")
@example("&a ? *a\n")
@example("!!merge <<: {}")
@example("%TAG ! !\n--- !a b")
@example("{? , : , : }")
def test_any_punctuation(text: str) -> None:
    outcome(text)


@given(st.binary(max_size=200))
def test_any_bytes(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    file: Path = tmp_path_factory.getbasetemp() / "any.yaml"
    file.write_bytes(content)
    try:
        load(file)
    except ConfigError as error:
        assert error.diagnostics


SNIPPETS = st.sampled_from([
    "", "\n", " ", "  ", ": ", "- ", "[", "]", "{", "}", "'", '"', ",", "#", "&a ", "*a", "!!str ", "| ",
    "\t", "null", "true", "80", "-1", "1e999", "10.0.0.1", "::1", "224.0.0.1:1", "nginx", "name: ", "real: ",
    "reals:\n", "---\n", "\x00", "{port: 1}", "[a, b]", "<one>", "'[key]': 1", "{'<many>': 1}", "RhiSpec: 1",
])  # fmt: skip


@given(st.lists(st.tuples(st.integers(0, len(FULL)), st.integers(0, 12), SNIPPETS), min_size=1, max_size=4))
def test_a_valid_file_with_pieces_replaced(edits: list[tuple[int, int, str]]) -> None:
    text = FULL
    for start, length, piece in edits:
        text = text[:start] + piece + text[start + length :]
    outcome(text)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
    | st.sampled_from(["nginx", "iperf", "192.168.101.1", "10.10.100.10", "tcp", "http", "name", 80, 5001]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


def _paths(node: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [path, *(deeper for key, child in children for deeper in _paths(child, (*path, key)))]


def _replaced(node: Any, path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return value
    copy = node.copy() if isinstance(node, dict | list) else node
    copy[path[0]] = _replaced(node[path[0]], path[1:], value)
    return copy


DOCUMENT = yaml.safe_load(FULL)


@given(st.sampled_from(_paths(DOCUMENT)), VALUES)
def test_a_valid_file_with_one_node_replaced(path: tuple[Any, ...], value: Any) -> None:
    result = outcome(yaml.safe_dump(_replaced(DOCUMENT, path, value), allow_unicode=True))
    if isinstance(result, Config):
        assert all(service.reals and service.vips and service.ports for service in result.services)
