"""The demo, from the command line to the page."""

import base64
import json
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
pytest.importorskip("PIL.Image")

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES))

import demo  # noqa: E402
from semi_supervised import runs, summary  # noqa: E402

TINY = "--seeds 0 3 --steps 10 --warm-up 3 --labelled 4 --unlabelled 6 --evaluated 8"
TINY_DEMO = TINY.split(" ")


pytestmark = pytest.mark.long  # `make demo` itself


@pytest.fixture(scope="module")
def demo_folder(tmp_path_factory):
    """Runs a tiny demo as a user would, with two parallel processes."""
    out = tmp_path_factory.mktemp("demo")
    command = [sys.executable, EXAMPLES / "demo.py", "--out", out, "--workers", "2", *TINY_DEMO]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (out / "printed.txt").write_text(done.stdout)
    return out


class Sources(HTMLParser):
    def __init__(self):
        super().__init__()
        self.values = []

    def handle_starttag(self, tag, attributes):
        self.values += [value for name, value in attributes if name in ("src", "srcset", "href")]


def test_demo_page_is_whole(demo_folder):
    text = (demo_folder / "index.html").read_text()
    assert "{{" not in text
    sources = Sources()
    sources.feed(text)
    assert len(sources.values) == 7 * 6 + 1 + 4  # tiles, colour bar, two figures for light and dark
    for source in sources.values:
        kind, _, data = source.partition(",")
        assert kind == "data:image/png;base64"  # the page is self-contained
        assert base64.b64decode(data).startswith(b"\x89PNG")
    for expected in ("self-training", "Davies-Bouldin", "seed 3", "--seeds 0 3", torch.__version__):
        assert expected in text
    for picture in ("overview.png", "before_after.png", "density.png"):
        assert (demo_folder / picture).stat().st_size < 300_000


def test_demo_prints_and_saves_the_same_table(demo_folder):
    printed = (demo_folder / "printed.txt").read_text()
    result = json.loads((demo_folder / "metrics.json").read_text())
    assert {(run["method"], run["seed"]) for run in result["runs"]} == {
        (method, seed) for method in runs.METHODS for seed in (0, 3)
    }
    for method, values in result["methods"].items():
        row = next(line for line in printed.splitlines() if line.startswith(method))
        for metric, *_ in summary.METRICS:
            assert summary.number(metric, values[metric]) in row
    score = {(run["method"], run["seed"]): run["miou"] for run in result["runs"]}
    for seed, difference in zip((0, 3), result["paired"]["miou"]["differences"], strict=True):
        assert difference == score["density contrast", seed] - score["self-training", seed]
    assert result["facts"]["cores"] >= 1


def test_demo_runs_are_matched(demo_folder):
    result = json.loads((demo_folder / "metrics.json").read_text())
    for steps in result["matched"].values():
        assert steps["before the first contrast"] < 10  # there was a contrast
        assert steps["identical"] == steps["before the first contrast"] + 1


def test_demo_in_one_process_gives_the_same(demo_folder, tmp_path):
    demo.main(["--out", str(tmp_path), "--workers", "1", *TINY_DEMO])
    one, two = (json.loads((f / "metrics.json").read_text()) for f in (tmp_path, demo_folder))
    assert one["paired"] == two["paired"]


def test_demo_refuses_bad_numbers(capsys):
    for bad in (["--steps", "0"], ["--warm-up", "700"], ["--seeds", "1", "1"]):
        with pytest.raises(SystemExit):
            demo.main(bad)
        assert bad[0] in capsys.readouterr().err
