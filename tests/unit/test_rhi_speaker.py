"""What of the speaker needs no router: its files, its ExaBGP, its refusals."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

import pytest

from tests.unit import bgp_rig
from tests.unit.checks_rig import in_new_network, ip
from vc5py import app, claim, offspring
from vc5py.config.bgp_scalars import MOST_COMMUNITIES
from vc5py.errors import RhiError
from vc5py.model import Neighbor, RhiConfig, RouteAttributes
from vc5py.rhi import child, grammar, hosting, link, signatures
from vc5py.rhi import speaker as speaking
from vc5py.rhi.child import StateFiles
from vc5py.rhi.link import Link, RelayBusyError
from vc5py.rhi.sessions import source_address
from vc5py.rhi.speaker import Machine, SessionState, Speaker

LOCAL = IPv4Address("127.0.0.1")
PEER = IPv4Address("127.0.0.9")
VIP = IPv4Address("192.0.2.1")


def speaker(state_dir: Path) -> Speaker:
    config = RhiConfig(65001, (Neighbor(PEER, 65001, 65001),))
    return Speaker(config, Machine(LOCAL, LOCAL), state_dir)


def test_a_new_speaker_knows_of_no_session_and_no_route(tmp_path: Path) -> None:
    fresh = speaker(tmp_path / "deep" / "state")
    assert dict(fresh.sessions()) == {PEER: SessionState.DOWN}
    assert fresh.announced() == frozenset()
    assert (tmp_path / "deep" / "state").stat().st_mode & 0o777 == 0o700


def test_a_missing_exabgp_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python3"))
    with pytest.raises(RhiError, match=f"{tmp_path}/exabgp: no such program"):
        speaker(tmp_path / "state")
    assert not (tmp_path / "state").exists()


def test_a_path_too_long_for_a_socket_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RhiError, match="too long"):
        speaker(tmp_path / ("x" * 100))


def test_the_source_address_is_the_kernels_choice() -> None:
    async def main() -> None:
        assert source_address(PEER, 179) == LOCAL
        assert source_address(ip_address("::1"), 179) == ip_address("::1")

    in_new_network(main)


def test_no_source_address_is_an_error() -> None:
    with pytest.raises(RhiError, match="no local address"):
        source_address(ip_address("255.255.255.255"), 179)


async def test_shutdown_without_exabgp_does_nothing(tmp_path: Path) -> None:
    await speaker(tmp_path).shutdown()
    assert list(tmp_path.iterdir()) == []


async def test_files_that_can_not_be_removed_are_left(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What comes after the speaker has still to be shut down."""
    one = speaker(tmp_path)
    StateFiles(tmp_path).hold.mkdir()
    await one.shutdown()
    assert "files left behind" in caplog.text


def test_what_is_written_is_for_the_eyes_of_its_user(tmp_path: Path) -> None:
    files = StateFiles(tmp_path)
    files.write("text", 2.5)
    assert files.written_configuration() == "text"
    assert files.hold.read_text() == "2.5\n"
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}
    places = [files.configuration.stat().st_ino, files.hold.stat().st_ino]
    files.write("text", 3.0)
    after = [files.configuration.stat().st_ino, files.hold.stat().st_ino]
    assert [now == then for now, then in zip(after, places, strict=True)] == [True, False]
    files.remove()
    assert list(tmp_path.iterdir()) == []


def test_the_log_is_bounded(tmp_path: Path) -> None:
    log = tmp_path / "log"
    child.trim(log)
    log.write_bytes(b"x" * child.MAX_LOG)
    child.trim(log)
    assert log.stat().st_size == child.MAX_LOG
    log.write_bytes(b"x" * (child.MAX_LOG + 1))
    child.trim(log)
    assert log.stat().st_size == 0


# With ExaBGP, and a neighbor that isn't there


def exabgps(state_dir: Path) -> list[int]:
    """Those that run by the configuration in this directory. Who still tries to claim it isn't one yet."""
    wanted, claiming = os.fsencode(state_dir / "exabgp.conf"), os.fsencode(claim.__file__)
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            arguments = (directory / "cmdline").read_bytes().split(b"\0")
            if wanted in arguments and claiming not in arguments:
                found.append(int(directory.name))
    return found


