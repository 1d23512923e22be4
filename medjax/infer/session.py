"""A scan that is asked step by step: objects, corrective clicks, undo.

In: a `PromptedSegmenter`, a volume, and prompts one after another. Out: the mask of an object on
the scan's grid after every step. The scan is encoded once; a click costs a pass of the decoder.
Clicks are used where they are, and networks that read the logits of the round before get them.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool

from medjax.errors import UsageError, did_you_mean
from medjax.infer.prompted import PromptedSegmenter
from medjax.infer.scene import Found, Scene
from medjax.prompts import read
from medjax.prompts.read import Prompt
from medjax.prompts.request import Request
from medjax.prompts.types import NEGATIVE, POSITIVE
from medjax.scans.nifti import Volume

Numbers = Sequence[float | int] | np.ndarray


@dataclasses.dataclass(frozen=True)
class _Step:
    """One step of an object: what it was asked with, and what was found."""

    prompt: Prompt
    found: Found
    mask: np.ndarray


class Session:
    """An open scan.

    Args:
      segmenter: of the model. volume: the scan, with pixels. request: names the corpus.

    Attributes:
      encoded: how often the scan or a window of it was encoded so far.
    """

    def __init__(self, segmenter: PromptedSegmenter, volume: Volume, request: Request):
        self._segmenter, self._volume = segmenter, volume
        (prepared,) = segmenter.prepare_all(volume, request)
        self._scene: Scene = segmenter.open(prepared, request)
        self._steps: dict[str, list[_Step]] = {}

    @property
    def encoded(self) -> int:
        """Embeddings that are held: of the scan, and of the windows that were looked at."""
        return 1 + len(self._scene.windows)

    @property
    def names(self) -> tuple[str, ...]:
        """The objects so far."""
        return tuple(self._steps)

    def segment(
        self,
        *,
        text: str = "",
        points: Sequence[Numbers] | np.ndarray = (),
        box: Numbers | None = None,
        name: str = "",
        space: str = "ras",
    ) -> Bool[np.ndarray, "z y x"]:
        """The mask of an object, begun anew if there is one of that name.

        Args:
          text: what it is. points: (x, y, z), or (x, y, z, sign) with a sign of 0 or -1 for points
            outside it. box: x0 y0 z0 x1 y1 z1. space: of the coordinates, see `prompts.read`.
          name: of the object; default the text, or "object".

        Raises: `UsageError` for prompts that cannot be used.
        """
        places, kinds = [], []
        for point in points:
            if len(point) not in (3, 4):
                raise UsageError(
                    "unusable point", found=list(point), expected="(x, y, z) or (x, y, z, sign)"
                )
            places.append(tuple(float(v) for v in point[:3]))
            kinds.append(POSITIVE if len(point) == 3 or point[3] > 0 else NEGATIVE)
        corners = None if box is None else tuple(float(v) for v in box)
        if corners is not None and len(corners) != 6:
            raise UsageError("unusable box", found=corners, expected="x0 y0 z0 x1 y1 z1")
        name = name or text or "object"
        prompt = Prompt(name, text, tuple(places), tuple(kinds), corners, space)
        self._steps[name] = [self._step(prompt, None)]
        return self.mask(name)

    def click(
        self, point: Numbers, *, positive: bool = True, name: str = "", space: str = ""
    ) -> Bool[np.ndarray, "z y x"]:
        """The mask after one more point, which corrects it.

        Args:
          point: (x, y, z). positive: inside the object. name: of it; default the last one.
          space: of the point; default that of the object.
        """
        last = self._last(name)
        if space and space != last.prompt.space:
            raise UsageError(
                "points of one object in several spaces",
                found=space,
                expected=last.prompt.space,
                fix="give all of them in one space",
            )
        prompt = dataclasses.replace(
            last.prompt,
            points=(*last.prompt.points, tuple(float(v) for v in point)),
            kinds=(*last.prompt.kinds, POSITIVE if positive else NEGATIVE),
        )
        self._steps[prompt.name].append(self._step(prompt, last.found))
        return self.mask(prompt.name)

    def undo(self, name: str = "") -> Bool[np.ndarray, "z y x"]:
        """The mask before the last step; an object's first step is taken back with the object, and
        the mask is empty.
        """
        prompt = self._last(name).prompt
        steps = self._steps[prompt.name]
        steps.pop()
        if steps:
            return self.mask(prompt.name)
        del self._steps[prompt.name]
        return np.zeros(self._volume.shape, bool)

    def mask(self, name: str = "") -> Bool[np.ndarray, "z y x"]:
        """The mask of an object on the scan's grid."""
        out = np.zeros(self._volume.shape, bool)
        self._scene.prepared.transform.image(out)[...] = self._last(name).mask
        return out

    def masks(self) -> Mapping[str, Bool[np.ndarray, "z y x"]]:
        """The masks of all objects by name."""
        return {name: self.mask(name) for name in self._steps}

    def _last(self, name: str) -> _Step:
        if not self._steps:
            raise UsageError("nothing was segmented yet", fix="call segment first")
        name = name or next(reversed(self._steps))
        if name not in self._steps:
            raise UsageError(f"no object {name!r}", fix=did_you_mean(name, self._steps))
        return self._steps[name][-1]

    def _step(self, prompt: Prompt, before: Found | None) -> _Step:
        scene, volume = self._scene, self._volume
        transform = scene.prepared.transform
        placed = read.place(prompt, volume.affine, volume.shape, transform, volume.path)
        for note in placed.notes:
            self._segmenter.warn(f"{volume.path}: {note}")
        asked = dataclasses.replace(self._segmenter.asked(placed), own=True)
        (found,) = self._segmenter.prompter.find(scene, [asked], [before])
        return _Step(prompt, found, self._segmenter.mask(scene, found))
