"""What may be done to predicted masks afterwards: largest component, hole filling, minimum volume,
tumours only within their organs. Never unless it was asked for.

In: a `Segmentation` and `Rules`, per class. Out: the segmentation with other masks, its label map
painted anew, a record of every change. What is done to a mask: `scans.components`. Order: organ
filter, largest, minimum volume, holes, and of classes that belong within organs: inside before
these, when the organs are done.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Shaped

from medjax.errors import UsageError, did_you_mean
from medjax.infer import conflicts
from medjax.infer.model import Segmentation
from medjax.labels import Corpus, LabelSpace
from medjax.prepare.geometry import Transform
from medjax.prepare.plan import Plan
from medjax.scans.components import filled, largest, touching, within, without_small

EVERY = "*"  # in place of a class name: all classes
FIELDS = ("largest", "holes", "min_ml", "inside", "organ_filter")


@dataclasses.dataclass(frozen=True)
class Rules:
    """What to do to which classes.

    Attributes:
      largest: classes of which only the largest component stays.
      holes: classes whose holes are filled.
      min_ml: (class, millilitres): components below that volume go.
      inside: (class, its organs): what lies outside of them goes, see `within`. An organ that was
        not found removes nothing.
      organ_filter: classes of which only components that touch the organ mask stay which the
        network was given as a channel, see `touching`. A mask that is missing removes nothing.
    """

    largest: tuple[str, ...] = ()
    holes: tuple[str, ...] = ()
    min_ml: tuple[tuple[str, int | float], ...] = ()
    inside: tuple[tuple[str, tuple[str, ...]], ...] = ()
    organ_filter: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return any(getattr(self, name) for name in FIELDS)

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
        filtered = resolved(self.organ_filter)
        return Rules(resolved(self.largest), resolved(self.holes), pairs, self.inside, filtered)

    def to_json(self) -> dict:
        """JSON-ready fields; `from_json` inverts it."""
        found = {
            "largest": list(self.largest),
            "holes": list(self.holes),
            "min_ml": dict(self.min_ml),
        } | ({"inside": {n: list(o) for n, o in self.inside}} if self.inside else {})
        return found | ({"organ_filter": list(self.organ_filter)} if self.organ_filter else {})

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
            tuple(fields.get("organ_filter") or ()),
        )


def organ_of(
    array: Shaped[np.ndarray, "*vol"], plan: Plan, corpus: Corpus, transform: Transform
) -> Bool[np.ndarray, "z y x"] | None:
    """The organ mask among the channels of a scan, cropped as the masks are; None without one.

    Args:
      array: (z, y, x) or (z, y, x, m), as stored.
    """
    roles = [plan.intensity_of(channel).role for channel in corpus.channels]
    if "mask" not in roles or array.ndim < 4:
        return None
    return transform.image(array[..., roles.index("mask")]) > 0


def apply(
    found: Segmentation,
    rules: Rules,
    space: LabelSpace,
    corpus: str,
    organ: Bool[np.ndarray, "z y x"] | None = None,
) -> Segmentation:
    """Masks after the rules (whose names must be resolved, see `Rules.checked`), the label map
    painted from them, and the changes. `organ`: see `organ_of`; without a voxel of one, the notes
    say that nothing was filtered by it.
    """
    masks, changes, notes = found.masks, {}, found.notes
    given = organ is not None and bool(organ.any())
    if rules.organ_filter and not given:
        notes = (*notes, "organ_filter removed nothing: this scan has no organ mask")
    voxel_ml = float(np.prod(masks.transform.spacing_mm)) / 1000
    hosts = dict(rules.inside)
    for name in sorted(masks.names, key=lambda name: name in hosts):  # organs first
        if masks.voxels[name] == 0:
            continue
        mask, steps = masks.cropped(name), {}
        if given and name in rules.organ_filter:
            mask, steps["organ_filter"] = touching(mask, organ)
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
    return found._replace(label_map=label_map, masks=masks, changes=changes, notes=notes)


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
