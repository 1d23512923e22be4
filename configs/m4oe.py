r"""M4oE (Jiang and Shen, MICCAI 2024): a 2D Swin-Unet with an expert per modality in every block
and a softmax head per data set.

Two phases. Masked-image pre-training sends every sample through the experts of its modality;
fine-tuning adds the gate and trains all:

    python -m medjax.main --config=configs/m4oe.py:pretrain --workdir=runs/pretrain \
      --config.data.root=/folder/with/the/corpora
    python -m medjax.main --config=configs/m4oe.py:finetune --workdir=runs/m4oe \
      --config.data.root=/folder/with/the/corpora --config.init.source=runs/pretrain
    # 58,486,830 parameters:
    python -m medjax.main --config=configs/m4oe.py:finetune --workdir=runs/m4oe --mode=dry

On the embedded phantoms (CT, MR, contrast-enhanced MR; minutes on a CPU), and on real scans given
as folders:

    python -m medjax.main --config=configs/m4oe.py:demo --workdir=runs/m4oe_demo
    python -m medjax.main --config=configs/m4oe.py:small_pretrain --workdir=runs/sp \
      --config.data.folders=A,B,C
    python -m medjax.main --config=configs/m4oe.py:small --workdir=runs/s \
      --config.data.folders=A,B,C --config.init.source=runs/sp

Variants:

  finetune                          experts in encoder and decoder, gated: the full model; from
                                    scratch unless `init.source` is given
  encoder_gate, encoder_hard, decoder_gate, decoder_hard, both_hard, none
                                    the other rows of Table 4
  without_mr                        the run before AMOS MR is added: three corpora, experts for CT
                                    and contrast-enhanced MR
  whole_pretrain, whole             both phases on whole axial slices, each resized to 224 x 224, as
                                    Swin-Unet sees them: all slices in one list, its augmentation,
                                    padding masked, and a tenth of every corpus as a test part
  release                           the released code's choices: channel gate, SGD with its one-step
                                    lag, 0.4 CE + 0.7 Dice, its augmentation
  release_prepared                  the same on slices prepared like its own: stored orientation,
                                    cropped to non-zero, each resized to 224 x 224, in one list
  pretrain_single, single           plain Swin-MAE, and fine-tuning that copies its MLP to every
                                    expert
  demo_pretrain, demo_from, demo    the same two phases on the phantoms (`demo_from` needs
                                    `init.source`), and from scratch
  small_pretrain, small, small_hard, small_none
                                    narrower, for a few real corpora

Slices are axial, at a fixed 1.6 mm in the plane, so that a body fits into 224 pixels and keeps its
proportions, but in the variants of whole slices.
"""

from configs.base import base_config, ordered
from data_pipelines import pools

ROWS = {  # where experts sit, how they are chosen
    "finetune": ("both", "gate"),
    "encoder_gate": ("encoder", "gate"),
    "encoder_hard": ("encoder", "hard"),
    "decoder_gate": ("decoder", "gate"),
    "decoder_hard": ("decoder", "hard"),
    "both_hard": ("both", "hard"),
    "none": ("none", "gate"),
    "without_mr": ("both", "gate"),
    "whole": ("both", "gate"),
    "release": ("both", "channel_gate"),
    "release_prepared": ("both", "channel_gate"),
    "single": ("both", "gate"),
    "demo": ("both", "gate"),
    "demo_from": ("both", "gate"),
    "small": ("both", "gate"),
    "small_hard": ("both", "hard"),
    "small_none": ("none", "gate"),
}
PRETRAIN = {
    "pretrain": "encoder",
    "pretrain_single": "none",
    "whole_pretrain": "encoder",
    "demo_pretrain": "encoder",
    "small_pretrain": "encoder",
}
KNOWN = (*ROWS, *PRETRAIN)
TRY = ("demo", "small")  # without the pool: on phantoms, on folders
VARIANTS = (
    "finetune",
    "pretrain",
    "whole",
    "release",
    "demo",
    "small_pretrain",
)  # built by the tests; the others differ in one setting

# M4oE's count of pre-training images; its fine-tuning slices are not published, an epoch of them is
# taken as 36 x 890
SLICES = 50_920
EPOCH_PRETRAIN, EPOCH_FINETUNE = SLICES // 96, 890
# the masked-image decoder is thrown away, the gate is new
NOT_PRETRAINED = r"^(enc_norm|expand|up|skip|dec_norm|final|head)|/gate/"
FROM_ENCODER = (
    (r"^encoder/stage2/block", "up1/block"),
    (r"^encoder/stage1/block", "up2/block"),
    (r"^encoder/stage0/block", "up3/block"),
)
TURNS = dict(on=True, kind="turns")


def get_config(variant: str = "finetune"):
    """One of `KNOWN`, see the module docstring."""
    if variant not in KNOWN:
        raise ValueError(f"unknown variant {variant!r}; known: {', '.join(KNOWN)}")
    c = base_config().unlock()
    c.name = f"m4oe_{variant}"
    if variant.startswith("demo"):
        _demo_data(c)
    elif variant.startswith("small"):
        _small_data(c)
    else:
        _paper_data(c, variant)
    if variant in PRETRAIN:
        _pretrain(c, variant)
    else:
        _finetune(c, variant)
    return c.lock()


def _paper_data(c, variant):
    pool = pools.m4oe_ct if variant == "without_mr" else pools.m4oe
    c.data.update(pool.data())
    c.data.spacing_mm = (3.0, 1.6, 1.6)
    c.model = ordered(dict(width=96, depths=(2, 2, 2, 2), window=7, patch_size=4, dtype="bfloat16"))
    c.model.share_heads = tuple(pool.heads.values())
    c.train.patch = (224, 224)
    c.sampler.exponent = 0.0  # every case alike, as in one shuffled list
    c.sampler.foreground = 0.0
    c.infer.batch_windows = 36
    if variant in ("whole", "whole_pretrain", "release_prepared"):
        _whole_slices(c, released=variant == "release_prepared")


