"""Checks that the CPU kernels compile for aarch64 without a warning, and that numeric functions give the same bits.

Every file that setup.py compiles is compiled with its flags and -Werror. leaf_bits.cpp calls the numeric functions. It
is built for x86-64 and for aarch64, where qemu runs it. The printed lines are compared: all of them with x86-64's
portable level, and with the other levels only those that are the same on every level. With --faults, a build that lets
the compiler fuse products and sums must show a difference. The operators are not run, because that would need PyTorch
for aarch64.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from kernels.harness.build import COMPILER, CSRC
from kernels.sanitizers.build import LEVELS, extension_argument, headers, macros, setup_value

TOOLS = {
    "aarch64-linux-gnu-g++": "g++-aarch64-linux-gnu",
    "aarch64-linux-gnu-nm": "g++-aarch64-linux-gnu",
    "qemu-aarch64": "qemu-user",
}
CROSS, NM, QEMU = TOOLS
LEAVES = Path(__file__).resolve().parent / "leaf_bits.cpp"
FUSED = "-ffp-contract=fast"


def add_options(parser) -> None:
    parser.add_argument(
        "--install", action="store_true", help="install missing packages with apt-get, as root"
    )
    parser.add_argument(
        "--faults", action="store_true", help="also fuse products and sums, which must be found"
    )


def provide_tools(install: bool) -> None:
    missing = sorted({package for tool, package in TOOLS.items() if not shutil.which(tool)})
    if missing and install:
        get = ["apt-get", "-qq", "-y"]
        subprocess.run([*get, "update"], check=False)
        subprocess.run([*get, "install", "--no-install-recommends", *missing], check=False)
    lacking = [tool for tool in TOOLS if not shutil.which(tool)]
    if lacking:
        print(
            f"SKIPPED: aarch64 was NOT CHECKED: no {', '.join(lacking)} on this machine.\n"
            f"    apt-get update && apt-get install --no-install-recommends {' '.join(missing)}"
        )
        # With --install, a missing package server skips the check. Without --install, a missing package is a failure.
        sys.exit(0 if install else 1)


def compile_one(compiler: str, source: Path, output: Path, *more: str) -> str:
    """The compiler's messages. Empty if there are none."""
    flags = [*setup_value("FLAGS"), "-fPIC", *macros(), *headers().split(), *more]
    command = [compiler, *flags, "-c", source, "-o", output]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stderr or ("" if done.returncode == 0 else f"exit code {done.returncode}")


def undefined_names(objects: list[Path], folder: Path) -> list[str]:
    """Names of this library that no file defines. PyTorch's and Python's names are not counted."""
    library = folder / "all.so"
    subprocess.run([CROSS, "-shared", *objects, "-o", library], check=True)
    command = [NM, "--dynamic", "--undefined-only", "--demangle", library]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [line.split(maxsplit=1)[1] for line in output.splitlines() if "dgcl::" in line]


def check_compiles(folder: Path) -> tuple[int, dict[Path, Path]]:
    """The number of faults, and the object of each source."""
    files = extension_argument("sources")
    objects = [folder / f"{n}.o" for n in range(len(files))]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        messages = list(pool.map(lambda s, o: compile_one(CROSS, s, o, "-Werror"), files, objects))
    failed = [
        f"{s.relative_to(CSRC)}:\n{text}" for s, text in zip(files, messages, strict=True) if text
    ]
    if not failed:
        failed = [f"not defined for aarch64: {name}" for name in undefined_names(objects, folder)]
    guarded = CSRC / "cpu" / "simd" / "level_avx2.cpp"
    if not compile_one(CROSS, guarded, folder / "x.o", "-D__x86_64__"):
        failed.append("x86-64 instructions compile for aarch64, so this is the wrong compiler")
    for text in failed:
        print("FAILED", text)
    version = subprocess.run([CROSS, "-dumpfullversion"], capture_output=True, text=True).stdout
    print(f"{len(files)} files compiled for aarch64 by g++ {version.strip()}: {len(failed)} faults")
    return len(failed), dict(zip(files, objects, strict=True))


