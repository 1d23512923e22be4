"""What a new user met: data sets with unusual names or descriptions, and predictions of them."""

import json
import shutil

import numpy as np
import pytest

from medjax import cli, main
from medjax.corpora import words
from medjax.corpora.sources import layout_of, scan_corpus
from medjax.corpora.verify import verify
from medjax.errors import UsageError
from medjax.labels import Corpus, merge
from medjax.metrics.evaluate import find_pairs
from medjax.runs import info
from medjax.runs.open import open_data
from tests.support.configs import typed
from tests.support.raw import make_case, save, write_corpus
from tests.support.run import make_run


def _pairs(folder, n=3):
    for k in range(n):
        image, label = make_case((10, 11, 12), [1, 2], kind="CT", seed=k)
        save(folder / f"btcv_{k:02d}_ct.nii.gz", image[..., 0])
        save(folder / f"btcv_{k:02d}_seg.nii.gz", label.astype(np.uint8))
    return folder


def test_a_ct_without_channel_names_is_a_ct(tmp_path):
    """And a run that was trained when its channel was called "image" keeps that name."""
    raw = _pairs(tmp_path / "btcv")
    said = {"labels": {"organ": 1, "tumour": 2}, "modality": "CT"}
    (raw / "medjax.json").write_text(json.dumps(said))
    corpus, _, _ = scan_corpus(raw)
    assert (corpus.channels, corpus.modality) == (("CT",), "CT")
    config = {"data": {"folders": str(raw), "split": {"folds": 3}}}
    data = typed(config).data
    assert open_data(data, tmp_path / "new").stores[0].channels == ("CT",)
    old = Corpus("btcv", corpus.labels, channels=("image",), modality="CT")
    run = make_run(tmp_path / "run", [old])
    assert open_data(data, run).space == merge([old])
    (raw / "medjax.json").write_text(json.dumps(said | {"modality": "MR"}))
    assert scan_corpus(raw)[0].channels == ("image",)


def test_label_maps_beside_scans_are_not_segmented_and_masks_are_scored(tmp_path, capsys):
    """`medjax predict -i DATASET` and `medjax evaluate --reference DATASET` fit together."""
    raw = _pairs(tmp_path / "btcv")
    (raw / "medjax.json").write_text('{"labels": {"organ": 1, "tumour": 2}, "channels": ["CT"]}')
    run, out = make_run(tmp_path / "run"), tmp_path / "out"
    given = ["predict", "-m", str(run), "-i", str(raw), "-o", str(out), "--uncertainty"]
    assert cli.main([*given, "--no-html"]) == 0
    said = capsys.readouterr().err
    assert "3 label maps are left out (btcv_00_seg.nii.gz, ...)" in said
    assert "no map of disagreement" in said
    names = {p.name for p in out.glob("*.nii.gz")}
    assert names == {f"btcv_{k:02d}_ct{m}.nii.gz" for k in range(3) for m in ("", "_entropy")}
    scored = ["evaluate", "--reference", str(raw), "--prediction", str(out)]
    assert cli.main([*scored, "-o", str(tmp_path / "s"), "--no-report", "--no-surface"]) == 0
    cells = json.loads((tmp_path / "s" / "summary.json").read_text())["cells"]["btcv"]
    assert cells["organ"]["Dice"]["n"] == 3
    capsys.readouterr()
    parts = ["--num-parts", "8", "--part-id", "5"]
    assert cli.main([*given[:6], str(tmp_path / "p"), *parts]) == 0
    assert "nothing to do: part 5 of 8 has none of the 3 cases" in capsys.readouterr().err


def test_predictions_of_other_names_are_answered_by_the_names_of_the_references(tmp_path):
    for folder, name in (("r", "case_1"), ("p", "other_1"), ("p", "other_1_entropy")):
        save(tmp_path / folder / f"{name}.nii.gz", np.zeros((3, 3, 3), np.uint8))
    with pytest.raises(UsageError, match=r"found other_1 \(1 in all\). Fix: call them .* case_1"):
        find_pairs(tmp_path / "r", tmp_path / "p")


def test_a_wrong_file_ending_is_named(tmp_path):
    raw = write_corpus(tmp_path / "Dataset007_Blobs", n=2, shape=(6, 7, 8), layout="nnunet")
    assert layout_of(raw) == "nnunet"
    spec = json.loads((raw / "dataset.json").read_text())
    (raw / "dataset.json").write_text(json.dumps(spec | {"file_ending": ".nii"}))
    with pytest.raises(UsageError, match=r"'.nii', but .* Fix: write \"file_ending\": \".nii.gz\""):
        scan_corpus(raw)


def test_verify_says_which_layout_it_read_and_that_there_are_no_labels(tmp_path):
    for part in ("x", "y"):
        save(tmp_path / "G" / part / "00.nii.gz", np.random.default_rng(0).normal(size=(4, 5, 6)))
    report = verify(tmp_path / "G")
    assert "layout scans, no labels" in report.text().splitlines()[0]
    assert report.to_json()["layout"] == "scans"
    raw = _pairs(tmp_path / "many" / "btcv")
    first = verify(raw).text().splitlines()[0]
    assert first.endswith("layout pairs") and words.is_label_name("btcv_00_seg")


def test_a_folder_of_several_data_sets_is_answered_by_their_names(tmp_path):
    for name in ("btcv", "chaos"):
        _pairs(tmp_path / "raw" / name, 2)
    report = verify(tmp_path / "raw")
    text = report.text()
    assert not report.ok and "the folder holds 2 data sets" in text
    assert f"give each by itself: {tmp_path}/raw/btcv {tmp_path}/raw/chaos" in text


def test_a_block_of_dataset_json_in_medjax_json_is_answered(tmp_path):
    raw = _pairs(tmp_path / "btcv", 1)
    (raw / "medjax.json").write_text('{"medjax": {"annotated": ["liver"]}}')
    with pytest.raises(UsageError, match=r"belongs to dataset.json. Fix: write its fields at"):
        scan_corpus(raw)


def test_names_that_are_missing_are_counted(tmp_path):
    raw = tmp_path / "btcv"
    image, _ = make_case((10, 11, 12), [1], kind="CT")
    save(raw / "a_ct.nii.gz", image[..., 0])
    save(raw / "a_seg.nii.gz", (np.arange(10 * 11 * 12) % 13).reshape(10, 11, 12).astype(np.uint8))
    said = [p["found"] for p in verify(raw).problems if p["what"] == "label values without names"]
    assert said[0].endswith("label_8, ... (12 in all)")


def test_info_says_how_far_a_run_has_come(tmp_path):
    run = make_run(tmp_path / "run")
    assert info.about_run(run)["state"].startswith("stopped at step")
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"train": {"steps": 1}}))
    assert info.about_run(run)["state"] == "trained to step 7, not evaluated"
    shutil.rmtree(run / "checkpoints")
    assert info.about_run(run)["state"] == "not trained yet"


def test_a_patch_of_one_number_is_a_usage_error(repository, monkeypatch, capsys):
    monkeypatch.chdir(repository)
    flags = ["--config=configs/multitalent.py:demo", "--mode=dry", "--config.train.patch=64"]
    assert main.main(flags) == 2
    said = capsys.readouterr().err
    assert "unusable config.train.patch; found (64,); expected 3 sizes (z, y, x)" in said
