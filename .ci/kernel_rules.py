"""What .ci/inspect_kernels reads from compiled kernels, and what it expects.

PTX is close to the source: a division or a square root is one instruction. SASS is what the device runs.
"""

import csv
import fnmatch
import io
import re
import subprocess
from collections import Counter
from dataclasses import dataclass

COLUMNS = (
    *("kernel", "arch", "registers", "static_shared", "barriers", "stack", "spill_stores"),
    *("spill_loads", "threads", "blocks", "nvcc"),
)
# (kernel, architecture) -> its opcodes
Listing = dict[tuple[str, str], Counter]


def short_names(mangled: list[str]) -> dict[str, str]:
    """kernel<arguments>, without namespace and parameters."""
    output = subprocess.run(
        ["c++filt"], input="\n".join(mangled), capture_output=True, text=True, check=True
    ).stdout.splitlines()
    plain = (name.replace("(anonymous namespace)::", "").replace("dgcl::", "") for name in output)
    return {
        m: name.split("(")[0].removeprefix("void ") for m, name in zip(mangled, plain, strict=True)
    }


# ---- registers and memory ------------------------------------------------------------------------


def read_ptxas(text: str) -> dict[tuple[str, str], dict]:
    """The report of `ptxas -v`, by mangled name and architecture."""
    found: dict[tuple[str, str], dict] = {}
    row: dict = {}
    for line in text.splitlines():
        if m := re.search(r"Compiling entry function '(\S+)' for '(\w+)'", line):
            row = found[m[1], m[2]] = {}
        elif m := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+)", line):
            row.update(
                zip(("stack", "spill_stores", "spill_loads"), map(int, m.groups()), strict=True)
            )
        elif m := re.search(r"Used (\d+) registers(?:, used (\d+) barriers)?", line):
            shared = re.search(r"(\d+) bytes smem", line)
            row.update(registers=int(m[1]), barriers=int(m[2] or 0))
            row.update(static_shared=int(shared[1]) if shared else 0)
    return found


def memory_faults(rows: list[dict]) -> list[str]:
    """Kernels that use memory beyond registers and shared memory."""
    return [
        f"{row['kernel']}, {row['arch']}: {column} {row[column]} bytes, must be 0"
        for row in rows
        for column in ("stack", "spill_stores", "spill_loads")
        if int(row[column])
    ]


