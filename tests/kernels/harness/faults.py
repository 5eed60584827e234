"""Plants faults in a copy of the CUDA kernels and sees whether the emulator finds them.

    python -m emulator.faults [--op knn_topk] [--kind "missing barrier"] [--part 0 3]        (from tests/)

A fault is a small change of one file's text. Only the changed kernel is compiled anew. The operator's cases run in
the mode that ought to find it, then in the others, until one does. A fault that no mode finds is either a hole in the
cases or no fault: the lists say why a tempting change is not in them. Each operator's kernels without a fault go the
same way, and nothing must be found in them.
"""

import argparse
import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from . import build, worker
from .cases import LONG_UNDER, all_cases

# Kinds of faults. Those up to WAIT are about the execution model and those after it about the values.
READ = "missing barrier, read too early"
WRITE = "missing barrier, written too early"
BRANCH = "barrier in a branch"
MASK = "collective of too few lanes"
SYNCWARP = "missing __syncwarp"
RACE = "race between blocks, warps or lanes"
SHARED = "index in shared memory"
GLOBAL = "out of bounds of global memory"
UNSET = "uninitialised memory"
VECTOR = "misaligned vector"
ALIGNMENT = "alignment lowered"
WAIT = "wait for cp.async"
LAUNCH = "launch"
TAIL = "missing guard of the tail"
PLACE = "wrong row, class or offset"
MERGE = "part of a merge dropped"
TIE = "ties and comparisons"
BOUND = "filter's bound"
OFFSET = "offset in 32 bits"
TURN = "loop over the grid left after one turn"
RANGE = "rows outside the normal range"
BINDING = "stream, guard or error lost"
CONTROL = "control: no fault"

# What has to be said for a fault to count as found, where anything else would be another fault's doing.
REPORTS = {
    RACE: "data race",
    SYNCWARP: "data race",
    VECTOR: "misaligned",
    ALIGNMENT: "misaligned|outside of its arrays|use-after-poison",
}

# Kernels whose launchers and bindings an operator needs.
STEMS = {op: ("knn_search", op) for op in ("knn_topk", "knn_density")}
# Of the plain mode; the others take the second.
SCHEDULES = (("reverse", 1), ("random", 2), ("sequential", 3))


@dataclass(frozen=True)
class Fault:
    kind: str
    op: str  # whose cases are to find it
    file: str  # in csrc/cuda
    old: str  # occurs once
    new: str
    by: str = "plain"  # the mode that is tried first


@dataclass(frozen=True)
class Found:
    fault: Fault
    mode: str | None
    how: str
    seconds: float

    def __str__(self) -> str:
        fault = self.fault
        place = f"{fault.op}, {fault.file}: {fault.kind}"
        if self.mode is None:
            place += f"\n--- {fault.old}\n+++ {fault.new}\n"
        return f"{place}: {self.mode or 'NOT FOUND'} ({self.how}, {self.seconds:.1f} s)"


def planted(op: str, file: str):
    """What makes the faults of one file that an operator's cases are to find."""

    def fault(kind: str, old: str, new: str, by: str = "plain") -> Fault:
        return Fault(kind, op, file, old, new, by)

    return fault


def all_faults() -> list[Fault]:
    from . import faults_contrast, faults_copies, faults_search

    return [*faults_copies.FAULTS, *faults_search.FAULTS, *faults_contrast.FAULTS]


def control(op: str) -> Fault:
    return Fault(CONTROL, op, "compat.cuh", "#pragma once\n", "#pragma once\n")


def plant(fault: Fault, folder: Path) -> Path:
    """A copy of the sources with the fault in them; returns its csrc."""
    csrc = folder / "csrc"
    shutil.copytree(build.CSRC, csrc)
    change_once(csrc / "cuda" / fault.file, fault.old, fault.new, fault.kind)
    return csrc


def change_once(file: Path, old: str, new: str, fault: str) -> None:
    text = file.read_text()
    if text.count(old) != 1:
        raise LookupError(
            f"{file.name} has {text.count(old)} times, not once, the text that the fault {fault!r} changes: {old!r}"
        )
    file.write_text(text.replace(old, new))


def includes(source: Path, seen: set[Path]) -> set[Path]:
    """The files that a source is made of."""
    if source not in seen:
        seen.add(source)
        for name in re.findall(r'#include "(.+)"', source.read_text()):
            if (source.parent / name).exists():
                includes((source.parent / name).resolve(), seen)
    return seen


def build_faulty(fault: Fault, mode: str, csrc: Path) -> Path:
    """The operator's module with the kernels that hold the fault compiled anew, the rest as it was built."""
    own, shared = build.CACHE / mode, build.CACHE / "shared"
    changed = (csrc / "cuda" / fault.file).resolve()
    objects = []
    for stem in STEMS.get(fault.op, (fault.op,)):
        launch, binding = csrc / "cuda" / f"{stem}_launch.cu", csrc / "cuda" / f"{stem}_binding.cpp"
        for source, folder, command in (
            (launch, own, f"{build.kernel_command(mode)} -O1 -x c++"),
            (binding, shared, build.binding_command()),
        ):
            if changed in includes(source.resolve(), set()):
                # first in the link: of an inline function in several objects, the first one counts
                target = build.object_of(csrc, source)
                command = f"{command} -w -c {source} -o {target}"
                subprocess.run(command.split(), check=True, capture_output=True, text=True)
                objects.insert(0, target)
            else:
                objects.append(build.object_of(folder, source))
    assert any(csrc in o.parents for o in objects), f"{fault.op} is not made of {fault.file}"
    extra = [build.object_of(own, s) for s in build.runtime()]
    extra += [own / "errors.cu.o", own / "self_test.cu.o", shared / "module.cpp.o"]
    extra += [build.object_of(shared, s) for s in build.operators()]
    module = csrc / f"{mode}.so"
    command = [*build.link_command(mode).split(), *map(str, [*objects, *extra])]
    subprocess.run([*command, "-ltorch_cpu", "-o", str(module)], check=True, capture_output=True)
    return module


