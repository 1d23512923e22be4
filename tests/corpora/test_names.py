"""Names that files give never become paths, in any layout, list or description; wrong types and
slow expressions are a sentence.
"""

import copy
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medjax import cli
from medjax.corpora import layouts
from medjax.corpora.fix import fix
from medjax.corpora.inputs import Case, find_inputs, usable
from medjax.corpora.layouts import corpus_json
from medjax.corpora.patterns import Pattern
from medjax.corpora.scoring import read_protocol
from medjax.corpora.sources import read_labels, scan_corpus
from medjax.corpora.verify import verify
from medjax.errors import LabelError, MedjaxError, UsageError
from medjax.labels import Corpus
from tests.support.raw import save

SHAPE = (5, 6, 7)
HOSTILE = [
    "../../pwn",
    "/pwn",
    "a/b",
    "..",
    ".hidden",
    "a\\b",
    "a\0b",
    "x" * 300,
    "../" * 40 + "tmp/pwn",
]
LABELS = {"background": 0, "organ": 1}


def _pair(folder, name="a"):
    """An image and a label map in a folder of their own; their paths."""
    label = np.zeros(SHAPE, np.uint8)
    label[2:4, 2:4, 2:4] = 1
    (folder / "files").mkdir(parents=True, exist_ok=True)
    for kind, array in (
        ("image", np.arange(210).reshape(SHAPE).astype(np.float32) + 1),
        ("label", label),
    ):
        save(folder / "files" / f"{name}_{kind}.nii.gz", array)
    return f"files/{name}_image.nii.gz", f"files/{name}_label.nii.gz"


def _monai(name, images):
    rows = [
        {"image": i, "label": k, "name": n}
        for (i, k), n in zip(images, (name, "good"), strict=True)
    ]
    return "list.json", {
        "training": rows,
        "labels": {"0": "background", "1": "organ"},
        "modality": "CT",
    }


def _explicit(name, images):
    rows = {
        n: {"images": [i], "label": k} for (i, k), n in zip(images, (name, "good"), strict=True)
    }
    return "dataset.json", {
        "dataset": rows,
        "labels": LABELS,
        "channel_names": {"0": "CT"},
        "file_ending": ".nii.gz",
    }


def _ingested(name, images):
    corpus = Corpus("Corpus", ((1, ("organ",)),)).to_json()
    rows = [
        {"name": n, "images": [i], "label": k, "patient": "p"}
        for (i, k), n in zip(images, (name, "good"), strict=True)
    ]
    return "corpus.json", {"format": 1, "corpus": corpus, "cases": rows}


DESCRIPTIONS = {"datalist": _monai, "explicit": _explicit, "described": _ingested}


@pytest.fixture
def make(tmp_path):
    """(layout, case name) -> data set folder deep below tmp_path with that case and one called
    good.
    """

    def function(layout, name):
        folder = tmp_path / "deep" / "er" / "data"
        file, content = DESCRIPTIONS[layout](name, (_pair(folder, "a"), _pair(folder, "b")))
        (folder / file).write_text(json.dumps(content))
        return folder

    return function


