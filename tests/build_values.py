"""Values that checks need and that stand elsewhere: in setup.py, which cannot be imported (it builds), and in C++."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SETUP = ROOT / "setup.py"
DISPATCH = ROOT / "csrc" / "cpu" / "simd" / "dispatch.cpp"


def sources(*patterns: str) -> list[Path]:
    return sorted(path for p in patterns for path in ROOT.glob(p))


def evaluated(value: ast.expr):
    """Of constants, names of other constants of setup.py, and calls of sources()."""
    names = {node.id for node in ast.walk(value) if isinstance(node, ast.Name)} - {"sources"}
    known = {name: setup_value(name) for name in names}
    return eval(compile(ast.Expression(value), SETUP.name, "eval"), known | {"sources": sources})


def setup_value(name: str):
    """A constant that setup.py spells out at its top level."""
    for node in ast.parse(SETUP.read_text()).body:
        if isinstance(node, ast.Assign) and name in [getattr(t, "id", "") for t in node.targets]:
            return evaluated(node.value)
    raise SystemExit(f"setup.py has no {name}")


def extension_argument(name: str):
    """An argument of setup.py's one Extension: an expression of constants and of sources()."""
    for node in ast.walk(ast.parse(SETUP.read_text())):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Extension":
            for keyword in node.keywords:
                if keyword.arg == name:
                    return evaluated(keyword.value)
    raise SystemExit(f"setup.py has no Extension with {name}")


def macros() -> list[str]:
    return [f"-D{name}={value}" for name, value in extension_argument("define_macros")]


def level_names() -> list[str]:
    """Instruction sets that the CPU kernels can be told to use, narrowest first."""
    found = re.search(r"kLevelNames\[\] = \{([^}]*)\}", DISPATCH.read_text())
    names = re.findall(r'"(\w+)"', found[1]) if found else []
    if not names:
        raise SystemExit("dispatch.cpp has no kLevelNames")
    return names
