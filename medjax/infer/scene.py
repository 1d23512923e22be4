"""A scan that is asked again and again: encoded once, decoded for every prompt.

In: a promptable `Model` and prepared volumes. Out: logits of objects on the network's grid. Exactly
two programs are compiled, `encode` and `decode`, whatever the scans, objects and kinds of prompts:
the overview of a scan and its windows have the same shape, and prompts have fixed arrays.
"""

import collections
import contextlib
import copy
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from medjax.errors import PredictError, UsageError
from medjax.infer import zoom
from medjax.infer.model import Model, Prepared
from medjax.infer.scorer import Scorer
from medjax.infer.windows import gaussian
from medjax.infer.zoom import Asked, Region, Settings
from medjax.models import context
from medjax.prepare.frame import Frame
from medjax.prompts import types
from medjax.prompts.request import Request

KEPT_BYTES = 1 << 30  # embeddings of windows that a scene keeps


@dataclasses.dataclass
class Scene:
    """A scan ready to be asked.

    Attributes:
      prepared: on the network's grid. frame: how it lies in the frame.
      request: names the corpus. overview: embedding of the whole scan.
      windows: first voxel -> embedding, the last used ones last.
    """

    prepared: Prepared
    frame: Frame
    request: Request
    overview: Any
    windows: "collections.OrderedDict[tuple, Any]" = dataclasses.field(
        default_factory=collections.OrderedDict
    )


@dataclasses.dataclass(frozen=True)
class Found:
    """What was found of an object.

    Attributes:
      logits: (z, y, x) float32 on the network's grid. low: those of the overview at the decoder's
        resolution, for the next round, if the network reads them.
      lows: the same of every window, by its first voxel. area: that was looked at in windows.
    """

    logits: np.ndarray
    low: np.ndarray | None = None
    lows: Mapping[tuple, np.ndarray] = dataclasses.field(default_factory=dict)
    area: Region | None = None

    @property
    def windows(self) -> int:
        """How many windows were looked at."""
        return 0 if self.area is None else len(self.area.places)


