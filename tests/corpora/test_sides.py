"""Left and right of paired organs, from components and from the middle of the body."""

import os

import nibabel as nib
import numpy as np
import pytest

from medjax import cli
from medjax.corpora import sides
from medjax.corpora.inputs import Case
from medjax.corpora.layouts import corpus_json
from medjax.corpora.sources import read_corpus
from medjax.errors import UsageError
from medjax.labels import Corpus
from medjax_verbs import sides as verb
from tests.support.raw import save, write_corpus

SHAPE = (8, 10, 20)  # z, y, x in RAS
RIGHT, LEFT = (slice(2, 6), slice(2, 6), slice(13, 17)), (slice(2, 6), slice(2, 6), slice(3, 6))


def _mask(*boxes):
    mask = np.zeros(SHAPE, bool)
    for box in boxes:
        mask[box] = True
    return mask


def test_the_component_with_lower_x_is_left_and_specks_go_to_the_nearer_one():
    mask = _mask(RIGHT, LEFT)
    mask[7, 9, 8] = mask[7, 9, 19] = True
    left, state = sides.left_of(mask, 10.0)
    expected = _mask(LEFT)
    expected[7, 9, 8] = True
    assert state == "two" and np.array_equal(left, expected)


@pytest.mark.parametrize("middle, all_left", [(10.0, False), (18.0, True)])
def test_a_single_organ_takes_its_side_of_the_body(middle, all_left):
    mask = _mask(RIGHT)
    mask[0, 0, 0] = True  # a speck is no second organ
    left, state = sides.left_of(mask, middle)
    assert state == "single" and np.array_equal(left, mask if all_left else np.zeros_like(mask))


def test_joined_organs_are_cut_in_the_middle_and_nothing_is_nothing():
    mask = _mask((slice(2, 6), slice(2, 6), slice(3, 17)))
    left, state = sides.left_of(mask, 10.0)
    assert state == "joined" and np.array_equal(left, mask & (np.arange(20) < 10))
    assert not sides.left_of(np.zeros(SHAPE, bool), 10.0)[0].any()


def test_the_middle_is_that_of_the_body_not_of_the_image():
    image = np.full(SHAPE, -1000.0)
    image[:, :, 8:19] = 40.0
    assert sides.middle_of(image) == 13 and sides.middle_of(np.zeros(SHAPE)) == 10


def test_nested_classes_and_the_ignore_value_stay_what_they_are():
    corpus = Corpus("K", ((1, ("kidney",)), (2, ("kidney", "tumour")), (5, ("spleen",))), ignore=9)
    changed, paired = sides.split(corpus, ["kidney"])
    assert paired == (1, 2) and changed.labels == (
        (0, ()),
        (1, ("right kidney",)),
        (2, ("right kidney", "tumour")),
        (3, ("spleen",)),
        (5, ("left kidney",)),
        (6, ("left kidney", "tumour")),
    )
    assert changed.ignore == 4 == corpus.ignore_id
    assert set(changed.annotated) == {"right kidney", "left kidney", "tumour", "spleen"}
    with pytest.raises(UsageError, match="did you mean kidney"):
        sides.split(corpus, ["kidny"])
    with pytest.raises(UsageError, match="already"):
        sides.split(Corpus("K", ((1, ("a",)), (2, ("left a",)))), ["a"])


def test_the_command_writes_label_maps_on_the_grid_of_the_scan(tmp_path, capsys):
    """Scans stored from right to left: sides are those of the patient, not of the file."""
    labels = {"kidney": 1, "tumour": 2}
    folder = write_corpus(tmp_path / "Task01_K", 1, SHAPE, labels=labels, channels=("CT",))
    label = _mask(RIGHT, LEFT).astype(np.uint8)
    label[3, 3, 14] = 2
    image = np.where(np.arange(20) > 0, 40.0, -1000.0) * np.ones(SHAPE, np.float32)
    for place, array in (("imagesTr", image), ("labelsTr", label)):
        save(folder / place / "case_000.nii.gz", array, (2, 1, 1), "LAS")
    assert verb.__name__ == "medjax_verbs.sides"
    given = ["sides", str(folder), "-o", str(tmp_path / "out"), "--classes", "kidney"]
    assert cli.main(given) == 0 and "1 cases described" in capsys.readouterr().out
    corpus, cases = read_corpus(tmp_path / "out")
    assert set(corpus.classes) == {"right kidney", "left kidney", "tumour"}
    found = nib.load(cases[0].label)
    assert np.allclose(found.affine, nib.load(cases[0].images[0]).affine)
    assert cases[0].images[0].startswith(str(folder))
    value = {names[0]: v for v, names in corpus.labels if names}
    array = np.asarray(found.dataobj).T[:, :, ::-1]
    assert np.array_equal(array == value["left kidney"], _mask(LEFT))
    assert np.array_equal(array == value["right kidney"], _mask(RIGHT) & (label == 1))
    assert (array == value["tumour"]).sum() == 1
    assert corpus_json.facts(tmp_path / "out")["sides"] == ["kidney"]


