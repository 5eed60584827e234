"""The loss as a module: density-guided contrast with its memory bank."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dgcl_ops._precision import FixedDtypeModule, no_autocast
from dgcl_ops._step import report as _report
from dgcl_ops._step import sampling, selection
from dgcl_ops._step.batch import Batch
from dgcl_ops.memory import MemoryBank
from dgcl_ops.ops import _arguments, density_contrast


class DensityContrastLoss(FixedDtypeModule):
    """Pulls each class's features of lowest density towards its densest ones, away from other classes.

    For each class c of the batch that is ready and not excluded:

        anchors a_i   the candidates of lowest density, candidates being the class's pixels, `max_candidates`
                      of them at most
        key p         the mean of the projections of the candidates and of the bank rows of highest density
        negatives n_j pixels of other classes: all of them if there are at most `num_negatives`; otherwise
                      that many, drawn with replacement
        L_c = - mean_i log( exp(cos(a_i,p)/T) / ( exp(cos(a_i,p)/T) + sum_j exp(cos(a_i,n_j)/T) ) )

    and L is the mean of L_c over these classes. The gradient flows to the anchors alone. In training mode
    the batch's rows are pushed into the bank after the loss has been computed. The step compiles with
    fullgraph=True, and where compiled kernels run it copies nothing to the host; the plain PyTorch that stands
    in for them on other devices does, and so does a sharded bank, with which it compiles in pieces. Arithmetic
    is in float32, in float64 for float64 projections, under autocast too.

    Args:
        num_classes: C.
        feature_dim: D.
        projection_dim: E, D by default.
        scales: neighbourhood sizes of the density.
        temperature: T.
        num_anchors: anchors of a class, at most.
        num_keys: rows of the batch, and again rows of the bank, that the key is the mean of, at most.
        num_negatives: negatives of a class, at most.
        max_candidates: pixels of a class looked at, at most.
        anchors: "low_density", "random" or "low_confidence".
        keys: "high_density"; "average", the mean over all candidates and all bank rows; or
            "high_confidence", rows of the batch alone, since the bank stores no confidence.
        exclude_classes: classes without anchors, loss and bank rows. Their pixels still serve as negatives.
        ignore_index: label of pixels that take no part at all.
        bank: a MemoryBank to use. Its capacity, rows_per_push, min_rows, refresh_every, backfill, dtype, placement,
            process_group and seed are then in force instead of those given here; its metric and scales must be
            the same.
        bank_capacity: rows of each class's ring.
        rows_per_push: rows of each class pushed by a step, at most; not more than `max_candidates`.
        min_rows: bank rows from which on a class is ready; by default the largest scale.
        metric: of the densities: "cosine", "dot" or "l2".
        start: "per_class": a class takes part once it is ready; "all_full": none before all are full.
        refresh_every, backfill, bank_dtype, placement, process_group: see MemoryBank.
        disjoint: a class too small for all its anchors and keys shares its pixels out between them in
            proportion, instead of letting some be both.
        normalize_keys: take the mean of unit rows; else long projections weigh more.
        eps: added to the sum of exponentials, see `density_contrast`.
        grad_scale: factor of the gradient; the loss's value is not changed by it.
        seed: of the draws; by default drawn from torch's global generator. Part of the bank's state.
        device: of the buffers.

    Raises:
        TypeError, ValueError: if an argument is out of its range.

    Example:
        >>> loss = DensityContrastLoss(num_classes=21, feature_dim=256, exclude_classes=(0,))
        >>> value = loss(projections, labels, features)  # [B, 256, H, W], [B, H, W], [B, 256, H, W]
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
        anchors: str = "low_density",
        keys: str = "high_density",
        exclude_classes: tuple[int, ...] = (),
        ignore_index: int = 255,
        bank: MemoryBank | None = None,
        bank_capacity: int = 10_000,
        rows_per_push: int = 1_000,
        min_rows: int | None = None,
        metric: str = "cosine",
        start: str = "per_class",
        refresh_every: int = 0,
        backfill: bool = True,
        bank_dtype: torch.dtype = torch.float32,
        placement: str = "replicated",
        process_group=None,
        disjoint: bool = False,
        normalize_keys: bool = False,
        eps: float = 0.0,
        grad_scale: float = 1.0,
        seed: int | None = None,
        device=None,
    ):
        super().__init__()
        op = "DensityContrastLoss"
        self.num_classes = _arguments.positive_integer(op, "num_classes", num_classes)
        self.temperature = _arguments.number(op, "temperature", temperature, positive=True)
        self.strategy = selection.Strategy(
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
        if not isinstance(exclude_classes, (tuple, list)):
            raise TypeError(
                f"{op}: exclude_classes must be a tuple or list of classes, got {exclude_classes!r}"
            )
        self.exclude_classes = tuple(
            _arguments.integral(op, "each of exclude_classes", c) for c in exclude_classes
        )
        for excluded in self.exclude_classes:
            if not 0 <= excluded < self.num_classes:
                raise ValueError(
                    f"{op}: exclude_classes must lie in [0, {self.num_classes}), got {excluded}"
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
                process_group=process_group,
                min_rows=min_rows,
                refresh_every=refresh_every,
                backfill=backfill,
                seed=seed,
                device=device,
            )
        self.bank = self._matching(bank, num_classes, feature_dim, projection_dim, metric, scales)
        if not bank.rings.whole and keys == "average":
            raise ValueError(
                f"{op}: keys must not be 'average' with a bank of placement 'sharded': that is the mean of all bank "
                f"rows, which no process holds, got {keys!r}"
            )
        if bank.rows_per_push > max_candidates:
            raise ValueError(
                f"{op}: rows_per_push (by default 1,000) must be at most max_candidates {max_candidates}, since "
                f"the rows pushed are candidates whose densities are known, got {bank.rows_per_push}"
            )
        device = bank.counts.device
        contrasted = [c not in self.exclude_classes for c in range(num_classes)]
        self.register_buffer(
            "contrasted", torch.tensor(contrasted, device=device), persistent=False
        )
        for name, dtype in (
            ("class_loss", torch.float32),
            ("active", torch.bool),
            ("pixels", torch.int64),
            ("candidates", torch.int64),
            ("anchor_density", torch.float32),
            ("key_density", torch.float32),
        ):
            record = torch.zeros(num_classes, dtype=dtype, device=device)
            self.register_buffer(f"_{name}", record, persistent=False)
        for name, shape in (("passed_over", (3,)), ("non_finite_rows", ())):
            record = torch.zeros(shape, dtype=torch.int64, device=device)
            self.register_buffer(f"_{name}", record, persistent=False)

    @staticmethod
    def _matching(bank, num_classes, feature_dim, projection_dim, metric, scales) -> MemoryBank:
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
                raise ValueError(
                    f"{op}: bank must have {name} {ours!r} like the loss, got {theirs!r}"
                )
        return bank

    @classmethod
    def paper(
        cls,
        dataset: str,
        num_classes: int | None = None,
        feature_dim: int = 256,
        projection_dim: int = 256,
        *,
        world_size: int = 1,
        **changes,
    ) -> "DensityContrastLoss":
        """The published setting, with the traits of the authors' program that change its numbers.

        The loss starts when the ring of every class that is not excluded is full. Rows that arrive while their
        class holds at most 1,000 rows keep density 0. `eps` is 1e-6. The gradient is divided by `world_size`.

        The authors' program still differs. It excludes class 0 of every data set, on Cityscapes road:
        `exclude_classes=(0,)` does that. It also waits for the ring of the excluded class. Where more than
        `num_negatives` pixels are available, it draws negatives without replacement. examples/README.md
        lists the other differences.

        Args:
            dataset: "voc" (21 classes, class 0 excluded) or "cityscapes" (19 classes, none excluded).
            num_classes: by default the data set's.
            feature_dim: D.
            projection_dim: E.
            world_size: number of processes W.
            changes: further keyword arguments of the loss, taking precedence.
        """
        _arguments.one_of("DensityContrastLoss.paper", "dataset", dataset, ("voc", "cityscapes"))
        world_size = _arguments.positive_integer(
            "DensityContrastLoss.paper", "world_size", world_size
        )
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

    def extra_repr(self) -> str:
        return (
            f"{self.strategy}, temperature={self.temperature}, exclude_classes={self.exclude_classes}, "
            f"eps={self.eps}, grad_scale={self.grad_scale}"
        )

    # ---- one step -------------------------------------------------------------------------------------

    def forward(
        self,
        projections: Tensor,
        labels: Tensor,
        features: Tensor | None = None,
        confidence: Tensor | None = None,
        *,
        update_bank: bool = True,
    ) -> Tensor:
        """The loss of a batch. In training mode, afterwards, the batch's rows enter the bank.

        Args:
            projections: receive the gradient.
            labels: class of each pixel, any integer type, `ignore_index` where there is none.
            features: what densities are computed from; by default the projections. No gradient.
            confidence: of each pixel's label; needed by "low_confidence" and "high_confidence".
            update_bank: False leaves the bank's rows as they are.

        Returns:
            The mean over the classes that take part; 0, still connected to `projections`, if there is none.
            float32, for float64 projections float64.

        Raises:
            TypeError, ValueError: if dtypes or shapes do not fit.
            RuntimeError: on the CPU, if a label lies outside [0, C) and is not `ignore_index`.

        Shape:
            projections [B, E, H, W], labels [B, H, W], features [B, D, H, W], confidence [B, H, W];
            or flat: [M, E], [M], [M, D], [M].
        """
        batch = Batch.checked(
            "DensityContrastLoss",
            self.bank,
            projections,
            labels,
            features,
            confidence,
            self.strategy,
        )
        push = update_bank and self.training
        wide = torch.float64 if projections.dtype == torch.float64 else torch.float32
        with no_autocast(labels):
            zero = None
            if labels.numel() == 0:
                zero = projections.to(wide).sum()
                if self.bank.ranks().size == 1:
                    return zero
                # The other processes have pixels, and wait for this one.
                batch = batch.one_ignored_pixel(self.strategy.ignore_index)
            choice, rows = selection.select_and_gather(
                self.strategy, self.bank, self.contrasted, batch, push, wide
            )
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
                if zero is None:
                    self._record(choice, per_class)
                if push:
                    chosen = choice.push
                    self.bank.push_rows(
                        chosen.features, rows.push, chosen.density, chosen.pixels.counts
                    )
                if self.training:
                    self.bank.rng_state[1].add_(1)
        return loss if zero is None else zero

    # ---- diagnostics ----------------------------------------------------------------------------------

    def _record(self, chosen: selection.Choice, per_class: Tensor) -> None:
        self._class_loss.copy_(per_class)
        self._active.copy_(chosen.active)
        self._pixels.copy_(chosen.pixels)
        self._candidates.copy_(chosen.candidate_counts)
        self._passed_over.copy_(chosen.passed_over)
        self._non_finite_rows.add_(chosen.passed_over[1])
        if self.strategy.by_density:
            self._anchor_density.copy_(_used_mean(chosen.anchor_density, chosen.anchors))
            self._key_density.copy_(_used_mean(chosen.key_density, chosen.keys))

    @torch.no_grad()
    def diagnostics(self) -> dict[str, Tensor]:
        """What the last step did and what the bank holds, as tensors that nobody waits for until they are read.
        `report` says it in words. A batch without pixels leaves no trace in it.

        Returns:
            dict with, for each class [C]:
                rows: bank rows held.
                ready: whether they suffice.
                mean_density: mean of the stored densities, 0 without rows; of a sharded bank, those stored here.
                active: whether the class took part in the last step.
                pixels: its pixels in the last batch, without those passed over.
                candidates: those of them looked at, 0 if it took no part.
                class_loss: its loss, 0 if it took no part.
                anchor_density, key_density: mean density of the batch's anchors and keys; 0 if the class took
                    no part or no densities were needed.
            and, as scalars:
                ignored_pixels: of the last batch.
                non_finite_pixels: its labelled pixels passed over because of an inf or NaN.
                unknown_labels: its other labels outside [0, C); always 0 on the CPU, which refuses them.
                non_finite_rows: all non_finite_pixels since construction.
                pushes: of the bank.
        """
        bank = self.bank
        held = bank.held()
        total = torch.where(held, bank.density, 0).sum(1)
        ignored, non_finite, unknown = self._passed_over.clone()
        return {
            "rows": bank.counts.clone(),
            "ready": bank.ready(),
            "mean_density": total / held.sum(1).clamp(min=1),
            "active": self._active.clone(),
            "pixels": self._pixels.clone(),
            "candidates": self._candidates.clone(),
            "class_loss": self._class_loss.clone(),
            "anchor_density": self._anchor_density.clone(),
            "key_density": self._key_density.clone(),
            "ignored_pixels": ignored,
            "non_finite_pixels": non_finite,
            "unknown_labels": unknown,
            "non_finite_rows": self._non_finite_rows.clone(),
            "pushes": bank.pushes.clone(),
        }

    def report(self, class_names: Sequence[str] | None = None) -> str:
        """The diagnostics in words, for a person to print: what the last loss was, and if 0, why; which classes took
        part, and which are absent, excluded, or lack rows; pixels passed over; the bank. It reads values to the
        host, which waits for the device: not for every step.

        Args:
            class_names: to print in place of numbers.
        """
        return _report.report(self, class_names)


def _used_mean(values: Tensor, table: sampling.Table) -> Tensor:
    """[C, W] -> [C]: mean of the entries that mean something, 0 without any."""
    total = torch.where(sampling.used_entries(table), values, 0).sum(1)
    return total / table.counts.clamp(min=1)