def _files(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


@pytest.mark.parametrize("layout", DESCRIPTIONS)
@pytest.mark.parametrize("name", HOSTILE)
def test_a_case_with_a_hostile_name_is_left_out_and_named(make, layout, name):
    folder = make(layout, name)
    _, cases, problems = scan_corpus(folder)
    assert [c.name for c in cases] == ["good"]
    assert len(problems) == 1 and "unusable case name" in str(problems[0]), problems
    report = verify(folder, workers=1)
    assert not report.ok and len(report.rows) == 1 and "unusable case name" in report.text()


@pytest.mark.parametrize("layout", DESCRIPTIONS)
@pytest.mark.parametrize("name", ["../../pwn", "../../../pwn", "{abs}/pwn"])
def test_nothing_is_written_outside_of_the_copy_or_the_store(make, tmp_path, capsys, layout, name):
    folder, out = make(layout, name.format(abs=tmp_path)), tmp_path / "out" / "copy"
    before = _files(tmp_path)
    assert cli.main(["verify", str(folder), "--quiet"]) == 4
    assert "unusable case name" in capsys.readouterr().out
    result = fix(folder, out, workers=1)
    assert (
        not result.ok
        and "unusable case name" in result.left_out[0]["why"]
        and result.report.cases == 1
    )
    new = set(_files(tmp_path)) - set(before)
    assert new == {
        "out/copy/dataset.json",
        "out/copy/imagesTr/good_0000.nii.gz",
        "out/copy/labelsTr/good.nii.gz",
    }
    cli.main(["prepare", str(folder), "-o", str(tmp_path / "store"), "--quiet"])
    assert all(p.startswith(("store/", "out/copy/")) for p in set(_files(tmp_path)) - set(before))
    assert not list(tmp_path.rglob("pwn*"))


@pytest.mark.parametrize("field", ["name", "store"])
@pytest.mark.parametrize("name", HOSTILE)
def test_a_corpus_with_a_hostile_name_is_refused(make, tmp_path, capsys, field, name):
    folder = make("described", "case")
    said = json.loads((folder / "corpus.json").read_text())
    said["corpus"][field] = name
    (folder / "corpus.json").write_text(json.dumps(said))
    with pytest.raises(LabelError, match="unusable corpus name"):
        scan_corpus(folder)
    assert cli.main(["verify", str(folder), "--quiet"]) == 4
    assert "unusable corpus name" in capsys.readouterr().out
    before = _files(tmp_path)
    assert (
        cli.main(["prepare", str(folder), "-o", str(tmp_path / "deep" / "store"), "--quiet"]) == 2
    )
    assert _files(tmp_path) == before


@pytest.mark.parametrize("file", ["dataset.json", "medjax.json", "list.json"])
@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_in_a_description_is_checked(make, file, name):
    folder = make("explicit" if file == "dataset.json" else "datalist", "case")
    path = folder / file
    said = json.loads(path.read_text()) if path.is_file() else {}
    said |= {"medjax": {"name": name}} if file == "dataset.json" else {"name": name}
    path.write_text(json.dumps(said))
    with pytest.raises(LabelError, match="unusable corpus name"):
        scan_corpus(folder)


@pytest.mark.parametrize("layout", sorted(set(layouts.LAYOUTS)))
def test_no_layout_can_forget_the_check(tmp_path, monkeypatch, layout):
    """Whatever a layout returns, present or future, passes through `scan_corpus`."""
    (tmp_path / "x").touch()
    wrong = (
        Corpus("C", ((1, ("organ",)),)),
        (Case("../x", ("i",), patient="p"), Case("good", ("i",), patient="p")),
        [],
    )
    monkeypatch.setattr(layouts.LAYOUTS[layout], "scan", lambda path: wrong)
    _, cases, problems = scan_corpus(tmp_path, layout)
    assert [c.name for c in cases] == ["good"] and "unusable case name" in str(problems[0])


@pytest.mark.parametrize("name", HOSTILE)
def test_lists_of_scans_are_checked(tmp_path, name):
    image, _ = _pair(tmp_path)
    (tmp_path / "a.json").write_text(json.dumps([{"image": image, "name": name}]))
    with pytest.raises(UsageError, match="unusable case name of entry 1"):
        find_inputs(tmp_path / "a.json")
    if "\0" not in name:
        (tmp_path / "a.csv").write_text(f"image,name\n{image},{name}\n")
        with pytest.raises(UsageError, match="unusable case name of line 2"):
            find_inputs(tmp_path / "a.csv")


@settings(deadline=None, max_examples=300)
@given(st.text(max_size=300))
def test_a_usable_name_stays_in_its_folder(name):
    good, problems = usable([Case(name, ("i",), patient="p")], "list")
    assert len(good) + len(problems) == 1
    if good:
        place = os.path.join("/store/corpus", name)
        assert (
            os.path.dirname(os.path.normpath(place)) == "/store/corpus"
            and len(os.fsencode(name)) <= 255
            and "\0" not in name
        )


def test_odd_names_that_are_legal_are_kept(make):
    for name in ("-rf", "new\nline", "\x1b[2Jx", "=cmd", "<script>", "[x]*?", "CON", "x" * 255):
        assert [c.name for c in scan_corpus(make("datalist", name))[1]] == sorted(["good", name])


def test_control_characters_are_printed_as_escapes(make, capsys):
    folder = make("datalist", "a\x1b[2J\nb")
    said = json.loads((folder / "list.json").read_text())
    said["labels"]["1"] = "org\x1b]0;x\x07an"
    said["training"][0]["label"] = "files/gone\x1b.nii.gz"
    (folder / "list.json").write_text(json.dumps(said))
    (folder / "medjax.json").write_text(json.dumps({"name": "corpus\x1b[31m"}))
    for arguments in (
        ["verify", str(folder)],
        ["verify", str(folder), "--fix", str(folder.parent / "out")],
        ["overlap", str(folder)],
    ):
        cli.main(arguments)
        shown = "".join(capsys.readouterr())
        assert "\x1b" not in shown and "\x07" not in shown
        assert arguments[0] == "overlap" or "\\x1b" in shown


def test_a_description_is_not_written_over_a_foreign_file(tmp_path):
    corpus, case = Corpus("C", ((1, ("organ",)),)), Case("a", ("i",), patient="p")
    (tmp_path / "corpus.json").write_text('{"corpus": "my own notes"}')
    with pytest.raises(UsageError, match="did not write"):
        corpus_json.write(tmp_path, corpus, [case])
    assert (tmp_path / "corpus.json").read_text() == '{"corpus": "my own notes"}'
    corpus_json.write(tmp_path / "new", corpus, [case])
    corpus_json.write(tmp_path / "new", corpus, [case])  # its own it replaces
    with pytest.raises(UsageError, match="unusable case name"):
        corpus_json.write(tmp_path / "other", corpus, [Case("../a", ("i",), patient="p")])
    assert not (tmp_path / "other").exists()


# -- expressions of a data set ---------------------------------------------------------------------

SLOW = [
    r"^(a+)+$|^hip",
    r"^(a|a)*$",
    r"^(a|aa)+$",
    r"(x+x+)+y",
    r"^((a*)*)*b",
    r"(\w+\s?)*!$",
    r"(.*a){25}",
    r"^(([a-z])+.)+[A-Z]([a-z])+$",
]
HUGE = [
    "(((((a{1000}){1000}){1000}){1000}){1000})",
    "(?:x{2000}){2000}",
    "a{99999999999}",
    "(" * 1500 + ")" * 1500,
    "(?R)",
    "(",
    "[",
    5,
    ["a"],
]


@pytest.mark.parametrize("pattern", SLOW + HUGE)
def test_an_expression_of_patients_ends(make, tmp_path, pattern):
    """In a process with a limit of memory and time, so that a failure is a failure and no hang."""
    folder = make("explicit", "a" * 60 + "!")
    said = json.loads((folder / "dataset.json").read_text()) | {
        "medjax": {"patients": {"regex": pattern}}
    }
    (folder / "dataset.json").write_text(json.dumps(said))
    script = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))\n"
        "from medjax.corpora.sources import scan_corpus\nfrom medjax.errors import MedjaxError\n"
        "try: print([c.patient for c in scan_corpus(sys.argv[1])[1]])\n"
        "except MedjaxError as error: print('refused:', error)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script, str(folder)], capture_output=True, text=True, timeout=60
    )
    assert ran.returncode == 0 and (ran.stdout.startswith("refused: ") or "['" in ran.stdout), (
        ran.stderr[-500:]
    )
    if ran.stdout.startswith("refused"):
        assert "dataset.json" in ran.stdout and "patients" in ran.stdout


