"""What a policy of the Go program means: `http`, `8080/tcp`, `domain`, ... with their checks.

Must not know: VIPs and servers. A policy makes one service for each (port, protocol), with its checks.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from pydantic import TypeAdapter, ValidationError

from vc5py.config.check_scalars import Method, UrlHost, UrlPath
from vc5py.config.ports import PORTS
from vc5py.config.report import Path, found, shown
from vc5py.convert.source import Source

_HOST, _PATH, _METHOD = TypeAdapter(UrlHost), TypeAdapter(UrlPath), TypeAdapter(Method)
_ENTRY = re.compile(r"(?:(?P<port>[1-9][0-9]{0,4})/?)?(?P<name>[a-z][a-z0-9-]*)?(?:/(?P<protocol>tcp|udp))?")
_NAMES = {"dns": "domain", "pop2": "pop2"}
_PORTS = {**PORTS, "pop2": 109}
_CODES = re.compile(r"([1-5][0-9]{2})(?:-([1-5][0-9]{2}))?")

CHECK_KEYS = ("host", "path", "method", "expect")
"""What the checks of a service take from it, unless its policy or the check says otherwise."""
_OF_CHECKS = {*CHECK_KEYS, "type", "port", "expt"}


@dataclass(frozen=True, slots=True)
class Entry:
    """One service that a policy makes, and the place of the policy. `name`: as the policy is written."""

    path: Path
    name: str
    port: int
    protocol: str
    checks: list[dict[str, Any]] = field(default_factory=list)


def entries(source: Source, path: Path, above: Path) -> Iterator[Entry]:
    """The services of the policy at `path`; `above` is the service it belongs to."""
    for key in source.keys(path):
        inner = (*path, key)
        named = _named(key.removesuffix("*"))
        if named is None:
            source.note(inner, "found a policy of no known kind: left out", key=True)
            continue
        port, protocols, kind = named
        _bind(source, inner, port)
        for protocol in protocols:
            name = key.removesuffix("*").removesuffix(f"/{protocol}").replace("/", "-")
            checks = [] if key.endswith("*") else _checks(source, inner, above, kind, protocol, port)
            yield Entry(inner, name, port, protocol, checks)


def _named(key: str) -> tuple[int, list[str], str] | None:
    """Port, protocols, and the type of the check that there is by default."""
    match = _ENTRY.fullmatch(key)
    if not match or not (match["port"] or match["name"]):
        return None
    name = match["name"]
    if name in ("tcp", "udp") and match["port"]:
        return _numbered(int(match["port"]), name)
    if name is None:
        return _numbered(int(match["port"]), "tcp")
    name = _NAMES.get(name, name)
    port = int(match["port"] or _PORTS.get(name, 0))
    if name not in _PORTS or not 1 <= port <= 65535:
        return None
    if name == "domain":
        return port, [match["protocol"]] if match["protocol"] else ["tcp", "udp"], "dns"
    protocol = match["protocol"] or "tcp"
    by_default = name if name in ("http", "https") else "syn"
    return port, [protocol], by_default if protocol == "tcp" else ""


def _numbered(port: int, protocol: str) -> tuple[int, list[str], str] | None:
    return (port, [protocol], "syn" if protocol == "tcp" else "") if 1 <= port <= 65535 else None


def _bind(source: Source, path: Path, port: int) -> None:
    """Other ports on the servers need address translation, which we don't do."""
    place = path if isinstance(source.node(path), int | str) else (*path, "bind")
    bind = source.number(place, 1, 65535)
    if bind not in (None, port):
        source.note(place, f"found port {bind} on the servers: they get packets for port {port} as it is")


# Checks


def _checks(
    source: Source, path: Path, above: Path, kind: str, protocol: str, port: int
) -> list[dict[str, Any]]:
    node = source.node(path)
    listed = list(source.several((*path, "checks"))) if isinstance(node, dict) else []
    if not listed:
        return [_check(source, kind, (path, above), protocol)] if kind else []
    made: list[dict[str, Any]] = []
    for inner, item in listed:
        check = _listed(source, inner, item, (path, above), protocol)
        if check is not None:
            count = sum(other["type"] == check["type"] for other in made)
            check["name"] += f" {count + 1}" if count else ""
            made.append(_with_port(check, protocol, port))
    return made


