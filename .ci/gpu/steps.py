"""The steps of a run on a GPU, most valuable first. runner.py runs them, summary.py summarises them."""

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path

from runner import Run, Step
from summary import tests

HERE = Path(__file__).resolve().parent
STAND_INS = HERE / "stand_ins"
SANITIZERS = ("memcheck", "racecheck", "initcheck", "synccheck")
REPEATED = 5  # failing tests that are repeated


@dataclass(frozen=True)
class Sizes:
    """Arguments that differ between a run and its rehearsals."""

    search: tuple[str, ...]  # arguments of knn_bench, one field per step
    compact: tuple[str, ...]
    grouped: tuple[str, ...]
    loss: tuple[str, ...]
    parts: tuple[str, ...]
    profile: tuple[str, ...]
    tests: tuple[str, ...]  # arguments of pytest
    small_ops: tuple[str, ...] = ()
    doctor: tuple[str, ...] = ()  # the doctor's checks; empty: all
    seconds_a_test: int = 45
    slower: float = 1.0  # factor for all time limits


ON_GPU = Sizes(
    search=("--sizes", "10000x10000x256", "--data", "clusters", "--repeats", "30"),
    compact=("--sizes", "10000x10000x256", "--data", "compact", "--repeats", "10"),
    grouped=(
        *("--sizes", "133119x10000x256", "--classes", "21", "--shares", "equal"),
        *("--repeats", "7"),
    ),
    loss=("--present", "21", "--repeats", "10"),
    parts=("--repeats", "30"),
    profile=(),
    tests=("-n", "8", "tests"),
)
TINY = ("--scales", "2", "5", "--repeats", "2")
FEW = ("-k", "not every_pair and not instruction_sets")
REHEARSAL = Sizes(
    search=("--sizes", "130x300x40", "--data", "clusters", *TINY),
    compact=("--sizes", "130x300x40", "--data", "compact", *TINY),
    grouped=("--sizes", "130x90x24", "--classes", "3", "--shares", "equal", *TINY),
    loss=("--tiny", "--present", "3", "--repeats", "1"),
    parts=("--tiny", "--repeats", "2"),
    profile=("--tiny",),
    tests=("-n", "2", "tests"),
    seconds_a_test=300,
    slower=8,
)
SHORT = replace(
    REHEARSAL,
    small_ops=("--quick", "--op", "gather_rows", "--op", "partition_keys"),
    doctor=("memory_push", "partition_keys", "gather_rows"),
    tests=("tests/ops/test_gather_rows.py", "tests/ops/test_partition_keys.py"),
)


