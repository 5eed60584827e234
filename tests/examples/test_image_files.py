"""Image files: orientation, damage, size, pages, and the check of all files before training."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tqdm")
pytest.importorskip("PIL.Image")

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))

from PIL import Image, ImageOps
from semi_supervised import checks, images
from semi_supervised.images import Sample, read_image, read_label

PIXELS = np.zeros((24, 32, 3), np.uint8)
PIXELS[:12, :20] = 255  # no symmetry


def save(path, orientation, pixels=PIXELS):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, exif=exif)
    return path


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_and_labels_are_read_as_shown(tmp_path, suffix, orientation):
    image = save(tmp_path / f"image.{suffix}", orientation)
    shown = np.asarray(ImageOps.exif_transpose(Image.open(image)).convert("RGB"), np.float32) / 255
    assert np.abs(read_image(image).permute(1, 2, 0).numpy() - shown).max() < 0.2  # lossy formats
    expected = (shown[..., 0] > 0.5).astype(np.uint8)
    Image.fromarray(expected).save(tmp_path / "drawn.png")
    assert np.array_equal(read_label(Sample(image, tmp_path / "drawn.png")), expected)
    turned = save(tmp_path / "turned.png", orientation, PIXELS[..., 0] // 255)
    assert np.array_equal(read_label(Sample(image, turned)), expected)
    if orientation > 4:
        Image.fromarray(PIXELS[..., 0]).save(tmp_path / "stored.png")
        size = r"size 24 x 32" + ("" if suffix == "tif" else ", as shown with EXIF orientation")
        with pytest.raises(ValueError, match=size + r".*got 32 x 24"):
            read_label(Sample(image, tmp_path / "stored.png"))


def test_damaged_exif_does_not_matter(tmp_path):
    path = tmp_path / "image.jpg"
    Image.fromarray(PIXELS).save(path, exif=b"Exif\0\0not a header")
    assert read_image(path).shape == (3, 24, 32)


def test_grey_images_of_16_bits_turn_too(tmp_path):
    image = save(tmp_path / "image.png", 6, PIXELS[..., 0].astype(np.uint16) * 257)
    assert read_image(image).shape == (3, 32, 24)
    assert read_image(image)[0, 0, -1] == 1


@pytest.fixture
def photos(tmp_path):
    rng = np.random.default_rng(0)
    paths = [tmp_path / "photos" / f"{i}.{'jpg' if i % 2 else 'png'}" for i in range(6)]
    for path in paths:
        save(path, 1, rng.integers(0, 256, (64, 64, 3), dtype=np.uint8))
    return paths


def halve(path):
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


@pytest.mark.parametrize("index", [0, 1])  # PNG, JPEG
def test_a_damaged_image_is_found_and_named(photos, tmp_path, index):
    halve(photos[index])
    photos[4].write_bytes(b"")
    with pytest.raises(ValueError) as caught:
        checks.check_images(photos, tmp_path / "out")
    message = str(caught.value)
    assert f"cannot read {photos[index]} as an image" in message
    assert f"1 more images: cannot read {photos[4]} as an image" in message


def test_images_are_read_again_only_if_they_changed(photos, tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr(checks, "check_image", lambda path: read.append(path.name))
    out = tmp_path / "out"
    checks.check_images(photos, out)
    assert sorted(read) == [path.name for path in photos]
    read.clear()
    checks.check_images(photos, out)
    assert not read
    photos[2].touch()
    photos[3].write_bytes(photos[3].read_bytes() + b"\0")
    checks.check_images(photos, out)
    assert sorted(read) == ["2.png", "3.jpg"]
    read.clear()
    (out / "checked_images.json").write_text("[")
    checks.check_images(photos, out)
    assert len(read) == 6
    assert len(json.loads((out / "checked_images.json").read_text())) == 6


def test_runs_that_start_together_share_a_folder(photos, tmp_path, monkeypatch):
    replace = Path.replace

    def replace_after_another_run(part, path):
        monkeypatch.setattr(Path, "replace", replace)
        checks.check_images(photos, tmp_path)
        return part.replace(path)

    monkeypatch.setattr(Path, "replace", replace_after_another_run)
    checks.check_images(photos, tmp_path)
    assert len(checks.read_cache(tmp_path / "checked_images.json")) == 6


def test_damaged_images_are_not_remembered_as_sound(photos, tmp_path):
    halve(photos[1])
    for _ in range(2):
        with pytest.raises(ValueError, match=r"1\.jpg as an image"):
            checks.check_images(photos, tmp_path / "out")
    assert len(json.loads((tmp_path / "out" / "checked_images.json").read_text())) == 5
    photos[1].unlink()
    checks.check_images([path for path in photos if path.exists()], tmp_path / "out")


def test_each_rank_reads_its_part(photos, tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr(checks, "check_image", lambda path: read.append(path.name))
    for rank in range(2):
        monkeypatch.setattr(checks.distributed, "rank_and_world_size", lambda rank=rank: (rank, 2))
        checks.check_images(photos, tmp_path / "out")
        assert len(read) == 3 * (rank + 1)
    assert sorted(read) == [path.name for path in photos]
    monkeypatch.setattr(checks.distributed, "rank_and_world_size", lambda: (0, 1))
    checks.check_images(photos, tmp_path / "out")
    assert len(read) == 6


def test_an_image_above_pillows_limit_is_named(photos, monkeypatch):
    monkeypatch.setattr(images.Image, "MAX_IMAGE_PIXELS", 1000)
    for read in (read_image, images.check_image):
        with pytest.raises(ValueError, match=r"0\.png has more than 2,000 pixels, Pillow's limit"):
            read(photos[0])


def test_pages_of_one_size_are_a_volume(tmp_path):
    first, *others = (Image.fromarray(PIXELS[..., 0]) for _ in range(3))
    path = tmp_path / "stack.tif"
    first.save(path, save_all=True, append_images=others)
    for read in (read_image, images.check_image, lambda path: read_label(Sample(path, path))):
        with pytest.raises(
            ValueError, match=r"got 3 pages of the same size in .*volumes are out of scope"
        ):
            read(path)
    first.save(path, save_all=True, append_images=[first.resize((16, 12))])  # an overview
    images.check_image(path)
    assert read_image(path).shape == (3, 24, 32)
