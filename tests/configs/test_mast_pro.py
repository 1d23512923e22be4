"""The recipes of MAST-Pro: what each trains, and both stages on the phantoms."""

import json
import re

import jax
import numpy as np
import pytest

from configs.mast_pro import KNOWN, NEW, get_config
from medjax import cli, main
from medjax.labels import Corpus, merge
from medjax.registry import plain
from medjax.runs import build, dry, footprint, sampling
from medjax.runs import open as corpora
from medjax.runs.prompted import texts
from medjax.runs.settings import text
from medjax.runs.trained import read_model
from medjax.train import checkpoint, rules
from medjax.weights import experts, transfer
from medjax.weights.experts import flat
from tests.support.configs import typed
from tests.support.marks import slow
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


def test_the_universal_models_patches_are_those_of_its_corpora(tmp_path):
    fields = _fields("stage1_universal")
    fields["sampler"]["version"] = 3
    config = typed(fields)
    space = corpora.open_data(config.data, tmp_path, files=False).space
    sampling.check_names(config.sampler, space.corpora)
    found = {c.name: sampling.pool_arguments(config.sampler, c) for c in space.corpora}
    ratios = (((), 1.0), ((1,), 1.0), ((2,), 5.0))  # tumour of an organ and beside a vessel alike
    for name in ("MSD_Liver", "MSD_Pancreas", "MSD_HepaticVessel"):
        assert found[name] == {"ratios": ratios, "still": False}
    assert found["LiTS"] == {"ratios": ratios, "still": True}
    assert found["BTCV"] == {"ratios": (), "still": True}
    moves = build.moves(config)
    assert (moves.rotation, moves.scaling, moves.scales) == (0, 0.3, (1 / 1.5, 1 / 1.3))


@pytest.mark.parametrize("variant", KNOWN)
def test_every_variant_can_be_built(variant, tmp_path):
    config, net = _network(variant, tmp_path)
    schedule = build.make_optimizer(config).schedule
    last = config.train.steps - 1
    assert float(schedule(0)) > 0 and float(schedule(last)) < 0.01 * config.optim.lr
    first = variant.removeprefix("small_").removeprefix("demo_") in ("stage1", "stage1_sides")
    assert bool(net.texts) == (not first and config.model.options.get("text", True))
    if config.model.name == "mast_pro":
        assert "task" in net.reads and len(set(net.tasks)) == len(net.tasks) > 1
        assert net.texts == () or set(net.texts) == set(config.text.sentences or FOLDERS)
    assert isinstance(config.text, text.Text)
    assert net.texts or not config.text.source, "texts for a network that reads none"


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("small_stage1", "small_full"),
        slow("stage1_um", "small_full"),
        *(slow("small_stage1", f"small_{row}") for row in ("ap", "tp", "dmoe", "swin_unetr")),
    ],
)
def test_either_stage_1_gives_backbone_and_organ_encoder(first, second, tmp_path):
    """Every leaf of the backbone of stage 2 comes from stage 1, the Swin encoder twice."""
    fields = _fields(first)
    fields["model"] = fields["model"] | {"feature_size": 12}
    config = typed(fields)
    space = corpora.open_data(config.data, tmp_path, files=False).space
    trees = []
    for net in (
        build.make_network(config, space, (1.5, 1.5, 1.5)),
        _network(second, tmp_path)[1],
    ):
        shapes = jax.eval_shape(net.init, jax.random.key(0))
        trees.append(jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes))
    given = typed(_fields(second)).init
    source = experts.copied(trees[0], given.copy)
    named = {"rename": given.rename, "fresh": given.fresh, "heads": given.heads}
    account = transfer.transfer(trees[1], source, **named)[1]
    old = [p for p in flat(trees[1]) if not re.search(NEW, p)]
    wanted = {p for p in old if p.startswith(("backbone/", "anatomy/"))}
    assert wanted == set(account.loaded) and len(wanted) > 100
    assert all(re.search(f"{NEW}|^text/", path) for path in account.fresh)


