"""Checks the installation: which implementation each device uses, and whether its results are correct.

`python -m dgcl_ops.doctor` prints the report. `report()` returns it.
"""

from dgcl_ops.doctor.reporting import report, unusable

__all__ = ["report", "unusable"]
