"""The fields every experiment has, with nnU-Net's defaults. A paper's config starts here and states
what differs.

Types, defaults and meanings are in medjax/runs/settings/schema.py;
`python -m medjax.main --config=configs/X.py --help` prints them with the values of a config. Every
field is a flag: `--config.optim.lr=1e-3 --config.train.steps=500`.
"""

import ml_collections

from medjax.runs.settings import schema


def ordered(fields=()) -> ml_collections.ConfigDict:
    """A ConfigDict that keeps the order its fields are given in: corpora and phases have one
    (ml_collections would sort them).
    """
    return ml_collections.ConfigDict(dict(fields), sort_keys=False)


def base_config() -> ml_collections.ConfigDict:
    """Defaults shared by all experiments (spacings, patches and axes are z, y, x)."""
    return _ordered(schema.listed()).lock()


def _ordered(fields):
    return ordered((k, _ordered(v) if isinstance(v, dict) else v) for k, v in fields.items())


def for_two_cores(c) -> None:
    """Settings of the small recipes on real corpora: each corpus on its own spacing, AdamW, 1500
    steps.
    """
    c.augment.lateral = "auto"
    c.infer.conflicts = "argmax"
    # 1 mm crops of a hippocampus and 2.5 mm hearts share no sensible grid
    c.data.spacing_rule = "per_corpus"
    # after 200 steps SGD with momentum 0.99 segments no hippocampus, AdamW has Dice 0.69
    c.optim.name = "adamw"
    c.optim.lr = 2e-3
    c.train.patch, c.train.batch = (40, 56, 40), 2
    c.train.steps = 1500
    c.train.validate_every = c.train.checkpoint_every = 250
    c.train.validation_batches = 20
    c.train.log_every = 25
