"""The embedded demo corpora: synthetic abdomens, scanned three ways, annotated three ways.

Nothing goes in but a seed; out come three raw data set folders (NIfTI and dataset.json) that need no download and carry no patient's data:

  Task01_PhantomCT  portal-venous CT, whole abdomen with lung bases, stored LPS; eleven organs, plus "kidney" as the union of both sides
  Task02_PhantomMR  T1-like MRI, upper abdomen, oblique, stored RAS; "liver" with "liver tumour" nested in it
  Task03_PhantomCE  contrast-enhanced MRI, kidney region, stored LPI, nnU-Net layout; "kidney" with "kidney tumour" nested in it (values 5 and 9)

Every image shows the whole anatomy while each corpus marks its share, and label values mean different things in different corpora: the situation
of partial, conflicting annotation. Case i of a corpus depends on (seed, corpus, i) only, so folders can grow and be made again bit by bit.
The anatomy is in `phantom_anatomy` and `phantom_organs`; here are contrasts, acquisition and writing. This is a stage set for tests and demos:
scores on it say that the engine works, nothing about patients.
"""

import dataclasses
import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from medjax.data.phantom_anatomy import Patient, T, draw_patient
from medjax.data.phantom_organs import paint_patient
from medjax.data.phantom_shapes import Canvas, noise
from medjax.errors import UsageError, did_you_mean

VERSION = 1  # raise it when the same seed gives other voxels
OVERSAMPLING = 2  # fine voxels per voxel and in-plane axis, averaged for partial volume
SIZES = ("tiny", "small", "medium")

# tissue: CT in HU, T1-weighted MRI and contrast-enhanced fat-suppressed T1 in arbitrary units, texture (share of the contrast range)
_TISSUES = {
    T.AIR: (-1000, 0, 0, 0), T.COUCH: (-60, 0, 0, 0), T.SKIN: (20, 350, 300, 1), T.FAT: (-105, 900, 190, 0.7), T.INNER_FAT: (-100, 860, 170, 1),
    T.MUSCLE: (60, 330, 290, 1), T.CARTILAGE: (115, 300, 200, 1), T.BONE: (480, 120, 110, 2), T.MARROW: (240, 560, 190, 2),
    T.VERTEBRA: (430, 140, 130, 2), T.VERTEBRA_MARROW: (200, 540, 230, 2), T.DISC: (85, 300, 160, 1), T.CSF: (12, 110, 90, 0.5),
    T.CORD: (40, 330, 190, 0.5), T.LUNG: (-830, 40, 35, 2.5), T.LUNG_VESSEL: (60, 140, 600, 1), T.HEART: (105, 340, 480, 1),
    T.BLOOD: (150, 190, 720, 1), T.LIVER: (110, 540, 560, 1), T.HEPATIC_VEIN: (160, 290, 790, 0.5), T.PORTAL_BRANCH: (168, 300, 800, 0.5),
    T.LIVER_TUMOUR: (66, 350, 400, 2), T.LIVER_NECROSIS: (38, 240, 230, 1), T.SPLEEN: (122, 400, 630, 1), T.PANCREAS: (98, 570, 560, 2.5),
    T.BILE: (8, 190, 110, 0.5), T.ADRENAL: (75, 400, 450, 1), T.CORTEX: (190, 450, 930, 1), T.CORTEX_LEFT: (190, 450, 930, 1),
    T.MEDULLA: (142, 340, 640, 1.5), T.MEDULLA_LEFT: (142, 340, 640, 1.5), T.CYST: (6, 120, 90, 0.3), T.CYST_LEFT: (6, 120, 90, 0.3),
    T.KIDNEY_TUMOUR: (92, 330, 430, 3), T.KIDNEY_TUMOUR_LEFT: (92, 330, 430, 3), T.URINE: (12, 130, 120, 0.5), T.AORTA: (160, 160, 900, 0.5),
    T.CAVA: (138, 180, 760, 1), T.PORTAL: (165, 200, 820, 0.5), T.ARTERY: (155, 170, 860, 0.5), T.VEIN: (145, 190, 740, 0.5),
    T.STOMACH_WALL: (78, 360, 480, 1), T.STOMACH_FLUID: (18, 170, 110, 2), T.STOMACH_GAS: (-960, 12, 12, 0), T.OESOPHAGUS: (60, 340, 420, 1),
    T.BOWEL_WALL: (82, 370, 520, 1.5), T.BOWEL_FLUID: (22, 220, 140, 2), T.BOWEL_CONTRAST: (200, 300, 160, 3), T.GAS: (-950, 12, 12, 0),
    T.STOOL: (35, 420, 260, 4),
}  # fmt: skip
_FLUIDS = (T.BILE, T.CSF, T.CYST, T.CYST_LEFT, T.AIR, T.COUCH, T.GAS, T.STOMACH_GAS, T.LUNG)

