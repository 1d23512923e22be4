"""Components, holes and organs of a mask: what postprocessing does to one.

In: a boolean mask, (z, y, x) on any grid. Out: another, and how many voxels went or came.
Components are 26-connected, holes are what a 6-connected background outside cannot reach.

Source of `within`: the organ filter of the Universal Model (Liu et al., 2023).
"""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Bool
from scipy import ndimage

BOX = np.ones((5, 5, 5), bool)  # voxels by which an organ is closed and grown


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
    count = len(organs)
    found, box = np.logical_or.reduce(organs), _around(mask, *organs)
    inner, _ = _kept(
        found[box], lambda sizes: np.argsort(np.argsort(-sizes, kind="stable")) < count
    )
    out = np.zeros_like(mask)
    out[box] = mask[box] & _grown(inner)
    return out, int(np.count_nonzero(mask) - np.count_nonzero(out))


def touching(
    mask: Bool[np.ndarray, "z y x"], organ: Bool[np.ndarray, "z y x"]
) -> tuple[Bool[np.ndarray, "z y x"], int]:
    """The components of a mask that touch an organ, whole, and how many voxels went.

    The organ is closed and then grown by a box of 5 voxels: a tumour that was cut out of it stays.
    Without a voxel of the organ the mask stays as it is.
    """
    if not organ.any() or not mask.any():
        return mask, 0
    box = _around(mask, organ)
    components, count = ndimage.label(mask[box], np.ones((3, 3, 3)))
    keep = np.zeros(count + 1, bool)
    keep[np.unique(components[_grown(organ[box])])] = True
    keep[0] = False
    out = np.zeros_like(mask)
    out[box] = keep[components]
    return out, int(np.count_nonzero(mask) - np.count_nonzero(out))


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


def _kept(mask: np.ndarray, choose: Callable) -> tuple[np.ndarray, int]:
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


def _around(*masks: np.ndarray) -> tuple[slice, ...]:
    """A box around masks with room for closing and growing."""
    found = _box(np.logical_or.reduce(masks)) or ()
    return tuple(slice(max(one.start - 4, 0), one.stop + 4) for one in found)


def _grown(organ: np.ndarray) -> np.ndarray:
    padded = np.pad(organ, 4)
    return ndimage.binary_dilation(ndimage.binary_closing(padded, BOX), BOX)[4:-4, 4:-4, 4:-4]
