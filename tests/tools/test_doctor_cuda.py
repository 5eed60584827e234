"""The doctor's sentence about CUDA appears exactly if driver, PyTorch, extension and device do not fit together."""

import itertools

import pytest
import torch

import dgcl_ops
from dgcl_ops.doctor import cuda, reporting
from dgcl_ops.doctor.cuda import Versions, misfit

ARCHS = ((8, 0), (8, 6), (8, 9), (9, 0))
DRIVERS = (None, (11, 8), (12, 2), (12, 4), (12, 8), (13, 0), (13, 2))
TOOLKITS = (None, (12, 4), (12, 8), (13, 0))
TORCHES = (None, (12, 6), (12, 8), (13, 0), (13, 2))
DEVICES = (None, (7, 5), (8, 0), (8, 6), (8, 7), (9, 0), (10, 0), (12, 0))
EVERY = [
    Versions(*of, archs) for of in itertools.product(DRIVERS, TOOLKITS, TORCHES, DEVICES)
    for archs in (ARCHS, ((8, 9),), ((9, 0),))
]  # fmt: skip


def runs(v: Versions) -> bool:
    """Whether a kernel of the extension runs, computed from what the driver can load."""
    if v.torch is None or v.torch[0] > v.driver[0] or v.extension[0] > v.driver[0]:
        return False
    if v.device is None:
        return True
    machine_code = {(major, later) for major, minor in v.archs for later in range(minor, 10)}
    compiled_by_driver = v.driver >= v.extension and v.device >= max(v.archs)
    return v.device >= (8, 0) and (v.device in machine_code or compiled_by_driver)


def test_a_sentence_appears_exactly_where_nothing_runs():
    relevant = [v for v in EVERY if v.driver and v.extension]
    assert [v for v in relevant if (misfit(v) is None) != runs(v)] == []
    assert {runs(v) for v in relevant} == {True, False}


def test_no_sentence_without_a_driver_or_without_kernels():
    assert {misfit(v) for v in EVERY if not (v.driver and v.extension)} == {None}


def test_each_text_is_one_sentence_with_what_to_do():
    for text in filter(None, map(misfit, EVERY)):
        assert text.count(". ") == 0, text
        assert text.endswith("."), text
        assert any(what in text for what in ("install", "build dgcl_ops", "use device cpu")), text


@pytest.mark.parametrize(
    ("versions", "sentence"),
    [
        (
            Versions((12, 8), (13, 0), (12, 8), (9, 0), ARCHS),
            "The driver supports CUDA 12.8, but dgcl_ops was built for CUDA 13.0: install driver 580 or later, or "
            "build dgcl_ops from source with nvcc 12 (docs/cuda.md).",
        ),
        (
            Versions((12, 8), (12, 8), (13, 0), (9, 0), ARCHS),
            "The driver supports CUDA 12.8, but PyTorch was built for CUDA 13.0: install driver 580 or later, or "
            "install a PyTorch build for CUDA 12.",
        ),
        (
            Versions((11, 8), (12, 8), (12, 8), (9, 0), ARCHS),
            "The driver supports CUDA 11.8, but PyTorch was built for CUDA 12.8 and dgcl_ops for CUDA 12.8: "
            "install driver 525.60.13 or later.",
        ),
        (
            Versions((13, 0), (13, 0), None, (9, 0), ARCHS),
            "PyTorch was built without CUDA, so the CUDA 13.0 kernels of dgcl_ops are not used: install a PyTorch "
            "build for CUDA 13.",
        ),
        (
            Versions((13, 0), (13, 0), (13, 0), (7, 5), ARCHS),
            "The device has compute capability 7.5, but dgcl_ops' CUDA kernels need 8.0 or later: use device cpu.",
        ),
        (
            Versions((13, 0), (13, 0), (13, 0), (8, 0), ((9, 0),)),
            "The device has compute capability 8.0, but dgcl_ops was built for 9.0: build dgcl_ops from source with "
            "DGCL_OPS_CUDA_ARCHS=80.",
        ),
        (
            Versions((12, 4), (12, 8), (12, 4), (10, 0), ARCHS),
            "The device has compute capability 10.0 and dgcl_ops was built for 8.0, 8.6, 8.9, 9.0; the PTX for later "
            "devices needs a driver for CUDA 12.8, but this one supports 12.4: update the driver, or ",
        ),
    ],
)  # fmt: skip
def test_sentences(versions, sentence):
    assert misfit(versions).startswith(sentence)


