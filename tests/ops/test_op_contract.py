"""What PyTorch expects of an operator: schema, fake kernels, autograd keys, torch.compile, autocast."""

import contextlib

import pytest
import torch
from oracles import assert_close, integers, random_rows

from dgcl_ops import ops


def knn_arguments(metric="cosine", dtype=torch.float32, grad=True):
    queries = random_rows(9, 5, dtype=dtype, seed=1).requires_grad_(grad)
    bank = random_rows(3, 11, 5, dtype=dtype, seed=2).requires_grad_(grad)
    return queries, bank, integers([1, 4, 4, 8]), integers([11, 7, 0])


def contrast_arguments(dtype=torch.float32, grad=True):
    rows = (
        random_rows(3, 4, 6, dtype=dtype, seed=1),
        random_rows(3, 6, dtype=dtype, seed=2),
        random_rows(3, 5, 6, dtype=dtype, seed=3),
    )
    return tuple(t.requires_grad_(grad) for t in rows)


def push_arguments(dtype=torch.float32):
    ring = [torch.zeros(2, 6, 5, dtype=dtype), torch.zeros(2, 6, 3), torch.zeros(2, 6)]
    new = [random_rows(2, 4, 5, seed=1), random_rows(2, 4, 3, seed=2), random_rows(2, 4, seed=3)]
    return [*ring, integers([6, 2]), integers([4, 2]), *new, integers([4, 1])]


def samples(op: str):
    """Positional arguments of the raw operators."""
    if op == "finite_rows":
        maps = random_rows(2, 3, 4, 5, seed=1)
        return [
            (maps, random_rows(2, 7, 4, 5, seed=2).half(), random_rows(2, 4, 5, seed=3)),
            (maps[:, :, 0, 0].requires_grad_(), None, None),
        ]
    if op == "leading_rows":
        pixels = integers([4, 1, 0, 3, 2, 5])
        return [
            (pixels, integers([2, 0, 3]), integers([9, 9, 2]), 6),
            (pixels, integers([2, 4]), integers([1, 1]), 2),
        ]
    if op == "draw_negatives":
        pixels, bits = integers([4, 1, 0, 3, 2, 5]), integers([[1, 2**31], [5, 2**30], [-1, 7]])
        return [
            (pixels, integers([2, 0, 3]), bits),
            (pixels, integers([2, 4, 0]), bits.repeat(1, 4)),
        ]
    if op == "class_table":
        pixels, order = integers([4, 1, 0, 3, 2, 5]), integers([1, 0, 3, 2, 5, 4])
        return [
            (pixels, integers([0, 2, 2, 5]), order, 3, True),
            (pixels, integers([0, 6]), None, 2, False),
            (pixels, integers([1, 6]), None, 0, False),
        ]
    if op == "sum_rows":
        rows, counts = random_rows(3, 7, 5, seed=1), integers([2, 0, 4])
        places = integers([[6, 0, 3, 3], [1, 1, 1, 1], [5, 4, 2, 0]])
        return [
            (rows, places, counts, False),
            (rows[0].half(), places, counts, True),
            (rows.double(), None, counts, False),
        ]
    if op == "random_bits":
        return [(integers([-5, 2**40 + 3]), -7, 9), (integers([1, 2]), 3, 0)]
    if op == "partition_keys":
        labels, usable = integers([0, 2, 255, 1, 1, 2]), torch.arange(6) != 4
        bits = torch.arange(6) * 2**29
        return [
            (labels, usable, bits, 3, 255),
            (labels.to(torch.uint8), usable, bits, 4, 255),
            (labels[:0], usable[:0], bits[:0], 2, 255),
        ]
    if op == "memory_push":
        return [(*push_arguments(), False), (*push_arguments(torch.bfloat16), True)]
    if op == "silhouette_sums":
        features = random_rows(9, 5, seed=1)
        return [
            (features, integers([0, 4, 4, 9]), None),
            (features.bfloat16(), integers([1, 3]), random_rows(4, 5, seed=2)),
        ]
    if op == "density_contrast":
        plain = (*contrast_arguments(), 0.5, None, None, 0.0)
        counts = integers([4, 0, 2]), integers([5, 2, 0])
        return [plain, (*contrast_arguments(torch.float64), 0.1, *counts, 1e-6)]
    if op == "density_contrast_backward":
        rows = contrast_arguments(grad=False)
        loss, lse = torch.ops.dgcl_ops.density_contrast(*rows, 0.5, None, None, 0.0)
        return [
            (loss, *rows, lse, 0.5, None, None, needs_key_grad) for needs_key_grad in (True, False)
        ]
    if op == "gather_rows_backward":
        rows, indices = random_rows(3, 3, seed=1), integers([0, 39, 39])
        return [
            (rows, indices, [2, 3, 4, 5]),
            (rows.bfloat16().requires_grad_(), indices, [2, 3, 4, 5]),
            (rows[:0], indices[:0], [2, 3, 0, 5]),
        ]
    cases = []
    for metric in ("cosine", "dot", "l2"):
        grad = op != "knn_topk_backward"
        queries, bank, offsets, counts = knn_arguments(grad=grad)
        plain_bank = bank.detach()[0].requires_grad_(grad)
        if op == "knn_topk":
            cases.append((queries, bank, 3, metric, offsets, counts, True, False))
            cases.append((queries, plain_bank, 40, metric, None, None, False, True))
        elif op == "knn_density":
            cases.append((queries, bank, [2, 3], metric, offsets, counts, True, False, False))
            cases.append((queries, plain_bank, [40], metric, None, None, False, True, True))
        elif op == "knn_topk_backward":
            outputs = torch.ops.dgcl_ops.knn_topk(
                queries, bank, 3, metric, offsets, counts, False, False
            )
            gradient = torch.ones_like(outputs[0])
            cases.append((gradient, queries, bank, *outputs, metric, offsets, False))
        else:
            raise KeyError(f"no samples for {op}")
    return cases


