"""A trained network as a function of scans: volume in, scores or masks on the scan's own grid out.

In: a `Model` (network function, parameters, plan, label space, window) and volumes as read from disk. Out: scores on the network's grid, or
the decided label map and class masks on the stored grid. One `Predictor` compiles once and serves volumes of any size and all corpora.

Memory stays bounded: windows are blended row by row, rows are resampled to the scan's grid as soon as they are final, thresholded and
packed. When even that would not fit, the classes are predicted in several passes.
"""

import dataclasses
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32

from medjax.data import geometry, normalise
from medjax.data.cases import check_channels, free_memory
from medjax.data.geometry import Transform
from medjax.data.nifti import Volume
from medjax.data.plan import Plan
from medjax.errors import UsageError, did_you_mean
from medjax.infer import tta
from medjax.infer.masks import Masks
from medjax.infer.regrid import on_scan_grid, row_blocks
from medjax.infer.windows import WindowScores
from medjax.labels import Corpus, LabelSpace

ACTIVATIONS = ("sigmoid", "softmax")
AVERAGES = ("prob", "logit")
LOWEST = -1e4  # stands in for the -inf of masked channels: sigmoid and exp of it are exactly 0, and it can be averaged


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
      conditions: corpus name -> (corpus index, modality index) as the network was trained with, for networks that read them; empty: the
        positions in `space`.
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
        return self.conditions.get(corpus, (index, self.space.modalities.index(self.space.corpora[index].modality)))


class Prepared(NamedTuple):
    """A volume as the network sees it: image (z, y, x, m) float32 on the network's grid, and how it came there."""

    image: np.ndarray
    transform: Transform


class Segmentation(NamedTuple):
    """Raw label values (z, y, x) on the stored grid, and the masks of the predicted classes (which may overlap)."""

    label_map: np.ndarray
    masks: Masks