def _listed(
    source: Source, path: Path, item: Any, above: tuple[Path, ...], protocol: str
) -> dict[str, Any] | None:
    kind = item.get("type") if isinstance(item, dict) else None
    if kind not in ("http", "https", "dns", "syn", "tcp"):
        source.note(path, f"found a check of type {found(kind)}: left out")
        return None
    source.strange(path, _OF_CHECKS)
    check = _check(source, str(kind), (path, *above), protocol)
    port = source.number((*path, "port"), 1, 65535)
    return {**check, "port": port} if port is not None else check


def _with_port(check: dict[str, Any], protocol: str, port: int) -> dict[str, Any]:
    """A check over the other protocol than the service's has to say its port."""
    over = check.get("transport", "tcp")
    return check if "port" in check or over == protocol else {**check, "port": port}


def _check(source: Source, kind: str, levels: tuple[Path, ...], protocol: str) -> dict[str, Any]:
    """A check with what the levels say, the lowest first."""
    check: dict[str, Any] = {"name": kind, "type": kind}
    if kind == "dns":
        method = next((m for m in (source.node((*level, "method")) for level in levels) if m), "")
        over = method if method in ("tcp", "udp") else protocol
        source.note(
            levels[0],
            "a dns check took any response as good: here it asks for localhost, and the response"
            " code must be noerror (see question, record, rcode)",
            key=True,
        )
        return {**check, "question": "localhost", "record": "A", "transport": over}
    if kind not in ("http", "https"):
        return check
    for key, value in (("host", _host(source, levels)), ("path", _path(source, levels)),
                       ("method", _method(source, levels)), ("expect", _expect(source, levels))):  # fmt: skip
        if value is not None:
            check[key] = value
    return check


def _lowest(source: Source, levels: tuple[Path, ...], key: str) -> Path | None:
    """The place of the setting that counts."""
    return next((p for p in ((*level, key) for level in levels) if source.node(p) is not None), None)


def _host(source: Source, levels: tuple[Path, ...]) -> Any:
    place = _lowest(source, levels, "host")
    return source.fitting(place, _HOST) if place else None


def _path(source: Source, levels: tuple[Path, ...]) -> Any:
    place = _lowest(source, levels, "path")
    if place is None:
        return None
    text = source.node(place)
    if isinstance(text, str) and not text.startswith("/") and _is_path(f"/{text}"):
        source.note(place, f"found {shown(text)}, a path without '/' at its start: put there")
        return f"/{text}"
    return source.fitting(place, _PATH)


def _is_path(text: str) -> bool:
    try:
        _PATH.validate_python(text)
    except ValidationError:
        return False
    return True


def _method(source: Source, levels: tuple[Path, ...]) -> Any:
    place = _lowest(source, levels, "method")
    if place is None or source.node(place) in ("tcp", "udp"):  # of the dns checks beside this one
        return None
    return source.fitting(place, _METHOD)


def _expect(source: Source, levels: tuple[Path, ...]) -> Any:
    """`any`, or codes and ranges between spaces; a range may be backwards there."""
    place = _lowest(source, levels, "expect") or _lowest(source, levels, "expt")
    if place is None:
        return None
    node = source.node(place)
    if node in ("any", 0):
        return "any"
    items = [str(item) for item in node] if isinstance(node, list) else str(node).split()
    matches = [_CODES.fullmatch(item) for item in items]
    if not items or not all(matches):
        source.note(place, f"found {found(node)}, expected status codes: left out, 200 is good")
        return None
    codes: list[int | str] = []
    for match in matches:
        assert match is not None
        low, high = sorted((int(match[1]), int(match[2] or match[1])))
        codes.append(low if low == high else f"{low}-{high}")
    return codes if len(codes) > 1 else codes[0]
