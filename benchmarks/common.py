"""Shared by the benchmarks: paired timing, the machine's description, dated rows.

All contenders run in one process with the same number of threads. Each repeat runs every contender once. The order
rotates between repeats and alternates direction, so slow moments and cache contents affect all contenders equally.
We report medians. A ratio is the median of the ratios inside each repeat. on_cuda.py describes timing on CUDA.

The column "others" is the largest fraction of the processors that other processes used during a repeat. --calm limits
it.
"""

import argparse
import csv
import datetime
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import on_cuda
import torch

from dgcl_ops import backend_info

ROOT = Path(__file__).resolve().parent.parent
MACHINE_COLUMNS = (
    *("date", "commit", "cpu", "cores", "cpu_capability", "device", "torch", "threads", "others"),
)
PATIENCE = 1800  # seconds to wait for calm repeats
REST = (
    0.02  # seconds before each run, until the idle OpenMP threads of the previous run stop spinning
)


class Disagreement(RuntimeError):
    """Contenders compute different results, so their times must not be compared."""


def say(text: str) -> None:
    """Prints progress to stderr, so that tables on stdout can be redirected."""
    print(text, file=sys.stderr, flush=True)


def parser_of(description: str, repeats: int | None = None) -> argparse.ArgumentParser:
    """Returns a parser with the options that all benchmarks share.

    Args:
        description: the program's docstring.
        repeats: default of --repeats. None: no such option.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    if repeats is not None:
        parser.add_argument("--repeats", type=int, default=repeats)
    calm = "redo repeats during which other processes use more than this fraction of the processors, such as 0.05"
    parser.add_argument("--calm", type=float, help=calm)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    return parser


# ---- time -------------------------------------------------------------------------------------------


def seconds(function: Callable[[], object], device: torch.device) -> on_cuda.Timing:
    """Times one call."""
    if device.type == "cuda":
        return on_cuda.device_seconds(function, device)
    begin = time.perf_counter()
    result = function()
    return on_cuda.Timing(time.perf_counter() - begin, result, None)


class OtherLoad:
    """Measures the fraction of the processors that other processes use between two calls of `share`."""

    def __init__(self):
        self.known = Path("/proc/stat").exists()
        self.mark = self._now() if self.known else None

    def _now(self) -> tuple[float, float, float]:
        """Returns seconds: wall clock, busy time of all processors, CPU time of this process."""
        user, nice, system, _, _, *rest = Path("/proc/stat").read_text().split(None, 9)[1:9]
        busy = sum(map(int, (user, nice, system, *rest))) / os.sysconf("SC_CLK_TCK")
        own = os.times()
        return time.perf_counter(), busy, own.user + own.system

    def share(self) -> float | None:
        """Returns the fraction since the last call, or None without Linux's /proc."""
        if not self.known:
            return None
        before, self.mark = self.mark, self._now()
        clock, busy, own = (after - start for after, start in zip(self.mark, before, strict=True))
        slack = 2 / os.sysconf("SC_CLK_TCK")  # both counters advance in ticks
        return max(0.0, busy - own - slack) / (clock * os.cpu_count())


def wait_for_calm(limit: float, deadline: float) -> None:
    """Waits until other processes have used less than `limit` for two seconds, or until the deadline."""
    others = OtherLoad()
    while time.monotonic() < deadline:
        time.sleep(2)
        if not (others.share() or 0) > limit:
            return


def alternate(
    runs: dict[str, Callable[[], dict]], repeats: int, calm: float | None = None
) -> tuple[dict[str, list[dict]], float | None]:
    """Runs all contenders `repeats` times in rotating order.

    Args:
        runs: name to function. Its result holds "total", in seconds.
        repeats: how often to run each.
        calm: a repeat is discarded and redone if other processes used more than this fraction of the processors.
            After PATIENCE seconds every repeat is kept.

    Returns:
        The results of each run, and the largest fraction that other processes used during a kept repeat.
    """
    names = list(runs)
    measured = {name: [] for name in names}
    shares, deadline = [], time.monotonic() + PATIENCE
    while len(shares) < repeats:
        if calm is not None:
            wait_for_calm(calm, deadline)
        shift = len(shares) % len(names)
        order = names[shift:] + names[:shift]
        others, results = OtherLoad(), {}
        for name in order if len(shares) % 2 == 0 else order[::-1]:
            time.sleep(REST)
            results[name] = runs[name]()
        share = others.share()
        latest = ", ".join(f"{name} {1e3 * results[name]['total']:.2f} ms" for name in names)
        load = "" if share is None else f"; other processes {share:.0%}"
        say(f"  repeat {len(shares) + 1}/{repeats}: {latest}{load}")
        if calm is not None and (share or 0) > calm and time.monotonic() < deadline:
            say("  not calm, redone")
            continue
        shares.append(share)
        for name in names:
            measured[name].append(results[name])
    return measured, None if None in shares else max(shares)


