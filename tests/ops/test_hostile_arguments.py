"""Arguments that were once handled wrongly, as fuzzing showed (tests/kernels/fuzz/)."""

import pytest
import torch
from oracles import integers, random_rows
from test_op_contract import OPERATORS, push_arguments, samples

from dgcl_ops import ops, reference
from dgcl_ops.ops import _checks, _registry, _rules
from dgcl_ops.reference import backward as reference_backward

HUGE = [2**31, 2**40, 2**62, 2**63 - 1]


# ---- places ---------------------------------------------------------------------------------------------


def replaced(op: str, change):
    """Yields the arguments with one tensor changed, for several of the tensors."""
    given = list(samples(op)[0])
    for n, value in enumerate(given):
        if isinstance(value, torch.Tensor):
            yield [change(v.detach()) if i == n else v for i, v in enumerate(given)]


def has_several_tensors(op: str) -> bool:
    schema = getattr(torch.ops.dgcl_ops, op).default._schema
    return sum(str(argument.type) == "Tensor" for argument in schema.arguments) > 1


@pytest.mark.parametrize("op", [op for op in OPERATORS if has_several_tensors(op)])
def test_one_tensor_on_the_meta_device_is_an_error(op):
    # PyTorch then runs the fake kernel, which returns uninitialised memory.
    for arguments in replaced(op, lambda t: t.to("meta")):
        with pytest.raises(RuntimeError, match=f"^{op}: .* must be on the same device as .*, got"):
            getattr(torch.ops.dgcl_ops, op)(*arguments)


@pytest.mark.parametrize("op", OPERATORS)
def test_a_sparse_tensor_is_an_error(op):
    for arguments in replaced(op, lambda t: t.to_sparse()):
        with pytest.raises(RuntimeError, match=rf"^{op}: \w+ must be a dense tensor, got layout"):
            getattr(torch.ops.dgcl_ops, op)(*arguments)


@pytest.mark.parametrize("op", OPERATORS)
def test_none_for_a_tensor_is_an_error(op):
    schema = getattr(torch.ops.dgcl_ops, op).default._schema
    for n, argument in enumerate(schema.arguments):
        if str(argument.type) != "Tensor":
            continue
        arguments = [None if i == n else value for i, value in enumerate(samples(op)[0])]
        error = rf"^{op}: {argument.name} must be a (torch\.Tensor|tensor), got None"
        with pytest.raises((RuntimeError, TypeError), match=error):
            getattr(torch.ops.dgcl_ops, op)(*arguments)
        if any(isinstance(value, torch.Tensor) for value in arguments):
            with pytest.raises((RuntimeError, TypeError), match=error):
                getattr(torch.ops.dgcl_ops, op)(*on_meta(arguments))


def on_meta(arguments):
    return [a.to("meta") if isinstance(a, torch.Tensor) else a for a in arguments]


@pytest.mark.parametrize("op", [op for op in OPERATORS if op in _rules.SHAPES])
def test_tensors_of_other_dimensions_are_an_error_on_the_meta_device(op):
    names = _registry.argument_names(op)
    for change in (lambda t: t.flatten(), lambda t: t[(None,) * 4]):
        for n, arguments in enumerate(replaced(op, change)):
            kept = samples(op)[0]
            changed = [i for i, a in enumerate(kept) if isinstance(a, torch.Tensor)][n]
            if (
                names[changed] in _rules.SHAPES[op]
                and arguments[changed].dim() != kept[changed].dim()
            ):
                error = rf"^{op}: {names[changed]} must have shape \[.*\].*, got \["
                with pytest.raises(RuntimeError, match=error):
                    getattr(torch.ops.dgcl_ops, op)(*on_meta(arguments))


# ---- numbers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", HUGE)
def test_huge_numbers_are_refused_before_memory_is_allocated(k):
    rows, labels = random_rows(3, 4), integers([0, 1])
    usable = labels == labels
    with pytest.raises(RuntimeError, match=rf"knn_topk: k must be less than 2\^31, got {k}"):
        ops.knn_topk(rows, rows, k)
    with pytest.raises(RuntimeError, match=rf"num_classes must be less than 2\^31, got {k}"):
        ops.partition_keys(labels, usable, labels, k)
    for op, given in (
        ("knn_topk", {"queries": rows, "k": k}),
        ("partition_keys", {"num_classes": k}),
    ):
        given = {"labels": labels, **given}
        with pytest.raises(RuntimeError, match=rf"{op}: \w+ must be less than 2\^31, got {k}"):
            _checks.check_basics(op, given)  # for the fallback and the meta device


def test_scales_may_be_huge(implementation):
    rows = random_rows(5, 4)
    assert torch.equal(
        implementation.knn_density(rows, rows, (2, 2**62)),
        implementation.knn_density(rows, rows, (2, 5)),
    )


@pytest.mark.parametrize("shape", [(2**40, 0, 2**20, 2**20), (2**62, 0, 2, 2)])
def test_maps_of_more_pixels_than_can_be_counted(shape):
    with pytest.raises(RuntimeError, match=r"gather_rows: maps must have fewer than 2\^63 pixels"):
        ops.gather_rows(torch.empty(shape), integers([0]))


def test_maps_without_channels_may_have_many_pixels():
    maps = torch.empty(2**20, 0, 2**20, 2**20)
    assert ops.gather_rows(maps, integers([0, 2**59])).shape == (2, 0)


