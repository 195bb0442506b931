"""What holds for all services, in the maps: timeouts, fragments, and whether the flow table is crowded.

Knows the values of `policy` and where the programs read them; nothing of services.
"""

from __future__ import annotations

from vc5py.dataplane import abi, flows
from vc5py.dataplane.maps import Maps
from vc5py.dataplane.policy import CROWDED, ICMP_PER_SECOND, LOSSY, OCCUPANCY_SAMPLE, Policy, timeouts_s
from vc5py.dataplane.ticks import TickClock


class Settings:
    def __init__(self, maps: Maps, ticks: TickClock) -> None:
        self._maps = maps
        self._ticks = ticks
        maps.settings["icmp_per_jiffy"] = max(1, ICMP_PER_SECOND // ticks.hz)

    def set(self, policy: Policy) -> None:
        for state, seconds in timeouts_s(policy.timeouts).items():
            self._maps.settings["timeout"][0, state] = self._ticks.ticks(seconds)
        self._set_flag(abi.SETTING_DROP_FRAGMENTS, policy.drop_fragments)

    def _set_flag(self, flag: int, on: bool) -> None:
        flags = int(self._maps.settings["flags"][0])
        self._maps.settings["flags"] = flags | flag if on else flags & ~flag

    def look_at_occupancy(self) -> bool:
        """Says whether the table is crowded; returns whether it may be losing flows."""
        timeouts, tick = self._maps.settings["timeout"][0], self._ticks.now()
        share = flows.live_share(self._maps.flows, OCCUPANCY_SAMPLE, timeouts, tick)
        self._set_flag(abi.SETTING_CROWDED, share > CROWDED)
        return share > LOSSY
