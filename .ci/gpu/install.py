"""Puts the packed wheel into a folder and imports it from there; --from-source builds it here from the packed sdist."""

import argparse
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

import report

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
    found = list((folder / name).glob(pattern))
    if len(found) != 1:
        told = (
            f"{folder / name} must hold one {pattern}, as .ci/gpu_pack leaves it, got {len(found)}"
        )
        raise RuntimeError(told)
    return found[0]


def unpack(wheel: Path, site: Path) -> None:
    """With pip, or as a zip file if pip refuses. An unreadable wheel is an error either way."""
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
        print(f"pip did not install it: {(done.stderr or done.stdout).strip()[-500:]}", flush=True)
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(site)


def built(folder: Path, architecture: str, work: Path) -> Path:
    """The wheel of the packed sdist, made with this Python's PyTorch."""
    sdist = packed(folder, "sdist", "*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(work, filter="data")
    (source,) = (path for path in work.iterdir() if path.is_dir())
    settings = {
        "DGCL_OPS_CUDA": "1",
        "DGCL_OPS_CUDA_ARCHS": architecture,
        "DGCL_OPS_EXTENSION": "1",
    }
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
    ]
    subprocess.run([*command, "-w", work, source], env={**os.environ, **settings}, check=True)
    (wheel,) = work.glob("*.whl")
    return wheel


def imported(site: Path | None) -> dict:
    env = dict(os.environ)
    if site:
        env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(site), env.get("PYTHONPATH", "")]))
    done = subprocess.run(
        [sys.executable, "-c", CHECK], capture_output=True, text=True, env=env, check=False
    )
    if done.returncode:
        raise RuntimeError(f"it does not load: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def ldd(extension: str) -> None:
    done = subprocess.run(["ldd", extension], capture_output=True, text=True, check=False)
    print(done.stdout + done.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("site", type=Path)
    parser.add_argument("--from-source", action="store_true")
    parser.add_argument("--installed", action="store_true", help="no wheel: what this Python has")
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
        found = imported(None if options.installed else options.site)
        if found["missing"] and not options.installed:
            raise RuntimeError(f"no kernel of {', '.join(found['missing'])}")
    except Exception as error:  # the summary reports any error in one line
        fault = f"{type(error).__name__}: {' '.join(str(error).split())}"
        report.result(note=fault[:400])
        return 1
    origin = "BUILT HERE FROM SOURCE, " if options.from_source else ""
    report.result(**found, note=origin + found["build"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
