"""Clustering scores: ours against scikit-learn's.

    python benchmarks/metrics_bench.py
    python benchmarks/metrics_bench.py --sizes 5000x256 50000x64 --classes 21 --scores silhouette_score

A size is NxD: rows, dimensions. Rows belong to C classes of unequal size, one Gaussian cluster each, in random order.
Every value, including those of timed runs, is compared with scikit-learn's value for the rows in float64. A difference
ends the run. Everything runs on the CPU. common.py and peak_memory.py describe how time and memory are measured.
"""

import argparse
import functools
import importlib.util
from collections.abc import Callable

import torch
from common import (
    MACHINE_COLUMNS,
    Disagreement,
    alternate,
    append_rows,
    machine,
    median_ratio,
    milliseconds,
    number,
    parser_of,
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
FIXED = ("classes", "dtype", "threads")  # options that all sizes of a run share
# Relative errors of a score. Ours: scikit-learn's float64 distances are roots of |x|^2 + |y|^2 - 2 <x, y>. Their
# rounding errors of 2^-53 are relative to the norms, not to the distance. Theirs: small enough to exclude a different
# quantity.
TOLERANCES = {OURS: 1e-9, THEIRS: 1e-3}
CPU = torch.device("cpu")


# ---- workload and contenders ------------------------------------------------------------------------


def build(case: dict) -> tuple[Tensor, Tensor]:
    """Draws features [N, D] and labels [N]. The same case always gives the same rows."""
    generator = torch.Generator().manual_seed(0)
    sizes = unequal_offsets(case["rows"], case["classes"]).diff()
    labels = torch.arange(case["classes"]).repeat_interleave(sizes)
    features = torch.cat([random_rows("tight", int(n), case["dim"], generator) for n in sizes])
    order = torch.randperm(case["rows"], generator=generator)
    return features[order].to(DTYPES[case["dtype"]]), labels[order]


def contender(name: str, score: str, features: Tensor, labels: Tensor) -> Callable[[], float]:
    """Returns a function that computes a score."""
    if name == OURS:
        return lambda: getattr(metrics, score)(features, labels).item()
    import sklearn.metrics

    function = getattr(sklearn.metrics, score)
    arrays = features.numpy(), labels.numpy()
    return lambda: float(function(*arrays))


def error_of(name: str, score: str, value: float, expected: float) -> float:
    """Returns the relative error of a score, or raises Disagreement if rounding does not explain it."""
    error = abs(value - expected) / abs(expected)
    if not error <= TOLERANCES[name]:  # NaN too
        raise Disagreement(
            f"{name}: {score} must be {expected!r} within {TOLERANCES[name]:.0e}, got {value!r}"
        )
    return error


# ---- measurement ------------------------------------------------------------------------------------


def memory_of(name: str, case: dict) -> int:
    """Returns the extra memory of one call in this process, which must be fresh."""
    tiny = dict(case, rows=8 * case["classes"])
    set_threads(case["threads"])
    contender(name, case["score"], *build(tiny))()  # imports
    set_threads(case["threads"])
    return peak_beyond_inputs(contender(name, case["score"], *build(case)), CPU)


def measure(case: dict, repeats: int, with_memory: bool, calm: float | None) -> list[dict]:
    """Measures the case's score.

    Args:
        case: sizes and settings.
        repeats: how often to run each contender.
        with_memory: whether to measure memory.
        calm: see `common.alternate`.

    Returns:
        One row per contender.

    Raises:
        Disagreement: a value is wrong.
    """
    score = case["score"]
    features, labels = build(case)
    expected = contender(THEIRS, score, features.double(), labels)()
    calls = {name: contender(name, score, features, labels) for name in (OURS, THEIRS)}

    def timed(name: str) -> dict:
        timing = seconds(calls[name], CPU)
        error = error_of(name, score, timing.result, expected)
        return {"total": timing.seconds, "value": timing.result, "error": error}

    for name in calls:
        timed(name)  # loads every library
    set_threads(case["threads"])
    runs = {name: functools.partial(timed, name) for name in calls}
    measured, others = alternate(runs, repeats, calm)
    times = {name: [result["total"] for result in results] for name, results in measured.items()}
    facts, rows = machine(CPU, others), []
    for name, results in measured.items():
        row = {key: case[key] for key in COLUMNS if key in case} | facts
        row |= {
            "contender": name,
            "repeats": repeats,
            **milliseconds(times[name]),
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
    """Prints the table, and where we lose."""
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
    parser = parser_of(__doc__, repeats=7)
    parser.add_argument("--sizes", type=parse_size, nargs="+", default=[(20_000, 256)])
    parser.add_argument("--classes", type=int, default=21)
    parser.add_argument("--scores", choices=SCORES, nargs="+", default=SCORES)
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="float32")
    parser.add_argument("--no-memory", action="store_true", help="do not measure memory")
    parser.add_argument("--quick", action="store_true", help="one tiny size, seconds")
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
