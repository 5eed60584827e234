"""UniMatch V2: its loss, on our networks. Yang et al., TPAMI 2025.

    L = CE(f(x), y) + W (l(s1) + l(s2)) / 2,    l(.) = mean of 1[m >= tau] CE(f(.), q)

x: labelled images with labels y. u: unlabelled images. s1, s2: two strong views of u. f: student, f': teacher.
q: argmax f'(u). m: the largest probability of f'(u). Half of the pairs (s1, s2) have complementary dropout: each
channel of the encoder's maps is 0 in one view and doubled in the other. A fair coin chooses the view. The means run
over all pixels except borders. One batch norm sees x, s1 and s2.

Deviations:
- The program trains DINOv2 with a DPT decoder. Results with another encoder cannot be compared with its figures.
- Its four encoder maps have the same channels, and share a mask. Ours differ, so each map has a mask of its own.
- The decoder reads the maps of all images once without dropout, since `perturb` appends to the batch. Its batch norms
  see those too. The logits without dropout are used for the other half of the pairs only.
- Of B pairs, the last B - B // 2 have dropout. The program draws the pairs; our batches are random already.
- The program halves L. We do not, so the learning rate must include this factor.
- The program normalises x and (s1, s2) separately. Its teacher also averages the batch-norm averages.
- The strong views are made as in all methods: colours and CutMix, without blur and greyscale. The first is the strong
  view of the other methods.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from semi_supervised.methods.base import Passes
from semi_supervised.methods.options import MethodOptions, Share
from semi_supervised.methods.pixels import confident_cross_entropy, most_likely, share
from semi_supervised.methods.unimatch import UniMatch
from semi_supervised.views import Views


@dataclass(frozen=True)
class Options(MethodOptions):
    """The hyper-parameters of UniMatch V2."""

    weight: float = 1.0  # W
    threshold: Share = 0.95  # tau; 0 keeps all pixels


class UniMatchV2(UniMatch):
    """The teacher's pseudo labels, on two strong views with complementary channels. The network needs `perturb`."""

    Options = Options
    teaches, alone = True, True
    step_passes = Passes(trained=3, forward=1)

    def losses(self, views: Views) -> dict[str, Tensor]:
        """Returns the losses of one step."""
        trainer, options, batch = self.trainer, self.options, views.batch
        strong = views.strong, views.another_strong()
        count = len(batch.weak)
        whole = count // 2  # pairs without dropout

        def drop_channels(maps: list[Tensor]) -> list[Tensor]:
            return [
                torch.cat(complements(first[whole:], second[whole:]))
                for first, second in (each[count:].split(count) for each in maps)
            ]

        confidence, label = most_likely(trainer.teach(batch.weak))
        images = torch.cat((views.images, *(view.images for view in strong)))
        logits, supervised = trainer.classify(images, batch.labels, perturb=drop_channels)
        first, second, *dropped = logits[count:].split((count, count, *2 * [count - whole]))

        kept = confidence >= options.threshold
        unlabelled = sum(
            confident_cross_entropy(
                torch.cat((own[:whole], part)), *view.paste(label, kept, batch.inside)
            )
            for own, part, view in zip((first, second), dropped, strong, strict=True)
        )
        total = supervised + options.weight * unlabelled / 2
        parts = {"supervised": supervised, "unlabelled": unlabelled / 2}
        return {"total": total, **parts, "kept": share(kept, batch.inside)}


def complements(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Drops half of the channels of a map [N, D, h, w] and doubles the others; in the second map, the reverse."""
    mask = 2 * torch.bernoulli(torch.full_like(first[..., :1, :1], 0.5))
    return first * mask, second * (2 - mask)
