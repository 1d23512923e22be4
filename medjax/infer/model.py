"""What prediction is given and gives back: a trained network as a function, a volume made ready for
it, and the segmentation of it.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from medjax.errors import UsageError, did_you_mean
from medjax.infer.packed import Masks
from medjax.labels import Corpus, LabelSpace
from medjax.prepare.geometry import Transform
from medjax.prepare.plan import Plan
from medjax.prompts.request import Request

# of the multiplications of matrices on the device; "": as the backend has it
PRECISIONS = ("", "default", "high", "highest")
UNCERTAINTIES = {
    "entropy": "bits: of the averaged class probabilities with the background (softmax), or of "
    "the least certain class (sigmoid); 0 to 1 "
    "for sigmoid",
    "disagreement": "standard deviation of the probability over mirrors, folds and seeds, of the "
    "class where it is largest; 0 to 0.5",
}


def _standard() -> Mapping[str, Any]:
    """Imported only here: `import medjax` needs no accelerator library."""
    from medjax.models import context

    return context.DEFAULT


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
      reads: what the network reads beside the image, see `models.context`.
      tasks: name of a task, or of a corpus for its own, -> task index as the network was trained
        with; empty: the corpus index.
      methods: of a promptable network "encode" and "decode": (params, array, context) -> value, see
        `infer/scene.py`.
    """

    apply: Callable
    params: Any
    plan: Plan
    space: LabelSpace
    window: tuple[int, ...]
    dims: int = 3
    conditions: Mapping[str, tuple[int, int]] = dataclasses.field(default_factory=dict)
    reads: Mapping[str, Any] = dataclasses.field(default_factory=_standard)
    tasks: Mapping[str, int] = dataclasses.field(default_factory=dict)
    methods: Mapping[str, Callable] = dataclasses.field(default_factory=dict)

    def facts(self, request: Request) -> dict[str, Any]:
        """Facts of one case, from which `context.of_request` takes what the network reads.

        Returns: corpus, modality and task (int32), spacing_mm (3,) float32, as in a batch of
          training, and `request.prompts`.
        Raises: `UsageError` for an unknown corpus or task, and for what the network cannot read.
        """
        index = self.space.corpus_index(request.corpus)
        described = self.space.corpora[index]
        corpus, modality = self.conditions.get(
            request.corpus, (index, self.space.modalities.index(described.modality))
        )
        if request.task and request.task not in self.tasks:
            raise UsageError(
                f"the model knows no task {request.task!r}",
                fix=did_you_mean(request.task, self.tasks),
            )
        given = dict(request.prompts or {})
        derived = any(entry.derive for entry in self.reads.values())  # from whatever is given
        unread = [name for name in given if name not in self.reads and not derived]
        for what, found in (
            ("does not read this input", ", ".join(unread)),
            ("reads no text", ", ".join(request.text)),
            ("has no adapter", request.adapter),
        ):
            if found:
                raise UsageError(
                    f"the network {what}", found=found, fix="leave it out of the request"
                )
        return {
            "corpus": np.int32(corpus),
            "modality": np.int32(modality),
            "task": np.int32(self.tasks.get(request.task or request.corpus, corpus)),
            "spacing_mm": np.asarray(self.plan.spacing_of(described.store), np.float32),
        } | given


class Prepared(NamedTuple):
    """A volume as the network sees it: image (z, y, x, m) float32 on the network's grid, and the
    transform that produced it; the organ mask it was given, where postprocessing needs it.
    """

    image: np.ndarray
    transform: Transform
    organ: np.ndarray | None = None


class Segmentation(NamedTuple):
    """Raw label values (z, y, x) on the stored grid, the masks of the predicted classes (which may
    overlap), and maps that were asked for.

    maps: name -> (z, y, x) float32 on the stored grid, see `UNCERTAINTIES`.
    changes: what postprocessing did, class -> operation -> voxels removed or added; empty without
    postprocessing.
    corpus: whose label values the map has, if they are not those of the request's corpus.
    notes: sentences for the user.
    """

    label_map: np.ndarray
    masks: Masks
    maps: Mapping[str, np.ndarray] = {}
    changes: Mapping[str, Mapping[str, int]] = {}
    corpus: Corpus | None = None
    notes: tuple[str, ...] = ()
