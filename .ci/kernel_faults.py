"""Plants edits that the emulator cannot see in copies of csrc/cuda. The inspection must find each of them.

The edits are in the half of compat.cuh that only nvcc compiles, and in the kernels that use it. Each edit compiles only
one source.
"""

import shutil
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import compat_probe
import kernel_rules as rules
import ptx_reader

COMPAT = "compat.cuh"
PROBE = ""
SEARCH, LOSS = "knn/search.cu", "density_contrast_kernel.cu"
LOSS_BACKWARD = "density_contrast_backward_kernel.cu"
ARCH = "80"


@dataclass(frozen=True)
class Edit:
    name: str
    file: str  # in csrc/cuda
    old: str  # occurs once
    new: str
    says: str  # part of what the inspection must report
    source: str = PROBE  # what is compiled


EDITS = (
    # ---- compat.cuh
    Edit("mma: A's registers swapped", COMPAT, '"r"(a[1]), "r"(a[2])', '"r"(a[2]), "r"(a[1])', "probe_mma: "),
    Edit("mma: B's registers swapped", COMPAT, '"r"(b[0]), "r"(b[1])', '"r"(b[1]), "r"(b[0])', "probe_mma: "),
    Edit("mma: C's registers swapped", COMPAT, '"f"(c[1]), "f"(c[2])', '"f"(c[2]), "f"(c[1])', "probe_mma: "),
    Edit("mma: D's registers swapped", COMPAT, '"=f"(d[2]), "=f"(d[3])', '"=f"(d[3]), "=f"(d[2])', "probe_mma: "),
    Edit("mma: for bfloat16 instead of float16", COMPAT, "f32.f16.f16.f32 {", "f32.bf16.bf16.f32 {", "probe_mma: "),
    Edit("float16: pair reversed", COMPAT, "half2_rn(low, high)", "half2_rn(high, low)", "probe_pack: "),
    Edit("float16: rounded toward zero", COMPAT, "__floats2half2_rn(low, high);",
         "{__float2half_rz(low), __float2half_rz(high)};", "probe_pack: "),
    Edit("load_relaxed: a plain load", COMPAT, "static_cast<const volatile float*>(p)", "p", "probe_relaxed: "),
    Edit("cp.async: without the operand that counts the bytes", COMPAT, "[%0], [%1], 16, %2;", "[%0], [%1], 16;",
         "probe_copy: "),
    Edit("cp.async: 4 bytes", COMPAT, "cp.async.cg.shared.global [%0], [%1], 16, %2;",
         "cp.async.ca.shared.global [%0], [%1], 4, %2;", "probe_copy: "),
    Edit("cp.async: a generic address for a shared one", COMPAT,
         "static_cast<unsigned>(__cvta_generic_to_shared(to))",
         "static_cast<unsigned>(reinterpret_cast<uintptr_t>(to))", "probe_copy: "),
    Edit("static shared memory: alignment dropped", COMPAT, "  __shared__ __align__(align)  ", "  __shared__  ",
         "copied is aligned to 4 bytes"),
    Edit("static shared memory: an array per thread", COMPAT, "#define DGCL_SHARED(type, name, dims) __shared__ type",
         "#define DGCL_SHARED(type, name, dims) type", "probe_shared: "),
    Edit("dynamic shared memory: not from its beginning", COMPAT, "<type*>(dgcl_dynamic_smem)",
         "<type*>(dgcl_dynamic_smem + 16)", "probe_dynamic: "),
    Edit("store_vector: byte by byte", COMPAT, "  *static_cast<Vector*>(p) = v;", "  memcpy(p, &v, sizeof v);",
         "probe_vectors: "),
    Edit("load_vector: byte by byte", COMPAT, "  return *static_cast<const Vector*>(p);",
         "  Vector v;\n  memcpy(&v, p, sizeof v);\n  return v;", "probe_vectors: "),
    Edit("launch: no stream", COMPAT, "(smem), static_cast<cudaStream_t>(stream)>>>", "(smem)>>>", "DGCL_LAUNCH: "),
    Edit("launch: grid and block swapped", COMPAT, "<<<(grid), (block),", "<<<(block), (grid),", "DGCL_LAUNCH: "),
    # ---- the kernels that use it
    Edit("a plain load of a bound that others raise", "knn/filter_prepare.cuh", "value <= load_relaxed(bound)",
         "value <= *bound", "knn_bank_lengths_kernel", SEARCH),
    Edit("loss: stages not aligned", LOSS, "DGCL_SHARED_ALIGNED(16, T, stages,",
         "DGCL_SHARED(T, stages,", "stages is aligned to 4 bytes", LOSS),
    Edit("its gradient: stages not aligned", LOSS_BACKWARD,
         "DGCL_SHARED_ALIGNED(16, T, stages,", "DGCL_SHARED(T, stages,", "stages is aligned to 4 bytes", LOSS_BACKWARD),
    Edit("its gradient: weights aligned to 8", LOSS_BACKWARD,
         "DGCL_SHARED_ALIGNED(16, T, tile_weights,", "DGCL_SHARED_ALIGNED(8, T, tile_weights,",
         "tile_weights is aligned to 8 bytes", LOSS_BACKWARD),
)  # fmt: skip


