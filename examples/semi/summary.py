"""From runs to a table: means and spreads over the seeds, and differences seed by seed."""

import importlib.metadata
import platform
import statistics

from dgcl_ops import backend_info

# name, title, digits, and whether more is better
METRICS = (
    ("miou", "mIoU %", 2, True),
    ("silhouette", "silhouette", 3, True),
    ("calinski_harabasz", "Calinski-Harabasz", 1, True),
    ("davies_bouldin", "Davies-Bouldin", 2, False),
)
CONTROL, TREATED = "self-training", "density contrast"


def summarise(runs: list) -> dict:
    """Tables of the runs (see `Run` in runs.py), as plain numbers.

    Returns:
        methods: {method: {metric: {mean, spread}}}; the spread is the standard deviation over the seeds.
        paired: {metric: {differences, mean, spread, better}}: density contrast minus self-training, seed by seed,
            and in how many of the seeds the difference is an improvement.
        matched: for each seed, how long the two runs were the same, see `matched_steps`.
        runs: what each run measured.
    """
    rows = [
        {
            "method": run.method,
            "seed": run.seed,
            "miou": run.miou,
            **run.scores,
            "class_iou": [
                None if iou != iou else iou for iou in run.class_iou
            ],  # NaN: no such class
            "curve": run.curve,
            "seconds": round(run.seconds, 1),
        }
        for run in runs
    ]
    by_method = {}
    for row in rows:
        by_method.setdefault(row["method"], []).append(row)
    methods, paired = {}, {}
    for method, members in by_method.items():
        methods[method] = {m: spread([row[m] for row in members]) for m, *_ in METRICS}
    for metric, _, _, upward in METRICS:
        pairs = zip(by_method[TREATED], by_method[CONTROL], strict=True)
        differences = [treated[metric] - control[metric] for treated, control in pairs]
        better = sum((difference > 0) == upward and difference != 0 for difference in differences)
        paired[metric] = {"differences": differences, "better": better, **spread(differences)}
    histories = {(run.method, run.seed): run.history for run in runs}
    seeds = [row["seed"] for row in by_method[TREATED]]
    matched = {
        seed: matched_steps(histories[CONTROL, seed], histories[TREATED, seed]) for seed in seeds
    }
    return {"methods": methods, "paired": paired, "matched": matched, "runs": rows}


def spread(values: list[float]) -> dict:
    return {
        "mean": statistics.fmean(values),
        "spread": statistics.stdev(values) if len(values) > 1 else None,
    }


def matched_steps(control: list[dict], treated: list[dict]) -> dict:
    """For how many recorded steps the two runs' supervised losses are the same to the last bit.

    They must be up to and with the first step that has a contrast: only the update after it differs.
    """
    same = [a["supervised"] == b["supervised"] for a, b in zip(control, treated, strict=True)]
    contrast = [record.get("contrast", 0.0) != 0 for record in treated]
    return {
        "identical": same.index(False) if False in same else len(same),
        "before the first contrast": contrast.index(True) if True in contrast else len(contrast),
    }


def number(metric: str, value: dict, sign: str = "") -> str:
    """ "53.10 ± 0.42", or without the spread when there is one seed."""
    digits = next(digits for name, _, digits, _ in METRICS if name == metric)
    text = f"{value['mean']:{sign}.{digits}f}"
    return text if value["spread"] is None else f"{text} ± {value['spread']:.{digits}f}"


def as_text(result: dict) -> str:
    """The table and the paired differences, for the terminal."""
    seeds = len(next(iter(result["paired"].values()))["differences"])
    header = ["", *(title + (" ↑" if upward else " ↓") for _, title, _, upward in METRICS)]
    rows = [
        [method, *(number(metric, values[metric]) for metric, *_ in METRICS)]
        for method, values in result["methods"].items()
    ]
    paired = result["paired"]
    rows.append(["difference", *(number(m, paired[m], "+") for m, *_ in METRICS)])
    rows.append(["better in", *(f"{paired[m]['better']} of {seeds} seeds" for m, *_ in METRICS)])
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in (header, *rows)
    ]
    lines.insert(1 + len(result["methods"]), "-" * len(lines[0]))
    note = f"mean ± standard deviation over {seeds} seeds; difference: {TREATED} minus {CONTROL}, seed by seed"
    return "\n".join([*lines, note])


def environment() -> dict:
    """What the figures depend on besides the program."""
    versions = {
        name: importlib.metadata.version(name)
        for name in ("torch", "numpy", "scikit-learn", "matplotlib")
    }
    backend = backend_info()
    return {
        "machine": f"{platform.machine()}, {platform.system()}",
        "python": platform.python_version(),
        **versions,
        "dgcl_ops": backend["version"],
        "kernels": f"{backend['devices']['cpu']['implementation']}, {backend['cpu_capability']}",
    }