class Bench:
    """Workers of all modes for every thread that looks for faults."""

    def __init__(self):
        self._stack, self._own, self._lock = (
            contextlib.ExitStack(),
            threading.local(),
            threading.Lock(),
        )

    def __enter__(self) -> "Bench":
        for mode in build.MODES:
            print(f"building the emulated kernels, {mode}", flush=True)
            build.build(mode)
        return self

    def __exit__(self, *_) -> None:
        self._stack.close()

    def process(self, mode: str) -> worker.Worker:
        workers = self._own.__dict__.setdefault("workers", {})
        if mode not in workers:
            with self._lock:
                workers[mode] = self._stack.enter_context(worker.Worker(mode, seconds=600))
        return workers[mode]

    def runs(self, fault: Fault, mode: str, module: Path) -> Iterable[worker.Result]:
        for schedule, seed in SCHEDULES if mode == "plain" else SCHEDULES[1:2]:
            thread = mode == "thread"
            options = {"op": fault.op, "thread": thread, "schedule": schedule, "seed": seed}
            yield self.process(mode).run("cases", file=module, **options)

    def look_for(self, fault: Fault) -> Found:
        seconds = 0.0
        with tempfile.TemporaryDirectory() as folder:
            csrc = plant(fault, Path(folder).resolve())
            for mode in sorted(build.MODES, key=lambda m: m != fault.by):
                module = build_faulty(fault, mode, csrc)
                for result in self.runs(fault, mode, module):
                    seconds += result.seconds
                    if is_found(fault, result):
                        return Found(fault, mode, said(result), seconds)
        return Found(fault, None, "all cases pass", seconds)

    def look_for_all(self, faults: Iterable[Fault]) -> Iterable[Found]:
        """In the order in which they are done."""
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for done in as_completed([pool.submit(self.look_for, fault) for fault in faults]):
                yield done.result()


def is_found(fault: Fault, result: worker.Result) -> bool:
    """Whether this is the fault showing, and not the search for it that broke."""
    if result.code == worker.TIMED_OUT or "ImportError" in result.output:
        raise RuntimeError(f"{fault}: {said(result)}")
    return not result.clean and re.search(REPORTS.get(fault.kind, ""), result.output) is not None


def said(result: worker.Result) -> str:
    """The line that tells what was found."""
    if result.code < 0:
        return f"signal {-result.code}"
    lines = [line for line in result.output.splitlines() if line.strip()]
    telling = ("SUMMARY:", "CUDA emulator:", "runtime error:", "result ", "RuntimeError", "ERROR")
    for text in telling:
        for line in lines:
            if text in line:
                return line.strip()[:150]
    return lines[-1].strip()[:150] if lines else f"exit code {result.code}"


def table(found: list[Found]) -> str:
    kinds = list(dict.fromkeys(f.fault.kind for f in found))
    width = max(map(len, kinds))
    lines = [f"{'kind':{width}}  planted  found  by"]
    for kind in kinds:
        of_kind = [f for f in found if f.fault.kind == kind]
        modes = Counter(f.mode for f in of_kind if f.mode)
        by = ", ".join(f"{mode} {modes[mode]}" for mode in build.MODES if modes[mode])
        lines.append(f"{kind:{width}}  {len(of_kind):7}  {sum(modes.values()):5}  {by}")
    total = sum(f.mode is not None for f in found)
    share = 100 * total / len(found)
    lines.append(f"{'all':{width}}  {len(found):7}  {total:5}  {share:.0f} %")
    return "\n".join(lines)


def clean_runs(op: str) -> str:
    cases = all_cases()[op]
    schedules = ", ".join(schedule for schedule, _ in SCHEDULES)
    threads, long = sum(case.thread for case in cases), sum(case.long for case in cases)
    once = f"; {long} under {LONG_UNDER} only" if long else ""
    return f"{len(cases)} cases clean in plain ({schedules}) and address, {threads} of them in thread{once}"


def main() -> int:
    sys.path.append(str(build.ROOT))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--op", action="append", choices=sorted(all_cases()))
    parser.add_argument("--kind", help="a part of its name")
    parser.add_argument(
        "--part", type=int, nargs=2, metavar=("I", "N"), default=(0, 1), help="every N-th from I on"
    )
    chosen = parser.parse_args()
    first, step = chosen.part
    if not 0 <= first < step:
        parser.error(f"--part must be I and N with 0 <= I < N, got {first} {step}")
    ops = chosen.op or sorted({f.op for f in all_faults()})
    faults = [f for f in all_faults() if f.op in ops and (chosen.kind or "") in f.kind]
    faults = faults[first::step]
    if not faults:
        parser.error(
            f"no fault of this kind; there are {', '.join(sorted({f.kind for f in all_faults()}))}"
        )
    found, clean = [], True
    with Bench() as bench:
        for each in bench.look_for_all([*map(control, ops), *faults]):
            if each.fault.kind == CONTROL:
                clean = clean and each.mode is None
                print(
                    f"{each.fault.op} without a fault: {each.mode or clean_runs(each.fault.op)}",
                    flush=True,
                )
                continue
            found.append(each)
            print(f"[{len(found)}/{len(faults)}] {each}", flush=True)
    print(table(found))
    return 0 if clean and all(f.mode for f in found) else 1


if __name__ == "__main__":
    sys.exit(main())
