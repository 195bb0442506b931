"""The command line: parses arguments, calls one function, turns errors into lines and exit statuses.

Exit status: 0 done, 1 failed, 2 wrong usage or configuration (nothing was touched then), 141 nobody reads
what is printed any more (as of a shell whose command died of SIGPIPE).
"""

from __future__ import annotations

import argparse
import errno
import logging
import os
import re
import select
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from difflib import get_close_matches
from ipaddress import IPv4Address
from pathlib import Path
from typing import NoReturn, TextIO

import vc5py
from vc5py import lab, loading
from vc5py.commands import config as about_files
from vc5py.commands.addresses import first_address, own_addresses
from vc5py.control import commands as control
from vc5py.errors import ConfigError, Vc5Error

_DEFAULT_CONFIG = Path("vc5.yaml")
_BROKEN_PIPE = 141
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_log = logging.getLogger("vc5py.cli")
_LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s %(message)s"


class _Parser(argparse.ArgumentParser):
    """Says of a word that is none of the choices which one may have been meant."""

    def error(self, message: str) -> NoReturn:
        if wrong := re.search(r"invalid choice: '(.*)' \(choose from (.*)\)$", message):
            close = get_close_matches(wrong[1], re.findall(r"'([^']*)'", wrong[2]), n=1)
            message += f"; did you mean {close[0]}?" if close else ""
        super().error(message)


def _parser() -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = _Parser(
        prog="vc5py", description="Layer-4 load balancer: XDP, DSR and BGP."
    )
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


def _must_be_own(given: IPv4Address, interfaces: Sequence[str]) -> None:
    """Vc5Error where this machine doesn't have the address, as far as /proc says. It may come yet, as an
    interface may: no wrong usage, after which systemd doesn't try again.
    """
    own = own_addresses()
    if not own or given in own:
        return
    has = [_says(name) for name in interfaces]
    raise Vc5Error(f"--address {given}: no interface of this machine has it; {', '.join(has)}")


def _says(name: str) -> str:
    if name not in (there for _, there in socket.if_nameindex()):
        return f"there is no interface {name}"
    return f"{name} has {first_address(name) or 'none'}"


def _must_be_allowed() -> None:
    """Vc5Error for somebody without any capability: the kernel's words would be about a program of ours."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    if re.search(r"^CapEff:\s+0+$", status, re.MULTILINE):
        raise Vc5Error("run needs root, or some capabilities: see 'Privileges' in docs/operations.md")


def _run(args: argparse.Namespace) -> int:
    interfaces = tuple(dict.fromkeys(args.interfaces))
    _must_be_allowed()
    if args.address is not None:
        _must_be_own(args.address, interfaces)
    logging.basicConfig(level=logging.INFO, format=_LOG_FORMAT, stream=sys.stderr)
    _log.info(
        "vc5py %s starting config=%s address=%s interfaces=%s",
        vc5py.__version__,
        args.config,
        args.address or first_address(interfaces[0]),
        ",".join(interfaces),
    )
    loaded = loading.load(args.config, own_addresses())
    # Only now: these load bcc and numpy, which no other command needs.
    from vc5py import app
    from vc5py.dataplane.driver import Options
    from vc5py.dataplane.netlink import XdpMode

    mode = XdpMode(args.xdp_mode) if args.xdp_mode else None
    dataplane = Options(interfaces, args.bpf_dir, mode, args.state_dir)
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
    try:
        try:
            return _carried_out(argv)
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()  # not at the very end, where nothing can be done about it any more
    except BrokenPipeError:
        unread = _unread()
        if not unread:
            raise  # it was another pipe, which is no reason to be quiet
        _silence(unread)
        return _BROKEN_PIPE
    except OSError as error:
        if error.errno not in _NO_ROOM or error.filename is not None or _is_run(argv):
            raise  # not about what is printed
        _silence(_stuck())
        with suppress(OSError):
            print(f"vc5py: can't write what is to be printed: {error.strerror}", file=sys.stderr)
        return 1


def _is_run(argv: Sequence[str] | None) -> bool:
    """It prints nothing, and writes much else."""
    return list(sys.argv[1:] if argv is None else argv)[:1] == ["run"]


def _silence(streams: Sequence[int]) -> None:
    """What is still to be written to them, at the very end too, goes nowhere."""
    nothing = os.open(os.devnull, os.O_WRONLY)
    for stream in streams:
        os.dup2(nothing, stream)


def _unread() -> list[int]:
    """The descriptors among those of standard output and error that nobody reads any more."""
    poll = select.poll()
    for stream in (1, 2):
        poll.register(stream, 0)
    return [stream for stream, _ in poll.poll(0)]


def _stuck() -> list[int]:
    """The descriptors of standard output and error that have something left for which there is no room."""
    return [number for number, stream in ((1, sys.stdout), (2, sys.stderr)) if not _flushes(stream)]


def _flushes(stream: TextIO | None) -> bool:
    try:
        if stream is not None:
            stream.flush()
    except OSError:
        return False
    return True


def _carried_out(argv: Sequence[str] | None) -> int:
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
