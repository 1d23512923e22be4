"""A rehearsal uses the spacing that preparation will choose, or says first that it assumes one."""

import json

import numpy as np
import pytest

from configs.base import base_config
from configs.multitalent import get_config
from medjax import main
from medjax.prepare.fingerprint import fingerprint, make_plan
from medjax.registry import plain
from medjax.runs import build, config, spacing
from medjax.runs import open as corpora
from tests.support.configs import typed
from tests.support.raw import write_corpus

COARSE = (5.0, 0.8, 0.8)


def fields_of(folders, **data):
    fields = plain(base_config())
    fields["data"] |= {"folders": ",".join(map(str, folders)), **data}
    fields["data"]["split"]["folds"] = 2
    return fields


def expected(fields, workdir):
    data = corpora.open_data(typed(fields).data, workdir, files=False)
    return spacing.expected(config.with_plan(typed(fields)), data, workdir), data


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """A corpus of thick slices, and one of isotropic voxels."""
    root = tmp_path_factory.mktemp("raw")
    thick = write_corpus(root / "Task01_Thick", n=3, shape=(6, 30, 30), spacing_mm=COARSE)
    fine = write_corpus(root / "Task02_Fine", n=2, shape=(12, 12, 12), axcodes="LIP")
    return thick, fine


@pytest.mark.parametrize("rule", ["median", "per_corpus"])
@pytest.mark.parametrize("both", [True, False])
def test_headers_give_the_spacing_of_the_plan(scans, tmp_path, rule, both):
    fields = fields_of(scans if both else scans[:1], spacing_rule=rule)
    found, data = expected(fields, tmp_path)
    prints = {c.name: fingerprint(c, data.cases[c.name]) for c in data.stores}
    plan = make_plan(prints, spacing=rule)
    assert found.spacing_mm == pytest.approx(np.mean(list(plan.spacing_mm.values()), 0).tolist())
    assert not found.assumed and f"headers of {5 if both else 3} scans" in found.source


def test_grids_without_a_target_spacing(scans, tmp_path):
    found, _ = expected(fields_of(scans[:1], spacing_rule="native"), tmp_path)
    assert found.spacing_mm == pytest.approx(COARSE)
    fields = fields_of(scans[:1], size=(3, 15, 15), spacing_mm=(9, 9, 9))
    found, data = expected(fields, tmp_path)
    prints = {c.name: fingerprint(c, data.cases[c.name]) for c in data.stores}
    planned = make_plan(prints, size=(3, 15, 15)).mean_spacing()
    assert found.spacing_mm == pytest.approx(planned) and planned[0] == pytest.approx(10.0)
    assert "uncropped" in found.source


@pytest.mark.slow
def test_no_scan_on_disk_is_said_first(tmp_path, capsys):
    fields = plain(get_config("unet")) | {}
    fields["data"]["spacing_mm"] = ()
    found, _ = expected(fields, tmp_path)
    assert found.assumed and found.spacing_mm == (1.0, 1.0, 1.0)
    assert found.sentence().startswith("at an assumed spacing of 1 x 1 x 1 mm: no scan of ")
    assert "and 10 more is on disk" in found.sentence()
    flags = ["--config=configs/tsfm.py:t", f"--workdir={tmp_path}", "--mode=dry"]
    assert main.main(flags) == 0
    assert capsys.readouterr().out.startswith("at an assumed spacing of 1 x 1 x 1 mm: no scan of ")


def test_a_part_of_the_scans_gives_an_assumed_spacing_too(scans, tmp_path):
    fields = fields_of(scans[:1], phantom_cases=2)
    found, _ = expected(fields, tmp_path)
    assert found.assumed and found.spacing_mm == pytest.approx(COARSE)
    assert "Task01_Thick" in found.source or "Thick" in found.source
    assert "no scan of" in found.source


def test_the_config_and_the_plan_come_first(scans, tmp_path):
    found, data = expected(fields_of(scans, spacing_mm=(3, 2, 1)), tmp_path)
    assert found.spacing_mm == (3.0, 2.0, 1.0) and "config.data.spacing_mm" in found.source
    prints = {c.name: fingerprint(c, data.cases[c.name]) for c in data.stores}
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(make_plan(prints, spacing=(4.0, 3.0, 3.0)).to_json()))
    found, _ = expected(fields_of(scans, plan=str(path)), tmp_path)
    assert found.spacing_mm == (4.0, 3.0, 3.0) and "plan" in found.source and not found.assumed