def test_the_budget_is_for_all_names_together(monkeypatch):
    monkeypatch.setattr("medjax.corpora.patterns.PER_NAME_S", 0.05)
    with pytest.raises(
        UsageError,
        match=r"list\.json: the \"patients\" expression takes too long for 'aaa"
        r".*found \^\(a\|a\)\*\$",
    ):
        Pattern(r"^(a|a)*$", '"patients"', "list.json", UsageError).search("a" * 200 + "!")
    pattern = Pattern(r"^case_(\d+)_[a-z]{1,9}$", '"patients"')
    assert [pattern.search(f"case_{n}_x")[1] for n in range(500)] == [str(n) for n in range(500)]


# -- values of other types than described ----------------------------------------------------------

STRANGE = st.sampled_from(
    [
        None,
        True,
        -1,
        5,
        1e300,
        "",
        "x",
        "a\0b",
        "../x",
        [],
        [[]],
        [5],
        {},
        {"a": {}},
        {"0": 1},
        [None, {}],
        "x" * 5000,
    ]
)


def _places(value, path=()):
    yield path
    for key, inner in (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    ):
        yield from _places(inner, (*path, key))


def _with(value, path, new):
    if not path:
        return new
    value = copy.copy(value)
    value[path[0]] = _with(value[path[0]], path[1:], new)
    return value