def median_ratio(numerators: list[float], denominators: list[float]) -> float:
    """Returns the median of the ratios inside each repeat."""
    return statistics.median(n / d for n, d in zip(numerators, denominators, strict=True))


def milliseconds(times: list[float], digits: int = 3) -> dict[str, float]:
    """Returns the columns median_ms, min_ms and max_ms of times in seconds."""
    statistic = {"median": statistics.median(times), "min": min(times), "max": max(times)}
    return {f"{name}_ms": round(1e3 * value, digits) for name, value in statistic.items()}


def set_threads(count: int) -> None:
    """Sets the number of threads of PyTorch and of every OpenMP and BLAS library loaded so far."""
    torch.set_num_threads(count)
    if "faiss" in sys.modules:
        sys.modules["faiss"].omp_set_num_threads(count)
    try:
        import threadpoolctl
    except ImportError:
        return  # only scikit-learn needs it, and installs it
    threadpoolctl.threadpool_limits(count)


# ---- machine ----------------------------------------------------------------------------------------


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    values = {k.strip(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
    name = values.get("model name", platform.machine())
    if "cpu family" in values:
        name += f" (family {values['cpu family']} model {values['model']})"
    return name


def _commit(sources: tuple[str, ...]) -> str:
    """Returns the short hash of the commit, with + if one of these folders has changed since.

    DGCL_OPS_COMMIT replaces it where the benchmarks were copied without the repository.
    """
    if given := os.environ.get("DGCL_OPS_COMMIT"):
        return given
    git = ["git", "-C", str(ROOT)]
    try:
        head = subprocess.check_output([*git, "rev-parse", "--short", "HEAD"], text=True).strip()
        changed = subprocess.check_output(
            [*git, "status", "--porcelain", "-uno", "--", *sources], text=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head + ("+" if changed.strip() else "")


def machine(
    device: torch.device, others: float | None, sources: tuple[str, ...] = ("csrc", "dgcl_ops")
) -> dict[str, object]:
    """Returns the columns that describe the machine.

    Args:
        device: the device that is measured.
        others: the fraction that `alternate` returned, or None.
        sources: the folders that determine the results.
    """
    cuda = device.type == "cuda"
    more = on_cuda.facts(device) if cuda else {}
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%MZ"),
        "commit": _commit(sources),
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "cpu_capability": backend_info()["cpu_capability"],
        "device": torch.cuda.get_device_name(device) if cuda else "cpu",
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "others": "" if others is None else round(others, 3),
        **more,
    }


# ---- results ----------------------------------------------------------------------------------------


def append_rows(path: Path, columns: tuple[str, ...], rows: list[dict]) -> None:
    """Appends rows to a CSV file.

    Raises:
        RuntimeError: If the file has other columns. It stays unchanged.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = not path.exists() or path.stat().st_size == 0
    if not fresh:
        with path.open(newline="") as file:
            present = tuple(next(csv.reader(file)))
        if present != columns:
            raise RuntimeError(
                f"{path}: columns must be {columns}, got {present}; choose another --out"
            )
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        if fresh:
            writer.writeheader()
        writer.writerows(rows)


def print_table(headers: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    """Prints a table. The first column is left-aligned, all others right-aligned."""
    widths = [max(len(row[i]) for row in [headers, *rows]) for i in range(len(headers))]
    for row in [headers, tuple("-" * width for width in widths), *rows]:
        cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        cells[0] = row[0].ljust(widths[0])
        print("  ".join(cells).rstrip())


def number(value: float | None, digits: int = 1) -> str:
    """Formats a number, or "-" for None."""
    return "-" if value is None else f"{value:.{digits}f}"


def shared_with(row: dict) -> str:
    """Returns the end of a table's title: the load of other processes."""
    return "" if row["others"] == "" else f", other processes at most {row['others']:.0%}"
