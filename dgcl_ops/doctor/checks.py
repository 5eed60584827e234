"""The doctor's checks of the other operators, built like those in `_doctor_search`."""

import torch

from dgcl_ops import ops, reference
from dgcl_ops._doctor_search import (
    Random,
    check_knn_density,
    check_knn_density_backward,
    check_knn_topk,
    check_knn_topk_backward,
    gradient_tolerance,
)
from dgcl_ops._doctor_side import Side, Tally
from dgcl_ops._doctor_step import check_step

EQUAL = 1e-9  # nothing is rounded
FLOAT64 = 1e-12  # sums of at most a few hundred float64 numbers, each rounded to 1e-16

# ---- contrast -------------------------------------------------------------------------------------


def contrast_cases():
    random = Random()

    def rows(dtype=torch.float32):
        shapes = (5, 37, 67), (5, 67), (5, 201, 67)
        return [random.rows(*shape, dtype=dtype) for shape in shapes]

    counts = {
        "anchor_counts": torch.tensor([37, 0, 17, 1, 37]),
        "negative_counts": torch.tensor([201, 5, 0, 64, 130]),
    }
    yield "all rows", rows(), {"temperature": 0.5}
    yield "counts and eps", rows(), {**counts, "temperature": 0.1, "eps": 0.1}
    yield "bfloat16", rows(torch.bfloat16), {**counts, "temperature": 0.5}
    zero = rows()
    for part in zero:
        part[..., 0, :] = 0
    zero[0][2, 17:] = torch.nan  # beyond the count: not looked at
    yield "zero rows", zero, {**counts, "temperature": 0.5}


def contrast_and_gradients(weights, telling, rows, **options):
    for part in rows:
        part.requires_grad_()
    loss = telling.density_contrast(*rows, **options)
    return loss.detach(), *torch.autograd.grad((loss * weights.to(loss)).sum(), rows)


def check_density_contrast(side: Side, tally: Tally) -> None:
    """Exponentials and logarithms are rounded differently from device to device: no equal bits, but repeatable ones."""
    for name, rows, options in contrast_cases():
        weights = Random(1).rows(5)
        ours, again = (
            side(contrast_and_gradients, weights, ops, rows, **options) for _ in range(2)
        )
        tally.same(f"{name}, repeated", again, ours)
        wide = [part.double() for part in rows]
        exact = contrast_and_gradients(weights, reference, wide, **options)
        parts = ("loss", "of anchors", "of keys", "of negatives")
        for part, mine, theirs in zip(parts, ours, exact, strict=True):
            tally.near(f"{name}, {part}", mine, theirs, gradient_tolerance(mine))


# ---- rows and labels --------------------------------------------------------------------------------


def pushed(telling, state, arriving, normalize):
    state = [part.clone() for part in state]
    telling.memory_push(*state, *arriving, normalize=normalize)
    return state


def check_memory_push(side: Side, tally: Tally) -> None:
    random = Random()
    for dtype in (torch.float32, torch.bfloat16):
        rings = [random.rows(4, 70, *width).to(dtype) for width in ((67,), (40,))]
        state = [*rings, random.rows(4, 70)]
        state += [torch.tensor([70, 20, 0, 68]), torch.tensor([66, 20, 0, 68])]
        arriving = [random.rows(4, 150, 67), random.rows(4, 150, 40), random.rows(4, 150)]
        arriving[0][0, 3] = 0
        arriving[0][1, 5, 2] = torch.nan
        arriving[0][3, 7] *= 2.0**100
        arriving.append(torch.tensor([30, 150, 0, 1]))
        for normalize in (False, True):
            name = f"{dtype}, {'normalised' if normalize else 'as they are'}"
            ours = side(pushed, ops, state, arriving, normalize)
            tally.same(name, ours, side.twin(pushed, ops, state, arriving, normalize))
            if normalize:
                arriving[0] = arriving[0].double()
            exact = pushed(reference, state, arriving, normalize)
            for part, mine, theirs in zip(("features", "projections"), ours, exact, strict=False):
                tally.near(f"{name}, {part}", mine, theirs, gradient_tolerance(mine))


