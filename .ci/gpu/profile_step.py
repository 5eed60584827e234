"""Step 7: profiles one training step of the loss: kernels by name, host time, graph replay, peak memory.

python profile_step.py [--tiny]
"""

import collections
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import on_cuda
import report
import torch
from loss_steps import SIZES, OurStep, copy_batch, make_batch
from peak_memory import MEGABYTE, peak_beyond_inputs

from dgcl_ops.doctor.step import captured

STEPS, REPEATS, NAMES = 3, 10, 40


def kernels(record: torch.profiler.profile, steps: int) -> tuple[float, float, dict[str, dict]]:
    """Returns for one step the device events, their milliseconds, and both by name, longest first."""
    count, spent = collections.Counter(), collections.Counter()
    for event in record.events():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            count[event.name] += 1
            spent[event.name] += event.device_time
    by_name = {
        name: {"count": round(count[name] / steps, 2), "ms": round(us / 1e3 / steps, 4)}
        for name, us in spent.most_common()
    }
    return sum(count.values()) / steps, sum(spent.values()) / 1e3 / steps, by_name


def profiled(function: Callable[[], object], steps: int) -> tuple[float, float, dict[str, dict]]:
    """Profiles a function that runs one step."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as record:
        for _ in range(steps):
            function()
        torch.cuda.synchronize()
    return kernels(record, steps)


def show(title: str, profile: tuple[float, float, dict[str, dict]]) -> None:
    count, ms, by_name = profile
    print(f"\n{title}: {count:.0f} device events per step, {ms:.3f} ms")
    for name, spent in list(by_name.items())[:NAMES]:
        print(f"  {spent['ms']:9.4f} ms  {spent['count']:7.2f}x  {name[:120]}")


def host_seconds(step: Callable[[], object]) -> float:
    """Times how long the host takes to enqueue a step while the device is busy."""
    torch.cuda.synchronize()
    torch.cuda._sleep(on_cuda.HOLD_CYCLES)
    begin = time.perf_counter()
    step()
    return time.perf_counter() - begin


def main() -> int:
    size = SIZES["tiny" if "--tiny" in sys.argv else "voc"]
    device = torch.device("cuda")
    batch = make_batch(size, size.usual_present[0], None, device)
    step = OurStep(size, device)

    def whole() -> None:
        batch[0].grad = None  # otherwise gradients accumulate
        step.whole(batch)

    peak = peak_beyond_inputs(whole, device) / MEGABYTE
    report.result(peak_mb=round(peak, 1))
    for _ in range(3):
        whole()
    host = [1e3 * host_seconds(whole) for _ in range(REPEATS)]
    torch.cuda.synchronize()
    eager = profiled(whole, STEPS)
    show("eager", eager)
    figures = {"host_ms": round(statistics.median(host), 3), "nodes": round(eager[0], 1)}
    longest = dict(list(eager[2].items())[:NAMES])
    report.result(**figures, eager_ms=round(eager[1], 3), kernels=longest)
    captured_batch = copy_batch(batch)

    def one() -> tuple[torch.Tensor, ...]:
        value = step.loss(*captured_batch)
        return value.detach(), *torch.autograd.grad(value, captured_batch[0])

    replay = captured(one, "cuda")
    replay()
    times = [1e3 * on_cuda.device_seconds(replay, device).seconds for _ in range(REPEATS)]
    graph = profiled(replay, STEPS)
    show("graph replay", graph)
    note = f"{eager[0]:.0f} device events, {eager[1]:.2f} ms of kernels, host {figures['host_ms']:.2f} ms; "
    note += f"graph replay {statistics.median(times):.2f} ms; peak {peak:.0f} MB"
    median = round(statistics.median(times), 3)
    report.result(graph_ms=median, graph_nodes=round(graph[0], 1), note=note)
    return 0


if __name__ == "__main__":
    sys.exit(main())
