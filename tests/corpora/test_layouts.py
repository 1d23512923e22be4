"""Every layout, told by itself: the corpus it describes and, voxel by voxel, the classes of its
cases.
"""

import json
import shutil

import numpy as np
import pytest
from scipy import sparse

from medjax.corpora import layouts, survey
from medjax.corpora.cases import load
from medjax.corpora.labels_of_case import read_label
from medjax.corpora.layouts import bids, datalist
from medjax.corpora.sources import read_corpus, read_labels, scan_corpus
from medjax.errors import LabelError, UsageError
from medjax.scans import formats
from tests.support import dicom as make_dicom
from tests.support.raw import save, write_corpus

SHAPE = (4, 6, 5)


def image(seed=0):
    return np.random.default_rng(seed).integers(-100, 100, SHAPE).astype(np.int16)


def label(values=(1, 2), seed=0):
    return np.random.default_rng(seed).choice([0, *values], SHAPE).astype(np.uint8)


def mask(seed):
    return np.random.default_rng(seed).random(SHAPE) < 0.3


def found(path, word, layout=""):
    """The corpus and cases of a layout that must be told by itself, too."""
    assert layouts.detect(path) == word
    corpus, cases = read_corpus(path, layout)
    assert corpus == read_corpus(path, word)[0]
    return corpus, {case.name: case for case in cases}


def test_two_folders_with_equal_and_with_telling_names(tmp_path):
    for i in range(3):
        save(tmp_path / "A" / "images" / f"case{i}.nii.gz", image(i))
        save(tmp_path / "A" / "labels" / f"case{i}.nii.gz", label((1, 4), seed=i))
        save(tmp_path / "B" / "img" / f"img000{i}.nii.gz", image(i))
        save(tmp_path / "B" / "label" / f"label000{i}.nii.gz", label((1, 4), seed=i))
    for name in ("._case0.nii.gz", ".hidden.nii.gz"):
        (tmp_path / "A" / "images" / name).write_bytes(b"\0\5\x16\7")
        (tmp_path / "A" / "labels" / name).write_bytes(b"\0\5\x16\7")
    corpus, cases = found(tmp_path / "A", "folders")
    assert (
        corpus.name == "A"
        and corpus.labels == ((0, ()), (1, ("label_1",)), (4, ("label_4",)))
        and corpus.modality == "unknown"
    )
    assert list(cases) == ["case0", "case1", "case2"]
    other, twins = found(tmp_path / "B", "folders")
    assert other.labels == corpus.labels and list(twins) == ["img0000", "img0001", "img0002"]
    for a, b in zip(cases.values(), twins.values(), strict=True):
        assert np.array_equal(load(a, corpus)[1], load(b, other)[1])
    said = {
        "labels": {"liver": 1, "tumour": 4},
        "regions": {"organ": [1, 4]},
        "channels": ["CT"],
        "patients": {"case0": "p"},
        "name": "Liver",
    }
    (tmp_path / "A" / "medjax.json").write_text(json.dumps(said))
    corpus, cases = found(tmp_path / "A", "folders")
    assert (
        corpus.labels == ((0, ()), (1, ("liver", "organ")), (4, ("tumour", "organ")))
        and corpus.name == "Liver"
    )
    assert (
        corpus.modality == "CT"
        and cases["case0"].patient == "p"
        and cases["case1"].patient == "case1"
    )
    assert read_labels(tmp_path / "A") == corpus
    (tmp_path / "A" / "medjax.json").write_text('{"label": 1}')
    with pytest.raises(UsageError, match="did you mean labels"):
        scan_corpus(tmp_path / "A")


def test_two_folders_with_channels_and_without_partners(tmp_path):
    for i in range(2):
        for c in range(2):
            save(tmp_path / "imagesTr" / f"a{i}_{c:04d}.nii.gz", image(c))
        save(tmp_path / "labelsTr" / f"a{i}.nii.gz", label())
    corpus, cases = found(tmp_path, "folders")
    assert corpus.channels == ("image_0", "image_1") and [
        len(c.images) for c in cases.values()
    ] == [2, 2]
    save(tmp_path / "labelsTr" / "z.nii.gz", label())
    (tmp_path / "labelsTr" / "a1.nii.gz").unlink()
    _, cases, problems = scan_corpus(tmp_path)
    assert [c.name for c in cases] == ["a0"] and [p.message for p in problems] == [
        "image 'a1' has no label",
        "label 'z' has no image",
    ]


