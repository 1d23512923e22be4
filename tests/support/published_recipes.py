"""Every value of every recipe, typed from the papers and their specifications, not from the
configs.

    RECIPES["m4oe", "finetune"]["optim.weight_decay"]  ->  1e-4

A row is complete: nnU-Net's defaults, then what a paper changes, then what a variant changes; with
the defaults that networks, losses, optimizers and augmentations fill in. Names are the configs'
(`tests.support.recipes.resolved`). Where a config leaves its paper on purpose, the row has the
config's value and the comment the reason. Numbers like 3.8 are sections of the paper's
specification. Axes are z, y, x.
"""

import re
from typing import Any

from tests.support import published_mast_pro, segvol_recipes

Table = dict[str, Any]
EPOCH = 250  # steps; nnU-Net, MultiTalent 3.8, TSFM 3.7


def _under(prefix: str, table: Table) -> Table:
    return {f"{prefix}.{name}": value for name, value in table.items()}


def _without(table: Table, *prefixes: str) -> Table:
    return {name: value for name, value in table.items() if not name.startswith(prefixes)}


# nnU-Net ------------------------------------------------------------------------------------

# augmentation of nnU-Net v2: MultiTalent 8.4, both tables; rotations and scalings p .2
AUGMENTATION = _under(
    "augment",
    {
        "on": True,
        "rotation": 0.2,
        "rotation_rad": None,  # +-30 degrees; +-180 within anisotropic slices
        "scaling": 0.2,
        "scaling_range": (0.7, 1.4),
        "noise": 0.1,
        "noise_sd": (0.0, 0.1),
        "blur": 0.2,
        "blur_channel": 0.5,
        "blur_sigma": (0.5, 1.0),
        "brightness": 0.15,
        "brightness_range": (0.75, 1.25),
        "shift": 0.0,  # no shift in nnU-Net
        "shift_range": (-0.1, 0.1),
        "contrast": 0.15,
        "contrast_range": (0.75, 1.25),
        "low_resolution": 0.25,
        "low_resolution_channel": 0.5,
        "zoom_range": (0.5, 1.0),
        "gamma_inverted": 0.1,
        "gamma": 0.3,
        "gamma_range": (0.7, 1.5),
        "mirror": 0.5,
        "mirror_axes": None,  # all of them; left and right labels stay: MultiTalent 4, row 21
        "quarter": 0.0,  # no quarter turns in nnU-Net
        "slicewise": None,
        "swap": (),
        "swap_axis": None,
        "mask_channels": (),
        "spare_channels": (),
    },
)

SGD = _under(
    "optim",
    {  # MultiTalent 8.5
        "name": "sgd",
        "lr": 1e-2,
        "momentum": 0.99,
        "nesterov": True,
        "weight_decay": 3e-5,
        "clip_norm": 12.0,
        "schedule": "poly",
        "power": 0.9,
        "steps_per_epoch": 1,  # ours: poly per step; the papers' recipes step once in 250
        "warmup_steps": 0,
        "final": 0.0,
        "span": 0,
        "shift": 0,
        "b1": 0.9,
        "b2": 0.999,
        "eps": 1e-8,
        "amsgrad": False,  # torch's AdamW
        "trainable": ((".*", True),),
        "lr_scale": ((".*", 1.0),),
        "decay": ((".*", True),),  # on all parameters, norms and biases too
        "only": (),
        "ema": 0.0,
        "phases": {},
    },
)

# MultiTalent's loss, which is the project's default: 3.7 and 4, rows 1, 2, 7
SIGMOID_LOSSES = _under(
    "losses",
    {
        "cross_entropy.weight": 1.0,
        "cross_entropy.normalise": "batch",
        "cross_entropy.reduction": "sum",
        "cross_entropy.ranks": 1,
        "dice.weight": 1.0,
        "dice.pool": "global",
        "dice.smooth": 0.0,
        "dice.reduction": "sum",
        "dice.ranks": 1,
        "dice.smooth_in": "both",
    },
)

UNET = _under(
    "model",
    {  # nnU-Net v2's PlainConvUNet: MultiTalent 8.2, 8.5
        "name": "unet",
        "base_features": 32,
        "max_features": None,  # 320 in three axes, 512 in two
        "max_stages": None,
        "features": None,
        "strides": None,
        "kernels": None,  # by the rule of patch and spacing
        "convs_per_stage": 2,
        "convs_per_stage_decoder": 2,
        "deep_supervision": True,
        "up_bias": True,
        "head_bias": True,
        "head": "sigmoid",
        "share_heads": "corpus",
        "prior": 0.0,
        "dtype": "float32",
        "remat": "none",
    },
)

