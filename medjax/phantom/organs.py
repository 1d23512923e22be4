"""The solid organs and great vessels of the synthetic patient.

In: a `Canvas` that holds trunk, bones and chest, and in `state` the signed distance `abdomen`
(negative inside the abdominal cavity). Out: tissue codes. An organ is cut by the organs painted
before it (`Canvas.make_way`), which gives spleen and liver their impressions. Millimetres; x to the
right, y to anterior, z to superior.
"""

import numpy as np

from medjax.phantom.anatomy import FATTY, KIDNEY_TISSUES, Patient, T, spine_at
from medjax.phantom.shapes import (
    Box,
    Canvas,
    Path,
    branching,
    capsule,
    curve,
    ellipsoid,
    jitter,
    smooth_max,
    smooth_min,
    turned,
)

# marks rows of (x, y, z, radius) whose x and y count from the centre of the spine at that height
S = True
_CRUS = [(12, 22, 95, 3, S), (13, 22, 55, 5, S), (13, 18, 10, 4, S), (13, 16, -25, 1, S)]
_AORTA = [
    (-19, 22, 230, 12, S),
    (-17, 26, 120, 11.5, S),
    (-11, 29, 60, 10.5, S),
    (-9, 28, 0, 9, S),
    (-6, 27, -95, 8.5, S),
    (-6, 27, -105, 8, S),
]
_ILIAC = [(4, 27, -98, 6, S), (16, 27, -120, 6, S), (32, 20, -160, 6, S)]
_CAVA = [
    (22, 56, 150, 12, S),
    (22, 49, 118, 12, S),
    (23, 40, 70, 11, S),
    (18, 33, 20, 10, S),
    (16, 29, -40, 9.5, S),
    (14, 27, -105, 9, S),
]
_PORTAL = [(10, 24, 6, 6.5), (20, 22, 24, 6.8), (33, 22, 40, 7), (42, 20, 50, 6.5)]
_SPLENIC_VEIN = [(10, 23, 8, 5.5), (-18, 17, 17, 5), (-50, 2, 30, 4.6), (-82, -20, 44, 4)]
_MESENTERIC_VEIN = [(10, 25, 8, 5.5), (9, 29, -18, 5.2), (5, 34, -50, 4.5), (2, 38, -85, 3.5)]
_ARTERIES = [
    [
        (-7, 38, 4, 4, S),
        (-5, 24, -6, 3.6),
        (-6, 30, -40, 3.2),
        (-8, 36, -85, 2.4),
    ],  # superior mesenteric
    [
        (-8, 38, 26, 4, S),
        (-7, 24, 29, 3.6),
        (8, 28, 32, 3),
        (28, 26, 42, 2.6),
    ],  # celiac and hepatic
    [(-7, 24, 29, 3.2), (-30, 18, 40, 2.8), (-48, 4, 36, 2.8), (-84, -16, 50, 2.4)],  # splenic
    [(4, 26, -2, 3.2, S), (24, 14, -8, 3, S), (46, -24, -10, 2.6)],  # renal
    [(-18, 26, 2, 3.2, S), (-30, 14, 4, 3, S), (-48, -20, 6, 2.6)],
]
_RENAL_VEINS = [
    [(24, 34, -2, 5, S), (36, -8, -8, 4.5), (50, -18, -10, 4)],
    [(10, 38, -4, 4.5, S), (-8, 40, -2, 4, S), (-34, -4, 2, 4.5), (-50, -16, 5, 4)],
]
_PANCREAS = [
    (32, 22, -22, 8),
    (31, 24, -6, 13),
    (22, 29, 6, 11),
    (8, 34, 14, 8),
    (-16, 31, 22, 9.5),
    (-44, 16, 33, 9.5),
    (-66, -1, 41, 9),
    (-82, -12, 46, 7),
]
_GALLBLADDER = [(46, 36, 26, 3), (52, 48, 12, 9), (60, 60, -4, 13), (64, 68, -16, 11)]
# height of the liver's lower surface and depth of its back by x, from the left tip to the right
# lobe
_LIVER_UNDER = [
    (-115, 122),
    (-80, 100),
    (-45, 74),
    (-12, 50),
    (15, 34),
    (40, 14),
    (70, -10),
    (105, -36),
    (150, -52),
]
_LIVER_BEHIND = [(-120, 52), (-60, 44), (-25, 32), (0, 20), (14, 2), (24, -40), (36, -120)]
# vessel trees in the liver: start, direction, radius, length of the stem
_PORTAL_STEMS = [
    ((42, 20, 50), (1, -0.25, 0.12), 6, 46),
    ((42, 20, 50), (0.7, 0.5, -0.5), 4.5, 44),
    ((40, 22, 52), (-0.8, 0.75, 0.45), 5, 44),
]
_HEPATIC_STEMS = [
    ((1, -0.15, -0.55), 5.5),
    ((0.45, 0.9, -0.5), 5),
    ((-0.65, 0.75, -0.25), 4.5),
    ((0.6, 0.1, -1), 3),
]


