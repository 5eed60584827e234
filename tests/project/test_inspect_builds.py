""".ci/inspect_kernels end to end, on small files."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / ".ci" / "inspect_kernels"
if not SCRIPT.exists() or not shutil.which("nvcc"):
    pytest.skip("needs .ci/ and nvcc", allow_module_level=True)

LOAD = f"""
import importlib.machinery, importlib.util, sys
loader = importlib.machinery.SourceFileLoader("inspect_kernels", {str(SCRIPT)!r})
module = importlib.util.module_from_spec(importlib.util.spec_from_loader(loader.name, loader))
sys.path.insert(0, {str(SCRIPT.parent)!r})
loader.exec_module(module)
"""


def run_python(code: str) -> str:
    command = [sys.executable, "-B", "-c", LOAD + code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_runs_on_one_file():
    """End to end for one file, without SASS, which needs one more package. .ci/inspect_kernels covers all files."""
    code = (
        "source = module.ROOT / 'csrc/cuda/memory_push_kernel.cu'\n"
        "part = module.inspect(source, module.find_nvcc(), None)\n"
        "rows, listings, faults = module.merged([part], '13')\n"
        "faults += module.rules.memory_faults(rows)\n"
        "flags = module.setup_value('NVCC_FLAGS')\n"
        "faults += module.compat_probe.probe_faults(module.find_nvcc(), flags, source.parent)\n"
        "faults += [f for f in module.rules.instruction_faults(listings) if 'no kernel matches' not in f]\n"
        "assert not faults, faults\n"
        "print(sorted({row['kernel'] for row in rows}))\n"
    )
    assert "'copy_rows_kernel'" in run_python(code)


def test_what_a_build_kept_reads_as_its_own_compilation(tmp_path):
    """.ci/check_cuda_builds builds the wheel with these flags in NVCC_APPEND_FLAGS."""
    code = f"""
import os, subprocess
from pathlib import Path
folder, nvcc = Path({str(tmp_path)!r}), module.find_nvcc()
source = module.ROOT / "csrc/cuda/random_bits_kernel.cu"
codes = [f"-gencode=arch=compute_{{a}},code=sm_{{a}}" for a in module.ARCHS]
codes.append("-gencode=arch=compute_90,code=compute_90")
command = [nvcc, *module.setup_value("NVCC_FLAGS"), *codes, "-c", source, "-o", folder / "x.o"]
appended = " ".join(module.reporting_flags(folder))
env = os.environ | dict(NVCC_APPEND_FLAGS=appended)
done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
log = " ".join(map(str, command)) + done.stdout + done.stderr
(folder / "log").write_text("g++ ...\\n" + log + "g++ ...\\n")
assert module.nvcc_of(folder) == nvcc
built = module.merged(module.built_parts(folder, [source], None), "13")
assert built == module.merged([module.inspect(source, nvcc, None)], "13")
(folder / "log").write_text(log.replace("0 bytes spill loads", "8 bytes spill loads", 1))
changed = module.merged(module.built_parts(folder, [source], None), "13")
print(len(built[0]), module.rules.memory_faults(built[0]), *module.rules.memory_faults(changed[0]))
"""
    assert run_python(code) == "4 [] random_bits_kernel, sm_80: spill_loads 8 bytes, must be 0\n"
