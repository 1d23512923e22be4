"""The masks of many classes in little memory: one bit per voxel, compressed, row block by row block.

In: blocks of decided voxels in canonical order, as prediction produces them. Out: the (z, y, x) mask of one class on the stored grid.
"""

import zlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Bool

from medjax.data.geometry import Transform


class Masks(Mapping):
    """Class name -> (z, y, x) bool on the stored grid, unpacked when asked for.

    Attributes:
      names: the classes, in channel order.
      voxels: class name -> number of voxels.
    """

    def __init__(self, names: Sequence[str], transform: Transform):
        self.names, self._transform = tuple(names), transform
        self.voxels = dict.fromkeys(self.names, 0)
        self._blocks: dict[tuple[str, int, int], bytes] = {}  # (class, first row, end) of the crop; all-False blocks are not kept

    def put(self, rows: slice, names: Sequence[str], mask: Bool[np.ndarray, "rows y x c"]) -> None:
        """Keeps rows of the cropped canonical grid for some classes, channel by channel."""
        for channel, name in enumerate(names):
            block = np.ascontiguousarray(mask[..., channel])
            count = int(np.count_nonzero(block))
            if count:
                self.voxels[name] += count
                self._blocks[name, rows.start, rows.stop] = zlib.compress(np.packbits(block), 1)

    def block(self, rows: slice) -> Bool[np.ndarray, "rows y x c"]:
        """Rows of the cropped canonical grid, all classes; `rows` must be one that `put` was called with."""
        shape = (rows.stop - rows.start, *self._transform.box_shape[1:])
        out = np.zeros((*shape, len(self.names)), bool)
        for channel, name in enumerate(self.names):
            if packed := self._blocks.get((name, rows.start, rows.stop)):
                out[..., channel] = _unpack(packed, shape)
        return out

    def __getitem__(self, name: str) -> Bool[np.ndarray, "z y x"]:
        if name not in self.voxels:
            raise KeyError(name)
        out = np.zeros(self._transform.stored_shape, bool)
        cropped = self._transform.image(out)  # a view: what is written here lands in stored order
        for (owner, start, stop), packed in self._blocks.items():
            if owner == name:
                cropped[start:stop] = _unpack(packed, (stop - start, *cropped.shape[1:]))
        return out

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def _unpack(packed: bytes, shape: tuple[int, ...]) -> np.ndarray:
    count = int(np.prod(shape))
    return np.unpackbits(np.frombuffer(zlib.decompress(packed), np.uint8), count=count).reshape(shape).view(bool)
