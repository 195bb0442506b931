"""Options of the fuzzer, where this directory is named: `pytest tests/fuzz --executions 1000000 --seed 1`."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--executions", type=int, default=None, help="frames to try")
    parser.addoption("--seed", type=int, default=None, help="what the frames are made from")
