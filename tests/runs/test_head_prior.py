"""`init.head_prior`: shares and starts against closed forms, the heads of every network, transfer,
a training and its resumption, and what is refused.
"""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from configs.base import base_config
from medjax.errors import ModelError, UsageError
from medjax.labels import Corpus, merge
from medjax.registry import build as make
from medjax.registry import plain
from medjax.runs import build, dry, initial, recipe, stages
from medjax.runs import folder as runfolder
from medjax.runs.start import head_prior
from medjax.sample.draw import Recipe
from medjax.sample.prevalence import Count
from medjax.train import checkpoint, hashes
from medjax.weights import transfer
from tests.support import tiny
from tests.support.configs import typed
from tests.support.marks import slow
from tests.support.run import small_unet

FIRST = Corpus("First", ((1, ("liver",)), (2, ("liver", "tumour"))), ignore=3)
SECOND = Corpus("Second", ((1, ("liver",)), (2, ("spleen",))))
SPACE = merge([FIRST, SECOND])  # liver, tumour, spleen
COUNTS = (  # voxels of ids 0, 1, 2, 3 (ignored in the first corpus)
    Count(0, 0.75, 10, np.array([600, 250, 50, 100]), 0),
    Count(1, 0.25, 20, np.array([1200, 300, 100, 0]), 400),
)


def _config(model=None, **sections):
    fields = plain(base_config())
    fields["model"] = {"name": "unet", **small_unet(3), **(model or {})}
    fields["train"] |= {"patch": (8, 8, 8)}
    fields["init"] |= {"head_prior": "prevalence"}
    for name, value in sections.items():
        fields[name] = fields[name] | value if isinstance(value, dict) else value
    return typed(fields)


def _odds(share):
    return math.log(share / (1 - share))


def _table(config, space=SPACE, counts=COUNTS):
    document = head_prior.table(config, space, counts)
    return document, [entry["bias"] for entry in document["outputs"]]


# ---------------------------------------------------------------- what follows from the counts


def test_sigmoid_outputs_start_at_the_share_where_they_are_annotated():
    """The ignored voxels do not count, padding is background, corpora weigh as they are drawn."""
    document, biases = _table(_config())
    first, second = (90.0, 30.0, 5.0), (100.0, 15.0, 5.0)  # valid, liver (+ tumour), tumour; ...
    liver = (0.75 * first[1] + 0.25 * second[1]) / (0.75 * first[0] + 0.25 * second[0])
    assert [o["class"] for o in document["outputs"]] == list(SPACE.classes)
    expected = {"liver": liver, "tumour": first[2] / first[0], "spleen": second[2] / second[0]}
    assert biases == pytest.approx([_odds(expected[name]) for name in SPACE.classes])
    assert document["decision"] == "sigmoid"
    shares = document["corpora"]["First"]["shares"]
    assert shares == pytest.approx({"background": 60 / 90, "liver": 30 / 90, "tumour": 5 / 90})
    assert [o["corpora"] for o in document["outputs"]] == [
        ["First", "Second"],
        ["First"],
        ["Second"],
    ]
    assert json.loads(json.dumps(document)) == document


def test_masked_padding_does_not_count():
    _, biases = _table(_config(mask_padding=True))
    assert biases[list(SPACE.classes).index("spleen")] == pytest.approx(_odds(100 / 1600))


def test_a_view_counts_for_the_classes_that_it_annotates():
    space = merge([FIRST.view(("tumour",), "Hidden"), SECOND])
    _, biases = _table(_config(), space)
    assert biases[list(space.classes).index("liver")] == pytest.approx(_odds(15 / 100))
    assert biases[list(space.classes).index("tumour")] == pytest.approx(_odds(5 / 90))


def test_shares_at_the_limits_have_finite_starts():
    counts = (Count(0, 0.75, 10, np.array([0, 900, 0, 0]), 0), Count(1, 0.25, 0, np.zeros(4), 0))
    document, biases = _table(_config(), counts=counts)
    assert [o["share"] for o in document["outputs"]] == [1.0, 0.0, 0.0]
    floor = math.log(1e-4 / (1 - 1e-4))
    assert biases == pytest.approx([-floor, floor, floor]) and floor == pytest.approx(
        -9.21, abs=0.01
    )


