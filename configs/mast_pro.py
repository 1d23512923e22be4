r"""MAST-Pro (MICCAI 2025): one network for the tumours of many organs, told by a sentence and the
mask of an organ which tumour to look for.

Stage 1 trains SwinUNETR on partially labelled organs and tumours, stage 2 freezes it and trains
low-rank experts, routers and prompts, 5,515,064 parameters (21.04 MiB):

    python -m medjax.main --config=configs/mast_pro.py:stage1 --workdir=runs/stage1 \
      --config.data.root=/folder/with/the/corpora
    python -m medjax.main --config=configs/mast_pro.py:full --workdir=runs/full \
      --config.data.root=/folder/with/the/corpora --config.init.source=runs/stage1 \
      --config.text.source=file --config.text.file=tasks.text.npz
    # trained and frozen parameters, memory of a step:
    python -m medjax.main --config=configs/mast_pro.py:full --workdir=runs/full --mode=dry

On the embedded phantoms (on a CPU), and on real scans given as folders whose tumours are
called "tumour":

    python -m medjax.main --config=configs/mast_pro.py:demo_stage1 --workdir=runs/d1
    python -m medjax.main --config=configs/mast_pro.py:demo --workdir=runs/d2 \
      --config.init.source=runs/d1
    python -m medjax.main --config=configs/mast_pro.py:small_full --workdir=runs/s2 \
      --config.data.folders=A,B --config.init.source=runs/s1

Variants:

  stage1, stage1_um       SwinUNETR with 32 outputs; the Universal Model's head
  stage1_universal        `stage1_um` with the Universal Model's patches, zoom and learning rate
  stage1_sides            `stage1` with right and left kidney, lung and adrenal gland apart
  full                    text, organ mask and experts
  ap, tp, dmoe            organ mask, text, experts alone (Table 2)
  swin_unetr              SwinUNETR with an output per task, trained whole
  full_tuning             `full` with its backbone trained as well
  literal                 "21.04 M" as a number of parameters: small prompts, decoder unfrozen
  freeze_generic          a task is added to a finished run (`init.source`): generic experts and
                          their router stay
  add_task                the same, only what belongs to the new task is trained: outputs of the old
                          tasks never change
  ROW_public              without AbdomenCT-1K, whose public labels have no tumour
  demo_stage1, demo       both stages on the phantoms
  small_stage1, small_ROW narrower, for a few real corpora

The sentences are ours (data_pipelines/tumour_tasks.py); docs/mast_pro.md lists what the paper
leaves open.
"""

import math

from configs.base import base_config, for_two_cores, ordered
from data_pipelines import pools, tumour_tasks

