"""Every value of the recipes of MAST-Pro, see `published_recipes`. Numbers like 3.8 are sections of
its specification; [R] marks what the paper leaves open and this project decided.
"""

from collections.abc import Mapping
from typing import Any

from data_pipelines.tumour_tasks import MAST_PRO_TASKS

Table = dict[str, Any]

BOTH = {
    "sampler.exponent": 1.0,  # data sets alike: 3.8
    "sampler.foreground": 0.5,  # tumour to background 1:1: 3.8
    "sampler.oversample": "probabilistic",
    **{
        f"augment.{name}": 0.0
        for name in ("rotation", "scaling", "noise", "blur", "brightness", "contrast")
    },
    "augment.low_resolution": 0.0,
    "augment.gamma_inverted": 0.0,
    "augment.gamma": 0.0,
    "augment.mirror": 0.0,
    "augment.quarter": 0.1,  # the Universal Model's: 3.8
    "augment.shift": 0.2,
    "augment.shift_range": (-0.1, 0.1),
    "optim.name": "adamw",  # 3.9
    "optim.lr": 5e-5,
    "optim.weight_decay": 1e-5,  # [R], 3.9
    "optim.schedule": "cosine",  # [R], 3.9
    "optim.clip_norm": 0.0,
    "losses.dice.weight": 1.0,
    "losses.dice.pool": "sample",  # 3.5
    "losses.dice.smooth": 1e-5,
    "losses.dice.reduction": "mean",
    "losses.dice.ranks": 1,
    "losses.dice.smooth_in": "both",
}
BCE = {
    "losses.cross_entropy.weight": 1.0,
    "losses.cross_entropy.normalise": "per_annotating",  # annotated classes only: 3.5
    "losses.cross_entropy.reduction": "mean",
    "losses.cross_entropy.ranks": 1,
}
STAGE1_CASES = {  # 3.7
    "BTCV": 30,
    "CT_ORG": 140,
    "BTCV_TCIA": 90,
    "CHAOS_CT": 20,
    "IRCADb": 20,
    "WORD": 150,
    "AMOS22_CT": 300,
    "AbdomenCT_1K": 1000,
    "LiTS": 131,
    "KiTS21": 300,
    "MSD_Liver": 131,
    "MSD_Lung": 63,
    "MSD_Pancreas": 281,
    "MSD_HepaticVessel": 303,
    "MSD_Spleen": 41,
    "MSD_Colon": 126,
}
TASK_CASES = {  # 3.8
    "MSD_Liver": 131,
    "MSD_Lung": 63,
    "MSD_Pancreas": 281,
    "MSD_HepaticVessel": 303,
    "MSD_Colon": 126,
    "LiTS": 131,
    "KiTS": 210,
}
TUMOURS = {
    "MSD_Liver": "liver tumour",
    "MSD_Lung": "lung tumour",
    "MSD_Pancreas": "pancreas tumour",
    "MSD_HepaticVessel": "liver tumour",
    "MSD_Colon": "colon cancer",
    "LiTS": "liver tumour",
    "KiTS": "kidney tumour",
    "AbdomenCT_1K": "tumour",
}
TEMPLATE = (  # the classes of stage 1, in the order of the data sets
    "spleen",
    "right kidney",
    "left kidney",
    "gallbladder",
    "oesophagus",
    "liver",
    "stomach",
    "aorta",
    "inferior vena cava",
    "portal and splenic vein",
    "pancreas",
    "right adrenal gland",
    "left adrenal gland",
    "bladder",
    "lungs",
    "kidney",
    "duodenum",
    "liver tumour",
    "colon",
    "small bowel",
    "adrenal glands",
    "rectum",
    "left femoral head",
    "right femoral head",
    "prostate or uterus",
    "kidney tumour",
    "kidney cyst",
    "lung tumour",
    "pancreas tumour",
    "hepatic vessel",
    "tumour of the hepatic vessel set",
    "colon cancer",
)
SWIN = {  # heading 8
    "feature_size": 48,
    "depths": (2, 2, 2, 2),
    "heads": (3, 6, 12, 24),
    "window": 7,
    "merging": "fixed",
    "weight_axes": "zyx",
    "dims": 3,
    "drop_path": 0.0,
    "bias_index": "corner",
    "initial": "torch",
    "dtype": "bfloat16",
    "remat": "block",
}
UNETR = SWIN | {
    "name": "swin_unetr",
    "use_v2": False,
    "normalise": True,
    "norm": "instance",
    "mlp_ratio": 4.0,
    "intermediates": False,
    "prior": None,
    "head": "sigmoid",
    "share_heads": "corpus",
}
UNIVERSAL = SWIN | {"name": "universal", "encoding": "word", "use_v2": False, "mlp_ratio": 4.0}
MAST = SWIN | {  # 3.12
    "name": "mast_pro",
    "image_channels": 1,
    "text": True,
    "anatomy": True,
    "query": "feature_concat",
    "fusion_heads": 1,
    "fusion_width": 768,
    "fusion_levels": "bottleneck",
    "attn_out_init": "torch",
    "theta": "",
    "theta_hidden": 768,
    "theta_all": False,
}
EXPERTS = {"kind": "dynamic_low_rank", "k1": 2, "k2": 2, "top_k": 2, "rank": 32}  # 3.2
NEW = r"/(generic|specific)/|/(router|noise)_\w+$|^(fusion\w*|theta|category|precls|out)/"
PEFT = ((NEW, True), (".*", False))
OF_TASKS = r"/specific/|/(router|noise)_task$"
OWN = rf"{OF_TASKS}|^category/"
FROM_STAGE1 = {
    # a stage 1 with the Universal Model's head has its network below backbone/ already
    "init.rename": ((r"^anatomy/", "anatomy/"), (r"^(backbone/)?", "backbone/")),
    "init.copy": ((r"^(backbone/)?swin/", "anatomy/"),),
    "init.fresh": NEW + "|^text/",
    "init.heads": (),
}
LATER = {
    "init.rename": (),
    "init.copy": (),
    "init.fresh": "",
    "init.heads": ((rf"{OF_TASKS}|^text/table$", 0, "tasks"), (r"^category/", -1, "tasks")),
    "optim.decay": ((OWN, False), (".*", True)),
}
ROWS: dict[str, tuple[bool, bool, bool]] = {  # text, anatomy, experts: 3.11
    "full": (True, True, True),
    "ap": (False, True, False),
    "tp": (True, False, False),
    "dmoe": (False, False, True),
    "swin_unetr": (False, False, False),
    "full_tuning": (True, True, True),
    "literal": (True, True, True),
    "freeze_generic": (True, True, True),
    "add_task": (True, True, True),
}
CHANGES: dict[str, Table] = {
    "swin_unetr": {"optim.trainable": ((".*", True),)},
    "full_tuning": {"optim.trainable": ((r"^(anatomy|text)/", False), (".*", True))},
    "literal": {  # 3.7, last row of the budgets
        "model.fusion_width": 256,
        "model.theta_hidden": 256,
        "model.mlp.k1": 1,
        "model.mlp.rank": 4,
        "optim.trainable": ((rf"{NEW}|^backbone/decoder\d/", True), (".*", False)),
    },
    "freeze_generic": LATER
    | {"optim.trainable": ((r"/generic/|/(router|noise)_generic$", False), *PEFT)},
    "add_task": LATER | {"optim.trainable": ((OWN, True), (".*", False))},
}
SMALL_SWIN = {"feature_size": 12, "dtype": "float32", "remat": "none"}
SMALL = {"train.patch": (32, 64, 64), "train.batch": 2}
FOLDERS = {  # small recipes on real corpora: as those of the other papers
    "augment.lateral": "auto",
    "infer.conflicts": "argmax",
    "data.spacing_rule": "per_corpus",
    "train.steps": 1500,
    "train.validate_every": 250,
    "train.checkpoint_every": 250,
    "train.validation_batches": 20,
    "train.log_every": 25,
}
DEMO = {
    "data.phantom_cases": 10,
    "data.spacing_mm": (5.0, 4.0, 4.0),
    "infer.conflicts": "argmax",
    "train.validate_every": 100,
    "train.checkpoint_every": 100,
    "train.validation_batches": 8,
    "train.log_every": 10,
}


