r"""SegVol (Du et al., 2024), a 3D network asked by texts, points and boxes; and its adaptation to
other modalities with low-rank adapters, mixtures of them and context priors (SegEVOLution).

On the embedded phantoms (a small network, for a CPU), then a scan by text, or by a box:

    python -m medjax.main --config=configs/segvol.py:demo --workdir=runs/segvol_demo
    medjax predict -m runs/segvol_demo -i scan.nii.gz -o masks --text liver
    medjax predict -m runs/segvol_demo -i scan.nii.gz -o masks --object lesion \
      --point 12.5,-30,88 --box -10,-60,70,40,-5,110

On your own scans, from a pre-trained encoder; and the published sizes:

    python -m medjax.main --config=configs/segvol.py:small_simmim --workdir=runs/e \
      --config.data.folders=A,B
    python -m medjax.main --config=configs/segvol.py:small --workdir=runs/s \
      --config.data.folders=A,B --config.init.source=runs/e
    python -m medjax.main --config=configs/segvol.py:segvol --workdir=runs/segvol --mode=dry
    python -m medjax.main --config=configs/segvol.py:a1 --workdir=runs/a1 \
      --config.data.root=/folder/with/the/corpora --config.init.source=runs/segvol

Variants:

  segvol, release      supervised training of the whole network; `release` as the published code
  simmim               pre-training of the encoder on hidden tokens
  a0                   the network as it is: no update changes it, it is only evaluated
  a1 ... a5            low-rank adapters, rank 16, on all corpora, CT, MR, prostate MR, brain MR
  a6 ... a10           context priors with adapters of rank 8, on the same corpora
  a1m ... a5m          a mixture of adapters: CT keeps the network as it is, MR has an adapter
  c3:WORD              what is added to the mask tokens: off, additive, learned, inner_product
  c5:WORD              intensities: on (percentiles of bright voxels), off (each case's range)
  c6:RANK, c6:RANK,encoder     ranks 4, 8, 16, 32; in the encoder only
  c7:WORD              text of a name: ct, paper, scan
  c8:N                 at most N cases, shared evenly by the corpora
  c9:CORPUS            all corpora but one
  b:ROW                a0, a1 or a6, scored per organ: prostate, brain
  c1:ROW               a0, a1 or a6, asked by text and boxes that are not tight
  c2:ROW               a0, a1 or a6, asked by text, points, a box, points or a box with text
  c4:WORD              what was learned on MR, on CT: a0, lora (of a3), moa (of a3m)
  c10                  a6, for `medjax priors`: what the tokens of tasks mean
  hermes_r             the network of the original context priors, on all corpora
  demo, demo_simmim    the small network on the phantoms
  small, small_simmim  the same on corpora given as folders
  small_lora, small_lora_encoder, small_moa, small_prior
                       a trained small network adapted to corpora given as folders, rank 8:
                       everywhere, in the encoder, one adapter per modality but CT, context priors

Rows that start from trained weights need `init.source`; c4 starts from the run of a3 or a3m and
changes nothing. b, c1 and c2 train their row and then ask it (`evaluate.prompted`); a row that is
trained already is asked by `medjax prompted -m RUN --rows ...`. Voxels of c1 are those of the
scan; those of the document are of the network's frame.
"""

from configs.base import base_config, ordered
from data_pipelines import pools
from data_pipelines.catalogue import corpora

