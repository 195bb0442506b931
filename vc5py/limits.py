"""How much one balancer serves: the promises of the configuration, which the data plane keeps.

Must not know: how anything is stored. Each is half, or less, of what the data plane has room for: an exchange
of everything for something new has the old and the new side by side for a moment
(tests/unit/test_config_errors.py holds them against the data plane's own sizes).
"""

from __future__ import annotations

MAX_VIRTUAL_SERVICES = 4096
"""Services, counted once for every VIP."""
MAX_VIRTUAL_PORTS = 65536
"""(VIP, port, protocol) of all services together."""
MAX_REALS = 32766
"""Reals of one service: the data plane numbers them with 15 bits."""
MAX_BACKENDS = 262_144
"""Reals of all services together, counted once for every VIP."""
DATAGRAM_BYTES = (576, 8952)
"""UDP payload of flow sharing: what every host takes, and what fits a frame of 9,000 bytes."""
MAX_ESTABLISHED_S = 8 * 3600
"""Timeout of a flow: the data plane tells the age of one by 16 bits."""
