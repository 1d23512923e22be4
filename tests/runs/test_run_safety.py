"""Run folders: damaged checkpoints, edited documents, locks, a full disk, other data; and runs of
an earlier version.
"""

import errno
import json
import os
import shutil
import signal

import nibabel as nib
import numpy as np
import pytest

from configs.base import base_config
from medjax import cli, files, locks, main
from medjax.corpora.inputs import Case
from medjax.errors import TrainError, UsageError
from medjax.prepare.targets import check_outside
from medjax.registry import plain
from medjax.runs import folder as runfolder
from medjax.runs import stages, trained
from medjax.train import checkpoint, log
from tests.support.old_run import start, unpack
from tests.support.run import make_run

DAMAGED = "no checkpoint can be read: the step folders are damaged or partly copied"


@pytest.fixture(scope="module")
def old(tmp_path_factory):
    """The run of an earlier version, as it came."""
    return unpack(tmp_path_factory.mktemp("old"))


@pytest.fixture
def copy(old, tmp_path):
    """A copy of it to do damage to."""
    shutil.copytree(old, tmp_path / "copy")
    return tmp_path / "copy"


def listing(folder):
    """Every file below a folder and its content."""
    return {
        p.relative_to(folder).as_posix(): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


def main_in(folder, *flags, monkeypatch):
    """Exit code of the training command of the run, in this process."""
    monkeypatch.chdir(folder)
    return main.main(["--config=config.py", "--workdir=run", *flags])


# -- checkpoints -----------------------------------------------------------------------------------


def partial(run):
    for step in checkpoint.steps(run / "checkpoints"):
        (run / "checkpoints" / str(step) / checkpoint.FACTS).unlink()


def emptied(run):
    for step in checkpoint.steps(run / "checkpoints"):
        shutil.rmtree(run / "checkpoints" / str(step))
        (run / "checkpoints" / str(step)).mkdir()


def set_aside(run):
    for step in checkpoint.steps(run / "checkpoints"):
        (run / "checkpoints" / str(step)).rename(run / "checkpoints" / f"{step}.unreadable")


def gone(run):
    shutil.rmtree(run / "checkpoints")
    (run / "saved.json").write_text('{"step": 6}')  # as newer versions note


def bare(run):
    shutil.rmtree(run / "checkpoints")
    (run / "checkpoints").mkdir()
    (run / "saved.json").write_text('{"step": 6}')


@pytest.mark.parametrize("damage", [partial, emptied, set_aside, gone, bare])
def test_a_run_whose_checkpoints_cannot_be_read_is_refused_and_left_as_it_is(
    copy, capsys, monkeypatch, damage
):
    damage(copy / "run")
    before = listing(copy / "run")
    for flags in ([], ["--mode=evaluate"]):
        assert main_in(copy, *flags, monkeypatch=monkeypatch) == 1
        text = capsys.readouterr().err
        assert (
            DAMAGED if damage not in (gone, bare) else "the checkpoints of this run are missing"
        ) in text and "run/checkpoints" in text
        assert "copy the" in text and "use another --workdir" in text
        assert listing(copy / "run") == before
    scan = str(copy / "Task01_Blobs" / "imagesTr" / "case_000.nii.gz")
    assert (
        cli.main(
            ["predict", "-m", str(copy / "run"), "-i", scan, "-o", str(copy / "out"), "--quiet"]
        )
        == 1
    )
    text = capsys.readouterr().err
    assert "train it first" not in text and ("damaged" in text or "missing" in text)
    assert (
        cli.main(["export", str(copy / "run"), "-o", str(copy / "x.medjax")]) == 1
        and not (copy / "x.medjax").exists()
    )


def test_truncated_arrays_in_every_step_are_refused_without_a_new_start(copy, capsys, monkeypatch):
    for path in (copy / "run" / "checkpoints").rglob("d/*"):
        path.write_bytes(path.read_bytes()[:100])
    record = (copy / "run" / "metrics.jsonl").read_bytes()
    with pytest.warns(RuntimeWarning, match="unreadable checkpoint"):
        assert main_in(copy, monkeypatch=monkeypatch) == 1
    text = capsys.readouterr().err
    assert "no checkpoint can be read; found 6: " in text and "; 3: " in text
    assert (
        checkpoint.steps(copy / "run" / "checkpoints") == [3, 6]
        and (copy / "run" / "metrics.jsonl").read_bytes() == record
    )


@pytest.mark.slow
def test_a_damaged_newest_checkpoint_is_said_by_predict_and_by_training(copy, capsys, monkeypatch):
    (copy / "run" / "checkpoints" / "6" / checkpoint.FACTS).unlink()
    scan = str(copy / "Task01_Blobs" / "imagesTr" / "case_000.nii.gz")
    command = ["predict", "-m", str(copy / "run"), "-i", scan, "-o", str(copy / "out"), "--quiet"]
    assert cli.main(command) == 1
    text = capsys.readouterr().err
    assert (
        "checkpoints/6: a damaged or partly copied checkpoint" in text and "--checkpoint 3" in text
    )
    assert (
        cli.main([*command, "--checkpoint", "6"]) == 1
        and "damaged or partly copied" in capsys.readouterr().err
    )
    assert cli.main([*command, "--checkpoint", "3"]) == 0
    with pytest.warns(
        RuntimeWarning, match=r"checkpoints/6: unreadable checkpoint set aside as 6\.unreadable"
    ):
        assert main_in(copy, monkeypatch=monkeypatch) == 0
    assert (
        checkpoint.steps(copy / "run" / "checkpoints") == [3, 6]
        and (copy / "run" / "checkpoints" / "6.unreadable").is_dir()
    )


@pytest.mark.slow
def test_a_run_that_never_had_a_checkpoint_begins(copy, monkeypatch):
    shutil.rmtree(copy / "run" / "checkpoints")
    (copy / "run" / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0}\n{"step": 2, "lo')
    assert main_in(copy, monkeypatch=monkeypatch) == 0
    assert checkpoint.steps(copy / "run" / "checkpoints") == [3, 6]
    assert [row["step"] for row in log.read(copy / "run" / "metrics.jsonl")] == [
        1,
        2,
        3,
        3,
        4,
        5,
        6,
        6,
    ]


# -- documents -------------------------------------------------------------------------------------


EDITS = {
    "labels.json": lambda v: json.loads(
        json.dumps(v)
        .replace('"organ"', '"x"')
        .replace('"tumour"', '"organ"')
        .replace('"x"', '"tumour"')
    ),
    "plan.json": lambda v: {**v, "spacing_mm": {k: [3.0, 3.0, 3.0] for k in v["spacing_mm"]}},
    "config.json": lambda v: {**v, "infer": {**v["infer"], "overlap": 0.9}},
}


@pytest.mark.parametrize("name", EDITS)
def test_an_edited_document_is_refused_until_it_is_restored_or_accepted(tmp_path, capsys, name):
    run = make_run(tmp_path / "run")
    before = (run / name).read_text()
    (run / name).write_text(json.dumps(json.loads(before), separators=(",", ":")))
    trained.read_model(run)  # another layout of the same content is no edit
    (run / name).write_text(json.dumps(EDITS[name](json.loads(before))))
    assert json.loads((run / name).read_text()) != json.loads(before)
    for command in (
        ["predict", "-m", str(run), "-i", str(run), "-o", str(tmp_path / "o")],
        ["export", str(run), "-o", str(tmp_path / "x.medjax")],
    ):
        assert cli.main(command) == 2
        text = capsys.readouterr().err
        assert (
            f"{run / name}: edited since medjax wrote it" in text
            and f"medjax info {run} --accept" in text
        )
    assert (
        cli.main(["info", str(run), "--accept"]) == 0
        and capsys.readouterr().out == f"accepted: {name}\n"
    )
    trained.read_model(run)
    (run / name).write_text(before)
    with pytest.raises(UsageError, match="edited since"):
        trained.read_model(run)
    assert runfolder.accept(run) == [name] and runfolder.accept(run) == []


@pytest.mark.parametrize("text", ["{}", "[]", '{"name": "x"}', "{"])
@pytest.mark.parametrize("name", ["config.json", "labels.json"])
def test_info_of_a_run_without_its_fields_is_a_sentence(tmp_path, capsys, name, text):
    run = make_run(tmp_path / "run")
    fields = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(fields | {"seed": 77}))
    assert cli.main(["info", str(run)]) == 0 and "edited: config.json" in capsys.readouterr().out
    (run / name).write_text(text)
    assert cli.main(["info", str(run)]) == 2 and name in capsys.readouterr().err


@pytest.mark.parametrize("name", EDITS)
def test_training_and_evaluation_refuse_an_edited_document_and_keep_it(
    copy, capsys, monkeypatch, name
):
    assert runfolder.accept(copy / "run") == ["config.json", "labels.json", "plan.json"]
    path = copy / "run" / name
    path.write_text(json.dumps(EDITS[name](json.loads(path.read_text()))))
    before = listing(copy / "run")
    for flags in ([], ["--mode=evaluate"]):
        assert main_in(copy, *flags, monkeypatch=monkeypatch) == 2
        assert f"run/{name}: edited since medjax wrote it" in capsys.readouterr().err
        assert listing(copy / "run") == before


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "[]",
        "null",
        "5",
        '"x"',
        "[" * 100_000,
        "{",
        "\ud800",
        '{"model": {}}',
        '{"spacing_mm": 1}',
        '{"corpora": [{}]}',
    ],
)
@pytest.mark.parametrize("name", EDITS)
def test_a_document_without_what_it_must_hold_is_a_sentence(tmp_path, capsys, name, text):
    run = make_run(tmp_path / "run")
    (
        run / "hashes.json"
    ).unlink()  # of an earlier version: nothing but the content says that it is wrong
    (run / name).write_bytes(text.encode("utf-8", "surrogatepass"))
    assert cli.main(["predict", "-m", str(run), "-i", str(run), "-o", str(tmp_path / "o")]) in (
        1,
        2,
    )
    said = capsys.readouterr().err
    assert name in said and "Traceback" not in said


