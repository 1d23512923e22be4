"""The recipes of MAST-Pro: what each trains, and both stages on the phantoms."""

import json

import jax
import numpy as np
import pytest

from configs.mast_pro import KNOWN, get_config
from medjax import cli, main
from medjax.labels import Corpus, merge
from medjax.registry import plain
from medjax.runs import build, dry, footprint, initial
from medjax.runs import open as corpora
from medjax.runs.settings import text
from medjax.runs.trained import read_model
from medjax.train import checkpoint
from medjax.weights.experts import flat
from tests.support.configs import typed
from tests.support.raw import write_corpus

BACKBONE, ORGAN = 62_186_610, 8_062_002
TABLE = 8 * 512
FOLDERS = {  # in place of folders that a small recipe asks for
    name: {"modality": "CT", "channels": ("CT",), "labels": {"1": ("tumour",)}, "cases": 10}
    for name in ("A", "B")
}


def _fields(variant):
    fields = plain(get_config(variant))
    if variant.startswith("small"):
        fields["data"]["declared"] = FOLDERS
    return fields


def _network(variant, folder):
    config = typed(_fields(variant))
    space = corpora.open_data(config.data, folder, files=False).space
    return config, build.make_network(config, space, (1.5, 1.5, 1.5))


@pytest.mark.parametrize("variant", KNOWN)
def test_every_variant_can_be_built(variant, tmp_path):
    config, net = _network(variant, tmp_path)
    schedule = build.make_optimizer(config).schedule
    last = config.train.steps - 1
    assert float(schedule(0)) > 0 and float(schedule(last)) < 0.01 * config.optim.lr
    assert bool(net.texts) == ("stage1" != variant.removeprefix("small_").removeprefix("demo_")) & (
        config.model.options.get("text", True)
    )
    if config.model.name == "mast_pro":
        assert "task" in net.reads and len(set(net.tasks)) == len(net.tasks) > 1
        assert net.texts == () or set(net.texts) == set(config.text.sentences or FOLDERS)
    assert isinstance(config.text, text.Text)


BUDGETS = [  # trained and frozen; spec 3.7 and section 6
    ("full", 5_515_064, BACKBONE + ORGAN + TABLE),
    ("ap", 2_990_264, BACKBONE + ORGAN),
    ("tp", 3_797_432, BACKBONE + TABLE),
    ("dmoe", 1_738_760, BACKBONE),
    ("swin_unetr", 62_187_002, 0),
    ("full_tuning", BACKBONE + 5_515_064, ORGAN + TABLE),
    ("literal", 21_024_888, BACKBONE - 19_597_824 + ORGAN + TABLE),
    # without two generic experts and their router in each of eight blocks
    ("freeze_generic", 5_515_064 - 2 * 93_856 - 2 * 1440, None),
    ("add_task", 16 * 93_856 + 8 * 1440 * 4 + 392, None),
    ("stage1", 62_188_178, 0),
    ("stage1_um", 62_595_315, 32 * 512),
]


@pytest.mark.parametrize(
    ("variant", "trained", "frozen"),
    [pytest.param(*row, marks=[] if row[0] == "full" else pytest.mark.slow) for row in BUDGETS],
)
def test_what_a_recipe_trains(variant, trained, frozen, tmp_path):
    """Through the optimizer's own rules."""
    config, net = _network(variant, tmp_path)
    found = footprint.budget(config, net)
    assert found["trained"] == trained
    assert frozen is None or found["frozen"] == frozen
    if variant == "full":
        said = footprint.budget_sentence(found)
        assert said == "5,515,064 (21.04 MiB, 7.3%) trained, 70,252,708 frozen"


@pytest.mark.slow
def test_the_dry_run_states_the_budget(tmp_path):
    text = dry.dry(typed(_fields("full")), tmp_path)
    assert "5,515,064 (21.04 MiB" in text and "kept for backward" in text
    whole = dry.dry(typed(_fields("full_tuning")), tmp_path)
    assert "67,701,674 (258.26 MiB" in whole


def _steps(stage, root, *more):
    """A short training of a demo variant on small volumes, in this process."""
    flags = {
        "train.steps": 6,
        "train.batch": 2,
        "train.patch": "32,64,64",
        "train.validate_every": 3,
        "train.validation_batches": 1,
        "train.checkpoint_every": 6,
        "optim.warmup_steps": 0,
        "data.phantom_cases": 5,
        "train.log_every": 1,
        "evaluate.montages": 0,
        "evaluate.surface": False,
    }
    given = [f"--config.{name}={value}" for name, value in flags.items()]
    config = f"--config=configs/mast_pro.py:{stage}"
    return main.main([config, f"--workdir={root / stage}", *given, *more])