OPERATORS = (
    "knn_topk",
    "knn_topk_backward",
    "knn_density",
    "density_contrast",
    "density_contrast_backward",
    "gather_rows_backward",
    "memory_push",
    "random_bits",
    "partition_keys",
    "finite_rows",
    "leading_rows",
    "draw_negatives",
    "class_table",
    "sum_rows",
    "silhouette_sums",
)


@pytest.mark.parametrize("op", OPERATORS)
def test_opcheck(op):
    """The schema states the mutations, the fake kernel gives the shapes and dtypes, and autograd is registered."""
    overload = getattr(torch.ops.dgcl_ops, op).default
    for arguments in samples(op):
        results = torch.library.opcheck(overload, arguments)
        assert set(results.values()) == {"SUCCESS"}


# ---- public functions under torch.compile ---------------------------------------------------------


def step_topk(queries, bank, offsets, counts):
    options = {"query_offsets": offsets, "bank_counts": counts}
    values, indices = ops.knn_topk(queries * 2, bank, 3, metric="dot", **options)
    return torch.where(indices >= 0, values, 0.0) * 3


def step_density(queries, bank, offsets, counts):
    options = {"query_offsets": offsets, "bank_counts": counts, "exclude_self": True}
    per_scale = ops.knn_density(queries, bank, (2, 4), metric="l2", per_scale=True, **options)
    return per_scale.sum(0) + ops.knn_density(queries + 1, bank, **options)


def step_contrast(anchors, keys, negatives):
    counts = {"anchor_counts": torch.full((3,), 2), "negative_counts": torch.full((3,), 4)}
    return ops.density_contrast(anchors, keys, negatives, 0.3, eps=1e-6, **counts) * 2


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize(
    ("step", "arguments"),
    [
        (step_topk, knn_arguments),
        (step_density, knn_arguments),
        (step_contrast, contrast_arguments),
    ],
)
def test_compiled_steps_equal_eager_ones(step, arguments, dynamic):
    """One graph; values and gradients have equal bits."""
    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    results = []
    for function in (step, compiled):
        inputs = arguments()
        learned = [t for t in inputs if t.requires_grad]
        output = function(*inputs)
        results.append([output, *torch.autograd.grad(output.sum(), learned)])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert all(bool(t.any()) for t in results[0])


@pytest.mark.parametrize("dynamic", [False, True])
def test_a_compiled_push_changes_the_bank(dynamic):
    torch._dynamo.reset()

    def step(*arguments):
        ops.memory_push(*arguments, normalize=True)
        return arguments[0].sum() + 1

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    eager_arguments, compiled_arguments = push_arguments(), push_arguments()
    assert torch.equal(step(*eager_arguments), compiled(*compiled_arguments))
    for mine, theirs in zip(compiled_arguments, eager_arguments, strict=True):
        assert torch.equal(mine, theirs)
    assert bool(compiled_arguments[0].any())


