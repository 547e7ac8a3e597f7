"""What the agent does without, and gets all the same when it is asked for."""

from __future__ import annotations

import subprocess
import sys

_PROGRAM = """
import sys
import device_agent.cli, device_agent.runner
print(sorted({"inspect", "urllib.request", "cryptography", "subprocess"} & set(sys.modules)))
import dataclasses
undescribed = dataclasses.make_dataclass("Undescribed", ["x"])
print(undescribed.__doc__, undescribed(1))
import inspect, urllib.request
print(inspect.isclass(undescribed), callable(urllib.request.getproxies))
"""


def test_run_loads_no_part_of_a_library_that_it_does_not_use() -> None:
    """A Pi Zero would have 2.4 MB less for its firmware; or a library would find half of another."""
    done = subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, text=True, check=True)
    assert ["[]", "Undescribed(x: 'typing.Any') Undescribed(x=1)", "True True"] == done.stdout.splitlines()
