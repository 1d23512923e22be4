"""A run grows by a modality: exactly the new parts are added, old outputs stay, frozen parts stay
bitwise.
"""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.m4oe import get_config
from medjax.errors import TrainError, UsageError
from medjax.registry import plain
from medjax.runs import build, initial, stages
from medjax.runs import folder as runfolder
from medjax.runs import open as corpora
from medjax.runs.config import with_field
from medjax.train.checkpoint import Checkpoints
from medjax.weights import experts
from medjax_verbs import grow
from tests.support.configs import typed
from tests.support.marks import slow
from tests.support.raw import write_corpus

TINY = dict(width=8, depths=(1, 1), heads=(1, 2), window=4, patch_size=2)
HEART, SARCOMA = {"atrium": 1}, {"tumour": 1, "edema": 2}


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """Two MR corpora and one in CT; case_000 is one patient in two of them."""
    root = tmp_path_factory.mktemp("raw")
    heart = write_corpus(root / "Task01_Heart", n=4, shape=(6, 16, 16), labels=HEART)
    sarcoma = write_corpus(root / "Task02_SarcomaMR", n=4, shape=(6, 16, 16), labels=SARCOMA)
    ct = write_corpus(
        root / "Task03_SarcomaCT", n=4, shape=(6, 16, 16), labels=SARCOMA, channels=("CT",)
    )
    return heart, sarcoma, ct


@pytest.fixture(scope="module")
def run(raw, tmp_path_factory):
    """A run on the MR corpora as training leaves it, its parameters random in every leaf."""
    folder = tmp_path_factory.mktemp("run") / "mri"
    fields = plain(get_config("small"))
    fields["model"] = TINY | {
        k: fields["model"][k]
        for k in ("name", "experts_in", "routing", "drop_path", "share_heads", "head_bias")
    }
    fields["data"] |= {
        "folders": ",".join(map(str, raw[:2])),
        "share": "per_corpus",
        "split": fields["data"]["split"] | {"folds": 2},
    }
    fields["train"] |= {"patch": (16, 16), "batch": 2, "steps": 2, "validate_every": 0}
    fields["model"] |= {"experts": 2}
    made = stages.open_run(fields, folder)
    stages.prepare_stage(made)
    net = build.make_network(typed(fields), made.data.space, (1.0, 1.0, 1.0))
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) * 0.2, jnp.float32), net.abstract()
    )
    with Checkpoints(folder / "checkpoints") as checkpoints:
        checkpoints.save(
            2, {"step": jnp.int32(2), "params": params, "opt": {}}, {"recipe": {}, "progress": {}}
        )
    return folder


def _grown(run, raw, workdir, **more):
    config = grow.grown_config(run, [str(raw[2])], workdir, **more)
    return config, corpora.open_data(config.data, workdir)


@pytest.mark.parametrize(("begin", "gate"), [("copy", ""), slow("fresh", "closed")])
def test_old_answers_stay_and_exactly_the_new_parts_are_added(run, raw, tmp_path, begin, gate):
    config, data = _grown(run, raw, tmp_path, begin=begin, gate=gate, source="MR")
    assert data.space.modalities == ("MR", "CT") and config.model.options["experts"] == 3
    report = grow.check(run, config, data.space)
    assert (
        report.change < 1e-4 and report.modalities == ("CT",) and report.corpora == ("SarcomaCT",)
    )
    widths = (8, 16, 8)  # encoder stages 0 and 1, decoder stage 1; one block each
    assert report.added == {
        "experts": sum(8 * c * c + 5 * c for c in widths),
        "gate": sum(c + 1 for c in widths),
        "heads": (8 + 1) * 3,
    }
    assert report.after - report.before == sum(report.added.values())
    assert (
        "SarcomaCT" in report.text()
        and report.to_json()["added_in_all"] == report.after - report.before
    )


@pytest.mark.slow
def test_vectors_by_modality_grow_by_name_and_begin_at_zero(run, raw, tmp_path):
    """A run with words for its sockets and a vector per modality on the deepest tokens."""
    fields = runfolder.read_fields(run)
    folder, model = tmp_path / "told", dict(fields["model"])
    experts_in, routing = model.pop("experts_in"), model.pop("routing")
    assert (experts_in, routing, model.pop("experts")) == ("both", "gate", 2)
    model["mlp"] = {"kind": "experts", "experts": 2}
    model["context"] = {"kind": "embedding"}
    shutil.copytree(run, folder, ignore=shutil.ignore_patterns("store", "checkpoints"))
    fields = fields | {"model": model, "data": fields["data"] | {"store": str(run / "store")}}
    runfolder.write_json(folder / runfolder.CONFIG, fields)
    net = build.make_network(
        runfolder.read_config(folder), runfolder.read_space(run), (1.0, 1.0, 1.0)
    )
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) * 0.2, jnp.float32), net.abstract()
    )
    with Checkpoints(folder / "checkpoints") as checkpoints:
        checkpoints.save(2, {"params": params}, {"recipe": {}, "progress": {}})

    new, data = _grown(folder, raw, tmp_path / "new", source="MR", freeze=True)
    assert new.model.options["mlp"]["experts"] == 3
    assert ("^context/table$", 0, "modalities") in new.init.heads
    assert ("^context/table$", (0, (1,))) in new.optim.only
    report = grow.check(folder, new, data.space)
    assert report.change < 1e-4 and report.added["context"] == 16
    grown = build.make_network(new, data.space, (1.0, 1.0, 1.0))
    fresh = jax.jit(grown.init)(jax.random.key(0))
    moved = initial.borrower(new, data.space, grown, tmp_path / "new", report=False)(fresh)
    table = np.asarray(moved["context"]["table"])
    np.testing.assert_array_equal(table[0], params["context"]["table"][0])
    assert not table[1].any() and table.shape == (2, 16)


