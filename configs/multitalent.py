r"""MultiTalent (Ulrich et al., MICCAI 2023): one network, one sigmoid per class, a loss that counts
only what a data set annotates.

    # embedded corpora, minutes on a CPU:
    python -m medjax.main --config=configs/multitalent.py:demo --workdir=runs/demo
    # the paper's U-Net, 29,319,560 parameters: printed, trained, fine-tuned
    python -m medjax.main --config=configs/multitalent.py:unet --workdir=runs/unet --mode=dry
    python -m medjax.main --config=configs/multitalent.py:unet --workdir=runs/unet \
      --config.data.root=/folder/with/the/13/corpora
    python -m medjax.main --config=configs/multitalent.py:unet_finetune --workdir=runs/next \
      --config.data.folders=/folder/Dataset012_Y --config.init.source=runs/unet

`unet`, `resenc` and `swin` are the paper's recipes: 13 corpora, 47 classes kept apart, spacing
1.5x1x1 mm, patch 96x192x192, batch 4, 2000 x 250 steps, cases drawn with probability 1/sqrt(n).
`demo` is the same code on three small synthetic corpora with conflicting label sets. Suffixes:

  _softmax          one softmax head per corpus in place of one sigmoid per class (the authors'
                    successor)
  _small            the same network, narrower, on the corpora of `data.folders`; trains on a CPU
  _finetune         from `init.source`, batch 2: heads first (10 epochs), the whole network (50
                    epochs), then 1000 epochs of the usual schedule; nnU-Net's loss with the Dice of
                    the batch, normalised with the CT statistics of the source
  _finetune_release the schedule as the released code executes it: 11 + 50 + 999 epochs
  _scratch          what fine-tuning is compared with: the same for 1000 epochs, from nothing
  _single_NNN       what the paper calls the same topology for a single data set: 003, 006, ...
  _btcv_test        without the 17 test scans of BTCV that data set 9 labels
  _without_btcv, _without_kits
                    sources for fine-tuning on BTCV (no scan of it) and KiTS19
  _totalseg         supervised pre-training on TotalSegmentator's 104 classes instead
"""

from configs.base import base_config, for_two_cores, ordered
from data_pipelines import multitalent, pools
from data_pipelines.pool import Member, Pool

ARCHITECTURES = ("unet", "resenc", "swin")
KINDS = ("", "_softmax", "_small", "_finetune")
TRY = ("demo", "unet_small")  # without the pool: on phantoms, on folders
VARIANTS = (*(a + k for a in ARCHITECTURES for k in KINDS), "demo")  # in the tests of all configs
POOLS = {
    "": pools.multitalent,
    "softmax": pools.multitalent,
    "btcv_test": pools.multitalent_btcv_test,
    "without_btcv": pools.multitalent_without_btcv,
    "without_kits": pools.multitalent_without_kits,
    "totalseg": Pool("TotalSegmentator v1", (Member("TotalSegmentator_v1"),)),
    **{f"single_{name[:3]}": pools.multitalent.subset(name) for name in pools.multitalent.names},
}
FREE = ("small", "finetune", "finetune_release", "scratch")  # on the corpora of data.folders
KNOWN = ("demo", *(f"{a}_{k}".rstrip("_") for a in ARCHITECTURES for k in (*POOLS, *FREE)))
EPOCH = 250  # steps

HEADS = ((r"^(head|out)_?\d*/", True), (".*", False))
FINETUNE = {  # the paper's 10 + 50 + 1000 epochs, each phase's rates as meant
    "heads": {
        "steps": 10 * EPOCH,
        "name": "adamw",
        "amsgrad": True,
        "lr": 5e-4,
        "schedule": "linear",
        "trainable": HEADS,
    },
    "whole": {"steps": 50 * EPOCH, "lr": 1e-2, "schedule": "linear"},
    "main": {"steps": 1000 * EPOCH, "lr": 1e-2, "schedule": "poly", "continues": True},
}
# what the released code executes: it updates the rate with the number of the epoch before
FINETUNE_RELEASE = {
    "heads": FINETUNE["heads"] | {"steps": 11 * EPOCH, "span": 10 * EPOCH, "shift": -1},
    "whole": FINETUNE["whole"],
    "main": FINETUNE["main"] | {"steps": 999 * EPOCH, "span": 1000 * EPOCH, "shift": 1},
}


def get_config(variant: str = "unet"):
    """An architecture and a suffix (see the module's text), or `demo`."""
    if variant not in KNOWN:
        raise ValueError(f"unknown variant {variant!r}; known: {', '.join(KNOWN)}")
    c = base_config().unlock()
    c.name = f"multitalent_{variant}"
    if variant == "demo":
        _demo(c)
        return c.lock()
    architecture, _, kind = variant.partition("_")
    _architecture(c, architecture)
    if kind == "small":
        _small(c, architecture)
        return c.lock()
    _paper(c)
    if kind in POOLS:
        set_pool(c, POOLS[kind])
    if kind in ("", "softmax", "btcv_test", "without_btcv", "without_kits"):
        whole = POOLS[kind].names
        c.evaluate.groups = ordered(
            {
                group: tuple(name for name in names if name.split("/")[0] in whole)
                for group, names in multitalent.GROUPS.items()
            }
        )
    if kind == "softmax":
        per_corpus_softmax(c, reduction="sum")
    elif kind in (*FREE, "totalseg") or kind.startswith("single_"):
        per_corpus_softmax(c, reduction="mean", pool="corpus")
    if kind.startswith("finetune"):
        _finetune(c, architecture, FINETUNE_RELEASE if kind.endswith("release") else FINETUNE)
    elif kind == "scratch":
        c.train.batch = 2
        c.train.steps = 1000 * EPOCH
    elif kind.startswith("single_"):
        c.train.steps = 1000 * EPOCH
    return c.lock()