def _whole_slices(c, *, released: bool):
    c.data.spacing_mm, c.data.size = (), (-1, 224, 224)
    c.data.crop = "nonzero" if released else "none"
    c.data.orientation = "stored" if released else "RAS"
    c.data.split.folds, c.data.split.test = 10, True
    c.sampler.weigh = "slices"
    c.mask_padding = True
    c.augment = ordered(TURNS)


def _demo_data(c):
    c.data.phantom_cases = 10
    c.data.spacing_mm = (5.0, 4.0, 4.0)
    _small_network(c)
    c.train.patch = (64, 64)
    c.sampler.exponent, c.sampler.foreground, c.sampler.oversample = 1.0, 0.67, "probabilistic"


def _small_data(c):
    c.data.spacing_rule = "per_corpus"
    _small_network(c)
    c.model.width, c.model.heads = 48, (3, 6, 12, 24)
    c.train.patch = (64, 64)
    c.sampler.exponent, c.sampler.foreground, c.sampler.oversample = 1.0, 0.5, "probabilistic"


def _small_network(c):
    c.model = ordered(
        dict(
            width=24,
            depths=(2, 2, 2, 2),
            heads=(1, 2, 4, 8),
            window=4,
            patch_size=2,
            share_heads="corpus",
            initial="xavier",  # Swin's 0.02 is made for width 96: too small a start below it
        )
    )
    c.infer.batch_windows = 16


def _pretrain(c, variant):
    """Swin-MAE's recipe: 400 epochs of 96 images, AdamW at an absolute 1e-3, 10 epochs of warm-up,
    cosine to 0.
    """
    c.task = "masked_image"
    c.task_options = ordered(dict(ratio=0.75, block=4, patch_size=c.model.patch_size))
    c.losses = ordered(dict(masked_pixels=ordered(dict(weight=1.0))))
    del c.model["share_heads"]
    c.model.name, c.model.experts_in, c.model.drop_path = "masked_swin", PRETRAIN[variant], 0.1
    # it predicts no masks; the loss on held-out cases is logged per modality during training
    c.evaluate.on = False
    c.augment = ordered(dict(on=True, kind="flips", flip_axes=(1,)))
    c.optim.update(dict(name="adamw", lr=1e-3, schedule="cosine", weight_decay=0.05, clip_norm=0.0))
    c.optim.b1, c.optim.b2 = 0.9, 0.95
    if variant.startswith(("demo", "small")):
        # patches up to mean and spread, modalities alike: else CT's air is 72 % of the loss
        c.losses.masked_pixels.update(dict(normalise=True, balance="modalities"))
        c.train.batch, c.train.steps, c.train.checkpoint_every, c.train.log_every = 16, 400, 100, 20
        c.train.validate_every, c.train.validation_batches = 50, 8
        c.optim.warmup_steps = 40
        c.optim.lr = 4e-4  # 1e-3 x sqrt(16 / 96): at 1e-3 the experts stayed at guessing the mean
        return
    c.train.batch, c.train.steps = 96, 400 * EPOCH_PRETRAIN
    c.train.checkpoint_every = c.train.validate_every = 10 * EPOCH_PRETRAIN
    c.train.validation_batches = 20
    c.optim.warmup_steps = 10 * EPOCH_PRETRAIN
    c.sampler.foreground = 0.0


def _finetune(c, variant):
    """CE and Dice per slice, AdamW at 5e-4, weight decay 1e-4, poly 0.9, 150 epochs of 36 slices;
    `release` has its own numbers.
    """
    place, routing = ROWS[variant]
    c.model.name, c.model.experts_in, c.model.routing, c.model.drop_path = (
        "swin_unet",
        place,
        routing,
        0.2,
    )
    c.losses = ordered(
        dict(
            softmax_cross_entropy=ordered(dict(weight=0.4)), softmax_dice=ordered(dict(weight=0.6))
        )
    )
    c.infer.activation = "softmax"
    c.optim.update(
        dict(name="adamw", lr=5e-4, schedule="poly", power=0.9, weight_decay=1e-4, clip_norm=0.0)
    )
    c.init.heads = ((r"^head/", -1),)
    c.init.fresh = NOT_PRETRAINED
    if variant == "single":
        c.init.upcycle = True
    if variant.startswith(("demo", "small")):
        c.model.head_bias = True
        c.init.head_prior = "prevalence"
        c.augment.lateral = "auto"
        c.train.batch, c.train.steps, c.train.checkpoint_every, c.train.log_every = (
            16,
            1000,
            250,
            20,
        )
        c.train.validate_every, c.train.validation_batches = 250, 20
        c.optim.clip_norm = 12.0
        return
    c.train.batch, c.train.steps = 36, 150 * EPOCH_FINETUNE
    c.train.validate_every, c.train.validation_batches, c.train.checkpoint_every = (
        2 * EPOCH_FINETUNE,
        100,
        2 * EPOCH_FINETUNE,
    )
    if variant.startswith("release"):
        c.augment = ordered(TURNS | {"nearest": True})
        c.losses = ordered(
            dict(
                softmax_cross_entropy=ordered(dict(weight=0.4)),
                softmax_dice=ordered(dict(weight=0.7, masked=False)),
            )
        )
        c.model.experts = 3
        c.mask_padding = True
        c.optim.update(dict(name="sgd", lr=0.05 * 36 / 24, momentum=0.9, nesterov=False))
        c.optim.shift = -1  # its rate lags one step: step 0 and step 1 both have the first one
