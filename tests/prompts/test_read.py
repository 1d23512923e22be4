"""Prompts of users: flags, files, three spaces of coordinates, and errors that name them."""

import json

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medjax.errors import UsageError
from medjax.prepare import geometry
from medjax.prompts import read
from medjax.prompts.read import Prompt
from medjax.scans.nifti import Volume

# an oblique scan, stored with axes L, A, S
AFFINE = np.array(
    [[-1.5, 0.1, 0.0, 40.0], [0.1, 2.0, 0.0, -30.0], [0.0, 0.0, 3.0, 10.0], [0, 0, 0, 1]]
)
SHAPE = (10, 20, 30)  # z, y, x


def volume(array=None, affine=AFFINE):
    header = nib.Nifti1Header()
    header.set_data_shape(SHAPE[::-1])
    header.set_sform(affine, 1)
    array = np.ones(SHAPE, np.float32) if array is None else array
    return Volume(array, affine, header, "scan.nii.gz")


def in_space(voxel_xyz, space):
    point = np.asarray(voxel_xyz, float)
    if space == "voxel":
        return tuple(point)
    world = AFFINE[:3, :3] @ point + AFFINE[:3, 3]
    return tuple(world * ([-1, -1, 1] if space == "lps" else [1, 1, 1]))


@pytest.mark.parametrize("target", [None, (2.0, 3.0, 1.0)])
@pytest.mark.parametrize("space", read.SPACES)
def test_a_point_reaches_the_voxel_that_holds_it(space, target):
    marked = np.ones(SHAPE, np.float32)
    marked[6, 4, 21] = 2
    scan = volume(marked)
    transform = geometry.fit(scan, target)
    prompt = Prompt("a", points=(in_space((21, 4, 6), space),), kinds=(1,), space=space)
    placed = read.place(prompt, AFFINE, SHAPE, transform)
    if target is None:
        grid = transform.image(marked)
        assert grid[tuple(np.rint(placed.points[0]).astype(int))] == 2
    scale = np.array(transform.shape) / transform.box_shape
    stored = np.argwhere(transform.image(marked) == 2)[0]
    np.testing.assert_allclose(placed.points[0], (stored + 0.5) * scale - 0.5, atol=1e-9)


@settings(max_examples=30, deadline=None)
@given(st.tuples(*(st.floats(0, n - 1) for n in SHAPE)), st.sampled_from(read.SPACES))
def test_the_affine_of_the_grid_agrees_with_the_points(zyx, space):
    """`Transform.affine` leads from the grid to the world, `place` from the world to the grid."""
    transform = geometry.fit(volume(), (2.0, 3.0, 1.0))
    prompt = Prompt("a", points=(in_space(zyx[::-1], space),), kinds=(1,), space=space)
    found = transform.to_grid(read._stored(np.array(prompt.points), space, AFFINE))[0]
    world = transform.affine(AFFINE) @ [*found[::-1], 1]
    np.testing.assert_allclose(world[:3], in_space(zyx[::-1], "ras"), atol=1e-6)


@pytest.mark.parametrize("space", read.SPACES)
def test_a_box_is_the_same_in_every_space(space):
    corners = [in_space((5, 3, 2), space), in_space((25, 12, 7), space)]
    low, high = np.minimum(*corners), np.maximum(*corners)
    prompt = Prompt("a", box=(*low, *high), space=space)
    placed = read.place(prompt, AFFINE, SHAPE, geometry.fit(volume(), None))
    # x runs against the canonical axis: 29 - 25 to 29 - 5, and the scan is oblique
    np.testing.assert_allclose(placed.box, (2, 3, 4, 7, 12, 24), atol=2.5)
    assert np.all(placed.box[:3] <= placed.box[3:])
    if space == "voxel":
        np.testing.assert_allclose(placed.box, (2, 3, 4, 7, 12, 24), atol=1e-9)


def test_a_point_in_the_empty_margin_is_moved_with_a_note():
    array = np.zeros(SHAPE, np.float32)
    array[3:7, 5:15, 5:25] = 1
    transform = geometry.fit(volume(array), None)
    placed = read.place(
        Prompt("a", points=((6, 6, 0),), kinds=(1,), space="voxel"), AFFINE, SHAPE, transform
    )
    assert placed.points[0][0] == 0 and "moved" in placed.notes[0]


@pytest.mark.parametrize("space", read.SPACES)
def test_a_point_outside_the_scan_is_named(space):
    points = (in_space((3, 3, 3), space), in_space((31, 3, 3), space))
    prompt = Prompt("lesion", points=points, kinds=(1, 1), space=space, source="p.json, case A")
    with pytest.raises(UsageError, match=r"point 2 of object 'lesion'.*p.json, case A") as error:
        read.place(prompt, AFFINE, SHAPE, geometry.fit(volume(), None), "scan.nii.gz")
    text = str(error.value)
    assert "scan.nii.gz" in text and "--space" in text and f"({space})" in text


def test_a_box_outside_the_scan_or_upside_down_is_named():
    with pytest.raises(UsageError, match="box of object 'a' lies outside"):
        read.place(
            Prompt("a", box=(40, 0, 0, 50, 5, 5), space="voxel"),
            AFFINE,
            SHAPE,
            geometry.fit(volume(), None),
        )
    with pytest.raises(UsageError, match="minimum above its maximum"):
        Prompt("a", box=(5, 0, 0, 4, 5, 5))


