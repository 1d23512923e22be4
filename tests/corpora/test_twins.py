"""Twins: named by rules, found by content, kept on one side, reported where a split leaks."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines import pools
from data_pipelines.catalogue import corpora
from medjax import cli
from medjax.corpora.inputs import Case
from medjax.corpora.splits import digest, make_splits, provenance, read_splits
from medjax.corpora.twins import Twin, between, by_content, by_name, read_rules, straddling
from medjax.errors import UsageError
from tests.support.raw import save, write_corpus


def _cases(corpus, names):
    return tuple(Case(name, (f"{name}.nii.gz",), None, corpus, "CT", name) for name in names)


def _multitalent():
    """The two sets of MultiTalent that share scans, by their published names."""
    declared = pools.multitalent.declared()
    tcia = [f"PANCREAS_{n:04d}" for n in (*range(1, 40), *range(41, 45))]
    cases = {
        "017_BTCV": _cases("017_BTCV", [f"img{n:04d}" for n in (*range(1, 11), *range(21, 41))]),
        "046_BTCV2": _cases(
            "046_BTCV2",
            [f"img{n:04d}" for n in (*range(1, 11), *range(21, 41), *range(61, 78))] + tcia,
        ),
        "062_NIHPancreas": _cases("062_NIHPancreas", [f"PANCREAS_{n:04d}" for n in range(1, 83)]),
    }
    rules = {name: read_rules(declared[name]["twins"]) for name in cases}
    return cases, rules, {name: declared[name]["source"] for name in cases}


def test_rules_name_the_twins_of_multitalents_pool():
    pairs = by_name(*_multitalent())
    ends = {(p.first, p.second) for p in pairs}
    assert ("017_BTCV/img0001", "046_BTCV2/img0001") in ends and (
        "046_BTCV2/PANCREAS_0002",
        "062_NIHPancreas/PANCREAS_0002",
    ) in ends
    assert (
        len(pairs) == 30 + 43
    )  # every BTCV training scan and every TCIA scan of the 90-case set has one twin here
    assert not any("img0061" in p.first for p in pairs)


def test_splits_keep_twins_together_where_name_blind_splits_leak():
    cases, rules, public = _multitalent()
    pairs = by_name(cases, rules, public)
    apart = {
        c: tuple(Case(m.name, m.images, None, c, "CT", f"{c}:{m.name}") for m in members)
        for c, members in cases.items()
    }
    leaks = [len(straddling(split, pairs)) for split in make_splits(apart)]
    assert sum(leaks) > 40, leaks  # the released splits have 68 in their five folds
    guarded = make_splits(apart, twins=pairs)
    assert [straddling(split, pairs) for split in guarded] == [()] * 5
    for corpus, members in apart.items():
        sizes = [sum(n.startswith(corpus) for n in split["val"]) for split in guarded]
        assert sum(sizes) == len(members) and max(sizes) - min(sizes) <= 3, (corpus, sizes)
    assert (
        digest(guarded)
        == digest(make_splits(apart, twins=list(reversed(pairs))))
        != digest(make_splits(apart, twins=pairs, seed=7))
    )


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 19), st.integers(0, 19)), max_size=25), st.integers(0, 9))
def test_no_chain_of_twins_is_ever_cut(links, seed):
    from medjax.corpora.twins import Pair

    cases = {
        "a": _cases("a", [f"a{i}" for i in range(20)]),
        "b": _cases("b", [f"b{i}" for i in range(20)]),
    }
    pairs = [Pair(f"a/a{i}", f"b/b{j}", "drawn") for i, j in links]
    try:
        splits = make_splits(cases, folds=3, seed=seed, twins=pairs)
    except UsageError:
        return
    assert all(straddling(split, pairs) == () for split in splits)
    assert sorted(n for s in splits for n in s["val"]) == sorted(
        f"{c}/{m.name}" for c, ms in cases.items() for m in ms
    )


@pytest.mark.parametrize(
    ("corpus", "case", "other", "expected"),
    [
        ("MSD_Liver", "liver_17", "LiTS", "volume-17"),
        ("LiTS", "volume-17", "MSD_Liver", "liver_17"),
        ("LiTS", "volume-28", "IRCADb", "3Dircadb1.1"),
        ("LiTS", "volume-47", "IRCADb", "3Dircadb1.20"),
        ("LiTS", "volume-48", "IRCADb", None),
        ("IRCADb", "3Dircadb1.20", "MSD_Liver", "liver_47"),
        ("KiTS19", "case_00007", "KiTS21", "case_00007"),
        ("TotalSegmentator_v1", "s0011", "TotalSegmentator_v2", "s0011"),
        ("BraTS2021_T1", "BraTS2021_00005", "BraTS2021_FLAIR", "BraTS2021_00005"),
    ],
)
def test_the_published_rules(corpus, case, other, expected):
    rules = {rule.corpus: rule for rule in read_rules(t.to_json() for t in corpora()[corpus].twins)}
    assert rules[other].other_name(case) == expected


def test_every_rule_points_back():
    """If a rule says that x of A is y of B, B's rule for A says that y is x."""
    examples = {
        "BTCV": "img0001",
        "BTCV_TCIA": "PANCREAS_0001",
        "KiTS19": "case_00001",
        "LiTS": "volume-30",
        "IRCADb": "3Dircadb1.3",
    }
    checked = 0
    for name, case in examples.items():
        for rule in read_rules(t.to_json() for t in corpora()[name].twins):
            if (twin := rule.other_name(case)) is not None:
                back = [
                    r.other_name(twin)
                    for r in read_rules(t.to_json() for t in corpora()[rule.corpus].twins)
                    if r.corpus == name
                ]
                assert case in back, (name, case, rule.corpus, twin)
                checked += 1
    assert checked >= 7


