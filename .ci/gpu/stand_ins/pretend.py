"""Runs a Python program with the pretended GPU.

pretend.py KERNELS (SCRIPT | -m MODULE | -c CODE) [ARGUMENT ...]
"""

import runpy
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import pretended_gpu


def main() -> None:
    kernels, what, *arguments = sys.argv[1:]
    pretended_gpu.install(kernels)
    if what in ("-m", "-c"):
        name, *arguments = arguments
        sys.path.insert(0, "")
        sys.argv = [what, *arguments]
        if what == "-m":
            runpy.run_module(name, run_name="__main__", alter_sys=True)
        else:
            exec(compile(name, "<string>", "exec"), {"__name__": "__main__"})
        return
    sys.path.insert(0, str(Path(what).resolve().parent))
    sys.argv = [what, *arguments]
    runpy.run_path(what, run_name="__main__")


if __name__ == "__main__":
    main()