def test_flags_make_objects():
    flags = [
        ("text", "liver"),
        ("object", "lesion"),
        ("point", "12.5,-30,88"),
        ("point", "20,-31,80,neg"),
        ("box", "-10,-60,70,40,-5,110"),
        ("object", "cyst"),
        ("text", "renal cyst"),
    ]
    liver, lesion, cyst = read.of_flags(flags, "lps")
    assert (liver.name, liver.text) == ("liver", "liver")
    assert lesion.points == ((12.5, -30, 88), (20, -31, 80)) and lesion.kinds == (1, 0)
    assert lesion.box == (-10, -60, 70, 40, -5, 110) and lesion.space == "lps"
    assert (cyst.name, cyst.text) == ("cyst", "renal cyst")
    (one,) = read.of_flags([("point", "1,2,3"), ("box", "0,0,0,4,4,4")])
    assert one.name == "object" and one.box and one.points
    assert [p.name for p in read.of_flags([("text", "a"), ("text", "b")])] == ["a", "b"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([("point", "1,2")], "unusable point"),
        ([("point", "1,2,3,maybe")], "unusable point"),
        ([("point", "1,2,nan")], "unusable point"),
        ([("box", "1,2,3")], "unusable box"),
        ([("object", "a")], "no prompt"),
        ([("object", "a"), ("point", "1,2,3,neg")], "negative points only"),
        ([("text", "a"), ("text", "a")], "two objects are called 'a'"),
    ],
)
def test_unusable_flags_are_refused(flags, words):
    with pytest.raises(UsageError, match=words):
        read.of_flags(flags)


def test_a_prompts_file_names_cases_and_objects(tmp_path):
    path = tmp_path / "prompts.json"
    lesion = {
        "name": "lesion",
        "points": [[1, 2, 3, 1], [4, 5, 6, 0]],
        "box": [[0, 0, 0], [9, 9, 9]],
    }
    path.write_text(
        json.dumps(
            {"A": {"space": "LPS", "objects": [lesion]}, "B": {"objects": [{"text": "liver"}]}}
        )
    )
    found = read.of_file(path)
    assert found["A"][0].kinds == (1, 0) and found["A"][0].space == "lps"
    assert found["A"][0].box == (0, 0, 0, 9, 9, 9)
    assert found["B"][0].name == found["B"][0].text == "liver"
    assert read.by_case(found, ["A", "B"], path).keys() == {"A", "B"}
    with pytest.raises(UsageError, match=r"not given: B.*did you mean BB"):
        read.by_case(found, ["A", "BB"], path)
    with pytest.raises(UsageError, match="no prompts for scan C"):
        read.by_case(found, ["A", "B", "C"], path)
    path.write_text(json.dumps({"objects": [{"text": "liver"}]}))
    assert read.by_case(read.of_file(path), ["A", "C"], path)["C"][0].text == "liver"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([], "no prompts"),
        ({"A": {}}, r"case A.*no objects"),
        ({"A": {"objects": [{"nam": "x"}]}}, "no field 'nam'"),
        ({"A": {"objects": [{"name": "x", "points": [[1, 2]]}]}}, "unusable point 1 of object 'x'"),
        ({"A": {"objects": [{"name": "x", "box": [1, 2]}]}}, "unusable box of object 'x'"),
        ({"A": {"objects": [{"name": "x", "box": [[5, 0, 0], [1, 1, 1]]}]}}, "minimum above"),
        ({"A": {"space": "mni", "objects": [{"text": "x"}]}}, "unknown space"),
        ({"markups": [{"type": "Curve"}]}, "Slicer markups"),
        ({"markups": []}, "Slicer markups"),
    ],
)
def test_unusable_files_are_refused_by_name(tmp_path, content, words):
    path = tmp_path / "p.json"
    path.write_text(json.dumps(content))
    with pytest.raises(UsageError, match=words) as error:
        read.of_file(path)
    assert "p.json" in str(error.value)


def test_slicer_markups_become_points_and_a_box(tmp_path):
    path = tmp_path / "lesion.mrk.json"
    points = [
        {"label": "F-1", "position": [-12.5, 30, 88], "positionStatus": "defined"},
        {"label": "neg", "position": [-20, 31, 80], "positionStatus": "defined"},
        {"label": "F-3", "position": [0, 0, 0], "positionStatus": "undefined"},
    ]
    roi = {"type": "ROI", "coordinateSystem": "LPS", "center": [10, 20, 30], "size": [2, 4, 6]}
    roi["orientation"] = [-1, 0, 0, 0, -1, 0, 0, 0, 1]
    fiducials = {"type": "Fiducial", "coordinateSystem": "LPS", "controlPoints": points}
    path.write_text(json.dumps({"markups": [fiducials, roi]}))
    (prompt,) = read.of_file(path)[read.EVERY]
    assert prompt.name == "lesion" and prompt.space == "ras" and prompt.kinds == (1, 0)
    assert prompt.points == ((12.5, -30, 88), (20, -31, 80))
    assert prompt.box == (-11, -22, 27, -9, -18, 33)
    fiducials["coordinateSystem"] = "RAS"
    path.write_text(json.dumps({"markups": [fiducials]}))
    assert read.of_file(path)[read.EVERY][0].points[0] == (-12.5, 30, 88)


def test_unknown_texts_get_the_nearest_names():
    assert read.row_of("Liver", ["spleen", "liver"]) == 1
    with pytest.raises(UsageError, match="did you mean liver"):
        read.row_of("livr", ["spleen", "liver"])
