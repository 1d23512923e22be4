"""Ways to damage a NIfTI case: header bytes, gzip streams, geometry, values, names.
`benchmarks/faults.py` says which must be found.

Flows in: the files of one case (`Site`), which are changed in place. The arrays seen here are in
nibabel's order (x, y, z).
"""

import dataclasses
import gzip
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np


@dataclasses.dataclass
class Site:
    """The files of a case that a fault is planted into; `image` may become several."""

    name: str
    images: list[Path]
    label: Path

    @property
    def image(self) -> Path:
        """The first image."""
        return self.images[0]


def rewrite(
    path: Path,
    array: Callable | None = None,
    affine: Callable | None = None,
    header: Callable | None = None,
    dtype=None,
) -> None:
    """Writes a NIfTI file again with its (x, y, z) array, affine, type or header bytes changed."""
    old = nib.load(path)
    data = np.asanyarray(old.dataobj).copy()
    data = data if array is None else array(data)
    data = data if dtype is None else data.astype(dtype)
    place = old.affine.copy() if affine is None else affine(old.affine.copy())
    new = nib.Nifti1Image(data, place)
    direction = place[:3, :3] / np.linalg.norm(place[:3, :3], axis=0)
    rigid = np.allclose(direction.T @ direction, np.eye(3), atol=1e-5)
    new.set_qform(place, 1 if rigid else 0)  # a qform cannot hold a shear
    new.set_sform(place, 1)
    new.header.set_xyzt_units("mm")
    if header is not None:
        header(new.header)
    nib.save(new, path)


def both(site: Site, **changes) -> None:
    """The same change to image and label."""
    for path in (*site.images, site.label):
        rewrite(path, **changes)


def patch(path: Path, offset: int, content: bytes) -> None:
    """Overwrites bytes of the uncompressed file."""

    raw = bytearray(gzip.decompress(path.read_bytes()))
    raw[offset : offset + len(content)] = content
    path.write_bytes(gzip.compress(bytes(raw), 1))


def cut(keep: float | int) -> Callable[[Path], None]:
    """Keeps a share of a file, or drops so many bytes at its end."""

    def damage(path: Path) -> None:
        content = path.read_bytes()
        path.write_bytes(
            content[: int(len(content) * keep)] if isinstance(keep, float) else content[:keep]
        )

    return damage


def crc(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-8] ^= 0xFF
    path.write_bytes(content)


def put(value, dtype=None) -> Callable:
    """One voxel in the middle gets another value."""

    def function(array: np.ndarray) -> np.ndarray:
        array = array if dtype is None else array.astype(dtype)
        array[tuple(n // 2 for n in array.shape)] = value
        return array

    return function


def moved(mm: float) -> Callable:
    """An affine whose origin is shifted along x."""

    def function(affine: np.ndarray) -> np.ndarray:
        affine[0, 3] += mm
        return affine

    return function


def turned(
    degrees: float = 0.0, shear: float = 0.0, spacing: Sequence[float] | None = None
) -> Callable:
    """An affine with its axes turned about z, sheared, or with other voxel sizes (x, y, z)."""

    def function(affine: np.ndarray) -> np.ndarray:
        sizes = np.linalg.norm(affine[:3, :3], axis=0) if spacing is None else np.asarray(spacing)
        a = np.radians(degrees)
        turn = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
        skew = np.eye(3)
        skew[0, 1] = shear
        affine[:3, :3] = turn @ skew * sizes
        return affine

    return function


def link(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.with_name("gone.nii.gz"))


def closed(path: Path) -> None:
    path.chmod(0)


def renamed(site: Site, function: Callable[[Path], Path]) -> None:
    """Gives image and label other names."""
    for i, path in enumerate(site.images):
        site.images[i] = path.rename(function(path))
    site.label = site.label.rename(function(site.label))


def oddly_named(site: Site) -> None:
    renamed(site, lambda path: path.with_name(f"ä b;$(touch x)' {path.name}"))


def unpacked(site: Site, ending: str) -> None:
    """The uncompressed bytes under another name."""

    for i, path in enumerate(site.images):
        content = gzip.decompress(path.read_bytes())
        path.unlink()
        site.images[i] = path.with_name(f"{site.name}{ending}")
        site.images[i].write_bytes(content)


def packed_as_nii(site: Site) -> None:
    site.images[0] = site.image.rename(site.image.with_name(f"{site.name}.nii"))


def reoriented(codes: str) -> Callable[[Site], None]:
    """Stores image and label with other axes."""

    def plant(site: Site) -> None:
        for path in (*site.images, site.label):
            image = nib.load(path)
            image = nib.Nifti1Image(np.asanyarray(image.dataobj), image.affine)
            wanted = nib.orientations.axcodes2ornt(codes)
            nib.save(
                image.as_reoriented(
                    nib.orientations.ornt_transform(nib.io_orientation(image.affine), wanted)
                ),
                path,
            )

    return plant


def forms(site: Site) -> None:
    """A qform elsewhere than the sform."""

    def header(h) -> None:
        other = h.get_sform()
        other[:3, 3] += 3
        h.set_qform(other, 2)

    rewrite(site.image, header=header)


def no_codes(site: Site) -> None:
    for path in (site.image, site.label):
        patch(path, 252, b"\0\0\0\0")


def scaled(dtype: str, order: str = "<") -> Callable[[Site], None]:
    """The image stored as another type, with slope and intercept for integers."""

    def plant(site: Site) -> None:
        old = nib.load(site.image)
        data = np.asanyarray(old.dataobj).astype(np.float64)
        new = nib.Nifti1Image(data, old.affine, nib.Nifti1Header(endianness=order))
        new.header.set_data_dtype(np.dtype(dtype).newbyteorder(order))
        nib.save(new, site.image)

    return plant


def typed(dtype) -> Callable[[Site], None]:
    def plant(site: Site) -> None:
        old = nib.load(site.image)
        nib.save(nib.Nifti1Image(np.zeros(old.shape[:3], dtype), old.affine), site.image)

    return plant


def slices(two_dimensional: bool) -> Callable[[Site], None]:
    def one(array: np.ndarray) -> np.ndarray:
        middle = array.shape[2] // 2
        return array[:, :, middle] if two_dimensional else array[:, :, middle : middle + 1]

    return lambda site: both(site, array=one)


def sparse_values(site: Site) -> None:
    rewrite(site.label, array=lambda a: np.choose(a.astype(int) % 3, [0, 1, 200]).astype(np.uint8))


def frames(site: Site) -> None:
    rewrite(site.image, array=lambda a: np.stack([a, a + 1, a], -1))


def second(site: Site, affine: Callable | None = None) -> None:
    """A second channel file, for the corpus with two."""
    site.images.append(site.image.with_name(f"{site.name}_0001.nii.gz"))
    shutil.copy(site.image, site.images[1])
    if affine is not None:
        rewrite(site.images[1], affine=affine)


def stacked(site: Site) -> None:
    rewrite(site.image, array=lambda a: np.stack([a, a[::-1]], -1))


def on_image(function: Callable[[Path], None]) -> Callable[[Site], None]:
    return lambda site: function(site.image)


def on_label(function: Callable[[Path], None]) -> Callable[[Site], None]:
    return lambda site: function(site.label)


def image(**changes) -> Callable[[Site], None]:
    return lambda site: rewrite(site.image, **changes)


def label(**changes) -> Callable[[Site], None]:
    return lambda site: rewrite(site.label, **changes)
