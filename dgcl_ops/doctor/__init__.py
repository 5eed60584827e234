"""What is installed, which code serves which device and why, and whether it computes the right results here.

`python -m dgcl_ops.doctor` prints the report. `report()` returns it.
"""

from dgcl_ops.doctor.reporting import report, unusable

__all__ = ["report", "unusable"]
