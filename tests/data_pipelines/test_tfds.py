"""tensorflow-datasets: a corpus built from a miniature download comes back as the same prepared
arrays, without TensorFlow.
"""

import json
import subprocess
import sys

import numpy as np
import pytest

from data_pipelines import ingest
from data_pipelines.catalogue import corpora
from data_pipelines.tfds import __main__ as tool
from medjax import cli
from medjax.corpora.sources import scan_corpus
from medjax.corpora.twins import rules_of
from medjax.errors import DataError, UsageError
from medjax.prepare import fingerprint as fingerprints
from medjax.prepare import store
from medjax.prepare.fingerprint import make_plan
from medjax.prepare.prepare import prepare
from medjax.runs import open as corpora_of
from medjax.runs import stages
from medjax.runs.settings import schema
from medjax.scans import formats, records
from tests.support import tiny
from tests.support.published import tree_of, write
from tests.support.raw import write_corpus

pytest.importorskip("tensorflow_datasets")

NAME = "KiTS19"


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A miniature download with one bad case, the data set built from it by the command, and the
    command's output.
    """
    folder = tmp_path_factory.mktemp("tfds")
    tree = tree_of(NAME, [])
    write(tree, corpora()[NAME], folder / "raw")
    bad = folder / "raw/data/case_00100"
    bad.mkdir()
    (bad / "imaging.nii.gz").write_bytes(b"not a scan")
    (bad / "segmentation.nii.gz").write_bytes(b"not a label")
    command = [
        sys.executable,
        "-m",
        "data_pipelines.tfds",
        "--corpus",
        NAME,
        "--raw",
        str(folder / "raw"),
        "--out",
        str(folder / "out"),
    ]
    code = (
        "import sys, runpy\ntry: runpy.run_module('data_pipelines.tfds', "
        "run_name='__main__')\nfinally: print('tensorflow' in sys.modules)"
    )
    done = subprocess.run(
        [command[0], "-c", code, *command[3:]], capture_output=True, text=True, timeout=300
    )
    return folder, folder / "out/corpora" / NAME / "1.0.0", done


def test_the_command_builds_records_leaves_bad_cases_out_and_never_imports_tensorflow(built):
    _, location, done = built
    assert done.returncode == 3, done.stderr
    assert "2 cases in" in done.stdout and done.stdout.splitlines()[-1] == "False"
    assert "case_00100 failed" in done.stderr and "not NIfTI" in done.stderr
    assert (
        list(location.glob("*.array_record*"))
        and json.loads((location / "corpus.json").read_text())["licence"] == "CC BY-NC-SA 4.0"
    )


def test_records_prepare_to_the_arrays_that_the_raw_files_give(built, tmp_path):
    folder, location, _ = built
    raw = [
        c
        for c in ingest.find_cases(corpora()[NAME], folder / "raw").cases
        if c.name != "case_00100"
    ]
    corpus, cases, problems = scan_corpus(f"tfds:{location}")
    assert [c.name for c in cases] == ["case_00000", "case_00209"] and not problems
    assert corpus == corpora()[NAME].corpus() and [c.patient for c in cases] == [
        c.name for c in cases
    ]
    prints = {
        kind: fingerprints.fingerprint(corpus, members, samples=2000)
        for kind, members in (("raw", raw), ("tfds", cases))
    }
    assert (
        prints["raw"].intensity == prints["tfds"].intensity
        and prints["raw"].spacings_mm == prints["tfds"].spacings_mm
    )
    plan = make_plan({NAME: prints["raw"]}, spacing=(2.0, 1.5, 1.0))
    for kind, members in (("raw", raw), ("tfds", cases)):
        result = prepare(corpus, members, plan, tmp_path / kind, workers=1)
        assert len(result.ok) == 2 and not result.failed
        assert prepare(corpus, members, plan, tmp_path / kind, workers=1).skipped == 2
    for name in ("case_00000", "case_00209"):
        first, second = (store.open_case(tmp_path / kind / NAME / name) for kind in ("raw", "tfds"))
        assert (
            (first.image() == second.image()).all()
            and (first.label() == second.label()).all()
            and first.label().any()
        )
        for field in ("transform", "gain", "bias", "spacing_mm", "voxels", "patient"):
            assert first.meta[field] == second.meta[field]


def test_a_record_is_read_as_any_file_and_a_missing_one_is_an_error(built):
    folder, location, _ = built
    _, cases, _ = scan_corpus(f"tfds:{location}")
    raw = formats.read(folder / "raw/data/case_00000/imaging.nii.gz")
    volume = formats.read(cases[0].images[0])
    assert np.allclose(volume.affine, raw.affine) and (volume.array == raw.array).all()
    assert set(np.unique(formats.read(cases[0].label, "label").array)) == {0, 1, 2}
    assert formats.read_geometry(cases[0].images[0]).array is None
    assert [rule.other_name("case_00001") for rule in rules_of(f"tfds:{location}")] == [
        "case_00001"
    ]
    with pytest.raises(DataError, match="no such record"):
        formats.read(f"tfds:{location}#7")
    with pytest.raises(UsageError, match="no data set of tensorflow-datasets"):
        scan_corpus(f"tfds:{folder}")


def test_verify_and_prepare_take_a_tfds_corpus_by_name(built, tmp_path, capsys):
    _, location, _ = built
    assert cli.main(["verify", f"tfds:{location}"]) == 0
    assert cli.main(["prepare", f"tfds:{location}", "-o", str(tmp_path / "store"), "--quiet"]) == 0
    assert "2 prepared" in capsys.readouterr().out and store.list_cases(
        tmp_path / "store", NAME
    ) == ["case_00000", "case_00209"]


def test_a_bucket_is_fetched_once_and_completely(built, tmp_path, monkeypatch):
    from etils import epath

    _, location, _ = built
    real, asked = epath.Path, []

    def bucket(path):
        asked.append(str(path))
        return real(str(path).replace("gs://bucket", str(location.parent)))

    monkeypatch.setattr(epath, "Path", bucket)
    monkeypatch.setenv("MEDJAX_HOME", str(tmp_path))
    records.local_folder.cache_clear()
    corpus, cases, _ = scan_corpus("tfds:gs://bucket/1.0.0")
    assert (
        [path for path in asked if path.startswith("gs:")] == ["gs://bucket/1.0.0"]
        and corpus.name == NAME
        and len(cases) == 2
    )
    copies = [p for p in (tmp_path / "tfds").iterdir()]
    assert len(copies) == 1 and sorted(p.name for p in copies[0].iterdir()) == sorted(
        p.name for p in location.iterdir()
    )
    assert (
        formats.read(cases[0].images[0]).array
        == formats.read(f"tfds:{location}#{cases[0].images[0].split('#')[1]}").array
    ).all()


@pytest.mark.parametrize(
    "name", ["corpora/KiTS19", "KiTS19", "corpora/KiTS19/1.0.0", "corpora/KiTS19:1.0.0", "FOLDER"]
)
def test_a_build_is_found_by_its_name_or_folder(built, name, monkeypatch):
    folder, location, _ = built
    monkeypatch.setenv("TFDS_DATA_DIR", str(folder / "out"))
    address = records.find(str(location.parent) if name == "FOLDER" else name)
    assert address == f"tfds:{location.resolve()}"
    given = tiny.fields([])
    given["data"]["tfds"] = str(location) if name == "FOLDER" else name
    found = corpora_of.open_data(schema.resolve(given).data, folder / "run")
    assert [c.name for c in found.stores] == [NAME] and found.counts[NAME] == 2


def test_the_newest_version_of_a_build_and_one_that_does_not_exist(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    for version in ("1.9.0", "1.10.0", "0.1.0"):
        (tmp_path / "corpora/X" / version).mkdir(parents=True)
        (tmp_path / "corpora/X" / version / "dataset_info.json").write_text("{}")
    assert records.find("X").endswith("/1.10.0") and records.find("X:1.9.0").endswith("/1.9.0")
    assert records.find("tfds:gs://bucket/X/1.0.0") == "tfds:gs://bucket/X/1.0.0"
    with pytest.raises(UsageError, match=r"no data set 'Y'.*corpora/X/1.10.0.*TFDS_DATA_DIR"):
        records.find("Y")


def test_a_folder_of_ones_own_becomes_a_build(tmp_path, capsys):
    raw = write_corpus(tmp_path / "Task01_Mine", n=3, labels={"organ": 1, "tumour": 2})
    arguments = ["--folder", str(raw), "--out", str(tmp_path / "tfds")]
    assert tool.main(arguments) == 0
    location = tmp_path / "tfds/folders/Mine/1.0.0"
    assert f"Mine: 3 cases in {location}" in capsys.readouterr().out
    corpus, cases, _ = scan_corpus(raw)
    found, built_cases, _ = scan_corpus(records.find(str(location.parent)))
    assert found == corpus and [c.name for c in built_cases] == [c.name for c in cases]
    for mine, other in zip(cases, built_cases, strict=True):
        for want, path, same in (
            ("image", mine.images[0], other.images[0]),
            ("label", mine.label_files[0], other.label_files[0]),
        ):
            assert (formats.read(path, want).array == formats.read(same, want).array).all()
    assert tool.main(["--corpus", NAME, "--out", "x"]) == 2
    assert "give --raw FOLDER" in capsys.readouterr().err


@pytest.mark.slow
def test_a_training_from_a_build(built, tmp_path, monkeypatch):
    folder, _, _ = built
    monkeypatch.setenv("TFDS_DATA_DIR", str(folder / "out"))
    given = tiny.fields([], steps=2)
    given["data"] |= {"tfds": NAME, "spacing_mm": (3.0, 3.0, 3.0)}
    run = stages.open_run(given, tmp_path / "run")
    stages.train(run)
    assert json.loads((tmp_path / "run/config.json").read_text())["data"]["tfds"] == NAME
    assert stages.evaluate(run) == 0
    assert (tmp_path / "run/predictions" / NAME).is_dir()


def test_nothing_of_tensorflow_datasets_is_imported_before_it_is_used(repository):
    code = (
        "import sys, medjax.corpora.sources, medjax.prepare.prepare, data_pipelines.catalogue "
        "as c; c.corpora()\n"
    )
    code += "sys.exit('tensorflow_datasets' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=repository, timeout=120).returncode == 0