def test_content_finds_twins_under_other_names_formats_and_orientations(tmp_path):
    rng = np.random.default_rng(0)
    scans = [np.rint(rng.normal(50, 200, (6, 9, 8))).astype(np.int16) for _ in range(3)]
    save(tmp_path / "a" / "one.nii.gz", scans[0], (2, 1, 1))
    save(tmp_path / "a" / "two.nii.gz", scans[1], (2, 1, 1))
    save(tmp_path / "b" / "x.nii", scans[2], (2, 1, 1))
    save(tmp_path / "b" / "y.nii", scans[0].astype(np.float32), (2, 1, 1), "LPI")
    (tmp_path / "b" / "z.nii").write_bytes(b"broken")
    cases = {
        "a": (
            Case("one", (str(tmp_path / "a/one.nii.gz"),)),
            Case("two", (str(tmp_path / "a/two.nii.gz"),)),
        ),
        "b": tuple(Case(n, (str(tmp_path / f"b/{n}.nii"),)) for n in "xyz"),
    }
    pairs, failed = by_content(cases, workers=1)
    assert [(p.first, p.second, p.why) for p in pairs] == [("a/one", "b/y", "equal images")]
    assert [f["case"] for f in failed] == ["b/z"]
    assert [(p.first, p.second) for p in between(["b/y"], ["a/one", "a/two"], pairs)] == [
        ("b/y", "a/one")
    ]


def test_the_command_reports_an_overlap_of_training_and_evaluation(tmp_path, capsys):
    twins = [{"corpus": "Second", "cases": "case_(\\d+)", "other": "case_\\1"}]
    first = write_corpus(tmp_path / "Task01_First", n=3, medjax={"twins": twins}, seed=1)
    second = write_corpus(tmp_path / "Task02_Second", n=2, seed=9)
    third = write_corpus(tmp_path / "Task03_Third", n=2, seed=1)
    assert cli.main(["overlap", str(first), "--against", str(second)]) == 4
    assert (
        "First/case_000  =  Second/case_000" in (text := capsys.readouterr().out)
        and "2 scans shared by training and evaluation" in text
    )
    assert cli.main(["overlap", str(first), "--against", str(third)]) == 0
    capsys.readouterr()
    assert (
        cli.main(["overlap", str(first), "--against", str(third), "--content", "--json", "--quiet"])
        == 4
    )
    assert [row["why"] for row in json.loads(capsys.readouterr().out)] == [
        "equal images",
        "equal images",
    ]


def test_a_split_file_with_leaks_is_read_and_the_leaks_are_told(tmp_path):
    cases = {"a": _cases("a", ["a1", "a2"]), "b": _cases("b", ["b1", "b2"])}
    pairs = by_name(cases, {"a": (Twin("b", r"a(\d)", r"b\1"),)})
    (tmp_path / "splits_final.json").write_text(
        json.dumps([{"train": ["a1", "b2"], "val": ["a2", "b1"]}])
    )
    splits = read_splits(tmp_path / "splits_final.json", cases)
    assert [(p.first, p.second) for p in straddling(splits[0], pairs)] == [
        ("a/a1", "b/b1"),
        ("b/b2", "a/a2"),
    ]
    told = json.loads(json.dumps(provenance(splits, cases, pairs, seed=3)))
    assert (
        told["sha256"] == digest(splits)
        and told["groups"] == 2
        and told["patients"] == 4
        and told["settings"] == {"seed": 3}
    )
    assert told["corpora"]["a"]["sha256"] != told["corpora"]["b"]["sha256"]


def test_unusable_rules_are_refused():
    with pytest.raises(UsageError, match="not a regular expression"):
        Twin("b", "(", "x")
    with pytest.raises(UsageError, match="unknown field 'case'"):
        read_rules([{"corpus": "b", "case": "x"}])
