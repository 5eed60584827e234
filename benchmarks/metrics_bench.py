"""Scores of a clustering: ours against scikit-learn's of the same name.

    python benchmarks/metrics_bench.py
    python benchmarks/metrics_bench.py --sizes 5000x256 50000x64 --classes 21 --scores silhouette_score

A size is NxD: rows, dimensions. Rows belong to C classes of unequal size, one Gaussian cluster each, in random
order. Every value of ours, in each run that is timed too, is compared with scikit-learn's of the rows widened to
float64; one that differs ends the run. How time and memory are taken: common.py, peak_memory.py. On the CPU.
"""

import argparse
import functools
import importlib.util
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
from common import (
    CALM_HELP,
    MACHINE_COLUMNS,
    Disagreement,
    alternate,
    append_rows,
    machine,
    median_ratio,
    number,
    print_table,
    say,
    seconds,
    set_threads,
    shared_with,
)
from peak_memory import MEGABYTE, extra_memory, memory_method, peak_beyond_inputs
from torch import Tensor
from workloads import random_rows, unequal_offsets

from dgcl_ops import metrics

COLUMNS = (
    *MACHINE_COLUMNS,
    *("rows", "dim", "classes", "dtype", "score", "contender", "repeats"),
    *("median_ms", "min_ms", "max_ms", "time_over_ours"),
    *("extra_mb", "memory_method", "value", "error"),
)
OURS, THEIRS = "dgcl_ops", "scikit-learn"
SCORES = ("silhouette_score", "calinski_harabasz_score", "davies_bouldin_score")
DTYPES = {"float32": torch.float32, "float64": torch.float64}
FIXED = ("classes", "dtype", "threads")  # options that are the same for every size of a run
# Of a score, relative. Ours: scikit-learn's float64 distances are roots of |x|^2 + |y|^2 - 2 <x, y>, whose rounding
# errors of 2^-53 are in proportion to the norms, not to the distance. Theirs: enough to tell a like quantity.
TOLERANCES = {OURS: 1e-9, THEIRS: 1e-3}
CPU = torch.device("cpu")


# ---- workload and contenders ------------------------------------------------------------------------


def build(case: dict) -> tuple[Tensor, Tensor]:
    """Features [N, D] and labels [N], the same whenever it is called with the same case."""
    generator = torch.Generator().manual_seed(0)
    sizes = unequal_offsets(case["rows"], case["classes"]).diff()
    labels = torch.arange(case["classes"]).repeat_interleave(sizes)
    features = torch.cat([random_rows("tight", int(n), case["dim"], generator) for n in sizes])
    order = torch.randperm(case["rows"], generator=generator)
    return features[order].to(DTYPES[case["dtype"]]), labels[order]


def contender(name: str, score: str, features: Tensor, labels: Tensor) -> Callable[[], float]:
    if name == OURS:
        return lambda: getattr(metrics, score)(features, labels).item()
    import sklearn.metrics

    function = getattr(sklearn.metrics, score)
    arrays = features.numpy(), labels.numpy()
    return lambda: float(function(*arrays))


def error_of(name: str, score: str, value: float, expected: float) -> float:
    """Relative error; Disagreement if it is more than rounding explains."""
    error = abs(value - expected) / abs(expected)
    if not error <= TOLERANCES[name]:  # NaN too
        raise Disagreement(
            f"{name}: {score} must be {expected!r} within {TOLERANCES[name]:.0e}, got {value!r}"
        )
    return error


# ---- measurement ------------------------------------------------------------------------------------


def memory_of(name: str, case: dict) -> int:
    """Extra memory of one call, in this process: a fresh one."""
    tiny = dict(case, rows=8 * case["classes"])
    set_threads(case["threads"])
    contender(name, case["score"], *build(tiny))()  # imports
    set_threads(case["threads"])
    return peak_beyond_inputs(contender(name, case["score"], *build(case)), CPU)


