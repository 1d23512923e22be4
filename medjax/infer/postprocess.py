"""What may be done to predicted masks afterwards: largest component, hole filling, minimum volume,
tumours only within their organs. Never unless it was asked for.

In: a `Segmentation` and `Rules`, per class. Out: the segmentation with other masks, its label map
painted anew, a record of every change. Components are 26-connected, holes are what a 6-connected
background outside cannot reach. Order: largest, minimum volume, holes, and of classes that belong
within organs: inside, largest, minimum volume, holes, when the organs are done.

Source of `inside`: the organ filter of the Universal Model (Liu et al., 2023).
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Shaped
from scipy import ndimage

from medjax.errors import UsageError, did_you_mean
from medjax.infer import conflicts
from medjax.infer.model import Segmentation
from medjax.labels import LabelSpace

EVERY = "*"  # in place of a class name: all classes
FIELDS = ("largest", "holes", "min_ml", "inside")
BOX = np.ones((5, 5, 5), bool)  # voxels by which an organ is closed and grown


@dataclasses.dataclass(frozen=True)
class Rules:
    """What to do to which classes.

    Attributes:
      largest: classes of which only the largest component stays.
      holes: classes whose holes are filled.
      min_ml: (class, millilitres): components below that volume go.
      inside: (class, its organs): what lies outside of them goes, see `within`. An organ that was
        not found removes nothing.
    """

    largest: tuple[str, ...] = ()
    holes: tuple[str, ...] = ()
    min_ml: tuple[tuple[str, int | float], ...] = ()
    inside: tuple[tuple[str, tuple[str, ...]], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.largest or self.holes or self.min_ml or self.inside)

    def checked(self, space: LabelSpace) -> "Rules":
        """With every name resolved to classes of the space; `LabelError` for unknown ones."""

        def resolved(names: Sequence[str]) -> tuple[str, ...]:
            for name in names:
                if name != EVERY:
                    space.class_index(name)
            return tuple(name for name in space.classes if name in names or EVERY in names)

        limits = dict(self.min_ml)
        resolved(tuple(limits))
        pairs = tuple(
            (n, float(limits.get(n, limits.get(EVERY, 0))))
            for n in space.classes
            if n in limits or EVERY in limits
        )
        for name, organs in self.inside:
            for one in (name, *organs):
                space.class_index(one)
            if name in organs or set(organs) & {other for other, _ in self.inside}:
                raise UsageError(
                    f"{name!r} must lie within organs that no such rule changes", found=organs
                )
        return Rules(resolved(self.largest), resolved(self.holes), pairs, self.inside)

    def to_json(self) -> dict:
        """JSON-ready fields; `from_json` inverts it."""
        return {
            "largest": list(self.largest),
            "holes": list(self.holes),
            "min_ml": dict(self.min_ml),
        } | ({"inside": {n: list(o) for n, o in self.inside}} if self.inside else {})

    @classmethod
    def from_json(cls, fields: Mapping) -> "Rules":
        """From a config's `infer.postprocess` or a file: `min_ml` and `inside` are mappings, the
        others lists of class names; `UsageError` for anything else.
        """
        for key in fields:
            if key not in FIELDS:
                raise UsageError(f"postprocessing knows no {key!r}", fix=did_you_mean(key, FIELDS))
        limits = dict(fields.get("min_ml") or {})
        if not all(isinstance(v, int | float) and v > 0 for v in limits.values()):
            raise UsageError(
                "a minimum volume must be a positive number of millilitres", found=limits
            )
        return cls(
            tuple(fields.get("largest") or ()),
            tuple(fields.get("holes") or ()),
            tuple((name, float(ml)) for name, ml in limits.items()),
            _organs_of(fields.get("inside") or {}),
        )


def apply(found: Segmentation, rules: Rules, space: LabelSpace, corpus: str) -> Segmentation:
    """Masks after the rules (whose names must be resolved, see `Rules.checked`), the label map
    painted from them, and the changes.
    """
    masks, changes = found.masks, {}
    voxel_ml = float(np.prod(masks.transform.spacing_mm)) / 1000
    hosts = dict(rules.inside)
    for name in sorted(masks.names, key=lambda name: name in hosts):  # organs first
        if masks.voxels[name] == 0:
            continue
        mask, steps = masks.cropped(name), {}
        if name in hosts:
            organs = [masks.cropped(one) for one in hosts[name] if one in masks.names]
            mask, steps["inside"] = within(mask, organs)
        if name in rules.largest:
            mask, steps["largest"] = largest(mask)
        if name in (limits := dict(rules.min_ml)):
            mask, steps["min_ml"] = without_small(mask, limits[name] / voxel_ml)
        if name in rules.holes:
            mask, steps["holes"] = filled(mask)
        if any(steps.values()):
            masks.replace(name, mask)
            changes[name] = {step: n for step, n in steps.items() if n}
    label_map = found.label_map
    if changes:
        cropped = masks.transform.image(label_map)
        among = conflicts.excluding(space, corpus, masks.names)
        for number, region in enumerate(masks.regions):
            mask = masks.block(number)
            if masks.beaten is not None:
                mask = conflicts.standing(mask, masks.beaten.block(number), among)
            cropped[region] = paint(space, mask, masks.names, corpus)
    return Segmentation(label_map, masks, found.maps, changes)


def paint(
    space: LabelSpace, mask: Bool[np.ndarray, "*vol c"], names: Sequence[str], corpus: str
) -> Shaped[np.ndarray, "*vol"]:
    """Masks of some classes -> the corpus' label values by the precedence of the space; classes
    without a voxel cost nothing.
    """
    present = np.flatnonzero(mask.reshape(-1, len(names)).any(0)) if len(names) else []
    layers = (
        np.moveaxis(np.stack([mask[..., k] for k in present]), 0, -1)
        if len(present)
        else mask[..., :0]
    )
    return space.export(layers, corpus, [names[k] for k in present])


def largest(mask: Bool[np.ndarray, "z y x"]) -> tuple[Bool[np.ndarray, "z y x"], int]:
    """The largest 26-connected component (the first of equals), and how many voxels went."""
    return _kept(mask, lambda sizes: np.arange(len(sizes)) == sizes.argmax())


def without_small(
    mask: Bool[np.ndarray, "z y x"], voxels: float | int
) -> tuple[Bool[np.ndarray, "z y x"], int]:
    """Components of at least so many voxels, and how many voxels went."""
    return _kept(mask, lambda sizes: sizes >= voxels)


def within(
    mask: Bool[np.ndarray, "z y x"], organs: Sequence[Bool[np.ndarray, "z y x"]]
) -> tuple[Bool[np.ndarray, "z y x"], int]:
    """The part of a mask within its organs, and how many voxels went.

    Of the organs' union as many of the largest components stay as there are organs; they are closed
    and then grown by a box of 5 voxels. Without a voxel of an organ the mask stays as it is.
    """
    organs = [one for one in organs if one.any()]
    if not organs:
        return mask, 0
    union = np.logical_or.reduce([mask, *organs])
    box = tuple(
        slice(max(one.start - 4, 0), one.stop + 4) for one in _box(union) or ()
    )  # room for closing and growing
    found = np.logical_or.reduce([one[box] for one in organs])
    count = len(organs)
    found, _ = _kept(found, lambda sizes: np.argsort(np.argsort(-sizes, kind="stable")) < count)
    padded = np.pad(found, 4)
    padded = ndimage.binary_dilation(ndimage.binary_closing(padded, BOX), BOX)
    out = np.zeros_like(mask)
    out[box] = mask[box] & padded[4:-4, 4:-4, 4:-4]
    return out, int(np.count_nonzero(mask) - np.count_nonzero(out))


def _organs_of(fields: Mapping) -> tuple[tuple[str, tuple[str, ...]], ...]:
    if not isinstance(fields, Mapping) or not all(
        isinstance(organs, list | tuple) and organs for organs in fields.values()
    ):
        raise UsageError(
            "postprocessing inside names the organs of a class",
            found=fields,
            expected='{"liver tumour": ["liver"]}',
        )
    return tuple((str(name), tuple(map(str, organs))) for name, organs in fields.items())


def filled(mask: Bool[np.ndarray, "z y x"]) -> tuple[Bool[np.ndarray, "z y x"], int]:
    """The mask with its holes, and how many voxels came.

    A volume of one slice is filled within the slice.
    """
    box = _box(mask)
    if box is None:
        return mask, 0
    inner = mask[box]
    flat = mask.shape[0] == 1
    solid = ndimage.binary_fill_holes(inner[0])[None] if flat else ndimage.binary_fill_holes(inner)
    out = mask.copy()
    out[box] = solid
    return out, int(np.count_nonzero(solid) - np.count_nonzero(inner))


def _kept(mask: np.ndarray, choose) -> tuple[np.ndarray, int]:
    box = _box(mask)
    if box is None:
        return mask, 0
    inner = mask[box]
    components, count = ndimage.label(inner, np.ones((3, 3, 3)))
    sizes = np.bincount(components.ravel(), minlength=count + 1)[1:]
    keep = choose(sizes)
    if keep.all():
        return mask, 0
    out = np.zeros_like(mask)
    out[box] = np.concatenate([[False], keep])[components]
    return out, int(sizes[~keep].sum())


def _box(mask: np.ndarray) -> tuple[slice, ...] | None:
    found = ndimage.find_objects(mask.view(np.uint8))
    return found[0] if found else None
