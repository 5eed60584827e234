"""Reads build values from their sources: setup.py, which would build if imported, and C++."""

import ast
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SETUP = ROOT / "setup.py"
DISPATCH = ROOT / "csrc" / "cpu" / "simd" / "dispatch.cpp"


def sources(*patterns: str) -> list[Path]:
    return sorted(path for p in patterns for path in ROOT.glob(p))


def _evaluate(value: ast.expr) -> Any:
    """Evaluates an expression of constants, other constants of setup.py, and calls of sources()."""
    names = {node.id for node in ast.walk(value) if isinstance(node, ast.Name)} - {"sources"}
    known = {name: setup_value(name) for name in names}
    return eval(compile(ast.Expression(value), SETUP.name, "eval"), known | {"sources": sources})


def setup_value(name: str) -> Any:
    """Returns a constant that setup.py assigns at its top level.

    Args:
        name: the constant's name.

    Raises:
        SystemExit: If setup.py does not assign it.
    """
    for node in ast.parse(SETUP.read_text()).body:
        if isinstance(node, ast.Assign) and name in [getattr(t, "id", "") for t in node.targets]:
            return _evaluate(node.value)
    raise SystemExit(f"setup.py has no {name}")


def extension_argument(name: str) -> Any:
    """Returns an argument of setup.py's only Extension.

    Args:
        name: the argument's name.

    Raises:
        SystemExit: If no Extension has it.
    """
    for node in ast.walk(ast.parse(SETUP.read_text())):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Extension":
            for keyword in node.keywords:
                if keyword.arg == name:
                    return _evaluate(keyword.value)
    raise SystemExit(f"setup.py has no Extension with {name}")


def macros() -> list[str]:
    """Returns the extension's macros as compiler flags."""
    return [f"-D{name}={value}" for name, value in extension_argument("define_macros")]


def level_names() -> list[str]:
    """Returns the instruction sets that the CPU kernels support, narrowest first.

    Raises:
        SystemExit: If dispatch.cpp does not list them.
    """
    match = re.search(r"kLevelNames\[\] = \{([^}]*)\}", DISPATCH.read_text())
    names = re.findall(r'"(\w+)"', match[1]) if match else []
    if not names:
        raise SystemExit("dispatch.cpp has no kLevelNames")
    return names
