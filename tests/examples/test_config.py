"""Configurations: errors name wrong keys, values and files; values parse as people write them."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

for package in ("scipy", "sklearn", "tqdm", "torchmetrics", "yaml", "PIL"):
    pytest.importorskip(package)

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES))

from semi_supervised import config  # noqa: E402
from semi_supervised.network import SegmentationNetwork  # noqa: E402
from semi_supervised.settings import SMALL, contrast_loss  # noqa: E402
from test_paper_trainer import CONFIGS, run  # noqa: E402


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["learning_rat=1"],
            r"unknown key 'learning_rat' of dataset folder.*similar keys: learning_rate",
        ),
        (["bfloat16=true"], r"unknown key 'bfloat16'.*; it is now precision=bfloat16 or precision"),
        (["sbd=x"], r"unknown key 'sbd' of dataset folder and network small"),
        (
            ["contrast.temprature=1"],
            r"unknown key 'temprature' of contrast; similar keys: temperature",
        ),
        (["steps"], r"an override must be key=value, got 'steps'"),
        (["steps=["], r"cannot read the value '\[' as YAML"),
        (["dataset=ade"], r"dataset must be one of folder, voc, cityscapes, scenes, got 'ade'"),
        (["network=unet"], r"network must be one of small, .*, got 'unet'"),
        (["dataset=voc"], r"dataset voc needs the key data"),
        (["data=x", "report_every=0"], r"report_every must be at least 1, got 0"),
        (["data=x", "epochs=few"], r"epochs must be of type int \| None, got 'few'"),
        (["data=null"], r"data must be of type Path, got None"),
        (["data=x", "crop=32"], r"crop must be of type tuple\[int, int\], got 32"),
        (["data=x", "crop=[32.5, 32]"], r"crop must be of type .*, got \[32\.5, 32\]"),
        (["data=x", "scale=[a, b]"], r"scale must be of type tuple\[float, float\], got \['a'"),
        (["data=x", "num_classes=true"], r"num_classes must be of type int \| None, got True"),
        (["data=x", "widths=8"], r"widths must be of type tuple\[int, \.\.\.\], got 8"),
        (["dataset=[folder]"], r"dataset must be one of folder, .*, got \['folder'\]"),
        (["data=x", "contrast=3"], r"contrast must hold keys with values, got 3"),
        (["data=x", "contrast.num_classes=3"], r"unknown key 'num_classes' of contrast"),
        (["data=x", "contrast.device=cuda"], r"unknown key 'device' of contrast"),
    ],
)
def test_wrong_keys_are_named(overrides, message):
    with pytest.raises(ValueError, match=message):
        config.Config(CONFIGS / "folder.yaml", overrides)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["epochs=2"], r"steps and epochs exclude each other, got steps=800"),
        (["epochs=2", "steps=null", "warm_up=1"], r"warm_up and warm_up_epochs exclude each other"),
        (["epochs=2", "steps=null", "epoch_steps=3"], r"epoch_steps and epochs exclude each other"),
        (["steps=0"], r"steps and batch must be at least 1, got 0 and 4"),
        (["batch=0"], r"steps and batch must be at least 1, got 800 and 0"),
        (["steps=many"], r"steps must be of type int, got 'many'"),
        (["seed=x"], r"seed must be of type int, got 'x'"),
        (["batch=many"], r"batch must be of type int, got 'many'"),
        (["precision=half"], r"precision must be one of .*'float16'\), got 'half'"),
        (["precision=16"], r"precision must be of type str, got 16"),
        (["ema_from=warm_up", "ema_maximum=1.5"], r"ema_maximum must lie in \[0, 1\], got 1\.5"),
        (["cutmix=.nan"], r"cutmix must lie in \[0, 1\], got nan"),
        (["unlabelled_weight=.nan"], r"unlabelled_weight must be finite and not negative, got nan"),
        (["head_factor=-1"], r"head_factor must be finite and not negative, got -1"),
        (["jitter=.inf"], r"jitter must be finite and not negative, got inf"),
        (["epoch_steps=0"], r"epoch_steps must be at least 1, got 0"),
        (
            ["teacher_mode=eval", "teacher_averages=own"],
            r"teacher_averages must be 'student' with teacher_mode 'eval', got 'own'",
        ),
        (["steps=2", "warm_up=true"], r"warm_up must be of type int, got True"),
        (["warm_up_epochs=1"], r"warm_up_epochs needs epochs, got only 1"),
        *(
            (["ohem=" + text], r"ohem must hold a probability above 0 and a number of pixels")
            for text in (
                "[]",
                "[0.7]",
                "[0, 9]",
                "[1.1, 9]",
                "[0.7, 0]",
                "[0.7, 1e5]",
                "[0.7, true]",
            )
        ),
    ],
)
def test_wrong_values_are_named(overrides, message):
    chosen = config.Config(CONFIGS / "folder.yaml", overrides, data="x")
    with pytest.raises(ValueError, match=message):
        chosen.make_settings(100, 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", r"cannot read .*mine\.yaml as YAML"),
        ("- a", r"must hold keys with values, got list"),
        ("base: nowhere.yaml", r"there is no configuration .*nowhere\.yaml"),
        ("base: mine.yaml", r"mine\.yaml must not be its own base"),
        ("base: [folder.yaml]", r"base of .*mine\.yaml must be strings, got \['folder\.yaml'\]"),
        ("base: 0", r"base of .*mine\.yaml must be strings, got 0"),
        ("on: 1", r"keys and base of .*mine\.yaml must be strings, got True"),
    ],
)
def test_wrong_files_are_named(tmp_path, text, message):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        config.Config(path)


@pytest.mark.parametrize(
    ("temperature", "message"),
    [
        ("hot", "must be a number, got 'hot'"),
        (".nan", "must be positive and finite, got nan"),
        ("1e-300", "must be at least 1e-06, got 1e-300"),
        ("-1", "must be positive and finite, got -1"),
    ],
)
def test_a_wrong_value_of_the_contrast_is_named(temperature, message):
    data = SimpleNamespace(num_classes=3, ignore_index=255)
    override = [f"contrast.temperature={temperature}"]
    settings = config.Config(CONFIGS / "folder.yaml", override, data="x").make_settings(100, 1)
    with pytest.raises(ValueError, match=rf"temperature {message}"):
        contrast_loss(settings, data, 8, ranks=1)


@pytest.mark.parametrize("stride", [1, 3, 8])
def test_features_have_the_stride_of_a_stage(stride):
    with pytest.raises(ValueError, match=rf"must be one of \[2, 4\] with 2 .*, got {stride}"):
        SegmentationNetwork(3, widths=(8, 16), feature_stride=stride)


@pytest.mark.parametrize("weight", ["nan", "inf"])
def test_a_weight_is_finite(weight, tmp_path, capsys):
    with pytest.raises(SystemExit):
        run(
            "folder.yaml",
            tmp_path,
            "data=x",
            options=["--seed", 0, "--contrast-weight", weight, "--"],
        )
    assert (
        f"contrast_weight must be finite and not negative, got [{weight}]"
        in capsys.readouterr().err
    )


def test_a_missing_package_is_named_with_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch", None)
    voc = config.Config(CONFIGS / "voc_1_16.yaml", ["network=deeplabv3plus"], data="x")
    with pytest.raises(ImportError, match="pip install segmentation-models-pytorch torchvision"):
        voc.make_network(21)


def test_null_takes_a_key_of_the_base_away():
    without = "encoder=null output_stride=null atrous_rates=null epochs=null warm_up_epochs=null"
    overrides = ["network=small", "steps=7", *without.split()]
    chosen = config.Config(CONFIGS / "voc_1_16.yaml", overrides, data="x")
    assert chosen.make_settings(100, 1).steps == 7
    assert type(chosen.make_network(21)).__name__ == "SegmentationNetwork"


def test_values_are_read_as_people_write_them():
    texts = {"1e-3": 1e-3, "3": 3, "1/8": "1/8", "[1,2]": [1, 2], "true": True, "null": None}
    assert {text: config.value_of(text) for text in texts} == texts


def test_an_argument_of_the_contrast_is_added_to_those_there_are():
    override = ["contrast.exclude_classes=[0]"]
    chosen = config.Config(CONFIGS / "folder.yaml", override, data="x").make_settings(100, 1)
    assert chosen.contrast == {**SMALL, "exclude_classes": [0]}
    scenes = config.Config(CONFIGS / "scenes.yaml").make_settings(100, 1)
    assert scenes.contrast == {**SMALL, "exclude_classes": [0]}  # a file adds to them as well
    voc = config.Config(CONFIGS / "voc_1_2.yaml", override, data="x").make_settings(100, 1)
    assert voc.contrast == {"paper": "voc", "exclude_classes": [0]}


def test_a_warm_up_of_a_third_by_default():
    chosen = config.Config(CONFIGS / "folder.yaml", ["steps=30"], data="x")
    assert chosen.make_settings(100, 1).warm_up == 10
