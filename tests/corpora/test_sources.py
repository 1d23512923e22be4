"""Raw folders and lists: both layouts, every way a description can be wrong, and what a user may
name as prediction input.
"""

import json
import os
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medjax.corpora.sources import Case, find_inputs, read_corpus, read_labels, scan_corpus
from medjax.errors import LabelError, UsageError
from tests.support.raw import write_corpus


@pytest.fixture(scope="module")
def msd(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("raw") / "Task01_Blobs", 2, (6, 7, 8))


@pytest.fixture(scope="module")
def nnunet(tmp_path_factory):
    labels = {"organ": [1, 2], "tumour": 2, "ignore": 3}
    return write_corpus(
        tmp_path_factory.mktemp("raw") / "Dataset007_Two",
        2,
        (6, 7, 8),
        "nnunet",
        labels,
        channels=("CT", "PET"),
    )


def described(tmp_path, **fields):
    """A folder with only a dataset.json; for what is decided before scans are looked for."""
    base = {
        "modality": {"0": "MRI"},
        "labels": {"0": "background", "1": "a", "2": "b"},
        "training": [],
    }
    (tmp_path / "dataset.json").write_text(json.dumps(base | fields))
    return tmp_path


def refused(folder, error=UsageError):
    with pytest.raises(error) as info:
        read_corpus(folder)
    return str(info.value)


def test_msd(msd):
    corpus, cases = read_corpus(msd)
    assert (corpus.name, corpus.modality, corpus.channels, corpus.ignore) == (
        "Blobs",
        "MR",
        ("MRI",),
        None,
    )
    assert corpus.labels == ((0, ()), (1, ("organ",)), (2, ("tumour",))) and corpus.annotated == (
        "organ",
        "tumour",
    )
    image, label = (
        str(msd / "imagesTr" / "case_001.nii.gz"),
        str(msd / "labelsTr" / "case_001.nii.gz"),
    )
    assert (
        cases[1] == Case("case_001", (image,), label, "Blobs", "MR", "case_001") and len(cases) == 2
    )


def test_nnunet_regions_channels_and_ignore(nnunet):
    corpus, cases = read_corpus(nnunet)
    assert (corpus.name, corpus.modality, corpus.channels, corpus.ignore) == (
        "Two",
        "CT",
        ("CT", "PET"),
        3,
    )
    assert corpus.labels == ((0, ()), (1, ("organ",)), (2, ("organ", "tumour")))
    assert corpus.values == (0, 1, 2, 3) and corpus.ignore_id == 3
    assert [os.path.basename(p) for p in cases[0].images] == [
        "case_000_0000.nii.gz",
        "case_000_0001.nii.gz",
    ]


def test_medjax_block(tmp_path):
    block = {
        "annotated": ["whole"],
        "modality": "PET",
        "regions": {"whole": [1, 2]},
        "patients": {"case_001": "p"},
        "name": "Mine",
    }
    corpus, cases = read_corpus(write_corpus(tmp_path / "Task02_X", 2, (6, 7, 8), medjax=block))
    assert (corpus.name, corpus.modality, corpus.annotated) == ("Mine", "PET", ("whole",))
    assert corpus.labels[1:] == ((1, ("organ", "whole")), (2, ("tumour", "whole")))
    assert [c.patient for c in cases] == ["case_000", "p"]


@pytest.mark.parametrize("rule", [{"regex": r"case_(\d)"}, r"case_(\d)"])
def test_patients_by_expression(tmp_path, rule):
    cases = read_corpus(write_corpus(tmp_path / "A", 2, (6, 7, 8), medjax={"patients": rule}))[1]
    assert [c.patient for c in cases] == ["0", "0"]


def test_read_labels_needs_no_scans(tmp_path):
    corpus = read_labels(described(tmp_path) / "dataset.json")
    assert (
        corpus.classes == ("a", "b")
        and corpus.name == tmp_path.name
        and read_labels(tmp_path) == corpus
    )


def test_apple_double_files_are_ignored(tmp_path):
    for layout, image in (("msd", "case_000.nii.gz"), ("nnunet", "case_000_0000.nii.gz")):
        folder = write_corpus(tmp_path / layout, 1, (6, 7, 8), layout)
        (folder / "imagesTr" / f"._{image}").write_bytes(b"\0" * 10)
        (folder / "labelsTr" / "._case_000.nii.gz").write_bytes(b"\0" * 10)
        spec = json.loads((folder / "dataset.json").read_text())
        if layout == "msd":
            spec["training"].append(
                {"image": f"./imagesTr/._{image}", "label": "./labelsTr/._case_000.nii.gz"}
            )
            (folder / "dataset.json").write_text(json.dumps(spec))
        assert [c.name for c in read_corpus(folder)[1]] == ["case_000"]


