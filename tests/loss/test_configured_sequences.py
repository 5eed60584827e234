"""Arguments from a configuration file: sequences that are neither tuples nor lists."""

import collections

import pytest
from trainer_loss import build, train


class ListConfig(collections.abc.Sequence):
    """A sequence that is neither a tuple nor a list, as OmegaConf's."""

    def __init__(self, *values):
        self.values = values

    def __len__(self):
        return len(self.values)

    def __getitem__(self, at):
        return self.values[at]

    def __repr__(self):
        return repr(list(self.values))


def test_sequences_of_a_configuration():
    loss = build(exclude_classes=ListConfig(0), scales=ListConfig(2, 4))
    assert (loss.exclude_classes, loss.bank.scales) == ((0,), (2, 4))
    assert train(loss) == train(build())
    with pytest.raises(TypeError, match=r"each of scales must be an integer, got 2\.5"):
        build(scales=ListConfig(2.5))
    with pytest.raises(ValueError, match=r"scales must be positive integers, got \(2, 0\)"):
        build(scales=ListConfig(2, 0))
    with pytest.raises(ValueError, match=r"exclude_classes must lie in \[0, 4\), got 4"):
        build(exclude_classes=ListConfig(4))
    for text in ("8", b"8"):
        with pytest.raises(TypeError, match=f"scales must be a tuple or list .*, got {text!r}"):
            build(scales=text)
