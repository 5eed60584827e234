"""knn_topk on views: strided rows, groups, offsets and counts give the same results as contiguous ones."""

import math

import pytest
import torch
from oracles import assert_close, random_rows
from test_knn_topk import METRICS, grouped

NAN = math.nan


def layouts(rows):
    """The same numbers as every second row of a slice of columns, as a transposed matrix, and as every third column."""
    wide = torch.full(
        (rows.shape[0] * 2, rows.shape[1] + 3), NAN, dtype=rows.dtype, device=rows.device
    )
    wide[::2, 1:-2] = rows
    transposed = rows.T.contiguous().T
    every_third = torch.full(
        (rows.shape[0], rows.shape[1] * 3), NAN, dtype=rows.dtype, device=rows.device
    )
    every_third[:, ::3] = rows
    return [wide[::2, 1:-2], transposed, every_third[:, ::3]]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_strided_inputs_equal_contiguous_ones(implementation, device, dtype):
    queries = random_rows(7, 6, dtype=dtype, seed=1, device=device)
    bank = random_rows(40, 6, dtype=dtype, seed=2, device=device)
    for metric in METRICS:
        want_values, want_indices = implementation.knn_topk(queries, bank, 5, metric=metric)
        for strided_queries, strided_bank in zip(layouts(queries), layouts(bank), strict=True):
            assert torch.equal(strided_bank, bank)
            assert not strided_bank.is_contiguous()
            values, indices = implementation.knn_topk(
                strided_queries, strided_bank, 5, metric=metric
            )
            assert_close(values, want_values.double(), 10.0)
            assert torch.equal(indices, want_indices)


def test_strided_groups(implementation, device):
    case = grouped(device)
    queries, bank = case.pop("queries"), case.pop("bank")
    want = implementation.knn_topk(queries, bank, 5, **case)
    by_rows = bank.transpose(0, 1).contiguous().transpose(0, 1)
    wide = torch.full((4, 40, 9), NAN, device=device)
    wide[:, 3:39:2, 1:8] = bank
    for view in (by_rows, wide[:, 3:39:2, 1:8]):
        assert torch.equal(view, bank)
        assert not view.is_contiguous()
        values, indices = implementation.knn_topk(queries, view, 5, **case)
        assert_close(values, want[0].double())
        assert torch.equal(indices, want[1])


def test_strided_offsets_and_counts(implementation, device):
    case = grouped(device)
    queries, bank = case.pop("queries"), case.pop("bank")
    want = implementation.knn_topk(queries, bank, 5, **case)
    every_second = {n: torch.stack([t, t - 99], dim=1)[:, 0] for n, t in case.items()}
    assert not any(t.is_contiguous() for t in every_second.values())
    got = implementation.knn_topk(queries, bank, 5, **every_second)
    assert torch.equal(got[0], want[0])
    assert torch.equal(got[1], want[1])


def test_an_expanded_bank(implementation, device):
    row = random_rows(1, 5, seed=2, device=device)
    _, indices = implementation.knn_topk(row, row.expand(50, 5), 4)
    assert indices.tolist() == [[0, 1, 2, 3]]


def test_inputs_are_left_alone(implementation, device):
    case = grouped(device)
    copies = {name: tensor.clone() for name, tensor in case.items()}
    queries, bank = case["queries"], case["bank"]
    offsets = {n: case[n] for n in ("query_offsets", "bank_counts")}
    implementation.knn_topk(queries, bank, 5, **offsets)
    assert all(torch.equal(case[name], copies[name]) for name in case)
