"""Runs the CPU kernels' cases under a sanitizer; see emulator/worker.py."""

import importlib.util
import os
import sys

from emulator import worker

THREADS = 4


class Worker(worker.Worker):
    program = "cpu_sanitizers.worker"


def load(file: str, level: str | None) -> str:
    """Loads the kernels and returns the instruction set in use; None: the widest one."""
    import torch

    os.environ.pop("DGCL_OPS_CPU_CAPABILITY", None)
    if level:
        os.environ["DGCL_OPS_CPU_CAPABILITY"] = level
    torch.set_num_threads(THREADS)
    spec = importlib.util.spec_from_file_location("dgcl_ops._C", file)
    kernels = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(kernels)
    return kernels.cpu_capability()


def do(job: str, file: str, arguments: dict) -> None:
    level = arguments.pop("level", None)
    used = load(file, level)
    assert level in (None, used), f"asked for {level}, got {used}"
    if job == "level":
        print(used)
    else:
        from . import cases

        cases.check(**arguments)


def main() -> None:
    sys.modules["dgcl_ops._C"] = None  # the operators without kernels: each job loads its own
    import dgcl_ops  # noqa: F401

    from . import cases

    cases.all_cases()  # once, before the forks
    worker.serve(do)


if __name__ == "__main__":
    main()
