"""A whole case in a frame is what a plan with the grid "size" prepares."""

import dataclasses

import numpy as np
import pytest

from medjax.corpora.sources import read_corpus
from medjax.prepare import store
from medjax.prepare.intensity import Intensity
from medjax.prepare.plan import Plan
from medjax.prepare.prepare import prepare
from medjax.sample import frame
from medjax.sample.batch import dequantise
from tests.support.raw import save, write_corpus


def values(image, case):
    numbers = {k: np.asarray(case.meta[k], np.float32) for k in ("gain", "bias")}
    return dequantise({"image": image} | numbers)


@pytest.mark.parametrize("spacing", [(1.2, 1.0, 0.9), (6.0, 0.9, 1.0)])
def test_it_is_the_grid_of_a_fixed_size(tmp_path, spacing):
    folder = write_corpus(
        tmp_path / "Dataset001_A",
        1,
        (12, 15, 14),
        "nnunet",
        channels=("MR", "organ"),
        spacing_mm=spacing,
    )
    mask = np.random.default_rng(0).integers(0, 2, (12, 15, 14)).astype(np.uint8)
    save(folder / "imagesTr" / "case_000_0001.nii.gz", mask, spacing)
    corpus, cases = read_corpus(folder)
    size = (6, 8, 10)
    native = Plan(
        {"A": (1.0, 1.0, 1.0)},
        {"MR": Intensity("window", (100.0, 500.0)), "organ": Intensity("mask")},
        grid="native",
    )
    found = {}
    for name, plan in {
        "native": native,
        "size": dataclasses.replace(native, grid="size", size=size),
    }.items():
        prepare(corpus, cases, plan, tmp_path / name)
        found[name] = store.open_case(tmp_path / name / "A" / "case_000")
    image, label, shown = frame.whole(found["native"], (6, 10, 10), size)
    assert image.shape == (6, 10, 10, 2) and label.shape == (6, 10, 10)
    inside = (slice(None), slice(1, 9), slice(None))
    np.testing.assert_allclose(shown, found["size"].meta["spacing_mm"], rtol=1e-6)
    np.testing.assert_array_equal(label[inside], found["size"].label())
    np.testing.assert_allclose(
        values(image[inside], found["native"]),
        values(found["size"].image(), found["size"]),
        atol=3e-3,  # one grey value of 400, rounded in the native store and again here
    )
    np.testing.assert_array_equal(image[inside][..., 1], found["size"].image()[..., 1])
    assert image[inside][..., 1].mean() == pytest.approx(0.5, abs=0.1)
    assert (label[:, [0, 9]] == -1).all()
    np.testing.assert_allclose(values(image[:, [0, 9]], found["native"]), 0, atol=2e-3)


def test_a_small_volume_keeps_its_shape_where_areas_are_averaged(tmp_path):
    folder = write_corpus(tmp_path / "Dataset001_A", 1, (6, 20, 16), "nnunet", channels=("MR",))
    corpus, cases = read_corpus(folder)
    plan = Plan({"A": (1.0, 1.0, 1.0)}, {"MR": Intensity("window", (100.0, 500.0))}, grid="native")
    prepare(corpus, cases, plan, tmp_path / "store")
    case = store.open_case(tmp_path / "store" / "A" / "case_000")
    image, label, shown = frame.whole(case, (8, 10, 8), (8, 10, 8), "area", "nearest")
    np.testing.assert_allclose(shown, (1, 2, 2))
    assert (label[[0, 7]] == -1).all() and (label[1:7] >= 0).all()
    full = values(case.image(), case)[..., 0]
    means = full.reshape(6, 10, 2, 8, 2).mean((2, 4))
    np.testing.assert_allclose(values(image, case)[1:7, ..., 0], means, atol=3e-3)
    assert np.abs(values(image, case)[0]).max() < 3e-3
    np.testing.assert_array_equal(label[1:7], case.label()[:, 1::2, 1::2])
