"""A synthetic patient: its tissues, its habitus, and the trunk with bones and chest.

In: a `Canvas` (fine voxels with patient coordinates) and a numpy Generator. Out: the canvas' tissue
codes. Coordinates are millimetres: x to the patient's right, y to anterior, z to superior; the
origin lies in mid-body at the disc between the first and second lumbar vertebra. Sizes and
positions are those of a supine adult. This module draws the trunk (skin, fat, muscle wall), bones
and chest; vessels and solid organs are in `phantom.organs`, stomach and bowel in `phantom.bowel`.
"""

import dataclasses
import enum

import numpy as np

from medjax.phantom.shapes import (
    FAR,
    Canvas,
    Number,
    branching,
    bump,
    capsule,
    ellipsoid,
    smooth_max,
    smooth_min,
    step,
    turned,
)


class T(enum.IntEnum):
    """Tissue codes. Paired organs: the code of the left one follows that of the right one."""

    (
        AIR,
        COUCH,
        SKIN,
        FAT,
        INNER_FAT,
        MUSCLE,
        CARTILAGE,
        BONE,
        MARROW,
        DISC,
        CSF,
        CORD,
        LUNG,
        LUNG_VESSEL,
        HEART,
        BLOOD,
    ) = range(16)
    (
        LIVER,
        HEPATIC_VEIN,
        PORTAL_BRANCH,
        LIVER_TUMOUR,
        LIVER_NECROSIS,
        SPLEEN,
        PANCREAS,
        BILE,
        ADRENAL,
    ) = range(16, 25)
    (
        CORTEX,
        CORTEX_LEFT,
        MEDULLA,
        MEDULLA_LEFT,
        CYST,
        CYST_LEFT,
        KIDNEY_TUMOUR,
        KIDNEY_TUMOUR_LEFT,
        URINE,
    ) = range(25, 34)
    AORTA, CAVA, PORTAL, ARTERY, VEIN = range(34, 39)
    STOMACH_WALL, STOMACH_FLUID, STOMACH_GAS, OESOPHAGUS = range(39, 43)
    BOWEL_WALL, BOWEL_FLUID, BOWEL_CONTRAST, GAS, STOOL, VERTEBRA, VERTEBRA_MARROW = range(43, 50)


FATTY = (T.FAT, T.INNER_FAT)
KIDNEY_TISSUES = (T.CORTEX, T.CORTEX_LEFT, T.MEDULLA, T.MEDULLA_LEFT)


@dataclasses.dataclass(frozen=True)
class Patient:
    """Properties that differ between patients; lengths in mm.

    Attributes:
      scale: size of the body (x, y, z) relative to the average.
      tilt_deg / offset: position of the patient in the scanner: rotation about x, y, z, and shift.
      fat: subcutaneous fat; belly: how far the abdominal wall bulges.
      liver, spleen, kidney: size factors. breath: height of the diaphragm. scoliosis: sideways bend
        of the spine.
      liver_tumours, kidney_tumours, cysts: how many of each.
    """

    scale: tuple[float, float, float]
    tilt_deg: tuple[float, float, float]
    offset: tuple[float, float, float]
    fat: float
    belly: float
    liver: float
    spleen: float
    kidney: float
    breath: float
    scoliosis: float
    liver_tumours: int = 0
    kidney_tumours: int = 0
    cysts: int = 0


def draw_patient(
    rng: np.random.Generator, *, liver_tumours: bool = False, kidney_tumours: bool = False
) -> Patient:
    """A random patient; the flags ask for at least one tumour, otherwise there may be some."""

    def u(low: Number, high: Number) -> float:
        return float(rng.uniform(low, high))

    def count(sure: bool, chance: float, most: int) -> int:
        return int(rng.integers(1, most + 1)) if u(0.0, 1.0) < chance or sure else 0

    size, fat = u(0.94, 1.05), u(7.0, 26.0)
    return Patient(
        scale=(size * u(0.97, 1.05), size * u(0.96, 1.05), size * u(0.97, 1.04)),
        tilt_deg=(u(-4, 4), u(-3, 3), u(-5, 5)),
        offset=(u(-8, 8), u(-6, 6), u(-10, 10)),
        fat=fat,
        belly=max(0.0, fat - 10 + u(-4, 10)),
        liver=u(0.9, 1.08),
        spleen=u(0.85, 1.2),
        kidney=u(0.9, 1.1),
        breath=u(-8, 8),
        scoliosis=u(-5, 5),
        liver_tumours=count(liver_tumours, 0.75, 3),
        kidney_tumours=count(kidney_tumours, 0.6, 2),
        cysts=int(rng.integers(0, 3)),
    )