SETTINGS = {  # of the engine
    "seed": 0,
    "data.folders": "",
    "data.phantom_cases": 0,
    "data.phantom_seed": 0,
    "data.declared": {},
    "data.root": "",
    "data.store": "",
    "data.views": {},
    "data.only": "",
    "data.subset": {},
    "data.share": "by_name",
    "data.rename": {},
    "data.precedence": (),
    "data.plan": "",
    "data.configuration": "",
    "data.allow_absent": False,
    "data.tasks": {},
    "data.spacing_mm": (),
    "data.size": (),
    "data.intensity": {},
    "data.spacing_rule": "median",  # nnU-Net: MultiTalent 8.2
    "data.orientation": "RAS",  # MultiTalent 4, row 22
    "data.crop": "nonzero",  # MultiTalent 8.3
    "data.workers": 0,
    "data.split.file": "",
    "data.split.folds": 5,
    "data.split.fold": 0,
    "data.split.seed": 12345,  # MultiTalent 8.5
    "sampler.exponent": 0.5,  # 1 / sqrt(n): MultiTalent 3.4, TSFM 3.5
    "sampler.draw": "iid",
    "sampler.foreground": 0.33,  # MultiTalent 3.8, 8.4
    "sampler.oversample": "last",  # MultiTalent 4, row 29
    "sampler.balance": "case",
    "sampler.by": "set",
    "sampler.whole": 0.0,
    "sampler.version": 0,  # the newest
    "sampler.threads": -1,  # as many as the machine has cores for
    "sampler.workers": 0,
    "deep_weights": (),  # halving, last level off: MultiTalent 4, row 6; TSFM 3.2
    "mask_padding": False,  # MultiTalent 4, row 18
    "task": "supervised",
    "task_options": {},
    "init.source": "",
    "init.checkpoint": "last",
    "init.rename": (),
    "init.heads": ((r"^(head|out)_?\d*/", -1),),
    "init.classes": {},
    "init.resize": (),
    "init.widen": "repeat",  # TSFM 3.8: repeated, not divided
    "init.fresh": "",
    "init.copy": (),
    "init.upcycle": False,
    "init.experts": {},
    "init.experts_from": {},
    "init.gate": "fresh",
    "train.steps": 1000 * EPOCH,  # MultiTalent 8.5
    "train.batch": 2,
    "train.accumulate": 1,
    "train.precision": "",
    "train.patch": (128, 128, 128),
    "train.validate_every": EPOCH,
    "train.validation_batches": 50,  # MultiTalent 8.5
    "train.patience": 0,
    "train.checkpoint_every": 250,
    "train.checkpoint_minutes": 10.0,
    "train.log_every": 50,
    "sharding.fsdp": 1,
    "sharding.rules": ((".*", "replicate"),),
    "infer.checkpoint": "last",  # the final one: MultiTalent 3.8
    "infer.ema": "auto",  # no paper keeps one: optim.ema
    "infer.overlap": 0.5,  # MultiTalent 3.10
    "infer.mirror_axes": (),
    "infer.average": "prob",  # MultiTalent 4, row 19
    "infer.activation": "sigmoid",
    "infer.batch_windows": 2,
    "infer.precision": "",
    "infer.postprocess.largest": (),
    "infer.postprocess.holes": (),  # none: MultiTalent 3.10
    "infer.postprocess.min_ml": {},
    "infer.fast": "",
    "evaluate.on": True,
    "evaluate.surface": True,
    "evaluate.montages": 8,
    "evaluate.groups": {},
    "evaluate.resampled": "",
    "evaluate.baseline": "",
    "evaluate.difficult_below": 0.75,  # MultiTalent 3.11
}

# sockets of a network that a recipe leaves as they are
SOCKETS = {"model.mlp": None, "model.bottleneck": None, "model.context": None}

BASE = SETTINGS | AUGMENTATION | SGD | SIGMOID_LOSSES | UNET | SOCKETS


def _model(table: Table, model: Table) -> Table:
    return _without(table, "model.") | SOCKETS | _under("model", model)


# what trains on two cores; chosen by this project, no paper: learning notes 4 and 5
# heads start at the share of every class: learning notes 1.2; the papers' recipes never do
PREVALENCE = {"init.head_prior": "prevalence"}
TWO_CORES = PREVALENCE | {
    "augment.lateral": "auto",
    "infer.conflicts": "argmax",
    "data.spacing_rule": "per_corpus",
    "optim.name": "adamw",
    "optim.lr": 2e-3,
    "train.patch": (40, 56, 40),
    "train.batch": 2,
    "train.steps": 1500,
    "train.validate_every": 250,
    "train.checkpoint_every": 250,
    "train.validation_batches": 20,
    "train.log_every": 25,
}
TWO_IN_THREE = {"sampler.oversample": "probabilistic", "sampler.foreground": 0.67}

# MultiTalent --------------------------------------------------------------------------------

MT_POOL = {
    "data.declared": {  # 3.1: 1477 cases; task 018 comes last: 3.2
        "003_Liver": 131,
        "006_Lung": 63,
        "007_Pancreas": 281,
        "008_HepaticVessel": 303,
        "009_Spleen": 41,
        "010_Colon": 126,
        "017_BTCV": 30,
        "046_BTCV2": 90,
        "051_StructSeg19": 50,
        "055_SegTHOR": 40,
        "062_NIHPancreas": 82,
        "064_KiTS19": 210,
        "018_BTCVCervix": 30,
    },
    "data.share": "per_corpus",  # 1, item 2
    "evaluate.groups": {  # the six cancer classes: 3.2
        "cancer": (
            "003_Liver/liver tumour",
            "006_Lung/lung tumour",
            "007_Pancreas/pancreas tumour",
            "008_HepaticVessel/liver tumour",
            "010_Colon/colon cancer",
            "064_KiTS19/kidney tumour",
        ),
    },
}

MT_PAPER = {
    "data.spacing_mm": (1.5, 1.0, 1.0),  # 3.5
    "optim.steps_per_epoch": EPOCH,  # poly per epoch: 3.8
    "train.patch": (96, 192, 192),
    "train.batch": 4,  # 3.8
    "train.steps": 2000 * EPOCH,  # 3.8; 4, row 3
    "infer.mirror_axes": (0, 1, 2),  # eight flips: 8.6
}

MT_UNET = {  # 3.6
    "name": "unet",
    "base_features": 30,
    "max_features": 320,
    "max_stages": None,
    "features": None,
    "strides": None,
    "kernels": None,  # the rule gives 3.6's
    "convs_per_stage": 2,
    "convs_per_stage_decoder": 2,
    "deep_supervision": True,
    "up_bias": False,
    "head_bias": False,
    "head": "sigmoid",
    "share_heads": "corpus",
    "prior": 0.0,
    "dtype": "bfloat16",  # 4, row 26
    "remat": "none",
}

MT_RESENC = {  # 3.6
    "name": "resenc",
    "preset": "multitalent",
    "base_features": 32,  # not used: the widths are given
    "max_features": None,
    "max_stages": None,
    "features": (30, 60, 120, 240, 320, 320),
    "strides": ((1, 1, 1), (1, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2)),
    "kernels": ((1, 3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3)),
    "blocks": (1, 2, 3, 4),  # 1, 2, 3, 4, 4, 4: the last one is repeated
    "convs_per_stage_decoder": 1,
    "deep_supervision": True,
    "stem_kernel": (3, 3, 3),
    "conv_bias": False,
    "up_bias": False,
    "head_bias": True,
    "skip": "strided_conv",
    "head": "sigmoid",
    "share_heads": "corpus",
    "prior": 0.0,
    "dtype": "bfloat16",
    "remat": "none",
}

