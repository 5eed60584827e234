"""Estimates a step of the loss at the VOC size on four GPUs: arithmetic, not measurement.

    python benchmarks/gpu_step.py

A step is forward, backward and push, as launches.py counts it. Its parts are the search (gpu_estimate.py), one launch
for each small kernel, passes over the maps, the products of the logits, and the float64 work of the log-sum-exp.
"""

from gpu_devices import DEVICES, Device
from gpu_model import (
    LAUNCH_SECONDS,
    LAUNCHES,
    PIXELS,
    PROBLEMS,
    SURVIVORS,
    Need,
    Phase,
    filter_phases,
)

STEP_LAUNCHES = 128  # python benchmarks/launches.py --setting paper
# Both maps are checked for NaN, candidates are read and written, the projections' gradient is written.
MAP_PASSES, STRIDED = 5, 0.5  # the share of the bandwidth that strided access reaches: a guess
CLASSES, ANCHORS, NEGATIVES, DIM = 21, 200, 512, 256  # the defaults of DensityContrastLoss
LOGITS = CLASSES * ANCHORS * NEGATIVES
PRODUCTS, REACHED = (
    3,
    0.5,
)  # one forward, two backward; the share of the float32 peak that they reach: a guess
FLOAT64_FORWARD, FLOAT64_BACKWARD = 24.25, 22  # instructions per logit: .ci/count_instructions


def phases(device: Device) -> list[Phase]:
    search = sum(phase.seconds for phase in filter_phases(device, PROBLEMS[1], SURVIVORS))
    rate = device.fp64 / 2  # a fused multiply-add is two operations
    float64 = LOGITS * (FLOAT64_FORWARD + FLOAT64_BACKWARD)
    return [
        Phase("search", {"see gpu_estimate.py": Need(search, "s", 1)}),
        Phase("launches", {"launches": Need(STEP_LAUNCHES - LAUNCHES, "", 1 / LAUNCH_SECONDS)}),
        Phase(
            "maps",
            {"device memory": Need(MAP_PASSES * PIXELS * DIM * 4, "B", STRIDED * device.memory)},
        ),
        Phase("logits", {"FMA": Need(PRODUCTS * LOGITS * DIM * 2, "FLOP", REACHED * device.fp32)}),
        Phase("float64", {"float64": Need(float64, "instructions", rate)}),
    ]


def main() -> None:
    print("ESTIMATE: nothing here has run on a GPU. A VOC step of the loss, ms")
    names = [phase.name for phase in phases(DEVICES[0])]
    print(f"{'GPU':16}", *(f"{name:>9}" for name in (*names, "sum")), "  float64's share")
    for device in DEVICES:
        parts = [phase.seconds * 1e3 for phase in phases(device)]
        columns = " ".join(f"{part:9.3f}" for part in (*parts, sum(parts)))
        print(f"{device.name:16} {columns} {parts[-1] / sum(parts):12.1%}")


if __name__ == "__main__":
    main()
