"""Compares nvcc's PTX of csrc/cuda/compat.cuh with the PTX manual.

Each kernel in compat_probe.cu uses one primitive, so that its whole PTX can be compared.
"""

import re
import subprocess
import tempfile
from pathlib import Path

from ptx_reader import UnreadablePtx, array_alignments, effects, functions, plain_name

PROBE = Path(__file__).with_suffix(".cu")
ARCHS = ("80", "90")
MMA = "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.32"

# For each kernel the reason, and its effects on memory (ptx_reader.effects).
EXPECTED = {
    "probe_mma": (
        "A is 4 registers, B 2, C and D 4, each in the array's order",
        [
            f"{MMA} {{[p1],[p1+4],[p1+8],[p1+12]}}, {{[p2],[p2+4]}}, {{[p3],[p3+4],[p3+8],[p3+12]}}",
            "st.global.32 [p0], <1>.0",
            "st.global.32 [p0+4], <1>.1",
            "st.global.32 [p0+8], <1>.2",
            "st.global.32 [p0+12], <1>.3",
        ],
    ),
    "probe_pack": (
        "cvt puts its first operand, the second number, into the upper half",
        ["st.global.32 [p0], cvt.rn.f16x2.f32(p2, p1)"],
    ),
    "probe_relaxed": (
        "each load_relaxed() is a separate load that may race with an atomic",
        [
            "ld.relaxed.global.32 [p1]",
            "st.global.32 [p0], <1>",
            "ld.relaxed.global.32 [p1]",
            "st.global.32 [p0+4], <3>",
        ],
    ),
    "probe_copy": (
        "16 bytes to shared memory, `bytes` of them from global memory, in order with the other accesses",
        [
            "st.shared.32 [copied], p3",
            "cp.async.cg.shared.global [copied], [p1], 16, p2",
            "ld.shared.32 [copied]",
            "st.global.32 [p0], <3>",
        ],
    ),
    "probe_shared": (
        "one array per block",
        ["st.shared.32 [kept], p1", "bar.sync 0", "ld.shared.32 [kept]", "st.global.32 [p0], <3>"],
    ),
    "probe_dynamic": (
        "the start of the launch's dynamic shared memory",
        ["ld.shared.32 [dgcl_dynamic_smem]", "st.global.32 [p0], <1>"],
    ),
    "probe_vectors": (
        "one 16-byte access each",
        [
            "st.global.v4.32 [p0], {[p1].0, [p1].1, [p1].2, [p1].3}",
            "st.global.v2.64 [p2], {[p3].0, [p3].1}",
        ],
    ),
}
ALIGNED = {"copied": 16, "dgcl_dynamic_smem": 16}
# nvcc's host code of <<<grid, block, shared memory, stream>>>
LAUNCH = (
    "(__cudaPushCallConfiguration(grid,block,smem,static_cast<cudaStream_t>(stream)))"
    "?(void)0:(probe_pack)(pair,low,high);"
)


def ptx_faults(text: str) -> list[str]:
    """Returns the faults of the probe's PTX."""
    faults = []
    bodies = functions(text)
    for kernel, (why, wanted) in EXPECTED.items():
        try:
            got = effects(kernel, bodies[kernel]) if kernel in bodies else ["no such kernel"]
        except UnreadablePtx as unreadable:
            got = [str(unreadable)]
        if got != wanted:
            first = next(i for i in range(len(got) + 1) if got[: i + 1] != wanted[: i + 1])
            differ = [lines[first] if first < len(lines) else "nothing" for lines in (got, wanted)]
            faults.append(f"{kernel}: {differ[0]} instead of {differ[1]}: {why}")
    aligned = {plain_name(array): by for array, by in array_alignments(text).items()}
    for array, by in ALIGNED.items():
        if aligned.get(array) != by:
            faults.append(f"{array} is aligned to {aligned.get(array)} bytes, not to {by}")
    return faults


def launch_faults(text: str) -> list[str]:
    """Returns the faults of nvcc's host code of DGCL_LAUNCH."""
    if LAUNCH in re.sub(r"\s", "", text):
        return []
    calls = re.findall(r"\(__cudaPushCallConfiguration\(.*", text)
    return [f"DGCL_LAUNCH: {' '.join(calls) or 'no launch'} instead of {LAUNCH}"]


def probe_faults(nvcc: str, flags: list[str], kernels: Path) -> list[str]:
    """Compiles the probe with the compat.cuh in the folder `kernels`, and returns its faults."""
    codes = [f"-gencode=arch=compute_{arch},code=compute_{arch}" for arch in ARCHS]
    with tempfile.TemporaryDirectory() as folder:
        keep = ["--keep", "--keep-dir", folder, f"-I{kernels}", "-cuda", "-o", f"{folder}/host.ii"]
        done = subprocess.run(
            [nvcc, *flags, *codes, *keep, PROBE], capture_output=True, text=True, check=False
        )
        if done.returncode:
            return [f"{PROBE.name} does not compile: {done.stdout}{done.stderr}"]
        faults = launch_faults(Path(folder, "host.ii").read_text())
        for arch in ARCHS:
            text = Path(folder, f"{PROBE.stem}.compute_{arch}.ptx").read_text()
            faults += [f"compat.cuh, sm_{arch}: {fault}" for fault in ptx_faults(text)]
    return faults
