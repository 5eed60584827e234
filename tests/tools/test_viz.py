"""Every picture is drawn, arguments must fit, and nothing else needs matplotlib."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from loss_oracle import C, D, filled, loss_of

from dgcl_ops import viz
from dgcl_ops.viz import _figures

NAMES = ["ground", "one", "two", "three", "four"]


def drawn(figure, tmp_path) -> None:
    figure.savefig(tmp_path / "drawn.png")
    assert (tmp_path / "drawn.png").stat().st_size > 1_000


def test_a_color_for_each_class_and_grey_for_none():
    np = pytest.importorskip("numpy")
    pytest.importorskip("matplotlib")
    colors = viz.class_colors(21)
    assert colors.shape == (22, 3)
    assert len(np.unique(colors, axis=0)) == 22
    labels = torch.tensor([[0, 20, 255, -1]])
    image = viz.class_image(labels, 21)
    assert np.array_equal(image[0], colors[[0, 20, 21, 21]])
    assert labels.tolist() == [[0, 20, 255, -1]]  # a copy was coloured


def test_density_image_is_grey_without_a_density():
    np = pytest.importorskip("numpy")
    pytest.importorskip("matplotlib")
    density = torch.tensor([[0.0, 0.5, 0.9]])
    image = viz.density_image(torch.ones(3, 1, 3), density)
    assert np.ptp(image[0, 0]) == 0
    assert np.ptp(image[0, 1]) > 0.1
    assert image[0, 2].sum() > image[0, 1].sum()  # denser is brighter
    assert viz.density_limits(density, density) == pytest.approx((0.5, 0.9))
    assert viz.density_limits(torch.zeros(2, 2)) == (0.0, 1.0)
    low, high = viz.density_limits(torch.ones(2, 2))
    assert low < high


def test_panels(tmp_path):
    pytest.importorskip("matplotlib")
    images, labels = torch.rand(2, 3, 8, 10), torch.randint(0, 3, (2, 8, 10))
    labels[0, 0] = 255
    maps = {"label": labels, "before": labels % 2, "after": labels}
    figure = viz.plot_panels(images, maps, {"density": torch.rand(2, 8, 10)}, NAMES)
    titles = [axes.get_title() for axes in figure.axes]
    assert titles[:5] == ["image", "label", "before", "after", "density"]
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["ground", "one", "two", "no label"]  # only visible classes
    drawn(figure, tmp_path)
    drawn(viz.plot_panels(images[:1], {"label": labels[:1]}, {}, NAMES), tmp_path)


def test_features(tmp_path):
    pytest.importorskip("matplotlib")
    features, labels = torch.randn(60, D), torch.randint(0, C, (60,))
    labels[:3] = 255
    axes = viz.plot_features(features, labels, NAMES)
    legend = [text.get_text() for text in axes.figure.legends[0].get_texts()]
    assert legend == NAMES
    marks = torch.arange(60) % 6 == 0
    axes = viz.plot_features(
        features, labels, NAMES, points=features[:, :2], anchors=marks & (labels < 9), keys=marks & (labels < 2)
    )  # fmt: skip
    assert [text.get_text() for text in axes.figure.legends[0].get_texts()][-2:] == [
        "anchors",
        "keys",
    ]
    drawn(axes.figure, tmp_path)


def test_rows_with_a_nan_and_marks_without_a_class_are_left_out():
    features, labels = torch.randn(12, 4), torch.arange(12) % 3
    features, labels = (
        torch.cat((features, features[:2])),
        torch.cat((labels, torch.tensor([0, 255]))),
    )
    features[12, 1] = torch.nan
    marks = torch.ones(14, dtype=torch.bool)
    axes = viz.plot_features(features, labels, ["a", "b", "c"], anchors=marks, keys=marks)
    drawn = axes.collections[0].get_offsets()
    assert drawn.shape[0] == 5
    assert drawn.mask[-1].all()
    assert axes.collections[-2].get_offsets().shape[0] == 13  # the keys; the legend's is the last


def test_limits_do_not_see_what_is_not_finite():
    density = torch.tensor([0.0, 0.2, 0.4, 0.6])
    spoilt = torch.cat((density, torch.tensor([torch.nan, torch.inf])))
    assert viz.density_limits(spoilt) == viz.density_limits(density)


def test_principal_components_are_sorted_and_repeat():
    features = torch.randn(50, 4) * torch.tensor([0.1, 5.0, 1.0, 0.1])
    points = _figures._principal_components(features)
    assert torch.equal(points, _figures._principal_components(features))
    assert points[:, 0].var() > points[:, 1].var() > 0.5
    torch.testing.assert_close(points[:, 0].var(), features[:, 1].double().var(), rtol=0.02, atol=0)
    assert torch.dot(points[:, 0], features[:, 1].double()) > 0


def test_density_histograms(tmp_path):
    pytest.importorskip("matplotlib")
    module = filled(loss_of(), steps=1, counts=(10, 10, 2, 0, 10))
    snapshots = {"step 1": viz.bank_densities(module.bank)}
    filled(module, counts=(10, 10, 10, 0, 10))
    snapshots["step 4"] = viz.bank_densities(module.bank)
    figure = viz.plot_density_histograms(snapshots, NAMES)
    assert [axes.get_title() for axes in figure.axes] == ["ground", "one", "two", "four"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["step 1", "step 4"]
    drawn(figure, tmp_path)
    with pytest.raises(ValueError, match="snapshots must hold a density, got 1 without any"):
        viz.plot_density_histograms({"none": torch.full((C, 9), torch.nan)}, NAMES)


@pytest.mark.parametrize(
    ("classes", "densities", "message"),
    [
        ({"label": torch.zeros(2, 4, 5)}, {}, "label must have shape [2, 4, 4], got [2, 4, 5]"),
        ({}, {"dense": torch.zeros(1, 4, 4)}, "dense must have shape [2, 4, 4], got [1, 4, 4]"),
    ],
)
def test_panels_must_fit(classes, densities, message):
    pytest.importorskip("matplotlib")
    with pytest.raises(ValueError, match=re.escape(f"viz.plot_panels: {message}")):
        viz.plot_panels(torch.zeros(2, 3, 4, 4), classes, densities, ["a"])


def test_panels_refuse_normalised_images():
    pytest.importorskip("matplotlib")
    with pytest.raises(ValueError, match=r"images must lie in \[0, 1\] .*, got -2\.00 to -2\.00"):
        viz.plot_panels(torch.full((1, 3, 4, 4), -2.0), {"label": torch.zeros(1, 4, 4)}, {}, ["a"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": torch.zeros(5)}, "labels must have shape [6], got [5]"),
        ({"points": torch.zeros(6, 3)}, "points must have shape [6, 2], got [6, 3]"),
        ({"keys": torch.zeros(6, 1)}, "keys must have shape [6], got [6, 1]"),
    ],
)
def test_features_must_fit(change, message):
    pytest.importorskip("matplotlib")
    given = {
        "features": torch.zeros(6, 4),
        "labels": torch.zeros(6),
        "class_names": ["a"],
        **change,
    }
    with pytest.raises(ValueError, match=re.escape(f"viz.plot_features: {message}")):
        viz.plot_features(**given)


def test_maps_and_snapshots_must_fit():
    bank = loss_of().bank
    with pytest.raises(ValueError, match=r"density_map: labels must have shape \[1, 4, 4\], got"):
        viz.density_map(bank, torch.zeros(1, D, 4, 4), torch.zeros(1, 8, 8).long(), (8, 8))
    with pytest.raises(ValueError, match=r"feature_density: labels must have shape \[3\], got"):
        viz.feature_density(bank, torch.zeros(3, D), torch.zeros(2).long())
    pytest.importorskip("matplotlib")
    with pytest.raises(ValueError, match=r"histograms: now must have shape \[5, 9\], got \[4, 9\]"):
        viz.plot_density_histograms({"now": torch.zeros(4, 9)}, NAMES)


def test_the_page_draws_three_pictures(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    page = Path(__file__).resolve().parents[2] / "docs" / "guide" / "pictures.md"
    if not page.exists():
        pytest.skip("needs docs/, which an installed copy of the tests lacks")
    names = {}
    monkeypatch.chdir(tmp_path)
    for block in re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE):
        exec(block, names)
    assert {path.name for path in tmp_path.iterdir()} == {
        "panels.png",
        "features.png",
        "density.png",
    }


# ---- matplotlib -------------------------------------------------------------------------------------

WITHOUT = """
import sys
sys.modules["matplotlib"] = None  # as if it were not installed
import dgcl_ops, torch
assert "dgcl_ops.viz" not in sys.modules
from dgcl_ops import viz
from dgcl_ops.viz import _figures
viz.bank_densities(dgcl_ops.MemoryBank(2, 3, capacity=4))
maps = torch.zeros(1, 2, 2)
for function, arguments in {
    "class_colors": (3,),
    "density_image": (torch.zeros(3, 2, 2), maps[0]),
    "plot_panels": (torch.zeros(1, 3, 2, 2), {"label": maps}, {}, ["a"]),
    "plot_features": (torch.zeros(4, 3), torch.zeros(4), ["a"]),
    "plot_density_histograms": ({"now": torch.zeros(1, 4)}, ["a"]),
}.items():
    try:
        getattr(viz, function)(*arguments)
    except ImportError as error:
        print(error)
"""


def test_without_matplotlib_the_error_says_what_to_install():
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    functions = (
        "class_colors",
        "density_image",
        "plot_panels",
        "plot_features",
        "plot_density_histograms",
    )
    assert done.stdout.splitlines() == [
        f'viz.{name} needs matplotlib: pip install "dgcl-ops[examples]"' for name in functions
    ]


def test_importing_the_package_imports_no_matplotlib():
    code = "import sys, dgcl_ops; print('matplotlib' in sys.modules, 'dgcl_ops.viz' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False False\n"