async def until(test: Callable[[], object], timeout_s: float = 60.0) -> None:
    """Polls: the speaker tells nobody when it has announced."""
    async with asyncio.timeout(timeout_s):
        while not test():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def run_for(one: Speaker, wait: Callable[[], Awaitable[None]]) -> None:
    """Begins, and is cancelled when `wait` is over."""
    task = asyncio.create_task(one.run())
    await wait()
    task.cancel()
    await asyncio.wait({task})


def turns(count: int) -> Callable[[], Awaitable[None]]:
    """So many turns of the event loop."""

    async def wait() -> None:
        for _ in range(count):
            await asyncio.sleep(0)

    return wait


@pytest.mark.parametrize("same", [True, False], ids=["the same speaker", "another speaker"])
async def test_cancelled_while_exabgp_starts_the_next_run_announces(tmp_path: Path, same: bool) -> None:
    """After so many turns of the loop, ExaBGP has just been started, and is nobody whom one could ask."""
    vips = frozenset({VIP})
    for count in range(4, 10):
        one = speaker(tmp_path)
        await run_for(one, turns(count))
        one = one if same else speaker(tmp_path)
        one.set_routes(vips)
        await run_for(one, lambda one=one: until(lambda: one.announced() == vips))  # type: ignore[misc]
        assert len(exabgps(tmp_path)) == 1, count
        await one.shutdown()
        assert exabgps(tmp_path) == [], count


async def test_cancelled_while_it_adopts_exabgp_nobody_is_kept_out(tmp_path: Path) -> None:
    one = speaker(tmp_path)
    one.set_routes(frozenset({VIP}))
    await run_for(one, lambda: until(one.announced))
    (exabgp,) = exabgps(tmp_path)
    for number in range(30):
        await run_for(speaker(tmp_path), lambda n=number: asyncio.sleep(0.003 * n))  # type: ignore[misc]
        async with asyncio.timeout(5):
            await (await connected(tmp_path / "relay.sock")).close()
    assert exabgps(tmp_path) == [exabgp]
    await one.shutdown()


async def connected(path: Path) -> Link:
    """The relay sees a moment later that its director has gone."""
    while True:
        try:
            return await Link.connect(path, lambda _: None)
        except RelayBusyError:
            await asyncio.sleep(0.01)


async def test_what_a_dead_director_has_only_written_is_taken_over(tmp_path: Path) -> None:
    """It died before ExaBGP was told to read it."""
    other = IPv4Address("127.0.0.10")
    one = speaker(tmp_path)
    one.set_routes(frozenset({VIP}))
    await run_for(one, lambda: until(one.announced))
    exabgp = exabgps(tmp_path)
    config = RhiConfig(65001, (Neighbor(PEER, 65001, 65001), Neighbor(other, 65001, 65001)))
    written = (tmp_path / "exabgp.conf").read_text()
    block = written[written.index("neighbor") :]
    (tmp_path / "exabgp.conf").write_text(written + block.replace(str(PEER), str(other)))
    two = Speaker(config, Machine(LOCAL, LOCAL), tmp_path)
    two.set_routes(frozenset({VIP}))
    await run_for(two, lambda: until(two.announced))
    link = await connected(tmp_path / "relay.sock")
    known = grammar.parse_neighbors(await link.command(grammar.SHOW_NEIGHBORS))
    await link.close()
    assert {status.address for status in known} == {PEER, other}
    assert exabgps(tmp_path) == exabgp
    await two.shutdown()


