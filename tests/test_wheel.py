"""A wheel, installed into a fresh environment: the user's first commands from an empty folder."""

import importlib.util
import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
LEFT_OUT = ("medjax", "_editable_impl_medjax", "pip", "setuptools", "__editable__")


def _done(command, **options):
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, **options)


def _venv(folder: Path) -> Path:
    """A new environment; its python."""
    made = _done([sys.executable, "-m", "venv", folder])
    assert made.returncode == 0, made.stderr
    return folder / "bin" / "python"


@pytest.fixture(scope="module")
def builder(tmp_path_factory) -> Path | str:
    """A python with hatchling: this one, or a new environment if pip has it."""
    if importlib.util.find_spec("hatchling"):
        return sys.executable
    python = _venv(tmp_path_factory.mktemp("builder") / "venv")
    got = _done([python, "-m", "pip", "install", "-q", "hatchling", "editables"])
    if got.returncode:
        pytest.skip("hatchling is not installed and cannot be had from pip")
    return python


@pytest.fixture(scope="module")
def installed(builder, repository, tmp_path_factory) -> Path:
    """bin/ of an environment that has the wheel, and this one's packages apart from medjax."""
    folder = tmp_path_factory.mktemp("wheel")
    built = _done(
        [builder, "-m", "hatchling", "build", "-t", "wheel", "-d", folder], cwd=repository
    )
    assert built.returncode == 0, built.stderr
    python, deps = _venv(folder / "venv"), folder / "deps"
    deps.mkdir()
    for path in Path(sysconfig.get_paths()["purelib"]).iterdir():
        if not path.name.startswith(LEFT_OUT):
            (deps / path.name).symlink_to(path)
    (wheel,) = folder.glob("*.whl")
    got = _done([python, "-m", "pip", "install", "-q", "--no-deps", "--no-index", wheel])
    assert got.returncode == 0, got.stderr
    (site,) = (folder / "venv" / "lib").glob("python*/site-packages")
    (site / "deps.pth").write_text(str(deps))
    names = {p.parts[0] for p in map(Path, zipfile.ZipFile(wheel).namelist())}
    assert {n for n in names if not n.endswith("dist-info")} == {"medjax", "medjax_verbs"}
    assert (site / "medjax" / "py.typed").is_file()
    return python.parent


@pytest.fixture
def run(installed, tmp_path):
    """(words) -> the finished command in an empty folder, without the checkout on any path."""
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "MEDJAX_TEST_FOLDER")}
    (tmp_path / "empty").mkdir()

    def command(program, *words):
        options = {"cwd": tmp_path / "empty", "env": kept | {"JAX_PLATFORMS": "cpu"}}
        return _done([installed / program, *words], **options)

    return command


def test_the_first_command_of_a_user(run, tmp_path):
    done = run("python", "-m", "medjax.main", "--config=configs/tsfm.py")
    assert done.returncode == 2, done.stderr
    assert "parameters           1,606,287,227" in done.stdout
    assert "medjax ingest msd --raw DOWNLOAD --out STORE" in done.stdout
    assert "what runs now:" in done.stdout and "11 corpora of the config" in done.stderr
    assert list((tmp_path / "empty").iterdir()) == []
    dry = run("medjax", "train", "configs/tsfm.py", "--mode=dry")
    assert (dry.returncode, dry.stdout) == (0, done.stdout)


def test_what_it_says_runs(run, tmp_path):
    done = run(
        "python",
        "-m",
        "medjax.main",
        "--config",
        "configs/multitalent.py:demo",
        "--config.data.phantom_cases=3",
        "--config.train.steps=2",
        "--config.model.base_features=4",
        "--config.train.patch=16,16,16",
        "--config.data.spacing_mm=6,6,6",
        "--config.data.split.folds=2",
        "--config.evaluate.montages=0",
    )
    assert done.returncode == 0, done.stderr
    for words in (
        "drawing the synthetic corpora ...",
        "compiling the training step ...",
        "scoring ",
    ):
        assert words in done.stderr
    assert (tmp_path / "empty/runs/multitalent_demo/evaluation/report.html").is_file()


def test_the_first_mask(run, tmp_path):
    done = run("medjax", "demo", "--no-open")
    assert done.returncode == 0, done.stderr
    assert "mean Dice 0.7" in done.stdout and "site-packages/medjax/phantom/assets" in done.stdout
    assert (tmp_path / "empty/medjax_demo/evaluation/report.html").is_file()


def test_entry_points_and_public_corpora(run):
    assert "medjax ingest amos22" in run("medjax", "info", "--corpora").stdout
    assert "AMOS22_MR: AMOS" in run("medjax", "ingest", "amos22", "--describe").stdout
    code = "import medjax, importlib.util as u; print(u.find_spec('configs'), medjax.__file__)"
    assert run("python", "-c", code).stdout.startswith("None ")


def test_an_editable_installation_uses_the_checkout(builder, repository, tmp_path):
    built = _done(
        [
            builder,
            "-c",
            "import sys; from hatchling.builders.wheel import WheelBuilder as W;"
            "print(list(W(sys.argv[1]).build(directory=sys.argv[2], versions=['editable'])))",
            repository,
            tmp_path,
        ]
    )
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert not [n for n in names if "shipped" in n] and any(n.endswith(".pth") for n in names)