def test_nnunet_v1_list_with_channel_suffixes(tmp_path):
    folder = write_corpus(tmp_path / "Task05_Old", 1, (6, 7, 8))
    image = folder / "imagesTr" / "case_000.nii.gz"
    image.rename(image.with_name("case_000_0000.nii.gz"))
    (case,) = read_corpus(folder)[1]
    assert case.name == "case_000" and case.images[0].endswith("case_000_0000.nii.gz")


def test_explicit_nnunet_list(tmp_path):
    folder = write_corpus(tmp_path / "D", 1, (6, 7, 8), "nnunet")
    spec = json.loads((folder / "dataset.json").read_text())
    spec["dataset"] = {
        "other": {"images": ["imagesTr/case_000_0000.nii.gz"], "label": "labelsTr/case_000.nii.gz"}
    }
    (folder / "dataset.json").write_text(json.dumps(spec))
    assert read_corpus(folder)[1][0].name == "other"


def test_unlabelled_corpus(tmp_path):
    folder = write_corpus(tmp_path / "U", 1, (6, 7, 8))
    described(folder, labels={"0": "background"}, training=["./imagesTr/case_000.nii.gz"])
    corpus, (case,) = read_corpus(folder)
    assert corpus.classes == () and case.label is None


def test_nnunet_raw_by_id_and_name(nnunet, monkeypatch):
    monkeypatch.setenv("nnUNet_raw", str(nnunet.parent))
    assert read_corpus("7")[0].name == read_corpus("Dataset007")[0].name == "Two"


def test_missing_things(tmp_path):
    assert "no such data set folder" in refused(tmp_path / "absent")
    assert "is empty" in refused(tmp_path)
    (tmp_path / "x.txt").touch()
    assert "no dataset.json" in refused(tmp_path)
    assert "no training cases" in refused(described(tmp_path))
    assert "damaged JSON" in refused(write_text(tmp_path, "{"))
    assert "must be objects" in refused(write_text(tmp_path, "[]"))
    assert "'labels' appears twice" in refused(write_text(tmp_path, '{"labels": {}, "labels": {}}'))


def write_text(folder, text):
    (folder / "dataset.json").write_text(text)
    return folder


def test_missing_files_name_the_file_and_how_many(tmp_path):
    folder = write_corpus(tmp_path / "A", 3, (6, 7, 8))
    (folder / "labelsTr" / "case_001.nii.gz").unlink()
    (folder / "imagesTr" / "case_002.nii.gz").unlink()
    message = refused(folder)
    assert (
        "label of case 'case_001' is missing (and 1 more" in message
        and str(folder / "labelsTr" / "case_001.nii.gz") in message
    )
    _, cases, problems = scan_corpus(folder)
    assert [c.name for c in cases] == ["case_000"] and [type(p) for p in problems] == [
        UsageError
    ] * 2


def test_nnunet_files_must_match(nnunet, tmp_path):
    folder = write_corpus(tmp_path / "A", 2, (6, 7, 8), "nnunet", channels=("CT", "PET"))
    (folder / "imagesTr" / "case_000_0001.nii.gz").unlink()
    message = refused(folder)
    assert (
        "wrong number of channels in case 'case_000'" in message and "expected 2 files" in message
    )
    (folder / "imagesTr" / "case_000_0000.nii.gz").unlink()
    assert "image of case 'case_000' is missing" in refused(folder)