async def test_why_there_is_no_session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A neighbor that refuses, one that doesn't call, and one whom ExaBGP doesn't take in."""
    called, caller, unknown = (IPv4Address(f"127.0.0.{n}") for n in (9, 10, 11))
    neighbors = (
        Neighbor(called, 65001, 65001),
        Neighbor(caller, 65001, 65001, passive=True, listen=1790),
    )
    one = Speaker(RhiConfig(65001, neighbors), Machine(LOCAL, LOCAL), tmp_path)
    one.set_routes(frozenset({VIP}))

    def whys() -> list[str]:
        assert {standing.routes for standing in one.standings().values()} == {0}, "nobody was told"
        return [standing.why for standing in one.standings().values()]

    task = asyncio.create_task(one.run())
    await until(lambda: whys() == ["connection refused", signatures.WAITING])
    broken = (tmp_path / "exabgp.conf").read_text() + "neighbor nonsense {"
    monkeypatch.setattr(grammar, "configuration", lambda *_: broken)
    one.reconfigure(RhiConfig(65001, (*neighbors, Neighbor(unknown, 65001, 65001))))
    await until(lambda: "refused its configuration" in whys()[2])
    assert whys()[:2] == ["connection refused", signatures.WAITING]
    task.cancel()
    await asyncio.wait({task})
    await one.shutdown()


async def test_an_exabgp_that_does_not_start_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "program.py"
    program.write_text("raise SystemExit('no such luck')")
    monkeypatch.setattr(child, "program", lambda: program)
    neighbors = (Neighbor(PEER, 65001, 65001), Neighbor(LOCAL, 65001, 65001, passive=True))
    one = Speaker(RhiConfig(65001, neighbors), Machine(LOCAL, LOCAL), tmp_path / "state")
    assert {standing.why for standing in one.standings().values()} == {""}, "nobody says anything yet"
    words = f"ExaBGP doesn't start: no such luck (see {tmp_path}/state/exabgp.log)"
    await run_for(
        one, lambda: until(lambda: {standing.why for standing in one.standings().values()} == {words})
    )
    await one.shutdown()


async def test_a_shutdown_while_exabgp_starts_leaves_none(tmp_path: Path) -> None:
    for count in range(4, 10):
        one = speaker(tmp_path)
        await run_for(one, turns(count))
        await one.shutdown()
        assert exabgps(tmp_path) == [], count


# With routers


ROUTERS = IPv4Address("127.0.0.2"), IPv4Address("127.0.0.3")
AWAY = IPv6Address("2001:db8::1")
ABSENT = IPv4Address("192.0.2.77")


def neighbor(address: IPv4Address | IPv6Address) -> Neighbor:
    return Neighbor(address, bgp_rig.AS_NUMBER, bgp_rig.AS_NUMBER, port=bgp_rig.PORT)


def bgp(*neighbors: Neighbor) -> RhiConfig:
    return RhiConfig(bgp_rig.AS_NUMBER, neighbors, graceful_s=0.0)


def test_a_neighbor_without_an_address_of_ours_costs_the_others_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At a first start, at an adoption, at a reload; it's tried again until its route is there."""
    monkeypatch.setattr(speaking, "LOOK_S", 0.1)
    waiting = replace(neighbor(ABSENT), passive=True, listen=1791, source=ABSENT)
    config = bgp(neighbor(ROUTERS[0]), neighbor(AWAY), waiting)
    more = bgp(*config.neighbors, neighbor(ROUTERS[1]))

    def begun(config: RhiConfig) -> tuple[Speaker, asyncio.Task[None]]:
        one = Speaker(config, Machine(LOCAL, LOCAL), tmp_path)
        one.set_routes(frozenset({VIP}))
        return one, asyncio.create_task(one.run())

    def why(one: Speaker, address: IPv4Address | IPv6Address) -> str:
        (found,) = (standing.why for peer, standing in one.standings().items() if peer.address == address)
        return found

    async def play() -> None:
        ip("addr add 2001:db8::9/128 dev lo nodad")
        async with (
            bgp_rig.router(str(ROUTERS[0])) as near,
            bgp_rig.router(str(ROUTERS[1])) as other,
            bgp_rig.router("::") as away,
        ):
            one, task = begun(config)
            await until(lambda: near.routes == {VIP} and one.announced() == {VIP})
            exabgp = exabgps(tmp_path)
            task.cancel()
            await asyncio.wait({task})

            two, task = begun(config)
            await until(lambda: two.announced() == {VIP})
            assert "no local address to reach the BGP peer 2001:db8::1" in why(two, AWAY)
            assert re.fullmatch("can't wait for the neighbor on 192.0.2.77: [A-Z][a-z ]+", why(two, ABSENT))
            assert two.sessions()[AWAY] is two.sessions()[ABSENT] is SessionState.DOWN

            two.reconfigure(more)
            await until(lambda: other.routes == {VIP})
            assert away.sessions == 0

            ip(f"-6 route add local {AWAY} dev lo src 2001:db8::9")
            await until(lambda: away.routes == {VIP} and not why(two, AWAY))
            ip(f"addr add {ABSENT}/32 dev lo")
            await until(lambda: why(two, ABSENT) == signatures.WAITING)

            ip(f"-6 route del local {AWAY} dev lo")
            two.reconfigure(config)
            await until(lambda: other.ended == 1)
            assert (near.sessions, near.ended, away.sessions, away.ended) == (1, 0, 1, 0)
            assert two.sessions()[AWAY] is SessionState.ESTABLISHED, "its link may be down for a moment"
            assert exabgps(tmp_path) == exabgp
            task.cancel()
            await asyncio.wait({task})
            await two.shutdown()

    in_new_network(play)


