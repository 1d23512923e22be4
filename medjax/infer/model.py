"""What prediction is given and gives back: a trained network as a function, a volume made ready for
it, and the segmentation of it.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from medjax.infer.packed import Masks
from medjax.labels import LabelSpace
from medjax.prepare.geometry import Transform
from medjax.prepare.plan import Plan


@dataclasses.dataclass(frozen=True)
class Model:
    """Everything prediction needs to know of a trained network.

    Attributes:
      apply: (params, image (k, *window, m) f32, context) -> {"logits": (k, *window, c), ...}.
      params: its parameters.
      plan: spacing, orientation, crop and normalisation it was trained with.
      space: what its channels mean.
      window: (z, y, x), or (y, x) for a network on slices.
      dims: 3 or 2.
      conditions: corpus name -> (corpus index, modality index) as the network was trained with, for
        networks that read them; empty: the positions in `space`.
    """

    apply: Callable
    params: Any
    plan: Plan
    space: LabelSpace
    window: tuple[int, ...]
    dims: int = 3
    conditions: Mapping[str, tuple[int, int]] = dataclasses.field(default_factory=dict)

    def condition(self, corpus: str) -> tuple[int, int]:
        """(corpus index, modality index) that the network is given for a corpus of `space`."""
        index = self.space.corpus_index(corpus)
        return self.conditions.get(
            corpus, (index, self.space.modalities.index(self.space.corpora[index].modality))
        )


class Prepared(NamedTuple):
    """A volume as the network sees it: image (z, y, x, m) float32 on the network's grid, and the
    transform that produced it.
    """

    image: np.ndarray
    transform: Transform


class Segmentation(NamedTuple):
    """Raw label values (z, y, x) on the stored grid, the masks of the predicted classes (which may
    overlap), and maps that were asked for.

    maps: name -> (z, y, x) float32 on the stored grid, see `scores.UNCERTAINTIES`.
    changes: what postprocessing did, class -> operation -> voxels removed or added; empty without
    postprocessing.
    """

    label_map: np.ndarray
    masks: Masks
    maps: Mapping[str, np.ndarray] = {}
    changes: Mapping[str, Mapping[str, int]] = {}
