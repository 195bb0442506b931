"""The commands about configuration files: `check`, `schema`, `convert`. They change nothing.

Exit status of check and convert: 0 good, 1 warnings with --strict (or the running balancer can't be asked),
2 errors.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sized
from pathlib import Path

from vc5py import config
from vc5py.commands.addresses import own_addresses
from vc5py.config import schema
from vc5py.control import client
from vc5py.control.commands import STATE_DIR
from vc5py.convert import convert
from vc5py.core.diff import diff
from vc5py.model import Config

_DEFAULT_CONFIG = Path("vc5.yaml")
_RUNNING = ""


def add_parsers(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    check = commands.add_parser("check", help="check a configuration file; touches nothing")
    check.add_argument(
        "-c", "--config", type=Path, default=_DEFAULT_CONFIG, metavar="FILE", help="default: %(default)s"
    )
    check.add_argument("--strict", action="store_true", help="exit status 1 where there are warnings")
    check.add_argument(
        "--diff",
        nargs="?",
        const=_RUNNING,
        metavar="OLDFILE",
        help="show what a reload would change: of the running balancer, or of what is in OLDFILE",
    )
    check.add_argument(
        "--state-dir",
        type=Path,
        default=STATE_DIR,
        metavar="DIR",
        help="of the running balancer; default: %(default)s",
    )
    commands.add_parser("schema", help="print the JSON Schema of the configuration file, for editors")
    convert_parser = commands.add_parser(
        "convert", help="print a configuration of the Go program vc5 (YAML or JSON) in our language"
    )
    convert_parser.add_argument("file", type=Path, metavar="FILE")
    convert_parser.add_argument(
        "--strict", action="store_true", help="exit status 1 where something could not be carried over"
    )


def _check(args: argparse.Namespace) -> int:
    settings, warnings = config.load_with_warnings(args.config, own_addresses())
    for warning in warnings:
        print(warning, file=sys.stderr)
    vips = {vip for service in settings.services for vip in service.vips}
    counted = f", {_many(warnings, 'warning')}" if warnings else ""
    print(f"{args.config}: good: {_many(settings.services, 'service')} on {_many(vips, 'VIP')}{counted}")
    if args.diff is not None:
        _show_diff(_old(args.diff, args.state_dir), settings)
    return 1 if args.strict and warnings else 0


def _many(things: Sized, name: str) -> str:
    return f"{len(things)} {name}{'' if len(things) == 1 else 's'}"


def _old(file: str, state_dir: Path) -> Config:
    """What is in force: `file`, or what the running balancer says."""
    if file != _RUNNING:
        return config.load(Path(file))
    return config.parse(client.get_text(state_dir, "/v1/config"), "running configuration")


def _show_diff(old: Config, new: Config) -> None:
    """In the words that the reload says afterwards."""
    changes = diff(old, new)
    for change in changes:
        print(change)
    if not changes:
        print("nothing changes")


def _schema(args: argparse.Namespace) -> int:
    print(schema.SHIPPED.read_text(encoding="utf-8"), end="")
    return 0


def _convert(args: argparse.Namespace) -> int:
    text, notes = convert(config.read_text(args.file), str(args.file))
    for note in notes:
        print(note, file=sys.stderr)
    print(text, end="")
    return 1 if args.strict and notes else 0


COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "check": _check,
    "schema": _schema,
    "convert": _convert,
}