BLOCK = {
    "annotated": ["organ"],
    "modality": "CT",
    "patients": {"good": "p"},
    "regions": {"all": [1]},
    "name": "N",
    "meanings": {"organ": "o"},
    "twins": [{"corpus": "B", "cases": "(good)", "other": "\\1"}],
    "tolerance_mm": {"organ": 2.0},
}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("strange")
    return folder, (_pair(folder, "a"), _pair(folder, "b"))


def _descriptions(images):
    """File -> what it holds, with every field that is known."""
    for function in DESCRIPTIONS.values():
        file, content = function("case", images)
        yield file, content | {"medjax": BLOCK} if file == "dataset.json" else content
    yield (
        "dataset.json",
        {
            "training": [{"image": i, "label": k} for i, k in images],
            "labels": {"0": "background", "1": "organ"},
            "modality": {"0": "CT"},
            "numTraining": 2,
        },
    )
    yield (
        "medjax.json",
        BLOCK
        | {
            "labels": LABELS,
            "channels": ["CT"],
            "layout": "pairs",
            "select": "label",
            "absent": "background",
        },
    )


@settings(deadline=None, max_examples=400)
@given(st.data())
@pytest.mark.slow
def test_any_value_of_a_wrong_type_is_a_sentence(pairs, data):
    from medjax.corpora.twins import by_name, rules_of

    folder, images = pairs
    for old in folder.glob("*.json"):
        old.unlink()
    file, content = data.draw(st.sampled_from(list(_descriptions(images))))
    place = folder / "files" if file == "medjax.json" else folder
    for _ in range(data.draw(st.integers(1, 2))):
        content = _with(
            content,
            data.draw(st.sampled_from(sorted(_places(content), key=str))),
            data.draw(STRANGE),
        )
    (place / file).write_text(json.dumps(content))
    try:
        for use in (scan_corpus, read_protocol, read_labels):
            try:
                use(place)
            except MedjaxError as error:
                assert "\n" not in str(error)
        try:
            cases = {"A": (Case("good", ("i",)),), "B": (Case("good", ("i",)),)}
            by_name(cases, {"A": rules_of(place)})
        except MedjaxError:
            pass
    finally:
        (place / file).unlink()


