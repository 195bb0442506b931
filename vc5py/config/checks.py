"""Judges the checks of a service: which keys go with which type, ports, names used twice.

Must not know: types and ranges of values, how a check is done. Invariant: `KEYS` has every key of a check
that not all types have.
"""

from __future__ import annotations

from vc5py.config.report import Path, found
from vc5py.config.settings import check_judgement
from vc5py.config.view import Place, View, parsed_address
from vc5py.model import CheckType

_HTTP, _HTTPS = (CheckType.HTTP, CheckType.HTTPS), (CheckType.HTTPS,)
_DNS, _UDP = (CheckType.DNS,), (CheckType.UDP,)

KEYS: dict[str, tuple[CheckType, ...]] = {
    **dict.fromkeys(("path", "host", "method", "headers", "expect", "body", "body_regex"), _HTTP),
    **dict.fromkeys(("verify", "ca_file"), _HTTPS),
    **dict.fromkeys(("question", "record", "transport", "answer", "rcode"), _DNS),
    **dict.fromkeys(("payload", "payload_hex", "reply", "reply_hex"), _UDP),
}
"""The keys that only some types of checks have, and which."""

TWINS = (("payload", "payload_hex"), ("reply", "reply_hex"))
"""Keys that say the same in two ways."""


def check(view: View, holder: Path, protocols: list[str]) -> None:
    """Report what is wrong between the keys of the checks of a service, or of its `sorry`."""
    places = view.several((*holder, "checks"))
    view.once([name for place in places for name in view.several((*place.path, "name"))])
    for place in places:
        if isinstance(place.value, dict):
            _keys(view, place)
            _twins(view, place)
            _header_names(view, (*place.path, "headers"))
            _port(view, place, protocols)
            _answer(view, place.path)
            check_judgement(view, place.path)
    if holder[-1] == "sorry" and "checks" not in view.node(holder) and protocols == ["udp"]:
        view.add(holder, "found no key 'checks', expected one: the service's port is UDP only, and the"
                         " default is a tcp check")  # fmt: skip


def _keys(view: View, check: Place) -> None:
    kind = view.node((*check.path, "type"))
    if kind is None:
        return
    for key, types in KEYS.items():
        path = (*check.path, key)
        if key in check.value and kind not in types and not view.spoilt(path):
            view.add_at_key(path, f"found in a {kind} check, expected only in {' and '.join(types)} checks")


def _twins(view: View, check: Place) -> None:
    for key, twin in TWINS:
        path = (*check.path, twin)
        if key in check.value and twin in check.value and not view.spoilt(path):
            view.add_at_key(path, f"found beside '{key}', expected one of the two")


def _header_names(view: View, path: Path) -> None:
    first: dict[str, str] = {}
    for name in view.keys(path):
        earlier = first.setdefault(name.lower(), name)
        if earlier != name:
            view.add_at_key((*path, name), f"found again, expected once ('{earlier}' is the same header)")


def _answer(view: View, check: Path) -> None:
    """Only addresses have a form that is worth judging: another answer could never come."""
    answer, record = view.node((*check, "answer")), view.node((*check, "record"))
    version = {"A": 4, "AAAA": 6}.get(record) if isinstance(record, str) else None
    if version is None or answer is None:
        return
    try:
        good = parsed_address(answer).version == version
    except ValueError:
        good = False
    if not good:
        path = (*check, "answer")
        view.add(path, f"found {found(answer)}, expected an IPv{version} address, as the record is {record}")


def _port(view: View, check: Place, protocols: list[str]) -> None:
    """A check can't take over a port that the service has for the other protocol only."""
    kind = view.node((*check.path, "type"))
    path = (*check.path, "transport")
    if "port" in check.value or kind is None or view.spoilt(path) or len(protocols) != 1:
        return
    needed = {"udp": "udp", "dns": view.node(path) or "udp"}.get(kind, "tcp")
    if protocols != [needed]:
        has, needs = protocols[0].upper(), needed.upper()
        hint = f"the service's port is {has} only, and the check needs {needs}"
        view.add(check.path, f"found no key 'port', expected one: {hint}")
