"""Processes that end, or whose peer ends, while an exchange is pending. CUDA graphs, which cannot hold one."""

import time

import pytest
import torch
from loss_oracle import loss_of, run
from processes import on_ranks
from shared_bank import batch_for
from torch import distributed as dist
from torch import multiprocessing

from dgcl_ops._bank.overlap import PendingBuffers

if not dist.is_available() or not dist.is_gloo_available():
    pytest.skip("needs gloo", allow_module_level=True)


def pending(loss) -> bool:
    return isinstance(loss.bank.__dict__["_buffers"], PendingBuffers)


kept = []  # until the interpreter ends


def _process(rank, folder, end):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=2)
    loss = loss_of(overlap_exchange=True)
    kept.append(loss)
    run(loss, batch_for(rank, 0, {}))
    assert pending(loss)
    if end == "read without a group":
        dist.barrier()
        dist.destroy_process_group()
        assert int(loss.bank.num_pushes) == 1
        assert not pending(loss)
    elif end == "destroyed":
        dist.destroy_process_group()
    elif end == "rank 1 stops":
        if rank == 0:
            run(loss, batch_for(rank, 1, {}))
            for _ in range(2):  # the second read does not return the unfinished bank either
                with pytest.raises(RuntimeError):
                    loss.bank.counts.sum()
            assert pending(loss)
            assert int(loss.bank.__dict__["_buffers"].buffers["num_pushes"]) == 1
        else:
            loss.bank.finish_exchange()
    (folder / f"ended.{rank}").touch()


@pytest.mark.parametrize("end", ["pending", "destroyed", "read without a group", "rank 1 stops"])
def test_a_process_ends_with_a_pending_exchange(tmp_path, end):
    context = multiprocessing.spawn(_process, args=(tmp_path, end), nprocs=2, join=False)
    patience = time.monotonic() + 1200
    while not context.join(timeout=5):
        if time.monotonic() > patience:
            for process in context.processes:
                process.kill()
            pytest.fail("a process hangs")
    assert len(list(tmp_path.glob("ended.*"))) == 2


def capturing(rank, folder) -> list:
    """The error of a push while CUDA captures a graph, with a stand-in for the stream."""
    loss = loss_of(overlap_exchange=True)

    class OnDevice:
        is_cuda = True

    torch.cuda.is_current_stream_capturing = lambda: True
    rows = type("Rows", (), {"row_counts": OnDevice()})()
    try:
        loss.bank._overlap.start(loss.bank, loss.bank._ranks(), rows)
    except RuntimeError as error:
        return [str(error), pending(loss)]
    return ["captured", pending(loss)]


def test_a_cuda_graph_is_refused(tmp_path):
    for text, is_pending in on_ranks(2, tmp_path, capturing):
        assert "overlap_exchange=True is not supported in a CUDA graph" in text
        assert not is_pending
