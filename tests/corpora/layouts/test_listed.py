"""dataset.json of MSD and nnU-Net: what is a case, and what a case lacks."""

import json

import pytest

from medjax.corpora.layouts import listed
from medjax.errors import UsageError

MSD = {"modality": {"0": "CT"}, "labels": {"0": "background", "1": "liver"}}
NNUNET = {"channel_names": {"0": "T1w", "1": "T2w"}, "labels": {"background": 0, "liver": 1}}


def write(folder, spec, *files):
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    (folder / "dataset.json").write_text(json.dumps(spec))
    return folder


def entry(name, **fields):
    return {"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"} | fields


def test_a_list_names_its_cases_and_what_is_missing(tmp_path):
    training = [entry("b"), entry("a"), entry("c", label=""), entry("d"), entry("._b"), 7]
    images = [f"imagesTr/{n}.nii.gz" for n in "abc"]
    folder = write(
        tmp_path, MSD | {"training": training}, *images, "labelsTr/b.nii.gz", "labelsTr/c.nii.gz"
    )
    assert listed.detect(folder)
    corpus, cases, problems = listed.scan(folder)
    assert [(c.name, c.patient, c.modality) for c in cases] == [("b", "b", "CT")]
    assert cases[0].corpus == corpus.name
    assert [p.message for p in problems] == [
        "the image of training entry 6 is no path",
        "label of case 'a' is missing",
        "case 'c' has no label",
        "image of case 'd' is missing",
    ]


def test_channels_by_file(tmp_path):
    names = [f"imagesTr/{n}_000{c}.nii.gz" for n in "ab" for c in (0, 1)]
    labels = [f"labelsTr/{n}.nii.gz" for n in "abc"]
    folder = write(tmp_path, NNUNET, *names[:-1], *labels)
    assert listed.detect(folder)
    _, [case], problems = listed.scan(folder)
    assert [p.rsplit("/", 1)[1] for p in case.images] == ["a_0000.nii.gz", "a_0001.nii.gz"]
    assert [p.message for p in problems] == [
        "wrong number of channels in case 'b'",
        "image of case 'c' is missing",
    ]
    assert problems[0].expected == "2 files"


def test_an_explicit_list(tmp_path):
    items = {
        "x": {"images": ["a.nii.gz", "b.nii.gz"], "label": "c.nii.gz"},
        "y": {"images": []},
    }
    folder = write(tmp_path, NNUNET | {"dataset": items}, "a.nii.gz", "b.nii.gz", "c.nii.gz")
    _, [case], [problem] = listed.scan(folder)
    assert case.name == "x" and case.label == str(folder / "c.nii.gz")
    assert problem.message == "case 'y' has no list of images"


def test_links_that_lead_nowhere_and_folders(tmp_path):
    folder = write(tmp_path, MSD | {"training": [entry("a"), entry("b")]}, "labelsTr/a.nii.gz")
    (folder / "imagesTr" / "b.nii.gz").mkdir(parents=True)
    (folder / "imagesTr" / "a.nii.gz").symlink_to("nowhere")
    _, cases, problems = listed.scan(folder)
    assert cases == () and [p.message for p in problems] == [
        "image of case 'a' is a broken symbolic link",
        "image of case 'b' is no file",
    ]


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (MSD | {"training": []}, "has no training cases"),
        (MSD | {"training": [entry("a"), entry("a")]}, "case 'a' is listed twice"),
        (NNUNET | {"file_ending": ".png"}, "unsupported file ending; found .png"),
    ],
)
def test_descriptions_without_cases(tmp_path, spec, words):
    with pytest.raises(UsageError, match=words):
        listed.scan(write(tmp_path, spec, "imagesTr/a.nii.gz", "labelsTr/a.nii.gz"))


def test_a_description_alone_is_none(tmp_path):
    assert not listed.detect(tmp_path)
    assert not listed.detect(write(tmp_path, NNUNET))
    assert listed.detect(write(tmp_path, []))  # no object: reading it says so
