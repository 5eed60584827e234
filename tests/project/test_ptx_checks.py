"""The checks of nvcc's PTX work: they find faults planted in listings.

`.ci/inspect_kernels --faults` plants the same faults in the sources and compiles them, which takes nvcc and a minute.
"""

import importlib
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CI = ROOT / ".ci"
if not (CI / "compat_probe.py").exists() or not (ROOT / "csrc").exists():
    pytest.skip("the checks need .ci/ and csrc/, which are missing here", allow_module_level=True)

# The output of nvcc 13.0 for .ci/compat_probe.cu, without register declarations and parameter types.
PROBE = """
.extern .shared .align 16 .b8 _ZN4dgcl17dgcl_dynamic_smemE[];
.visible .entry probe_mma(
	.param .u64 probe_mma_param_0
)
{
	.reg .f32 	%f<9>;
	ld.param.u64 	%rd1, [probe_mma_param_0];
	ld.param.u64 	%rd2, [probe_mma_param_1];
	ld.param.u64 	%rd3, [probe_mma_param_2];
	ld.param.u64 	%rd4, [probe_mma_param_3];
	cvta.to.global.u64 	%rd5, %rd1;
	cvta.to.global.u64 	%rd6, %rd2;
	ld.global.u32 	%r1, [%rd6];
	ld.global.u32 	%r2, [%rd6+4];
	ld.global.u32 	%r3, [%rd6+8];
	ld.global.u32 	%r4, [%rd6+12];
	ld.global.u32 	%r5, [%rd3];
	ld.global.u32 	%r6, [%rd3+4];
	ld.global.f32 	%f5, [%rd4];
	ld.global.f32 	%f6, [%rd4+4];
	ld.global.f32 	%f7, [%rd4+8];
	ld.global.f32 	%f8, [%rd4+12];
	// begin inline asm
	mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 \
{%f1,%f2,%f3,%f4}, {%r1,%r2,%r3,%r4}, {%r5,%r6}, {%f5,%f6,%f7,%f8};
	// end inline asm
	st.global.f32 	[%rd5], %f1;
	st.global.f32 	[%rd5+4], %f2;
	st.global.f32 	[%rd5+8], %f3;
	st.global.f32 	[%rd5+12], %f4;
	ret;
}
.visible .entry probe_pack(
	.param .u64 probe_pack_param_0
)
{
	ld.param.u64 	%rd1, [probe_pack_param_0];
	ld.param.f32 	%f1, [probe_pack_param_1];
	ld.param.f32 	%f2, [probe_pack_param_2];
	{ cvt.rn.f16x2.f32 %r1, %f2, %f1;}
	st.global.u32 	[%rd1], %r1;
	ret;
}
.visible .entry probe_relaxed(
	.param .u64 probe_relaxed_param_0
)
{
	ld.param.u64 	%rd1, [probe_relaxed_param_0];
	ld.param.u64 	%rd2, [probe_relaxed_param_1];
	ld.volatile.global.f32 	%f1, [%rd2];
	st.global.f32 	[%rd1], %f1;
	ld.volatile.global.f32 	%f2, [%rd2];
	st.global.f32 	[%rd1+4], %f2;
	ret;
}
.visible .entry probe_copy(
	.param .u64 probe_copy_param_0
)
{
	// demoted variable
	.shared .align 16 .b8 _ZZ10probe_copyE6copied[16];
	ld.param.u64 	%rd1, [probe_copy_param_0];
	ld.param.u64 	%rd2, [probe_copy_param_1];
	ld.param.u32 	%r2, [probe_copy_param_2];
	ld.param.f32 	%f1, [probe_copy_param_3];
	mov.u32 	%r1, _ZZ10probe_copyE6copied;
	st.shared.f32 	[_ZZ10probe_copyE6copied], %f1;
	cp.async.cg.shared.global [%r1], [%rd2], 16, %r2;
	ld.shared.f32 	%f2, [_ZZ10probe_copyE6copied];
	st.global.f32 	[%rd1], %f2;
	ret;
}
.visible .entry probe_shared(
	.param .u64 probe_shared_param_0
)
{
	.shared .align 4 .f32 _ZZ12probe_sharedE4kept_$_0;
	ld.param.u64 	%rd1, [probe_shared_param_0];
	ld.param.f32 	%f1, [probe_shared_param_1];
	st.shared.f32 	[_ZZ12probe_sharedE4kept_$_0], %f1;
	bar.sync 	0;
	ld.shared.f32 	%f2, [_ZZ12probe_sharedE4kept_$_0];
	st.global.f32 	[%rd1], %f2;
	ret;
}
.visible .entry probe_dynamic(
	.param .u64 probe_dynamic_param_0
)
{
	ld.param.u64 	%rd1, [probe_dynamic_param_0];
	ld.shared.f32 	%f1, [_ZN4dgcl17dgcl_dynamic_smemE];
	st.global.f32 	[%rd1], %f1;
	ret;
}
.visible .entry probe_vectors(
	.param .u64 probe_vectors_param_0
)
{
	ld.param.u64 	%rd1, [probe_vectors_param_0];
	ld.param.u64 	%rd2, [probe_vectors_param_1];
	ld.param.u64 	%rd3, [probe_vectors_param_2];
	ld.param.u64 	%rd4, [probe_vectors_param_3];
	ld.global.v4.u32 	{%r1, %r2, %r3, %r4}, [%rd2];
	st.global.v4.u32 	[%rd1], {%r1, %r2, %r3, %r4};
	ld.global.v2.f64 	{%fd1, %fd2}, [%rd4];
	st.global.v2.f64 	[%rd3], {%fd1, %fd2};
	ret;
}
"""
PROBE_FAULTS = {
    "A's registers swapped": ("{%r1,%r2,", "{%r2,%r1,", "probe_mma: "),
    "B's registers swapped": ("{%r5,%r6}", "{%r6,%r5}", "probe_mma: "),
    "C's registers swapped": ("{%f5,%f6,", "{%f6,%f5,", "probe_mma: "),
    "D's registers swapped": ("{%f1,%f2,", "{%f2,%f1,", "probe_mma: "),
    "A's registers loaded from elsewhere": ("%r2, [%rd6+4]", "%r2, [%rd6+8]", "probe_mma: "),
    "another product": ("f32.f16.f16.f32 ", "f32.bf16.bf16.f32 ", "probe_mma: "),
    "no product": ("mma.sync", "// mma.sync", "probe_mma: "),
    "pair reversed": ("%r1, %f2, %f1;}", "%r1, %f1, %f2;}", "probe_pack: "),
    "another rounding": ("cvt.rn.f16x2", "cvt.rz.f16x2", "probe_pack: "),
    "a plain load": ("ld.volatile.global.f32 	%f1", "ld.global.f32 	%f1", "probe_relaxed: "),
    "one load for two": ("[%rd1+4], %f2;\n	ret;\n}\n.visible .entry probe_copy", "[%rd1+4], %f1;\n	ret;\n}\n"
                         ".visible .entry probe_copy", "probe_relaxed: "),
    "no count of bytes": ("[%rd2], 16, %r2;", "[%rd2], 16;", "probe_copy: "),
    "8 bytes": ("[%rd2], 16, %r2;", "[%rd2], 8, %r2;", "probe_copy: "),
    "no array of the block": ("st.shared.f32 	[_ZZ12", "st.local.f32 	[_ZZ12", "probe_shared: "),
    "not from the beginning": ("%f1, [_ZN4dgcl17dgcl_dynamic_smemE]", "%f1, [_ZN4dgcl17dgcl_dynamic_smemE+16]",
                               "probe_dynamic: "),
    "both ends swapped": ("[%r1], [%rd2], 16", "[%rd2], [%r1], 16", "probe_copy: "),
    "static array": (".align 16 .b8 _ZZ10", ".align 4 .b8 _ZZ10", "copied is aligned to 4 bytes, not to 16"),
    "dynamic array": (".align 16 .b8 _ZN4", ".align 8 .b8 _ZN4", "dgcl_dynamic_smem is aligned to 8 bytes, not"),
    "an array without alignment": (".shared .align 16 .b8 _ZZ10", ".shared .b8 _ZZ10", "copied is aligned to 1 bytes"),
    "two loads for a vector": ("ld.global.v2.f64 	{%fd1, %fd2}, [%rd4];",
                               "ld.global.f64 	%fd1, [%rd4];\n	ld.global.f64 	%fd2, [%rd4+8];", "probe_vectors: "),
    "numbers of a vector swapped": ("{%fd1, %fd2}, [%rd4]", "{%fd2, %fd1}, [%rd4]", "probe_vectors: "),
    "a branch": ("	ld.volatile.global.f32 	%f2", "	@%p1 bra 	$L__BB0_2;\n	ld.volatile.global.f32 	%f2",
                 "probe_relaxed: probe_relaxed: has a branch"),
    "a kernel that is not there": (".entry probe_pack(", ".entry pack(", "probe_pack: no such kernel"),
}  # fmt: skip
HOST = """
(__cudaPushCallConfiguration(grid, block, smem, static_cast< cudaStream_t>(stream))) ? (void)0 \
: (probe_pack)(pair, low, high);
"""
KERNEL = """
.extern .shared .align 16 .b8 dynamic[];
.visible .entry tile_kernel(
	.param .u64 tile_kernel_param_0
)
{
	.shared .align 16 .b8 _ZZ11tile_kernelE6stages[1024];
	.shared .align 4 .b8 _ZZ11tile_kernelE7weights[1024];
	mov.u32 	%r1, _ZZ11tile_kernelE6stages;
	mov.u32 	%r2, _ZZ11tile_kernelE7weights;
	mov.u32 	%r9, dynamic;
	mov.u32 	%r3, %tid.x;
	shl.b32 	%r4, %r3, 4;
	add.s32 	%r5, %r4, %r1;
$L__BB0_1:
	cp.async.cg.shared.global [%r5], [%rd1], 16, %r6;
	@%p1 ld.shared.v4.f32 	{%f1, %f2, %f3, %f4}, [%r5+16];
	mad.lo.s32 	%r7, %r3, 4, %r2;
	ld.shared.f32 	%f5, [%r7];
	{more}
	add.s32 	%r5, %r5, 256;
	@%p2 bra 	$L__BB0_1;
	ret;
}
"""


