"""Imports in the package go only to lower layers: formulas, operators, bank, step, modules, tools."""

import ast
from pathlib import Path

import dgcl_ops

PACKAGE = Path(dgcl_ops.__file__).parent
# From the lowest layer to the highest. A file may import its own layer and lower ones.
LAYERS = (
    (
        "_checkout",
        "_classifiers",
        "_extension",
        "_hooks",
        "_inputs",
        "_precision",
        "_random",
        "_scales",
    ),
    ("reference",),
    ("ops",),
    ("backend", "schedules", "labels", "features", "projection_head", "_clusters"),
    ("_bank",),
    ("_step",),
    ("memory", "metrics", "pseudo_label_loss"),
    ("losses", "_ddp"),
    ("viz", "doctor"),
)
LAYER = {name: layer for layer, names in enumerate(LAYERS) for name in names}


def imports(tree: ast.AST) -> list[str]:
    """The modules that a file imports, except for annotations."""
    if isinstance(tree, ast.If) and "TYPE_CHECKING" in ast.dump(tree.test):
        return []
    if isinstance(tree, ast.ImportFrom) and tree.module == "dgcl_ops":
        return [f"dgcl_ops.{name.name}" for name in tree.names]
    if isinstance(tree, ast.ImportFrom):
        return [tree.module or ""]
    if isinstance(tree, ast.Import):
        return [name.name for name in tree.names]
    return [name for child in ast.iter_child_nodes(tree) for name in imports(child)]


def upward(name: str, text: str) -> list[str]:
    """The imports of the file `name`, relative to the package, that lead to a higher layer."""
    own = LAYER[name.split("/")[0].removesuffix(".py")]
    names = [
        each.split(".")[1] for each in imports(ast.parse(text)) if each.startswith("dgcl_ops.")
    ]
    return [each for each in names if LAYER.get(each, -1) > own]


def files() -> list[str]:
    every = (file.relative_to(PACKAGE).as_posix() for file in PACKAGE.rglob("*.py"))
    return sorted(name for name in every if name not in ("__init__.py", "_build.py"))


def test_every_file_has_a_layer():
    assert {name.split("/")[0].removesuffix(".py") for name in files()} == set(LAYER)


def test_imports_run_down():
    found = {name: upward(name, (PACKAGE / name).read_text()) for name in files()}
    assert not {name: names for name, names in found.items() if names}


def test_an_upward_import_is_found():
    assert upward("ops/knn_topk.py", "from dgcl_ops._bank import rings") == ["_bank"]
    assert upward("reference/__init__.py", "from dgcl_ops.ops import knn_topk") == ["ops"]
    assert upward("_bank/rings.py", "def f():\n    import dgcl_ops.memory") == ["memory"]
    assert not upward("losses.py", "from dgcl_ops.memory import MemoryBank")
    typed = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from dgcl_ops import memory"
    assert not upward("_bank/rings.py", typed)
