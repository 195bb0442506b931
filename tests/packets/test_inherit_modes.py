"""Backends out of maps of a version that had the family of outer addresses beside the MAC address."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace

import numpy as np

from tests.packets.harness import SIZES, Kernel
from vc5py.dataplane import abi, inherit, layouts, maps
from vc5py.dataplane.layouts import Field

_OUTER6_BIT = 50  # of the word with the MAC address


def older_layout() -> layouts.Layout:
    own = layouts.own(8)
    backends = own.maps["backends"]
    how = backends.fields["mode"].offset
    fields = {
        **backends.fields,
        "mode": Field(how, 8, 0, 8),
        "outer6": Field(backends.fields["mac"].offset, 8, _OUTER6_BIT, 1),
    }
    return replace(own, maps={**own.maps, "backends": replace(backends, fields=fields)})


def test_tunnels_over_ipv6_stay_so(kernel: Kernel) -> None:
    ours = kernel.maps.backends
    outer6 = ours["how"] & np.uint64(abi.MODE_OUTER6) != 0
    assert outer6.any()
    with closing(maps.create(SIZES)) as old, closing(maps.create(SIZES)) as new:
        old.backends[:] = ours
        old.backends["how"] &= np.uint64(~abi.MODE_OUTER6 & (1 << 64) - 1)
        old.backends["link"] |= outer6.astype(np.uint64) << np.uint64(_OUTER6_BIT)
        inherit._copy_backends(inherit.Source(old.fds, older_layout()), new)
        assert (new.backends == ours).all()
        inherit._copy_backends(inherit.Source(kernel.maps.fds, layouts.own(8)), new)
        assert (new.backends == ours).all()
