"""Each `*.txt` here is a session at the command line, run as it stands and compared word for word.

    # A line for the reader; blank lines too.
    $ a command of the shell, in an empty directory that is printed as DIR
    what it prints on stdout
    ! what it prints on stderr
    ? its exit status, if it is not 0

`<hex>`, `<code>`, `<time>`, `<id>`, `<fingerprint>`, `<age>` and `<any>` stand for what differs from run to run; blanks
stand for any number of them.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.deadlines import within
from tests.processes import environment

HERE = Path(__file__).parent
PLACEHOLDERS = {
    "<hex>": r"[0-9a-f]+",
    "<code>": r"fleet1_[a-z2-7]+",
    "<time>": r"\d{4}-\d\d-\d\d(?:[T ]\d\d:\d\d(?::\d\d(?:\.\d+)?)?(?:Z| UTC)?)?",
    "<id>": r"[a-z2-7]+",
    "<fingerprint>": r"[0-9a-f]{4}(?: [0-9a-f]{4}){7}",
    "<age>": r"\d+[smhd]",
    "<any>": r".*",
    "  ": r" {2,}",
}


@dataclass
class Step:
    """One command, and what it must print."""

    line: int
    command: str
    stdout: list[str] = field(default_factory=list)
    stderr: list[str] = field(default_factory=list)
    status: int = 0


def steps(text: str) -> Iterator[Step]:
    """The commands of a transcript."""
    step: Step | None = None
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith("$ "):
            if step is not None:
                yield step
            step = Step(number, line.removeprefix("$ "))
        elif step is None or not line or line.startswith("#"):
            continue
        elif line.startswith("!"):
            step.stderr.append(line.removeprefix("!").removeprefix(" "))
        elif line.startswith("? "):
            step.status = int(line.removeprefix("? "))
        else:
            step.stdout.append(line)
    if step is not None:
        yield step


def pattern(line: str) -> str:
    """A regular expression for one line."""
    parts = re.split(f"({'|'.join(map(re.escape, PLACEHOLDERS))})", re.sub(" {2,}", "  ", line))
    return "".join(PLACEHOLDERS.get(part) or re.escape(part) for part in parts)


def is_as_written(expected: list[str], printed: list[str]) -> bool:
    return len(expected) == len(printed) and all(
        re.fullmatch(pattern(line), found) for line, found in zip(expected, printed, strict=True)
    )


def run_step(step: Step, directory: Path) -> subprocess.CompletedProcess[str]:
    env = environment({"FLEET_CA_PASSPHRASE": "correct horse", "HOME": str(directory)})
    env["PATH"] = f"{Path(sys.executable).parent}:{env['PATH']}"
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", step.command],
        cwd=directory,
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=within(30),
        start_new_session=True,
    )


@pytest.mark.parametrize("name", sorted(path.name for path in HERE.glob("*.txt")))
def test_transcript(name: str, tmp_path: Path) -> None:
    """What admins type, and have in their scripts, would do or say something else."""
    for step in steps((HERE / name).read_text()):
        done = run_step(step, tmp_path)
        stdout, stderr = (
            [line.rstrip() for line in text.replace(str(tmp_path), "DIR").splitlines() if line.strip()]
            for text in (done.stdout, done.stderr)
        )
        shown = "\n".join([*stdout, *(f"! {line}" for line in stderr), f"? {done.returncode}"])
        where = f"{name}:{step.line}: $ {step.command}\n{shown}"
        assert step.status == done.returncode, where
        assert is_as_written(step.stdout, stdout), where
        assert is_as_written([line for line in step.stderr if line], stderr), where
