"""Promptable networks as a function of scans: prompts in, masks on the scan's own grid out.

In: a promptable `Model`, volumes, and requests with objects (`prompts.read.Prompt`); without
objects every class of the corpus is asked for by text. Out: the same `Segmentation` as every other
model's, so cases, files, sidecars and reports are the same (`infer/cases.py`).
"""

import dataclasses
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool

from medjax.corpora.cases import free_memory
from medjax.errors import PredictError, UsageError, shown
from medjax.infer import conflicts, memory, postprocess
from medjax.infer.model import Model, Prepared, Segmentation
from medjax.infer.packed import Masks
from medjax.infer.postprocess import Rules
from medjax.infer.regrid import row_blocks
from medjax.infer.scene import Found, Prompter, Scene
from medjax.infer.scorer import Scorer
from medjax.infer.zoom import Asked, Settings
from medjax.labels import Corpus
from medjax.prepare import resample
from medjax.prepare.geometry import Transform
from medjax.prompts import read
from medjax.prompts.read import Placed
from medjax.prompts.request import Request
from medjax.prompts.types import FREE_TEXT, NO_TEXT, VECTOR
from medjax.scans.nifti import DataWarning, Volume

OBJECTS = "objects"  # name of the protocol of a label map of objects
ARRAYS = 8  # float32 volumes on the network's grid that exist at a time, beside those of queries