@pytest.mark.parametrize("dynamic", [False, True])
def test_a_compiled_partition(dynamic):
    """Two sizes of a batch, and one graph for both if sizes are dynamic."""
    torch._dynamo.reset()

    def step(labels, state):
        bits = ops.random_bits(state, -3, labels.numel())
        return ops.partition_keys(labels.view(-1), labels.view(-1) != 1, bits, 3)

    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(step, fullgraph=True, backend=counter, dynamic=dynamic)
    for size in (6, 10):
        labels, state = torch.arange(2 * size).view(2, size) % 3, integers([size, 5])
        for mine, theirs in zip(compiled(labels, state), step(labels, state), strict=True):
            assert torch.equal(mine, theirs)
    assert counter.frame_count == 1 + (not dynamic)


# ---- autocast -------------------------------------------------------------------------------------


def all_outputs(implementation, dtype, forward, backward):
    """All outputs and gradients, computed inside the two contexts."""
    queries, bank, offsets, counts = knn_arguments(dtype=dtype)
    rows = contrast_arguments(dtype)
    results = []
    for metric in ("cosine", "dot", "l2"):
        options = {"metric": metric, "query_offsets": offsets, "bank_counts": counts}
        with forward():
            values, indices = implementation.knn_topk(queries, bank, 3, **options)
            density = implementation.knn_density(queries, bank, (2, 4), **options)
        weighted = (density * torch.arange(9)).sum()
        with backward():
            results += [*torch.autograd.grad(weighted, (queries, bank)), values, indices, density]
    with forward():
        loss = implementation.density_contrast(*rows)
    total = loss.sum()
    with backward():
        return [*results, loss, *torch.autograd.grad(total, rows)]


def low_precision():
    return torch.autocast("cpu", dtype=torch.bfloat16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_autocast_changes_nothing(implementation, dtype):
    """Neither in forward, nor in backward if that is its own operator."""
    plain = all_outputs(implementation, dtype, contextlib.nullcontext, contextlib.nullcontext)
    compiled = implementation is ops
    backward = low_precision if compiled else contextlib.nullcontext
    under_autocast = all_outputs(implementation, dtype, low_precision, backward)
    for mine, theirs in zip(under_autocast, plain, strict=True):
        assert mine.dtype == theirs.dtype
        assert torch.equal(mine, theirs)


def test_inference_mode():
    queries, bank, offsets, counts = knn_arguments()
    want = ops.knn_density(queries, bank, query_offsets=offsets, bank_counts=counts)
    with torch.inference_mode():
        got = ops.knn_density(queries, bank, query_offsets=offsets, bank_counts=counts)
    assert torch.equal(got, want)
    assert not got.requires_grad


def test_meta_tensors_have_the_right_shapes():
    """Shape inference without data, as in tracing and in models on the meta device."""
    queries, bank, offsets, counts = (t.detach().to("meta") for t in knn_arguments())
    options = {"query_offsets": offsets, "bank_counts": counts}
    values, indices = ops.knn_topk(queries, bank.double(), 6, **options)
    assert (values.shape, values.dtype, values.device.type) == ((9, 6), torch.float64, "meta")
    assert (indices.shape, indices.dtype) == ((9, 6), torch.int64)
    density = ops.knn_density(queries, bank, (1, 2, 3), per_scale=True, **options)
    assert (density.shape, density.dtype) == ((3, 9), torch.float32)
    loss = ops.density_contrast(*(t.detach().to("meta") for t in contrast_arguments()))
    assert (loss.shape, loss.dtype) == ((3,), torch.float32)


def test_vector_of_gradients_from_autograd_equals_the_backward_operator():
    """Autograd gives the operator's own gradient, also for values that are used twice."""
    queries, bank, offsets, counts = knn_arguments(dtype=torch.float64)
    options = {"query_offsets": offsets, "bank_counts": counts}
    values, indices = ops.knn_topk(queries, bank, 2, **options)
    weights = random_rows(9, 2, dtype=torch.float64, seed=5)
    finite = torch.where(indices >= 0, values, 0.0)
    got = torch.autograd.grad((finite * weights + 2 * finite * weights).sum(), (queries, bank))
    want = torch.ops.dgcl_ops.knn_topk_backward(
        3 * weights, queries, bank, values, indices, "cosine", offsets, False
    )
    for mine, theirs in zip(got, want, strict=True):
        assert_close(mine, theirs)
