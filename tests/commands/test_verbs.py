"""Every verb: its arguments, what it hands on, and what it prints, called within this process."""

import argparse
import dataclasses
import json

import numpy as np
import pytest

from data_pipelines.verbs import ingest
from medjax import cli, main
from medjax.commands import (
    calibrate,
    evaluate,
    export,
    import_,
    info,
    overlap,
    phantom,
    plan,
    postprocess,
    predict,
    prepare,
    preview,
    report,
    train,
    verify,
)
from medjax.infer import cases
from medjax.metrics.counts import Counts
from medjax.prepare import store
from medjax.report import prediction
from medjax.runs import predict as predictions
from medjax.runs import stages
from medjax.runs.exchange import export as exports
from medjax.runs.exchange import imported
from medjax.weights.formats import archive
from medjax_verbs import add_modality, combine, gates, grow, sides
from medjax_verbs import gate_weights as measured
from tests.metrics.test_compare import result as scores
from tests.metrics.test_compare import row
from tests.support.configs import typed
from tests.support.raw import save, write_corpus
from tests.support.run import make_run

# verb: its module, an example of its arguments, and what is parsed from it
VERBS = {
    "add-modality": (
        add_modality,
        "RUN --data A B --workdir W",
        {"old": "RUN", "data": ["A", "B"], "begin": "copy", "steps": None, "freeze": False},
    ),
    "calibrate": (
        calibrate,
        "RUN --voxels 100",
        {"run_folder": "RUN", "voxels": 100, "checkpoint": "", "overwrite": False},
    ),
    "combine": (
        combine,
        "a b=X,Y --pool P=X --pool Q=Y",
        {"evaluations": ["a", "b=X,Y"], "metric": "Dice", "pool": ["P=X", "Q=Y"]},
    ),
    "evaluate": (
        evaluate,
        "--reference R --prediction P -o O --group g=a,b --no-surface",
        {"group": ["g=a,b"], "no_surface": True, "resamples": 10_000, "test": "wilcoxon"},
    ),
    "export": (
        export,
        "RUN -o x.medjax",
        {"stablehlo": False, "orbax": False, "platforms": ("cpu", "cuda", "tpu")},
    ),
    "gates": (gates, "RUN", {"batches": 8, "side": "val", "out": None}),
    "import": (
        import_,
        "w.pth --family vit -o RUN --patch 8 8 8 --dataset a.json b.json",
        {"patch": [8, 8, 8], "dataset": ["a.json", "b.json"], "configuration": "3d_fullres"},
    ),
    "ingest": (ingest, "amos22", {"corpus": "amos22", "forwards": True}),
    "info": (info, "", {"run_folder": "", "json": False, "corpora": False}),
    "overlap": (overlap, "A --against B C", {"folders": ["A"], "against": ["B", "C"]}),
    "phantom": (phantom, "OUT", {"cases": 10, "seed": 0}),
    "plan": (
        plan,
        "A --spacing-mm 3 1 1",
        {"folders": ["A"], "spacing_mm": [3, 1, 1], "preset": "default", "output": "plan.json"},
    ),
    "postprocess": (
        postprocess,
        "--reference R --prediction P",
        {"labels": "", "model": "", "output": ""},
    ),
    "predict": (
        predict,
        "-m a b -i s.nii -o O --continue",
        {"model": ["a", "b"], "continue_": True, "overlap": None, "num_parts": 1, "tta": ""},
    ),
    "prepare": (
        prepare,
        "A -o STORE --cases x y",
        {"cases": ["x", "y"], "orientation": "RAS", "spacing_rule": "median", "packed": False},
    ),
    "preview": (preview, "STORE", {"samples": 4, "variants": 3, "patch": None}),
    "report": (report, "OUT", {"viewer_cases": 8, "budget_mb": 60.0, "overwrite": False}),
    "sides": (
        sides,
        "A -o OUT --classes kidney lung",
        {"corpus": "A", "classes": ["kidney", "lung"]},
    ),
    "train": (train, "configs/a.py:b", {"config": "configs/a.py:b"}),
    "verify": (verify, "A B --layout msd", {"folders": ["A", "B"], "layout": "msd", "fix": ""}),
}
REQUIRED = {
    "add-modality": "RUN, --data, --workdir",
    "calibrate": "RUN",
    "combine": "FOLDER[=CORPUS,CORPUS]",
    "evaluate": "--reference, --prediction, -o/--output",
    "export": "run_folder, -o/--output",
    "gates": "RUN",
    "import": "weights, --family, -o/--output",
    "overlap": "folders",
    "phantom": "output",
    "postprocess": "--reference, --prediction",
    "predict": "-m/--model, -i/--input, -o/--output",
    "prepare": "folders, -o/--output",
    "preview": "store",
    "report": "folder",
    "sides": "corpus, -o/--output, --classes",
    "verify": "PATH",
}


