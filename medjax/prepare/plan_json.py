"""Validation of plan.json: every field is checked before its numbers are used.

In: parsed JSON from a run folder, an archive or a user. Out: nothing, or a `UsageError` that names
the file, the field and the value found.
"""

import math
from collections.abc import Mapping
from typing import Any

from medjax.errors import UsageError, shown
from medjax.prepare.presets import Configuration

SCHEMES = (
    "ct",
    "zscore",
    "rescale_to_0_1",
    "rgb_to_0_1",
    "nonorm",
    "window",
    "foreground",
    "mask",
)
GRIDS = ("spacing", "native", "size")
CROPS = ("nonzero", "foreground", "none")
MOST_VOXELS = 1 << 13  # of a fixed frame along an axis
OWN = -1  # in place of such a number: as many as the volume has
_WORDS = {
    "ctnormalization": "ct",
    "zscorenormalization": "zscore",
    "rescaleto01normalization": "rescale_to_0_1",
    "rgbto01normalization": "rgb_to_0_1",
    "nonormalization": "nonorm",
    "nonct": "zscore",
    "ct2": "ct",
} | {name: name for name in SCHEMES}
FINEST_MM, COARSEST_MM = 1e-3, 1e3
FIX = "give a plan.json that medjax wrote, or correct the field"


def scheme(word: Any) -> str:
    """A normalisation by medjax' or nnU-Net's name, case-insensitive; `UsageError` for others."""
    found = _WORDS.get(word.lower()) if isinstance(word, str) else None
    if found is None:
        raise UsageError(
            f"unknown intensity scheme {shown(word)[:60]!r}", expected=", ".join(SCHEMES)
        )
    return found


def check(fields: Any, path: object = None) -> None:
    """`UsageError` for an invalid plan.

    Missing fields, other types, spacings and statistics that are not finite numbers, unknown words.
    """

    refuse = _refuser(path)
    if not isinstance(fields, Mapping):
        raise refuse(
            "it is no object", type(fields).__name__, '{"spacing_mm": ..., "intensity": ...}'
        )
    for name in ("spacing_mm", "intensity", "orientation", "crop"):
        if name not in fields:
            raise refuse(f"the field {name!r} is missing", sorted(map(str, fields))[:8], name)
    for name in ("spacing_mm", "intensity"):
        if not isinstance(fields[name], Mapping):
            raise refuse(f"{name!r} must be an object", fields[name], f'"{name}": {{"NAME": ...}}')
    for corpus, spacing in fields["spacing_mm"].items():
        if (
            not isinstance(spacing, list | tuple)
            or len(spacing) != 3
            or not all(_real(s) and FINEST_MM <= s <= COARSEST_MM for s in spacing)
        ):
            raise refuse(
                f"the spacing of {shown(corpus)!r}",
                spacing,
                f"three sizes in mm from {FINEST_MM:g} to {COARSEST_MM:g}",
            )
    for channel, given in fields["intensity"].items():
        check_intensity(channel, given, path)
    _check_grid(fields, refuse)
    for name, known in (("orientation", ("RAS", "stored")), ("crop", CROPS)):
        if fields[name] not in known:
            raise refuse(f"unknown {name}", fields[name], " or ".join(known))
    order = fields.get("transpose", (0, 1, 2))
    if (
        not isinstance(order, list | tuple)
        or not all(type(a) is int for a in order)
        or sorted(order) != [0, 1, 2]
    ):
        raise refuse("'transpose'", order, "an order of 0, 1, 2")
    if not isinstance(fields.get("configurations", {}), Mapping):
        raise refuse("'configurations' must be an object", fields["configurations"], "{}")


def check_size(size: Any) -> tuple[int, int, int] | None:
    """Three voxel numbers of a fixed frame, or None if they are not usable.

    -1 is the volume's own number (slices of a fixed frame); not along all three axes.
    """
    if not isinstance(size, list | tuple) or len(size) != 3:
        return None
    if not all(type(n) is int and (n == OWN or 1 <= n <= MOST_VOXELS) for n in size):
        return None
    if all(n == OWN for n in size):
        return None
    return tuple(size)


