"""The record of the last step, and the diagnostics of DensityContrastLoss in words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dgcl_ops._bank.buffers import averaged
from dgcl_ops._precision import FixedDtypeModule
from dgcl_ops.ops._arguments import METRICS

if TYPE_CHECKING:
    from dgcl_ops._step.selection import Summary
    from dgcl_ops.losses import DensityContrastLoss

_LISTED = 12  # most classes that a line names


class Record(FixedDtypeModule):
    """What the last step did, in buffers outside the state_dict. An update does not sync.

    Each buffer is written by one launch. `snapshot` takes the rest of the work.
    """

    floats: Tensor  # [3, C]: loss, sum of the anchors' densities, sum of the keys' densities
    counts: Tensor  # [4 C + 3] int64: pixels, candidates, anchors and keys of each class; skipped pixels, see Summary
    non_finite_rows: Tensor  # [] int64, since construction

    def __init__(self, num_classes: int, device: torch.device):
        super().__init__()
        self.num_classes = num_classes
        self._start(device)

    def _start(self, device: torch.device) -> None:
        for name, dtype, shape in (
            ("floats", torch.float32, (3, self.num_classes)),
            ("counts", torch.int64, (4 * self.num_classes + 3,)),
            ("non_finite_rows", torch.int64, ()),
        ):
            buffer = torch.zeros(shape, dtype=dtype, device=device)
            self.register_buffer(name, buffer, persistent=False)

    def reset_parameters(self) -> None:
        """Forgets what was recorded."""
        for buffer in self.buffers():
            buffer.zero_()

    def on(self, device: torch.device) -> Record:
        """The record. It is reset if its buffers were cast from outside, or left on the meta device."""
        if self.counts.device != device or self.floats.dtype != torch.float32:
            self._start(device)
        return self

    def _load_from_state_dict(self, *arguments: Any) -> None:
        super()._load_from_state_dict(*arguments)
        self.reset_parameters()  # a state_dict has no record

    def update(self, class_loss: Tensor, summary: Summary) -> None:
        """Records a step. class_loss [C]."""
        floats = [class_loss]
        if summary.anchor_density_sum is not None and summary.key_density_sum is not None:
            floats += [summary.anchor_density_sum, summary.key_density_sum]
        torch.stack(floats, out=self.floats[: len(floats)])
        counts = (summary.pixels, summary.candidates, summary.anchors, summary.keys)
        torch.cat((*counts, summary.skipped), out=self.counts)
        self.non_finite_rows.add_(summary.skipped[1])

    def snapshot(self) -> dict[str, Tensor]:
        """A copy, with the names of DensityContrastLoss.diagnostics."""
        class_loss, anchor_sum, key_sum = self.floats.clone()
        of_classes, skipped = self.counts.clone().split((len(self.counts) - 3, 3))
        pixels, candidates, anchors, keys = of_classes.view(4, -1)
        ignored, non_finite, unknown = skipped
        return {
            "active": anchors > 0,
            "pixels": pixels,
            "candidates": candidates,
            "class_loss": class_loss,
            "anchor_density": anchor_sum / anchors.clamp(min=1),
            "key_density": key_sum / keys.clamp(min=1),
            "ignored_pixels": ignored,
            "non_finite_pixels": non_finite,
            "unknown_labels": unknown,
            "non_finite_rows": self.non_finite_rows.clone(),
        }


def report(loss: DensityContrastLoss, class_names: Sequence[str] | None = None) -> str:
    """See DensityContrastLoss.report."""
    if class_names is not None and len(class_names) != loss.num_classes:
        raise ValueError(
            f"DensityContrastLoss.report: class_names must name all {loss.num_classes} classes, "
            f"got {len(class_names)} names"
        )
    text = Report(loss, class_names)
    return "\n".join([text.headline(), *text.classes(), *text.pixels(), *text.bank()])


class Report:
    """The diagnostics on the host, and the sentences about them."""

    def __init__(self, loss: DensityContrastLoss, class_names: Sequence[str] | None):
        state: dict[str, Any] = {}
        for name, tensor in loss.diagnostics().items():
            state[name] = tensor.tolist()
        self.loss, self.names, self.state = loss, class_names, state
        self.waits = loss.strategy.start == "all_full"
        # Rows that let a class take part.
        self.needed = loss.bank.capacity if self.waits else loss.bank.min_rows
        every = range(loss.num_classes)
        self.present = [c for c in every if state["pixels"][c]]
        self.active = [c for c in every if state["active"][c]]
        self.included = [c for c in every if c not in loss.exclude_classes]
        self.lacking = [c for c in self.included if state["rows"][c] < self.needed]
        skipped = ("ignored_pixels", "non_finite_pixels", "unknown_labels")
        self.skipped: list[int] = [state[name] for name in skipped]
        self.total = sum(state["pixels"]) + sum(self.skipped)

    # ---- sentences ----------------------------------------------------------------------------------

    def headline(self) -> str:
        if not self.total:
            return "No loss yet: the module has seen no batch with pixels since it was built."
        if not self.active:
            return f"The last loss was 0: {self.why_zero()}."
        losses = self.state["class_loss"]
        value = sum(losses[c] for c in self.active) / len(self.active)
        if value - value != 0:
            wrong = [c for c in self.active if losses[c] - losses[c] != 0]
            noun, bank = "class" if len(wrong) == 1 else "classes", self.loss.bank
            dtypes = f"dtype {bank.dtype}"
            if bank.exchange_dtype != bank.dtype:
                dtypes += f" or its exchange_dtype {bank.exchange_dtype}"
            return (
                f"The last loss was {value}, because of {noun} {self.listed(wrong)}. Pixels with an inf or NaN in a "
                "map are skipped. So a ProjectionHead on the chosen rows overflows, or a sum of projections, or a row "
                f"overflows in the bank's {dtypes}."
            )
        number = f"The last loss was {value:.4g}"
        if len(self.present) == 1:
            only = self.listed(self.present)
            return f"{number}: the only class in the batch was {only}, so there were no negatives."
        if value == 0:
            return f"{number}: every anchor is so close to its key that the loss rounds to 0."
        if len(self.active) == 1:
            return f"{number}, from the one class that took part."
        return f"{number}, the mean over the {len(self.active)} classes that took part."

    def why_zero(self) -> str:
        """Why no class took part in a batch with pixels."""
        ignored, non_finite, unknown = self.skipped
        if ignored == self.total:
            return f"all {self.total:,} pixels had the ignored label {self.ignore_index()}"
        if not self.present:
            labelled = f"all {non_finite + unknown:,} labelled pixels"
            if not unknown:
                return f"{labelled} had an inf or NaN"
            if not non_finite:
                return f"{labelled} had a label outside {self.valid()}"
            return f"{labelled} had an inf or NaN or a label outside {self.valid()}"
        wanted = [c for c in self.present if c in self.included]
        if not wanted:
            return "all classes in the batch are excluded"
        if self.waits:
            return 'no class starts before every class is full (start="all_full")'
        if len(self.single_pixels()) == len(wanted):
            return "every ready class in the batch had a single pixel, which cannot be both anchor and key"
        return "no class in the batch was ready"

    def classes(self) -> list[str]:
        lines = []
        if self.total:
            absent = [c for c in self.included if c not in self.present]
            idle = [
                c
                for c in self.present
                if c in self.included and c not in self.active and c not in self.lacking
            ]
            single = self.single_pixels()
            waiting = [c for c in idle if self.waits and self.lacking]
            since = [c for c in idle if c not in single and c not in waiting]
            lines = [
                ("Took part", self.listed(self.active)),
                ("Became ready in this step", self.listed(since)),
                ("Full, waiting for the others", self.listed(waiting)),
                ("Only one pixel (needed for both anchor and key)", self.listed(single)),
                ("Absent from the batch", self.listed(absent)),
            ]
        lines += [
            ("Not ready", self.listed(self.lacking, self.rows)),
            ("Excluded", self.listed(list(self.loss.exclude_classes))),
        ]
        return [f"{title}: {text}." for title, text in lines if text]

    def pixels(self) -> list[str]:
        ignored, non_finite, unknown = self.skipped
        lines = []
        if self.total:
            parts = [
                (ignored, f"ignored (label {self.ignore_index()})"),
                (non_finite, "skipped (inf or NaN)"),
                (unknown, f"skipped (label outside {self.valid()})"),
            ]
            skipped = [f"; {number:,} {reason}" for number, reason in parts if number]
            lines.append(f"Pixels in the last batch: {self.total:,}{''.join(skipped)}.")
        ever = self.state["non_finite_rows"]
        if ever:
            lines.append(f"Pixels skipped because of an inf or NaN since construction: {ever:,}.")
        return lines

    def bank(self) -> list[str]:
        bank = self.loss.bank
        size = sum(buffer.nbytes for buffer in (bank.features, bank.projections, bank.density))
        lines = [
            f"Bank: {sum(self.state['rows']):,} rows in {bank.num_classes} ring{'s' * (bank.num_classes > 1)} "
            f"of {bank.capacity:,}, "
            f"{size / 1e6:.3g} MB{self.shared()}; pushes so far: {self.state['num_pushes']:,}."
        ]
        if averaged(bank.features, METRICS.index(bank.metric)):
            lines.append(
                "The bank's rows are not unit rows: its buffers were averaged or overwritten from outside. The "
                "loss of this module is meaningless."
            )
        if not self.loss.training:
            lines.append("The module is in eval mode: batches do not enter the bank.")
        return lines

    # ---- words --------------------------------------------------------------------------------------

    def shared(self) -> str:
        ranks = self.loss.bank._ranks()
        if ranks.world_size == 1:
            return ""
        if not self.loss.bank.rings.whole:
            return f" in the shard of rank {ranks.rank} of {ranks.world_size}"
        return f", the same on {ranks.world_size} ranks"

    def single_pixels(self) -> list[int]:
        """Ready classes with a single pixel, which cannot be both anchor and key."""
        strategy = self.loss.strategy
        if not (strategy.disjoint and strategy.keys == "high_confidence"):
            return []
        candidates = [c for c in self.included if c not in self.lacking and c not in self.active]
        return [c for c in candidates if self.state["pixels"][c] == 1]

    def ignore_index(self) -> int:
        return self.loss.strategy.ignore_index

    def valid(self) -> str:
        return f"[0, {self.loss.num_classes})"

    def rows(self, c: int) -> str:
        return f" ({self.state['rows'][c]:,} of {self.needed:,} rows)"

    def listed(self, classes: list[int], suffix: Callable[[int], str] = lambda c: "") -> str:
        """ "0, 3 and 9 more"."""
        names = [
            f"{c if self.names is None else self.names[c]}{suffix(c)}" for c in classes[:_LISTED]
        ]
        left = len(classes) - len(names)
        return ", ".join(names) + (f" and {left:,} more" if left else "")