def test_softmax_outputs_start_at_their_share_over_the_backgrounds():
    """A voxel of the tumour is no voxel of the liver: the classes of a softmax exclude each
    other.
    """
    document, biases = _table(_config(infer={"activation": "softmax"}))
    background = 0.75 * 60, 0.25 * 80
    liver = (0.75 * 25 + 0.25 * 15) / sum(background)
    expected = {"liver": liver, "tumour": 5 / 60, "spleen": 5 / 80}
    assert document["decision"] == "softmax"
    assert biases == pytest.approx([math.log(expected[name]) for name in SPACE.classes])


@pytest.mark.parametrize("share", ["corpus", "channels", (0, 0)])
def test_heads_by_corpus_start_at_the_shares_of_their_corpora(share):
    model = {"head": {"kind": "corpus_softmax", "share": share}, "head_bias": True}
    config = _config(model, infer={"activation": "softmax"})
    document, biases = _table(config)
    found = {(*o["corpora"], o["class"]): o["bias"] for o in document["outputs"]}
    alone = {
        ("First", "liver"): 25 / 60,
        ("First", "tumour"): 5 / 60,
        ("Second", "liver"): 15 / 80,
        ("Second", "spleen"): 5 / 80,
    }
    shared = {
        ("First", "Second", "liver"): (0.75 * 25 + 0.25 * 15) / (0.75 * 60 + 0.25 * 80),
        ("First", "tumour"): 5 / 60,
        ("Second", "spleen"): 5 / 80,
    }
    expected = shared if share == (0, 0) else alone
    assert found == pytest.approx({name: math.log(odds) for name, odds in expected.items()})
    # and the network's softmax says so: with a kernel of 0 each corpus sees its own shares
    net = build.make_network(config, SPACE, (1.0, 1.0, 1.0), prior=biases)
    params = jax.jit(net.init)(jax.random.key(0))
    params["head_0"]["kernel"] = jnp.zeros_like(params["head_0"]["kernel"])
    context = {"corpus": jnp.array([0, 1])}
    logits = net.apply(params, jnp.ones((2, 8, 8, 8, 1)), context)["logits"][:, 0, 0, 0]
    odds = np.exp(np.asarray(logits))
    if share != (0, 0):
        for row, corpus in enumerate(("First", "Second")):
            for c, name in enumerate(SPACE.classes):
                assert odds[row, c] == pytest.approx(alone.get((corpus, name), 0.0), rel=1e-5)


def test_the_report_has_a_line_per_corpus():
    document, _ = _table(_config())
    first, second = head_prior.lines(document)
    assert "10 patches, First: " in first and "tumour 5.56 % (-2.8)" in first
    assert "20 patches, Second: " in second and "spleen 5 % (-2.9)" in second
    many = merge([Corpus("Many", tuple((i, (f"c{i}",)) for i in range(1, 10)))])
    counts = (Count(0, 1.0, 1, np.arange(10), 0),)
    (line,) = head_prior.lines(_table(_config(), many, counts)[0])
    assert "c6 " in line and "c7 " not in line and "3 more in head_prior.json" in line


# ---------------------------------------------------------------- the heads of every network

NETWORKS = {
    "unet": {**small_unet(3), "deep_supervision": True, "strides": ((1, 1, 1),) + ((2, 2, 2),) * 2}
    | {"features": (2, 3, 3), "kernels": ((1, 1, 1), (3, 3, 3), (3, 3, 3))},
    "resenc": {"features": (2, 2, 2), "strides": ((1, 1, 1),) + ((2, 2, 2),) * 2, "blocks": (1,)}
    | {"kernels": ((1, 1, 1), (3, 3, 3), (3, 3, 3))},
    "tsfm": {"variant": "t", "channels": (2, 2, 2), "strides": ((2, 2, 2),) * 2, "vit": False},
    "swin_unetr": {"feature_size": 2, "depths": (1, 1, 1, 1), "heads": (1, 1, 1, 1), "window": 2},
    "swin_unet": {"width": 4, "depths": (1, 1, 1, 1), "heads": (1, 1, 1, 1), "window": 2}
    | {"patch_size": 2, "dims": 3, "head": "sigmoid", "head_bias": True},
}
HEADS = {
    "unet": {"head_0/bias", "head_1/bias"},
    "resenc": {"head_0/bias", "head_1/bias"},
    "tsfm": {"head0/bias", "head1/bias"},
    "swin_unetr": {"out/bias"},
    "swin_unet": {"head/bias"},
}
SHARES = (0.3, 0.02, 0.0005)


