"""Valid arguments for each operator, by name, in the order of its schema."""

import math
import random

import torch
from torch import Tensor

from dgcl_ops import reference
from dgcl_ops._precision import compute_dtype

FLOATS = (torch.float32, torch.float32, torch.float64, torch.float16, torch.bfloat16)
METRICS = ("cosine", "dot", "l2")
# Some exceed a tile or a block of queries or rows, so that several threads have work.
SIZES = (0, 1, 1, 2, 3, 4, 5, 7, 9, 16, 17, 33, 65, 130)
COLUMNS = (1, 2, 3, 4, 7, 8, 9, 16, 17, 33, 64, 67)
CLASSES = (0, 1, 2, 3, 5, 22)
LABELS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def rows(rng: random.Random, *shape: int, dtype=None) -> Tensor:
    """Normally distributed numbers, sometimes with rows that are equal, zero, or hold NaN or inf."""
    generator = torch.Generator().manual_seed(rng.getrandbits(40))
    out = torch.randn(*shape, generator=generator).to(dtype or rng.choice(FLOATS))
    if out.dim() > 1 and out.numel() and rng.random() < 0.3:
        flat = out.view(-1, shape[-1])
        for _ in range(rng.randint(1, 3)):
            value = rng.choice((0.0, 1.0, torch.nan, torch.inf, -torch.inf))
            flat[rng.randrange(flat.shape[0])] = value
    return out


def counts(rng: random.Random, number: int, largest: int) -> Tensor:
    """[number], each in [0, largest]."""
    return torch.tensor([rng.randint(0, largest) for _ in range(number)], dtype=torch.int64)


def offsets(rng: random.Random, classes: int, total: int) -> Tensor:
    return counts(rng, classes + 1, total).sort().values


def _search(rng: random.Random) -> dict:
    queries, bank, columns = rng.choice(SIZES), rng.choice(SIZES), rng.choice(COLUMNS)
    grouped = rng.random() < 0.6
    classes = rng.choice(CLASSES)
    shape = (classes, bank, columns) if grouped else (bank, columns)
    return {
        "queries": rows(rng, queries, columns),
        "bank": rows(rng, *shape),
        "metric": rng.choice(METRICS),
        "query_offsets": offsets(rng, classes, queries) if grouped else None,
        "bank_counts": counts(rng, classes, bank) if grouped and rng.random() < 0.7 else None,
        "exclude_self": rng.random() < 0.3,
        "unit_bank": rng.random() < 0.3,
    }


def knn_topk(rng: random.Random) -> dict:
    return _search(rng) | {"k": rng.choice((1, 2, 3, 8, 40, 200))}


def knn_density(rng: random.Random) -> dict:
    scales = [rng.choice((1, 2, 3, 8, 40, 2**40)) for _ in range(rng.randint(1, 4))]
    return _search(rng) | {"scales": scales, "per_scale": rng.random() < 0.5}


def knn_topk_backward(rng: random.Random) -> dict:
    given = _search(rng)
    wide = compute_dtype(given["queries"], given["bank"])
    shape = given["queries"].shape[0], rng.choice((0, 1, 2, 5))
    missing = torch.rand(shape, generator=torch.Generator().manual_seed(rng.getrandbits(40))) < 0.2
    bank_rows = given["bank"].shape[-2]
    indices = counts(rng, shape[0] * shape[1], max(0, bank_rows - 1)).view(shape)
    missing |= torch.tensor(bank_rows == 0)
    return given | {
        "dL_dvalues": rows(rng, *shape, dtype=wide),
        "values": -rows(rng, *shape, dtype=wide).abs().masked_fill(missing, torch.inf),
        "indices": indices.masked_fill(missing, -1),
    }


def density_contrast(rng: random.Random) -> dict:
    groups, anchors, negatives = rng.choice(CLASSES), rng.choice(SIZES), rng.choice(SIZES)
    columns = rng.choice(COLUMNS)
    with_counts = rng.random() < 0.6
    return {
        "anchors": rows(rng, groups, anchors, columns),
        "keys": rows(rng, groups, columns),
        "negatives": rows(rng, groups, negatives, columns),
        "temperature": rng.choice((0.1, 0.5, 1.0)),
        "anchor_counts": counts(rng, groups, anchors) if with_counts else None,
        "negative_counts": counts(rng, groups, negatives) if with_counts else None,
        "eps": rng.choice((0.0, 1e-6, 0.1)),
    }


def density_contrast_backward(rng: random.Random) -> dict:
    given = density_contrast(rng)
    three = given["anchors"], given["keys"], given["negatives"]
    wide = compute_dtype(*three)
    _, lse = reference.density_contrast_with_lse(**given)
    del given["eps"]  # it is part of lse
    return given | {
        "dL_dloss": rows(rng, three[0].shape[0], dtype=wide),
        "lse": lse,
        "needs_key_grad": rng.random() < 0.5,
    }


def memory_push(rng: random.Random) -> dict:
    classes, capacity, number = rng.choice(CLASSES), rng.choice(SIZES[1:10]), rng.choice(SIZES)
    columns, others = rng.choice(COLUMNS), rng.choice(COLUMNS)
    return {
        "bank_features": rows(rng, classes, capacity, columns),
        "bank_projections": rows(rng, classes, capacity, others),
        "bank_density": rows(rng, classes, capacity),
        "counts": counts(rng, classes, capacity),
        "heads": counts(rng, classes, capacity - 1),
        "features": rows(rng, classes, number, columns),
        "projections": rows(rng, classes, number, others),
        "density": rows(rng, classes, number),
        "row_counts": counts(rng, classes, number),
        "normalize": rng.random() < 0.5,
    }