def test_two_parts_on_one_side_of_the_body_are_said():
    mask = _mask(RIGHT, (slice(2, 6), slice(7, 9), slice(11, 13)))
    left, state = sides.left_of(mask, 10.0)
    assert state == "beside" and left.sum() == 16 and left[:, :, :13].sum() == 16


BOXES = {  # of the right and the left organ
    "two": (RIGHT, LEFT),
    "right": (RIGHT,),
    "left": (LEFT,),
    "joined": (RIGHT, (slice(3, 4), slice(3, 4), slice(6, 13)), LEFT),
    "empty": (),
}


@pytest.mark.parametrize("orientation", ["RAS", "LPS", "oblique"])
@pytest.mark.parametrize("body", BOXES)
def test_sides_are_those_of_the_patient_however_a_scan_is_stored(body, orientation, tmp_path):
    """Bodies with a tumour in the organ, if there is one, on grids that run either way, or are
    turned by 20 degrees.
    """
    organ = _mask(*BOXES[body])
    tumour = organ & (np.arange(8)[:, None, None] == 3) & (np.arange(10)[:, None] == 3)
    image = np.where(np.arange(20) > 0, 40.0, -1000.0) * np.ones(SHAPE, np.float32)
    affine = np.eye(4)
    if orientation == "oblique":
        cos, sin = np.cos(np.pi / 9), np.sin(np.pi / 9)
        affine[:2, :2] = [[-cos, -sin], [-sin, cos]]  # x runs to the left
    elif orientation == "LPS":
        affine[0, 0] = affine[1, 1] = -1

    def stored(array):
        array = array[:, :, ::-1] if orientation != "RAS" else array
        return array[:, ::-1] if orientation == "LPS" else array

    paths = [str(tmp_path / f"{name}.nii.gz") for name in ("image", "label")]
    for path, array in zip(paths, (image, organ.astype(np.uint8) + tumour), strict=True):
        nib.save(nib.Nifti1Image(stored(array).T, affine), path)
    corpus = Corpus("K", ((1, ("kidney",)), (2, ("kidney", "kidney tumour"))))
    case = Case("a", (paths[0],), paths[1])
    made = sides.write(tmp_path / "out", corpus, [case], ["kidney"])
    found = stored(np.asarray(nib.load(made.described[0].label).dataobj).T)
    middle = 10.0
    left = organ & (np.arange(20) < middle)
    assert np.array_equal(np.isin(found, (3, 4)), left)
    assert np.array_equal(np.isin(found, (1, 2)), organ & ~left)
    assert np.array_equal(np.isin(found, (2, 4)), tumour)
    assert made.single == (("a",) if body in ("right", "left") else ())
    assert made.joined == (("a",) if body == "joined" else ()) and made.beside == ()


def test_label_maps_that_are_there_stay_until_a_file_changes(tmp_path):
    folder = write_corpus(tmp_path / "Task01_K", 2, SHAPE, labels={"kidney": 1}, channels=("CT",))
    corpus, cases = read_corpus(folder)
    made = [sides.write(tmp_path / "out", corpus, cases, ["kidney"]) for _ in range(2)]
    assert [one.new for one in made] == [2, 0] and made[0].described == made[1].described
    assert read_corpus(tmp_path / "out")[1] == made[1].described
    os.utime(cases[1].label, (1, 1))
    said = []
    changed = sides.write(tmp_path / "out", corpus, cases, ["kidney"], say=said.append)
    assert changed.new == 1 and said == ["K: left and right of kidney ..."]
    one = sides.Written(made[0].path, 2, ("a",), (), ("b",), 0, ())
    assert "1 have an organ on one side only (a); 1 have two parts on one side" in one.sentence()
