"""Every shipped recipe has exactly the values of the table in `published_recipes`; wrong edits of
configs and defaults are noticed.
"""

import importlib

import pytest

from medjax.registry import plain
from medjax.runs import build
from tests.support import published_recipes as published
from tests.support.configs import typed
from tests.support.mutants import mutated
from tests.support.recipes import differences, resolved


def _fields(config, variant):
    return plain(importlib.import_module(f"configs.{config}").get_config(variant))


def _wrong(recipe):
    """What differs from the table's row "config:variant"."""
    config, variant = recipe.split(":", 1)
    return differences(resolved(_fields(config, variant)), published.RECIPES[config, variant])


@pytest.mark.parametrize(("config", "variant"), list(published.RECIPES), ids=lambda v: v)
def test_a_recipe_has_the_published_values_and_no_others(config, variant):
    assert _wrong(f"{config}:{variant}") == []


def test_the_table_has_every_variant_of_every_config(repository):
    configs = {p.stem for p in (repository / "configs").glob("*.py")} - {"__init__", "base"}
    assert configs == set(published.PAPERS)
    for config in configs:
        module = importlib.import_module(f"configs.{config}")
        variants = getattr(module, "KNOWN", module.VARIANTS)
        assert set(variants) == set(published.PAPERS[config])
        with pytest.raises(ValueError, match="unknown variant"):
            module.get_config("unlisted")


@pytest.mark.parametrize(("config", "variant"), list(published.RATES), ids=lambda v: v)
def test_the_rate_follows_the_published_schedule(config, variant):
    rate = build.make_optimizer(typed(_fields(config, variant))).schedule
    for step, lr in published.RATES[config, variant].items():
        assert float(rate(step)) == pytest.approx(lr, rel=1e-5, abs=1e-9), step


