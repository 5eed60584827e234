"""What is installed, which code serves which device and why, and whether it computes the right thing here.

    python -m dgcl_ops.doctor [--device cpu|cuda|cuda:1]

Prints a report to paste into a bug report. Every operator, and a few steps of the loss, run on the device; what it
selects, copies and counts must equal the compiled CPU operators' in every bit, and all numbers must be near those of
`reference.py` in float64. On CUDA the search runs on both of its paths, and a step must not make the host wait. Where
plain PyTorch serves the device, equal bits are not promised.
Exit status: 0 if all checks pass, 1 if one fails, 2 if the device cannot be used.
"""

import argparse
import functools
import platform
import re
import sys
import time

import torch

import dgcl_ops
from dgcl_ops._doctor_checks import BY_SEARCH, CHECKS
from dgcl_ops._doctor_cuda import report_lines
from dgcl_ops._doctor_side import SEARCH, TOLERANCE, Side, Tally, environment
from dgcl_ops._doctor_step import CUDA_CHECKS

MOST_NOTES = 4  # printed of a check that fails


def unusable(device: str) -> str | None:
    """Why a tensor cannot be put on the device; None if it can."""
    try:
        torch.empty(1, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0]
        return f"device {device!r} cannot be used: {reason} (torch {torch.__version__})"
    return None


# ---- what is there ----------------------------------------------------------------------------------


def installation() -> list[str]:
    info = dgcl_ops.backend_info()
    cuda_build = info["extension"] and re.search(r"\bcuda (.*)", info["build"])
    lines = [
        f"dgcl_ops   {info['version']}",
        f"torch      {info['torch']}, {torch.get_num_threads()} threads",
        f"python     {platform.python_version()}, {platform.platform()}",
        f"extension  {info['extension'] or 'none: plain PyTorch'}",
        f"build      {info['build']}",
        f"cuda code  {cuda_build[1] if cuda_build else 'no'}",
        *report_lines(info["build"]),
        f"cpu code   {info['cpu_capability'] or 'plain PyTorch'} (DGCL_OPS_CPU_CAPABILITY caps compiled code)",
        f"required   {'compiled kernels only' if info['require_compiled'] else 'plain PyTorch where no kernel exists'}"
        " (DGCL_OPS_REQUIRE_COMPILED)",
        "devices",
    ]
    for name, serving in info["devices"].items():
        lines.append(f"  {name:<6} {serving['implementation']:<10} {serving['reason']}")
    return lines


def driver_version() -> str:
    """As PyTorch's own bug reports find it out: by nvidia-smi."""
    from torch.utils import collect_env

    try:
        return collect_env.get_nvidia_driver_version(collect_env.run) or "unknown"
    except Exception as error:  # a report must not fail for this
        return f"unknown ({type(error).__name__})"


def gpu(device: str) -> list[str]:
    """The CUDA device: name, sizes, versions."""
    found = torch.cuda.get_device_properties(device)
    return [
        f"gpu        {found.name}, compute capability {found.major}.{found.minor}, "
        f"{found.multi_processor_count} multiprocessors",
        f"memory     {found.total_memory / 2**30:.1f} GiB, L2 {found.L2_cache_size / 2**20:.0f} MiB",
        f"cuda       runtime {torch.version.cuda} of torch, which has code for "
        f"{' '.join(torch.cuda.get_arch_list())}; driver {driver_version()}",
    ]


# ---- checks -----------------------------------------------------------------------------------------


def verdict(name: str, check, side: Side) -> tuple[list[str], bool]:
    """One line, and a few more if something is wrong."""
    tally = Tally(exact=side.compiled)
    start = time.perf_counter()
    try:
        check(side, tally)
    except Exception as error:  # a report must say what happened, whatever it was
        told = " ".join(str(error).split())
        return [f"  {name:<28} FAILED: {type(error).__name__}: {told}"], False
    seconds = time.perf_counter() - start
    word = "ok" if tally.good else "WRONG"
    line = f"  {name:<28} {word:<6} {tally.summary()}  ({seconds:.2f} s)"
    notes = [f"    {note}" for note in tally.notes[:MOST_NOTES]]
    if len(tally.notes) > MOST_NOTES:
        notes.append(f"    and {len(tally.notes) - MOST_NOTES} more")
    return [line, *notes], tally.good


def run_checks(side: Side):
    """Yields the lines of each check as it ends, and whether it passed; None if it was not done."""
    for name, check in CHECKS.items():
        for path in side.search_paths if name in BY_SEARCH else (None,):
            with environment(SEARCH, path):
                yield verdict(f"{name}, {path} search" if path else name, check, side)
    for name, check in CUDA_CHECKS.items():
        if torch.device(side.device).type != "cuda":
            yield [f"  {name:<28} not checked on {side.device}"], None
        elif not side.compiled:
            told = "plain PyTorch serves this device and copies offsets to the host"
            yield [f"  {name:<28} not checked: {told}"], None
        else:
            yield verdict(name, check, side)


def promise(side: Side) -> str:
    if not side.compiled:
        return "plain PyTorch serves it: equal bits are not promised"
    if torch.device(side.device).type == "cpu":
        return "equal bits for any number of threads"
    return "selections, copies and counts with the bits of the compiled CPU operators"


def report(
    device: str = "cpu", side: Side | None = None, say=lambda line: None
) -> tuple[str, bool]:
    """The text of the report, and whether every check passed. `say` gets each line as soon as it is known."""
    side = side or Side(device)
    on_cuda = torch.device(device).type == "cuda"
    lines, passed = [], True

    def add(*more: str) -> None:
        lines.extend(more)
        for line in more:
            say(line)

    add(*installation())
    if on_cuda:
        add(*gpu(device))
    add(
        f"self-check on {device}",
        f"  {promise(side)}",
        f"  allowed difference from float64: {TOLERANCE:g} of the largest number, if not said otherwise",
    )
    for text, good in run_checks(side):
        add(*text)
        passed = passed and good is not False
    if not passed and on_cuda:
        add(
            "after a CUDA error later checks fail with it; CUDA_LAUNCH_BLOCKING=1 tells where it arose"
        )
    add("all checks passed" if passed else "a check FAILED: please report this text")
    return "\n".join(lines), passed


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m dgcl_ops.doctor", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--device", default="cpu", help="device to check, such as cpu or cuda")
    device = parser.parse_args(argv).device
    reason = unusable(device)
    if reason:
        print("\n".join(installation()))
        print(f"dgcl_ops.doctor: {reason}; nothing was checked", file=sys.stderr)
        return 2
    _, passed = report(device, say=functools.partial(print, flush=True))
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