def test_pairs_in_one_folder_and_in_case_folders(tmp_path):
    for i in range(2):
        save(tmp_path / "lits" / f"volume-{i}.nii", image(i))
        save(tmp_path / "lits" / f"segmentation-{i}.nii", label(seed=i))
        save(tmp_path / "kits" / f"case_0000{i}" / "imaging.nii.gz", image(i))
        save(tmp_path / "kits" / f"case_0000{i}" / "segmentation.nii.gz", label(seed=i))
        for channel in ("flair", "t1"):
            save(tmp_path / "brats" / f"BraTS_00{i}" / f"BraTS_00{i}_{channel}.nii.gz", image(i))
        save(tmp_path / "brats" / f"BraTS_00{i}" / f"BraTS_00{i}_seg.nii.gz", label(seed=i))
    _, cases = found(tmp_path / "lits", "pairs")
    assert {n: c.label[-18:] for n, c in cases.items()} == {
        "volume-0": "segmentation-0.nii",
        "volume-1": "segmentation-1.nii",
    }
    _, cases = found(tmp_path / "kits", "pairs")
    assert list(cases) == ["case_00000", "case_00001"] and cases["case_00001"].images[0].endswith(
        "case_00001/imaging.nii.gz"
    )
    corpus, cases = found(tmp_path / "brats", "pairs")
    assert corpus.channels == ("flair", "t1") and corpus.modality == "MR"
    assert [i.rpartition("_")[2] for i in cases["BraTS_000"].images] == [
        "flair.nii.gz",
        "t1.nii.gz",
    ]
    assert load(cases["BraTS_001"], corpus)[0].array.shape == (*SHAPE, 2)
    (tmp_path / "brats" / "BraTS_001" / "BraTS_001_t1.nii.gz").unlink()
    assert [p.message for p in scan_corpus(tmp_path / "brats")[2]] == [
        "case 'BraTS_001' has no image 't1'"
    ]


def overlapping():
    organ, tumour, vessel = np.zeros(SHAPE, bool), np.zeros(SHAPE, bool), np.zeros(SHAPE, bool)
    organ[1:4, 1:5], tumour[2, 2:4, 1:3], vessel[0:3, 3:6, 4] = True, True, True
    return {"organ": organ, "tumour": tumour, "vessel": vessel}


@pytest.mark.parametrize("form", ["inside", "by case", "by class"])
def test_per_class_masks(tmp_path, form):
    masks = overlapping()
    empty = {name: np.zeros(SHAPE, bool) for name in masks}
    for case, members in (("s0", masks), ("s1", empty | {"organ": masks["organ"]})):
        save(
            tmp_path / case / "ct.nii.gz"
            if form == "inside"
            else tmp_path / "images" / f"{case}.nii.gz",
            image(),
        )
        for name, array in members.items():
            places = {
                "inside": tmp_path / case / "segmentations" / f"{name}.nii.gz",
                "by case": tmp_path / "masks" / case / f"{name}.nii.gz",
                "by class": tmp_path / "masks" / name / f"{case}.nii.gz",
            }
            save(places[form], array.astype(np.uint8))
    corpus, cases = found(tmp_path, "perclass")
    sets = (("organ",), ("tumour",), ("vessel",), ("organ", "tumour"), ("organ", "vessel"))
    assert corpus.labels == (
        (0, ()),
        *((i + 1, s) for i, s in enumerate(sets)),
    ) and corpus.annotated == ("organ", "tumour", "vessel")
    assert corpus.channels == (("CT",) if form == "inside" else ("image",))
    ids = read_label(cases["s0"], corpus)
    for name, array in masks.items():
        assert np.array_equal(np.isin(ids, corpus.ids_of(name)), array)
    volume, ids = load(cases["s1"], corpus)
    assert volume.array.shape == (*SHAPE, 1) and np.array_equal(ids, masks["organ"])


