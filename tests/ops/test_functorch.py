"""torch.func with the operators. vmap gives one call that equals the loop, or an error. Derivatives are errors."""

import builds
import pytest
import torch
from oracles import integers, random_rows
from torch.autograd import forward_ad
from torch.func import grad, jacfwd, jacrev, jvp, vmap

from dgcl_ops import ops

V = 4
QUERIES, BANK = random_rows(V, 9, 5, seed=1), random_rows(V, 11, 5, seed=2)
CONTRAST = (
    random_rows(V, 3, 4, 6, seed=1),
    random_rows(V, 3, 6, seed=2),
    random_rows(V, 3, 5, 6, seed=3),
)
COUNTS = integers([[4, 0, 2], [1, 2, 3], [4, 4, 4], [0, 1, 0]])
MAPS = random_rows(V, 2, 5, 3, 4, seed=4)
PIXELS = torch.randint(24, (V, 2, 7), generator=torch.Generator().manual_seed(0))


def density(queries, bank):
    return ops.knn_density(queries, bank, (2, 3), metric="l2")


def density_of_each_scale(queries, bank):
    return ops.knn_density(queries, bank, (2, 20), per_scale=True)


def density_of_others(queries, bank):
    return ops.knn_density(queries, bank, (2, 3), exclude_self=True)


def topk(queries, bank):
    return ops.knn_topk(queries, bank, 3, unit_bank=True)


def contrast(anchors, keys, negatives, counts=None):
    return ops.density_contrast(anchors, keys, negatives, 0.3, anchor_counts=counts, eps=1e-6)


MAPPED = {
    "density": (density, (QUERIES, BANK), (0, 0)),
    "density of each scale": (density_of_each_scale, (QUERIES, BANK), (0, 0)),
    "density, bank shared": (density, (QUERIES, BANK[0]), (0, None)),
    "density, queries shared": (density, (QUERIES[0], BANK), (None, 0)),
    "density of others": (density_of_others, (QUERIES, BANK), (0, 0)),
    "density of others, bank shared": (density_of_others, (QUERIES, BANK[0]), (0, None)),
    "density, another dimension": (density, (QUERIES.movedim(0, 2), BANK.movedim(0, 1)), (2, 1)),
    "no queries": (density, (QUERIES[:, :0], BANK), (0, 0)),
    "topk": (topk, (QUERIES, BANK), (0, 0)),
    "topk, bank shared": (topk, (QUERIES, BANK[0]), (0, None)),
    "contrast": (contrast, CONTRAST, (0, 0, 0)),
    "contrast with counts": (contrast, (*CONTRAST, COUNTS), (0, 0, 0, 0)),
    "contrast, keys shared": (contrast, (CONTRAST[0], CONTRAST[1][0], CONTRAST[2]), (0, None, 0)),
    "rows": (ops.gather_rows, (MAPS, PIXELS), (0, 0)),
    "rows, maps shared": (ops.gather_rows, (MAPS[0], PIXELS), (None, 0)),
    "rows, pixels shared": (ops.gather_rows, (MAPS, PIXELS[0]), (0, None)),
}


def loop(function, arguments, in_dims):
    single = [
        [t.select(d, i) if d is not None else t for t, d in zip(arguments, in_dims, strict=True)]
        for i in range(V)
    ]
    results = [function(*each) for each in single]
    if isinstance(results[0], tuple):
        return tuple(map(torch.stack, zip(*results, strict=True)))
    return torch.stack(results)


def first(result):
    return result[0] if isinstance(result, tuple) else result


@pytest.mark.parametrize("case", MAPPED)
def test_vmap_equals_the_loop(case):
    """Compiled values have equal bits. Gradients come from ordinary autograd around the map. Gradients of a shared
    argument may be summed in another order."""
    function, arguments, in_dims = MAPPED[case]
    results_of_both = []
    for run in (vmap(function, in_dims), lambda *a: loop(function, a, in_dims)):
        leaves = [t.detach().clone() for t in arguments]
        learned = [t.requires_grad_() for t in leaves if t.is_floating_point()]
        result = run(*leaves)
        weights = torch.arange(first(result).numel()).view_as(first(result)) + 1.0
        gradients = torch.autograd.grad((first(result) * weights).sum(), learned, allow_unused=True)
        results_of_both.append(
            ([r.detach() for r in torch.utils._pytree.tree_leaves(result)], gradients)
        )
    (values, gradients), (expected, expected_gradients) = results_of_both
    same = torch.equal if builds.COMPILED else torch.allclose
    assert all(same(a, b) for a, b in zip(values, expected, strict=True))
    for mine, theirs in zip(gradients, expected_gradients, strict=True):
        if theirs is not None:
            torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)
    assert case == "no queries" or any(bool(g.any()) for g in expected_gradients if g is not None)


