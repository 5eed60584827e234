"""Several threads at once, threads that fail, and processes forked after threads have worked."""

import multiprocessing
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from builds import COMPILED, needs_extension
from loss_oracle import C, D, E, assert_same_state, loss_of, run, snapshot
from oracles import integers, random_rows

from dgcl_ops import ops

CALLERS = 4


@pytest.fixture(autouse=True)
def several_threads():
    """Also in each caller's pool."""
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(1)


def at_once(calls: list) -> list:
    """The results of calls that start together, each in its own thread."""
    barrier = threading.Barrier(len(calls))

    def one(call):
        barrier.wait()
        return call()

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(one, calls))


def training(seed: int):
    """Values and gradients of some steps with their own bank, and its final state."""
    module = loss_of(seed=seed, bank_capacity=200, max_candidates=300, rows_per_push=50)
    steps = []
    for step in range(6):
        labels = torch.randint(C, (2, 24, 24), generator=torch.Generator().manual_seed(step))
        batch = {
            "projections": random_rows(2, E, 24, 24, seed=10 * seed + step),
            "features": random_rows(2, D, 24, 24, seed=100 * seed + step),
            "labels": labels,
        }
        steps.append(run(module, batch))
    return steps, snapshot(module), module


def test_losses_train_side_by_side():
    alone = [training(seed) for seed in range(CALLERS)]
    together = at_once([lambda seed=seed: training(seed) for seed in range(CALLERS)])
    for (steps, state, _), (others, _, module) in zip(alone, together, strict=True):
        assert steps[-1][0] > 0
        for mine, theirs in zip(steps, others, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))
        assert_same_state(module, state)
    assert alone[0][0][-1][0] != alone[1][0][-1][0]  # they do differ


def every_op(shared: dict):
    """Results of all operators on the same tensors, large enough for several threads."""
    rows, bank, maps = shared["rows"], shared["bank"], shared["maps"]
    density = ops.knn_density(rows, bank, query_offsets=shared["offsets"])
    values, indices = ops.knn_topk(rows, bank[0], 9, metric="l2")
    gradients = torch.ops.dgcl_ops.knn_topk_backward(
        values, rows, bank[0], values, indices, "l2", None, False
    )
    ring = [torch.zeros(3, 40, 16), torch.zeros(3, 40, 16), torch.zeros(3, 40)]
    state = [torch.zeros(3, dtype=torch.int64), torch.zeros(3, dtype=torch.int64)]
    ops.memory_push(*ring, *state, bank, bank, bank[..., 0], integers([90, 3, 40]))
    negatives = bank[:, :90]
    contrast = torch.ops.dgcl_ops.density_contrast(bank, bank[:, 0], negatives, 0.5, None, None, 0)
    return [
        *(density, values, indices, *gradients, *ring, *state, *contrast),
        ops.gather_rows(maps, shared["pixels"]),
        torch.ops.dgcl_ops.gather_rows_backward(rows, shared["pixels"][:700] // 9, (2, 16, 30, 31)),
        ops.finite_rows(maps, maps.mT.contiguous().mT, maps[:, 0]),
        *ops.leading_rows(shared["pixels"], integers([900, 800]), integers([70, 900]), 900),
        *ops.draw_negatives(
            shared["pixels"], integers([900, 800]), shared["pixels"][:1000].view(2, 500)
        ),
        *ops.class_table(shared["pixels"], integers([0, 900, 1700]), None, 300),
        *ops.partition_keys(shared["labels"], shared["labels"] != 3, shared["labels"], 7),
        ops.random_bits(shared["offsets"][1:3], 5, 70_000),
        ops.silhouette_sums(rows, shared["offsets"]),
        ops.sum_rows(rows, shared["pixels"].view(3, -1) % 700, integers([600, 20, 9])),
    ]


def test_operators_share_what_they_only_read():
    shared = {
        "rows": random_rows(700, 16, seed=1),
        "bank": random_rows(3, 300, 16, seed=2),
        "offsets": integers([0, 300, 500, 700]),
        "maps": random_rows(2, 5, 30, 31, seed=3),
        "pixels": torch.randperm(2 * 30 * 31),
        "labels": torch.arange(70_000) % 7,
    }
    before = {name: tensor.clone() for name, tensor in shared.items()}
    alone = every_op(shared)
    together = at_once([lambda: [every_op(shared) for _ in range(5)] for _ in range(CALLERS)])
    for results in (results for caller in together for results in caller):
        assert all(torch.equal(a, b) for a, b in zip(results, alone, strict=True))
    assert all(torch.equal(before[name], tensor) for name, tensor in shared.items())


def failing_arguments(size: int):
    """Each thread allocates memory for `size` negatives, although the tensor stores only one."""
    rows = random_rows(1, 300, 8, seed=1)
    return rows, rows[:, 0], rows[:, :1].expand(1, size, 8), integers([2])


@needs_extension
@pytest.mark.parametrize("size", [2**45, 2**59])  # 2^59 x 8 x 4 bytes are 0 modulo 2^64
def test_what_a_thread_throws_is_an_error_of_the_call(size):
    anchors, keys, negatives, counts = failing_arguments(size)
    with pytest.raises(RuntimeError, match="out of memory: a thread needs"):
        ops.density_contrast(anchors, keys, negatives, negative_counts=counts)
    loss = ops.density_contrast(anchors, keys, negatives[:, :2], negative_counts=counts)
    assert bool(loss.isfinite().all())  # the threads work again


# ---- fork ---------------------------------------------------------------------------------------------


def search() -> torch.Tensor:
    return ops.knn_density(random_rows(900, 16, seed=1), random_rows(800, 16, seed=2))


def a_child(pipe) -> None:
    try:
        labels = integers([9])
        ops.partition_keys(labels, labels == 9, labels, 3)
    except RuntimeError as error:
        refused = str(error)
    grandchild = in_a_fork(lambda pipe: pipe.send(search().tolist()))
    anchors, keys, negatives, counts = failing_arguments(2**45)
    try:
        ops.density_contrast(anchors, keys, negatives, negative_counts=counts)
    except RuntimeError as error:
        failed = str(error)
    pipe.send((search().tolist(), grandchild, refused, failed))


def in_a_fork(function):
    context = multiprocessing.get_context("fork")
    mine, theirs = context.Pipe()
    child = context.Process(target=function, args=(theirs,))
    child.start()
    answer = mine.recv() if mine.poll(40) else None
    child.kill()
    child.join()
    assert answer is not None, "the child hangs"
    return answer


class Searches(torch.utils.data.Dataset):
    def __len__(self):
        return 3

    def __getitem__(self, index):
        return search()


def fork_after_use() -> None:
    """Runs in its own process, see below."""
    torch.set_num_threads(3)
    expected = search()
    density, grandchild, refused, failed = in_a_fork(a_child)
    assert density == grandchild == expected.tolist()
    assert "partition_keys: labels must lie in" in refused
    assert "out of memory: a thread needs" in failed
    loader = torch.utils.data.DataLoader(
        Searches(), num_workers=2, multiprocessing_context="fork", timeout=1200
    )
    assert all(torch.equal(batch[0], expected) for batch in loader)
    print("all equal")


@pytest.mark.skipif(
    not COMPILED, reason="PyTorch's own operators hang in a process forked after use"
)
@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
def test_a_process_forked_after_use_works():
    """OpenMP's pool does not survive a fork. PyTorch's own operators hang there if they use it."""
    command = [sys.executable, "-c", "import test_threads; test_threads.fork_after_use()"]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=1200)
    assert "all equal" in done.stdout, done.stderr
