"""Runs the same search on every instruction set of this processor, each in its own processes."""

import hashlib
import statistics

import torch
from common import Disagreement, machine, milliseconds, say, seconds, set_threads
from contenders import OURS, contenders_for
from knn_bench import agree
from peak_memory import in_fresh_process
from workloads import build

from dgcl_ops import backend_info
from dgcl_ops.doctor.compare import environment

# Narrow to wide. A level that the build or the processor lacks is reported as absent.
LEVELS = ("portable", "avx2", "avx512", "avx512_vnni", "avx512_amx")
REPEATS = 4


def run_level(case: dict) -> dict | str:
    """Runs the search on the level that the environment selects.

    Returns:
        Times and a hash of the results, or why the level is absent.
    """
    try:
        level = backend_info()["cpu_capability"]
    except RuntimeError as error:
        if "this processor has no" not in str(error):
            raise
        return str(error).splitlines()[0]
    device = torch.device("cpu")
    set_threads(case["threads"])
    ours = contenders_for(False)[OURS]
    digest = hashlib.sha256()
    for metric in ("dot", "l2", "cosine"):  # times the last one
        problem = build({**case, "metric": metric})
        errors = agree({OURS: ours}, problem, case["dtype"])
        for result in (*ours.neighbours(problem), ours.run(problem)):
            digest.update(result.numpy().tobytes())
    times = [seconds(lambda: ours.run(problem), device).seconds for _ in range(REPEATS)]
    return {
        "times": times,
        "digest": digest.hexdigest()[:16],
        "facts": machine(device, None),
        "error": errors[OURS],
        "level": level,
    }


def compare_levels(case: dict, rounds: int, columns: tuple[str, ...]) -> list[dict]:
    """Measures every level. Rounds alternate between narrow to wide and wide to narrow.

    Args:
        case: see `knn_bench.measure`.
        rounds: how often to run each level.
        columns: columns of the rows.

    Returns:
        One row per level, from narrow to wide.

    Raises:
        Disagreement: a process ran another level than requested, or computed wrong results.
    """
    done = {level: [] for level in LEVELS}
    for turn in range(rounds):
        for level in LEVELS if turn % 2 == 0 else LEVELS[::-1]:
            if done[level] and isinstance(done[level][0], str):
                continue
            with environment("DGCL_OPS_CPU_CAPABILITY", level):
                result = in_fresh_process(run_level, case)
            if not isinstance(result, str):
                if result["level"] != level:
                    raise Disagreement(f"level must be {level}, got {result['level']}")
                say(f"  {level}: {1e3 * statistics.median(result['times']):.2f} ms")
            done[level].append(result)
    times = {
        level: [t for result in results for t in result["times"]]
        for level, results in done.items()
        if isinstance(results[0], dict)
    }
    widest = statistics.median(list(times.values())[-1])
    rows = []
    for level, results in done.items():
        row = {key: case[key] for key in columns if key in case}
        row |= {"contender": OURS, "level": level, "scales": " ".join(map(str, case["scales"]))}
        if level not in times:
            rows.append({**row, **machine(torch.device("cpu"), None), "status": results[0]})
            continue
        row |= {**results[0]["facts"], "status": "measured", "repeats": len(times[level])}
        row |= {**milliseconds(times[level]), "max_error": f"{results[0]['error']:.1e}"}
        row["time_over_ours"] = round(statistics.median(times[level]) / widest, 3)
        digests = sorted({result["digest"] for result in results})
        rows.append({**row, "digest": " ".join(digests)})
    return rows