def _path(rows: list[tuple], who: Patient, mirror: int = 1, wide: float = 1.0) -> Path:
    """A smooth tube through rows that may be relative to the spine."""
    knots = []
    for x, y, z, radius, *relative in rows:
        origin = spine_at(z, who) if relative else (0, 0)
        knots.append((float(origin[0]) + mirror * x, float(origin[1]) + y, z, radius * wide))
    return Path.smooth(knots)


def great_vessels(c: Canvas, who: Patient, rng: np.random.Generator, state: dict):
    """Aorta, vena cava, portal and splenic vein, visceral arteries; crura and adrenals.

    The arteries are the celiac trunk, the mesenteric and the renal arteries.
    """
    for side in (1, -1):
        c.tubes(_path(_CRUS, who, side).segments(), T.MUSCLE, FATTY)
    through = (*FATTY, T.LUNG, T.MUSCLE)
    c.organ(_path(_CAVA, who), T.CAVA, through, 0.8 * c.rough)
    c.organ(_path(_AORTA, who, wide=float(rng.uniform(0.9, 1.15))), T.AORTA, through, 0.3 * c.rough)
    for side in (1, -1):
        c.organ(_path(_ILIAC, who, side), T.ARTERY, through)
    for rows, shift in ((_PORTAL, 1.0), (_SPLENIC_VEIN, 1.5), (_MESENTERIC_VEIN, 1.5)):
        c.organ(Path.smooth(jitter(rng, rows, shift)), T.PORTAL, FATTY, 0.3 * c.rough)
    for rows in _ARTERIES:
        c.tubes(_path(rows, who).segments(), T.ARTERY, FATTY, reserve=True)
    for rows in _RENAL_VEINS:
        c.tubes(_path(rows, who).segments(), T.VEIN, FATTY, reserve=True)
    for apex, limbs in (
        ((34, -12, 40), ((27, -24, 22), (41, -26, 22))),
        ((-34, -12, 46), ((-27, -24, 28), (-41, -26, 28))),
    ):
        c.tubes([(apex, limb, 2.6, 1.6) for limb in limbs], T.ADRENAL, FATTY, reserve=True)