@pytest.mark.parametrize("verb", VERBS)
def test_arguments(verb):
    module, given, expected = VERBS[verb]
    parser = argparse.ArgumentParser()
    verbs = parser.add_subparsers()
    module.add(verbs)
    assert list(verbs.choices) == [verb]
    parsed = vars(parser.parse_args([verb, *given.split()]))
    assert {name: parsed[name] for name in expected} == expected
    assert parsed["run"].__module__ == module.__name__


@pytest.mark.parametrize("verb", VERBS)
def test_what_is_required(verb, capsys):
    if verb in ("info", "ingest", "plan", "train"):
        assert verb not in REQUIRED
        return
    assert cli.main([verb]) == 2
    expected = f"medjax {verb}: the following arguments are required: {REQUIRED[verb]}."
    assert expected in capsys.readouterr().err


def test_a_training_needs_a_config(capsys):
    assert cli.main(["train"]) == 2
    assert "no config given. Fix: add --config=" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("plan", "nothing to plan for"),
        ("plan A --import b", "nothing to plan for"),
        ("plan A --preset resenc_s", "invalid choice: 'resenc_s'"),
        ("combine a --pool x", "not a pool; found x; expected NAME=CORPUS,CORPUS"),
        ("combine a --pool =x", "not a pool"),
        ("postprocess --reference a --prediction b", "no place for the choice"),
        ("postprocess --reference a --prediction b -m c -o d", "no place for the choice"),
        ("export a -o b.medjax --orbax --stablehlo", "not allowed with argument"),
        ("export a -o b.medjax --licence CC0", "unusable licence; found CC0"),
        ("import a --family b -o c --model merging", "not KEY=VALUE; found merging"),
        ("import a --family vitt -o c", "did you mean vit?"),
        ("info --accept", "no run folder to accept"),
        ("ingest", "no corpus named. Fix: medjax ingest CORPUS --help"),
        ("ingest kits20 --describe", "no corpus 'kits20' in the catalogue. Fix: did you mean kits"),
        ("ingest amos22", "nothing to do; expected --raw"),
        ("info Nobody --corpora", "no corpus 'Nobody' in the catalogue"),
        ("preview none", "no prepared cases"),
        ("report none", "none"),
        ("verify none --fix out", "none"),
        ("gates a --side test", "invalid choice: 'test'"),
        ("predict -m a -i b -o c --tta flip", "invalid choice: 'flip'"),
        ("verify A --layot msd", "did you mean --layout?"),
    ],
)
def test_usage_errors_exit_2(tmp_path, monkeypatch, capsys, given, words):
    monkeypatch.chdir(tmp_path)
    assert cli.main(given.split()) == 2
    assert words in capsys.readouterr().err and list(tmp_path.iterdir()) == []


@pytest.fixture
def raw(tmp_path):
    return write_corpus(tmp_path / "Task01_Blobs", n=2, shape=(8, 10, 9))