def test_a_session_whose_route_is_away_at_an_adoption_stays_until_something_is_known(tmp_path: Path) -> None:
    config = bgp(neighbor(ROUTERS[0]), neighbor(AWAY))

    def begun() -> tuple[Speaker, asyncio.Task[None]]:
        one = Speaker(config, Machine(LOCAL, LOCAL), tmp_path)
        one.set_routes(frozenset({VIP}))
        return one, asyncio.create_task(one.run())

    async def play() -> None:
        ip("addr add 2001:db8::9/128 dev lo nodad")
        ip(f"-6 route add local {AWAY} dev lo src 2001:db8::9")
        async with bgp_rig.router(str(ROUTERS[0])) as near, bgp_rig.router("::") as away:
            one, task = begun()
            await until(lambda: near.routes == away.routes == {VIP} == one.announced())
            exabgp = exabgps(tmp_path)
            task.cancel()
            await asyncio.wait({task})
            ip(f"-6 route del local {AWAY} dev lo")

            two, task = begun()
            await until(lambda: two.announced() == {VIP} and all(s == "established" for s in states(two)))
            assert (near.ended, away.ended, exabgps(tmp_path)) == (0, 0, exabgp)

            two.reconfigure(bgp(neighbor(ROUTERS[0]), replace(neighbor(AWAY), hold_time_s=9)))
            await until(lambda: "no local address to reach" in str(two.standings()))
            assert (near.ended, two.sessions()[AWAY]) == (0, SessionState.DOWN)
            task.cancel()
            await asyncio.wait({task})
            await two.shutdown()

    in_new_network(play)


def states(one: Speaker) -> list[str]:
    return [str(state) for state in one.sessions().values()]


def test_routes_are_kept_where_a_router_knows_them(tmp_path: Path) -> None:
    """Not where there is only an ExaBGP that would tell them: all routers may be away."""

    def kept() -> bool:
        return Speaker(config, Machine(LOCAL, LOCAL), tmp_path).keeps_routes()

    config = bgp(neighbor(ROUTERS[0]))

    async def play() -> None:
        assert not kept(), "nobody is there"
        one = Speaker(config, Machine(LOCAL, LOCAL), tmp_path)
        async with bgp_rig.router(str(ROUTERS[0])) as router:
            await run_for(one, lambda: until(lambda: states(one) == ["established"]))
            assert not kept(), "nothing has been told"
            one.set_routes(frozenset({VIP}))
            await run_for(one, lambda: until(lambda: router.routes))
            assert kept()
            (exabgp,) = exabgps(tmp_path)
            os.kill(exabgp, signal.SIGSTOP)
            assert kept(), "nobody says anything else"
            os.kill(exabgp, signal.SIGCONT)
            router.hang_up()
            await until(lambda: router.ended == 1)
        await run_for(one, lambda: until(lambda: states(one) != ["established"] and one.announced()))
        assert not kept()
        await one.shutdown()

    in_new_network(play)


def listens(port: int) -> socket.socket:
    """Another program's, as BIRD's would be."""
    stranger = socket.socket()
    stranger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    stranger.bind(("", port))
    stranger.listen(1)
    return stranger