MT_SWIN = {  # 3.6
    "name": "swin_unetr",
    "feature_size": 48,
    "depths": (2, 2, 2, 2),
    "heads": (3, 6, 12, 24),
    "window": 7,
    "merging": "fixed",  # MONAI 1.5 and later; "legacy" belongs to imported weights: 2.3
    "use_v2": False,
    "dims": 3,
    "normalise": True,
    "norm": "instance",  # without affine
    "mlp_ratio": 4.0,
    "drop_path": 0.0,
    "bias_index": "corner",
    "weight_axes": "zyx",
    "intermediates": False,
    "prior": None,
    "bottleneck": None,
    "head": "sigmoid",
    "share_heads": "corpus",
    "initial": "torch",  # MONAI's linear layers
    "dtype": "bfloat16",
    "remat": "block",  # checkpointing, as in the paper: 4, row 8
}

ADAMW_SWIN = {"optim.name": "adamw", "optim.lr": 5e-4, "optim.eps": 1e-4}  # 3.8


def _softmax(reduction: str, smooth: float, pool: str = "sample") -> Table:
    """A softmax per corpus: CE and Dice without background. Smoothing and the rest: 3.9, 3.12."""
    return {"model.head": "corpus_softmax", "infer.activation": "softmax"} | _under(
        "losses",
        {
            "softmax_cross_entropy.weight": 1.0,
            "softmax_cross_entropy.pool": "sample",
            "softmax_cross_entropy.reduction": reduction,
            "softmax_dice.weight": 1.0,
            "softmax_dice.pool": pool,
            "softmax_dice.squared": False,
            "softmax_dice.background": False,
            "softmax_dice.smooth": smooth,
            "softmax_dice.reduction": reduction,
            "softmax_dice.masked": True,
        },
    )


# the successor: sample losses are summed, Dice per sample without smoothing: 3.12, item 2. Its rate
# of 1e-3, ResEnc-L and 1 mm grid are not taken over: only the head differs from the paper's run.
SUCCESSOR = _softmax("sum", 0.0)
# nnU-Net's loss, smooth 1e-5: 3.9. Dice over the batch where the plan has two stages: MultiTalent
# 3.9, TSFM 3.6
NNUNET = _softmax("mean", 1e-5)
NNUNET_BATCH = _softmax("mean", 1e-5, "corpus")


def _phases(
    heads: float, whole: float, main: float, amsgrad: bool, released: bool = False
) -> Table:
    """3.9, the clean schedule: 10 + 50 + 1000 epochs; or the executed one: 11 + 50 + 999, in which
    the heads' rate is late by an epoch and the last phase has done one epoch of its 1000.
    """
    late = {
        "heads.span": 10 * EPOCH,
        "heads.shift": -1,
        "main.span": 1000 * EPOCH,
        "main.shift": 1,
    }
    return (
        _without(MT_PAPER, "train.")
        | _under("optim.phases", late if released else {})
        | _under(
            "optim.phases",
            {
                "heads.steps": (10 + released) * EPOCH,
                "heads.name": "adamw",
                "heads.amsgrad": amsgrad,
                "heads.lr": heads,
                "heads.schedule": "linear",
                "heads.trainable": ((r"^(head|out)_?\d*/", True), (".*", False)),
                "whole.steps": 50 * EPOCH,
                "whole.lr": whole,
                "whole.schedule": "linear",
                "main.steps": (1000 - released) * EPOCH,
                "main.lr": main,
                "main.schedule": "poly",
                "main.continues": True,
            },
        )
        | {
            "train.patch": (96, 192, 192),
            "train.batch": 2,  # of the source; batch 2: 3.9
            "train.steps": 1060 * EPOCH,
            "init.intensity": "source",  # patch, spacing and normalisation of the source plan: 3.9
        }
    )


def _without_sets(d9: int, *left_out: str) -> Table:
    """The collection without data sets, and with fewer cases of D9."""
    sets = {n: c for n, c in MT_POOL["data.declared"].items() if n not in left_out}
    cancer = MT_POOL["evaluate.groups"]["cancer"]
    kept = tuple(name for name in cancer if name.split("/")[0] not in left_out)
    return {
        "data.declared": sets | {"046_BTCV2": d9},
        "data.share": "per_corpus",
        "evaluate.groups": {"cancer": kept},
    }


TCIA, TRAINING = r"PANCREAS_\d{4}", r"PANCREAS_\d{4}|img00([0-3]\d|40)"
MT_SOURCES = {
    # 3.11: "the 17 BTCV test images are left out"; 4, row 17
    "_btcv_test": _without_sets(73) | {"data.subset": {"046_BTCV2": {"names": TRAINING}}},
    # 3.11, entry 6: no 017 and no 046_img*
    "_without_btcv": _without_sets(43, "017_BTCV")
    | {"data.subset": {"046_BTCV2": {"names": TCIA}}},
    "_without_kits": _without_sets(90, "064_KiTS19"),  # 3.11, entry 7
}


def _baseline_2(free: Table) -> dict[str, Table]:
    """2.2: the same topology, patch and batch 4, nnU-Net's training of 1000 epochs per data set."""
    single = free | MT_PAPER | NNUNET_BATCH | {"train.steps": 1000 * EPOCH}
    return {
        f"_single_{name[:3]}": single | {"data.declared": {name: cases}, "data.share": "per_corpus"}
        for name, cases in MT_POOL["data.declared"].items()
    }


def _multitalent(
    model: Table, optimizer: Table, phases: Table, released: Table, small: Table
) -> dict[str, Table]:
    own = _model(BASE, model) | optimizer
    free = _without(own, "losses.")
    # "same patch, spacing, batch size, epochs as MultiTalent", 1204 images, 104 classes: 2.2
    totalseg = {"data.declared": {"TotalSegmentator_v1": 1204}}
    return _baseline_2(free) | {
        "": own | MT_PAPER | MT_POOL,
        **{name: own | MT_PAPER | pool for name, pool in MT_SOURCES.items()},
        "_totalseg": free | MT_PAPER | NNUNET_BATCH | totalseg,
        # "scratch" of the transfer table: nnU-Net's 1000 epochs, batch 2
        "_scratch": free
        | MT_PAPER
        | NNUNET_BATCH
        | {"train.batch": 2, "train.steps": 1000 * EPOCH},
        "_finetune_release": _without(free, "optim.phases") | released | NNUNET_BATCH,
        "_softmax": free | MT_PAPER | MT_POOL | SUCCESSOR,
        "_small": own | TWO_CORES | TWO_IN_THREE | {"model.dtype": "float32"} | small,
        "_finetune": _without(free, "optim.phases") | phases | NNUNET_BATCH,
    }