def test_masks_chosen_renamed_and_missing(tmp_path):
    masks = overlapping()
    for case in ("s0", "s1"):
        save(tmp_path / case / "ct.nii.gz", image())
        for name, array in masks.items():
            save(
                tmp_path
                / case
                / "segmentations"
                / f"{name if case == 's0' else name.upper()}.nii.gz",
                array.astype(np.uint8),
            )
    classes = {"liver": ["organ", "ORGAN"], "lesion": ["tumour", "TUMOUR"]}
    (tmp_path / "medjax.json").write_text(json.dumps({"classes": classes, "annotated": ["lesion"]}))
    corpus, cases = found(tmp_path, "perclass")
    assert (
        corpus.classes == ("liver", "lesion")
        and corpus.annotated == ("lesion",)
        and corpus.labels[3] == (3, ("liver", "lesion"))
    )
    assert np.array_equal(read_label(cases["s1"], corpus), masks["organ"] * 1 + masks["tumour"] * 2)
    (tmp_path / "s1" / "segmentations" / "TUMOUR.nii.gz").unlink()
    _, cases, problems = scan_corpus(tmp_path)
    assert [c.name for c in cases] == ["s0"] and problems[
        0
    ].message == "no mask of 'lesion' in case 's1'"
    (tmp_path / "medjax.json").write_text(json.dumps({"classes": classes, "absent": "background"}))
    _, cases, problems = scan_corpus(tmp_path)
    assert problems == [] and len(cases) == 2
    (tmp_path / "medjax.json").write_text(json.dumps({"classes": ["spleen"]}))
    with pytest.raises(LabelError, match="no mask of class 'spleen'"):
        scan_corpus(tmp_path)


def test_what_occurs_is_looked_up_once(tmp_path, monkeypatch):
    save(tmp_path / "images" / "a.nii.gz", image())
    save(tmp_path / "labels" / "a.nii.gz", label((3,)))
    assert read_corpus(tmp_path)[0].values == (0, 3)
    reads = []
    real = formats.read
    monkeypatch.setattr(survey.formats, "read", lambda *a, **k: reads.append(a) or real(*a, **k))
    assert read_corpus(tmp_path)[0].values == (0, 3) and reads == []
    save(tmp_path / "labels" / "a.nii.gz", label((3, 9)))
    assert read_corpus(tmp_path)[0].values == (0, 3, 9) and len(reads) == 1


def test_datalist(tmp_path):
    for i in range(4):
        for c in ("a", "b"):
            save(tmp_path / "raw" / f"{c}{i}.nii.gz", image(i))
        save(tmp_path / "raw" / f"seg{i}.nii.gz", label(seed=i))
    items = [
        {
            "image": [f"raw/a{i}.nii.gz", f"raw/b{i}.nii.gz"],
            "label": f"raw/seg{i}.nii.gz",
            "fold": i % 2,
            "patient": f"p{i // 2}",
        }
        for i in range(4)
    ]
    spec = {
        "training": items,
        "testing": [{"image": "raw/none.nii.gz"}],
        "labels": {"0": "background", "1": "liver", "2": "tumour"},
    }
    (tmp_path / "list.json").write_text(json.dumps(spec | {"modality": {"0": "T1", "1": "T2"}}))
    corpus, cases = found(tmp_path / "list.json", "datalist")
    assert (
        corpus.classes == ("liver", "tumour")
        and corpus.channels == ("T1", "T2")
        and corpus.name == "list"
        and corpus.modality == "MR"
    )
    assert (
        list(cases) == ["a0", "a1", "a2", "a3"]
        and cases["a3"].patient == "p1"
        and load(cases["a1"], corpus)[0].array.shape[-1] == 2
    )
    assert datalist.folds(tmp_path / "list.json")[0] == {"train": ["a1", "a3"], "val": ["a0", "a2"]}
    assert layouts.detect(tmp_path) == "datalist"
    items[1]["label"] = "raw/lost.nii.gz"
    (tmp_path / "list.json").write_text(json.dumps(spec | {"class_names": ["x"], "labels": None}))
    corpus, cases, problems = scan_corpus(tmp_path / "list.json")
    assert (
        corpus.classes == ("x",)
        and len(cases) == 3
        and "entry 1 of the list names a file that is not there" in problems[0].message
    )
    assert corpus.channels == ("image_0", "image_1")


