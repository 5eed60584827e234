"""The step is straight: a batch's maps pass through few files, and seldom return to one."""

import hops
import pytest

from dgcl_ops._step import rows


@pytest.mark.parametrize(("channels", "most"), [(hops.PROJECTIONS, 25), (hops.FEATURES, 29)])
def test_the_maps_make_few_stays(channels, most):
    rooms = hops.of_a_step(channels)
    assert len(rooms) <= most, " > ".join(rooms)
    assert rooms[0] == rooms[-1] == "losses.py"


def test_the_count_sees_a_detour(monkeypatch):
    """A detour through `batch.py` for each map that rows are read from."""
    from dgcl_ops.ops import finite_rows

    before, gather_rows = hops.of_a_step(hops.PROJECTIONS), rows.gather_rows
    detour = compile(
        "def gather(maps, pixels):\n    finite_rows(maps)\n    return gather_rows(maps, pixels)",
        rows.__file__,
        "exec",
    )
    names = {"finite_rows": finite_rows, "gather_rows": gather_rows}
    exec(detour, names)
    monkeypatch.setattr(rows, "gather_rows", names["gather"])
    assert len(hops.of_a_step(hops.PROJECTIONS)) == len(before) + 4