def test_a_port_that_another_program_has_costs_its_neighbors_alone(tmp_path: Path) -> None:
    """At a first start, at an adoption, at a reload; what our own ExaBGP listens on is nobody else's."""
    taken, free = 1791, 1792
    calls = replace(neighbor(IPv4Address("127.0.0.4")), passive=True, listen=taken)
    others = tuple(
        replace(neighbor(IPv4Address(f"127.0.0.{host}")), passive=True, listen=free) for host in (5, 6)
    )
    config = bgp(neighbor(ROUTERS[0]), calls, others[0])
    why_not = f"port {taken} of {LOCAL} is taken by another program"

    def whys(one: Speaker) -> list[str]:
        return [standing.why for standing in one.standings().values()]

    async def play() -> None:
        async with bgp_rig.router(str(ROUTERS[0])) as near:
            with listens(taken):
                one = Speaker(config, Machine(LOCAL, LOCAL), tmp_path)
                one.set_routes(frozenset({VIP}))
                await run_for(one, lambda: until(lambda: whys(one) == ["", why_not, signatures.WAITING]))
                exabgp = exabgps(tmp_path)

                two = Speaker(config, Machine(LOCAL, LOCAL), tmp_path)
                two.set_routes(frozenset({VIP}))
                task = asyncio.create_task(two.run())
                await until(lambda: whys(two) == ["", why_not, signatures.WAITING])
                two.reconfigure(bgp(*config.neighbors, others[1]))
                await until(lambda: whys(two) == ["", why_not, signatures.WAITING, signatures.WAITING])
                await until(lambda: near.routes == two.announced() == {VIP})
            await until(lambda: whys(two) == ["", *[signatures.WAITING] * 3])
            with socket.create_connection((str(LOCAL), taken), 30.0):
                pass
            assert (near.sessions, near.ended, exabgps(tmp_path)) == (1, 0, exabgp)
            task.cancel()
            await asyncio.wait({task})
            await two.shutdown()

    in_new_network(play)