@pytest.mark.parametrize("name", [n if n == "unet" else slow(n) for n in NETWORKS])
def test_every_head_of_every_network_starts_there_and_nothing_else_moves(name):
    side = 64 if name == "swin_unetr" else 32 if name == "swin_unet" else 8
    image, prior = jnp.zeros((1, *(side,) * 3, 1)), [_odds(share) for share in SHARES]

    def params(**more):
        module = make("models", name, classes=3, **NETWORKS[name], **more)
        found = jax.jit(lambda key: module.init(key, image))(jax.random.key(1))["params"]
        return traverse_util.flatten_dict(found, sep="/")

    without, given = params(prior=0.0), params(prior=tuple(prior))
    assert without.keys() == given.keys()
    moved = {path for path in given if not np.array_equal(given[path], without[path])}
    assert moved == HEADS[name]
    for path in moved:
        np.testing.assert_allclose(given[path], prior, rtol=1e-6)
    with pytest.raises(ModelError, match=r"prior does not fit.*one, or 3"):
        params(prior=(0.0, 1.0))


def test_a_fresh_network_answers_noise_with_the_shares():
    """At the main head and at deep ones; means over seeds, as a random kernel adds to the start."""
    config = _config({**NETWORKS["unet"], "features": (8, 8, 8)})
    prior = [_odds(share) for share in SHARES]
    net = build.make_network(config, SPACE, (1.0, 1.0, 1.0), prior=prior)
    image = jax.random.normal(jax.random.key(3), (2, 8, 8, 8, 1))

    @jax.jit
    def answers(key):
        outputs = net.apply(net.init(key), image)
        return [x.mean(range(x.ndim - 1)) for x in (outputs["logits"], *outputs["deep"])]

    means = np.mean([answers(jax.random.key(seed)) for seed in range(48)], 0)
    assert means.shape == (2, 3)
    np.testing.assert_allclose(means, [prior] * 2, atol=0.35)  # sd 1 / sqrt(48) = 0.14 at most
    assert 1 / (1 + np.exp(-means[0])) == pytest.approx(SHARES, rel=0.4)


def test_numbers_per_class_need_a_bias():
    for name in ("unet", "swin_unet"):
        model = NETWORKS[name] | {"head_bias": False}
        with pytest.raises(ModelError, match=r"no bias.*model.head_bias=True"):
            make("models", name, classes=3, **model, prior=(-1.0, -2.0, -3.0))
        make("models", name, classes=3, **model, prior=-3.0)  # as before


# ---------------------------------------------------------------- transfer


def _source(folder, config, space, seed=1):
    """A finished run with random parameters."""
    net = build.make_network(config, space, (1.0, 1.0, 1.0))
    draw = np.random.default_rng(seed)
    params = jax.tree.map(
        lambda leaf: draw.normal(size=leaf.shape).astype(leaf.dtype), net.abstract()
    )
    plan = {"spacing_mm": {c.name: (1.0, 1.0, 1.0) for c in space.corpora}}
    for name, value in (
        (runfolder.CONFIG, config.to_json()),
        (runfolder.LABELS, space.to_json()),
        (runfolder.PLAN, plan | {"intensity": {}, "orientation": "RAS", "crop": "nonzero"}),
    ):
        runfolder.write_json(folder / name, value)
    with checkpoint.Checkpoints(folder / "checkpoints") as kept:
        state = {"step": jnp.int32(1), "params": jax.tree.map(jnp.asarray, params), "opt": {}}
        kept.save(1, state, {})
    return params


