"""The whole house on small volumes: raw scans in, a trained multi-corpus model, masks on their grid
and numbers out; kill and go on.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from configs.multitalent import get_config
from medjax import cli, main
from medjax.runs import folder as runfolder
from medjax.train import checkpoint
from tests.support.raw import write_corpus

SMALL = (
    "--config.data.phantom_cases=0",
    "--config.data.spacing_mm=2.0,2.0,2.0",
    "--config.data.split.folds=2",
    "--config.model.base_features=4",
    "--config.train.patch=16,16,16",
    "--config.train.batch=2",
    "--config.train.validation_batches=1",
    "--config.train.log_every=1",
    "--config.optim.lr=0.01",
    "--config.infer.batch_windows=4",
)
STEPS = 12


def _flags(folders, workdir, steps=STEPS, *more):
    return [
        "--config=configs/multitalent.py:demo",
        f"--workdir={workdir}",
        f"--config.data.folders={','.join(map(str, folders))}",
        *SMALL,
        f"--config.train.steps={steps}",
        "--config.train.validate_every=6",
        "--config.train.checkpoint_every=4",
        *more,
    ]


def _main(flags, **kwargs):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "CI": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    command = [sys.executable, "-m", "medjax.main", *flags]
    return subprocess.Popen(
        command, env=environment, cwd=Path(__file__).parent.parent, **pipes, **kwargs
    )


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    """Two corpora that disagree: one annotates an organ with a nested lesion, the other only the
    lesion, under sparse ids.
    """
    root = tmp_path_factory.mktemp("raw")
    first = write_corpus(
        root / "Task01_Organs",
        n=4,
        shape=(18, 22, 20),
        labels={"organ": 1, "lesion": 2},
        layout="msd",
    )
    second = write_corpus(
        root / "Dataset002_Lesions", n=4, shape=(20, 18, 24), labels={"lesion": 9}, layout="nnunet"
    )
    return first, second


@pytest.fixture(scope="module")
def trained(corpora, tmp_path_factory):
    """A run folder after training and evaluation, and what was printed."""
    workdir = tmp_path_factory.mktemp("run") / "whole"
    process = _main(_flags(corpora, workdir))
    out, _ = process.communicate(timeout=400)
    assert process.returncode == 0, out
    return workdir, out


def test_a_run_fills_its_folder_and_prints_the_table(trained):
    workdir, out = trained
    for name in (
        "config.json",
        "labels.json",
        "plan.json",
        "splits_final.json",
        "environment.json",
        "metrics.jsonl",
        "progress.png",
    ):
        assert (workdir / name).stat().st_size > 0, name
    assert checkpoint.latest_step(workdir / "checkpoints") == STEPS
    losses = [
        row["loss"]
        for line in (workdir / "metrics.jsonl").read_text().splitlines()
        if "loss" in (row := json.loads(line))
    ]
    assert len(losses) == STEPS and np.isfinite(losses).all()
    summary = json.loads((workdir / "evaluation" / "summary.json").read_text())
    assert len(summary["metric_per_case"]) == 4 and "foreground_mean" in summary
    assert "organ" in out and "lesion" in out
    assert len(list((workdir / "evaluation" / "montages").glob("*.png"))) == 4


def test_masks_keep_the_grid_and_the_values_of_their_corpus(trained, corpora):
    workdir, _ = trained
    space = runfolder.read_space(workdir)
    values = {c.name: set(c.values) for c in space.corpora}
    found = list((workdir / "predictions").rglob("*.nii.gz"))
    assert len(found) == 4
    for path in found:
        folder = next(c for c in corpora if c.name.endswith(path.parent.name))
        source = next(
            p
            for p in (folder / "imagesTr").iterdir()
            if p.name.startswith(path.name.removesuffix(".nii.gz"))
        )
        mask, image = nib.load(path), nib.load(source)
        assert mask.shape == image.shape[:3] and np.array_equal(mask.affine, image.affine)
        assert (mask.header["qform_code"], mask.header["sform_code"]) == (
            image.header["qform_code"],
            image.header["sform_code"],
        )
        assert set(np.unique(np.asarray(mask.dataobj))) <= values[path.parent.name]


def test_the_command_predicts_isolating_a_broken_scan_and_evaluates(
    trained, corpora, tmp_path, capsys
):
    workdir, _ = trained
    scans = tmp_path / "scans with spaces"
    scans.mkdir()
    for path in sorted((corpora[0] / "imagesTr").iterdir())[:3]:
        shutil.copy(path, scans / path.name.replace("_0000", ""))
    victim = sorted(scans.iterdir())[1]
    victim.write_bytes(victim.read_bytes()[:300])
    corpus = runfolder.read_space(workdir).unveiled().corpora[0].name
    assert (
        cli.main(["predict", "-m", str(workdir), "-i", str(scans), "-o", str(tmp_path / "out")])
        == 2
    )
    assert "--corpus" in capsys.readouterr().err
    assert (
        cli.main(
            [
                "predict",
                "-m",
                str(workdir),
                "-i",
                str(scans),
                "-o",
                str(tmp_path / "out"),
                "--corpus",
                corpus,
                "--quiet",
            ]
        )
        == 3
    )
    assert victim.name in capsys.readouterr().err
    assert len(list((tmp_path / "out").glob("*.nii.gz"))) == 2
    code = cli.main(
        [
            "evaluate",
            "--reference",
            str(corpora[0] / "labelsTr"),
            "--prediction",
            str(tmp_path / "out"),
            "--labels",
            str(corpora[0] / "dataset.json"),
            "-o",
            str(tmp_path / "scores"),
        ]
    )
    assert code == 3  # references without a prediction are failures, not silence
    assert json.loads((tmp_path / "scores" / "summary.json").read_text())["metric_per_case"]


def test_a_run_killed_twice_equals_the_one_that_was_not(trained, corpora, tmp_path):
    workdir = tmp_path / "killed"
    for kill_after in (3, 7):
        process = _main(_flags(corpora, workdir))
        deadline = time.time() + 300
        while time.time() < deadline and process.poll() is None:
            done = (
                (workdir / "metrics.jsonl").read_text().count('"loss"')
                if (workdir / "metrics.jsonl").is_file()
                else 0
            )
            if done >= kill_after:
                break
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
    process = _main(_flags(corpora, workdir))
    out, _ = process.communicate(timeout=400)
    assert process.returncode == 0, out
    whole, _ = trained
    assert (whole / "metrics.jsonl").read_text() == (workdir / "metrics.jsonl").read_text()
    first, second = (_weights(folder) for folder in (whole, workdir))
    assert first.keys() == second.keys() and all(np.array_equal(first[k], second[k]) for k in first)


def _weights(workdir):
    import jax

    from medjax.runs import build

    fields, space = runfolder.read_config(workdir), runfolder.read_space(workdir)
    net = build.make_network(fields, space, (2.0, 2.0, 2.0))
    params = checkpoint.load_params(workdir / "checkpoints", net.abstract())
    return {
        jax.tree_util.keystr(k): np.asarray(v)
        for k, v in jax.tree_util.tree_leaves_with_path(params)
    }


def test_resuming_with_another_recipe_is_refused(trained, corpora):
    workdir, _ = trained
    process = _main(_flags(corpora, workdir, STEPS, "--config.optim.momentum=0.5"))
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 2 and "optim.momentum: was 0.99, is 0.5" in out
    assert (
        runfolder.read_config(workdir)["optim"]["momentum"] == 0.99
    )  # a refused start leaves the run as it was


def test_bad_input_is_named_and_costs_nothing_else(corpora, tmp_path, capsys):
    assert (
        main.main(["--config=configs/multitalent.py:demo", f"--workdir={tmp_path / 'r'}", *SMALL])
        == 2
    )
    assert "no corpora named" in capsys.readouterr().err
    assert get_config("demo").train.batch == 2


def test_slices_go_the_same_way(corpora, tmp_path):
    """A 2D network: slices from the same store, volumes predicted slice by slice."""
    flags = [
        f for f in _flags(corpora, tmp_path / "flat", 4) if not f.startswith("--config.train.patch")
    ]  # repeated tuples are joined
    flags += ["--config.train.patch=16,16", "--config.evaluate.montages=0"]
    out, _ = (process := _main(flags)).communicate(timeout=400)
    assert process.returncode == 0, out
    masks = list((tmp_path / "flat" / "predictions").rglob("*.nii.gz"))
    assert len(masks) == 4 and all(nib.load(m).ndim == 3 for m in masks)


def test_a_run_without_weights_or_store_says_what_to_do(corpora, tmp_path, capsys):
    empty = tmp_path / "empty"
    assert main.main([*_flags(corpora, empty), "--mode=evaluate"]) == 2
    assert "not a run folder" in capsys.readouterr().err
