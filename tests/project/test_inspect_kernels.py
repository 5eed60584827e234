"""The inspection of compiled kernels works: each check fails where it should."""

import csv
import importlib
import importlib.machinery
import importlib.util
import re
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / ".ci" / "inspect_kernels"
TABLE = ROOT / "csrc" / "cuda" / "resources.csv"
if not SCRIPT.exists() or not TABLE.exists():
    pytest.skip(
        "the inspection needs .ci/ and csrc/, which are missing here", allow_module_level=True
    )

PTXAS = """ptxas info    : Compiling entry function '_ZN4dgcl16copy_rows_kernelEv' for 'sm_80'
ptxas info    : Function properties for _ZN4dgcl16copy_rows_kernelEv
    {stack} bytes stack frame, {stores} bytes spill stores, {loads} bytes spill loads
ptxas info    : Used 31 registers, used 1 barriers, 512 bytes smem, 400 bytes cmem[0]
"""
SASS = """
arch = sm_80
		Function : _ZN4dgcl16copy_rows_kernelEv
        /*0000*/                   IMAD.MOV.U32 R1, RZ, RZ, c[0x0][0x28] ;      /* 0x00000a00ff017624 */
                                                                                /* 0x000fe400078e00ff */
        /*0010*/              @!P0 LDG.E.128 R4, [R2.64] ;                      /* 0x0000000000007919 */
        /*0020*/                   STG.E.128 [R8.64], R4 ;                      /* 0x0000000000007919 */
        /*1130*/              @P1 {more} ;                                      /* 0x0000000000007919 */
"""
PTX = """
.visible .entry _ZN4dgcl16copy_rows_kernelEv(
	.param .align 8 .b8 _ZN4dgcl16copy_rows_kernelEv_param_0[72]
)
.maxntid 256, 1, 1
.minnctapersm 2
{
	.reg .b64 	%rd<8>;
	ld.param.u64 	%rd1, [_ZN4dgcl16copy_rows_kernelEv_param_0];
	@%p1 bra 	$L__BB0_2;
	{more};
$L__BB0_2:
	ret;
}
"""


