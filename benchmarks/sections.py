"""The sections of suite.py: cases, contenders and aims."""

import argparse
import importlib
from dataclasses import dataclass

import knn_bench
import torch
from common import MACHINE_COLUMNS, Disagreement, append_rows, machine, print_table, say
from contenders import (
    BARE,
    FAISS,
    FLOOR,
    ON_REQUEST,
    OURS,
    PER_CLASS,
    PLAIN,
    PLAIN_FP32,
    PUBLISHED,
    Contender,
    contenders_for,
)
from levels import compare_levels
from peak_memory import MEGABYTE, extra_memory, memory_method
from plots import plot_sweep
from workloads import SMALL_CLASS, TIES

COLUMNS = (*knn_bench.COLUMNS, "section", "shares", "cpu_use", "level", "digest")
AIM_COLUMNS = (*MACHINE_COLUMNS, "section", "case", "figure", "value", "aim", "verdict")
PEERS = (OURS, PUBLISHED, PLAIN, FLOOR, FAISS)
LARGE = 400_000_000  # pairs: from here on, three repeats; above it, faiss would take minutes


@dataclass(frozen=True)
class Sizes:
    """Sizes of the cases."""

    square: int  # queries and bank rows of a large search
    middle: int  # queries and bank rows of sections dims and levels
    dim: int
    classes: int
    class_rows: int
    large_class: int  # queries of the large class
    unequal: int  # queries of all classes with unequal sizes
    memory: tuple[tuple[int, int], ...]  # M, N
    growing: tuple[int, ...]  # M = N
    small: tuple[tuple[int, int], ...]  # M, N
    dims: tuple[int, ...]
    ranks: tuple[int, ...]
    repeats: int


FULL = Sizes(
    square=10_000,
    middle=5_000,
    dim=256,
    classes=21,
    class_rows=10_000,
    large_class=60_000,
    unequal=20_000,
    memory=((2_000, 2_000), (10_000, 10_000), (60_000, 2_000), (2_000, 60_000), (60_000, 60_000)),
    growing=(2_000, 5_000, 10_000, 20_000, 40_000, 60_000),
    small=((64, 1_000), (1, 1_000), (256, 2_000)),
    dims=(8, 17, 32, 63, 128, 256, 511, 1_024, 2_048),
    ranks=(1, 8, 32, 100, 256, 1_024),
    repeats=7,
)
QUICK = Sizes(
    square=300,
    middle=200,
    dim=32,
    classes=3,
    class_rows=100,
    large_class=200,
    unequal=150,
    memory=((300, 200),),
    growing=(100, 200),
    small=((1, 100),),
    dims=(8, 33),
    ranks=(1, 40),
    repeats=2,
)


class Run:
    """One section. It measures cases, judges figures, and appends both to CSV files."""

    def __init__(self, section: str, options: argparse.Namespace, sizes: Sizes):
        self.section, self.options, self.sizes = section, options, sizes
        self.facts = machine(torch.device("cpu"), None)
        self.aims: list[dict] = []

    def case(self, m: int, n: int, **more: object) -> dict:
        """Returns a case with M queries and N bank rows. `more` overrides the usual settings."""
        usual = {"dim": self.sizes.dim, "data": "clusters", "classes": 0, "scales": (8, 16, 32)}
        usual |= {"metric": "cosine", "dtype": "float32", "device": "cpu"}
        fixed = {"threads": self.options.threads, "section": self.section}
        return {**usual, **fixed, "queries": m, "bank": n, **more}

    def measure(self, names: tuple[str, ...], case: dict, left_out: dict | None = None) -> dict:
        """Measures a case and returns rows by contender. `left_out`: reason by absent contender."""
        say(f"  {described(case)}")
        known = {**contenders_for(case["classes"] > 0), **ON_REQUEST}
        offered = {name: known[name] for name in names}
        for name, reason in (left_out or {}).items():
            offered[name] = Contender(known[name].run, lambda problem, reason=reason: reason)
        repeats = self.sizes.repeats
        if case["queries"] * case["bank"] >= LARGE:
            repeats = min(repeats, 3)
        rows = knn_bench.measure(case, repeats, False, self.options.calm, COLUMNS, offered)
        knn_bench.report(rows)
        self.append(rows)
        self.facts = {column: rows[0][column] for column in MACHINE_COLUMNS}
        return {row["contender"]: row for row in rows}

    def append(self, rows: list[dict]) -> None:
        append_rows(self.options.out / "suite.csv", COLUMNS, rows)

    def judge(self, case: str, figure: str, value: float | None, aim: str = "") -> None:
        """Records a figure. A `value` of None means not measured. `aim`: "<= 1.3", ">= 5" or none."""
        verdict = "not measured" if value is None else ""
        if aim and value is not None:
            relation, limit = aim.split()
            met = value <= float(limit) if relation == "<=" else value >= float(limit)
            verdict = "met" if met else "short"
        row = {**self.facts, "section": self.section, "case": case}
        row |= {"figure": figure, "value": "" if value is None else f"{value:.3g}"}
        self.aims.append({**row, "aim": aim, "verdict": verdict})
        append_rows(self.options.out / "aims.csv", AIM_COLUMNS, self.aims[-1:])

    def report(self) -> None:
        if self.aims:
            print(f"\nAims: {self.section}")
            shown = ("case", "figure", "value", "aim", "verdict")
            print_table(shown, [tuple(aim[key] or "-" for key in shown) for aim in self.aims])


