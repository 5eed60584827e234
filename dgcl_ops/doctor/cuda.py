"""Checks that the NVIDIA driver, PyTorch, the extension and the device fit together, and says what to do if not.

The extension contains the CUDA runtime of the toolkit that compiled it. A runtime works with every driver of its major
version or a later one. Machine code runs on its compute capability and on later minor versions. PTX of the last
architecture serves later devices. The driver compiles it, and must be at least as new as the toolkit.
"""

import ctypes
import re
import sys
from dataclasses import dataclass, field

import torch

Version = tuple[int, int]

# The first driver of each major version of CUDA on Linux, by NVIDIA's table of minor version compatibility.
FIRST_DRIVER = {12: "525.60.13", 13: "580"}
OLDEST_DEVICE = (8, 0)  # the kernels use asynchronous copies and bfloat16 tensor cores
OLDEST_CUDA = 12  # that dgcl_ops can be built with, and that PyTorch 2.10 and later are built for
DRIVER_LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
MAJOR_ATTRIBUTE, MINOR_ATTRIBUTE = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*


@dataclass(frozen=True)
class Versions:
    """The versions that must fit together. None: not present.

    Attributes:
        driver: the newest CUDA that the driver supports.
        extension: CUDA of the extension's kernels and runtime.
        torch: CUDA that PyTorch was built for.
        device: compute capability.
        archs: compute capabilities that the extension has machine code for, in ascending order; PTX of the last one.
    """

    driver: Version | None = None
    extension: Version | None = None
    torch: Version | None = None
    device: Version | None = None
    archs: tuple[Version, ...] = field(default=())


def misfit(v: Versions) -> str | None:
    """A sentence on what does not fit and what to do. None if all fits, or CUDA is not in use."""
    if v.driver is None or v.extension is None:
        return None
    if v.torch is None:
        return (
            f"PyTorch was built without CUDA, so the CUDA {name(v.extension)} kernels of dgcl_ops are not used: "
            f"install a PyTorch build for CUDA {v.driver[0]}."
        )
    too_new = {
        what: version
        for what, version in (("PyTorch", v.torch), ("dgcl_ops", v.extension))
        if version[0] > v.driver[0]
    }
    if too_new:
        return driver_sentence(v, too_new)
    if v.device is None:
        return None
    return device_sentence(v, v.device)


def driver_sentence(v: Versions, too_new: dict[str, Version]) -> str:
    first, *more = [f"{what} {{}}for CUDA {name(version)}" for what, version in too_new.items()]
    built = " and ".join([first.format("was built "), *(text.format("") for text in more)])
    major = max(version[0] for version in too_new.values())
    todo = f"install driver {FIRST_DRIVER.get(major, f'for CUDA {major}')} or later"
    if v.driver[0] >= OLDEST_CUDA:
        instead = {
            "PyTorch": f"install a PyTorch build for CUDA {v.driver[0]}",
            "dgcl_ops": f"build dgcl_ops from source with nvcc {v.driver[0]} (docs/cuda.md)",
        }
        todo += f", or {' and '.join(instead[what] for what in too_new)}"
    return f"The driver supports CUDA {name(v.driver)}, but {built}: {todo}."


def device_sentence(v: Versions, device: Version) -> str | None:
    if device < OLDEST_DEVICE:
        return (
            f"The device has compute capability {name(device)}, but dgcl_ops' CUDA kernels need {name(OLDEST_DEVICE)} "
            "or later: use device cpu."
        )
    if any(arch[0] == device[0] and arch[1] <= device[1] for arch in v.archs):
        return None
    have = f"dgcl_ops was built for {', '.join(name(arch) for arch in v.archs) or 'none'}"
    rebuild = f"build dgcl_ops from source with DGCL_OPS_CUDA_ARCHS={device[0]}{device[1]}"
    if not v.archs or device < v.archs[-1]:
        return f"The device has compute capability {name(device)}, but {have}: {rebuild}."
    if v.driver < v.extension:
        return (
            f"The device has compute capability {name(device)} and {have}; the PTX for later devices needs a driver "
            f"for CUDA {name(v.extension)}, but this one supports {name(v.driver)}: update the driver, or {rebuild}."
        )
    return None


def name(version: Version) -> str:
    return f"{version[0]}.{version[1]}"


# ---- this machine ----------------------------------------------------------------------------------


def parsed(text: str | None) -> Version | None:
    """The first two numbers of a version."""
    match = re.match(r"(\d+)\.(\d+)", text or "")
    return (int(match[1]), int(match[2])) if match else None


def built_with(build: str) -> tuple[Version | None, tuple[Version, ...]]:
    """CUDA and architectures, from the extension's build information."""
    match = re.search(r"\bcuda ([\d.]+) for ((?:sm_\d+(?:, )?)+)", build)
    if not match:
        return None, ()
    archs = [int(arch) for arch in re.findall(r"sm_(\d+)", match[2])]
    return parsed(match[1]), tuple((arch // 10, arch % 10) for arch in archs)


def load_driver() -> ctypes.CDLL | None:
    """NVIDIA's driver library, or None."""
    try:
        return ctypes.CDLL(DRIVER_LIBRARY)
    except OSError:
        return None


def supported_cuda(driver) -> Version | None:
    """The newest CUDA that the driver supports. Works without cuInit()."""
    number = ctypes.c_int()
    if driver is None or driver.cuDriverGetVersion(ctypes.byref(number)) or not number.value:
        return None
    return number.value // 1000, number.value % 1000 // 10


def capabilities(driver) -> list[Version]:
    """Compute capabilities of the visible devices. Creates no context on them."""
    count = ctypes.c_int()
    if driver is None or driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return []
    result = []
    for index in range(count.value):
        device, numbers = ctypes.c_int(), (ctypes.c_int(), ctypes.c_int())
        failed = driver.cuDeviceGet(ctypes.byref(device), index)
        for number, which in zip(numbers, (MAJOR_ATTRIBUTE, MINOR_ATTRIBUTE), strict=True):
            failed = failed or driver.cuDeviceGetAttribute(ctypes.byref(number), which, device)
        if not failed:
            result.append((numbers[0].value, numbers[1].value))
    return result


def report_lines(build: str, driver=None) -> list[str]:
    """Lines for the doctor: the versions, and a sentence for each incompatibility."""
    driver = driver or load_driver()
    version = supported_cuda(driver)
    extension, archs = built_with(build)
    devices = capabilities(driver) if version and extension else []
    torch_version = parsed(torch.version.cuda)
    shown = [
        f"driver {f'supports {name(version)}' if version else 'not found'}",
        f"torch built for {name(torch_version) if torch_version else 'none'}",
        f"extension built for {name(extension) if extension else 'none'}",
        f"devices {', '.join(map(name, devices)) or 'not queried'}",
    ]
    sentences = {
        misfit(Versions(version, extension, torch_version, device, archs))
        for device in devices or [None]
    }
    return [
        f"cuda       {'; '.join(shown)}",
        *(f"cuda       INCOMPATIBLE: {sentence}" for sentence in sorted(filter(None, sentences))),
    ]
