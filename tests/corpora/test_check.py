"""One case checked: every finding with its numbers, and none that hides another."""

import threading
import warnings

import numpy as np
import pytest

from medjax.corpora import check
from medjax.corpora.inputs import Case
from medjax.errors import DataError
from medjax.labels import Corpus
from medjax.scans.nifti import DataWarning
from medjax.scans.paths import Mask
from tests.support.raw import save

SHAPE = (3, 4, 5)
CORPUS = Corpus("A", ((1, ("organ",)), (2, ("organ", "tumour"))), channels=("MR",), modality="MR")


def image():
    return np.arange(1, 61, dtype=np.float32).reshape(SHAPE)


def label():
    array = np.zeros(SHAPE, np.uint8)
    array[0, 0, :3], array[1, 1, 1] = 1, 2
    return array


def case(folder, **arrays):
    """A case with the arrays `image` (and image2, ...) and `label`, saved as files."""
    for name, array in arrays.items():
        save(folder / f"{name}.nii.gz", array)
    paths = {name: str(folder / f"{name}.nii.gz") for name in arrays}
    images = tuple(path for name, path in paths.items() if name.startswith("image"))
    return Case("a", images, paths.get("label"))


def whats(problems):
    return [(p["severity"], p["what"]) for p in problems]


def test_a_sound_case_has_a_row_and_no_problem(tmp_path):
    problems, row, word = check.check_case(case(tmp_path, image=image(), label=label()), CORPUS, {})
    assert (problems, word) == ([], "ok")
    assert row["voxels"] == {0: 56, 1: 3, 2: 1} and row["labelled"] and row["shape"] == SHAPE


def test_every_problem_of_a_case_is_found(tmp_path):
    wrong = label()
    wrong[2, 3, 3:] = 7
    given = case(tmp_path, image=image(), image2=np.full(SHAPE, 3, np.float32), label=wrong)
    problems, row, word = check.check_case(given, CORPUS, {})
    assert word == "failed" and row["voxels"][7] == 2
    assert whats(problems) == [
        ("warning", "constant image"),
        ("error", "wrong number of channels"),
        ("error", "undeclared label value 7"),
    ]
    assert problems[0]["found"] == "3 everywhere" and problems[1]["found"] == "2"
    assert problems[2]["found"] == "2 voxels, first at (2, 3, 3) (z, y, x)"


def test_without_an_image_the_label_is_still_read(tmp_path):
    given = case(tmp_path, label=label() * 4)
    given = Case("a", (str(tmp_path / "none.nii.gz"),), given.label)
    problems, row, word = check.check_case(given, CORPUS, {})
    assert (row, word) == (None, "failed") and whats(problems)[1:] == [
        ("error", "undeclared label value 4"),
        ("error", "undeclared label value 8"),
    ]


def test_a_time_series_and_swapped_files(tmp_path):
    frames = np.stack([image()] * 3, -1) + np.arange(3, dtype=np.float32)
    problems, _, _ = check.check_case(case(tmp_path, image=frames, label=label()), CORPUS, {})
    assert whats(problems) == [("error", "a 4D image where one 3D scan is declared")]
    assert problems[0]["found"] == "3 frames"
    swapped = case(tmp_path, image=label(), label=image().astype(np.uint8))
    problems, _, _ = check.check_case(swapped, CORPUS, {})
    assert whats(problems) == [("error", "58 undeclared label values")]
    assert problems[0]["found"] == "3, 4, 5, 6, 7, 8, 9, 10 and 50 more"


def test_voxels_that_cropping_cuts_off(tmp_path):
    inside = image()
    inside[0] = 0
    problems, _, word = check.check_case(case(tmp_path, image=inside, label=label()), CORPUS, {})
    assert word == "ok" and whats(problems) == [
        ("warning", "label voxels outside of all that is not 0 in the image")
    ]
    assert problems[0]["found"] == "3 voxels"


def test_image_and_label_may_not_be_one_file(tmp_path):
    given = case(tmp_path, image=image())
    problems, _, _ = check.check_case(Case("a", given.images, given.images[0]), CORPUS, {})
    assert whats(problems) == [("error", "image and label are the same file")]