def _check_grid(fields: Mapping, refuse: Any) -> None:
    kind, size = fields.get("grid", "spacing"), fields.get("size")
    if kind not in GRIDS:
        raise refuse("unknown grid", kind, ", ".join(GRIDS))
    if (kind == "size") != (size is not None) or (size is not None and check_size(size) is None):
        raise refuse(
            "'size'",
            size,
            f"three whole numbers from 1 to {MOST_VOXELS} with the grid 'size', else no size",
        )


def _refuser(path: object) -> Any:
    def refuse(what: str, found: Any, expected: str) -> UsageError:
        return UsageError(
            f"no usable plan: {what}",
            path=path,
            found=shown(repr(found))[:120],
            expected=expected,
            fix=FIX,
        )

    return refuse


def check_intensity(channel: str, given: Any, path: object = None) -> None:
    """`UsageError` for the normalisation of one channel that has other words or numbers."""
    known, refuse = {"scheme", "clip", "mean", "std", "masked", "percentiles"}, _refuser(path)
    if not isinstance(given, Mapping) or not set(given) <= known or "scheme" not in given:
        raise refuse(
            f"the intensity of channel {shown(channel)!r}",
            given,
            f"an object with {', '.join(sorted(known))}",
        )
    try:
        name = scheme(given["scheme"])
    except UsageError as error:
        raise UsageError(
            f"{error.message} of channel {shown(channel)!r}",
            path=path,
            expected=error.expected,
            fix=FIX,
        ) from None
    if type(given.get("masked", False)) is not bool:
        raise refuse(f"'masked' of channel {shown(channel)!r}", given["masked"], "true or false")
    clip, mean, std = (given.get(key) for key in ("clip", "mean", "std"))
    shares = given.get("percentiles")
    if name == "foreground" and shares is not None:
        if not (_is_pair(shares) and 0 <= shares[0] < shares[1] <= 100):
            raise refuse(
                f"'percentiles' of channel {shown(channel)!r}",
                shares,
                "two numbers from 0 to 100, the lower first",
            )
    if name not in ("ct", "window"):
        return
    if not (_is_pair(clip) and clip[0] <= clip[1] and (name == "ct" or clip[0] < clip[1])):
        raise refuse(f"'clip' of channel {shown(channel)!r}", clip, "two numbers, the lower first")
    if name == "window":
        return
    if not (_real(mean) and _real(std) and std > 0):
        raise refuse(
            f"mean and std of channel {shown(channel)!r}",
            (mean, std),
            "a number and a positive number",
        )


def configuration(name: str, fields: Any, path: object = None) -> Configuration:
    """A planned configuration; `UsageError` for missing, unknown or non-numeric fields."""
    try:
        found = Configuration.from_json(fields)
        sizes = [
            *found.patch,
            *found.features,
            *found.encoder,
            *found.decoder,
            *sum(found.strides, ()),
            *sum(found.kernels, ()),
            found.batch,
        ]
        if not found.patch or not all(type(n) is int and 0 < n < 1 << 20 for n in sizes):
            raise ValueError(
                "patch, batch, features, blocks, strides and kernels must be positive whole numbers"
            )
        if not all(_real(s) and s > 0 for s in found.spacing_mm):
            raise ValueError("spacings must be positive")
        return found
    except (TypeError, ValueError, AttributeError) as error:
        raise UsageError(
            f"no usable plan: configuration {shown(name)!r} ({str(error)[:200]})",
            path=path,
            fix=FIX,
        ) from error


def _is_pair(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2 and all(map(_real, value))


def _real(value: Any) -> bool:
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and abs(value) < 1e30
        and math.isfinite(value)
    )