def as_csv(rows: list[dict]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(sorted(rows, key=lambda row: (row["kernel"], row["arch"])))
    return text.getvalue()


def summary(rows: list[dict]) -> str:
    """A line per kernel."""
    archs = sorted({row["arch"] for row in rows})
    lines = ["{:52} shared  threads  registers on {}".format("kernel", ", ".join(archs))]
    for kernel in sorted({row["kernel"] for row in rows}):
        of_kernel = {row["arch"]: row for row in rows if row["kernel"] == kernel}
        any_row = next(iter(of_kernel.values()))
        registers = "".join(f"{of_kernel[arch]['registers']:>6}" for arch in archs)
        lines.append(f"{kernel:52}{any_row['static_shared']:>7}{any_row['threads']:>9}{registers}")
    return "\n".join(lines)


# ---- instructions --------------------------------------------------------------------------------


def read_sass(text: str) -> Listing:
    """Opcodes in what `cuobjdump -sass` prints, by mangled name."""
    listing: Listing = {}
    arch, counts = "", Counter()
    for line in text.splitlines():
        if m := re.match(r"arch = (sm_\w+)", line):
            arch = m[1]
        elif m := re.search(r"Function : (\S+)", line):
            counts = listing[m[1], arch] = Counter()
        elif m := re.match(r"\s+/\*[0-9a-f]+\*/\s+\{?\s*(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", line):
            counts[m[1]] += 1
    return listing


def read_ptx(text: str, arch: str) -> tuple[Listing, dict[str, dict]]:
    """Opcodes of each kernel, and the launch bounds it states, by mangled name."""
    listing: Listing = {}
    bounds: dict[str, dict] = {}
    name = ""
    for line in text.splitlines():
        if m := re.match(r"\s*(?:\.\w+ )*\.(entry|func)\b.*?(\w+)\(?$", line):
            name = m[2]
            listing[name, arch] = Counter()
            bounds[name] = {"threads": 0, "blocks": 1}
        elif m := re.match(r"\s*\.maxntid (\d+)(?:, (\d+))?(?:, (\d+))?", line):
            bounds[name]["threads"] = int(m[1]) * int(m[2] or 1) * int(m[3] or 1)
        elif m := re.match(r"\s*\.minnctapersm (\d+)", line):
            bounds[name]["blocks"] = int(m[1])
        elif name and (
            m := re.match(r"\s*\{?\s*(?:@!?%p\d+\s+)?([a-z]\w*(?:\.[\w:]+)*)\s*[^:]*;", line)
        ):
            listing[name, arch][m[1]] += 1
    return listing, bounds


# ---- expectations --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rule:
    """Kernels must have at least `least` of these instructions. With least = 0 they must have none."""

    kernels: str  # shell patterns, separated by spaces
    form: str  # ptx or sass
    opcode: str  # regular expression for the whole opcode
    least: int
    why: str
    but: str = ""  # opcodes (a regular expression) that are allowed nevertheless

    def applies(self, kernel: str) -> bool:
        return any(fnmatch.fnmatchcase(kernel, pattern) for pattern in self.kernels.split())

    def fault(self, counts: Counter) -> str | None:
        found = {
            opcode: count
            for opcode, count in counts.items()
            if re.fullmatch(self.opcode, opcode)
            and not (self.but and re.fullmatch(self.but, opcode))
        }
        if self.least == 0 and found:
            return f"forbidden {', '.join(sorted(found))}: {self.why}"
        if sum(found.values()) < self.least:
            return f"{sum(found.values())} of at least {self.least} {self.opcode}: {self.why}"
        return None


COPY_16 = (r"LDGSTS(\.\w+)*\.128(\.\w+)*", "16-byte asynchronous copies to shared memory")
SHUFFLE = (r"SHFL\.BFLY", "the canonical tree by shuffles")
ARITHMETIC = (
    r"(add|sub|mul|mad|fma|div|rcp|sqrt|rsqrt|ex2|lg2|min|max)\.(\w+\.)*(f16|bf16|f32|f64)(x2)?"
)
COPIES = (
    "partition_keys_kernel* random_bits_kernel gather_rows_* copy_rows_kernel advance_rings_kernel "
    "knn_pair_keys_kernel* knn_topk_kernel* convert_rows_kernel<*false> mark_rows_kernel finite_rows_kernel "
    "leading_rows_kernel* leading_offsets_kernel draw_negatives_kernel class_table_kernel"
)
FLOAT_ATOMIC = "a sum by float atomics depends on their order"
SEARCH = "knn_exact_kernel* knn_filter_kernel*"
CONTRAST_TILES = "density_contrast_kernel* contrast_gradient_kernel*"
GRADIENTS = "knn_query_gradient_kernel* knn_bank_gradient_kernel*"

RULES = (
    # All kernels.
    Rule("*", "ptx", r"(add|sub|mul|mad)(\.ftz|\.sat)*\.(f16|bf16|f32|f64)(x2)?", 0,
         "without a rounding mode ptxas may fuse it; only fma() is fused"),
    Rule("*", "ptx", r".*\.(approx|full|ftz)\..*", 0, "division, roots and functions are those of IEEE or libm",
         but=r"rcp\.approx\.ftz\.f64|mufu\..*"),  # libm's log(double) refines this first guess
    Rule("*", "ptx", r"(atom|red)\..*(f16|bf16|f32|f64)(x2)?|atom\..*cas.*", 0, FLOAT_ATOMIC),
    Rule("*", "sass", r"(RED|REDG|ATOM|ATOMG|ATOMS)\..*(F16|BF16|F32|F64|CAS).*", 0, FLOAT_ATOMIC),
    Rule("*", "ptx", r"(ld|st)\.local.*", 0, "everything is in registers"),
    Rule("*", "sass", r"(LDL|STL)(\..*)?", 0, "everything is in registers"),
    # Tensor cores: only in the filter.
    Rule("knn_filter_kernel*", "ptx", r"mma\.sync\.aligned\.m16n8k16\.row\.col\.f32\.f16\.f16\.f32", 8,
         "4 x 2 products of 16 x 8 per warp"),
    Rule("knn_filter_kernel*", "sass", r"HMMA\.16816\.F32", 8, "4 x 2 products of 16 x 8 per warp"),
    Rule("knn_filter_kernel*", "sass", r"F2FP(\.F16\.F32)?\.PACK_AB", 4,
         "bank rows are rounded two elements at a time"),
    Rule("knn_filter_kernel<float*", "sass", r"LDS\.64", 4, "bank rows are read two elements at a time"),
    *(Rule(f"{stem}*", "sass", r"(HMMA|DMMA|IMMA|HGMMA)\..*", 0, "tensor cores cannot compute exact sums")
      for stem in ("knn_[!f]", "contrast_", "density_contrast_", "silhouette_", "convert_rows_")),
    # The search.
    Rule(SEARCH, "sass", *[COPY_16[0], 1, COPY_16[1]]),
    Rule(SEARCH, "ptx", r"cp\.async\.cg\.shared\.global", 1, COPY_16[1]),
    Rule("knn_exact_kernel<float*", "sass", "FFMA", 64, "8 x 8 pairs per warp, a fused multiply-add each"),
    Rule("knn_exact_kernel<float*", "sass", SHUFFLE[0], 62, "one tree for 64 pairs"),
    Rule("knn_exact_kernel<float*", "sass", r"D(FMA|ADD|MUL).*", 0, "nothing in double"),
    Rule("knn_exact_kernel<double*", "sass", "DFMA", 32, "8 x 4 pairs per warp, a fused multiply-add each"),
    Rule("knn_exact_kernel<double*", "sass", SHUFFLE[0], 62, "one tree for 32 pairs, of two words each"),
    Rule("knn_filter_kernel*", "sass", SHUFFLE[0], 20, "four candidates' canonical trees"),
    Rule("row_norms_kernel* knn_bank_lengths_kernel*", "sass", SHUFFLE[0], 5, SHUFFLE[1]),
    Rule("knn_bank_lengths_kernel*", "ptx", r"ld\.(volatile|relaxed\.\w+)\.global\.f32", 2,
         "other warps raise these bounds at the same time"),
    Rule("knn_mean_kernel*", "ptx", r"fma\..*", 0, "a plain sum of rows"),
    Rule("knn_density_kernel*", "ptx", r"fma\.rn\.f(32|64)", 1, "the weighted sum is fused"),
    Rule("knn_topk_kernel* knn_density_kernel*", "sass", r"SHFL\.\w+", 10, "parts are merged by shuffles"),
    # Gradients of the search.
    Rule(GRADIENTS, "sass", r"SHFL\.IDX", 4, "all lanes receive a pair's factor"),
    Rule(GRADIENTS, "sass", r"(RED|REDG|ATOM|ATOMG|ATOMS)(\..*)?", 0, "one warp owns each row"),
    # Copies.
    Rule(COPIES, "ptx", ARITHMETIC, 0, "bits are only copied, counted or converted"),
    Rule("copy_rows_kernel gather_rows_direct_kernel<uint4>", "sass", r"LDG\.E(\.\w+)*\.128(\.\w+)*", 1,
         "16-byte loads"),
    Rule("copy_rows_kernel gather_rows_direct_kernel<uint4>", "sass", r"STG\.E(\.\w+)*\.128(\.\w+)*", 1,
         "16-byte stores"),
    Rule("mark_rows_kernel", "sass", r"REDG?\.E\.(MIN|MAX)(\.\w+)*", 2,
         "the lowest and the highest row of a pixel; nothing waits for the old number"),
    Rule("scatter_rows_kernel*", "sass", r"(RED|REDG|ATOM|ATOMG|ATOMS)(\..*)?", 0, "one warp owns each pixel"),
    Rule("scatter_rows_kernel*", "ptx", r"vote\.sync\.ballot\.b32", 1, "32 rows are compared at a time"),
    Rule("scatter_rows_kernel<[!d]*", "ptx", r"add\.rn\.f32", 8, "8 columns per lane, added in float"),
    Rule("scatter_rows_kernel<[!d]*", "ptx", r"(add|fma)\.(\w+\.)*(f16|bf16|f64)(x2)?", 0, "sums are rounded once"),
    Rule("scatter_rows_kernel<double>", "ptx", r"add\.rn\.f64", 8, "8 columns per lane, added in double"),
    Rule("sum_rows_kernel*", "sass", r"LDG\.E(\.\w+)*", 16, "8 rows are loaded before the first is added"),
    Rule("sum_rows_kernel<*float>", "ptx", r"add\.rn\.f32", 9, "8 rows at a time, added in float"),
    Rule("sum_rows_kernel<*double>", "ptx", r"add\.rn\.f64", 9, "8 rows at a time, added in double"),
    Rule("sum_rows_kernel*", "ptx", r"fma\..*", 0, "a plain sum of rows"),
    Rule("finite_rows_kernel", "ptx", r"vote\.sync\.ballot\.b32", 1, "a bit for each of 32 pixels"),
    Rule("finite_rows_kernel", "sass", r"LDG\.E(\.\w+)*\.128(\.\w+)*", 2, "16-byte loads of contiguous channels"),
    Rule("finite_rows_kernel", "sass", r"LDG\.E(\.\w+)*", 48, "8 channels are loaded before the first is compared"),
    Rule("partition_keys_kernel*", "sass", r"ATOMS\..*", 1, "a histogram in shared memory"),
    Rule("convert_rows_kernel<*true>", "sass", SHUFFLE[0], 5, SHUFFLE[1]),
    Rule("convert_rows_kernel<float*true>", "ptx", r"div\.rn\.f32", 1, "IEEE division"),
    # The contrastive loss.
    Rule(CONTRAST_TILES, "sass", *[COPY_16[0], 1, COPY_16[1]]),
    Rule(CONTRAST_TILES, "sass", r"LDS\.128", 8, "16-byte loads of tiles"),
    Rule("density_contrast_kernel<float> contrast_gradient_kernel<float*", "sass", "FFMA", 256,
         "4 x 4 pairs per lane, 16 columns"),
    Rule("density_contrast_kernel<double> contrast_gradient_kernel<double*", "sass", "DFMA", 64,
         "4 x 2 pairs per lane, 8 columns"),
    Rule("contrast_anchor_kernel* contrast_unit_rows_kernel* contrast_finish_kernel* density_contrast_*kernel*",
         "sass", SHUFFLE[0], 5, SHUFFLE[1]),
    Rule("silhouette_sums_kernel", "sass", "DFMA", 64, "4 x 4 pairs per thread, in double"),
    Rule("silhouette_sums_kernel", "sass", SHUFFLE[0], 32, "four sums over 16 threads, of two words each"),
)  # fmt: skip


def instruction_faults(listings: dict[str, Listing], rules=RULES) -> list[str]:
    """Broken rules, kernels without a rule of their own, and rules without a kernel."""
    faults = []
    used = set()
    for form, listing in listings.items():
        for (kernel, arch), counts in sorted(listing.items()):
            for rule in rules:
                if rule.form == form and rule.applies(kernel):
                    used.add(rule)
                    if fault := rule.fault(counts):
                        faults.append(f"{kernel}, {arch} ({form}): {fault}")
    kernels = {kernel for listing in listings.values() for kernel, _ in listing}
    own = [rule for rule in rules if rule.kernels != "*"]
    faults += [
        f"{kernel}: no rule describes this kernel"
        for kernel in sorted(kernels)
        if not any(rule.applies(kernel) for rule in own)
    ]
    faults += [
        f"no kernel matches the rule for {rule.kernels}: {rule.why}"
        for rule in rules
        if rule.form in listings and rule not in used
    ]
    return faults
