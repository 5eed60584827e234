"""The loss's report: every sentence, with a state that produces it."""

import copy
import math

import pytest
import torch
from loss_oracle import C, batch_of, filled, loss_of

ALL = (10, 10, 10, 10, 10)  # pixels of each class: every class in the batch


def lines_after(module, **batch) -> list[str]:
    """The lines after one more step."""
    module(**batch_of(**batch))
    return module.report().splitlines()


def test_before_the_first_batch():
    module = loss_of(exclude_classes=(2,))
    module(
        **{name: maps[:0] for name, maps in batch_of().items()}
    )  # a batch without pixels leaves no trace
    assert module.report().splitlines() == [
        "No loss yet: the module has seen no batch with pixels since it was built.",
        "Not ready: 0 (0 of 4 rows), 1 (0 of 4 rows), 3 (0 of 4 rows), 4 (0 of 4 rows).",
        "Excluded: 2.",
        "Bank: 0 rows in 5 rings of 14, 0.00308 MB; pushes so far: 0.",
    ]


def test_no_class_is_ready_and_then_some_are():
    module = loss_of()
    first = lines_after(module, counts=(10, 2, 0, 6, 0))
    assert first == [
        "The last loss was 0: no class in the batch was ready.",
        "Became ready in this step: 0, 3.",
        "Absent from the batch: 2, 4.",
        "Not ready: 1 (2 of 4 rows), 2 (0 of 4 rows), 4 (0 of 4 rows).",
        "Pixels in the last batch: 70; 52 ignored (label 255).",
        "Bank: 14 rows in 5 rings of 14, 0.00308 MB; pushes so far: 1.",
    ]
    batch = batch_of(seed=1, counts=(10, 0, 9, 6, 0))
    value = float(module(**batch))
    assert value > 0
    assert module.report().splitlines()[:4] == [
        f"The last loss was {value:.4g}, the mean over the 2 classes that took part.",
        "Took part: 0, 3.",
        "Became ready in this step: 2.",
        "Absent from the batch: 1, 4.",
    ]


def test_all_ignored():
    lines = lines_after(filled(loss_of()), counts=(0, 0, 0, 0, 0))
    assert lines[0] == "The last loss was 0: all 70 pixels had the ignored label 255."
    assert "Pixels in the last batch: 70; 70 ignored (label 255)." in lines


@pytest.mark.parametrize("eps", [0.0, 1e-6])
def test_one_class_has_no_negatives(eps):
    lines = lines_after(filled(loss_of(eps=eps)), counts=(0, 9, 0, 0, 0))
    value, _, why = lines[0].removeprefix("The last loss was ").partition(": ")
    assert abs(float(value) - math.log1p(eps)) <= 2**-24  # added to 1 in float32 by plain PyTorch
    assert why == "the only class in the batch was 1, so there were no negatives."
    assert lines[1] == "Took part: 1."


def test_excluded_classes_alone():
    lines = lines_after(filled(loss_of(exclude_classes=(1, 4))), counts=(0, 9, 0, 0, 3))
    assert lines[0] == "The last loss was 0: all classes in the batch are excluded."
    assert "Excluded: 1, 4." in lines


def test_waiting_for_every_class_to_be_full():
    module = filled(loss_of(start="all_full"), counts=(10, 10, 10, 2, 10))
    lines = lines_after(module, counts=ALL)
    assert lines[0] == (
        'The last loss was 0: no class starts before every class is full (start="all_full").'
    )
    assert "Full, waiting for the others: 0, 1, 2, 4." in lines
    assert "Not ready: 3 (12 of 14 rows)." in lines
    lines_after(module, counts=ALL)  # fills class 3, after its loss
    assert "the mean over the 5 classes" in lines_after(module, counts=ALL)[0]


def test_inf_and_nan():
    module = filled(loss_of())
    batch = batch_of(counts=ALL)
    labelled = batch["labels"] != 255
    batch["features"].permute(0, 2, 3, 1)[labelled] = torch.inf
    module(**batch)
    lines = module.report().splitlines()
    assert lines[0] == "The last loss was 0: all 50 labelled pixels had an inf or NaN."
    assert "Pixels in the last batch: 70; 20 ignored (label 255); 50 skipped (inf or NaN)." in lines
    lines = lines_after(module, counts=ALL)  # the next batch has no NaN
    assert "Pixels in the last batch: 70; 20 ignored (label 255)." in lines
    assert "Pixels skipped because of an inf or NaN since construction: 50." in lines