def build_leaves(
    compiler: str, folder: Path, *more: str, built: dict[Path, Path] | None = None
) -> Path:
    """Builds the program that prints bits, with the files that it needs. Does not compile those in `built` again."""
    folder.mkdir()
    built = built or {}
    sources = [LEAVES, CSRC / "cpu" / "rows.cpp"]
    sources += sorted((CSRC / "cpu" / "simd").glob("*.cpp"))
    objects = [built.get(source, folder / f"{source.stem}.o") for source in sources]

    def one(source: Path, output: Path) -> str:
        if source in built:
            return ""
        levels = setup_value("LEVEL_FLAGS") if compiler == COMPILER else {}
        return compile_one(compiler, source, output, *levels.get(source.name, []), *more)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        messages = "".join(pool.map(one, sources, objects))
    if messages:
        sys.exit(f"FAILED: the leaf functions do not compile:\n{messages}")
    program = folder / "leaf_bits"
    subprocess.run([compiler, "-static", *objects, "-o", program], check=True)
    return program


def lines_of(*command, level: str = "portable") -> list[str] | None:
    """What the program prints. None if this processor lacks the level."""
    environment = {**os.environ, "DGCL_OPS_CPU_CAPABILITY": level}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=1800
    )
    if "this processor has no" in done.stderr:
        return None
    if done.returncode or done.stderr.strip() != level:
        sys.exit(f"FAILED: leaf_bits, {level}: exit code {done.returncode}: {done.stderr}")
    return done.stdout.splitlines()


def differing(a: list[str], b: list[str]) -> list[str]:
    assert len(a) == len(b) > 0, f"{len(a)} lines against {len(b)}"
    return [f"{x}\n    {y}" for x, y in zip(a, b, strict=True) if x != y]


def promised(lines: list[str]) -> list[str]:
    """The lines that must be the same on every instruction set."""
    return [line for line in lines if not line.startswith("level ")]


def check_bits(folder: Path, built: dict[Path, Path], faults: bool) -> int:
    native = build_leaves(COMPILER, folder / "x86-64")
    foreign = build_leaves(CROSS, folder / "aarch64", built=built)
    here = lines_of(QEMU, foreign)
    failed = 0
    for level in LEVELS:
        if level != "portable" and lines_of(QEMU, foreign, level=level) is not None:
            print(f"FAILED: aarch64 accepts {level} as one of its levels")
            failed += 1
        there = lines_of(native, level=level)
        if there is None:
            print(f"aarch64 against x86-64 {level}: NOT compared, this processor has no such level")
            continue
        pair = (here, there) if level == "portable" else (promised(here), promised(there))
        different = differing(*pair)
        failed += bool(different)
        print(f"aarch64 against x86-64 {level}: {len(different)} of {len(pair[0])} lines differ")
        print(*different[:10], sep="\n", end="\n" if different else "")
    if not faults:
        return failed
    fused = differing(lines_of(QEMU, build_leaves(CROSS, folder / "fused", FUSED)), here)
    names = ", ".join(sorted({line.split()[line.startswith("level ")] for line in fused}))
    print(f"with {FUSED}: {len(fused)} of {len(here)} lines differ ({names})")
    if not promised(fused) or len(promised(fused)) == len(fused):
        print(f"FAILED: {FUSED} should change both kinds of lines, so the comparison does not work")
        failed += 1
    return failed


def run(chosen) -> int:
    provide_tools(chosen.install)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        failed, built = check_compiles(Path(folder))
        if not failed:
            failed = check_bits(Path(folder), built, chosen.faults)
    print(f"aarch64: {failed} checks failed; {time.monotonic() - began:.0f} s")
    return 1 if failed else 0
