"""Marks for tests that ask more than a build without the compiled extension gives."""

import pytest

from dgcl_ops import backend_info

COMPILED = backend_info()["extension"] is not None
needs_extension = pytest.mark.skipif(
    not COMPILED, reason="about the compiled extension, which this build lacks"
)
needs_equal_bits = pytest.mark.skipif(not COMPILED, reason="plain PyTorch promises no equal bits")