SMALL_RESENC = {  # nnU-Net v2's residual encoder, narrower
    "name": "resenc",
    "preset": "resenc",
    "base_features": 16,
    "max_features": 128,
    "max_stages": None,
    "features": None,
    "strides": None,
    "kernels": None,
    "blocks": (1, 2, 2, 2),
    "convs_per_stage_decoder": 1,
    "deep_supervision": True,
    "stem_kernel": None,
    "conv_bias": True,
    "up_bias": True,
    "head_bias": True,
    "skip": "avgpool",
    "head": "sigmoid",
    "share_heads": "corpus",
    "prior": 0.0,
    "dtype": "float32",
    "remat": "none",
}
NARROW = {
    "model.base_features": 16,
    "model.max_features": 128,
    "model.head_bias": True,  # which the prior needs
}
MT = {
    "unet": _multitalent(
        MT_UNET,
        {},
        _phases(5e-4, 1e-2, 1e-2, True),
        _phases(5e-4, 1e-2, 1e-2, True, True),
        NARROW,
    ),
    "resenc": _multitalent(
        MT_RESENC,
        {},
        _phases(5e-4, 1e-2, 1e-2, True),
        _phases(5e-4, 1e-2, 1e-2, True, True),
        {},
    ),
    "swin": _multitalent(
        MT_SWIN,
        ADAMW_SWIN,
        _phases(1e-4, 5e-4, 5e-4, False),
        _phases(1e-4, 5e-4, 5e-4, False, True),
        {
            "optim.lr": 5e-4,
            "train.patch": (32, 64, 64),
            "model.feature_size": 12,
            "model.remat": "none",
            "model.initial": "xavier",
        },
    ),
}
MULTITALENT = {f"{name}{kind}": row for name, rows in MT.items() for kind, row in rows.items()}
MULTITALENT["resenc_small"] = _model(MULTITALENT["resenc_small"], SMALL_RESENC)
MULTITALENT["demo"] = (
    BASE
    | TWO_IN_THREE
    | NARROW
    | PREVALENCE
    | {  # phantoms; no paper
        "augment.mirror": 0.0,
        "augment.lateral": "auto",
        "infer.conflicts": "argmax",
        "data.phantom_cases": 10,
        "data.spacing_mm": (5.0, 4.0, 4.0),
        "optim.name": "adamw",
        "optim.lr": 2e-3,
        "train.patch": (24, 48, 48),
        "train.batch": 2,
        "train.steps": 1000,
        "train.validate_every": 100,
        "train.validation_batches": 8,
        "train.checkpoint_every": 100,
        "train.log_every": 10,
    }
)

# TSFM ---------------------------------------------------------------------------------------

TSFM_NETWORK = {  # 3.2 and 4: rows 1, 3, 5, 8, 15 to 19; size h: 3.3
    "name": "tsfm",
    "variant": "h",
    "channels": (96, 192, 384, 768, 1536, 1536),
    "blocks": 3,
    "blocks_decoder": None,  # as in the encoder
    "order": "pre",
    "shortcut_from": "raw",
    "stem": None,
    "final_norm": None,  # in order "pre": conv, and a norm before heads and D
    "vit": True,
    "vit_width": 768,
    "vit_layers": 12,
    "vit_heads": 12,
    "vit_mlp_ratio": 4,
    "vit_dropout": 0.1,
    "position": "learned",
    "proj_kernel": (3, 3),
    "bottleneck_residual": False,
    "initial": "xavier",  # 3.2: 3D-TransUNet's
    "strides": None,
    "deep_supervision": True,
    "head": "sigmoid",
    "share_heads": "corpus",
    "prior": 0.0,
    "scan": "vit",
    "remat": "convs",  # 4, row 24
    "dtype": "bfloat16",  # 3.7
}
TSFM_SIZES = {  # 3.3: channels, blocks, width, layers, heads, projections, remat
    "t": ((8, 16, 32, 64, 128, 128), 1, 96, 2, 3, (1, 1), "none"),
    "s": ((16, 32, 64, 128, 256, 256), 1, 192, 12, 3, (1, 1), "none"),
    "b": ((32, 64, 128, 256, 512, 512), 1, 384, 12, 6, (1, 1), "none"),
    "l": ((64, 128, 256, 512, 1024, 1024), 2, 768, 12, 12, (1, 1), "convs"),
    "h": ((96, 192, 384, 768, 1536, 1536), 3, 768, 12, 12, (3, 3), "convs"),
    "h2": ((64, 128, 256, 512, 1024, 2048), 4, 768, 12, 12, (1, 1), "convs"),
}

TSFM_COMMON = _model(BASE, TSFM_NETWORK) | {
    "sharding.rules": (("(bias|scale)$", "replicate"), (".*", "fsdp")),
    "optim.steps_per_epoch": EPOCH,  # poly per epoch: 3.7
    "train.batch": 2,  # 3.1, 3.7
    "infer.mirror_axes": (0, 1, 2),  # 3.9
}
TSFM_COUNTS = {  # 3.5; AMOS22's 240 are 200 CT and 40 MR, which count as one set
    "MSD_Liver": 131,
    "MSD_Lung": 63,
    "MSD_HepaticVessel": 303,
    "MSD_Colon": 126,
    "MSD_Pancreas": 281,
    "Breast_DCE": 100,
    "KiTS21": 300,
    "AMOS22_CT": 200,
    "AMOS22_MR": 40,
    "BTCV": 30,
    "TotalSegmentator_v1_organs": 1204,
}
VESSEL_TUMOUR = {"MSD_HepaticVessel/liver tumour": "tumour of the hepatic vessel set"}  # id 26: 3.5
TSFM_PRETRAIN = TSFM_COMMON | {
    "data.declared": TSFM_COUNTS,
    "data.rename": VESSEL_TUMOUR,
    "model.strides": ((2, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2), (1, 2, 2)),  # 3.2
    "optim.lr": 1e-3,
    "optim.weight_decay": 1e-3,  # 3.1
    "train.patch": (112, 160, 192),  # 3.1
    "train.steps": 1000 * EPOCH,  # 3.1
}


