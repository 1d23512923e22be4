"""Every value of every variant of configs/segvol.py, typed from the specification of SegVol and of
its adaptation; see `published_recipes`. Numbers are sections of that specification.
"""

from typing import Any

Table = dict[str, Any]

EPOCH = 188  # 6,000 scans in batches of 32: 3.11, 3.12
CT = {
    "CHAOS_CT": 20,
    "M3D_0001_HaN_Seg": 0,
    "M3D_0008_Pancreas_CT": 0,
    "M3D_0020_MSD_Liver": 0,
    "AMOS22_CT": 300,
}
PROSTATE = {"MSD_Prostate": 32, "PROMISE12": 50, "SAML": 116, "T2W_Prostate": 114}
BRAIN = dict.fromkeys((f"BraTS2021_{s}" for s in ("FLAIR", "T1", "T1ce", "T2")), 1251)
CHAOS_MR = {"CHAOS_T1in": 20, "CHAOS_T1out": 20, "CHAOS_T2": 20}
MRI = CHAOS_MR | {"AMOS22_MR": 60} | BRAIN | PROSTATE
ALL = CT | MRI  # 2.3
CHANNELS = {
    "ct": ("CT", "M3D"),
    "brain": ("FLAIR", "T1gd", "T1w", "T2w"),
    "prostate": ("ADC", "T2"),
    "mri": (
        "ADC",
        "FLAIR",
        "MRI",
        "T1 in-phase",
        "T1 out-of-phase",
        "T1gd",
        "T1w",
        "T2",
        "T2-SPIR",
        "T2w",
    ),
}
CHANNELS["all"] = tuple(sorted(CHANNELS["ct"] + CHANNELS["mri"]))
POOLS = {"all": ALL, "ct": CT, "mri": MRI, "prostate": PROSTATE, "brain": BRAIN}
ROWS = ("all", "ct", "mri", "prostate", "brain")
JITTER = (  # C1: text and box, s of translations and of faces (reading 43), shares of 3.20
    "box+text",
    "box+text@translate1voxels",
    "box+text@translate5voxels",
    "box+text@translate10voxels",
    "box+text@translate50voxels",
    "box+text@1voxels",
    "box+text@5voxels",
    "box+text@10voxels",
    "box+text@50voxels",
    "box+text@0.05",
    "box+text@0.1",
    "box+text@0.2",
    "box+text@0.3",
    "box+text@0.5",
)
SIX = ("points+text", "box+text", "text", "box", "points", "box+points")  # 3.9
NOTHING_TRAINS = r"^(text/table|prompt/gaussian|decoder/(iou|hyper[1-3]))"  # 4, readings 16, 17
VECTORS = r"^prompt/(points|not_a_point|no_mask)"  # 3.15: 4,608 values


def _schemes(pool: str, scheme: str) -> Table:
    return {"data.intensity": {name: {"scheme": scheme} for name in CHANNELS[pool]}}


def _pool(name: str) -> Table:
    return {"data.declared": POOLS[name]} | _schemes(name, "foreground")  # 3.8


