"""Runs the CPU kernels' cases under a sanitizer; see emulator/worker.py."""

import os

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
    torch.ops.load_library(file)
    return torch.ops.dgcl_ops.cpu_capability()


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
    from . import cases

    cases.all_cases()  # once, before the forks
    worker.serve(do)


if __name__ == "__main__":
    main()
