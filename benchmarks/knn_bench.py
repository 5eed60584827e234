"""KNN density: dgcl_ops against plain PyTorch and other libraries.

    python benchmarks/knn_bench.py --sizes 10000x10000x256
    python benchmarks/knn_bench.py --sizes 10000x10000x256 --sweep n
    python benchmarks/knn_bench.py --sizes 20000x10000x256 --classes 21

A size is MxNxD: queries, bank rows, dimensions. With --classes C, the M queries belong to C classes of unequal size.
Each class has N bank rows. Before timing, the densities of every contender and our neighbour sets are compared with a
float64 brute force on a random subset of the queries (agreement.py). A wrong contender ends the run. common.py,
on_cuda.py and peak_memory.py describe how time and memory are measured.
"""

import argparse
import functools
import statistics
import time

import on_cuda
import torch
from agreement import brute_force, check_agreement, check_neighbours
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
from contenders import FLOORS, OURS, Contender, Problem, contenders_for
from peak_memory import MEGABYTE, extra_memory, memory_method, peak_beyond_inputs
from plots import plot_sweep
from workloads import DTYPES, SHARES, SPREADS, TIES, build

COLUMNS = (
    *MACHINE_COLUMNS,
    *("queries", "bank", "dim", "classes", "scales", "metric", "dtype", "data"),
    *("contender", "status", "repeats", "median_ms", "min_ms", "max_ms", "time_over_ours"),
    *("extra_mb", "memory_method", "max_error"),
)
CUDA_COLUMNS = (*COLUMNS, *on_cuda.COLUMNS, "shares")
# Options that all sizes of a run share.
FIXED = ("classes", "shares", "scales", "metric", "dtype", "device", "threads")
SWEEPS = {
    "n": (1_000, 2_000, 5_000, 10_000, 20_000, 50_000),
    "d": (16, 32, 64, 128, 256, 512, 1_024),
}


# ---- measurement ------------------------------------------------------------------------------------


def memory_of(name: str, case: dict) -> int:
    """Returns the extra memory of one call in this process. On the CPU the process must be fresh."""
    contender = contenders_for(case["classes"] > 0, torch.device(case["device"]).type)[name]
    ranks = max(case["scales"])
    classes = case["classes"]
    tiny = dict(case, queries=max(64, 4 * classes), bank=2 * ranks)
    set_threads(case["threads"])
    problem = build(tiny)
    contender.missing(problem)  # imports
    set_threads(case["threads"])
    contender.run(problem)
    problem = build(case)
    return peak_beyond_inputs(lambda: contender.run(problem), torch.device(case["device"]))


def agree(present: dict[str, Contender], problem: Problem, dtype: str) -> dict[str, float]:
    """Compares all contenders with the brute force.

    Returns:
        The largest error of the densities, by contender.

    Raises:
        Disagreement: a contender is wrong.
    """
    exact, errors = brute_force(problem), {}
    for name, contender in present.items():
        density = contender.run(problem)
        if density is not None:
            errors[name] = check_agreement(name, density, problem, exact, dtype)
        del density
        if contender.neighbours:
            check_neighbours(name, contender.neighbours(problem), problem, exact)
    return errors


def measure(
    case: dict,
    repeats: int,
    with_memory: bool,
    calm: float | None,
    columns: tuple[str, ...] = COLUMNS,
    offered: dict[str, Contender] | None = None,
) -> list[dict]:
    """Measures one case.

    Args:
        case: sizes and settings. With "calls", that many calls in a row are timed and divided by their number.
        repeats: how often to run each contender.
        with_memory: whether to measure memory.
        calm: see `common.alternate`.
        columns: columns of the rows.
        offered: contenders by name. None: all.

    Returns:
        One row per contender, including those that cannot take part.

    Raises:
        Disagreement: a contender is wrong.
    """
    device = torch.device(case["device"])
    problem = build(case)
    offered = offered or contenders_for(case["classes"] > 0, device.type)
    missing = {name: contender.missing(problem) for name, contender in offered.items()}
    present = {name: contender for name, contender in offered.items() if not missing[name]}
    errors = agree(present, problem, case["dtype"])
    set_threads(case["threads"])  # after every library has been loaded
    sets = on_cuda.input_sets(problem.input_bytes(), device)
    problems = on_cuda.rotation(problem, Problem.copy, sets)
    calls = case.get("calls", 1)

    def timed(contender: Contender) -> dict:
        current = next(problems)

        def work() -> None:
            for _ in range(calls):
                contender.run(current)

        begin = time.process_time()
        timing = seconds(work, device)
        cpu_use = (time.process_time() - begin) / (timing.seconds * torch.get_num_threads())
        return {"total": timing.seconds / calls, "ahead": timing.ahead, "cpu_use": cpu_use}

    runs = {name: functools.partial(timed, contender) for name, contender in present.items()}
    if device.type == "cuda":  # warms up the allocator's pools and the clocks
        for run in runs.values():
            run()
    measured, others = alternate(runs, repeats, calm)
    times = {name: [result["total"] for result in results] for name, results in measured.items()}
    facts = machine(device, others)
    rows = []
    for name in offered:
        row = {**{k: case[k] for k in columns if k in case}, **facts, "contender": name}
        row["scales"] = " ".join(map(str, case["scales"]))
        row["status"] = missing[name] or "measured"
        if device.type == "cuda":
            row["input_sets"] = sets
        if not missing[name]:
            row |= {
                "repeats": repeats,
                **milliseconds(times[name]),
                "time_over_ours": round(median_ratio(times[name], times[OURS]), 3),
                "max_error": f"{errors[name]:.1e}" if name in errors else "",
            }
            if "cpu_use" in columns:
                use = statistics.median(result["cpu_use"] for result in measured[name])
                row["cpu_use"] = round(use, 3)
            if device.type == "cuda":
                row["host"] = on_cuda.host_column([result["ahead"] for result in measured[name]])
            if with_memory:
                extra = extra_memory(memory_of, device, name, case)
                row["memory_method"] = memory_method(device)
                row["extra_mb"] = None if extra is None else round(extra / MEGABYTE, 2)
        rows.append(row)
    return rows