def spine_at(z: np.ndarray | Number, who: Patient) -> tuple[np.ndarray, np.ndarray]:
    """x and y of the centre of the vertebral bodies at height z, of the shape of z."""
    z = np.asarray(z, np.float32)
    y = -24 - 14 * np.clip((z - 10) / 120, 0, 1.3) ** 1.5 - 4 * np.clip((-z - 60) / 60, 0, 1)
    return np.asarray(who.scoliosis * np.sin(z / 70)), np.asarray(y)


# --- trunk ----------------------------------------------------------------------------------------


def _outline(half_width: Number, front: Number, back: Number, power: float) -> np.ndarray:
    """(720,) radius of a superellipse by direction.

    Directions run from -180 degrees (left) over -90 (back) and 0 (right) to 90 (front).
    """
    angle = np.deg2rad(np.arange(720) / 2 - 180)
    across, along = (
        np.abs(np.cos(angle)) / half_width,
        np.abs(np.sin(angle)) / np.where(np.sin(angle) > 0, front, back),
    )
    return (across**power + along**power) ** (-1 / power)


def trunk(c: Canvas, who: Patient, rng: np.random.Generator, state: dict):
    """Skin, fat and muscle wall from nested outlines.

    Leaves in `state`: `depth` (mm inside the cavity wall and away from the spine), `below` (mm
    below the diaphragm), `abdomen` (signed distance to the abdominal cavity) and `way` (direction
    from the body's axis, in half degrees).
    """
    x, y, z = c.x, c.y, c.z
    degrees = np.arange(720) / 2 - 180

    def near(at: Number, width: Number) -> np.ndarray:  # a bell around a direction
        return bump(((degrees - at + 180) % 360 - 180) / width)

    def look(table: np.ndarray) -> np.ndarray:
        return np.take(table.astype(np.float32), way)

    rho = np.hypot(x, y + 5)
    way = np.minimum(((np.arctan2(y + 5, x) + np.pi) * (360 / np.pi)).astype(np.int32), 719)
    upper = step((z - 15) / 100)
    wobble = sum(
        rng.normal(0, 2.0 / k) * np.cos(np.deg2rad(k * degrees + rng.uniform(0, 360)))
        for k in range(2, 6)
    )
    furrow = 4 * near(-68, 12) + 4 * near(-112, 12) - 5 * near(-90, 7)
    waist = _outline(141 + 0.35 * who.belly, 96 + who.belly, 92, 2.35) + furrow + wobble
    thorax = _outline(139, 106 + 0.4 * who.belly, 94, 2.3) + furrow + wobble
    slope = np.gradient(waist, np.deg2rad(0.5)) / waist
    straight = look(1 / np.sqrt(1 + slope**2))
    muscle = look(waist)
    muscle += (look(thorax) - muscle) * upper
    fat = (
        who.fat
        * (
            0.75
            + 0.4 * near(-50, 40)
            + 0.4 * near(-130, 40)
            + 0.25 * near(90, 50)
            - 0.1 * near(-90, 15)
        )
        + 2
        + 5 * near(-90, 10)
    )
    fat_here = look(fat) * (1 - 0.4 * upper) * (1 + 0.10 * c.rough)
    outer = (muscle - rho) * straight
    wall_waist = (
        12
        - 6 * near(47, 7)
        - 6 * near(133, 7)
        - 1.5 * near(90, 3)
        + 6 * near(-45, 14)
        + 6 * near(-135, 14)
        + 32 * near(-90, 30)
    )
    wall_chest = (
        17 + 10 * near(-70, 16) + 10 * near(-110, 16) + 22 * near(-90, 12) - 3 * near(90, 30)
    )
    wall = look(wall_waist)
    wall += (look(wall_chest) - wall) * upper
    depth = outer - wall
    xs, ys = spine_at(z, who)
    ahead = y - ys
    spine = np.hypot(x - xs, ahead) - 26
    gutter = np.minimum(
        depth, spine + 1.6 * np.maximum(ahead, 0)
    )  # the lungs reach down beside the spine, not in front of it
    np.minimum(depth, spine, out=depth)
    skin = outer + fat_here
    t = c.tissue
    t[skin > 0] = T.SKIN
    t[skin > 2.2] = T.FAT
    t[outer + 0.8 * c.fine > 0] = T.MUSCLE
    layered = (np.abs(look(near(0, 42) + near(180, 42))) > 0.35) & (upper < 0.5)
    for share in (0.36, 0.68):
        t[layered & (np.abs(outer - share * wall + 0.7 * c.fine) < 0.6)] = T.FAT
    gap = look(near(90, 1.6) + 0.9 * near(47, 3.0) + 0.9 * near(133, 3.0)) * (1 - upper)
    t[(gap > 0.5) & (outer > 1.5) & (depth < -1.5)] = T.FAT
    t[(upper > 0.4) & (outer > 2) & (np.abs(depth + 12.5 + 1.5 * c.fine) < 0.8)] = T.FAT
    t[(depth > 0) & (outer > 0)] = T.INNER_FAT

    edge = look(46 + 52 * near(90, 55) - 8 * near(-60, 30) - 8 * near(-120, 30))
    dome = 104 + who.breath + 22 * bump((x - 66) / 52) + 14 * bump((x + 66) / 45)
    rise = 1 - np.clip(gutter / 76, 0, 1)
    height = edge + (dome - edge) * (1 - rise**3) + 2 * c.rough
    below = (height - z) / np.sqrt(1 + ((dome - edge) * (3 / 76) * rise**2) ** 2)
    state.update(depth=depth, below=below, way=way)
    state["abdomen"] = smooth_max(1 - depth, -below, 8)

    for side in (
        1,
        -1,
    ):  # back muscles: erector spinae in its sheath, quadratus lumborum, psoas widening downwards
        box = c.box((-110, -110, -FAR), (110, 10, FAR))
        if box is None:
            continue
        xb, yb, zb = c.points(box)
        sx, sy = spine_at(zb, who)
        u, v, thin = (xb - sx) * side, yb - sy, 1 - 0.35 * upper[box]
        erector = ellipsoid((u / thin, v, zb * 0), (35, -48, 0), (31, 19, 500)) + 1.2 * c.fine[box]
        c.paint(box, np.abs(erector - 0.8) < 1.1, T.FAT, (T.MUSCLE,))
        c.paint(box, erector < 0, T.MUSCLE, (T.FAT, T.INNER_FAT, T.SKIN))
        septum = np.abs(u - 20 - 0.35 * (v + 48)) < 0.7
        c.paint(box, (erector < -4) & septum, T.FAT, (T.MUSCLE,))
        quadratus = smooth_max(ellipsoid((u, v, zb), (64, -33, -40), (19, 8, 72)), zb - 25, 10)
        c.solid(box, quadratus + 0.8 * c.fine[box], T.MUSCLE, FATTY)
        wide = np.clip((35 - zb) / 120, 0, 1)
        psoas = np.hypot(u - 29 - 12 * wide, v + 3 - 4 * wide) - (7 + 17 * wide)
        c.solid(box, np.maximum(psoas + c.rough[box], zb - 38), T.MUSCLE, FATTY)


