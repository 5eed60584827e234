"""What the fuzzer's workers do."""

import importlib.util
import json
import sys
import time

from kernels.harness.worker import poison_function


def prepare() -> None:
    import torch  # noqa: F401  (once, before the forks)


def load(file: str) -> None:
    """Makes the given library dgcl_ops._C, and imports the package."""
    spec = importlib.util.spec_from_file_location("dgcl_ops._C", file)
    sys.modules["dgcl_ops._C"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["dgcl_ops._C"])


def cases(op: str, seed: int, first: int, count: int, seconds: float, stop: bool = False) -> None:
    """Runs until a limit, or the first problem with `stop`. The last case printed is the one that crashed."""
    from . import judge

    end, run, refused, problems = time.monotonic() + seconds, 0, 0, []
    while run < count and time.monotonic() < end and not (stop and problems):
        number = first + run
        print(f"case {op} {seed} {number}", flush=True)
        outcome = judge.judge(op, seed, number)
        run, refused = run + 1, refused + outcome.refused
        if outcome.problem:
            done = "; ".join(outcome.changes) or "nothing"
            problems.append(
                f"PROBLEM {op} --seed {seed} --case {number}: {outcome.problem} [{done}]"
            )
    print(*(problem.replace("\n", " ")[:600] for problem in problems[:20]), sep="\n")
    print(json.dumps({"run": run, "refused": refused}), flush=True)
    assert not problems, f"{len(problems)} problems"


def run(job: str, file: str, **arguments) -> None:
    load(file)
    from dgcl_ops.doctor.cases import tensors

    tensors.poison = poison_function()
    cases(**arguments)
