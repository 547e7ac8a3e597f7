"""The console script `broker`: says what to install where only the device's packages are."""

import sys

from fleet.extras import explain_missing


def main() -> int:
    """Run the command line; its exit status, or 1 and a hint if an optional package is missing."""
    try:
        from broker.cli import main as command
    except ModuleNotFoundError as error:
        explanation = explain_missing(error, program="broker", extra="broker")
        if explanation is None:
            raise
        print(explanation, file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # loading takes seconds on a small machine
        return 130
    return command()
