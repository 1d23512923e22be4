"""The masks of many classes in little memory: one bit per voxel, compressed, block by block.

In: blocks of decided voxels in canonical order, as prediction produces them. Out: the (z, y, x)
mask of one class on the stored grid.
"""

import zlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Bool

from medjax.prepare.geometry import Transform

Region = tuple[
    slice, slice
]  # rows and columns of the cropped canonical grid, both with start and stop


class Masks(Mapping):
    """Class name -> (z, y, x) bool on the stored grid, unpacked when asked for.

    Attributes:
      names: the classes, in channel order.
      voxels: class name -> number of voxels.
      regions: the blocks that were put, in order.
      beaten: voxels that a class lost to an exclusive one, which the label map shows there; None if
        the label map is painted in order. See `infer.conflicts`.
      conflicting, foreground: number of voxels with two exclusive classes, and with any class.
      confidence: class name -> mean probability of the class over the voxels decided for (before
        postprocessing), None without one; empty where it is not measured.
    """

    def __init__(self, names: Sequence[str], transform: Transform):
        self.beaten: Masks | None = None
        self.conflicting = self.foreground = 0
        self.confidence: dict[str, float | None] = {}
        self.names, self.transform = tuple(names), transform
        self.voxels = dict.fromkeys(self.names, 0)
        self.regions: list[Region] = []
        self._blocks: dict[
            tuple[str, int], bytes
        ] = {}  # (class, number of the region); all-False blocks are not kept

    def put(
        self, region: Region, names: Sequence[str], mask: Bool[np.ndarray, "rows y x c"]
    ) -> None:
        """Keeps one region of the cropped canonical grid for some classes, channel by channel; the
        others are empty there.
        """
        number = len(self.regions)
        self.regions.append(region)
        present = mask.reshape(-1, len(names)).any(0) if len(names) else ()
        for channel in np.flatnonzero(present):
            self._keep(names[channel], number, mask[..., channel])

    def _keep(self, name: str, number: int, mask: np.ndarray) -> None:
        block = np.ascontiguousarray(mask)
        count = int(np.count_nonzero(block))
        if count:
            self.voxels[name] += count
            self._blocks[name, number] = zlib.compress(np.packbits(block), 1)

    def block(
        self, number: int, names: Sequence[str] | None = None
    ) -> Bool[np.ndarray, "rows y x c"]:
        """The region with that number, of all or some classes."""
        shape, names = self._shape(number), self.names if names is None else names
        out = np.zeros((*shape, len(names)), bool)
        for channel, name in enumerate(names):
            if (found := self.part(name, number)) is not None:
                out[..., channel] = found
        return out

    def part(self, name: str, number: int) -> Bool[np.ndarray, "rows y x"] | None:
        """One class in one region; None where it is empty."""
        packed = self._blocks.get((name, number))
        return None if packed is None else _unpack(packed, self._shape(number))

    def cropped(self, name: str) -> Bool[np.ndarray, "z y x"]:
        """The mask of a class on the cropped canonical grid."""
        if name not in self.voxels:
            raise KeyError(name)
        out = np.zeros(self.transform.box_shape, bool)
        for number, region in enumerate(self.regions):
            if (found := self.part(name, number)) is not None:
                out[region] = found
        return out

    def replace(self, name: str, mask: Bool[np.ndarray, "z y x"]) -> None:
        """Puts another mask (cropped canonical grid) in place of a class's."""
        self.voxels[name] = 0
        for number, region in enumerate(self.regions):
            self._blocks.pop((name, number), None)
            self._keep(name, number, mask[region])

    def __getitem__(self, name: str) -> Bool[np.ndarray, "z y x"]:
        found = self.cropped(name)
        out = np.zeros(self.transform.stored_shape, bool)
        self.transform.image(out)[...] = (
            found  # a view: what is written there lands in stored order
        )
        return out

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def _shape(self, number: int) -> tuple[int, ...]:
        rows, columns = self.regions[number]
        return rows.stop - rows.start, columns.stop - columns.start, self.transform.box_shape[2]


def _unpack(packed: bytes, shape: tuple[int, ...]) -> np.ndarray:
    count = int(np.prod(shape))
    return (
        np.unpackbits(np.frombuffer(zlib.decompress(packed), np.uint8), count=count)
        .reshape(shape)
        .view(bool)
    )
