"""The step is straight: a batch's maps pass through few files, and seldom return to one."""

import hops
import pytest

from dgcl_ops._step import batch, rows


@pytest.mark.parametrize(
    ("channels", "stays", "calls"), [(hops.PROJECTIONS, 11, 7), (hops.FEATURES, 19, 5)]
)
def test_the_maps_make_few_stays(channels, stays, calls):
    way = hops.of_a_step(channels)
    assert len(way.rooms) <= stays, " > ".join(way.rooms)
    assert len(way.operators) <= calls, way.operators
    assert way.rooms[0] == way.rooms[-1] == "losses.py"
    assert {"finite_rows", "memory_push"} <= set(way.operators)


def test_the_count_sees_a_detour(monkeypatch):
    """A detour through `batch.py` for each map that rows are read from, with one more call of an operator."""
    before, gather_rows = hops.of_a_step(hops.PROJECTIONS), rows.gather_rows
    detour = compile(
        "def gather(maps, pixels):\n"
        "    zero_row(maps)\n"
        "    gather_rows(maps, pixels)\n"
        "    return gather_rows(maps, pixels)",
        rows.__file__,
        "exec",
    )
    names = {"zero_row": batch.zero_row, "gather_rows": gather_rows}
    exec(detour, names)
    monkeypatch.setattr(rows, "gather_rows", names["gather"])
    after = hops.of_a_step(hops.PROJECTIONS)
    assert len(after.rooms) == len(before.rooms) + 4
    assert len(after.operators) == len(before.operators) + 2
