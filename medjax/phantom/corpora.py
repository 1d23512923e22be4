"""The embedded demo corpora: synthetic abdomens, scanned and annotated in three ways.

In: a seed. Out: three raw data set folders (NIfTI and dataset.json) that need no download and
contain no patient's data:

  Task01_PhantomCT  portal-venous CT, abdomen with lung bases, stored LPS; eleven organs, plus
                    "kidney" as the union of both sides
  Task02_PhantomMR  T1-weighted MRI, upper abdomen, oblique slices, stored RAS; "liver" with
                    "liver tumour" nested in it
  Task03_PhantomCE  contrast-enhanced MRI, kidney region, stored LPI, nnU-Net layout;
                    "kidney" (5) with "kidney tumour" (9) nested in it

Every image shows the whole anatomy while each corpus annotates a part of it, and one value means
different things in different corpora: partial, conflicting annotation as in a pool of public data
sets. Case i of a corpus depends on (seed, corpus, i) only, so a folder can be reproduced. The
corpora are for tests and demos: scores on them show that the engine works, not how it performs on
patients.
"""

import os
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from medjax import files
from medjax.errors import UsageError, did_you_mean
from medjax.phantom.anatomy import T, bones, chest, draw_patient, trunk
from medjax.phantom.bowel import colon, duodenum, small_bowel, stomach
from medjax.phantom.organs import great_vessels, kidneys, liver, pancreas, spleen
from medjax.phantom.scan import CT, T1, T1_ENHANCED, Protocol, acquire, annotate, make_canvas, place

VERSION = 1  # to be raised if the same seed gives other voxels
STAGES = (
    trunk,
    bones,
    chest,
    great_vessels,
    kidneys,
    pancreas,
    duodenum,
    spleen,
    stomach,
    colon,
    liver,
    small_bowel,
)  # from stiff to soft
SIZES = ("tiny", "small", "medium")
MARK = b"medjax phantom, no patient"  # in every header; identifies our files

_TINY = (20, 40, 40)
_LIVER, _LIVER_TUMOUR = (
    (T.LIVER, T.HEPATIC_VEIN, T.PORTAL_BRANCH),
    (T.LIVER_TUMOUR, T.LIVER_NECROSIS),
)
_RIGHT, _LEFT = (T.CORTEX, T.MEDULLA, T.CYST), (T.CORTEX_LEFT, T.MEDULLA_LEFT, T.CYST_LEFT)

PROTOCOLS = {
    "ct": Protocol(
        "Task01_PhantomCT",
        "ct",
        "msd",
        "CT",
        "CT",
        CT,
        "LPS",
        0.0,
        (-90, 140),
        grids={"tiny": _TINY, "small": (46, 84, 112), "medium": (76, 168, 224)},
        labels={
            "liver": (1, (*_LIVER, *_LIVER_TUMOUR)),
            "spleen": (2, (T.SPLEEN,)),
            "right kidney": (3, (*_RIGHT, T.KIDNEY_TUMOUR)),
            "left kidney": (4, (*_LEFT, T.KIDNEY_TUMOUR_LEFT)),
            "stomach": (5, (T.STOMACH_WALL, T.STOMACH_FLUID, T.STOMACH_GAS)),
            "gallbladder": (6, (T.BILE,)),
            "pancreas": (7, (T.PANCREAS,)),
            "aorta": (8, (T.AORTA,)),
            "inferior vena cava": (9, (T.CAVA,)),
            "portal and splenic vein": (10, (T.PORTAL,)),
            "spine": (11, (T.VERTEBRA, T.VERTEBRA_MARROW, T.DISC)),
        },
        regions={"kidney": (3, 4)},
    ),
    "mr": Protocol(
        "Task02_PhantomMR",
        "mr",
        "msd",
        "MR",
        "T1",
        T1,
        "RAS",
        5.0,
        (-62, 142),
        grids={"tiny": _TINY, "small": (34, 80, 104), "medium": (50, 136, 176)},
        labels={"liver": (1, _LIVER), "liver tumour": (2, _LIVER_TUMOUR)},
        regions={"liver": (1, 2)},
    ),
    "ce": Protocol(
        "Task03_PhantomCE",
        "ce",
        "nnunet",
        "CE-MR",
        "T1 contrast-enhanced",
        T1_ENHANCED,
        "LPI",
        0.0,
        (-84, 76),
        grids={"tiny": _TINY, "small": (40, 84, 112), "medium": (60, 150, 200)},
        labels={
            "kidney": (5, (*_RIGHT, *_LEFT)),
            "kidney tumour": (9, (T.KIDNEY_TUMOUR, T.KIDNEY_TUMOUR_LEFT)),
        },
        regions={"kidney": (5, 9)},
    ),
}