EDITS = [  # module, what it says, what it would say, the recipe and field that show it
    (
        "medjax.runs.settings.schema",
        "momentum: Number = setting(0.99",
        "momentum: Number = setting(0.5",
        "multitalent:unet optim.momentum",
    ),
    (
        "medjax.runs.settings.schema",
        "weight_decay: Number = setting(3e-5",
        "weight_decay: Number = setting(3e-2",
        "multitalent:unet optim.weight_decay",
    ),
    (
        "medjax.runs.settings.schema",
        "clip_norm: Number = setting(12.0",
        "clip_norm: Number = setting(0.001",
        "multitalent:unet optim.clip_norm",
    ),
    (
        "medjax.runs.settings.schema",
        "foreground: Number = setting(0.33",
        "foreground: Number = setting(0.0",
        "multitalent:unet sampler.foreground",
    ),
    (
        "medjax.runs.settings.schema",
        "weight: Number = setting(1.0",
        "weight: Number = setting(0.01",
        "multitalent:unet losses.dice.weight",
    ),
    (
        "medjax.runs.settings.schema",
        "nesterov: bool = setting(True",
        "nesterov: bool = setting(False",
        "multitalent:unet optim.nesterov",
    ),
    (
        "medjax.runs.settings.schema",
        "power: Number = setting(0.9",
        "power: Number = setting(1.0",
        "multitalent:unet optim.power",
    ),
    (
        "medjax.runs.settings.schema",
        'schedule: str = setting("poly"',
        'schedule: str = setting("cosine"',
        "tsfm:h optim.schedule",
    ),
    (
        "medjax.runs.settings.schema",
        "exponent: Number = setting(0.5",
        "exponent: Number = setting(0.0",
        "multitalent:unet sampler.exponent",
    ),
    (
        "medjax.runs.settings.use",
        'average: str = setting("prob"',
        'average: str = setting("logit"',
        "multitalent:unet infer.average",
    ),
    (
        "medjax.runs.settings.use",
        "overlap: Number = setting(0.5",
        "overlap: Number = setting(0.25",
        "multitalent:unet infer.overlap",
    ),
    (
        "configs.tsfm",
        "weight_decay = 1e-3\n    c.train.patch = (112",
        "weight_decay = 1.0\n    c.train.patch = (112",
        "tsfm:h optim.weight_decay",
    ),
    (
        "configs.tsfm",
        'init.checkpoint = "best"',
        'init.checkpoint = "last"',
        "tsfm:brats_100 init.checkpoint",
    ),
    (
        "configs.tsfm",
        "patch = (128, 128, 128)",
        "patch = (64, 64, 64)",
        "tsfm:brats_100 train.patch",
    ),
    ("configs.tsfm", "((1, 2, 2),)", "((2, 2, 2),)", "tsfm:h model.strides"),
    ("configs.tsfm", "1000 * EPOCH", "100 * EPOCH", "tsfm:h train.steps"),
    (
        "configs.tsfm",
        "_transfer(c)\n    per_corpus_softmax",
        "per_corpus_softmax",
        "tsfm:brats_10 init.resize",
    ),
    ("configs.tsfm", "count=50", "count=500", "tsfm:abdomen_10 data.subset"),
    ("configs.m4oe", "lr=5e-4", "lr=0.5", "m4oe:finetune optim.lr"),
    ("configs.m4oe", "weight_decay=1e-4", "weight_decay=1.0", "m4oe:finetune optim.weight_decay"),
    (
        "configs.m4oe",
        "=0.4)), softmax_dice=ordered(dict(weight=0.6",
        "=0.0)), softmax_dice=ordered(dict(weight=60.0",
        "m4oe:none losses.softmax_dice.weight",
    ),
    ("configs.m4oe", "= 36, 150 *", "= 4, 150 *", "m4oe:finetune train.batch"),
    ("configs.m4oe", "place, routing, 0.2", "place, routing, 0.0", "m4oe:single model.drop_path"),
    ("configs.m4oe", "ratio=0.75", "ratio=0.25", "m4oe:pretrain task_options.ratio"),
    ("configs.m4oe", "block=4", "block=2", "m4oe:pretrain task_options.block"),
    ("configs.m4oe", "weight_decay=0.05", "weight_decay=5.0", "m4oe:pretrain optim.weight_decay"),
    ("configs.m4oe", "= 96, 400 *", "= 8, 400 *", "m4oe:pretrain train.batch"),
    ("configs.m4oe", "= 0.9, 0.95", "= 0.5, 0.5", "m4oe:pretrain optim.b2"),
    ("configs.m4oe", "lr=0.05 * 36 / 24", "lr=5.0", "m4oe:release optim.lr"),
    ("configs.m4oe", "shift = -1", "shift = 0", "m4oe:release optim.shift"),
    (
        "configs.m4oe",
        '"encoder_hard": ("encoder", "hard")',
        '"encoder_hard": ("decoder", "gate")',
        "m4oe:encoder_hard model.routing",
    ),
    (
        "configs.m4oe",
        '{"pretrain": "encoder"',
        '{"pretrain": "none"',
        "m4oe:pretrain model.experts_in",
    ),
    (
        "configs.m4oe",
        "spacing_mm = (3.0, 1.6, 1.6)",
        "spacing_mm = (3.0, 1.0, 1.0)",
        "m4oe:both_hard data.spacing_mm",
    ),
    (
        "configs.m4oe",
        "warmup_steps = 10 * EPOCH_PRETRAIN",
        "warmup_steps = 0",
        "m4oe:pretrain optim.warmup_steps",
    ),
    (
        "configs.m4oe",
        "c.sampler.exponent = 0.0",
        "c.sampler.exponent = 0.5",
        "m4oe:without_mr sampler.exponent",
    ),
    ("configs.multitalent", "eps = 1e-4", "eps = 1e-8", "multitalent:swin optim.eps"),
    (
        "configs.multitalent",
        "mirror_axes = (0, 1, 2)",
        "mirror_axes = ()",
        "multitalent:unet infer.mirror_axes",
    ),
    (
        "configs.multitalent",
        "else 1e-5",
        "else 0.5",
        "multitalent:unet_finetune losses.softmax_dice.smooth",
    ),
    (
        "configs.multitalent",
        '"steps": 10 * EPOCH',
        '"steps": 11 * EPOCH',
        "multitalent:unet_finetune optim.phases.heads.steps",
    ),
    (
        "configs.multitalent",
        '"amsgrad": True, "lr": 5e-4',
        '"amsgrad": True, "lr": 5e-3',
        "multitalent:resenc_finetune optim.phases.heads.lr",
    ),
    ("configs.multitalent", "train.batch = 4", "train.batch = 2", "multitalent:resenc train.batch"),
    (
        "configs.multitalent",
        "c.data.spacing_mm = (1.5, 1.0, 1.0)",
        "c.data.spacing_mm = (3.0, 1.0, 1.0)",
        "multitalent:swin data.spacing_mm",
    ),
    (
        "configs.multitalent",
        "c.optim.lr = 2e-3\n",
        "c.optim.lr = 2e-3\n    c.train.patience = 3\n",
        "multitalent:demo train.patience",
    ),  # a new field
    (
        "configs.multitalent",
        "c.model.head_bias = True",
        "c.model.head_bias = False",
        "multitalent:unet_small model.head_bias",
    ),
    (
        "configs.m4oe",
        'head_prior = "prevalence"',
        'head_prior = ""',
        "m4oe:small init.head_prior",
    ),
    (
        "configs.tsfm",
        "_transfer(c)\n    per_corpus_softmax",
        "_transfer(c)\n    c.init.head_prior = 'prevalence'\n    per_corpus_softmax",
        "tsfm:finetune_10 init.head_prior",
    ),  # a paper's recipe starts as published
    (
        "configs.multitalent",
        'c.init.intensity = "source"',
        'c.init.intensity = ""',
        "multitalent:swin_finetune_release init.intensity",
    ),
    ("configs.m4oe", '= "slices"', '= "cases"', "m4oe:whole sampler.weigh"),
    ("configs.baselines", "(-175, 250)", "(-100, 250)", "baselines:swin_unetr data.intensity"),
    ("configs.baselines", "lr=1e-4", "lr=1e-2", "baselines:swin_unetr_BTCV optim.lr"),
    ("configs.hippocampus", '"part": "1/2"', '"part": "0/2"', "hippocampus:partial data.views"),
    # defaults in the code that a recipe relies on
    (
        "medjax.losses.softmax_dice",
        "smooth: float = 1e-5",
        "smooth: float = 1.0",
        "m4oe:finetune losses.softmax_dice.smooth",
    ),
    (
        "medjax.losses.softmax_dice",
        "squared: bool = True",
        "squared: bool = False",
        "m4oe:finetune losses.softmax_dice.squared",
    ),
    (
        "medjax.losses.dice",
        'pool: str = "global"',
        'pool: str = "sample"',
        "multitalent:unet losses.dice.pool",
    ),
    (
        "medjax.losses.cross_entropy",
        'reduction: str = "sum"',
        'reduction: str = "mean"',
        "tsfm:h losses.cross_entropy.reduction",
    ),
    (
        "medjax.models.tsfm",
        "vit_dropout: float | int = 0.1",
        "vit_dropout: float | int = 0.5",
        "tsfm:h model.vit_dropout",
    ),
    (
        "medjax.models.tsfm",
        '"blocks": 3, "proj_kernel": (3, 3)',
        '"blocks": 2, "proj_kernel": (3, 3)',
        "tsfm:h model.blocks",
    ),
    (
        "medjax.models.resenc",
        '"blocks": (1, 2, 3, 4)',
        '"blocks": (1, 3, 4, 6)',
        "multitalent:resenc model.blocks",
    ),
    (
        "medjax.models.swin_unet",
        "mlp_ratio: float | int = 4.0",
        "mlp_ratio: float | int = 2.0",
        "m4oe:release model.mlp_ratio",
    ),
]