def test_masks_are_counted_by_the_value_of_their_set(tmp_path):
    organ, tumour = label() > 0, label() == 2
    for name, array in (("organ", organ), ("tumour", tumour), ("small", organ[1:])):
        save(tmp_path / f"{name}.nii.gz", array.astype(np.uint8))
    given = case(tmp_path, image=image())
    masks = tuple(Mask(n, str(tmp_path / f"{n}.nii.gz")) for n in ("organ", "tumour"))
    problems, row, _ = check.check_case(Case("a", given.images, masks=masks), CORPUS, {})
    assert problems == [] and row["voxels"] == {0: 56, 1: 3, 2: 1}
    lone = Case("a", given.images, masks=masks[1:])  # tumour alone: a set that nobody declared
    problems, _, _ = check.check_case(lone, CORPUS, {})
    assert "that the corpus' table does not know" in problems[0]["what"]
    other = Case(
        "a", given.images, masks=(*masks[:1], Mask("tumour", str(tmp_path / "small.nii.gz")))
    )
    problems, row, word = check.check_case(other, CORPUS, {})
    assert word == "failed" and row["voxels"] == {} and "small.nii.gz" in problems[0]["file"]


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("a.nii", "a compressed file without .gz"),
        ("a.nii.gz", "named .gz but not compressed"),
    ],
)
def test_endings_that_say_something_else(tmp_path, name, what):
    other = "a.nii.gz" if name == "a.nii" else "a.nii"
    save(tmp_path / other, image())
    (tmp_path / other).rename(tmp_path / name)
    problems, _, word = check.check_case(Case("a", (str(tmp_path / name),)), CORPUS, {})
    assert word == "ok" and whats(problems) == [("warning", what)]


def test_a_problem_as_fields_line_and_kind():
    error = DataError("3 voxels of 'liver'", found=3, expected="none", fix="redraw")
    problem = check.problem_of(error, "a.nii")
    assert problem == {
        "severity": "error",
        "file": "a.nii",
        "what": "3 voxels of 'liver'",
        "found": "3",
        "expected": "none",
        "fix": "redraw",
    }
    assert check.line(problem) == (
        "ERROR a.nii: 3 voxels of 'liver'; found 3; expected none; fix: redraw"
    )
    assert check.kind(problem) == "error # voxels of #"
    bare = check.entry(check.WARNING, "b", "odd")
    assert check.line(bare) == "WARNING b: odd"


def test_what_a_description_leaves_open(tmp_path):
    assert check.described(CORPUS, tmp_path) == []
    names = {1: ("label_1", "same"), 2: ("label_2",)}
    vague = Corpus("B", tuple(names.items()), modality="unknown")
    assert whats(check.described(vague, tmp_path)) == [
        ("warning", "nothing says what the images are"),
        ("warning", "label values without names"),
        ("warning", "1 classes have the voxels of another class"),
    ]
    many = Corpus("C", tuple((i, (f"c{i}",)) for i in range(1, 514)))
    assert [p["found"] for p in check.described(many, tmp_path)] == ["513"]


def test_numbers_and_files_of_a_list(tmp_path):
    assert check.counted(tmp_path, 3) == []
    (tmp_path / "dataset.json").write_text('{"numTraining": 4}')
    assert check.counted(tmp_path, 4) == []
    [problem] = check.counted(tmp_path, 3)
    assert (problem["found"], problem["expected"]) == ("4", "3")
    cases = [Case(n, ("x.nii",), f"{n}.nii") for n in "abcdef"] + [Case("g", ("y.nii",), "a.nii")]
    found = check.shared(cases)
    assert whats(found) == [
        ("warning", "the image of 6 cases"),
        ("warning", "the label of 2 cases"),
    ]
    assert [p["found"] for p in found] == ["a, b, c, d, e, ...", "a, g"]


def test_warnings_of_case_threads_are_kept_and_others_shown():
    with warnings.catch_warnings(record=True) as shown, check.routed_warnings() as heard:
        thread = threading.Thread(
            target=lambda: warnings.warn("odd", DataWarning, stacklevel=1), name="medjax-case_0"
        )
        thread.start()
        thread.join()
        warnings.warn("here", DataWarning, stacklevel=1)
    assert list(heard.values()) == [["odd"]]
    assert [str(w.message) for w in shown] == ["here"]
