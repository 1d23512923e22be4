"""Adapters of runs: trained on a base, taken out as files, joined, merged, stacked, refused."""

import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import traverse_util

import medjax
from configs.base import base_config
from medjax import cli, files
from medjax.errors import ModelError, UsageError
from medjax.labels import Corpus
from medjax.registry import plain
from medjax.runs import build, stages
from medjax.runs.exchange import adapters
from medjax.runs.settings import schema
from medjax.runs.trained import load_predictor, read_model
from medjax.train import checkpoint
from medjax.weights.formats import adapter as form
from tests.support.configs import typed
from tests.support.raw import write_corpus
from tests.support.run import make_run, small_unet

HEAD = r"^(head|out)_?\d*/"
RULES = ((HEAD, "whole"), (r"/kernel$", 2), (".*", 0))
SUFFIX = form.SUFFIX


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    root = tmp_path_factory.mktemp("raw")
    return {
        name: write_corpus(root / f"Task0{k}_{name}", n=4, shape=(8, 10, 12), labels=labels)
        for k, (name, labels) in enumerate({"New": {"cyst": 1}, "More": {"cyst": 1}}.items())
    }


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A finished run of another corpus, with random weights."""
    old = Corpus("Old", ((1, ("organ",)), (2, ("tumour",))), channels=("CT",))
    return make_run(tmp_path_factory.mktemp("base") / "base", [old])


def _fields(raw, base, *, rules=RULES, corpora=("New",), **more):
    fields = plain(base_config())
    fields["name"] = "to_" + "_".join(corpora).lower()
    fields["model"] = {"name": "unet", **small_unet(3)}
    fields["data"] |= {
        "folders": ",".join(str(raw[name]) for name in corpora),
        "split": fields["data"]["split"] | {"folds": 2},
        "spacing_mm": (1.0, 1.0, 1.0),
    }
    fields["augment"] = {"on": False}
    fields["optim"] |= {"name": "adamw", "lr": 0.05}
    fields["init"] |= {"source": str(base or ""), "heads": ((HEAD, -1),)}
    fields["adapters"] = {"rules": rules, **more}
    fields["train"] |= {
        "patch": (8, 8, 8),
        "batch": 2,
        "steps": 4,
        "validate_every": 4,
        "validation_batches": 1,
        "checkpoint_every": 2,
    }
    return fields


@pytest.fixture(scope="module")
def run(raw, base, tmp_path_factory):
    """A run that adapted the base to a new corpus."""
    folder = tmp_path_factory.mktemp("adapted") / "run"
    stages.train(stages.open_run(_fields(raw, base), folder))
    return folder


@pytest.fixture(scope="module")
def file(run, tmp_path_factory):
    path = tmp_path_factory.mktemp("file") / f"new{SUFFIX}"
    adapters.extract(run, path)
    return path


def _flat(tree):
    return traverse_util.flatten_dict(tree, sep="/")


def test_only_adapters_and_whole_leaves_are_trained(run, base):
    trained, before = _flat(read_model(run).params()), _flat(checkpoint.read_params(base))
    frozen = {p for p in before if p in trained and not re.search(HEAD, p)}
    assert len(frozen) > 4 and all(np.array_equal(trained[p], before[p]) for p in frozen)
    moved = [p for p in trained if p.endswith("lora_b")]
    assert moved and all(np.any(np.asarray(trained[p])) for p in moved)
    report = json.loads((run / "transfer.json").read_text())
    assert set(moved) < set(report["fresh"]) and set(report["loaded"]) == frozen
    steps = [p for p in (run / "checkpoints").iterdir() if p.name.isdecimal()]
    sizes = [sum(f.stat().st_size for f in p.rglob("*") if f.is_file()) for p in steps]
    assert steps and (run / "checkpoints" / "base").is_dir() and max(sizes) < 1 << 20


@pytest.mark.slow
def test_a_head_alone_is_an_adapter_too(raw, base, tmp_path):
    """Rules without a rank: only the head is trained, and the file holds only it."""
    fields = _fields(raw, base, rules=((HEAD, "whole"), (".*", 0)))
    stages.train(stages.open_run(fields, tmp_path / "run"))
    trained, before = (
        _flat(read_model(tmp_path / "run").params()),
        _flat(checkpoint.read_params(base)),
    )
    moved = {p for p in trained if not np.array_equal(trained[p], before.get(p, ()))}
    assert moved == {p for p in trained if re.search(HEAD, p)} != set(trained)
    path = tmp_path / f"head{SUFFIX}"
    adapters.extract(tmp_path / "run", path)
    assert set(form.read(path).arrays) == moved
    image = np.random.default_rng(0).normal(size=(8, 10, 12)).astype(np.float32)
    ours = medjax.Predictor(base, adapter=path).predict(image, np.eye(4))
    np.testing.assert_array_equal(
        ours, medjax.Predictor(tmp_path / "run").predict(image, np.eye(4))
    )


@pytest.mark.slow
def test_the_balance_of_a_learned_gate_is_a_loss_of_the_run(raw, base, tmp_path):
    fields = _fields(raw, base, experts=3, routing="image")
    fields["losses"] = {**fields["losses"], "balance": {"weight": 0.1}}
    stages.train(stages.open_run(fields, tmp_path / "run"))
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
    said = [row["loss/balance"] for row in rows if "loss/balance" in row]
    assert said and all(0 <= value < 2 for value in said)  # 3 experts: at most 2
    gate = _flat(read_model(tmp_path / "run").params())["adapter_router/bias"]
    assert np.any(np.asarray(gate))
    plain_run = _fields(raw, base)
    plain_run["losses"] = fields["losses"]
    with pytest.raises(UsageError, match="needs a learned gate"):
        stages.train(stages.open_run(plain_run, tmp_path / "plain"))


def test_predicting_with_the_file_is_predicting_with_the_run(run, base, file, raw, tmp_path):
    assert file.stat().st_size < 4 * form.read(file).numbers + (1 << 15)
    scan = next((raw["New"] / "imagesTr").glob("*"))
    for name, words in {"run": ["-m", run], "file": ["-m", base, "--adapter", file]}.items():
        words = [*map(str, words), "-i", str(scan), "-o", str(tmp_path / name)]
        assert cli.main(["predict", *words, "--probabilities", "--quiet", "--no-html"]) == 0
    for ending in ("*.nii.gz", "*.npz"):
        one, two = (next((tmp_path / name).glob(ending)).read_bytes() for name in ("run", "file"))
        assert one == two
    manifest = json.loads((tmp_path / "file" / "run.json").read_text())
    assert "adapter" in json.dumps(manifest)
    image = np.random.default_rng(0).normal(size=(8, 10, 12)).astype(np.float32)
    ours = medjax.Predictor(base, adapter=file).predict(image, np.eye(4))
    np.testing.assert_array_equal(ours, medjax.Predictor(run).predict(image, np.eye(4)))
    assert medjax.Predictor(base).classes == ("organ", "tumour")


@pytest.mark.slow
def test_a_merged_model_predicts_the_same_and_is_not_merged_again(base, file, run, tmp_path):
    for name in ("merged.medjax", "merged"):
        out = tmp_path / name
        assert cli.main(["adapter", "merge", str(base), str(file), "-o", str(out)]) == 0
        merged = read_model(out)
        assert not any("lora" in p for p in _flat(merged.params()))
        image = jax.random.normal(jax.random.key(0), (1, 8, 8, 8, 1))
        mine = merged.network.apply(merged.params(), image, {})["logits"]
        one = adapters.attach(base, file)
        theirs = one.network.apply(one.params(), image, {})["logits"]
        np.testing.assert_allclose(mine, theirs, atol=1e-5 * float(np.abs(theirs).max()))
        with pytest.raises(UsageError, match="merged into this model before"):
            adapters.merge(out, file, tmp_path / "again.medjax")
    load_predictor(tmp_path / "merged.medjax")
    with pytest.raises(UsageError, match="exists already"):
        adapters.merge(base, file, tmp_path / "merged.medjax")


def test_a_file_is_read_once_and_named_by_its_hash(base, file, tmp_path, monkeypatch):
    reads = []

    def counted(function):
        def called(path):
            reads.append(Path(path))
            return function(path)

        return called

    monkeypatch.setattr(Path, "read_bytes", counted(Path.read_bytes))
    monkeypatch.setattr(files, "checksum_of", counted(files.checksum_of))
    text = adapters.merge(base, file, tmp_path / "merged.medjax")
    assert reads.count(file) == 1 and "merged.medjax" in text
    found = form.read(file)
    monkeypatch.undo()
    assert (
        found.checksum == files.checksum_of(file) == adapters.attach(base, found).adapted.identity
    )
    assert adapters.attach(base, str(file)).adapted.identity == found.checksum


def test_another_base_is_refused(file, tmp_path):
    old = Corpus("Old", ((1, ("organ",)), (2, ("tumour",))), channels=("CT",))
    other = make_run(tmp_path / "other", [old], seed=6)
    with pytest.raises(ModelError, match="another base"):
        adapters.attach(other, file).params()
    adapters.attach(other, file, force=True).params()
    with pytest.raises(UsageError, match="belongs to one model"):
        from medjax.runs import predict

        predict.adapted([read_model(other)] * 2, file)
    with pytest.raises(UsageError, match="belong to an adapter"):
        predict.adapted([read_model(other)], "", "New")
    with pytest.raises(UsageError, match="trained everything"):
        adapters.extract(other, tmp_path / f"x{SUFFIX}")


def test_frozen_leaves_must_be_those_of_the_base(raw, base, tmp_path):
    fields = _fields(raw, base, rules=RULES[1:])
    for classes in ({}, {"cyst": "organ"}):  # a fresh head, and a column of the base's
        fields["init"]["classes"] = classes
        with pytest.raises(UsageError, match=r"nothing trains them.*head_0/kernel"):
            stages.train(stages.open_run(fields, tmp_path / "run"))


@pytest.fixture(scope="module")
def twins(raw, tmp_path_factory):
    """A base of two corpora with equal classes, and adapters of it for each corpus alone."""
    root = tmp_path_factory.mktemp("twins")
    both = [Corpus(name, ((1, ("cyst",)),), channels=("MR",)) for name in raw]
    base = make_run(root / "base", both)
    files = {}
    for rank, only in enumerate(raw, 2):
        rules = tuple((p, rank if v == 2 else v) for p, v in RULES[1:])
        fields = _fields(raw, base, rules=rules, corpora=tuple(raw))
        fields["name"] = fields["data"]["only"] = only
        stages.train(stages.open_run(fields, root / only))
        files[only] = root / f"{only}{SUFFIX}"
        adapters.extract(root / only, files[only])
    return base, files


@pytest.mark.slow
def test_stacked_adapters_are_routed_by_name(twins, raw, tmp_path):
    base, files = twins
    out = tmp_path / f"both{SUFFIX}"
    words = ["adapter", "stack", *map(str, files.values()), "--route", "corpus", "-o", str(out)]
    assert cli.main(words) == 0
    assert "experts" not in adapters.about(files["New"])
    assert "expert 2   More" in adapters.about(out)
    image = np.random.default_rng(0).normal(size=(8, 8, 8)).astype(np.float32)
    plain_base = medjax.Predictor(base, corpus="New").probabilities(image, np.eye(4))["cyst"]
    for only, file in files.items():
        alone = medjax.Predictor(base, adapter=file, corpus=only)
        routed = medjax.Predictor(base, adapter=out, corpus=only)
        named = medjax.Predictor(base, adapter=out, expert=only, corpus=only)
        expected = alone.probabilities(image, np.eye(4))["cyst"]
        assert np.abs(expected - plain_base).max() > 1e-3
        for one in (routed, named):
            found = one.probabilities(image, np.eye(4))["cyst"]
            np.testing.assert_allclose(found, expected, atol=1e-6)
    with pytest.raises(UsageError, match="name one: --expert NAME"):
        adapters.merge(base, out, tmp_path / "m.medjax")
    adapters.merge(base, out, tmp_path / "m.medjax", expert="More")
    merged = medjax.Predictor(tmp_path / "m.medjax", corpus="More")
    np.testing.assert_allclose(merged.probabilities(image, np.eye(4))["cyst"], expected, atol=1e-5)
    with pytest.raises(UsageError, match="no expert 'Less'"):
        medjax.Predictor(base, adapter=out, expert="Less", corpus="New")


@pytest.mark.slow
def test_adapters_need_a_source_and_rules_that_fit(raw, base, tmp_path):
    with pytest.raises(UsageError, match="adapters need a trained network"):
        stages.train(stages.open_run(_fields(raw, ""), tmp_path / "a"))
    fields = _fields(raw, "", from_scratch=True)
    stages.train(stages.open_run(fields, tmp_path / "b"))
    assert "lora_a" in " ".join(_flat(read_model(tmp_path / "b").params()))
    fields = _fields(raw, base)
    fields["optim"]["trainable"] = ((HEAD, True), (".*", False))
    with pytest.raises(UsageError, match="both say what is trained"):
        stages.train(stages.open_run(fields, tmp_path / "c"))
    with pytest.raises(UsageError, match=r"config\.adapters has no field 'ranks'"):
        schema.strict({"adapters": {"rules": RULES, "ranks": 4}})
    with pytest.raises(UsageError, match="both say where"):
        build.adapter_settings(typed({"adapters": {"rules": RULES, "kernels": "unet"}}))
    with pytest.raises(UsageError, match="unknown kernels 'unets'"):
        build.adapter_settings(typed({"adapters": {"kernels": "unets"}}))
    words = {"kernels": "every", "rank": 2, "whole": HEAD}
    found = build.adapter_settings(typed({"adapters": words}))
    assert found.rules == ((HEAD, "whole"), (r"(^|/)kernel$", 2), (".*", 0))
    assert build.adapter_settings(typed({"adapters": {"rules": ()}})) is None
    assert build.adapter_settings(typed()) is None


@pytest.mark.slow
def test_a_run_goes_on_with_the_adapters_of_another(run, raw, tmp_path):
    fields = _fields(raw, run, corpora=("More",))
    fields["train"]["steps"] = 1
    fields["optim"]["lr"] = 0.0
    stages.train(stages.open_run(fields, tmp_path / "next"))
    before, after = _flat(read_model(run).params()), _flat(read_model(tmp_path / "next").params())
    lora = [p for p in before if "lora" in p]
    assert lora and all(np.array_equal(before[p], after[p]) for p in lora)


def test_an_archive_of_an_adapted_run_predicts_the_same(run, tmp_path):
    from medjax.runs.exchange.export import export

    export(run, tmp_path / "a.medjax")
    one, two = read_model(run), read_model(tmp_path / "a.medjax")
    jax.tree.map(np.testing.assert_array_equal, one.params(), two.params())
    adapters.extract(tmp_path / "a.medjax", tmp_path / f"a{SUFFIX}")
    text = adapters.about(tmp_path / f"a{SUFFIX}")
    assert "rank 2" in text and "expert 1   to_new: modality MR; corpus New" in text
    assert cli.main(["adapter", "info", str(tmp_path / f"a{SUFFIX}")]) == 0