def _steps(cases: int) -> Table:
    """1000 epochs of batches of 4 over four fifths of the cases: 3.9."""
    epoch = -(-cases // 5)
    return {
        "train.steps": 1000 * epoch,
        "optim.warmup_steps": 50 * epoch,  # 5 %: [R], 3.9
        "train.validate_every": 10 * epoch,
        "train.checkpoint_every": 10 * epoch,
        "train.batch": 4,
        "train.patch": (96, 96, 96),
        "data.spacing_mm": (1.5, 1.5, 1.5),
        "data.crop": "foreground",
        "data.intensity": {  # HU: 3.8
            "CT": {"scheme": "window", "clip": (-175, 250)},
            "CT lung": {"scheme": "window", "clip": (-1000, 400)},
        },
    }


def _tasks(public: bool) -> Table:
    cases = TASK_CASES | ({} if public else {"AbdomenCT_1K": 1000})
    names = {name.replace("-", "_"): task for name, task in MAST_PRO_TASKS.items()}
    names["AbdomenCT_1K"] = MAST_PRO_TASKS["AbdomenCT-1K"]
    return _steps(sum(cases.values())) | {
        "data.declared": cases,
        "data.share": "per_corpus",
        "data.rename": {f"{name}/{TUMOURS[name]}": "tumour" for name in cases},
        "text.source": "",
        "text.file": "",
        "text.pooled": False,
        "text.sentences": {name: names[name].sentence for name in cases},
    }


def _row(row: str, small: bool) -> Table:
    text, anatomy, experts = ROWS[row]
    model = MAST | {"text": text, "anatomy": anatomy}
    if small:
        model |= SMALL_SWIN | {"fusion_width": 192, "theta_hidden": 192}
    if experts:
        own = EXPERTS | ({"rank": 8} if small else {})
        model |= {f"mlp.{name}": value for name, value in own.items()}
    table = {f"model.{name}": value for name, value in model.items()} | {"model.mlp": None}
    table |= FROM_STAGE1 | {"optim.trainable": PEFT}
    if text or anatomy:
        table["losses.category.weight"] = 1.0
    return table | CHANGES.get(row, {})


SIDES = {  # spec 3.6, "by side"
    "data.sides.CT_ORG": ("kidneys", "lungs"),
    "data.sides.WORD": ("adrenal glands",),
    "data.sides.AbdomenCT_1K": ("kidney",),
    "data.sides.KiTS21": ("kidney",),
    "data.rename": {"MSD_HepaticVessel/liver tumour": "tumour of the hepatic vessel set"}
    | {
        f"{corpus}/{side} {several}": f"{side} {one}"
        for corpus, several, one in (
            ("CT_ORG", "kidneys", "kidney"),
            ("CT_ORG", "lungs", "lung"),
            ("WORD", "adrenal glands", "adrenal gland"),
        )
        for side in ("right", "left")
    },
}


def rows(base: Mapping[str, Any]) -> dict[str, Table]:
    """Variant -> its table.

    Args:
      base: nnU-Net's defaults without network and losses.
    """
    base = dict(base) | BOTH
    sockets = {f"model.{name}": None for name in ("mlp", "bottleneck", "context")}
    unetr = {f"model.{name}": value for name, value in UNETR.items()} | sockets
    first = base | BCE | _steps(sum(STAGE1_CASES.values()))
    first |= {
        "data.declared": STAGE1_CASES,
        "data.rename": {
            "CT_ORG/kidneys": "kidney",
            "MSD_HepaticVessel/liver tumour": "tumour of the hepatic vessel set",
        },
    }
    found = {
        "stage1": first | unetr,
        "stage1_sides": first | unetr | SIDES,
        "stage1_um": first
        | {f"model.{name}": value for name, value in UNIVERSAL.items()}
        | {
            "optim.trainable": ((r"^text/", False), (".*", True)),
            "text.source": "",
            "text.file": "",
            "text.pooled": False,
            "text.sentences": {n: f"A computerized tomography of a {n}" for n in TEMPLATE},
        },
    }
    zoomed = [name for name in STAGE1_CASES if name.startswith("MSD_")]
    epoch = -(-sum(STAGE1_CASES.values()) // 5)
    found["stage1_universal"] = found["stage1_um"] | {  # 3.6, 3.8
        "sampler.foreground": 2 / 3,
        **{
            f"sampler.ratios.{corpus}.{name}": weight
            for corpus, classes in {
                "LiTS": ("liver", "liver tumour"),
                "MSD_Liver": ("liver", "liver tumour"),
                "MSD_Pancreas": ("pancreas", "pancreas tumour"),
                "MSD_HepaticVessel": ("hepatic vessel", "liver tumour"),
            }.items()
            for name, weight in zip(("background", *classes), (1, 1, 5), strict=True)
        },
        "sampler.still": tuple(name for name in STAGE1_CASES if name not in zoomed),
        "augment.scaling": 0.3,
        "augment.scaling_range": (1 / 1.5, 1 / 1.3),
        "optim.lr": 1e-4,
        "train.steps": 2000 * epoch,
        "optim.warmup_steps": 100 * epoch,
    }
    hashed = {"text.source": "hash", "text.file": "", "text.pooled": False, "text.sentences": {}}
    small_unetr = unetr | {f"model.{name}": value for name, value in SMALL_SWIN.items()}
    for row in ROWS:
        found[row] = base | _row(row, False) | _tasks(False)
        found[f"{row}_public"] = base | _row(row, False) | _tasks(True)
        if row != "literal":
            own = _row(row, True)
            texts = hashed if own["model.text"] else {}
            found[f"small_{row}"] = base | FOLDERS | SMALL | own | texts
            found[f"small_{row}"]["optim.lr"] = 2e-3
    found["small_stage1"] = base | BCE | FOLDERS | SMALL | small_unetr | {"optim.lr": 1e-3}
    found["demo_stage1"] = base | BCE | DEMO | SMALL | small_unetr
    found["demo_stage1"] |= {
        "optim.lr": 1e-3,
        "augment.lateral": "auto",
        "train.steps": 400,
        "optim.warmup_steps": 20,
    }
    views = {"PhantomMR_tumour": "liver tumour", "PhantomCE_tumour": "kidney tumour"}
    found["demo"] = base | DEMO | SMALL | _row("full", True) | hashed
    found["demo"] |= {
        "optim.lr": 2e-3,
        "train.steps": 200,
        "optim.warmup_steps": 10,
        "data.only": "PhantomMR_tumour,PhantomCE_tumour",
        "data.views": {
            name: {"corpus": name.removesuffix("_tumour"), "annotated": (tumour,)}
            for name, tumour in views.items()
        },
        "data.rename": {f"{name}/{tumour}": "tumour" for name, tumour in views.items()},
        "text.sentences": {
            "PhantomMR_tumour": "This is a liver tumor in the liver on T1-weighted MR.",
            "PhantomCE_tumour": "This is a renal tumor in the kidney on enhanced MR.",
        },
    }
    return found
