"""The memory bank: for each class a ring of features, projections and densities.

The rings are written in place and read as views. Everything that decides the next step is a persistent
buffer on the bank's device, so that a checkpoint continues bit for bit and no step waits for the host.
"""

import copy

import torch
from torch import Tensor, nn

from dgcl_ops import _random
from dgcl_ops._bank import checkpoint, exchange, sharded_rings
from dgcl_ops._bank.rings import Rings
from dgcl_ops._precision import FixedDtypeModule, no_autocast
from dgcl_ops._step import selection
from dgcl_ops._step.batch import Batch
from dgcl_ops.ops import _arguments, gather_rows

PLACEMENTS = ("replicated", "sharded", "local")


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
        placement: what several processes share. "replicated": each draws its share of a push, at most
            rows_per_push / W rows of each class (rounded up), and writes the shares of all W, so that all
            banks stay equal, bit for bit. "sharded": of each ring a process holds a window of capacity / W
            slots, and answers the queries of the others; densities are those of the replicated bank, bit for
            bit; each step waits for the host, so that it does not compile with fullgraph=True. "local": nothing;
            each process fills a bank from its own batches.
        process_group: the processes that share; None: all of them, if torch.distributed is in use by then. They
            have to push, and with "sharded" to ask for densities, the same number of times.
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
        pushes [] int64, rng_state [2] int64; meaning [2 + scales] int64: metric, dtype and scales, for the
        checkpoint. Sharded: of features, projections and density [C, capacity / W] slots; in the state_dict they
        are DTensors of the whole.
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
        self.dtype = _arguments.one_of(op, "dtype", dtype, checkpoint.DTYPES)
        self.placement = _arguments.one_of(op, "placement", placement, PLACEMENTS)
        exchange.check_group(op, process_group)
        self.process_group = process_group
        ranks = exchange.ALONE
        if placement != "local":
            ranks = exchange.ranks_of(process_group)
        self.rings = Rings(self.capacity)
        if placement == "sharded" and ranks.size > 1:
            self.rings = sharded_rings.ShardedRings(ranks, self.capacity)
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
        self.refresh_every = _arguments.at_least(op, "refresh_every", refresh_every, 0)
        self.backfill = bool(backfill)

        rows = (num_classes, self.rings.length)
        density_dtype = torch.float64 if dtype == torch.float64 else torch.float32

        def buffer(name: str, shape: tuple[int, ...], dtype: torch.dtype):
            self.register_buffer(name, torch.zeros(shape, dtype=dtype, device=device))

        buffer("features", (*rows, feature_dim), dtype)
        buffer("projections", (*rows, self.projection_dim), dtype)
        buffer("density", rows, density_dtype)
        buffer("counts", (num_classes,), torch.int64)
        buffer("heads", (num_classes,), torch.int64)
        buffer("pushes", (), torch.int64)
        self.register_buffer("rng_state", _random.new_rng_state(seed, device))
        meaning = checkpoint.meaning(metric, dtype, self.scales, device)
        self.register_buffer("meaning", meaning)
        if not self.rings.whole:
            # Shows whether another rank's buffers were written over this window's.
            owner = torch.tensor(ranks.rank, device=device)
            self.register_buffer("_owner", owner, persistent=False)

    def extra_repr(self) -> str:
        return (
            f"num_classes={self.num_classes}, feature_dim={self.feature_dim}, "
            f"projection_dim={self.projection_dim}, capacity={self.capacity}, metric={self.metric!r}, "
            f"scales={self.scales}, min_rows={self.min_rows}, dtype={self.dtype}, "
            f"placement={self.placement!r}"
        )

    def __deepcopy__(self, memo):
        for group in (self.process_group, self.rings):  # processes, which a copy does not multiply
            memo[id(group)] = group
        copied = memo[id(self)] = type(self).__new__(type(self))
        copied.__dict__ = copy.deepcopy(self.__dict__, memo)
        return copied

    def ranks(self) -> exchange.Ranks:
        """The processes that share the bank, and the number of this one."""
        if self.placement == "local":
            return exchange.ALONE
        ranks = exchange.ranks_of(self.process_group)
        if self.placement == "sharded":
            built = self.rings.ranks
            if built[1:] != ranks[1:]:
                raise RuntimeError(
                    f"MemoryBank: with placement 'sharded' the bank must be constructed by the process that "
                    f"uses it, after init_process_group, rank {ranks.rank} of {ranks.size}, got a bank of rank "
                    f"{built.rank} of {built.size}"
                )
        return ranks

    def first_stream(self) -> int:
        """Of the random numbers of this process, see `_random.random_bits`: two streams for each rank."""
        return 2 * self.ranks().rank

    def share(self) -> int:
        """Rows that this process draws of each class for a push, at most."""
        return -(-self.rows_per_push // self.ranks().size)

    # ---- reading --------------------------------------------------------------------------------------

    def ready(self, min_rows: int | None = None) -> Tensor:
        """[C] bool: which classes hold at least `min_rows` rows, by default the bank's own."""
        return self.counts >= (self.min_rows if min_rows is None else min_rows)

    def held(self) -> Tensor:
        """[C, capacity] bool: which slots hold a row. A ring fills from slot 0 on. Sharded: those of the window."""
        counts = self.rings.counts(self.counts)
        return torch.arange(self.density.shape[1], device=counts.device) < counts[:, None]

    def holds_unit_rows(self, query_dtype: torch.dtype) -> bool:
        """Whether rows pass for unit rows. Those of a half-precision bank are unit to three digits only, and
        those of a float32 bank are not unit for float64 queries: then the kernel takes the norms itself."""
        exact = self.dtype == torch.float64 or (
            self.dtype == torch.float32 and query_dtype != torch.float64
        )
        return exact and self.metric == "cosine"

    def densest_slots(self, width: int) -> Tensor:
        """The slots of highest stored density; of equal ones, the lowest. Entries beyond the rows held mean nothing.

        Shape: [C, width], for a width of at most the capacity.
        """
        return self.rings.densest_slots(self, width)

    def projection_rows(self, slots: Tensor) -> Tensor:
        """The projections in some slots of each ring. Shape: [C, K] -> [C, K, E]."""
        return self.rings.projection_rows(self, slots)

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
            queries: rows sorted by class, of any float dtype. A gradient flows to them, but not with a sharded bank.
            query_offsets: [C + 1] int64, where each class begins.
            classes: [C] bool, further classes to leave out where False; they get density 0.
            exclude_self: the queries are the bank's own rows, each no neighbour of itself. Not with a sharded bank,
                of which no process has all rows.

        Shape:
            queries [M, D] -> [M].
        """
        with_density = self.ready() if classes is None else self.ready() & classes
        return self.rings.density_of(self, queries, query_offsets, with_density, exclude_self)

    @torch.no_grad()
    def checksum(self) -> Tensor:
        """[] int64, on the bank's device: changes with any bit of any row, density, count or head, and with
        their order. Equal banks have equal checksums on all devices and processes. A sharded bank has that of the
        replicated one; there all processes have to ask for it."""
        return checkpoint.checksum(self)

    def assert_synced(self) -> None:
        """Raises unless the processes that share the bank agree: on all of it, or, sharded, on counts, heads,
        pushes and random state. All of them have to call it; the host waits. With placement "local" there is
        nothing to agree on.

        Raises:
            RuntimeError: if a process differs from rank 0, naming which and in what.
        """
        told = {"pushes": self.pushes, "rng_state": self.rng_state}
        told |= self.rings.fingerprint(self)
        exchange.assert_equal("MemoryBank.assert_synced", self.ranks(), told)

    # ---- writing --------------------------------------------------------------------------------------

    @torch.no_grad()
    def push(
        self, features: Tensor, projections: Tensor, labels: Tensor, *, ignore_index: int = 255
    ) -> None:
        """Draws at most `rows_per_push` random pixels of each class and appends them, the oldest falling out.

        Of several processes each draws its share. Pixels with an inf or NaN in their feature or projection are
        passed over. Everything is checked before anything is written.

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
        batch = Batch.checked("MemoryBank.push", self, projections, labels, features)
        if labels.numel() == 0:
            if self.ranks().size == 1:
                return
            # The other processes have rows, and wait for this one.
            batch = batch.one_ignored_pixel(ignore_index)
        with no_autocast(labels):
            push = selection.rows_to_push(self, batch, ignore_index)
            projections = gather_rows(batch.projections, push.pixels.index)
            self.push_rows(push.features, projections, push.density, push.pixels.counts)
            self.rng_state[1].add_(1)

    @torch.no_grad()
    def push_rows(
        self, features: Tensor, projections: Tensor, density: Tensor, row_counts: Tensor
    ) -> None:
        """Appends the first row_counts[c] rows of each class c, whose densities are known.

        Of several processes each gives its rows, at most its share: rows_per_push / W, rounded up. They are
        appended in the order of the ranks, and rank 0's random state goes to all.

        Raises:
            ValueError: if P is more than this process's share.

        Shape:
            features [C, P, D], projections [C, P, E], density [C, P], row_counts [C] int64 in [0, P].
        """
        was_ready = self.ready()
        ranks, share = self.ranks(), self.share()
        rows = exchange.Arrivals(features, projections, density, row_counts)
        if ranks.size == 1:
            self.rings.write(self, rows, normalize=self.metric == "cosine")
        else:
            if features.shape[1] > share:
                raise ValueError(
                    f"MemoryBank.push_rows: features must hold at most {share} rows of a class, the share of one "
                    f"of {ranks.size} processes in {self.rows_per_push}, got {features.shape[1]}"
                )
            rng_state, arrivals = exchange.exchange(ranks, self, share, rows)
            self.rng_state.copy_(rng_state)
            for rows in arrivals:
                self.rings.write(self, rows, normalize=False)
        self.pushes.add_(1)
        if self.backfill or self.refresh_every:
            due = torch.zeros_like(was_ready)
            if self.backfill:
                due = due | ~was_ready
            if self.refresh_every:
                due = due | (self.pushes % self.refresh_every == 0)
            self.rings.refresh(self, due & self.ready())

    @torch.no_grad()
    def reset(self) -> None:
        """Empties the bank. The random state goes on."""
        for name in ("features", "projections", "density", "counts", "heads", "pushes"):
            getattr(self, name).zero_()

    # ---- loading --------------------------------------------------------------------------------------

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        self.rings.save(self, destination, prefix)

    def _load_from_state_dict(
        self, state_dict, prefix, metadata, strict, missing, unexpected, errors
    ):
        known = [prefix + name for name in checkpoint.NAMES]
        absent = [key for key in known if key not in state_dict]
        foreign = [key for key in state_dict if key.startswith(prefix) and key not in known]
        missing += absent
        if strict:
            unexpected += foreign
        if absent or (foreign and strict):
            return
        fitted = checkpoint.fitting(self, state_dict, prefix, errors)
        if fitted is None:
            return
        fitted = {prefix + name: value for name, value in fitted.items()}
        super()._load_from_state_dict(fitted, prefix, metadata, strict, missing, unexpected, errors)


def ddp_ignore_bank(root: nn.Module) -> list[str]:
    """Keeps DistributedDataParallel from sending rank 0's bank to the other ranks in every step.

    DDP broadcasts the buffers of what it wraps from rank 0, at once and before each forward. For a
    :class:`MemoryBank` that costs the whole bank's size a step. A "replicated" bank is the same on all
    ranks, and stays as it is; a "sharded" one loses its windows, and the next step raises an error; a
    "local" one loses what the other ranks pushed. DDP skips the names in
    ``_ddp_params_and_buffers_to_ignore``, which it reads only on the module it is given: so call this
    with that very module, before DDP wraps it. A bank outside the wrapped module, or
    ``broadcast_buffers=False``, needs no such call.

    Args:
        root: the module that DDP is going to wrap.

    Returns:
        The names of the buffers of every bank inside root, empty if there is none. Names that were
        ignored before stay ignored.

    Raises:
        TypeError: root is not a module, or is wrapped already.
    """
    if not isinstance(root, nn.Module):
        raise TypeError(f"ddp_ignore_bank: root must be a Module, got {type(root).__name__}")
    if isinstance(root, nn.parallel.DistributedDataParallel):
        raise TypeError(
            "ddp_ignore_bank: root must be the module before it is wrapped, got a "
            "DistributedDataParallel, which has read the names already"
        )
    names = []
    for prefix, module in root.named_modules(remove_duplicate=False):
        if isinstance(module, MemoryBank):
            for name, buffer in module.named_buffers(prefix):
                names.append(name)
                buffer._ddp_ignored = True  # what DDP's mixed precision asks before it casts
    ignored = list(getattr(root, "_ddp_params_and_buffers_to_ignore", ()))
    ignored += [name for name in names if name not in ignored]
    root._ddp_params_and_buffers_to_ignore = ignored
    return names
