"""The console script `device-agent`: what it does without being loaded."""

import os
import sys


def main() -> int:
    """Run the command line; its exit status."""
    import device_agent
    from fleet.starting import interruptible, uncollected

    if sys.argv[1:] == ["--version"]:
        print(f"device-agent {device_agent.__version__}")
        return 0
    with interruptible(os._exit), uncollected():
        from device_agent.cli import main as command
    return command()