def kidneys(c: Canvas, who: Patient, rng: np.random.Generator, state: dict):
    """Bean-shaped kidneys with cysts and tumours.

    Cortex with columns between medullary pyramids, fat-filled sinus with pelvis and calyces.
    """
    tumour_sides = [int(rng.integers(2)) for _ in range(who.kidney_tumours)]
    for left, side in ((0, 1), (1, -1)):
        size = who.kidney * float(rng.uniform(0.95, 1.05))
        centre = (
            side * 67 + rng.normal(0, 3),
            -29 + rng.normal(0, 2),
            (-10 if side == 1 else 8) + rng.normal(0, 6),
        )
        box = c.box(
            [centre[0] - 55, centre[1] - 50, centre[2] - 85],
            [centre[0] + 55, centre[1] + 60, centre[2] + 85],
        )
        if box is None:
            continue
        x, y, z = c.points(box)
        # (u, v, w): u to lateral, v to the front, w along the kidney; the hilum faces forwards, the
        # upper pole leans in and back
        u, v, w = turned(
            ((x - centre[0]) * side, y - centre[1], z - centre[2]),
            (0, 0, 0),
            -14,
            rng.normal(16, 3),
            rng.normal(28, 5),
        )
        u, v, w = u / size, v / size, w / size
        bent = u + 0.0042 * w * w - 2
        outer = (ellipsoid((bent, v, w), (0, 0, 0), (28.5, 23, 55)) + 0.7 * c.fine[box]) * size
        sinus = ellipsoid((bent, v, w), (-21, 2, 0), (22, 9, 27)) * size
        bean = c.make_way(box, smooth_max(outer, -sinus, 4), 1.0)
        behind = ellipsoid(
            (x, y, z), (centre[0] - 6 * side, centre[1] - 40, centre[2] - 20), (36, 52, 95)
        )
        behind = smooth_max(
            behind, z - centre[2] - 52 * size, 12
        )  # the perirenal space is fat, up to the upper pole
        np.minimum(c.occupied[box], np.minimum(outer - 1.5, behind), out=c.occupied[box])
        radial, sector = np.arctan2(w * 0.8, bent + 24), np.arctan2(v, bent + 20)
        pyramids = np.cos(radial * 7.5 + rng.uniform(0, 6)) + 0.5 * np.cos(sector * 4) > -0.15
        c.paint(box, bean < 0, T.CORTEX + left, FATTY)
        c.paint(
            box,
            (outer < -6.5 * size) & (sinus > 1.5) & pyramids,
            T.MEDULLA + left,
            (T.CORTEX + left,),
        )
        pelvis = ellipsoid((bent, v, w), (-20, 2, -4), (13, 4, 8))
        for angle in np.linspace(-1.1, 1.1, 6):
            end = (-21 + 20 * np.cos(angle), 2 + rng.normal(0, 3), 25 * np.sin(angle))
            pelvis = smooth_min(pelvis, capsule((bent, v, w), (-20, 2, 0), end, 1.5, 3.2)[0], 2)
        c.paint(box, (sinus < 0) & (pelvis < 0), T.URINE, FATTY)
        for k, angle in enumerate(np.linspace(-0.9, 0.9, 5)):
            end = np.array([-8 + 4 * np.cos(angle), 4 * (-1) ** k, 20 * np.sin(angle)])
            vessel = capsule((bent, v, w), (-36, 5, 0), end, 2.6, 1.4)[0]
            c.paint(box, vessel < 0, T.VEIN, FATTY)
        ureter = capsule((bent, v, w), (-28, 2, -8), (-34, 4, -70), 2.2, 2.0)[0]
        c.paint(box, ureter < 0, T.URINE, FATTY)
        mine = (*KIDNEY_TISSUES, *FATTY, T.URINE, T.VEIN)
        for _ in range(who.cysts if rng.uniform() < 0.6 else 0):
            _lesion(
                c,
                box,
                bean,
                (outer > -9) & (outer < 0),
                float(rng.uniform(4, 11)),
                T.CYST + left,
                mine,
                rng,
                rough=0.0,
            )
        for _ in range(tumour_sides.count(left)):
            _lesion(
                c,
                box,
                bean,
                (outer > -12) & (outer < 0),
                float(rng.uniform(12, 25)),
                T.KIDNEY_TUMOUR + left,
                mine,
                rng,
                rough=1.6,
            )


def _lesion(
    c: Canvas,
    box: Box,
    organ: np.ndarray,
    seat: np.ndarray,
    radius: float,
    tissue: int,
    over: tuple,
    rng: np.random.Generator,
    rough: float,
) -> np.ndarray | None:
    """A lump centred at a random voxel of `seat` inside the organ; returns its signed distance."""
    places = np.flatnonzero((seat & (organ < 0)).ravel())
    if not len(places):
        return None
    at = np.unravel_index(int(places[int(rng.integers(len(places)))]), organ.shape)
    p = c.points(box)
    centre = [float(q[at]) for q in p]
    stretch = [float(radius * s) for s in np.exp(rng.normal(0, 0.1, 3))]
    lump = ellipsoid(p, centre, stretch) + rough * (0.8 * c.rough[box] + 0.5 * c.fine[box])
    c.paint(box, lump < 0, tissue, over)
    np.minimum(c.occupied[box], lump, out=c.occupied[box])
    return lump