def test_verify_and_correct(raw, tmp_path, capsys):
    assert cli.main(["verify", str(raw), "--fix", str(tmp_path / "copy"), "--quiet"]) == 0
    said = capsys.readouterr().out
    assert "Blobs: verified, 0 errors, 0 warnings" in said
    assert len(list((tmp_path / "copy" / "labelsTr").iterdir())) == 2
    twins = [str(raw), str(raw), "--fix", str(tmp_path / "other"), "--quiet"]
    assert cli.main(["verify", *twins]) == 2
    assert "two data sets are called 'Task01_Blobs'" in capsys.readouterr().err


def test_plan_prepare_and_preview(raw, tmp_path, capsys):
    made, out = tmp_path / "plan.json", tmp_path / "store"
    assert cli.main(["plan", str(raw), "-o", str(made), "--quiet"]) == 0
    said = capsys.readouterr().out
    assert f"--config.data.plan={made} --config.data.configuration=3d_fullres" in said
    assert json.loads(made.read_text())["spacing_mm"]["Blobs"] == [1, 1, 1]
    given = ["prepare", str(raw), "-o", str(out), "--plan", str(made), "--quiet"]
    assert cli.main([*given, "--cases", "case_00"]) == 2
    assert "no case 'case_00' in these data sets" in capsys.readouterr().err
    assert cli.main([*given, "--cases", "case_001"]) == 0
    assert "Blobs: 1 prepared, 0 already there, 0 failed" in capsys.readouterr().out
    assert store.list_cases(out, "Blobs") == ["case_001"]
    assert cli.main(given) == 0
    assert "Blobs: 1 prepared, 1 already there, 0 failed" in capsys.readouterr().out
    assert cli.main(["preview", str(out), "--corpus", "Blob"]) == 2
    assert "did you mean Blobs" in capsys.readouterr().err
    given = ["--samples", "1", "--variants", "0", "--patch", "4", "4", "4"]
    assert cli.main(["preview", str(out), *given]) == 0
    names = [line.rsplit("/", 1)[1] for line in capsys.readouterr().out.split()]
    assert names == ["Blobs_cases.png", "Blobs_samples.png"]
    assert all((out / "preview" / name).is_file() for name in names)


def test_a_plan_says_what_mirroring_does_to_sides(tmp_path, capsys):
    labels = {"left lung": 1, "right lung": 2}
    raw = write_corpus(tmp_path / "Task01_Two", n=2, shape=(9, 11, 10), labels=labels)
    given = ["plan", str(raw), "-o", str(tmp_path / "plan.json"), "--quiet"]
    assert cli.main(given) == 0
    said = "left and right: exchanged in mirrored images: left lung and right lung"
    assert said in capsys.readouterr().out
    one = write_corpus(tmp_path / "Task02_One", n=2, shape=(9, 11, 10), labels={"lung left": 1})
    assert cli.main(["plan", str(raw), str(one), *given[2:]]) == 0
    said = "left and right: not mirrored, because lung left of One has no annotated partner"
    assert said in capsys.readouterr().out


def test_grids_and_schemes_by_flag(tmp_path, capsys):
    raw = write_corpus(tmp_path / "Task01_Two", n=2, shape=(9, 11, 10), channels=("CT", "organ"))
    schemes = ["--intensity", "CT=window:-100,100", "organ=mask"]
    made, out = tmp_path / "plan.json", tmp_path / "store"
    given = ["plan", str(raw), "-o", str(made), "--quiet", "--size", "8", "8", "6", *schemes]
    assert cli.main(given) == 0
    said = capsys.readouterr().out
    assert "resampled to 8x8x6 voxels, as asked" in said and "Channel organ: a mask" in said
    plan = json.loads(made.read_text())
    assert plan["size"] == [8, 8, 6] and plan["intensity"]["CT"]["clip"] == [-100, 100]
    prepared = ["prepare", str(raw), "-o", str(out), "--quiet"]
    assert cli.main([*prepared, "--plan", str(made), *schemes]) == 2
    assert "--plan decides size and intensity" in capsys.readouterr().err
    assert cli.main([*prepared, "--plan", str(made)]) == 0
    first = store.open_case(out / "Two" / "case_000")
    assert first.meta["shape"] == [8, 8, 6] and first.meta["masks"] == [1]
    native = ["--spacing-rule", "native", "--crop", "none", *schemes]
    assert cli.main([*prepared, *native]) == 0
    assert store.open_case(out / "Two" / "case_000").meta["shape"] == [9, 11, 10]
    pictures = ["--samples", "1", "--variants", "1", "--patch", "8", "8", "8"]
    assert cli.main(["preview", str(out), *pictures]) == 0
    assert cli.main([*prepared, "--size", "8", "8"]) == 2
    assert "--size: expected 3 arguments" in capsys.readouterr().err
    assert cli.main([*prepared, "--size", "8", "8", "0"]) == 2
    assert "three whole numbers of voxels" in capsys.readouterr().err


