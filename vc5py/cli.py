"""The command line: parses arguments, calls one function, turns errors into lines and exit statuses.

Exit status: 0 done, 1 failed, 2 wrong usage or configuration (nothing was touched then).
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from ipaddress import IPv4Address
from pathlib import Path

import vc5py
from vc5py import lab, loading
from vc5py.commands import config as about_files
from vc5py.commands.addresses import own_addresses
from vc5py.control import commands as control
from vc5py.errors import ConfigError, Vc5Error

_DEFAULT_CONFIG = Path("vc5.yaml")
_LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s %(message)s"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="vc5py", description="Layer-4 load balancer: XDP, DSR and BGP.")
    parser.add_argument("--version", action="version", version=f"vc5py {vc5py.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_run(commands)
    about_files.add_parsers(commands)
    control.add_parsers(commands)
    lab.add_parser(commands)
    return parser


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-c", "--config", type=Path, default=_DEFAULT_CONFIG, metavar="FILE", help="default: %(default)s"
    )


def _add_run(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    run = commands.add_parser("run", help="run the balancer on these interfaces until SIGTERM")
    _add_config(run)
    run.add_argument("interfaces", nargs="+", metavar="INTERFACE")
    run.add_argument(
        "--address",
        type=IPv4Address,
        help="BGP router id and source of probes; default: the first IPv4 address of the first interface",
    )
    run.add_argument(
        "--state-dir", type=Path, default=control.STATE_DIR, metavar="DIR", help="default: %(default)s"
    )
    run.add_argument(
        "--data-dir",
        type=Path,
        default=Path("/var/lib/vc5py"),
        metavar="DIR",
        help="where commands on reals are remembered over restarts; default: %(default)s",
    )
    run.add_argument(
        "--bpf-dir",
        type=Path,
        default=Path("/sys/fs/bpf/vc5py"),
        metavar="DIR",
        help="where maps are pinned, on a bpf filesystem; default: %(default)s",
    )
    run.add_argument(
        "--xdp-mode",
        choices=("native", "generic"),
        help="default: native where the driver has it, else generic with a warning",
    )


def _run(args: argparse.Namespace) -> int:
    loaded = loading.load(args.config, own_addresses())
    # Only now: these load bcc and numpy, which no other command needs.
    from vc5py import app
    from vc5py.dataplane.driver import Options
    from vc5py.dataplane.netlink import XdpMode

    logging.basicConfig(level=logging.INFO, format=_LOG_FORMAT, stream=sys.stderr)
    mode = XdpMode(args.xdp_mode) if args.xdp_mode else None
    dataplane = Options(tuple(dict.fromkeys(args.interfaces)), args.bpf_dir, mode, args.state_dir)
    app.run(loaded, app.Options(dataplane, args.state_dir, args.data_dir, args.address))
    return 0


_COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "run": _run,
    **about_files.COMMANDS,
    "lab": lab.main,
    **control.COMMANDS,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns the exit status."""
    args = _parser().parse_args(argv)
    try:
        return _COMMANDS[args.command](args)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    except Vc5Error as error:
        print(f"vc5py: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
