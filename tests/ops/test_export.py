"""torch.export of the operators: an exported program, saved and loaded, gives the same results as the call."""

import io
import json
import subprocess
import sys

import pytest
import torch
from oracles import integers, random_rows
from torch.export import Dim, export
from torch.utils._pytree import tree_leaves

from dgcl_ops import ops

N = Dim("N", min=2)
STATE = integers([5, 2**40])
GROUPS = {"query_offsets": integers([1, 4, 4, 8]), "bank_counts": integers([11, 7, 0])}


def rows(*shape):
    return random_rows(*shape, seed=sum(shape))


def density(queries, bank):
    return ops.knn_density(queries, bank, (2, 3), **GROUPS)


def density_of_each_scale(queries, bank):
    return ops.knn_density(queries, bank, (2, 3), metric="l2", per_scale=True)


def topk(queries, bank):
    return ops.knn_topk(queries, bank, 3)


def contrast(anchors, keys, negatives):
    return ops.density_contrast(anchors, keys, negatives, 0.3, eps=1e-6)


def words(labels):
    return ops.random_bits(STATE, -3, labels.shape[0])


def keys(labels):
    return ops.partition_keys(labels, labels < 2, labels, 3)


def leading(pixels, limits):
    return ops.leading_rows(pixels, limits, limits, pixels.shape[0])


def drawn(pixels, bits):
    return ops.draw_negatives(pixels, integers([2, 4]), bits)


def table(pixels, order):
    return ops.class_table(pixels, integers([0, 2, 8]), order, 3, last=True)


def sums(rows, indices):
    return ops.sum_rows(rows, indices, integers([2, 5]))


def scattered(dL_drows, indices):
    return torch.ops.dgcl_ops.gather_rows_backward(dL_drows, indices, (2, 5, 3, 3))


def push(*arguments):
    ops.memory_push(*arguments, normalize=True)
    return arguments[0].clone()


def push_arguments(number):
    rings = [torch.zeros(2, 6, 5), torch.zeros(2, 6, 3), torch.zeros(2, 6)]
    new = [rows(2, number, 5), rows(2, number, 3), rows(2, number)]
    return *rings, integers([6, 2]), integers([4, 2]), *new, integers([number, 1])


# The function, its arguments for a batch size, and the dimension of each argument that has this size.
CASES = {
    "density": (density, lambda n: (rows(n, 5), rows(3, 11, 5)), (0, None)),
    "density of each scale": (
        density_of_each_scale,
        lambda n: (rows(n, 5), rows(n, 5)),
        (0, 0),
    ),
    "topk": (topk, lambda n: (rows(n, 5), rows(11, 5)), (0, None)),
    "contrast": (contrast, lambda n: (rows(n, 4, 6), rows(n, 6), rows(n, 5, 6)), (0, 0, 0)),
    "finite": (ops.finite_rows, lambda n: (rows(n, 5, 3, 3), rows(n, 2, 3, 3)), (0, 0)),
    "leading": (leading, lambda n: (torch.arange(n), integers([1, 1])), (0, None)),
    "negatives": (drawn, lambda n: (torch.arange(n), torch.arange(6).view(2, 3)), (0, None)),
    "draws": (drawn, lambda n: (torch.arange(8), torch.arange(2 * n).view(2, n)), (None, 1)),
    "table": (table, lambda n: (torch.arange(n), torch.arange(n)), (0, 0)),
    "sums": (sums, lambda n: (rows(n, 5), torch.arange(2 * n).view(2, n) % 3), (0, 1)),
    "rows": (ops.gather_rows, lambda n: (rows(n, 5, 3, 3), torch.arange(7) * 2), (0, None)),
    "pixels": (ops.gather_rows, lambda n: (rows(2, 5, 3, 3), torch.arange(n)), (None, 0)),
    "gradient of pixels": (scattered, lambda n: (rows(n, 5), torch.arange(n) // 2), (0, 0)),
    "random words": (words, lambda n: (torch.arange(n),), (0,)),
    "keys": (keys, lambda n: (torch.arange(n) % 3,), (0,)),
    "silhouette": (ops.silhouette_sums, lambda n: (rows(n, 5), integers([0, 4, 8])), (0, None)),
    "silhouette of rows": (
        ops.silhouette_sums,
        lambda n: (rows(9, 5), integers([0, 4, 8]), rows(n, 5)),
        (None, None, 0),
    ),
    "push": (push, push_arguments, (*[None] * 5, 1, 1, 1, None)),
}


class Program(torch.nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *arguments):
        return self.function(*arguments)


def exported(case, dynamic):
    function, arguments, dims = CASES[case]
    shapes = (tuple(None if dim is None else {dim: N} for dim in dims),) if dynamic else None
    return export(Program(function), arguments(9), dynamic_shapes=shapes)


def saved(program) -> io.BytesIO:
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    return file


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_exported_programs_equal_the_call(case, dynamic):
    """Values and pushed rows have the same bits, because the program calls the same operator."""
    function, arguments, _ = CASES[case]
    program = exported(case, dynamic)
    calls = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert sum(str(call).startswith("dgcl_ops.") for call in calls) == 1
    for read in (program, torch.export.load(saved(program))):
        for number in (9, 8, 13) if dynamic else (9,):
            got, want = arguments(number), arguments(number)
            got = [read.module()(*got), got]
            want = [function(*want), want]
            same = [
                torch.equal(a, b) for a, b in zip(tree_leaves(got), tree_leaves(want), strict=True)
            ]
            assert all(same)
            assert all(bool(t.any()) for t in tree_leaves(want[0]))
    if not dynamic:
        with pytest.raises(AssertionError, match="Guard failed"):
            read.module()(*arguments(8))


READ = """
import sys, torch
{first}
program = torch.export.load(sys.argv[1])
print(program.module()(*torch.load(sys.argv[2])).tolist())
"""


def in_a_fresh_process(folder, first):
    arguments = CASES["density"][1](9)
    (folder / "program.pt2").write_bytes(saved(exported("density", True)).getvalue())
    torch.save(list(arguments), folder / "arguments.pt")
    files = [str(folder / name) for name in ("program.pt2", "arguments.pt")]
    command = [sys.executable, "-c", READ.format(first=first), *files]
    return subprocess.run(command, capture_output=True, text=True, check=False), arguments


def test_a_program_is_loaded_where_the_library_is_imported(tmp_path):
    done, arguments = in_a_fresh_process(tmp_path, "import dgcl_ops")
    assert done.returncode == 0, done.stderr
    assert torch.equal(torch.tensor(json.loads(done.stdout)), density(*arguments))


def test_loading_says_what_is_missing(tmp_path):
    """PyTorch's own error names the missing operator, and says that it must be imported first."""
    done, _ = in_a_fresh_process(tmp_path, "")
    assert done.returncode != 0
    assert "failed to resolve torch.ops.dgcl_ops.knn_density.default to an operator" in done.stderr
    assert "Please import the custom op to register it before deserializing" in done.stderr