def test_an_exabgp_that_hangs_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Though there is nothing to say to it; well before the next check."""
    monkeypatch.setattr(speaking, "LOOK_S", 0.1)
    monkeypatch.setattr(speaking, "CHECK_S", 3600.0)
    monkeypatch.setattr(link, "ANSWER_S", 5.0)  # one that only has a slow machine needs that
    monkeypatch.setattr(offspring, "STOP_S", 0.2)

    async def play() -> None:
        async with bgp_rig.router(str(ROUTERS[0])) as router:
            one = Speaker(bgp(neighbor(ROUTERS[0])), Machine(LOCAL, LOCAL), tmp_path)
            one.set_routes(frozenset({VIP}))
            task = asyncio.create_task(one.run())
            await until(lambda: router.routes and one.announced())
            (victim,) = exabgps(tmp_path)
            monkeypatch.setattr(link, "ANSWER_S", 1.5)
            os.kill(victim, signal.SIGSTOP)
            await until(lambda: "rhi interrupted reason=ExaBGP doesn't answer within" in caplog.text)
            monkeypatch.setattr(link, "ANSWER_S", 5.0)
            await until(lambda: router.sessions > 1 and one.announced())
            assert victim not in exabgps(tmp_path)
            task.cancel()
            await asyncio.wait({task})
            await one.shutdown()

    in_new_network(play)


def test_a_relay_that_hangs_costs_no_session(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """While there is something to say, and when a director comes that would adopt its ExaBGP."""
    monkeypatch.setattr(link, "SIGN_S", 0.1)
    monkeypatch.setattr(link, "HELLO_S", 0.3)
    monkeypatch.setattr(hosting, "_RELAY_S", 0.6)
    other = IPv4Address("192.0.2.2")

    def stop_the_relay() -> None:
        (exabgp,) = exabgps(tmp_path)
        (relay,) = Path(f"/proc/{exabgp}/task/{exabgp}/children").read_text().split()
        os.kill(int(relay), signal.SIGSTOP)

    async def play() -> None:
        async with bgp_rig.router(str(ROUTERS[0])) as router:
            one = Speaker(bgp(neighbor(ROUTERS[0])), Machine(LOCAL, LOCAL), tmp_path)
            one.set_routes(frozenset({VIP, other}))
            task = asyncio.create_task(one.run())
            await until(lambda: router.routes == one.announced() == {VIP, other})
            exabgp = exabgps(tmp_path)
            stop_the_relay()
            one.set_routes(frozenset({VIP}))
            await until(lambda: router.routes == one.announced() == {VIP})
            task.cancel()
            await asyncio.wait({task})
            stop_the_relay()
            one = Speaker(bgp(neighbor(ROUTERS[0])), Machine(LOCAL, LOCAL), tmp_path)
            one.set_routes(frozenset({other}))
            await run_for(one, lambda: until(lambda: router.routes == one.announced() == {other}))
            assert (router.sessions, router.ended, exabgps(tmp_path)) == (1, 0, exabgp)
            await one.shutdown()

    in_new_network(play)
    assert caplog.text.count("relay killed") == 2


def test_what_can_not_be_written_costs_no_session_and_no_withdrawal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """At an adoption that would change something, and at a reload; it's tried again until there is room."""
    monkeypatch.setattr(speaking, "CHECK_S", 0.5)
    other = IPv4Address("192.0.2.2")
    in_the_way = [tmp_path / name for name in ("exabgp.conf.new", "relay.hold.new")]

    async def play() -> None:
        async with bgp_rig.router(str(ROUTERS[0])) as near, bgp_rig.router(str(ROUTERS[1])) as far:
            one = Speaker(bgp(neighbor(ROUTERS[0])), Machine(LOCAL, LOCAL), tmp_path)
            one.set_routes(frozenset({VIP, other}))
            await run_for(one, lambda: until(lambda: near.routes == {VIP, other}))
            exabgp = exabgps(tmp_path)
            for path in in_the_way:
                path.mkdir()

            changed = replace(bgp(neighbor(ROUTERS[0])), hold_s=4.0)
            one = Speaker(changed, Machine(LOCAL, LOCAL), tmp_path)
            one.set_routes(frozenset({VIP}))
            task = asyncio.create_task(one.run())
            await until(lambda: near.routes == one.announced() == {VIP})
            one.reconfigure(replace(bgp(*map(neighbor, ROUTERS)), hold_s=4.0))
            await until(lambda: "doesn't know this neighbor" in str(one.standings()))
            assert states(one) == ["established", "down"]
            one.set_routes(frozenset({other}))
            await until(lambda: near.routes == {other})
            assert caplog.text.count("exabgp.conf: can't be written") == 1, "it is tried ever again"

            for path in in_the_way:
                path.rmdir()
            await until(lambda: far.routes == {other} == one.announced())
            assert (tmp_path / "relay.hold").read_text() == "4\n"
            assert (near.sessions, near.ended, exabgps(tmp_path)) == (1, 0, exabgp)
            task.cancel()
            await asyncio.wait({task})
            await one.shutdown()

    in_new_network(play)


DIRECTOR = f"""
import asyncio, sys
from ipaddress import ip_address
from pathlib import Path
from vc5py.model import Neighbor, RhiConfig
from vc5py.rhi.speaker import Machine, Speaker

async def main():
    local = ip_address("{LOCAL}")
    own = {bgp_rig.AS_NUMBER}  # the router sends no KEEPALIVE
    router = Neighbor(ip_address(sys.argv[2]), own, own, port={bgp_rig.PORT}, hold_time_s=90)
    rhi = RhiConfig(own, (router,), hold_s=float(sys.argv[3]))
    one = Speaker(rhi, Machine(local, local), Path(sys.argv[1]))
    one.set_routes(frozenset({{ip_address("{VIP}")}}))
    await one.run()

asyncio.run(main())
"""


@contextmanager
def director(state_dir: Path, hold_s: float) -> Iterator[subprocess.Popen[bytes]]:
    """A process that wants VIP announced to the first router."""
    command = [sys.executable, "-c", DIRECTOR, str(state_dir), str(ROUTERS[0]), str(hold_s)]
    with subprocess.Popen(command, cwd=Path(__file__).resolve().parents[2]) as process:
        try:
            yield process
        finally:
            process.kill()