def bids_tree(root, mode="dseg"):
    for subject in ("01", "02"):
        stem = f"sub-{subject}_ses-a"
        save(root / f"sub-{subject}" / "ses-a" / "anat" / f"{stem}_T1w.nii.gz", image())
        place = root / "derivatives" / "manual" / f"sub-{subject}" / "ses-a" / "anat"
        if mode == "dseg":
            save(
                place / f"{stem}_space-orig_desc-manual_dseg.nii.gz",
                label((2, 5), seed=int(subject)),
            )
        else:
            for name, array in overlapping().items():
                save(place / f"{stem}_label-{name}_mask.nii.gz", array.astype(np.uint8))
            save(place / f"{stem}_desc-brain_mask.nii.gz", np.ones(SHAPE, np.uint8))
    (root / "dataset_description.json").write_text('{"Name": "x", "BIDSVersion": "1.9.0"}')
    return root


def test_bids(tmp_path):
    root = bids_tree(tmp_path / "B")
    (root / "derivatives" / "manual" / "dseg.tsv").write_text(
        "index\tname\tcolor\n0\tbackground\t#000\n2\tliver\t#f00\n5\ttumour\t#0f0\n"
    )
    corpus, cases = found(root, "bids")
    assert (
        corpus.labels == ((0, ()), (2, ("liver",)), (5, ("tumour",)))
        and corpus.channels == ("T1w",)
        and corpus.modality == "MR"
    )
    assert (
        list(cases) == ["sub-01_ses-a", "sub-02_ses-a"]
        and cases["sub-01_ses-a"].patient == "sub-01"
    )
    assert np.array_equal(
        read_label(cases["sub-02_ses-a"], corpus), np.searchsorted([0, 2, 5], label((2, 5), seed=2))
    )
    (root / "derivatives" / "manual" / "dseg.tsv").unlink()
    own = (
        root
        / "derivatives"
        / "manual"
        / "sub-01"
        / "ses-a"
        / "anat"
        / "sub-01_ses-a_space-orig_desc-manual_dseg.json"
    )
    own.write_text('{"LabelMap": {"2": "liver", "5": "tumour"}}')
    assert read_corpus(root)[0] == corpus
    save(root / "sub-01" / "ses-a" / "anat" / "sub-01_ses-a_FLAIR.nii.gz", image())
    assert [p.message for p in scan_corpus(root)[2]] == [
        "unclear which images belong to this segmentation"
    ]
    (root / "medjax.json").write_text('{"channels": ["T1w"]}')
    assert len(read_corpus(root)[1]) == 2
    second = own.with_name("sub-01_ses-a_space-orig_desc-second_dseg.nii.gz")
    shutil.copy(own.with_suffix("").with_suffix(".nii.gz"), second)
    assert [p.message for p in scan_corpus(root)[2]] == ["several segmentations of one scan"]
    (root / "medjax.json").write_text('{"channels": ["T1w"], "select": "desc-manual"}')
    assert len(read_corpus(root)[1]) == 2
    assert bids.parse("sub-01_acq-x_run-2_bold") == ({"sub": "01", "acq": "x", "run": "2"}, "bold")


def test_bids_masks(tmp_path):
    corpus, cases = found(bids_tree(tmp_path / "B", "mask"), "bids")
    assert corpus.classes == ("organ", "tumour", "vessel") and len(corpus.values) == 6
    for name, array in overlapping().items():
        assert np.array_equal(
            np.isin(read_label(cases["sub-01_ses-a"], corpus), corpus.ids_of(name)), array
        )


