"""The organs of the synthetic patient, painted into the trunk from the retroperitoneum forwards.

In: a `Canvas` that holds trunk, bones and chest, and the signed distances `depth` (mm inside the cavity wall), `abdomen` (negative inside the
abdominal cavity). Out: tissue codes. An organ painted later makes way for those before it (`Canvas.occupied`), which is what gives stomach,
colon, spleen and liver their impressions; small bowel takes the room that is left. Millimetres; x right, y anterior, z superior.
"""

import numpy as np

from medjax.data.phantom_anatomy import FATTY, KIDNEY_TISSUES, Patient, T, bones, chest, spine_at, trunk
from medjax.data.phantom_shapes import FAR, Canvas, Path, branching, capsule, curve, ellipsoid, smooth_max, smooth_min, turned


def paint_patient(c: Canvas, who: Patient, rng: np.random.Generator):
    """Paints everything. Each stage has its own child generator, so a change in one does not reshuffle the others."""
    stages = (trunk, bones, chest, great_vessels, kidneys, pancreas, spleen, stomach, colon, liver, small_bowel)
    state: dict[str, np.ndarray] = {}
    for stage, child in zip(stages, rng.spawn(len(stages)), strict=True):
        stage(c, who, child, state)


def _jitter(rng: np.random.Generator, rows, shift: float, radius: float = 0.08) -> np.ndarray:
    """Rows of (x, y, z, radius) with every knot moved by about `shift` mm and all radii scaled together."""
    rows = np.asarray(rows, float)
    return rows * [1, 1, 1, 1 + radius * float(np.clip(rng.normal(), -2, 2))] + rng.normal(size=rows.shape) * [shift, shift, shift, 0]


def _make_way(c: Canvas, box, distance: np.ndarray, gap: float, blend: float = 3) -> np.ndarray:
    """Cuts everything painted before, plus a fat plane of `gap` mm, out of a shape."""
    return smooth_max(distance, gap - c.occupied[box], blend)


def great_vessels(c: Canvas, who: Patient, rng: np.random.Generator, state: dict):
    """Aorta, inferior vena cava, portal and splenic vein, celiac trunk, mesenteric and renal vessels, diaphragmatic crura."""
    def beside(z, across, ahead, radius):
        x, y = spine_at(z, who)
        return (float(x) + across, float(y) + ahead, z, radius)

    wide = float(rng.uniform(0.9, 1.15))
    for side in (1, -1):
        c.tubes(Path.smooth([beside(95, 12 * side, 22, 3), beside(55, 13 * side, 22, 5), beside(10, 13 * side, 18, 4), beside(-25, 13 * side, 16, 1)]).segments(), T.MUSCLE, FATTY)
    aorta = Path.smooth([beside(230, -19, 22, 12 * wide), beside(120, -17, 26, 11.5 * wide), beside(60, -11, 29, 10.5 * wide), beside(0, -9, 28, 9 * wide), beside(-95, -6, 27, 8.5 * wide), beside(-105, -6, 27, 8 * wide)])
    iliacs = [Path.smooth([beside(-98, -6 + 4 * s, 27, 6), beside(-120, -4 + 16 * s, 27, 6), beside(-160, -2 + 32 * s, 20, 6)]) for s in (1, -1)]
    upper = 12 - spine_at(110, who)[1]
    cava = Path.smooth([beside(150, 22, 56, 12), beside(118, 22, float(upper), 12), beside(70, 23, 40, 11), beside(20, 18, 33, 10), beside(-40, 16, 29, 9.5), beside(-105, 14, 27, 9)])
    _tube(c, Path(cava.points, cava.radii), T.CAVA, (*FATTY, T.LUNG, T.MUSCLE), c.rough, 0.8)
    for path, tissue in ((aorta, T.AORTA), *((path, T.ARTERY) for path in iliacs)):
        _tube(c, path, tissue, (*FATTY, T.LUNG, T.MUSCLE), c.rough, 0.3)
    portal = Path.smooth(_jitter(rng, [(10, 24, 6, 6.5), (20, 22, 24, 6.8), (33, 22, 40, 7), (42, 20, 50, 6.5)], 1))
    splenic = Path.smooth(_jitter(rng, [(10, 23, 8, 5.5), (-18, 17, 17, 5), (-50, 2, 30, 4.6), (-82, -20, 44, 4)], 1.5))
    mesenteric = Path.smooth(_jitter(rng, [(10, 25, 8, 5.5), (9, 29, -18, 5.2), (5, 34, -50, 4.5), (2, 38, -85, 3.5)], 1.5))
    for path in (portal, splenic, mesenteric):
        _tube(c, path, T.PORTAL, FATTY, c.rough, 0.3)
    arteries = [
        [beside(4, -7, 38, 4), (-5, 24, -6, 3.6), (-6, 30, -40, 3.2), (-8, 36, -85, 2.4)],
        [beside(26, -8, 38, 4), (-7, 24, 29, 3.6), (8, 28, 32, 3), (28, 26, 42, 2.6)],
        [(-7, 24, 29, 3.2), (-30, 18, 40, 2.8), (-48, 4, 36, 2.8), (-84, -16, 50, 2.4)],
        [beside(-2, 4, 26, 3.2), beside(-8, 24, 14, 3), (46, -24, -10, 2.6)],
        [beside(2, -18, 26, 3.2), beside(4, -30, 14, 3), (-48, -20, 6, 2.6)],
    ]
    for rows in arteries:
        c.tubes(Path.smooth(rows).segments(), T.ARTERY, FATTY, reserve=True)
    for rows in ([beside(-2, 24, 34, 5), (36, -8, -8, 4.5), (50, -18, -10, 4)], [beside(-4, 10, 38, 4.5), beside(-2, -8, 40, 4), (-34, -4, 2, 4.5), (-50, -16, 5, 4)]):
        c.tubes(Path.smooth(rows).segments(), T.VEIN, FATTY, reserve=True)
    for side, x, z in ((1, 34, 34), (-1, -34, 40)):
        apex = (x, -12, z + 6)
        limbs = [((x + side * d, -26 + e, z - 12)) for d, e in ((-7, 2), (7, 0))]
        c.tubes([(apex, limb, 2.6, 1.6) for limb in limbs], T.ADRENAL, FATTY, reserve=True)