ROWS = ("all", "ct", "mri", "mri_prostate", "mri_brain")  # corpora of a1 ... a5 and a6 ... a10
LORA = {f"a{k}": pool for k, pool in enumerate(ROWS, 1)}
PRIOR = {f"a{k}": pool for k, pool in enumerate(ROWS, 6)}
MIXED = {f"a{k}m": pool for k, pool in enumerate(ROWS, 1)}
WORDS = {
    "b": ("a0", "a1", "a6"),
    "c1": ("a0", "a1", "a6"),
    "c2": ("a0", "a1", "a6"),
    "c4": ("a0", "lora", "moa"),
    "c3": ("off", "additive", "learned", "inner_product"),
    "c5": ("on", "off"),
    "c6": ("4", "8", "16", "32", "4,encoder", "8,encoder", "16,encoder", "32,encoder"),
    "c7": ("ct", "paper", "scan"),
    "c8": ("200", "400", "800"),
    "c9": tuple(pools.segvol_all.names),
}
MEASURED = {  # rows that are asked in several ways: the ways
    "b": ("text", "points+text"),
    "c1": (
        "box+text",
        *(f"box+text@translate{s}voxels" for s in (1, 5, 10, 50)),
        *(f"box+text@{s}voxels" for s in (1, 5, 10, 50)),
        *(f"box+text@{share}" for share in (0.05, 0.1, 0.2, 0.3, 0.5)),
    ),
    "c2": ("text", "points", "box", "points+text", "box+text"),
    "c4": ("text", "points+text"),
}
ORGANS = {
    "prostate": ("prostate",),
    "brain": ("non-enhancing tumour core", "oedema", "enhancing tumour"),
}
MOVED = {"a0": "a0", "lora": "a3", "moa": "a3m"}  # words of c4: the rows whose runs they start from
PLAIN = ("segvol", "release", "simmim", "a0", "c10", "hermes_r")
ADAPTED = ("small_lora", "small_lora_encoder", "small_moa", "small_prior")
OWN = ("demo", "demo_simmim", "small", "small_simmim", *ADAPTED)
KNOWN = (
    *PLAIN,
    *LORA,
    *PRIOR,
    *MIXED,
    *(f"{name}:{word}" for name, words in WORDS.items() for word in words),
    *OWN,
)
TRY = ("demo", "small")  # without the pool: on phantoms, on folders
VARIANTS = ("demo",)  # what the tests of all configs build; tests/configs/test_segvol.py the rest

FRAME, SMALL_FRAME = (32, 256, 256), (32, 64, 64)
FEW_SETS = ("text", "box", "points", "points+text")  # a step of the small network: 2 CPU seconds
SETS = ("points+text", "box+text", "text", "box", "points", "box+points")
TEMPLATES = {
    "ct": "A computerized tomography of a {}.",
    "paper": "A Computerized Tomography (CT) of a {}",
    "scan": "A scan of a {}.",
}
EPOCH = 188  # batches of 32 in about 6,000 training scans
# parts that nothing trains: the table of texts, the matrix of positions, ratings, unused filters
FIXED = r"^(text/table|prompt/gaussian|decoder/(iou|hyper[1-3]))"
ENCODER_KERNELS = r"^encoder/block\d*/(qkv|fc[12])/kernel$"
PROMPT_VECTORS = r"^prompt/(points|not_a_point|no_mask)"
TINY = dict(
    patch_size=(4, 8, 8),
    width=128,
    layers=4,
    heads=4,
    hidden=512,
    decoder_layers=2,
    decoder_heads=4,
    decoder_hidden=256,
)
ENCODER = ("patch_size", "width", "layers", "heads", "hidden")


def get_config(variant: str = "segvol"):
    """One of `KNOWN`, see the module docstring."""
    if variant not in KNOWN:
        raise ValueError(f"unknown variant {variant!r}; known: {', '.join(KNOWN)}")
    name, _, word = variant.partition(":")
    c = base_config().unlock()
    c.name = f"segvol_{variant.replace(':', '_').replace(',', '_')}"
    if name in OWN:
        _own(c, name)
    elif name == "hermes_r":
        _corpora(c, pools.segvol_all)
        _hermes(c)
    else:
        _corpora(c, _pool(name))
        _network(c)
        if name in ("segvol", "release"):
            _supervised(c, released=name == "release")
        elif name == "simmim":
            _simmim(c)
        elif name in MEASURED:
            _measured(c, name, word)
        else:
            _row(c, name)
            _switch(c, name, word)
    return c.lock()


