"""The stages of an encoder-decoder: given, or by nnU-Net's rule from patch and spacing.

The rule is `medjax/topology.py`, which planning shares.
"""

from collections.abc import Sequence

from medjax.errors import ModelError
from medjax.topology import Sides, Topology, features_per_stage, topology

__all__ = ["Sides", "Topology", "features_per_stage", "stages", "topology"]


def stages(
    *,
    patch: Sequence[int] | None,
    spacing_mm: Sequence[float | int] | None,
    strides: Sequence[Sequence[int]] | None,
    kernels: Sequence[Sequence[int]] | None,
    features: Sequence[int] | None,
    base_features: int,
    max_features: int | None,
    max_stages: int | None,
) -> tuple[Sides, tuple[Sides, ...], tuple[Sides, ...]]:
    """(features, strides, kernels) of every stage, finest first; None values are derived.

    Args:
      patch, spacing_mm: required unless strides and kernels are given.
      features: widths; None doubles `base_features` per stage up to `max_features` (None:
        nnU-Net's, 320 in three axes, 512 in two).
      max_stages: bound of the rule.

    Raises: `ModelError` if the topology is not determined or the lists disagree.
    """
    if strides is None or kernels is None:
        if patch is None or spacing_mm is None:
            raise ModelError(
                "the topology is open", fix="give patch and spacing_mm, or strides and kernels"
            )
        found = topology(spacing_mm, patch, max_stages=max_stages)
        strides, kernels = strides or found.strides, kernels or found.kernels
    strides, kernels = tuple(map(tuple, strides)), tuple(map(tuple, kernels))
    features = tuple(
        features
        or features_per_stage(
            len(strides), base_features, max_features or (320 if len(strides[0]) == 3 else 512)
        )
    )
    if (
        not len(features) == len(strides) == len(kernels)
        or len(features) < 2
        or any(s != 1 for s in strides[0])
    ):
        raise ModelError(
            "features, strides and kernels must agree, with at least 2 stages and a first stride "
            "of 1",
            found=f"features {features}, strides {strides}, {len(kernels)} kernels",
        )
    return features, strides, kernels
