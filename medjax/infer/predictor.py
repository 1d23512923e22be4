"""A trained network as a function of scans: volume in, scores or masks on the scan's own grid out.

In: a `Model` (network function, parameters, plan, label space, window) and volumes as read from
disk. Out: scores on the network's grid, or the decided label map and class masks on the stored
grid. One `Predictor` compiles once and serves volumes of any size and all corpora.

Memory stays bounded: windows are blended row by row, rows are resampled to the scan's grid as soon
as they are final, thresholded and packed. When even that would not fit, the volume is worked
through in strips (`infer/memory.py`); the result is the same to the bit.
"""

import dataclasses
import hashlib
import warnings
from collections.abc import Sequence
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32

from medjax.corpora.cases import check_channels, free_memory
from medjax.errors import PredictError, UsageError, did_you_mean
from medjax.infer import memory, segment, tta
from medjax.infer.model import Model, Prepared, Segmentation
from medjax.infer.postprocess import Rules
from medjax.infer.windows import DEPTH, WindowScores
from medjax.labels import Corpus
from medjax.prepare import geometry, normalise
from medjax.prepare.geometry import Transform
from medjax.scans.nifti import DataWarning, Volume

__all__ = ["Model", "Predictor", "Prepared", "Segmentation"]

ACTIVATIONS = ("sigmoid", "softmax")
AVERAGES = ("prob", "logit")
# stands in for the -inf of masked channels: sigmoid and exp of it are exactly 0, and it can be
# averaged
LOWEST = -1e4


