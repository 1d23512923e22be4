"""From a synthetic patient to a scan: slice positions, contrast, scanner artefacts, annotation.

In: a `Protocol` and a `Patient`. Out: grid and affine, a fine `Canvas` to paint the patient on,
then image and label values on the grid. Contrasts are typical mid values: Hounsfield units for
portal-venous CT, arbitrary units for T1-weighted MRI (fat bright, fluid and flowing blood dark) and
for contrast-enhanced, fat-suppressed T1 (kidneys and vessels bright).
"""

import dataclasses
from collections.abc import Mapping

import numpy as np

from medjax.phantom.anatomy import Patient, T
from medjax.phantom.shapes import Canvas, Numbers, noise

OVERSAMPLING = 2  # fine voxels per voxel and in-plane axis, averaged for partial volume

# tissue: CT, T1, contrast-enhanced T1, strength of the texture
TISSUES = {
    T.AIR: (-1000, 0, 0, 0),
    T.COUCH: (-60, 0, 0, 0),
    T.SKIN: (20, 350, 300, 1),
    T.FAT: (-105, 900, 190, 0.7),
    T.INNER_FAT: (-100, 860, 170, 1),
    T.MUSCLE: (60, 330, 290, 1),
    T.CARTILAGE: (115, 300, 200, 1),
    T.BONE: (480, 120, 110, 2),
    T.MARROW: (240, 560, 190, 2),
    T.VERTEBRA: (430, 140, 130, 2),
    T.VERTEBRA_MARROW: (200, 540, 230, 2),
    T.DISC: (85, 300, 160, 1),
    T.CSF: (12, 110, 90, 0.5),
    T.CORD: (40, 330, 190, 0.5),
    T.LUNG: (-830, 40, 35, 2.5),
    T.LUNG_VESSEL: (60, 140, 600, 1),
    T.HEART: (105, 340, 480, 1),
    T.BLOOD: (150, 190, 720, 1),
    T.LIVER: (110, 540, 560, 1),
    T.HEPATIC_VEIN: (160, 290, 790, 0.5),
    T.PORTAL_BRANCH: (168, 300, 800, 0.5),
    T.LIVER_TUMOUR: (66, 340, 400, 2),
    T.LIVER_NECROSIS: (38, 230, 230, 1),
    T.SPLEEN: (122, 400, 630, 1),
    T.PANCREAS: (98, 570, 560, 2.5),
    T.BILE: (8, 190, 110, 0.5),
    T.ADRENAL: (75, 400, 450, 1),
    T.CORTEX: (190, 450, 930, 1),
    T.CORTEX_LEFT: (190, 450, 930, 1),
    T.MEDULLA: (142, 340, 640, 1.5),
    T.MEDULLA_LEFT: (142, 340, 640, 1.5),
    T.CYST: (6, 120, 90, 0.3),
    T.CYST_LEFT: (6, 120, 90, 0.3),
    T.KIDNEY_TUMOUR: (92, 330, 430, 3),
    T.KIDNEY_TUMOUR_LEFT: (92, 330, 430, 3),
    T.URINE: (12, 130, 120, 0.5),
    T.AORTA: (160, 160, 900, 0.5),
    T.CAVA: (138, 180, 760, 1),
    T.PORTAL: (165, 200, 820, 0.5),
    T.ARTERY: (155, 170, 860, 0.5),
    T.VEIN: (145, 190, 740, 0.5),
    T.STOMACH_WALL: (78, 360, 480, 1),
    T.STOMACH_FLUID: (18, 170, 110, 2),
    T.STOMACH_GAS: (-960, 12, 12, 0),
    T.OESOPHAGUS: (60, 340, 420, 1),
    T.BOWEL_WALL: (82, 370, 520, 1.5),
    T.BOWEL_FLUID: (22, 220, 140, 2),
    T.BOWEL_CONTRAST: (200, 300, 160, 3),
    T.GAS: (-950, 12, 12, 0),
    T.STOOL: (35, 420, 260, 4),
}
CT, T1, T1_ENHANCED, TEXTURE = range(4)
CONSTANT = (
    T.BILE,
    T.CSF,
    T.CYST,
    T.CYST_LEFT,
    T.AIR,
    T.COUCH,
    T.GAS,
    T.STOMACH_GAS,
    T.LUNG,
)  # the same in every patient


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How one corpus is scanned, stored and annotated.

    Attributes:
      folder: data set folder; prefix: of the case names; layout: "msd" or "nnunet".
      modality, channel: as dataset.json names them. column: of `TISSUES`.
      axes: directions in which the stored x, y, z axes grow; oblique_deg: largest tilt of the
        slices about each axis.
      extent_mm: lowest and highest z of the slices in the patient. grids: size name -> (slices,
        rows, columns).
      labels: class -> (value, tissues). regions: class -> the values it is the union of.
    """

    folder: str
    prefix: str
    layout: str
    modality: str
    channel: str
    column: int
    axes: str
    oblique_deg: float
    extent_mm: tuple[int, int]
    grids: Mapping[str, tuple[int, int, int]]
    labels: Mapping[str, tuple[int, tuple[int, ...]]]
    regions: Mapping[str, tuple[int, ...]]


def place(
    protocol: Protocol, who: Patient, grid: tuple[int, int, int], rng: np.random.Generator
) -> tuple[tuple[int, int, int], np.ndarray, np.ndarray]:
    """Lays a field of view that fits the body.

    Args:
      grid: nominal (slices, rows, columns); the number of slices varies by up to two.

    Returns: shape (z, y, x), affine (4, 4) from (x, y, z) indices to RAS+ mm, and the patient's
      origin (3,) in RAS+ mm.
    """
    slices, rows, columns = grid
    slices += int(rng.integers(-2, 3))
    across = (
        who.scale[0] * (2 * 141 + 0.7 * who.belly + 2.4 * who.fat) + 2 * abs(who.offset[0]) + 16
    )
    ahead = who.scale[1] * (96 + 92 + who.belly + 2.3 * who.fat) + 2 * abs(who.offset[1]) + 40
    in_plane = round(max(across / columns, ahead / rows), 2)
    low, high = protocol.extent_mm
    spacing = [in_plane, in_plane, round((high - low) / grid[0], 1)]
    table = np.array([0.0, rng.uniform(-20, 20), rng.uniform(-400, 100)]).round(1)
    forwards = 0.5 * who.scale[1] * who.belly - (6 if protocol.column == CT else 0)
    middle = table + np.array([0, forwards, (low + high) / 2 + rng.uniform(-5, 5)])
    directions = np.zeros((3, 3))
    for axis, code in enumerate(protocol.axes):
        world = next(w for w, pair in enumerate(("RL", "AP", "SI")) if code in pair)
        directions[world, axis] = 1 if code in "RAS" else -1
    affine = np.eye(4)
    affine[:3, :3] = _rotation(rng.uniform(-1, 1, 3) * protocol.oblique_deg) @ directions * spacing
    affine[:3, 3] = middle - affine[:3, :3] @ ((np.array([columns, rows, slices]) - 1) / 2)
    return (slices, rows, columns), affine, table + who.offset


def _rotation(degrees: Numbers) -> np.ndarray:
    """(3, 3) rotation by angles about x, then y, then z."""
    turn = np.eye(3)
    for axis, angle in enumerate(np.deg2rad(degrees)):
        a, b = [k for k in range(3) if k != axis]
        one = np.eye(3)
        one[a, a] = one[b, b] = np.cos(angle)
        one[a, b], one[b, a] = -np.sin(angle), np.sin(angle)
        turn = one @ turn
    return turn


def _spacing(affine: np.ndarray) -> np.ndarray:
    """(3,) voxel size in mm, (z, y, x)."""
    return np.linalg.norm(affine[:3, :3], axis=0)[::-1]


def make_canvas(
    protocol: Protocol,
    who: Patient,
    shape: tuple[int, int, int],
    affine: np.ndarray,
    centre: np.ndarray,
    rng: np.random.Generator,
) -> Canvas:
    """Fine voxels with the patient coordinates of each; CT adds the couch.

    Coordinates are tilted, scaled, and warped by a smooth random displacement.
    """
    over = (1, OVERSAMPLING, OVERSAMPLING)
    fine = tuple(n * o for n, o in zip(shape, over, strict=True))
    steps = _spacing(affine) / over
    at = [(np.arange(n) + 0.5) / o - 0.5 for n, o in zip(fine, over, strict=True)]

    def linear(row: np.ndarray, start: float) -> np.ndarray:
        k, j, i = ((row[2 - axis] * at[axis]).astype(np.float32) for axis in range(3))
        return k[:, None, None] + j[None, :, None] + (i + np.float32(start))[None, None, :]

    to_patient = np.diag(1 / np.array(who.scale)) @ _rotation(who.tilt_deg).T
    points = []
    for row, start in zip(
        to_patient @ affine[:3, :3], to_patient @ (affine[:3, 3] - centre), strict=True
    ):
        q = linear(row, float(start))
        for amount_mm, wavelength_mm in ((2.6, 70.0), (0.9, 24.0)):
            q += amount_mm * noise(rng, fine, wavelength_mm / steps)
        points.append(q)
    canvas = Canvas(tuple(points), noise(rng, fine, 25 / steps), noise(rng, fine, 9 / steps))
    if protocol.column == CT:
        x, y = (linear(affine[axis, :3], float(affine[axis, 3] - centre[axis])) for axis in (0, 1))
        back = -who.scale[1] * (92 + 1.1 * who.fat) - 14
        canvas.tissue[np.abs(y - back - 0.0007 * x * x) < 2.2] = T.COUCH
    return canvas


def annotate(protocol: Protocol, tissue: np.ndarray) -> np.ndarray:
    """Fine tissue codes -> label values (z, y, x) uint8: the value of most fine voxels.

    In a tie the higher value wins, so that thin parts are kept.
    """
    value_of = np.zeros(256, np.uint8)
    for value, tissues in protocol.labels.values():
        value_of[list(tissues)] = value
    parts = [value_of[part] for part in _parts(tissue)]
    ids, most = np.zeros_like(parts[0]), sum((p == 0).astype(np.uint8) for p in parts)
    for value in sorted(value for value, _ in protocol.labels.values()):
        count = sum((p == value).astype(np.uint8) for p in parts)
        wins = (count >= most) & (count > 0)
        ids[wins], most[wins] = value, count[wins]
    return ids


def acquire(
    protocol: Protocol, tissue: np.ndarray, affine: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Fine tissue codes -> image (z, y, x) int16.

    Contrast, texture and partial volume, then CT noise, or bias field and Rician noise.
    """
    from scipy.ndimage import gaussian_filter

    ct = protocol.column == CT
    mean, texture = _contrast(protocol.column, rng)
    parts = _parts(tissue)
    shape, steps = parts[0].shape, _spacing(affine)
    image = sum(mean[part] for part in parts) / len(parts)
    image += texture[parts[0]] * (
        0.7 * noise(rng, shape, 11 / steps) + 0.7 * noise(rng, shape, 5 / steps)
    )
    image = gaussian_filter(image, (0.45, 0.4, 0.4) if ct else (0.5, 0.45, 0.45))
    if ct:
        image += gaussian_filter(rng.standard_normal(shape, np.float32), (0, 0.55, 0.55)) * float(
            rng.uniform(14, 26)
        )
        return np.clip(np.rint(image), -1024, 3071).astype(np.int16)
    image *= np.exp(float(rng.uniform(0.12, 0.3)) * noise(rng, shape, 170 / steps))
    sigma = float(rng.uniform(14, 26))
    image = np.hypot(
        image + sigma * rng.standard_normal(shape, np.float32),
        sigma * rng.standard_normal(shape, np.float32),
    )
    return np.clip(np.rint(image * float(rng.uniform(0.5, 2.0))), 0, 32767).astype(np.int16)