@pytest.mark.parametrize("text", ["{", "[]", '{"config.json": 5}', '"x"'])
def test_a_damaged_list_of_hashes_is_a_sentence(tmp_path, text):
    run = make_run(tmp_path / "run")
    (run / "hashes.json").write_text(text)
    with pytest.raises(UsageError, match=r"hashes\.json"):
        trained.read_model(run)


def test_missing_fields_are_named(tmp_path):
    run = make_run(tmp_path / "run")
    fields = json.loads((run / "config.json").read_text())
    del fields["infer"]["overlap"]
    (run / "config.json").write_text(json.dumps(fields))
    (run / "hashes.json").unlink()
    with pytest.raises(
        UsageError, match=r"config\.json: no config of a run; found no infer\.overlap"
    ):
        trained.read_model(run)


def test_a_kill_between_document_and_hash_leaves_a_run_that_opens(tmp_path, monkeypatch):
    run = make_run(tmp_path / "run")
    fields = json.loads((run / "config.json").read_text()) | {"seed": 5}
    whole = files.write_text

    def before(*_):
        raise KeyboardInterrupt

    def after(*arguments):
        whole(*arguments)
        raise KeyboardInterrupt

    for killed in (before, after):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(
                files, "write_json", lambda path, value, **_: path.write_text(json.dumps(value))
            )
            patch.setattr(files, "write_text", killed)
            runfolder.write_json(run / "config.json", fields)
        trained.read_model(run)
    assert runfolder.read_config(run).seed == 5


