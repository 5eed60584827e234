"""Tests the faults that `python -m kernels ... --faults` plants, and the search for them.

The whole search takes minutes. Here it covers a few faults, and kernels without a fault, where it must find none.
"""

import difflib
import re
from pathlib import Path

import pytest

if not (Path(__file__).resolve().parents[2] / "setup.py").exists():
    pytest.skip("needs .ci/ and csrc/, which are missing here", allow_module_level=True)

from kernels.emulator import faults as kinds
from kernels.emulator.run import HARNESS as EMULATOR
from kernels.fuzz.run import HARNESS as FUZZ
from kernels.harness import faults
from kernels.harness.build import CSRC, ROOT
from kernels.harness.run import Bench
from kernels.harness.worker import FAILED, TIMED_OUT, WRONG, Result
from kernels.sanitizers import faults as cpu_faults
from kernels.sanitizers.run import HARNESS as SANITIZERS

HARNESSES = {harness.name: harness for harness in (EMULATOR, SANITIZERS, FUZZ)}
ALL = EMULATOR.faults()


@pytest.mark.parametrize("harness", HARNESSES.values(), ids=HARNESSES)
def test_each_changes_one_place(harness, tmp_path):
    planted = harness.faults()
    for n, fault in enumerate(planted):
        text = (CSRC / fault.file).read_text()
        assert text.count(fault.old) == 1, fault
        assert fault.old != fault.new
        if n % 50 == 0:
            csrc = faults.plant(fault, tmp_path / str(n))
            assert (csrc / fault.file).read_text() == text.replace(fault.old, fault.new)
    assert len(set(planted)) == len(planted)
    assert {fault.mode for fault in planted} <= set(harness.modes)
    assert {fault.op for fault in planted} <= set(harness.ops)


def test_the_documents_have_the_numbers_of_faults():
    numbers = {name: len(harness.faults()) for name, harness in HARNESSES.items()}
    text = " ".join((ROOT / "tests" / "kernels" / "README.md").read_text().split())
    said = ", ".join(f"{number} by the {name}" for name, number in numbers.items())
    assert f"{sum(numbers.values())} planted faults: {said.replace('fuzz', 'fuzzer')}" in text
    kinds = len({fault.kind for fault in ALL})
    said = f"{len(ALL)} faults of {kinds} kinds"
    page = ROOT / "docs" / "develop" / "cuda_without_a_gpu.md"
    assert said in " ".join(page.read_text().split()), said


# ---- of the emulator ----------------------------------------------------------------------------------


def test_there_are_several_of_each_kind_and_some_for_each_operator():
    every_kind = {fault.kind for fault in ALL}
    assert len(every_kind) >= 12
    for kind in every_kind:
        places = {(fault.file, fault.old) for fault in ALL if fault.kind == kind}
        assert len(places) >= 3, kind
    assert {fault.op for fault in ALL} == set(EMULATOR.ops)


@pytest.mark.parametrize("file", sorted((CSRC / "cuda").rglob("*.cu*")), ids=lambda file: file.name)
def test_every_barrier_wait_and_atomic_is_dropped_once(file):
    """A new one needs a fault, to show that the cases depend on it."""
    text = file.read_text()
    words = r"__syncthreads\(\);|__syncwarp\(\);|__pipeline_wait_prior\(\d\);|__pipeline_commit\(\);|\batomic[A-Z]\w+\("
    dropped = set()
    for fault in ALL:
        if CSRC / fault.file == file:
            begin = text.index(fault.old)
            dropped |= {begin + at for at in changed_places(fault.old, fault.new)}
    missing = [
        f"{file.name}:{text[: m.start()].count(chr(10)) + 1}: {m[0]}"
        for m in re.finditer(words, text)
        if dropped.isdisjoint(range(m.start(), m.end()))
    ]
    assert not missing


def changed_places(old: str, new: str) -> set[int]:
    """The positions of the words of `old` that are missing or moved in `new`."""
    words = [(m.start(), m[0]) for m in re.finditer(r"\w+|\S", old)]
    matcher = difflib.SequenceMatcher(
        None, [word for _, word in words], re.findall(r"\w+|\S", new), autojunk=False
    )
    kept = {
        i for block in matcher.get_matching_blocks() for i in range(block.a, block.a + block.size)
    }
    return {at for i, (at, _) in enumerate(words) if i not in kept}


def test_a_fault_is_found_and_no_fault_is_not():
    fault = next(f for f in ALL if f.op == "silhouette_sums" and f.kind == kinds.READ)
    race = next(f for f in ALL if f.op == "silhouette_sums" and f.kind == kinds.RACE)
    control = faults.control("silhouette_sums", EMULATOR.control)
    EMULATOR.build(*EMULATOR.modes)
    with Bench(EMULATOR) as bench:
        assert faults.look_for(EMULATOR, bench, fault).mode == "plain"
        found = faults.look_for(EMULATOR, bench, race)
        assert found.mode == "thread"
        assert "data race" in found.evidence
        clean = faults.look_for(EMULATOR, bench, control)
    assert clean.mode is None
    table = faults.table([found, clean], EMULATOR.modes)
    assert re.search(rf"{kinds.RACE} +1 +1 +thread 1\n", table)
    assert re.search(rf"{faults.CONTROL} +1 +0 *$", table)


# ---- the search ---------------------------------------------------------------------------------------


def test_a_change_that_does_not_fit_is_an_error(tmp_path):
    stray = kinds.planted("silhouette_sums", "silhouette_sums_kernel.cu")(kinds.READ, "no()", "")
    with pytest.raises(LookupError, match="must occur once, but occurs 0 times"):
        faults.plant(stray, tmp_path)


def test_a_change_outside_the_operator_s_sources_is_an_error(tmp_path):
    stray = kinds.planted("partition_keys", "../math/density.h")(kinds.READ, "#pragma once", "")
    module = EMULATOR.module("plain")
    csrc = faults.plant(stray, tmp_path)
    with pytest.raises(LookupError, match=r"no source of this operator includes math/density\.h"):
        faults.rebuild(module, csrc, csrc / stray.file, lambda f: EMULATOR.concerns(stray.op, f))


def test_another_report_is_not_the_fault_found():
    race = kinds.planted("partition_keys", "partition_keys_kernel.cu")(kinds.RACE, "", "")
    cpu_race = next(fault for fault in cpu_faults.FAULTS if fault.mode == "thread")
    for fault in (race, cpu_race):
        report = "WARNING: ThreadSanitizer: data race (pid=1)"
        assert faults.is_found(fault, Result(66, report, 0.1))
        assert not faults.is_found(fault, Result(66, "ERROR: AddressSanitizer: SEGV", 0.1))
        assert not faults.is_found(fault, Result(WRONG, "result 0: 3 of 5 values differ", 0.1))
        assert not faults.is_found(fault, Result(0, "", 0.1))


def test_a_search_that_breaks_is_an_error():
    race = kinds.planted("partition_keys", "partition_keys_kernel.cu")(kinds.RACE, "", "")
    for broken in (
        Result(FAILED, "ImportError: undefined symbol: dgcl", 0.1),
        Result(TIMED_OUT, "", 60.0),
    ):
        with pytest.raises(RuntimeError):
            faults.is_found(race, broken)