class PromptedSegmenter:
    """Runs a promptable model over volumes; has the face of `Segmenter`.

    Args:
      model: the network, see `Model`. zoom: how objects are found.
      memory_gib: what the prediction of one case may use; default half of the free memory.
      postprocess: what is done to masks of the corpus' classes afterwards; default nothing.
      conflicts: only "ordered": classes that share a voxel are painted in order.
      vectors: texts -> their vectors (n, width), for texts that are no class; None: there is no
        text encoder.
      options: devices, precision and weights of the network, see `Scorer`.

    Attributes:
      prompter: the two programs. networks, limit, name, warn: see `Segmenter`.
    """

    def __init__(
        self,
        model: Model,
        *,
        zoom: Settings | None = None,
        memory_gib: float | None = None,
        postprocess: Rules | None = None,
        conflicts: str = "ordered",
        vectors: Callable[[Sequence[str]], np.ndarray] | None = None,
        **options: Any,
    ):
        if conflicts != "ordered":
            raise UsageError(
                "a promptable model paints its classes in order",
                found=f"conflicts {conflicts}",
                fix="leave out --conflicts",
            )
        self._scorer = Scorer(model, average="logit", **options)
        self.networks = (self._scorer,)
        self.prompter = Prompter(model, self._scorer, zoom or Settings())
        self.model, self.decision = model, self._scorer.decision
        self.device = self._scorer.device
        self.postprocess = postprocess.checked(model.space) if postprocess else None
        self.limit = None if memory_gib is None else int(memory_gib * 2**30)
        self.name, self.warn, self.uncertain, self.vectors = "", _warned, False, vectors
        self.maps: tuple[str, ...] = ()

    @property
    def compiled(self) -> int:
        """Programs compiled so far: two, whatever is asked."""
        return self.prompter.compiled

    @property
    def budget(self) -> int:
        """Bytes that the prediction of a case may use now."""
        return self.limit if self.limit is not None else free_memory() // 2

    def settings(self, *, earlier: bool = False) -> dict:
        """What the predictions depend on; JSON-ready. `earlier`: see `Scorer.settings`."""
        done = {"postprocess": self.postprocess.to_json() if self.postprocess else {}}
        zoom = {"zoom": dataclasses.asdict(self.prompter.settings)}
        return self._scorer.settings(earlier=earlier) | done | zoom

    def compile(self, classes: Sequence[str] = ()) -> None:
        """Compiles what a prediction needs."""
        self.prompter.compile()

    def check(self, request: Request) -> None:
        """`UsageError` for a text that the network does not know, before anything is read."""
        for prompt in request.objects:
            self._row(prompt.text)

    def knows(self, text: str) -> bool:
        """Whether the network can be asked for a text."""
        try:
            return self._row(text) != NO_TEXT
        except UsageError:
            return False

    def prepare_all(self, volume: Volume, request: Request) -> tuple[Prepared, ...]:
        """The volume as the network sees it.

        Raises: also `UsageError` for prompts outside it.
        """
        made = self._scorer.prepare(volume, request)
        self._placed(volume, request, made.transform)
        return (made,)

    def open(self, prepared: Prepared, request: Request) -> Scene:
        """The scan as a scene that can be asked again and again."""
        return self.prompter.open(prepared, request)

    def segment(
        self,
        volume: Volume,
        request: Request,
        *,
        prepared: Sequence[Prepared] | None = None,
        on_scores: Any = None,
    ) -> Segmentation:
        """The masks of the objects, or of the corpus' classes, on the grid of `volume`.

        Args:
          request: its objects; without any, its classes by text. prepared: see `prepare_all`.

        Returns: `Segmentation`; of objects with a label map of its own protocol, 1 for the first.
        Raises: `UsageError` for prompts that cannot be used, `PredictError` for a network without
          finite scores or an object that is too large.
        """
        if on_scores is not None:
            raise UsageError(
                "a promptable model writes no probabilities",
                fix="leave out --probabilities, or use a model of classes",
            )
        prepared = prepared or self.prepare_all(volume, request)
        transform = prepared[0].transform
        placed = self._placed(volume, request, transform)
        notes = [note for one in placed for note in one.notes]
        try:
            scene = self.open(prepared[0], request)
            masks, label, packed = self._decided(scene, placed)
        except PredictError as error:
            if error.path is not None:
                raise
            raise PredictError(
                error.message,
                path=volume.path,
                found=error.found,
                expected=error.expected,
                fix=error.fix,
            ) from error
        notes += [
            f"nothing was found of {shown(one.name)}"
            for one in placed
            if not masks.voxels[one.name]
        ]
        if request.objects:
            return self._of_objects(transform, masks, label, notes)
        return self._of_classes(transform, masks, packed, request.corpus)

    def forecast(self, header: Volume, request: Request) -> memory.Forecast:
        """What a case will take, from its header alone.

        Raises: `PredictError` if it does not fit into the memory allowed.
        """
        space = self.model.space
        described = space.corpora[space.corpus_index(request.corpus)]
        plan = self.model.plan
        transform = plan.fit(header, described.store, described.channels, crop="none")
        voxels, stored = (int(np.prod(n)) for n in (transform.shape, header.shape))
        arrays = self._scorer.channels + ARRAYS + self.prompter.queries
        needed = 4 * voxels * arrays + stored * (4 * self._scorer.channels + 2)
        if needed > self.budget:
            memory.refuse(needed, self.budget, header.path)
        return memory.Forecast(transform.shape, 1, 1, needed)

    def asked(self, placed: Placed) -> Asked:
        """An object as the network is asked for it."""
        row = self._row(placed.text)
        vector = self.vectors([placed.text])[0] if row == FREE_TEXT and self.vectors else None
        return Asked(placed.points, placed.kinds, placed.box, row, vector)

    def mask(self, scene: Scene, found: Found) -> Bool[np.ndarray, "z y x"]:
        """What was found, on the cropped canonical grid at the scan's own spacing."""
        return self._on_box(scene.prepared.transform, found) > 0

    def _on_box(self, transform: Transform, found: Found) -> np.ndarray:
        if found.logits.shape == transform.box_shape:
            return found.logits
        return resample.resample_scores(
            found.logits[..., None],
            transform.box_shape,
            transform.target_spacing_mm,
            transform.spacing_mm,
        )[..., 0]

    def _decided(
        self, scene: Scene, placed: Sequence[Placed]
    ) -> tuple[Masks, np.ndarray, list[np.ndarray]]:
        """Masks, the number (from 1) of the object with the largest logit of every voxel, and the
        masks as bits along x; the arrays on the cropped canonical grid.
        """
        transform, queries = scene.prepared.transform, self.prompter.queries
        best = np.zeros(transform.box_shape, np.float32)
        label = np.zeros(transform.box_shape, np.uint16)
        packed = []
        for first in range(0, len(placed), queries):
            part = placed[first : first + queries]
            for found in self.prompter.find(scene, [self.asked(one) for one in part]):
                logits = self._on_box(transform, found)
                better = logits > best
                label[better], best[better] = len(packed) + 1, logits[better]
                packed.append(np.packbits(logits > 0, axis=-1))
        names = [one.name for one in placed]
        masks = Masks(names, transform)
        for rows in row_blocks(transform.box_shape, max(1, len(names))):
            masks.put((rows, slice(0, transform.box_shape[1])), names, _bits(packed, rows, best))
        return masks, label, packed

    def _of_objects(
        self, transform: Transform, masks: Masks, label: np.ndarray, notes: Sequence[str]
    ) -> Segmentation:
        corpus = protocol_of(masks.names)
        label_map = np.zeros(transform.stored_shape, np.min_scalar_type(len(masks.names)))
        transform.image(label_map)[...] = label
        overlap = sum(masks.voxels.values()) - int(np.count_nonzero(label))
        masks.foreground, masks.conflicting = int(np.count_nonzero(label)), max(0, overlap)
        return Segmentation(label_map, masks, corpus=corpus, notes=tuple(notes))

    def _of_classes(
        self, transform: Transform, masks: Masks, packed: list[np.ndarray], corpus: str
    ) -> Segmentation:
        space = self.model.space
        values = space.corpora[space.corpus_index(corpus)].values
        label_map = np.zeros(transform.stored_shape, np.min_scalar_type(max(values)))
        cropped = transform.image(label_map)
        among = conflicts.excluding(space, corpus, masks.names)
        for rows, columns in masks.regions:
            block = _bits(packed, rows, cropped)
            masks.conflicting += int(np.count_nonzero(conflicts.overlapping(block, among)))
            masks.foreground += int(np.count_nonzero(block.any(-1)))
            cropped[rows, columns] = postprocess.paint(space, block, masks.names, corpus)
        found, done = Segmentation(label_map, masks), self.postprocess
        return postprocess.apply(found, done, space, corpus) if done else found

    def _placed(self, volume: Volume, request: Request, transform: Transform) -> list[Placed]:
        if not request.objects:
            return [Placed(name, text=name) for name in request.wanted(self.model.space)]
        return [
            read.place(prompt, volume.affine, volume.shape, transform, volume.path)
            for prompt in request.objects
        ]

    def _row(self, text: str) -> int:
        if not text:
            return NO_TEXT
        if self.vectors is not None and VECTOR in self.prompter.leaves:
            lower = [name.lower() for name in self.model.space.classes]
            if text.strip().lower() not in lower:
                return FREE_TEXT
        return read.row_of(text, self.model.space.classes)


def protocol_of(names: Sequence[str]) -> Corpus:
    """The label values of objects: 1 for the first."""
    return Corpus(OBJECTS, tuple((k, (name,)) for k, name in enumerate(names, 1)))


def _bits(packed: Sequence[np.ndarray], rows: slice, like: np.ndarray) -> np.ndarray:
    """(rows, y, x, n) bool of masks as bits along x; `like`: an array (z, y, x)."""
    count = like.shape[2]
    layers = [np.unpackbits(bits[rows], axis=-1, count=count).view(bool) for bits in packed]
    if layers:
        return np.stack(layers, -1)
    return np.zeros((rows.stop - rows.start, *like.shape[1:], 0), bool)


def _warned(text: str) -> None:
    warnings.warn(text, DataWarning, stacklevel=3)