def _tube(c: Canvas, path: Path, tissue: int, over, field: np.ndarray, amount: float):
    drawn = c.tube(path)
    if drawn is not None:
        box, d, _, _ = drawn
        c.solid(box, d + amount * field[box], tissue, over)


def kidneys(c: Canvas, who: Patient, rng: np.random.Generator, state: dict):
    """Bean-shaped kidneys: cortex with columns between medullary pyramids, fat-filled sinus with pelvis and calyces, cysts and tumours."""
    tumour_sides = [int(rng.integers(2)) for _ in range(who.kidney_tumours)]
    for left, side in ((0, 1), (1, -1)):
        size = who.kidney * float(rng.uniform(0.95, 1.05))
        centre = (side * 67 + rng.normal(0, 3), -29 + rng.normal(0, 2), (-10 if side == 1 else 8) + rng.normal(0, 6))
        box = c.box([centre[0] - 55, centre[1] - 50, centre[2] - 85], [centre[0] + 55, centre[1] + 60, centre[2] + 85])
        if box is None:
            continue
        x, y, z = c.points(box)
        # (u, v, w): u to lateral, v to the front, w along the kidney; the hilum faces forwards, the upper pole leans in and back
        u, v, w = turned(((x - centre[0]) * side, y - centre[1], z - centre[2]), (0, 0, 0), -14, rng.normal(16, 3), rng.normal(28, 5))
        u, v, w = u / size, v / size, w / size
        bent = u + 0.0042 * w * w - 2
        outer = (ellipsoid((bent, v, w), (0, 0, 0), (28.5, 23, 55)) + 0.7 * c.fine[box]) * size
        sinus = ellipsoid((bent, v, w), (-21, 2, 0), (22, 9, 27)) * size
        bean = _make_way(c, box, smooth_max(outer, -sinus, 4), 1.0)
        behind = ellipsoid((x, y, z), (centre[0] - 6 * side, centre[1] - 40, centre[2] - 20), (36, 52, 95))
        behind = smooth_max(behind, z - centre[2] - 52 * size, 12)  # the perirenal space is fat, up to the upper pole
        np.minimum(c.occupied[box], np.minimum(outer - 1.5, behind), out=c.occupied[box])
        radial, sector = np.arctan2(w * 0.8, bent + 24), np.arctan2(v, bent + 20)
        pyramids = np.cos(radial * 7.5 + rng.uniform(0, 6)) + 0.5 * np.cos(sector * 4) > -0.15
        c.paint(box, bean < 0, T.CORTEX + left, FATTY)
        c.paint(box, (outer < -6.5 * size) & (sinus > 1.5) & pyramids, T.MEDULLA + left, (T.CORTEX + left,))
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
            _lesion(c, box, bean, (outer > -9) & (outer < 0), rng.uniform(4, 11), T.CYST + left, mine, rng, rough=0)
        for _ in range(tumour_sides.count(left)):
            _lesion(c, box, bean, (outer > -12) & (outer < 0), rng.uniform(10, 24), T.KIDNEY_TUMOUR + left, mine, rng, rough=1.6)