# -- an earlier version ----------------------------------------------------------------------------


def test_a_run_of_an_earlier_version_resumes_evaluates_and_predicts_as_before(
    copy, capsys, monkeypatch
):
    scan, masks = str(copy / "Task01_Blobs" / "imagesTr" / "case_000.nii.gz"), copy / "masks"
    assert cli.main(["predict", "-m", str(copy / "run"), "-i", scan, "-o", str(masks)]) == 0
    assert capsys.readouterr().err.count("made by an earlier version, without hashes") == 1
    new, before = (
        np.asarray(nib.load(p / "case_000.nii.gz").dataobj) for p in (masks, copy / "predictions")
    )
    np.testing.assert_array_equal(new, before)
    names = ("config.json", "labels.json", "plan.json", "splits_final.json")
    documents = [json.loads((copy / "run" / name).read_text()) for name in names]
    record = (copy / "run" / "metrics.jsonl").read_bytes()
    scores = json.loads((copy / "run" / "evaluation" / "summary.json").read_text())[
        "foreground_mean"
    ]
    assert main_in(copy, monkeypatch=monkeypatch) == 0
    now = [json.loads((copy / "run" / name).read_text()) for name in names]
    assert [
        {k: v for k, v in found.items() if k != "guard"} if isinstance(found, dict) else found
        for found in now
    ] == documents
    assert (copy / "run" / "metrics.jsonl").read_bytes() == record
    assert (
        json.loads((copy / "run" / "evaluation" / "summary.json").read_text())["foreground_mean"]
        == scores
    )
    assert checkpoint.steps(copy / "run" / "checkpoints") == [3, 6]
    assert sorted(json.loads((copy / "run" / "hashes.json").read_text())) == [
        "config.json",
        "labels.json",
        "plan.json",
    ]


