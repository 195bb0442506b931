"""`vc5py lab`: run the whole show, or put the lab up for a person to play with.

Must not know: what a step does. Invariants: the lab is swept away however `lab` ends, by a signal too; a
lab that a person has put up is never swept away by another run.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from .assembly import Lab
from .errors import LabError, NotObservedError
from .kernel import NETNS_DIRECTORY
from .layout import (
    BALANCERS,
    FAR_VIPS,
    MAP,
    METRICS_PORT,
    NODES,
    REALS,
    ROUTER,
    TAGGED_VIP,
    VIP,
    VIP6,
    Layout,
)
from .report import Outcome, Report
from .scenario import learned, perform, wait_for_reals

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StoppedError(Exception):
    """A signal asked us to end."""

    def __init__(self, number: int) -> None:
        self.number = number
        super().__init__(signal.Signals(number).name)


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds `lab` with its own subcommands; without one, the whole show is run."""
    parser = subparsers.add_parser(
        "lab",
        help="show the balancer at work in network namespaces on this machine",
        description="Builds a network in namespaces - a client, a BIRD router, two balancers, five web "
        "servers - and shows what the balancer does in it: routes, direct replies, IPv6, a tunnel, a VLAN, a "
        "dead real, a dead balancer. Exit status 0 where all of it was observed. Needs root; leaves nothing "
        "behind.",
    )
    parser.add_argument(
        "--name", default="vc5", type=_name, help="namespaces are called NAME-*; labs can stand side by side"
    )
    commands = parser.add_subparsers(dest="lab_command", metavar="COMMAND")
    commands.add_parser("up", help="put the lab up and leave it standing, to play with")
    commands.add_parser("down", help="take it down")
    execute = commands.add_parser("exec", help="run a command, or a shell, on a node")
    execute.add_argument("node", choices=NODES)
    words = execute.add_argument(
        "words", nargs=argparse.REMAINDER, metavar="COMMAND", help="default: a shell"
    )
    words.required = False  # or it is said to be missing where the node is


def main(args: argparse.Namespace) -> int:
    """Exit status: 0 all observed, 1 something wasn't, 128 + N ended by signal N. Errors: LabError."""
    if os.geteuid() != 0:
        raise LabError("the lab makes network namespaces: run it as root")
    layout = Layout(args.name)
    commands = {None: show, "up": up, "down": down}
    try:
        if args.lab_command == "exec":
            return execute(layout, args.node, args.words)
        return commands[args.lab_command](layout)
    except BrokenPipeError:  # `vc5py lab | head`; keep the interpreter from writing there at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except StoppedError as stopped:
        with suppress(OSError):
            print(f"\nended by {stopped}; the lab is taken down", file=sys.stderr)
        return 128 + stopped.number


def show(layout: Layout) -> int:
    report = Report()
    _refuse_standing(layout)
    with _signals_raise(), _swept(layout) as lab:
        _put_up(lab, report)
        observations = perform(lab, report)
        observed = all(seen.outcome is Outcome.OBSERVED for seen in observations)
        if not observed:
            _show_logs(lab, report)
        report.table(observations)
    report.say("the lab is taken down")
    return 0 if observed else 1


def up(layout: Layout) -> int:
    report = Report()
    if layout.standing.exists():
        report.say("the lab is already up")
        report.block(MAP)
    else:
        with _signals_raise(), _kept(layout) as lab:
            _put_up(lab, report)
            try:
                learned(lab, report)
                wait_for_reals(lab)
            except NotObservedError:
                _show_logs(lab, report)
                raise
            layout.standing.touch()
    report.heading("The lab is up.")
    report.block(_hints(layout))
    return 0


def down(layout: Layout) -> int:
    with _signals_ignored(), Lab(layout):
        pass
    print("the lab is down")
    return 0


def execute(layout: Layout, node: str, words: list[str]) -> int:
    """Becomes the command on that node; returns only where that failed."""
    namespace = layout.namespace(node)
    if not (NETNS_DIRECTORY / namespace).exists():
        raise LabError(f"the lab is not up; put it up with: {_pasted()} {_lab(layout)} up")
    command = words[1:] if words[:1] == ["--"] else words
    command = command or [os.environ.get("SHELL", "/bin/sh")]
    sys.stdout.flush()
    try:
        os.execvp("ip", ["ip", "netns", "exec", namespace, *command])
    except OSError as error:
        raise LabError(f"ip: {error}") from error