_LIVER = (T.LIVER, T.HEPATIC_VEIN, T.PORTAL_BRANCH)
_TUMOUR = (T.LIVER_TUMOUR, T.LIVER_NECROSIS)
_RIGHT, _LEFT = (T.CORTEX, T.MEDULLA, T.CYST), (T.CORTEX_LEFT, T.MEDULLA_LEFT, T.CYST_LEFT)


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How one corpus is scanned, stored and annotated.

    Attributes:
      folder: data set folder; prefix: of the case names; layout: "msd" or "nnunet".
      modality / channel: for dataset.json. column: of the tissue table.
      axes: directions in which the stored x, y, z axes grow; oblique_deg: largest tilt of the slices.
      extent_mm: lowest and highest z of the slices in the patient. grids: size name -> (slices, rows, columns).
      labels: class -> (value, tissues). regions: class -> values, for dataset.json.
    """

    folder: str
    prefix: str
    layout: str
    modality: str
    channel: str
    column: int
    axes: str
    oblique_deg: float
    extent_mm: tuple[float, float]
    grids: Mapping[str, tuple[int, int, int]]
    labels: Mapping[str, tuple[int, tuple[int, ...]]]
    regions: Mapping[str, tuple[int, ...]]


_TINY = (20, 40, 40)
PROTOCOLS = {
    "ct": Protocol(
        "Task01_PhantomCT", "ct", "msd", "CT", "CT", 0, "LPS", 0.0, (-90, 140),
        {"tiny": _TINY, "small": (46, 84, 112), "medium": (76, 168, 224)},
        {
            "liver": (1, (*_LIVER, *_TUMOUR)),
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
        {"kidney": (3, 4)},
    ),
    "mr": Protocol(
        "Task02_PhantomMR", "mr", "msd", "MR", "T1", 1, "RAS", 5.0, (-62, 142),
        {"tiny": _TINY, "small": (34, 80, 104), "medium": (50, 136, 176)},
        {"liver": (1, _LIVER), "liver tumour": (2, _TUMOUR)},
        {"liver": (1, 2)},
    ),
    "ce": Protocol(
        "Task03_PhantomCE", "ce", "nnunet", "MR", "T1 contrast-enhanced", 2, "LPI", 0.0, (-84, 76),
        {"tiny": _TINY, "small": (40, 84, 112), "medium": (60, 150, 200)},
        {"kidney": (5, (*_RIGHT, *_LEFT)), "kidney tumour": (9, (T.KIDNEY_TUMOUR, T.KIDNEY_TUMOUR_LEFT))},
        {"kidney": (5, 9)},
    ),
}  # fmt: skip


def make_case(corpus: str, seed: int, case: int, *, size: str = "small") -> tuple[np.ndarray, np.ndarray, tuple[float, ...], np.ndarray]:
    """One synthetic scan with its annotation, as it would be stored.

    Args:
      corpus: "ct", "mr" or "ce" (or the folder name).
      seed, case: the patient; case 0 of "mr" and "ce" always has a tumour.
      size: "tiny" (20, 40, 40), "small" (about 40 slices of 84 x 112) or "medium" (about 60 of 150 x 200).

    Returns: image (z, y, x) int16 (HU, or arbitrary units), label values (z, y, x) uint8, spacing in mm (z, y, x), and the affine (4, 4) float64
      that takes (x, y, z) voxel indices to RAS+ mm.
    Raises: `UsageError` for an unknown corpus or size.
    """
    key = {p.folder: k for k, p in PROTOCOLS.items()}.get(corpus, corpus)
    if key not in PROTOCOLS:
        raise UsageError(f"unknown phantom corpus {corpus!r}", fix=did_you_mean(corpus, PROTOCOLS))
    if size not in SIZES:
        raise UsageError(f"unknown phantom size {size!r}", fix=did_you_mean(size, SIZES))
    protocol = PROTOCOLS[key]
    rng = np.random.default_rng([seed, list(PROTOCOLS).index(key), case])
    body, lying, painting, scanning = rng.spawn(4)
    who = draw_patient(body, liver_tumours=key == "mr" and case == 0, kidney_tumours=key == "ce" and case == 0)
    shape, affine, centre = _place(protocol, who, protocol.grids[size], lying)
    canvas = _canvas(shape, affine, centre, who, protocol.modality == "CT", lying)
    paint_patient(canvas, who, painting)
    image = _acquire(protocol, canvas.tissue, shape, affine, scanning)
    ids = _annotate(protocol, canvas.tissue)
    spacing = tuple(float(v) for v in np.linalg.norm(affine[:3, :3], axis=0)[::-1])
    return image, ids, spacing, affine


def write_corpora(
    folder: str | os.PathLike, *, seed: int = 0, cases: int | Sequence[int] = (12, 10, 10), size: str = "small", workers: int | None = None
) -> list[Path]:
    """Writes the three corpora under `folder`; those already there with the same seed, number of cases and size are left as they are.

    Args:
      folder: parent of the three data set folders; created if missing.
      seed: any non-negative integer.
      cases: per corpus (CT, MR, CE), or one number for all.
      size: see `make_case`.
      workers: threads; default one per core, at most 8.

    Returns: the three data set folders.
    Raises: `UsageError` for a wrong size or number of cases, or a folder of that name with a data set that is not ours.
    """
    counts = [cases] * len(PROTOCOLS) if isinstance(cases, int) else list(cases)
    if len(counts) != len(PROTOCOLS) or min(counts) < 1:
        raise UsageError("wrong number of phantom cases", found=cases, expected=f"one positive number or {len(PROTOCOLS)} of them")
    if size not in SIZES:
        raise UsageError(f"unknown phantom size {size!r}", fix=did_you_mean(size, SIZES))
    folders, jobs, unfinished = [], [], []
    for (key, protocol), count in zip(PROTOCOLS.items(), counts, strict=True):
        target = Path(folder) / protocol.folder
        made = {"generator": "medjax.data.phantom", "version": VERSION, "seed": seed, "cases": count, "size": size}
        folders.append(target)
        if _is_complete(target, made):
            continue
        for part in ("imagesTr", "labelsTr"):
            shutil.rmtree(target / part, ignore_errors=True)
            (target / part).mkdir(parents=True)
        jobs.extend((key, target, seed, case, size) for case in range(count))
        unfinished.append((protocol, target, made))
    with ThreadPoolExecutor(workers or min(os.cpu_count() or 1, 8)) as pool:
        for done in [pool.submit(_write_case, *job) for job in jobs]:
            done.result()
    for protocol, target, made in unfinished:  # the description comes last: a folder with one is complete
        _replace(target / "dataset.json", lambda path, p=protocol, m=made: path.write_text(json.dumps(_description(p, m), indent=1) + "\n"))
    return folders


def _place(protocol: Protocol, who: Patient, grid: Sequence[int], rng: np.random.Generator) -> tuple[tuple[int, int, int], np.ndarray, np.ndarray]:
    """Grid shape (z, y, x), affine, and where the patient's origin lies (RAS mm): a field of view that fits the body."""
    slices, rows, columns = grid
    slices += int(rng.integers(-2, 3))
    across = who.scale[0] * (2 * 141 + 0.7 * who.belly + 2.4 * who.fat) + 2 * abs(who.offset[0]) + 16
    ahead = who.scale[1] * (96 + 92 + who.belly + 2.3 * who.fat) + 2 * abs(who.offset[1]) + 40
    in_plane = round(max(across / columns, ahead / rows), 2)
    low, high = protocol.extent_mm
    spacing = [in_plane, in_plane, round((high - low) / grid[0], 1)]
    table = np.array([0.0, rng.uniform(-20, 20), rng.uniform(-400, 100)]).round(1)
    middle = table + [0, 0.5 * who.scale[1] * who.belly - (6 if protocol.modality == "CT" else 0), (low + high) / 2 + rng.uniform(-5, 5)]
    directions = np.zeros((3, 3))
    for axis, code in enumerate(protocol.axes):
        world = next(w for w, pair in enumerate(("RL", "AP", "SI")) if code in pair)
        directions[world, axis] = 1 if code in "RAS" else -1
    tilt = _rotation(rng.uniform(-1, 1, 3) * protocol.oblique_deg)
    affine = np.eye(4)
    affine[:3, :3] = tilt @ directions * spacing
    affine[:3, 3] = middle - affine[:3, :3] @ ((np.array([columns, rows, slices]) - 1) / 2)
    return (slices, rows, columns), affine, table + who.offset