def _size(name: str) -> Table:
    names = ("channels", "blocks", "vit_width", "vit_layers", "vit_heads", "proj_kernel", "remat")
    return _under("model", dict(zip(names, TSFM_SIZES[name], strict=True)) | {"variant": name})


def _of(*names: str) -> Table:
    return {"data.declared": {name: TSFM_COUNTS[name] for name in names}, "data.rename": {}}


TUMOUR_SETS = tuple(TSFM_COUNTS)[:7]  # 2, table 1
TSFM_POOLS = {
    "tumor7": _of(*TUMOUR_SETS) | {"data.rename": VESSEL_TUMOUR},
    "separate": {
        "data.share": "per_corpus",
        "data.rename": {
            # labels are kept apart between sets; the two halves of AMOS22 are one set
            f"{half}/{organ}": f"AMOS22/{organ}"
            for half, organs in (("AMOS22_CT", 15), ("AMOS22_MR", 13))
            for organ in (
                "spleen",
                "right kidney",
                "left kidney",
                "gallbladder",
                "oesophagus",
                "liver",
                "stomach",
                "aorta",
                "inferior vena cava",
                "pancreas",
                "right adrenal gland",
                "left adrenal gland",
                "duodenum",
                "bladder",
                "prostate or uterus",
            )[:organs]
        },
    },
    "amos22": _of("AMOS22_CT", "AMOS22_MR"),  # 2, table 3
    "pancreas": _of("MSD_Pancreas"),
    # overlap of transfer sets with the pool: 4, row 27
    "without_btcv": _of(*(n for n in TSFM_COUNTS if n != "BTCV")) | {"data.rename": VESSEL_TUMOUR},
    "without_amos": _of(*(n for n in TSFM_COUNTS if not n.startswith("AMOS22")))
    | {"data.rename": VESSEL_TUMOUR},
    "without_kits": _of(*(n for n in TSFM_COUNTS if n != "KiTS21"))
    | {"data.rename": VESSEL_TUMOUR},
}
TSFM_TUMOURS = (  # 3.9: the mean of the seven columns, both KiTS masses among them
    "MSD_Liver/liver tumour",
    "MSD_Lung/lung tumour",
    "MSD_HepaticVessel/liver tumour",
    "MSD_Colon/colon cancer",
    "MSD_Pancreas/pancreas tumour",
    "KiTS21/kidney tumour",
    "KiTS21/kidney cyst",
)


def _tumours(row: Table) -> Table:
    """The row with the group of those tumours that its pool annotates."""
    own = tuple(name for name in TSFM_TUMOURS if name.split("/")[0] in row["data.declared"])
    return row | ({"evaluate.groups": {"tumour": own}} if own else {})


TSFM_TRANSFER = {
    "init.checkpoint": "best",  # 3.7: best checkpoint is what transfer loads
    "init.heads": ((r"^head\d+/", None),),  # always new: 3.8
    "init.resize": ((r"^vit/pos$", "trilinear"),),  # 3.8
}
TSFM_FINETUNE = (
    _without(TSFM_COMMON, "losses.")
    | TSFM_TRANSFER
    | NNUNET
    | {
        "optim.lr": 1e-2,
        "optim.weight_decay": 3e-5,  # 3.7, nnU-Net's; 4, row 11
        "train.patch": (128, 128, 128),  # ours: the plan of each set in the paper
    }
)
TSFM_TARGETS = {
    "finetune": {},
    "brats": {
        "data.declared": {"BraTS2020": 369},  # released cases; the paper counts 368: 3.1
        "evaluate.regions": {  # "tumor" is the whole tumour: 4, row 29
            "whole brain tumour": ("non-enhancing tumour core", "oedema", "enhancing tumour"),
            "brain tumour core": ("non-enhancing tumour core", "enhancing tumour"),
        },
    },
    "kits19": NNUNET_BATCH | {"data.declared": {"KiTS19": 210}},  # two stages: 3.6
    "abdomen": NNUNET_BATCH
    | {
        "data.declared": {"AbdomenCT_1K": 1000},
        "data.subset": {"AbdomenCT_1K": {"count": 50, "seed": 12345, "file": ""}},  # 4, row 28
    },
}

TSFM = {name: _tumours(TSFM_PRETRAIN | _size(name)) for name in TSFM_SIZES}
TSFM |= {name: _tumours(TSFM_PRETRAIN | pool) for name, pool in TSFM_POOLS.items()}
# 2: "plain nnU-Net U-Net on the ten-set pool, same loss and sampling, 1000 epochs"
TSFM["nnunet_pool"] = _tumours(
    _model(TSFM_PRETRAIN, {k.removeprefix("model."): v for k, v in UNET.items()})
    | {
        "model.dtype": "bfloat16",
        "sharding.rules": ((".*", "replicate"),),
        "optim.lr": 1e-2,
        "optim.weight_decay": 3e-5,
    }
)
TSFM |= {
    f"{target}_{epochs}": TSFM_FINETUNE | table | {"train.steps": epochs * EPOCH}  # 3.7
    for target, table in TSFM_TARGETS.items()
    for epochs in (10, 20, 50, 100)
}
TSFM["t_small"] = (
    TSFM_COMMON
    | TSFM_TRANSFER
    | TWO_CORES
    | TWO_IN_THREE
    | _size("t")
    | {
        "init.checkpoint": "last",
        "model.dtype": "float32",
        "model.vit_dropout": 0.0,
        "optim.lr": 1e-3,
        "optim.weight_decay": 1e-3,
        "optim.steps_per_epoch": 1,
        "train.patch": (40, 64, 64),
        "train.batch": 4,
        "train.validate_every": 100,
        "train.checkpoint_every": 500,
        "infer.mirror_axes": (),
    }
)

# M4oE ---------------------------------------------------------------------------------------

SWIN_UNET = {  # 3.1
    "name": "swin_unet",
    "width": 96,
    "depths": (2, 2, 2, 2),
    "heads": (3, 6, 12, 24),
    "window": 7,
    "patch_size": 4,
    "dims": 2,
    "mlp_ratio": 4.0,
    "drop_path": 0.2,
    "epsilon": 1e-5,
    "initial": "swin",  # 3.1: truncated normal .02
    "keep_shift": False,
    "experts_in": "both",
    "routing": "gate",
    "gate_scope": "token",  # 4, rows 1, 2, 18
    "experts": None,
    "expert_of": None,  # one per modality: 4, row 3
    "dispatch": "auto",
    "head": "corpus_softmax",
    "head_bias": False,
    "prior": 0.0,  # without a bias
    "share_heads": (0, 1, 2, 2),  # FLARE22, ATLAS23, and AMOS22's for CT and MR: 4, row 3
    "dtype": "bfloat16",
    "remat": "none",
}

