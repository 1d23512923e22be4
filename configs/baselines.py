r"""The networks that the papers compare themselves with, one data set at a time: nnU-Net as it
plans itself, and SwinUNETR with the recipe of its own code.

    # any data set; the plan decides spacing, patch, batch and network
    medjax plan /data/Dataset012_Y -o plan.json
    python -m medjax.main --config=configs/baselines.py:nnunet --workdir=runs/nnunet \
      --mode=crossval --config.data.folders=/data/Dataset012_Y --config.data.plan=plan.json \
      --config.data.configuration=3d_fullres --config.model=plan
    # a public corpus of the papers, without a plan: U-Net of 32 features, patch 128x128x128
    python -m medjax.main --config=configs/baselines.py:nnunet_KiTS19 --workdir=runs/kits --mode=dry
    python -m medjax.main --config=configs/baselines.py:swin_unetr_BTCV --workdir=runs/swin \
      --config.data.root=/folder/with/the/corpora

  nnunet, nnunet_SET          SGD at 1e-2, 1000 x 250 steps of 2, softmax with cross-entropy and
                              Dice; `--config.losses.softmax_dice.pool=corpus` where the plan has a
                              low resolution too: nnU-Net then takes the Dice of the batch
  swin_unetr, swin_unetr_SET  MONAI's published training on BTCV: 96x96x96 at 2x1.5x1.5 mm, window
                              -175 to 250, AdamW at 1e-4 with 50 epochs of warm-up and a cosine,
                              4 crops a step, half of them around a label; 1000 x 250 steps

`SET` is one of `SETS`. The rows that need each: docs/reproduce.md.
"""

from configs.base import base_config, ordered
from configs.multitalent import brats_exclusive, per_corpus_softmax, set_pool
from data_pipelines import pools
from data_pipelines.pool import Member, Pool

SETS = (
    *dict.fromkeys(member.corpus for member in pools.multitalent.members),
    "Breast_DCE",
    "KiTS21",
    "AMOS22",
    "TotalSegmentator_v1_organs",
    "BraTS2020",
    "AbdomenCT_1K",
)
KINDS = ("nnunet", "swin_unetr")
KNOWN = (*KINDS, *(f"{kind}_{name}" for kind in KINDS for name in SETS))
VARIANTS = ("nnunet", "nnunet_BraTS2020", "swin_unetr_BTCV")  # in the tests of all configs
PARTS = {"AMOS22": ("AMOS22_CT", "AMOS22_MR")}  # a data set of two corpora
EPOCH = 250  # steps
WINDOW = (-175, 250)


def get_config(variant: str = "nnunet"):
    """One of `KNOWN`, see the module's text."""
    if variant not in KNOWN:
        raise ValueError(f"unknown variant {variant!r}; known: {', '.join(KNOWN)}")
    kind = next(kind for kind in KINDS if variant == kind or variant.startswith(f"{kind}_"))
    name = variant.removeprefix(kind).removeprefix("_")
    c = base_config().unlock()
    c.name = f"baselines_{variant}"
    if name:
        _corpus(c, name)
    if kind == "swin_unetr":
        c.model = ordered(dict(name="swin_unetr", feature_size=48, dtype="bfloat16", remat="block"))
    per_corpus_softmax(c, reduction="mean")
    c.train.steps = 1000 * EPOCH
    if kind == "nnunet":
        c.optim.steps_per_epoch = EPOCH
        c.infer.mirror_axes = (0, 1, 2)
    else:
        _swin_unetr(c)
    if name in PARTS:
        c.model.share_heads = (0,) * len(PARTS[name])
    return c.lock()


def _corpus(c, name: str) -> None:
    """The data set with its own classes; the parts of one share their channels."""
    if name == "BraTS2020":
        brats_exclusive(c)
        return
    members = tuple(Member(part, group=name) for part in PARTS.get(name, (name,)))
    set_pool(c, Pool(name, members, share="per_corpus" if len(members) > 1 else "by_name"))


def _swin_unetr(c) -> None:
    """Source: Project-MONAI/research-contributions, SwinUNETR/BTCV (main.py, data_utils.py)."""
    c.losses.softmax_dice.background = True  # DiceCELoss
    c.data.spacing_mm = (2.0, 1.5, 1.5)
    c.data.crop = "foreground"
    channels = {ch for entry in c.data.declared.values() for ch in entry["channels"]}
    if not c.data.declared or "CT" in channels:
        c.data.intensity = ordered({"CT": ordered(dict(scheme="window", clip=WINDOW))})
    c.sampler.update(dict(exponent=0.0, foreground=0.5, oversample="probabilistic"))
    off = ("rotation", "scaling", "noise", "blur", "contrast", "low_resolution")
    c.augment.update(dict.fromkeys((*off, "gamma_inverted", "gamma"), 0.0))
    c.augment.update(dict(mirror=0.2, quarter=0.2, shift=0.1, shift_range=(-0.1, 0.1)))
    c.augment.update(dict(brightness=0.1, brightness_range=(0.9, 1.1)))
    c.optim.update(dict(name="adamw", lr=1e-4, weight_decay=1e-5, schedule="cosine", clip_norm=0.0))
    c.optim.warmup_steps = 50 * EPOCH
    c.train.patch, c.train.batch = (96, 96, 96), 4