def _losses(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [row["loss"] for row in map(json.loads, lines) if "loss" in row]


@pytest.mark.slow
def test_both_stages_on_the_phantoms(tmp_path, capsys):
    """Stage 2 begins with stage 1, frozen leaves stay bit for bit, the run predicts; another task
    is added, and what the old ones answer stays.
    """
    shared = f"--config.data.store={tmp_path / 'store'}"
    assert _steps("demo_stage1", tmp_path, shared, "--config.evaluate.on=False") == 0
    source = f"--config.init.source={tmp_path / 'demo_stage1'}"
    assert _steps("demo", tmp_path, shared, source) == 0
    said = capsys.readouterr().out
    assert "hashes of word pieces" in said
    first = flat(checkpoint.read_params(tmp_path / "demo_stage1"))
    second = flat(checkpoint.read_params(tmp_path / "demo"))
    for path, leaf in first.items():
        if not path.startswith("out/"):
            np.testing.assert_array_equal(second[f"backbone/{path}"], leaf)
        if path.startswith("swin/"):
            np.testing.assert_array_equal(second[path.replace("swin/", "anatomy/", 1)], leaf)
    moved = [path for path, leaf in second.items() if path.endswith("/B") and np.any(leaf)]
    assert len(moved) == 16
    for stage in ("demo_stage1", "demo"):
        losses = _losses(tmp_path / stage)
        assert len(losses) == 6 and np.isfinite(losses).all()
    scan = sorted((tmp_path / "demo" / "phantoms").glob("Task02*/imagesTr/*.nii.gz"))[0]
    given = ["-m", str(tmp_path / "demo"), "-i", str(scan), "--no-html", "--corpus", "PhantomMR"]
    for task in ("PhantomCE_tumour", "all"):
        out = tmp_path / f"out_{task}"
        assert cli.main(["predict", *given, "-o", str(out), "--task", task]) == 0
        assert len(list(out.glob("*.nii.gz"))) == 1
    assert cli.main(["predict", *given, "-o", str(tmp_path / "x"), "--task", "lung"]) != 0
    assert "knows no task 'lung'" in capsys.readouterr().err
    assert cli.main(["info", str(tmp_path / "demo")]) == 0
    assert "trained" in capsys.readouterr().out
    _add_a_task(tmp_path)


def _add_a_task(root):
    """Parameters that `add_task` begins with: rows of old tasks are those of the run."""
    old = read_model(root / "demo")
    fields = plain(get_config("small_add_task"))
    third = write_corpus(root / "Dataset009_Third", 2, (8, 8, 8), "nnunet", {"tumour": 1})
    fields["init"]["source"] = str(root / "demo")
    sentences = dict(old.config.text.sentences) | {"Third": "A tumour."}
    fields["text"] = {"source": "hash", "file": "", "sentences": sentences}
    fields["model"] = old.config.model.to_json()
    config = typed(fields)
    corpora_ = [*old.space.corpora, Corpus("Third", ((1, ("tumour",)),), channels=("MRI",))]
    rename = {f"{c.name}/{n}": "tumour" for c in corpora_ for n in c.annotated}
    space = merge(corpora_, "by_name", rename)
    net = build.make_network(config, space, (5.0, 4.0, 4.0))
    assert net.texts == (*old.network.texts, "Third") and third.is_dir()
    fresh = jax.tree.map(np.asarray, jax.jit(net.init)(jax.random.key(3)))
    begun = initial.borrower(config, space, net, root / "new", report=False)(fresh)
    mine, theirs = flat(begun), flat(old.params())
    for path, leaf in theirs.items():
        new = np.asarray(mine[path])
        if new.shape == leaf.shape:
            np.testing.assert_array_equal(new, leaf)
        else:
            axis = next(
                k for k, (a, b) in enumerate(zip(new.shape, leaf.shape, strict=True)) if a != b
            )
            assert new.shape[axis] == 3
            np.testing.assert_array_equal(np.take(new, [0, 1], axis), leaf)
    image = np.random.default_rng(0).normal(size=(2, 32, 64, 64, 1)).astype(np.float32)
    given = {"task": np.array([1, 0], np.int32)}
    answers = [
        jax.jit(n.apply)(p, image, given)["logits"]
        for n, p in ((net, begun), (old.network, old.params()))
    ]
    np.testing.assert_array_equal(*map(np.asarray, answers))