@pytest.mark.slow
def test_a_fresh_gate_column_changes_old_answers_and_only_that_is_allowed(run, raw, tmp_path):
    config, data = _grown(run, raw, tmp_path, begin="copy", gate="fresh", source="MR")
    assert grow.check(run, config, data.space).change > 1e-3
    config = with_field(config, "init.gate", "closed")
    config = with_field(config, "init.experts", {"CT": "expert1", "expert2": "expert1"})
    grow.check(run, config, data.space)  # closed keeps them
    config = with_field(config, "init.classes", {"SarcomaMR/tumour": ""})
    # re-initialised heads change old answers, which is an error
    config = with_field(config, "init.heads", ((r"^head", None),))
    with pytest.raises(TrainError, match="changes the outputs for old corpora"):
        grow.check(run, config, data.space)


def test_patients_stay_on_their_side(run, raw, tmp_path):
    _, data = _grown(run, raw, tmp_path, source="MR")
    old = runfolder.read_json(run, runfolder.SPLITS)
    for before, after in zip(old, data.splits, strict=True):
        for side, other in (("train", "val"), ("val", "train")):
            assert set(before[side]) <= set(after[side])
            here, there = ({n.split("/")[1] for n in after[s]} for s in (side, other))
            assert not here & there  # case_000 of three corpora is one patient
        assert sum(n.startswith("SarcomaCT/") for n in after["train"] + after["val"]) == 4


def test_frozen_training_moves_the_new_slices_only(run, raw, tmp_path):
    config, data = _grown(run, raw, tmp_path, source="MR", freeze=True)
    net = build.make_network(config, data.space, (1.0, 1.0, 1.0))
    optimizer = build.make_optimizer(config)
    start = initial.borrower(config, data.space, net, tmp_path, report=False)(
        jax.jit(net.init)(jax.random.key(0))
    )
    start = jax.tree.map(jnp.asarray, start)

    @jax.jit
    def step(params):
        gradient = jax.tree.map(jnp.ones_like, params)
        updates, _ = optimizer.tx.update(gradient, optimizer.tx.init(params), params)
        return jax.tree.map(
            lambda p, u, on: p + u if on else p, params, updates, optimizer.trained(params)
        )

    before, after = experts.flat(start), experts.flat(step(start))
    for name, old in before.items():
        moved = np.asarray(old != after[name])
        if experts.EXPERT.match(name):
            assert moved[1].all() and not moved[[0, 2]].any(), (
                name
            )  # in the order of the modalities
        elif experts.GATE.match(name):
            assert moved[..., 1].all() and not moved[..., [0, 2]].any(), name
        elif name == "head/kernel":
            assert moved.sum() == 8 * 3  # the columns of SarcomaCT
        elif name == "head/bias":
            assert moved.sum() == 3
        else:
            assert not moved.any(), name


@pytest.mark.slow
def test_a_known_modality_adds_a_head_alone(run, raw, tmp_path):
    more = write_corpus(
        tmp_path / "Task05_More", n=3, shape=(6, 16, 16), labels={"atrium": 1}, seed=9
    )
    config = grow.grown_config(run, [str(more)], tmp_path)
    report = grow.check(run, config, corpora.open_data(config.data, tmp_path).space)
    assert report.added == {"experts": 0, "gate": 0, "heads": (8 + 1) * 2} and report.change < 1e-5


def test_what_cannot_grow_is_refused(run, raw, tmp_path):
    for more, message in (
        ({"source": "PET"}, "no expert"),
        ({}, "which expert"),
        ({"begin": "fresh", "gate": "split"}, "copy can share"),
    ):
        with pytest.raises(UsageError, match=message):
            grow.grown_config(run, [str(raw[2])], tmp_path, **more)
    with pytest.raises(UsageError, match=r"two corpora|already knows"):
        grow.grown_config(run, [str(raw[0])], tmp_path)
    assert json.loads((run / "config.json").read_text())["model"]["experts"] == 2
