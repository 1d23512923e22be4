"""Python texts of the pages do what the pages say."""

import os
import re
import subprocess
import sys

import numpy as np
import pytest

from medjax import cli
from medjax.errors import EXIT_OK
from medjax.experiment import load
from tests.support import old_run

pytestmark = pytest.mark.slow


def test_the_parameters_of_a_run_are_read_with_nothing_but_orbax(repository, tmp_path, monkeypatch):
    """The example of docs/from_jax.md, on a run of an earlier version."""
    monkeypatch.chdir(old_run.unpack(tmp_path))
    assert cli.main(["export", "run", "-o", "slim", "--orbax"]) == EXIT_OK
    text = (repository / "docs/from_jax.md").read_text()
    example = re.search(r"^```python orbax\n(.*?)^```", text, re.M | re.S)[1]
    assert "medjax" not in example
    found: dict = {}
    exec(example, found)
    expected = load("slim").params
    assert set(found["params"]) == set(expected)
    for name, values in _leaves(expected):
        here = found["params"]
        for key in name:
            here = here[key]
        np.testing.assert_array_equal(np.asarray(here), np.asarray(values))


def _leaves(tree, path=()):
    for key, value in tree.items():
        if hasattr(value, "items"):
            yield from _leaves(value, (*path, key))
        else:
            yield (*path, key), value


def test_the_python_text_of_the_readme_runs(repository, tmp_path):
    """With a training of two steps, and a phantom as the scan."""
    text = (repository / "README.md").read_text()
    example = re.search(r"^```python\n(.*?)^```", text, re.M | re.S)[1]
    assert '{"train.steps": 300}' in example and '"scan.nii.gz"' in example
    few = '{"train.steps": 2, "data.phantom_cases": 5, "evaluate.surface": False}'
    example = example.replace('{"train.steps": 300}', few)
    scan = "runs/demo/phantoms/Task01_PhantomCT/imagesTr/ct_000.nii.gz"
    example = example.replace("scan.nii.gz", scan)
    example += f"import nibabel\nprint('on the grid', mask.shape == nibabel.load({scan!r}).shape)\n"
    environment = os.environ | {"PYTHONPATH": str(repository), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", example],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "on the grid True" in done.stdout
