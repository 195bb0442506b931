"""The keys that lead packets to services: which (VIP, port, protocol) is whose.

Knows nothing of what a service is made of. Invariants: a key leads to the service that asked for it last, and
one that nobody wants any more is gone at the next `tidy`.
"""

from __future__ import annotations

from collections.abc import Iterable

from vc5py.dataplane import abi
from vc5py.dataplane.installed import Installed
from vc5py.dataplane.maps import Maps
from vc5py.dataplane.servicemap import ServiceKey, ServiceMap
from vc5py.model import IPAddress, ServiceState, Unknown


class Keys:
    """`strays`: there may be keys that no service wants, as an earlier run may have left some."""

    def __init__(self, maps: Maps) -> None:
        self._maps4 = ServiceMap(maps.services4)
        self._maps6 = ServiceMap(maps.services6)
        self._holders: dict[ServiceKey, Installed] = {}
        self.strays = True

    def _map_of(self, vip: IPAddress) -> ServiceMap:
        return self._maps4 if vip.version == 4 else self._maps6

    def set(self, service: Installed, state: ServiceState) -> None:
        """The service has these keys from now on, whosever they were. DataplaneError: there is no room."""
        vip = state.id.vip
        keys = frozenset(ServiceKey(vip, port, protocol.number) for port, protocol in state.ports)
        places = self._map_of(vip)
        flags = abi.VIP_PASS_UNKNOWN if state.unknown is Unknown.PASS else 0
        places.set(ServiceKey(vip, 0, 0), flags)
        for key in keys:
            places.set(key, service.index)
            holder = self._holders.get(key, service)
            if holder is not service:
                holder.torn = True  # should it be wanted as it was once more, the key is to be set again
            self._holders[key] = service
        self._give_up(service, service.keys - keys)
        service.keys = keys

    def remove(self, service: Installed) -> None:
        """The service goes."""
        self._give_up(service, service.keys)
        self.strays = True

    def _give_up(self, service: Installed, keys: frozenset[ServiceKey]) -> None:
        """A key that this service has no use for may be another's by now."""
        for key in keys:
            if self._holders.get(key) is service:
                del self._holders[key]
        self.strays = self.strays or bool(keys)

    def tidy(self, services: Iterable[Installed]) -> None:
        """Removes what none of all services wants; costs nothing where that can't be."""
        if not self.strays:
            return
        wanted = {key for service in services for key in service.keys}
        vips = {ServiceKey(key.vip, 0, 0) for key in wanted}
        self._maps4.delete_all_but(frozenset(k for k in wanted | vips if k.vip.version == 4))
        self._maps6.delete_all_but(frozenset(k for k in wanted | vips if k.vip.version == 6))
        self.strays = False
