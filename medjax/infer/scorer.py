"""One network over volumes: scores on the network's own grid, computed as they are asked for.

In: a `Model` and volumes as read from disk. Out: prepared images, and rows of averaged scores. A
`Scorer` owns the parameters on the devices and compiles one program per number of classes; it knows
nothing of the scan's grid, which is the matter of `infer/segmenter.py`.
"""

import contextlib
import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32

from medjax import decision, files
from medjax.corpora.cases import check_channels
from medjax.errors import UsageError, did_you_mean
from medjax.infer import entries, memory
from medjax.infer.conflicts import ORDERED
from medjax.infer.device import step, tta
from medjax.infer.device.ring import DeviceScores
from medjax.infer.model import PRECISIONS, Model, Prepared
from medjax.infer.windows import DEPTH, WindowScores
from medjax.labels import Corpus
from medjax.models import context
from medjax.prepare import normalise
from medjax.prepare.geometry import Transform
from medjax.prompts.request import Request
from medjax.scans.nifti import Volume

BACKENDS = ("auto", "host", "device")


def default_devices() -> list:
    """All devices of this process, but one CPU: further ones would share its cores."""
    local = jax.local_devices()
    return local[:1] if local[0].platform == "cpu" else local


class Scorer:
    """A network with its parameters on the devices.

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
      weighted: Gaussian importance of a window's voxels.
      devices: shares the windows among these; default all of this process, of a CPU the first.
      uncertainty: also carry how far mirrors and members disagree (one more channel).
      precision: of the matrix multiplications on the device: "default", "high" or "highest" (see
        `jax.default_matmul_precision`); "" leaves it to the backend. An exported function keeps
        the precision it was exported with.
      backend: where windows are blended: "device" (`infer.device.ring`), "host", or "auto": on the
        device unless that is a CPU.
      half: blended scores are float16 there, which halves their memory.
      weights: what identifies the parameters of each member, e.g. the hash of their file; without
        it, their values are hashed when `settings` is called for the first time.

    Attributes:
      decision: what its scores mean. conflicts, temperatures: how the label map is painted, see
        `Segmenter`.
      members: how many parameter trees there are. channels: of the image. batch_windows: windows
        per step, of all devices.
    Raises: `UsageError` for unknown words, and sizes or axes that do not match.
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
        uncertainty: bool = False,
        precision: str = "",
        weights: Sequence[str] = (),
        backend: str = "auto",
        half: bool = False,
    ):
        self.decision = decision.make(activation, average)
        self.conflicts, self.temperatures = ORDERED, {}
        if precision not in PRECISIONS:
            raise UsageError(
                f"unknown precision {precision!r}", fix=did_you_mean(precision, PRECISIONS[1:])
            )
        if backend not in BACKENDS:
            raise UsageError(f"unknown backend {backend!r}", fix=did_you_mean(backend, BACKENDS))
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
        entries.check(model.reads, model.dims)
        self.model, self.uncertainty, self.precision = model, uncertainty, precision
        self.overlap, self.mirror_axes, self.weighted = overlap, tuple(mirror_axes), weighted
        self.channels = max(len(corpus.channels) for corpus in model.space.corpora)
        self.members = 1 + len(ensemble)
        self._devices = list(devices or default_devices())
        self.backend, self.half = backend, half
        if backend == "auto":
            self.backend = "host" if self.device.platform == "cpu" else "device"
        self.batch_windows = (batch_windows or (2 if model.dims == 3 else 16)) * len(self._devices)
        mesh = jax.sharding.Mesh(np.array(self._devices), ("windows",))
        self._everywhere, self._shared = (
            jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))
            for axes in ((), ("windows",))
        )
        self._params = jax.device_put(
            tta.stack([model.params, *ensemble]) if ensemble else model.params, self._everywhere
        )
        self._programs: dict[int, Any] = {}  # number of classes -> compiled step
        self._moving = context.moving(model.reads)
        self._weights = tuple(weights)

    @property
    def compiled(self) -> int:
        """Programs compiled so far: one per number of classes asked for, whatever the volumes and
        corpora.
        """
        return len(self._programs)

    def renew(self, params: Any) -> None:
        """Takes other parameters of the same shapes; what is compiled stays.

        Raises: `UsageError` for an ensemble, whose members have parameters of their own.
        """
        if self.members > 1:
            raise UsageError("an ensemble does not take the parameters of one network")
        self._params = jax.device_put(params, self._everywhere)
        self._weights = ()
        for name in ("_identity", "_earlier_identity"):
            self.__dict__.pop(name, None)

    @property
    def params(self) -> Any:
        """The parameters on the devices."""
        return self._params

    @property
    def device(self) -> Any:
        """The first of the devices that it runs on."""
        return self._devices[0]

    def settings(self, *, earlier: bool = False) -> dict:
        """What the scores depend on; JSON-ready.

        Args:
          earlier: as version 0.1 recorded it. Reads all parameters.
        """
        return {
            "overlap": self.overlap,
            "mirror_axes": list(self.mirror_axes),
            "average": self.decision.average,
            "activation": self.decision.name,
            "weighted": self.weighted,
            "members": self.members,
            "uncertainty": self.uncertainty,
            **({"half": True} if self.half and self.backend == "device" else {}),
            "window": list(self.model.window),
            "dims": self.model.dims,
            "plan": self.model.plan.key(),
            "weights": self._earlier_identity if earlier else self._identity,
        } | ({"precision": self.precision} if self.precision else {})

    @cached_property
    def _identity(self) -> str:
        """What identifies the parameters of all members."""
        if len(self._weights) != self.members or not all(self._weights):
            leaves = map(jax.device_get, jax.tree.leaves(self._params))
            found = [files.checksum(np.ascontiguousarray(leaf)) for leaf in leaves]
            return files.checksum(" ".join(found).encode())
        if self.members == 1:
            return self._weights[0]
        return files.checksum(" ".join(self._weights).encode())

    @cached_property
    def _earlier_identity(self) -> str:
        """SHA-256 of all values, 16 hexadecimal digits."""
        digest = hashlib.sha256()
        for leaf in jax.tree.leaves(self._params):
            digest.update(np.ascontiguousarray(jax.device_get(leaf)).tobytes())
        return digest.hexdigest()[:16]

    def prepare(self, volume: Volume, request: Request) -> Prepared:
        """Canonical axes, crop, clip, normalise, resample: the same as for training, on the host.

        Args:
          volume: with (z, y, x) or (z, y, x, m) values.
          request: names the corpus whose spacing and channels to use.

        Raises: `DataError` for another number of channels, `LabelError` for an unknown corpus.
        """
        described = self._corpus(request.corpus)
        if volume.array.ndim == 3:
            volume = dataclasses.replace(volume, array=volume.array[..., None])
        check_channels(volume, described)
        plan = self.model.plan
        transform = plan.fit(volume, described.store, described.channels)
        image = normalise.network_image(
            transform, volume.array, [plan.intensity_of(c) for c in described.channels], volume.path
        )
        missing = self.channels - image.shape[-1]
        return Prepared(
            np.pad(image, [(0, 0)] * 3 + [(0, missing)]) if missing else image, transform
        )

    def asked(self, names: Sequence[str]) -> tuple[str, ...]:
        """The classes whose channels are needed to decide on some: these, or all where they compete
        in one softmax.
        """
        return self.decision.asked(names, self.model.space.classes)

    def rows(
        self,
        prepared: Prepared,
        request: Request,
        names: Sequence[str],
        columns: slice = slice(None),
        depth: int = DEPTH,
        rows: int = 1,
    ) -> WindowScores:
        """Averaged probabilities or logits on the network's grid, computed as they are asked for;
        with `uncertainty`, one channel more.

        Args:
          names: the classes, see `asked`. columns, depth: see `WindowScores`.
          rows: how many are asked for at once at most.

        Raises: `UsageError`, `ModelError` or `PredictError` for inputs of the network that the
          request gives wrongly or not at all.
        """
        model, everywhere = self.model, partial(jax.device_put, device=self._everywhere)
        shown = np.asarray(prepared.transform.target_spacing_mm, np.float32)  # as in training
        facts = model.facts(request) | {"spacing_mm": shown}
        case = context.of_request(model.reads, facts)
        fixed = {n: everywhere(value) for n, value in case.items() if n not in self._moving}
        channels = everywhere(np.array([model.space.class_index(n) for n in names], np.int32))
        program = self.program(len(names))

        def function(batch: np.ndarray, *moved: Mapping[str, np.ndarray]) -> Any:
            image, *further = (jax.device_put(x, self._shared) for x in (batch, *moved))
            return program(self._params, image, fixed | further[0] if moved else fixed, channels)

        shape = prepared.image.shape[:3]
        beside = entries.Moving(model.reads, case, shape, model.window) if self._moving else None
        made, own = WindowScores, {}
        if self.backend == "device":
            made, own = DeviceScores, {"rows": rows, "device": self.device, "half": self.half}
        return made(
            function,
            prepared.image,
            model.window,
            len(names) + self.uncertainty,
            columns=columns,
            depth=depth,
            overlap=self.overlap,
            batch_windows=self.batch_windows,
            weighted=self.weighted,
            beside=beside,
            **own,
        )

    def scores(
        self, volume: Volume, request: Request
    ) -> tuple[Float32[np.ndarray, "z y x c"], Transform]:
        """Probabilities (z, y, x, c) of this network on its grid, and the transform that leads back
        from it.

        Args:
          request: c are its classes in the order given; without any, all of the label space.
        """
        prepared, space = self.prepare(volume, request), self.model.space
        names = space.classes if request.classes is None else request.classes
        for name in names:
            space.class_index(name)
        asked = self.asked(names)
        chosen = [asked.index(name) for name in names]
        rows = self.rows(prepared, request, asked)
        out = np.empty((*rows.shape[:3], len(names)), np.float32)
        for row in range(out.shape[0]):
            values = rows[row : row + 1][..., : len(asked)]
            out[row] = self.decision.probabilities(values)[0][..., chosen]
        return out, prepared.transform

    def program(self, classes: int) -> Any:
        """The compiled step for a number of classes, see `step.make`."""
        if classes not in self._programs:
            k, window, reads = self.batch_windows, self.model.window, self.model.reads
            one = {
                name: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=self._shared)
                if name in self._moving
                else jax.ShapeDtypeStruct(s.shape[1:], s.dtype, sharding=self._everywhere)
                for name, s in context.abstract(reads, k, window).items()
            }
            arguments = [
                jax.ShapeDtypeStruct(
                    (k, *window, self.channels), jnp.float32, sharding=self._shared
                ),
                one,
                jax.ShapeDtypeStruct((classes,), jnp.int32, sharding=self._everywhere),
            ]
            function = step.make(
                self.model,
                self.decision,
                mirror_axes=self.mirror_axes,
                members=self.members,
                uncertainty=self.uncertainty,
            )
            with (
                jax.default_matmul_precision(self.precision)
                if self.precision
                else contextlib.nullcontext()
            ):
                lowered = jax.jit(function).lower(self._params, *arguments)
            self._programs[classes] = lowered.compile()
        return self._programs[classes]

    def footprint(self, shape: tuple[int, int, int], classes: int) -> memory.Footprint:
        """What it takes on a grid (z, y, x), for a number of classes."""
        window, temporary = self.model.window, 0
        if self.device.platform == "cpu":
            facts = self.program(classes).memory_analysis()
            temporary = int(facts.temp_size_in_bytes) if facts is not None else 0
        return memory.Footprint(
            shape,
            (1, *window) if len(window) == 2 else tuple(window),
            self.channels + entries.floats(self.model.reads),
            classes + self.uncertainty,
            self.batch_windows,
            self.overlap,
            temporary,
            self.backend == "host" or self.device.platform == "cpu",
        )

    def blend_on_host(self) -> bool:
        """Blends on the host from now on; whether it did not before."""
        changes, self.backend = self.backend == "device", "host"
        return changes

    def halve(self) -> bool:
        """Halves the windows per step, so that its programs are compiled again; whether that was
        possible.
        """
        each = self.batch_windows // len(self._devices)
        if each > 1:
            self.batch_windows = each // 2 * len(self._devices)
            self._programs.clear()
        return each > 1

    def _corpus(self, name: str) -> Corpus:
        return self.model.space.corpora[self.model.space.corpus_index(name)]