def described(case: dict) -> str:
    size = f"{case['queries']:,} x {case['bank']:,} x {case['dim']}"
    return f"{size}, k {max(case['scales'])}, {case['metric']}, {case['dtype']}, {case['data']}"


def over_ours(rows: dict, name: str) -> float | None:
    """Returns the contender's time divided by ours."""
    return rows[name].get("time_over_ours")


def ours_over(rows: dict, name: str) -> float | None:
    """Returns our time divided by the contender's."""
    ratio = over_ours(rows, name)
    return 1 / ratio if ratio else None


def search(run: Run) -> None:
    """the usual search on three kinds of data, against every peer"""
    for data in ("clusters", "uniform", "tight"):
        rows = run.measure(PEERS, run.case(run.sizes.square, run.sizes.square, data=data))
        run.judge(data, "published / ours", over_ours(rows, PUBLISHED), ">= 5")
        run.judge(data, "faiss / ours", over_ours(rows, FAISS), ">= 2.5")
        run.judge(data, "ours / fp32 matmul alone", ours_over(rows, FLOOR), "<= 0.5")
        run.judge(data, "matmul + one top-k / ours", over_ours(rows, PLAIN))


def worst(run: Run) -> None:
    """ties and near-ties, which a filter cannot separate"""
    for data in TIES:
        case = run.case(run.sizes.square, run.sizes.square, data=data)
        rows = run.measure((OURS, PLAIN, FLOOR), case)
        run.judge(data, "ours / matmul + one top-k", ours_over(rows, PLAIN), "<= 1.3")


def grouped(run: Run) -> None:
    """one call for all classes, against one call per class"""
    sizes = run.sizes
    others = (sizes.classes - 1) * SMALL_CLASS
    for shares, m in (("one_large", sizes.large_class + others), ("unequal", sizes.unequal)):
        case = run.case(m, sizes.class_rows, classes=sizes.classes, shares=shares)
        rows = run.measure((OURS, PER_CLASS), case)
        run.judge(shares, "one call / sum of single calls", ours_over(rows, PER_CLASS), "<= 1.1")
        for name in (OURS, PER_CLASS):
            run.judge(shares, f"share of the threads in use, {name}", rows[name]["cpu_use"])


def memory(run: Run) -> None:
    """peak memory of a call beyond inputs and outputs, in a fresh process"""
    device = torch.device("cpu")
    for m, n in run.sizes.memory:
        case = run.case(m, n)
        say(f"  {described(case)}")
        extra = extra_memory(knn_bench.memory_of, device, OURS, case)
        row = {**{k: case[k] for k in COLUMNS if k in case}, **run.facts}
        row |= {"scales": "8 16 32", "contender": OURS, "status": "memory only"}
        row["memory_method"] = memory_method(device)
        row["extra_mb"] = None if extra is None else round(extra / MEGABYTE, 2)
        run.append([row])
        beyond = None if extra is None else max(0.0, extra - 4 * m) / MEGABYTE
        aim = f"<= {32 + n * case['dim'] / MEGABYTE:.1f}"  # a packed copy takes a byte per element
        run.judge(f"{m:,} x {n:,}", "MB beyond inputs and outputs", beyond, aim)


