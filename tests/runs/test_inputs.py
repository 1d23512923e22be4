"""A network with an input that medjax does not know by name trains, predicts, is exported, grows
and is rehearsed: no part of medjax lists the inputs of a network.
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.base import base_config
from medjax import cli
from medjax.errors import UsageError
from medjax.labels import Corpus, merge
from medjax.models import context
from medjax.registry import plain
from medjax.runs import build, dry, stages
from medjax.runs import open as corpora
from medjax.runs.exchange.export import export
from medjax.runs.trained import read_model
from medjax.weights.formats import archive, stablehlo
from medjax_verbs import grow
from tests.support import toy_inputs
from tests.support.configs import typed
from tests.support.marks import slow
from tests.support.raw import write_corpus
from tests.support.run import make_run

TASKS = {"Heart": "organs", "Sarcoma": "tumours"}
LABELS = {"Heart": {"atrium": 1}, "Sarcoma": {"tumour": 1}, "Lesion": {"lesion": 1}}


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """Three corpora; the second has larger voxels, so that a network can tell them apart."""
    root = tmp_path_factory.mktemp("raw")
    return {
        name: write_corpus(
            root / f"Task0{k}_{name}",
            n=3,
            shape=(8, 10, 12),
            labels=labels,
            spacing_mm=(1.0, 1.0, 1.0 + k % 2),
        )
        for k, (name, labels) in enumerate(LABELS.items())
    }


def _fields(raw, which):
    fields = plain(base_config())
    fields["model"] = {"name": "toy_inputs", "which": which}
    fields["data"] |= {
        "folders": ",".join(str(raw[name]) for name in TASKS),
        "split": fields["data"]["split"] | {"folds": 2},
        "spacing_rule": "per_corpus",
        "tasks": TASKS,
    }
    fields["sampler"] |= {"exponent": 1.0}
    fields["augment"] = {"on": False}
    fields["optim"] |= {"lr": 0.1}
    fields["train"] |= {
        "patch": (8, 8, 8),
        "batch": 4,
        "steps": 3,
        "validate_every": 3,
        "validation_batches": 1,
        "log_every": 1,
    }
    return fields


@pytest.mark.slow
@pytest.mark.parametrize("which, given", [("volume", "spacing_mm"), ("task", "task")])
def test_a_network_with_its_own_input_needs_no_other_edit(raw, tmp_path, monkeypatch, which, given):
    toy_inputs.installed(monkeypatch)
    fields, run = _fields(raw, which), tmp_path / "run"
    assert "toy_inputs" in dry.dry(typed(fields), run)

    stages.train(stages.open_run(fields, run))
    trained = read_model(run)
    params = trained.params()
    if which == "volume":
        assert np.all(params["slope"] != 1)  # it begins at 1: the input took part
    assert len(params.get("table", "ab")) == 2
    assert '"dice/tumour"' in (run / "metrics.jsonl").read_text()

    export(run, tmp_path / "f.medjax", "function", platforms=("cpu",))
    export(run, tmp_path / "w.medjax")
    found = archive.read(tmp_path / "f.medjax")
    listed = found.manifest["function"]
    standard = ["corpus (b,) int32", "modality (b,) int32", "spacing_mm (b, 3) float32"]
    assert listed["inputs"][1:] == [*standard, *["task (b,) int32"] * (which == "task")]
    assert set(stablehlo.reads(found)) == {*context.DEFAULT, given}
    facts = {"task": jnp.array([0, 1]), "spacing_mm": jnp.array([[1.0, 1, 1], [1, 1, 4]])}
    facts |= {"corpus": jnp.array([1, 0]), "modality": jnp.array([0, 0])}
    image = jax.random.normal(jax.random.key(0), (2, 8, 8, 8, 1))
    inside = context.of_batch(trained.network.reads, facts)
    expected = np.asarray(trained.network.apply(params, image, inside)["logits"])
    apply, window = stablehlo.function(found)
    assert window == (8, 8, 8)
    np.testing.assert_allclose(apply({}, image, facts)["logits"], expected, atol=1e-5)
    same = np.asarray(trained.network.apply(params, image[jnp.array([0, 0])], inside)["logits"])
    assert np.abs(same[0] - same[1]).max() > 1e-4

    config, space = _grown(raw, run, tmp_path / "grown")
    report = grow.check(run, config, space)
    assert report.change < 1e-5 and report.added["heads"] == 5  # a class: 4 weights and a bias


def _grown(raw, run, workdir):
    config = grow.grown_config(
        run, [str(raw["Lesion"])], workdir, **{"data.tasks": TASKS | {"Lesion": "tumours"}}
    )
    return config, corpora.open_data(config.data, workdir).space


@pytest.mark.parametrize("which", [slow("volume"), "task"])
def test_every_form_of_such_a_model_predicts_the_same(raw, tmp_path, monkeypatch, which):
    toy_inputs.installed(monkeypatch)
    two = [Corpus(name, ((1, (next(iter(LABELS[name])),)),), channels=("CT",)) for name in TASKS]
    run = make_run(
        tmp_path / "run",
        two,
        model={"name": "toy_inputs", "which": which},
        data={"tasks": TASKS},
    )
    export(run, tmp_path / "f.medjax", "function", platforms=("cpu",))
    export(run, tmp_path / "w.medjax")
    scan = next((raw["Sarcoma"] / "imagesTr").glob("*"))
    masks = {}
    for form in ("run", "w.medjax", "f.medjax"):
        for corpus in TASKS:
            out = tmp_path / f"{form}-{corpus}"
            words = ["predict", "-m", str(tmp_path / form), "-i", str(scan), "-o", str(out)]
            assert cli.main([*words, "--corpus", corpus, "--quiet"]) == 0
            masks[form, corpus] = next(out.glob("*.nii.gz")).read_bytes()
        if form == "w.medjax":  # a function needs no code of its network
            monkeypatch.delitem(sys.modules, "medjax.models.toy_inputs")
    for corpus in TASKS:
        assert masks["run", corpus] == masks["w.medjax", corpus] == masks["f.medjax", corpus]


def test_tasks_are_corpora_unless_they_are_grouped():
    names = ("A", "B", "C")
    space = merge([Corpus(name, ((1, ("organ",)),), channels=("CT",)) for name in names])
    assert build.tasks(typed({}), space) == ((0, 1, 2), names)
    grouped = {"data": {"tasks": {"C": "first", "A": "first"}}}
    assert build.tasks(typed(grouped), space) == ((0, 1, 0), ("first", "B"))
    with pytest.raises(UsageError, match=r"data\.tasks names an unknown corpus 'D'"):
        build.tasks(typed({"data": {"tasks": {"D": "x"}}}), space)
    assert build.tasks(typed({"data": {"tasks": {"D": "x"}, "only": "A,B,C"}}), space)[1] == names
