"""Defines a harness, its workers and the command-line options they share."""

import argparse
import contextlib
import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from .build import Module
from .worker import Result, Worker


@dataclass(frozen=True)
class Harness:
    """The emulator, the sanitizers or the fuzzer.

    Attributes:
        name: its package in tests/kernels, which has `jobs.py` for the workers.
        modes: the modes that can be built.
        ops: the operators that it has inputs for.
        module: returns the kernels of a mode.
        build: rebuilds modes if needed.
        concerns: returns whether an operator needs a source.
        faults: returns all faults that it plants.
        fault_modes: returns the modes that may find a fault.
        fault_runs: returns arguments of the jobs that look for a fault in a mode.
        control: a file in csrc that all kernels include. If given, kernels without a fault are built and run first.
        seconds: time limit of a job.
    """

    name: str
    modes: tuple[str, ...]
    ops: tuple[str, ...]
    module: Callable[[str], Module]
    build: Callable
    concerns: Callable[[str, Path], bool]
    faults: Callable[[], list]
    fault_modes: Callable[..., Iterable[str]]
    fault_runs: Callable[..., Iterable[dict]]
    control: str = ""
    seconds: float = 120


class Bench:
    """Threads, one per core, each with its own workers."""

    def __init__(self, harness: Harness):
        self._harness = harness
        self._stack, self._lock = contextlib.ExitStack(), threading.Lock()
        self._own = threading.local()
        self._pool = ThreadPoolExecutor(os.cpu_count())

    def __enter__(self) -> "Bench":
        return self

    def __exit__(self, *_) -> None:
        self._pool.shutdown(cancel_futures=True)
        self._stack.close()

    def map(self, function: Callable, jobs: Iterable) -> Iterable:
        """Returns the results in order. `function` may call run()."""
        return self._pool.map(function, jobs)

    def run(self, mode: str, job: str, file: Path | None = None, **arguments) -> Result:
        workers = self._own.__dict__.setdefault("workers", {})
        if mode not in workers:
            worker = Worker(self._harness.name, mode, self._harness.seconds)
            with self._lock:
                workers[mode] = self._stack.enter_context(worker)
        return workers[mode].run(job, file or self._harness.module(mode).file, **arguments)


def part(text: str) -> int:
    number = int(text)
    if number < 0:
        raise ValueError
    return number


def add_options(parser: argparse.ArgumentParser, harness: Harness) -> None:
    parser.add_argument("--op", choices=harness.ops, action="append", help="by default all")
    parser.add_argument("--mode", choices=harness.modes, action="append", help="by default all")
    parser.add_argument("--faults", action="store_true", help="plant faults; each must be found")
    parser.add_argument("--kind", help="only faults with this text in their kind")
    parser.add_argument(
        *("--part", "-p"),
        type=part,
        nargs=2,
        metavar=("I", "N"),
        default=(0, 1),
        help="every N-th fault from the I-th on; without --faults, the sanitizers' part of their runs",
    )


def check_options(parser: argparse.ArgumentParser, chosen, harness: Harness) -> None:
    chosen.op = chosen.op or list(harness.ops)
    first, step = chosen.part
    if not first < step:
        parser.error(f"--part must be I and N with 0 <= I < N, got {first} {step}")