M4OE_DATA = {
    "data.declared": {  # 3.10, 3.11: of AMOS22 300 CT and 60 MR have public labels
        "FLARE22": 50,
        "ATLAS23": 60,
        "AMOS22_CT": 300,
        "AMOS22_MR": 60,
    },
    "data.share": "per_corpus",
    "data.rename": TSFM_POOLS["separate"]["data.rename"],  # the same two halves of AMOS22
    "data.spacing_mm": (3.0, 1.6, 1.6),  # ours: 224 pixels hold a body; 4, row 26 pads and resizes
    "train.patch": (224, 224),  # 3.1
    "sampler.exponent": 0.0,
    "sampler.foreground": 0.0,  # one shuffled list: 4, row 31
    "infer.batch_windows": 36,
}

M4OE_LOSSES = _under(
    "losses",
    {  # 3.8; weights: 4, row 5; masked: 4, row 25; sample: row 24
        "softmax_cross_entropy.weight": 0.4,
        "softmax_cross_entropy.pool": "sample",
        "softmax_cross_entropy.reduction": "mean",
        "softmax_dice.weight": 0.6,
        "softmax_dice.pool": "sample",
        "softmax_dice.squared": True,
        "softmax_dice.background": True,
        "softmax_dice.smooth": 1e-5,
        "softmax_dice.reduction": "mean",
        "softmax_dice.masked": True,
    },
)

M4OE_RECIPE = M4OE_LOSSES | {
    "infer.activation": "softmax",
    # 4, row 4: AdamW, weight decay 1e-4, poly 0.9, no warm-up; lr ours. No clipping: 3.8
    "optim.name": "adamw",
    "optim.lr": 5e-4,
    "optim.weight_decay": 1e-4,
    "optim.clip_norm": 0.0,
    # 3.7, 4 row 10: the masked-image decoder is thrown away, decoder, gate and heads start fresh
    "init.heads": ((r"^head/", -1),),
    "init.fresh": r"^(enc_norm|expand|up|skip|dec_norm|final|head)|/gate/",
}
FINETUNE_STEPS = {  # 150 epochs, batch 36: 4, rows 4 and 6; an epoch of slices is not published
    "train.batch": 36,
    "train.steps": 150 * 890,
    "train.validate_every": 2 * 890,
    "train.checkpoint_every": 2 * 890,  # every 2 epochs: 3.8
    "train.validation_batches": 100,
}

_SLICES = _without(BASE, "losses.")
# Augmentation is nnU-Net's in two axes, not 4, row 27's (that is `release`'s, and an option).
M4OE_FINETUNE = _model(_SLICES, SWIN_UNET) | M4OE_DATA | M4OE_RECIPE | FINETUNE_STEPS
M4OE_ROWS = {  # table 4: 2.3
    "finetune": ("both", "gate"),
    "encoder_gate": ("encoder", "gate"),
    "encoder_hard": ("encoder", "hard"),
    "decoder_gate": ("decoder", "gate"),
    "decoder_hard": ("decoder", "hard"),
    "both_hard": ("both", "hard"),
    "none": ("none", "gate"),
}

MASKED_SWIN = {  # 3.6 and 4, rows 9, 21
    "name": "masked_swin",
    "width": 96,
    "depths": (2, 2, 2, 2),
    "heads": (3, 6, 12, 24),
    "window": 7,
    "patch_size": 4,
    "dims": 2,
    "mlp_ratio": 4.0,
    "drop_path": 0.1,
    "epsilon": 1e-5,
    "keep_shift": False,
    "initial": "xavier",
    "experts_in": "encoder",
    "experts": None,
    "expert_of": None,
    "dispatch": "auto",
    "dtype": "bfloat16",
    "remat": "none",
}
FLIPS = {"augment.on": True, "augment.kind": "flips", "augment.flip_axes": (1,)}  # horizontal: 3.6
MASKING = {  # 3.6
    "task": "masked_image",
    "task_options.ratio": 0.75,
    "task_options.block": 4,
    "task_options.patch_size": 4,
    "losses.masked_pixels.weight": 1.0,
    "losses.masked_pixels.normalise": False,
    "losses.masked_pixels.balance": "samples",
    "losses.masked_pixels.power": 2,
    "optim.name": "adamw",
    "optim.lr": 1e-3,
    "optim.b1": 0.9,
    "optim.b2": 0.95,
    "optim.weight_decay": 0.05,
    "optim.schedule": "cosine",
    "optim.clip_norm": 0.0,
    "evaluate.on": False,
}
MASKED_STEPS = {  # 400 epochs of 50920 images in batches of 96, the incomplete one dropped: 3.6
    "train.batch": 96,
    "train.steps": 400 * 530,
    "optim.warmup_steps": 10 * 530,  # linear from 0
    "train.validate_every": 10 * 530,
    "train.checkpoint_every": 10 * 530,
    "train.validation_batches": 20,
}
_PIXELS = _without(_SLICES, "augment.", "task_options") | FLIPS
M4OE_PRETRAIN = _model(_PIXELS, MASKED_SWIN) | M4OE_DATA | MASKING | MASKED_STEPS