@pytest.mark.parametrize(
    ("module", "old", "new", "where"),
    EDITS,
    ids=[f"{m.split('.')[-1]}-{n}" for m, _, n, _ in EDITS],
)
def test_a_wrong_edit_is_noticed(module, old, new, where):
    recipe, field = where.split()
    also = ("configs",) if module.startswith("medjax.runs.settings.") else ()
    with mutated(module, old, new, *also):
        wrong = _wrong(recipe)
    assert any(line.startswith(f"{field}: ") for line in wrong), wrong
    assert _wrong(recipe) == [], "the right modules are back"


@pytest.mark.parametrize(
    ("old", "new"),
    [("mirror: float = 0.5", "mirror: float = 0.0"), ("gamma: float = 0.3", "gamma: float = 0.0")],
)
def test_a_changed_augmentation_is_noticed(old, new):
    with mutated("medjax.augment.nnunet", old, new):
        wrong = _wrong("multitalent:unet")
    assert [line.split(":")[0] for line in wrong] == [f"augment.{old.split(':')[0]}"]


def test_what_differs_is_said_with_both_values():
    assert differences({"a": 1, "b": True}, {"a": 2, "b": 1, "c": ()}) == [
        "a: 1 instead of 2",
        "b: True instead of 1",
        "c: '(absent)' instead of ()",
    ]
