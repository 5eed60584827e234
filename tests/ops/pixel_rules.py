"""The rules between arguments of the operators that choose pixels, see rules.py."""

import torch
from oracles import integers

RELATIONS = {
    "finite_rows": [
        (
            {"maps": torch.zeros(4)},
            "maps must have shape [B, D, *S] with 1 to 6 spatial dimensions, or [M, D], got [4]",
        ),
        (
            {"maps": torch.zeros(2, 3, 4, 1, 1, 1, 1, 1, 1)},
            "maps must have shape [B, D, *S] with 1 to 6 spatial dimensions, or [M, D], "
            "got [2, 3, 4, 1, 1, 1, 1, 1, 1]",
        ),
        (
            {"other_maps": torch.zeros(2, 7, 20)},
            "other_maps must have the shape of maps, [2, 3, 4, 5], except for the channels, got [2, 7, 20]",
        ),
        (
            {"maps": torch.zeros(1, 0, 1, 1).expand(2**32, 0, 2**16, 2**16)},
            f"maps must have fewer than 2^63 pixels, got [{2**32}, 0, {2**16}, {2**16}]",
        ),
        (
            {"other_maps": torch.zeros(2, 7, 5, 4)},
            "other_maps must have the shape of maps, [2, 3, 4, 5], except for the channels, got [2, 7, 5, 4]",
        ),
        (
            {"other_maps": torch.zeros(40, 7)},
            "other_maps must have the shape of maps, [2, 3, 4, 5], except for the channels, got [40, 7]",
        ),
        (
            {"confidence": torch.zeros(40)},
            "confidence must have shape [2, 4, 5], a number for each pixel of maps, got [40]",
        ),
    ],
    "leading_rows": [
        ({"size": -1}, "size must lie in [0, 6], the number of pixels, got -1"),
        ({"size": 7}, "size must lie in [0, 6], the number of pixels, got 7"),
        ({"size": 3}, "size must be at least the number of rows, 4, got 3"),
        ({"limits": integers([9, 9])}, "limits must have shape [C], got [2]"),
        ({"limits": integers([9, 9, -2])}, f"limits must lie in [0, {2**63 - 1}], got -2"),
        (
            {"pixel_counts": integers([2, 2, 3])},
            "pixel_counts must sum to at most 6, the number of pixels, got [2, 2, 3]",
        ),
    ],
    "sum_rows": [
        ({"rows": torch.zeros(2, 7, 5)}, "indices must have shape [C, P], got [3, 4]"),
        ({"indices": integers([[0, 7, 9, 9]] * 3)}, "indices must lie in [0, 7), got 7"),
        ({"indices": integers([[-1, 0, 0, 0]] * 3)}, "indices must lie in [0, 7), got -1"),
    ],
    "random_bits": [
        ({"rng_state": integers([1, 2, 3])}, "rng_state must have shape [2], got [3]"),
        ({"count": -1}, "count must be at least 0, got -1"),
        ({"count": 2**32}, f"count must be less than 2^32, got {2**32}"),
    ],
    "partition_keys": [
        (
            {"usable": torch.ones(5, dtype=torch.bool)},
            "usable must have shape [R] with the labels' R, got [5]",
        ),
        ({"bits": integers([1])}, "bits must have shape [R] with the labels' R, got [1]"),
    ],
    "draw_negatives": [
        ({"pixels": integers([])}, "pixels must have at least one entry, got [0]"),
        (
            {"pixels": integers([0]).expand(2**31)},
            f"pixels must have fewer than 2^31 entries, got [{2**31}]",
        ),
        ({"bits": integers([[1, 2]])}, "bits must have shape [C, N], got [1, 2]"),
        (
            {"pixel_counts": integers([2, 2, 3])},
            "pixel_counts must sum to at most 6, the number of pixels, got [2, 2, 3]",
        ),
    ],
    "class_table": [
        ({"width": -1}, "width must lie in [0, 6], the number of pixels, got -1"),
        ({"width": 7}, "width must lie in [0, 6], the number of pixels, got 7"),
        ({"offsets": integers([])}, "offsets must have shape [C + 1], got [0]"),
        ({"offsets": integers([0, 3, 2, 6])}, "offsets must not decrease, got 3 before 2"),
        ({"order": integers([0, 1])}, "order must have shape [N], got [2]"),
        ({"order": integers([6, 0, 1, 2, 3, 4])}, "order must lie in [0, 6), got 6"),
        ({"order": integers([-1, 0, 1, 2, 3, 4])}, "order must lie in [0, 6), got -1"),
    ],
}