def _pool(name):
    rows = LORA | PRIOR | MIXED | {"c4": "ct"}
    if name in rows:
        return getattr(pools, f"segvol_{rows[name]}")
    return pools.segvol_all


def _corpora(c, pool):
    c.data.update(pool.data())
    channels = {channel for member in pool.names for channel in corpora()[member].channels}
    c.data.intensity = ordered({name: dict(scheme="foreground") for name in sorted(channels)})
    _whole_volumes(c)


def _whole_volumes(c):
    c.data.spacing_rule, c.data.crop = "native", "foreground"
    c.sampler.whole, c.sampler.whole_image, c.sampler.whole_label = 0.5, "area", "nearest"
    c.sampler.foreground, c.sampler.balance, c.sampler.by = 1.0, "class", "class"
    c.sampler.oversample = "probabilistic"
    c.augment = ordered(
        dict(
            on=True,
            rotation=0.0,
            scaling=0.0,
            noise=0.0,
            blur=0.0,
            contrast=0.0,
            low_resolution=0.0,
            gamma=0.0,
            gamma_inverted=0.0,
            mirror=0.2,
            brightness=0.1,
            brightness_range=(0.9, 1.1),
            shift=0.1,
            shift_range=(-0.1, 0.1),
            lateral="auto",
        )
    )


def _network(c):
    c.model = ordered(dict(name="segvol"))
    c.text = ordered(dict(source="clip", template=TEMPLATES["ct"]))
    c.train.patch = FRAME
    c.init.heads = ((r"^text/table$", 0),)
    c.init.resize = ((r"^encoder/pos$", "trilinear"),)
    _task(c, organs=1, positives=(0, 10), negatives=(0, 10))


def _task(c, **options):
    c.task = "prompted"
    c.task_options = ordered(
        dict(sets=SETS, box_jitter="fraction", jitter=0.1, validate_set="points+text") | options
    )
    c.losses = ordered(
        dict(
            cross_entropy=ordered(dict(normalise="per_annotating", reduction="mean")),
            dice=ordered(dict(pool="sample", smooth=1.0, reduction="mean")),
        )
    )


def _supervised(c, released):
    """AdamW at 1e-4, 500 epochs of batches of 32, 10 epochs of warm-up, cosine to 0."""
    c.task_options.organs = 1 if released else 0
    c.optim.update(dict(name="adamw", lr=1e-4, weight_decay=1e-5, schedule="cosine"))
    c.optim.steps_per_epoch, c.optim.warmup_steps, c.optim.clip_norm = EPOCH, 10 * EPOCH, 0.0
    c.optim.trainable = ((FIXED, False), (".*", True))
    c.train.batch, c.train.steps = 32, 500 * EPOCH
    c.train.validate_every = c.train.checkpoint_every = 10 * EPOCH
    if released:
        c.model.mode = "release"
        c.data.orientation = "stored"
        c.sampler.whole_label = "area"
        del c.augment["lateral"]
        c.task_options.box_jitter, c.task_options.jitter = "none", 0.0
        c.losses.dice.pool, c.losses.dice.smooth_in = "slice", "denominator"
        c.optim.trainable = ((FIXED + r"|^text/align", False), (".*", True))
        c.infer.zoom = ordered(
            dict(
                scores="nearest",
                overview="nearest",
                pad=False,
                map_pad=False,
                empty="encode",
                both=False,
            )
        )


