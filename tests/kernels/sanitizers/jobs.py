"""What the sanitizers' workers do. They must produce no report; values are tested elsewhere."""

import importlib.util
import os
import sys

from kernels.harness.worker import poison_function

THREADS = 4


def prepare() -> None:
    sys.modules["dgcl_ops._C"] = None  # no kernels: each job loads its own
    from dgcl_ops.doctor.cases import all_cases, tensors

    tensors.poison = poison_function()
    all_cases()


def load(file: str, level: str | None) -> str:
    """Loads the kernels and returns the instruction set in use. None: the widest one."""
    import torch

    os.environ.pop("DGCL_OPS_CPU_CAPABILITY", None)
    if level:
        os.environ["DGCL_OPS_CPU_CAPABILITY"] = level
    torch.set_num_threads(THREADS)
    spec = importlib.util.spec_from_file_location("dgcl_ops._C", file)
    kernels = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(kernels)
    return kernels.cpu_capability()


def run(job: str, file: str, level: str | None = None, **arguments) -> None:
    used = load(file, level)
    assert level in (None, used), f"the level must be {level}, got {used}"
    if job == "level":
        print(used)
    else:
        cases(**arguments)


def chosen(case, thread: bool) -> bool:
    """Whether a case runs. All do, but under ThreadSanitizer only those with work for several threads."""
    return case.thread or case.parallel or not thread


def cases(op: str, thread: bool = False) -> None:
    """Runs all cases of the operator, or those with work for several threads."""
    from dgcl_ops.doctor.cases import all_cases
    from dgcl_ops.doctor.compare import Target

    for case in all_cases()[op]:
        if chosen(case, thread):
            print(f"{op} {case.name}", flush=True)  # named in a sanitizer's report
            Target("cpu").run(case)