def test_paired_organs_of_stage_1_have_sides(tmp_path):
    """The classes of the Universal Model's template, less the celiac trunk."""
    spaces = [
        corpora.open_data(typed(_fields(name)).data, tmp_path, files=False).space
        for name in ("stage1", "stage1_sides")
    ]
    before, after = (set(space.classes) for space in spaces)
    assert before - after == {"kidney", "lungs", "adrenal glands"}
    assert after - before == {"right lung", "left lung"} and len(after) == 31
    assert "right kidney" in dict(spaces[1].names[spaces[1].corpus_index("KiTS21")])
    word = spaces[1].corpora[spaces[1].corpus_index("WORD")]
    assert {"right adrenal glands", "left adrenal glands"} < set(word.annotated)


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
        halves = ((r"^backbone/.*kernel$", "fsdp"), (".*", "replicate"))
        spread = jax.tree.leaves(rules.assign(net.abstract(), halves))
        assert spread.count("fsdp") == 68  # what a run over several devices splits
        said = footprint.budget_sentence(found)
        assert said == "5,515,064 (21.04 MiB, 7.3%) trained, 70,252,708 frozen"


@pytest.mark.slow
def test_the_dry_run_states_the_budget(tmp_path):
    text = dry.dry(typed(_fields("full")), tmp_path)
    assert "5,515,064 (21.04 MiB" in text and "kept for backward" in text
    whole = dry.dry(typed(_fields("full_tuning")), tmp_path)
    assert "67,701,674 (258.26 MiB" in whole

    def together(line, text):
        found = re.search(
            rf"^ *{line}.*kept for backward ([\d.]+) GiB; together ([\d.]+)", text, re.M
        )
        return tuple(map(float, found.groups()))

    frozen, tuned = together("memory of one step", text), together("all parameters tuned", text)
    assert frozen < tuned and frozen[0] < tuned[0]
    assert together("all parameters tuned", whole) == tuned, "the organ encoder is frozen there"
    assert together("memory of one step", whole) < tuned


SHORT = {
    "train.steps": 6,
    "train.batch": 2,
    "train.validate_every": 3,
    "train.validation_batches": 1,
    "train.checkpoint_every": 6,
    "train.log_every": 1,
    "optim.warmup_steps": 0,
    "evaluate.montages": 0,
    "evaluate.surface": False,
    "data.split.folds": 2,
}


def _steps(variant, root, fields, *more):
    """A short training, in this process."""
    given = [f"--config.{name}={value}" for name, value in (SHORT | fields).items()]
    config = f"--config=configs/mast_pro.py:{variant}"
    return main.main([config, f"--workdir={root / variant}", *given, *more])


