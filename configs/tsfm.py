r"""TSFM (Xie et al., arXiv 2403.06396): a residual trunk with a transformer at its lowest level,
1.6 billion parameters, pre-trained on ten partly annotated corpora (31 targets, one sigmoid each)
and fine-tuned for few epochs on others.

    # parameters, memory per device:
    python -m medjax.main --config=configs/tsfm.py --workdir=runs/h --mode=dry --devices=1,8,64
    python -m medjax.main --config=configs/tsfm.py:h --workdir=runs/h \
      --config.data.root=/folder/with/the/corpora --config.sharding.fsdp=8
    python -m medjax.main --config=configs/tsfm.py:brats_100 --workdir=runs/ft \
      --config.data.root=/folder/with/the/corpora --config.init.source=runs/h
    python -m medjax.main --config=configs/tsfm.py:t_small --workdir=runs/t \
      --config.data.folders=/folder/Task04_X,/folder/Task02_Y

  h (default), h2, l, b, s, t               pre-training on the pool: SGD, Nesterov 0.99, coupled
                                            decay 1e-3, lr 1e-3, poly, batch 2, 1000 x 250 steps,
                                            patch 112x160x192; the letters are sizes of the network
  tumor7, separate, amos22, pancreas        h on another pool: the seven tumour sets; labels kept
                                            apart (57 outputs); one set alone
  without_btcv, without_amos, without_kits  h on the pool without the scans of a set that it is
                                            fine-tuned on or compared with
  nnunet_pool                               nnU-Net's U-Net on the pool: the same losses, draws and
                                            patch, nnU-Net's optimizer
  finetune_E, brats_E, kits19_E, abdomen_E  E = 10, 20, 50, 100 epochs of nnU-Net's defaults from
                                            `init.source` (empty: from scratch), on `data.folders`
                                            or the named corpus; `--config.model.variant=stunet_h`
                                            for the STU-Net rows (abdomen_E: 50 cases drawn by
                                            `data.subset.AbdomenCT_1K.seed` or listed in `...file`).
                                            The paper has the patch and spacing of nnU-Net's plan
                                            of the target: `medjax plan`, then `data.plan`,
                                            `data.configuration`, `init.topology=own`
  t_small                                   the smallest network on `data.folders`, sized for a CPU
"""

from configs.base import base_config, for_two_cores, ordered
from configs.multitalent import brats_exclusive, per_corpus_softmax, set_pool
from data_pipelines import catalogue, pools

SIZES = ("h", "h2", "l", "b", "s", "t")
POOLS = {
    "tumor7": pools.tsfm.subset(*pools.tsfm.names[:7]),
    "separate": pools.tsfm_separate,
    "amos22": pools.tsfm.subset("AMOS22_CT", "AMOS22_MR"),
    "pancreas": pools.tsfm.subset("MSD_Pancreas"),
    "without_btcv": pools.tsfm_without_btcv,
    "without_amos": pools.tsfm_without_amos,
    "without_kits": pools.tsfm_without_kits,
}
# the seven columns of Table 1 whose mean is its last one
TUMOURS = {
    "MSD_Liver": ("liver tumour",),
    "MSD_Lung": ("lung tumour",),
    "MSD_HepaticVessel": ("liver tumour",),
    "MSD_Colon": ("colon cancer",),
    "MSD_Pancreas": ("pancreas tumour",),
    "KiTS21": ("kidney tumour", "kidney cyst"),
}
TARGETS = {"finetune": "", "brats": "BraTS2020", "kits19": "KiTS19", "abdomen": "AbdomenCT_1K"}
EPOCHS = (10, 20, 50, 100)
BATCH_DICE = ("KiTS19", "AbdomenCT_1K")  # nnU-Net plans two resolutions for them
KNOWN = (
    *SIZES,
    *POOLS,
    "nnunet_pool",
    *(f"{target}_{epochs}" for target in TARGETS for epochs in EPOCHS),
    "t_small",
)
TRY = ("t_small", "t_small")  # without the pool: on phantoms, on folders
VARIANTS = tuple(name for name in KNOWN if "without" not in name)  # in the tests of all configs
EPOCH = 250  # steps
STRIDES = ((2, 2, 2),) * 4 + ((1, 2, 2),)  # of patch 112x160x192: 210 tokens at 7x5x6


def get_config(variant: str = "h"):
    """See the module's text."""
    if variant not in KNOWN:
        raise ValueError(f"unknown variant {variant!r}; known: {', '.join(KNOWN)}")
    c = base_config().unlock()
    c.name = f"tsfm_{variant}"
    c.model = ordered(
        dict(name="tsfm", variant=variant if variant in SIZES else "h", dtype="bfloat16")
    )
    c.sharding.rules = (("(bias|scale)$", "replicate"), (".*", "fsdp"))
    c.optim.steps_per_epoch = EPOCH
    c.train.batch = 2
    c.infer.mirror_axes = (0, 1, 2)
    target, _, epochs = variant.partition("_")
    if variant == "t_small":
        _small(c)
    elif target in TARGETS:
        _finetune(c, TARGETS[target], int(epochs))
    else:
        _pretrain(c, POOLS.get(variant, pools.tsfm))
    if variant == "nnunet_pool":
        c.model = ordered(dict(name="unet", dtype="bfloat16"))
        c.sharding.rules = ((".*", "replicate"),)
        c.optim.lr, c.optim.weight_decay = 1e-2, 3e-5
    return c.lock()


def _pretrain(c, pool) -> None:
    set_pool(c, pool)
    tumours = tuple(f"{n}/{name}" for n in pool.names for name in TUMOURS.get(n, ()))
    if tumours:
        c.evaluate.groups = ordered({"tumour": tumours})
    c.model.strides = STRIDES
    c.optim.lr = 1e-3
    c.optim.weight_decay = 1e-3
    c.train.patch = (112, 160, 192)
    c.train.steps = 1000 * EPOCH


def _finetune(c, corpus: str, epochs: int) -> None:
    """nnU-Net's defaults over the whole run; what the source does not have is initialised, tables
    move to the new grid.
    """
    if corpus == "BraTS2020":
        brats_exclusive(c)
    elif corpus:
        c.data.declared = ordered({corpus: catalogue.corpora()[corpus].declared()})
    if corpus == "AbdomenCT_1K":  # the paper has 50 cases and does not name them
        c.data.subset = ordered({corpus: ordered(dict(count=50, seed=12345, file=""))})
    _transfer(c)
    pool = "corpus" if corpus in BATCH_DICE else "sample"
    per_corpus_softmax(c, reduction="mean", pool=pool)
    c.train.patch = (128, 128, 128)
    c.train.steps = epochs * EPOCH


def _transfer(c) -> None:
    c.init.checkpoint = "best"
    c.init.heads = ((r"^head\d+/", None),)  # always new, even where the classes agree
    c.init.resize = ((r"^vit/pos$", "trilinear"),)


def _small(c) -> None:
    for_two_cores(c)
    c.model.update(dict(variant="t", dtype="float32", vit_dropout=0.0))
    _transfer(c)
    c.init.checkpoint = "last"
    c.init.head_prior = "prevalence"
    c.optim.steps_per_epoch = 1
    c.optim.lr = 1e-3
    c.optim.weight_decay = 1e-3
    c.train.patch, c.train.batch = (40, 64, 64), 4
    c.train.validate_every, c.train.checkpoint_every = 100, 500
    c.sampler.oversample = "probabilistic"
    c.sampler.foreground = 0.67
    c.infer.mirror_axes = ()