def _lesion(c: Canvas, box, organ: np.ndarray, seat: np.ndarray, radius: float, tissue: int, over, rng, rough: float) -> np.ndarray | None:
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
    """Lobulated pancreas along the splenic vein, gallbladder, duodenal C around the pancreatic head."""
    rows = [(32, 22, -22, 8), (31, 24, -6, 13), (22, 29, 6, 11), (8, 34, 14, 8), (-16, 31, 22, 9.5), (-44, 16, 33, 9.5), (-66, -1, 41, 9), (-82, -12, 46, 7)]
    drawn = c.tube(Path.smooth(_jitter(rng, rows, 2.0)))
    if drawn is not None:
        box, d, _, _ = drawn
        c.solid(box, d + 1.6 * c.fine[box] + 0.8 * c.rough[box], T.PANCREAS, FATTY)
    gallbladder = Path.smooth(_jitter(rng, [(46, 36, 26, 3), (52, 48, 12, 9), (60, 60, -4, 13), (64, 68, -16, 11)], 2.0, 0.15))
    _tube(c, gallbladder, T.BILE, FATTY, c.rough, 0.6)
    loop = [(32, 42, 16, 9), (48, 34, 20, 11), (54, 22, 4, 12), (53, 14, -22, 12), (44, 12, -42, 12), (20, 22, -50, 11), (-8, 30, -46, 11), (-30, 34, -26, 12)]
    drawn = c.tube(Path.smooth(_jitter(rng, loop, 2.0)))
    if drawn is not None:
        box, d, arc, height = drawn
        d = _make_way(c, box, d + 0.8 * np.sin(arc * 1.2), 1.0, 2)
        c.solid(box, d, T.BOWEL_WALL, FATTY)
        c.paint(box, d < -3, T.BOWEL_FLUID, (T.BOWEL_WALL,))
        gas = float(rng.choice([2, 5, 30]))  # height of the fluid level above the axis
        c.paint(box, (d < -3) & (height > gas) & (arc < 80), T.GAS, (T.BOWEL_FLUID,))


def stomach(c: Canvas, who: Patient, rng: np.random.Generator, state: dict):
    """Oesophagus, then a J-shaped stomach with rugal folds, fluid and a gas bubble in front (the patient lies on the back)."""
    x, y = (float(v) for v in spine_at(100, who))
    _tube(c, Path.smooth([(x - 8, y + 36, 200, 8), (x - 12, y + 40, 120, 8), (-24, 8, 100, 8), (-36, 8, 90, 9)]), T.OESOPHAGUS, (*FATTY, T.MUSCLE, T.LUNG), c.fine, 0.5)
    full = float(rng.uniform(0.8, 1.15))
    rows = [(-50, -8, 104, 24), (-64, -8, 92, 34), (-72, 6, 68, 35), (-66, 32, 40, 30), (-48, 52, 14, 25), (-20, 60, -2, 21), (8, 54, 2, 17), (26, 44, 12, 12), (34, 41, 16, 8)]
    path = Path.smooth(_jitter(rng, rows, 3.0))
    drawn = c.tube(Path(path.points, path.radii * full))
    if drawn is None:
        return
    box, d, arc, _ = drawn
    d = smooth_max(_make_way(c, box, d + 1.5 * c.rough[box], 1.5, 6), state["abdomen"][box] + 3, 8)
    c.solid(box, d, T.STOMACH_WALL, (*FATTY, T.OESOPHAGUS))
    folds = 1.4 * c.fine[box] + 0.8 * np.sin(arc * 0.5)
    lumen = d + 3.4 + np.maximum(folds, -1)
    level = 30 + float(rng.uniform(0, 26)) + 0.6 * who.belly
    c.paint(box, lumen < 0, T.STOMACH_FLUID, (T.STOMACH_WALL,))
    c.paint(box, (lumen < 0) & (c.y[box] > level), T.STOMACH_GAS, (T.STOMACH_FLUID,))


