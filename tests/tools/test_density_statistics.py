"""density_statistics against numpy, and its edges and errors."""

import math

import numpy as np
import pytest
import torch

from dgcl_ops import metrics as M


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_density_statistics_equal_numpy(dtype):
    generator = torch.Generator().manual_seed(0)
    density = torch.rand(3, 17, 11, generator=generator).to(dtype)
    labels = torch.randint(0, 6, density.shape, generator=generator)
    labels[labels == 4] = 255  # class 4 is empty
    density[0, 0, :4] = math.nan
    levels = (0.1, 0.5, 1 / 3)
    got = M.density_statistics(density, labels, 6, quantiles=levels)
    for c in range(6):
        values = density[(labels == c) & ~density.isnan()].double().numpy()
        assert got["count"][c] == len(values)
        if c == 4:
            assert all(got[key][..., c].isnan().all() for key in ("mean", "min", "quantiles"))
            continue
        expected = [values.mean(), values.min(), values.max(), *np.quantile(values, levels)]
        mine = [got["mean"][c], got["min"][c], got["max"][c], *got["quantiles"][:, c]]
        np.testing.assert_allclose([float(v) for v in mine], expected, rtol=1e-12)


def test_density_statistics_edges():
    got = M.density_statistics(torch.zeros(0), torch.zeros(0, dtype=torch.int64), 3)
    assert got["count"].tolist() == [0, 0, 0]
    assert got["quantiles"].shape == (3, 3)
    assert got["quantiles"].isnan().all()
    got = M.density_statistics(torch.tensor([0.5, 1.0]), torch.tensor([255, 2]), 3, quantiles=())
    assert got["count"].tolist() == [0, 0, 1]
    assert got["min"][2] == got["max"][2] == got["mean"][2] == 1
    assert got["quantiles"].shape == (0, 3)
    got = M.density_statistics(torch.ones(2), torch.tensor([1, 1]), 2, ignore_index=1)
    assert got["count"].tolist() == [0, 0]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"density": torch.zeros(2).long()}, TypeError, "density must be a floating point tensor"),
        ({"labels": torch.zeros(2)}, TypeError, "labels must be an integer tensor"),
        (
            {"labels": torch.zeros(3).long()},
            ValueError,
            r"labels must have shape \[2\], the shape of density, got \[3\]",
        ),
        (
            {"labels": torch.tensor([1, 37])},
            ValueError,
            r"\[0, 2\) or equal ignore_index 255, got 37",
        ),
        ({"labels": torch.tensor([1, -1]), "ignore_index": None}, ValueError, r"\[0, 2\), got -1"),
        ({"num_classes": 0}, ValueError, "num_classes must be positive, got 0"),
        ({"quantiles": (0.5, 1.5)}, ValueError, r"quantiles must lie in \[0, 1\], got \(0.5, 1.5"),
    ],
)
def test_density_statistics_errors(change, error, message):
    arguments = {"density": torch.zeros(2), "labels": torch.tensor([0, 1]), "num_classes": 2}
    with pytest.raises(error, match=f"density_statistics: .*{message}"):
        M.density_statistics(**(arguments | change))
