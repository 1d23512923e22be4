"""Two models on the same cases: pairs, intervals, tests by hand, Holm's table."""

import dataclasses
import math

import numpy as np
import pytest

from medjax.errors import MetricError, UsageError
from medjax.labels import Corpus
from medjax.metrics.compare import Comparison, compare, holm, p_value
from medjax.metrics.result import Pair, build_result
from tests.metrics.test_aggregate import row

CORPUS = Corpus("A", ((1, ("liver",)), (2, ("tumour",))))


def result(rows, **changes):
    pairs = [
        ("A", Pair(case, f"r/{case}.nii.gz", f"p/{case}.nii.gz"))
        for case in dict.fromkeys(r.case for r in rows)
    ]
    settings = {"surface": False, "tolerance_mm": None, "definition": None} | changes
    return build_result(
        {"A": CORPUS}, {"A": ("liver", "tumour")}, rows, pairs, [], [], settings, None, 200, 0
    )


def test_wilcoxon_and_permutation_by_hand():
    # Six differences of one sign: 2 of the 2**6 sign patterns are as extreme, in both tests.
    differences = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    assert p_value(differences, "wilcoxon") == p_value(differences, "permutation") == 2 / 64
    # 3 and -1: |sum| >= 2 for all four patterns (4, 2, -2, -4).
    assert p_value(np.array([3.0, -1.0]), "permutation") == 1.0
    # Ranks 1..5 with the smallest negative: W- = 1, and 2 * 2 of the 2**5 patterns have a rank sum
    # of 0 or 1 on either side.
    assert p_value(np.array([-0.1, 0.2, 0.3, 0.4, 0.5]), "wilcoxon") == pytest.approx(4 / 32)
    assert (
        p_value(np.zeros(5), "wilcoxon") == 1.0 and p_value(np.array([0.3]), "permutation") is None
    )


def test_students_test_and_one_sided_chances_by_hand():
    # mean 2, sd 1, t = 2 sqrt(3); with 2 degrees of freedom p = 1 - t / sqrt(2 + t^2)
    differences, p = np.array([1.0, 2.0, 3.0]), 1 - math.sqrt(12 / 14)
    assert p_value(differences, "t") == pytest.approx(p, abs=1e-12)
    assert p_value(differences, "t", side="better") == pytest.approx(p / 2, abs=1e-12)
    assert p_value(-differences, "t", side="better") == pytest.approx(1 - p / 2, abs=1e-12)
    assert p_value(np.array([0.5, 0.5]), "t") == p_value(np.array([0.5, 0.5]), "t", side="better")
    assert p_value(np.array([-0.5, -0.5]), "t", side="better") == 1.0
    # one of the 2**3 sign patterns reaches the observed sum; all of them reach its negative
    assert p_value(differences, "permutation", side="better") == 1 / 8
    assert p_value(-differences, "permutation", side="better") == 1.0
    assert p_value(differences, "wilcoxon", side="better") == 1 / 8
    drawn = np.arange(1, 21) / 10  # 20 patients: signs are drawn
    assert p_value(-drawn, "permutation", side="better") == 1.0


def test_a_corpus_is_tested_by_the_mean_of_every_patient():
    """Three patients gain 1, 2 and 3 tenths on average of two classes, one class up, one down."""
    first = result([row(c, 0.2, name=n) for c in "abc" for n in ("liver", "tumour")])
    gains = {"a": (0.3, -0.1), "b": (0.3, 0.1), "c": (0.7, -0.1)}
    second = result(
        [
            row(c, 0.2 + gain, name=n)
            for c, both in gains.items()
            for n, gain in zip(("liver", "tumour"), both, strict=True)
        ]
    )
    found = compare(first, second, names=("old", "new"), test="t", side="better")
    whole = found.corpora["A"]["Dice"]
    assert whole["n_patients"] == 3 and whole["mean"] == pytest.approx(0.2)
    assert whole["p"] == pytest.approx((1 - math.sqrt(12 / 14)) / 2, abs=1e-9)
    assert compare(second, first, test="t", side="better").corpora["A"]["Dice"]["p"] > 0.9
    text = found.markdown()
    assert "Test: t, one-sided (the second is better)" in text
    assert "| A | mean over classes of a patient | 0.200 | 0.400 | 0.200 | 0.037 | - | 3 |" in text
    for words in ({"test": "student"}, {"side": "worse"}):
        with pytest.raises(UsageError, match="unknown"):
            compare(first, second, **words)


def test_less_distance_is_better():
    first, second = (
        result(
            [
                dataclasses.replace(row(c, 0.5), scores={"Dice": 0.5, "HD95": mm + k})
                for k, c in enumerate("abcdef")
            ]
        )
        for mm in (5.0, 4.0)
    )
    found = compare(first, second, side="better", test="permutation")
    assert found.cells["A"]["liver"]["HD95"]["p"] == 1 / 64