def test_a_director_that_hangs_loses_its_routes_and_announces_them_again(tmp_path: Path) -> None:
    hold_s = 3.0

    async def play() -> None:
        async with bgp_rig.router(str(ROUTERS[0])) as router:
            with director(tmp_path, hold_s) as process:
                await until(lambda: router.routes == {VIP})
                process.send_signal(signal.SIGSTOP)
                stopped_at = time.monotonic()
                await until(lambda: not router.routes)
                assert time.monotonic() - stopped_at > hold_s / 2, "the last sign came before"
                await until(lambda: router.ended == 1)
                process.send_signal(signal.SIGCONT)
                await until(lambda: router.routes == {VIP})
            await Speaker(bgp(neighbor(ROUTERS[0])), Machine(LOCAL, LOCAL), tmp_path).shutdown()

    in_new_network(play)


@pytest.mark.long
@pytest.mark.parametrize("who", ["director", "relay", "both"])
def test_whoever_is_stopped_for_20_s_and_goes_on_costs_no_session(tmp_path: Path, who: str) -> None:
    """The hold is longer, or both were stopped, as the whole machine might be."""
    hold_s = 15.0 if who == "both" else 30.0

    async def play() -> None:
        async with bgp_rig.router(str(ROUTERS[0])) as router:
            with director(tmp_path, hold_s) as process:
                await until(lambda: router.routes == {VIP})
                await asyncio.sleep(2.0)  # in which signs of life have come and gone
                (exabgp,) = exabgps(tmp_path)
                relay = int(Path(f"/proc/{exabgp}/task/{exabgp}/children").read_text())
                stopped = {"director": [process.pid], "relay": [relay], "both": [process.pid, relay]}[who]
                for pid in stopped:
                    os.kill(pid, signal.SIGSTOP)
                await asyncio.sleep(20.0)
                for pid in stopped:
                    with suppress(ProcessLookupError):  # a relay has been replaced
                        os.kill(pid, signal.SIGCONT)
                await asyncio.sleep(10.0)
                assert (router.sessions, router.ended, router.routes) == (1, 0, {VIP})
                assert exabgps(tmp_path) == [exabgp]
            await Speaker(bgp(neighbor(ROUTERS[0])), Machine(LOCAL, LOCAL), tmp_path).shutdown()

    in_new_network(play)


def test_a_router_that_ends_every_session_is_called_again_ever_later(tmp_path: Path) -> None:
    """At once the first time, a second later the next."""

    async def play() -> None:
        async with bgp_rig.router(str(ROUTERS[0])) as router:
            one = Speaker(bgp(neighbor(ROUTERS[0])), Machine(LOCAL, LOCAL), tmp_path)
            task = asyncio.create_task(one.run())
            for session in (1, 2):
                await until(lambda n=session: router.sessions == n and states(one) == ["established"])  # type: ignore[misc]
                ended_at = time.monotonic()
                router.hang_up()
                await until(lambda n=session: router.ended == n)  # type: ignore[misc]
            await until(lambda: router.sessions == 3)
            assert time.monotonic() - ended_at >= 0.9
            task.cancel()
            await asyncio.wait({task})
            await one.shutdown()

    in_new_network(play)


def test_where_every_neighbor_lacks_an_address_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(speaking, "LOOK_S", 0.1)

    async def play() -> None:
        ip("addr add 2001:db8::9/128 dev lo nodad")
        async with bgp_rig.router("::") as away:
            one = Speaker(bgp(neighbor(AWAY)), Machine(LOCAL, LOCAL), tmp_path)
            one.set_routes(frozenset({VIP}))
            await run_for(one, lambda: until(lambda: len(exabgps(tmp_path)) == 1))
            await one.shutdown()
            assert exabgps(tmp_path) == []
            task = asyncio.create_task(one.run())
            await until(lambda: exabgps(tmp_path) and "no local address" in str(one.standings()))
            ip(f"-6 route add local {AWAY} dev lo src 2001:db8::9")
            await until(lambda: away.routes == {VIP})
            task.cancel()
            await asyncio.wait({task})
            await one.shutdown()

    in_new_network(play)
    assert "not confirmed" not in caplog.text


