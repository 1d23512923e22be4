"""Volumes of one patient in several corpora stay on one side of a split (T30 of SegVol's spec)."""

import collections

import pytest

from data_pipelines.catalogue import corpora
from data_pipelines.find import find_cases
from medjax.corpora.splits import make_splits

PATIENTS = 12
BRATS = tuple(f"BraTS2021_{name}" for name in ("FLAIR", "T1", "T1ce", "T2"))
CHAOS = ("CHAOS_T1in", "CHAOS_T1out", "CHAOS_T2")


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Corpus -> cases, from folders as the downloads have them; names are all that is read."""
    raw = tmp_path_factory.mktemp("raw")

    def put(path):
        (raw / path).parent.mkdir(parents=True, exist_ok=True)
        (raw / path).write_bytes(b"-")

    for k in range(PATIENTS):
        case = f"BraTS2021_{k:05d}"
        for word in ("flair", "t1", "t1ce", "t2", "seg"):
            put(f"BraTS2021_Training_Data/{case}/{case}_{word}.nii.gz")
        for word in ("InPhase", "OutPhase"):
            put(f"MR/{k + 1}/T1DUAL/DICOM_anon/{word}/1.dcm")
        put(f"MR/{k + 1}/T2SPIR/DICOM_anon/1.dcm")
        for word in ("T1DUAL", "T2SPIR"):
            put(f"MR/{k + 1}/{word}/Ground/1.png")
    known = corpora()
    return {name: find_cases(known[name], raw).cases for name in (*BRATS, *CHAOS)}


def test_t30_sequences_of_a_patient_are_on_one_side(found):
    assert {name: len(cases) for name, cases in found.items()} == dict.fromkeys(found, PATIENTS)
    volumes = collections.Counter(case.patient for cases in found.values() for case in cases)
    assert sorted(volumes.values()) == [3] * PATIENTS + [4] * PATIENTS
    patient = {f"{c}/{case.name}": case.patient for c, cases in found.items() for case in cases}
    for seed in range(5):
        splits = make_splits(found, folds=5, seed=seed)
        for split in splits:
            train, held = ({patient[name] for name in split[side]} for side in ("train", "val"))
            assert not train & held and len(train | held) == 2 * PATIENTS
        assert sorted(name for split in splits for name in split["val"]) == sorted(patient)


def test_t30_phases_of_a_patient_in_one_corpus_are_on_one_side(found):
    """As in M&Ms: two volumes per patient within a corpus."""
    phases = {"MnM": tuple(case for name in CHAOS[:2] for case in found[name])}
    split = make_splits(phases, folds=4)[0]
    assert len(split["val"]) == 2 * PATIENTS // 4
