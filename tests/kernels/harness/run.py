"""Runs the CPU kernels' cases under the sanitizers on every instruction set of this processor, then plants faults.

python -m cpu_sanitizers.run [--mode thread] [--op knn_topk] [--no-faults]        (from tests/)
"""

import argparse
import contextlib
import os
import re
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from emulator.worker import Result

from . import build, cases, faults
from .worker import THREADS, Worker


class Bench:
    """A thread per core, each with workers of its own."""

    def __init__(self, worker: type[Worker] = Worker):
        self._worker = worker
        self._stack, self._lock = contextlib.ExitStack(), threading.Lock()
        self._own = threading.local()
        self._pool = ThreadPoolExecutor(os.cpu_count())

    def __enter__(self) -> "Bench":
        return self

    def __exit__(self, *_) -> None:
        self._pool.shutdown(cancel_futures=True)
        self._stack.close()

    def map(self, function: Callable, jobs: Iterable) -> Iterable:
        """In their order; `function` may call run()."""
        return self._pool.map(function, jobs)

    def run(self, mode: str, job: str, file: Path | None = None, **arguments) -> Result:
        workers = self._own.__dict__.setdefault("workers", {})
        if mode not in workers:
            with self._lock:
                workers[mode] = self._stack.enter_context(self._worker(mode, seconds=120))
        return workers[mode].run(job, file=file or build.module_file(mode), **arguments)


def telling(result: Result) -> str:
    """The line that says what was found, without folders."""
    for line in result.output.splitlines():
        if re.search("SUMMARY:|runtime error:|Assertion", line):
            return re.sub(r"/\S*/", "", line.strip())[:110]
    return f"exit code {result.code}"


def levels(bench: Bench) -> list[str]:
    names = build.LEVELS
    (result,) = bench.map(lambda mode: bench.run(mode, "level"), ["address"])
    widest = result.output.strip()
    if not result.clean or widest not in names:
        raise RuntimeError(f"the kernels could not be loaded:\n{result.output}")
    if missing := names[names.index(widest) + 1 :]:
        print(f"this processor has no {', '.join(missing)}: NOT checked")
    return names[: names.index(widest) + 1]


def check(bench: Bench, modes: list[str], ops: list[str]) -> int:
    """Number of jobs in which a sanitizer reported something."""
    jobs = [(m, level, op) for m in modes for level in levels(bench) for op in ops]
    failed, began = 0, time.monotonic()
    results = bench.map(
        lambda j: bench.run(j[0], "cases", level=j[1], op=j[2], thread=j[0] == "thread"), jobs
    )
    for (mode, level, op), result in zip(jobs, results, strict=True):
        if not result.clean:
            failed += 1
            print(f"FAILED {op}, {mode}, {level}:\n{result.output[-8000:]}", flush=True)
    for mode in modes:
        number = sum(c.thread or mode == "address" for op in ops for c in cases.all_cases()[op])
        used = ", ".join(dict.fromkeys(level for m, level, _ in jobs if m == mode))
        print(f"{mode}: {number} cases of {len(ops)} operators on {used}, {THREADS} threads each")
    print(
        f"{failed} of {len(jobs)} runs with a report; {time.monotonic() - began:.0f} s", flush=True
    )
    return failed


def look_for(bench: Bench, fault: faults.Fault) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        module = faults.build_faulty(fault, Path(folder).resolve())
        thread = fault.mode == "thread"
        result = bench.run(fault.mode, "cases", file=module, op=fault.op, thread=thread)
    found = faults.is_found(fault, result)
    print(
        f"{fault.op}, {fault.what}: {telling(result) if found else 'NOT FOUND'}",
        f"({fault.mode}, {result.seconds:.1f} s)",
        flush=True,
    )
    if not found:
        print(result.output[-2000:], flush=True)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mode", choices=build.MODES, action="append")
    parser.add_argument("--op", choices=sorted(cases.all_cases()), action="append")
    parser.add_argument("--no-faults", action="store_true")
    chosen = parser.parse_args()
    modes, ops = chosen.mode or list(build.MODES), chosen.op or list(cases.all_cases())
    began = time.monotonic()
    build.build()
    print(f"built for {' and '.join(build.MODES)} in {time.monotonic() - began:.0f} s", flush=True)
    with Bench() as bench:
        failed = check(bench, modes, ops)
        if chosen.no_faults:
            return 1 if failed else 0
        planted = [f for f in faults.FAULTS if f.op in ops and f.mode in modes]
        began = time.monotonic()
        found = list(bench.map(lambda fault: look_for(bench, fault), planted))
    seconds = time.monotonic() - began
    print(f"{len(planted)} faults planted, {sum(found)} found; {seconds:.0f} s")
    return 1 if failed or not all(found) else 0


if __name__ == "__main__":
    sys.exit(main())