def colon(c: Canvas, who: Patient, rng: np.random.Generator, state: dict):
    """Ascending, transverse and descending colon with haustra; stool behind, gas in front."""
    front = who.belly
    rows = [
        (98, -8, -150, 26), (106, -12, -100, 25), (106, -10, -62, 23), (96, 10, -42, 23), (78, 48 + 0.5 * front, -46, 21), (45, 68 + front, -58, 20),
        (5, 74 + front, -66, 19), (-35, 72 + front, -56, 19), (-72, 58 + 0.7 * front, -22, 19), (-98, 26, 18, 19), (-110, -8, 34, 18), (-114, -30, 8, 16),
        (-116, -32, -50, 14), (-112, -28, -100, 14), (-100, -20, -150, 14),
    ]  # fmt: skip
    path = Path.smooth(_jitter(rng, rows, 4.0), 5)
    drawn = c.tube(path)
    if drawn is None:
        return
    box, d, arc, height = drawn
    pouch = np.abs(np.sin(arc * float(np.pi / rng.uniform(24, 32)))) - 0.6
    d = smooth_max(_make_way(c, box, d - 4.0 * pouch + 1.2 * c.rough[box], 1.5, 6), 2.5 - state["depth"][box], 6)
    d = np.maximum(d, state["abdomen"][box] + 2)
    c.solid(box, d, T.BOWEL_WALL, FATTY)
    stops = np.linspace(0, float(arc.max()) + 1, 14)
    level = curve(arc, list(zip(stops.tolist(), rng.uniform(-16, 16, 14).tolist(), strict=True)))
    c.paint(box, d < -2.2, T.STOOL, (T.BOWEL_WALL,))
    c.paint(box, (d < -2.2) & (height > level + 2 * c.fine[box]), T.GAS, (T.STOOL,))
    bubbles = (c.fine[box] > 1.3) & (d < -4)
    c.paint(box, bubbles, T.GAS, (T.STOOL,))


def spleen(c: Canvas, who: Patient, rng: np.random.Generator, state: dict):
    """A crescent along the left posterolateral diaphragm, thick in the middle, notched by stomach and kidney."""
    size = who.spleen
    centre = (-112 + rng.normal(0, 2), -38 + rng.normal(0, 4), 64 + rng.normal(0, 6) + 0.5 * who.breath)
    box = c.box([centre[0] - 60, centre[1] - 75, centre[2] - 85], [centre[0] + 75, centre[1] + 85, centre[2] + 85])
    if box is None:
        return
    u, v, w = turned(c.points(box), centre, about_x=-25, about_z=18)
    spread = (u / (70 * size)) ** 2 + (v / (56 * size)) ** 2 + (w / (58 * size)) ** 2
    thick = 45 * size * np.sqrt(np.clip(1 - spread, 0, 1)) + 1.5 * c.rough[box]
    inward = -state["abdomen"][box] - 0.8
    d = smooth_max(-inward, (inward - thick) * 0.8, 5)
    d = _make_way(c, box, smooth_max(d, (spread - 1) * 28, 6), 1.5, 4)
    c.solid(box, d, T.SPLEEN, FATTY)


def liver(c: Canvas, who: Patient, rng: np.random.Generator, state: dict):
    """Fills the right upper abdomen against diaphragm and wall, tapers to the left; hepatic veins, portal tree and tumours inside."""
    box = c.box((-120, -110, -95), (165, 150, 150))
    if box is None:
        return
    x, y, z = c.points(box)
    rough = c.rough[box]
    drop = (who.liver - 1) * 110 + float(rng.normal(0, 4))
    reach = float(rng.normal(0, 8))
    under = curve(x - reach, [(-115, 122), (-80, 100), (-45, 74), (-12, 50), (15, 34), (40, 14), (70, -10), (105, -36), (150, -52)])
    under = under - drop - 0.10 * (y - 20) * np.clip(x / 40, 0, 1) + 3 * rough
    behind = curve(x, [(-120, 52), (-60, 44), (-25, 32), (0, 20), (14, 2), (24, -40), (36, -120)]) + 2 * rough
    d = smooth_max(state["abdomen"][box] + 0.3, (under - z) * 0.72, 16)
    d = smooth_max(d, (behind - y) * 0.75, 14)
    hilum = ellipsoid((x, y, z), (30, 18, 34), (22, 14, 17))
    fissure = ellipsoid((x, y, z), (-4, 78, 34), (3.5, 36, 44))
    d = smooth_max(smooth_max(d, -hilum, 8), -fissure, 4)
    d = _make_way(c, box, d + 0.5 * c.fine[box], 1.0, 5)
    c.solid(box, d, T.LIVER, FATTY)

    inside = lambda q: -70 < q[0] < 140 and -90 < q[1] < 110 and -50 < q[2] < 125  # noqa: E731
    for start, way, radius, length in (((42, 20, 50), (1, -0.25, 0.12), 6, 46), ((42, 20, 50), (0.7, 0.5, -0.5), 4.5, 44), ((40, 22, 52), (-0.8, 0.75, 0.45), 5, 44)):
        c.tubes(branching(rng, start, way, radius, length, 5, inside), T.PORTAL_BRANCH, (T.LIVER,))
    top = 104 + 0.6 * who.breath
    for way, radius in (((1, -0.15, -0.55), 5.5), ((0.45, 0.9, -0.5), 5), ((-0.65, 0.75, -0.25), 4.5), ((0.6, 0.1, -1), 3)):
        c.tubes(branching(rng, (22, 14, top), way, radius, 58, 4, inside), T.HEPATIC_VEIN, (T.LIVER,))
    for _ in range(who.liver_tumours):
        radius = float(np.exp(rng.uniform(np.log(7), np.log(24))))
        seat = d < -0.5 * radius
        own = (T.LIVER, T.HEPATIC_VEIN, T.PORTAL_BRANCH)
        lump = _lesion(c, box, d, seat if seat.any() else d <= d.min(), radius, T.LIVER_TUMOUR, own, rng, rough=1.5)
        if lump is not None and radius > 13:
            c.paint(box, lump < -0.45 * radius, T.LIVER_NECROSIS, (T.LIVER_TUMOUR,))


