"""What holds for all tests: none fails because the machine is slow, or its temporary directory far down."""

from __future__ import annotations

import asyncio
import os
import tempfile

from hypothesis import HealthCheck, settings

from tests.patience import PatientPolicy

# How long an example takes, or to draw one, says as much of the machine as of the code.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")
asyncio.set_event_loop_policy(PatientPolicy())

# Sockets are made below it, and the kernel takes no path of one that is longer than 107 bytes.
if len(tempfile.gettempdir()) > 24:
    os.environ["TMPDIR"] = "/tmp"
    tempfile.tempdir = None