def test_m3d(tmp_path):
    masks = np.stack(list(overlapping().values()))
    items = []
    for case in ("1", "2"):
        place = tmp_path / "0007" / case
        place.mkdir(parents=True)
        np.save(place / "image.npy", image().transpose(2, 1, 0)[None].astype(np.float32))
        name = f"mask_(3, {SHAPE[2]}, {SHAPE[1]}, {SHAPE[0]}).npz"
        sparse.save_npz(
            place / name,
            sparse.csr_matrix(masks.transpose(0, 3, 2, 1).reshape(3, -1).astype(np.int32)),
        )
        (place / "image.json").write_text('{"axes": "cxyz", "spacing_mm": [5, 1, 1]}')
        items.append(
            {"image": f"0007/{case}/image.npy", "label": f"0007/{case}/{name}"}
            | ({"modality": "MRI"} if case == "2" else {})
        )
    labels = {"0": "background", "1": "organ", "2": "tumour", "3": "vessel"}
    spec = {"name": "Toy", "modality": {"0": "CT"}, "labels": labels, "train": items, "test": []}
    (tmp_path / "0007" / "0007.json").write_text(json.dumps(spec))
    corpus, cases = found(tmp_path / "0007", "m3d")
    assert (
        corpus.name == "Toy"
        and corpus.channels == ("CT",)
        and corpus.classes == ("organ", "tumour", "vessel")
    )
    assert {n: c.modality for n, c in cases.items()} == {"1": "CT", "2": "MR"}
    volume, ids = load(cases["1"], corpus)
    assert volume.spacing_mm == (5, 1, 1) and np.array_equal(volume.array[..., 0], image())
    for name, array in overlapping().items():
        assert np.array_equal(np.isin(ids, corpus.ids_of(name)), array)


def test_dicom_layout(tmp_path):
    pytest.importorskip("highdicom")
    array = np.random.default_rng(0).integers(-500, 500, (6, 12, 10)).astype(np.int16)
    liver, tumour = np.zeros(array.shape, bool), np.zeros(array.shape, bool)
    liver[1:4, 2:9, 2:9], tumour[2:5, 4:8, 3:6] = True, True
    files, _ = make_dicom.write_series(tmp_path / "a" / "ct", array)
    make_dicom.write_segmentation(
        tmp_path / "a" / "seg.dcm", files, {"liver": liver, "tumour": tumour}
    )
    files, _ = make_dicom.write_series(tmp_path / "b" / "ct", array)
    square = [(1.5, 2.5), (6.5, 2.5), (6.5, 7.5), (1.5, 7.5)]
    (tmp_path / "b" / "rt").mkdir()
    make_dicom.write_structures(
        tmp_path / "b" / "rt" / "rt.dcm", files, {"Liver ": [(2, square)], "tumour": []}, refer=True
    )
    (tmp_path / "medjax.json").write_text(
        json.dumps({"classes": {"liver": ["liver", "Liver"], "tumour": "tumour"}})
    )
    corpus, cases = found(tmp_path, "dicom")
    assert (
        corpus.classes == ("liver", "tumour")
        and corpus.channels == ("CT",)
        and corpus.modality == "CT"
    )
    assert list(cases) == ["a_ct", "b_ct"] and cases["a_ct"].patient == "p1"
    volume, ids = load(cases["a_ct"], corpus)
    assert np.array_equal(volume.array[..., 0], array) and np.array_equal(
        ids, liver * 1 + tumour * 2
    )
    expected = np.zeros(array.shape, bool)
    expected[2, 3:8, 2:7] = True
    assert np.array_equal(read_label(cases["b_ct"], corpus), expected)


def test_scans_without_labels(tmp_path):
    for i in range(2):
        save(tmp_path / "x" / f"{i}.nii.gz", image(i))
    corpus, cases = found(tmp_path, "scans")
    assert corpus.classes == () and list(cases) == ["0", "1"] and cases["0"].label is None


def test_nothing_there_and_wrong_words(tmp_path):
    (tmp_path / "readme.txt").write_text("x")
    with pytest.raises(UsageError, match="no data set in a known layout"):
        scan_corpus(tmp_path)
    write_corpus(tmp_path / "Task01_A", 2, SHAPE)
    with pytest.raises(UsageError, match="unknown layout 'mds'"):
        scan_corpus(tmp_path / "Task01_A", "mds")
    assert layouts.detect(tmp_path / "Task01_A") == "msd"
    (tmp_path / "Task01_A" / "medjax.json").write_text('{"layout": "folders"}')
    assert scan_corpus(tmp_path / "Task01_A")[0].classes == ("label_1", "label_2")
    (tmp_path / "Task01_A" / "medjax.json").unlink()
    assert scan_corpus(tmp_path / "Task01_A" / "dataset.json") == scan_corpus(tmp_path / "Task01_A")
    with pytest.raises(UsageError, match="no list of scans"):
        scan_corpus(tmp_path / "Task01_A", "datalist")
