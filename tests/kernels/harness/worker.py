"""Runs emulated kernels in processes of their own, under a sanitizer where the mode has one.

A worker starts Python once per mode, with PyTorch and the sanitizer's library, and forks for every job: a
job may crash, be stopped by its sanitizer or hang. What a job does is the program's that the worker runs; the CPU
kernels have another one (cpu_sanitizers/worker.py).

    with Worker("thread") as worker:
        result = worker.run("self_test", name="sum/race_between_blocks", schedule="reverse", seed=1)
"""

import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from . import build

LIBRARIES = {"plain": [], "address": ["libasan.so"], "thread": ["libtsan.so"]}
# PyTorch's allocations outlive the process on purpose
SANITIZER_OPTIONS = {
    "ASAN_OPTIONS": "detect_leaks=0:exitcode=66",
    "UBSAN_OPTIONS": "print_stacktrace=1:exitcode=66",
    "TSAN_OPTIONS": "halt_on_error=1:exitcode=66:atexit_sleep_ms=0",
}
WRONG, FAILED = 1, 2  # exit codes: other values than expected; an exception
TIMED_OUT = -signal.SIGALRM


@dataclass(frozen=True)
class Result:
    code: int
    output: str
    seconds: float

    @property
    def clean(self) -> bool:
        return self.code == 0


def library(name: str) -> str:
    command = [build.COMPILER, f"-print-file-name={name}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@functools.cache
def environment(mode: str) -> dict[str, str]:
    changed = {**os.environ, **SANITIZER_OPTIONS, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    # the same packages as here; without an installed one, the source tree's
    changed["PYTHONPATH"] = os.pathsep.join([*filter(None, sys.path), str(build.ROOT)])
    if LIBRARIES[mode]:
        # libstdc++ too: the sanitizer has to find exceptions' functions before PyTorch brings them
        names = [*LIBRARIES[mode], "libstdc++.so.6"]
        changed["LD_PRELOAD"] = ":".join(library(name) for name in names)
    return changed


@functools.cache
def prefix(mode: str) -> tuple[str, ...]:
    """ThreadSanitizer wants memory where some kernels put other things; without randomisation it is free."""
    if mode != "thread":
        return ()
    probe = subprocess.run([sys.executable, "-c", ""], env=environment(mode), capture_output=True)
    return ("setarch", os.uname().machine, "-R") if probe.returncode else ()


class Worker:
    program = "emulator.worker"

    def __init__(self, mode: str, seconds: float = 120):
        self.mode, self.seconds = mode, seconds

    def __enter__(self) -> "Worker":
        self._process = subprocess.Popen(
            [*prefix(self.mode), sys.executable, "-m", self.program, str(self.seconds)],
            env=environment(self.mode),
            cwd=build.HERE.parent,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(self, *_) -> None:
        self._process.stdin.close()
        self._process.wait()

    def run(self, job: str, file: Path | None = None, **arguments) -> Result:
        """`file`: the module to load, by default the mode's own, which has to be built."""
        file = file or build.module_file(self.mode)
        request = {"job": job, "file": str(file), "arguments": arguments}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the worker of mode {self.mode} ended: {self._process.wait()}")
        return Result(**json.loads(answer))


def self_test(emulator, name: str, schedule: str) -> None:
    if not emulator.self_test(name):
        raise AssertionError(f"{name}: wrong values")


def operator_cases(emulator, **arguments) -> None:
    from . import cases

    cases.check(emulator, **arguments)


JOBS = {"self_test": self_test, "cases": operator_cases}


def emulated(job: str, file: str, arguments: dict) -> None:
    emulator = build.load(file=Path(file))
    emulator.configure(arguments["schedule"], arguments.pop("seed"))
    JOBS[job](emulator, **arguments)


def child(do: Callable, request: dict, output: int) -> None:
    """Never returns."""
    code = FAILED
    try:
        os.dup2(output, 1)
        os.dup2(output, 2)
        do(**request)
        code = 0
    except AssertionError as error:
        code = WRONG
        print(error)
    except BaseException:
        traceback.print_exc(file=sys.stdout)
    sys.stdout.flush()
    os._exit(code)


def wait(pid: int, seconds: float) -> int:
    end = time.monotonic() + seconds
    pause = 0.001
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > end:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return TIMED_OUT
        time.sleep(pause)
        pause = min(2 * pause, 0.05)


def serve(do: Callable) -> None:
    """Forks for every request and has the child call do(job, file, arguments)."""
    import torch

    torch.set_num_threads(1)
    seconds = float(sys.argv[1])
    for line in sys.stdin:
        began = time.monotonic()
        with tempfile.TemporaryFile() as output:
            pid = os.fork()
            if pid == 0:
                child(do, json.loads(line), output.fileno())
            code = wait(pid, seconds)
            output.seek(0)
            text = output.read().decode(errors="replace")
        result = Result(code, text[-20000:], round(time.monotonic() - began, 3))
        print(json.dumps(result.__dict__), flush=True)


def main() -> None:
    from . import cases  # the libraries are loaded once, before the forks

    cases.prepare()
    serve(emulated)


if __name__ == "__main__":
    main()
