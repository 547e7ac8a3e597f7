"""Inputs that are kept, one a line, shortest first; test_corpus.py replays them in every run.

corpus/TARGET.hex reaches all code that is known to be reached, and is minimised; corpus/TARGET.broke.hex once broke the
target, and is only added to.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

KEPT = Path(__file__).parent / "corpus"


def load(target: str) -> list[bytes]:
    """Both kinds of inputs of a target."""
    return _read_lines(_reaches(target)) + _read_lines(_broke(target))


def keep(target: str, inputs: Iterable[bytes]) -> None:
    """Replace what reaches all code of a target."""
    _write_lines(_reaches(target), inputs)


def keep_broken(target: str, inputs: Iterable[bytes]) -> None:
    """Add what broke a target."""
    _write_lines(_broke(target), [*_read_lines(_broke(target)), *inputs])


def _reaches(target: str) -> Path:
    return KEPT / f"{target}.hex"


def _broke(target: str) -> Path:
    return KEPT / f"{target}.broke.hex"


def _read_lines(path: Path) -> list[bytes]:
    return [bytes.fromhex(line) for line in path.read_text(encoding="ascii").splitlines()] if path.exists() else []


def _write_lines(path: Path, inputs: Iterable[bytes]) -> None:
    KEPT.mkdir(exist_ok=True)
    lines = sorted({data.hex() for data in inputs}, key=lambda line: (len(line), line))
    path.write_text("".join(f"{line}\n" for line in lines), encoding="ascii")


def unpack(target: str, directory: Path) -> None:
    """Write what is kept as the files that a fuzzer reads."""
    directory.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(load(target)):
        (directory / f"kept-{number:04}").write_bytes(data)


def read(directory: Path) -> list[bytes]:
    """What a fuzzer wrote."""
    return [path.read_bytes() for path in sorted(directory.iterdir())]
