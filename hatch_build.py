"""Makes a wheel for this platform, with the broker's message path as machine code, where FLEET_COMPILE=1 asks for it.

Without it nothing happens here, and the wheel is pure Python. What is compiled is the very source that is interpreted
otherwise (docs/adr/0010-compiled-message-path.md). It is compiled in a copy: no extension module is ever left in the
tree, where it would go before a source that was changed since.

`hatch_build.py --into FOLDER` leaves that copy there, for ./dev compile.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

# What a message passes through from `data_received` to `transport.write`, and what that counts in and notes on.
COMPILED: Final = (
    "broker/engine.py",
    *(
        f"broker/engines/amqtt/{module}.py"
        for module in (
            *("backlog", "door", "hub", "journal", "listener", "packets", "parser", "rates", "routing", "session"),
            "tls",
        )
    ),
)
_PACKAGES: Final = ("broker", "fleet")  # all of ours that these modules import
_EXTENSIONS: Final = (".so", ".pyd")
_VARIABLE: Final = "FLEET_COMPILE"
_ROOT: Final = Path(__file__).resolve().parent
_WORK: Final = "build"  # of the compilers, beside the sources
# ./dev lint checks it. Here types of other people's packages are not looked at, so that the same comes out whether or
# not they are there; what that does to modules that are not compiled does not matter.
_MYPY_OPTIONS: Final = (
    "--config-file=",
    "--python-version=3.11",
    "--no-site-packages",
    "--ignore-missing-imports",
    "--follow-imports=silent",
    "--explicit-package-bases",
)
_COMPILER_LEVEL: Final = os.environ.get("FLEET_COMPILE_LEVEL", "2")  # 3 takes longer and gains nothing; 0 is for tests
_MYPYC_WARNING: Final = re.compile(r"\.py:\d+: warning: ")


class CompiledPath(BuildHookInterface[Any]):
    """Adds the extension modules to a wheel."""

    PLUGIN_NAME = "custom"

    def dependencies(self) -> list[str]:
        """What the build needs, beside a C compiler and Python's headers."""
        return ["mypy[mypyc]>=2.4"] if _is_asked_for() else []

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, before files are collected. An editable install stays Python: its source is about to change."""
        if version != "standard" or not _is_asked_for():
            return
        self._folder = tempfile.TemporaryDirectory(prefix="fleet-compile-")
        found = compiled(Path(self._folder.name))
        build_data["force_include"].update({str(path): inside for inside, path in found.items()})
        build_data["pure_python"] = False
        build_data["infer_tag"] = True

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """The wheel is written."""
        if not build_data.get("pure_python", True):
            self._folder.cleanup()


def _is_asked_for() -> bool:
    return os.environ.get(_VARIABLE, "") not in ("", "0")


def compiled(folder: Path) -> dict[str, Path]:
    """Compile a copy of the sources in `folder`; the extension modules by their paths in the wheel.

    Raises: RuntimeError where that fails; what mypyc or the C compiler said was printed. A warning of mypyc's is a
    failure too: it tells of what would not do as the source says.
    """
    for package in _PACKAGES:
        shutil.copytree(_ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    command = (sys.executable, str(_ROOT / "hatch_build.py"), *COMPILED)
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    said = ended.stdout + ended.stderr
    if ended.returncode != 0 or _MYPYC_WARNING.search(said):
        print(said, file=sys.stderr)
        raise RuntimeError(
            "the message path was not compiled, for what is said above; it takes a C compiler and Python's headers "
            f"(Debian: gcc python3-dev), and without {_VARIABLE} neither"
        )
    found = [path for part in _PACKAGES for path in (folder / part).rglob("*") if path.suffix in _EXTENSIONS]
    shared = [path for path in folder.iterdir() if path.suffix in _EXTENSIONS]  # what they all load
    shutil.rmtree(folder / _WORK)
    return {path.relative_to(folder).as_posix(): path for path in (*shared, *found)}


def _compile(modules: list[str]) -> None:
    from mypyc.build import mypycify
    from setuptools import Distribution
    from setuptools.command.build_ext import build_ext

    extensions = mypycify(
        [*_MYPY_OPTIONS, *modules],
        opt_level=_COMPILER_LEVEL,
        debug_level="0",
        group_name="mqtt_fleet_broker",
        target_dir=_WORK,
    )
    command = build_ext(Distribution({"ext_modules": extensions}))
    command.inplace = True
    command.build_lib = command.build_temp = _WORK
    command.ensure_finalized()
    command.run()


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["--into", name]:
            compiled(Path(name))
        case modules:
            _compile(modules)
