"""The memory bank: for each class a ring of features, projections and densities.

The rings are written in place and read as views. Everything that decides the next step is a persistent
buffer on the bank's device, so that a checkpoint continues bit for bit and no step waits for the host.
"""

import torch
from torch import Tensor

from dgcl_ops import reference, sampling
from dgcl_ops._modules import (
    FixedDtypeModule,
    at_least,
    check_batch,
    one_of,
)
from dgcl_ops.ops import _arguments, knn_density, memory_push

_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


class MemoryBank(FixedDtypeModule):
    """Per class a ring of rows: feature, projection, and the feature's density.

    A row's density is the mean similarity to its nearest neighbours of the class (`knn_density`), computed at
    insertion against the bank as it was before the push. While a class holds fewer than `min_rows` rows, its
    rows get density 0 for the time being; the push that makes the class ready computes all of them.

    With metric "cosine" the stored features are unit rows. With the other metrics they are stored as they are.

    Args:
        num_classes: C.
        feature_dim: D.
        projection_dim: E, D by default.
        capacity: rows of each ring.
        rows_per_push: rows that one push draws of each class, at most.
        metric: "cosine", "dot" or "l2".
        scales: neighbourhood sizes of the density.
        dtype: of the stored rows. Densities are float32, for float64 rows float64.
        placement: "replicated", the only one in this version.
        process_group: None, the only one in this version.
        min_rows: rows from which on a class is ready; by default the largest scale, or the capacity if that is
            less.
        refresh_every: every that many pushes the densities of all ready classes are computed anew; 0: never.
        backfill: whether a class that becomes ready gets the densities of all its rows.
        seed: of the rows drawn by `push`; by default drawn from torch's global generator.
        device: of the buffers.

    Raises:
        TypeError, ValueError: if an argument is out of its range.

    Shape:
        features [C, capacity, D], projections [C, capacity, E], density [C, capacity],
        counts and heads [C] int64: rows held, and the slot the next row goes to;
        pushes [] int64, rng_state [2] int64; meaning [1 + scales] int64: metric and scales, for the checkpoint.
    """

    def __init__(
        self,
        num_classes: int,
        feature_dim: int,
        projection_dim: int | None = None,
        *,
        capacity: int = 10_000,
        rows_per_push: int = 1_000,
        metric: str = "cosine",
        scales: tuple[int, ...] = (8, 16, 32),
        dtype: torch.dtype = torch.float32,
        placement: str = "replicated",
        process_group=None,
        min_rows: int | None = None,
        refresh_every: int = 0,
        backfill: bool = True,
        seed: int | None = None,
        device=None,
    ):
        super().__init__()
        op = "MemoryBank"
        self.num_classes = _arguments.positive_integer(op, "num_classes", num_classes)
        self.feature_dim = _arguments.positive_integer(op, "feature_dim", feature_dim)
        projection_dim = feature_dim if projection_dim is None else projection_dim
        self.projection_dim = _arguments.positive_integer(op, "projection_dim", projection_dim)
        self.capacity = _arguments.positive_integer(op, "capacity", capacity)
        self.rows_per_push = _arguments.positive_integer(op, "rows_per_push", rows_per_push)
        self.metric = _arguments.metric_name(op, metric)
        self.scales = _arguments.scale_tuple(op, scales)
        self.dtype = one_of(op, "dtype", dtype, _DTYPES)
        if placement != "replicated":
            raise ValueError(
                f"{op}: placement must be 'replicated' in this version, where every process holds the "
                f"whole bank, got {placement!r}"
            )
        if process_group is not None:
            raise ValueError(
                f"{op}: process_group must be None in this version, where every process fills its bank "
                f"from its own batches, got {process_group!r}"
            )
        if min_rows is None:
            min_rows = min(max(self.scales), capacity)
        self.min_rows = _arguments.positive_integer(op, "min_rows", min_rows)
        if min_rows > capacity:
            raise ValueError(f"{op}: min_rows must be at most capacity {capacity}, got {min_rows}")
        if not backfill and metric != "cosine":
            raise ValueError(
                f"{op}: backfill must be True with metric {metric!r}, of whose densities 0, that of a row "
                f"without one, may be the highest, got {backfill!r}"
            )
        self.refresh_every = at_least(op, "refresh_every", refresh_every, 0)
        self.backfill = bool(backfill)

        rows = (num_classes, capacity)
        density_dtype = torch.float64 if dtype == torch.float64 else torch.float32

        def buffer(name: str, shape: tuple[int, ...], dtype: torch.dtype):
            self.register_buffer(name, torch.zeros(shape, dtype=dtype, device=device))

        buffer("features", (*rows, feature_dim), dtype)
        buffer("projections", (*rows, self.projection_dim), dtype)
        buffer("density", rows, density_dtype)
        buffer("counts", (num_classes,), torch.int64)
        buffer("heads", (num_classes,), torch.int64)
        buffer("pushes", (), torch.int64)
        self.register_buffer("rng_state", sampling.new_rng_state(seed, device))
        # What rows and densities mean, for the checkpoint: loaded as another metric's they would look valid.
        meaning = torch.tensor([_arguments.METRICS.index(metric), *self.scales], device=device)
        self.register_buffer("meaning", meaning)

    def extra_repr(self) -> str:
        return (
            f"num_classes={self.num_classes}, feature_dim={self.feature_dim}, "
            f"projection_dim={self.projection_dim}, capacity={self.capacity}, metric={self.metric!r}, "
            f"scales={self.scales}, min_rows={self.min_rows}, dtype={self.dtype}"
        )

    # ---- reading --------------------------------------------------------------------------------------

    def ready(self, min_rows: int | None = None) -> Tensor:
        """[C] bool: which classes hold at least `min_rows` rows, by default the bank's own."""
        return self.counts >= (self.min_rows if min_rows is None else min_rows)

    def held(self) -> Tensor:
        """[C, capacity] bool: which slots hold a row. A ring fills from slot 0 on."""
        return torch.arange(self.capacity, device=self.counts.device) < self.counts[:, None]

    def density_of(
        self,
        queries: Tensor,
        query_offsets: Tensor,
        *,
        classes: Tensor | None = None,
        exclude_self: bool = False,
    ) -> Tensor:
        """Density of each query in its class's rows; 0 where the class is not ready.

        Args:
            queries: rows sorted by class, of any float dtype.
            query_offsets: [C + 1] int64, where each class begins.
            classes: [C] bool, further classes to leave out where False; they get density 0.
            exclude_self: the queries are the bank's own rows, each no neighbour of itself.

        Shape:
            queries [M, D] -> [M].
        """
        with_density = self.ready() if classes is None else self.ready() & classes
        # Unit rows of a half-precision bank are unit to three digits only, and those of a float32 bank are
        # not unit for float64 queries: then the kernel takes the norms itself.
        exact = self.dtype == torch.float64 or (
            self.dtype == torch.float32 and queries.dtype != torch.float64
        )
        return knn_density(
            queries,
            self.features,
            self.scales,
            metric=self.metric,
            query_offsets=query_offsets,
            bank_counts=torch.where(with_density, self.counts, 0),
            exclude_self=exclude_self,
            unit_bank=exact and self.metric == "cosine",
        )

    @torch.no_grad()
    def checksum(self) -> Tensor:
        """[] int64, on the bank's device: changes with any bit of any row, density, count or head, and with
        their order. Equal banks have equal checksums on all devices and processes."""
        total = torch.zeros((), dtype=torch.int64, device=self.counts.device)
        # The words are widened to int64 in pieces, on a processor small enough for its cache.
        piece = 1 << (15 if total.device.type == "cpu" else 22)
        at = 0
        for name in ("features", "projections", "density", "counts", "heads"):
            buffer = getattr(self, name)
            narrow = torch.int16 if buffer.element_size() == 2 else torch.int32
            for words in buffer.view(narrow).reshape(-1).split(piece):
                place = torch.arange(at, at + words.numel(), device=words.device)
                word = words.to(torch.int64) & 0xFFFFFFFF
                # Hashes of 32 bits: 2^31 of them fit into the sum.
                total = total + sampling.mix(word ^ sampling.mix(place & 0xFFFFFFFF)).sum()
                at += words.numel()
        return total

    # ---- writing --------------------------------------------------------------------------------------

    @torch.no_grad()
    def push(
        self, features: Tensor, projections: Tensor, labels: Tensor, *, ignore_index: int = 255
    ) -> None:
        """Draws at most `rows_per_push` random pixels of each class and appends them, the oldest falling out.

        Pixels with an inf or NaN in their feature or projection are passed over. Everything is checked before
        anything is written.

        Args:
            features: feature maps, any float dtype.
            projections: projection maps of the same size.
            labels: class of each pixel, any integer type.
            ignore_index: label of pixels to pass over.

        Raises:
            TypeError, ValueError: if dtypes or shapes do not fit.
            RuntimeError: on the CPU, if a label lies outside [0, C) and is not `ignore_index`.

        Shape:
            features [B, D, H, W], projections [B, E, H, W], labels [B, H, W];
            or flat: [M, D], [M, E], [M].
        """
        check_batch(
            "MemoryBank.push",
            projections,
            labels,
            features,
            self.projection_dim,
            self.feature_dim,
            self.counts.device,
        )
        pixel_count = labels.numel()
        if pixel_count == 0:
            return
        with reference.no_autocast(features):
            usable = sampling.finite_rows(features) & sampling.finite_rows(projections)
            bits = sampling.random_bits(self.rng_state, 0, (pixel_count,))
            segments = sampling.partition(labels, self.num_classes, ignore_index, bits, usable)
            width = min(self.rows_per_push, pixel_count)
            limits = torch.full_like(segments.counts, width)
            size = min(pixel_count, self.num_classes * width)
            rows = sampling.leading_rows(segments, limits, size)
            density = self.density_of(sampling.gather_rows(features, rows.pixels), rows.offsets)
            table = sampling.front(rows, torch.minimum(segments.counts, limits), width)
            pixels = rows.pixels[table.index]
            self.push_rows(
                sampling.gather_rows(features, pixels),
                sampling.gather_rows(projections, pixels),
                density[table.index],
                table.counts,
            )
            self.rng_state[1].add_(1)

    @torch.no_grad()
    def push_rows(
        self, features: Tensor, projections: Tensor, density: Tensor, row_counts: Tensor
    ) -> None:
        """Appends the first row_counts[c] rows of each class c, whose densities are known.

        Shape:
            features [C, P, D], projections [C, P, E], density [C, P], row_counts [C] int64 in [0, P].
        """
        was_ready = self.ready()
        # Fresh tensors for the two that a step reads before the push. TorchInductor (2.13) may run such a read,
        # fused into a later kernel, after a custom operator that writes to what is read; an ordinary copy_ it
        # keeps in its place. The `where` is there because a clone would be optimised away.
        counts = torch.where(row_counts >= 0, self.counts, 0)
        heads = torch.where(row_counts >= 0, self.heads, 0)
        memory_push(
            self.features,
            self.projections,
            self.density,
            counts,
            heads,
            features,
            projections,
            density,
            row_counts,
            self.metric == "cosine",
        )
        self.counts.copy_(counts)
        self.heads.copy_(heads)
        self.pushes.add_(1)
        if self.backfill or self.refresh_every:
            due = torch.zeros_like(was_ready)
            if self.backfill:
                due = due | ~was_ready
            if self.refresh_every:
                due = due | (self.pushes % self.refresh_every == 0)
            self._refresh(due)

    def _refresh(self, classes: Tensor) -> None:
        """Computes the densities of all rows of the given classes that are ready, each row against the others.

        Which classes those are is known to the device alone; for the others the kernel is given no rows.

        Shape: classes [C] bool.
        """
        classes = classes & self.ready()
        offsets = torch.arange(self.num_classes + 1, device=classes.device) * self.capacity
        rows = self.features.view(-1, self.feature_dim)
        density = self.density_of(rows, offsets, classes=classes, exclude_self=True)
        density = density.view_as(self.density).to(self.density.dtype)
        self.density.copy_(torch.where(classes[:, None], density, self.density))

    @torch.no_grad()
    def reset(self) -> None:
        """Empties the bank. The random state goes on."""
        for name in ("features", "projections", "density", "counts", "heads", "pushes"):
            getattr(self, name).zero_()

    # ---- loading --------------------------------------------------------------------------------------

    def _load_from_state_dict(self, state_dict, prefix, *args):
        errors = args[-1]
        if isinstance(state_dict.get(prefix + "meaning"), Tensor):
            code, *scales = state_dict[prefix + "meaning"].tolist()
            stored = {"metric": _arguments.METRICS[code], "scales": tuple(scales)}
            for name, theirs in stored.items():
                if theirs != getattr(self, name):
                    errors.append(
                        f"MemoryBank: {name} must be {theirs!r} as in the stored bank, got "
                        f"{getattr(self, name)!r}"
                    )
                    return
        stored = state_dict.get(prefix + "features")
        # Copied into float32, rows that are unit in bfloat16 would pass for exact ones.
        if isinstance(stored, Tensor) and stored.dtype != self.dtype:
            errors.append(
                f"MemoryBank: the stored rows must have the bank's dtype {self.dtype}, got {stored.dtype}; "
                "construct the bank with that dtype"
            )
            return
        super()._load_from_state_dict(state_dict, prefix, *args)
