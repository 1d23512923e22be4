"""Organ masks of scans to predict, and from another run."""

import json

import numpy as np
import pytest

from medjax import cli
from medjax.corpora.inputs import find_inputs
from medjax.corpora.layouts import corpus_json
from medjax.corpora.sources import read_corpus
from medjax.errors import UsageError
from medjax.labels import Corpus
from medjax.runs import folder as runfolder
from medjax.runs.prompted import organs
from medjax.scans import nifti
from tests.support.raw import make_case, save, write_corpus
from tests.support.run import make_run

TUMOUR = Corpus("Tumours", ((1, ("tumour",)),), channels=("CT", "mask"))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A run that reads an organ mask, and two scans with masks on other grids."""
    root = tmp_path_factory.mktemp("organs")
    make_run(root / "run", (TUMOUR,))
    plan = runfolder.read_json(root / "run", runfolder.PLAN)
    plan["intensity"]["mask"] = {"scheme": "mask"}
    runfolder.write_json(root / "run" / runfolder.PLAN, plan)
    for i in range(2):
        image, label = make_case((12, 13, 11), [1, 2], kind="CT", seed=i)
        save(root / "in" / f"c{i}.nii.gz", image[..., 0])
        double = np.kron(label > 0, np.ones((2, 2, 2))).astype(np.uint8)
        save(root / "masks" / f"c{i}.nii.gz", double, (0.5,) * 3, origin=(4.75, -7.25, 10.75))
        save(root / "two" / f"c{i}_0000.nii.gz", image[..., 0])
        save(root / "two" / f"c{i}_0001.nii.gz", (label > 0).astype(np.uint8))
    return root


def _predict(root, out, *more, scans="in"):
    given = ["-m", str(root / "run"), "-i", str(root / scans), "-o", str(out), "--no-html"]
    return cli.main(["predict", *given, *more])


def _found(out):
    return {p.name: nifti.read(p, want="label").array for p in sorted(out.glob("c*.nii.gz"))}


def test_a_mask_on_another_grid_gives_what_one_on_the_scans_grid_gives(root, tmp_path, capsys):
    rules = tmp_path / "rules.json"
    rules.write_text(json.dumps({"organ_filter": ["tumour"]}))
    done = ["--probabilities", "--postprocess", str(rules)]
    assert _predict(root, tmp_path / "a", "--organ", str(root / "masks"), *done) == 0
    assert _predict(root, tmp_path / "b", "--probabilities", scans="two") == 0
    assert _predict(root, tmp_path / "c", "--organ", "none", *done) == 0
    assert "2 of 2 scans have no organ mask (c0, c1): it counts as empty" in capsys.readouterr().err

    def scores(out):
        return np.load(next(out.glob("c0*.npz")), allow_pickle=False)

    given, files, none = (scores(tmp_path / n) for n in "abc")
    name = "probabilities" if "probabilities" in given.files else given.files[0]
    np.testing.assert_array_equal(given[name], files[name])
    assert np.abs(given[name].astype(float) - none[name]).max() > 0.01  # the mask is read
    filtered, plain, without = (json.loads((tmp_path / n / "c0.json").read_text()) for n in "abc")
    gone = filtered["postprocessing"].get("tumour", {}).get("organ_filter", 0)
    voxels = [one["classes"]["tumour"]["voxels"] for one in (plain, filtered)]
    assert voxels[0] - voxels[1] == gone and "organ_filter" not in str(filtered["warnings"])
    assert without["postprocessing"] == {} and "no organ mask" in str(without["warnings"])


def test_what_does_not_belong_is_refused(root, tmp_path, capsys):
    far = tmp_path / "far.nii.gz"
    save(far, np.ones((4, 4, 4), np.uint8), origin=(900, 0, 0))
    cases = find_inputs([str(root / "in" / "c0.nii.gz")], channels=1)
    with pytest.raises(UsageError, match="belongs to another scan") as error:
        organs.with_masks(cases, str(far), tmp_path, print)
    assert str(error.value.path) == str(far) and error.value.fix == "give the mask of this scan"
    with pytest.raises(UsageError, match="no such organ mask"):
        organs.with_masks(cases, str(tmp_path / "nothing.nii.gz"), tmp_path, print)
    both = find_inputs([str(root / "in")], channels=1)
    with pytest.raises(UsageError, match="several scans"):
        organs.with_masks(both, str(far), tmp_path, print)
    assert _predict(root, tmp_path / "t", "--organ", "none", "--task", "lung") == 2
    said = capsys.readouterr().err
    assert "knows no task 'lung'" in said and str(root / "run") in said and "Tumours" in said
    make_run(tmp_path / "plain")
    given = ["-m", str(tmp_path / "plain"), "-i", str(root / "in"), "-o", str(tmp_path / "o")]
    assert cli.main(["predict", *given, "--organ", "none"]) == 2
    assert "reads no organ mask" in capsys.readouterr().err
    assert _predict(root, tmp_path / "o", "--organ", "none", "--task", "all") == 2
    assert "reads no task" in capsys.readouterr().err


def test_masks_of_another_run_are_those_of_the_fold_that_held_the_scan_out(tmp_path, capsys):
    """Two folds with predictions on disk; a third scan that no fold knows is predicted."""
    scans = write_corpus(tmp_path / "Dataset001_Organs", 4, (9, 9, 9), "nnunet", channels=("CT",))
    described, cases = read_corpus(scans)
    run = tmp_path / "cv"
    split = [{"train": [], "val": []}, {"train": [], "val": []}]
    for i, case in enumerate(cases[:3]):
        for fold in range(2):
            side = "val" if i % 2 == fold else "train"
            split[fold][side].append(f"{described.name}/{case.name}")
    for fold in range(2):
        data = {"folders": str(scans), "split": {"file": "", "folds": 2, "fold": fold, "seed": 1}}
        data["split"]["file"] = str(tmp_path / "splits.json")
        data["subset"] = {described.name: {"file": str(tmp_path / "names.txt")}}
        make_run(run / f"fold_{fold}", (described,), data=data)
        for i, case in enumerate(cases[:3]):
            mask = np.full((9, 9 + i, 9), 1 + fold, np.uint8)  # value 1 is the organ, 2 the tumour
            mask[0] = 0
            save(
                run / f"fold_{fold}" / "predictions" / described.name / f"{case.name}.nii.gz", mask
            )
    (tmp_path / "names.txt").write_text("\n".join(case.name for case in cases[:3]))
    runfolder.write_json(tmp_path / "splits.json", split)
    out = tmp_path / "out"
    given = ["--from-run", str(run), "--classes", "organ", "-o", str(out)]
    assert cli.main(["organs", str(scans), *given]) == 0
    said = capsys.readouterr().out
    assert "3 masks of networks that did not see the scan, 1 to predict" in said
    _, members, _ = corpus_json.scan(out)
    found = {c.name: nifti.read(c.images[-1], want="label").array for c in members}
    assert found["case_000"][1:].all() and not found["case_000"][0].any()  # of fold 0: organ
    assert not found["case_001"].any()  # of fold 1, where everything is tumour
    assert set(found) == {c.name for c in cases}
    assert cli.main(["organs", str(scans), *given[:3], "lung", "-o", str(out)]) == 2
    assert "does not predict lung" in capsys.readouterr().err