@pytest.mark.parametrize("biased", [True, False], ids=["bias", "no bias in the source"])
@pytest.mark.parametrize("heads", [((r"^head_", -1),), ((r"^head_", None),)], ids=["named", "new"])
def test_fresh_outputs_get_the_start_and_loaded_ones_keep_theirs(tmp_path, heads, biased):
    """The new run knows liver (loaded where heads are matched by name), tumour and spleen."""
    old = merge([Corpus("Old", ((1, ("kidney",)), (2, ("liver",))))])
    given = _source(tmp_path / "old", _config({"head_bias": biased}), old)
    config = _config(
        init={"source": str(tmp_path / "old"), "heads": heads, "head_prior": "prevalence"}
    )
    _, prior = _table(config)
    net = build.make_network(config, SPACE, (1.0, 1.0, 1.0), prior=prior)
    fresh = jax.jit(net.init)(jax.random.key(0))
    params = initial.borrower(config, SPACE, net, tmp_path)(fresh)
    first = "encoder_0", "conv_0", "conv", "kernel"
    np.testing.assert_array_equal(
        traverse_util.flatten_dict(params)[first], traverse_util.flatten_dict(given)[first]
    )
    kernel, bias = (np.asarray(params["head_0"][name]) for name in ("kernel", "bias"))
    liver = list(SPACE.classes).index("liver")
    others = [c for c in range(3) if c != liver]
    np.testing.assert_allclose(bias[others], np.array(prior)[others], rtol=1e-6)
    if heads[0][1] is None:
        assert bias[liver] == pytest.approx(prior[liver])
        np.testing.assert_array_equal(kernel, fresh["head_0"]["kernel"])
    else:
        assert bias[liver] == (given["head_0"]["bias"][1] if biased else 0.0)
        np.testing.assert_array_equal(kernel[:, liver], given["head_0"]["kernel"][:, 1])


def test_without_a_head_prior_a_transfer_is_as_before(tmp_path):
    """A number of the config stays in a head that the source lacks."""
    old = merge([Corpus("Old", ((1, ("liver",)),))])
    _source(tmp_path / "old", _config({"head_bias": False}), old)
    init = {"source": str(tmp_path / "old"), "heads": ((r"^head_", -1),), "head_prior": ""}
    config = _config({"prior": -4.0}, init=init)
    net = build.make_network(config, SPACE, (1.0, 1.0, 1.0))
    params = initial.borrower(config, SPACE, net, tmp_path)(jax.jit(net.init)(jax.random.key(0)))
    np.testing.assert_array_equal(params["head_0"]["bias"], [-4.0] * 3)


def test_entries_of_leaves_are_replaced_by_path():
    tree = {"a": jnp.arange(6.0).reshape(2, 3), "b": jnp.ones(3)}
    found = transfer.with_entries(tree, {"a": {1: 9.0}, "b": {0: 0.0, 2: 0.0}})
    np.testing.assert_array_equal(found["a"], [[0, 9, 2], [3, 9, 5]])
    np.testing.assert_array_equal(found["b"], [0, 1, 0])


# ---------------------------------------------------------------- a run


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    return tiny.write(tmp_path_factory.mktemp("raw"))


def _fields(raw, steps=4, **model):
    fields = tiny.fields(raw, steps, model)
    fields["init"] |= {"head_prior": "prevalence"}
    return fields


@pytest.fixture(scope="module")
def run(raw, tmp_path_factory):
    """A finished run of four steps."""
    folder = tmp_path_factory.mktemp("run") / "run"
    stages.train(stages.open_run(_fields(raw), folder))
    return folder


def _params(folder, step=None):
    found = checkpoint.read_params(folder, "last" if step is None else step)
    return traverse_util.flatten_dict(found, sep="/")


def test_a_training_measures_records_and_starts_there(raw, tmp_path, capsys):
    fields = _fields(raw, steps=1)
    fields["optim"] |= {"lr": 1e-12, "name": "adamw", "weight_decay": 0.0}
    stages.train(stages.open_run(fields, tmp_path / "run"))
    document = runfolder.read_json(tmp_path / "run", runfolder.HEAD_PRIOR)
    biases = [o["bias"] for o in document["outputs"]]
    assert [o["class"] for o in document["outputs"]] == ["organ", "tumour"]
    assert document["outputs"][0]["corpora"] == ["Both", "Organ"]
    assert 0.02 < document["outputs"][1]["share"] < document["outputs"][0]["share"] < 0.9
    np.testing.assert_allclose(_params(tmp_path / "run")["head_0/bias"], biases, atol=1e-5)
    shown = capsys.readouterr().out
    assert shown.count("heads start at the share of voxels in 128 patches") == 2
    assert "128 patches, Organ: organ " in shown


