"""A folder of images and labels. All of them are checked before the first step, and read again during training."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from semi_supervised.augment import BORDER_COLOURS, SCALE_DISTRIBUTIONS, random_crop
from semi_supervised.images import Sample, read_image, read_label
from semi_supervised.label_values import LABELS, NO_CLASS, count_classes, label_rule
from semi_supervised.layouts import find_splits
from semi_supervised.listing import files, list_images
from semi_supervised.splits import choose


class FolderData:
    """Labelled and unlabelled training images, and labelled images for evaluation.

    Args:
        data: folder with images/ and labels/, or with train/, val/, test/ and both in each, or in another layout of
            `layouts.LAYOUTS`. val or test may be missing. A label is a PNG or TIFF with its image's name and one
            channel: a class or `ignore_index` in each pixel.
        labelled: training images that are used with their label: a number "46", a fraction "0.125" or "1/8", or a text
            file that lists them, see `splits.listed`.
        crop: height and width of the training windows.
        seed: seed of the choice of the labelled images.
        num_classes: C. None: one more than the largest label.
        ignore_index: label of pixels without a class. If it is 0, the classes are the labels from 1 on.
        label_values: the label of class 0, of class 1 and so on: [0, 255] for masks of 0 and 255. None: 0, 1, ...
        colours: a file with the colours of the classes, if labels are stored as colours. See
            `label_values.read_colours`.
        unlabelled: another folder of images without labels.
        mirror: whether images may be mirrored.
        scale: limits of the magnification.
        scale_distribution: "uniform", or "balanced": below 1 half of the time. See `augment.draw_scale`.
        pad: whether an image smaller than the window gets a border without labels. Otherwise the window shrinks.
        border_colour: "grey", or "mean": the mean colour of ImageNet.
        shown_in: the labelled images are redrawn until each class occurs in at least this many of them. See
            `splits.draw_order`.

    Attributes:
        pixels: [C], labelled training pixels of each class.
        images: [C], labelled training images that show each class.
        ignore_index: label of pixels without a class in the returned labels. The files may use another value, if their
            values are not the classes.
        val: samples for validation.
        test: samples for the test. Equal to `val` if there is only one such split.

    Raises:
        FileNotFoundError: If a folder or a label is missing.
        ValueError: If a label does not fit its image or holds an invalid class, or there are too few images.
    """

    def __init__(
        self,
        data: Path,
        *,
        labelled: str | int | float,
        crop: tuple[int, int],
        seed: int,
        num_classes: int | None = None,
        ignore_index: int = 255,
        label_values: tuple[int, ...] | None = None,
        colours: Path | None = None,
        unlabelled: Path | None = None,
        mirror: bool = True,
        scale: tuple[float, float] = (0.8, 1.4),
        scale_distribution: str = "uniform",
        pad: bool = False,
        border_colour: str = "grey",
        shown_in: int = 0,
    ):
        if not 1 <= len(crop) <= 2 or min(crop) < 16:
            raise ValueError(f"crop must be a height and a width of at least 16, got {list(crop)}")
        if len(scale) != 2 or not 0 < scale[0] <= scale[1]:
            raise ValueError(
                f"scale must be two limits above 0, the lower one first, got {list(scale)}"
            )
        for name, value, choices in (
            ("scale_distribution", scale_distribution, SCALE_DISTRIBUTIONS),
            ("border_colour", border_colour, BORDER_COLOURS),
        ):
            if value not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
        if scale_distribution == "balanced" and not scale[0] <= 1 <= scale[1]:
            raise ValueError(
                f"scale must include 1 with scale_distribution balanced, got {list(scale)}"
            )
        if not 0 <= ignore_index < LABELS:
            raise ValueError(f"ignore_index must lie in [0, {LABELS}), got {ignore_index}")
        self.values = label_rule(label_values, colours, ignore_index, num_classes)
        if self.values:
            ignore_index = NO_CLASS
        self.crop, self.ignore_index, self.mirror = (crop[0], crop[-1]), ignore_index, mirror
        self.scale, self.scale_distribution = tuple(scale), scale_distribution
        self.pad, self.border_colour = pad, border_colour
        if not Path(data).is_dir():
            raise FileNotFoundError(f"data: there is no folder {data}")
        self.data = Path(data)
        self.splits = splits = {
            split: [sample._replace(values=self.values) for sample in samples]
            for split, samples in self.find_splits(self.data).items()
        }
        train = splits["train"]
        chosen = choose(labelled, train, seed, shown_in, ignore_index)
        self.labelled_samples, self.unlabelled_images = chosen
        if unlabelled is not None:
            further = list_images(Path(unlabelled))
            held_out = {
                sample.image.resolve()
                for split, samples in splits.items()
                if split != "train"
                for sample in samples
            }
            for image in further:
                if image.resolve() in held_out:
                    raise ValueError(f"unlabelled must not hold evaluation images, got {image}")
            self.unlabelled_images += further
        if not self.unlabelled_images:
            raise ValueError(
                f"labelled must leave unlabelled images, got {labelled} of {len(train)}; "
                "or pass a folder with more images, unlabelled=DIR"
            )
        self.test = splits.get("test") or splits["val"]
        self.val = splits.get("val") or self.test
        self.pixels, self.images = self._check_labels(num_classes)
        self.num_classes = len(self.pixels)

    def _check_labels(self, num_classes: int | None) -> np.ndarray:
        """Reads every label in use. Returns the labelled training pixels and images of each class, [2, C]."""
        pixels, images, seen = np.zeros((3, LABELS), dtype=np.int64)
        where: dict[int, Path] = {}  # for each largest label, a file with it
        labelled = set(self.labelled_samples)
        for sample in dict.fromkeys([*self.labelled_samples, *self.val, *self.test]):
            counts = np.bincount(read_label(sample).ravel())
            seen[: len(counts)] += counts
            if sample in labelled:
                pixels[: len(counts)] += counts
                images[: len(counts)] += counts > 0
            classes = [c for c in counts.nonzero()[0].tolist() if c != self.ignore_index]
            where |= {classes[-1]: sample.label} if classes else {}
        count = count_classes(seen, num_classes, self.ignore_index, self.values, where)
        return np.stack((pixels, images))[:, :count]

    def description(self) -> dict:
        """Returns what must not change between save and resume."""
        rule = {"label_values": self.values.values[: self.num_classes]} if self.values else {}
        return rule | {
            "labelled": [sample.image.name for sample in self.labelled_samples],
            "unlabelled": len(self.unlabelled_images),
            "crop": list(self.crop),
            "num_classes": self.num_classes,
            "ignore_index": self.ignore_index,
            "mirror": self.mirror,
            "scale": list(self.scale),
            "scale_distribution": self.scale_distribution,
            "pad": self.pad,
            "border_colour": self.border_colour,
        }

    def files(self) -> list[Path]:
        """Returns all images."""
        samples = {sample.image for split in self.splits.values() for sample in split}
        return sorted(samples | set(self.unlabelled_images))

    def notes(self) -> list[str]:
        """Describes for the user where images and labels were found, and which files are not used."""
        used, places = {*self.files()}, {}
        for split, samples in self.splits.items():
            used |= {sample.label for sample in samples}
            folders = {sample.image.parent for sample in samples}
            places[f"{split}: {len(samples)}"] = folders, {s.label.parent for s in samples}
        known = set().union(*(folders for folders, _ in places.values()))
        further = [path for path in self.unlabelled_images if path.parent not in known]
        if further:
            places[f"unlabelled: {len(further)}"] = {path.parent for path in further}, set()
        lines = []
        for what, (images, labels) in places.items():
            if max(len(images), len(labels)) > 1:  # a data set with a layout of its own
                continue
            line = f"{what} images of {min(images)}" + "".join(f", labels of {x}" for x in labels)
            rest = {path for folder in images | labels for path in files(folder)} - used
            if rest:
                line += f"; not used there: {len(rest)}, such as {min(rest).name}"
            lines.append(line)
        return lines

    def labelled(self, count: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Draws a batch: images [count, 3, h, w] in [0, 1], labels [count, h, w]."""
        chosen = rng.integers(len(self.labelled_samples), size=count)
        return self._crops((self.labelled_samples[i].read() for i in chosen), rng)

    def unlabelled(self, count: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Draws a batch: images [count, 3, h, w] in [0, 1], and a mask [count, h, w] that is False in borders."""
        chosen = rng.integers(len(self.unlabelled_images), size=count)
        images = (read_image(self.unlabelled_images[i]) for i in chosen)
        blank = ((image, torch.zeros(image.shape[1:], dtype=torch.int64)) for image in images)
        images, labels = self._crops(blank, rng)
        return images, labels != self.ignore_index

    def _crops(
        self, pairs: Iterable[tuple[Tensor, Tensor]], rng: np.random.Generator
    ) -> tuple[Tensor, Tensor]:
        """Draws random windows of pairs (image, label)."""
        border = self.ignore_index if self.pad else None
        options = {"scale": self.scale, "scale_distribution": self.scale_distribution}
        options |= {"mirror": self.mirror, "border": border, "border_colour": self.border_colour}
        crops = [random_crop(*pair, self.crop, rng, **options) for pair in pairs]
        images, labels = zip(*crops, strict=True)
        return torch.stack(images), torch.stack(labels)

    def find_splits(self, root: Path) -> dict[str, list[Sample]]:
        """Returns the samples of train and of val or test."""
        return find_splits(root)