def check_class_counts(side: Side, tally: Tally) -> None:
    generator = torch.Generator().manual_seed(0)
    for dtype, classes, ignored in (
        (torch.uint8, 21, 255),
        (torch.int64, 21, 3),
        (torch.int32, 10_000, -1),
    ):
        labels = torch.randint(0, classes, (3, 150, 170), generator=generator)
        labels[torch.rand(labels.shape, generator=generator) < 0.1] = ignored
        name, arguments = f"{dtype}, {classes} classes", (labels.to(dtype), classes, ignored)
        ours = side(ops.class_counts, *arguments)
        tally.same(name, ours, side.twin(ops.class_counts, *arguments))
        kept = labels[labels != ignored]
        tally.near(name, ours, kept.bincount(minlength=classes), EQUAL)


def gathered(telling, maps, pixels, channels_last: bool):
    return telling.gather_rows(laid_out(maps, channels_last), pixels)


def laid_out(maps, channels_last: bool):
    return maps.contiguous(
        memory_format=torch.channels_last if channels_last else torch.contiguous_format
    )


def gathered_gradient(weights, maps, pixels):
    maps.requires_grad_()
    return torch.autograd.grad((ops.gather_rows(maps, pixels) * weights).sum(), maps)[0]


def check_gather_rows(side: Side, tally: Tally) -> None:
    random = Random()
    for dtype in (torch.float32, torch.float16):
        for dim in (37, 40, 1):  # 40: whole 16-byte words
            maps = random.rows(3, dim, 13, 11, dtype=dtype)
            pixels = torch.randint(0, 3 * 13 * 11, (5, 50), generator=random.generator)
            for channels_last in (False, True):
                name = f"{dtype}, {dim} channels{' last' if channels_last else ''}"
                ours = side(gathered, ops, maps, pixels, channels_last)
                tally.same(name, ours, side.twin(gathered, ops, maps, pixels, channels_last))
                tally.near(name, ours, reference.gather_rows(maps, pixels), EQUAL)
        weights = random.rows(5, 50, 1, dtype=dtype)
        gradient = side(gathered_gradient, weights, maps, pixels)
        exact = torch.zeros(3 * 13 * 11, dtype=torch.float64)
        exact.index_add_(0, pixels.flatten(), weights.double().flatten())
        exact = exact.view(maps.shape)
        # up to a handful of rows meet in a pixel, each addition rounded to the map's dtype
        tally.near(f"{dtype}, gradient", gradient, exact, 8 * gradient_tolerance(gradient))


def check_silhouette_sums(side: Side, tally: Tally) -> None:
    """Added in another order than on the CPU, in float64: no equal bits, but repeatable ones."""
    random = Random()
    offsets = torch.tensor([0, 130, 130, 131, 290])
    for dtype in (torch.float32, torch.bfloat16):
        features = random.rows(300, 33, dtype=dtype)
        for rows in (None, random.rows(70, 33)):
            name = f"{dtype}, {'all rows' if rows is None else 'other rows'}"
            ours, again = (side(ops.silhouette_sums, features, offsets, rows) for _ in range(2))
            tally.same(f"{name}, repeated", again, ours)
            tally.near(name, ours, reference.silhouette_sums(features, offsets, rows), FLOAT64)


CHECKS = {
    "knn_topk": check_knn_topk,
    "knn_density": check_knn_density,
    "knn_topk backward": check_knn_topk_backward,
    "knn_density backward": check_knn_density_backward,
    "density_contrast": check_density_contrast,
    "memory_push": check_memory_push,
    "class_counts": check_class_counts,
    "gather_rows": check_gather_rows,
    "silhouette_sums": check_silhouette_sums,
    "DensityContrastLoss": check_step,
}
BY_SEARCH = ("knn_topk", "knn_density")  # on each path of the search
