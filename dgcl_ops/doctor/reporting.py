"""The doctor's report, as text."""

import platform
import re
import time

import torch

import dgcl_ops
from dgcl_ops.doctor.cases import all_cases
from dgcl_ops.doctor.checks import BY_SEARCH, CHECKS
from dgcl_ops.doctor.compare import SEARCH, TOLERANCE, Comparison, Target, environment
from dgcl_ops.doctor.cuda import report_lines
from dgcl_ops.doctor.step import CUDA_CHECKS

MOST_NOTES = 4  # printed for a check that fails


def unusable(device: str) -> str | None:
    """Why a tensor cannot be put on the device; None if it can."""
    try:
        torch.empty(1, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:
        reason = str(error).strip().splitlines()[0]
        return f"device {device!r} cannot be used: {reason} (torch {torch.__version__})"
    return None


# ---- installation -----------------------------------------------------------------------------------


def installation() -> list[str]:
    info = dgcl_ops.backend_info()
    cuda_build = info["extension"] and re.search(r"\bcuda (.*)", info["build"])
    lines = [
        f"dgcl_ops   {info['version']}",
        f"torch      {info['torch']}, {torch.get_num_threads()} threads",
        f"python     {platform.python_version()}, {platform.platform()}",
        f"extension  {info['extension'] or 'none: plain PyTorch'}",
        f"build      {info['build']}",
        f"cuda code  {cuda_build[1] if cuda_build else 'none'}",
        *report_lines(info["build"]),
        f"cpu code   {info['cpu_capability'] or 'plain PyTorch'} (DGCL_OPS_CPU_CAPABILITY caps compiled code)",
        f"fallback   {'forbidden' if info['require_compiled'] else 'plain PyTorch where no kernel exists'}"
        " (DGCL_OPS_REQUIRE_COMPILED)",
        "devices",
    ]
    for name, serving in info["devices"].items():
        lines.append(f"  {name:<6} {serving['implementation']:<10} {serving['reason']}")
    return lines


def driver_version() -> str:
    """The driver version, from nvidia-smi."""
    from torch.utils import collect_env

    try:
        return collect_env.get_nvidia_driver_version(collect_env.run) or "unknown"
    except Exception as error:  # a report must not fail for this
        return f"unknown ({type(error).__name__})"


def gpu(device: str) -> list[str]:
    """The CUDA device: name, sizes, versions."""
    properties = torch.cuda.get_device_properties(device)
    return [
        f"gpu        {properties.name}, compute capability {properties.major}.{properties.minor}, "
        f"{properties.multi_processor_count} multiprocessors",
        f"memory     {properties.total_memory / 2**30:.1f} GiB, L2 {properties.L2_cache_size / 2**20:.0f} MiB",
        f"cuda       torch uses CUDA runtime {torch.version.cuda}, compiled for "
        f"{' '.join(torch.cuda.get_arch_list())}; driver {driver_version()}",
    ]


# ---- checks -----------------------------------------------------------------------------------------


def verdict(name: str, check, target: Target) -> tuple[list[str], bool]:
    """One line per check, and a few more if something is wrong."""
    comparison = Comparison(exact=target.compiled)
    start = time.perf_counter()
    try:
        check(target, comparison)
    except Exception as error:  # a report must say what happened, whatever it was
        message = " ".join(str(error).split())
        return [f"  {name:<28} FAILED: {type(error).__name__}: {message}"], False
    seconds = time.perf_counter() - start
    word = "ok" if comparison.good else "WRONG"
    line = f"  {name:<28} {word:<6} {comparison.summary()}  ({seconds:.2f} s)"
    notes = [f"    {note}" for note in comparison.notes[:MOST_NOTES]]
    if len(comparison.notes) > MOST_NOTES:
        notes.append(f"    and {len(comparison.notes) - MOST_NOTES} more")
    return [line, *notes], comparison.good


def run_checks(target: Target):
    """Yields the lines of each check as it ends, and whether it passed; None if it was skipped."""
    for name, check in CHECKS.items():
        for path in target.search_paths if name in BY_SEARCH else (None,):
            with environment(SEARCH, path):
                yield verdict(f"{name}, {path} search" if path else name, check, target)
    for name, check in CUDA_CHECKS.items():
        if torch.device(target.device).type != "cuda":
            yield [f"  {name:<28} not checked on {target.device}"], None
        elif not target.compiled:
            message = "this device uses the PyTorch fallback, which copies offsets to the host"
            yield [f"  {name:<28} not checked: {message}"], None
        else:
            yield verdict(name, check, target)


def left_out() -> str:
    number = sum(case.vast for cases in all_cases().values() for case in cases)
    return f"not run: {number} cases that need 8 GiB of address space"


def promise(target: Target) -> str:
    if not target.compiled:
        return "PyTorch fallback: results need not be bit-identical"
    if torch.device(target.device).type == "cpu":
        return "equal bits for any number of threads"
    return "selections, copies and counts must be bit-identical to the compiled CPU operators'"


def report(
    device: str = "cpu", target: Target | None = None, say=lambda line: None
) -> tuple[str, bool]:
    """Checks a device.

    Args:
        device: its name, such as "cpu" or "cuda".
        target: stands in for the device.
        say: called with each line as soon as it is known.

    Returns:
        The text of the report, and whether every check passed.
    """
    target = target or Target(device)
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
        f"  {promise(target)}",
        f"  tolerance against float64: {TOLERANCE:g} of the largest value, unless a check sets its own",
        f"  {left_out()}",
    )
    for text, good in run_checks(target):
        add(*text)
        passed = passed and good is not False
    if not passed and on_cuda:
        add(
            "checks after a CUDA error fail too; rerun with CUDA_LAUNCH_BLOCKING=1 to locate the first one"
        )
    add(
        "all checks passed"
        if passed
        else "some checks FAILED: please include this report in a bug report"
    )
    return "\n".join(lines), passed
