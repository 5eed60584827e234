"""Runs steps. Each is a process group with its own time limit and result.

The output of a step goes to `steps.log` line by line. As soon as the step ends, its result goes to `results.jsonl` and
the summary is rewritten, so a later failure cannot lose it. Steps report through report.py.
"""

import collections
import contextlib
import json
import os
import signal
import subprocess
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

from report import MARK, SKIP

TOKEN = "DGCL_OPS_GPU_STEP"  # in the environment of a step and of every process it starts
GRACE = 2.0  # seconds between SIGTERM and SIGKILL
GRACE_FOR_OUTPUT = (
    60.0  # for its last lines; only a process that cannot be killed holds the pipe that long
)
RESERVE = 6.0  # time at the end of the run for killing a step and writing the summary
LEAST = 5.0  # a step with less time is not started
LOG_BYTES = 700_000  # limit per step in the log, so that 20 steps stay below 16 MiB
TAIL = 40  # last lines of a step in its result


@dataclass
class Step:
    """One process.

    Attributes:
        name: letters, digits and _.
        title: what it proves or records.
        command: the program and its arguments.
        limit: time limit in seconds.
        env: variables in addition to the run's.
        together: adjacent steps with the same value run in parallel.
        why_not: called before the step starts. If it returns a reason, the step is skipped.
    """

    name: str
    title: str
    command: list
    limit: float
    env: dict = field(default_factory=dict)
    together: str = ""
    why_not: Callable[[], str | None] | None = None


@dataclass
class Result:
    """The result of a step. `status`: passed, failed, crashed, over its limit, skipped, not run."""

    step: str
    title: str
    status: str
    seconds: float = 0.0
    code: int | None = None
    note: str = ""
    figures: dict = field(default_factory=dict)
    tail: list = field(default_factory=list)


class Log:
    """One file for all steps. Each line starts with the step's name and is flushed."""

    def __init__(self, path: Path):
        self._file = path.open("a", encoding="utf-8")
        self._lock = threading.Lock()
        self._written = collections.Counter()

    def write(self, name: str, line: str, always: bool = False) -> None:
        """Writes a line, if the step is below LOG_BYTES or `always` is set."""
        with self._lock:
            before = self._written[name]
            self._written[name] += len(line.encode()) + len(name) + 4
            if self._written[name] > LOG_BYTES and not always:
                if before <= LOG_BYTES:
                    self._file.write(
                        f"[{name}] (more than {LOG_BYTES:,} bytes, the rest is left out)\n"
                    )
                return
            self._file.write(f"[{name}] {line}\n")
            self._file.flush()


def carriers(token: str) -> list[int]:
    """Returns the processes with the token in their environment: all that a step started, in any session."""
    wanted, pids = f"{TOKEN}={token}".encode(), []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if wanted in (folder / "environ").read_bytes().split(b"\0"):
                pids.append(int(folder.name))
        except OSError:  # it has ended, or is not ours
            continue
    return pids


def send(pid: int, number: int, group: bool = False) -> None:
    """Sends a signal to a process or its group. A process that has ended is ignored."""
    try:
        (os.killpg if group else os.kill)(pid, number)
    except (ProcessLookupError, PermissionError):
        return


