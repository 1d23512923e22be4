"""Blended scores of one or several networks -> label map, masks and uncertainties on the scan's
grid, block by block.

In: predictors whose scores are averaged on the scan's grid, and the volume as each of them sees it.
Out: a `Segmentation`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from medjax.corpora.cases import free_memory
from medjax.infer import memory, postprocess
from medjax.infer.model import Prepared, Segmentation
from medjax.infer.packed import Masks, Region
from medjax.infer.regrid import on_scan_grid, row_blocks, source_columns
from medjax.labels import LabelSpace
from medjax.prepare import geometry
from medjax.prepare.geometry import Transform
from medjax.scans.nifti import Volume

OnScores = Callable[[Transform, Region, tuple[str, ...], np.ndarray], None]

UNCERTAINTIES = {
    "entropy": "bits: of the averaged class probabilities with the background (softmax), or of "
    "the least certain class (sigmoid); 0 to 1 "
    "for sigmoid",
    "disagreement": "standard deviation of the probability over mirrors, folds and seeds, of the "
    "class where it is largest; 0 to 0.5",
}


def wanted_classes(
    space: LabelSpace, corpus: str, classes: Sequence[str] | None
) -> tuple[str, ...]:
    """The classes asked for, by default those that `corpus` annotates, in channel order."""
    known = space.known[space.corpus_index(corpus)]
    for name in classes or ():
        space.class_index(name)
    return tuple(
        name
        for name, own in zip(space.classes, known, strict=True)
        if (own if classes is None else name in classes)
    )


def segment(
    parts: Sequence[Any],
    prepared: Sequence[Prepared],
    corpus: str,
    classes: Sequence[str] | None,
    on_scores: OnScores | None,
    limit: int | None,
) -> Segmentation:
    """See `Predictor.segment`; `parts`: the predictors, `prepared`: one per part, `limit`: bytes or
    None.
    """
    first, transform = parts[0], prepared[0].transform
    space = first.model.space
    names = wanted_classes(space, corpus, classes)
    asked = first.asked(names)
    chosen = [asked.index(name) for name in names]
    uncertain = any(part.uncertainty for part in parts)
    plan = plan_case(parts, prepared, asked, limit)
    masks = Masks(names, transform)
    values = space.corpora[space.corpus_index(corpus)].values
    label_map = np.zeros(transform.stored_shape, np.min_scalar_type(max(values)))
    cropped = transform.image(label_map)  # a view: what is written here lands in stored order
    maps = {
        name: np.zeros(transform.stored_shape, np.float32) for name in UNCERTAINTIES if uncertain
    }
    views = {name: transform.image(array) for name, array in maps.items()}
    for strip in plan.strips:
        tall = (transform.box_shape[0], strip.stop - strip.start, transform.box_shape[2])
        blocks = row_blocks(tall, len(asked) + uncertain, plan.block)
        everything = bool(on_scores or uncertain or len(parts) > 1)
        selected: list[np.ndarray] = []  # channels of the block under way

        def narrow(block: np.ndarray, selected: list = selected) -> np.ndarray:
            selected[:] = [first.candidates(block)]
            return first.narrowed(block, selected[0])

        streams = [
            on_scan_grid(
                part.rows(p, corpus, asked, source_columns(p.transform, strip), plan.depth),
                p.transform,
                blocks,
                strip,
                None if everything else narrow,
            )
            for part, p in zip(parts, prepared, strict=True)
        ]
        for rows, found in zip(blocks, zip(*streams, strict=True), strict=True):
            region = (rows, strip)
            if everything:
                block, spread = _averaged(parts, found, len(asked))
                if on_scores or uncertain:
                    probabilities = first.probabilities(block)
                    if on_scores:
                        on_scores(
                            transform,
                            region,
                            names,
                            probabilities if names == asked else probabilities[..., chosen],
                        )
                    if uncertain:
                        views["entropy"][region] = entropy(
                            probabilities, exclusive=first.activation == "softmax"
                        )
                        views["disagreement"][region] = spread
                mask, owners = first.decide(block), asked
            else:
                kept = selected[0]
                total = found[0][..., -1] if found[0].shape[-1] > len(kept) else None
                mask, owners = (
                    first.decide(found[0][..., : len(kept)], total),
                    [asked[k] for k in kept],
                )
            if names != asked:  # a softmax is decided over all classes, whichever are wanted
                inside = [k for k, name in enumerate(owners) if name in names]
                mask, owners = np.ascontiguousarray(mask[..., inside]), [owners[k] for k in inside]
            masks.put(region, owners, mask)
            cropped[region] = postprocess.paint(space, mask, owners, corpus)
    found = Segmentation(label_map, masks, maps)
    return (
        postprocess.apply(found, first.postprocess, space, corpus) if first.postprocess else found
    )


def plan_case(
    parts: Sequence[Any], prepared: Sequence[Prepared], asked: Sequence[str], limit: int | None
) -> memory.Cut:
    """How to work through a volume within `limit` bytes (default half of what is free);
    `PredictError` if it cannot be done.
    """
    held = sum(
        p.image.nbytes for p in {id(p.image): p for p in prepared}.values()
    )  # what is there anyway: images, label map, maps
    held += int(np.prod(prepared[0].transform.stored_shape)) * (
        2 + 8 * any(part.uncertainty for part in parts)
    )
    sized = [_part(part, p.transform.shape, asked) for part, p in zip(parts, prepared, strict=True)]
    return memory.cut(
        prepared[0].transform.box_shape,
        sized,
        held,
        limit if limit is not None else free_memory() // 2,
    )[0]


def forecast(
    parts: Sequence[Any],
    header: Volume,
    corpus: str,
    classes: Sequence[str] | None,
    limit: int | None,
) -> memory.Forecast:
    """See `Predictor.forecast`."""
    space = parts[0].model.space
    asked = parts[0].asked(wanted_classes(space, corpus, classes))
    plans = [part.model.plan for part in parts]
    store = space.corpora[space.corpus_index(corpus)].store
    transforms = [
        geometry.fit(header, plan.spacing_of(store), orientation=plan.orientation, crop="none")
        for plan in plans
    ]
    sized = [_part(part, t.shape, asked) for part, t in zip(parts, transforms, strict=True)]
    uncertain = any(part.uncertainty for part in parts)
    voxels = int(np.prod(header.shape))
    held = sum(
        4 * int(np.prod(t.shape)) * part.channels for part, t in zip(parts, transforms, strict=True)
    ) + voxels * (2 + 8 * uncertain)
    loading = (
        voxels * parts[0].channels * (4 + 4 + 4) + held
    )  # the file's bytes, float32 values, a normalised copy
    budget = limit if limit is not None else free_memory() // 2
    plan, total = memory.cut(transforms[0].box_shape, sized, held, budget, header.path)
    count = sum(
        memory.count_windows(part, [source_columns(t, strip) for strip in plan.strips])
        for part, t in zip(sized, transforms, strict=True)
    )
    if loading > budget:
        memory.refuse(loading, budget, header.path)
    return memory.Forecast(transforms[0].shape, count, len(plan.strips), max(total, loading))


def entropy(probabilities: np.ndarray, *, exclusive: bool) -> np.ndarray:
    """Shannon entropy in bits of (..., c) class probabilities.

    Args:
      exclusive: the classes and the background share 1 (softmax); otherwise each class is a yes or
        no of its own, and the largest of their entropies is taken: -p log2 p - (1 - p) log2 (1 -
        p).
    """

    def term(p: np.ndarray) -> np.ndarray:
        return -p * np.log2(np.maximum(p, 1e-12))

    p = np.clip(probabilities, 0, 1)
    if exclusive:
        return term(p).sum(-1) + term(np.maximum(1 - p.sum(-1), 0))
    least = np.take_along_axis(p, np.abs(p - 0.5).argmin(-1)[..., None], -1)[..., 0]
    return term(least) + term(1 - least)


def _averaged(
    parts: Sequence[Any], found: Sequence[np.ndarray], classes: int
) -> tuple[np.ndarray, np.ndarray | float]:
    """Scores averaged over the parts, each weighing as its members, and how far all members
    disagree.
    """
    if len(parts) == 1:
        block = found[0]
        return (block[..., :classes], block[..., classes]) if parts[0].uncertainty else (block, 0.0)
    weights = np.array([part.members for part in parts], np.float32)
    weights /= weights.sum()
    block = sum(w * b[..., :classes] for w, b in zip(weights, found, strict=True))
    if not all(part.uncertainty for part in parts):
        return block, 0.0
    probabilities = [
        part.probabilities(b[..., :classes]) for part, b in zip(parts, found, strict=True)
    ]
    centre = sum(w * p for w, p in zip(weights, probabilities, strict=True))
    between = sum(
        w * np.square(p - centre) for w, p in zip(weights, probabilities, strict=True)
    ).max(-1)
    within = sum(w * np.square(b[..., classes]) for w, b in zip(weights, found, strict=True))
    return block, np.sqrt(between + within)


def _part(part: Any, shape: tuple[int, int, int], asked: Sequence[str]) -> memory.Part:
    window = part.model.window
    temporary = 0
    if (
        part.device.platform == "cpu"
        and (facts := part.program(len(asked)).memory_analysis()) is not None
    ):
        temporary = int(facts.temp_size_in_bytes)
    window = (1, *window) if len(window) == 2 else tuple(window)
    return memory.Part(
        shape,
        window,
        part.channels,
        len(asked) + part.uncertainty,
        part.batch_windows,
        part.overlap,
        temporary,
    )