def _losses(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [row["loss"] for row in map(json.loads, lines) if "loss" in row]


def _check_stages(first, second):
    """Stage 2 began with stage 1, of which no bit moved; every expert did."""
    old, new = (flat(checkpoint.read_params(folder)) for folder in (first, second))
    for path, leaf in old.items():
        if not path.startswith("out/"):
            np.testing.assert_array_equal(new[f"backbone/{path}"], leaf)
        if path.startswith("swin/"):
            np.testing.assert_array_equal(new[path.replace("swin/", "anatomy/", 1)], leaf)
    experts = [leaf for path, leaf in new.items() if path.endswith("/B")]
    assert experts and all(np.any(leaf) for leaf in experts)
    for folder in (first, second):
        losses = _losses(folder)
        assert len(losses) == 6 and np.isfinite(losses).all()


@pytest.mark.slow
def test_both_stages_on_slices_with_an_organ_mask(tmp_path, capsys):
    """The way of a small recipe: stage 1, organ masks, stage 2, prediction, another task."""
    names = {f"Dataset00{k}_{name}": name for k, name in enumerate("AB", 1)}
    for k, folder in enumerate(names):
        write_corpus(
            tmp_path / folder,
            4,
            (4, 66, 40),
            "nnunet",
            {"tumour": 1},
            channels=("CT",),
            seed=10 * k,
        )
    masks = tmp_path / "organs" / "A"
    first = tmp_path / next(iter(names))
    assert cli.main(["organs", str(first), "--from-labels", "tumour", "-o", str(masks)]) == 0
    shared = {
        "model.feature_size": 6,
        "model.depths": "1,1,1,1",
        "model.heads": "1,1,2,2",
        "model.window": 2,
        "model.dims": 2,
        "train.patch": "64,32",
        "augment.quarter": 0.0,  # sides differ
    }
    plain = ",".join(str(tmp_path / folder) for folder in names)
    fields = shared | {"data.folders": plain, "data.share": "per_corpus", "evaluate.on": False}
    assert _steps("small_stage1", tmp_path, fields) == 0
    fields = shared | {
        "data.folders": f"{masks},{tmp_path / 'Dataset002_B'}",
        "init.source": tmp_path / "small_stage1",
    }
    assert _steps("small_full", tmp_path, fields) == 0
    said = capsys.readouterr().out
    assert "hashes of word pieces" in said and "A: organ masks are its own labels" in said
    run = tmp_path / "small_full"
    _check_stages(tmp_path / "small_stage1", run)
    scan = tmp_path / "Dataset001_A" / "imagesTr" / "case_000_0000.nii.gz"
    organ = sorted((masks / "organs").glob("*.nii.gz"))[0]
    given = ["-m", str(run), "-i", str(scan), "--no-html", "--corpus", "A"]
    for name, more in {
        "other": ["--organ", str(organ), "--task", "B"],
        "all": ["--organ", "none", "--task", "all"],
    }.items():
        assert cli.main(["predict", *given, "-o", str(tmp_path / name), *more]) == 0
        assert len(list((tmp_path / name).glob("case_000*.nii.gz"))) == 1
    wrong = ["predict", *given, "-o", str(tmp_path / "x"), "--organ", "none", "--task", "lung"]
    assert cli.main(wrong) != 0 and "knows no task 'lung'" in capsys.readouterr().err
    assert cli.main(["info", str(run)]) == 0 and " trained, " in capsys.readouterr().out
    _add_a_task(run, tmp_path, (64, 32))
    _a_file_adds_it(run, tmp_path, shared, plain)


def _a_file_adds_it(run, root, shared, folders):
    """What was trained for a third task is a file that works with the finished run."""
    third = write_corpus(
        root / "Dataset003_C", 4, (4, 66, 40), "nnunet", {"tumour": 1}, channels=("CT",), seed=20
    )
    masks = root / "organs" / "A"
    given = f"{masks},{root / 'Dataset002_B'},{third}"
    fields = shared | {"data.folders": given, "init.source": run, "evaluate.on": False}
    assert _steps("small_add_task", root, fields) == 0
    file, grown = root / "third.adapter.safetensors", root / "small_add_task"
    assert cli.main(["adapter", "extract", str(grown), "-o", str(file)]) == 0
    assert file.stat().st_size < 0.5 * sum(
        leaf.nbytes for leaf in flat(read_model(run).params()).values()
    )
    found = {}
    for name, model, corpus, scan in (
        ("third", ["-m", str(run), "--adapter", str(file)], "C", third),
        ("third_run", ["-m", str(grown)], "C", third),
        ("old", ["-m", str(run), "--adapter", str(file)], "A", root / "Dataset001_A"),
        ("old_run", ["-m", str(grown)], "A", root / "Dataset001_A"),
    ):
        image = str(scan / "imagesTr" / "case_000_0000.nii.gz")
        words = ["-i", image, "-o", str(root / name), "--corpus", corpus]
        words += ["--organ", "none"] if corpus == "A" else []
        assert cli.main(["predict", *model, *words, "--no-html", "--probabilities"]) == 0
        with np.load(root / name / "case_000_prob.npz") as arrays:
            found[name] = dict(arrays)
    for one, other in (("third", "third_run"), ("old", "old_run")):
        for key, array in found[one].items():
            np.testing.assert_array_equal(array, found[other][key], err_msg=f"{one}: {key}")


@pytest.mark.slow
def test_both_stages_on_the_phantoms(tmp_path):
    """Stage 1 and stage 2 of the demo, narrower and coarser, a few steps of each."""
    fields = {
        "data.phantom_cases": 4,
        "data.store": tmp_path / "store",
        "data.spacing_mm": "10,8,8",
        "model.feature_size": 6,
        "model.depths": "1,1,1,1",
        "model.heads": "1,1,2,2",
        "model.window": 4,
        "train.patch": "32,32,64",
        "augment.quarter": 0.0,
    }
    assert _steps("demo_stage1", tmp_path, fields | {"evaluate.on": False}) == 0
    source = {"init.source": tmp_path / "demo_stage1"}
    assert _steps("demo", tmp_path, fields | source) == 0
    _check_stages(tmp_path / "demo_stage1", tmp_path / "demo")
    scan = sorted((tmp_path / "demo" / "phantoms").glob("Task02*/imagesTr/*.nii.gz"))[0]
    given = ["-m", str(tmp_path / "demo"), "-i", str(scan), "--no-html", "--corpus", "PhantomMR"]
    out = tmp_path / "out"
    assert cli.main(["predict", *given, "-o", str(out), "--task", "all"]) == 0
    assert len(list(out.glob("*.nii.gz"))) == 1


def _add_a_task(run, root, patch):
    """What `add_task` begins with: rows of old tasks are those of the run, which answer as before,
    bit for bit.
    """
    old = read_model(run)
    fields = plain(get_config("small_add_task"))
    fields["init"]["source"] = str(run)
    sentences = dict(old.config.text.sentences)
    if sentences:
        sentences["Third"] = "A tumour."
    fields["text"] = fields["text"] | {"sentences": sentences}
    fields["model"] = old.config.model.to_json()
    fields["train"]["patch"] = patch
    config, channels = typed(fields), old.space.corpora[0].channels
    members = [*old.space.corpora, Corpus("Third", ((1, ("tumour",)),), channels=channels)]
    rename = {f"{c.name}/{name}": "tumour" for c in members for name in c.annotated}
    space = merge(members, "by_name", rename)
    net = build.make_network(config, space, (1.0, 1.0, 1.0))
    assert net.texts == (*old.network.texts, "Third")
    fresh = jax.tree.map(np.asarray, jax.jit(net.init)(jax.random.key(3)))
    begun = texts.filling(config, space, net, root / "new")(fresh)
    mine, theirs = flat(begun), flat(old.params())
    grown = []
    for path, leaf in theirs.items():
        new = np.asarray(mine[path])
        if new.shape == leaf.shape:
            np.testing.assert_array_equal(new, leaf)
            continue
        axis = next(k for k, (a, b) in enumerate(zip(new.shape, leaf.shape, strict=True)) if a != b)
        assert new.shape[axis] == 3
        np.testing.assert_array_equal(np.take(new, [0, 1], axis), leaf)
        grown.append(path)
    assert "text/table" in grown and "category/kernel" in grown and len(grown) > 5
    shape = (2, *patch, net.channels)
    image = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    given = {"task": np.array([1, 0], np.int32)}
    answers = [
        jax.jit(n.apply)(p, image, given)["logits"]
        for n, p in ((net, begun), (old.network, old.params()))
    ]
    np.testing.assert_array_equal(*map(np.asarray, answers))
    changed = [(image, {"task": np.array([0, 1], np.int32)})]
    if net.channels == 2:
        changed.append((image * np.array([1, 0], np.float32), given))  # no organ
    for told in changed:
        assert np.abs(jax.jit(net.apply)(begun, *told)["logits"] - answers[0]).max() > 1e-6
