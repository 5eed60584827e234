"""The loss as a module: density-guided contrast with its memory bank."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dgcl_ops._bank import buffers
from dgcl_ops._precision import FixedDtypeModule, no_autocast
from dgcl_ops._step import selection
from dgcl_ops._step.batch import Batch, zero_row
from dgcl_ops._step.report import Record, report
from dgcl_ops._step.rows import chosen_rows
from dgcl_ops._step.strategy import Strategy
from dgcl_ops.memory import MemoryBank
from dgcl_ops.ops import _arguments, density_contrast

# The log-sum-exp of logits near 1 / T is stored in float32, with an error of up to 2^-24 / T. The gradient uses
# exp(logit - lse), so its probabilities are off by a factor of up to exp(2^-24 / T): 6 % at 1e-6. Far below, the
# exponential overflows and the gradient is NaN.
MIN_TEMPERATURE = 1e-6


class DensityContrastLoss(FixedDtypeModule):
    """Pulls each class's lowest-density features towards its densest ones and away from other classes.

    For each class c of the batch that is ready and not excluded::

        candidates    random pixels of the class, at most max_candidates
        anchors a_i   the candidates of lowest density
        key p         the mean projection of the candidates and bank rows
                      of highest density
        negatives n_j pixels of other classes: all if there are at most
                      num_negatives, otherwise num_negatives draws with replacement
        s(n)        = exp(cos(a_i, n) / T)
        L_c         = -mean_i log( s(p) / (s(p) + sum_j s(n_j)) )

    L is the mean of L_c over these classes. The gradient flows only to the anchors. In training mode, rows of the batch
    enter the bank after the loss has been computed.

    Computes in float32, or float64 for float64 projections, even under autocast. With compiled kernels a step
    needs no host sync and compiles with fullgraph=True. The PyTorch fallback and sharded banks do synchronise; with a
    sharded bank, compile without fullgraph.

    Args:
        num_classes: number of classes C.
        feature_dim: channels D of the features.
        projection_dim: channels E of the projections, D by default.
        scales: neighbourhood sizes of the density.
        temperature: T, at least 1e-6. float32 cannot represent the softmax of smaller ones.
        num_anchors: maximum number of anchors per class.
        num_keys: the key is the mean of at most this many rows of the batch, and as many of the bank.
        num_negatives: maximum number of negatives per class.
        max_candidates: maximum number of candidates per class.
        anchors: "low_density", "random", or "low_confidence".
        keys: "high_density", "average" or "high_confidence". "average" is the mean of all candidates and all bank rows.
            "high_confidence" takes only rows of the batch, since the bank stores no confidence.
        exclude_classes: classes without anchors, loss and bank rows. Their pixels still serve as negatives.
        ignore_index: label of ignored pixels.
        bank: the MemoryBank to use. Its settings then replace the bank's arguments below. Its metric and scales must
            match the loss.
        bank_capacity: slots of each class's ring.
        rows_per_push: maximum rows of each class pushed per step; at most `max_candidates`.
        min_rows: number of bank rows that makes a class ready. By default the largest scale.
        metric: similarity used for the density. "l2" is the negative Euclidean distance.
        start: "per_class" lets a class take part once it is ready. "all_full" waits until all classes are full.
        refresh_every: after this many pushes, recompute all densities in the bank; 0 never does.
        backfill: whether a class that becomes ready gets the densities of all its rows.
        bank_dtype: dtype of the bank's rows.
        placement: what several ranks share, see MemoryBank.
        exchange_dtype: dtype in which rows travel between ranks, see MemoryBank.
        overlap_exchange: whether the exchange of rows overlaps the rest of the step, see MemoryBank.
        process_group: the ranks that share the bank, see MemoryBank.
        disjoint: if a class has too few pixels, split them between anchors and keys instead of reusing pixels as both.
        normalize_keys: average unit rows. Otherwise long projections weigh more.
        eps: added to the sum of exponentials, see `density_contrast`.
        grad_scale: multiplies the gradient; the value of the loss is unchanged.
        seed: seed of the draws, part of the bank's state. By default drawn from torch's global generator.
        device: device of the buffers.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If an argument is out of its range.

    Example:
        >>> loss = DensityContrastLoss(num_classes=21, feature_dim=256, exclude_classes=(0,))
        >>> value = loss(projections, labels, features)  # [B, 256, *S], [B, *S], [B, 256, *S]
        >>> value.backward()

    Reference: Wang, Zhang, Yu, Xiao, "Hunting Sparsity: Density-Guided Contrastive Learning for
    Semi-Supervised Semantic Segmentation", CVPR 2023.
    """

    def __init__(
        self,
        num_classes: int,
        feature_dim: int,
        projection_dim: int | None = None,
        *,
        scales: tuple[int, ...] = (8, 16, 32),
        temperature: float = 0.5,
        num_anchors: int = 200,
        num_keys: int = 50,
        num_negatives: int = 512,
        max_candidates: int = 10_000,
        anchors: Literal["low_density", "random", "low_confidence"] = "low_density",
        keys: Literal["high_density", "average", "high_confidence"] = "high_density",
        exclude_classes: tuple[int, ...] = (),
        ignore_index: int = 255,
        bank: MemoryBank | None = None,
        bank_capacity: int = 10_000,
        rows_per_push: int = 1_000,
        min_rows: int | None = None,
        metric: Literal["cosine", "dot", "l2"] = "cosine",
        start: Literal["per_class", "all_full"] = "per_class",
        refresh_every: int = 0,
        backfill: bool = True,
        bank_dtype: torch.dtype = torch.float32,
        placement: Literal["replicated", "sharded", "local"] = "replicated",
        exchange_dtype: torch.dtype | None = None,
        overlap_exchange: bool = False,
        process_group: Any = None,
        disjoint: bool = False,
        normalize_keys: bool = False,
        eps: float = 0.0,
        grad_scale: float = 1.0,
        seed: int | None = None,
        device: torch.device | str | None = None,
    ):
        super().__init__()
        op = "DensityContrastLoss"
        self.num_classes = _arguments.positive_integer(op, "num_classes", num_classes)
        self.temperature = _arguments.number(op, "temperature", temperature, positive=True)
        if self.temperature < MIN_TEMPERATURE:
            raise ValueError(
                f"{op}: temperature must be at least {MIN_TEMPERATURE}, got {self.temperature!r}"
            )
        self.strategy = Strategy(
            num_anchors=num_anchors,
            num_keys=num_keys,
            num_negatives=num_negatives,
            max_candidates=max_candidates,
            anchors=anchors,
            keys=keys,
            start=start,
            disjoint=bool(disjoint),
            normalize_keys=bool(normalize_keys),
            ignore_index=ignore_index,
        )
        self.exclude_classes = _arguments.class_tuple(
            op, "exclude_classes", exclude_classes, self.num_classes
        )
        self.eps = _arguments.number(op, "eps", eps, positive=False)
        self.grad_scale = _arguments.number(op, "grad_scale", grad_scale, positive=False)

        if bank is None:
            bank = MemoryBank(
                num_classes,
                feature_dim,
                projection_dim,
                capacity=bank_capacity,
                rows_per_push=rows_per_push,
                metric=metric,
                scales=scales,
                dtype=bank_dtype,
                placement=placement,
                exchange_dtype=exchange_dtype,
                overlap_exchange=overlap_exchange,
                process_group=process_group,
                min_rows=min_rows,
                refresh_every=refresh_every,
                backfill=backfill,
                seed=seed,
                device=device,
            )
        self.bank = _matching(bank, num_classes, feature_dim, projection_dim, metric, scales)
        if not bank.rings.whole and keys == "average":
            raise ValueError(
                f"{op}: keys='average' is not supported with a sharded bank: no rank holds all rows to average"
            )
        if bank.rows_per_push > max_candidates:
            raise ValueError(
                f"{op}: rows_per_push (1,000 by default) must be at most max_candidates {max_candidates}, got "
                f"{bank.rows_per_push}: only candidates have a density to push"
            )
        device = bank.counts.device
        self._included = self._new_included(device)
        self._record = Record(num_classes, device)

    @classmethod
    def paper(
        cls,
        dataset: Literal["voc", "cityscapes"],
        num_classes: int | None = None,
        feature_dim: int = 256,
        projection_dim: int = 256,
        *,
        world_size: int = 1,
        **changes: Any,
    ) -> DensityContrastLoss:
        """The published setting, including the quirks of the authors' code that change its results.

        The loss starts when the ring of every class that is not excluded is full. Rows that arrive while their class
        holds at most 1,000 rows keep density 0. `eps` is 1e-6. The gradient is divided by `world_size`.

        The authors' code still differs. It excludes class 0 on every data set; on Cityscapes that is road. Pass
        `exclude_classes=(0,)` to match it. It also waits for the ring of the excluded class. Where more than
        `num_negatives` pixels are available, it draws negatives without replacement. docs/methods.md lists the other
        differences.

        Args:
            dataset: "voc" (21 classes, class 0 excluded) or "cityscapes" (19 classes, none excluded).
            num_classes: by default the data set's.
            feature_dim: channels D of the features.
            projection_dim: channels E of the projections.
            world_size: number of ranks W.
            **changes: further arguments of the loss; they override the published ones.

        Returns:
            The loss.

        Raises:
            TypeError: If an argument has the wrong type.
            ValueError: If an argument is out of its range.
        """
        op = "DensityContrastLoss.paper"
        _arguments.one_of(op, "dataset", dataset, ("voc", "cityscapes"))
        world_size = _arguments.positive_integer(op, "world_size", world_size)
        setting = {
            "exclude_classes": (0,) if dataset == "voc" else (),
            "start": "all_full",  # one rare class keeps the loss at 0 until its ring is full
            # Rows pushed while the class holds at most 1,000 have density 0, and keep it.
            "min_rows": min(1_001, changes.get("bank_capacity", 10_000)),
            "backfill": False,
            "eps": 1e-6,
            "grad_scale": 1.0 / world_size,
        }
        if num_classes is None:
            num_classes = 21 if dataset == "voc" else 19
        return cls(num_classes, feature_dim, projection_dim, **{**setting, **changes})

    def _new_included(self, device: torch.device) -> Tensor:
        flags = [c not in self.exclude_classes for c in range(self.num_classes)]
        return torch.tensor(flags, device=device)

    @property
    def included(self) -> Tensor:
        """[C] bool, False for excluded classes. On the bank's device.

        Not a buffer: it follows from `exclude_classes`, and trainers average, cast and broadcast buffers.
        """
        if self._included.device != self.bank.counts.device:
            self._included = self._new_included(self.bank.counts.device)
        return self._included

    contrasted = included  # its old name

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        moved = super()._apply(fn, recurse)
        self._included = self.included  # moved here, so that compiled and captured steps need not
        return moved

    def reset_parameters(self) -> None:
        """Empties the bank, restarts its random numbers from the seed, and forgets the last step.

        Call it after `to_empty`. If the loss was constructed on the meta device, `to_empty` calls it.
        """
        self.bank.reset_parameters()
        self._record.reset_parameters()

    def extra_repr(self) -> str:
        return (
            f"{self.strategy}, temperature={self.temperature}, exclude_classes={self.exclude_classes}, "
            f"eps={self.eps}, grad_scale={self.grad_scale}"
        )

    def forward(
        self,
        projections: Tensor | nn.Module,
        labels: Tensor,
        features: Tensor | None = None,
        confidence: Tensor | None = None,
        *,
        update_bank: bool = True,
    ) -> Tensor:
        """The loss of a batch. In training mode, rows of the batch then enter the bank.

        Maps are read in place, whatever their strides. Tensor subclasses such as MONAI's MetaTensor count as plain
        tensors, and the loss is a plain tensor. For tokens [B, N, E] pass `tokens.transpose(1, 2)`, which is a view.

        With a `ProjectionHead` as projections, the step calls it once, on the chosen rows, under the caller's autocast.
        An inf or NaN that it computes reaches the loss. If it is in a row to push, that class pushes nothing.

        Args:
            projections: [B, E, *S] with 1 to 6 spatial dimensions, or [M, E]. They receive the gradient. Or a
                `ProjectionHead`, also wrapped in DistributedDataParallel or compiled, except with keys "average".
            labels: [B, *S], [B, 1, *S] or [M], class of each pixel in any integer dtype, or `ignore_index`.
            features: [B, D, *S] or [M, D]. Densities are computed from these; by default from the projections. They
                receive no gradient from the densities. With a head they are required, and receive its gradient.
            confidence: [B, *S], [B, 1, *S] or [M], of each pixel's label. Needed by "low_confidence" and
                "high_confidence".
            update_bank: False leaves the bank's rows as they are.

        Returns:
            The mean over the classes that take part, a scalar, float64 for float64 projections, else float32. It is
            0, still connected to `projections` or the head, if no class takes part.

        Raises:
            TypeError: If a dtype does not fit.
            ValueError: If a shape or device does not fit.
            RuntimeError: If, on the CPU, a label is neither in [0, C) nor `ignore_index`.
        """
        self.bank.finish_exchange()
        buffers.check(self.bank, labels)
        batch, projections = Batch.checked(
            "DensityContrastLoss",
            self.bank,
            projections,
            labels,
            features,
            confidence,
            self.strategy,
        )
        empty = batch.labels.numel() == 0
        if empty:
            # Other ranks may have pixels and wait for this one. A head in DDP needs its gradients.
            batch = batch.one_ignored_pixel(self.strategy.ignore_index)
            if isinstance(projections, Tensor):
                projections = zero_row(projections)
        changes = self.training and not (empty and self.bank._ranks().world_size == 1)
        push = update_bank and changes
        with no_autocast(batch.labels):
            choice = selection.select(self.strategy, self.bank, self.included, batch, push)
        choice, rows = chosen_rows(self.strategy, self.bank, projections, batch.features, choice)
        with no_autocast(batch.labels):
            per_class = density_contrast(
                rows.anchors,
                rows.keys,
                rows.negatives,
                self.temperature,
                anchor_counts=choice.anchors.counts,
                negative_counts=choice.negatives.counts,
                eps=self.eps,
            )
            loss = per_class.sum() / choice.active.sum().clamp(min=1)
            if self.grad_scale != 1:
                loss = loss.detach() + (loss - loss.detach()) * self.grad_scale
            with torch.no_grad():
                if not empty:
                    self._record.on(labels.device).update(per_class, choice.summary)
                if changes:
                    self.bank.rng_state[1].add_(1)  # before the push, which sends rank 0's state
                pushed = choice.push
                if pushed is not None and rows.push is not None:
                    self.bank.push_rows(
                        pushed.features, rows.push, pushed.density, pushed.pixels.counts
                    )
        return loss

    @torch.no_grad()
    def diagnostics(self) -> dict[str, Tensor]:
        """Returns statistics of the last step and of the bank, without a host sync.

        `report` puts it into words. A batch without pixels changes nothing here.

        Returns:
            A dict with these keys for each class, [C].

            - `rows`: rows in the bank.
            - `ready`: whether there are enough.
            - `mean_density`: mean of the stored densities, 0 without rows; with a sharded bank, of this rank's shard.
            - `active`: whether the class took part in the last step.
            - `pixels`: its pixels in the last batch, without the skipped ones.
            - `candidates`: how many of them were candidates; 0 if it took no part.
            - `class_loss`: its loss; 0 if it took no part.
            - `anchor_density`: mean density of its anchors; 0 if it took no part or nothing is chosen by density.
            - `key_density`: the same for the batch's keys.

            And with these scalars.

            - `ignored_pixels`: pixels of the last batch with label `ignore_index`.
            - `non_finite_pixels`: labelled pixels of the last batch skipped because of an inf or NaN.
            - `unknown_labels`: its other labels outside [0, C). Always 0 on the CPU, where they raise an error.
            - `non_finite_rows`: sum of `non_finite_pixels` since construction.
            - `num_pushes`: pushes into the bank.
        """
        bank = self.bank
        valid = bank.valid_slots()
        total = torch.where(valid, bank.density, 0).sum(1)
        return {
            "rows": bank.counts.clone(),
            "ready": bank.ready(),
            "mean_density": total / valid.sum(1).clamp(min=1),
            **self._record.on(bank.counts.device).snapshot(),
            "num_pushes": bank.num_pushes.clone(),
        }

    def report(self, class_names: Sequence[str] | None = None) -> str:
        """Describes the diagnostics as text.

        The text says what the last loss was and, if it was 0, why. It lists the classes that took part, and those that
        are absent, excluded or short of rows. It counts skipped pixels and describes the bank. This syncs, so do not
        call it in every step.

        Args:
            class_names: names to print instead of numbers.

        Returns:
            The text, one fact per line.

        Raises:
            ValueError: If `class_names` does not name all classes.
        """
        return report(self, class_names)


def _matching(
    bank: MemoryBank,
    num_classes: int,
    feature_dim: int,
    projection_dim: int | None,
    metric: str,
    scales: tuple[int, ...],
) -> MemoryBank:
    """The bank, if it matches the loss."""
    op = "DensityContrastLoss"
    if not isinstance(bank, MemoryBank):
        raise TypeError(f"{op}: bank must be a MemoryBank, got {type(bank).__name__}")
    for name, ours in (
        ("num_classes", num_classes),
        ("feature_dim", feature_dim),
        ("projection_dim", feature_dim if projection_dim is None else projection_dim),
        ("metric", metric),
        ("scales", _arguments.scale_tuple(op, scales)),
    ):
        theirs = getattr(bank, name)
        if theirs != ours:
            raise ValueError(f"{op}: bank must have the loss's {name} {ours!r}, got {theirs!r}")
    return bank
