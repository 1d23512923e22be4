"""Splits: every case validated once, patients never on both sides, same result on every machine."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medjax.corpora.inputs import Case
from medjax.corpora.splits import digest, make_splits, part_of, read_splits, subset
from medjax.errors import UsageError


def _cases(corpus, patients):
    return tuple(
        Case(f"{corpus}{i}", (f"{i}.nii.gz",), None, corpus, "CT", patient)
        for i, patient in enumerate(patients)
    )


@given(
    st.lists(st.integers(0, 12), min_size=6, max_size=30),
    st.lists(st.integers(6, 20), min_size=1, max_size=20),
    st.integers(0, 99),
)
def test_patients_stay_on_one_side_across_corpora(first, second, seed):
    cases = {
        "a": _cases("a", [f"p{i}" for i in first]),
        "b": _cases("b", [f"p{i}" for i in second]),
    }
    patient = {f"{c}/{case.name}": case.patient for c, members in cases.items() for case in members}
    if len(set(patient.values())) < 3:
        return
    splits = make_splits(cases, folds=3, seed=seed)
    assert sorted(n for s in splits for n in s["val"]) == sorted(patient)
    for split in splits:
        assert not {patient[n] for n in split["train"]} & {patient[n] for n in split["val"]}
        assert sorted(split["train"] + split["val"]) == sorted(patient)


def test_folds_are_balanced_within_each_corpus():
    cases = {
        "a": _cases("a", [f"p{i}" for i in range(213)]),
        "b": _cases("b", [f"q{i}" for i in range(15)]),
    }
    splits = make_splits(cases)
    assert [sum(n.startswith("a/") for n in s["val"]) for s in splits] == [43, 43, 43, 42, 42]
    assert [sum(n.startswith("b/") for n in s["val"]) for s in splits] == [3, 3, 3, 3, 3]
    assert digest(splits) == digest(make_splits(cases)) != digest(make_splits(cases, seed=1))


def test_a_test_part_is_a_fold_of_its_own(tmp_path):
    """M4oE 4, row 30: FLARE22 40/5/5, ATLAS23 48/6/6."""
    cases = {
        "FLARE22": _cases("f", [f"p{i}" for i in range(50)]),
        "ATLAS23": _cases("a", [f"q{i}" for i in range(60)]),
    }
    splits = make_splits(cases, 10, test=True)
    for split in splits:
        assert [len(split[side]) for side in ("train", "val", "test")] == [88, 11, 11]
        assert sum(n.startswith("FLARE22/") for n in split["test"]) == 5
        assert not set(split["train"]) & {*split["val"], *split["test"]}
    assert splits[0]["test"] == splits[1]["val"] and splits[9]["test"] == splits[0]["val"]
    two = make_splits(cases, 10)
    assert [s["val"] for s in two] == [s["val"] for s in splits] and set(two[0]) == {"train", "val"}
    (tmp_path / "s.json").write_text(json.dumps(splits))
    assert read_splits(tmp_path / "s.json", cases) == splits
    (tmp_path / "s.json").write_text(json.dumps([splits[0] | {"test": 3}]))
    with pytest.raises(UsageError, match="not splits"):
        read_splits(tmp_path / "s.json", cases)
    with pytest.raises(UsageError, match="three parts needs at least 3 folds"):
        make_splits(cases, 2, test=True)


def test_parts_partition_the_cases():
    names = [f"c{i}" for i in range(11)]
    assert sorted(part_of(names, "0/2") + part_of(names, "1/2")) == sorted(names)
    assert part_of(names, "") == names
    with pytest.raises(UsageError, match="not a part"):
        part_of(names, "2/2")


def test_a_subset_depends_on_names_and_seed_alone():
    names = [f"Case_{i:05d}" for i in range(1, 1001)]
    chosen = subset(names, "AbdomenCT_1K", 50, 12345)
    assert len(chosen) == 50 and chosen == sorted(chosen)
    assert (
        set(subset(names[::-1], "AbdomenCT_1K", 50, 12345))
        == set(chosen)
        != set(subset(names, "AbdomenCT_1K", 50, 0))
    )
    assert set(subset(names, "AbdomenCT_1K", 20, 12345)) < set(chosen)
    with pytest.raises(UsageError, match=r"has 3 cases.*AbdomenCT_1K\.count"):
        subset(names[:3], "AbdomenCT_1K", 50, 12345)


def test_nnunet_split_files_are_read_and_unknown_cases_refused(tmp_path):
    cases = {"a": _cases("a", ["x", "y", "z"])}
    path = tmp_path / "splits_final.json"
    path.write_text(json.dumps([{"train": ["a0", "a1"], "val": ["a/a2"]}]))
    assert read_splits(path, cases) == [{"train": ["a/a0", "a/a1"], "val": ["a/a2"]}]
    path.write_text(json.dumps([{"train": ["a7"], "val": []}]))
    with pytest.raises(UsageError, match="a7"):
        read_splits(path, cases)
    with pytest.raises(UsageError, match="cannot fill"):
        make_splits(cases, folds=5)