PHANTOMS = {  # the demonstration; no paper
    "data.phantom_cases": 10,
    "data.spacing_mm": (5.0, 4.0, 4.0),
    "train.patch": (64, 64),
    "sampler.exponent": 1.0,
    "infer.batch_windows": 16,
    **TWO_IN_THREE,
    "model.width": 24,
    "model.heads": (1, 2, 4, 8),
    "model.window": 4,
    "model.patch_size": 2,
    "model.initial": "xavier",  # Swin's 0.02 is made for width 96: learning notes 1.1
    "model.dtype": "float32",
}
FOLDERS = PHANTOMS | {  # real scans on two cores; no paper
    "data.phantom_cases": 0,
    "data.spacing_mm": (),
    "data.spacing_rule": "per_corpus",
    "sampler.foreground": 0.5,
    "model.width": 48,
    "model.heads": (3, 6, 12, 24),
}
SHORT = PREVALENCE | {  # of both
    "model.head_bias": True,
    "augment.lateral": "auto",
    "train.batch": 16,
    "train.steps": 1000,
    "train.checkpoint_every": 250,
    "train.log_every": 20,
    "train.validate_every": 250,
    "train.validation_batches": 20,
    "optim.clip_norm": 12.0,
}
SHORT_MASKED = {
    "train.batch": 16,
    "train.steps": 400,
    "train.checkpoint_every": 100,
    "train.log_every": 20,
    "train.validate_every": 50,
    "train.validation_batches": 8,
    "optim.warmup_steps": 40,
    "optim.lr": 4e-4,  # 1e-3 x sqrt(16 / 96)
    "task_options.patch_size": 2,
    "losses.masked_pixels.normalise": True,  # learning notes 1.3
    "losses.masked_pixels.balance": "modalities",
}
OWN_HEADS = {"model.share_heads": "corpus"}
_SHORT_FINETUNE = _model(_SLICES, SWIN_UNET) | M4OE_RECIPE | SHORT | OWN_HEADS
_SHORT_PRETRAIN = _model(_PIXELS, MASKED_SWIN) | MASKING | SHORT_MASKED

M4OE = {
    name: M4OE_FINETUNE | {"model.experts_in": place, "model.routing": routing}
    for name, (place, routing) in M4OE_ROWS.items()
}
M4OE["without_mr"] = M4OE_FINETUNE | {  # run A of 2.4
    "data.declared": {"FLARE22": 50, "ATLAS23": 60, "AMOS22_CT": 300},
    "data.rename": {
        name: new for name, new in M4OE_DATA["data.rename"].items() if name.startswith("AMOS22_CT")
    },
    "model.share_heads": (0, 1, 2),
}
M4OE["release"] = _without(M4OE_FINETUNE, "augment.") | {  # 4: "what `release` reproduces"
    "model.routing": "channel_gate",
    "model.experts": 3,  # as many as heads: 4, row 3
    "optim.name": "sgd",
    "optim.momentum": 0.9,
    "optim.nesterov": False,  # 3.8
    "optim.lr": 0.05 * 36 / 24,  # 4, row 4
    "optim.shift": -1,  # one step late: 3.8
    "losses.softmax_dice.weight": 0.7,  # 4, row 5
    "losses.softmax_dice.masked": False,
    "mask_padding": True,  # -1 is masked in CE only: row 25
    "augment.on": True,
    "augment.kind": "turns",
    "augment.turn": 0.5,
    "augment.rotation": 0.5,  # 3.9
    "augment.nearest": True,  # 4, row 27
    "augment.spare_channels": (),
}
WHOLE_SLICES = {  # 4, rows 25, 26, 27, 30 and 31
    "data.spacing_mm": (),
    "data.size": (-1, 224, 224),
    "data.crop": "none",
    "data.split.folds": 10,  # eight tenths, one, and one: 40/5/5, 48/6/6
    "data.split.test": True,
    "sampler.weigh": "slices",
    "mask_padding": True,
}
SWIN_UNET_TURNS = {  # half quarter turns with a flip, a quarter small rotations: 3.9
    "augment.on": True,
    "augment.kind": "turns",
    "augment.turn": 0.5,
    "augment.rotation": 0.5,
    "augment.nearest": False,  # linear, filled with the slice's minimum: row 27
    "augment.spare_channels": (),
}
M4OE["whole"] = _without(M4OE_FINETUNE, "augment.") | WHOLE_SLICES | SWIN_UNET_TURNS
M4OE["release_prepared"] = (
    M4OE["release"] | WHOLE_SLICES | {"data.crop": "nonzero", "data.orientation": "stored"}  # 3.9
)
M4OE["single"] = M4OE_FINETUNE | {"init.upcycle": True}  # 4, row 9
M4OE["pretrain"] = M4OE_PRETRAIN
M4OE["pretrain_single"] = M4OE_PRETRAIN | {"model.experts_in": "none"}  # plain Swin-MAE
M4OE["whole_pretrain"] = M4OE_PRETRAIN | WHOLE_SLICES
M4OE["demo"] = M4OE["demo_from"] = _SHORT_FINETUNE | PHANTOMS
M4OE["small"] = _SHORT_FINETUNE | FOLDERS
M4OE["small_hard"] = M4OE["small"] | {"model.routing": "hard"}
M4OE["small_none"] = M4OE["small"] | {"model.experts_in": "none"}
M4OE["demo_pretrain"] = _SHORT_PRETRAIN | PHANTOMS
M4OE["small_pretrain"] = _SHORT_PRETRAIN | FOLDERS

# hippocampus: no paper ----------------------------------------------------------------------

HALVES = {
    "data.views": {
        "HippocampusAnterior": {
            "corpus": "Hippocampus",
            "annotated": ("Anterior",),
            "part": "0/2",
        },
        "HippocampusPosterior": {
            "corpus": "Hippocampus",
            "annotated": ("Posterior",),
            "part": "1/2",
        },
    },
}
HIPPOCAMPUS = {"full": BASE | TWO_CORES | NARROW}
HIPPOCAMPUS["partial"] = HIPPOCAMPUS["full"] | HALVES
HIPPOCAMPUS["joint"] = MULTITALENT["unet_small"] | HALVES | {"data.share": "per_corpus"}

# baselines ----------------------------------------------------------------------------------

