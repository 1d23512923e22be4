"""Solid organs, vessels and bowel of the synthetic patient: sides, volumes, what lies where."""

import numpy as np
import pytest

from medjax.phantom import bowel, organs
from medjax.phantom.anatomy import FATTY, KIDNEY_TISSUES, Patient, T
from medjax.phantom.shapes import FAR, Canvas, ellipsoid

STEP = 4.0  # mm
ML = STEP**3 / 1000


def patient(**fields):
    textbook = {
        "scale": (1, 1, 1),
        "tilt_deg": (0, 0, 0),
        "offset": (0, 0, 0),
        "fat": 15,
        "belly": 5,
        "liver": 1,
        "spleen": 1,
        "kidney": 1,
        "breath": 0,
        "scoliosis": 0,
    }
    return Patient(**(textbook | fields))


def abdomen():
    """A canvas full of fat, smooth surfaces, and a cavity of an adult's size."""
    axes = (
        np.arange(low, high, STEP, np.float32)
        for low, high in ((-120, 150), (-110, 130), (-150, 150))
    )
    z, y, x = np.meshgrid(*axes, indexing="ij")
    flat = np.zeros(x.shape, np.float32)
    canvas = Canvas((x, y, z), flat, flat)
    canvas.tissue[:] = T.INNER_FAT
    cavity = ellipsoid((x, y, z), (0, 5, 20), (145, 105, 130)).astype(np.float32)
    return canvas, {"abdomen": cavity, "depth": -cavity}


def paint(function, who=None, seed=0, on=None):
    canvas, state = on or abdomen()
    function(canvas, who or patient(), np.random.default_rng(seed), state)
    return canvas


def mean_of(canvas, *tissues):
    """Mean (x, y, z) of some tissues in mm."""
    mask = np.isin(canvas.tissue, tissues)
    return tuple(float(q[mask].mean()) for q in (canvas.x, canvas.y, canvas.z))


def ml(canvas, *tissues):
    return ML * np.isin(canvas.tissue, tissues).sum()


def test_kidneys_lie_on_their_sides_and_have_an_adults_volume():
    canvas = paint(organs.kidneys)
    right, left = (T.CORTEX, T.MEDULLA), (T.CORTEX_LEFT, T.MEDULLA_LEFT)
    assert mean_of(canvas, *right)[0] > 50 and mean_of(canvas, *left)[0] < -50
    assert mean_of(canvas, *right)[2] < mean_of(canvas, *left)[2]  # the liver pushes it down
    for tissues in (right, left):
        assert 90 < ml(canvas, *tissues) < 220
    assert not np.isin(canvas.tissue, (T.CYST, T.CYST_LEFT, T.KIDNEY_TUMOUR)).any()
    large = paint(organs.kidneys, patient(kidney=1.1))
    assert ml(large, *KIDNEY_TISSUES) > 1.15 * ml(canvas, *KIDNEY_TISSUES)


def test_tumours_are_as_many_as_the_patient_has():
    found = paint(organs.kidneys, patient(kidney_tumours=2))
    assert 5 < ml(found, T.KIDNEY_TUMOUR, T.KIDNEY_TUMOUR_LEFT) < 150
    plain, ill = (paint(organs.liver, patient(liver_tumours=n)) for n in (0, 2))
    assert ml(plain, T.LIVER_TUMOUR) == 0 < ml(ill, T.LIVER_TUMOUR)
    own = (T.LIVER, T.HEPATIC_VEIN, T.PORTAL_BRANCH, T.LIVER_TUMOUR, T.LIVER_NECROSIS)
    inside = np.isin(plain.tissue, own)
    assert np.array_equal(np.isin(ill.tissue, own), inside)  # tumours grow within the liver only


def test_the_liver_fills_the_right_upper_abdomen_around_its_vessels():
    canvas = paint(organs.liver)
    whole = (T.LIVER, T.HEPATIC_VEIN, T.PORTAL_BRANCH)
    x, _, z = mean_of(canvas, *whole)
    assert x > 20 and z > 20 and 900 < ml(canvas, *whole) < 2600
    assert 0.01 < ml(canvas, *whole[1:]) / ml(canvas, *whole) < 0.15
    assert ml(paint(organs.liver, patient(liver=1.08)), *whole) > ml(canvas, *whole)


def test_the_spleen_lies_left_and_leaves_the_cavity_alone():
    canvas, state = on = abdomen()
    paint(organs.spleen, on=on)
    inside = canvas.tissue == T.SPLEEN
    x, y, _ = mean_of(canvas, T.SPLEEN)
    assert x < -70 and y < 0 and 60 < ml(canvas, T.SPLEEN) < 450
    assert (state["abdomen"][inside] < 0).all()