def set_pool(c, pool: Pool) -> None:
    """The pool as the config's corpora."""
    for field, value in pool.data().items():
        c.data[field] = ordered(value) if isinstance(value, dict) else value


def brats_exclusive(c) -> None:
    """BraTS 2020 as the three classes of its label map; its regions are scored as their unions."""
    set_pool(c, pools.brats2020)
    c.evaluate.regions = ordered(pools.BRATS_REGIONS)


def per_corpus_softmax(c, *, reduction: str, pool: str = "sample") -> None:
    """Every corpus has a softmax over its own classes and background, and nnU-Net's loss on it:
    cross-entropy, and Dice per sample, or over the samples of a corpus in the batch (`pool`
    "corpus": nnU-Net's batch Dice, which it uses where its plan has more than one resolution).

    The losses of the samples are summed (the successor, whose Dice has no smoothing constant) or
    averaged (nnU-Net, smoothing 1e-5).
    """
    smooth = 0.0 if reduction == "sum" else 1e-5
    dice = {
        "weight": 1.0,
        "pool": pool,
        "squared": False,
        "background": False,
        "smooth": smooth,
        "reduction": reduction,
    }
    c.model.head = "corpus_softmax"
    c.losses = ordered(
        {
            "softmax_cross_entropy": ordered({"weight": 1.0, "reduction": reduction}),
            "softmax_dice": ordered(dice),
        }
    )
    c.infer.activation = "softmax"


def _architecture(c, name: str) -> None:
    if name == "unet":
        c.model.update(
            dict(
                base_features=30, max_features=320, up_bias=False, head_bias=False, dtype="bfloat16"
            )
        )
        return
    if name == "resenc":
        c.model = ordered(dict(name="resenc", preset="multitalent", dtype="bfloat16"))
        return
    c.model.update(dict(name="swin_unetr", feature_size=48, dtype="bfloat16", remat="block"))
    c.optim.name = "adamw"
    c.optim.lr = 5e-4
    c.optim.eps = 1e-4


def _paper(c) -> None:
    c.data.spacing_mm = (1.5, 1.0, 1.0)
    c.optim.steps_per_epoch = EPOCH
    c.train.patch = (96, 192, 192)
    c.train.batch = 4
    c.train.steps = 2000 * EPOCH
    c.infer.mirror_axes = (0, 1, 2)


def _finetune(c, architecture: str, schedule: dict) -> None:
    c.train.batch = 2
    c.train.steps = 1060 * EPOCH
    c.init.intensity = "source"
    phases = {name: dict(fields) for name, fields in schedule.items()}
    if architecture == "swin":
        for fields, changes in zip(
            phases.values(),
            ({"lr": 1e-4, "amsgrad": False}, {"lr": 5e-4}, {"lr": 5e-4}),
            strict=True,
        ):
            fields.update(changes)
    c.optim.phases = ordered({name: ordered(fields) for name, fields in phases.items()})


def _small(c, architecture: str) -> None:
    for_two_cores(c)
    c.model.dtype = "float32"
    if architecture == "swin":
        c.optim.lr = 5e-4
        c.model.update(dict(feature_size=12, remat="none", initial="xavier"))
        c.train.patch = (32, 64, 64)
    else:
        if architecture == "resenc":
            c.model = ordered(dict(name="resenc", blocks=(1, 2, 2, 2)))
        if architecture == "unet":
            c.model.head_bias = True
        c.model.update(dict(base_features=16, max_features=128))
    c.init.head_prior = "prevalence"
    c.sampler.oversample = "probabilistic"
    c.sampler.foreground = 0.67


def _demo(c) -> None:
    # an organ's place tells it from its neighbours; in mirrored bodies a short training does not
    # learn it: mean Dice over the 14 classes 0.41 with mirrors, 0.65 without, after 700 steps
    c.augment.mirror = 0.0
    c.augment.lateral = "auto"
    c.infer.conflicts = "argmax"
    c.data.phantom_cases = 10
    c.data.spacing_mm = (5.0, 4.0, 4.0)
    c.optim.name = "adamw"
    c.optim.lr = 2e-3
    c.model.base_features = 16
    c.model.max_features = 128
    c.init.head_prior = "prevalence"
    c.train.patch = (24, 48, 48)
    c.train.batch = 2
    c.sampler.oversample = "probabilistic"
    c.sampler.foreground = 0.67
    c.train.steps = 1000
    c.train.validate_every = 100
    c.train.validation_batches = 8
    c.train.checkpoint_every = 100
    c.train.log_every = 10