def _put_up(lab: Lab, report: Report) -> None:
    report.heading("A network in namespaces: client, router, two balancers, five reals")
    report.block(MAP)
    lab.put_up()
    report.say("network, BIRD and nginx are up; each real on the LAN answers the client on its own address")
    lab.start_balancers()
    report.say(f"balancers started: {' '.join(lab.programs[BALANCERS[0].name].command)}")


def _show_logs(lab: Lab, report: Report) -> None:
    for balancer in BALANCERS:
        report.heading(f"The end of {balancer.name}'s log")
        report.block(lab.programs[balancer.name].log_tail())


def _refuse_standing(layout: Layout) -> None:
    if layout.standing.exists():
        raise LabError(f"the lab is standing; take it down first: {_pasted()} {_lab(layout)} down")


@contextmanager
def _swept(layout: Layout) -> Iterator[Lab]:
    """A lab that is taken down at the end, undisturbed by further signals."""
    with Lab(layout) as lab:
        try:
            yield lab
        finally:
            _ignore_signals()


@contextmanager
def _kept(layout: Layout) -> Iterator[Lab]:
    """A lab that is left standing, unless something went wrong while it was put up."""
    lab = Lab(layout)
    lab.acquire()
    lab.network.sweep()
    try:
        yield lab
    except BaseException:
        _ignore_signals()
        lab.sweep()
        raise
    finally:
        lab.release()


@contextmanager
def _signals_raise() -> Iterator[None]:
    """The first SIGINT, SIGTERM or SIGHUP raises StoppedError; later ones don't disturb the clean-up."""

    def stop(number: int, frame: FrameType | None) -> None:
        _ignore_signals()
        raise StoppedError(number)

    before = {number: signal.getsignal(number) for number in _SIGNALS}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:  # nohup(1) wants it so
            signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _signals_ignored() -> Iterator[None]:
    with _signals_raise():
        _ignore_signals()
        yield


def _ignore_signals() -> None:
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _name(text: str) -> str:
    if not re.fullmatch(r"[a-z][a-z0-9]{0,15}", text):
        raise argparse.ArgumentTypeError("up to 16 lower-case letters and digits, a letter first")
    return text


def _pasted() -> str:
    """What runs our commands from where a person is now: the script of the tree, or an installed program."""
    script, here = Path(__file__).resolve().parents[2] / "vc5.sh", Path.cwd()
    if not script.exists():
        return str(Path(sys.executable).with_name("vc5py"))
    return f"./{script.relative_to(here)}" if script.is_relative_to(here) else str(script)


def _lab(layout: Layout) -> str:
    return "lab" if layout.name == "vc5" else f"lab --name {layout.name}"


def _hints(layout: Layout) -> list[str]:
    vc5, directory, lb, real = _pasted(), layout.directory, BALANCERS[0], REALS[0]
    lab, state = f"{vc5} {_lab(layout)}", f"--state-dir {directory}/{lb.name}/state"
    return [
        "Things to try:",
        f"  {lab} exec client curl -s 'http://{VIP}/?[1-9]'   # who answers",
        f"  {lab} exec client curl -s 'http://[{VIP6}]/?[1-9]'",
        f"  {lab} exec client curl -s 'http://{FAR_VIPS[0]}/?[1-9]'   # through a tunnel",
        f"  {lab} exec client curl -s 'http://{TAGGED_VIP}/?[1-9]'   # in a VLAN",
        f"  {lab} exec router ip route show {VIP}      # two next hops",
        f"  birdc -s {directory}/{ROUTER}/bird.ctl show route all",
        f"  {lab} exec {lb.name} curl -s http://{lb.address}:{METRICS_PORT}/metrics",
        f"  tail -f {directory}/{lb.name}/log",
        f"Ask {lb.name}:           {vc5} status {state}",
        f"Drain a real:      {vc5} drain {state} {real.address}     # on {lb.name} alone; back: reset",
        f"Withdraw a VIP:    {vc5} vip {state} withdraw {VIP}     # back: default",
        f"Reload:            {vc5} reload {state}     # of {directory}/{lb.name}/vc5.yaml",
        f"Stop a real:       kill $(cat {directory}/{real.name}/nginx.pid)",
        f"  and start it:    sh {directory}/{real.name}/start &",
        f"Kill a balancer:   kill -9 $(ip netns pids {layout.namespace(lb.name)})",
        f"  and start it:    sh {directory}/{lb.name}/start &",
        f"Cut its cable:     {lab} exec lan ip link set {lb.name} down     # or up",
        f"A shell on a node: {lab} exec {real.name}",
        f"Take all down:     {lab} down",
    ]
