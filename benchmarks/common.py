"""What the benchmarks share: paired timing, the machine's description, dated rows.

Timing. All contenders live in one process and use the same number of threads. After one round that
is not counted, every repeat runs each of them once, in an order that rotates from repeat to repeat,
forwards and backwards in turn: a slow moment of the machine, and what one leaves to the next in the
caches, falls on all of them alike. Medians are reported, and ratios are medians of the ratios inside each
repeat. How a call is timed on CUDA: on_cuda.py. "others" is the largest share of the machine's processors
that other processes had during a repeat; --calm sets a limit to it.
"""

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
PATIENCE = 1800  # seconds spent on waiting for calm repeats
REST = 0.02  # seconds before each run: idle OpenMP threads of the run before it stop spinning

CALM_HELP = "repeat what is measured while other processes use more than this share, e.g. 0.05"


class Disagreement(RuntimeError):
    """Contenders do not compute the same thing: their times must not be compared."""


def say(text: str) -> None:
    """Progress, on stderr, so that tables can be redirected."""
    print(text, file=sys.stderr, flush=True)


# ---- time -------------------------------------------------------------------------------------------


def seconds(function: Callable[[], object], device: torch.device) -> on_cuda.Timing:
    """How long one call takes, and what it returns."""
    if device.type == "cuda":
        return on_cuda.device_seconds(function, device)
    begin = time.perf_counter()
    result = function()
    return on_cuda.Timing(time.perf_counter() - begin, result, None)


class OtherLoad:
    """Share of this machine's processors that other processes use, from one `share()` to the next."""

    def __init__(self):
        self.known = Path("/proc/stat").exists()
        self.mark = self._now() if self.known else None

    def _now(self) -> tuple[float, float, float]:
        """Seconds: by the clock, of all processors busy, of this process on them."""
        user, nice, system, _, _, *rest = Path("/proc/stat").read_text().split(None, 9)[1:9]
        busy = sum(map(int, (user, nice, system, *rest))) / os.sysconf("SC_CLK_TCK")
        own = os.times()
        return time.perf_counter(), busy, own.user + own.system

    def share(self) -> float | None:
        if not self.known:
            return None
        before, self.mark = self.mark, self._now()
        clock, busy, own = (after - start for after, start in zip(self.mark, before, strict=True))
        slack = 2 / os.sysconf("SC_CLK_TCK")  # both are counted in ticks
        return max(0.0, busy - own - slack) / (clock * os.cpu_count())


def wait_for_calm(limit: float, deadline: float) -> None:
    """Returns once other processes have used less than the limit for two seconds, or at the deadline."""
    others = OtherLoad()
    while time.monotonic() < deadline:
        time.sleep(2)
        if not (others.share() or 0) > limit:
            return


def alternate(
    runs: dict[str, Callable[[], dict]], repeats: int, calm: float | None = None
) -> tuple[dict[str, list[dict]], float | None]:
    """Runs everything `repeats` times in rotating order; each run returns what it measured.

    Args:
        runs: results hold "total", in seconds.
        calm: a repeat during which other processes used a larger share of the processors than this is
            thrown away, whatever it measured, and done again; after PATIENCE seconds none is any more.

    Returns:
        What each run measured, and the largest share of other processes during a repeat that was kept.
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
        told = "" if share is None else f"; other processes {share:.0%}"
        say(f"  repeat {len(shares) + 1}/{repeats}: {latest}{told}")
        if calm is not None and (share or 0) > calm and time.monotonic() < deadline:
            say("  not calm: again")
            continue
        shares.append(share)
        for name in names:
            measured[name].append(results[name])
    return measured, None if None in shares else max(shares)


def median_ratio(numerators: list[float], denominators: list[float]) -> float:
    """Median over the repeats of the ratio inside each repeat."""
    return statistics.median(n / d for n, d in zip(numerators, denominators, strict=True))


def set_threads(count: int) -> None:
    """The same number of threads for PyTorch, and for every OpenMP and BLAS library loaded so far."""
    torch.set_num_threads(count)
    if "faiss" in sys.modules:
        sys.modules["faiss"].omp_set_num_threads(count)
    try:
        import threadpoolctl
    except ImportError:
        return  # it comes with scikit-learn, whose threads it is for
    threadpoolctl.threadpool_limits(count)


# ---- machine ----------------------------------------------------------------------------------------


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    found = {k.strip(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
    name = found.get("model name", platform.machine())
    if "cpu family" in found:
        name += f" (family {found['cpu family']} model {found['model']})"
    return name


def _commit() -> str:
    """Short hash of the source tree, with + if the library's own sources differ from it.

    DGCL_OPS_COMMIT gives it where the benchmarks were copied without the repository.
    """
    if given := os.environ.get("DGCL_OPS_COMMIT"):
        return given
    git = ["git", "-C", str(ROOT)]
    try:
        head = subprocess.check_output([*git, "rev-parse", "--short", "HEAD"], text=True).strip()
        changed = subprocess.check_output(
            [*git, "status", "--porcelain", "-uno", "--", "csrc", "dgcl_ops"], text=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head + ("+" if changed.strip() else "")


def machine(device: torch.device, others: float | None) -> dict[str, object]:
    """Everything about this run that is not about one contender; `others` from `alternate`."""
    cuda = device.type == "cuda"
    more = on_cuda.facts(device) if cuda else {}
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%MZ"),
        "commit": _commit(),
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
    """Adds rows to a CSV file; one with other columns is an error, never rewritten."""
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
    """The first column to the left, all others to the right."""
    widths = [max(len(row[i]) for row in [headers, *rows]) for i in range(len(headers))]
    for row in [headers, tuple("-" * width for width in widths), *rows]:
        cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        cells[0] = row[0].ljust(widths[0])
        print("  ".join(cells).rstrip())


def number(value: float | None, digits: int = 1) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def shared_with(row: dict) -> str:
    """For a table's title: how much of the machine was not ours."""
    return "" if row["others"] == "" else f", other processes at most {row['others']:.0%}"