@pytest.mark.parametrize(
    ("build", "versions"),
    [
        ("stable ABI 2.10, g++ -O3, cuda 13.0 for sm_80, sm_90", ((13, 0), ((8, 0), (9, 0)))),
        ("cuda 12.8 for sm_120", ((12, 8), ((12, 0),))),
        ("headers of torch 2.11.0+cu130, g++ -O3, cuda no", (None, ())),
        ("", (None, ())),
    ],
)
def test_the_build_information_is_read(build, versions):
    assert cuda.built_with(build) == versions


def test_this_build_is_read():
    build = dgcl_ops.backend_info()["build"]
    assert (cuda.built_with(build)[0] is not None) == (" for sm_" in build)


# ---- the driver ------------------------------------------------------------------------------------


class Driver:
    """A stand-in for libcuda, with a version and devices. Arguments come by reference."""

    def __init__(self, version: int, *devices: tuple[int, int], fails: str = ""):
        self.version, self.devices, self.fails = version, devices, fails

    def cuDriverGetVersion(self, number):
        number._obj.value = self.version
        return 999 if self.fails == "version" else 0

    def cuInit(self, flags):
        return 999 if self.fails == "init" else 0

    def cuDeviceGetCount(self, number):
        number._obj.value = len(self.devices)
        return 0

    def cuDeviceGet(self, device, index):
        device._obj.value = index
        return 0

    def cuDeviceGetAttribute(self, number, which, device):
        number._obj.value = self.devices[device.value][{75: 0, 76: 1}[which]]
        return 999 if self.fails == "attribute" else 0


def test_versions_come_from_the_driver():
    driver = Driver(12080, (8, 6), (9, 0))
    assert cuda.supported_cuda(driver) == (12, 8)
    assert cuda.capabilities(driver) == [(8, 6), (9, 0)]


@pytest.mark.parametrize("driver", [None, Driver(0), Driver(13000, fails="version")])
def test_a_driver_that_does_not_answer_is_none(driver):
    assert cuda.supported_cuda(driver) is None


@pytest.mark.parametrize("fails", ["init", "attribute"])
def test_devices_that_do_not_answer_are_none(fails):
    assert cuda.capabilities(Driver(13000, (9, 0), fails=fails)) == []


def test_the_lines_of_the_report(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    build = "..., cuda 13.0 for sm_80, sm_90"
    (line,) = cuda.report_lines(build, Driver(13000, (9, 0), (8, 6)))
    assert line == (
        "cuda       driver supports 13.0; torch built for 12.8; extension built for 13.0; devices 9.0, 8.6"
    )
    line, sentence = cuda.report_lines(build, Driver(12080, (9, 0), (8, 6)))
    assert sentence.startswith("cuda       INCOMPATIBLE: The driver supports CUDA 12.8, but")
    _, sentence = cuda.report_lines(build, Driver(13000, (9, 0), (7, 5)))
    assert "compute capability 7.5" in sentence


@pytest.mark.parametrize("text", ["not a library", None])
def test_a_driver_library_that_is_broken_or_missing_is_no_driver(monkeypatch, tmp_path, text):
    library = tmp_path / "libcuda.so.1"
    if text:
        library.write_text(text)
    monkeypatch.setattr(cuda, "DRIVER_LIBRARY", str(library))
    assert cuda.load_driver() is None
    (line,) = cuda.report_lines("cuda 13.0 for sm_90")
    assert line.startswith("cuda       driver not found; torch built for ")


def test_the_doctor_prints_the_lines(monkeypatch):
    monkeypatch.setattr(reporting, "report_lines", lambda build: [f"cuda       of {build}"])
    assert f"cuda       of {dgcl_ops.backend_info()['build']}" in reporting.installation()