# -- locks -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_second_training_on_a_run_folder_is_refused_while_the_first_runs(
    copy, capsys, monkeypatch
):
    first = start(
        copy,
        "--config=config.py",
        "--workdir=new",
        "--config.train.steps=100000",
        "--config.train.checkpoint_every=0",
    )
    while first.poll() is None and not (copy / "new" / "config.json").is_file():
        pass
    before = (copy / "new" / "config.json").read_bytes()
    monkeypatch.chdir(copy)
    for flags in (["--config.seed=3"], ["--mode=evaluate"]):
        assert main.main(["--config=config.py", "--workdir=new", *flags]) == 2
        text = capsys.readouterr().err
        assert (
            f"new: the folder is in use; found process {first.pid} on" in text
            and "(training, since" in text
        )
    assert (copy / "new" / "config.json").read_bytes() == before
    first.kill()
    first.wait()
    assert (copy / "new" / ".medjax-lock").is_file()
    assert main.main(["--config=config.py", "--workdir=new", "--config.seed=3"]) == 0, (
        "the lock of a killed process is taken over"
    )
    assert not (copy / "new" / ".medjax-lock").exists()


def test_a_refused_start_leaves_no_folder(copy, capsys, monkeypatch):
    monkeypatch.chdir(copy)
    assert (
        main.main(["--config=config.py", "--workdir=nothing", "--config.data.folders=/nowhere"])
        == 2
    )
    assert not (copy / "nothing").exists()
    (copy / "file").write_text("")
    assert (
        main.main(["--config=config.py", "--workdir=file"]) == 1
        and "cannot write" in capsys.readouterr().err
    )


def test_folds_are_locked_one_by_one(copy, capsys, monkeypatch):
    monkeypatch.chdir(copy)
    (copy / "cv" / "fold_1").mkdir(parents=True)
    with locks.lock(copy / "cv" / "fold_1", "cross-validation"):
        code = main.main(["--config=config.py", "--workdir=cv", "--mode=crossval", "--folds=1"])
    assert code == 2 and "fold_1: the folder is in use" in capsys.readouterr().err
    assert not (copy / "cv" / "fold_0").exists()


# -- a full disk, other data -----------------------------------------------------------------------


class Full:
    """A file on a full disk."""

    def write(self, text):
        raise OSError(errno.ENOSPC, "No space left on device")

    def close(self):
        self.write("")