@pytest.fixture
def checks(monkeypatch):
    monkeypatch.syspath_prepend(str(CI))
    yield importlib.import_module("compat_probe"), importlib.import_module("ptx_reader")
    for name in ("compat_probe", "ptx_reader"):
        sys.modules.pop(name, None)


def test_the_probe_as_it_is_passes(checks):
    probe, reader = checks
    assert probe.ptx_faults(PROBE) == []
    assert probe.launch_faults(HOST) == []
    assert reader.alignment_faults(PROBE) == []
    assert set(reader.functions(PROBE)) == set(probe.EXPECTED)


def test_the_probe_has_these_kernels(checks):
    probe, _ = checks
    kernels = re.findall(r"__global__ void (\w+)\(", probe.PROBE.read_text())
    assert kernels == list(probe.EXPECTED)


@pytest.mark.parametrize("name", PROBE_FAULTS)
def test_faults_of_the_primitives_are_found(checks, name):
    old, new, said = PROBE_FAULTS[name]
    assert PROBE.count(old) == 1
    faults = checks[0].ptx_faults(PROBE.replace(old, new))
    assert any(said in fault for fault in faults), faults


@pytest.mark.parametrize("load", ["ld.relaxed.gpu.global.f32", "ld.relaxed.sys.global.b32"])
def test_other_words_for_a_relaxed_load_pass(checks, load):
    assert checks[0].ptx_faults(PROBE.replace("ld.volatile.global.f32", load)) == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("(grid, block,", "(block, grid,"),
        (", static_cast< cudaStream_t>(stream)", ""),
        ("smem, static_cast", "0, static_cast"),
        ("(pair, low, high)", "(pair, high, low)"),
        ("__cudaPushCallConfiguration", "nothing"),
    ],
)
def test_faults_of_the_launch_are_found(checks, old, new):
    assert HOST.count(old) == 1
    (fault,) = checks[0].launch_faults(HOST.replace(old, new))
    assert fault.startswith("DGCL_LAUNCH: ")