def measure(case: dict, repeats: int, with_memory: bool, calm: float | None) -> list[dict]:
    """One row per contender for the case's score."""
    score = case["score"]
    features, labels = build(case)
    expected = contender(THEIRS, score, features.double(), labels)()
    calls = {name: contender(name, score, features, labels) for name in (OURS, THEIRS)}

    def timed(name: str) -> dict:
        timing = seconds(calls[name], CPU)
        error = error_of(name, score, timing.result, expected)
        return {"total": timing.seconds, "value": timing.result, "error": error}

    for name in calls:
        timed(name)  # every library has been loaded then
    set_threads(case["threads"])
    runs = {name: functools.partial(timed, name) for name in calls}
    measured, others = alternate(runs, repeats, calm)
    times = {name: [result["total"] for result in results] for name, results in measured.items()}
    facts, rows = machine(CPU, others), []
    for name, results in measured.items():
        ms = [1e3 * t for t in times[name]]
        row = {key: case[key] for key in COLUMNS if key in case} | facts
        row |= {
            "contender": name,
            "repeats": repeats,
            "median_ms": round(statistics.median(ms), 3),
            "min_ms": round(min(ms), 3),
            "max_ms": round(max(ms), 3),
            "time_over_ours": round(median_ratio(times[name], times[OURS]), 3),
            "value": results[-1]["value"],
            "error": f"{max(result['error'] for result in results):.1e}",
        }
        if with_memory:
            extra = extra_memory(memory_of, CPU, name, case)
            row["memory_method"] = memory_method(CPU)
            row["extra_mb"] = None if extra is None else round(extra / MEGABYTE, 2)
        rows.append(row)
    return rows


def report(rows: list[dict]) -> None:
    """The table, and in words where we lose."""
    first = rows[0]
    print(
        f"\nScores, {first['rows']} x {first['dim']}, {first['classes']} classes, {first['dtype']}; "
        f"{first['cpu']}, {first['threads']} threads{shared_with(first)}"
    )
    table = []
    for row in rows:
        times = (number(row[f"{which}_ms"]) for which in ("median", "min", "max"))
        cells = (f"{row['score']}, {row['contender']}", *times)
        cells += (number(row["time_over_ours"], 2) + "x", number(row.get("extra_mb")), row["error"])
        table.append(cells)
    headers = ("score", "median ms", "min", "max", "time / ours", "extra MB", "error")
    print_table(headers, table)
    losing = [f"{row['score']} ({row['time_over_ours']:.3g}x)" for row in rows]
    losing = [text for text, row in zip(losing, rows, strict=True) if row["time_over_ours"] < 1]
    print("we lose at: " + (", ".join(losing) or "none of these"))


# ---- command line -----------------------------------------------------------------------------------


def parse_size(text: str) -> tuple[int, int]:
    try:
        rows, dim = (int(part) for part in text.split("x"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"must look like 20000x256, got {text!r}") from None
    if min(rows, dim) < 1:
        raise argparse.ArgumentTypeError(f"must be positive, got {text!r}")
    return rows, dim


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--sizes", type=parse_size, nargs="+", default=[(20_000, 256)])
    parser.add_argument("--classes", type=int, default=21)
    parser.add_argument("--scores", choices=SCORES, nargs="+", default=SCORES)
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="float32")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--calm", type=float, help=CALM_HELP)
    parser.add_argument("--no-memory", action="store_true", help="do not measure memory")
    parser.add_argument("--quick", action="store_true", help="one tiny size, seconds")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args(arguments)
    if options.quick:
        options.sizes, options.classes, options.repeats = [(600, 16)], 5, 2
    smallest = min(rows for rows, _ in options.sizes)
    if not 2 <= options.classes <= smallest // 8:
        parser.error(f"--classes must lie in [2, N / 8 = {smallest // 8}], got {options.classes}")
    return options


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    if importlib.util.find_spec("sklearn") is None:
        say("metrics_bench: scikit-learn is not installed")
        return 2
    set_threads(options.threads)
    for rows, dim in options.sizes:
        fixed = {name: getattr(options, name) for name in FIXED}
        done = []
        for score in options.scores:
            say(f"{score}, {rows} x {dim}")
            case = {"rows": rows, "dim": dim, "score": score, **fixed}
            try:
                done += measure(case, options.repeats, not options.no_memory, options.calm)
            except Disagreement as error:
                say(f"DISAGREEMENT, nothing was recorded for this size: {error}")
                return 1
        report(done)
        append_rows(options.out / "metrics_bench.csv", COLUMNS, done)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
