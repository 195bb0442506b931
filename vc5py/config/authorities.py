"""Judges the files that a configuration names: the authorities by which certificates are verified.

Must not know: what they are used for. The one place of the package, apart from reading the configuration
itself, that looks at the machine.
"""

from __future__ import annotations

import ssl
from functools import cache
from pathlib import Path

from vc5py.config.report import shown
from vc5py.config.view import View


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