@pytest.fixture
def rules(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    yield importlib.import_module("kernel_rules")
    sys.modules.pop("kernel_rules", None)


def sass_faults(rules, more: str, kernel="copy_rows_kernel") -> list[str]:
    (counts,) = rules.read_sass(SASS.replace("{more}", more)).values()
    faults = rules.instruction_faults({"sass": {(kernel, "sm_80"): counts}})
    return [fault for fault in faults if not fault.startswith("no kernel matches")]


def ptx_faults(rules, more: str, kernel="copy_rows_kernel") -> list[str]:
    listing, _ = rules.read_ptx(PTX.replace("{more}", more), "sm_80")
    (counts,) = listing.values()
    faults = rules.instruction_faults({"ptx": {(kernel, "sm_80"): counts}})
    return [fault for fault in faults if not fault.startswith("no kernel matches")]


def test_listings_are_read(rules):
    name = "_ZN4dgcl16copy_rows_kernelEv"
    opcodes = Counter(["IMAD.MOV.U32", "LDG.E.128", "STG.E.128", "HMMA.16816.F32"])
    sass = rules.read_sass(SASS.replace("{more}", "HMMA.16816.F32 R1, R2, R3, R4"))
    assert sass == {(name, "sm_80"): opcodes}
    ptx, bounds = rules.read_ptx(PTX.replace("{more}", "fma.rn.f32 %f1, %f2, %f3, %f4"), "sm_90")
    assert ptx[name, "sm_90"] == Counter(["ld.param.u64", "bra", "fma.rn.f32", "ret"])
    assert bounds == {name: {"threads": 256, "blocks": 2}}
    assert rules.short_names([name, "_ZN4dgcl3useIfLb1EEEvi"]) == {
        name: "copy_rows_kernel",
        "_ZN4dgcl3useIfLb1EEEvi": "use<float, true>",
    }


def test_spills_and_local_memory_fail(rules):
    def faults(**numbers):
        (found,) = rules.read_ptxas(PTXAS.format(**numbers)).values()
        assert (found["registers"], found["static_shared"], found["barriers"]) == (31, 512, 1)
        return rules.memory_faults([{"kernel": "copy_rows_kernel", "arch": "sm_80", **found}])

    assert faults(stack=0, stores=0, loads=0) == []
    assert faults(stack=0, stores=8, loads=16) == [
        "copy_rows_kernel, sm_80: spill_stores 8 bytes, must be 0",
        "copy_rows_kernel, sm_80: spill_loads 16 bytes, must be 0",
    ]
    assert faults(stack=4, stores=0, loads=0) == [
        "copy_rows_kernel, sm_80: stack 4 bytes, must be 0"
    ]


def test_what_a_kernel_must_have_is_missed(rules):
    assert sass_faults(rules, "EXIT") == []
    changed = SASS.replace("STG.E.128", "STG.E.64").replace("{more}", "EXIT")
    (counts,) = rules.read_sass(changed).values()
    listing = {"sass": {("copy_rows_kernel", "sm_80"): counts}}
    faults = [f for f in rules.instruction_faults(listing) if "no kernel matches" not in f]
    assert len(faults) == 1
    assert faults[0].startswith("copy_rows_kernel, sm_80 (sass): 0 of at least 1 STG")
    assert faults[0].endswith("16-byte stores")
    few = ["mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32"] * 7
    listing = {"ptx": {("knn_filter_kernel<float, 32>", "sm_90"): Counter(few)}}
    assert any("7 of at least 8 mma" in fault for fault in rules.instruction_faults(listing))


@pytest.mark.parametrize(
    "opcode",
    [
        *("LDL R1, [R2]", "STL.64 [R2], R4", "ATOMS.CAS.64 R1, [R2], R4, R6"),
        *("RED.E.ADD.F32.FTZ.RN.STRONG.GPU [R2.64], R5", "REDG.E.ADD.F64.RN.STRONG.GPU [R2], R4"),
        "ATOMG.E.ADD.F16x2.RN.STRONG.GPU PT, R2, [R2.64], R4",
    ],
)
def test_forbidden_machine_instructions_fail(rules, opcode):
    (fault,) = sass_faults(rules, opcode)
    assert fault.startswith(f"copy_rows_kernel, sm_80 (sass): forbidden {opcode.split()[0]}: ")


@pytest.mark.parametrize("opcode", ["RED.E.ADD.64.STRONG.GPU [R2.64], R4", "LDC.64 R2, c[0x0][R4]"])
def test_integer_atomics_and_constants_pass(rules, opcode):
    assert sass_faults(rules, opcode) == []


@pytest.mark.parametrize(
    "opcode",
    [
        *("mul.f32 %f1, %f2, %f3", "add.f64 %fd1, %fd2, %fd3", "div.approx.f32 %f1, %f2, %f3"),
        *("rsqrt.approx.ftz.f32 %f1, %f2", "fma.rn.ftz.f32 %f1, %f2, %f3, %f4"),
        *("atom.global.add.f32 %f1, [%rd2], %f3", "red.shared.add.f64 [%rd1], %fd2"),
        *("atom.shared.cas.b32 %r1, [%rd2], %r3, %r4", "@%p2 ld.local.f32 %f1, [%rd2]"),
    ],
)
def test_forbidden_instructions_of_the_source_fail(rules, opcode):
    """In a kernel that may do arithmetic: only the instruction is wrong."""
    faults = ptx_faults(rules, opcode, kernel="row_norms_kernel<float>")
    assert len(faults) == 1
    assert "row_norms_kernel<float>, sm_80 (ptx): forbidden " in faults[0]


def test_copies_do_no_arithmetic(rules):
    (fault,) = ptx_faults(rules, "fma.rn.f32 %f1, %f2, %f3, %f4")
    assert "forbidden fma.rn.f32: bits are only copied" in fault
    assert ptx_faults(rules, "cvt.rn.bf16.f32 %rs1, %f1") == []


def test_tensor_cores_stay_out_of_exact_sums(rules):
    faults = sass_faults(rules, "HMMA.16816.F32 R1, R2", "knn_exact_kernel<float, false>")
    assert any("forbidden HMMA" in fault for fault in faults)


def test_what_inline_assembly_has_in_braces_is_read(rules):
    (fault,) = ptx_faults(rules, "{add.f16 %h1, %h2, %h3", "row_norms_kernel<float>")
    assert "forbidden add.f16" in fault


@pytest.mark.parametrize("load", ["ld.volatile.global.f32", "ld.relaxed.gpu.global.f32"])
def test_bounds_that_others_raise_need_relaxed_loads(rules, load):
    def faults(opcode):
        more = f"{opcode} %f1, [%rd1];\n\t{opcode} %f2, [%rd1+4]"
        return ptx_faults(rules, more, "knn_bank_lengths_kernel")

    assert faults(load) == []
    (fault,) = faults("ld.global.f32")
    assert "0 of at least 2 ld" in fault
    assert fault.endswith("other warps raise these bounds at the same time")


def test_no_kernel_goes_without_a_rule_and_no_rule_without_a_kernel(rules):
    listing = {"sass": {("new_kernel<float>", "sm_80"): Counter()}}
    faults = rules.instruction_faults(listing)
    assert "new_kernel<float>: no rule describes this kernel" in faults
    assert any("no kernel matches the rule for silhouette_sums_kernel" in f for f in faults)


def test_the_table_is_in_order(rules):
    with TABLE.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rules.memory_faults(rows) == []
    assert tuple(rows[0]) == rules.COLUMNS
    assert TABLE.read_text() == rules.as_csv(rows)
    kernels = len({row["kernel"] for row in rows})
    page = ROOT / "docs" / "develop" / "cuda_without_a_gpu.md"
    assert f"{kernels} kernels, 0 faults" in page.read_text()
    for row in rows:
        assert {other["arch"] for other in rows if other["kernel"] == row["kernel"]} == {
            *("sm_80", "sm_86", "sm_89", "sm_90"),
        }
        # what a launch with the stated bounds needs
        warps = int(row["blocks"]) * int(row["threads"]) // 32
        assert 0 < warps * 32 * int(row["registers"]) <= 65536


def test_registers_are_compared_for_the_same_compiler_only(rules, capsys):
    """Another nvcc allocates registers differently. That is reported but is no fault, except in CI (.ci/run)."""
    loader = importlib.machinery.SourceFileLoader("inspect_kernels", str(SCRIPT))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(loader.name, loader))
    loader.exec_module(module)
    committed = TABLE.read_text()
    version = next(csv.DictReader(committed.splitlines()))["nvcc"]
    assert module.table_faults(committed, committed, version) == []
    changed = committed.replace("advance_rings_kernel,sm_80,", "advance_rings_kernel,sm_80,9")
    (fault,) = module.table_faults(changed, committed, version)
    assert "advance_rings_kernel,sm_80,9" in fault
    assert capsys.readouterr().out == ""
    assert module.table_faults(changed, committed, "12.6.20") == []
    said = f"registers are not compared: the table is from nvcc {version}, this is 12.6.20"
    assert said in capsys.readouterr().out


