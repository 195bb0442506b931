"""`vc5py drain`, `disable`, `enable`, `weight`, `reset`, `vip`, `reload`, `status`: words into requests,
answers into lines and an exit status.

Exit status: 0 done, 1 failed, without effect or nobody there to ask, 2 wrong usage, unknown names or a bad
configuration.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from http import HTTPStatus
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

from vc5py.control import client, table
from vc5py.control.client import Answer
from vc5py.core.admin import MAX_WEIGHT

STATE_DIR = Path("/run/vc5py")

_STATES = {
    "drain": ("draining", "give a real no new flows; those it has stay to their end"),
    "disable": ("disabled", "give a real no packets; its flows go to others"),
    "enable": ("enabled", "let a real serve again"),
}
_VIP_STATES = {"announce": "announced", "withdraw": "withdrawn", "default": None}
_USAGE = (HTTPStatus.BAD_REQUEST, HTTPStatus.NOT_FOUND, HTTPStatus.UNPROCESSABLE_ENTITY)


def add_parsers(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    for name, (_, text) in _STATES.items():
        _add_target(commands.add_parser(name, help=text))
    weight = commands.add_parser("weight", help="set a real's share of new flows")
    _add_target(weight)
    weight.add_argument(
        "weight", type=_weight, metavar="N|default", help=f"0 to {MAX_WEIGHT}; default: as configured"
    )
    _add_target(commands.add_parser("reset", help="state and weight of a real as configured again"))
    vip = commands.add_parser("vip", help="announce a VIP by BGP, withdraw it, or leave it to health")
    vip.add_argument("action", choices=tuple(_VIP_STATES), help="default: as the health of its services says")
    vip.add_argument("vip", type=_address, metavar="VIP", help="its address")
    _add_state_dir(vip)
    _add_state_dir(commands.add_parser("reload", help="put the configuration file into force"))
    status = commands.add_parser("status", help="show services, reals and VIPs of the running balancer")
    _add_state_dir(status)
    status.add_argument("--json", action="store_true", help="everything, for programs")


def _add_target(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("real", type=_address, metavar="REAL", help="its address")
    parser.add_argument("--service", metavar="NAME", help="in this service only; default: in all")
    _add_state_dir(parser)


def _add_state_dir(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--state-dir",
        type=Path,
        default=STATE_DIR,
        metavar="DIR",
        help="that of the running balancer; default: %(default)s",
    )


def _address(text: str) -> IPv4Address | IPv6Address:
    try:
        return ip_address(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no IP address") from None


def _weight(text: str) -> int | None:
    if text == "default":
        return None
    if not (text.isascii() and text.isdigit()) or int(text) > MAX_WEIGHT:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number from 0 to {MAX_WEIGHT} nor default")
    return int(text)


def set_state(args: argparse.Namespace) -> int:
    state, _ = _STATES[args.command]
    return _command(args, "/v1/state", {"state": state})


def set_weight(args: argparse.Namespace) -> int:
    return _command(args, "/v1/weight", {"weight": args.weight})


def reset(args: argparse.Namespace) -> int:
    return _command(args, "/v1/reset", {})


def set_vip(args: argparse.Namespace) -> int:
    body = {"vip": str(args.vip), "state": _VIP_STATES[args.action]}
    answer = client.ask(args.state_dir, "POST", "/v1/vip", body)
    if not answer.good:
        return _failed(answer)
    announced = answer.document["announced"]
    why = "" if args.action == "withdraw" or not answer.document["why"] else f": {answer.document['why']}"
    print(f"VIP {args.vip}: {'to be announced' if announced else 'not announced'}{why}")
    saved = _saved(answer)
    return 1 if args.action == "announce" and not announced else saved


def _command(args: argparse.Namespace, path: str, what: Mapping[str, object]) -> int:
    target = {"real": str(args.real), "service": args.service}
    answer = client.ask(args.state_dir, "POST", path, {**target, **what})
    if not answer.good:
        return _failed(answer)
    for line in answer.document["effective"]:
        admin, weight = line["admin"], line["weight"]
        print(f"{args.real} in {line['service']}@{line['vip']}: {admin}, weight {weight}")
    for warning in answer.document["warnings"]:
        print(f"vc5py: warning: {warning}", file=sys.stderr)
    return _saved(answer)


def _saved(answer: Answer) -> int:
    if answer.document["unsaved"]:
        print(f"vc5py: done, but lost at the next start: {answer.document['unsaved']}", file=sys.stderr)
        return 1
    return 0


def _failed(answer: Answer) -> int:
    if "findings" in answer.document:
        print(answer.document["error"], file=sys.stderr)
        print("vc5py: the configuration in force is as before", file=sys.stderr)
    else:
        print(f"vc5py: {answer.document.get('error', 'no reason given')}", file=sys.stderr)
    return 2 if answer.status in _USAGE else 1


def reload(args: argparse.Namespace) -> int:
    answer = client.ask(args.state_dir, "POST", "/v1/reload")
    if not answer.good:
        return _failed(answer)
    for finding in answer.document["warnings"]:
        print(finding["text"], file=sys.stderr)
    for change in answer.document["changes"]:
        print(change["text"])
    for note in answer.document["notes"]:
        print(note)
    if not answer.document["changes"]:
        print("nothing has changed")
    return 0


def status(args: argparse.Namespace) -> int:
    answer = client.ask(args.state_dir, "GET", "/v1/status")
    if not answer.good:
        return _failed(answer)
    if args.json:
        print(json.dumps(answer.document, indent=1))
    else:
        print("\n".join(table.lines(answer.document)))
    return 0


COMMANDS: Mapping[str, Callable[[argparse.Namespace], int]] = {
    **dict.fromkeys(_STATES, set_state),
    "weight": set_weight,
    "reset": reset,
    "vip": set_vip,
    "reload": reload,
    "status": status,
}