def small_bowel(c: Canvas, who: Patient, rng: np.random.Generator, state: dict):
    """Packed loops in the peritoneal room that is left, walls where two loops meet, and mesenteric vessels fanning out to them."""
    s = tuple(slice(None, None, max(1, n // 48)) for n in c.tissue.shape)
    x, y, z = (q[s] for q in (c.x, c.y, c.z))
    room = (c.tissue[s] == T.INNER_FAT) & (c.occupied[s] > 5) & (state["depth"][s] > 7) & (state["abdomen"][s] < -7)
    room &= (y > -4 + 0.1 * np.abs(x)) & (z < 32 - 0.2 * x)
    places = np.stack([q[room] for q in (x, y, z)], -1)
    rng.shuffle(places)
    seeds: list[np.ndarray] = []
    for place in places[:4000]:
        if len(seeds) < 60 and all(np.sum((place - other) ** 2) > 21**2 for other in seeds):
            seeds.append(place)
    nearest = np.full(c.tissue.shape, FAR, np.float32)
    second = nearest.copy()
    owner = np.zeros(c.tissue.shape, np.uint8)
    for k, seed in enumerate(seeds):
        root = np.array([4, 30, float(np.clip(seed[2] * 0.7, -70, 0))])
        middle = (root + seed) / 2 + rng.normal(0, 6, 3)
        for shift, radius, tissue in ((0, 1.9, T.VEIN), (3.5, 1.4, T.ARTERY)):
            line = [(*(root + shift), radius * 1.3), (*(middle + shift), radius), (*seed, radius * 0.8)]
            c.tubes(Path.smooth(line).segments(), tissue, (T.INNER_FAT,))
        way = rng.normal(size=3) * [1, 0.5, 0.9]
        way *= rng.uniform(20, 42) / np.linalg.norm(way)
        bend = rng.normal(0, 9, 3)
        r = float(rng.uniform(11, 16.5))
        loop = Path.smooth([(*(seed - way), 0.8 * r), (*(seed + bend), r), (*(seed + way), 0.85 * r)])
        drawn = c.tube(loop, margin=4)
        if drawn is None:
            continue
        box, d, arc, _ = drawn
        d = d + 0.6 * np.sin(arc * 1.3)
        second[box] = np.minimum(second[box], np.maximum(nearest[box], d))
        owner[box][d < nearest[box]] = k
        np.minimum(nearest[box], d, out=nearest[box])
    gut = np.maximum(np.maximum(nearest + 0.7 * c.fine, 1.2 - c.occupied), np.maximum(3 - state["depth"], state["abdomen"] + 3))
    own = np.isin(c.tissue, (T.INNER_FAT, T.VEIN, T.ARTERY))
    c.tissue[own & (gut < 0)] = T.BOWEL_WALL
    filling = rng.choice([T.BOWEL_WALL, T.BOWEL_FLUID, T.BOWEL_CONTRAST], size=max(1, len(seeds)), p=(0.35, 0.45, 0.2)).astype(np.uint8)
    lumen = own & (np.maximum(gut, (nearest - second) / 2 - 0.6) < -2.2 - 0.4 * c.fine)
    c.tissue[lumen] = filling[owner[lumen]]
    level = np.array([seed[1] for seed in seeds] or [0], np.float32) + rng.choice([3, 60], size=max(1, len(seeds)), p=(0.15, 0.85)).astype(np.float32)
    gas = lumen & (filling[owner] != T.BOWEL_WALL)
    gas[gas] = c.y[gas] > level[owner[gas]]
    c.tissue[gas] = T.GAS