def test_rows_without_columns_are_no_work():
    sums = ops.silhouette_sums(torch.empty(2**20, 0), integers([0, 2**19, 2**20]))
    assert sums.shape == (2**20, 2)
    assert not bool(sums.any())


# ---- memory ---------------------------------------------------------------------------------------------


def sharing():
    """Which argument is written, which one shares its memory, and all arguments."""
    for written, shares in ((0, 5), (0, 6), (1, 6), (2, 7), (3, 8), (4, 8), (3, 4)):
        given = [*push_arguments(), False]
        given[1] = torch.zeros(2, 6, 5)  # the size of the features
        given[6] = random_rows(2, 4, 5, seed=2)
        number = given[shares].numel()
        # starts later, like a view of the middle of a ring
        whole = given[written].view(-1)
        begin = 1 if whole.numel() > number else 0
        given[shares] = whole[begin : begin + number].view(given[shares].shape)
        yield written, shares, given


@pytest.mark.parametrize(("written", "shares", "given"), list(sharing()))
def test_a_push_refuses_the_memory_that_it_writes(written, shares, given):
    names = _registry.argument_names("memory_push")
    before = [t.clone() for t in given[:9]]
    error = f"memory_push: {names[shares]} must not share memory with {names[written]}, which is written"
    with pytest.raises(RuntimeError, match=error):
        torch.ops.dgcl_ops.memory_push(*given)
    with pytest.raises(RuntimeError, match=error):
        _checks.check("memory_push", dict(zip(names, given, strict=True)))
    assert all(torch.equal(a, b) for a, b in zip(before, given, strict=False))


def test_rings_may_lie_side_by_side_in_one_memory():
    apart, together = push_arguments(), push_arguments()
    flat = torch.zeros(sum(t.numel() for t in together[:3]))
    at = 0
    for n in range(3):
        ring = flat[at : at + together[n].numel()].view(together[n].shape)
        at += ring.numel()
        together[n] = ring.copy_(together[n])
    for arguments in (apart, together):
        ops.memory_push(*arguments, normalize=True)
    assert all(torch.equal(a, b) for a, b in zip(apart, together, strict=True))


# ---- values ---------------------------------------------------------------------------------------------


def test_a_density_of_infinite_scores_is_infinite(implementation):
    """Ranks beyond a scale have weight 0, which must not be multiplied by infinity."""
    queries, bank = torch.ones(1, 2), torch.full((3, 2), torch.inf)
    options = {"metric": "dot", "per_scale": True}
    assert (
        implementation.knn_density(queries, bank, (1, 3), **options).tolist() == [[torch.inf]] * 2
    )


def test_the_fallback_gives_no_gradient_to_queries_of_no_class():
    queries, bank, offsets = (
        random_rows(5, 3, seed=1),
        random_rows(2, 4, 3, seed=2),
        integers([1, 2, 4]),
    )
    values = -random_rows(5, 2, seed=3).abs()
    given = torch.ones(5, 2), queries, bank, values, integers([[0, 1]] * 5), "l2", offsets, False
    want = torch.ops.dgcl_ops.knn_topk_backward(*given)
    for mine, theirs in zip(reference_backward.knn_topk_backward(*given), want, strict=True):
        torch.testing.assert_close(mine, theirs)
    assert not bool(want[0][[0, 4]].any())


def test_the_fallback_does_not_look_at_what_has_no_gradient():
    queries = torch.tensor([[torch.inf, 1.0]])
    bank = torch.tensor([[2.0, 1.0], [torch.nan, 0.0]])
    values, indices = torch.tensor([[-3.0, -torch.inf]]), integers([[0, -1]])
    given = torch.tensor([[1.0, 0.0]]), queries, bank, values, indices, "l2", None, False
    want = torch.ops.dgcl_ops.knn_topk_backward(*given)
    for mine, theirs in zip(reference_backward.knn_topk_backward(*given), want, strict=True):
        assert torch.equal(mine, theirs)
    assert not bool(want[0].isnan().any())


def test_the_fallback_refuses_indices_beyond_the_bank():
    given = samples("knn_topk_backward")[0]
    names = _registry.argument_names("knn_topk_backward")
    for stray in (11, -2):
        indices = given[4].clone()
        indices[2, 1] = stray
        changed = dict(zip(names, given, strict=True)) | {"indices": indices}
        for refuse in (
            lambda changed=changed: _checks.check("knn_topk_backward", changed),
            lambda changed=changed: torch.ops.dgcl_ops.knn_topk_backward(*changed.values()),
        ):
            with pytest.raises(RuntimeError, match=rf"indices must lie in \[-1, 11\), got {stray}"):
                refuse()


def test_a_key_without_anchors_may_be_nan():
    anchors, keys, negatives = (
        random_rows(2, 3, 4, seed=1),
        random_rows(2, 4, seed=2),
        random_rows(2, 5, 4),
    )
    keys[1] = torch.nan
    counts = integers([3, 0])
    _, lse = reference.density_contrast_with_lse(anchors, keys, negatives, 0.5, counts, None, 1e-6)
    lse[1] = torch.nan
    given = torch.ones(2), anchors, keys, negatives, lse, 0.5, counts, None, True
    want = torch.ops.dgcl_ops.density_contrast_backward(*given)
    for mine, theirs in zip(
        _registry.FALLBACKS["density_contrast_backward"](*given), want, strict=True
    ):
        torch.testing.assert_close(mine, theirs)
        assert not bool(mine[1].any())