WHOLE_VOLUMES = {
    "data.spacing_rule": "native",  # no resampling to a spacing: 3.8
    "data.crop": "foreground",
    "sampler.whole": 0.5,  # crop or resize 1 : 1, SEGVOL's column of 3.12
    "sampler.whole_image": "area",  # MONAI's default: 3.8
    "sampler.whole_label": "nearest",  # 4, reading 9
    "sampler.foreground": 1.0,
    "sampler.balance": "class",
    "sampler.by": "class",
    "sampler.oversample": "probabilistic",
    "augment.rotation": 0.0,
    "augment.scaling": 0.0,
    "augment.noise": 0.0,
    "augment.blur": 0.0,
    "augment.contrast": 0.0,
    "augment.low_resolution": 0.0,
    "augment.gamma": 0.0,
    "augment.gamma_inverted": 0.0,
    "augment.mirror": 0.2,  # 3.12
    "augment.brightness": 0.1,
    "augment.brightness_range": (0.9, 1.1),
    "augment.shift": 0.1,
    "augment.lateral": "auto",  # 4, reading 11
}
ENCODER = {  # 3.1, 3.2
    "model.patch_size": (4, 16, 16),
    "model.width": 768,
    "model.layers": 12,
    "model.heads": 12,
    "model.hidden": 3072,
    "model.dropout": 0.0,
    "model.initial": "torch",
    "model.scan": True,
    "model.remat": "none",
    "model.dtype": "float32",
}
NETWORK = ENCODER | {
    "model.name": "segvol",
    "model.frame": None,  # that of the patch
    "model.decoder_layers": 2,  # 3.5
    "model.decoder_heads": 8,
    "model.decoder_hidden": 2048,
    "model.mode": "default",
    "model.pe_order": None,  # as the mode says
    "model.mask_select": "first",  # 4, reading 5
    "model.rated": False,
    "model.all_masks": False,
    "model.mask_input": False,  # dead in the published network: 3.3
    "model.free_text": False,
    "model.text_rows": 0,
    "model.text_width": 512,  # 3.4
    "model.prior": "none",
    "model.prior_tasks": 0,
    "model.prior_gate": None,
    "model.prior_heads": 4,  # 3.17
    "model.prior_scale": 0.1,
    "model.posterior": "additive",
    "model.unknown_task": None,
    "model.unknown_drop": None,
    "model.queries": 8,
}
LOSSES = {  # 4, reading 13: per volume, smoothed by 1
    "losses.cross_entropy.normalise": "per_annotating",
    "losses.cross_entropy.reduction": "mean",
    "losses.cross_entropy.ranks": 1,
    "losses.dice.pool": "sample",
    "losses.dice.smooth": 1.0,
    "losses.dice.reduction": "mean",
    "losses.dice.ranks": 1,
    "losses.dice.smooth_in": "both",
}
PROMPTED = LOSSES | {
    "task": "prompted",
    "task_options.organs": 0,  # all that are present: 4, reading 15
    "task_options.sets": SIX,
    "task_options.positives": (0, 10),  # 3.9
    "task_options.negatives": (0, 10),
    "task_options.box_jitter": "fraction",  # 4, reading 18
    "task_options.jitter": 0.1,
    "task_options.validate_set": "points+text",
    "init.heads": ((r"^text/table$", 0),),
    "init.resize": ((r"^encoder/pos$", "trilinear"),),
}
TEXT = {"text.source": "clip", "text.template": "A computerized tomography of a {}."}  # 3.4
SUPERVISED = {  # 3.12
    "optim.name": "adamw",
    "optim.lr": 1e-4,
    "optim.weight_decay": 1e-5,
    "optim.schedule": "cosine",
    "optim.steps_per_epoch": EPOCH,
    "optim.warmup_steps": 10 * EPOCH,
    "optim.clip_norm": 0.0,
    "optim.trainable": ((NOTHING_TRAINS, False), (".*", True)),
    "train.batch": 32,
    "train.steps": 500 * EPOCH,
    "train.validate_every": 10 * EPOCH,
    "train.checkpoint_every": 10 * EPOCH,
    "train.patch": (32, 256, 256),
}
ADAPTED = {  # 3.12, column AMS; 3.14
    "task_options.organs": 1,
    "optim.name": "adamw",
    "optim.lr": 5e-4,
    "optim.weight_decay": 0.01,
    "optim.schedule": "constant",
    "optim.clip_norm": 0.5,
    "train.patch": (32, 256, 256),
    "train.batch": 1,
    "train.steps": 100 * EPOCH,
    "train.validate_every": EPOCH,
    "train.checkpoint_every": EPOCH,
}
LORA = {  # 3.15
    "adapters.kernels": "segvol",
    "adapters.rank": 16,
    "adapters.alpha": 16.0,
    "adapters.scaling": "rslora",
    "adapters.whole": VECTORS,
}
CONTEXT = {
    "model.prior": "additive_token",
    "init.heads": ((r"^(text/table|prior/task)$", 0), (r"^prior/modality$", 0, "modalities")),
    "init.new": "^prior/",
}
PRIOR = (
    LORA
    | {  # 3.17
        "adapters.rank": 8,
        "adapters.alpha": 8.0,
        "adapters.whole": VECTORS + r"|^prior/",
    }
    | CONTEXT
)
RELEASED = {  # section 4, column `release`
    "model.mode": "release",
    "data.orientation": "stored",
    "sampler.whole_label": "area",
    "task_options.organs": 1,
    "task_options.box_jitter": "none",  # SEGVOL's column of 3.12
    "task_options.jitter": 0.0,
    "losses.dice.pool": "slice",
    "losses.dice.smooth_in": "denominator",
    "optim.trainable": ((NOTHING_TRAINS + r"|^text/align", False), (".*", True)),
    "infer.zoom.scores": "nearest",
    "infer.zoom.overview": "nearest",
    "infer.zoom.pad": False,
    "infer.zoom.map_pad": False,
    "infer.zoom.empty": "encode",
    "infer.zoom.both": False,
}
HIDDEN = {  # SimMIM: 3.11, 4 reading 30
    "task": "masked_image",
    "task_options.ratio": 0.6,
    "task_options.block": 2,
    "task_options.patch_size": (4, 16, 16),
    "losses.masked_pixels.weight": 1.0,
    "losses.masked_pixels.power": 1,
    "losses.masked_pixels.normalise": False,
    "losses.masked_pixels.balance": "samples",
    "model.name": "masked_vit",
    "evaluate.on": False,
    "init.heads": (),
    "init.resize": ((r"^encoder/pos$", "trilinear"),),
    "optim.lr": 4e-4,
    "optim.weight_decay": 0.05,
    "optim.trainable": ((".*", True),),
}
HERMES = {  # 3.18
    "model.name": "hermes",
    "model.base": 32,
    "model.blocks": (2, 2, 4, 2, 2),
    "model.modality_tokens": 10,
    "model.null_rows": 1,
    "model.remat": "none",
    "model.dtype": "float32",
    "data.spacing_mm": (1.5, 1.5, 1.5),
    "losses.dice.smooth": 1e-5,
    "losses.modality.weight": 0.01,
    "optim.name": "lamb",
    "optim.lr": 2e-3,
    "optim.weight_decay": 1e-5,
    "optim.clip_norm": 1.0,
    "optim.steps_per_epoch": 400,
    "optim.warmup_steps": 5 * 400,
    "sampler.foreground": 0.5,
    "train.batch": 16,
    "train.steps": 200 * 400,
    "train.validate_every": 25 * 400,
    "train.checkpoint_every": 25 * 400,
}
# the small network of the project's own demonstrations: no paper
TINY = {
    "model.patch_size": (4, 8, 8),
    "model.width": 128,
    "model.layers": 4,
    "model.heads": 4,
    "model.hidden": 512,
    "train.patch": (32, 64, 64),
    "optim.steps_per_epoch": 1,
    "optim.warmup_steps": 100,
    "optim.clip_norm": 1.0,
    "train.validate_every": 250,
    "train.checkpoint_every": 250,
    "train.validation_batches": 10,
    "train.log_every": 25,
    "infer.zoom.points": "own",
    "infer.zoom.zoom": "out",
    "augment.mirror": 0.0,
}
SMALL = TINY | {
    "model.decoder_heads": 4,
    "model.decoder_hidden": 256,
    "model.mask_input": True,
    "text.source": "hash",
    "task_options.organs": 2,
    "task_options.sets": ("text", "box", "points", "points+text"),
    "task_options.positives": (0, 4),
    "task_options.negatives": (0, 4),
    "task_options.rounds": 1,
    "task_options.text_only_absent": 0.1,
    "optim.lr": 5e-4,
    "train.batch": 2,
    "train.steps": 2000,
}
SMALL_LORA = {
    "adapters.kernels": "segvol",
    "adapters.rank": 8,
    "adapters.alpha": 8.0,
    "adapters.scaling": "rslora",
    "optim.trainable": ((".*", True),),
    "optim.lr": 2e-3,
    "optim.warmup_steps": 20,
    "train.steps": 400,
}


