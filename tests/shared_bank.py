"""Training on several ranks that share a bank, and the same training in one process.

The single process holds one bank. For each rank it computes the loss against that bank, with that rank's random numbers
and `rows_per_rank`, and collects the rows to push. Then it pushes the rows of all ranks at once, in rank order.
"""

import copy

import torch
from loss_oracle import batch_of, loss_of, run
from torch import distributed as dist

from dgcl_ops._bank import sharded_rings
from dgcl_ops.ops import memory_push

STEPS = 6
SETTINGS = {
    "default": {},
    "l2, refreshed": {"metric": "l2", "refresh_every": 2},
    "dot, float64": {"metric": "dot", "bank_dtype": torch.float64},
    "bfloat16": {"bank_dtype": torch.bfloat16},
    "random anchors": {"anchors": "random", "exclude_classes": (1,), "num_keys": 1},
    "low confidence": {"anchors": "low_confidence", "keys": "high_confidence", "disjoint": True},
    "published": {"start": "all_full", "backfill": False, "min_rows": 5, "bank_capacity": 10},
    "small ring": {"bank_capacity": 13, "rows_per_push": 45, "max_candidates": 45},
    "average": {"anchors": "random", "keys": "average"},
    "bfloat16 exchange": {"exchange_dtype": torch.bfloat16},
    "float16 exchange, l2": {
        "metric": "l2",
        "exchange_dtype": torch.float16,
        "refresh_every": 2,
    },
    "float64, float32 exchange": {
        "bank_dtype": torch.float64,
        "exchange_dtype": torch.float32,
        "bank_capacity": 13,
    },
}
# How the ranks share the bank.
SHARED = {
    "replicated": {"placement": "replicated"},
    "overlapped": {"placement": "replicated", "overlap_exchange": True},
    "sharded": {"placement": "sharded"},
}
REPLICATED_ALONE = ("average",)  # a sharded bank refuses it
COUNTS = ((20, 12, 9, 4, 0), (3, 0, 25, 6, 30), (0, 0, 0, 0, 0), (10, 11, 12, 13, 14))


def batch_for(rank: int, step: int, setting: dict) -> dict:
    """Each rank has different classes and sizes. Some batches have no pixels, and some pixels have a NaN."""
    dtype = torch.float64 if setting.get("bank_dtype") == torch.float64 else torch.float32
    seed = 100 * rank + step
    batch = batch_of(seed=seed, counts=COUNTS[(rank + step) % len(COUNTS)], dtype=dtype)
    batch["projections"][0, 0, 0, 0] = torch.nan
    images = {0: 2, 1: 1}.get(rank, 0 if step % 3 == 1 else 2)
    return {name: maps[:images] for name, maps in batch.items()}


def note(module, value, gradient) -> dict:
    diagnostics = module.diagnostics()
    return {
        "value": value.clone(),
        "gradient": gradient.clone(),
        "rows": diagnostics["rows"],
        "ready": diagnostics["ready"],
    }


def train(rank: int, folder, names, shared: str) -> dict:
    """For each setting, the results of every step on this rank, and the bank at the end."""
    if (
        dist.get_world_size() == 2
    ):  # the queries of a step are sent in several pieces, as in large steps
        sharded_rings.CHUNK = 20
    return {name: _train(rank, SETTINGS[name], shared) for name in names}


def _train(rank: int, setting: dict, shared: str) -> dict:
    module = loss_of(**{**setting, **SHARED[shared], "seed": 1 + 10 * rank})
    # The first push gives all ranks rank 0's random state. Until then each rank draws with its own.
    module.bank.rng_state[0] = 1
    steps = []
    for step in range(STEPS):
        value, gradient = run(module, batch_for(rank, step, setting))
        if shared == "overlapped" and (rank + step) % 3:
            # Nothing reads the bank, and other ranks do. The next step finishes the exchange.
            steps.append({"value": value.clone(), "gradient": gradient.clone()})
            continue
        steps.append({**note(module, value, gradient), "checksum": module.bank.checksum()})
        if shared != "overlapped":
            module.bank.assert_synced()
    module.bank.assert_synced()
    state = {name: t.clone() for name, t in module.bank.named_buffers() if name[0] != "_"}
    return {"steps": steps, "bank": state}


def train_in_one_process(size: int, setting: dict) -> dict:
    """The same results for all ranks, computed in one process: {"steps": [step][rank], "bank"}."""
    joined = loss_of(placement="local", **setting)
    bank, steps = joined.bank, []
    share = -(-bank.rows_per_push // size)
    for step in range(STEPS):
        results, pushed = [], []
        for rank in range(size):
            module = copy.deepcopy(joined)
            module.bank._first_stream = lambda rank=rank: 2 * rank
            module.bank.rows_per_push = share  # of one rank
            module.bank.push_rows = lambda *rows, pushed=pushed: pushed.append(rows)
            value, gradient = run(module, batch_for(rank, step, setting))
            results.append(note(module, value, gradient))
        if size > 1 and bank.exchange_dtype != bank.dtype:
            pushed = [_travelled(bank, *rows) for rows in pushed]
        bank.push_rows(*_concatenated(pushed))
        bank.rng_state[1] += 1
        for of_rank in results:
            of_rank.update(rows=bank.counts.clone(), ready=bank.ready(), checksum=bank.checksum())
        steps.append(results)
    return {"steps": steps, "bank": {name: tensor.clone() for name, tensor in bank.named_buffers()}}


def _travelled(bank, features, projections, density, counts):
    """The rows as the other ranks receive them: unit rows with "cosine", rounded to the exchange dtype."""
    if bank.metric == "cosine":
        unit = [torch.zeros_like(t, dtype=bank.dtype) for t in (features, projections, density)]
        heads = torch.zeros_like(counts), torch.zeros_like(counts)
        memory_push(*unit, *heads, features, projections, density, counts, True)
        features = unit[0]
    dtype = bank.exchange_dtype
    return features.to(dtype).to(bank.dtype), projections.to(dtype).to(bank.dtype), density, counts


def _concatenated(pushed):
    """[C, P, ...] of each rank, with counts[c] rows in use -> the rows in use of all ranks, without gaps."""
    counts = torch.stack([rows[3] for rows in pushed])
    total = counts.sum(0)
    packed = []
    for field in range(3):
        classes = []
        for c in range(len(total)):
            rows = torch.cat(
                [each[field][c, :n] for each, n in zip(pushed, counts[:, c], strict=True)]
            )
            missing = rows.new_full((int(total.max()) - len(rows), *rows.shape[1:]), torch.nan)
            classes.append(torch.cat([rows, missing]))
        packed.append(torch.stack(classes))
    return *packed, total
