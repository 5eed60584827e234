"""A small stand-in for CUDA graphs, without a GPU: records operations once and repeats them on the same tensors."""

import contextlib
import types

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def tensors(values) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)]


class Recorder(TorchDispatchMode):
    """The operations of one run, with the tensors and numbers that they were called with.

    Like a graph, a replay reads the current contents of the tensors, and repeats what the host decided while recording.
    Unlike with a graph, the operations also run while they are recorded.
    """

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.calls.append((function, args, kwargs or {}, result))
        return result

    @torch.no_grad()
    def replay(self):
        for function, args, kwargs, recorded in self.calls:
            inputs = {t.untyped_storage().data_ptr() for t in tensors((args, kwargs))}
            again = tensors(function(*args, **kwargs))
            for old, new in zip(tensors(recorded), again, strict=True):
                if old.untyped_storage().data_ptr() not in inputs:  # neither a view nor in place
                    old.copy_(new)


def pretend_graphs(monkeypatch) -> None:
    """torch.cuda.graph, and the functions used with it, on CPU tensors."""
    stream = types.SimpleNamespace(wait_stream=lambda other: None)
    for name, stand_in in {
        "device": contextlib.nullcontext,
        "current_stream": lambda: stream,
        "Stream": lambda: stream,
        "stream": contextlib.nullcontext,
        "CUDAGraph": Recorder,
        "graph": lambda graph: graph,
    }.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