def _simmim(c, *, tiny=False):
    """SimMIM: 60 % of blocks of 2x2x2 tokens are hidden; absolute errors of the hidden voxels."""
    kept = {name: c.model[name] for name in ENCODER if name in c.model}
    c.model = ordered(dict(name="masked_vit", **kept))
    c.task = "masked_image"
    size = TINY["patch_size"] if tiny else (4, 16, 16)
    c.task_options = ordered(dict(ratio=0.6, block=2, patch_size=size))
    c.losses = ordered(dict(masked_pixels=ordered(dict(weight=1.0, power=1))))
    if "text" in c:
        del c["text"]
    c.evaluate.on = False
    c.optim.update(dict(name="adamw", lr=4e-4, weight_decay=0.05, schedule="cosine"))
    c.optim.trainable = ((".*", True),)
    c.init.heads = ()
    if tiny:
        return
    c.optim.steps_per_epoch, c.optim.warmup_steps, c.optim.clip_norm = EPOCH, 10 * EPOCH, 5.0
    c.train.batch, c.train.steps = 32, 800 * EPOCH
    c.train.validate_every = c.train.checkpoint_every = 10 * EPOCH


def _unchanged(c):
    c.optim.update(dict(name="sgd", lr=0.0, momentum=0.0, nesterov=False, weight_decay=0.0))
    c.optim.schedule = "constant"
    c.train.batch, c.train.steps, c.train.validate_every = 1, 1, 0


def _row(c, name):
    if name == "a0":
        _unchanged(c)
    else:
        _adapted(c, name)


def _measured(c, name, word):
    """A row, and how it is asked on its held-out scans; c4: on CT, as it was trained on MR."""
    _row(c, MOVED.get(word, word))
    if name == "c4":
        _unchanged(c)
        if word == "moa":
            c.adapters.expert_of = (0,)  # of CT: the network itself
    if name == "b":
        c.evaluate.groups = ordered(dict(ORGANS))
    c.evaluate.prompted = ordered(dict(on=True, rows=MEASURED[name]))


def _adapted(c, name):
    """AdamW at a constant 5e-4, gradients up to 0.5, 100 epochs of single scans."""
    prior, mixed = name in PRIOR or name in ("c3", "c10"), name in MIXED
    rank = 8 if prior else 16
    c.adapters = ordered(dict(kernels="segvol", rank=rank, alpha=float(rank), scaling="rslora"))
    if mixed:
        c.adapters.update(dict(experts=2, routing="modality", expert_of=_experts(c)))
    else:
        c.adapters.whole = PROMPT_VECTORS + (r"|^prior/" if prior else "")
    if prior:
        _prior(c)
    c.optim.update(dict(name="adamw", lr=5e-4, weight_decay=0.01, schedule="constant"))
    c.optim.clip_norm = 0.5
    c.train.batch, c.train.steps = 1, 100 * EPOCH
    c.train.validate_every = c.train.checkpoint_every = EPOCH


def _prior(c):
    """Tokens of tasks and modalities, which follow their names into another run."""
    c.model.prior = "additive_token"
    c.init.heads = ((r"^(text/table|prior/task)$", 0), (r"^prior/modality$", 0, "modalities"))
    c.init.new = r"^prior/"


def _experts(c):
    """Expert of every modality of the label space, in its order: 0, the network itself, is CT's
    where there are others.
    """
    found = sorted({entry["modality"] for entry in c.data.declared.values()})
    return tuple(0 if name == "CT" and len(found) > 1 else 1 for name in found)


