"""Small synthetic raw corpora for tests: NIfTI folders in the MSD or nnU-Net layout, with blobs
whose intensity depends on their label.

    folder = write_corpus(
        tmp_path / "Task01_Blobs",
        n=4,
        shape=(20, 24, 22),
        layout="msd",
        labels={"organ": 1, "tumour": 2},
    )

Shapes and spacings are (z, y, x); files hold (x, y, z), stored as RAS unless `axcodes` says
otherwise.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np

DEFAULT_LABELS = {"organ": 1, "tumour": 2}


def label_values(labels: Mapping[str, int | Sequence[int]]) -> list[int]:
    """All foreground values that `labels` declares, the ignore value left out, ascending."""
    found = set()
    for name, value in labels.items():
        if name != "ignore":
            found |= set(value) if isinstance(value, list | tuple) else {value}
    return sorted(found - {0})


def make_case(
    shape: tuple[int, int, int],
    values: Sequence[int],
    *,
    channels: int = 1,
    kind: str = "MR",
    seed: int = 0,
    margin: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """One scan: nested or disjoint ellipsoids on a smooth noisy background.

    Args:
      shape: (z, y, x). values: label values to place, the later ones smaller and inside the
        earlier. kind: "CT" for HU, else arbitrary
      units above 0. margin: voxels of exact 0 around the scan, which cropping to non-zero removes.

    Returns: image (z, y, x, channels) float32 with integer values, label (z, y, x) uint8 or uint16.
    """
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij"), -1)
    centre = rng.uniform(-0.2, 0.2, 3)
    distance = np.linalg.norm((grid - centre) / rng.uniform(0.9, 1.1, 3), axis=-1)
    label = np.zeros(shape, np.uint16 if max(values, default=0) > 255 else np.uint8)
    for k, value in enumerate(values):
        label[distance < 0.75 * (1 - k / (len(values) + 0.5))] = value
    base, step = (-80.0, 60.0) if kind == "CT" else (200.0, 100.0)
    layers = np.zeros(shape)
    for k, value in enumerate(values):
        layers[label == value] = k + 1
    channel = [
        base + step * layers * (1 + 0.3 * c) + 30 * grid[..., c % 3] + rng.normal(0, 8, shape)
        for c in range(channels)
    ]
    image = np.rint(np.stack(channel, -1)).astype(np.float32)
    if margin:
        inside = np.zeros(shape, bool)
        inside[tuple(slice(margin, n - margin) for n in shape)] = True
        image[~inside], label[~inside] = 0, 0
    return image, label


def save(
    path: Path,
    array: np.ndarray,
    spacing_mm: tuple[float, ...] = (1, 1, 1),
    axcodes: str = "RAS",
    origin: Sequence[float] = (5, -7, 11),
):
    """Writes a (z, y, x[, m]) array that is in RAS as NIfTI with the stored axes `axcodes` (x, y, z
    letters); both form codes 1.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = np.diag([*spacing_mm[::-1], 1.0])
    affine[:3, 3] = origin
    xyz = np.ascontiguousarray(array.transpose(2, 1, 0, *range(3, array.ndim)))
    image = nib.Nifti1Image(xyz, affine)
    ornt = nib.orientations.axcodes2ornt(axcodes)
    image = image.as_reoriented(nib.orientations.ornt_transform(nib.io_orientation(affine), ornt))
    image.set_qform(image.affine, 1)
    image.set_sform(image.affine, 1)
    image.header.set_xyzt_units("mm")
    nib.save(image, path)


def write_corpus(
    folder: Path,
    n: int = 4,
    shape: tuple[int, int, int] = (20, 24, 22),
    layout: str = "msd",
    labels: Mapping[str, int | Sequence[int]] | None = None,
    *,
    channels: Sequence[str] = ("MRI",),
    spacing_mm: tuple[float, float, float] = (1, 1, 1),
    medjax: Mapping | None = None,
    axcodes: str = "RAS",
    margin: int = 0,
    seed: int = 0,
    vary: bool = True,
) -> Path:
    """Writes a raw corpus of `n` cases case_000 ... and its dataset.json.

    Args:
      folder: to create, e.g. Task01_Blobs or Dataset001_Blobs. layout: "msd" (one 4-D file for
        several channels) or "nnunet".
      labels: name -> value, or -> list of values (a region); "ignore" is declared but painted
        nowhere. Default organ 1, tumour 2.
      channels: channel names; "CT" gives HU. medjax: the dataset.json block of that name. axcodes:
        stored orientation.
      vary: the y extent grows by one voxel from case to case.

    Returns: the folder.
    """
    folder, labels = Path(folder), dict(DEFAULT_LABELS if labels is None else labels)
    values, entries = label_values(labels), []
    for i in range(n):
        size = (shape[0], shape[1] + (i if vary else 0), shape[2])
        kind = "CT" if any(c.lower() == "ct" for c in channels) else "MR"
        image, label = make_case(
            size, values, channels=len(channels), kind=kind, seed=seed + i, margin=margin
        )
        name = f"case_{i:03d}"
        if layout == "nnunet":
            for c in range(len(channels)):
                save(
                    folder / "imagesTr" / f"{name}_{c:04d}.nii.gz",
                    image[..., c],
                    spacing_mm,
                    axcodes,
                )
        else:
            save(
                folder / "imagesTr" / f"{name}.nii.gz",
                image if len(channels) > 1 else image[..., 0],
                spacing_mm,
                axcodes,
            )
        save(folder / "labelsTr" / f"{name}.nii.gz", label, spacing_mm, axcodes)
        entries.append({"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"})
    numbered, extra = {str(c): name for c, name in enumerate(channels)}, dict(medjax or {})
    if layout == "nnunet":
        spec = {
            "channel_names": numbered,
            "labels": {"background": 0, **labels},
            "numTraining": n,
            "file_ending": ".nii.gz",
        }
    else:
        regions = {
            name: list(value) for name, value in labels.items() if isinstance(value, list | tuple)
        }
        plain = {str(value): name for name, value in labels.items() if name not in regions}
        spec = {
            "name": folder.name,
            "modality": numbered,
            "labels": {"0": "background", **plain},
            "training": entries,
            "test": [],
        }
        extra |= {"regions": regions} if regions else {}
    (folder / "dataset.json").write_text(
        json.dumps(spec | ({"medjax": extra} if extra else {}), indent=1)
    )
    return folder