def rows(base: Table) -> dict[str, Table]:
    """Variant -> every field and its value, from nnU-Net's defaults."""

    def without(table: Table, *prefixes: str) -> Table:
        return {name: value for name, value in table.items() if not name.startswith(prefixes)}

    plain = without(base, "model.", "losses.", "task_options")
    common = plain | WHOLE_VOLUMES | NETWORK | PROMPTED | TEXT
    adapted = common | ADAPTED
    found = {
        "segvol": common | _pool("all") | SUPERVISED,
        "release": without(common, "augment.lateral") | _pool("all") | SUPERVISED | RELEASED,
        "simmim": plain
        | WHOLE_VOLUMES
        | ENCODER
        | _pool("all")
        | SUPERVISED
        | HIDDEN
        | {"optim.clip_norm": 5.0, "train.steps": 800 * EPOCH},
        "a0": without(adapted, "optim.clip_norm", "train.checkpoint_every")
        | _pool("all")
        | {
            "optim.name": "sgd",
            "optim.lr": 0.0,
            "optim.momentum": 0.0,
            "optim.nesterov": False,
            "optim.weight_decay": 0.0,
            "optim.clip_norm": 12.0,
            "train.steps": 1,
            "train.validate_every": 0,
            "train.checkpoint_every": 250,
        },
        "hermes_r": without(plain, "init.heads")
        | without(WHOLE_VOLUMES, "data.", "sampler.whole")
        | LOSSES
        | HERMES
        | {
            "data.declared": ALL,
            "init.heads": base["init.heads"],
            "task_options": {},
        },
    }
    for k, pool in enumerate(ROWS):
        found[f"a{k + 1}"] = adapted | _pool(pool) | LORA
        found[f"a{k + 6}"] = adapted | _pool(pool) | PRIOR
        experts = (0, 1) if pool == "all" else (1,)  # CT keeps the network where there is both
        found[f"a{k + 1}m"] = (
            adapted
            | _pool(pool)
            | without(LORA, "adapters.whole")
            | {
                "adapters.experts": 2,
                "adapters.routing": "modality",
                "adapters.expert_of": experts,
            }
        )
    lora, prior = found["a1"], found["a6"]
    for word in ("off", "additive", "learned"):
        found[f"c3:{word}"] = prior | {"model.posterior": word}
    found["c3:inner_product"] = prior | {"model.prior": "inner_product"}
    found["c5:on"] = lora
    found["c5:off"] = lora | _schemes("all", "rescale_to_0_1")
    for rank in (4, 8, 16, 32):
        found[f"c6:{rank}"] = lora | {"adapters.rank": rank, "adapters.alpha": float(rank)}
        kernels = r"^encoder/block\d*/(qkv|fc[12])/kernel$"
        found[f"c6:{rank},encoder"] = without(
            found[f"c6:{rank}"], "adapters.kernels", "adapters.whole"
        ) | {"adapters.rules": ((kernels, rank), (VECTORS, "whole"), (".*", 0))}
    for word, text in (
        ("ct", "A computerized tomography of a {}."),
        ("paper", "A Computerized Tomography (CT) of a {}"),
        ("scan", "A scan of a {}."),
    ):
        found[f"c7:{word}"] = lora | {"text.template": text}
    for most in (200, 400, 800):
        shared = {name: {"count": most // 17} for name in ALL}
        found[f"c8:{most}"] = lora | {"data.subset": shared}
    for left_out in ALL:
        others = ",".join(name for name in ALL if name != left_out)
        found[f"c9:{left_out}"] = lora | {"data.only": others}
    asked = {"evaluate.prompted.on": True}
    for word in ("a0", "a1", "a6"):  # 2.3: B, C1, C2
        row = found[word] | asked
        organs = {"prostate": ("prostate",)}
        organs["brain"] = ("non-enhancing tumour core", "oedema", "enhancing tumour")
        both = {"evaluate.prompted.rows": ("text", "points+text")}  # text + point
        found[f"b:{word}"] = row | both | {"evaluate.groups": organs}
        found[f"c1:{word}"] = row | {"evaluate.prompted.rows": JITTER}
        found[f"c2:{word}"] = row | {
            "evaluate.prompted.rows": ("text", "points", "box", "points+text", "box+text")
        }
    still = {name: value for name, value in found["a0"].items() if name.startswith("optim.")}
    still |= {"train.steps": 1, "train.validate_every": 0} | asked | both | _pool("ct")
    adapted_still = still | {"optim.clip_norm": 0.5, "train.checkpoint_every": EPOCH}
    found["c4:a0"] = found["a0"] | still
    found["c4:lora"] = found["a3"] | adapted_still
    # the identity expert is CT's: 4, reading 34
    found["c4:moa"] = found["a3m"] | adapted_still | {"adapters.expert_of": (0,)}
    found["c10"] = prior
    small = without(common, "text.") | SUPERVISED | SMALL
    hidden = (
        plain
        | WHOLE_VOLUMES
        | ENCODER
        | SUPERVISED
        | HIDDEN
        | TINY
        | {"task_options.patch_size": (4, 8, 8), "train.batch": 8, "train.steps": 600}
    )
    own = small | SMALL_LORA
    found["small_lora"] = own
    found["small_lora_encoder"] = without(own, "adapters.kernels") | {
        "adapters.rules": ((r"^encoder/block\d*/(qkv|fc[12])/kernel$", 8), (".*", 0))
    }
    found["small_moa"] = own | {"adapters.experts": 2, "adapters.routing": "modality"}
    found["small_prior"] = own | CONTEXT | {"adapters.whole": "^prior/"}
    for name, row in (("", small), ("_simmim", hidden)):
        found[f"demo{name}"] = row | {"data.phantom_cases": 20, "sampler.exponent": 1.0}
        found[f"small{name}"] = row
    return found