def scaling(run: Run) -> None:
    """time relative to M N, and calls so small that overhead matters"""
    per_pair, done = [], []
    for n in run.sizes.growing:
        reason = f"left out above {LARGE:,} pairs"
        left_out = {FAISS: reason} if n * n > LARGE else None
        rows = run.measure(PEERS, run.case(n, n), left_out)
        per_pair.append(1e6 * rows[OURS]["median_ms"] / (n * n))
        run.judge(f"{n:,} x {n:,}", "time / (M N), ns", per_pair[-1])
        done += rows.values()
    run.judge(
        "all of these", "largest / smallest time per pair", max(per_pair) / min(per_pair), "<= 1.2"
    )
    plot(run, done, "mn")
    for m, n in run.sizes.small:
        calls = max(1, 4_000_000 // (m * n)) if run.sizes is FULL else 2
        # For cosine both sides normalise. For dot, the contender is only a matrix product and a top-k.
        for metric, name in (("cosine", PLAIN), ("dot", BARE)):
            case = run.case(m, n, calls=min(200, calls), metric=metric)
            rows = run.measure((OURS, name), case)
            run.judge(f"{m:,} x {n:,}, {metric}", f"ours / {name}", ours_over(rows, name), "<= 1")


def dims(run: Run) -> None:
    """dimensions, k, metrics and dtypes, one at a time"""
    m, done = run.sizes.middle, []

    def compare(label: str, names: tuple[str, ...], **more: object) -> dict:
        rows = run.measure(names, run.case(m, m, **more))
        for name in (PLAIN, PLAIN_FP32):
            if name in rows and "median_ms" in rows[name]:
                run.judge(label, f"{name} / ours", over_ours(rows, name))
        return rows

    for dim in run.sizes.dims:
        done += compare(f"D {dim:,}", PEERS, dim=dim).values()
    plot(run, done, "d")
    for k in run.sizes.ranks:
        compare(f"k {k:,}", (OURS, PLAIN, FLOOR), scales=(k,))
    for metric in ("dot", "l2"):
        compare(metric, (OURS, PLAIN, FLOOR), metric=metric)
    for dtype in ("bfloat16", "float16", "float64"):
        compare(dtype, (OURS, PLAIN, PLAIN_FP32), dtype=dtype)


def levels(run: Run) -> None:
    """each instruction set of this machine: equal bits, and time"""
    case = run.case(run.sizes.middle, run.sizes.middle)
    rows = compare_levels(case, 1 if run.sizes is QUICK else 2, COLUMNS)
    run.append(rows)
    present = [row for row in rows if row["status"] == "measured"]
    for row in rows:
        if row not in present:
            say(f"  absent: {row['level']}: {row['status']}")
    for row in present:
        run.judge(row["level"], "time / time of the widest", row["time_over_ours"])
    # A level's own processes must agree as well.
    digests = {digest for row in present for digest in row["digest"].split()}
    other = len(digests) - 1 if len(present) > 1 else None
    run.judge("all levels", "results with other bits than the first", other, "<= 0")


def loss(run: Run) -> None:
    """one step of the loss against the published step (rows in loss_bench.csv)"""
    arguments = ["--threads", str(run.options.threads), "--out", str(run.options.out)]
    sizes = ["--small", "--present", "3", "--repeats", "1"] if run.sizes is QUICK else []
    run_benchmark("loss_bench", [*arguments, *(sizes or ["--present", "21"])])


def scores(run: Run) -> None:
    """the clustering scores (rows in metrics_bench.csv)"""
    arguments = ["--threads", str(run.options.threads), "--out", str(run.options.out)]
    run_benchmark("metrics_bench", [*arguments, *(["--quick"] if run.sizes is QUICK else [])])


def run_benchmark(module: str, arguments: list[str]) -> None:
    """Runs another benchmark. It appends its own rows."""
    status = importlib.import_module(module).main(arguments)
    if status == 2:  # it has printed what is missing
        say(f"  left out: {module}.py")
    elif status:
        raise Disagreement(f"{module}.py failed, see above")


def plot(run: Run, rows: list[dict], sweep: str) -> None:
    path = plot_sweep(rows, sweep, run.options.out, "clusters", "_suite")
    say(f"  plotted {path}")


SECTIONS = {
    section.__name__: section
    for section in (search, worst, grouped, memory, scaling, dims, levels, loss, scores)
}