def test_a_file_that_is_no_plan_is_not_replaced(raw, tmp_path, capsys):
    (tmp_path / "notes.json").write_text("{}")
    assert cli.main(["plan", str(raw), "-o", str(tmp_path / "notes.json"), "--quiet"]) == 2
    assert "is no plan of medjax" in capsys.readouterr().err
    assert (tmp_path / "notes.json").read_text() == "{}"


def test_overlap(raw, tmp_path, capsys):
    other = write_corpus(
        tmp_path / "Task02_Other",
        n=1,
        shape=(8, 10, 9),
        medjax={"twins": [{"corpus": "Blobs", "cases": "(.*)", "other": "\\1"}]},
    )
    assert cli.main(["overlap", str(raw), str(other)]) == 0
    assert "1 scans shared among 3 cases; by names only" in capsys.readouterr().out
    assert cli.main(["overlap", str(raw), "--against", str(other), "--json"]) == 4
    [pair] = json.loads(capsys.readouterr().out)
    assert {pair["first"], pair["second"]} == {"Blobs/case_000", "Other/case_000"}
    assert cli.main(["overlap", str(raw), str(raw)]) == 2


def test_phantom(tmp_path, capsys, monkeypatch):
    found = []

    def write(folder, *, seed, cases):
        found.append((folder, seed, cases))
        return [folder / "ct", folder / "mr"]

    monkeypatch.setattr("medjax.phantom.corpora.write_corpora", write)
    assert cli.main(["phantom", str(tmp_path), "--cases", "3", "--seed", "7"]) == 0
    assert found == [(tmp_path, 7, 3)]
    assert capsys.readouterr().out.split() == [str(tmp_path / "ct"), str(tmp_path / "mr")]


def test_combine(tmp_path, capsys):
    rows = [row("a", 0.8), row("b", 0.6)]
    rows += [row("a", 0.5, name="tumour"), row("b", None, name="tumour")]
    counted = [dataclasses.replace(r, counts=Counts(1, 1, 1, 1)) for r in rows]
    scores(counted).write(tmp_path / "e")
    given = ["combine", str(tmp_path / "e"), "-o", str(tmp_path / "means.json")]
    assert cli.main(given) == 0
    table = capsys.readouterr().out
    assert "| liver | 0.700" in table.replace("**", "")
    found = json.loads((tmp_path / "means.json").read_text())
    assert found["metric"] == "Dice" and found["mean"] == pytest.approx(0.6)
    assert cli.main([*given, "--classes", "spleen"]) == 2 and "spleen" in capsys.readouterr().err


def test_evaluate_and_report(tmp_path, capsys):
    truth = np.zeros((4, 8, 8), np.uint8)
    truth[1:3, 2:6, 2:6] = 1
    found = truth.copy()
    found[1:3, 2:6, 4:6] = 0
    save(tmp_path / "labels" / "a.nii.gz", truth)
    save(tmp_path / "masks" / "a.nii.gz", found)
    spec = {"labels": {"background": 0, "liver": 1}, "channel_names": {"0": "CT"}}
    (tmp_path / "dataset.json").write_text(json.dumps(spec))
    pair = ["--reference", str(tmp_path / "labels"), "--prediction", str(tmp_path / "masks")]
    given = [*pair, "-o", str(tmp_path / "out"), "--no-surface", "--no-report", "--quiet"]
    assert cli.main(["evaluate", *given, "--resamples", "10"]) == 0
    assert "| liver | 0.667" in capsys.readouterr().out  # 2 * 16 / (16 + 32)
    assert not (tmp_path / "out" / "report.html").exists()
    assert cli.main(["report", str(tmp_path / "out"), "--viewer-cases", "0"]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "out" / "report.html")
    wrong = {
        "--group=liver": "not a group; found liver",
        "--tolerance-mm=-1": "not a tolerance; found -1",
        "--tolerance-mm=livr=2": "did you mean liver?",
    }
    for flag, words in wrong.items():
        assert cli.main(["evaluate", *given, flag]) == 2
        assert words in capsys.readouterr().err


