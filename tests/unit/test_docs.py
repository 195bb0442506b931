"""The documents against what they are about: every file named, every verdict, outcome and metric as it is."""

from __future__ import annotations

import re
from ipaddress import IPv4Address
from pathlib import Path

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from vc5py import config
from vc5py.checks.result import Reason
from vc5py.config.forwarding import _OUTER_HEADER, _OVERHEAD
from vc5py.core.diff import diff
from vc5py.core.flowsync import Outcome
from vc5py.dataplane import abi
from vc5py.dataplane.sizing import sizes_for
from vc5py.model import Config, ForwardMode, VirtualServiceId
from vc5py.snapshot import (
    BfdSessionSnapshot,
    BfdSnapshot,
    NeighborSnapshot,
    PeerSnapshot,
    RealSnapshot,
    ServiceSnapshot,
    SharingSnapshot,
    Snapshot,
    ToldSnapshot,
    VerdictSnapshot,
)
from vc5py.web import metrics

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted(
    path for pattern in ("*.md", "docs/*.md", "deploy/*") for path in ROOT.glob(pattern) if path.is_file()
)
VIP, REAL = IPv4Address("192.0.2.1"), IPv4Address("198.51.100.1")
# One of everything, so that every metric has a sample.
SNAPSHOT = Snapshot(
    version="1",
    services=(ServiceSnapshot(VirtualServiceId("web", VIP), True, 1, (RealSnapshot(REAL, True, 1, 1, 1),)),),
    vips={VIP: True},
    vip_told={VIP: ToldSnapshot(1, 1)},
    sessions={REAL: True},
    neighbors=(NeighborSnapshot(REAL, 65000, "established", 1.0, 1),),
    bfd=BfdSnapshot((BfdSessionSnapshot(REAL, "up", True, 0.0, 1),), {"ttl": 1}, 0.0, "fifo"),
    verdicts=tuple(VerdictSnapshot(v.name, v.action, 1) for v in abi.verdicts()),
    probes={("tcp", "ok"): 1},
    probe_lag_s=0.0,
    interfaces={"eth0": "native"},
    flow_capacity=1024,
    sharing=SharingSnapshot(
        enabled=True,
        datagrams={"accepted": 1},
        results={"added": 1},
        peers=(PeerSnapshot("00ff", "10.0.0.8", 0.5),),
    ),
)


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def rows(document: str, heading: str) -> list[list[str]]:
    """The cells of the first table under a heading, without the table's head, backticks removed."""
    section = document.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    lines = [line for line in section.splitlines() if line.startswith("|")][2:]
    return [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in lines]


def rendered() -> dict[str, set[str]]:
    """The names of the samples on /metrics, each with its labels."""
    families = text_string_to_metric_families(metrics.render(SNAPSHOT).decode())
    return {sample.name: set(sample.labels) for family in families for sample in family.samples}


def source_files() -> set[str]:
    python = {
        path.relative_to(ROOT / "vc5py").as_posix()
        for path in (ROOT / "vc5py").rglob("*.py")
        if path.stat().st_size
    }
    return python | {p.relative_to(ROOT).as_posix() for p in (ROOT / "xdp").rglob("*") if p.is_file()}


def test_architecture_names_every_file_and_no_other() -> None:
    named = set(re.findall(r"^\| `([^`]+\.(?:py|c|h))` \|", read("docs/ARCHITECTURE.md"), re.MULTILINE))
    assert named == source_files()


def test_verdict_table() -> None:
    expected = [[v.name, str(v.action), v.description] for v in abi.verdicts()]
    assert rows(read("docs/operations.md"), "Verdicts") == expected


def test_verdicts_of_advice_and_alerts_exist() -> None:
    names = {v.name for v in abi.verdicts()}
    advice = read("docs/operations.md").split("What to do when one of these grows:")[1].split("\n## ")[0]
    advised = re.findall(r"`(\w+)`", "\n".join(re.findall(r"^\* ([^:]*):", advice, re.MULTILINE)))
    alerted = re.findall(r'verdict="(\w+)"', read("deploy/prometheus-rules.yml") + read("README.md"))
    assert alerted
    assert advised
    assert {*advised, *alerted} <= names


