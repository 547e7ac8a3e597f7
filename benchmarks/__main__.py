"""Run one benchmark by name: `python -m benchmarks NAME [ARGS]`; without a name, list them."""

import ast
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path


def main(arguments: Sequence[str]) -> int:
    """Run the named benchmark; its exit status, or 2 if there is none of that name."""
    found = available()
    if not arguments:
        print("\n".join(f"{name:20} {summary}" for name, summary in found.items()))
        return 0
    name, *rest = arguments
    if name not in found:
        print(f"error: no benchmark {name!r}\nhint: ./dev bench lists them", file=sys.stderr)
        return 2
    status = importlib.import_module(f"benchmarks.{name}").main(rest)
    return int(status or 0)


def available() -> dict[str, str]:
    """Each benchmark and the first line of its docstring, read without importing it."""
    summaries = {}
    for path in sorted(Path(__file__).parent.glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if not path.stem.startswith("_") and has_main(tree):
            summaries[path.stem] = (ast.get_docstring(tree) or "").partition("\n")[0]
    return summaries


def has_main(tree: ast.Module) -> bool:
    """Whether a module defines `main` itself."""
    return any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in tree.body)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
