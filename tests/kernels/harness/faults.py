"""Plants faults in copies of the kernels. A tool that reports nothing may simply not work.

A fault is one edit of one file. Only the objects that contain it are recompiled. The operator's cases run in the mode
that should find the fault, then in the harness's other modes, until one finds it. If none does, a case is missing, or
the edit is harmless. The lists of faults say why some tempting edits are not in them.
"""

import re
import shutil
import signal
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from .build import CSRC, rebuild
from .run import Bench, Harness
from .worker import TIMED_OUT, Result

CONTROL = "control: no fault"


@dataclass(frozen=True)
class Fault:
    kind: str
    op: str  # its cases must find the fault
    file: str  # in csrc
    old: str  # occurs once
    new: str
    mode: str  # tried first
    report: str = ""  # what the output must say; anything else is another fault

    def __str__(self) -> str:
        return f"{self.op}, {self.file}: {self.kind}"


@dataclass(frozen=True)
class Outcome:
    fault: Fault
    mode: str | None  # the mode that found it
    evidence: str
    seconds: float

    def __str__(self) -> str:
        text = f"{self.fault}: {self.mode or 'NOT FOUND'} ({self.evidence}, {self.seconds:.1f} s)"
        return text if self.mode else f"{text}\n--- {self.fault.old}\n+++ {self.fault.new}"


def control(op: str, file: str) -> Fault:
    """Kernels without a fault, built and run the same way. Nothing must be found. `file`: all kernels include it."""
    return Fault(CONTROL, op, file, "", "", "plain")


def plant(fault: Fault, folder: Path) -> Path:
    """A copy of the sources with the fault in them. Returns its csrc."""
    csrc = folder / "csrc"
    shutil.copytree(CSRC, csrc)
    file = csrc / fault.file
    text = file.read_text()
    if fault.kind != CONTROL:
        if text.count(fault.old) != 1:
            raise LookupError(
                f"{fault}: the text to change must occur once, but occurs {text.count(fault.old)} times: {fault.old!r}"
            )
        file.write_text(text.replace(fault.old, fault.new))
    return csrc


def is_found(fault: Fault, result: Result) -> bool:
    """Whether the job found the fault. Raises an error if the search itself failed."""
    broken = r"ImportError|ModuleNotFoundError|MemoryError|Cannot allocate memory"
    if result.code in (TIMED_OUT, -signal.SIGKILL) or re.search(broken, result.output):
        raise RuntimeError(f"{fault}: {result.evidence()}")
    return not result.clean and re.search(fault.report, result.output) is not None


def look_for(harness: Harness, bench: Bench, fault: Fault) -> Outcome:
    seconds, result = 0.0, None
    with tempfile.TemporaryDirectory() as folder:
        csrc = plant(fault, Path(folder).resolve())
        for mode in sorted(harness.fault_modes(fault), key=lambda mode: mode != fault.mode):
            changed = (csrc / fault.file).resolve()
            module = harness.module(mode)
            file = rebuild(module, csrc, changed, lambda source: harness.concerns(fault.op, source))
            for arguments in harness.fault_runs(fault, mode):
                result = bench.run(mode, "cases", file, op=fault.op, **arguments)
                seconds += result.seconds
                if is_found(fault, result):
                    return Outcome(fault, mode, result.evidence(), seconds)
    return Outcome(fault, None, f"last run: {result.evidence()}", seconds)


def table(outcomes: list[Outcome], modes: tuple[str, ...]) -> str:
    kinds = list(dict.fromkeys(outcome.fault.kind for outcome in outcomes))
    width = max(map(len, kinds))
    lines = [f"{'kind':{width}}  planted  found  by"]
    for kind in kinds:
        of_kind = [outcome for outcome in outcomes if outcome.fault.kind == kind]
        by = Counter(outcome.mode for outcome in of_kind if outcome.mode)
        modes_text = ", ".join(f"{mode} {by[mode]}" for mode in modes if by[mode])
        lines.append(f"{kind:{width}}  {len(of_kind):7}  {sum(by.values()):5}  {modes_text}")
    return "\n".join(lines)


def run(harness: Harness, chosen) -> int:
    """Looks for the chosen faults, and for none in the controls. A part runs its share of both.

    Returns:
        The number of faults that were not found, plus the number of controls that failed.
    """
    part, parts = chosen.part
    faults = [
        fault
        for fault in harness.faults()
        if fault.op in chosen.op
        and (chosen.kind or "") in fault.kind
        and (not chosen.mode or fault.mode in chosen.mode)
    ][part::parts]
    if not faults:
        kinds = ", ".join(sorted({fault.kind for fault in harness.faults()}))
        raise SystemExit(f"no fault of this choice; the kinds are {kinds}")
    harness.build(*harness.modes)
    # The emulator's tests run all operators without faults. Here a part needs one control at least.
    controls = [control(op, harness.control) for op in chosen.op if harness.control]
    controls = controls[part % max(1, len(controls)) :: parts]
    outcomes, failed = [], 0
    with Bench(harness) as bench:
        for outcome in bench.map(lambda f: look_for(harness, bench, f), [*controls, *faults]):
            if outcome.fault.kind == CONTROL:
                failed += outcome.mode is not None
                verdict = f"FAILED: {outcome}" if outcome.mode else "clean in every mode"
                print(f"{outcome.fault.op} without a fault: {verdict}", flush=True)
            else:
                outcomes.append(outcome)
                print(f"[{len(outcomes)}/{len(faults)}] {outcome}", flush=True)
    if len({fault.kind for fault in faults}) < len(faults):
        print(table(outcomes, harness.modes))
    found = sum(outcome.mode is not None for outcome in outcomes)
    total = len(harness.faults())
    print(f"{harness.name}: {len(faults)} of {total} faults planted, {found} found")
    return failed + len(faults) - found
