"""Trained networks as a function of scans: volume in, masks on the scan's own grid out.

In: a `Model` (network function, parameters, plan, label space, window) and volumes as read from
disk. Out: the decided label map and class masks on the stored grid. One `Segmenter` compiles once
and serves volumes of any size and all corpora. Several networks, of any architecture, are averaged
on the scan's grid.

Memory stays bounded: windows are blended row by row, rows are resampled to the scan's grid as soon
as they are final, thresholded and packed. When even that would not fit, the volume is worked
through in strips (`infer/memory.py`); the result is the same to the bit.
"""

import dataclasses
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from medjax.corpora.cases import free_memory
from medjax.errors import PredictError, UsageError, did_you_mean
from medjax.infer import conflicts as rules
from medjax.infer import memory, postprocess
from medjax.infer.model import UNCERTAINTIES, Model, Prepared, Segmentation
from medjax.infer.packed import Masks, Region
from medjax.infer.postprocess import Rules
from medjax.infer.regrid import most_rows, on_scan_grid, row_blocks, source_columns
from medjax.infer.scorer import Scorer
from medjax.infer.windows import WindowScores
from medjax.prepare.geometry import Transform
from medjax.prompts.request import Request
from medjax.scans.nifti import DataWarning, Volume

OnScores = Callable[[Transform, Region, tuple[str, ...], np.ndarray], None]


@dataclasses.dataclass(frozen=True)
class _Block:
    """Averaged values (rows, y, x, c) of `classes` in a region of the cropped canonical grid, how
    far the members disagree, and the sum over all classes where `values` holds only some.
    """

    region: Region
    classes: Sequence[str]
    values: np.ndarray
    spread: np.ndarray | float = 0.0
    total: np.ndarray | None = None