@pytest.mark.kernels
def test_labels_outside_where_they_are_no_error():
    """CUDA does not sync to refuse a label. Here its kernels run on the CPU."""
    from kernels.emulator import replace

    module = filled(loss_of(), counts=ALL)
    batch = batch_of(counts=ALL, ignore_index=-1)
    with replace.emulated_kernels("report"):
        module(**batch)
        some = module.report()
        module(**batch | {"labels": torch.full_like(batch["labels"], -1)})
        none = module.report()
        batch["features"][0, 0] = torch.nan
        module(**batch | {"labels": torch.full_like(batch["labels"], -1)})
        both = module.report()
    assert "Pixels in the last batch: 70; 20 skipped (label outside [0, 5))." in some
    assert none.startswith(
        "The last loss was 0: all 70 labelled pixels had a label outside [0, 5)."
    )
    assert both.startswith(
        "The last loss was 0: all 70 labelled pixels had an inf or NaN or a label outside [0, 5)."
    )


def test_one_pixel_for_anchor_and_key():
    module = filled(loss_of(disjoint=True, anchors="random", keys="high_confidence"))
    lines = lines_after(module, counts=(1, 0, 1, 0, 0))
    assert lines[0] == (
        "The last loss was 0: every ready class in the batch had a single pixel, which cannot be both anchor and key."
    )
    assert "Only one pixel (needed for both anchor and key): 0, 2." in lines


def test_a_loss_that_is_not_finite():
    module = loss_of(bank_dtype=torch.float16)
    for seed in range(2):
        batch = batch_of(seed=seed, counts=ALL)
        batch["projections"] *= 1e6  # stored as inf
        value = module(**batch)
    assert value.isnan()
    assert module.report().splitlines()[0] == (
        "The last loss was nan, because of classes 0, 1, 2, 3, 4. Pixels with an inf or NaN in a map are "
        "skipped. So a ProjectionHead on the chosen rows overflows, or a sum of projections, or a row overflows in "
        "the bank's dtype torch.float16."
    )
    module = filled(loss_of(exchange_dtype=torch.float16))
    module.bank.projections.fill_(torch.inf)  # as after an exchange of large rows
    assert module(**batch_of(counts=ALL)).isnan()
    text = "a row overflows in the bank's dtype torch.float32 or its exchange_dtype torch.float16."
    assert module.report().splitlines()[0].endswith(text)


def test_a_loss_lost_in_rounding():
    module = loss_of(temperature=1e-3, scales=(1,))
    batch = batch_of(counts=(10, 10, 0, 0, 0))
    centres = torch.eye(4)[batch["labels"].clamp(max=1)]  # [B, H, W, E]
    batch["projections"] = centres.permute(0, 3, 1, 2).contiguous()
    for _ in range(2):
        value = module(**batch)
    assert value == 0
    assert module.report().splitlines()[0] == (
        "The last loss was 0: every anchor is so close to its key that the loss rounds to 0."
    )


def test_eval_mode():
    module = filled(loss_of()).eval()
    assert lines_after(module)[-1] == "The module is in eval mode: batches do not enter the bank."


def test_names_and_long_lists():
    from dgcl_ops import DensityContrastLoss

    names = ["road", "car", "sky", "tree", "person"]
    module = filled(loss_of(exclude_classes=(2,)))
    module(**batch_of())
    assert "Took part: road, car, tree." in module.report(names)
    assert "Excluded: sky." in module.report(names)
    with pytest.raises(ValueError, match=r"class_names must name all 5 classes, got 2 names"):
        module.report(["road", "car"])
    many = DensityContrastLoss(150, 2, bank_capacity=32, max_candidates=1_000, seed=0)
    line = many.report().splitlines()[1]
    assert line.startswith("Not ready: 0 (0 of 32 rows), 1 (0 of 32 rows)")
    assert line.endswith(", 11 (0 of 32 rows) and 138 more.")


def test_report_changes_nothing():
    module = filled(loss_of())
    copied = copy.deepcopy(module)
    module.report()
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, copied.state_dict()[name])
    assert len(module.diagnostics()["pixels"]) == C
