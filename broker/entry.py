"""The console script `broker`: what it says unloaded, and what to install where only the device's packages are."""

import os
import sys


def main() -> int:
    """Run the command line; its exit status, or 1 and a hint if an optional package is missing."""
    from fleet.extras import explain_missing
    from fleet.starting import interruptible, uncollected, version_of

    if sys.argv[1:] == ["--version"]:
        print(version_of("broker"))
        return 0
    try:
        with interruptible(os._exit), uncollected():
            from broker.cli import main as command
    except ModuleNotFoundError as error:
        explanation = explain_missing(error, program="broker", extra="broker")
        if explanation is None:
            raise
        print(explanation, file=sys.stderr)
        return 1
    return command()
