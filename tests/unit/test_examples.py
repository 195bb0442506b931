"""What people paste: the routers' examples, what `lab up` offers, and what `vc5.sh` refuses."""

from __future__ import annotations

import re
import shlex
import subprocess
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
import yaml

from vc5py import cli
from vc5py.config import parse_with_warnings
from vc5py.lab import commands, layout
from vc5py.lab.layout import BALANCERS, Layout

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
BIRD = sorted(DEPLOY.glob("bird*.conf.example"))
FRR = sorted(DEPLOY.glob("frr*.conf.example"))
EXTERNAL = sorted(DEPLOY.glob("*-ebgp.conf.example"))
SERVICE = """
services: [{name: a, addr: 192.168.101.1, port: 80, reals: [10.10.100.10], checks: [{name: c, type: tcp}]}]
"""
_ADDRESS = re.compile(r"\b(?:\d+\.){3}\d+|\b[0-9a-f]{4}(?::[0-9a-f]+)*::[0-9a-f]*")


def told(*command: str | Path) -> tuple[int, str]:
    done = subprocess.run(
        [str(word) for word in command], cwd=ROOT, check=False, capture_output=True, text=True, timeout=60
    )
    return done.returncode, done.stdout + done.stderr


# Routers


def test_there_are_examples_within_an_as_and_between_two() -> None:
    assert (len(BIRD), len(FRR), len(EXTERNAL)) == (2, 2, 2)


@pytest.mark.parametrize("example", BIRD, ids=lambda path: path.name)
def test_bird_takes_its_examples(example: Path) -> None:
    assert told("bird", "-p", "-c", example) == (0, "")


def test_bird_takes_what_the_readme_shows_and_what_it_says_of_ipv6(tmp_path: Path) -> None:
    shown = (ROOT / "README.md").read_text().split("the part that matters:\n", 1)[1].split("\nFor FRR", 1)[0]
    config = tmp_path / "bird.conf"
    config.write_text(f"router id 10.10.100.3;\nprotocol device {{}}\n{shown}")
    assert told("bird", "-p", "-c", config) == (0, "")
    (kernel,) = re.findall(r"^ +protocol kernel .*$", shown, re.MULTILINE)
    six = kernel.replace("ipv4", "ipv6")
    channel = "ipv6 { import where net ~ [ fd00:101::/64{128,128} ]; export none; gateway direct; };"
    config.write_text(config.read_text().replace("    }\n", f"{channel}\n    }}\n{six}\n", 1))
    assert "a second `protocol kernel`" in shown
    assert told("bird", "-p", "-c", config) == (0, "")


@pytest.mark.parametrize("example", FRR, ids=lambda path: path.name)
def test_frr_takes_its_examples(example: Path) -> None:
    """It says what it doesn't understand, and its exit status is 0 all the same."""
    assert told("/usr/lib/frr/bgpd", "-C", "-f", example) == (0, "")


@pytest.mark.parametrize("example", [*BIRD, *FRR], ids=lambda path: path.name)
def test_all_examples_have_the_addresses_of_the_lab(example: Path) -> None:
    ranges = [layout.ROUTER_LAN.network, *map(ip_network, (layout.VIP_RANGE, layout.VIP6_RANGE))]
    seen = set(_ADDRESS.findall(example.read_text()))
    assert {str(address) for address in (layout.ROUTER_LAN.ip, *(lb.address for lb in BALANCERS))} <= seen
    assert [text for text in seen if not any(ip_address(text) in place for place in ranges)] == []


@pytest.mark.parametrize("example", EXTERNAL, ids=lambda path: path.name)
def test_the_balancers_side_of_ebgp_is_given_too(example: Path) -> None:
    (line,) = re.findall(r"^[#!]\s+(rhi: .*)$", example.read_text(), re.MULTILINE)
    config, warnings = parse_with_warnings(SERVICE + line, "f")
    assert warnings == ()
    assert config.rhi is not None
    (router,) = config.rhi.neighbors
    assert not router.is_internal
    assert router.bfd is not None
    assert str(router.address) == str(layout.ROUTER_LAN.ip)
    ours, theirs = config.rhi.as_number, router.as_number
    text = example.read_text()
    assert f"as {theirs};" in text or f"router bgp {theirs}\n" in text
    assert f"as {ours};" in text or f"remote-as {ours}\n" in text


# Alerts


def test_who_is_to_be_woken() -> None:
    groups = yaml.safe_load((DEPLOY / "prometheus-rules.yml").read_text())["groups"]
    rules = {rule["alert"]: rule for group in groups for rule in group["rules"]}
    severities = {name: rule["labels"]["severity"] for name, rule in rules.items()}
    assert severities["Vc5VipAnnouncedByNobody"] == "critical"
    assert severities["Vc5VipWithdrawn"] == "warning", "others announce it"
    what_routers_know = "max by (vip) (vc5_vip_told_neighbors) == 0"
    assert severities["Vc5VipNotTold"] == "warning", "others are told"
    assert rules["Vc5VipAnnouncedByNobody"]["expr"] == what_routers_know, "not what is to be announced"


# The lab


@pytest.mark.parametrize("name", ["vc5", "other"])
def test_what_the_lab_offers_can_be_pasted(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    lab = Layout(name)
    hints = "\n".join(commands._hints(lab))
    seen = {}
    for line in re.findall(r"\./vc5\.sh .*", hints):
        args = cli._parser().parse_args(shlex.split(line, comments=True)[1:])
        seen[args.command] = args
        if args.command == "lab":
            assert args.name == name
        else:
            assert args.state_dir == lab.node_directory(BALANCERS[0].name) / "state"
    assert {"lab", "status", "drain", "vip", "reload"} == seen.keys()
    assert "vc5py lab" not in hints


def test_elsewhere_the_script_is_named_in_full(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert any(f" {ROOT}/vc5.sh lab down" in line for line in commands._hints(Layout("vc5")))


# The script


@pytest.mark.parametrize("words", ["eth0", "ens192", "lo", "fd00::1 eth0"])
def test_an_interface_or_an_ipv6_address_is_no_command(words: str) -> None:
    status, said = told(ROOT / "vc5.sh", *words.split())
    assert status == 1
    assert "IPv4 address" in said
    assert "./vc5.sh ADDRESS INTERFACE..." in said
    assert "invalid choice" not in said