def test_a_case_without_label_in_a_labelled_corpus(tmp_path):
    folder = write_corpus(tmp_path / "A", 1, (6, 7, 8))
    described(folder, training=[{"image": "./imagesTr/case_000.nii.gz"}])
    assert "case 'case_000' has no label" in refused(folder)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"labels": {"0": "background", "1.5": "a"}}, "no integer value"),
        ({"labels": {"background": 0, "a": -1}}, "no integer value"),
        ({"labels": {"background": 0, "a": True}}, "no integer value"),
        ({"labels": {"background": 0, "a": None}}, "no integer value"),
        ({"labels": [1, 2]}, "must be objects"),
        ({"labels": {"background": 0, "a": 1, "b": 1}}, "'a' and 'b' share one value"),
        ({"labels": {"background": 1, "a": 2}}, "value 0 is background"),
        ({"labels": {"background": 0, "a": [0, 1]}}, "value 0 is background"),
        ({"labels": {"background": 0, "a": []}}, "belongs to no class"),
        ({"labels": {"background": 0, "a": 1, "ignore": 1}}, "the ignore value is also a label"),
        ({"labels": {"background": 0, "a": 1, "ignore": [2, 3]}}, "must be one value"),
        (
            {"medjax": {"regions": {"c": [1, 9]}}},
            "region 'c' uses undeclared values; found [9]; expected some of [1, 2]",
        ),
        ({"medjax": {"annotated": ["aa"]}}, "unknown class 'aa'. Fix: did you mean a? Known: a, b"),
        ({"medjax": {"annotated": "a"}}, "must be a list of class names"),
    ],
)
def test_malformed_labels(tmp_path, fields, words):
    message = refused(described(tmp_path, **fields), LabelError)
    assert words in message and message.startswith(str(tmp_path / "dataset.json"))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"modality": {}}, "no usable channel names"),
        ({"modality": "CT"}, "no usable channel names"),
        ({"medjax": {"anotated": ["a"]}}, "did you mean annotated?"),
        ({"medjax": []}, "must be objects"),
        ({"medjax": {"name": "a/b"}}, "unusable corpus name"),
        ({"training": None, "file_ending": ".png"}, "unsupported file ending"),
        ({"training": ["a.nii.gz", "b/a.nii.gz"]}, "case 'a' is listed twice"),
    ],
)
def test_malformed_descriptions(tmp_path, fields, words):
    assert words in refused(described(tmp_path, **fields))


@pytest.mark.parametrize(
    ("patients", "words"),
    [
        ({"case_00": "p"}, "did you mean case_000?"),
        ({"regex": "("}, "not a regular expression"),
        ("x(.)", "not match case 'case_000'"),
    ],
)
def test_malformed_patients(tmp_path, patients, words):
    assert words in refused(
        write_corpus(tmp_path / "A", 1, (6, 7, 8), medjax={"patients": patients})
    )


@settings(max_examples=40, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from("abcdef"), st.lists(st.integers(1, 6), min_size=1, max_size=4), min_size=1
    )
)
def test_every_listed_value_belongs_to_its_class(tmp_path_factory, regions):
    corpus = read_labels(
        described(tmp_path_factory.mktemp("d"), labels={"background": 0, **regions})
    )
    for name, values in regions.items():
        assert {corpus.values[i] for i in corpus.ids_of(name)} == set(values)


# ---------------------------------------------------------------- prediction inputs


@pytest.fixture
def scans(tmp_path):
    def make(*names):
        for name in names:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()
        return tmp_path

    return make


def summary(cases):
    return {c.name: [os.path.basename(p) for p in c.images] for c in cases}


def test_inputs_from_a_folder(scans):
    folder = scans(
        "a_0000.nii.gz", "a_0001.nii.gz", "b.nii", "c_0000.nii.gz", "._d.nii.gz", "notes.txt"
    )
    found = find_inputs(folder)
    assert summary(found) == {
        "a": ["a_0000.nii.gz", "a_0001.nii.gz"],
        "b": ["b.nii"],
        "c": ["c_0000.nii.gz"],
    }
    assert [c.patient for c in found] == ["a", "b", "c"]


def test_numbered_cases_are_not_channels(scans):
    folder = scans("la_0003.nii.gz", "la_0004.nii.gz")
    assert set(summary(find_inputs(folder))) == {"la_0003", "la_0004"}
    folder = scans("la_0000.nii.gz", "la_0001.nii.gz", "la_0002.nii.gz")
    assert len(find_inputs(folder, channels=1)) == 5


def test_inputs_from_a_file(scans):
    folder = scans("a_0000.nii.gz", "a_0001.nii.gz", "a_0003.nii.gz", "b.nii.gz")
    assert summary(find_inputs(folder / "b.nii.gz")) == {"b": ["b.nii.gz"]}
    assert summary(find_inputs(str(folder / "a_0000.nii.gz"))) == {
        "a": ["a_0000.nii.gz", "a_0001.nii.gz"]
    }
    assert summary(find_inputs(folder / "a_0000.nii.gz", channels=1)) == {"a": ["a_0000.nii.gz"]}


