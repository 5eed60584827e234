"""The memory bank: for each class a ring of features, projections and densities.

The rings are written in place and read as views. Everything that decides the next step is a persistent buffer on the
bank's device. So a checkpoint continues bit for bit, and no step syncs.
"""

from __future__ import annotations

import copy
from typing import Any, Literal, cast

import torch
from torch import Tensor

from dgcl_ops import _random
from dgcl_ops._bank import buffers, checkpoint, exchange, sharded_rings
from dgcl_ops._bank.rings import Rings
from dgcl_ops._precision import FixedDtypeModule, no_autocast
from dgcl_ops._step import selection
from dgcl_ops._step.batch import Batch, zero_row
from dgcl_ops.ops import _arguments, gather_rows

PLACEMENTS = ("replicated", "sharded", "local")


class MemoryBank(FixedDtypeModule):
    """Holds one ring of rows per class. A row is a feature, its projection and its density.

    A row's density is the mean similarity to its nearest neighbours in its class, see `knn_density`. It is computed at
    insertion, against the bank as it was before the push. While a class holds fewer than `min_rows` rows, its rows get
    the placeholder density 0. The push that makes the class ready computes all of them.

    With metric "cosine", features are stored as unit rows. With the other metrics they are stored unchanged.

    Under torch.distributed, `placement` decides what the ranks share:

    - "replicated": each rank draws at most rows_per_push / W rows (rounded up) of each class and writes the rows of all
      W ranks. All banks stay equal, bit for bit.
    - "sharded": each rank holds a shard of capacity / W slots of each ring and answers the other ranks' queries. The
      densities are those of the replicated bank, bit for bit. Each step synchronises with the host, so it does not
      compile with fullgraph=True.
    - "local": the ranks share nothing. Each fills its bank from its own batches.

    With "sharded", the buffers `features`, `projections` and `density` have capacity / W slots. In the state_dict they
    are DTensors of the whole bank.

    Args:
        num_classes: number of classes C.
        feature_dim: channels D of the features.
        projection_dim: channels E of the projections, D by default.
        capacity: slots of each ring.
        rows_per_push: maximum rows of each class that one push draws.
        metric: metric of the density. "l2" is the negative Euclidean distance.
        scales: neighbourhood sizes of the density.
        dtype: dtype of the stored rows. Densities are float64 for float64 rows, else float32.
        placement: what several ranks share, see above.
        exchange_dtype: dtype in which rows travel between ranks, `dtype` or a narrower one; `dtype` by default. All
            ranks store the rows that travelled. One process sends nothing, so it rounds nothing. The density of a row
            is computed before the row is rounded, and travels in its own dtype.
        overlap_exchange: whether a push only starts the exchange. The next use of the bank finishes it, with the same
            bits. Not supported with "sharded".
        process_group: the ranks that share the bank. None uses the default group if torch.distributed is initialised.
            All ranks must push the same number of times. With "sharded" they must also call `density_of` the same
            number of times.
        min_rows: number of rows that makes a class ready. By default the largest scale, at most the capacity.
        refresh_every: after this many pushes, recompute the densities of all ready classes; 0 never does.
        backfill: whether a class that becomes ready gets the densities of all its rows.
        seed: seed of the draws. By default drawn from torch's global generator.
        device: device of the buffers.

    Attributes:
        features: [C, capacity, D].
        projections: [C, capacity, E].
        density: [C, capacity].
        counts: [C] int64, rows in each ring.
        heads: [C] int64, the slot that the next row goes to.
        num_pushes: [] int64.
        rng_state: [2] int64, seed and step.
        config: [2 + scales] int64: metric, dtype and scales, so that loading a different bank is detected.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If an argument is out of its range.
    """

    features: Tensor
    projections: Tensor
    density: Tensor
    counts: Tensor
    heads: Tensor
    num_pushes: Tensor
    rng_state: Tensor
    config: Tensor
    _owner: Tensor

    def __init__(
        self,
        num_classes: int,
        feature_dim: int,
        projection_dim: int | None = None,
        *,
        capacity: int = 10_000,
        rows_per_push: int = 1_000,
        metric: Literal["cosine", "dot", "l2"] = "cosine",
        scales: tuple[int, ...] = (8, 16, 32),
        dtype: torch.dtype = torch.float32,
        placement: Literal["replicated", "sharded", "local"] = "replicated",
        exchange_dtype: torch.dtype | None = None,
        overlap_exchange: bool = False,
        process_group: Any = None,
        min_rows: int | None = None,
        refresh_every: int = 0,
        backfill: bool = True,
        seed: int | None = None,
        device: torch.device | str | None = None,
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
        self.dtype = _arguments.one_of(op, "dtype", dtype, checkpoint.DTYPES)
        self.placement = _arguments.one_of(op, "placement", placement, PLACEMENTS)
        narrower = [each for each in checkpoint.DTYPES if each.itemsize < dtype.itemsize]
        exchange_dtype = dtype if exchange_dtype is None else exchange_dtype
        _arguments.one_of(op, "exchange_dtype", exchange_dtype, (dtype, *narrower))
        self.exchange_dtype = exchange_dtype
        if overlap_exchange and placement == "sharded":
            raise ValueError(
                f"{op}: overlap_exchange=True is not supported with placement 'sharded': a read that finishes the "
                "exchange would start further collectives, so all ranks would have to read in the same order"
            )
        self.overlap_exchange = bool(overlap_exchange)
        self._overlap = exchange.new_overlap() if overlap_exchange else None
        # In a copy that has not pushed yet: the version of `features` when its rows were last checked.
        self._copied_at: tuple[int, int] | None = None
        exchange.check_group(op, process_group)
        self.process_group = process_group
        ranks = exchange.SINGLE_PROCESS
        if placement != "local":
            ranks = exchange.ranks_of(process_group)
        self.rings: Rings | sharded_rings.ShardedRings = Rings(self.capacity)
        if placement == "sharded" and ranks.world_size > 1:
            self.rings = sharded_rings.ShardedRings(ranks, self.capacity)
        if min_rows is None:
            min_rows = min(max(self.scales), capacity)
        self.min_rows = _arguments.positive_integer(op, "min_rows", min_rows)
        if min_rows > capacity:
            raise ValueError(f"{op}: min_rows must be at most capacity {capacity}, got {min_rows}")
        if not backfill and metric != "cosine":
            raise ValueError(
                f"{op}: backfill=False needs metric='cosine', got metric={metric!r}: with 'dot' and 'l2' the "
                "placeholder density 0 may rank highest"
            )
        self.refresh_every = _arguments.at_least(op, "refresh_every", refresh_every, 0)
        self.backfill = bool(backfill)

        rows = (num_classes, self.rings.length)

        def buffer(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
            self.register_buffer(name, torch.zeros(shape, dtype=dtype, device=device))

        for name, width in (("features", feature_dim), ("projections", self.projection_dim)):
            buffer(name, (*rows, width), dtype)
        buffer("density", rows, self._row_dtype("density"))
        buffer("counts", (num_classes,), torch.int64)
        buffer("heads", (num_classes,), torch.int64)
        buffer("num_pushes", (), torch.int64)
        self._seed = _random.new_seed() if seed is None else seed
        self.register_buffer("rng_state", _random.new_rng_state(self._seed, device))
        self.register_buffer("config", checkpoint.config(metric, dtype, self.scales, device))
        if not self.rings.whole:
            # Shows whether another rank's buffers were written over this shard.
            owner = torch.tensor(ranks.rank, device=device)
            self.register_buffer("_owner", owner, persistent=False)

    def extra_repr(self) -> str:
        return (
            f"num_classes={self.num_classes}, feature_dim={self.feature_dim}, "
            f"projection_dim={self.projection_dim}, capacity={self.capacity}, metric={self.metric!r}, "
            f"scales={self.scales}, min_rows={self.min_rows}, dtype={self.dtype}, "
            f"placement={self.placement!r}"
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> MemoryBank:
        for shared in (self.process_group, self.rings):  # a process group cannot be copied
            memo[id(shared)] = shared
        copied = memo[id(self)] = type(self).__new__(type(self))
        copied.__dict__ = copy.deepcopy(self.__dict__, memo)
        if self._copied_at in (None, buffers.version_of(self.features)):
            copied._copied_at = buffers.version_of(copied.features)
        return copied  # the copy of a changed copy keeps the old version, so its rows are checked

    # ---- ranks ----------------------------------------------------------------------------------------

    @property
    def rows_per_rank(self) -> int:
        """The maximum rows of each class that this rank adds in a push, rows_per_push / W rounded up."""
        return -(-self.rows_per_push // self._ranks().world_size)

    def _ranks(self) -> exchange.Ranks:
        """The ranks that share the bank."""
        if self.placement == "local":
            return exchange.SINGLE_PROCESS
        ranks = exchange.ranks_of(self.process_group)
        if self.placement == "sharded":
            built = self.rings.ranks
            if built[1:] != ranks[1:]:
                raise RuntimeError(
                    f"MemoryBank: this bank was built for rank {built.rank} of {built.world_size} but is used on rank "
                    f"{ranks.rank} of {ranks.world_size}; with placement 'sharded', construct the bank after "
                    "init_process_group"
                )
        return ranks

    def _first_stream(self) -> int:
        """The first of this rank's two streams of random numbers, see `ops.random_bits`."""
        return 2 * self._ranks().rank

    # ---- reading --------------------------------------------------------------------------------------

    def ready(self, min_rows: int | None = None) -> Tensor:
        """Which classes hold enough rows.

        Args:
            min_rows: threshold; by default the bank's own.

        Returns:
            [C] bool.
        """
        return self.counts >= (self.min_rows if min_rows is None else min_rows)

    def valid_slots(self) -> Tensor:
        """Which slots hold a row.

        Returns:
            [C, capacity] bool. With "sharded", the slots of this rank's shard.
        """
        counts = self.rings.counts(self.counts)
        return torch.arange(self.density.shape[1], device=counts.device) < counts[:, None]

    def _row_dtype(self, name: str) -> torch.dtype:
        """The dtype of the buffer `features`, `projections` or `density`."""
        if name == "density" and self.dtype != torch.float64:
            return torch.float32
        return self.dtype

    def _holds_unit_rows(self, query_dtype: torch.dtype) -> bool:
        """Whether a search may skip the norms of the rows.

        Half-precision rows have unit norm to three digits only, and float32 rows are not exact enough for a float64
        query.
        """
        stored = self.features.dtype  # not self.dtype: trainers cast buffers
        exact = stored == torch.float64 or (
            stored == torch.float32 and query_dtype != torch.float64
        )
        return exact and self.metric == "cosine"

    def density_of(
        self,
        queries: Tensor,
        query_offsets: Tensor,
        *,
        classes: Tensor | None = None,
        exclude_self: bool = False,
    ) -> Tensor:
        """Density of each query among its class's rows; 0 if the class is not ready.

        Args:
            queries: [M, D], sorted by class, of any float dtype. They receive a gradient, except with "sharded".
            query_offsets: [C + 1] int64, where each class begins.
            classes: [C] bool. Queries of classes that are False get density 0.
            exclude_self: the queries are the bank's own rows; do not count a row as its own neighbour. Not supported
                with "sharded".

        Returns:
            The densities, [M].

        Raises:
            ValueError: If, with "sharded", `exclude_self` is True or `queries` requires a gradient.
        """
        with_density = self.ready() if classes is None else self.ready() & classes
        return self.rings.density_of(self, queries, query_offsets, with_density, exclude_self)

    @torch.no_grad()
    def checksum(self) -> Tensor:
        """Hashes all rows, densities, counts and heads, and their order.

        Equal banks have equal checksums on all devices and ranks. A sharded bank has the checksum of the replicated
        one; all ranks must call it.

        Returns:
            [] int64, on the bank's device.
        """
        return checkpoint.checksum(self)

    def assert_synced(self) -> None:
        """Raises unless the ranks that share the bank agree. All ranks must call it. It syncs.

        Compares the settings that affect what is exchanged and stored, the number of pushes, the random state and the
        whole bank. With "sharded", only counts and heads of the bank are compared; with "local", nothing.

        Raises:
            RuntimeError: If a rank differs from rank 0. The text names the rank and what differs.
        """
        state = checkpoint.settings(self)
        state |= {"num_pushes": self.num_pushes, "rng_state": self.rng_state}
        state |= self.rings.synced_state(self)
        exchange.assert_equal("MemoryBank.assert_synced", self._ranks(), state)

    # ---- writing --------------------------------------------------------------------------------------

    @torch.no_grad()
    def push(
        self, features: Tensor, projections: Tensor, labels: Tensor, *, ignore_index: int = 255
    ) -> None:
        """Appends at most `rows_per_push` random pixels of each class. The oldest rows are overwritten.

        With several ranks, each draws at most `rows_per_rank` of them. Pixels with an inf or NaN are skipped.
        Everything is checked before anything is written.

        Args:
            features: [B, D, *S] with 1 to 6 spatial dimensions, or [M, D], any float dtype.
            projections: [B, E, *S] or [M, E], any float dtype.
            labels: [B, *S], [B, 1, *S] or [M], any integer dtype.
            ignore_index: label of pixels to skip.

        Raises:
            TypeError: If a dtype does not fit.
            ValueError: If a shape or device does not fit.
            RuntimeError: If, on the CPU, a label is neither in [0, C) nor `ignore_index`.
        """
        self.finish_exchange()
        buffers.check(self, labels)
        batch, maps = Batch.checked("MemoryBank.push", self, projections, labels, features)
        projections = cast(Tensor, maps)
        if batch.labels.numel() == 0:
            if self._ranks().world_size == 1:
                return
            # The other ranks have rows and wait for this one.
            batch, projections = batch.one_ignored_pixel(ignore_index), zero_row(projections)
        with no_autocast(batch.labels):
            push = selection.rows_to_push(self, batch, ignore_index)
            projections = gather_rows(projections, push.pixels.index)
            self.rng_state[1].add_(1)  # before the push, which sends rank 0's state
            self.push_rows(push.features, projections, push.density, push.pixels.counts)

    @torch.no_grad()
    def push_rows(
        self, features: Tensor, projections: Tensor, density: Tensor, row_counts: Tensor
    ) -> None:
        """Appends the first row_counts[c] rows of each class c, with known densities.

        With several ranks, each adds its own rows. They are appended in rank order, and all ranks take rank 0's random
        state.

        Args:
            features: [C, P, D]; with several ranks P <= `rows_per_rank`.
            projections: [C, P, E].
            density: [C, P].
            row_counts: [C] int64, in [0, P].

        Raises:
            ValueError: If there are several ranks and P is more than `rows_per_rank`.
        """
        self.finish_exchange()
        buffers.check(self, row_counts)
        if self._copied_at is not None and not torch.compiler.is_compiling():
            self._copied_at = None
        ranks = self._ranks()
        rows = exchange.PushedRows(features, projections, density, row_counts)
        if ranks.world_size == 1:
            self._append([rows], normalize=self.metric == "cosine")
            return
        if features.shape[1] > self.rows_per_rank:
            raise ValueError(
                f"MemoryBank.push_rows: features must hold at most {self.rows_per_rank} rows of a class "
                f"(rows_per_push {self.rows_per_push} over {ranks.world_size} ranks), got {features.shape[1]}"
            )
        if self._overlap is not None:
            self._overlap.start(self, ranks, rows)
        else:
            exchange.receive(self, *exchange.exchange_rows(ranks, self, rows))

    def finish_exchange(self) -> None:
        """Waits for the exchange that the last push started, and writes its rows.

        A no-op if none is pending. Every use of the bank does this, so there is rarely a need to call it.
        """
        if self._overlap is not None and self._overlap.started:
            self._overlap.finish(self)

    def _append(self, rows_of_ranks: list[exchange.PushedRows], normalize: bool) -> None:
        """Writes rows and recomputes the densities that are due."""
        was_ready = self.ready() if self.backfill else None
        for rows in rows_of_ranks:
            self.rings.write(self, rows, normalize)
        self.num_pushes.add_(1)
        if was_ready is not None or self.refresh_every:
            due = self.ready()
            if was_ready is None:
                due = due & (self.num_pushes % self.refresh_every == 0)
            elif self.refresh_every:
                due = due & (~was_ready | (self.num_pushes % self.refresh_every == 0))
            else:
                due = due & ~was_ready
            self.rings.refresh(self, due)

    @torch.no_grad()
    def reset(self) -> None:
        """Empties the bank. The random state continues."""
        for name in ("features", "projections", "density", "counts", "heads", "num_pushes"):
            getattr(self, name).zero_()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Resets the buffers to the state of a new bank with the same seed.

        Call it after `to_empty`. If the bank was constructed on the meta device, `to_empty` calls it.
        """
        self.reset()
        self.rng_state.copy_(_random.new_rng_state(self._seed, "cpu"))
        self.config.copy_(checkpoint.config(self.metric, self.dtype, self.scales, "cpu"))
        if not self.rings.whole:
            self._owner.fill_(self.rings.ranks.rank)

    # ---- state_dict -----------------------------------------------------------------------------------

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        self.rings.save(self, destination, prefix)

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        metadata: Any,
        strict: bool,
        missing: list[str],
        unexpected: list[str],
        errors: list[str],
    ) -> None:
        fitted = checkpoint.read(self, state_dict, prefix, strict, missing, unexpected, errors)
        if fitted is not None:
            super()._load_from_state_dict(
                fitted, prefix, metadata, strict, missing, unexpected, errors
            )
            if not self.rings.whole:
                if self._owner.is_meta:
                    self._owner = torch.empty_like(self._owner, device=self.counts.device)
                self._owner.fill_(self.rings.ranks.rank)
