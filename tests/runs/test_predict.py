"""The way of a scan through `medjax predict`: how often its file is opened, and what is known of
it.
"""

import builtins
import collections
import hashlib
import json
import os

import pytest

from medjax import cli
from medjax.infer import outputs
from medjax.infer.segmenter import Segmenter
from tests.support.raw import make_case, save
from tests.support.run import make_run


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A run of random weights and three scans, one of them not compressed."""
    root = tmp_path_factory.mktemp("predict")
    make_run(root / "run")
    for i, ending in enumerate((".nii.gz", ".nii", ".nii.gz")):
        image, _ = make_case((12, 13, 11), [1, 2], kind="CT", seed=i)
        save(root / "in" / f"c{i}{ending}", image[..., 0])
    return root


@pytest.fixture
def opened(root, monkeypatch):
    """File name -> how often a scan was opened."""
    counts, real = collections.Counter(), builtins.open

    def spy(file, *args, **kwargs):
        if isinstance(file, str | os.PathLike) and os.path.dirname(file) == str(root / "in"):
            counts[os.path.basename(file)] += 1
        return real(file, *args, **kwargs)

    monkeypatch.setattr(builtins, "open", spy)
    return counts


def predict(root, out, *more):
    given = ["-m", str(root / "run"), "-i", str(root / "in"), "-o", str(out), "--quiet"]
    return cli.main(["predict", *given, *more])


# header and voxels; the page reads what it shows once more; of a complete case the header and hash
@pytest.mark.parametrize(
    "options, opens",
    [(["--no-html"], 2), (["--no-html", "--statistics", "--preview"], 2), ([], 3)],
)
def test_a_scan_is_looked_at_once_and_read_once(root, tmp_path, opened, options, opens):
    assert predict(root, tmp_path / "out", *options) == 0
    assert opened == dict.fromkeys(("c0.nii.gz", "c1.nii", "c2.nii.gz"), opens)
    opened.clear()
    assert predict(root, tmp_path / "out", *options, "--no-html", "--continue") == 0
    assert opened == dict.fromkeys(("c0.nii.gz", "c1.nii", "c2.nii.gz"), 2)


def test_the_hashes_are_those_of_the_files(root, tmp_path):
    assert predict(root, tmp_path / "out", "--no-html") == 0
    cases = json.loads((tmp_path / "out" / "run.json").read_text())["cases"]
    found = {path: digest for case in cases.values() for path, digest in case["inputs"].items()}
    assert found == {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in (root / "in").iterdir()
    }


@pytest.mark.parametrize("options", [[], ["--one-file-per-class"], ["--max-memory", "6"]])
def test_forecasts_and_outputs_are_made_once(root, tmp_path, monkeypatch, options):
    counts = collections.Counter()

    def count(owner, name):
        real = getattr(owner, name)

        def spy(*args, **kwargs):
            counts[name] += 1
            return real(*args, **kwargs)

        monkeypatch.setattr(owner, name, spy)

    count(Segmenter, "forecast")
    count(outputs, "check")
    assert predict(root, tmp_path / "out", "--no-html", *options) == 0
    assert counts == {"forecast": 3, "check": 1}
