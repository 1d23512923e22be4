"""nnU-Net's topology rule against the numbers of its planner (MultiTalent plan, Hippocampus, common
patches).
"""

import pytest

from medjax.errors import ModelError
from medjax.models.topology import features_per_stage, topology

THREE, TWO = (3, 3, 3), (2, 2, 2)


@pytest.mark.parametrize(
    ("spacing", "patch", "padded", "strides", "kernels"),
    [
        ((1.5, 1, 1), (96, 192, 192), (96, 192, 192), (TWO,) * 4 + ((1, 2, 2),), (THREE,) * 6),
        ((1, 1, 1), (36, 50, 35), (40, 56, 40), (TWO,) * 3, (THREE,) * 4),
        ((1, 1, 1), (128, 128, 128), (128, 128, 128), (TWO,) * 5, (THREE,) * 6),
        (
            (3, 0.8, 0.8),
            (64, 192, 192),
            (64, 192, 192),
            ((1, 2, 2),) + (TWO,) * 4,
            ((1, 3, 3),) + (THREE,) * 5,
        ),
        (
            (5, 0.8, 0.8),
            (20, 320, 256),
            (20, 320, 256),
            ((1, 2, 2),) * 2 + (TWO,) * 2 + ((1, 2, 2),) * 2,
            ((1, 3, 3),) * 2 + (THREE,) * 5,
        ),
    ],
)
def test_published_plans_are_reproduced(spacing, patch, padded, strides, kernels):
    found = topology(spacing, patch)
    assert found.patch == padded
    assert found.strides == ((1, 1, 1), *strides)
    assert found.kernels == kernels


def test_two_axes_and_a_limit_of_stages():
    assert topology((1, 1), (64, 64)).strides == ((1, 1), (2, 2), (2, 2), (2, 2), (2, 2))
    assert len(topology((1, 1), (64, 64), max_stages=3).strides) == 3
    assert features_per_stage(6, 30) == (30, 60, 120, 240, 320, 320)


def test_impossible_grids_are_refused():
    with pytest.raises(ModelError, match="do not describe a grid"):
        topology((1, 1), (64, 64, 64))
