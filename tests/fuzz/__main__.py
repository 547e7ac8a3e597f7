"""`./dev fuzz`: every Hypothesis property with many examples, then each target with atheris, for a bounded time.

An input that breaks a target is added to its corpus, so that the tests fail until it is handled; with --keep so is what
reached code that the corpus did not, each input minimised to what adds something.
"""

from __future__ import annotations

import argparse
import importlib.util
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.fuzz import corpus

PROPERTIES = "properties"
TARGETS = ("parser", "hub", "message", "topic", "join-code", "feed-line", "request", "recovery")
_MAX_INPUT_BYTES = 2048


def main(arguments: Sequence[str]) -> int:
    """1 if anything was found."""
    options = _parse(arguments)
    chosen = options.targets or [PROPERTIES, *TARGETS]
    guided = [name for name in chosen if name != PROPERTIES]
    if guided and importlib.util.find_spec("atheris") is None:
        print("fuzz: error: atheris has no wheel for this machine", file=sys.stderr)
        print("hint: on Linux x86-64 with Python 3.11 to 3.13; elsewhere: ./dev fuzz properties", file=sys.stderr)
        return 1
    broken = [name for name in chosen if not (_properties() if name == PROPERTIES else _guided(name, options))]
    if broken:
        print(f"fuzz: error: broken: {' '.join(broken)}", file=sys.stderr)
        if guided:
            print("hint: the input is in tests/fuzz/corpus/: ./dev test tests/fuzz/test_corpus.py", file=sys.stderr)
    return 1 if broken else 0


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="./dev fuzz", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"{PROPERTIES} or one of {' '.join(TARGETS)}")
    parser.add_argument("--seconds", type=int, default=60, help="for each target but properties (60)")
    parser.add_argument("--keep", action="store_true", help="add to the corpus what reaches more code")
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.targets if name not in (PROPERTIES, *TARGETS)]:
        parser.error(f"no such target: {' '.join(unknown)}")
    return options


def _properties() -> bool:
    command = (sys.executable, "-m", "pytest", "-m", "hypothesis or fuzz", "--hypothesis-profile=fuzz", "--timeout=0")
    return subprocess.run(command, check=False).returncode == 0


def _guided(target: str, options: argparse.Namespace) -> bool:
    """Fuzz one target; whether it held."""
    _say(f"{target}, {options.seconds} s")
    with tempfile.TemporaryDirectory() as name:
        found, broken = Path(name) / "found", Path(name) / "broken"
        corpus.unpack(target, found)
        broken.mkdir()
        ended = _atheris(target, f"-max_total_time={options.seconds}", f"-artifact_prefix={broken}/", str(found))
        said = ended.stderr.decode("utf-8", "replace")
        if ended.returncode:
            print(said, file=sys.stderr)
            if inputs := corpus.read(broken):
                corpus.keep_broken(target, inputs)
            return False
        # libFuzzer's last line of progress: "#executions DONE cov: edges ft: features corp: inputs/bytes ..."
        _say(
            " ".join(
                [target, *re.findall(r"#\d+|cov: \d+|corp: \d+", re.findall("^#.*DONE.*$", said, re.MULTILINE)[-1])]
            )
        )
        if options.keep:
            _keep(target, found, Path(name) / "minimal")
    return True


def _keep(target: str, found: Path, minimal: Path) -> None:
    """Keep what covers as much as all that was found."""
    minimal.mkdir()
    _atheris(target, "-merge=1", str(minimal), str(found)).check_returncode()
    inputs = corpus.read(minimal)
    if not inputs:
        raise RuntimeError(f"nothing was left of what was found for {target}")
    corpus.keep(target, inputs)
    _say(f"{target}: {len(inputs)} inputs kept")


def _atheris(target: str, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    fixed = (f"-max_len={_MAX_INPUT_BYTES}", "-timeout=20", "-rss_limit_mb=2048")
    command = (sys.executable, "-m", "tests.fuzz.guided", target, *fixed, *arguments)
    return subprocess.run(command, stderr=subprocess.PIPE, check=False)


def _say(message: str) -> None:
    print(f"fuzz: {message}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
