"""MultiTalent (Ulrich et al., MICCAI 2023): one network, one sigmoid per class, a loss that counts only what a data set annotates.

    python -m medjax.main --config=configs/multitalent.py:demo --workdir=runs/demo            # embedded corpora, minutes on a CPU
    python -m medjax.main --config=configs/multitalent.py:unet --workdir=runs/unet --mode=dry # the paper's U-Net: 29,319,560 parameters
    python -m medjax.main --config=configs/multitalent.py:unet --workdir=runs/unet --config.data.root=/folder/with/the/13/corpora

`unet` is the paper's recipe: 13 corpora, 47 classes kept apart, spacing 1.5x1x1 mm, patch 96x192x192, batch 4, 2000 x 250 steps, cases
drawn with probability 1/sqrt(n). `demo` is the same code on three small synthetic corpora with conflicting label sets.
"""

from configs.base import base_config
from data_pipelines import multitalent

VARIANTS = ("unet", "demo")


def get_config(variant: str = "unet"):
    """`unet` (the paper) or `demo` (embedded corpora)."""
    if variant not in VARIANTS:
        raise ValueError(f"unknown variant {variant!r}; known: {', '.join(VARIANTS)}")
    c = base_config().unlock()
    c.name = f"multitalent_{variant}"
    if variant == "demo":
        c.data.phantom_cases = 10
        c.data.spacing_mm = (5.0, 4.0, 4.0)
        c.optim.name = "adamw"  # learns in hundreds of steps what the paper's SGD learns in thousands
        c.optim.lr = 2e-3
        c.model.base_features = 16
        c.model.max_features = 128
        c.train.patch = (24, 48, 48)
        c.train.batch = 2
        c.sampler.oversample = "probabilistic"
        c.sampler.foreground = 0.67
        c.train.steps = 700
        c.train.validate_every = 100
        c.train.validation_batches = 8
        c.train.checkpoint_every = 100
        c.train.log_every = 10
        return c.lock()
    c.data.declared = multitalent.CORPORA
    c.data.share = "per_corpus"
    c.data.spacing_mm = (1.5, 1.0, 1.0)
    c.model.update(dict(base_features=30, max_features=320, up_bias=False, head_bias=False, dtype="bfloat16"))
    c.train.patch = (96, 192, 192)
    c.train.batch = 4
    c.train.steps = 2000 * 250
    c.infer.mirror_axes = (0, 1, 2)
    return c.lock()
