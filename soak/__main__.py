"""Random load on a real broker, with an account of every message that is owed: `./dev soak [--minutes N] [--seed N]`.

Honest devices, readers and a commander; revocations and suspensions; hostile clients. First for a while to warm up,
then for as long as was asked. After each, everything that was owed must have come, and nothing else; and at the end the
broker's memory must be where it was after the first.
"""

from __future__ import annotations

import argparse
import asyncio
import secrets
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import uvloop

from soak.rounds import Options, soak


def main(arguments: Sequence[str]) -> int:
    """Run it; 0 if nothing was wrong, 1 if something was, 130 if it was interrupted."""
    parser = argparse.ArgumentParser(prog="dev soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=15.0, help="of load after the warm-up (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(2**32), help="of the randomness")
    parser.add_argument("--devices", type=int, default=40, help="honest devices (default: %(default)s)")
    parser.add_argument("--rate", type=float, default=200.0, help="their messages a second (default: %(default)s)")
    chosen = parser.parse_args(arguments)
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    options = Options(folder, 60 * chosen.minutes, chosen.seed, chosen.devices, chosen.rate)
    is_good = False
    try:
        is_good = uvloop.run(soak(options))
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("soak: interrupted", file=sys.stderr)
        is_good = True
        return 130
    finally:
        if is_good:
            shutil.rmtree(folder)
        else:
            print(f"soak: logs are in {folder}", file=sys.stderr)
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
