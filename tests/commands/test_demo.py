"""`medjax demo`: the shipped model, its card, and the command."""

import hashlib
import json
import os
import re
import subprocess
import sys

import pytest

from data_pipelines import demo_model
from medjax import cli
from medjax.commands import demo
from medjax.weights.formats import archive


def test_the_card_describes_the_shipped_model():
    card, content = demo.card(), demo.MODEL.read_bytes()
    assert len(content) == card["bytes"] <= demo_model.LARGEST
    assert hashlib.sha256(content).hexdigest() == card["sha256"]
    read = archive.read(demo.MODEL)
    assert read.manifest["provenance"]["step"] == card["step"]
    assert set(read.manifest["licences"].values()) == {"CC0-1.0"}
    assert card["changes"] == demo_model.CHANGES and card["recipe"] == demo_model.RECIPE
    given = read.documents["config"]
    assert given["model"]["base_features"] == card["changes"]["model.base_features"]
    assert card["training"]["seed"] == given["data"]["phantom_seed"] != demo.SEED
    assert card["golden"]["mean"] > 0.7 and set(card["golden"]["dice"]["PhantomMR"]) == {
        "liver",
        "liver tumour",
    }


def test_the_shipped_model_has_its_golden_dice():
    golden = demo.card()["golden"]["coarse_ct"]
    assert demo_model.coarse_ct(demo.MODEL) == pytest.approx(golden, abs=0.02)


def test_a_browser_is_opened_only_where_there_is_a_screen(monkeypatch):
    for name in ("CI", "DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    assert not demo._has_browser()
    monkeypatch.setenv("DISPLAY", ":0")
    assert demo._has_browser()
    monkeypatch.setenv("CI", "true")
    assert not demo._has_browser()


def test_the_command_opens_the_page_unless_it_is_told_not_to(monkeypatch, tmp_path, capsys):
    made = demo.Shown(tmp_path, tmp_path / "report.html", {}, 0.5, [])
    opened = []
    monkeypatch.setattr(demo, "demo", lambda folder, seed: made)
    monkeypatch.setattr(demo, "_has_browser", lambda: True)
    monkeypatch.setattr("webbrowser.open", opened.append)
    assert cli.main(["demo", "-o", str(tmp_path), "--no-open"]) == 0 and opened == []
    assert cli.main(["demo", "-o", str(tmp_path)]) == 0
    assert opened == [(tmp_path / "report.html").as_uri()]
    assert "mean Dice 0.500" in capsys.readouterr().out


def test_what_is_in_the_way_is_not_replaced(tmp_path, capsys):
    mine = tmp_path / "phantoms" / "Task01_PhantomCT" / "dataset.json"
    mine.parent.mkdir(parents=True)
    mine.write_text('{"mine": 1}')
    assert cli.main(["demo", "-o", str(tmp_path), "--no-open"]) == 2
    assert "holds another data set" in capsys.readouterr().err
    assert mine.read_text() == '{"mine": 1}' and not (tmp_path / "predictions").exists()
    assert cli.main(["demo", "-o", str(tmp_path / "x"), "--seed", "-1", "--no-open"]) == 2


@pytest.mark.slow
def test_the_demo_from_an_empty_folder(tmp_path, repository):
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    environment |= {"PYTHONPATH": str(repository), "JAX_PLATFORMS": "cpu"}

    def run():
        words = [sys.executable, "-m", "medjax.cli", "demo", "--no-open"]
        return subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True)

    done = run()
    assert done.returncode == 0, done.stderr
    folder, golden = tmp_path / "medjax_demo", demo.card()["golden"]
    found = json.loads((folder / "evaluation" / "summary.json").read_text())
    dice = {c: {k: v["Dice"]["mean"] for k, v in row.items()} for c, row in found["cells"].items()}
    for corpus, row in golden["dice"].items():
        assert dice[corpus] == pytest.approx(row, abs=0.01)
    said = float(re.search(r"mean Dice (\S+) on bodies", done.stdout)[1])
    assert said == pytest.approx(golden["mean"], abs=0.01)
    for line in ("scans     ", "model     ", "masks     ", "page      "):
        assert line in done.stdout
    page = folder / "evaluation" / "report.html"
    assert page.is_file()
    masks = {p: p.stat().st_mtime_ns for p in (folder / "predictions").rglob("*.nii.gz")}
    assert len(masks) == 3 and run().returncode == 0  # continues
    assert {p: p.stat().st_mtime_ns for p in masks} == masks
    page.write_text("mine")
    again = run()
    assert again.returncode == 2 and "did not write" in again.stderr
    assert page.read_text() == "mine"
