r"""Partial labels on real scans: half of the hippocampus cases are annotated for Anterior only,
half for Posterior only, beside other data sets.

    D=/folder/Task04_Hippocampus,/folder/Task02_Heart
    python -m medjax.main --config=configs/hippocampus.py:partial --workdir=runs/partial \
      --config.data.folders=$D
    python -m medjax.main --config=configs/hippocampus.py:full --workdir=runs/full \
      --config.data.folders=$D

`full` trains the same network for the same steps on complete annotation. Both are scored on the
same 20 % of the cases against all labels. `joint` is MultiTalent's small U-Net on those halves and
any further corpora, whose classes stay apart (`benchmarks/multi_corpus.py`):

    python -m medjax.main --config=configs/hippocampus.py:joint --workdir=runs/joint \
      --config.data.folders=$D,/folder/Task91_SarcomaCT

Sized for a 2-core CPU. The results are in benchmarks/RESULTS.md.
"""

from configs import multitalent
from configs.base import base_config, for_two_cores

VARIANTS = ("partial", "full", "joint")
VIEWS = {
    "HippocampusAnterior": {"corpus": "Hippocampus", "annotated": ("Anterior",), "part": "0/2"},
    "HippocampusPosterior": {"corpus": "Hippocampus", "annotated": ("Posterior",), "part": "1/2"},
}


def get_config(variant: str = "partial"):
    """`partial`, `full` or `joint`."""
    if variant not in VARIANTS:
        raise ValueError(f"unknown variant {variant!r}; known: {', '.join(VARIANTS)}")
    if variant == "joint":
        c = multitalent.get_config("unet_small").unlock()
        c.name = "hippocampus_joint"
        c.data.share = "per_corpus"
        c.data.views = VIEWS
        return c.lock()
    c = base_config().unlock()
    c.name = f"hippocampus_{variant}"
    for_two_cores(c)
    if variant == "partial":
        c.data.views = VIEWS
    c.model.base_features = 16
    c.model.max_features = 128
    c.init.head_prior = "prevalence"
    return c.lock()
