"""What holds for all tests: none of them fails because the machine is slow."""

from __future__ import annotations

import asyncio

from hypothesis import HealthCheck, settings

from tests.patience import PatientPolicy

# How long an example takes, or to draw one, says as much of the machine as of the code.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")
asyncio.set_event_loop_policy(PatientPolicy())
