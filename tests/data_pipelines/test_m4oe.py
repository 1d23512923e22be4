"""M4oE from the command line at toy size: masked pre-training with held-out losses, fine-tuning
from its best, scores on both grids.
"""

import json

import nibabel as nib
import numpy as np
import pytest

from medjax import main
from medjax.train import checkpoint, log
from tests.support.raw import write_corpus

TINY = {
    "data.split.folds": 2,
    "data.workers": 1,
    "model.width": 8,
    "model.depths": (1, 1),
    "model.heads": (1, 2),
    "train.patch": (16, 16),
    "train.batch": 4,
    "train.validation_batches": 2,
    "train.log_every": 2,
    "train.checkpoint_every": 100,
    "evaluate.montages": 0,
    "evaluate.surface": False,
    "augment.on": False,
    "sampler.threads": 1,
}


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    """A corpus in MR and one in CT at one spacing, so that the network's grid is the scan's; CT
    case_001 has no edema.
    """
    root = tmp_path_factory.mktemp("raw")
    mr = write_corpus(
        root / "Task01_Heart", n=4, shape=(5, 16, 16), labels={"atrium": 1}, vary=False
    )
    ct = write_corpus(
        root / "Task02_Sarcoma",
        n=4,
        shape=(5, 16, 16),
        labels={"tumour": 1, "edema": 2},
        channels=("CT",),
        vary=False,
        seed=10,
    )
    for name in ("case_000", "case_001"):
        path = ct / "labelsTr" / f"{name}.nii.gz"
        label = nib.load(path)
        nib.save(
            nib.Nifti1Image(np.minimum(np.asarray(label.dataobj), 1), label.affine, label.header),
            path,
        )
    return f"{mr},{ct}"


def _run(variant, workdir, corpora, mode="train", **flags):
    given = (
        TINY
        | {"data.folders": corpora}
        | {name.replace("__", "."): value for name, value in flags.items()}
    )
    line = [f"--config.{name}={value}" for name, value in given.items()]
    return main.main(
        [f"--config=configs/m4oe.py:{variant}", f"--workdir={workdir}", f"--mode={mode}", *line]
    )


@pytest.mark.slow
def test_the_two_phases_and_both_ways_to_score(corpora, tmp_path, monkeypatch, repository, capsys):
    monkeypatch.chdir(repository)
    first = {
        "train__steps": 12,
        "train__validate_every": 3,
        "optim__warmup_steps": 2,
        "optim__lr": 1e-2,
    }
    assert _run("small_pretrain", tmp_path / "pretrain", corpora, **first) == 0
    rows = [
        row for row in log.read(tmp_path / "pretrain" / "metrics.jsonl") if "validation_loss" in row
    ]
    assert [row["step"] for row in rows] == [3, 6, 9, 12] and {
        "validation_loss/MR",
        "validation_loss/CT",
    } <= set(rows[0])
    losses = [row["validation_loss"] for row in rows]
    assert losses[-1] < losses[0]
    best = checkpoint.best_step(tmp_path / "pretrain" / "checkpoints")
    assert best == rows[int(np.argmin(losses))]["step"]

    second = {
        "train__steps": 2,
        "train__validate_every": 0,
        "init__source": tmp_path / "pretrain",
        "init__checkpoint": "best",
    }
    assert _run("small", tmp_path / "run", corpora, evaluate__resampled="standard", **second) == 0
    taken = json.loads((tmp_path / "run" / "transfer.json").read_text())
    assert any("mlp/w1" in name for name in taken["loaded"]), "the experts of the pre-training"
    summary = json.loads((tmp_path / "run" / "evaluation" / "summary.json").read_text())
    found = json.loads((tmp_path / "run" / "evaluation" / "resampled.json").read_text())
    assert found["rule"] == "standard" and not found["not prepared"]
    for corpus, cells in summary["cells"].items():
        for name, cell in cells.items():
            here = found[corpus]["classes"].get(name, {"n": 0})
            assert here["n"] == cell["Dice"]["n"], (corpus, name)
            if here["n"]:
                assert [here[m] for m in ("Dice", "IoU")] == pytest.approx(
                    [cell[m]["mean"] for m in ("Dice", "IoU")], abs=1e-9
                )
        assert found[corpus]["Dice"] == pytest.approx(
            summary["corpora"][corpus]["Dice"]["mean"], abs=1e-9
        )

    assert (
        _run(
            "small",
            tmp_path / "run",
            corpora,
            mode="evaluate",
            evaluate__resampled="released",
            **second,
        )
        == 0
    )
    released = json.loads((tmp_path / "run" / "evaluation" / "resampled.json").read_text())
    cell = summary["cells"]["Sarcoma"]["edema"]
    held = [r for r in summary["metric_per_case"] if r["corpus"] == "Sarcoma"]
    empty = [r["case"] for r in held if r["metrics"]["2"]["n_ref"] == 0]
    invented = [
        r["case"] for r in held if r["metrics"]["2"]["n_ref"] == 0 < r["metrics"]["2"]["n_pred"]
    ]
    total = sum(
        r["metrics"]["2"]["Dice"] or 0 for r in held
    )  # where only one side is empty the usual rule counts 0
    assert released["rule"] == "released" and empty, "the case without edema is held out"
    assert released["Sarcoma"]["classes"]["edema"]["n"] == len(held) >= cell["Dice"]["n"]
    assert released["Sarcoma"]["classes"]["edema"]["Dice"] == pytest.approx(
        (total + len(invented)) / len(held)
    )
    capsys.readouterr()
    assert _run("small", tmp_path / "other", corpora, evaluate__resampled="relased", **second) == 2
    assert "standard or released" in capsys.readouterr().err and not (tmp_path / "other").exists()


@pytest.mark.slow
def test_whole_slices_a_test_part_and_regions(corpora, tmp_path, monkeypatch, repository):
    """What `m4oe:whole` asks of preparation, draw, split and scores, at toy size."""
    monkeypatch.chdir(repository)
    given = {
        "train__steps": 3,
        "train__validate_every": 3,
        "data__size": (-1, 16, 16),
        "data__crop": "none",
        "data__split__folds": 4,
        "data__split__test": True,
        "sampler__weigh": "slices",
        "sampler__exponent": 0.0,
        "mask_padding": True,
        "evaluate__regions__both": "tumour,edema",
    }
    run = tmp_path / "run"
    assert _run("small", run, corpora, **given) == 0
    splits = json.loads((run / "splits_final.json").read_text())
    assert [len(splits[0][side]) for side in ("train", "val", "test")] == [4, 2, 2]
    plan = json.loads((run / "plan.json").read_text())
    assert plan["grid"] == "size" and plan["size"] == [-1, 16, 16]
    scored = json.loads((run / "evaluation" / "summary.json").read_text())
    cases = {f"{case['corpus']}/{case['case']}" for case in scored["metric_per_case"]}
    assert cases == set(splits[0]["test"])
    assert "both" in scored["cells"]["Sarcoma"] and scored["apart"] == [["Sarcoma", "both"]]
    assert "over_corpora" in scored
    # the same command goes on with the same run: nothing is left to do but to score again
    assert _run("small", run, corpora, **given) == 0