ROWS = {  # text, organ mask, experts
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
TRY = ("demo_stage1", "small_stage1")  # without the pool: on phantoms, on folders
VARIANTS = ("stage1", "stage1_um", "full", "swin_unetr_public")  # in the tests of all configs
KNOWN = (
    "stage1",
    "stage1_um",
    "stage1_universal",
    "stage1_sides",
    *ROWS,
    *(f"{row}_public" for row in ROWS),
    "demo_stage1",
    "demo",
    "small_stage1",
    *(f"small_{row}" for row in ROWS if row != "literal"),
)

NEW = r"/(generic|specific)/|/(router|noise)_\w+$|^(fusion\w*|theta|category|precls|out)/"
PEFT = ((NEW, True), (".*", False))
# experts, routers and scores of single tasks, and what stays as it is when a task is added
OF_TASKS = r"/specific/|/(router|noise)_task$"
GENERIC = r"/generic/|/(router|noise)_generic$"
EPOCHS, BATCH, TRAINED_SHARE = 1000, 4, 0.8  # of the cases: one of five folds is held out
WINDOWS = {"CT": (-175, 250), "CT lung": (-1000, 400)}
LUNG = ("MSD_Lung",)
RATIOS = {  # organ and tumour; the Universal Model centres patches on them 1 to 5
    "LiTS": ("liver", "liver tumour"),
    "MSD_Liver": ("liver", "liver tumour"),
    "MSD_Pancreas": ("pancreas", "pancreas tumour"),
    "MSD_HepaticVessel": ("hepatic vessel", "liver tumour"),
}
ABDOMEN_1K = dict(  # tumour masks of AbdomenCT-1K: only where a user has some
    cases=1000, modality="CT", labels={"1": ("tumour",)}, annotated=("tumour",)
)
PHANTOM_TASKS = {
    "PhantomMR": ("liver tumour", "This is a liver tumor in the liver on T1-weighted MR."),
    "PhantomCE": ("kidney tumour", "This is a renal tumor in the kidney on enhanced MR."),
}


def get_config(variant: str = "full"):
    """One of `KNOWN`, see the module's text."""
    if variant not in KNOWN:
        raise ValueError(f"unknown variant {variant!r}; known: {', '.join(KNOWN)}")
    c = base_config().unlock()
    c.name = f"mast_pro_{variant}"
    size = "demo" if variant.startswith("demo") else "small" if "small_" in variant else ""
    row = variant.removeprefix("small_").removesuffix("_public")
    first = row.startswith("stage1") or row == "demo_stage1"
    _recipe(c)
    if not size:
        _paper_data(c, row, public=variant.endswith("_public"))
    if first:
        _stage1(c, um=row in ("stage1_um", "stage1_universal"))
        if row == "stage1_universal":
            _universal(c)
    else:
        _stage2(c, "full" if row == "demo" else row)
    if size:
        _small(c, first)
    if size == "demo":
        _demo(c, first)
    if size == "small":
        for_two_cores(c)
        c.optim.lr = 1e-3 if first else 2e-3
        c.train.patch = (32, 64, 64)
    return c.lock()


def _recipe(c) -> None:
    """AdamW at 5e-5, cosine after 5 % of warm-up, half of the patches around a tumour, data sets
    alike, quarter turns and shifts of intensity.
    """
    c.sampler.update(dict(exponent=1.0, foreground=0.5, oversample="probabilistic"))
    off = ("rotation", "scaling", "noise", "blur", "brightness", "contrast", "low_resolution")
    off = (*off, "gamma_inverted", "gamma", "mirror")
    c.augment.update(dict.fromkeys(off, 0.0))
    c.augment.update(dict(quarter=0.1, shift=0.2, shift_range=(-0.1, 0.1)))
    c.optim.update(dict(name="adamw", lr=5e-5, weight_decay=1e-5, schedule="cosine", clip_norm=0.0))
    c.infer.overlap = 0.5


def _paper_data(c, row: str, *, public: bool) -> None:
    """1.5 mm, cropped to the body, a fixed window per kind of CT; epochs of all training cases."""
    first = row.startswith("stage1")
    pool = pools.mast_pro_stage1 if first else pools.mast_pro
    if row == "stage1_sides":
        pool = pools.mast_pro_stage1_sides
        c.data.sides = ordered(pool.sides)
    declared, rename = pool.declared(), pool.rename()
    if not first:
        rename = {f"{name}/{entry['annotated'][0]}": "tumour" for name, entry in declared.items()}
        if not public:
            declared["AbdomenCT_1K"] = ABDOMEN_1K | {"channels": ("CT",), "group": "AbdomenCT_1K"}
            rename["AbdomenCT_1K/tumour"] = "tumour"
    organ = () if first else ("mask",)
    for name, entry in declared.items():
        entry["channels"] = ("CT lung" if name in LUNG else "CT", *organ)
    c.data.declared, c.data.rename = ordered(declared), ordered(rename)
    c.data.share = pool.share
    c.data.spacing_mm = (1.5, 1.5, 1.5)
    c.data.crop = "foreground"
    c.data.intensity = ordered(
        {name: ordered(dict(scheme="window", clip=clip)) for name, clip in WINDOWS.items()}
    )
    c.train.patch, c.train.batch = (96, 96, 96), BATCH
    epoch = math.ceil(TRAINED_SHARE * sum(e["cases"] for e in declared.values()) / BATCH)
    c.train.steps = EPOCHS * epoch
    c.optim.warmup_steps = c.train.steps // 20
    c.train.validate_every = c.train.checkpoint_every = 10 * epoch
    if row in ("stage1", "stage1_sides"):
        return
    given = _class_sentences(declared, rename) if first else _sentences(declared)
    c.text = ordered(dict(source="", file="", pooled=False, sentences=ordered(given)))


def _sentences(declared) -> dict:
    """Task -> sentence; the tasks are the data sets."""
    named = {
        "AbdomenCT_1K" if n == "AbdomenCT-1K" else n.replace("-", "_"): t.sentence
        for n, t in tumour_tasks.MAST_PRO_TASKS.items()
    }
    return {name: named[name] for name in declared}


def _class_sentences(declared, rename) -> dict:
    """Class -> what the Universal Model says of it."""
    names = {
        rename.get(f"{corpus}/{name}", name): None
        for corpus, entry in declared.items()
        for name in entry["annotated"]
    }
    return {name: f"A computerized tomography of a {name}" for name in names}


def _network(c, **more) -> None:
    c.model = ordered(dict(feature_size=48, dtype="bfloat16", remat="block", **more))


def _stage1(c, *, um: bool) -> None:
    """Partial labels, one sigmoid per class: cross-entropy and Dice of what a case annotates."""
    _network(c, name="universal" if um else "swin_unetr")
    c.losses = ordered(
        dict(
            cross_entropy=ordered(dict(weight=1.0, normalise="per_annotating", reduction="mean")),
            dice=ordered(dict(weight=1.0, pool="sample", smooth=1e-5, reduction="mean")),
        )
    )
    if um:
        c.optim.trainable = ((r"^text/", False), (".*", True))


def _universal(c) -> None:
    """Two of three patches around a label, or background, organ and tumour 1 to 1 to 5 where both
    are known; MSD scans enlarged now and then; 2000 epochs at 1e-4, 100 of them warm-up.
    """
    c.sampler.foreground = 2 / 3
    c.sampler.ratios = ordered(
        {
            corpus: ordered({"background": 1, organ: 1, tumour: 5})
            for corpus, (organ, tumour) in RATIOS.items()
        }
    )
    c.sampler.still = tuple(n for n in c.data.declared if not n.startswith("MSD_"))
    c.augment.update(dict(scaling=0.3, scaling_range=(1 / 1.5, 1 / 1.3)))
    epoch = c.train.steps // EPOCHS
    c.optim.lr, c.train.steps, c.optim.warmup_steps = 1e-4, 2000 * epoch, 100 * epoch


def _stage2(c, row: str) -> None:
    text, anatomy, experts = ROWS[row]
    _network(c, name="mast_pro", text=text, anatomy=anatomy)
    if experts:
        c.model.mlp = ordered(dict(kind="dynamic_low_rank", k1=2, k2=2, top_k=2, rank=32))
    c.losses = ordered(
        dict(dice=ordered(dict(weight=1.0, pool="sample", smooth=1e-5, reduction="mean")))
    )
    if text or anatomy:
        c.losses.category = ordered(dict(weight=1.0))
    c.init.rename = ((r"^anatomy/", "anatomy/"), (r"^(backbone/)?", "backbone/"))
    c.init.copy = ((r"^(backbone/)?swin/", "anatomy/"),)
    c.init.fresh = NEW + "|^text/"
    c.init.heads = ()
    c.optim.trainable = PEFT
    if row == "swin_unetr":
        c.optim.trainable = ((".*", True),)
    if row == "full_tuning":
        c.optim.trainable = ((r"^(anatomy|text)/", False), (".*", True))
    if row == "literal":
        c.model.update(dict(fusion_width=256, theta_hidden=256))
        c.model.mlp.update(dict(k1=1, rank=4))
        c.optim.trainable = ((rf"{NEW}|^backbone/decoder\d/", True), (".*", False))
    if row in ("freeze_generic", "add_task"):
        _later(c, everything=row == "freeze_generic")


def _later(c, *, everything: bool) -> None:
    """From a finished run: rows of the tasks that it has are copied by name, those of others are
    new.
    """
    c.init.rename, c.init.copy, c.init.fresh = (), (), ""
    c.init.heads = (
        (rf"{OF_TASKS}|^text/table$", 0, "tasks"),
        (r"^category/", -1, "tasks"),
    )
    own = rf"{OF_TASKS}|^category/"
    if everything:
        c.optim.trainable = ((GENERIC, False), *PEFT)
    else:
        c.optim.trainable = ((own, True), (".*", False))
    c.optim.decay = ((own, False), (".*", True))  # rows of tasks that are not drawn stay


def _small(c, first: bool) -> None:
    c.model.update(dict(feature_size=12, dtype="float32", remat="none"))
    if not first:
        c.model.update(dict(fusion_width=192, theta_hidden=192))
        if "mlp" in c.model:
            c.model.mlp.rank = 8
        if c.model.text:
            c.text = ordered(dict(source="hash", file="", pooled=False, sentences=ordered()))
    c.train.patch, c.train.batch = (32, 64, 64), 2
    c.optim.lr = 1e-3 if first else 2e-3


def _demo(c, first: bool) -> None:
    c.data.phantom_cases = 10
    c.data.spacing_mm = (5.0, 4.0, 4.0)
    c.infer.conflicts = "argmax"
    c.train.steps = 400 if first else 200
    c.optim.warmup_steps = c.train.steps // 20
    c.train.validate_every = c.train.checkpoint_every = 100
    c.train.validation_batches, c.train.log_every = 8, 10
    if first:
        c.augment.lateral = "auto"
        return
    views = {
        f"{corpus}_tumour": ordered(dict(corpus=corpus, annotated=(name,)))
        for corpus, (name, _) in PHANTOM_TASKS.items()
    }
    c.data.views, c.data.only = ordered(views), ",".join(views)
    c.data.rename = ordered(
        {f"{c}_tumour/{name}": "tumour" for c, (name, _) in PHANTOM_TASKS.items()}
    )
    c.text.sentences = ordered({f"{n}_tumour": text for n, (_, text) in PHANTOM_TASKS.items()})
