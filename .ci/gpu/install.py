"""Unpacks the packed wheel into a folder and imports it. --from-source builds it from the packed sdist instead."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import report
from sdist import wheel_of_sdist

CHECK = """
import json, torch, dgcl_ops
info = dgcl_ops.backend_info()
missing = [
    f"{op} for {key}"
    for op in dgcl_ops.ops._registry.FALLBACKS
    for key in ("CPU", "CUDA")
    if not torch._C._dispatch_has_kernel_for_dispatch_key(f"dgcl_ops::{op}", key)
]
print(json.dumps({"extension": info["extension"], "build": info["build"], "missing": missing}))
"""


def packed(folder: Path, name: str, pattern: str) -> Path:
    """Returns the only file of a kind in a packed folder."""
    files = list((folder / name).glob(pattern))
    if len(files) != 1:
        raise RuntimeError(
            f"{folder / name} must hold one {pattern} from .ci/gpu_pack, got {len(files)}"
        )
    return files[0]


def unpack(wheel: Path, site: Path) -> None:
    """Installs a wheel with pip, or unzips it if pip refuses. An unreadable wheel is an error."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-deps",
        "--no-index",
        "--no-compile",
    ]
    done = subprocess.run(
        [*command, "--target", site, wheel], capture_output=True, text=True, check=False
    )
    if done.returncode:
        print(f"pip failed: {(done.stderr or done.stdout).strip()[-500:]}", flush=True)
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(site)


def built(folder: Path, architecture: str, work: Path) -> Path:
    """Builds a wheel of the packed sdist with this Python's PyTorch."""
    return wheel_of_sdist(
        sys.executable, packed(folder, "sdist", "*.tar.gz"), architecture, work, "--no-index"
    )


def imported(site: Path | None) -> dict:
    """Imports the library in a new process. `site` is its folder, or None if this Python has it."""
    env = dict(os.environ)
    if site:
        env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(site), env.get("PYTHONPATH", "")]))
    done = subprocess.run(
        [sys.executable, "-c", CHECK], capture_output=True, text=True, env=env, check=False
    )
    if done.returncode:
        raise RuntimeError(
            f"the library does not load: {(done.stderr.strip().splitlines() or ['?'])[-1]}"
        )
    return json.loads(done.stdout.splitlines()[-1])


def ldd(extension: str) -> None:
    done = subprocess.run(["ldd", extension], capture_output=True, text=True, check=False)
    print(done.stdout + done.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("site", type=Path)
    parser.add_argument("--from-source", action="store_true")
    parser.add_argument("--installed", action="store_true", help="use the library of this Python")
    parser.add_argument("--architecture", default="90")
    options = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory() as work:
            if not options.installed:
                if options.from_source:
                    wheel = built(options.folder, options.architecture, Path(work))
                else:
                    wheel = packed(options.folder, "wheel", "*.whl")
                unpack(wheel, options.site)
        for extension in options.site.glob("dgcl_ops/_C*.so"):
            ldd(str(extension))
        library = imported(None if options.installed else options.site)
        if library["missing"] and not options.installed:
            raise RuntimeError(f"there are no kernels of {', '.join(library['missing'])}")
    except Exception as error:  # the summary reports any error in one line
        fault = f"{type(error).__name__}: {' '.join(str(error).split())}"
        report.result(note=fault[:400])
        return 1
    origin = "BUILT HERE FROM SOURCE, " if options.from_source else ""
    report.result(**library, note=origin + library["build"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