class Plan:
    """Builds the commands of the steps. A rehearsal puts the stand-ins in front of them."""

    def __init__(
        self, folder: Path, run: Run, python: str, sizes: Sizes, rehearsal: bool, work: Path
    ):
        self.folder, self.run, self.sizes, self.rehearsal = folder, run, sizes, rehearsal
        self.python, self.work, self.site = python, work, work / "site"

    def program(self, *arguments: object, kernels: str = "all") -> list:
        """Returns a Python command, with the pretended GPU in a rehearsal."""
        pretend = [STAND_INS / "pretend.py", kernels] if self.rehearsal else []
        return [self.python, *pretend, *arguments]

    def step(self, name: str, title: str, limit: float, command: list, **more: object) -> Step:
        return Step(
            name, title, command, limit * self.sizes.slower, **{"why_not": self.why_not, **more}
        )

    def why_not(self) -> str | None:
        """Returns why steps cannot run, or None."""
        if self.run.figure("environment", "device") is False:
            return f"no CUDA device: {self.run.figure('environment', 'error', 'PyTorch sees none')}"
        if not self.installed():
            return "the library is not installed, see install"
        return None

    def installed(self) -> bool:
        result = self.run.result("build_here") or self.run.result("install")
        return result is not None and result.status == "passed"

    # ---- before everything ---------------------------------------------------------------------------

    def environment(self) -> list[Step]:
        prefix = [str(part) for part in self.program(kernels="none")]
        env = {"DGCL_OPS_GPU_PYTHON": json.dumps(prefix)}
        command = [self.python, HERE / "environment.py"]
        return [
            self.step("environment", "machine and software", 60, command, env=env, why_not=None)
        ]

    def install(self) -> list[Step]:
        command = [self.python, HERE / "install.py", self.folder, self.site]
        if not (self.folder / "wheel").is_dir() and self.rehearsal:
            command.append("--installed")
        title = "the wheel is unpacked and imported; its libraries"
        return [self.step("install", title, 60, command, why_not=None)]

    def build_here(self) -> list[Step]:
        if self.installed() or not (self.folder / "sdist").is_dir():
            return []
        command = [self.python, HERE / "install.py", self.folder, self.site, "--from-source"]
        return [
            self.step("build_here", "the library is built from source", 200, command, why_not=None)
        ]

    def emulator(self) -> list[Step]:
        """Compiles the kernels for the CPU in a rehearsal, so that no other step's time includes it."""
        if not self.rehearsal:
            return []
        code = "from kernels.emulator import build; print(build.build('plain'))"
        env = {"PYTHONPATH": str(self.folder / "tests")}
        command = [self.python, "-c", code]
        title = "stand-in: the kernels are compiled for the CPU"
        return [Step("emulator", title, command, 1800, env=env)]

    # ---- right or wrong ------------------------------------------------------------------------------

    def checks(self) -> list[Step]:
        blocking = {"CUDA_LAUNCH_BLOCKING": "1"}
        small = self.program(HERE / "small_ops.py", *self.sizes.small_ops, kernels="side")
        doctor = self.program(HERE / "run_doctor.py", "cuda", *self.sizes.doctor, kernels="side")
        return [
            self.step("small_ops", "every operator against the CPU's", 60, small, env=blocking),
            self.step("doctor", "doctor --device cuda", 75, doctor),
            self.step(
                "tests",
                "all tests that need a GPU",
                150,
                self.pytest(*self.sizes.tests),
                env=self.test_settings("tests"),
            ),
        ]

    def test_settings(self, name: str) -> dict:
        return {
            "DGCL_OPS_GPU_TESTS": str(self.run.out / "tests.csv") if name == "tests" else "",
            "DGCL_OPS_GPU_SECONDS": str(self.sizes.seconds_a_test),
        }

    def pytest(self, *arguments: str) -> list:
        pretended = ["-p", "pretended_tests"] if self.rehearsal else []
        command = [self.python, "-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider"]
        # A file that cannot be imported must not keep the others from running.
        command += ["--continue-on-collection-errors", "-p", "gpu_tests"]
        return [*command, *pretended, *arguments]

    def sanitized(self, tool: str, command: list) -> list:
        return [self.python, HERE / "sanitize.py", tool, "--", *command]

    def repeats(self) -> list[Step]:
        """Repeats what failed, alone: without tensor cores, then under memcheck."""
        steps = []
        exact = {"DGCL_OPS_CUDA_SEARCH": "exact", "CUDA_LAUNCH_BLOCKING": "1"}
        for name in self.run.figure("doctor", "failed", [])[:2]:
            command = self.program(HERE / "one_check.py", name, kernels="side")
            word = "".join(c if c.isalnum() else "_" for c in name)
            steps.append(
                self.step(f"again_{word}", f"doctor's {name}, exact search", 30, command, env=exact)
            )
            checked = self.sanitized("memcheck", command)
            steps.append(
                self.step(f"memcheck_{word}", f"doctor's {name} under memcheck", 40, checked)
            )
        failed = [test for test, _ in tests(self.run.out)[1]]
        if failed:
            command = self.pytest("-n", "0", *failed[:REPEATED])
            title = f"the first {min(REPEATED, len(failed))} failing tests, alone, exact search"
            steps.append(
                self.step(
                    "again_tests", title, 45, command, env={**exact, **self.test_settings("again")}
                )
            )
            checked = self.sanitized("memcheck", self.pytest("-n", "0", failed[0]))
            steps.append(
                self.step("memcheck_test", "the first failing test under memcheck", 45, checked)
            )
        return steps

    def sanitizers(self) -> list[Step]:
        command = self.program(
            HERE / "small_ops.py", "--quick", *self.sizes.small_ops, kernels="side"
        )
        return [
            self.step(
                tool,
                f"compute-sanitizer {tool} over small_ops",
                90,
                self.sanitized(tool, command),
                together="sanitizers",
            )
            for tool in SANITIZERS
        ]

    # ---- how fast ------------------------------------------------------------------------------------

    def bench(self, name: str, title: str, limit: float, script: str, *arguments: str) -> Step:
        command = self.program(
            self.folder / "benchmarks" / script,
            "--device",
            "cuda",
            "--out",
            self.run.out,
            *arguments,
        )
        return self.step(name, title, limit, command)

    def benchmarks(self) -> list[Step]:
        sizes = self.sizes
        profile = self.program(HERE / "profile_step.py", *sizes.profile)
        kernels = self.program(HERE / "profiled_kernels.py", *sizes.profile)
        ncu = [self.python, HERE / "run_ncu.py", self.run.out / "kernels.ncu-rep", "--", *kernels]
        return [
            self.bench(
                "search",
                "10,000 x 10,000: ours, fp32, TF32, bf16",
                75,
                "knn_bench.py",
                *sizes.search,
            ),
            self.bench(
                "step",
                "a step of the loss, and the published one",
                75,
                "loss_bench.py",
                *sizes.loss,
            ),
            self.bench("parts", "parts of a step; topk alone", 45, "parts_bench.py", *sizes.parts),
            self.step("profile", "kernels of a step; graph replay; memory", 45, profile),
            self.bench("grouped", "the search of a VOC step", 60, "knn_bench.py", *sizes.grouped),
            self.bench(
                "compact", "10,000 x 10,000, cosine 0.999", 45, "knn_bench.py", *sizes.compact
            ),
            self.step("ncu", "six kernels under ncu", 75, ncu),
            self.bench(
                "compiled",
                "the steps under torch.compile",
                110,
                "loss_bench.py",
                *sizes.loss,
                "--compiled",
            ),
        ]


def environment_of(
    folder: Path, work: Path, rehearsal: bool, commit: str, slower: float = 1.0
) -> dict[str, str]:
    """Returns the environment of every step."""
    packed = (folder / "wheel").is_dir()  # a rehearsal may run in the source tree
    library = work / "site" if packed else folder
    paths = [library, HERE / "plugins", *([STAND_INS] if rehearsal else [])]
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, paths)),
        "PYTHONUNBUFFERED": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "HYPOTHESIS_STORAGE_DIRECTORY": str(work / "hypothesis"),
        "DGCL_OPS_REQUIRE_COMPILED": "1",
        "DGCL_OPS_COMMIT": commit,
        "DGCL_OPS_GPU_SLOWER": str(slower),
    }
    if rehearsal:
        env["PATH"] = f"{STAND_INS / 'bin'}{os.pathsep}{env['PATH']}"
        env["OMP_NUM_THREADS"] = "1"
    return env


def go(plan: Plan) -> None:
    """Runs all steps."""
    run = plan.run
    run.go(plan.environment())
    run.go(plan.install())
    run.go(plan.build_here())
    run.go(plan.emulator())
    run.go(plan.checks())
    run.go(plan.repeats())
    run.go(plan.sanitizers())
    run.go(plan.benchmarks())