class Predictor:
    """Runs a model over volumes.

    Args:
      model: the network, see `Model`.
      overlap: share of a window that the next one covers at least.
      mirror_axes: spatial axes to mirror; all their combinations are averaged (three axes: eight times the work).
      average: what is averaged over mirrors, members and windows: "prob" (MultiTalent, nnU-Net v1) or "logit" (nnU-Net v2, which turns
        logits into probabilities only on the scan's grid).
      batch_windows: windows per step and device; default 2, or 16 slices.
      activation: "sigmoid" (a class is where its probability is above 1/2), or "softmax" with the background as channel 0, or as an
        implicit logit of 0 if there are only the classes' channels (a voxel goes to the largest).
      ensemble: parameters of further members of the same architecture.
      weighted: Gaussian importance of a window's voxels.
      devices: shares the windows among these; default the first one.
      memory_gib: what blending may use; default half of the free memory.
    """

    def __init__(
        self,
        model: Model,
        *,
        overlap: float = 0.5,
        mirror_axes: Sequence[int] = (),
        average: str = "prob",
        batch_windows: int | None = None,
        activation: str = "sigmoid",
        ensemble: Sequence[Any] = (),
        weighted: bool = True,
        devices: Sequence[Any] | None = None,
        memory_gib: float | None = None,
    ):
        for word, known, what in ((average, AVERAGES, "average"), (activation, ACTIVATIONS, "activation")):
            if word not in known:
                raise UsageError(f"unknown {what} {word!r}", fix=did_you_mean(word, known))
        if model.dims not in (2, 3) or len(model.window) != model.dims or any(not 0 <= a < model.dims for a in mirror_axes):
            found = f"dims {model.dims}, window {tuple(model.window)}, mirror axes {tuple(mirror_axes)}"
            raise UsageError("dims, window and mirror axes do not match", found=found, expected="2 or 3 sizes, axes below that")
        self.model, self.average, self.activation = model, average, activation
        self.overlap, self.mirror_axes, self.weighted = overlap, tuple(mirror_axes), weighted
        self.channels = max(len(corpus.channels) for corpus in model.space.corpora)
        self.members = 1 + len(ensemble)
        self._memory = None if memory_gib is None else int(memory_gib * 2**30)
        devices = list(devices or jax.local_devices()[:1])
        self.batch_windows = (batch_windows or (2 if model.dims == 3 else 16)) * len(devices)
        mesh = jax.sharding.Mesh(np.array(devices), ("windows",))
        self._everywhere, self._shared = (
            jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes)) for axes in ((), ("windows",))
        )
        self._params = jax.device_put(tta.stack([model.params, *ensemble]) if ensemble else model.params, self._everywhere)
        self._step = jax.jit(self._forward)

    @property
    def compiled(self) -> int:
        """Programs compiled so far: one per number of classes asked for, whatever the volumes and corpora."""
        return self._step._cache_size()

    def settings(self) -> dict:
        """What the predictions depend on; JSON-ready."""
        names = ("overlap", "mirror_axes", "average", "activation", "weighted", "members")
        fields = {name: getattr(self, name) for name in names}
        window = {"window": list(self.model.window), "dims": self.model.dims, "plan": self.model.plan.key()}
        return fields | {"mirror_axes": list(self.mirror_axes)} | window | {"weights": self._digest}

    @cached_property
    def _digest(self) -> str:
        """Hash of all parameters, 16 hexadecimal digits."""
        digest = hashlib.sha256()
        for leaf in jax.tree.leaves(self._params):
            digest.update(np.ascontiguousarray(jax.device_get(leaf)).tobytes())
        return digest.hexdigest()[:16]

    def prepare(self, volume: Volume, corpus: str) -> Prepared:
        """Canonical axes, crop, clip, normalise, resample: the same as for training, on the host.

        Args:
          volume: with (z, y, x) or (z, y, x, m) values.
          corpus: whose spacing and channels to use.

        Raises: `DataError` for another number of channels, `LabelError` for an unknown corpus.
        """
        described = self._corpus(corpus)
        if volume.array.ndim == 3:
            volume = dataclasses.replace(volume, array=volume.array[..., None])
        check_channels(volume, described)
        plan = self.model.plan
        transform = geometry.fit(volume, plan.spacing_of(described.store), orientation=plan.orientation, crop=plan.crop)
        image = normalise.network_image(transform, volume.array, [plan.intensity_of(c) for c in described.channels], volume.path)
        missing = self.channels - image.shape[-1]
        return Prepared(np.pad(image, [(0, 0)] * 3 + [(0, missing)]) if missing else image, transform)

    def scores(self, volume: Volume, corpus: str, classes: Sequence[str] | None = None) -> tuple[Float32[np.ndarray, "z y x c"], Transform]:
        """Probabilities (z, y, x, c) on the network's grid, and the transform that leads back from it.

        Args:
          classes: channels wanted; default all of the label space.
        """
        prepared = self.prepare(volume, corpus)
        names = self._classes(classes)
        rows = self._rows(prepared, corpus, names)
        out = np.empty(rows.shape, np.float32)
        for row in range(out.shape[0]):
            out[row] = self._probabilities(rows[row : row + 1])[0]
        return out, prepared.transform

    def segment(
        self,
        volume: Volume,
        corpus: str,
        *,
        classes: Sequence[str] | None = None,
        prepared: Prepared | None = None,
        on_scores: Callable[[Transform, slice, tuple[str, ...], np.ndarray], None] | None = None,
    ) -> Segmentation:
        """The label map in the protocol of `corpus`, and the masks of all predicted classes, on the grid of `volume`.

        Args:
          classes: which to predict, e.g. all of the label space; default, and always included, those that `corpus` annotates.
          prepared: what `prepare` returned for this volume, if it was called before.
          on_scores: receives probabilities while they pass: (transform, rows of the cropped canonical grid, classes, (rows, y, x, c)).

        Returns: `Segmentation(label_map, masks)`.
        """
        prepared = prepared or self.prepare(volume, corpus)
        space, transform = self.model.space, prepared.transform
        own = [name for name, known in zip(space.classes, space.known[space.corpus_index(corpus)], strict=True) if known]
        wanted = {*own, *self._classes(classes if classes is not None else own)}
        names = tuple(name for name in space.classes if name in wanted)
        masks = Masks(names, transform)
        values = space.corpora[space.corpus_index(corpus)].values
        label_map = np.zeros(transform.stored_shape, np.min_scalar_type(max(values)))
        cropped = transform.image(label_map)  # a view: what is written here lands in stored order
        blocks = row_blocks(transform.box_shape, len(space.classes))
        groups = self._groups(prepared, names)
        for group in groups:
            scores = self._rows(prepared, corpus, group)
            for rows, block in zip(blocks, on_scan_grid(scores, transform, blocks), strict=True):
                probabilities = self._probabilities(block)
                if on_scores:
                    on_scores(transform, rows, group, probabilities)
                mask = self._decide(probabilities)
                masks.put(rows, group, mask)
                if len(groups) == 1:
                    cropped[rows] = space.export(self._widen(mask, names), corpus)
        if len(groups) > 1:
            for rows in blocks:
                cropped[rows] = space.export(self._widen(masks.block(rows), names), corpus)
        return Segmentation(label_map, masks)

    def _forward(self, params: Any, image: Array, corpus: Array, modality: Array, spacing_mm: Array, channels: Array) -> Array:
        """One batch of windows -> probabilities or logits of the chosen channels; mirrors and members averaged."""
        k = image.shape[0]
        context = {"corpus": jnp.full(k, corpus), "modality": jnp.full(k, modality), "spacing_mm": jnp.tile(spacing_mm, (k, 1))}

        def network(params: Any, image: Array) -> Array:
            logits = self._class_logits(self.model.apply(params, image, context)["logits"].astype(jnp.float32))
            if self.average == "prob":
                logits = jax.nn.sigmoid(logits) if self.activation == "sigmoid" else _softmax(logits, jnp)
            return jnp.take(logits, channels, axis=-1)

        def mirrored(params: Any, image: Array) -> Array:
            return tta.mirrored(partial(network, params), self.mirror_axes)(image)

        return tta.ensemble(mirrored, params)(image) if self.members > 1 else mirrored(params, image)

    def _class_logits(self, logits: Float[Array, "k *vol c"]) -> Float[Array, "k *vol d"]:
        """One finite logit per class of the space; for softmax relative to the background's."""
        classes = len(self.model.space.classes)
        if self.activation == "softmax" and logits.shape[-1] == classes + 1:
            logits = logits[..., 1:] - logits[..., :1]
        if logits.shape[-1] != classes:
            raise UsageError("the network's channels are not those of the label space", found=logits.shape[-1], expected=classes)
        return jnp.maximum(logits, LOWEST)

    def _rows(self, prepared: Prepared, corpus: str, names: Sequence[str]) -> WindowScores:
        """Averaged probabilities or logits on the network's grid, computed as they are asked for."""
        space, put = self.model.space, partial(jax.device_put, device=self._everywhere)
        described = self._corpus(corpus)
        index, modality = self.model.condition(corpus)
        context = [
            put(np.int32(index)),
            put(np.int32(modality)),
            put(np.asarray(self.model.plan.spacing_of(described.store), np.float32)),
            put(np.array([space.class_index(name) for name in names], np.int32)),
        ]
        return WindowScores(
            lambda batch: self._step(self._params, jax.device_put(batch, self._shared), *context),
            prepared.image, self.model.window, len(names),
            overlap=self.overlap, batch_windows=self.batch_windows, weighted=self.weighted,
        )  # fmt: skip

    def _probabilities(self, block: np.ndarray) -> np.ndarray:
        """Blended values -> probabilities (they are such already unless logits were averaged)."""
        if self.average == "prob":
            return block
        if self.activation == "softmax":
            return _softmax(block, np)
        return 1 / (1 + np.exp(-np.clip(block, -80, 80)))

    def _decide(self, probabilities: np.ndarray) -> np.ndarray:
        """(rows, y, x, c) probabilities -> bool."""
        if self.activation == "sigmoid":
            return probabilities > 0.5
        best = probabilities.max(-1)
        foreground = best > 1 - probabilities.sum(-1)  # the rest is the background's
        return (np.arange(probabilities.shape[-1]) == probabilities.argmax(-1)[..., None]) & foreground[..., None]

    def _widen(self, mask: np.ndarray, names: Sequence[str]) -> np.ndarray:
        """Channels of some classes -> channels of all classes of the space."""
        if tuple(names) == self.model.space.classes:
            return mask
        out = np.zeros((*mask.shape[:-1], len(self.model.space.classes)), bool)
        out[..., [self.model.space.class_index(name) for name in names]] = mask
        return out

    def _groups(self, prepared: Prepared, names: tuple[str, ...]) -> list[tuple[str, ...]]:
        """Classes to predict together so that blending fits into memory; a softmax needs all of them at once."""
        if self.activation == "softmax":
            return [names]
        depth = self.model.window[0] if self.model.dims == 3 else 1
        per_class = 8 * min(depth, prepared.image.shape[0]) * math.prod(prepared.image.shape[1:3])  # bytes: blended rows, blocks, batches
        budget = self._memory if self._memory is not None else free_memory() // 2
        passes = min(len(names), math.ceil(len(names) * per_class / max(budget, 1)))
        size = math.ceil(len(names) / passes)
        return [names[i : i + size] for i in range(0, len(names), size)]

    def _corpus(self, name: str) -> Corpus:
        return self.model.space.corpora[self.model.space.corpus_index(name)]

    def _classes(self, classes: Sequence[str] | None) -> tuple[str, ...]:
        names = self.model.space.classes if classes is None else tuple(classes)
        for name in names:
            self.model.space.class_index(name)
        return names


def _softmax(logits: Any, numpy: Any) -> Any:
    """Class probabilities of a softmax with an implicit background logit of 0."""
    highest = numpy.maximum(logits.max(-1, keepdims=True), 0)
    exponentials = numpy.exp(logits - highest)
    return exponentials / (exponentials.sum(-1, keepdims=True) + numpy.exp(-highest))