def test_maximum_segment_sizes_of_tunnels() -> None:
    """What is left of 1500 bytes: the rows are modes; the columns a VIP's and a real's IP version."""
    table = read("docs/reals.md").split("### MTU and MSS", 1)[1].split("\n## ", 1)[0]
    found = re.findall(r"^\| `(\w+)` \| (\d+) \| (\d+) \| (\d+) \| (\d+) \|$", table, re.MULTILINE)
    assert [row[0] for row in found] == [str(mode) for mode in _OVERHEAD]
    for mode, *sizes in found:
        left = [
            1500 - _OUTER_HEADER[real] - _OVERHEAD[ForwardMode(mode)] - _OUTER_HEADER[vip] - 20
            for vip, real in ((4, 4), (6, 4), (4, 6), (6, 6))
        ]
        assert [int(size) for size in sizes] == left, mode


def test_memory_of_the_flow_table() -> None:
    said = "The flow table takes 16 bytes for\neach of `flows`: 16 MiB for the default of 1,048,576, 1 GiB"
    assert said in read("docs/operations.md")
    assert Config(services=()).flows == 1_048_576
    assert sizes_for(Config(services=()), 16).bytes("flows") == 16 * 1_048_576


def test_the_example_of_a_diff_is_what_is_printed() -> None:
    text = """services:
  - {{name: web, addr: 192.168.101.1, port: 80, need: {}, reals: [10.10.100.10, {}], checks: [{}]}}
  - {{name: {}, port: 80, reals: [10.10.100.10], checks: [{}]}}
"""
    check, real = "{name: c, type: tcp}", "10.10.100.11"
    old = config.parse(text.format(1, real, check, "old, addr: 192.168.101.9", check), "old")
    heavier = f"{{address: {real}, weight: 2}}"
    changed = text.format(2, heavier, check, "new, addr: 192.168.101.8", check)
    new = config.parse(f"flows: 2097152\n{changed}", "new")
    example = "".join(f"    {change}\n" for change in diff(old, new))
    assert example in read("docs/configuration.md")


def test_outcome_table() -> None:
    table = rows(read("docs/operations.md"), "Outcomes of probes")
    assert [name for name, _ in table] == [str(reason) for reason in Reason]


def test_metric_table() -> None:
    table = rows(read("docs/operations.md"), "Metrics")
    assert {name: set(filter(None, labels.split(", "))) for name, labels, _ in table} == rendered()


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_metric_names_exist(path: Path) -> None:
    programs = re.findall(r"^int (vc5_\w+)\(", read("xdp/vc5.c"), re.MULTILINE)
    named = set(re.findall(r"\bvc5_\w+", path.read_text(encoding="utf-8")))
    assert named - set(programs) <= rendered().keys()


def test_alerts_ask_for_labels_that_exist() -> None:
    given = set.union(*rendered().values()) | {"instance", "job"}
    for rule in yaml.safe_load(read("deploy/prometheus-rules.yml"))["groups"][0]["rules"]:
        assert re.search(r"\b(vc5_\w+|up\{)", rule["expr"]), rule["alert"]
        texts = " ".join(rule["annotations"].values())
        assert set(re.findall(r"\$labels\.(\w+)", texts)) <= given, rule["alert"]


@pytest.mark.parametrize("path", [p for p in DOCUMENTS if p.suffix == ".md"], ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", path.read_text(encoding="utf-8")):
        name, _, anchor = target.partition("#")
        file = (path.parent / name).resolve() if name else path
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            plain = [re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings]  # as GitHub does
            assert anchor in {heading.replace(" ", "-") for heading in plain}, target


def test_unit_waits_less_than_the_routes_hold() -> None:
    unit = dict(re.findall(r"^(\w+)=(.*)$", read("deploy/vc5py.service"), re.MULTILINE))
    rhi = config.load(ROOT / "config.example.yaml").rhi
    assert rhi is not None
    assert float(unit["RestartSec"]) < rhi.hold_s / 2
    assert unit["KillMode"] == "process"  # or systemd would end ExaBGP with the director


def test_outcomes_and_results_of_flow_sharing_are_documented() -> None:
    document = read("docs/flow-sync.md")
    assert [name for name, _ in rows(document, "Who is believed")] == [str(outcome) for outcome in Outcome]
    results = [result.name.lower() for result in abi.LearnResult if result is not abi.LearnResult.STRAY]
    assert [name for name, _ in rows(document, "What is taken")] == results
