"""The contenders of loss_bench.py behind one interface, with their inputs."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import on_cuda
import torch
from common import seconds
from published import PublishedStep
from torch import Tensor

from dgcl_ops import DensityContrastLoss, resize_labels

OURS, PUBLISHED = "dgcl_ops", "published step"
SPREAD = 0.905  # spread of rows around the centre of their class: cosine 0.55 inside a class
CELLS = 11  # a label map is a grid of CELLS x CELLS cells with one class each
SEED = 0

Batch = tuple[Tensor, Tensor, Tensor]  # projections, labels, features


@dataclass(frozen=True)
class Size:
    name: str
    batch: int
    side: int
    classes: int
    dim: int
    capacity: int
    rows_per_push: int
    max_candidates: int
    num_anchors: int
    num_keys: int
    num_negatives: int
    usual_present: tuple[int, ...]


SIZES = {
    "voc": Size("voc", 8, 129, 21, 256, 10_000, 1_000, 10_000, 200, 50, 512, (21, 11)),
    "tiny": Size("tiny", 1, 15, 3, 8, 60, 20, 300, 10, 5, 512, (3,)),
    "small": Size("small", 2, 33, 6, 32, 500, 50, 2_000, 40, 10, 512, (6, 3)),
}


def _centres(size: Size, stream: int) -> Tensor:
    generator = torch.Generator().manual_seed(SEED + stream)
    return torch.randn(size.classes, size.dim, generator=generator)


def _rows(centres: Tensor, classes: Tensor, generator: torch.Generator) -> Tensor:
    """Returns noisy copies [R, D] of the centres of classes [R]."""
    noise = torch.randn(len(classes), centres.shape[1], generator=generator)
    return noise.mul_(SPREAD).add_(centres[classes])


def make_batch(size: Size, present: int, background: float | None, device: torch.device) -> Batch:
    """Draws a batch.

    Args:
        size: its sizes.
        present: classes 0 to present - 1 occur.
        background: fraction of the cells in class 0. None: as in every other class.
        device: where to put it.

    Returns:
        Projections [B, E, side, side] that require a gradient, labels [B, side, side] int64, features
        [B, D, side, side].
    """
    generator = torch.Generator().manual_seed(SEED + 10)
    cells = size.batch * CELLS**2
    if background is None:
        classes = torch.arange(cells) % present
    else:
        classes = 1 + torch.arange(cells) % (present - 1)
        classes[: round(background * cells)] = 0
    cells = classes[torch.randperm(cells, generator=generator)].view(size.batch, CELLS, CELLS)
    labels = resize_labels(cells, (size.side, size.side))
    maps = []
    for stream in (0, 1):
        rows = _rows(_centres(size, stream), labels.flatten(), generator)
        maps.append(rows.view(*labels.shape, size.dim).permute(0, 3, 1, 2).contiguous())
    features, projections = (m.to(device) for m in maps)
    return projections.requires_grad_(), labels.to(device), features


def copy_batch(batch: Batch) -> Batch:
    projections, *others = (part.detach().clone() for part in batch)
    return projections.requires_grad_(), *others


def input_bytes(batch: Batch) -> int:
    return sum(part.numel() * part.element_size() for part in batch)


def parts_of_a_step(
    forward: on_cuda.Timing,
    backward: on_cuda.Timing,
    push: on_cuda.Timing,
    push_seconds: float | None = None,
) -> dict:
    """Combines the timings of the parts into the result of `timed`."""
    push_seconds = push.seconds if push_seconds is None else push_seconds
    parts = {"forward": forward.seconds, "backward": backward.seconds, "push": push_seconds}
    ahead = None if push.ahead is None else forward.ahead and backward.ahead and push.ahead
    return {**parts, "total": sum(parts.values()), "ahead": ahead}


def bank_rows(size: Size, c: int) -> tuple[Tensor, Tensor, Tensor]:
    """Draws the bank of class c.

    Returns:
        Features [capacity, D], projections [capacity, E] and densities [capacity]. Densities only rank the rows.
    """
    generator = torch.Generator().manual_seed(SEED + 100 + c)
    classes = torch.full((size.capacity,), c)
    features = _rows(_centres(size, 0), classes, generator)
    projections = _rows(_centres(size, 1), classes, generator)
    return features, projections, torch.rand(size.capacity, generator=generator)


class OurStep:
    """DensityContrastLoss in the published setting, with a full bank."""

    def __init__(self, size: Size, device: torch.device):
        self.loss = DensityContrastLoss.paper(
            "voc",
            size.classes,
            size.dim,
            size.dim,
            bank_capacity=size.capacity,
            rows_per_push=size.rows_per_push,
            min_rows=size.capacity // 10 + 1,
            max_candidates=size.max_candidates,
            num_anchors=size.num_anchors,
            num_keys=size.num_keys,
            num_negatives=size.num_negatives,
            seed=SEED,
            device=device,
        )
        bank = self.loss.bank
        for c in range(size.classes):
            features, projections, density = bank_rows(size, c)
            bank.features[c] = torch.nn.functional.normalize(features, dim=1)
            bank.projections[c] = projections
            bank.density[c] = density
        bank.counts.fill_(size.capacity)

    def forward(self, batch: Batch) -> Tensor:
        """Returns the loss without updating the bank."""
        return self.loss(*batch, update_bank=False)

    def whole(self, batch: Batch) -> Tensor:
        """Runs forward, push and backward, and returns the loss."""
        loss = self.loss(*batch)
        loss.backward()
        return loss

    def timed(self, batches: Iterator[Batch], device: torch.device) -> dict:
        """Times each part of one step. The push is the difference of forwards with and without it."""
        batch = next(batches)
        alone = seconds(lambda: self.forward(batch), device)
        batch = next(batches)
        both = seconds(lambda: self.loss(*batch), device)
        backward = seconds(both.result.backward, device)
        batch[0].grad = None
        return parts_of_a_step(alone, backward, both, both.seconds - alone.seconds)


class Published:
    """The published step with a full bank."""

    def __init__(self, size: Size, device: torch.device):
        self.step = PublishedStep(
            size.classes,
            size.dim,
            size.dim,
            capacity=size.capacity,
            rows_per_push=size.rows_per_push,
            density_rows=size.capacity // 10,
            max_candidates=size.max_candidates,
            num_anchors=size.num_anchors,
            num_keys=size.num_keys,
            num_negatives=size.num_negatives,
            device=device,
        )
        for c in self.step.classes:
            rows = (part.to(device) for part in bank_rows(size, c))
            self.step.features[c], self.step.projections[c], self.step.density[c] = rows

    def forward(self, batch: Batch) -> Tensor:
        """Returns the loss without updating the bank."""
        return self.step.forward(*batch)

    def whole(self, batch: Batch) -> Tensor:
        """Runs forward, backward and push, and returns the loss."""
        loss = self.forward(batch)
        loss.backward()  # frees the graph before the push allocates
        self.step.update(*batch)
        return loss

    def timed(self, batches: Iterator[Batch], device: torch.device) -> dict:
        """Times each part of one step."""
        batch = next(batches)
        forward = seconds(lambda: self.forward(batch), device)
        backward = seconds(forward.result.backward, device)
        batch[0].grad = None
        push = seconds(lambda: self.step.update(*batch), device)
        return parts_of_a_step(forward, backward, push)


class OurStepCompiled(OurStep):
    """Our step under torch.compile, as one graph."""

    def __init__(self, size: Size, device: torch.device):
        super().__init__(size, device)
        self.loss = torch.compile(self.loss, fullgraph=True)


class PublishedCompiled(Published):
    """The published step under torch.compile. The graph breaks wherever the step reads a value."""

    def __init__(self, size: Size, device: torch.device):
        super().__init__(size, device)
        self.step.forward = torch.compile(self.step.forward)
        self.step.update = torch.compile(self.step.update)


class Under:
    """Runs a step inside a context, `setting()`."""

    def __init__(self, step: OurStep | Published, setting: Callable):
        self.step, self.setting = step, setting

    def forward(self, batch: Batch) -> Tensor:
        with self.setting():
            return self.step.forward(batch)

    def whole(self, batch: Batch) -> Tensor:
        with self.setting():
            return self.step.whole(batch)

    def timed(self, batches: Iterator[Batch], device: torch.device) -> dict:
        with self.setting():
            return self.step.timed(batches, device)


COMPILED = {f"{OURS}, compiled": OurStepCompiled, f"{PUBLISHED}, compiled": PublishedCompiled}


def builders(device_type: str, compiled: bool = False) -> dict[str, Callable]:
    """Returns functions that build each contender from a size and a device.

    Args:
        device_type: "cpu" or "cuda". CUDA has more contenders.
        compiled: only both steps, eager and compiled.
    """
    if compiled:
        return {OURS: OurStep, PUBLISHED: Published, **COMPILED}
    if device_type != "cuda":
        return {OURS: OurStep, PUBLISHED: Published}

    def under(step: type, setting: Callable, value: object) -> Callable:
        return lambda size, device: Under(step(size, device), lambda: setting(value))

    return {
        **{
            name: under(OurStep, on_cuda.search_path, p) for name, p in on_cuda.SEARCH_PATHS.items()
        },
        PUBLISHED: Published,
        f"{PUBLISHED}, TF32": under(Published, on_cuda.tf32, True),
    }
