"""Scores on the network's grid: two rules for empty classes, and nested regions of a softmax."""

import types

import numpy as np
import pytest

from medjax import decision
from medjax.corpora.inputs import Case
from medjax.errors import UsageError
from medjax.labels import Corpus, merge
from medjax.prepare import store
from medjax.prepare.plan import Intensity, Plan
from medjax.prepare.prepare import prepare
from medjax.scans import formats
from medjax_verbs import resampled
from tests.support.raw import make_case, save, write_corpus

EMPTY, HALF, FULL = np.zeros(4, bool), np.array([1, 1, 0, 0], bool), np.ones(4, bool)


@pytest.mark.parametrize(
    ("reference", "prediction", "standard", "released"),
    [
        (EMPTY, EMPTY, None, (0.0, 0.0)),
        (EMPTY, FULL, (0.0, 0.0), (1.0, 1.0)),
        (FULL, EMPTY, (0.0, 0.0), (0.0, 0.0)),
        (FULL, HALF, (2 / 3, 0.5), (2 / 3, 0.5)),
    ],
)
def test_empty_classes_follow_the_rule(reference, prediction, standard, released):
    assert resampled.class_scores(reference, prediction) == standard
    assert resampled.class_scores(reference, prediction, "released") == released


def test_a_softmax_decides_for_one_class_and_regions_hold_what_is_nested():
    probabilities = np.array(
        [[0.6, 0.3], [0.2, 0.5], [0.3, 0.2], [0.0, 0.0]]
    )  # liver, tumour; the rest is background
    mask = decision.make("softmax").decide(probabilities)
    np.testing.assert_array_equal(mask, [[1, 0], [0, 1], [0, 0], [0, 0]])
    space = merge([Corpus("A", ((1, ("liver",)), (2, ("liver", "tumour"))))])
    ids = space.corpora[0].to_ids(space.export(mask, "A"))
    masks = resampled.class_masks(ids, space, "A")
    assert masks["liver"].tolist() == [True, True, False, False] and masks["tumour"].tolist() == [
        False,
        True,
        False,
        False,
    ]


def test_an_unknown_rule_is_refused():
    with pytest.raises(UsageError, match="released"):
        resampled.class_scores(FULL, FULL, "realeased")


class Oracle:
    """A predictor that gives back the label beside the scan, in the network's grid; every case in
    its own.
    """

    decision = decision.make("sigmoid")

    def __init__(self, space, root):
        self.model, self.root = types.SimpleNamespace(space=space), root

    def scores(self, volume, request):
        name = volume.path.split("/")[-1].split(".")[0]
        label = store.open_case(self.root / request.corpus / name).label()
        return np.stack([label > 0, label == 2], -1).astype(np.float32), None


def skull_stripped(folder, n=3):
    """Images whose outer quarter is 0, with what lies there outside the normalisation mask."""
    write_corpus(folder, n, (8, 8, 8), labels={"kidney": 1, "tumour": 2}, vary=False)
    for k in range(n):
        image, label = make_case((8, 8, 8), (1, 2), seed=k)
        image[:, :2, :2], label[:, :2, :2] = 0, 0
        save(folder / "imagesTr" / f"case_{k:03d}.nii.gz", image[..., 0])
        save(folder / "labelsTr" / f"case_{k:03d}.nii.gz", label)


def held_out(tmp_path, n=3):
    from medjax.corpora.sources import read_corpus

    skull_stripped(tmp_path / "Task01_A", n)
    corpus, cases = read_corpus(tmp_path / "Task01_A")
    prepare(
        corpus,
        cases,
        Plan({"A": (1.0, 1.0, 1.0)}, {"MRI": Intensity("zscore", masked=True)}),
        tmp_path / "s",
    )
    return Oracle(merge([corpus]), tmp_path / "s"), corpus, list(cases)


def test_voxels_outside_a_normalisation_mask_are_background(tmp_path):
    """They used to count as the last class: the scores of a perfect prediction were far below 1."""
    predictor, corpus, cases = held_out(tmp_path)
    raw = store.open_case(tmp_path / "s" / "A" / "case_000")
    assert raw.meta["outside_id"] == 3 and (raw.label(outside=-1) == -1).any()
    found = resampled.score(predictor, {"A": (corpus, cases)}, tmp_path / "s")
    assert (
        found["A"]["Dice"] == found["A"]["IoU"] == 1
        and found["A"]["classes"]["tumour"]["n"] == 3
        and found["failed"] == []
    )


def test_one_bad_scan_costs_only_itself(tmp_path):
    """Damaged scan, damaged store, a case that is not prepared: each is named, the others are
    scored as without them.
    """
    predictor, corpus, cases = held_out(tmp_path, 5)
    alone = resampled.score(predictor, {"A": (corpus, cases[3:])}, tmp_path / "s")
    (tmp_path / "Task01_A" / "imagesTr" / "case_000.nii.gz").write_bytes(b"no scan")
    label = store.flat_file(tmp_path / "s" / "A" / "case_001" / "label.zarr", 3)
    label.write_bytes(bytes([200]) * label.stat().st_size)
    case = tmp_path / "s" / "A" / "case_001" / "case.json"
    case.touch()
    odd = Case("absent", ("/absent.nii.gz",), None, "A")
    small, _ = make_case((4, 4, 4), (1, 2))
    save(tmp_path / "Task01_A" / "imagesTr" / "case_002.nii.gz", small[..., 0])
    predictor.scores, whole = (
        lambda v, c: (np.zeros((4, 4, 4, 2)), None) if "case_002" in v.path else whole(v, c),
        predictor.scores,
    )
    found = resampled.score(predictor, {"A": (corpus, [odd, *cases])}, tmp_path / "s")
    assert found["not prepared"] == ["A/absent"] and [
        (f["corpus"], f["case"]) for f in found["failed"]
    ] == [
        ("A", "case_000"),
        ("A", "case_001"),
        ("A", "case_002"),
    ]
    first, second, third = found["failed"]
    assert (
        "case_000.nii.gz" in first["path"]
        and "is not what was prepared" in second["message"]
        and "another grid" in third["message"]
    )
    assert found["A"] == alone["A"]


def test_scans_of_other_formats_are_read(tmp_path, monkeypatch):
    sitk = pytest.importorskip("SimpleITK")
    predictor, corpus, cases = held_out(tmp_path, 1)
    path = tmp_path / "case_000.nrrd"
    sitk.WriteImage(sitk.GetImageFromArray(formats.read(cases[0].images[0]).array), str(path))
    other = Case("case_000", (str(path),), cases[0].label, "A")
    assert resampled.score(predictor, {"A": (corpus, [other])}, tmp_path / "s")["A"]["Dice"] == 1


@pytest.mark.parametrize(("temperatures", "expected"), [({}, 0.0), ({"kidney": 9.0}, 1.0)])
def test_calibrated_conflicts_hold_here_as_well(tmp_path, temperatures, expected):
    """The kidney's channel is on everywhere, and surer than the tumour's where that is right."""
    oracle, corpus, cases = held_out(tmp_path, 1)

    class Sure(Oracle):
        def scores(self, volume, request):
            found, transform = super().scores(volume, request)
            return found * np.float32([0.9, 0.8]), transform

    predictor = Sure(oracle.model.space, oracle.root)
    predictor.conflicts, predictor.temperatures = "calibrated", temperatures
    found = resampled.score(predictor, {"A": (corpus, cases)}, tmp_path / "s")
    assert found["A"]["classes"]["tumour"]["Dice"] == expected and not found["failed"]