SETS = {  # cases: MultiTalent 3.1, TSFM 3.5 and 3.1; AMOS22's public labels: M4oE 3.11
    "MSD_Liver": {"MSD_Liver": 131},
    "MSD_Lung": {"MSD_Lung": 63},
    "MSD_Pancreas": {"MSD_Pancreas": 281},
    "MSD_HepaticVessel": {"MSD_HepaticVessel": 303},
    "MSD_Spleen": {"MSD_Spleen": 41},
    "MSD_Colon": {"MSD_Colon": 126},
    "BTCV": {"BTCV": 30},
    "BTCV_TCIA": {"BTCV_TCIA": 90},
    "StructSeg19": {"StructSeg19": 50},
    "SegTHOR": {"SegTHOR": 40},
    "NIH_Pancreas": {"NIH_Pancreas": 82},
    "KiTS19": {"KiTS19": 210},
    "BTCV_Cervix": {"BTCV_Cervix": 30},
    "Breast_DCE": {"Breast_DCE": 100},
    "KiTS21": {"KiTS21": 300},
    "AMOS22": {"AMOS22_CT": 300, "AMOS22_MR": 60},
    "TotalSegmentator_v1_organs": {"TotalSegmentator_v1_organs": 1204},
    "BraTS2020": {"BraTS2020": 369},
    "AbdomenCT_1K": {"AbdomenCT_1K": 1000},
}
NOT_CT = ("Breast_DCE", "BraTS2020")
NNUNET_DEFAULT = (  # MultiTalent 8.5, 8.6
    _without(BASE, "losses.")
    | NNUNET
    | {"infer.mirror_axes": (0, 1, 2), "optim.steps_per_epoch": EPOCH}
)
SWIN_UNETR = (  # MONAI's research contributions, SwinUNETR/BTCV: main.py and data_utils.py
    _model(_without(BASE, "losses."), MT_SWIN)
    | NNUNET
    | {
        "losses.softmax_dice.background": True,  # DiceCELoss's default
        "data.spacing_mm": (2.0, 1.5, 1.5),
        "data.crop": "foreground",
        "data.intensity": {"CT": {"scheme": "window", "clip": (-175, 250)}},
        "sampler.exponent": 0.0,
        "sampler.foreground": 0.5,  # pos 1, neg 1
        "sampler.oversample": "probabilistic",
        "augment.mirror": 0.2,
        "augment.quarter": 0.2,
        "augment.brightness": 0.1,  # factor 1 +- 0.1
        "augment.brightness_range": (0.9, 1.1),
        "augment.shift": 0.1,
        "augment.shift_range": (-0.1, 0.1),
        "optim.name": "adamw",
        "optim.lr": 1e-4,
        "optim.weight_decay": 1e-5,
        "optim.schedule": "cosine",
        "optim.warmup_steps": 50 * EPOCH,
        "optim.clip_norm": 0.0,
        "train.patch": (96, 96, 96),
        "train.batch": 4,  # crops of a volume
    }
    | {
        f"augment.{name}": 0.0
        for name in (
            "rotation",
            "scaling",
            "noise",
            "blur",
            "contrast",
            "low_resolution",
            "gamma_inverted",
            "gamma",
        )
    }
)


def _baseline(row: Table, name: str) -> Table:
    found = row | {"data.declared": SETS[name]}
    if name in NOT_CT and row["data.intensity"]:
        found["data.intensity"] = {}
    if name == "AMOS22":  # a data set of two corpora: one head
        found |= {
            "data.share": "per_corpus",
            "data.rename": TSFM_POOLS["separate"]["data.rename"],
            "model.share_heads": (0, 0),
        }
    regions = TSFM_TARGETS["brats"]["evaluate.regions"]
    return found | ({"evaluate.regions": regions} if name == "BraTS2020" else {})


BASELINES = {"nnunet": NNUNET_DEFAULT, "swin_unetr": SWIN_UNETR}
BASELINES |= {
    f"{kind}_{name}": _baseline(row, name) for kind, row in BASELINES.items() for name in SETS
}

MAST_PRO = published_mast_pro.rows(SETTINGS | AUGMENTATION | SGD)

PAPERS = {
    "multitalent": MULTITALENT,
    "tsfm": TSFM,
    "m4oe": M4OE,
    "hippocampus": HIPPOCAMPUS,
    "mast_pro": MAST_PRO,
    "baselines": BASELINES,
    "segvol": segvol_recipes.rows(BASE),
}
RECIPES: dict[tuple[str, str], Table] = {
    (config, variant): row | {"name": f"{config}_{re.sub('[:,]', '_', variant)}"}
    for config, rows in PAPERS.items()
    for variant, row in rows.items()
}
"""(config, variant) -> every field and its value."""

# Learning rates at steps, from the closed forms of the specifications, rounded as printed there.
RATES = {
    ("multitalent", "unet"): {0: 1e-2, 249: 1e-2, 250 * 1000: 1e-2 * 0.5**0.9},  # 3.8
    ("multitalent", "unet_finetune"): {  # 3.9, clean: e is the epoch
        0: 5e-5,
        250 * 9: 5e-4,
        250 * 10: 2e-4,
        250 * 59: 1e-2,
        250 * 60: 1e-2,
        250 * 560: 1e-2 * 0.5**0.9,
    },
    # 3.9, as executed: e=0 5e-5; e=1..10 e x 5e-5; e=11..60 (e-10)/50 x 1e-2; then poly from e=61
    ("multitalent", "unet_finetune_release"): {
        0: 5e-5,
        250 * 1: 5e-5,
        250 * 10: 5e-4,
        250 * 11: 2e-4,
        250 * 60: 1e-2,
        250 * 61: 1e-2 * 0.999**0.9,
        250 * 560: 1e-2 * 0.5**0.9,
    },
    # MONAI: 50 of 1000 epochs of warm-up, then half a cosine
    ("baselines", "swin_unetr_BTCV"): {12_499: 1e-4, 12_500 + 237_500 // 2: 5e-5},
    ("multitalent", "swin_finetune"): {0: 1e-5, 250 * 9: 1e-4, 250 * 10: 1e-5, 250 * 59: 5e-4},
    ("tsfm", "h"): {0: 1e-3, 250: 9.990999550e-4, 250 * 500: 5.358867313e-4},  # 6.1
    ("tsfm", "brats_10"): {250 * 5: 5.358867313e-3, 250 * 9: 1.258925412e-3},  # 6.1
    ("m4oe", "finetune"): {0: 5e-4, 66_750: 5e-4 * 0.5**0.9},
    ("m4oe", "release"): {0: 0.075, 1: 0.075, 66_751: 0.075 * 0.5**0.9},  # 3.8: one step late
    # 3.9: 5 % of warm-up to 5e-5, then half a cosine
    ("mast_pro", "full"): {22_449: 5e-5, 22_450 + 426_550 // 2: 2.5e-5, 448_999: 0.0},
    ("m4oe", "pretrain"): {5299: 1e-3, 5300 + 103_350: 5e-4, 211_999: 0.0},  # warm-up, half cosine
}