def test_vmap_is_one_call():
    """One call, where PyTorch's fallback would loop."""
    with torch.profiler.profile() as profile:
        vmap(density)(QUERIES, BANK)
    names = [event.name for event in profile.events()]
    assert names.count("dgcl_ops::knn_density") == 2  # the mapped operator, and the one it becomes


def test_vmap_of_a_map_of_maps():
    got = vmap(vmap(density, (0, None)), (None, 0))(QUERIES, BANK)
    want = torch.stack([torch.stack([density(q, b) for q in QUERIES]) for b in BANK])
    assert torch.equal(got, want)


def test_vmap_keeps_pixels_inside_their_own_maps():
    pixels = PIXELS.clone()
    pixels[1, 0, 0] = 24  # the first pixel of the next maps
    with pytest.raises(RuntimeError, match=r"gather_rows: indices must lie in \[0, 96\), got -1"):
        vmap(ops.gather_rows)(MAPS, pixels)


def push(*arguments):
    ops.memory_push(*arguments)
    return arguments[0]


def push_arguments():
    rings = [torch.zeros(V, 2, 6, 5), torch.zeros(V, 2, 6, 3), torch.zeros(V, 2, 6)]
    heads = [torch.zeros(V, 2, dtype=torch.int64) for _ in range(2)]
    rows = [random_rows(V, 2, 4, n, seed=n) for n in (5, 3)]
    return *rings, *heads, *rows, random_rows(V, 2, 4, seed=9), torch.full((V, 2), 4)


OFFSETS, LABELS = integers([0, 4, 9]), torch.zeros(V, 10, dtype=torch.int64)


@pytest.mark.parametrize(
    ("op", "function", "arguments", "error"),
    [
        (
            "memory_push",
            push,
            push_arguments(),
            r"vmap over bank_features, .* \(batch size 4\); stack the classes .* and push once",
        ),
        (
            "partition_keys",
            lambda labels: ops.partition_keys(labels, labels[0] == labels[0], LABELS[0], 3),
            (LABELS,),
            r"vmap over labels, usable is not supported \(batch size 4\); call it once per batch element",
        ),
        (
            "random_bits",
            lambda rng_state: ops.random_bits(rng_state, 0, 3),
            (LABELS[:, :2],),
            r"vmap over rng_state is not supported \(batch size 4\); call it once per batch element",
        ),
        (
            "finite_rows",
            ops.finite_rows,
            (QUERIES,),
            r"vmap over maps is not supported \(batch size 4\); call it once per batch element",
        ),
        (
            "leading_rows",
            lambda pixels: ops.leading_rows(pixels, integers([4]), integers([2]), 9),
            (LABELS,),
            r"vmap over pixels is not supported \(batch size 4\); call it once per batch element",
        ),
        (
            "draw_negatives",
            lambda pixels: ops.draw_negatives(pixels, integers([4]), integers([[2, 3]])),
            (LABELS,),
            r"vmap over pixels is not supported \(batch size 4\); call it once per batch element",
        ),
        (
            "class_table",
            lambda pixels: ops.class_table(pixels, integers([0, 4]), None, 2),
            (LABELS,),
            r"vmap over pixels is not supported \(batch size 4\); call it once per batch element",
        ),
        (
            "sum_rows",
            lambda rows: ops.sum_rows(rows[None], None, integers([2])),
            (QUERIES,),
            r"vmap over rows is not supported \(batch size 4\); call it once per batch element",
        ),
        (
            "silhouette_sums",
            lambda features: ops.silhouette_sums(features, OFFSETS),
            (QUERIES,),
            r"vmap over features is not supported \(batch size 4\); call it once per batch element",
        ),
        (
            "knn_density",
            lambda q, b: ops.knn_density(q, b[None], query_offsets=integers([0, 9])),
            (QUERIES, BANK),
            "query_offsets is not supported under vmap",
        ),
        (
            "knn_topk",
            lambda q: ops.knn_topk(q, BANK[0], 2, bank_counts=integers([3])),
            (QUERIES,),
            "bank_counts is not supported under vmap",
        ),
    ],
)
def test_vmap_says_what_to_do_instead(op, function, arguments, error):
    with pytest.raises(RuntimeError, match=f"^{op}: {error}"):
        vmap(function)(*arguments)
    if op == "memory_push":
        assert not any(ring.any() for ring in arguments[:5])


