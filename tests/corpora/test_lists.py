"""Lists of scans as people and spreadsheets write them: read, or an error with file and line."""

import json
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medjax import cli
from medjax.corpora import lists
from medjax.corpora.inputs import find_inputs
from medjax.errors import UsageError
from tests.support.raw import save


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """A folder with scan.nii.gz and größe.nii.gz."""
    folder = tmp_path_factory.mktemp("lists")
    for name in ("scan", "größe", "two"):
        save(folder / f"{name}.nii.gz", np.ones((3, 4, 5), np.float32))
    return folder


GOOD = {
    "utf-8": b"image,name\nscan.nii.gz,a\n",
    "marked": b"\xef\xbb\xbf" + b"image,name\nscan.nii.gz,a\n",
    "umlaut": "image,name\ngröße.nii.gz,a\n".encode(),
    "utf-16-le": "image,name\r\ngröße.nii.gz,a\r\n".encode("utf-16"),
    "utf-16-be": b"\xfe\xff" + "image,name\r\ngröße.nii.gz,a\r\n".encode("utf-16-be"),
    "utf-16 tabs": "image\tname\r\ngröße.nii.gz\ta\r\n".encode("utf-16"),
    "semicolons": b"image;name\r\nscan.nii.gz;a\r\n",
    "marked semicolons": b"\xef\xbb\xbfimage;name\r\nscan.nii.gz;a\r\n",
    "utf-16 semicolons": "image;name\r\nscan.nii.gz;a\r\n".encode("utf-16"),
    "sep line": b"sep=;\r\nname;image\r\na;scan.nii.gz\r\n",
    "tabs": b"name\timage\na\tscan.nii.gz\n",
    "old mac": b"image,name\rscan.nii.gz,a\r",
    "empty rows": b"image,name\n\n,\nscan.nii.gz,a\n,,,\n\n",
    "short row": b"image,name,label\nscan.nii.gz,a\n",
    "quoted": b'"image","name"\n"scan.nii.gz","a"\n',
    "other columns": b"age,image,name,\n5,scan.nii.gz,a,\n",
    "spaces in header": b"image , name\nscan.nii.gz,a\n",
}


@pytest.mark.parametrize("kind", GOOD)
def test_what_spreadsheets_write_is_read(scans, kind):
    path = scans / "good.csv"
    path.write_bytes(GOOD[kind])
    (case,) = find_inputs(path)
    assert case.name == "a" and os.path.isfile(case.images[0])


@pytest.mark.parametrize(
    "content",
    [
        b"image\nscan.nii.gz\n",
        b"\xef\xbb\xbfimage\r\n\r\nscan.nii.gz\r\n",
        b"sep=;\nimage\nscan.nii.gz",
    ],
)
def test_a_table_of_one_column_is_read(scans, content):
    path = scans / "one.csv"
    path.write_bytes(content)
    (case,) = find_inputs(path)
    assert case.name == "scan" and os.path.isfile(case.images[0])


def test_a_header_that_could_mean_two_things_is_refused(scans):
    path = scans / "two.csv"
    path.write_bytes(b"image,a;image\nscan.nii.gz,a;b\n")
    with pytest.raises(UsageError, match="no column of images"):
        find_inputs(path)


def test_rows_come_with_their_place(scans):
    path = scans / "rows.csv"
    path.write_bytes(b"image,name\nscan.nii.gz,a\n\ntwo.nii.gz,b\n")
    assert [place for place, _ in lists.rows_of(path)] == ["line 2", "line 4"]
    assert lists.decoded("\ufeffgröße".encode("utf-16"), path).endswith("größe")