@pytest.mark.parametrize("name", ["metrics", "system"])
def test_a_full_disk_while_the_record_is_written_is_a_sentence(tmp_path, name):
    progress = log.Progress(("a",))
    with (
        pytest.raises(
            TrainError,
            match=rf"{name}\.jsonl: cannot write \(No space left on device\)\. Fix: free some "
            r"space",
        ),
        log.Log(tmp_path, progress, steps=2, start=0, log_every=1, picture=False) as record,
    ):
        record.files[name] = Full()
        record.submit(1, {"loss": np.float32(1.0)})
        record.settle()


def test_a_picture_that_cannot_be_written_does_not_end_a_run(tmp_path, capsys, monkeypatch):
    def refused(*_):
        raise files.refused(
            tmp_path / "progress.png", OSError(errno.ENOSPC, "No space left on device")
        )

    monkeypatch.setattr(log, "draw", refused)
    with log.Log(tmp_path, log.Progress(("a",)), steps=2, start=0, log_every=1):
        pass
    assert "progress.png: cannot write (No space left on device)" in capsys.readouterr().err


@pytest.mark.parametrize("line", [b"\xff\xfe", b"[1]", b"5", b'{"loss": 1}', b"[" * 100_000])
def test_odd_lines_of_a_record_are_left_out(tmp_path, line):
    (tmp_path / "metrics.jsonl").write_bytes(
        b'{"step": 1}\n' + line + b'\n{"step": 2}\n{"step": 3}\n'
    )
    log.truncate(tmp_path / "metrics.jsonl", 2)
    assert [row["step"] for row in log.read(tmp_path / "metrics.jsonl")] == [1, 2]
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_when_a_scan_was_replaced_the_last_words_are_the_case_and_the_reason(
    copy, capsys, monkeypatch
):
    assert main_in(copy, monkeypatch=monkeypatch) == 0
    path = copy / "Task01_Blobs" / "imagesTr" / "case_002.nii.gz"
    image, plan = nib.load(path), (copy / "run" / "plan.json").read_bytes()
    voxels = np.asarray(image.dataobj)
    nib.save(nib.Nifti1Image((voxels + 500).astype(np.int16), image.affine, image.header), path)
    for _ in range(2):  # also when the store has the new file already
        capsys.readouterr()
        assert main_in(copy, monkeypatch=monkeypatch) == 2
        last = capsys.readouterr().err.strip().splitlines()[-1]
        assert (
            last.endswith("Concerned: Blobs/case_002: its files changed since the run began")
            and "spacing or normalisation" in last
        )
    nib.save(nib.Nifti1Image(voxels[:12], image.affine, image.header), path)
    assert main_in(copy, monkeypatch=monkeypatch) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert (
        "the training cases of Blobs" in last
        and "Concerned: case_002: " in last
        and "different shapes; found (16, 20, 20)" in last
    )
    assert (copy / "run" / "plan.json").read_bytes() == plan, (
        "the trained network keeps the plan it was trained with"
    )


# -- flags and configs -----------------------------------------------------------------------------


CONFIGS = {
    "def get_config(:": "invalid syntax",
    "x = 1": "get_config",
    "def get_config():\n    return None": "the config is empty",
    "def get_config():\n    return {'a': 1}": "the config lacks sections",
    "import sys\nsys.exit(7)": "the config ended the program; found exit 7",
    "def get_config():\n    raise KeyError('boo')": "no field boo",
    "\0": "null bytes",
    "": "get_config",
}
FLAGS = {
    "--devices=0": "--devices takes numbers of devices; found 0",
    "--devices=-3": "found -3",
    "--workdir=a\0b": "NUL character",
    "--config.train.batch=0": "unusable config.train.batch; found 0",
    "--config.train.steps=-1": "unusable config.train.steps; found -1",
    "--config.train.nope=1": "nope",
    "--mode=xyz": "value should be one of",
    "--config.train=5": "config.train is a section",
    "extra": "unexpected arguments",
}


