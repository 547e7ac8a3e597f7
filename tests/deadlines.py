"""How long a test waits for something before it fails, on this machine.

FLEET_TEST_TIMEOUT_FACTOR stretches every deadline, for an emulator or a loaded machine.
"""

import os

FACTOR = float(os.environ.get("FLEET_TEST_TIMEOUT_FACTOR", "1"))


def within(seconds: float) -> float:
    """A deadline in seconds, stretched for this machine."""
    return seconds * FACTOR
