"""Stomach and bowel of the synthetic patient: hollow organs with walls, folds and fluid levels.

In: a `Canvas` with the adjacent solid organs, and in `state` the signed distances `depth` and
`abdomen`. Out: tissue codes. Gas lies in front (supine patient). Small bowel is drawn last and
fills the remaining space. Millimetres; x to the right, y to anterior, z to superior.
"""

import numpy as np

from medjax.phantom.anatomy import FATTY, Patient, T, spine_at
from medjax.phantom.shapes import FAR, Canvas, Path, curve, jitter, smooth_max

# rows of (x, y, z, radius)
_DUODENUM = [
    (32, 42, 16, 9),
    (48, 34, 20, 11),
    (54, 22, 4, 12),
    (53, 14, -22, 12),
    (44, 12, -42, 12),
    (20, 22, -50, 11),
    (-8, 30, -46, 11),
    (-30, 34, -26, 12),
]
_STOMACH = [
    (-50, -8, 104, 24),
    (-64, -8, 92, 34),
    (-72, 6, 68, 35),
    (-66, 32, 40, 30),
    (-48, 52, 14, 25),
    (-20, 60, -2, 21),
    (8, 54, 2, 17),
    (26, 44, 12, 12),
    (34, 41, 16, 8),
]
# ... and the share of the belly's bulge by which the point moves forwards; from caecum to sigmoid
_COLON = [
    (98, -8, -150, 26, 0),
    (106, -12, -100, 25, 0),
    (106, -10, -62, 23, 0),
    (96, 10, -42, 23, 0),
    (78, 48, -46, 21, 0.5),
    (45, 68, -58, 20, 1),
    (5, 74, -66, 19, 1),
    (-35, 72, -56, 19, 1),
    (-72, 58, -22, 19, 0.7),
    (-98, 26, 18, 19, 0),
    (-110, -8, 34, 18, 0),
    (-114, -30, 8, 16, 0),
    (-116, -32, -50, 14, 0),
    (-112, -28, -100, 14, 0),
    (-100, -20, -150, 14, 0),
]


def duodenum(c: Canvas, who: Patient, rng: np.random.Generator, state: dict):
    """The C around the pancreatic head, with some gas in front in some patients."""
    drawn = c.tube(Path.smooth(jitter(rng, _DUODENUM, 2.0)))
    if drawn is None:
        return
    box, d, arc, height = drawn
    d = c.make_way(box, d + 0.8 * np.sin(arc * 1.2), 1.0, 2)
    c.solid(box, d, T.BOWEL_WALL, FATTY)
    c.paint(box, d < -3, T.BOWEL_FLUID, (T.BOWEL_WALL,))
    gas = float(rng.choice([2, 5, 30]))  # height of the fluid level above the axis
    c.paint(box, (d < -3) & (height > gas) & (arc < 80), T.GAS, (T.BOWEL_FLUID,))


def stomach(c: Canvas, who: Patient, rng: np.random.Generator, state: dict):
    """Oesophagus, then a J-shaped stomach with rugal folds, fluid and a gas bubble in front.

    The patient is supine.
    """
    x, y = (float(v) for v in spine_at(100, who))
    gullet = Path.smooth(
        [(x - 8, y + 36, 200, 8), (x - 12, y + 40, 120, 8), (-24, 8, 100, 8), (-36, 8, 90, 9)]
    )
    c.organ(gullet, T.OESOPHAGUS, (*FATTY, T.MUSCLE, T.LUNG), 0.5 * c.fine)
    full = float(rng.uniform(0.8, 1.15))
    path = Path.smooth(jitter(rng, _STOMACH, 3.0))
    drawn = c.tube(Path(path.points, path.radii * full))
    if drawn is None:
        return
    box, d, arc, _ = drawn
    d = smooth_max(c.make_way(box, d + 1.5 * c.rough[box], 1.5, 6), state["abdomen"][box] + 3, 8)
    c.solid(box, d, T.STOMACH_WALL, (*FATTY, T.OESOPHAGUS))
    folds = 1.4 * c.fine[box] + 0.8 * np.sin(arc * 0.5)
    lumen = d + 3.4 + np.maximum(folds, -1)
    level = 30 + float(rng.uniform(0, 26)) + 0.6 * who.belly
    c.paint(box, lumen < 0, T.STOMACH_FLUID, (T.STOMACH_WALL,))
    c.paint(box, (lumen < 0) & (c.y[box] > level), T.STOMACH_GAS, (T.STOMACH_FLUID,))