class Predictor:
    """Runs a model over volumes.

    Args:
      model: the network, see `Model`.
      overlap: share of a window that the next one covers at least.
      mirror_axes: spatial axes to mirror; all their combinations are averaged (three axes: eight
        times the work).
      average: what is averaged over mirrors, members and windows: "prob" (MultiTalent, nnU-Net v1)
        or "logit" (nnU-Net v2, which turns logits into probabilities only on the scan's grid).
      batch_windows: windows per step and device; default 2, or 16 slices.
      activation: "sigmoid" (a class is where its probability is above 1/2), or "softmax" with the
        background as channel 0, or as an implicit logit of 0 if there are only the classes'
        channels (a voxel goes to the largest).
      ensemble: parameters of further members of the same architecture.
      others: predictors of further members of any architecture, window and spacing, over the same
        classes and corpora; each counts as many members as it has.
      weighted: Gaussian importance of a window's voxels.
      devices: shares the windows among these; default the first one.
      memory_gib: what the prediction of one case may use; default half of the free memory.
      uncertainty: also carry how far mirrors and members disagree (one more channel).
      postprocess: what is done to the masks afterwards, see `postprocess.Rules`; by default
        nothing.

    Attributes:
      name: of the model, for messages. warn: receives what a user should know; default Python's
        warnings.
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
        others: Sequence["Predictor"] = (),
        weighted: bool = True,
        devices: Sequence[Any] | None = None,
        memory_gib: float | None = None,
        uncertainty: bool = False,
        postprocess: Rules | None = None,
    ):
        for word, known, what in (
            (average, AVERAGES, "average"),
            (activation, ACTIVATIONS, "activation"),
        ):
            if word not in known:
                raise UsageError(f"unknown {what} {word!r}", fix=did_you_mean(word, known))
        if (
            model.dims not in (2, 3)
            or len(model.window) != model.dims
            or any(not 0 <= a < model.dims for a in mirror_axes)
        ):
            found = (
                f"dims {model.dims}, window {tuple(model.window)}, mirror axes {tuple(mirror_axes)}"
            )
            raise UsageError(
                "dims, window and mirror axes do not match",
                found=found,
                expected="2 or 3 sizes, axes below that",
            )
        self.model, self.average, self.activation, self.uncertainty = (
            model,
            average,
            activation,
            uncertainty,
        )
        self.postprocess = postprocess.checked(model.space) if postprocess else None
        self.overlap, self.mirror_axes, self.weighted = overlap, tuple(mirror_axes), weighted
        self.channels = max(len(corpus.channels) for corpus in model.space.corpora)
        self.members = 1 + len(ensemble)
        self.limit = None if memory_gib is None else int(memory_gib * 2**30)
        self._devices = list(devices or jax.local_devices()[:1])
        self.batch_windows = (batch_windows or (2 if model.dims == 3 else 16)) * len(self._devices)
        self.parts = (self, *others)
        self._check_parts()
        mesh = jax.sharding.Mesh(np.array(self._devices), ("windows",))
        self._everywhere, self._shared = (
            jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))
            for axes in ((), ("windows",))
        )
        self._params = jax.device_put(
            tta.stack([model.params, *ensemble]) if ensemble else model.params, self._everywhere
        )
        self.name, self.warn = "", _warned
        self._programs: dict[int, Any] = {}  # number of classes -> compiled step

    @property
    def compiled(self) -> int:
        """Programs compiled so far: one per number of classes asked for, whatever the volumes and
        corpora.
        """
        return len(self._programs)

    @property
    def budget(self) -> int:
        """Bytes that the prediction of a case may use now."""
        return self.limit if self.limit is not None else free_memory() // 2

    @property
    def device(self) -> Any:
        """The first of the devices that it runs on."""
        return self._devices[0]

    def settings(self) -> dict:
        """What the predictions depend on; JSON-ready."""
        names = (
            "overlap",
            "mirror_axes",
            "average",
            "activation",
            "weighted",
            "members",
            "uncertainty",
        )
        fields = {name: getattr(self, name) for name in names}
        window = {
            "window": list(self.model.window),
            "dims": self.model.dims,
            "plan": self.model.plan.key(),
        }
        fields |= {"mirror_axes": list(self.mirror_axes)} | window | {"weights": self._digest}
        fields |= {"postprocess": self.postprocess.to_json() if self.postprocess else {}}
        return fields | (
            {"others": [other.settings() for other in self.parts[1:]]}
            if len(self.parts) > 1
            else {}
        )

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
        spacing = plan.spacing_of(described.store)
        transform = geometry.fit(
            volume, spacing, orientation=plan.orientation, crop=plan.crop, transpose=plan.transpose
        )
        image = normalise.network_image(
            transform, volume.array, [plan.intensity_of(c) for c in described.channels], volume.path
        )
        missing = self.channels - image.shape[-1]
        return Prepared(
            np.pad(image, [(0, 0)] * 3 + [(0, missing)]) if missing else image, transform
        )

    def prepare_all(self, volume: Volume, corpus: str) -> tuple[Prepared, ...]:
        """`prepare` for this predictor and each of the `others`; those that share a plan share the
        arrays.
        """
        done: dict[tuple, Prepared] = {}
        for part in self.parts:
            key = (part.model.plan.key(), part.channels)
            if key not in done:
                done[key] = part.prepare(volume, corpus)
        return tuple(done[part.model.plan.key(), part.channels] for part in self.parts)

    def scores(
        self, volume: Volume, corpus: str, classes: Sequence[str] | None = None
    ) -> tuple[Float32[np.ndarray, "z y x c"], Transform]:
        """Probabilities (z, y, x, c) of this network on its grid, and the transform that leads back
        from it.

        Args:
          classes: channels wanted; default all of the label space.
        """
        prepared = self.prepare(volume, corpus)
        names = self.class_names(classes)
        asked = self.asked(names)
        chosen = [asked.index(name) for name in names]
        rows = self.rows(prepared, corpus, asked)
        out = np.empty((*rows.shape[:3], len(names)), np.float32)
        for row in range(out.shape[0]):
            out[row] = self.probabilities(rows[row : row + 1][..., : len(asked)])[0][..., chosen]
        return out, prepared.transform

    def segment(
        self,
        volume: Volume,
        corpus: str,
        *,
        classes: Sequence[str] | None = None,
        prepared: Sequence[Prepared] | None = None,
        on_scores: segment.OnScores | None = None,
    ) -> Segmentation:
        """The label map in the protocol of `corpus`, and the masks of all predicted classes, on the
        grid of `volume`.

        Args:
          classes: which to predict and paint, e.g. all of the label space; default those that
            `corpus` annotates.
          prepared: what `prepare_all` returned for this volume, if it was called before.
          on_scores: receives probabilities while they pass: (transform, region of the cropped
            canonical grid, classes, (rows, y, x, c)).

        Returns: `Segmentation`; its `maps` hold the uncertainties if they were asked for.
        Raises: `PredictError` if the case cannot be done in the memory allowed, the network's
          scores are not finite, or the device is out of memory also with half the windows per step.
        """
        prepared = prepared or self.prepare_all(volume, corpus)
        for attempt in (1, 2):
            try:
                return segment.segment(self.parts, prepared, corpus, classes, on_scores, self.limit)
            except PredictError as error:
                raise self.located(error, volume.path) from error
            except Exception as error:
                if not memory.is_exhausted(error):
                    raise
                batch = self.batch_windows
            if attempt == 2 or not self.halve():
                break
            self.warn(
                f"{volume.path}: the device is out of memory with --batch-windows {batch}; trying "
                f"{self.batch_windows}"
            )
        raise PredictError(
            "the device is out of memory",
            path=volume.path,
            found=f"{batch} windows of {self.model.window} at a time",
            fix="give a smaller --batch-windows or --window, or another --device (e.g. cpu)",
        )

    def located(self, error: PredictError, path: str) -> PredictError:
        """The error with the scan and the model in it, where it names none."""
        if error.path is not None:
            return error
        found = (
            "; ".join(
                str(part) for part in (error.found, self.name and f"model {self.name}") if part
            )
            or None
        )
        return PredictError(
            error.message, path=path, found=found, expected=error.expected, fix=error.fix
        )

    def halve(self) -> bool:
        """Halves the windows per step, of the other members as well; whether that was possible.

        Programs are compiled anew.
        """
        changed = False
        for part in self.parts:
            each = part.batch_windows // len(part._devices)
            if each > 1:
                part.batch_windows, changed = each // 2 * len(part._devices), True
                part._programs.clear()
        return changed

    def forecast(
        self, geometry_only: Volume, corpus: str, classes: Sequence[str] | None = None
    ) -> memory.Forecast:
        """What a case will take, from its header alone (`nifti.read_geometry`); cropping can only
        make it less.
        """
        return segment.forecast(self.parts, geometry_only, corpus, classes, self.limit)

    def class_names(self, classes: Sequence[str] | None) -> tuple[str, ...]:
        """The classes as given, or all; `LabelError` for an unknown one."""
        names = self.model.space.classes if classes is None else tuple(classes)
        for name in names:
            self.model.space.class_index(name)
        return names

    def asked(self, names: Sequence[str]) -> tuple[str, ...]:
        """The classes whose channels are needed to decide on some: these, or all where they compete
        in one softmax.
        """
        return self.model.space.classes if self.activation == "softmax" else tuple(names)

    def rows(
        self,
        prepared: Prepared,
        corpus: str,
        names: Sequence[str],
        columns: slice = slice(None),
        depth: int = DEPTH,
    ) -> WindowScores:
        """Averaged probabilities or logits on the network's grid, computed as they are asked for;
        with `uncertainty`, one channel more.

        Args:
          columns, depth: see `WindowScores`.
        """
        space, put = self.model.space, partial(jax.device_put, device=self._everywhere)
        described = self._corpus(corpus)
        index, modality = self.model.condition(corpus)
        context = [
            put(np.int32(index)),
            put(np.int32(modality)),
            put(np.asarray(self.model.plan.spacing_of(described.store), np.float32)),
            put(np.array([space.class_index(name) for name in names], np.int32)),
        ]
        step = self.program(len(names))
        return WindowScores(
            lambda batch: step(self._params, jax.device_put(batch, self._shared), *context),
            prepared.image,
            self.model.window,
            len(names) + self.uncertainty,
            columns=columns,
            depth=depth,
            overlap=self.overlap,
            batch_windows=self.batch_windows,
            weighted=self.weighted,
        )

    def program(self, classes: int) -> Any:
        """The compiled step for a number of classes."""
        if classes not in self._programs:
            number = partial(jax.ShapeDtypeStruct, sharding=self._everywhere)
            window = (self.batch_windows, *self.model.window, self.channels)
            arguments = [
                jax.ShapeDtypeStruct(window, jnp.float32, sharding=self._shared),
                number((), jnp.int32),
                number((), jnp.int32),
                number((3,), jnp.float32),
                number((classes,), jnp.int32),
            ]
            self._programs[classes] = (
                jax.jit(self._forward).lower(self._params, *arguments).compile()
            )
        return self._programs[classes]

    def _forward(
        self,
        params: Any,
        image: Array,
        corpus: Array,
        modality: Array,
        spacing_mm: Array,
        channels: Array,
    ) -> Array:
        """One batch of windows -> probabilities or logits of the chosen channels; mirrors and
        members averaged.
        """
        k = image.shape[0]
        context = {
            "corpus": jnp.full(k, corpus),
            "modality": jnp.full(k, modality),
            "spacing_mm": jnp.tile(spacing_mm, (k, 1)),
        }

        def network(params: Any, image: Array) -> dict[str, Array]:
            logits = self._class_logits(
                self.model.apply(params, image, context)["logits"].astype(jnp.float32)
            )
            wanted = logits
            if self.average == "prob" or self.uncertainty:
                probabilities = (
                    jax.nn.sigmoid(logits) if self.activation == "sigmoid" else softmax(logits, jnp)
                )
                wanted = probabilities if self.average == "prob" else logits
            outputs = {"value": jnp.take(wanted, channels, axis=-1)}
            if self.uncertainty:
                chosen = jnp.take(probabilities, channels, axis=-1)
                outputs |= {"mean": chosen, "square": jnp.square(chosen)}
            return outputs

        def mirrored(params: Any, image: Array) -> Any:
            return tta.mirrored(partial(network, params), self.mirror_axes)(image)

        found = (
            tta.ensemble(mirrored, params)(image) if self.members > 1 else mirrored(params, image)
        )
        if not self.uncertainty:
            return found["value"]
        variance = jnp.maximum(found["square"] - jnp.square(found["mean"]), 0).max(
            -1, keepdims=True
        )
        return jnp.concatenate([found["value"], jnp.sqrt(variance)], -1)

    def _class_logits(self, logits: Float[Array, "k *vol c"]) -> Float[Array, "k *vol d"]:
        """One logit per class of the space, for softmax relative to the background's; -inf (a
        masked class) becomes finite, +inf NaN.
        """
        logits = jnp.where(
            logits < jnp.inf, logits, jnp.nan
        )  # a probability of 1 would hide an overflow
        classes = len(self.model.space.classes)
        if self.activation == "softmax" and logits.shape[-1] == classes + 1:
            logits = logits[..., 1:] - logits[..., :1]
        if logits.shape[-1] != classes:
            raise UsageError(
                "the network's channels are not those of the label space",
                found=logits.shape[-1],
                expected=classes,
            )
        return jnp.maximum(logits, LOWEST)

    def probabilities(self, block: np.ndarray) -> np.ndarray:
        """Blended values -> probabilities (they are such already unless logits were averaged)."""
        if self.average == "prob":
            return block
        if self.activation == "softmax":
            return softmax(block, np)
        return 1 / (1 + np.exp(-np.clip(block, -80, 80)))

    def candidates(self, block: np.ndarray) -> np.ndarray:
        """Channels of blended values (rows, y, x, c) that may be decided for somewhere in the
        block, resampled or not.

        Interpolation stays below the largest sample, so a class that nowhere comes near what it
        needs cannot get it in between: a probability of 1/2 (sigmoid) or of a share of its rivals
        (softmax), a logit of 0.
        """
        least = (
            0.0
            if self.average == "logit"
            else 0.5
            if self.activation == "sigmoid"
            else 1 / (block.shape[-1] + 1)
        )
        return np.flatnonzero(block.reshape(-1, block.shape[-1]).max(0) > least - 1e-4)

    def narrowed(self, block: np.ndarray, kept: np.ndarray) -> np.ndarray:
        """The `kept` channels, and what else `decide` needs of the others: their sum, where
        probabilities compete.
        """
        if self.activation == "softmax" and self.average == "prob":
            return np.concatenate([block[..., kept], block.sum(-1, keepdims=True)], -1)
        return block[..., kept]

    def decide(self, block: np.ndarray, total: np.ndarray | None = None) -> np.ndarray:
        """(rows, y, x, c) blended values -> bool. A softmax is decided over all classes, background
        included.

        Args:
          total: (rows, y, x) sum over all classes, where `block` holds only some; see `narrowed`.
        """
        if self.activation == "sigmoid":
            return block > (0.5 if self.average == "prob" else 0.0)
        if block.shape[-1] == 0:
            return np.zeros(block.shape, bool)
        background = (
            1 - (block.sum(-1) if total is None else total) if self.average == "prob" else 0.0
        )
        winner = block.argmax(-1)
        foreground = np.take_along_axis(block, winner[..., None], -1)[..., 0] > background
        out = np.zeros(block.shape, bool)
        np.put_along_axis(out, winner[..., None], foreground[..., None], -1)
        return out

    def _corpus(self, name: str) -> Corpus:
        return self.model.space.corpora[self.model.space.corpus_index(name)]

    def _check_parts(self) -> None:
        """Members are averaged on the scan's grid, so they must mean the same by it and by their
        channels.
        """
        for other in self.parts[1:]:
            mine, theirs = (
                (
                    p.model.space,
                    p.model.plan.orientation,
                    p.model.plan.crop,
                    p.average,
                    p.activation,
                )
                for p in (self, other)
            )
            words = ("label space", "orientation", "crop", "average", "activation")
            differing = [word for word, a, b in zip(words, mine, theirs, strict=True) if a != b]
            if differing:
                raise UsageError(
                    "the members of an ensemble do not fit together",
                    found=f"another {', '.join(differing)}",
                    fix="give runs that were trained on the same corpora and classes",
                )


def _warned(text: str) -> None:
    warnings.warn(text, DataWarning, stacklevel=3)


def softmax(logits: Any, numpy: Any) -> Any:
    """Class probabilities of a softmax with an implicit background logit of 0."""
    highest = numpy.maximum(logits.max(-1, keepdims=True), 0)
    exponentials = numpy.exp(logits - highest)
    return exponentials / (exponentials.sum(-1, keepdims=True) + numpy.exp(-highest))