@pytest.mark.slow
def test_a_resumed_run_is_the_same_and_measures_nothing(raw, run, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "run"
    tiny.interrupt(_fields(raw), folder, monkeypatch, 2)
    measured = (folder / runfolder.HEAD_PRIOR).read_bytes()
    monkeypatch.setattr(head_prior.prevalence, "count", None)  # would be an error
    capsys.readouterr()
    stages.train(stages.open_run(_fields(raw), folder))
    assert "heads start" not in capsys.readouterr().out
    assert (folder / runfolder.HEAD_PRIOR).read_bytes() == measured
    assert measured == (run / runfolder.HEAD_PRIOR).read_bytes(), "measured twice: the same"
    one, other = _params(run), _params(folder)
    assert one.keys() == other.keys()
    for path in one:
        np.testing.assert_array_equal(one[path], other[path], err_msg=path)


def test_another_process_reads_what_the_first_one_measured(raw, run, monkeypatch, tmp_path):
    """It neither measures nor writes; its network starts at the same numbers, bit for bit."""
    document = json.loads((run / runfolder.HEAD_PRIOR).read_text())
    runfolder.write_json(tmp_path / runfolder.HEAD_PRIOR, document)
    monkeypatch.setattr(head_prior.hosts, "first", lambda work: None)  # as in process 1
    found = head_prior.start(typed(_fields(raw)), SPACE, tmp_path, (), Recipe((8, 8, 8), 2))
    assert found == tuple(o["bias"] for o in document["outputs"])


@pytest.mark.slow
def test_a_number_of_the_config_is_used_and_said(raw, tmp_path, capsys):
    fields = _fields(raw, steps=1, prior=-4.0)
    fields["optim"] |= {"lr": 1e-12, "name": "adamw", "weight_decay": 0.0}
    stages.train(stages.open_run(fields, tmp_path / "run"))
    assert "config.model.prior says where the heads start" in capsys.readouterr().out
    np.testing.assert_allclose(_params(tmp_path / "run")["head_0/bias"], -4.0, atol=1e-5)
    assert not (tmp_path / "run" / runfolder.HEAD_PRIOR).exists()


def test_an_empty_field_is_no_other_recipe():
    """Run folders of earlier versions have no such field, and nothing asks for it."""
    old = plain(base_config())
    assert "head_prior" not in old["init"] and typed(old).init.head_prior == ""
    new = old | {"init": old["init"] | {"head_prior": ""}}
    assert recipe.fields(typed(new)) == recipe.fields(typed(old))
    asked = old | {"init": old["init"] | {"head_prior": "prevalence"}}
    assert recipe.fields(typed(asked)) != recipe.fields(typed(old))
    assert hashes.of_json(typed(old).to_json()) == hashes.of_json(old)


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("model", "word", "message"),
    [
        ({}, "prevalense", "unknown init.head_prior 'prevalense'.*did you mean.*prevalence"),
        ({"head_bias": False}, "prevalence", "have no bias.*--config.model.head_bias=True"),
        ({"name": "swin_unet"}, "prevalence", "have no bias.*--config.model.head_bias=True"),
        ({"name": "masked_swin"}, "prevalence", "masked_swin.*no heads.*leave config.init.head"),
        ({"name": "segvol"}, "prevalence", "segvol.*no heads.*leave config.init.head"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_is_prepared(
    raw, tmp_path, model, word, message
):
    fields = _fields(raw)
    fields["model"] = fields["model"] | model if "name" not in model else model
    fields["init"] |= {"head_prior": word}
    with pytest.raises(UsageError, match=message):
        stages.open_run(fields, tmp_path / "run")
    with pytest.raises(UsageError, match=message):
        dry.dry(typed(fields), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_rehearsal_says_where_heads_start(raw, tmp_path):
    fields = _fields(raw)
    assert "start at the share of every class" in dry.dry(typed(fields), tmp_path)
    fields["init"] |= {"head_prior": ""}
    assert "start at the share of every class" not in dry.dry(typed(fields), tmp_path)