# --- bones ----------------------------------------------------------------------------------------


def bones(c: Canvas, who: Patient, rng: np.random.Generator, state: dict):
    """Vertebrae with arches and canal, intervertebral discs, ribs down to the costal margin."""
    box = c.box((-65, -125, -FAR), (65, 15, FAR))
    if box is not None:
        x, y, z = c.points(box)
        xs, ys = spine_at(z, who)
        u, v = np.abs(x - xs), y - ys
        level = (z - 1.5) % 33 - 16.5  # from the middle of the vertebra; discs around +-16.5
        body = (
            np.hypot(u / 1.3, np.where(v < 0, v * 1.12, v))
            - (17.2 - 1.8 * bump(level / 9))
            + 0.5 * c.fine[box]
        )
        flat = smooth_max(body, -(v + 17.5), 5)
        c.solid(box, flat, T.DISC)
        bone = np.maximum(flat, np.abs(level) - 13.2)
        c.paint(box, bone < 0, T.VERTEBRA)
        c.paint(box, bone < -2.0, T.VERTEBRA_MARROW)
        ring = (
            np.abs(np.hypot(u / 1.15, v + 26) - 12.5) - 3.2
        )  # pedicles, laminae and joints around the canal
        arch = np.maximum(ring, np.abs(level - 1 - 0.25 * (v + 26)) - 13)
        spinous = np.maximum(
            np.abs(u) - 2.6 - 0.05 * (-v - 36),
            np.maximum(np.abs(level + 5 + 0.3 * (v + 40)) - 9, np.abs(v + 49) - 15),
        )
        transverse = capsule((u, v, level), (12, -25, 4), (38, -33, 6), 4.5, 3.2)[0]
        joint = ellipsoid((u, v, np.abs(level) - 16.5), (15, -31, 0), (6.5, 6.5, 9))
        posterior = np.minimum(smooth_min(smooth_min(arch, spinous, 4), transverse, 3), joint)
        c.solid(box, posterior, T.VERTEBRA)
        c.paint(box, posterior < -2.2, T.VERTEBRA_MARROW)
        canal = np.hypot(u, (v + 26) * 1.15) - 9.2
        c.paint(box, canal < 0, T.INNER_FAT)
        c.paint(box, canal < -1.6, T.CSF)
        c.paint(box, np.hypot(u, (v + 26) * 1.2) - np.clip(4.2 + (z - 10) / 40, 0, 4.6) < 0, T.CORD)

    chest_box = c.box((-FAR, -FAR, -75), (FAR, FAR, FAR))
    if chest_box is None:
        return
    z = c.z[chest_box]
    around = np.abs((state["way"][chest_box] / 2 - 90 + 180) % 360 - 180).astype(
        np.float32
    )  # degrees from the back's midline
    drop = 112 * (0.5 - 0.5 * np.cos(np.minimum(around, 112) * (np.pi / 112))) - 45 * np.clip(
        (around - 112) / 68, 0, 1
    )
    shift = float(rng.uniform(-5, 5))
    line = (z + drop - 55 - shift) / 31
    number = np.clip(np.round(line), 0, 9).astype(np.int32)
    ends = np.array([62, 98, 132, 147, 160, 166, 166, 166, 166, 166], np.float32)[number]
    rib = np.hypot(state["depth"][chest_box] + 6.2, (line - number) * 31 * 0.68) - 4.6
    rib = np.where((around > ends) | (around < 13), FAR, rib)
    front = around > 128 - 4 * np.minimum(number, 4)
    c.paint(chest_box, (rib < 0) & front, T.CARTILAGE, (T.MUSCLE, T.FAT, T.INNER_FAT))
    c.paint(chest_box, (rib < 0) & ~front, T.BONE, (T.MUSCLE, T.FAT, T.INNER_FAT))
    c.paint(chest_box, (rib < -2.4) & ~front, T.MARROW, (T.BONE,))


