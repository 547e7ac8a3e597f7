"""One process of atheris: `python -m tests.fuzz.guided TARGET LIBFUZZER-ARGUMENTS`; libFuzzer ends it."""

from __future__ import annotations

import sys

import atheris


def main() -> None:
    """Fuzz one target: what is tested is instrumented, and the oracle, whose branches are the standard's."""
    target = sys.argv[1]
    atheris.enabled_hooks.add("str")
    with atheris.instrument_imports(include=["broker", "fleet", "tests.fuzz.naive"]):
        from tests.fuzz.targets import TARGETS
    # -merge has a shell run this again, by the first of its arguments.
    command = f"{sys.executable} -m tests.fuzz.guided {target}"
    atheris.Setup([command, *sys.argv[2:]], TARGETS[target])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
