"""GCT: guided collaborative training. Ke et al., ECCV 2020.

    L = sum over k of [CE(f_k(x), y) + W_f mean of M d_k^2 + R W_c mean of |p_k - t_k|^2 / C],    k = 1, 2
    L_d = 10 mean over k and x of (d_k - g_k)^2

x: labelled images with labels y. z: x and the unlabelled images, in other colours. f_1: student. f_2: a second network
of the same kind, with other initial weights. p_k: probabilities of f_k on z. C: classes. d_k: the flaws that the
detector finds in p_k on z. h_k: d_k without noise, in [0, 1] per image, and 1 if above xi. t_k: the p of the other
network where its h is smaller, else p_k; no gradient. M: 1 where both are above xi. g_k: 1 - p_k of the label, blurred
and scaled, see `flaw_detector.py`. R: exp(-5 (1 - r)^2) where r grows from 0 to 1, see `ramp`. The means leave out
borders and pixels of x without a label.

A step has two phases: f_1 and f_2 minimise L with fixed weights of the detector, then the detector minimises L_d with
the same p_k. In a network, one batch norm sees all of z. In the detector, one sees z with p_1 and z with p_2
together.

Deviations:
- The programs compute h_k and t_k in a pass without gradients, before the trained pass. Here one pass does both.
- We evaluate the teacher, as with all methods: the moving average of f_1. It gives no pseudo labels.
- The detector learns in the warm-up, too. The programs have no warm-up.
- In the programs, pixels without a label count as flaws. Here they do not.
- R grows during a share of the steps. In the programs, it grows for three or five epochs.
- The programs multiply the detector's learning rate by the number of processes.
- The programs do not change colours; `jitter=0` leaves them out.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor
from torch.func import functional_call

from semi_supervised.methods.base import Passes, Phase, TwoNetworks
from semi_supervised.methods.flaw_detector import FlawDetector, true_flaws, without_noise
from semi_supervised.methods.options import MethodOptions, Share, at_least
from semi_supervised.methods.pixels import mean_over
from semi_supervised.methods.ramps import sigmoid_ramp
from semi_supervised.views import Views


@dataclass(frozen=True)
class Options(MethodOptions):
    """The hyper-parameters of GCT."""

    correction_weight: float = 1.0  # W_f
    consistency_weight: float = 100.0  # W_c
    threshold: Share = 0.6  # xi
    ramp: Share = 0.1  # share of the steps after the warm-up; 0: R is 1
    detector_learning_rate: float = 1e-4  # at the start
    detector_width: Annotated[int, at_least(2)] = 64  # channels of its first layer


class GCT(TwoNetworks):
    """Two networks learn from each other where a detector finds fewer flaws in the other."""

    Options = Options
    alone = False
    step_passes = Passes(trained=4)

    def __init__(self, trainer: Any, options: Options):
        super().__init__(trainer, options)
        detector = FlawDetector(trainer.data.num_classes, options.detector_width)
        self.detector = self.networks["detector"] = trainer.placed(detector)
        rate = options.detector_learning_rate
        group = {"params": [*self.detector.parameters()], "initial_lr": rate, "factor": 1.0}
        self.optimizers = {"detector": torch.optim.Adam([group], lr=rate, betas=(0.9, 0.99))}
        self.detector_model = trainer.synchronised(self.detector)

    def phases(self, views: Views) -> Iterator[Phase]:
        batch = views.batch
        images = torch.cat((views.images, views.strong.recoloured))
        logits, supervised = self.classify(images, batch.labels)
        probabilities = torch.cat(logits).softmax(1)
        flaws = self.detect(images, probabilities)
        counted = torch.cat((batch.labels != self.trainer.data.ignore_index, batch.inside))
        losses = self.losses_of(supervised, probabilities, flaws, counted)
        yield Phase(losses, self.trainer.optimizer)
        yield self.detector_phase(images, probabilities, batch.labels)

    def warm_up_phases(self, images: Tensor, labels: Tensor) -> Iterator[Phase]:
        logits, supervised = self.classify(images, labels)
        losses = {"total": supervised, "supervised": supervised}
        yield Phase(losses, self.trainer.optimizer)
        yield self.detector_phase(images, torch.cat(logits).softmax(1), labels)

    def detect(self, images: Tensor, probabilities: Tensor) -> Tensor:
        """Returns the flaws of both networks, [2B, 1, H, W]. The detector's weights get no gradient."""
        fixed = {name: weight.detach() for name, weight in self.detector.named_parameters()}
        inputs = torch.cat((images, images)), probabilities
        return functional_call(self.detector, fixed, inputs).to(probabilities.dtype)

    def losses_of(
        self, supervised: Tensor, probabilities: Tensor, flaws: Tensor, counted: Tensor
    ) -> dict[str, Tensor]:
        """Returns the losses of both networks.

        Args:
            supervised: the sum of their supervised losses.
            probabilities: [2B, C, H, W], of the first network and of the second.
            flaws: [2B, 1, H, W] of the same pixels.
            counted: [B, H, W] bool.
        """
        options = self.options
        found = without_noise(flaws)[:, 0]
        bad = found > options.threshold
        first, second = found.masked_fill(bad, 1).chunk(2)
        other_is_better = torch.cat((second < first, first < second))
        both_bad = torch.cat((torch.logical_and(*bad.chunk(2)),) * 2)
        others = torch.cat(probabilities.detach().chunk(2)[::-1])
        differences = (probabilities - others).square().mean(1) * other_is_better

        # The sum of the two networks' means is twice the mean over both.
        counted = torch.cat((counted, counted))
        correction = 2 * mean_over(flaws[:, 0].square() * both_bad, counted)
        consistency = 2 * mean_over(differences, counted)
        weight = options.consistency_weight * self.ramp()
        total = supervised + options.correction_weight * correction + weight * consistency
        parts = {"supervised": supervised, "correction": correction, "consistency": consistency}
        return {"total": total, **parts}

    def ramp(self) -> float:
        """Returns R."""
        return sigmoid_ramp(self.trainer.progress(), self.options.ramp)

    def detector_phase(self, images: Tensor, probabilities: Tensor, labels: Tensor) -> Phase:
        """Returns the detector's losses. They use the labelled images, which come first."""
        probabilities = probabilities.detach()
        flaws = self.detector_model(torch.cat((images, images)), probabilities)
        flaws, probabilities = (
            each.unflatten(0, (2, -1))[:, : len(labels)].flatten(0, 1)
            for each in (flaws.to(probabilities.dtype), probabilities)
        )
        labels = torch.cat((labels, labels))
        counted = labels != self.trainer.data.ignore_index
        targets = true_flaws(probabilities, labels, counted)
        detector = mean_over((flaws - targets)[:, 0].square(), counted)
        return Phase({"total": 10 * detector, "detector": detector}, self.optimizers["detector"])