@pytest.fixture
def edits(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    yield importlib.import_module("kernel_faults").EDITS
    for name in ("kernel_faults", "compat_probe", "kernel_rules", "ptx_reader"):
        sys.modules.pop(name, None)


def test_each_edit_changes_one_place(edits):
    """Checks the edits that `.ci/inspect_kernels --faults` plants."""
    for edit in edits:
        assert (TABLE.parent / edit.file).read_text().count(edit.old) == 1, edit
        assert edit.old != edit.new
        assert edit.says
    assert len({edit.name for edit in edits}) == len(edits)


def test_all_of_nvccs_half_of_compat_is_probed(edits):
    """A new primitive needs a probe kernel and an edit that breaks it."""
    text = (TABLE.parent / "compat.cuh").read_text()
    half = text[text.index("#if defined(__CUDACC__)") : text.index("\n#else")]
    names = re.findall(r"#define (\w+)\(|__forceinline__ \w+ (\w+)\(", half)
    names = {macro or function for macro, function in names}
    names.add("pack_half")  # it has its own #if
    assert len(names) == 10
    assert text.count("defined(__CUDACC__)") == 2
    probe = (SCRIPT.parent / "compat_probe.cu").read_text()
    unused = [name for name in sorted(names) if not re.search(rf"\b{name}[<(]", probe)]
    assert not unused
    said = {edit.says.split()[0].rstrip(":") for edit in edits}
    kernels = set(re.findall(r"__global__ void (\w+)\(", probe))
    assert said >= kernels | {"DGCL_LAUNCH", "copied"}