def make_case(
    corpus: str, seed: int, case: int, *, size: str = "small"
) -> tuple[np.ndarray, np.ndarray, tuple[float, ...], np.ndarray]:
    """One synthetic scan with its annotation, as it would be stored.

    Args:
      corpus: "ct", "mr" or "ce" (or the folder name).
      seed, case: the patient; case 0 of "mr" and "ce" always has a tumour.
      size: "tiny" (about 20 slices of 40 x 40), "small" (about 40 of 84 x 112) or "medium" (about
        60 of 150 x 200).

    Returns: image (z, y, x) int16 (HU, or arbitrary units), label values (z, y, x) uint8, spacing
      in mm (z, y, x), and the affine (4, 4) float64 that takes (x, y, z) voxel indices to RAS+ mm.
    Raises: `UsageError` for an unknown corpus or size.
    """
    key = {p.folder: k for k, p in PROTOCOLS.items()}.get(corpus, corpus)
    if key not in PROTOCOLS:
        raise UsageError(f"unknown phantom corpus {corpus!r}", fix=did_you_mean(corpus, PROTOCOLS))
    _check_size(size)
    protocol = PROTOCOLS[key]
    body, lying, painting, scanning = np.random.default_rng(
        [seed, list(PROTOCOLS).index(key), case]
    ).spawn(4)
    who = draw_patient(
        body, liver_tumours=key == "mr" and case == 0, kidney_tumours=key == "ce" and case == 0
    )
    shape, affine, centre = place(protocol, who, protocol.grids[size], lying)
    canvas = make_canvas(protocol, who, shape, affine, centre, lying)
    state: dict[str, np.ndarray] = {}
    for stage, child in zip(
        STAGES, painting.spawn(len(STAGES)), strict=True
    ):  # own generators: a change in one stage leaves the others
        stage(canvas, who, child, state)
    image, ids = (
        acquire(protocol, canvas.tissue, affine, scanning),
        annotate(protocol, canvas.tissue),
    )
    return image, ids, tuple(float(v) for v in np.linalg.norm(affine[:3, :3], axis=0)[::-1]), affine


def write_corpora(
    folder: str | os.PathLike,
    *,
    seed: int = 0,
    cases: int | Sequence[int] = (12, 10, 10),
    size: str = "small",
    workers: int | None = None,
) -> list[Path]:
    """Writes the three corpora under `folder`.

    Corpora that exist with the same seed, number of cases and size are left unchanged.

    Args:
      folder: parent of the three data set folders; created if missing.
      seed: any non-negative integer.
      cases: per corpus (CT, MR, CE), or one number for all.
      size: see `make_case`.
      workers: threads; default one per core, at most 8.

    Returns: the three data set folders.
    Raises: `UsageError` for a wrong size or number of cases, or if files not written by medjax are
      in the folders.
    """
    counts = [cases] * len(PROTOCOLS) if isinstance(cases, int) else list(cases)
    if len(counts) != len(PROTOCOLS) or min(counts) < 1:
        raise UsageError(
            "wrong number of phantom cases",
            found=cases,
            expected=f"one positive number or {len(PROTOCOLS)} of them",
        )
    _check_size(size)
    folders = [Path(folder) / protocol.folder for protocol in PROTOCOLS.values()]
    unfinished = {}
    for key, target, count in zip(PROTOCOLS, folders, counts, strict=True):
        made = {"version": VERSION, "seed": seed, "cases": count, "size": size}
        if not _is_complete(PROTOCOLS[key], target, made):
            unfinished[key] = (target, made)
    for key, (target, made) in unfinished.items():
        _clear(PROTOCOLS[key], target, made["cases"])
    jobs = [
        (key, target, seed, case, size)
        for key, (target, made) in unfinished.items()
        for case in range(made["cases"])
    ]
    with ThreadPoolExecutor(workers or min(os.cpu_count() or 1, 8)) as pool:
        for _ in pool.map(lambda job: _write_case(*job), jobs):
            pass
    for key, (
        target,
        made,
    ) in unfinished.items():  # the description comes last: a folder with one is complete
        files.write_json(target / "dataset.json", _description(PROTOCOLS[key], made))
    return folders


def descriptions(cases: int) -> dict[str, dict]:
    """Folder name -> the dataset.json that `write_corpora` would write; nothing is drawn."""
    made = {"version": VERSION, "seed": 0, "cases": cases, "size": "small"}
    return {protocol.folder: _description(protocol, made) for protocol in PROTOCOLS.values()}


def _check_size(size: str):
    if size not in SIZES:
        raise UsageError(f"unknown phantom size {size!r}", fix=did_you_mean(size, SIZES))


def _case_names(protocol: Protocol, count: int) -> list[str]:
    return [f"{protocol.prefix}_{case:03d}" for case in range(count)]