def test_inputs_from_a_pattern_and_like_named_files(scans):
    folder = scans("s1/ct.nii.gz", "s2/ct.nii.gz", "s3/mr.nii.gz")
    assert set(summary(find_inputs(str(folder / "*" / "ct.nii.gz")))) == {"s1_ct", "s2_ct"}
    assert len(find_inputs(str(folder / "**" / "*.nii.gz"))) == 3
    assert set(summary(find_inputs([folder / "s1", folder / "s3" / "mr.nii.gz"]))) == {"ct", "mr"}


def test_odd_names_need_no_shell(scans):
    name = "ä b;$(touch x)[1].nii.gz"
    assert summary(find_inputs(scans(name) / name)) == {"ä b;$(touch x)[1]": [name]}


def test_inputs_from_lists(scans):
    folder = scans("x/a.nii.gz", "x/b0.nii.gz", "x/b1.nii.gz")
    (folder / "list.csv").write_text(
        "name,image_0,image_1,label,modality,patient\nB,x/b0.nii.gz,x/b1.nii.gz,y.nii.gz,MR,p1\n"
    )
    (case,) = find_inputs(folder / "list.csv")
    assert (case.corpus, case.modality, case.patient) == ("", "MR", "p1") and case.label == str(
        folder / "y.nii.gz"
    )
    assert summary([case]) == {"B": ["b0.nii.gz", "b1.nii.gz"]}
    (folder / "list.json").write_text(
        json.dumps(
            {"testing": ["x/a.nii.gz", {"image": ["x/b0.nii.gz", "x/b1.nii.gz"], "name": "b"}]}
        )
    )
    assert summary(find_inputs(folder / "list.json")) == {
        "a": ["a.nii.gz"],
        "b": ["b0.nii.gz", "b1.nii.gz"],
    }


def test_other_formats_and_dicom_folders(scans):
    folder = scans("x/a.nrrd", "x/b.mha", "x/c.nii.gz", "x/._b.mha", "x/d.txt")
    assert summary(find_inputs(folder / "x")) == {
        "a": ["a.nrrd"],
        "b": ["b.mha"],
        "c": ["c.nii.gz"],
    }
    assert summary(find_inputs(folder / "x" / "b.mha")) == {"b": ["b.mha"]}
    for name in ("p1", "p2"):
        (folder / "dicom" / name).mkdir(parents=True)
        (folder / "dicom" / name / "IM0").write_bytes(b"\0" * 128 + b"DICM")
    assert summary(find_inputs(folder / "dicom")) == {"p1": ["p1"], "p2": ["p2"]}
    assert summary(find_inputs(folder / "dicom" / "p2")) == {"p2": ["p2"]}


def test_nothing_found_says_what_was_searched_for(scans, msd):
    folder = scans("scan.txt", "heart.nii.gz", "empty.json", "gone.json", "odd.csv", "sub/none.txt")
    (folder / "empty.json").write_text("[]")
    (folder / "gone.json").write_text('["nowhere.nii.gz"]')
    (folder / "odd.csv").write_text("file\na.nii.gz\n")
    for spec, words in [
        (folder / "haert.nii.gz", "did you mean heart.nii.gz?"),
        (
            folder / "sub",
            "no scans in this folder; found 1 other entries; expected files ending in .nii.gz, "
            ".nii, .nrrd or .mha",
        ),
        (folder / "*.mha", "nothing matches this pattern"),
        (folder / "scan.txt", "not a scan"),
        (folder / "empty.json", "lists no cases"),
        (folder / "gone.json", "none of the listed scans exists"),
        (folder / "odd.csv", "no column of images; found file; expected a column"),
        (msd, "imagesTs"),
        ([], "no scans found"),
    ]:
        with pytest.raises(UsageError) as info:
            find_inputs(spec if isinstance(spec, list) else str(spec))
        assert words in str(info.value), str(info.value)


def test_reading_descriptions_is_light(repository):
    script = (
        "import sys, medjax.corpora.sources; print([m for m in ('jax', 'nibabel', 'scipy', "
        "'tensorstore', 'grain') if m in sys.modules])"
    )
    out = subprocess.run(
        [sys.executable, "-c", script], cwd=repository, capture_output=True, text=True, check=True
    ).stdout
    assert out.strip() == "[]"