def _parts(tissue: np.ndarray) -> list[np.ndarray]:
    """The fine voxels of every voxel, as arrays on the grid."""
    return [
        tissue[:, j::OVERSAMPLING, i::OVERSAMPLING]
        for j in range(OVERSAMPLING)
        for i in range(OVERSAMPLING)
    ]


def _contrast(column: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(256,) mean and texture of each tissue in this patient.

    Both kidneys are equal; the timing of the bolus varies; one liver in seven is fatty.
    """
    mean, texture = np.zeros(256, np.float32), np.zeros(256, np.float32)
    for code, row in TISSUES.items():
        vary = 0.0 if code in CONSTANT else float(np.clip(rng.normal(), -2, 2))
        mean[code] = row[column] + (6 * vary if column == CT else 0.05 * vary * row[column])
        texture[code] = row[TEXTURE] * (6 if column == CT else 0.035 * row[column] + 4)
    for code in (T.CORTEX, T.MEDULLA, T.CYST, T.KIDNEY_TUMOUR):
        mean[code + 1] = mean[code]
    late, fatty = (
        float(rng.uniform(-15, 15)),
        float(rng.uniform(25, 45)) if rng.uniform() < 1 / 7 else 0.0,
    )
    if column == CT:
        mean[[T.AORTA, T.ARTERY, T.BLOOD]] += late
        mean[T.LIVER] -= fatty
        mean[T.LIVER_TUMOUR] -= 0.5 * fatty
    return mean, texture