def report(rows: list[dict]) -> None:
    """Prints the table, and where we lose."""
    first = rows[0]
    size = f"{first['queries']} x {first['bank']} x {first['dim']}"
    classes = f", {first['classes']} classes" if first["classes"] else ""
    print(
        f"\nKNN density, {size}{classes}, scales ({first['scales']}), {first['metric']}, {first['dtype']}, "
        f"{first['data']}; {on_cuda.described(first)}{shared_with(first)}"
    )
    table, absent = [], []
    for row in rows:
        if row["status"] != "measured":
            absent.append(f"  absent: {row['contender']}: {row['status']}")
            continue
        digits = 3 if "host" in row else 1
        times = (number(row[f"{which}_ms"], digits) for which in ("median", "min", "max"))
        cells = (row["contender"], *times, number(row["time_over_ours"], 2) + "x")
        cells += (number(row.get("extra_mb")), row["max_error"] or "-")
        table.append((*cells, row["host"]) if "host" in row else cells)
    headers = ("contender", "median ms", "min", "max", "time / ours", "extra MB", "max error")
    print_table((*headers, "host") if "host" in first else headers, table)
    print(*absent, sep="\n")
    faster = [
        f"{row['contender']} ({row['time_over_ours']:.3g}x our time)"
        for row in rows
        if row["status"] == "measured"
        and row["time_over_ours"] < 1
        and not row["contender"].startswith(OURS)
    ]
    floor = [f for f in faster if f.startswith(FLOORS)]
    losing = [f for f in faster if f not in floor]
    print("we lose to: " + (", ".join(losing) or "none of those present"))
    if floor:
        print(f"faster than us, but leaves out some of the work: {', '.join(floor)}")


# ---- command line -----------------------------------------------------------------------------------


def parse_size(text: str) -> tuple[int, int, int]:
    try:
        m, n, dim = (int(part) for part in text.split("x"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"must look like 10000x10000x256, got {text!r}") from None
    if min(m, n, dim) < 1:
        raise argparse.ArgumentTypeError(f"must be positive, got {text!r}")
    return m, n, dim


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = parser_of(__doc__, repeats=7)
    parser.add_argument("--sizes", type=parse_size, nargs="+", default=[(10_000, 10_000, 256)])
    parser.add_argument("--scales", type=int, nargs="+", default=[8, 16, 32])
    parser.add_argument("--metric", choices=("cosine", "dot", "l2"), default="cosine")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="float32")
    parser.add_argument(
        "--data", choices=("uniform", *SPREADS, *TIES), nargs="+", default=["clusters"]
    )
    parser.add_argument("--classes", type=int, default=0, help="number of classes; 0: one bank")
    parser.add_argument(
        "--shares", choices=tuple(SHARES), default="unequal", help="how classes share the queries"
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--sweep", choices=tuple(SWEEPS), help="vary N or D of each size, and plot")
    parser.add_argument("--values", type=int, nargs="+", help="values of the sweep")
    parser.add_argument("--no-memory", action="store_true", help="do not measure memory")
    options = parser.parse_args(arguments)
    smallest = min(n for _, n, _ in options.sizes)
    if options.sweep == "n":
        smallest = min(options.values or SWEEPS["n"])
    if min(options.scales) < 1 or max(options.scales) > smallest:
        parser.error(
            f"--scales must lie in [1, N = {smallest}] for a plain top-k, got {options.scales}"
        )
    return options


def sizes_of(options: argparse.Namespace) -> list[tuple[int, int, int]]:
    if not options.sweep:
        return options.sizes
    values = options.values or SWEEPS[options.sweep]
    place = {"n": 1, "d": 2}[options.sweep]
    return [(*size[:place], v, *size[place + 1 :]) for size in options.sizes for v in values]


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    if reason := on_cuda.why_not(options.device):
        say(f"knn_bench: {reason}")
        return 2
    cuda = torch.device(options.device).type == "cuda"
    columns, suffix = (CUDA_COLUMNS, "_cuda") if cuda else (COLUMNS, "")
    set_threads(options.threads)
    done = []
    for data in options.data:
        for m, n, dim in sizes_of(options):
            say(f"{m} x {n} x {dim}, {data}")
            fixed = {name: getattr(options, name) for name in FIXED}
            if not options.classes:
                del fixed["shares"]
            case = {"queries": m, "bank": n, "dim": dim, "data": data, **fixed}
            try:
                rows = measure(case, options.repeats, not options.no_memory, options.calm, columns)
            except Disagreement as error:
                say(f"DISAGREEMENT, nothing was recorded for this size: {error}")
                return 1
            report(rows)
            append_rows(options.out / f"knn_bench{suffix}.csv", columns, rows)
            done += rows
        if options.sweep:
            say(f"plotted {plot_sweep(done, options.sweep, options.out, data, suffix)}")
            done = []
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
