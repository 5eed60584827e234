"""Training on several ranks that share a bank, and the same training once more in one process.

The one process holds one bank. Rank after rank it computes the loss against that bank as it is, with the
random numbers and the share of that rank, and notes the rows that would be pushed; then it pushes the rows of
all ranks at once, one behind the other.
"""

import copy

import torch
from loss_oracle import batch_of, loss_of, run
from torch import distributed as dist

from dgcl_ops._bank import sharded_rings

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
}
REPLICATED_ALONE = ("average",)  # a sharded bank refuses it
COUNTS = ((20, 12, 9, 4, 0), (3, 0, 25, 6, 30), (0, 0, 0, 0, 0), (10, 11, 12, 13, 14))


def batch_for(rank: int, step: int, setting: dict) -> dict:
    """Other class contents and sizes on each rank, now and then no pixels, and some with a NaN."""
    dtype = torch.float64 if setting.get("bank_dtype") == torch.float64 else torch.float32
    seed = 100 * rank + step
    batch = batch_of(seed=seed, counts=COUNTS[(rank + step) % len(COUNTS)], dtype=dtype)
    batch["projections"][0, 0, 0, 0] = torch.nan
    images = {0: 2, 1: 1}.get(rank, 0 if step % 3 == 1 else 2)
    return {name: maps[:images] for name, maps in batch.items()}


def note(module, value, gradient) -> dict:
    told = module.diagnostics()
    return {
        "value": value.clone(),
        "gradient": gradient.clone(),
        "rows": told["rows"],
        "ready": told["ready"],
    }


def train(rank: int, folder, names, placement: str) -> dict:
    """Of each setting, what every step gave this rank, and the bank in the end."""
    if (
        dist.get_world_size() == 2
    ):  # the queries of a step travel in several pieces, as large ones do
        sharded_rings.PIECE = 20
    return {name: _train(rank, SETTINGS[name], placement) for name in names}


def _train(rank: int, setting: dict, placement: str) -> dict:
    module = loss_of(placement=placement, **{**setting, "seed": 1 + 10 * rank})
    # The first push gives all ranks rank 0's random state; until then each draws with its own.
    module.bank.rng_state[0] = 1
    steps = []
    for step in range(STEPS):
        value, gradient = run(module, batch_for(rank, step, setting))
        steps.append({**note(module, value, gradient), "checksum": module.bank.checksum()})
        module.bank.assert_synced()
    state = {name: t.clone() for name, t in module.bank.named_buffers() if name[0] != "_"}
    return {"steps": steps, "bank": state}


def train_alone(size: int, setting: dict) -> dict:
    """The same of all ranks, in one process: {"steps": [step][rank], "bank"}."""
    joined = loss_of(placement="local", **setting)
    bank, steps = joined.bank, []
    share = -(-bank.rows_per_push // size)
    for step in range(STEPS):
        told, pushed = [], []
        for rank in range(size):
            module = copy.deepcopy(joined)
            module.bank.first_stream = lambda rank=rank: 2 * rank
            module.bank.share = lambda: share
            module.bank.push_rows = lambda *rows, pushed=pushed: pushed.append(rows)
            value, gradient = run(module, batch_for(rank, step, setting))
            told.append(note(module, value, gradient))
        bank.push_rows(*_behind_each_other(pushed))
        bank.rng_state[1] += 1
        for of_rank in told:
            of_rank.update(rows=bank.counts.clone(), ready=bank.ready(), checksum=bank.checksum())
        steps.append(told)
    return {"steps": steps, "bank": {name: tensor.clone() for name, tensor in bank.named_buffers()}}


def _behind_each_other(pushed):
    """[C, P, ...] of each rank, of which the first counts[c] rows count -> the same, packed."""
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