class Prompter:
    """The two programs of a promptable network.

    Args:
      model: with the functions "encode" and "decode" and a fixed window. scorer: holds its
        parameters. settings: how objects are found.

    Raises: `UsageError` for a network that is not promptable.
    """

    def __init__(self, model: Model, scorer: Scorer, settings: Settings):
        self.leaves = types.of_spec(model.reads)
        if not self.leaves or not {"encode", "decode"} <= set(model.methods):
            raise UsageError(
                "the network reads no prompts", fix="leave out prompts, or use a promptable model"
            )
        self.model, self.settings, self._scorer = model, settings, scorer
        self.window: tuple[int, int, int] = tuple(model.window)
        self.queries = self.leaves[types.HAS].shape[0]
        self._facts = {n: e for n, e in model.reads.items() if n not in self.leaves}
        self._programs: dict[str, Any] = {}

    @property
    def compiled(self) -> int:
        """Programs compiled so far: never more than two."""
        return len(self._programs)

    def varied(self, *, zoom: str = "", roi: str = "") -> "Prompter":
        """The same two programs with other settings of where objects are looked at; scenes of the
        one can be asked by the other. Empty words: as now.
        """
        other = copy.copy(self)
        given = {"zoom": zoom, "roi": roi}
        changes = {name: word for name, word in given.items() if word}
        other.settings = dataclasses.replace(self.settings, **changes)
        return other

    def compile(self) -> None:
        """Compiles both programs."""
        facts = context.abstract(self._facts, 1, self.window)
        image = jax.ShapeDtypeStruct((1, *self.window, self._scorer.channels), jnp.float32)
        if "encode" not in self._programs:
            self._programs["encode"] = self._compiled("encode", image, facts)
        if "decode" not in self._programs:
            embedding = jax.eval_shape(
                self.model.methods["encode"], self._scorer.params, image, facts
            )
            everything = context.abstract(self.model.reads, 1, self.window)
            self._programs["decode"] = self._compiled("decode", embedding, everything)

    def _compiled(self, name: str, array: Any, entries: Any) -> Any:
        function = self.model.methods[name]

        def run(params: Any, array: Any, entries: Any) -> Any:
            found = function(params, array, entries)
            if name == "encode":
                return found
            kept = ("logits", "low") if types.MASK in self.leaves else ("logits",)
            return {k: found[k].astype(jnp.float32) for k in kept}

        word = self._scorer.precision
        with jax.default_matmul_precision(word) if word else contextlib.nullcontext():
            return jax.jit(run).lower(self._scorer.params, array, entries).compile()

    def open(self, prepared: Prepared, request: Request) -> Scene:
        """A scan with its embedding."""
        shape = tuple(int(n) for n in prepared.image.shape[:3])
        lies = Frame(shape, self.window, self.settings.pad)
        spacing = np.asarray(prepared.transform.target_spacing_mm) / lies.scale
        image = np.empty((*self.window, prepared.image.shape[-1]), np.float32)
        masks = self._mask_channels(request)
        for c in range(image.shape[-1]):
            way = "nearest" if c in masks else self.settings.overview
            image[..., c] = lies.image(prepared.image[..., c], way)
        scene = Scene(prepared, lies, request, None)
        scene.overview = self._encode(scene, image, spacing)
        return scene

    def find(
        self,
        scene: Scene,
        asked: Sequence[Asked],
        earlier: Sequence[Found | None] = (),
    ) -> list[Found]:
        """The objects, on the network's grid.

        Args:
          asked: on the network's grid.
          earlier: of each object, what was found in the round before. Its logits guide the network
            if it reads them; windows stay where they are as long as they cover what is found.

        Raises: `UsageError` for prompts that the network or the settings do not allow;
          `PredictError` for logits that are not finite, and for too many windows.
        """
        found = []
        for first in range(0, len(asked), self.queries):
            part = slice(first, first + self.queries)
            before = earlier[part] if earlier else [None] * len(asked[part])
            found += self._find(scene, asked[part], before)
        return found

    def _find(
        self, scene: Scene, asked: Sequence[Asked], earlier: Sequence[Found | None]
    ) -> list[Found]:
        lies, settings = scene.frame, self.settings
        spacing = np.asarray(scene.prepared.transform.target_spacing_mm)
        for one in asked:
            if one.box is not None and len(one.points) and not settings.both:
                raise UsageError(
                    "a box and points of one object are not used together by this model",
                    fix="give one of them, or set infer.zoom.both",
                )
        queries = [
            dataclasses.replace(
                one,
                points=lies.points(one.points) if len(one.points) else one.points,
                box=None if one.box is None else lies.box(one.box),
                low=before.low if before else None,
            )
            for one, before in zip(asked, earlier, strict=True)
        ]
        logits, lows = self._decode(scene, scene.overview, queries, spacing / lies.scale)
        found = [
            Found(np.array(lies.scores(one, settings.scores)), low)
            for one, low in zip(logits, lows, strict=True)
        ]
        return self._zoomed(scene, asked, found, earlier) if settings.zoom == "in" else found

    def _zoomed(
        self,
        scene: Scene,
        asked: Sequence[Asked],
        found: Sequence[Found],
        earlier: Sequence[Found | None],
    ) -> list[Found]:
        """With the logits of windows in the region of each object; objects share windows."""
        settings, spacing = self.settings, scene.prepared.transform.target_spacing_mm
        masks = [one.logits > 0 for one in found]
        areas = [
            before.area
            if before and before.area and before.area.covers(mask)
            else zoom.region(mask, one.box, self.window, settings)
            for mask, one, before in zip(masks, asked, earlier, strict=True)
        ]
        jobs: dict[tuple, list[tuple[int, tuple]]] = {}
        for k, area in enumerate(areas):
            if area is None:
                continue
            if len(area.places) > settings.max_windows:
                raise PredictError(
                    "an object is too large to be looked at in windows",
                    found=f"{len(area.places)} windows of {self.window}",
                    expected=f"at most {settings.max_windows}",
                    fix="use --zoom out, or a smaller object",
                )
            for place in area.places:
                jobs.setdefault(area.start(place), []).append((k, place))
        sums = [None if a is None else np.zeros(a.shape, np.float32) for a in areas]
        weights = [None if a is None else np.zeros(a.shape, np.float32) for a in areas]
        own = (gaussian if settings.blend == "gaussian" else np.ones)(self.window)
        own = own.astype(np.float32)
        kept: list[dict[tuple, np.ndarray]] = [{} for _ in asked]
        cell = 1 / scene.frame.scale
        for start, entries in sorted(jobs.items()):
            queries, owners = [], []
            for k, place in entries:
                one = zoom.in_window(asked[k], masks[k], areas[k], place, settings, cell)
                if one.empty and settings.empty == "mask":
                    continue  # the overview's logits stay
                one = self._encoded_absence(one, asked[k])
                before = earlier[k]
                queries.append(dataclasses.replace(one, low=before and before.lows.get(start)))
                owners.append((k, place))
            if not queries:
                continue
            logits, lows = self._decode(scene, self._window(scene, start), queries, spacing)
            for (k, place), one, low in zip(owners, logits, lows, strict=True):
                of_region, of_window = areas[k].inside(place)
                sums[k][of_region] += one[of_window] * own[of_window]
                weights[k][of_region] += own[of_window]
                if low is not None:
                    kept[k][start] = low
        for k, area in enumerate(areas):
            if area is not None:
                cut = tuple(slice(a, a + n) for a, n in zip(area.low, area.shape, strict=True))
                seen = weights[k] > 0
                found[k].logits[cut][seen] = sums[k][seen] / weights[k][seen]
        return [
            dataclasses.replace(one, lows=lows, area=area)
            for one, lows, area in zip(found, kept, areas, strict=True)
        ]

    def _encoded_absence(self, one: Asked, whole: Asked) -> Asked:
        """As published: a box or points that a window has none of become coordinates of -1."""
        if self.settings.empty == "mask":
            return one
        if whole.box is not None and one.box is None:
            one = dataclasses.replace(one, box=np.full(6, -1.0))
        if len(whole.points) and not len(one.points):
            nowhere = np.full((1, 3), -1.0)
            one = dataclasses.replace(one, points=nowhere, kinds=np.array([types.POSITIVE]))
        return one

    def _window(self, scene: Scene, start: tuple) -> Any:
        """The embedding of a window, from the last used ones."""
        if start not in scene.windows:
            image = scene.prepared.image
            cut, inner = [], []
            for s, n, w in zip(start, image.shape[:3], self.window, strict=True):
                first, last = max(0, s), min(n, s + w)
                cut.append(slice(first, last))
                inner.append(slice(first - s, last - s))
            filled = np.zeros((*self.window, image.shape[-1]), np.float32)
            filled[tuple(inner)] = image[tuple(cut)]
            spacing = scene.prepared.transform.target_spacing_mm
            scene.windows[start] = self._encode(scene, filled, spacing)
        scene.windows.move_to_end(start)
        most = max(1, KEPT_BYTES // max(1, scene.windows[start].nbytes))
        while len(scene.windows) > most:
            scene.windows.popitem(last=False)
        return scene.windows[start]

    def _mask_channels(self, request: Request) -> tuple[int, ...]:
        space, plan = self.model.space, self.model.plan
        names = space.corpora[space.corpus_index(request.corpus)].channels
        return tuple(c for c, n in enumerate(names) if plan.intensity_of(n).role == "mask")

    def _context(self, scene: Scene, spacing_mm: Any) -> dict[str, np.ndarray]:
        request = dataclasses.replace(scene.request, prompts=None)
        facts = self.model.facts(request) | {"spacing_mm": np.asarray(spacing_mm, np.float32)}
        found = context.of_request(self._facts, facts)
        return {name: value[None] for name, value in found.items()}

    def _encode(self, scene: Scene, image: np.ndarray, spacing_mm: Any) -> Any:
        self.compile()
        entries = self._context(scene, spacing_mm)
        return self._programs["encode"](self._scorer.params, image[None], entries)

    def _decode(
        self, scene: Scene, embedding: Any, queries: Sequence[Asked], spacing_mm: Any
    ) -> tuple[np.ndarray, list[np.ndarray | None]]:
        """(n, *window) logits and the low ones of n queries, at most `queries` at a time."""
        logits, lows = [], []
        entries = self._context(scene, spacing_mm)
        for first in range(0, len(queries), self.queries):
            part = queries[first : first + self.queries]
            outputs = self._programs["decode"](
                self._scorer.params, embedding, entries | self.filled(part)
            )
            logits.append(np.asarray(outputs["logits"])[0, : len(part)])
            low = np.asarray(outputs["low"])[0] if "low" in outputs else [None] * len(part)
            lows += list(low[: len(part)])
        found = np.concatenate(logits)
        if not np.isfinite(found).all():
            raise PredictError(
                "the network gives scores that are not finite numbers",
                found="NaN or infinity",
                expected="finite scores",
                fix="check the model on another scan",
            )
        return found, lows

    def filled(self, queries: Sequence[Asked]) -> dict[str, np.ndarray]:
        """The arrays (1, q, ...) of at most q queries, in voxels of the frame.

        Raises: `UsageError` for more points than there are slots.
        """
        found = {name: leaf.empty(1) for name, leaf in self.leaves.items()}
        for k, one in enumerate(queries):
            if (count := len(one.points)) > types.SLOTS:
                raise UsageError(
                    "too many points for one object",
                    found=count,
                    expected=f"at most {types.SLOTS}",
                    fix="leave some out",
                )
            found[types.HAS][0, k] = (count > 0, one.box is not None, one.text != types.NO_TEXT)
            found[types.POINTS][0, k, :count] = one.points
            found[types.KIND][0, k, :count] = one.kinds
            if one.box is not None:
                found[types.BOX][0, k] = one.box
            found[types.TEXT][0, k] = one.text
            if types.TASK in found:
                found[types.TASK][0, k] = max(one.text, types.UNKNOWN_TASK)
            if one.vector is not None and types.VECTOR in found:
                found[types.VECTOR][0, k] = one.vector
            if one.low is not None and types.MASK in found:
                found[types.MASK][0, k] = one.low
        return found
