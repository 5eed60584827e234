"""The CUDA kernels of the gradients, run by the emulator, against the CPU kernels."""

import math

import pytest
import torch
from oracles import TOLERANCES, assert_close, contrast_case, gradients, integers, random_rows

from dgcl_ops import backend_info, ops, reference
from kernels.emulator import replace

METRICS = ("cosine", "dot", "l2")
NAN = math.nan

MIXED = [
    (torch.float32, torch.float32),
    (torch.float64, torch.float64),
    (torch.float16, torch.bfloat16),
    (torch.bfloat16, torch.float64),
]


def on_both(name, op, *arguments):
    """Results of the CPU kernel and of the emulated CUDA kernel."""
    want = getattr(torch.ops.dgcl_ops, op)(*arguments)
    with replace.emulated_kernels(name):
        return want, getattr(torch.ops.dgcl_ops, op)(*arguments)


def pairs(queries, rows, k, dtype, seed=5):
    """dL_dvalues, values and indices of a selection that no search would make: rows chosen twice, scores of 0,
    gradients of 0, missing neighbours, and one row chosen by every second query."""
    draw = torch.Generator().manual_seed(seed)
    indices = torch.randint(-1, rows, (queries, k), generator=draw)
    indices[::2, 0] = rows // 2
    values = random_rows(queries, k, dtype=dtype, seed=seed + 1)
    incoming = random_rows(queries, k, dtype=dtype, seed=seed + 2)
    values[torch.rand(queries, k, generator=draw) < 0.1] = 0
    incoming[torch.rand(queries, k, generator=draw) < 0.2] = 0
    return incoming, values, indices


