"""A class over the data sets that have it: hand-computed numbers, the published tables, and the
command on evaluations as written.
"""

import json

import pytest

from medjax import cli
from medjax.errors import UsageError
from medjax.labels import Corpus
from medjax.metrics.aggregate import Row
from medjax.metrics.counts import Counts
from medjax.metrics.result import Pair, build_result
from medjax_verbs import combined as combine

ORGANS = ("liver", "left kidney", "right kidney", "gallbladder", "pancreas", "spleen", "stomach")
PUBLISHED = {  # M4oE's Tables 2 and 3, Dice in percent
    "FLARE22": dict(zip(ORGANS, (97.08, 94.62, 94.92, 79.38, 76.99, 95.74, 89.78), strict=True)),
    "AMOS-CT": dict(zip(ORGANS, (95.59, 88.72, 88.31, 73.94, 61.39, 90.59, 82.78), strict=True)),
    "AMOS-CT+MRI": dict(
        zip(ORGANS, (94.38, 89.20, 88.16, 76.37, 69.12, 91.23, 85.34), strict=True)
    ),
    "ATLAS23": {"liver": 89.43, "tumour": 57.53},
}
TABLE_4 = dict(
    zip((*ORGANS, "tumour"), (94.12, 90.85, 90.46, 76.56, 69.16, 92.52, 85.97, 57.53), strict=True)
)


def test_the_last_row_of_table_4_follows_from_tables_2_and_3():
    means, overall = combine.over_sets(PUBLISHED)
    assert means == pytest.approx(TABLE_4, abs=0.01)  # the paper truncates in places
    assert overall == pytest.approx(82.15, abs=0.01)
    # means of its rows as printed: 89.78, 83.04, 84.83 and 73.48
    assert combine.of_sets(PUBLISHED) == pytest.approx(331.13 / 4, abs=0.01)


def test_sets_and_classes_count_alike():
    means, overall = combine.over_sets(
        {"A": {"liver": 0.9, "tumour": 0.2}, "B": {"liver": 0.6}, "C": {"liver": 0.3}}
    )
    assert means == pytest.approx({"liver": 0.6, "tumour": 0.2}) and overall == pytest.approx(
        0.4
    )  # the mean over cells is 0.5
    with pytest.raises(UsageError, match="no score"):
        combine.over_sets({"A": {}})


def _evaluation(folder, scores):
    """corpus -> class -> Dice of its cases, written as an evaluation."""
    corpora = {
        name: Corpus(name, tuple((i, (c,)) for i, c in enumerate(classes, 1)))
        for name, classes in scores.items()
    }
    rows, counts = [], Counts(1, 1, 1, 1)
    for corpus, classes in scores.items():
        for name, values in classes.items():
            for k, dice in enumerate(values):
                status, score = ("absent", {}) if dice is None else ("found", {"Dice": dice})
                rows.append(Row(f"case{k}", f"case{k}", corpus, name, status, score, counts))
    pairs = [(row.corpus, Pair(row.case, "r", "p")) for row in rows if row.name == "liver"]
    result = build_result(
        corpora,
        {n: c.classes for n, c in corpora.items()},
        rows,
        pairs,
        [],
        [],
        {"surface": False},
        None,
        10,
        0,
    )
    result.write(folder)


@pytest.fixture
def runs(tmp_path):
    _evaluation(
        tmp_path / "a" / "evaluation",
        {"FLARE": {"liver": [0.9, 0.7]}, "ATLAS": {"liver": [0.4, 0.4], "tumour": [0.1, 0.3]}},
    )
    amos = {
        "AMOS_CT": {"liver": [0.6, 0.6, 0.6]},
        "AMOS_MR": {"liver": [0.2], "tumour": [None]},
        "FLARE": {"liver": [0.5]},
    }
    _evaluation(tmp_path / "b", amos)
    return tmp_path


def test_evaluations_meet_in_one_table(runs, capsys):
    given = [
        "combine",
        str(runs / "a"),
        str(runs / "b"),
        "--pool",
        "AMOS=AMOS_CT,AMOS_MR",
        "-o",
        str(runs / "out.json"),
    ]
    assert cli.main(given) == 0
    found = json.loads((runs / "out.json").read_text())
    a, b = (f"{runs / name}: FLARE" for name in "ab")  # evaluated twice, so each column says where
    assert found["sets"][a] == {"liver": pytest.approx(0.8)} and found["sets"][b] == {"liver": 0.5}
    assert found["sets"]["AMOS"] == {
        "liver": pytest.approx(0.5)
    }  # (3 x 0.6 + 0.2) / 4, by cases; no tumour was scored
    assert found["classes"] == pytest.approx({"liver": (0.8 + 0.4 + 0.5 + 0.5) / 4, "tumour": 0.2})
    assert found["mean"] == pytest.approx((0.55 + 0.2) / 2)
    assert found["mean_of_sets"] == pytest.approx((0.8 + 0.5 + 0.3 + 0.5) / 4)
    assert "| **mean over classes** |" in (shown := capsys.readouterr().out) and "0.3750 |" in shown
    assert "Mean of the data sets' means: 0.5250" in shown
    assert cli.main(["combine", f"{runs / 'a'}=ATLAS", str(runs / "b"), "--classes", "liver"]) == 0
    shown = capsys.readouterr().out
    assert (
        "tumour" not in shown and "| Dice | ATLAS | AMOS_CT | AMOS_MR | FLARE | mean" in shown
    )  # FLARE is b's alone


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"metric": "Dise"}, "did you mean Dice"),
        ({"classes": ["livr"]}, "did you mean liver"),
        ({"folders": {"a": ["ATLS"]}}, "did you mean ATLAS"),
        ({"pools": {"AMOS": ["AMOS_CT", "AMOS_PT"]}}, "all corpora of 'AMOS'"),
    ],
)
def test_names_that_no_evaluation_has_are_refused(runs, more, message):
    with pytest.raises(UsageError, match=message):
        combine.read(
            {runs / k: v for k, v in more.pop("folders", {"a": [], "b": []}).items()}, **more
        )
    with pytest.raises(UsageError, match="no evaluation here"):
        combine.read({runs: []})