class Run:
    """A run: its results so far, and its remaining time.

    Args:
        out: folder for results.
        budget: seconds for the whole run.
        env: environment of the steps.
        folder: their working folder.
        write_summary: called with the run after each step.
    """

    def __init__(
        self,
        out: Path,
        budget: float,
        env: dict[str, str],
        folder: Path,
        write_summary: Callable[["Run"], None],
    ):
        out.mkdir(parents=True, exist_ok=True)
        self.out, self.budget, self.env, self.folder = out, budget, env, folder
        self.began = time.monotonic()
        self.results: list[Result] = []
        self.log = Log(out / "steps.log")
        self.ended = ""  # why the run ended early, if it did
        self._write_summary = write_summary
        self._lock = threading.Lock()
        self._active: dict[int, tuple[str, str]] = {}  # process group: its token and step

    def seconds(self) -> float:
        return time.monotonic() - self.began

    def left(self) -> float:
        return self.budget - self.seconds()

    def result(self, name: str) -> Result | None:
        return next((r for r in reversed(self.results) if r.step == name), None)

    def figure(self, step: str, name: str, default: Any = None) -> Any:
        """Returns a figure that a step reported."""
        result = self.result(step)
        return result.figures.get(name, default) if result else default

    def record(self, line: dict) -> None:
        with (self.out / "results.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def add(self, result: Result) -> Result:
        """Records and prints a result, and rewrites the summary."""
        with self._lock:
            self.results.append(result)
            self.record(asdict(result))
            self._write_summary(self)
        first = result.note.splitlines()[0][:160] if result.note else ""
        print(f"{result.status:<14} {result.step:<18} {result.seconds:6.1f} s  {first}", flush=True)
        return result

    def summarise(self) -> None:
        with self._lock:
            self._write_summary(self)

    def go(self, steps: list[Step]) -> None:
        while steps:
            count = 1
            if steps[0].together:
                while count < len(steps) and steps[count].together == steps[0].together:
                    count += 1
            batch, steps = steps[:count], steps[count:]
            if count == 1:
                self.add(self.one(batch[0]))
                continue
            with ThreadPoolExecutor(count) as pool:
                list(pool.map(lambda step: self.add(self.one(step)), batch))

    def one(self, step: Step) -> Result:
        result = Result(step.name, step.title, "not run")
        if reason := step.why_not() if step.why_not else None:
            result.status, result.note = "skipped", reason
            return result
        limit = min(step.limit, self.left() - RESERVE)
        if limit < min(LEAST, step.limit):
            result.note = f"no time left of the run's {self.budget:.0f} s"
            return result
        cut = ""
        if limit < step.limit:
            cut = f"limit cut from {step.limit:.0f} to {limit:.0f} s by the run's end"
        try:
            self._process(step, limit, result)
        except OSError as error:  # for example, the program does not exist
            result.status, result.note = "failed", f"could not be started: {error}"
        if cut:
            self.log.write(step.name, cut, always=True)
            result.note = f"{result.note}; {cut}" if result.note else cut
        return result

    def _process(self, step: Step, limit: float, result: Result) -> None:
        token = uuid.uuid4().hex
        command = [str(part) for part in step.command]
        env = {**self.env, **step.env, TOKEN: token}
        began = time.monotonic()
        self.log.write(step.name, f"$ {' '.join(command)}   (limit {limit:.0f} s)", always=True)
        process = subprocess.Popen(
            command,
            cwd=self.folder,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._active[process.pid] = token, step.name
        tail = collections.deque(maxlen=TAIL)
        reader = threading.Thread(
            target=self._read, args=(step.name, process.stdout, result, tail), daemon=True
        )
        reader.start()
        over = False
        try:
            over = not self.ends_within(process, limit)
            if over:
                send(process.pid, signal.SIGTERM, group=True)
                self.ends_within(process, GRACE)
        finally:
            self._end(process, token)
        reader.join(timeout=GRACE_FOR_OUTPUT)
        del self._active[process.pid]
        result.seconds, result.code = round(time.monotonic() - began, 1), process.returncode
        result.tail = list(tail)
        self._judge(result, over, limit)
        self.log.write(
            step.name, f"{result.status}, {result.seconds} s: {result.note}", always=True
        )

    @staticmethod
    def ends_within(process: subprocess.Popen, seconds: float) -> bool:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=seconds)
        return process.returncode is not None

    def _end(self, process: subprocess.Popen, token: str) -> None:
        """Kills every process of the step, in its group and outside."""
        send(process.pid, signal.SIGKILL, group=True)
        for pid in carriers(token):
            send(pid, signal.SIGKILL)
        process.wait()

    def _read(self, name: str, stream: IO[bytes], result: Result, tail: collections.deque) -> None:
        for raw in iter(lambda: stream.readline(65536), b""):
            line = raw.decode(errors="replace").rstrip()
            if line.startswith(MARK):
                try:
                    result.figures.update(json.loads(line[len(MARK) :]))
                    continue
                except (ValueError, TypeError):
                    pass
            tail.append(line[:500])
            self.log.write(name, line)

    def _judge(self, result: Result, over: bool, limit: float) -> None:
        note = result.figures.get("note", "")
        last = next((line for line in reversed(result.tail) if line.strip()), "")
        if over:
            result.status, note = "over its limit", f"killed after {limit:.0f} s. {note}".strip()
        elif result.code == SKIP:
            result.status, note = "skipped", last
        elif result.code < 0:
            result.status = "crashed"
            names = {number.value: number.name for number in signal.Signals}
            note = f"{names.get(-result.code, -result.code)}. {note or last}".strip()
        elif result.code > 0:
            result.status, note = "failed", note or f"exit status {result.code}: {last}"
        else:
            result.status = "passed"
        result.note = note

    def stop(self, reason: str) -> None:
        """Kills the running steps. The summary names them and the reason."""
        running = list(self._active.items())
        during = ", ".join(name for _, (_, name) in running)
        self.ended = f"{reason}, during {during}" if during else reason
        for pid, (token, _) in running:
            send(pid, signal.SIGKILL, group=True)
            for other in carriers(token):
                send(other, signal.SIGKILL)
        self.summarise()
