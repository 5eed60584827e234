"""Four GPUs, one for each architecture that the kernels are compiled for. gpu_estimate.py and gpu_step.py use them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Device:
    """Published peaks of one GPU. L2's bytes_per_clock is from the A100 white paper; the others are guesses."""

    name: str
    arch: str
    processors: int
    clock: float  # Hz, the clock of the tensor peak
    fp64: float  # FLOP/s
    fp32: float
    tf32: float  # dense
    fp16: float  # with sums in float32
    mma_sync: float  # fraction of the tensor peak that mma.sync can reach
    memory: float  # B/s
    shared: int  # bytes per multiprocessor; a block may have one KB less
    warps: int  # per multiprocessor
    blocks: int
    bytes_per_clock: int

    @property
    def cache(self) -> float:
        """L2 bandwidth, B/s."""
        return self.bytes_per_clock * self.clock


A100 = Device(
    *("A100 SXM 80 GB", "sm_80", 108, 1.41e9, 9.7e12, 19.5e12, 156e12, 312e12, 1.0, 2.039e12),
    *(164 << 10, 64, 32, 5120),
)
RTX_3090 = Device(
    *("RTX 3090", "sm_86", 82, 1.695e9, 0.556e12, 35.6e12, 35.6e12, 71e12, 1.0, 0.936e12),
    *(100 << 10, 48, 16, 1536),
)
RTX_4090 = Device(
    *("RTX 4090", "sm_89", 128, 2.52e9, 1.29e12, 82.6e12, 82.6e12, 165.2e12, 1.0, 1.008e12),
    *(100 << 10, 48, 24, 2048),
)
H100 = Device(
    *("H100 SXM", "sm_90", 132, 1.83e9, 33.5e12, 66.9e12, 494.7e12, 989.4e12, 0.6, 3.35e12),
    *(228 << 10, 64, 32, 5120),
)
DEVICES = (A100, RTX_3090, RTX_4090, H100)
