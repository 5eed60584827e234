"""Runs jobs in separate processes, under a sanitizer if the mode has one.

A worker starts Python once, with PyTorch and the sanitizer's library, and forks for every job. A job may crash, hang,
or be stopped by its sanitizer. The harness's `jobs.py` holds the jobs: `prepare()` runs before the forks, `run(job,
file, **arguments)` in each of them. An AssertionError means that a value is wrong.

    with Worker("emulator", "thread") as worker:
        result = worker.run("self_test", file, name="sum/race_between_blocks", schedule="reverse", seed=1)
"""

import ctypes
import functools
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from kernels.harness.build import COMPILER, ROOT

LIBRARIES = {"plain": [], "address": ["libasan.so"], "thread": ["libtsan.so"]}
SANITIZER_OPTIONS = {
    "ASAN_OPTIONS": "detect_leaks=0:exitcode=66",  # PyTorch never frees some allocations, on purpose
    "UBSAN_OPTIONS": "print_stacktrace=1:exitcode=66",
    "TSAN_OPTIONS": "halt_on_error=1:exitcode=66:atexit_sleep_ms=0",
}
WRONG, FAILED = 1, 2  # exit codes: a wrong value; another exception
TIMED_OUT = -signal.SIGALRM
# Patterns for the line of output that says what went wrong, most precise first.
EVIDENCE = (
    *("PROBLEM ", "SUMMARY:", "CUDA emulator:", "runtime error:", "Assertion", " differ, first at"),
    *(" x tolerance", "RuntimeError", "ERROR"),
)


@dataclass(frozen=True)
class Result:
    code: int
    output: str
    seconds: float

    @property
    def clean(self) -> bool:
        return self.code == 0

    def evidence(self) -> str:
        """The line that says what went wrong, without folders."""
        lines = [line.strip() for line in self.output.splitlines() if line.strip()]
        for text in EVIDENCE:
            for line in lines:
                if text in line:
                    return shortened(line)
        if self.code < 0:
            return f"signal {-self.code}"
        return shortened(lines[-1]) if lines else f"exit code {self.code}"


def shortened(line: str) -> str:
    words = (word.rsplit("/", 1)[-1] if word.startswith("/") else word for word in line.split(" "))
    return " ".join(words)[:150]


def library(name: str) -> str:
    command = [COMPILER, f"-print-file-name={name}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@functools.cache
def environment(mode: str) -> dict[str, str]:
    changed = {**os.environ, **SANITIZER_OPTIONS, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    # The packages of this process. Without an installed dgcl_ops, the source tree's.
    changed["PYTHONPATH"] = os.pathsep.join([*filter(None, sys.path), str(ROOT)])
    if LIBRARIES[mode]:
        # libstdc++, too: the sanitizer must find its exception functions before PyTorch loads them.
        names = [*LIBRARIES[mode], "libstdc++.so.6"]
        changed["LD_PRELOAD"] = ":".join(library(name) for name in names)
    return changed


@functools.cache
def prefix(mode: str) -> tuple[str, ...]:
    """ThreadSanitizer needs certain addresses. Some kernels use them for other things, unless randomisation is off."""
    if mode != "thread":
        return ()
    probe = subprocess.run([sys.executable, "-c", ""], env=environment(mode), capture_output=True)
    return ("setarch", os.uname().machine, "-R") if probe.returncode else ()


class Worker:
    def __init__(self, harness: str, mode: str, seconds: float = 120):
        self.harness, self.mode, self.seconds = harness, mode, seconds

    def __enter__(self) -> "Worker":
        program = ["-m", "kernels.harness.worker", self.harness, str(self.seconds)]
        self._process = subprocess.Popen(
            [*prefix(self.mode), sys.executable, *program],
            env=environment(self.mode),
            cwd=ROOT / "tests",
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(self, *_) -> None:
        self._process.stdin.close()
        self._process.wait()

    def run(self, job: str, file: Path, **arguments) -> Result:
        """`file`: the module of kernels to load."""
        request = {"job": job, "file": str(file), **arguments}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            code = self._process.wait()
            raise RuntimeError(f"the worker of {self.harness}, mode {self.mode}, ended with {code}")
        return Result(**json.loads(answer))


# ---- in the worker ------------------------------------------------------------------------------------


@functools.cache
def poison_function():
    """AddressSanitizer's function that makes access to (address, size) an error; None if it is not loaded."""
    function = getattr(ctypes.CDLL(None), "__asan_poison_memory_region", None)
    if function:
        function.argtypes = ctypes.c_void_p, ctypes.c_size_t
    return function


def child(run: Callable, request: dict, output: int) -> None:
    """Never returns."""
    code = FAILED
    try:
        os.dup2(output, 1)
        os.dup2(output, 2)
        run(**request)
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


def main() -> None:
    harness, seconds = sys.argv[1:]
    jobs = importlib.import_module(f"kernels.{harness}.jobs")
    jobs.prepare()
    import torch

    torch.set_num_threads(1)
    for line in sys.stdin:
        began = time.monotonic()
        with tempfile.TemporaryFile() as output:
            pid = os.fork()
            if pid == 0:
                child(jobs.run, json.loads(line), output.fileno())
            code = wait(pid, float(seconds))
            output.seek(0)
            text = output.read().decode(errors="replace")
        result = Result(code, text[-20000:], round(time.monotonic() - began, 3))
        print(json.dumps(asdict(result)), flush=True)


if __name__ == "__main__":
    main()
