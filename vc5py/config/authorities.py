"""Judges the files that a configuration names: certificates to verify by, secrets and passwords.

Must not know: what they are used for. The one place of the package, apart from reading the configuration
itself, that looks at the machine. Invariant: a secret that can't be used here is a warning, for the
configuration may be meant for another machine, or for a user who may read it.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

from vc5py import credentials
from vc5py.config import report
from vc5py.config.report import shown
from vc5py.config.view import View
from vc5py.errors import SecretError
from vc5py.model import Secret


def check_files(view: View) -> None:
    """Report every `ca_file` that can't be used."""
    reason = cache(_trouble)
    for service in view.several(("services",)):
        for holder in (service.path, (*service.path, "sorry")):
            for check in view.several((*holder, "checks")):
                path = (*check.path, "ca_file")
                name = view.node(path)
                if isinstance(name, str) and (trouble := reason(name)):
                    view.add(
                        path, f"found {shown(name)}, expected a file with certificates in PEM: {trouble}"
                    )


def _trouble(name: str) -> str:
    try:
        Path(name).open("rb").close()  # or OpenSSL's words for a missing file
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cafile=name)
    except ssl.SSLError:
        return "it has none"
    except OSError as error:
        return error.strerror or str(error)
    return ""


# Secrets


def check_secrets(view: View) -> None:
    """Warn of every secret or password in a file that `run` would refuse, or that everybody can read."""
    _secret(view, ("cluster", "secret_file"), credentials.cluster_secret)
    _secret(view, ("cluster", "keys_file"), credentials.cluster_keys)
    for level in _bgp_levels(view):
        _secret(view, (*level, "password_file"), credentials.bgp_password)


def _bgp_levels(view: View) -> Iterator[report.Path]:
    """Wherever the settings of a neighbor may stand."""
    holders: list[report.Path] = [("rhi",)]
    holders += [("rhi", "groups", name) for name in view.keys(("rhi", "groups"))]
    for holder in holders:
        yield holder
        yield from (item.path for item in view.several((*holder, "neighbors")))


def _secret(view: View, path: report.Path, read: Callable[[Secret], object]) -> None:
    name = view.node(path)
    if not isinstance(name, str) or Path(name).is_fifo():  # a pipe can be read only once
        return
    try:
        content = read(Secret(name))
    except SecretError as error:
        view.warn(path, f"{error}; so the balancer would not start")
    else:
        if isinstance(content, list) and len(set(content)) < len(content):
            view.warn(path, f"{name}: the same key twice: no other one is accepted")
        if credentials.is_open(Secret(name)):
            view.warn(path, f"{name}: a secret that everybody can read: chmod 600 it")