def chest(c: Canvas, who: Patient, rng: np.random.Generator, state: dict):
    """Lung bases over the domes of the diaphragm, mediastinum, heart on the central tendon."""
    depth, below = state["depth"], state["below"]
    t = c.tissue
    t[(depth > 0) & (below < 0) & (below > -3.2)] = T.MUSCLE
    t[(depth > 0) & (below < -3.2)] = T.LUNG
    box = c.box((-60, -40, 40), (60, 140, FAR))
    if box is None:
        return
    p = c.points(box)
    middle = np.hypot((p[0] + 5) / 22, (p[1] - 12) / 50) * 22 - 22
    middle = smooth_min(middle, ellipsoid((p[0], p[1], p[2] * 0), (-5, 95, 0), (38, 26, 500)), 12)
    c.paint(box, middle + 1.5 * c.rough[box] < 0, T.INNER_FAT, (T.LUNG,))
    for side in (1, -1):
        for _ in range(7):
            start, way = (
                (side * rng.uniform(30, 60), rng.uniform(-40, 20), 175),
                (side * rng.uniform(0, 0.7), rng.uniform(-0.6, 0.4), -1),
            )
            tree = branching(rng, start, way, 3.6, 56, 3, lambda q: bool(40 < q[2] < 240))
            c.tubes(tree, T.LUNG_VESSEL, (T.LUNG,))
    box = c.box((-110, -30, 70), (60, 120, FAR))
    if box is None:
        return
    p = turned(c.points(box), (-24, 42, 150 + who.breath), about_z=-28, about_y=18)
    floor = (
        smooth_max(ellipsoid(p, (0, 0, 0), (62, 44, 46)), 7 + below[box], 12) + 1.2 * c.rough[box]
    )
    c.paint(box, floor < 5, T.INNER_FAT, (T.LUNG,))
    c.paint(box, floor < 0, T.HEART)
    c.paint(box, (ellipsoid(p, (-22, -4, -4), (30, 22, 24)) < 0) & (floor < -6), T.BLOOD)
    c.paint(
        box,
        (ellipsoid(p, (16, 10, -2), (34, 22, 30)) < 0)
        & (floor < -3)
        & (ellipsoid(p, (-22, -4, -4), (38, 30, 32)) > 0),
        T.BLOOD,
    )
