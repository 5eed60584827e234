"""PS-MT: perturbed and strict mean teachers. Liu et al., CVPR 2022.

    L = CE(g(h(x) + r_x), y) + W R mean over the pixels with m >= tau of m CE(g(h(s) + r_s), q)

x: labelled images in other colours, with labels y. u, s: weak and strong view of the unlabelled images. The student is
g(h(.)); g is its last convolutions and its classifier. t: mean logits of two teachers on u. q: argmax t. m: the largest
probability of t. r: the perturbation of norm `eps` that changes the mean output of the teachers' g most (T-VAT). R:
cosine ramp over the first `ramp` of the steps after the warm-up. The mean leaves out borders. One batch norm sees x
and s.

In the warm-up, the student and both teachers are trained on the labels, each from its own initial weights. After it,
each epoch moves only one teacher, in turns. It is a moving average of the student's weights and batch-norm averages.
The decay is min(1 - 1 / (i + 1), `ema_maximum`), i: steps since the start. `ema_from` and `teacher_averages` do not
apply. We evaluate the mean of both teachers' logits, so inference runs two networks.

Deviations:
- The program's T-VAT has xi = 1e-6, which finds rounding noise in float32; see `perturbations.adversarial`. In bfloat16
  r is lost in the rounding of most positive features; `per_pixel` makes it larger.
- In the program's warm-up, the teachers see weak views and the student strong ones. Here all see the same images.
  Without a warm-up, both teachers start as copies of the student.
- Outside its 7 best classes, the program replaces the logits of the resting teacher with the other's.
- The program normalises x and s separately, and finds r for the logits at the images' size.
- The strong view is the same as in all methods: colours and CutMix, without blur and greyscale.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dgcl_ops.schedules import ema_decay
from semi_supervised.methods.base import Method, Passes
from semi_supervised.methods.options import MethodOptions, Positive, Share
from semi_supervised.methods.perturbations import adversarial
from semi_supervised.methods.pixels import mean_over, most_likely, share
from semi_supervised.methods.ramps import cosine_ramp
from semi_supervised.teacher import move
from semi_supervised.views import Views


@dataclass(frozen=True)
class Options(MethodOptions):
    """The hyper-parameters of PS-MT."""

    weight: float = 1.5  # W
    ramp: Share = 0.15  # share of the steps after the warm-up; 0: no ramp
    threshold: Share = 0.6  # tau; 0 keeps all pixels
    xi: Positive = 0.1  # of T-VAT
    eps: float = 2.0  # of T-VAT
    per_pixel: bool = False  # whether eps is the norm per pixel instead of per image


class Teachers(nn.Module):
    """The mean of the logits of two networks."""

    def __init__(self, *networks: nn.Module):
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, images: Tensor) -> Tensor:
        return sum(network(images) for network in self.networks) / len(self.networks)

    def decode(self, maps: Tensor) -> Tensor:
        """Returns the mean logits for inputs of the last convolutions."""
        found = [each.classifier(each.last_convolutions(maps)) for each in self.networks]
        return sum(found) / len(found)


class PSMT(Method):
    """Two teachers give the pseudo labels, and perturb the student's features."""

    Options = Options
    teaches, mixes = False, True
    step_passes = Passes(trained=2, forward=2)
    warm_up_passes = Passes(trained=3)

    def __init__(self, trainer: Any, options: Options):
        super().__init__(trainer, options)
        student = trainer.student
        if not hasattr(student, "last_convolutions"):
            raise ValueError(
                "method ps_mt needs a network with last_convolutions, see SegmentationNetwork; "
                f"{type(student).__name__} has none"
            )
        pair = [trainer.another_network(number) for number in (1, 2)]
        if not trainer.settings.warm_up:
            for teacher in pair:
                teacher.load_state_dict(student.state_dict())
        self.networks = dict(zip(("first_teacher", "second_teacher"), pair, strict=True))
        self.models = [trainer.synchronised(teacher) for teacher in pair]
        self.teachers = Teachers(*pair)

    def predictor(self) -> nn.Module:
        return self.teachers

    def losses(self, views: Views) -> dict[str, Tensor]:
        """Returns the losses of one step."""
        trainer, options, strong = self.trainer, self.options, views.strong
        self.teachers.train(trainer.settings.teacher_mode == "train")
        confidence, label = most_likely(trainer.teach(views.batch.weak, self.teachers))
        confidence, label, inside = strong.paste(confidence, label, views.batch.inside)

        self.teachers.eval()  # T-VAT leaves their batch norms as they are
        images = torch.cat((views.images, strong.images))
        with trainer.student.last_convolutions.register_forward_pre_hook(self.perturb):
            logits, supervised = trainer.classify(images, views.batch.labels)
        kept = confidence >= options.threshold
        each = F.cross_entropy(logits[-len(label) :], label, reduction="none")
        unlabelled = mean_over(confidence * each, kept & inside)
        weight = options.weight * cosine_ramp(trainer.progress(), options.ramp)
        total = supervised + weight * unlabelled
        parts = {"supervised": supervised, "unlabelled": unlabelled}
        return {"total": total, **parts, "kept": share(kept, inside)}

    def perturb(self, module: nn.Module, inputs: tuple[Tensor]) -> Tensor:
        """Adds r to the input of the student's last convolutions."""
        [maps], options = inputs, self.options
        sizes = {"xi": options.xi, "size": options.eps, "per_pixel": options.per_pixel}
        return maps + adversarial(self.teachers.decode, maps, **sizes).to(maps.dtype)

    def warm_up_losses(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Returns the losses of a warm-up step: all three networks are supervised."""
        models = self.trainer.model, *self.models
        supervised = sum(self.trainer.classify(images, labels, each)[1] for each in models)
        return {"total": supervised, "supervised": supervised}

    def after_step(self) -> None:
        """Moves the teacher whose turn it is towards the student."""
        trainer, settings = self.trainer, self.trainer.settings
        updates = trainer.step - settings.warm_up
        if updates < 0:
            return
        teacher = self.teachers.networks[updates // settings.epoch_steps % 2]
        weight = 1 - ema_decay(trainer.step, settings.ema_maximum)
        pairs = zip(
            teacher.state_dict().values(), trainer.student.state_dict().values(), strict=True
        )
        for mine, new in pairs:
            move(mine, new, weight)
