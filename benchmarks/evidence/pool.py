"""Calls a function for many jobs, in parallel processes."""

import itertools
import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from typing import Any


def outcomes(
    function: Callable, jobs: Iterable[tuple], workers: int
) -> Iterator[tuple[tuple, Any]]:
    """Calls a function for each job.

    A job starts only when a process is free. After an interrupt or an error no further job starts.

    Args:
        function: a function of a module.
        jobs: its arguments.
        workers: number of processes. 1: this process.

    Yields:
        Jobs in the order in which they end, each with its result, or with the exception that it raised.
    """
    if workers == 1:
        for job in jobs:
            try:
                yield job, function(*job)
            except Exception as error:
                yield job, error
        return
    context = multiprocessing.get_context("spawn")  # a fork would inherit torch's threads
    waiting, running = iter(jobs), {}
    with ProcessPoolExecutor(workers, context) as pool:
        while True:
            for job in itertools.islice(waiting, workers - len(running)):
                running[pool.submit(function, *job)] = job
            if not running:
                return
            for done in wait(running, return_when=FIRST_COMPLETED).done:
                yield running.pop(done), done.exception() or done.result()