def test_vessels_on_either_side_of_the_midline():
    canvas = paint(organs.great_vessels)
    assert mean_of(canvas, T.AORTA)[0] < 0 < mean_of(canvas, T.CAVA)[0]
    for tissue in (T.AORTA, T.CAVA, T.PORTAL):
        assert ml(canvas, tissue) > 10
    spans = [np.ptp(canvas.z[canvas.tissue == t]) for t in (T.AORTA, T.CAVA)]
    assert min(spans) > 180  # through the whole abdomen
    sides = canvas.x[canvas.tissue == T.ADRENAL]
    assert (sides > 0).any() and (sides < 0).any()


def test_pancreas_and_gallbladder():
    canvas = paint(organs.pancreas)
    assert 40 < ml(canvas, T.PANCREAS) < 160 and 10 < ml(canvas, T.BILE) < 80
    assert mean_of(canvas, T.BILE)[0] > 40 > mean_of(canvas, T.PANCREAS)[0]


def test_what_is_painted_later_makes_way():
    canvas, state = on = abdomen()
    paint(organs.kidneys, on=on)
    before = canvas.tissue.copy()
    kidneys = np.isin(before, KIDNEY_TISSUES)
    paint(organs.liver, on=on)
    assert np.array_equal(canvas.tissue[kidneys], before[kidneys])
    assert (canvas.tissue == T.LIVER).any() and state["abdomen"].min() < -60


GAS_AND_FLUID = {
    bowel.stomach: (T.STOMACH_WALL, T.STOMACH_GAS, T.STOMACH_FLUID),
    bowel.colon: (T.BOWEL_WALL, T.GAS, T.STOOL),
}


@pytest.mark.parametrize("organ", GAS_AND_FLUID, ids=lambda f: f.__name__)
def test_gas_lies_in_front_of_what_is_heavier(organ):
    canvas = paint(organ)
    wall, gas, heavy = GAS_AND_FLUID[organ]
    assert all(ml(canvas, tissue) > 20 for tissue in (wall, gas, heavy))
    columns = [(canvas.tissue == tissue).any(1) for tissue in (gas, heavy)]
    shared = (columns[0] & columns[1])[:, None]
    front, back = (canvas.y[(canvas.tissue == t) & shared].mean() for t in (gas, heavy))
    assert front > back + STEP


def test_the_duodenum_embraces_the_head_of_the_pancreas():
    canvas = paint(bowel.duodenum)
    assert 15 < ml(canvas, T.BOWEL_WALL, T.BOWEL_FLUID, T.GAS) < 200
    x, _, z = mean_of(canvas, T.BOWEL_WALL, T.BOWEL_FLUID)
    assert x > 0 and z < 0


def test_small_bowel_takes_what_is_left():
    canvas, state = on = abdomen()
    paint(bowel.colon, on=on)
    taken = canvas.tissue != T.INNER_FAT
    before = canvas.tissue[taken].copy()
    paint(bowel.small_bowel, on=on)
    assert np.array_equal(canvas.tissue[taken], before)
    loops = np.isin(canvas.tissue, (T.BOWEL_WALL, T.BOWEL_FLUID, T.BOWEL_CONTRAST, T.GAS)) & ~taken
    assert 200 < ML * loops.sum() < 2500
    assert (state["abdomen"][loops] < 0).all() and (canvas.occupied[loops] > 1).all()


@pytest.mark.parametrize(
    "function",
    [
        organs.kidneys,
        organs.spleen,
        organs.liver,
        organs.great_vessels,
        organs.pancreas,
        bowel.duodenum,
        bowel.stomach,
        bowel.colon,
        bowel.small_bowel,
    ],
    ids=lambda f: f.__name__,
)
def test_a_field_of_view_elsewhere_stays_as_it_is(function):
    canvas, state = abdomen()
    far = Canvas((canvas.x + 5 * FAR, canvas.y, canvas.z), canvas.rough, canvas.fine)
    far.tissue[:] = T.FAT
    paint(function, patient(liver_tumours=1, kidney_tumours=1), on=(far, state))
    assert (far.tissue == T.FAT).all() and (far.occupied == FAR).all()


def test_organs_replace_fat_only():
    canvas, state = abdomen()
    canvas.tissue[:] = T.MUSCLE
    for function in (organs.kidneys, organs.spleen, organs.pancreas, bowel.colon):
        paint(function, on=(canvas, state))
    assert (canvas.tissue == T.MUSCLE).all() and T.MUSCLE not in FATTY
