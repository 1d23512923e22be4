"""The commands that compare two versions: listing of packages, trace of calls, turns."""

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from benchmarks import layout, one_version, versions


@pytest.fixture
def checkout(tmp_path):
    """medjax with two packages that import each other, one of them within a function."""
    for name, text in {
        "__init__.py": "",
        "base.py": "def f():\n    return 1\n",
        "a/__init__.py": "",
        "a/one.py": "from medjax import base\nfrom medjax.b import two\n",
        "b/__init__.py": "",
        "b/two.py": "import medjax.base\n\n\ndef g():\n    from medjax.a.one import two\n",
        "b/three.py": "import json\nfrom medjax.b.two import g\n",
    }.items():
        path = tmp_path / "medjax" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def test_packages_lines_edges_and_circles_are_listed(checkout):
    text = layout.listing(checkout)
    assert "| a | 2 | 2 | 2 | (top) 1, b 1 |" in text
    assert "| b | 3 | 7 | 5 | (top) 1, a 1 |" in text
    inner, top, packages = [line for line in text.splitlines() if line.startswith("- circles")]
    for line, names in ((inner, ("medjax.a.one", "medjax.b.two")), (packages, ("a", "b"))):
        circle = line.partition(": ")[2].split(" -> ")
        assert circle[0] == circle[-1] and set(circle) == set(names)
    assert top.endswith("none") and "medjax 11 in 7 files" in text


def test_this_checkout_has_no_circle(repository):
    text = layout.listing(repository)
    assert all(line.endswith(": none") for line in text.splitlines() if "- circles" in line)
    assert "| scans |" in text and "| (top) |" in text


def test_two_circles_are_both_found():
    graph = {"a": {"b"}, "b": {"a", "c"}, "c": {"d"}, "d": {"c"}}
    found = [set(circle) for circle in layout.circles(graph)]
    assert sorted(map(sorted, found)) == [["a", "b"], ["c", "d"]]
    assert graph["a"] == {"b"} and layout.circles({"a": {"b"}, "b": set()}) == []


def test_calls_of_all_threads_and_opened_files_are_counted(tmp_path):
    (tmp_path / "counted").mkdir()
    source = "def f():\n    return g()\n\n\ndef g():\n    return 1\n"
    (tmp_path / "counted" / "one.py").write_text(source)
    (tmp_path / "other.py").write_text(source)
    names: dict = {}
    for path in (tmp_path / "counted" / "one.py", tmp_path / "other.py"):
        code = compile(path.read_text(), str(path), "exec")
        own: dict = {}
        exec(code, own)
        names[path.name] = own
    trace = one_version.Trace(tmp_path / "counted", str(tmp_path / "counted" / "one.py"))
    names["one.py"]["f"]()
    with trace:
        names["one.py"]["f"]()
        names["other.py"]["f"]()
        thread = threading.Thread(target=names["one.py"]["g"])
        thread.start()
        thread.join()
        (tmp_path / "counted" / "one.py").read_text()
        (tmp_path / "other.py").read_text()
    names["one.py"]["f"]()
    assert trace.found() == {"files": 1, "functions": 2, "calls": 3, "opened": 1}


def test_a_version_that_is_not_the_checkouts_is_refused(checkout, repository):
    words = [sys.executable, "-P", versions.PROGRAM, checkout, checkout, "make"]
    done = subprocess.run(
        list(map(str, words)),
        env={"PYTHONPATH": str(repository), "PATH": "/usr/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1 and "set PYTHONPATH to the checkout" in done.stderr


def test_seconds_of_a_step_leave_out_the_stretch_that_compiles(tmp_path):
    rows = ['{"step": 1, "steps_per_s": 0.1}', '{"step": 2, "steps_per_s": 4}']
    (tmp_path / "system.jsonl").write_text("\n".join([*rows, '{"step": 3, "steps_per_s": 2}']))
    assert one_version.seconds_per_step(tmp_path) == pytest.approx((0.25 + 0.5) / 2)


def test_versions_take_turns(monkeypatch):
    seen = []

    def run(checkout, folder, action, **given):
        seen.append((Path(checkout).name, action))
        return {"seconds": {"old": 4.0, "new": 2.0}[Path(checkout).name]}

    monkeypatch.setattr(versions, "run", run)
    found = versions.compare(Path("old"), Path("new"), 2, {}, ("predict",))
    assert [name for name, action in seen if action == "predict"] == ["old", "new", "new", "old"]
    assert found["predict"] == {"old": [4.0] * 2, "new": [2.0] * 2, "new over old": 0.5}


def test_versions_compare_cpu_seconds_where_an_action_says_them(monkeypatch):
    def run(checkout, folder, action, **given):
        own = {"old": 4.0, "new": 3.0}[Path(checkout).name]
        return {"seconds": 1.0, "cpu_s": own if given == {"image": "ct.nii.gz"} else 0.0}

    monkeypatch.setattr(versions, "run", run)
    size = {"image": "ct.nii.gz"}
    found = versions.compare(Path("old"), Path("new"), 2, size, ("predict",))["predict"]
    assert found["new over old"] == 1.0 and found["new over old, CPU"] == 0.75
    assert found["cpu_s"] == {"old": [4.0] * 2, "new": [3.0] * 2}


@pytest.mark.slow
def test_a_version_is_timed_and_traced(repository, tmp_path):
    versions.run(repository, tmp_path, "make")
    assert versions.run(repository, tmp_path, "prepare")["seconds"] > 0
    ways = layout.ways(repository, tmp_path)
    assert ways["predict"]["files"] > 40 and ways["train"]["calls"] > ways["step"]["calls"] > 10