def pancreas(c: Canvas, who: Patient, rng: np.random.Generator, state: dict):
    """Lobulated pancreas along the splenic vein; the gallbladder under the liver."""
    c.organ(
        Path.smooth(jitter(rng, _PANCREAS, 2.0)), T.PANCREAS, FATTY, 1.6 * c.fine + 0.8 * c.rough
    )
    c.organ(Path.smooth(jitter(rng, _GALLBLADDER, 2.0, 0.15)), T.BILE, FATTY, 0.6 * c.rough)


def spleen(c: Canvas, who: Patient, rng: np.random.Generator, state: dict):
    """A crescent along the left posterolateral diaphragm, notched by stomach and kidney."""
    size = who.spleen
    centre = (
        -112 + rng.normal(0, 2),
        -38 + rng.normal(0, 4),
        64 + rng.normal(0, 6) + 0.5 * who.breath,
    )
    box = c.box(
        [centre[0] - 60, centre[1] - 75, centre[2] - 85],
        [centre[0] + 75, centre[1] + 85, centre[2] + 85],
    )
    if box is None:
        return
    u, v, w = turned(c.points(box), centre, about_x=-25, about_z=18)
    spread = (u / (70 * size)) ** 2 + (v / (56 * size)) ** 2 + (w / (58 * size)) ** 2
    thick = 45 * size * np.sqrt(np.clip(1 - spread, 0, 1)) + 1.5 * c.rough[box]
    inward = -state["abdomen"][box] - 0.8
    d = smooth_max(-inward, (inward - thick) * 0.8, 5)
    d = c.make_way(box, smooth_max(d, (spread - 1) * 28, 6), 1.5, 4)
    c.solid(box, d, T.SPLEEN, FATTY)


def liver(c: Canvas, who: Patient, rng: np.random.Generator, state: dict):
    """Fills the right upper abdomen, tapers to the left; with veins, portal tree and tumours."""
    box = c.box((-120, -110, -95), (165, 150, 150))
    if box is None:
        return

    def inside(q: np.ndarray) -> bool:
        return bool(-70 < q[0] < 140 and -90 < q[1] < 110 and -50 < q[2] < 125)

    x, y, z = c.points(box)
    rough = c.rough[box]
    drop = (who.liver - 1) * 110 + float(rng.normal(0, 4))
    reach = float(rng.normal(0, 8))
    under = curve(x - reach, _LIVER_UNDER)
    under = under - drop - 0.10 * (y - 20) * np.clip(x / 40, 0, 1) + 3 * rough
    behind = curve(x, _LIVER_BEHIND) + 2 * rough
    d = smooth_max(state["abdomen"][box] + 0.3, (under - z) * 0.72, 16)
    d = smooth_max(d, (behind - y) * 0.75, 14)
    hilum = ellipsoid((x, y, z), (30, 18, 34), (22, 14, 17))
    fissure = ellipsoid((x, y, z), (-4, 78, 34), (3.5, 36, 44))
    d = smooth_max(smooth_max(d, -hilum, 8), -fissure, 4)
    d = c.make_way(box, d + 0.5 * c.fine[box], 1.0, 5)
    c.solid(box, d, T.LIVER, FATTY)

    for start, way, radius, length in _PORTAL_STEMS:
        c.tubes(branching(rng, start, way, radius, length, 5, inside), T.PORTAL_BRANCH, (T.LIVER,))
    top = 104 + 0.6 * who.breath
    for way, radius in _HEPATIC_STEMS:
        c.tubes(
            branching(rng, (22, 14, top), way, radius, 58, 4, inside), T.HEPATIC_VEIN, (T.LIVER,)
        )
    for k in range(who.liver_tumours):
        radius = float(np.exp(rng.uniform(np.log(8 if k else 15), np.log(27))))
        seat = d < -0.5 * radius
        own = (T.LIVER, T.HEPATIC_VEIN, T.PORTAL_BRANCH)
        lump = _lesion(
            c,
            box,
            d,
            seat if seat.any() else d <= d.min(),
            radius,
            T.LIVER_TUMOUR,
            own,
            rng,
            rough=1.5,
        )
        if lump is not None and radius > 13:
            c.paint(box, lump < -0.45 * radius, T.LIVER_NECROSIS, (T.LIVER_TUMOUR,))
