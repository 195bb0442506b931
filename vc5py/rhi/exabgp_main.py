"""Runs ExaBGP with two things changed that nothing can configure. Run as a script, with ExaBGP's arguments;
knows nothing of the package.

The time between two attempts to connect is bounded to a few seconds. ExaBGP's own bound is a minute: a
router that comes back after an outage of minutes would wait for its routes for so long.

A reload is carried out at once. ExaBGP 5.0 forgets one that comes while updates wait to be sent, as they do
for ever while any neighbor is away. It waits for the sake of routes in its configuration; ours has none.

Invariant: without the methods that are replaced it ends with an error, so a new ExaBGP can't slip by.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

LONGEST_S = 5


def longer(delay: Any) -> None:
    """In place of `Delay.increase`."""
    waited: int = delay._next
    delay._time = time.time() + waited
    delay._next = min(int(1 + waited * 1.2), LONGEST_S)


def nothing_pending(_reactor: Any) -> bool:
    """In place of `Reactor._pending_adjribout`."""
    return False


def replace(owner: type, name: str, method: Callable[[Any], Any]) -> None:
    if not callable(getattr(owner, name, None)):
        raise SystemExit(f"this ExaBGP has no {owner.__name__}.{name}: install ExaBGP 5")
    setattr(owner, name, method)


if __name__ == "__main__":
    from exabgp.application.main import main  # type: ignore[import-untyped]
    from exabgp.reactor.delay import Delay  # type: ignore[import-untyped]
    from exabgp.reactor.loop import Reactor  # type: ignore[import-untyped]

    replace(Delay, "increase", longer)
    replace(Reactor, "_pending_adjribout", nothing_pending)
    sys.exit(main())
