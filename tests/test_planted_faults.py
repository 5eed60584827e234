"""The faults that `python -m emulator.faults` plants (.ci/run does): what they are, and that the search for them works.

The whole search takes minutes. Here one fault is looked for, and kernels without a fault, in which none must be found.
"""

import difflib
import re

import pytest
from emulator import build, cases, faults, worker

if not (build.ROOT / "csrc").exists():
    pytest.skip("the emulator needs csrc/, and these tests stand alone", allow_module_level=True)

ALL = faults.all_faults()
KERNELS = build.ROOT / "csrc" / "cuda"


def test_each_changes_one_place(tmp_path):
    for n, fault in enumerate(ALL):
        text = (KERNELS / fault.file).read_text()
        assert text.count(fault.old) == 1, fault
        assert fault.old != fault.new
        if n % 50 == 0:
            planted = faults.plant(fault, tmp_path / str(n)) / "cuda" / fault.file
            assert planted.read_text() == text.replace(fault.old, fault.new)
    assert len(set(ALL)) == len(ALL)


def test_there_are_several_of_each_kind_and_some_for_each_operator():
    kinds = {fault.kind for fault in ALL}
    assert len(kinds) >= 12
    for kind in kinds:
        places = {(fault.file, fault.old) for fault in ALL if fault.kind == kind}
        assert len(places) >= 3, kind
    assert {fault.op for fault in ALL} == set(cases.all_cases())


@pytest.mark.parametrize("file", sorted(KERNELS.rglob("*.cu*")), ids=lambda file: file.name)
def test_every_barrier_wait_and_atomic_is_dropped_once(file):
    """So that a new one comes with a fault, which shows that the cases need it."""
    text = file.read_text()
    words = r"__syncthreads\(\);|__syncwarp\(\);|__pipeline_wait_prior\(\d\);|__pipeline_commit\(\);|\batomic[A-Z]\w+\("
    dropped = set()
    for fault in ALL:
        if KERNELS / fault.file == file:
            begin = text.index(fault.old)
            dropped |= {begin + at for at in changed_places(fault.old, fault.new)}
    missing = [
        f"{file.name}:{text[: m.start()].count(chr(10)) + 1}: {m[0]}"
        for m in re.finditer(words, text)
        if dropped.isdisjoint(range(m.start(), m.end()))
    ]
    assert not missing


def changed_places(old: str, new: str) -> set[int]:
    """Where in `old` the words are that `new` has not, or has elsewhere."""
    words = [(m.start(), m[0]) for m in re.finditer(r"\w+|\S", old)]
    matcher = difflib.SequenceMatcher(
        None, [word for _, word in words], re.findall(r"\w+|\S", new), autojunk=False
    )
    kept = {
        i for block in matcher.get_matching_blocks() for i in range(block.a, block.a + block.size)
    }
    return {at for i, (at, _) in enumerate(words) if i not in kept}


def test_a_fault_is_found_and_no_fault_is_not():
    fault = next(f for f in ALL if f.op == "silhouette_sums" and f.kind == faults.READ)
    race = next(f for f in ALL if f.op == "silhouette_sums" and f.kind == faults.RACE)
    with faults.Bench() as bench:
        assert bench.look_for(fault).mode == "plain"
        found = bench.look_for(race)
        assert found.mode == "thread"
        assert "data race" in found.how
        clean = bench.look_for(faults.control("silhouette_sums"))
    assert clean.mode is None
    table = faults.table([found, clean])
    assert re.search(rf"{faults.RACE} +1 +1 +thread 1\n", table)
    assert re.search(rf"{faults.CONTROL} +1 +0 +\n", table)
    assert re.search(r"all +2 +1 +50 %$", table)


def test_a_change_that_does_not_fit_is_an_error(tmp_path):
    stray = faults.Fault(faults.READ, "silhouette_sums", "silhouette_sums_kernel.cu", "no()", "")
    with pytest.raises(LookupError, match="has 0 times, not once"):
        faults.plant(stray, tmp_path)


def test_the_search_that_breaks_is_not_a_fault_found():
    """What cannot be loaded, or hangs, or says something else, is not the fault showing."""
    race = faults.Fault(faults.RACE, "class_counts", "class_counts_kernel.cu", "", "")
    other = worker.Result(worker.WRONG, "result 0: 3 of 5 values differ", 0.1)
    assert not faults.is_found(race, other)
    assert faults.is_found(race, worker.Result(66, "WARNING: ThreadSanitizer: data race", 0.1))
    for broken in (
        worker.Result(worker.FAILED, "ImportError: undefined symbol: dgcl", 0.1),
        worker.Result(worker.TIMED_OUT, "", 60.0),
    ):
        with pytest.raises(RuntimeError):
            faults.is_found(race, broken)


def test_the_readme_has_the_number_of_faults():
    kinds = len({fault.kind for fault in ALL})
    said = f"{len(ALL)} faults of {kinds} kinds, {len(ALL)} found"
    assert said in " ".join((build.ROOT / "README.md").read_text().split()), said
