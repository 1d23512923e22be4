"""The attack as a command: all 93 rows are there, the judge fails what is wrong, and a fast subset
passes.
"""

import dataclasses

import pytest

from benchmarks.attack import __main__ as attack
from benchmarks.attack import harness, surfaces
from benchmarks.attack.harness import Said
from benchmarks.attack.held_by import HELD_BY

IDS = {
    *(f"D{i}" for i in range(1, 11)),
    *(f"S{i}" for i in range(1, 30)),
    *(f"M{i}" for i in range(1, 15)),
    *(f"P{i}" for i in range(1, 17)),
    *(f"I{i}" for i in range(1, 20)),
    *(f"A{i}" for i in range(1, 6)),
}
FAST = ("D6", "D10", "S9", "S12", "S16", "S29", "M5", "P12", "P14", "I5", "I11", "A4")


def test_every_row_of_the_table_is_there():
    rows = surfaces.load()
    assert set(rows) == IDS and len(rows) == 93
    assert {r.before for r in rows.values()} == {"pass", "weak", "fail"}
    counts = {
        word: sum(r.before == word for r in rows.values()) for word in ("pass", "weak", "fail")
    }
    assert counts == {"pass": 32, "weak": 36, "fail": 25}
    assert all(r.what and r.limit > 0 for r in rows.values())


def test_a_traceback_or_a_signal_is_raw_and_a_sentence_is_not():
    trace = "Traceback (most recent call last):\n  File x\nValueError: y\n"
    assert (
        Said(1, trace).raw
        and Said(139, "").raw
        and Said(-11, "medjax: x").raw
        and Said(None, "").raw
    )
    assert not Said(
        1, trace + "medjax: a: cannot be read. Fix: b"
    ).raw  # a library's own, explained by a sentence
    assert (
        Said(3, "medjax: case failed: OSError: [Errno 28]").raw
        and not Said(3, "medjax: case failed: a.nii: not NIfTI").raw
    )
    assert (
        harness.refused("x", Said(2, "medjax: no"), "no").ok
        and not harness.refused("x", Said(0, "medjax: no"), "no").ok
    )
    assert (
        not harness.refused("x", Said(2, "medjax: no"), "why").ok
        and not harness.fine("x", Said(2, "")).ok
    )


def test_what_changed_is_seen(tmp_path):
    site = harness.Site(tmp_path / "top", tmp_path)
    (path := site.path("a", "x")).write_text("1")
    before = site.tree()
    path.write_text("2")
    site.path("out", "y").write_text("3")
    (site.top / "escaped").symlink_to("a")
    assert site.changed(before, site.root / "out") == ["escaped", "one/two/three/four/a/x"]


def test_verdicts():
    assert (
        attack.verdict([{"ok": True}, {"ok": None}]) == "pass"
        and attack.verdict([{"ok": None}]) == "skip"
    )
    assert attack.verdict([{"ok": True}, {"ok": False}]) == "FAIL"
    assert attack.verdict([]) == "FAIL"  # a row that judges nothing is a defect


@pytest.mark.slow
def test_a_row_that_hangs_has_failed_and_the_next_one_runs(tmp_path):
    rows = surfaces.load()
    hanging, next_one = attack.attack(
        [dataclasses.replace(rows["S12"], limit=0.0), rows["S29"]], tmp_path, workers=1
    )
    assert hanging["verdict"] == "FAIL" and "still running after 0 s" in hanging["seen"][-1]["seen"]
    assert next_one["verdict"] == "pass", attack.line(next_one)


@pytest.mark.slow
def test_a_fast_subset_passes(tmp_path):
    rows = [surfaces.load()[name] for name in FAST]
    results = attack.attack(rows, tmp_path, workers=1)
    failed = [attack.line(r) for r in results if r["verdict"] == "FAIL"]
    assert not failed, "\n".join(failed)
    assert {r["id"] for r in results} == set(FAST) and all(r["verdict"] == "pass" for r in results)


def test_every_row_is_held_by_a_test_that_exists(repository):
    assert set(HELD_BY) == set(surfaces.load())
    for place in HELD_BY.values():
        file, function = place.split("::")
        assert f"def {function}(" in (repository / "tests" / file).read_text(), place