def test_sizes_after_the_crop_decide_and_are_said_until_they_are_known(tmp_path):
    """Cropped, the slices are so small that the coarse axis keeps its median; with their borders
    the same scans fall under the rule for few thick slices.
    """
    folder = write_corpus(
        tmp_path / "Task01_Bordered",
        n=3,
        shape=(8, 40, 40),
        spacing_mm=COARSE,
        margin=0,
        vary=False,
    )
    fields = fields_of([folder])
    uncertain, data = expected(fields, tmp_path)
    assert uncertain.spacing_mm == pytest.approx(COARSE)  # all scans agree: the crop cannot matter
    assert "cropping" not in uncertain.source
    mixed = write_corpus(
        tmp_path / "Task02_Mixed", n=2, shape=(8, 40, 40), spacing_mm=(3.0, 0.8, 0.8), seed=9
    )
    fields = fields_of([folder, mixed])
    uncertain, data = expected(fields, tmp_path)
    assert uncertain.spacing_mm[0] < 5.0 and "5 x 0.8 x 0.8 mm if cropping" in uncertain.source
    cache = tmp_path / "store" / ".fingerprints"
    for corpus in data.stores:
        fingerprint(corpus, data.cases[corpus.name], cache=cache / f"{corpus.name}.json")
    known, _ = expected(fields, tmp_path)
    assert "cropping" not in known.source
    kept = json.loads((cache / f"{data.stores[0].name}.json").read_text())
    kept["fingerprint"]["spacings_mm"][0] = [1.0, 1.0, 1.0]  # of other scans
    (cache / f"{data.stores[0].name}.json").write_text(json.dumps(kept))
    assert "cropping" in expected(fields, tmp_path)[0].source


def test_scans_without_a_readable_header_are_left_out(scans, tmp_path):
    folder = write_corpus(tmp_path / "Task03_Broken", n=3, shape=(6, 30, 30), spacing_mm=COARSE)
    fields = fields_of([folder])
    data = corpora.open_data(typed(fields).data, tmp_path, files=False)
    victim = sorted((folder / "imagesTr").iterdir())[0]
    victim.write_bytes(victim.read_bytes()[:100])
    found = spacing.expected(typed(fields), data, tmp_path)
    assert found.spacing_mm == pytest.approx(COARSE)
    assert "headers of 2 scans (1 could not be read)" in found.source


@pytest.mark.slow
def test_the_parameters_of_the_rehearsal_are_those_of_the_training(scans, tmp_path, capsys):
    flags = [
        "--config=configs/multitalent.py:demo",
        f"--workdir={tmp_path / 'run'}",
        f"--config.data.folders={scans[0]}",
        "--config.data.phantom_cases=0",
        "--config.data.spacing_mm=()",
        "--config.data.split.folds=3",
        "--config.model.base_features=4",
        "--config.train.patch=8,32,32",
        "--config.train.batch=2",
        "--config.train.steps=1",
        "--config.train.validate_every=0",
        "--config.evaluate.on=False",
        "--config.optim.warmup_steps=0",
    ]
    assert main.main([*flags, "--mode=dry"]) == 0
    dry = capsys.readouterr().out
    assert not dry.startswith("at an assumed") and "5 x 0.8 x 0.8 mm, from the headers" in dry
    count = next(line for line in dry.splitlines() if line.startswith("parameters ")).split()[1]
    at_1_mm = build.make_network(
        typed(
            fields_of(scans[:1])
            | {"model": plain(get_config("demo"))["model"] | {"base_features": 4}}
            | {"train": {"patch": (8, 32, 32)}}
        ),
        corpora.open_data(typed(fields_of(scans[:1])).data, tmp_path, files=False).space,
        (1.0, 1.0, 1.0),
    )
    assert f"{build.count(at_1_mm.abstract()):,}" != count, "the spacing matters here"
    assert main.main(flags) == 0
    assert f"{count} parameters" in capsys.readouterr().out
