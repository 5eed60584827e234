"""NVIDIA's programs are found from any Python, and instructions are counted correctly."""

import importlib.machinery
import importlib.util
import sys
from pathlib import Path

import pytest

CI = Path(__file__).resolve().parents[2] / ".ci"
if not CI.exists():
    pytest.skip("needs .ci/, which is missing here", allow_module_level=True)


@pytest.fixture
def tools(monkeypatch):
    monkeypatch.syspath_prepend(str(CI))
    import cuda_tools

    yield cuda_tools
    sys.modules.pop("cuda_tools")


@pytest.fixture
def count(tools):
    loader = importlib.machinery.SourceFileLoader("count", str(CI / "count_instructions"))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("count", loader))
    loader.exec_module(module)
    return module


def program(folder: Path, name: str) -> Path:
    folder.mkdir(parents=True)
    file = folder / name
    file.write_text("#!/bin/sh\n")
    file.chmod(0o755)
    return file


def test_cuobjdump_is_found_in_the_checkout_first(tools, monkeypatch, tmp_path):
    nvcc = str(program(tmp_path / "cuda", "nvcc"))
    environment = tmp_path / "venv"
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(SystemExit, match="pip install nvidia-cuda-cuobjdump"):
        tools.find_cuobjdump(nvcc, environment)
    for folder in (
        tmp_path / "bin",
        environment / "lib" / "python3.11" / "site-packages" / "nvidia" / "cu13" / "bin",
        environment / "bin",
    ):  # each comes before the one above it
        file = program(folder, "cuobjdump")
        assert tools.find_cuobjdump(nvcc, environment) == str(file)


def listing(*instructions: str) -> str:
    lines = [
        f"        /*{16 * n:04x}*/   {text} ;   /* 0x1 */" for n, text in enumerate(instructions)
    ]
    return "\n".join(["\t\tFunction : kernel", *lines])


def test_the_shortest_path(count):
    text = listing(
        "LDGSTS.E [R1], [R2.64]",  # of a tile's first step
        "@P0 BRA 0x40",
        "IADD3 R1, R1, R2, RZ",
        "IADD3 R1, R1, R2, RZ",
        "LDGSTS.E [R1], [R2.64]",
        "HMMA.16816.F32 R1, R2, R3, R1",
        "@!P0 BRA 0x50",
        "BRA 0x10",
    )
    code = count.read(text)["kernel"]
    assert len(code) == 8
    # HMMA and its branch for each 16 columns; two branches and a copy around them
    assert count.step_of_the_filter(code, 32) == 2 * 2 + 3
    assert count.step_of_the_filter(code, 64) == 4 * 2 + 3
    assert count.shortest(code, [0, 5], "IADD3") == 0
    assert count.shortest(code, [2, 5], "IADD3") == 2


def test_float64_per_logit(count):
    one = ["DMUL R2, R2, R4", "DFMA R2, R4, R6, 6.755399e+15", "FADD R1, R1, R2"]
    code = count.read(listing(*one * 4, "F2F.F64.F32 R2, R1", "BRA 0x0", "EXIT"))["kernel"]
    assert count.float64_per_logit(code) == (4 * 2 + 1) / 4