NEST = b"[" * 200_000
BAD = {
    "latin-1.csv": (
        "image,name\ngröße.nii.gz,a\n".encode("latin-1"),
        "another encoding than UTF-8; found Latin-1.*CSV UTF-8",
    ),
    "utf16-unmarked.csv": (
        "image,name\nscan.nii.gz,a\n".encode("utf-16-le"),
        "found UTF-16 without its mark",
    ),
    "utf32.csv": ("image,name\nscan.nii.gz,a\n".encode("utf-32"), "another encoding than UTF-8"),
    "utf16-cut.csv": (
        "image,name\nscan.nii.gz,a".encode("utf-16")[:-1],
        "another encoding than UTF-8",
    ),
    "nul.csv": (b"image,name\nscan.nii.gz,a\0\n", r"line 2 \(a NUL"),
    "nul-path.csv": (b"image,name\n\0scan.nii.gz,a\n", "line 2"),
    "more.csv": (
        b"image,name\nscan.nii.gz,a,b,c\n",
        "line 2 has more cells than the header; found 4; expected 2",
    ),
    "sep-more.csv": (
        b"sep=,\nimage,name\nscan.nii.gz,a\nscan.nii.gz,b,c\n",
        "line 4 has more cells",
    ),
    "twice.csv": (b"image,image\nscan.nii.gz,two.nii.gz\n", "two columns are called 'image'"),
    "quote.csv": (b'image,name\n"scan.nii.gz,a\n', "damaged table"),
    "long.csv": (b"image,name\n" + b"x" * 200_000 + b",a\n", "line 2.*field larger"),
    "empty.csv": (b"", "no column of images"),
    "header.csv": (b"image,name\n", "lists no cases"),
    "no-image.csv": (b"image,name\n,a\n", "line 2 has no image"),
    "column.csv": (b"scan,name\nscan.nii.gz,a\n", "no column of images; found scan,name"),
    "cases.csv": (
        b"image,name\nscan.nii.gz,a\ntwo.nii.gz,a\n",
        "case name 'a' occurs twice|occurs twice",
    ),
    "binary.csv": (bytes(range(256)) * 4, "another encoding"),
    "five.json": (b"[5]", "entry 1.*is no path; found 5"),
    "null.json": (b"null", "not a list of scans; found None"),
    "nulls.json": (b"[null]", "entry 1 has no image"),
    "text.json": (b'"scan.nii.gz"', "not a list of scans"),
    "number.json": (b"5", "not a list of scans"),
    "object.json": (b'{"cases": 5}', "not a list of scans"),
    "object2.json": (b'{"cases": {"image": "scan.nii.gz"}}', "not a list of scans"),
    "nul.json": (b'["scan\\u0000.nii.gz"]', "is no path"),
    "raw-nul.json": (b'["scan\0.nii.gz"]', "damaged JSON"),
    "image.json": (b'[{"image": 5}]', '"image" of entry 1 is no path; found 5'),
    "image-object.json": (b'[{"image": {"a": 1}}]', '"image" of entry 1 is no path'),
    "images.json": (b'[{"image": ["scan.nii.gz", 5]}]', '"image" of entry 1 is no path; found 5'),
    "label.json": (
        b'[{"image": "scan.nii.gz", "label": 5}]',
        '"label" of entry 1 is no path; found 5',
    ),
    "name.json": (b'[{"image": "scan.nii.gz", "name": ["a"]}]', '"name" of entry 1 is not text'),
    "bool.json": (
        b'[{"image": "scan.nii.gz", "name": true}]',
        '"name" of entry 1 is not text; found True',
    ),
    "patient.json": (
        b'["scan.nii.gz", {"image": "two.nii.gz", "patient": {}}]',
        '"patient" of entry 2 is not text',
    ),
    "modality.json": (
        b'[{"image": "scan.nii.gz", "modality": [5]}]',
        '"modality" of entry 1 is not text',
    ),
    "deep.json": (NEST, "nested too deeply"),
    "deep-closed.json": (NEST + b"]" * 200_000, "nested too deeply"),
    "deep-object.json": (b'{"a":' * 200_000, "nested too deeply"),
    "twice.json": (
        b'[{"image": "scan.nii.gz", "image": "two.nii.gz"}]',
        "key 'image' appears twice",
    ),
    "cut.json": (b'[{"image": "scan.nii.gz"', "damaged JSON"),
    "comma.json": (b'["scan.nii.gz",]', "damaged JSON"),
    "latin-1.json": (
        '["größe.nii.gz"]'.encode("latin-1"),
        "another encoding than UTF-8; found Latin-1",
    ),
    "utf16.json": ('["scan.nii.gz"]'.encode("utf-16"), "another encoding than UTF-8; found UTF-16"),
    "digits.json": (b"[" + b"9" * 100_000 + b"]", "damaged JSON"),
    "empty.json": (b"", "damaged JSON"),
    "long.json": (json.dumps(["x" * 100_000]).encode(), "unusable case name|none of the listed"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_read_is_one_sentence_with_the_file(scans, name):
    content, words = BAD[name]
    path = scans / name
    path.write_bytes(content)
    with pytest.raises(UsageError, match=words) as info:
        find_inputs(path)
    text = str(info.value)
    assert name in text and "\n" not in text and len(text) < 1000
    path.unlink()


def test_a_missing_scan_costs_only_its_case(scans):
    (scans / "some.json").write_text('["scan.nii.gz", "gone.nii.gz", "gone\\u001b[2J.nii.gz"]')
    assert [c.name for c in find_inputs(scans / "some.json")] == ["scan", "gone", "gone\x1b[2J"]


def test_numbers_may_be_names(scans):
    (scans / "numbers.json").write_text('[{"image": "scan.nii.gz", "name": 17, "patient": 4}]')
    (case,) = find_inputs(scans / "numbers.json")
    assert (case.name, case.patient) == ("17", "4")


@settings(deadline=None, max_examples=300)
@given(
    st.one_of(
        st.binary(max_size=60),
        st.text(max_size=60).map(lambda t: ("image,name\n" + t).encode("utf-8", "replace")),
    ),
    st.booleans(),
)
def test_any_bytes_are_a_list_or_a_sentence(tmp_path_factory, content, table):
    path = tmp_path_factory.getbasetemp() / ("any.csv" if table else "any.json")
    path.write_bytes(content)
    try:
        assert find_inputs(path)
    except UsageError as error:
        assert "\n" not in str(error)


# -- links, pipes and folders among the inputs -----------------------------------------------------


def test_a_link_in_a_circle_costs_only_its_case(tmp_path):
    for place in ("a", "b"):
        (tmp_path / place).mkdir()
        save(tmp_path / place / "scan.nii.gz", np.ones((3, 4, 5), np.float32))
        (tmp_path / place / "loop.nii.gz").symlink_to("loop.nii.gz")
    assert {c.name for c in find_inputs(tmp_path / "a")} == {"loop", "scan"}
    found = find_inputs(
        [tmp_path / "a", tmp_path / "b"]
    )  # equal names: the folders' names come in front
    assert {c.name for c in found} == {"a_loop", "a_scan", "b_loop", "b_scan"}
    assert {c.name for c in find_inputs(str(tmp_path / "*" / "loop.nii.gz"))} == {
        "a_loop",
        "b_loop",
    }


def test_a_pipe_is_never_waited_for(tmp_path):
    from medjax.scans.paths import is_dicom

    os.mkfifo(tmp_path / "pipe")
    assert not is_dicom(tmp_path / "pipe")
    os.mkfifo(tmp_path / "list.json")
    with pytest.raises(UsageError):
        find_inputs(tmp_path / "list.json")


def test_verify_reports_links_pipes_and_folders_case_by_case(tmp_path, capsys):
    rows = []
    for name in ("good", "loop", "pipe", "folder", "gone"):
        label, image = tmp_path / f"{name}_label.nii.gz", tmp_path / f"{name}.nii.gz"
        ones = np.ones((3, 4, 5), np.float32)
        ones[0] = 2
        save(image, ones)
        rows.append({"image": image.name, "label": label.name})
        if name == "good":
            save(label, np.ones((3, 4, 5), np.uint8))
        elif name == "loop":
            label.symlink_to(label.name)
        elif name == "pipe":
            os.mkfifo(label)
        elif name == "folder":
            label.mkdir()
    rows += [
        {"image": "good.nii.gz", "label": ["a"]},
        {"image": "good.nii.gz", "label": {"a": 1}},
        {"image": 5},
        {"image": "x" * 5000},
    ]
    described = {
        "training": rows,
        "labels": {"0": "background", "1": "organ"},
        "modality": {"0": "CT"},
    }
    (tmp_path / "dataset.json").write_text(json.dumps(described))
    assert cli.main(["verify", str(tmp_path), "--quiet"]) == 4
    out = capsys.readouterr().out
    for words in (
        "label of case 'loop' is a broken symbolic link",
        "label of case 'pipe' is no file",
        "label of case 'folder' is no file",
        "label of case 'gone' is missing",
        "the label of training entry 6 is no path",
        "the label of training entry 7 is no path",
        "the image of training entry 8 is no path",
        "is missing",
        "9 cases, CT",
    ):
        assert words in out, out


def test_an_error_shows_nothing_of_a_file_that_is_no_scan(tmp_path, capsys):
    secret = tmp_path / "elsewhere" / "secret.txt"
    secret.parent.mkdir()
    secret.write_text("root:x:0:0:hunter2")
    data = tmp_path / "data"
    data.mkdir()
    save(data / "a.nii.gz", np.arange(60, dtype=np.float32).reshape(3, 4, 5))
    rows = [{"image": "../elsewhere/secret.txt"}, {"image": "a.nii.gz", "label": str(secret)}]
    described = {
        "training": rows,
        "labels": {"0": "background", "1": "organ"},
        "modality": {"0": "CT"},
    }
    (data / "dataset.json").write_text(json.dumps(described))
    assert cli.main(["verify", str(data), "--quiet"]) == 4
    shown = "".join(capsys.readouterr())
    assert "secret.txt" in shown and "root:" not in shown and "hunter2" not in shown