# -- twin rules, splits, published trees -----------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ({"corpus": "B", "cases": r"^(a+)+b(\1)*$(", "other": "x"}, "not a regular expression"),
        ({"corpus": "B", "cases": "(a)", "other": r"\2"}, "uses a group that its expression lacks"),
        ({"corpus": "B", "cases": "(a)", "other": r"\0"}, "uses a group that its expression lacks"),
        ({"corpus": "B", "cases": 5, "other": "x"}, "fields are no text"),
        ({"corpus": "B", "cases": "(a)", "other": ["x"]}, "fields are no text"),
        ({"corpus": "B", "cases": "(a)"}, "not a twin rule"),
        (5, "not a twin rule"),
    ],
)
def test_twin_rules_that_make_no_sense(rule, words):
    from medjax.corpora.twins import read_rules

    with pytest.raises(UsageError, match=words):
        read_rules([rule])


def test_a_twin_rule_that_adds_to_a_word_or_takes_too_long(monkeypatch):
    from medjax.corpora.twins import Twin

    assert Twin("B", r"a(\d*)(x)?", r"b\1\2", 3).other_name("a4") == "b7"
    with pytest.raises(UsageError, match="adds to what is no number"):
        Twin("B", "(a)", r"\1", 3).other_name("a")
    monkeypatch.setattr("medjax.corpora.patterns.PER_NAME_S", 0.05)
    with pytest.raises(UsageError, match="twin rule for B expression takes too long"):
        Twin("B", "(a|a)*", "x").other_name("a" * 200 + "!")


@pytest.mark.parametrize(
    "content",
    [
        "5",
        "[5]",
        '[{"train": ["a"]}]',
        '[{"train": "a", "val": []}]',
        '[{"train": [5], "val": []}]',
        "[" * 99_999,
        "{",
    ],
)
def test_splits_that_are_none(tmp_path, content):
    from medjax.corpora.splits import read_splits

    (tmp_path / "s.json").write_text(content)
    with pytest.raises(
        UsageError, match=r"s\.json: (not splits|JSON that is nested too deeply|damaged JSON)"
    ):
        read_splits(tmp_path / "s.json", {"A": (Case("a", ("i",)),)})


def test_a_bare_name_of_two_corpora_is_not_guessed(tmp_path):
    from medjax.corpora.splits import read_splits

    cases = {"A": (Case("a", ("i",)), Case("b", ("i",))), "B": (Case("a", ("i",)),)}
    (tmp_path / "s.json").write_text('[{"train": ["A/a", "b"], "val": ["B/a"]}]')
    assert read_splits(tmp_path / "s.json", cases) == [{"train": ["A/a", "A/b"], "val": ["B/a"]}]
    (tmp_path / "s.json").write_text('[{"train": ["a"], "val": ["b"]}]')
    with pytest.raises(UsageError, match=r'in several corpora.*write "CORPUS/a"'):
        read_splits(tmp_path / "s.json", cases)


def test_links_that_lead_back_end_the_search(tmp_path):
    from data_pipelines.find import _tree

    for name in ("a", "b"):
        (tmp_path / "raw" / name).mkdir(parents=True)
        (tmp_path / "raw" / name / "x.nii.gz").touch()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "y.nii.gz").touch()
    (tmp_path / "raw" / "c").symlink_to(tmp_path / "elsewhere")  # followed
    (tmp_path / "raw" / "a" / "up").symlink_to(tmp_path / "raw")
    (tmp_path / "raw" / "a" / "over").symlink_to(tmp_path / "raw" / "b")
    (tmp_path / "raw" / "b" / "over").symlink_to(tmp_path / "raw" / "a")
    (tmp_path / "raw" / "self").symlink_to("self")
    found = sorted(
        path
        for path, folder in _tree(tmp_path / "raw").items()
        if not folder and path.endswith(".gz")
    )
    assert found == ["a/over/x.nii.gz", "a/x.nii.gz", "b/over/x.nii.gz", "b/x.nii.gz", "c/y.nii.gz"]