def test_all_routes_are_marked_and_time_is_given_before_they_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit is one of the routes: none is left without."""
    monkeypatch.setattr(speaking, "FLUSH_S", 0.0)
    monkeypatch.setattr(speaking, "ROUTE_S", 0.1)
    graceful_s, vips = 1.0, frozenset(VIP + number for number in range(150))
    config = replace(bgp(*map(neighbor, ROUTERS)), graceful_s=graceful_s)

    async def play() -> None:
        async with bgp_rig.router(str(ROUTERS[0])) as first, bgp_rig.router(str(ROUTERS[1])) as second:
            one = Speaker(config, Machine(LOCAL, LOCAL), tmp_path)
            one.set_routes(vips)
            await run_for(one, lambda: until(lambda: set(vips) == first.routes == second.routes))
            await one.shutdown()
            await until(lambda: first.ended == second.ended == 1)
        for router in (first, second):
            assert (router.marked, router.routes) == (set(vips), set())
            assert router.first_withdrawal_at - router.last_mark_at > graceful_s / 2, "ExaBGP may send late"

    in_new_network(play)


def test_time_is_given_for_what_was_marked_until_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An ExaBGP that stands still amid the marking, and goes on after the limit."""
    caplog.set_level("INFO")
    monkeypatch.setattr(speaking, "FLUSH_S", 1.5)
    monkeypatch.setattr(speaking, "ROUTE_S", 0.0)
    monkeypatch.setattr(grammar, "MAX_COMMAND", 200)  # so that there are many
    vips = frozenset(VIP + number for number in range(150))
    config = replace(bgp(neighbor(ROUTERS[0])), graceful_s=0.5)

    async def play() -> None:
        async with bgp_rig.router(str(ROUTERS[0])) as router:
            one = Speaker(config, Machine(LOCAL, LOCAL), tmp_path)
            one.set_routes(vips)
            await run_for(one, lambda: until(lambda: router.routes == vips))
            (exabgp,) = exabgps(tmp_path)
            leave = asyncio.create_task(one.shutdown())
            await until(lambda: router.marked)
            os.kill(exabgp, signal.SIGSTOP)
            await until(lambda: "cut short limit_s=1.5" in caplog.text)
            cut_at = time.monotonic()
            os.kill(exabgp, signal.SIGCONT)
            await leave
            await until(lambda: router.ended == 1)
        assert router.first_withdrawal_at - cut_at > 0.4

    in_new_network(play)
    marked, of = map(int, re.findall(r"announced routes=(\d+) of=(\d+) ", caplog.text)[0])
    assert marked < of == len(vips)


async def test_a_withdrawal_that_takes_too_long_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    one = speaker(tmp_path)
    one.set_routes(frozenset({VIP}))
    await run_for(one, lambda: until(one.announced))
    monkeypatch.setattr(speaking, "patience_s", lambda _: 0.0)
    await one.shutdown()
    assert "rhi withdrawal not confirmed reason=timeout" in caplog.text
    assert exabgps(tmp_path) == []


def test_many_neighbors_and_communities_are_told(tmp_path: Path) -> None:
    """More than fits into one command."""
    large = tuple((2**32 - 1, 2**32 - 1, 2**32 - 1 - number) for number in range(MOST_COMMUNITIES))
    told = RouteAttributes(large_communities=large)
    peers = [
        replace(neighbor(IPv4Address("127.0.1.0") + number), passive=True, attributes=told)
        for number in range(100)
    ]

    async def play() -> None:
        one = Speaker(bgp(*peers), Machine(LOCAL, LOCAL), tmp_path)
        one.set_routes(frozenset({VIP}))
        await run_for(one, lambda: until(lambda: one.announced() == {VIP}))
        await one.shutdown()

    in_new_network(play)


def test_the_service_waits_for_the_leave_of_ten_thousand_routes() -> None:
    unit = (Path(__file__).resolve().parents[2] / "deploy" / "vc5py.service").read_text()
    (limit_s,) = re.findall(r"^TimeoutStopSec=(\d+)$", unit, re.MULTILINE)
    ask_s = 2 * link.ANSWER_S
    end_s = 2 * offspring.STOP_S  # of ExaBGP, and of BFD
    told_s = 2 * speaking.patience_s(10_000) + RhiConfig(1, ()).graceful_s
    assert ask_s + told_s + 2 * end_s + app.DRAIN_S < int(limit_s)