def _switch(c, name, word):
    if name == "c3":
        c.model.posterior = "additive" if word == "inner_product" else word
        c.model.prior = "inner_product" if word == "inner_product" else "additive_token"
    elif name == "c5" and word == "off":
        channels = tuple(c.data.intensity)
        c.data.intensity = ordered({n: dict(scheme="rescale_to_0_1") for n in channels})
    elif name == "c6":
        rank, _, part = word.partition(",")
        c.adapters.rank, c.adapters.alpha = int(rank), float(rank)
        if part:
            del c.adapters["kernels"], c.adapters["whole"]
            c.adapters.rules = ((ENCODER_KERNELS, int(rank)), (PROMPT_VECTORS, "whole"), (".*", 0))
    elif name == "c7":
        c.text.template = TEMPLATES[word]
    elif name == "c8":
        each = max(1, int(word) // len(c.data.declared))
        c.data.subset = ordered({n: dict(count=each) for n in c.data.declared})
    elif name == "c9":
        c.data.only = ",".join(n for n in c.data.declared if n != word)


def _hermes(c):
    """Hermes-R: LAMB at 2e-3, 200 epochs of 400 batches of 16, 5 epochs of warm-up."""
    c.model = ordered(dict(name="hermes"))
    c.data.spacing_rule, c.data.spacing_mm = "median", (1.5, 1.5, 1.5)
    c.data.intensity = ordered({})
    c.data.crop = "nonzero"
    c.sampler.whole = 0.0
    del c.sampler["whole_image"], c.sampler["whole_label"]
    c.sampler.foreground = 0.5
    c.losses = ordered(
        dict(
            cross_entropy=ordered(dict(normalise="per_annotating", reduction="mean")),
            dice=ordered(dict(pool="sample", smooth=1e-5, reduction="mean")),
            modality=ordered(dict(weight=0.01)),
        )
    )
    c.optim.update(dict(name="lamb", lr=2e-3, weight_decay=1e-5, schedule="poly", clip_norm=1.0))
    c.optim.steps_per_epoch, c.optim.warmup_steps = 400, 5 * 400
    c.train.patch, c.train.batch, c.train.steps = (128, 128, 128), 16, 200 * 400
    c.train.validate_every = c.train.checkpoint_every = 25 * 400


def _own(c, name):
    """Small enough for a CPU: 2 million parameters in a frame of 32 x 64 x 64."""
    if name.startswith("demo"):
        c.data.phantom_cases = 20
        c.sampler.exponent = 1.0
    _whole_volumes(c)
    c.model = ordered(dict(name="segvol", mask_input=True, **TINY))
    c.train.patch = SMALL_FRAME
    c.init.heads = ((r"^text/table$", 0),)
    c.init.resize = ((r"^encoder/pos$", "trilinear"),)
    c.text = ordered(dict(source="hash"))
    options = dict(organs=2, sets=FEW_SETS, positives=(0, 4), negatives=(0, 4), rounds=1)
    _task(c, text_only_absent=0.1, **options)
    c.augment.mirror = 0.0
    c.optim.update(dict(name="adamw", lr=5e-4, weight_decay=1e-5, schedule="cosine"))
    c.optim.warmup_steps, c.optim.clip_norm = 100, 1.0
    c.optim.trainable = ((FIXED, False), (".*", True))
    c.train.batch, c.train.steps = 2, 2000
    c.train.validate_every = c.train.checkpoint_every = 250
    c.train.validation_batches, c.train.log_every = 10, 25
    # windows of full resolution cost 0.2 Dice after so few steps (benchmarks/results/segvol.md)
    c.infer.zoom = ordered(dict(points="own", zoom="out"))
    if name.endswith("simmim"):
        _simmim(c, tiny=True)
        c.train.batch, c.train.steps = 8, 600
    if name in ADAPTED:
        _own_adapters(c, name)


def _own_adapters(c, name):
    """Rank 8, 400 steps at 2e-3, from a trained `small` or `demo`."""
    c.adapters = ordered(dict(kernels="segvol", rank=8, alpha=8.0, scaling="rslora"))
    if name == "small_lora_encoder":
        del c.adapters["kernels"]
        c.adapters.rules = ((ENCODER_KERNELS, 8), (".*", 0))
    if name == "small_moa":
        c.adapters.update(dict(experts=2, routing="modality"))
    if name == "small_prior":
        _prior(c)
        c.adapters.whole = r"^prior/"
    c.optim.trainable = ((".*", True),)
    c.optim.lr, c.optim.warmup_steps, c.train.steps = 2e-3, 20, 400