def _files(protocol: Protocol, target: Path, name: str) -> tuple[Path, Path]:
    """Image and label path of a case."""
    channel = "_0000" if protocol.layout == "nnunet" else ""
    return target / "imagesTr" / f"{name}{channel}.nii.gz", target / "labelsTr" / f"{name}.nii.gz"


def _write_case(key: str, target: Path, seed: int, case: int, size: str):
    image, ids, _, affine = make_case(key, seed, case, size=size)
    for path, array in zip(
        _files(PROTOCOLS[key], target, f"{PROTOCOLS[key].prefix}_{case:03d}"),
        (image, ids),
        strict=True,
    ):
        _write_nifti(path, array, affine)


def _write_nifti(path: Path, array: np.ndarray, affine: np.ndarray):
    """Writes array (z, y, x) as a new file with qform and sform code 1, in millimetres."""
    import nibabel as nib

    image = nib.Nifti1Image(np.ascontiguousarray(array.T), affine)
    image.set_qform(affine, 1)
    image.set_sform(affine, 1)
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = MARK
    with files.replacing_path(path) as temporary:
        nib.save(image, temporary)


def _is_phantom(path: Path) -> bool:
    """Whether a file is one that this module has written; links are not."""
    import nibabel as nib

    if path.is_symlink() or not path.is_file():
        return False
    try:
        return bytes(nib.load(path).header["descrip"]).rstrip(b"\0") == MARK
    except Exception:  # a foreign file can raise any type
        return False


def _description(protocol: Protocol, made: Mapping) -> dict:
    """dataset.json of one corpus in its layout, with the "medjax" block."""
    names = _case_names(protocol, made["cases"])
    block = {
        "annotated": list(dict.fromkeys([*protocol.labels, *protocol.regions])),
        "modality": protocol.modality,
        "patients": {name: f"phantom_{name}" for name in names},
    }
    common = {
        "description": "Synthetic abdomens made by medjax; no patient data",
        "licence": "CC0-1.0",
        "phantom": dict(made),
    }
    if protocol.layout == "nnunet":
        labels = {
            name: list(protocol.regions.get(name, ())) or value
            for name, (value, _) in protocol.labels.items()
        }
        return {
            "name": protocol.folder,
            "channel_names": {"0": protocol.channel},
            "labels": {"background": 0, **labels},
            "regions_class_order": sorted(value for value, _ in protocol.labels.values()),
            "numTraining": len(names),
            "file_ending": ".nii.gz",
            "medjax": block,
        } | common
    return {
        "name": re.sub(r"^Task\d+_", "", protocol.folder),
        "tensorImageSize": "3D",
        "modality": {"0": protocol.channel},
        "labels": {
            "0": "background",
            **{str(value): name for name, (value, _) in protocol.labels.items()},
        },
        "numTraining": len(names),
        "numTest": 0,
        "training": [
            {"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"}
            for name in names
        ],
        "test": [],
        "medjax": block
        | {"regions": {name: list(values) for name, values in protocol.regions.items()}},
    } | common


def _is_complete(protocol: Protocol, target: Path, made: Mapping) -> bool:
    """True if the folder holds exactly these cases; a data set that is not ours is an error."""
    path = target / "dataset.json"
    if not path.exists():
        return False
    try:
        found = files.read_json(path)["phantom"]
    except (UsageError, TypeError, KeyError):
        raise UsageError(
            "holds another data set",
            path=target,
            fix="choose another folder for the phantom corpora, or move this one away",
        ) from None
    names = _case_names(protocol, made["cases"])
    return found == dict(made) and all(
        file.exists() for name in names for file in _files(protocol, target, name)
    )


def _clear(protocol: Protocol, target: Path, count: int):
    """Removes the description and surplus cases written by medjax.

    Any other file is an error; then nothing is removed.
    """
    wanted, surplus = (
        {file for name in _case_names(protocol, count) for file in _files(protocol, target, name)},
        [],
    )
    for part in (target, target / "imagesTr", target / "labelsTr"):
        if part.is_symlink():
            raise UsageError(
                "a link is in the way of the phantom corpora",
                path=part,
                fix="choose another folder, or move it away",
            )
        part.mkdir(parents=True, exist_ok=True)
        for file in sorted(part.iterdir()) if part != target else ():
            if file.name.startswith("."):
                continue
            if not re.fullmatch(
                rf"{protocol.prefix}_\d{{3,}}(_0000)?\.nii\.gz", file.name
            ) or not _is_phantom(file):
                raise UsageError(
                    "is in the way of the phantom corpora",
                    path=file,
                    fix="choose another folder for them, or move it away",
                )
            surplus += [] if file in wanted else [file]
    (target / "dataset.json").unlink(missing_ok=True)
    for file in surplus:
        file.unlink()
