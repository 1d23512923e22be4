"""Cutting a case to a budget: monotone, covering, and what the forecast counts."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medjax.errors import PredictError
from medjax.infer import memory
from medjax.infer.memory import GIB, Footprint

TOTAL = Footprint((600, 400, 400), (128, 128, 128), 1, 118, 1, 0.5, temporary=GIB)


def test_the_large_case_of_many_classes_fits_where_all_scores_together_would_not():
    whole = 600 * 512 * 512 * 118 * 4
    plan, needed = memory.cut((600, 512, 512), [TOTAL], GIB, 16 * GIB)
    assert needed <= 16 * GIB < whole / 4 and len(plan.strips) > 1
    assert [s.start for s in plan.strips[1:]] == [s.stop for s in plan.strips[:-1]] and plan.strips[
        -1
    ].stop == 512
    roomy, free = memory.cut((600, 512, 512), [TOTAL], GIB, 200 * GIB)
    assert len(roomy.strips) == 1 and roomy.depth >= plan.depth and free > needed


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 60), st.integers(1, 90), st.integers(1, 200), st.floats(0.01, 8))
def test_a_cut_keeps_its_budget_or_refuses(height, width, classes, budget):
    part = Footprint((40, max(1, height // 2), width), (16, 16, 16), 1, classes, 1, 0.5)
    try:
        plan, needed = memory.cut((80, height, width), [part], 1 << 20, int(budget * 2**26))
    except PredictError as error:
        assert "does not fit" in str(error)
        with pytest.raises(PredictError):
            memory.cut((80, height, width), [part], 1 << 20, int(budget * 2**25))
        return
    assert needed <= int(budget * 2**26)
    assert sum(s.stop - s.start for s in plan.strips) == height
    assert (
        memory.cut((80, height, width), [part], 1 << 20, int(budget * 2**27))[0].depth >= plan.depth
    )


def test_windows_of_strips_are_those_that_touch_them():
    part = Footprint((32, 64, 16), (16, 16, 16), 1, 2, 1, 0.5)
    assert memory.count_windows(part, [slice(0, 64)]) == 3 * 7 * 1
    assert memory.count_windows(part, [slice(0, 32), slice(32, 64)]) == 3 * (
        4 + 4
    )  # the one at 24 touches both
    small = Footprint(
        (4, 10, 16), (16, 16, 16), 1, 2, 1, 0.5
    )  # smaller than a window: padded to one
    assert memory.count_windows(small, [slice(0, 5), slice(5, 10)]) == 2