def test_postprocess_of_a_folder_without_pairs(tmp_path, capsys):
    (tmp_path / "dataset.json").write_text(
        '{"labels": {"background": 0, "a": 1}, "channel_names": {"0": "CT"}}'
    )
    save(tmp_path / "labels" / "x.nii.gz", np.zeros((2, 3, 4), np.uint8))
    save(tmp_path / "masks" / "y.nii.gz", np.zeros((2, 3, 4), np.uint8))
    given = ["--reference", str(tmp_path / "labels"), "--prediction", str(tmp_path / "masks")]
    assert cli.main(["postprocess", *given, "-o", str(tmp_path / "rules.json")]) == 2
    assert "no prediction has the name of a reference" in capsys.readouterr().err
    assert not (tmp_path / "rules.json").exists()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("verbs") / "run")


def test_info_of_a_run(run, capsys):
    assert cli.main(["info", str(run)]) == 0
    text = capsys.readouterr().out
    assert "organ" in text and "unet" in text
    assert cli.main(["info", str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["classes"] == ["organ", "tumour"]
    assert cli.main(["info", str(run), "--accept"]) == 0
    assert "nothing was edited" in capsys.readouterr().out


def test_export(run, tmp_path, capsys):
    out = tmp_path / "model.medjax"
    given = ["export", str(run), "-o", str(out), "--licence", "Organs=CC0 1.0"]
    assert cli.main(given) == 0
    assert str(out) in capsys.readouterr().out and archive.is_ours(out)
    assert cli.main(given) == 2 and "exists already" in capsys.readouterr().err
    assert cli.main(["export", str(run), "-o", str(tmp_path / "model.zip")]) == 2


@pytest.mark.parametrize(
    ("flag", "kind"),
    [("--stablehlo", "function"), ("--orbax", "orbax"), ("--overwrite", "weights")],
)
def test_what_is_exported(monkeypatch, capsys, flag, kind):
    monkeypatch.setattr(exports, "export", lambda *a, **k: f"{a[2]} {k['overwrite']}")
    assert cli.main(["export", "RUN", "-o", "x", flag]) == 0
    assert capsys.readouterr().out == f"{kind} {flag == '--overwrite'}\n"


def test_import_hands_on_what_the_file_does_not_say(monkeypatch, capsys):
    calls = []
    monkeypatch.setattr(imported, "import_weights", lambda *a, **k: calls.append((a, k)) or "done")
    words = "import w.pth --family vit -o RUN --dataset d.json --model depth=3 merging=fixed"
    assert cli.main(words.split()) == 0 and capsys.readouterr().out == "done\n"
    [(places, named)] = calls
    assert [str(p) for p in places] == ["w.pth", "vit", "RUN"]
    assert named["model"] == {"depth": 3, "merging": "fixed"} and named["plan"] is None
    assert [str(p) for p in named["dataset"]] == ["d.json"]


def test_train_is_the_program_under_a_shorter_name(monkeypatch):
    calls = []
    monkeypatch.setattr(main, "main", lambda argv: calls.append(argv) or 75)
    given = ["train", "configs/a.py:b", "--workdir=RUN", "--config.train.steps=3"]
    assert cli.main(given) == 75
    assert calls == [["--config=configs/a.py:b", "--workdir=RUN", "--config.train.steps=3"]]


def test_gates(monkeypatch, tmp_path, capsys):
    weights = np.array([[[0.75, 0.25]], [[0.5, 0.5]]])
    found = measured.Gates(("encoder/0",), ("CT", "MR"), {"A": "CT", "B": "MR"}, weights, 4)
    calls = []
    monkeypatch.setattr(measured, "measure", lambda run, **k: calls.append((run, k)) or found)
    assert cli.main(["gates", str(tmp_path), "--batches", "2", "--side", "train"]) == 0
    assert calls == [(tmp_path, {"batches": 2, "side": "train"})]
    assert "| CT | all of the encoder | 0.750 | 0.250 |" in capsys.readouterr().out
    assert {p.name for p in (tmp_path / "gates").iterdir()} == {
        "gates.json",
        "gates.md",
        "gates.png",
    }
    other = tmp_path / "other"
    other.mkdir()
    (other / "gates.md").write_text("mine")
    assert cli.main(["gates", str(tmp_path), "-o", str(other)]) == 2 and len(calls) == 1


def test_add_modality_reports_before_it_trains(monkeypatch, tmp_path):
    calls, said = [], []
    growth = grow.Growth(("CT",), ("Heart",), 10, 15, {"experts": 5}, 0.0)

    def fields(*places, **named):
        calls.append((places, named))
        return typed()

    monkeypatch.setattr(grow, "grown_config", fields)
    monkeypatch.setattr(grow, "check", lambda *a: growth)
    monkeypatch.setattr(stages, "say", said.append)
    monkeypatch.setattr("medjax.runs.open.open_data", lambda *a: argparse.Namespace(space=None))
    given = [
        "OLD",
        "--data",
        "A",
        "--workdir",
        str(tmp_path / "new"),
        "--steps",
        "0",
        "--lr",
        "0.1",
    ]
    assert cli.main(["add-modality", *given, "--expert", "MR", "--freeze"]) == 0
    [(places, named)] = calls
    assert str(places[0]) == "OLD" and places[1:] == (["A"], tmp_path / "new")
    assert named == {
        "begin": "copy",
        "source": "MR",
        "gate": "",
        "freeze": True,
        "optim.lr": 0.1,
    }
    assert said == [growth.text()] and not (tmp_path / "new").exists()


def test_predict_hands_on_its_options_and_reports_failures(monkeypatch, tmp_path, capsys):
    calls, pages = [], []
    failed = {"case": "b", "error": "DataError", "message": "truncated gzip"}

    def run(*places, **named):
        calls.append((places, named))
        named["say"]("2 cases")
        named["warn"]("a doubt")
        return cases.Result(["a"], [failed], [])

    def page(folder, **named):
        pages.append(folder)
        raise RuntimeError("no browser")

    monkeypatch.setattr(predictions, "predict", run)
    monkeypatch.setattr(prediction, "prediction_report", page)
    given = ["predict", "-m", "RUN", "-i", "scan.nii", "-o", str(tmp_path), "--tta", "mirror"]
    assert cli.main([*given, "--window", "8", "8", "8", "--overlap", "0.25"]) == 3
    [(places, named)] = calls
    *paths, request = places
    assert paths == [["RUN"], ["scan.nii"], tmp_path]
    assert request.corpus == "" and request.classes is None
    chosen = {k: named[k] for k in ("tta", "window", "overlap", "part", "page", "report")}
    assert chosen == {
        "tta": "mirror",
        "window": [8, 8, 8],
        "overlap": 0.25,
        "part": (0, 1),
        "page": True,
        "report": None,
    }
    assert capsys.readouterr().err.splitlines() == [
        "2 cases",
        "medjax: a doubt",
        "report.html could not be written: no browser",  # and the prediction counts anyway
        "medjax: b failed: truncated gzip",
    ]
    for flags in (["--no-html"], ["--num-parts", "2"]):
        assert cli.main([*given, *flags, "--quiet"]) == 3
    assert len(pages) == 1 and "2 cases" not in capsys.readouterr().err
