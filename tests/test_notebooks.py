"""The notebooks: .ipynb files agree with their scripts, and every script runs to its end."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
spec = importlib.util.spec_from_file_location("convert", ROOT / "notebooks" / "convert.py")
convert = importlib.util.module_from_spec(spec)
spec.loader.exec_module(convert)
SCRIPTS = convert.scripts()
NAMES = {"quickstart", "own_folder", "tsfm", "partial_labels", "adapt", "segvol"}


def test_the_notebooks_are_made_of_their_scripts():
    assert {path.stem for path in SCRIPTS} == NAMES
    assert {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")} == NAMES
    assert convert.main(["--check"]) == 0


def test_a_cell_that_was_changed_is_noticed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(convert, "HERE", tmp_path)
    (tmp_path / "one.py").write_text("# %% [markdown]\n# Text\n#\n# more\n\n# %%\nx = 1\nx\n")
    assert convert.main([]) == 0 and convert.main(["--check"]) == 0
    cells = json.loads((tmp_path / "one.ipynb").read_text())["cells"]
    assert [(c["cell_type"], "".join(c["source"])) for c in cells[1:]] == [
        ("markdown", "Text\n\nmore"),
        ("code", "x = 1\nx"),
    ]
    assert "colab.research.google.com/github/" in cells[0]["source"][0]
    (tmp_path / "one.py").write_text("# %%\nx = 2\n")
    assert convert.main(["--check"]) == 1 and "one.ipynb" in capsys.readouterr().out


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_every_notebook_installs_without_replacing_jax(path):
    (first, *_) = [content for kind, content in convert.cells(path.read_text()) if kind == "code"]
    assert 'find_spec("medjax") is None' in first and '"-c", "kept.txt"' in first
    text = json.loads(path.with_suffix(".ipynb").read_text())
    assert all(not c.get("outputs") for c in text["cells"]) and text["nbformat"] == 4


@pytest.mark.notebook
@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    environment |= {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "CI": "1"}
    done = subprocess.run(
        [sys.executable, str(path)], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
