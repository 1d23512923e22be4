"""From Python: nibabel in and out with the header kept, arrays with an affine, one compile for
many, errors that say what is wanted.
"""

import nibabel as nib
import numpy as np
import pytest

import medjax
from medjax import api
from medjax.errors import DataError, UsageError
from medjax.labels import Corpus
from medjax.scans import label_table
from tests.support.raw import make_case
from tests.support.run import ORGANS, make_run

SPLEEN = Corpus("Spleen", ((7, ("spleen",)),), channels=("CT",))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("api") / "run", corpora=(ORGANS, SPLEEN))


@pytest.fixture(scope="module")
def predictor(run):
    return medjax.Predictor(run, corpus="Organs")


def scan(shape=(14, 15, 13), axcodes="LPS"):
    array, _ = make_case(shape, [1, 2], kind="CT")
    affine = np.diag([1.0, 1.1, 1.2, 1.0])
    image = nib.Nifti1Image(array[..., 0].T, affine)
    image = image.as_reoriented(
        nib.orientations.ornt_transform(
            nib.io_orientation(affine), nib.orientations.axcodes2ornt(axcodes)
        )
    )
    image.set_qform(image.affine, 0)
    image.set_sform(image.affine, 2)
    return image


def test_an_image_keeps_its_geometry_and_codes_and_an_array_gives_the_same(predictor):
    image = scan()
    mask = predictor(image)
    assert (
        mask.shape == image.shape
        and mask.get_data_dtype() == np.uint8
        and np.array_equal(mask.affine, image.affine)
    )
    assert (int(mask.header["qform_code"]), int(mask.header["sform_code"])) == (0, 2)
    assert (
        label_table.parse(mask.header.extensions[0].text)
        == predictor.labels
        == {1: "organ", 2: "tumour"}
    )
    values = np.asarray(mask.dataobj)
    assert set(np.unique(values)) <= {0, 1, 2} and values.any()
    array = np.ascontiguousarray(np.asarray(image.dataobj).T)
    assert np.array_equal(predictor.predict(array, image.affine).T, values)


def test_many_scans_of_any_size_take_one_program(predictor):
    for shape in ((14, 15, 13), (9, 20, 8), (1, 12, 12)):
        found = predictor.segment(scan(shape, "RAS"))
        assert found.label_map.shape == shape and set(found.masks) == {"organ", "tumour"} == set(
            predictor.classes
        )
        probabilities = predictor.probabilities(scan(shape, "RAS"))
        assert np.array_equal(probabilities["tumour"] > 0.5, found.masks["tumour"])
    assert predictor._predictor.compiled == 1


def test_one_call_is_the_predictor_and_the_package_offers_both(run, predictor):
    assert medjax.Predictor is api.Predictor and medjax.predict is api.predict
    array = np.ascontiguousarray(np.asarray(scan().dataobj).T)
    found = api.predict(array, run, affine=scan().affine, corpus="Organs")
    assert np.array_equal(found, predictor(array, scan().affine)) and found.any()


def test_classes_settle_the_protocol(run):
    chosen = medjax.Predictor(run, classes=["spleen"])
    assert (
        chosen.corpus == "Spleen"
        and chosen.labels == {7: "spleen"}
        and chosen.classes == ("spleen",)
    )
    assert set(np.unique(chosen.predict(scan()).dataobj)) <= {0, 7}
    with pytest.raises(UsageError, match="several annotation protocols"):
        medjax.Predictor(run)
    with pytest.raises(UsageError, match="several annotation protocols"):
        medjax.Predictor(run, classes=["spleen", "organ"])


@pytest.mark.parametrize(
    "affine",
    [
        np.eye(3),
        np.eye(4)[:3],
        np.eye(4) * np.nan,
        np.zeros((4, 4)),
        np.diag([1, 1, np.inf, 1.0]),
        "eye",
        [["a"] * 4] * 4,
        np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [1, 2, 3, 4.0]]),
        np.diag([1, 1, 0, 1.0]),
        5,
        [[1, 2], [3]],
    ],
)
def test_an_affine_that_is_none_is_a_data_error(predictor, affine):
    with pytest.raises(
        DataError,
        match=r"array: unusable affine( \(NaN or singular\))?; found .*(expected 4 x 4 finite "
        r"numbers|Fix: correct the header)",
    ):
        predictor(np.ones((4, 4, 4), np.float32), affine)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"tta": "x"}, "unusable option tta"),
        ({"batch_windows": -3}, "unusable option batch_windows"),
        ({"overlap": 1.0}, "overlap"),
        ({"overlap": float("nan")}, "overlap"),
        ({"overlap": "half"}, "overlap"),
        ({"window": "888"}, "window"),
        ({"window": (0, 8, 8)}, "window"),
        ({"memory_gib": 0}, "memory_gib"),
        ({"device": 1}, "device"),
        ({"batchwindows": 2}, "did you mean batch_windows"),
        ({"uncertainty": "yes"}, "uncertainty"),
        ({"classes": "organ"}, "not a list of classes"),
        ({"classes": 3}, "not a list of classes"),
    ],
)
def test_options_that_do_not_exist_or_do_not_fit_are_usage_errors(run, options, words):
    with pytest.raises(UsageError, match=words):
        medjax.Predictor(run, corpus="Organs", **options)


@pytest.mark.parametrize("model", [None, 3, [None], {"a": 1}, []])
def test_what_is_no_model_is_a_usage_error(model):
    with pytest.raises(UsageError, match=r"not a model|no model given"):
        medjax.Predictor(model)


def test_unusable_scans_say_what_is_wanted(predictor):
    with pytest.raises(UsageError, match="affine="):
        predictor(np.zeros((4, 4, 4), np.float32))
    with pytest.raises(UsageError, match="a path, a nibabel image"):
        predictor(3)
    with pytest.raises(DataError, match=r"no-such-scan.nii.gz: file not found"):
        predictor("no-such-scan.nii.gz")
    broken = scan()
    values = np.asarray(broken.dataobj).copy()
    values[0, 0, 0] = np.nan
    with pytest.raises(DataError, match="finite"):
        predictor(nib.Nifti1Image(values, broken.affine))
    with pytest.raises(DataError, match="channels"):
        predictor(np.zeros((4, 4, 4, 2), np.float32), np.eye(4))
    with pytest.raises(DataError, match="not a scan"):
        predictor(np.zeros((4, 4), np.float32), np.eye(4))
    assert medjax.__version__ and callable(medjax.predict)
    with pytest.raises(AttributeError):
        _ = medjax.nothing