class Segmenter:
    """Runs a model over volumes.

    Args:
      model: the network, see `Model`.
      others: segmenters of further members of any architecture, window and spacing, over the same
        classes and corpora; each counts as many members as it has.
      memory_gib: what the prediction of one case may use; default half of the free memory.
      postprocess: what is done to the masks afterwards, see `postprocess.Rules`; by default
        nothing.
      conflicts: which of exclusive classes that share a voxel the label map shows, a word of
        `infer.conflicts.RULES`; only sigmoid classes can.
      temperatures: class -> temperature, for calibrated conflicts and the probabilities handed on;
        of others 1.
      options: windows, mirrors, members and devices of the network, see `Scorer`.

    Attributes:
      networks: a `Scorer` for the model, and those of the `others`.
      limit: bytes that the prediction of one case may use, or None.
      name: of the model, for messages. warn: receives what a user should know; default Python's
        warnings.
    """

    def __init__(
        self,
        model: Model,
        *,
        others: Sequence["Segmenter"] = (),
        memory_gib: float | None = None,
        postprocess: Rules | None = None,
        conflicts: str = rules.ORDERED,
        temperatures: Mapping[str, float] | None = None,
        **options: Any,
    ):
        if conflicts not in rules.RULES:
            raise UsageError(
                f"unknown rule for conflicts {conflicts!r}",
                fix=did_you_mean(conflicts, rules.RULES),
            )
        self.conflicts, self.temperatures = conflicts, dict(temperatures or {})
        first = Scorer(model, **options)
        self.model, self.decision, self.device = model, first.decision, first.device
        self.networks = (first, *(network for other in others for network in other.networks))
        self.postprocess = postprocess.checked(model.space) if postprocess else None
        self.limit = None if memory_gib is None else int(memory_gib * 2**30)
        for network in self.networks:
            network.conflicts, network.temperatures = conflicts, self.temperatures
        self.name, self.warn = "", _warned
        self._others = tuple(others)
        self._check_networks()

    @property
    def compiled(self) -> int:
        """Programs of the first network compiled so far."""
        return self.networks[0].compiled

    @property
    def uncertain(self) -> bool:
        """Whether its segmentations hold maps of uncertainty."""
        return any(network.uncertainty for network in self.networks)

    @property
    def maps(self) -> tuple[str, ...]:
        """Names of the maps of uncertainty in its segmentations.

        Without mirrors, one network cannot disagree with itself.
        """
        views = sum(network.members << len(network.mirror_axes) for network in self.networks)
        names = tuple(UNCERTAINTIES) if self.uncertain else ()
        return names if views > 1 else names[:1]

    @property
    def budget(self) -> int:
        """Bytes that the prediction of a case may use now."""
        return self.limit if self.limit is not None else free_memory() // 2

    def settings(self, *, earlier: bool = False) -> dict:
        """What the predictions depend on; JSON-ready. `earlier`: see `Scorer.settings`."""
        done = {"postprocess": self.postprocess.to_json() if self.postprocess else {}}
        others = [other.settings(earlier=earlier) for other in self._others]
        found = self.networks[0].settings(earlier=earlier) | done
        if self.conflicts != rules.ORDERED:
            found["conflicts"] = self.conflicts
        if self.temperatures:
            found["temperatures"] = self.temperatures
        return found | ({"others": others} if others else {})

    def compile(self, classes: Sequence[str]) -> None:
        """Compiles what the prediction of some classes needs."""
        for network in self.networks:
            network.program(len(network.asked(classes)))

    def prepare_all(self, volume: Volume, request: Request) -> tuple[Prepared, ...]:
        """`prepare` for each of the networks; those that share a plan share the arrays."""
        done: dict[tuple, Prepared] = {}
        for network in self.networks:
            key = (network.model.plan.key(), network.channels)
            if key not in done:
                done[key] = network.prepare(volume, request)
        if self.postprocess and self.postprocess.organ_filter:  # its source is not kept
            space, plan, key = self.model.space, self.model.plan, next(iter(done))
            described = space.corpora[space.corpus_index(request.corpus)]
            organ = postprocess.organ_of(volume.array, plan, described, done[key].transform)
            done[key] = done[key]._replace(organ=organ)
        return tuple(done[one.model.plan.key(), one.channels] for one in self.networks)

    def segment(
        self,
        volume: Volume,
        request: Request,
        *,
        prepared: Sequence[Prepared] | None = None,
        on_scores: OnScores | None = None,
    ) -> Segmentation:
        """The label map in the protocol of the request's corpus, and the masks of all predicted
        classes, on the grid of `volume`.

        Args:
          request: which classes to predict and paint, and for what; see `Request`.
          prepared: what `prepare_all` returned for this volume, if it was called before.
          on_scores: receives probabilities while they pass: (transform, region of the cropped
            canonical grid, classes, (rows, y, x, c)).

        Returns: `Segmentation`; its `maps` hold the uncertainties if they were asked for.
        Raises: `PredictError` if the case cannot be done in the memory allowed, the network's
          scores are not finite, or the device is out of memory also with half the windows per step.
        """
        prepared = prepared or self.prepare_all(volume, request)
        for attempt in (1, 2, 3):
            try:
                return self._segment(prepared, request, on_scores)
            except PredictError as error:
                raise self._located(error, volume.path) from error
            except Exception as error:
                if not memory.is_exhausted(error):
                    raise
                batch = self.networks[0].batch_windows
            full = (
                f"{volume.path}: the device is out of memory with --batch-windows {batch}; trying"
            )
            if attempt == 1 and any([network.halve() for network in self.networks]):
                self.warn(f"{full} {self.networks[0].batch_windows}")
            elif any([network.blend_on_host() for network in self.networks]):
                self.warn(f"{full} to blend the windows on the host (infer.backend)")
            else:
                break
        raise PredictError(
            "the device is out of memory",
            path=volume.path,
            found=f"{batch} windows of {self.model.window} at a time",
            fix="give a smaller --batch-windows or --window, or another --device (e.g. cpu)",
        )

    def forecast(self, header: Volume, request: Request) -> memory.Forecast:
        """What a case will take, from its header alone (`nifti.read_geometry`); cropping can only
        make it less.

        Raises: `PredictError` if it does not fit into the memory allowed.
        """
        space = self.model.space
        described = space.corpora[space.corpus_index(request.corpus)]
        asked = self.networks[0].asked(request.wanted(space))
        transforms = [
            network.model.plan.fit(header, described.store, described.channels, crop="none")
            for network in self.networks
        ]
        sized = self._footprints(transforms, asked)
        voxels, budget = int(np.prod(header.shape)), self.budget
        images = sum(
            4 * int(np.prod(transform.shape)) * network.channels
            for network, transform in zip(self.networks, transforms, strict=True)
        )
        held = images + voxels * self._bytes_per_voxel
        # the file's bytes, float32 values, a normalised copy
        loading = voxels * self.networks[0].channels * (4 + 4 + 4) + held
        plan, total = memory.cut(transforms[0].box_shape, sized, held, budget, header.path)
        count = sum(
            memory.count_windows(one, [source_columns(transform, strip) for strip in plan.strips])
            for one, transform in zip(sized, transforms, strict=True)
        )
        if loading > budget:
            memory.refuse(loading, budget, header.path)
        return memory.Forecast(transforms[0].shape, count, len(plan.strips), max(total, loading))

    def cut(self, prepared: Sequence[Prepared], asked: Sequence[str]) -> memory.Cut:
        """How to work through a volume within the `budget`; `PredictError` if it cannot be done."""
        transforms = [p.transform for p in prepared]
        images = {id(p.image): p.image.nbytes for p in prepared}
        held = (
            sum(images.values()) + int(np.prod(transforms[0].stored_shape)) * self._bytes_per_voxel
        )  # what is there anyway: images, label map, maps
        sized = self._footprints(transforms, asked)
        return memory.cut(transforms[0].box_shape, sized, held, self.budget)[0]

    def _segment(
        self,
        prepared: Sequence[Prepared],
        request: Request,
        on_scores: OnScores | None,
    ) -> Segmentation:
        """Block by block: scores of all networks on the scan's grid, decided and painted."""
        space, transform, corpus = self.model.space, prepared[0].transform, request.corpus
        names = request.wanted(space)
        asked = self.networks[0].asked(names)
        chosen = [asked.index(name) for name in names]
        masks, sure = Masks(names, transform), dict.fromkeys(names, 0.0)
        values = space.corpora[space.corpus_index(corpus)].values
        label_map = np.zeros(transform.stored_shape, np.min_scalar_type(max(values)))
        cropped = transform.image(label_map)  # a view: what is written here lands in stored order
        maps = {name: np.zeros(transform.stored_shape, np.float32) for name in self.maps}
        views = {name: transform.image(array) for name, array in maps.items()}
        excluding = rules.excluding(space, corpus, names)
        if self.conflicts != rules.ORDERED:
            masks.beaten = Masks(names, transform)
        whole = bool(on_scores or maps or len(self.networks) > 1)  # all classes in every block
        for block in self._blocks(prepared, request, asked, whole):
            owners, region = block.classes, block.region
            if on_scores or maps:
                probabilities = self.decision.probabilities(block.values)
            if on_scores:
                wanted = self._tempered(probabilities, asked)
                wanted = wanted if names == asked else wanted[..., chosen]
                on_scores(transform, region, names, wanted)
            if maps:
                views["entropy"][region] = self.decision.entropy(probabilities)
                if "disagreement" in views:
                    views["disagreement"][region] = block.spread
            mask, values = self.decision.decide(block.values, block.total), block.values
            for name, sum_ in zip(owners, self.decision.certainty(values, mask), strict=True):
                if name in sure:
                    sure[name] += float(sum_)
            if names != asked:  # a softmax is decided over all classes, whichever are wanted
                inside = [k for k, name in enumerate(owners) if name in names]
                mask, owners = np.ascontiguousarray(mask[..., inside]), [owners[k] for k in inside]
                values = values[..., inside]
            masks.put(region, owners, mask)
            shown = self._shown(masks, mask, values, owners, excluding)
            if masks.beaten is not None:
                masks.beaten.put(region, owners, mask & ~shown)
            cropped[region] = postprocess.paint(space, shown, owners, corpus)
        masks.confidence = {name: sure[name] / n if n else None for name, n in masks.voxels.items()}
        found, done = Segmentation(label_map, masks, maps), self.postprocess
        organ = prepared[0].organ
        return postprocess.apply(found, done, space, corpus, organ) if done else found

    def _tempered(self, probabilities: np.ndarray, names: Sequence[str]) -> np.ndarray:
        """Probabilities at the temperatures, if there are any."""
        if not self.temperatures:
            return probabilities
        return self.decision.tempered(
            probabilities, [self.temperatures.get(name, 1.0) for name in names]
        )

    def _shown(
        self,
        masks: Masks,
        mask: np.ndarray,
        values: np.ndarray,
        owners: Sequence[str],
        excluding: np.ndarray,
    ) -> np.ndarray:
        """The channels of a block that its label map shows; counts its conflicts in `masks`."""
        chosen = [masks.names.index(name) for name in owners]
        among = excluding[np.ix_(chosen, chosen)]
        where = rules.overlapping(mask, among)
        masks.conflicting += int(np.count_nonzero(where))
        masks.foreground += int(np.count_nonzero(mask.any(-1)))
        if self.conflicts == rules.ORDERED:
            return mask
        order = rules.strength(self.model.space, owners)
        scale = rules.odds(self.decision, self.temperatures, owners)
        return rules.settled(mask, values, among, order, where, scale)

    def _blocks(
        self, prepared: Sequence[Prepared], request: Request, asked: tuple[str, ...], whole: bool
    ) -> Iterator[_Block]:
        """Scores on the cropped canonical grid, averaged over the networks; where not `whole`, only
        of the classes that may be decided for.
        """
        plan, box = self.cut(prepared, asked), prepared[0].transform.box_shape
        for strip in plan.strips:
            tall = (box[0], strip.stop - strip.start, box[2])
            ranges = row_blocks(tall, len(asked) + self.uncertain, plan.block)
            selected: list[np.ndarray] = []  # channels of the block under way

            def narrow(scores: WindowScores, rows: slice, selected: list = selected) -> np.ndarray:
                block, kept = scores.narrowed(rows, self.decision)
                selected[:] = [kept]
                return block

            streams = [
                on_scan_grid(
                    network.rows(
                        p,
                        request,
                        asked,
                        source_columns(p.transform, strip),
                        plan.depth,
                        most_rows(p.transform, ranges),
                    ),
                    p.transform,
                    ranges,
                    strip,
                    None if whole else narrow,
                )
                for network, p in zip(self.networks, prepared, strict=True)
            ]
            for rows, found in zip(ranges, zip(*streams, strict=True), strict=True):
                if whole:
                    values, spread = self._averaged(found, len(asked))
                    yield _Block((rows, strip), asked, values, spread)
                else:
                    kept, block = selected[0], found[0]
                    total = block[..., -1] if block.shape[-1] > len(kept) else None
                    owners = [asked[k] for k in kept]
                    yield _Block((rows, strip), owners, block[..., : len(kept)], total=total)

    def _averaged(
        self, found: Sequence[np.ndarray], classes: int
    ) -> tuple[np.ndarray, np.ndarray | float]:
        """Values averaged over the networks, and how far all members disagree."""
        members = [network.members for network in self.networks]
        spreads = [network.uncertainty for network in self.networks]
        return self.decision.averaged(found, members, spreads, classes)

    @property
    def _bytes_per_voxel(self) -> int:
        """Of the label map and the maps of uncertainty."""
        return 2 + 8 * self.uncertain

    def _footprints(
        self, transforms: Sequence[Transform], asked: Sequence[str]
    ) -> list[memory.Footprint]:
        return [
            network.footprint(transform.shape, len(asked))
            for network, transform in zip(self.networks, transforms, strict=True)
        ]

    def _located(self, error: PredictError, path: str) -> PredictError:
        """The error with the scan and the model in it, where it names none."""
        if error.path is not None:
            return error
        words = [str(word) for word in (error.found, self.name and f"model {self.name}") if word]
        found = "; ".join(words) or None
        return PredictError(
            error.message, path=path, found=found, expected=error.expected, fix=error.fix
        )

    def _check_networks(self) -> None:
        """Networks are averaged on the scan's grid, so they must mean the same by it and by their
        channels.
        """
        words = ("label space", "orientation", "crop", "average", "activation")
        for other in self.networks[1:]:
            mine, theirs = (
                (
                    one.model.space,
                    one.model.plan.orientation,
                    one.model.plan.crop,
                    one.decision.average,
                    one.decision.name,
                )
                for one in (self, other)
            )
            differing = [word for word, a, b in zip(words, mine, theirs, strict=True) if a != b]
            if differing:
                raise UsageError(
                    "the members of an ensemble do not fit together",
                    found=f"another {', '.join(differing)}",
                    fix="give runs that were trained on the same corpora and classes",
                )


def _warned(text: str) -> None:
    warnings.warn(text, DataWarning, stacklevel=3)
