"""The examples with a framework's trainer: Lightning, Hugging Face's Trainer, Accelerate, mmsegmentation."""

import csv
import io
from contextlib import redirect_stdout

import torch


def assert_equal_states(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name


def test_lightning(example, trains, reached, tmp_path):
    module = example("lightning_module")
    _, segmenter = module.main(["--steps", "3", "--out", str(tmp_path)])
    trains(segmenter.project, segmenter.contrast, steps=3)
    assert {dtype for dtype, _ in reached} == {torch.bfloat16}
    (log,) = tmp_path.rglob("metrics.csv")
    rows = list(csv.DictReader(io.StringIO(log.read_text())))
    assert float(rows[0]["contrast"]) == 0
    assert float(rows[-1]["contrast"]) > 0
    assert float(rows[-1]["ready_classes"]) == 4

    checkpoint = str(tmp_path / "last.ckpt")
    with redirect_stdout(io.StringIO()):
        _, resumed = module.main(["--steps", "3", "--out", str(tmp_path), "--resume", checkpoint])
    assert (
        resumed.contrast.bank.num_pushes == 3
    )  # all steps were done, so only the state was loaded
    assert_equal_states(segmenter.state_dict(), resumed.state_dict())


def test_hf_trainer_accumulates_means(example, monkeypatch, tmp_path):
    module = example("hf_trainer")
    trainer = module.make_trainer(module.parse(["--steps", "3", "--out", str(tmp_path)]))
    trainer.args.max_grad_norm = 0  # no clipping
    model, project = trainer.model.model, trainer.model.project
    parameters = (model.decode_head.classifier.weight, project.layers[0].weight)
    gradients, forward = [], module.WithContrast.forward

    def watched(self, pixel_values, labels):
        output = forward(self, pixel_values, labels)
        gradients.append(torch.autograd.grad(output["loss"], parameters, retain_graph=True))
        return output

    class Watch(example("transformers").TrainerCallback):
        compared = 0

        def on_pre_optimizer_step(self, *arguments, **options):
            for parameter, first, second in zip(parameters, *gradients[-2:], strict=True):
                torch.testing.assert_close(parameter.grad, (first + second) / 2)
            self.compared += 1

    watch = Watch()
    monkeypatch.setattr(module.WithContrast, "forward", watched)
    trainer.add_callback(watch)
    trainer.train()
    assert watch.compared == 3
    assert len(gradients) == 6
    assert trainer.model.contrast.bank.num_pushes == 6


def test_hf_trainer_resumes_bit_for_bit(example, trains, printed, tmp_path):
    module = example("hf_trainer")
    arguments = ["--steps", "4", "--save-at", "2", "--out", str(tmp_path)]
    whole = module.main(arguments).model
    lines = printed()
    # Two batches, each pushed into the bank, are one step of the optimizer.
    trains(whole.project, whole.contrast, steps=8, lines=lines)
    resumed = module.main([*arguments, "--resume", str(tmp_path / "checkpoint-2")]).model
    assert printed() == lines[4:]
    assert_equal_states(whole.state_dict(), resumed.state_dict())


def test_accelerate_resumes_bit_for_bit(example, trains, printed, tmp_path):
    module = example("hf_accelerate")
    arguments = ["--steps", "4", "--save-at", "2", "--out", str(tmp_path)]
    whole = module.main(arguments)
    lines = printed()
    trains(*whole[1:], steps=4, lines=lines)
    resumed = module.main(["--steps", "4", "--resume", str(tmp_path)])
    assert printed() == lines[2:]
    for ours, theirs in zip(whole, resumed, strict=True):
        assert_equal_states(ours.state_dict(), theirs.state_dict())
    assert resumed[2].bank.num_pushes == 4


def test_mmseg(example, reached, tmp_path, compiled_ops_of_mmcv):
    runner = example("mmseg_head").main(["--steps", "3", "--out", str(tmp_path)])
    head = runner.model.decode_head
    assert head.contrast.bank.num_pushes == 3
    assert head.contrast.bank.ready().all()
    assert len(reached) == 3
    assert reached[0][1] == 0
    assert reached[-1][1] > 0
    logged = runner.message_hub.log_scalars
    contrast = [float(value) for value in logged["train/decode.loss_contrast"].data[0]]
    assert contrast[0] == 0
    assert contrast[-1] > 0
    totals = logged["train/loss"].data[0]
    parts = zip(logged["train/decode.loss_ce"].data[0], contrast, strict=True)
    for total, (cross_entropy, ours) in zip(totals, parts, strict=True):
        assert abs(total - cross_entropy - ours) < 1e-5
    assert float(logged["train/decode.ready_classes"].data[0][-1]) == 4
    saved = torch.load(next(tmp_path.glob("*.pth")), weights_only=False)["state_dict"]
    assert_equal_states(runner.model.state_dict(), dict(saved))
