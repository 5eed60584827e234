"""CCT: cross-consistency training. Ouali et al., CVPR 2020.

    L = CE(g(e(x)), y) + W R (1 / K) sum over k of mean of |softmax g_k(P_k(z)) - p|^2 / C

x: labelled images with labels y. u: weak view of the unlabelled images. e: encoder, g: classifier; together they are
the student. z = e(u). p = softmax g(z), no gradient. g_k: auxiliary decoder k of K. P_k: its perturbation. C: classes.
R: sigmoid ramp over the first `ramp` of the steps after the warm-up. The mean runs over all pixels except borders. One
batch norm sees x and u.

Three perturbations always run: spatial dropout, noise, and removal of the strongest pixels. A `background` adds three:
removal of the objects, removal of the context, and windows cut out of the objects. Each has `heads` decoders. I-VAT is
the perturbation that changes its decoder's output most. It has `vat_heads` decoders. Set `background: null` for data
without a background class, such as Cityscapes.

Deviations:
- z is the input of the classifier, and each g_k is a 1x1 convolution with upsampling, as in the tables of CPS: K = 12
  without I-VAT. The paper perturbs the encoder's last map, and each g_k upsamples it with several convolutions; K = 30.
- The paper cuts a window out of each connected object. We cut one out of each predicted class, which needs no contours
  on the host.
- The paper's I-VAT has xi = 1e-6, which finds rounding noise in float32; see `perturbations.adversarial`. In bfloat16
  the perturbation itself is lost in the rounding of most positive features; `per_pixel` makes it larger.
- The supervised loss is the trainer's. The programs can use a bootstrapped cross-entropy instead.
- We evaluate the teacher, as with all methods. It gives no pseudo labels. `ema_maximum=0` evaluates the student.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dgcl_ops import resize_labels
from semi_supervised.methods import perturbations
from semi_supervised.methods import representations as reps
from semi_supervised.methods.base import Method, Passes
from semi_supervised.methods.options import MethodOptions, NumberOrZero, Positive, Share
from semi_supervised.methods.pixels import mean_over, squared_differences
from semi_supervised.methods.ramps import sigmoid_ramp
from semi_supervised.network import resize
from semi_supervised.views import Views


@dataclass(frozen=True)
class Options(MethodOptions):
    """The hyper-parameters of CCT."""

    weight: float = 30.0  # W
    ramp: Share = 0.1  # share of the steps after the warm-up; 0: no ramp
    heads: NumberOrZero = 2  # decoders of each perturbation
    background: int | None = 0  # a class; None leaves out the three perturbations that need it
    vat_heads: NumberOrZero = 0  # decoders with I-VAT
    xi: Positive = 0.1  # of I-VAT
    eps: float = 2.0  # of I-VAT
    per_pixel: bool = False  # whether eps is the norm per pixel instead of per image

    def __post_init__(self):
        super().__post_init__()
        if self.heads + self.vat_heads == 0:
            raise ValueError("heads or vat_heads must be at least 1, got 0 and 0")


class CCT(Method):
    """Auxiliary decoders learn the student's prediction from perturbed features."""

    Options = Options
    teaches, alone = False, False
    step_passes = Passes(trained=2)

    def __init__(self, trainer: Any, options: Options):
        super().__init__(trainer, options)
        classes, background = trainer.data.num_classes, options.background
        if background is not None and background >= classes:
            raise ValueError(
                f"method cct: background must be one of {classes} classes or null, got {background}"
            )
        self.count = options.heads * (3 if background is None else 6) + options.vat_heads
        sizes = self.count * reps.feature_dim(trainer), self.count * classes
        decoders = nn.Conv2d(*sizes, kernel_size=1, groups=self.count)  # a group per decoder
        self.decoders = decoders.to(trainer.device)
        self.networks = {"decoders": self.decoders}
        self.decode = trainer.synchronised(self.decoders)

    def losses(self, views: Views) -> dict[str, Tensor]:
        """Returns the losses of one step."""
        trainer, options, batch = self.trainer, self.options, views.batch
        images = torch.cat((views.images, batch.weak))
        logits, supervised, maps = reps.classify(trainer, images, batch.labels)
        count = len(batch.weak)
        maps, targets = maps[-count:], logits[-count:].detach().softmax(1)
        classes = resize_labels(targets.argmax(1), maps.shape[-2:])

        found = self.decode(torch.cat(self.perturbed(maps, classes), 1))
        corners = getattr(trainer.student, "align_corners", False)
        found = resize(found, targets.shape[-2:], corners).chunk(self.count, 1)
        differences = sum(squared_differences(each, targets) for each in found)
        unlabelled = mean_over(differences / (self.count * targets.shape[1]), batch.inside)
        weight = options.weight * sigmoid_ramp(trainer.progress(), options.ramp)
        total = supervised + weight * unlabelled
        return {"total": total, "supervised": supervised, "unlabelled": unlabelled}

    def perturbed(self, maps: Tensor, classes: Tensor) -> list[Tensor]:
        """Returns the perturbed maps, one for each decoder.

        Args:
            maps: [B, D, h, w].
            classes: [B, h, w], the predicted classes.
        """
        background, sizes = self.options.background, (self.trainer.data.num_classes,)
        kinds: list[Callable[[], Tensor]] = [
            lambda: F.dropout2d(maps, 0.5),
            lambda: perturbations.noisy(maps),
            lambda: perturbations.without_strongest(maps),
        ]
        if background is not None:
            empty = (classes == background)[:, None]
            kinds += [
                lambda: maps * empty,
                lambda: maps * ~empty,
                lambda: perturbations.cut_out(maps, classes, *sizes, background),
            ]
        found = [kind() for kind in kinds for _ in range(self.options.heads)]
        return found + [self.against(k, maps) for k in range(len(found), self.count)]

    def against(self, k: int, maps: Tensor) -> Tensor:
        """Returns the maps with I-VAT against decoder k."""
        options = self.options
        weight, bias = (p.detach().chunk(self.count)[k] for p in self.decoders.parameters())
        found = perturbations.adversarial(
            lambda x: F.conv2d(x, weight, bias),
            maps,
            xi=options.xi,
            size=options.eps,
            per_pixel=options.per_pixel,
        )
        return maps + found.to(maps.dtype)