# ---- derivatives --------------------------------------------------------------------------------------

DIFFERENTIABLE = {
    "knn_density": (lambda q: density(q, BANK[0]).sum(), QUERIES[0]),
    "knn_topk": (lambda b: topk(QUERIES[0], b)[0].sum(), BANK[0]),
    "density_contrast": (
        lambda a: contrast(a, *(t[0] for t in CONTRAST[1:])).sum(),
        CONTRAST[0][0],
    ),
    "gather_rows": (lambda maps: ops.gather_rows(maps, PIXELS[0]).sum(), MAPS[0]),
}


def inside_a_dual_level(function, x):
    with forward_ad.dual_level():
        function(forward_ad.make_dual(x, torch.ones_like(x)))


TRANSFORMS = {
    "grad": (lambda f, x: grad(f)(x), "torch.func"),
    "jacrev": (lambda f, x: jacrev(f)(x), "torch.func"),
    "vmap of grad": (lambda f, x: vmap(grad(f))(x[None]), "torch.func"),
    "grad of vmap": (lambda f, x: grad(lambda y: vmap(f)(y[None]).sum())(x), "torch.func"),
    "jvp": (lambda f, x: jvp(f, (x,), (x,)), "tangent"),
    "jacfwd": (lambda f, x: jacfwd(f)(x), "tangent"),
    "dual tensors": (inside_a_dual_level, "tangent"),
}


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("op", DIFFERENTIABLE)
def test_no_transform_differentiates(op, transform):
    """PyTorch registers no such derivatives. Without the error, jvp would be 0."""
    function, x = DIFFERENTIABLE[op]
    apply, reason = TRANSFORMS[transform]
    with pytest.raises(RuntimeError, match=f"^{op}: .*{reason}.*use backward"):
        apply(function, x)


@pytest.mark.parametrize("transform", ["grad", "jvp"])
def test_no_compiled_transform_differentiates(transform):
    torch._dynamo.reset()
    function, x = DIFFERENTIABLE["knn_density"]
    apply, reason = TRANSFORMS[transform]
    compiled = torch.compile(lambda x: apply(function, x), backend="eager", fullgraph=True)
    # TorchRuntimeError or Unsupported, depending on the release.
    with pytest.raises(torch._dynamo.exc.TorchDynamoException, match=f"knn_density: .*{reason}"):
        compiled(x)


def test_transforms_leave_constants_alone():
    """Inside a transform, an operator accepts tensors that are not differentiated."""
    weights = density(QUERIES[0], BANK[0])

    def loss(x):
        with torch.no_grad():
            constant = density(x, BANK[0])
        return ((density(QUERIES[0], BANK[0]) + constant) * x.sum(1)).sum()

    assert torch.equal(grad(loss)(QUERIES[0]), (2 * weights)[:, None].expand(9, 5))


def test_a_batch_of_gradients():
    """`is_grads_batched` maps the backward operator. PyTorch loops and warns."""
    x = BANK[0]
    bank = x.clone().requires_grad_()
    values = topk(QUERIES[0], bank)[0].sum(1)
    directions = torch.eye(len(values))
    (got,) = torch.autograd.grad(values, bank, directions, is_grads_batched=True, retain_graph=True)
    want = [torch.autograd.grad(values, bank, d, retain_graph=True)[0] for d in directions]
    assert torch.equal(got, torch.stack(want))
