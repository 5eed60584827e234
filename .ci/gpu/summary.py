"""The summary page. It is rewritten after each step, so that a killed run has one as well."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

from runner import Run

MOST = 10_000  # characters, since some terminals only show the end of a long output
PROBLEMS = ("failed", "crashed", "over its limit")
TAIL = 8  # last lines shown of a step that went wrong
FAILURES = 15  # failing tests shown


def tests(out: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Returns counts by outcome, and the failing tests with the first lines of their errors."""
    counts, failed = {}, []
    path = out / "tests.csv"
    if path.exists():
        with path.open(newline="") as file:
            for row in csv.reader(file):
                if len(row) == 4:
                    counts[row[0]] = counts.get(row[0], 0) + 1
                    if row[0] in ("failed", "not collected"):
                        failed.append((row[2], row[3]))
    return counts, failed


def rows_of(path: Path) -> list[dict]:
    """Reads a CSV file. A missing one has no rows."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def figures(out: Path) -> list[str]:
    """Returns the benchmarks' medians, one line per case."""
    lines = {}

    def add(case: str, name: str, value: str) -> None:
        if value:
            lines.setdefault(case, {})[name] = value

    for row in rows_of(out / "knn_bench_cuda.csv"):
        classes = f", {row['classes']} classes" if row["classes"] != "0" else ""
        case = f"{row['queries']} x {row['bank']} x {row['dim']}{classes}, {row['data']}"
        add(case, row["contender"], row["median_ms"])
    for row in rows_of(out / "loss_bench_cuda.csv"):
        add(f"a step, {row['size']}, {row['present']} classes", row["contender"], row["total_ms"])
    for row in rows_of(out / "parts_bench_cuda.csv"):
        add(f"parts, {row['size']}", row["part"], row["median_ms"])
    medians = (
        f"  {case}: {'; '.join(f'{n} {v}' for n, v in values.items())}"
        for case, values in lines.items()
    )
    return ["", "milliseconds, medians", *medians] if lines else []


def head(run: Run, manifest: dict, rehearsal: str) -> list[str]:
    """Returns the first lines of the page."""
    lines = ["dgcl_ops on a GPU", "================="]
    if rehearsal:
        lines.append(f"REHEARSAL: {rehearsal}. No GPU: every figure below is meaningless.")
    lines.append(
        f"commit {manifest.get('commit', 'unknown')}, wheel {manifest.get('wheel', 'none')}"
    )
    counts = {}
    for result in run.results:
        counts[result.status] = counts.get(result.status, 0) + 1
    states = ", ".join(f"{count} {status}" for status, count in counts.items()) or "none yet"
    lines.append(f"{run.seconds():.0f} s of {run.budget:.0f} s; steps: {states}")
    if run.ended:
        lines.append(f"THE RUN ENDED EARLY: {run.ended}")
    if run.result("build_here"):
        lines.append("THE PACKED WHEEL DID NOT LOAD; the library was built here from source.")
    return [*lines, ""]


def text(run: Run, manifest: dict, rehearsal: str = "") -> str:
    """Returns the page.

    Args:
        run: the run.
        manifest: what `.ci/gpu_pack` wrote.
        rehearsal: describes the stand-ins of a rehearsal. Empty on a GPU.
    """
    lines = head(run, manifest, rehearsal)
    for result in run.results:
        lines.append(
            f"{result.status:<14} {result.step:<16} {result.seconds:6.1f} s  {result.title}"
        )
        if result.note:
            lines += [f"               {part[:300]}" for part in result.note.splitlines()[:3]]
    counts, failed = tests(run.out)
    if counts:
        outcomes = ", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items()))
        lines += ["", f"tests that ended: {outcomes}"]
        lines += [f"  FAILED {name}\n         {error[:200]}" for name, error in failed[:FAILURES]]
        if len(failed) > FAILURES:
            lines.append(f"  and {len(failed) - FAILURES} more, see tests.csv")
    lines += figures(run.out)
    wrong = [result for result in run.results if result.status in PROBLEMS]
    for result in wrong:
        lines += [
            "",
            f"last lines of {result.step}:",
            *(f"  {t[:200]}" for t in result.tail[-TAIL:]),
        ]
    lines += [
        "",
        "no step went wrong" if not wrong else f"WENT WRONG: {', '.join(r.step for r in wrong)}",
    ]
    written = "\n".join(lines) + "\n"
    if len(written) > MOST:
        end = f"\n(cut; the rest is in results.jsonl and steps.log)\n{lines[-1]}\n"
        written = written[: MOST - len(end)] + end
    return written


def writer(manifest: dict, rehearsal: str = "") -> Callable[[Run], None]:
    """Returns a function that writes the page of a run. Arguments: see `text`."""

    def write(run: Run) -> None:
        (run.out / "summary.txt").write_text(text(run, manifest, rehearsal), encoding="utf-8")

    return write


def manifest_of(folder: Path) -> dict:
    """Reads the manifest of a packed folder. A source tree has none."""
    path = folder / "manifest.json"
    return json.loads(path.read_text()) if path.exists() else {}