def random_bits(rng: random.Random) -> dict:
    state = [rng.choice((0, 1, -1, rng.getrandbits(62), -(2**63))) for _ in range(2)]
    return {
        "rng_state": torch.tensor(state),
        "stream": rng.choice((0, 1, -1, 2**32, rng.getrandbits(62), -(2**63))),
        "count": rng.choice((*SIZES, 2**15 + 3, 10**5)),
    }


def partition_keys(rng: random.Random) -> dict:
    classes = rng.choice((1, 2, 5, 21))
    number = rng.choice((*SIZES, 70_000))
    generator = torch.Generator().manual_seed(rng.getrandbits(40))
    labels = torch.randint(classes, (number,), generator=generator)
    return {
        "labels": labels.to(rng.choice(LABELS)),
        "usable": torch.rand(number, generator=generator) < rng.choice((0.0, 0.5, 1.0)),
        "bits": torch.randint(-(2**63), 2**63 - 1, (number,), generator=generator),
        "num_classes": classes,
        "ignore_index": rng.choice((255, -1, 0, 2**40)),
    }


def finite_rows(rng: random.Random) -> dict:
    dims = rng.choice((1, 2, 3, 3, 4, 7))
    shape = [rng.choice((0, 1, 2, 3, 8, 17) if dims < 4 else (1, 2, 3)) for _ in range(dims)]
    maps, other = (rows(rng, shape[0], rng.choice(COLUMNS), *shape[1:]) for _ in range(2))
    return {
        "maps": maps,
        "other_maps": other if rng.random() < 0.7 else None,
        "confidence": rows(rng, *shape) if rng.random() < 0.7 else None,
    }


def leading_rows(rng: random.Random) -> dict:
    number, classes = rng.choice(SIZES), rng.choice(CLASSES)
    pixel_counts = offsets(rng, classes, number).diff()
    limits = counts(rng, classes, number)
    taken = int(torch.minimum(pixel_counts, limits).sum())
    return {
        "pixels": counts(rng, number, 10**9),
        "pixel_counts": pixel_counts,
        "limits": limits,
        "size": rng.randint(taken, number),
    }


def draw_negatives(rng: random.Random) -> dict:
    number, classes, draws = rng.choice(SIZES[1:]), rng.choice(CLASSES), rng.choice(SIZES)
    words = [rng.choice((0, 2**32 - 1, rng.getrandbits(62))) for _ in range(classes * draws)]
    return {
        "pixels": counts(rng, number, 10**9),
        "pixel_counts": offsets(rng, classes, number).diff(),
        "bits": torch.tensor(words, dtype=torch.int64).view(classes, draws),
    }


def class_table(rng: random.Random) -> dict:
    number = rng.choice(SIZES)
    return {
        "pixels": counts(rng, number, 10**9),
        "offsets": offsets(rng, rng.choice(CLASSES), number),
        "order": counts(rng, number, number - 1) if rng.random() < 0.7 else None,
        "width": rng.randint(0, number),
        "last": rng.random() < 0.5,
    }


def sum_rows(rng: random.Random) -> dict:
    classes, number, width = rng.choice(CLASSES), rng.choice(SIZES), rng.choice(SIZES)
    shared, in_order = rng.random() < 0.3, rng.random() < 0.3
    shape = (number,) if shared else (classes, number)
    width = width if number else 0
    indices = counts(rng, classes * width, max(0, number - 1)).view(classes, width)
    in_order = in_order and not shared
    return {
        "rows": rows(rng, *shape, rng.choice(COLUMNS)),
        "indices": None if in_order else indices,
        "row_counts": counts(rng, classes, number if in_order else width),
        "in_float64": rng.random() < 0.5,
    }


def gather_rows(rng: random.Random) -> dict:
    images, columns = (rng.choice((1, 1, 2, 3, 8, 17)) for _ in range(2))
    dims = rng.choice((1, 2, 2, 3, 6))
    sides = [rng.choice((1, 1, 2, 3, 8, 17) if dims < 3 else (1, 2, 3)) for _ in range(dims)]
    shape = [rng.choice((0, 1, 3, 70)) for _ in range(rng.randint(0, 2))]
    last = images * math.prod(sides) - 1
    pixels = counts(rng, torch.Size(shape).numel(), last).view(shape)
    return {"maps": rows(rng, images, columns, *sides), "indices": pixels}


def gather_rows_backward(rng: random.Random) -> dict:
    given = gather_rows(rng)
    maps, indices = given["maps"], given["indices"]
    dL_drows = rows(rng, *indices.shape, maps.shape[1], dtype=maps.dtype)
    return {"dL_drows": dL_drows, "indices": indices, "shape": list(maps.shape)}


def silhouette_sums(rng: random.Random) -> dict:
    number, columns = rng.choice(SIZES), rng.choice(COLUMNS)
    return {
        "features": rows(rng, number, columns),
        "offsets": offsets(rng, rng.choice(CLASSES), number),
        "rows": rows(rng, rng.choice(SIZES), columns) if rng.random() < 0.5 else None,
    }


SAMPLES = {
    make.__name__: make
    for make in (
        knn_topk,
        knn_topk_backward,
        knn_density,
        density_contrast,
        density_contrast_backward,
        memory_push,
        random_bits,
        partition_keys,
        finite_rows,
        leading_rows,
        draw_negatives,
        class_table,
        sum_rows,
        gather_rows,
        gather_rows_backward,
        silhouette_sums,
    )
}


def schema(op: str):
    return getattr(torch.ops.dgcl_ops, op).default._schema


def sample(op: str, rng: random.Random) -> dict:
    given = SAMPLES[op](rng)
    return {argument.name: given[argument.name] for argument in schema(op).arguments}
