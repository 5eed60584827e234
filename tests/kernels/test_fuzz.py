"""Hostile arguments for every operator: a short run. `make fuzz` is the long one, under sanitizers."""

import pytest
import torch

from dgcl_ops.ops import _registry
from kernels.fuzz import judge, mutations, run, samples
from kernels.harness.worker import TIMED_OUT, Result

CASES = 120


@pytest.fixture(autouse=True)
def one_thread_afterwards():
    yield
    torch.set_num_threads(1)


def test_every_operator_has_samples():
    assert set(samples.SAMPLES) == set(_registry.FALLBACKS)


@pytest.mark.parametrize("op", samples.SAMPLES)
def test_hostile_arguments(op):
    outcomes = [judge.judge(op, 1, number) for number in range(CASES)]
    problems = [f"case {n}: {o.problem}, {o.changes}" for n, o in enumerate(outcomes) if o.problem]
    assert not problems
    refused = sum(outcome.refused for outcome in outcomes)
    assert CASES / 20 < refused < CASES * 2 / 3  # both kinds of outcome were looked at


def test_a_case_is_made_from_its_number():
    first, again, other = (judge.make("memory_push", 1, n) for n in (7, 7, 8))
    assert first[1] == again[1]
    for a, b in zip(first[0].values(), again[0].values(), strict=True):
        assert torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0)) if torch.is_tensor(a) else a == b
    assert first[1] != other[1]


def test_all_kinds_of_changes_are_made():
    text = " ".join(str(judge.make("gather_rows", 1, number)[1]) for number in range(600))
    for change in (*mutations.LAYOUTS, *mutations.HOSTILE):
        assert change.__name__ in text
    assert "shared" in text


# ---- the judge -----------------------------------------------------------------------------------------


def judged(monkeypatch, op: str, spoil, cases: int = 60) -> set[str]:
    """The problems reported when an operator's results, arguments or errors are corrupted."""
    right = getattr(torch.ops.dgcl_ops, op)

    def wrong(*arguments):
        return spoil(right, *arguments)

    monkeypatch.setattr(torch.ops.dgcl_ops, op, wrong)
    monkeypatch.setattr(samples, "schema", lambda _: right.default._schema)
    monkeypatch.setattr(mutations, "schema", lambda _: right.default._schema)
    return {judge.judge(op, 1, number).problem or "" for number in range(cases)}


def test_other_values_are_a_problem(monkeypatch):
    def spoil(right, *arguments):
        return right(*arguments) + 1

    assert any("other values" in p for p in judged(monkeypatch, "random_bits", spoil))


def test_a_write_before_an_error_is_a_problem(monkeypatch):
    def spoil(right, *arguments):
        if torch.is_tensor(arguments[3]) and arguments[3].numel():
            arguments[3].reshape(-1)[0] += 1
        raise RuntimeError("memory_push: counts are wrong")

    problems = judged(monkeypatch, "memory_push", spoil)
    assert any("an error, and changed: counts" in p for p in problems)


def test_a_write_to_what_is_only_read_is_a_problem(monkeypatch):
    def spoil(right, *arguments):
        result = right(*arguments)
        arguments[0].detach().zero_()
        return result

    assert any("changed: maps" in p for p in judged(monkeypatch, "gather_rows", spoil))


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (RuntimeError("something is wrong"), "names no operator"),
        (RuntimeError("silhouette_sums: wrong"), "no argument"),
        (IndexError("silhouette_sums: features"), "IndexError"),
        (RuntimeError("silhouette_sums: features are wrong"), "refused: "),
    ],
)
def test_errors_that_do_not_help_are_a_problem(monkeypatch, error, text):
    def spoil(right, *arguments):
        raise error

    assert any(text in p for p in judged(monkeypatch, "silhouette_sums", spoil))


# ---- reports --------------------------------------------------------------------------------------------


def test_a_crash_is_reported_with_what_repeats_it():
    output = "case gather_rows 3 41\ncase gather_rows 3 42\nSUMMARY: AddressSanitizer: heap-buffer-overflow\n"
    text = run.explain("gather_rows", 3, Result(66, output, 1.0))
    assert text.startswith("CRASH gather_rows --seed 3 --case 42: SUMMARY: AddressSanitizer")
    text = run.explain("gather_rows", 3, Result(TIMED_OUT, output, 1.0))
    assert text.startswith("HANG gather_rows --seed 3 --case 42")
    assert run.summary(Result(0, 'case\n{"run": 5, "refused": 2}\n', 1.0)) == {
        "run": 5,
        "refused": 2,
    }