def kernel_faults(nvcc: str, flags: list[str], source: Path) -> list[str]:
    """The inspection's faults in one source's PTX."""
    with tempfile.TemporaryDirectory() as folder:
        ptx = Path(folder) / "kernels.ptx"
        command = [nvcc, *flags, f"-arch=compute_{ARCH}", "--ptx", source, "-o", ptx]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{source.name} does not compile:\n{done.stdout}{done.stderr}")
        text = ptx.read_text()
    listing, _ = rules.read_ptx(text, f"sm_{ARCH}")
    names = rules.short_names(sorted(name for name, _ in listing))
    short = {(names[name], arch): counts for (name, arch), counts in listing.items()}
    found = [f for f in rules.instruction_faults({"ptx": short}) if "no kernel matches" not in f]
    return found + [f"{names[name]}: {fault}" for name, fault in ptx_reader.alignment_faults(text)]


def look_for(edit: Edit, nvcc: str, flags: list[str], csrc: Path) -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "csrc"
        shutil.copytree(csrc, copy)
        changed = copy / "cuda" / edit.file
        text = changed.read_text()
        if text.count(edit.old) != 1:
            raise SystemExit(
                f"{edit.file} must contain {edit.old!r} once, got {text.count(edit.old)} times"
            )
        changed.write_text(text.replace(edit.old, edit.new))
        if edit.source == PROBE:
            return compat_probe.probe_faults(nvcc, flags, copy / "cuda")
        return kernel_faults(nvcc, flags, copy / "cuda" / edit.source)


def run(nvcc: str, flags: list[str], csrc: Path, jobs: int) -> int:
    """Prints the results. Returns 0 if every edit was found, and no fault in sources without an edit."""
    began = time.monotonic()
    controls = [Edit("no edit", COMPAT, "#pragma once\n", "#pragma once\n", "", s)
                for s in dict.fromkeys(edit.source for edit in EDITS)]  # fmt: skip
    missed = 0
    with ThreadPoolExecutor(jobs) as pool:
        # the slowest first
        order = sorted([*EDITS, *controls], key=lambda edit: edit.source, reverse=True)
        for edit, said in zip(
            order, pool.map(lambda e: look_for(e, nvcc, flags, csrc), order), strict=True
        ):
            matching = [fault for fault in said if edit.says in fault]
            good = bool(matching) if edit in EDITS else not said
            missed += not good
            where = edit.source or "probe"
            result = (matching or said or ["no fault reported"])[0]
            print(f"{'' if good else 'FAILED '}{edit.name} ({where}): {result[:200]}", flush=True)
    print(
        f"{len(EDITS)} edits planted, {missed} missed or reported without an edit; {time.monotonic() - began:.0f} s"
    )
    return 1 if missed else 0