def colon(c: Canvas, who: Patient, rng: np.random.Generator, state: dict):
    """Ascending, transverse and descending colon with haustra; stool behind, gas in front."""
    rows = [(x, y + share * who.belly, z, radius) for x, y, z, radius, share in _COLON]
    path = Path.smooth(jitter(rng, rows, 4.0), 5)
    drawn = c.tube(path)
    if drawn is None:
        return
    box, d, arc, height = drawn
    pouch = np.abs(np.sin(arc * float(np.pi / rng.uniform(24, 32)))) - 0.6
    d = smooth_max(
        c.make_way(box, d - 4.0 * pouch + 1.2 * c.rough[box], 1.5, 6), 2.5 - state["depth"][box], 6
    )
    d = np.maximum(d, state["abdomen"][box] + 2)
    c.solid(box, d, T.BOWEL_WALL, FATTY)
    stops = np.linspace(0, float(arc.max()) + 1, 14)
    level = curve(arc, list(zip(stops.tolist(), rng.uniform(-16, 16, 14).tolist(), strict=True)))
    c.paint(box, d < -2.2, T.STOOL, (T.BOWEL_WALL,))
    c.paint(box, (d < -2.2) & (height > level + 2 * c.fine[box]), T.GAS, (T.STOOL,))
    bubbles = (c.fine[box] > 1.3) & (d < -4)
    c.paint(box, bubbles, T.GAS, (T.STOOL,))


def small_bowel(c: Canvas, who: Patient, rng: np.random.Generator, state: dict):
    """Packed loops in the remaining peritoneal space, with walls and mesenteric vessels."""
    s = tuple(slice(None, None, max(1, n // 48)) for n in c.tissue.shape)
    x, y, z = (q[s] for q in (c.x, c.y, c.z))
    free = (
        (c.tissue[s] == T.INNER_FAT)
        & (c.occupied[s] > 5)
        & (state["depth"][s] > 7)
        & (state["abdomen"][s] < -7)
    )
    free &= (y > -4 + 0.1 * np.abs(x)) & (z < 32 - 0.2 * x)
    places = np.stack([q[free] for q in (x, y, z)], -1)
    rng.shuffle(places)
    seeds: list[np.ndarray] = []
    while len(places) and len(seeds) < 60:
        seeds.append(places[0])
        places = places[((places - places[0]) ** 2).sum(1) > 21**2]
    nearest = np.full(c.tissue.shape, FAR, np.float32)
    second = nearest.copy()
    owner = np.zeros(c.tissue.shape, np.uint8)
    for k, seed in enumerate(seeds):
        root = np.array([4, 30, float(np.clip(seed[2] * 0.7, -70, 0))])
        middle = (root + seed) / 2 + rng.normal(0, 6, 3)
        for shift, radius, tissue in ((0, 1.9, T.VEIN), (3.5, 1.4, T.ARTERY)):
            line = [
                (*(root + shift), radius * 1.3),
                (*(middle + shift), radius),
                (*seed, radius * 0.8),
            ]
            c.tubes(Path.smooth(line, 2).segments(), tissue, (T.INNER_FAT,))
        way = rng.normal(size=3) * [1, 0.5, 0.9]
        way *= rng.uniform(20, 42) / np.linalg.norm(way)
        bend = rng.normal(0, 9, 3)
        r = float(rng.uniform(11, 16.5))
        loop = Path.smooth(
            [(*(seed - way), 0.8 * r), (*(seed + bend), r), (*(seed + way), 0.85 * r)]
        )
        drawn = c.tube(loop, margin=4)
        if drawn is None:
            continue
        box, d, arc, _ = drawn
        d = d + 0.6 * np.sin(arc * 1.3)
        second[box] = np.minimum(second[box], np.maximum(nearest[box], d))
        owner[box][d < nearest[box]] = k
        np.minimum(nearest[box], d, out=nearest[box])
    gut = np.maximum(
        np.maximum(nearest + 0.7 * c.fine, 1.2 - c.occupied),
        np.maximum(3 - state["depth"], state["abdomen"] + 3),
    )
    own = np.isin(c.tissue, (T.INNER_FAT, T.VEIN, T.ARTERY))
    c.tissue[own & (gut < 0)] = T.BOWEL_WALL
    filling = rng.choice(
        [T.BOWEL_WALL, T.BOWEL_FLUID, T.BOWEL_CONTRAST],
        size=max(1, len(seeds)),
        p=(0.35, 0.45, 0.2),
    ).astype(np.uint8)
    lumen = own & (np.maximum(gut, (nearest - second) / 2 - 0.6) < -2.2 - 0.4 * c.fine)
    c.tissue[lumen] = filling[owner[lumen]]
    level = np.array(
        [seed[1] + float(rng.choice([3, 60], p=(0.15, 0.85))) for seed in seeds] or [0], np.float32
    )
    gas = lumen & (filling[owner] != T.BOWEL_WALL)
    gas[gas] = c.y[gas] > level[owner[gas]]
    c.tissue[gas] = T.GAS