@pytest.mark.parametrize("text", CONFIGS)
def test_a_config_that_cannot_be_used_is_a_sentence(tmp_path, capsys, text):
    (tmp_path / "c.py").write_text(text)
    assert main.main([f"--config={tmp_path / 'c.py'}", f"--workdir={tmp_path / 'w'}"]) == 2
    assert CONFIGS[text] in capsys.readouterr().err and not (tmp_path / "w").exists()


@pytest.mark.parametrize("flag", FLAGS)
def test_a_flag_that_means_nothing_is_a_sentence(old, capsys, flag):
    assert (
        main.main([f"--config={old / 'config.py'}", f"--workdir={old / 'w'}", "--mode=dry", flag])
        == 2
    )
    assert FLAGS[flag] in capsys.readouterr().err


def test_sigterm_in_a_verb_is_a_sentence(old):
    process = start(
        old,
        "predict",
        "-m",
        "run",
        "-i",
        "Task01_Blobs/imagesTr",
        "-o",
        "stopped",
        module="medjax.cli",
    )
    process.stdout.readline()
    os.kill(process.pid, signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 143 and "stopped by SIGTERM" in out, out


@pytest.mark.parametrize(
    "name", ["config.json", "splits_final.json", "metrics.jsonl", "checkpoints"]
)
def test_a_training_never_overwrites_files_of_somebody_else(tmp_path, name):
    foreign = tmp_path / "mine"
    foreign.mkdir()
    if name == "checkpoints":
        (foreign / name).mkdir()
        (foreign / name / "weights.bin").write_text("mine")
    else:
        (foreign / name).write_text('{"train": 1}')
    before = {p: p.read_bytes() for p in foreign.rglob("*") if p.is_file()}
    with pytest.raises(UsageError, match=rf"did not write.*found {name}"):
        runfolder.check_target(foreign)
    config = {"data": {}, "evaluate": {}, "model": {}, "train": {}, "infer": {}}
    with pytest.raises(UsageError, match="did not write"):
        stages.open_run(plain(base_config()) | {"name": "x"}, foreign)
    assert {p: p.read_bytes() for p in foreign.rglob("*") if p.is_file()} == before
    (foreign / "config.json").write_text(json.dumps(config))
    runfolder.check_target(foreign)  # a run, whatever else it holds
    runfolder.check_target(tmp_path / "new")


def test_a_folder_of_somebody_else_is_no_run_and_no_store(tmp_path, capsys):
    mine = tmp_path / "mine"
    (mine / "Blobs" / "case_000").mkdir(parents=True)
    (mine / "config.json").write_text('{"learning_rate": 0.1}')
    (mine / "Blobs" / "case_000" / "thesis.txt").write_text("years of work")
    before = {p: p.read_bytes() for p in mine.rglob("*") if p.is_file()}
    for words in (
        ("info", str(mine), "--accept"),
        ("export", str(mine), "-o", str(tmp_path / "x.medjax")),
        ("predict", "-m", str(mine), "-i", str(mine), "-o", str(tmp_path / "out")),
    ):
        assert cli.main(list(words)) in (1, 2) and "mine" in capsys.readouterr().err
        assert {p: p.read_bytes() for p in mine.rglob("*") if p.is_file()} == before
    with pytest.raises(UsageError, match="not a run folder"):
        runfolder.accept(mine)
    with pytest.raises(UsageError, match="did not write"):
        runfolder.check_target(mine)


def test_a_run_folder_in_the_folder_of_a_case_is_refused(tmp_path):
    cases = [
        Case(name, (str(tmp_path / "raw" / name / "imaging.nii.gz"),)) for name in ("a", "b", "c")
    ]
    with pytest.raises(UsageError, match="the run folder would lie in a folder with the raw files"):
        check_outside(cases, tmp_path / "raw" / "b" / "run", "the run folder", "another --workdir")
    check_outside(cases, tmp_path / "raw" / "run", "the run folder", "another --workdir")