def alignment_faults(reader, more: str = "", text: str = KERNEL) -> list[str]:
    found = reader.alignment_faults(text.replace("{more}", more))
    assert {name for name, _ in found} <= {"tile_kernel"}
    return [fault for _, fault in found]


def test_aligned_arrays_pass(checks):
    for more in (
        "",
        "st.shared.v4.f32 	[%r9], {%f1, %f2, %f3, %f4};",
        "ld.shared.v2.u16 	{%rs1, %rs2}, [%r7];",
    ):
        assert alignment_faults(checks[1], more) == []


@pytest.mark.parametrize(
    ("access", "bytes_"),
    [
        ("ld.shared.v4.f32 	{%f1, %f2, %f3, %f4}, [%r7]", 16),
        ("ld.shared.v2.f32 	{%f1, %f2}, [%r7+8]", 8),
        ("st.shared.v2.f64 	[_ZZ11tile_kernelE7weights+16], {%fd1, %fd2}", 16),
        ("ld.volatile.shared.f64 	%fd1, [%r7]", 8),
        ("@%p1 st.shared.v2.b32 	[%r7], {%r1, %r2}", 8),
        ("cp.async.ca.shared.global 	[%r7], [%rd1], 16", 16),
        # through other registers, and above the line that computes the address
        (
            "ld.shared.b64 	%rd9, [%r12];\n	add.s32 	%r12, %r11, 8;\n	mov.b32 	%r11, %r7",
            8,
        ),
    ],
)
def test_too_little_alignment_is_found(checks, access, bytes_):
    (fault,) = alignment_faults(checks[1], f"{access};")
    assert fault.startswith("weights is aligned to 4 bytes, ")
    assert fault.endswith(f" needs {bytes_}")


def test_a_dropped_alignment_is_found(checks):
    dropped = KERNEL.replace(".align 16 .b8 _ZZ11", ".align 4 .b8 _ZZ11")
    faults = alignment_faults(checks[1], text=dropped)
    assert faults == [
        "stages is aligned to 4 bytes, cp.async.cg.shared.global needs 16",
        "stages is aligned to 4 bytes, ld.shared.v4.f32 needs 16",
    ]
    dropped = KERNEL.replace(".shared .align 16 .b8 dynamic", ".shared .b8 dynamic")
    (fault,) = alignment_faults(checks[1], "ld.shared.v2.f32 	{%f1, %f2}, [%r9];", dropped)
    assert fault == "dynamic is aligned to 1 bytes, ld.shared.v2.f32 needs 8"


def test_an_address_that_cannot_be_followed_is_found(checks):
    """A loaded number is not the address of an array."""
    (fault,) = alignment_faults(
        checks[1], "ld.shared.u32 	%r20, [%r7];\n	ld.shared.u32 	%r21, [%r20];"
    )
    assert fault == "ld.shared.u32 [%r20]: no shared array is in this address"
