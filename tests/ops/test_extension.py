"""The binary: stable ABI, limited Python API, separate levels, bounded memory."""

import subprocess
import sys

import pytest
from builds import needs_extension

from dgcl_ops import backend_info

EXTENSION = backend_info()["extension"]
pytestmark = needs_extension


def symbols(*options: str) -> list[str]:
    listing = subprocess.run(
        ["nm", *options, EXTENSION], capture_output=True, text=True, check=True
    ).stdout
    return [line.split()[-1].split("@")[0] for line in listing.splitlines()]


def test_binary_uses_c_functions_of_pytorch_only():
    """C++ symbols of PyTorch change between releases; the C functions of the stable ABI do not."""
    undefined = symbols("-D", "--undefined-only")
    assert any(name.startswith(("aoti_torch_", "torch_")) for name in undefined)
    unstable = [
        n
        for n in undefined
        if n.startswith("_Z") and any(p in n for p in ("2at", "3c10", "5torch"))
    ]
    assert unstable == []


def test_binary_is_named_for_the_limited_api_and_exports_its_entry_point_only():
    assert EXTENSION.endswith(".abi3.so")
    exported = [
        n
        for n in symbols("-D", "--defined-only")
        if not n.startswith(("_Z", "__", "_init", "_fini", "_edata", "_end"))
    ]
    assert exported == ["PyInit__C"]


def test_importing_the_module_is_all_it_takes():
    code = "import dgcl_ops, torch; print(torch.ops.dgcl_ops.knn_topk.default._schema)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.startswith("dgcl_ops::knn_topk(Tensor queries, Tensor bank, int k")


def test_importing_loads_no_compiler():
    """torch._dynamo takes as long to import as torch."""
    code = """if True:
        import sys, torch
        before = set(sys.modules)
        import dgcl_ops
        print(sorted(name for name in set(sys.modules) - before if "dynamo" in name or "inductor" in name))
    """
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout == "[]\n"


def test_the_loader_may_be_reloaded():
    """Reloading registers nothing twice, and the operators stay usable."""
    code = (
        "import importlib, dgcl_ops, torch; importlib.reload(dgcl_ops._extension); "
        "print(dgcl_ops.knn_topk(torch.ones(1, 2), torch.ones(3, 2), 1)[1].item(), "
        "dgcl_ops.backend_info()['devices']['cpu']['implementation'])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert out.stdout == "0 compiled\n", out.stderr


PEAK = """
import torch
torch.set_num_threads(2)
from dgcl_ops import knn_density, knn_topk

def status(field):
    return next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith(field)) / 1024

m, n, d = {m}, {n}, {d}
queries, bank = torch.randn(m, d), torch.randn(n, d)
knn_density(queries[:100], bank[:100])
open("/proc/self/clear_refs", "w").write("5")
before = status("VmRSS")
{call}
print(status("VmHWM") - before - {outputs} / 2**20)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self")
@pytest.mark.parametrize(
    ("m", "n", "d", "call", "outputs"),
    [
        (30_000, 60_000, 48, "out = knn_density(queries, bank)", 30_000 * 4),
        (2_000, 300_000, 64, "out = knn_density(queries, bank)", 2_000 * 4),
        (200_000, 500, 48, "out = knn_topk(queries, bank, 8, metric='l2')", 200_000 * 8 * 12),
        (400, 3_000, 1_500, "out = knn_topk(queries, bank, 300)", 400 * 300 * 12),
    ],
)
def test_extra_memory_is_bounded(m, n, d, call, outputs):
    """At most 64 MB in addition to inputs and outputs, with 2 threads. The similarity matrix would take up to 7 GB."""
    code = PEAK.format(m=m, n=n, d=d, call=call, outputs=outputs)
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert out.returncode == 0, out.stderr
    assert float(out.stdout) <= 64


def test_peak_measurement_sees_a_matrix():
    code = PEAK.format(m=4_000, n=8_000, d=16, call="out = (queries @ bank.T).sum()", outputs=0)
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(out.stdout) > 110  # 4,000 x 8,000 x 4 bytes = 122 MB
