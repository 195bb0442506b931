"""The JSON Schema and the reference: as generated, and of one mind with the checker."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft7Validator, FormatChecker

from tests.unit import test_config, test_config_errors, test_config_relations
from vc5py import cli
from vc5py.checks import dns_message
from vc5py.config import check_scalars, parse, reference, schema, yaml_tree
from vc5py.config.checks import KEYS
from vc5py.config.language import MODELS, CheckSpec, fields
from vc5py.config.report import Report
from vc5py.errors import ConfigError
from vc5py.lab.layout import BALANCERS, Host
from vc5py.lab.nodes import balancer_configuration
from vc5py.model import CheckType

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "config.example.yaml"


@cache
def validator() -> Draft7Validator:
    shipped = json.loads(schema.SHIPPED.read_text())
    Draft7Validator.check_schema(shipped)
    return Draft7Validator(shipped, format_checker=FormatChecker())


def complaints(text: str) -> list[str]:
    tree = yaml_tree.read(text, Report("f"))
    assert tree is not None
    return [error.json_path for error in validator().iter_errors(tree.root)]


def test_the_schema_ships_as_it_is_generated() -> None:
    """If not: python -m vc5py.config.schema > vc5py/config/schema.json"""
    assert schema.SHIPPED.read_text() == schema.text()


def test_the_reference_is_as_it_is_generated() -> None:
    """If not: python -m vc5py.config.reference docs/configuration.md"""
    document = (ROOT / "docs/configuration.md").read_text()
    assert reference.renewed(document) == document
    for model in MODELS.values():
        assert (model.__doc__ or "?") in document
        for key in fields(model):
            assert f"\n| `{key}` | " in document


def test_the_command_prints_what_ships(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["schema"]) == 0
    assert capsys.readouterr().out == schema.SHIPPED.read_text()


def test_every_mapping_is_closed_and_described() -> None:
    def mappings(node: Any) -> list[dict[str, Any]]:
        inner = node.values() if isinstance(node, dict) else node if isinstance(node, list) else []
        own = [node] if isinstance(node, dict) and node.get("type") == "object" else []
        return own + [one for part in inner for one in mappings(part)]

    made = schema.schema()
    assert '"null"' not in schema.text()
    for mapping in mappings(made):
        assert mapping["additionalProperties"] is False
        for key, described in mapping.get("properties", {}).items():
            assert described.get("description"), key


def test_every_check_key_belongs_to_types_or_to_all() -> None:
    """A key that is new must be put into `KEYS`, unless it is for all types."""
    for_all = {"name", "type", "port", "interval", "timeout", "rise", "fall", "pass"}
    assert set(KEYS) | for_all == set(fields(CheckSpec))
    assert {kind for kinds in KEYS.values() for kind in kinds} < set(CheckType)


def test_the_words_of_dns_are_those_of_the_prober() -> None:
    assert set(check_scalars.RECORDS) == set(dns_message.RECORDS)
    assert check_scalars.RCODES == dns_message.RCODES


# Examples


def test_the_example_names_the_schema_for_editors() -> None:
    first = EXAMPLE.read_text().splitlines()[0]
    name, _, file = first.partition("$schema=")
    assert name == "# yaml-language-server: "
    assert (ROOT / file).samefile(schema.SHIPPED)


def test_good_files_are_good_by_the_schema() -> None:
    for text in (EXAMPLE.read_text(), test_config.FULL, test_config.MINIMAL):
        assert complaints(text) == []


@pytest.mark.parametrize("balancer", BALANCERS, ids=lambda balancer: balancer.name)
def test_the_configuration_of_the_lab_is_good_by_the_schema(balancer: Host) -> None:
    text = balancer_configuration(balancer)
    parse(text, "lab")
    assert complaints(text) == []


# Findings that are not the schema's business: they take two places of the file, or arithmetic; 1.0 is a whole
# number to JSON; and Python's own `$` is content with a line break behind it.
_ONLY_OURS = (
    "again", "expected the name of a group", "which is a VIP", "mode dscp", "expected with it",
    "expected at least", "the check needs", "the default is a tcp check", "in another VLAN", "to agree",
    "every real once", "expected it in one service", "prefix without bits", "a VLAN from",
    "a multicast address", "power of two", "expected reuse to be less", "syntax of RE2", "as the record is",
    "not loopback or link-local", "address to listen on", "address of a host", "printable characters",
    "the same header", "found '5 of 3'", "found '300-299'", "found 80.0", "found 1.0", r"\n', expected",
    "of at most 1200 bytes",
)  # fmt: skip

WRONG = [
    *(test_config_errors.small(service=line) for line, *_ in test_config_errors.SINGLE_VALUES),
    *(test_config_errors.small(check=f", {line}") for line, *_ in test_config_errors.CHECK_VALUES),
    *(test_config_errors.small(top=line) for line, *_ in test_config_errors.TOP_VALUES),
    *(
        test_config_errors.small(service=f"checks: [{{name: c, port: 53, type: {kind}, {keys}}}]")
        for kind, keys, _ in test_config_relations.DETAILS
    ),
    *(
        test_config_errors.small(top=f"defaults: {{{keys}}}")
        for keys, _ in test_config_relations.LEVEL_VALUES
    ),
]


@pytest.mark.parametrize("marked", WRONG)
def test_wrong_files_are_wrong_by_the_schema(marked: str) -> None:
    text = marked.replace(test_config_errors.MARK, "")
    with pytest.raises(ConfigError) as caught:
        parse(text, "f")
    messages = [finding.message for finding in caught.value.diagnostics]
    if all(any(words in message for words in _ONLY_OURS) for message in messages):
        return
    assert complaints(text), messages
