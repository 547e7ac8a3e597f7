"""Inputs that are kept: corpus/TARGET.hex, one a line, shortest first. test_corpus.py replays them in every run."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

KEPT = Path(__file__).parent / "corpus"


def load(target: str) -> list[bytes]:
    """The inputs that are kept for a target."""
    path = KEPT / f"{target}.hex"
    return [bytes.fromhex(line) for line in path.read_text(encoding="ascii").splitlines()] if path.exists() else []


def keep(target: str, inputs: Iterable[bytes]) -> None:
    """Replace what is kept for a target."""
    KEPT.mkdir(exist_ok=True)
    lines = sorted({data.hex() for data in inputs}, key=lambda line: (len(line), line))
    (KEPT / f"{target}.hex").write_text("".join(f"{line}\n" for line in lines), encoding="ascii")


def unpack(target: str, directory: Path) -> None:
    """Write what is kept as the files that a fuzzer reads."""
    directory.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(load(target)):
        (directory / f"kept-{number:04}").write_bytes(data)


def read(directory: Path) -> list[bytes]:
    """What a fuzzer wrote."""
    return [path.read_bytes() for path in sorted(directory.iterdir())]
