"""The inputs of a network that differ between the windows of one case: coordinates, which are
relative to the window, and arrays of voxels, which are cut as the image is.

In: the context of a case (see `models/context.py`). Out: the entries of a batch of windows.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from medjax.errors import PredictError, UsageError
from medjax.infer.windows import padding
from medjax.models import context


def check(spec: context.Spec, dims: int) -> None:
    """`UsageError` for coordinates of another number of axes than the network's windows have, and
    for values per block of voxels, which windows at any place cannot cut.
    """
    for name in context.moving(spec):
        shape = spec[name].shape
        if spec[name].block:
            raise UsageError(
                f"the network's input {name!r} holds one value per block of voxels",
                found=f"blocks of {spec[name].block}",
                expected="one value per voxel, for prediction in windows",
            )
        if spec[name].moves == "window" and shape[-1:] != (dims,):
            raise UsageError(
                f"the network's input {name!r} holds no coordinates of its windows",
                found=f"shape {tuple(shape)}",
                expected=f"{dims} coordinates on the last axis",
            )


def floats(spec: context.Spec) -> int:
    """Values per voxel of the entries that are cut as the image is."""
    return sum(int(np.prod(entry.shape)) for entry in spec.values() if entry.moves == "voxel")


class Moving:
    """The entries of the windows of a case; called with the places of a batch.

    Args:
      spec: what the network reads. case: see `context.of_request`; coordinates and voxels are those
        of the image.
      shape: (z, y, x) of the image. window: (z, y, x), or (y, x) for a network on slices, whose
        coordinates are (y, x) as well and apply to every slice.

    Raises: `PredictError` for an array of voxels of another shape than the image.
    """

    def __init__(
        self,
        spec: context.Spec,
        case: Mapping[str, np.ndarray],
        shape: Sequence[int],
        window: Sequence[int],
    ):
        self._spec = {name: spec[name] for name in context.moving(spec)}
        self._window = tuple(window)
        pad = padding(shape, (1, *window) if len(window) == 2 else window)
        self._case = {}
        for name, entry in self._spec.items():
            value = case[name]
            if entry.moves == "voxel":
                if value.shape[:3] != tuple(shape):
                    raise PredictError(
                        f"the network's input {name!r} lies on another grid than the scan",
                        found=value.shape[:3],
                        expected=tuple(shape),
                        fix="give it on the network's grid",
                    )
                behind = [(0, 0)] * len(entry.shape)
                value = np.pad(value, [*pad, *behind]) if any(map(any, pad)) else value
            else:  # counted from the first voxel of the padded image, as the places are
                low = [before for before, _ in pad[3 - len(window) :]]
                value = value + np.asarray(low, value.dtype)
            self._case[name] = value

    def __call__(self, places: Sequence[tuple[int, int, int]], k: int) -> dict[str, np.ndarray]:
        """The entries of k windows, (k, ...); those behind the last place are 0.

        Args:
          places: first voxels (z, y, x) of at most k windows, in the padded image.
        """
        found = {
            name: np.zeros((k, *entry.full_shape(self._window)), entry.dtype)
            for name, entry in self._spec.items()
        }
        for i, place in enumerate(places):
            for name, value in self._window_at(place).items():
                found[name][i] = value
        return found

    def _window_at(self, place: tuple[int, int, int]) -> dict[str, np.ndarray]:
        case, start = self._case, place
        if len(self._window) == 2:
            start = place[1:]
            case = {
                name: value[place[0]] if self._spec[name].moves == "voxel" else value
                for name, value in case.items()
            }
        return context.for_window(self._spec, case, start, self._window)
