"""Rotation and scaling of a training sample, drawn on the host.

In: random numbers of one sample. Out: the angles and the scale that the augmentation then applies
on the device. The sampler knows from them which samples need a large cut; with nnU-Net's
probabilities that are 36 of 100.
"""

import dataclasses

import numpy as np
from jaxtyping import Float32

from medjax.augment.nnunet import Augmentation
from medjax.sample.patches import rotation_limit


@dataclasses.dataclass(frozen=True)
class Movement:
    """Draws what `nnunet.draw` draws, with the same probabilities.

    Attributes:
      rotation: probability. limit: largest angle in rad, all three are uniform within it.
      scaling: probability. scales: (low, high), the factor is uniform within them.
    """

    rotation: float
    limit: float
    scaling: float
    scales: tuple[float, float]

    def __call__(self, rng: np.random.Generator) -> tuple[Float32[np.ndarray, "3"], np.float32]:
        """(angles in rad, scale); zeros and 1 where it neither turns nor scales."""
        turn, rescale = rng.random(2) < (self.rotation, self.scaling)
        angles = rng.uniform(-self.limit, self.limit, 3)
        scale = rng.uniform(*self.scales)
        return np.float32(angles if turn else np.zeros(3)), np.float32(scale if rescale else 1)


def of(settings: Augmentation, patch: tuple[int, ...]) -> Movement:
    """The movement of an augmentation to `patch` voxels, (z, y, x) or (y, x)."""
    given = settings.rotation_rad
    limit = rotation_limit(patch) if given is None else given
    return Movement(settings.rotation, limit, settings.scaling, tuple(settings.scaling_range))
