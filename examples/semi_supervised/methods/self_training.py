"""Self-training: the control of DGCL.

    L = CE(f(x), y) + W_u PLL(f(s), q_u)

`dgcl.py` defines the symbols. The step is DGCL's with W_c = 0; `contrast_weight` has no effect.
"""

from typing import Any

from semi_supervised.methods.dgcl import DGCL


class SelfTraining(DGCL):
    """DGCL without its contrast."""

    keys = DGCL.keys - {"contrast_weight"}

    def __init__(self, *given: Any):
        super().__init__(*given)
        self.weight = 0.0
