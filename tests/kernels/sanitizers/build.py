"""Builds the CPU kernels with a sanitizer in them: another dgcl_ops._C.

The flags are setup.py's, except for optimisation and debugging. No process can load both extensions: the kernels
would be registered twice.
"""

import subprocess
import sys
import sysconfig
from pathlib import Path

from emulator import build as emulator

ROOT, CSRC = emulator.ROOT, emulator.CSRC
sys.path.append(str(ROOT / ".ci"))
from build_values import extension_argument, level_names, macros, setup_value  # noqa: E402

CACHE = ROOT / "build" / "cpu_sanitizers"
MODES = ("address", "thread")
LEVELS = level_names()
COMMON = "-fPIC -O1 -g1 -fno-omit-frame-pointer -w"
FLAGS = {
    # also: indices of standard containers, and numbers that do not fit the integer they are converted to
    "address": "-fsanitize=address,undefined,float-cast-overflow -fno-sanitize-recover=all -D_GLIBCXX_ASSERTIONS",
    "thread": "-fsanitize=thread",
}


def sources(csrc: Path = CSRC) -> list[Path]:
    return [csrc / path.relative_to(CSRC) for path in extension_argument("sources")]


def compile_command(mode: str, source: Path) -> str:
    """Everything but input and output."""
    include = emulator.torch_folder() / "include"
    return " ".join(
        [
            emulator.COMPILER,
            *setup_value("FLAGS"),
            *setup_value("LEVEL_FLAGS").get(source.name, []),
            *macros(),
            f"{COMMON} {FLAGS[mode]} -isystem {include} -isystem {sysconfig.get_path('include')}",
        ]
    )


def object_of(mode: str, source: Path, csrc: Path = CSRC, folder: Path = CACHE) -> Path:
    return folder / mode / (str(source.relative_to(csrc)).replace("/", "_") + ".o")


def module_file(mode: str, folder: Path = CACHE) -> Path:
    return folder / mode / "dgcl_ops_sanitized.so"


def ninja_file() -> str:
    text = ["ninja_required_version = 1.5\n", emulator.rule("compile", "$command_line")]
    for mode in MODES:
        objects = []
        for source in sources():
            objects.append(object_of(mode, source))
            text.append(f"build {objects[-1]}: compile {source}\n")
            text.append(f"  command_line = {compile_command(mode, source)}\n")
        link = f"{emulator.link_command(mode)} $in -ltorch_cpu -o $out"
        text.append(f"rule link_{mode}\n  command = {link}\n  description = $out\n")
        text.append(f"build {module_file(mode)}: link_{mode} {' '.join(map(str, objects))}\n")
    return "".join(text)


def build(modes=MODES) -> None:
    """Brings the modes' modules up to date."""
    CACHE.mkdir(parents=True, exist_ok=True)
    file = CACHE / "build.ninja"
    text = ninja_file()
    if not file.exists() or file.read_text() != text:
        file.write_text(text)
    command = [emulator.find_ninja(), "-C", str(CACHE), *map(str, map(module_file, modes))]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"building the sanitized kernels failed:\n{done.stdout[-8000:]}")


def build_changed(mode: str, csrc: Path, changed: set[Path]) -> Path:
    """The module with the `changed` sources of another csrc compiled anew, the rest as it was built."""
    folder = csrc.parent
    objects = []
    for source in sources(csrc):
        if source in changed:
            objects.append(object_of(mode, source, csrc, folder))
            objects[-1].parent.mkdir(exist_ok=True)
            command = f"{compile_command(mode, source)} -c {source} -o {objects[-1]}"
            subprocess.run(command.split(), check=True, capture_output=True, text=True)
        else:
            objects.append(object_of(mode, source, csrc))
    target = module_file(mode, folder)
    command = f"{emulator.link_command(mode)} {' '.join(map(str, objects))} -ltorch_cpu -o {target}"
    subprocess.run(command.split(), check=True, capture_output=True, text=True)
    return target
