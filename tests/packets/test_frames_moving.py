"""A service's records move to another place in the middle of a packet: what it writes names the same real.

The control plane makes room for a service by copying its run of records and then pointing the service at the
copy; a packet may read where the run is before and after. The moment is made certain by a program that
moves the run itself, where the one under test asks for its CPU to tell of a new flow.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.packets.cases_flow import pieces4
from tests.packets.harness import FROZEN, KEY, Kernel
from tests.packets.oracle import name_of
from tests.packets.world import STICKY_VIP, WORLD
from vc5py.core.identity import service_identity
from vc5py.dataplane import abi, compiler, libbpf
from vc5py.dataplane.abi import FlowState

# Stands before the program: every question for the CPU moves the run of service MOVED to `MOVED_TO`.
_MOVING = b"""
#include <linux/bpf.h>

static __always_inline u32 test_cpu(void)
{
	u32 zero = 0;
	u64 *words = bpf_map_lookup_elem_(bpf_pseudo_fd(1, FD_services), &zero);

	if (words)
		*(volatile u64 *)(words + MOVED * 8 + 2) = MOVED_TO;
	return 0;
}

#define bpf_get_smp_processor_id() test_cpu()
"""
FAR_OFF = 300  # records from the place of the run: none of them is used there


@pytest.fixture
def moving(kernel: Kernel, tmp_path: Path) -> Iterator[int]:
    """The program that moves the sticky service's run; it is put back afterwards."""
    index = index_of(kernel, "sticky")
    run = int(kernel.maps.services["backends"][index])
    macros = kernel.maps.macros() | {"FLOW_KEY": KEY.start, "FLOW_KEY_ODD": KEY.odd, "TICK_SHIFT": FROZEN}
    source = tmp_path / "moving.c"
    source.write_bytes(_MOVING + (abi.XDP_DIR / "vc5.c").read_bytes())
    module = compiler.compile_file(source, macros | {"MOVED": index, "MOVED_TO": run + FAR_OFF})
    program = module.load("vc5_ingress", compiler.ProgramType.XDP)
    yield program
    kernel.maps.services["backends"][index] = run
    os.close(program)


def index_of(kernel: Kernel, service: str) -> int:
    identity = np.uint64(service_identity(WORLD.service(service).id))
    return int(np.flatnonzero(kernel.maps.services["identity"] == identity)[0])


def test_the_first_fragment_records_the_real_it_went_to(kernel: Kernel, moving: int) -> None:
    first, _, last = pieces4(STICKY_VIP)
    index = index_of(kernel, "sticky")
    run = int(kernel.maps.services["backends"][index])
    expected = kernel.run(first)
    kernel.clear_flows()
    assert libbpf.test_run(moving, first).data == expected.frame
    assert int(kernel.maps.services["backends"][index]) == run + FAR_OFF, "nothing was moved"
    kernel.maps.services["backends"][index] = run
    flow, fragments = kernel.entry(name_of(first)), kernel.entry(name_of(last))
    assert flow is not None and fragments is not None
    assert (fragments.service, fragments.real, fragments.state) == ("sticky", flow.real, FlowState.FRAGMENT)
    assert kernel.run(last).frame[:6] == expected.frame[:6]