def _rotation(degrees: Sequence[float]) -> np.ndarray:
    """(3, 3) rotation by angles about x, then y, then z."""
    turn = np.eye(3)
    for axis, angle in enumerate(np.deg2rad(degrees)):
        a, b = [k for k in range(3) if k != axis]
        step = np.eye(3)
        step[a, a] = step[b, b] = np.cos(angle)
        step[a, b], step[b, a] = -np.sin(angle), np.sin(angle)
        turn = step @ turn
    return turn


def _canvas(shape: Sequence[int], affine: np.ndarray, centre: np.ndarray, who: Patient, couch: bool, rng: np.random.Generator) -> Canvas:
    """Fine voxels with the patient coordinates of each: tilted, scaled, and warped by a smooth random displacement."""
    over = (1, OVERSAMPLING, OVERSAMPLING)
    fine = tuple(n * o for n, o in zip(shape, over, strict=True))
    steps = np.linalg.norm(affine[:3, :3], axis=0)[::-1] / over
    at = [(np.arange(n) + 0.5) / o - 0.5 for n, o in zip(fine, over, strict=True)]

    def plane(row: np.ndarray, start: float) -> np.ndarray:
        k, j, i = ((row[2 - a] * at[a]).astype(np.float32) for a in range(3))
        return k[:, None, None] + j[None, :, None] + (i + np.float32(start))[None, None, :]

    to_patient = np.diag(1 / np.array(who.scale)) @ _rotation(who.tilt_deg).T
    points = []
    for row, start in zip(to_patient @ affine[:3, :3], to_patient @ (affine[:3, 3] - centre), strict=True):
        q = plane(row, start)
        for amount, wavelength in ((2.6, 70.0), (0.9, 24.0)):
            q += amount * noise(rng, fine, wavelength / steps)
        points.append(q)
    canvas = Canvas(tuple(points), noise(rng, fine, 25 / steps), noise(rng, fine, 9 / steps))
    if couch:
        x, y = (plane(affine[row, :3], float(affine[row, 3] - centre[row])) for row in (0, 1))
        back = -who.scale[1] * (92 + 1.1 * who.fat) - 14
        canvas.tissue[np.abs(y - back - 0.0007 * x * x) < 2.2] = T.COUCH
    return canvas