def knn_backward_arguments(sizes, metric, dtypes=MIXED[0], grouped=False, unit_bank=False):
    queries, rows, columns, k = sizes
    wide = torch.float64 if torch.float64 in dtypes else torch.float32
    query_rows = random_rows(queries, columns, dtype=dtypes[0], seed=1)
    bank_shape = (3, rows, columns) if grouped else (rows, columns)
    bank = random_rows(*bank_shape, dtype=dtypes[1], seed=2)
    query_rows[queries // 3] = 0
    bank[..., 0, :] = 0
    offsets = integers([1, queries // 2, queries // 2, queries - 1]) if grouped else None
    incoming, values, indices = pairs(queries, rows, k, wide)
    return [incoming, query_rows, bank, values, indices, metric, offsets, unit_bank]


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("dtypes", MIXED)
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("sizes", [(7, 5, 16, 3), (70, 9, 144, 40), (3, 90, 256, 33)])
def test_knn_backward_has_the_bits_of_the_cpu(request, sizes, metric, dtypes, grouped):
    """Both sum rows pair by pair with fused multiply-add. The CPU does so only for whole vectors of at most 16 columns,
    and not on the portable level, which rounds twice."""
    for unit_bank in (False, True):
        arguments = knn_backward_arguments(sizes, metric, dtypes, grouped, unit_bank)
        want, got = on_both(request.node.name, "knn_topk_backward", *arguments)
        for cpu, cuda, given in zip(want, got, dtypes, strict=True):
            assert cuda.dtype == given
            if backend_info()["cpu_capability"] == "portable":
                assert_close(cuda, cpu.double(), cpu.abs().max().item())
            else:
                assert torch.equal(cuda, cpu)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("columns", [1, 2, 31, 33, 127, 129, 260])
def test_knn_backward_of_any_width(request, columns, metric):
    """The CPU rounds twice in columns that do not fill a vector, which adds one rounding per pair."""
    arguments = knn_backward_arguments((20, 8, columns, 5), metric, grouped=True)
    want, got = on_both(request.node.name, "knn_topk_backward", *arguments)
    for cpu, cuda in zip(want, got, strict=True):
        assert_close(cuda, cpu.double(), cpu.abs().max().item())


def test_knn_backward_of_more_rows_than_warps(request):
    """Beyond 8192 rows, a warp takes several rows in turn and reuses its scratch row."""
    arguments = knn_backward_arguments((40, 8300, 16, 6), "cosine")
    want, got = on_both(request.node.name, "knn_topk_backward", *arguments)
    for cpu, cuda in zip(want, got, strict=True):
        assert_close(cuda, cpu.double(), cpu.abs().max().item())
    assert bool(got[1].any(1).sum() > 50)


def test_knn_backward_of_strided_inputs(request):
    arguments = knn_backward_arguments((12, 8, 24, 5), "l2", grouped=True)
    _, want = on_both(request.node.name, "knn_topk_backward", *arguments)
    for i in range(5):
        wider = torch.cat([arguments[i], arguments[i]], dim=-1)[..., : arguments[i].shape[-1]]
        turned = arguments[i].transpose(0, -1).contiguous().transpose(0, -1)
        arguments[i] = wider if i % 2 else turned
        assert not arguments[i].is_contiguous()
    _, got = on_both(request.node.name, "knn_topk_backward", *arguments)
    assert all(torch.equal(a, b) for a, b in zip(want, got, strict=True))


def test_knn_backward_skips_what_is_out_of_range(request):
    """The CPU refuses such indices and offsets. CUDA could not do so without a sync."""
    arguments = knn_backward_arguments((12, 8, 24, 5), "cosine", grouped=True)
    arguments[4][3:6, 2] = -1
    _, want = on_both(request.node.name, "knn_topk_backward", *arguments)
    arguments[4][3:6, 2] = integers([8, -2, 2**40])
    with replace.emulated_kernels(request.node.name):
        got = torch.ops.dgcl_ops.knn_topk_backward(*arguments)
        assert all(torch.equal(a, b) for a, b in zip(want, got, strict=True))
        arguments[6] = integers([-5, 6, 6, 2**40])
        beyond = torch.ops.dgcl_ops.knn_topk_backward(*arguments)
        arguments[6] = integers([0, 6, 6, 12])
        clamped = torch.ops.dgcl_ops.knn_topk_backward(*arguments)
        assert all(torch.equal(a, b) for a, b in zip(beyond, clamped, strict=True))
        arguments[6] = integers([9, 2, 11, 4])
        assert all(
            bool(t.isfinite().all()) for t in torch.ops.dgcl_ops.knn_topk_backward(*arguments)
        )


def check_emulated_contrast(name, rows, temperature=0.5, **options):
    """Against float64 autograd through the reference, like the CPU kernel in test_contrast_sizes."""
    with replace.emulated_kernels(name):
        got = gradients(lambda *t: ops.density_contrast(*t, temperature, **options), rows)
    wide = [t.detach().double().requires_grad_() for t in rows]
    want = gradients(lambda *t: reference.density_contrast(*t, temperature, **options), wide)
    for mine, theirs, given in zip(got, want, rows, strict=True):
        assert mine.dtype == given.dtype
        assert_close(mine, theirs, theirs.abs().max().item())


# Around every tile: 16 rows of a block, 128 (float64: 64) rows of the stream, 8 rows and 16 (8) columns of a step, 256
# (128) columns of a block.
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "sizes",
    [
        (2, 15, 63, 7),
        (1, 16, 64, 8),
        (2, 17, 65, 15),
        (1, 33, 127, 17),
        (1, 130, 7, 33),
        (1, 65, 129, 4),
        (1, 3, 257, 127),
        (1, 4, 3, 255),
        (2, 2, 9, 257),
        (1, 3, 130, 515),
    ],
)
def test_emulated_contrast_tiles(request, sizes, dtype):
    groups, anchors, negatives, columns = sizes
    shapes = ((groups, anchors, columns), (groups, columns), (groups, negatives, columns))
    rows = [random_rows(*s, dtype=dtype, seed=i).requires_grad_() for i, s in enumerate(shapes)]
    check_emulated_contrast(request.node.name, rows)


@pytest.mark.parametrize("narrow", [0, 1, 2])
@pytest.mark.parametrize("dtype", list(TOLERANCES))
def test_emulated_contrast_dtypes(request, dtype, narrow):
    rows = list(contrast_case(dtype))
    rows[narrow] = rows[narrow].detach().to(torch.bfloat16).requires_grad_()
    options = {
        "anchor_counts": integers([4, 1, 0]),
        "negative_counts": integers([5, 0, 2]),
        "eps": 1e-6,
    }
    check_emulated_contrast(request.node.name, rows, 0.3, **options)


def test_emulated_contrast_clamps_counts(request):
    """The CPU refuses such counts. CUDA could not do so without a sync."""
    rows = contrast_case(torch.float32)

    def results(anchor_counts, negative_counts):
        counts = (integers(anchor_counts), integers(negative_counts))
        loss, lse = torch.ops.dgcl_ops.density_contrast(*rows, 0.5, *counts, 0.0)
        backward = torch.ops.dgcl_ops.density_contrast_backward
        return loss, lse, *backward(torch.ones(3), *rows, lse, 0.5, *counts, True)

    want = results([4, 0, 2], [0, 5, 3])
    with replace.emulated_kernels(request.node.name):
        tame = results([4, 0, 2], [0, 5, 3])
        wild = results([2**40, -3, 2], [-1, 6, 3])
    assert all(torch.equal(a, b) for a, b in zip(tame, wild, strict=True))
    for mine, theirs in zip(tame, want, strict=True):
        assert_close(mine.detach(), theirs.detach().double(), 1.0 + 2.0 / 0.5)


def test_emulated_contrast_is_the_same_in_any_schedule():
    """No sum depends on the order of warps or blocks."""
    shapes = ((2, 37, 40), (2, 40), (2, 150, 40))
    rows = [random_rows(*s, seed=i).requires_grad_() for i, s in enumerate(shapes)]
    results = []
    for name in map(str, range(9)):
        with replace.emulated_kernels(name):
            results.append(gradients(ops.density_contrast, rows))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