def test_the_sampled_permutation_test_agrees_with_the_exact_one():
    rng = np.random.default_rng(5)
    differences = rng.normal(0.3, 1.0, 14)
    exact = p_value(differences, "permutation")
    flipped = (
        np.abs((rng.choice((-1, 1), (100_000, 14)) * differences).mean(1))
        >= abs(differences.mean()) - 1e-12
    )
    assert 0.05 < exact < 0.95 and flipped.mean() == pytest.approx(exact, abs=0.01)
    many = np.concatenate([differences, differences])  # 28 patients: signs are drawn
    sampled = p_value(many, "permutation", 20_000, seed=1)
    normal = math.erfc(
        abs(many.sum()) / math.sqrt((many**2).sum()) / math.sqrt(2)
    )  # the limit for many patients
    assert (
        sampled == p_value(many, "permutation", 20_000, seed=1) == pytest.approx(normal, abs=0.02)
    )


def test_holm_by_hand():
    # Holm (1979): 0.01 * 4, then max(0.04, 0.015 * 3), max(0.045, 0.04 * 2), max(0.08, 0.2 * 1).
    assert holm([0.015, 0.2, None, 0.01, 0.04]) == pytest.approx([0.045, 0.2, None, 0.04, 0.08])
    assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([]) == []


def test_differences_are_paired_by_case_and_an_invented_class_counts_against_its_inventor():
    first = result(
        [
            row("a", 0.8),
            row("b", 0.6),
            row("c", 0.0, status="false_positive"),
            row("d", None),
            row("e", 0.5),
        ]
    )
    second = result([row("b", 0.7), row("a", 0.6), row("c", None), row("d", None), row("f", 0.9)])
    cell = (found := compare(first, second, names=("old", "new"))).cells["A"]["liver"]["Dice"]
    # a: -0.2, b: +0.1, c: the second is rightly silent where the first was wrong, 1 - 0; d: nothing
    # to compare; e, f: only one side.
    assert cell["n"] == 3 and cell["mean"] == pytest.approx((-0.2 + 0.1 + 1.0) / 3)
    assert (cell["first"], cell["second"]) == pytest.approx(
        ((0.8 + 0.6 + 0) / 3, (0.6 + 0.7 + 1) / 3)
    )
    assert (
        found.unpaired == {"old": ["A/e"], "new": ["A/f"]}
        and "only, so not compared: A/e" in found.markdown()
    )
    tumour = (
        found.cells["A"]["tumour"]["Dice"] if "tumour" in found.cells["A"] else {"n": 0, "p": None}
    )
    assert tumour["n"] == 0 and tumour["p"] is None


def test_paired_intervals_are_narrower_than_the_spread_of_the_scores():
    rng = np.random.default_rng(0)
    hard = rng.uniform(0.2, 0.9, 30)  # cases differ a lot, the models differ by 0.02 on each
    first = result([row(f"c{i}", float(v)) for i, v in enumerate(hard)])
    second = result(
        [row(f"c{i}", float(v + 0.02 + 0.005 * rng.normal())) for i, v in enumerate(hard)]
    )
    cell = compare(first, second).cells["A"]["liver"]["Dice"]
    assert (
        0.015 < cell["interval"][0] < 0.02 < cell["interval"][1] < 0.025
        and cell["p_holm"] == cell["p"] < 1e-6
    )
    back = compare(second, first).cells["A"]["liver"]["Dice"]
    assert back["mean"] == pytest.approx(-cell["mean"]) and back["p"] == cell["p"]


def test_patients_not_cases_are_the_unit():
    first = result([row(f"c{i}", 0.5, patient=f"p{i % 2}") for i in range(20)])
    second = result([row(f"c{i}", 0.6, patient=f"p{i % 2}") for i in range(20)])
    cell = compare(first, second, test="permutation").cells["A"]["liver"]["Dice"]
    assert cell["n"] == 20 and cell["n_patients"] == 2 and cell["p"] == 0.5  # 2 of 4 sign patterns


def test_round_trip_and_refusals(tmp_path):
    one = result([row("a", 0.5), row("b", 0.4)])
    found = compare(one, result([row("a", 0.6), row("b", 0.9)]))
    found.write(tmp_path)
    assert (
        Comparison.load(tmp_path / "comparison.json") == found
        and "nan" not in (tmp_path / "comparison.md").read_text()
    )
    with pytest.raises(MetricError, match="different settings"):
        compare(one, result([row("a", 0.6)], surface=True))
    with pytest.raises(MetricError, match="no scored case"):
        compare(one, result([row("z", 0.6)]))
    with pytest.raises(UsageError, match="did you mean wilcoxon"):
        compare(one, one, test="wilcoxn")
