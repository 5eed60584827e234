"""The doctor's checks of whole training steps: their numbers, and that no step syncs."""

import torch
from torch import Tensor

from dgcl_ops.doctor.compare import Comparison, Target, move
from dgcl_ops.losses import DensityContrastLoss

CLASSES, FEATURES, PROJECTIONS = 5, 40, 24
STEPS = 4


def new_loss(device) -> DensityContrastLoss:
    return DensityContrastLoss(
        CLASSES,
        FEATURES,
        PROJECTIONS,
        scales=(8, 16),
        num_anchors=30,
        num_keys=10,
        num_negatives=70,
        max_candidates=100,
        bank_capacity=200,  # full after the third push
        rows_per_push=80,
        refresh_every=2,
        seed=1,
        device=device,
    )


def new_batch(number: int) -> tuple[Tensor, Tensor, Tensor]:
    """Projections [2, E, 21, 23], labels, features; class 4 is rare, and some pixels are ignored."""
    generator = torch.Generator().manual_seed(number)
    labels = torch.randint(0, CLASSES, (2, 21, 23), generator=generator)
    labels[(labels == 4) & (torch.rand(labels.shape, generator=generator) < 0.9)] = 255
    projections = torch.randn(2, PROJECTIONS, 21, 23, generator=generator)
    return projections, labels, torch.randn(2, FEATURES, 21, 23, generator=generator)


def one_step(loss: DensityContrastLoss, projections: Tensor, labels: Tensor, features: Tensor):
    """Value and gradient. The batch's rows are in the bank afterwards."""
    value = loss(projections, labels, features)
    return value.detach(), *torch.autograd.grad(value, projections)


def several_steps(batches):
    loss = new_loss(batches[0][0].device)
    results = [one_step(loss, p.requires_grad_(), *rest) for p, *rest in batches]
    values, gradients = zip(*results, strict=True)
    return torch.stack(values), torch.stack(gradients), loss.state_dict()


def check_step(target: Target, comparison: Comparison) -> None:
    """What a step draws, chooses and stores must equal the CPU's bits. Value and gradient must be near float64's."""
    batches = [new_batch(number) for number in range(STEPS)]
    values, gradients, state = target(several_steps, batches)
    # float64 projections give the loss in float64, for the same choice from the same features.
    wide = [(p.double(), *rest) for p, *rest in batches]
    exact_values, exact_gradients, exact_state = target.expected(several_steps, wide)
    for name, expected in exact_state.items():
        comparison.same(f"state {name} after {STEPS} steps", state[name], expected)
    comparison.near("values", values, exact_values)
    comparison.near("gradients", gradients, exact_gradients)
    if not exact_gradients[1:].flatten(1).any(1).all():
        comparison.notes.append("no gradient: nothing was checked")
        comparison.worst = torch.inf


# ---- syncs ------------------------------------------------------------------------------------------


class Stepper:
    """A loss and a batch that stay at their addresses. restart() goes back to the beginning."""

    def __init__(self, device: str):
        self.loss = new_loss(device)
        self.batch = [part.to(device) for part in new_batch(0)]
        self.batch[0].requires_grad_()
        self.start = {name: part.clone() for name, part in self.loss.state_dict().items()}

    @torch.no_grad()
    def restart(self) -> None:
        for name, part in self.loss.state_dict().items():
            part.copy_(self.start[name])

    @torch.no_grad()
    def load(self, number: int) -> None:
        for part, new in zip(self.batch, new_batch(number), strict=True):
            part.copy_(new)

    def step(self):
        return one_step(self.loss, *self.batch)

    def run(self, step) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Values, gradients and the state after STEPS steps from the beginning, on the CPU."""
        self.restart()
        results = []
        for number in range(STEPS):
            self.load(number)
            results.append([part.cpu().clone() for part in step()])
        values, gradients = (torch.stack(parts) for parts in zip(*results, strict=True))
        return values, gradients, move(dict(self.loss.state_dict()), "cpu")


def check_no_waiting(target: Target, comparison: Comparison) -> None:
    """PyTorch raises an error at a sync."""
    stepper = Stepper(target.device)
    for number in range(STEPS):  # libraries and the allocator's pools set themselves up
        stepper.load(number)
        stepper.step()
    torch.cuda.synchronize(target.device)
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        stepper.step()
    finally:
        torch.cuda.set_sync_debug_mode(before)
    torch.cuda.synchronize(target.device)


def captured(step, device: str):
    """The step as a CUDA graph: a function that replays it and returns the same tensors with new values."""
    with torch.cuda.device(device):
        current, aside = torch.cuda.current_stream(), torch.cuda.Stream()
        aside.wait_stream(current)
        with torch.cuda.stream(aside):
            for _ in range(3):
                step()
        current.wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs = step()

    def replay():
        graph.replay()
        return outputs

    return replay


def check_graph(target: Target, comparison: Comparison) -> None:
    """One captured step, replayed on other batches and a bank that fills, does what eager steps do.

    A capture also refuses a sync that PyTorch does not see: one in the launches of the library's own kernels.
    """
    stepper = Stepper(target.device)
    values, gradients, state = stepper.run(stepper.step)
    again = stepper.run(captured(stepper.step, target.device))
    comparison.near("values", again[0], values)
    comparison.near("gradients", again[1], gradients)
    for name, expected in state.items():
        comparison.same(f"state {name}", again[2][name], expected)


CUDA_CHECKS = {"step without a host sync": check_no_waiting, "step in a CUDA graph": check_graph}