def _annotate(protocol: Protocol, tissue: np.ndarray) -> np.ndarray:
    """Label value held by most of a voxel's fine voxels (ties: the higher value, so that thin structures stay)."""
    value_of = np.zeros(256, np.uint8)
    for value, tissues in protocol.labels.values():
        value_of[list(tissues)] = value
    parts = [value_of[tissue[:, j::OVERSAMPLING, i::OVERSAMPLING]] for j in range(OVERSAMPLING) for i in range(OVERSAMPLING)]
    ids, most = np.zeros_like(parts[0]), sum((p == 0).astype(np.uint8) for p in parts)
    for value in sorted(v for v, _ in protocol.labels.values()):
        count = sum((p == value).astype(np.uint8) for p in parts)
        wins = (count >= most) & (count > 0)
        ids[wins], most[wins] = value, count[wins]
    return ids


def _acquire(protocol: Protocol, tissue: np.ndarray, shape: Sequence[int], affine: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Contrast, texture, partial volume, then what the scanner adds: noise, and for MRI a bias field and Rician noise; int16."""
    from scipy.ndimage import gaussian_filter

    ct = protocol.modality == "CT"
    mean, texture = np.zeros(256, np.float32), np.zeros(256, np.float32)
    for code, row in _TISSUES.items():
        vary = 0 if code in _FLUIDS else float(np.clip(rng.normal(), -2, 2))
        mean[code] = row[protocol.column] + (6 * vary if ct else 0.05 * vary * row[protocol.column])
        texture[code] = row[3] * (6 if ct else 0.035 * row[protocol.column] + 4)
    _habits(mean, ct, rng)
    values = mean[tissue]
    image = sum(values[:, j::OVERSAMPLING, i::OVERSAMPLING] for j in range(OVERSAMPLING) for i in range(OVERSAMPLING)) / OVERSAMPLING**2
    steps = np.linalg.norm(affine[:3, :3], axis=0)[::-1]
    grain = 0.7 * noise(rng, shape, 11 / steps) + 0.7 * noise(rng, shape, 5 / steps)
    image += texture[tissue[:, ::OVERSAMPLING, ::OVERSAMPLING]] * grain
    image = gaussian_filter(image, (0.45, 0.4, 0.4) if ct else (0.5, 0.45, 0.45))
    if ct:
        image += gaussian_filter(rng.standard_normal(shape, np.float32), (0, 0.55, 0.55)) * float(rng.uniform(14, 26))
        return np.clip(np.rint(image), -1024, 3071).astype(np.int16)
    image *= np.exp(float(rng.uniform(0.12, 0.3)) * noise(rng, shape, 170 / steps))
    sigma = float(rng.uniform(14, 26))
    image = np.hypot(image + sigma * rng.standard_normal(shape, np.float32), sigma * rng.standard_normal(shape, np.float32))
    return np.clip(np.rint(image * float(rng.uniform(0.5, 2.0))), 0, 32767).astype(np.int16)


def _habits(mean: np.ndarray, ct: bool, rng: np.random.Generator):
    """Contrast that varies together: both kidneys alike, timing of the bolus, fatty livers."""
    for code in (T.CORTEX, T.MEDULLA, T.CYST, T.KIDNEY_TUMOUR):
        mean[code + 1] = mean[code]
    late, fatty = float(rng.uniform(-15, 15)), float(rng.uniform(25, 45)) if rng.uniform() < 0.15 else 0.0
    if ct:
        mean[[T.AORTA, T.ARTERY, T.BLOOD]] += late
        mean[[T.LIVER, T.LIVER_TUMOUR]] -= fatty * np.array([1, 0.5], np.float32)


def _write_case(key: str, target: Path, seed: int, case: int, size: str):
    protocol = PROTOCOLS[key]
    image, ids, _, affine = make_case(key, seed, case, size=size)
    name = _case_name(protocol, case)
    suffix = "_0000" if protocol.layout == "nnunet" else ""
    _write_nifti(target / "imagesTr" / f"{name}{suffix}.nii.gz", image, affine)
    _write_nifti(target / "labelsTr" / f"{name}.nii.gz", ids, affine)


def _case_name(protocol: Protocol, case: int) -> str:
    return f"{protocol.prefix}_{case:03d}"


def _write_nifti(path: Path, array: np.ndarray, affine: np.ndarray):
    """A new file (there is no input to copy a header from): array (z, y, x), qform and sform code 1, millimetres."""
    import nibabel as nib

    image = nib.Nifti1Image(np.ascontiguousarray(array.T), affine)
    image.set_qform(affine, 1)
    image.set_sform(affine, 1)
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = b"medjax phantom, not a patient"
    _replace(path, lambda temporary: nib.save(image, temporary))


def _replace(path: Path, write):
    """Writes under a name of this process in the same folder, then renames: no reader sees half a file."""
    temporary = path.with_name(f".{os.getpid()}-{path.name}")
    write(temporary)
    os.replace(temporary, path)


def _description(protocol: Protocol, made: Mapping) -> dict:
    """dataset.json of one corpus in its layout, with the "medjax" block."""
    names = [_case_name(protocol, case) for case in range(made["cases"])]
    annotated = list(dict.fromkeys([*protocol.labels, *protocol.regions]))
    block = {"annotated": annotated, "modality": protocol.modality, "patients": {name: f"phantom_{name}" for name in names}}
    common = {"description": "Synthetic abdomens made by medjax; no patient data", "licence": "CC0-1.0", "phantom": dict(made)}
    if protocol.layout == "nnunet":
        labels = {name: list(protocol.regions.get(name, ())) or value for name, (value, _) in protocol.labels.items()}
        return {
            "name": protocol.folder, "channel_names": {"0": protocol.channel}, "labels": {"background": 0, **labels},
            "regions_class_order": sorted(v for v, _ in protocol.labels.values()), "numTraining": len(names), "file_ending": ".nii.gz",
            "medjax": block, **common,
        }  # fmt: skip
    return {
        "name": re.sub(r"^Task\d+_", "", protocol.folder), "tensorImageSize": "3D", "modality": {"0": protocol.channel},
        "labels": {"0": "background", **{str(value): name for name, (value, _) in protocol.labels.items()}},
        "numTraining": len(names), "numTest": 0, "test": [],
        "training": [{"image": f"./imagesTr/{n}.nii.gz", "label": f"./labelsTr/{n}.nii.gz"} for n in names],
        "medjax": block | {"regions": {name: list(values) for name, values in protocol.regions.items()}}, **common,
    }  # fmt: skip


def _is_complete(target: Path, made: Mapping) -> bool:
    """True if the folder holds exactly these cases; a data set that is not ours is an error, anything else is made anew."""
    path = target / "dataset.json"
    if not path.exists():
        return False
    try:
        found = json.loads(path.read_text()).get("phantom")
    except (ValueError, AttributeError):
        found = None
    if not found:
        raise UsageError("holds another data set", path=target, fix="choose another folder for the phantom corpora, or move this one away")
    path_of = [target / "labelsTr" / f"{_case_name(PROTOCOLS[k], i)}.nii.gz" for k in PROTOCOLS if PROTOCOLS[k].folder == target.name for i in range(made["cases"])]
    if found == dict(made) and all(p.exists() for p in path_of):
        return True
    path.unlink()
    return False
