"""What each paper trains on, as lists of public corpora: what a config puts into `c.data`.

    from data_pipelines import pools
    c.data.update(pools.multitalent.data())  # declared, share, rename; files are below c.data.root
    c.data.declared = pools.m4oe.declared()  # the corpora alone

See `pool.py` for what a pool holds.
"""

import dataclasses

from data_pipelines.pool import Member, Pool, innermost
from data_pipelines.tumour_tasks import MAST_PRO_TASKS

multitalent = Pool(
    "MultiTalent (Ulrich et al., 2023)",
    (
        Member("MSD_Liver", "003_Liver", number=3),
        Member("MSD_Lung", "006_Lung", number=6),
        Member("MSD_Pancreas", "007_Pancreas", number=7),
        Member("MSD_HepaticVessel", "008_HepaticVessel", number=8),
        Member("MSD_Spleen", "009_Spleen", number=9),
        Member("MSD_Colon", "010_Colon", number=10),
        Member("BTCV", "017_BTCV", number=17),
        Member("BTCV_TCIA", "046_BTCV2", number=46),
        Member("StructSeg19", "051_StructSeg19", number=51),
        Member("SegTHOR", "055_SegTHOR", number=55),
        Member("NIH_Pancreas", "062_NIHPancreas", number=62),
        Member("KiTS19", "064_KiTS19", number=64),
        Member("BTCV_Cervix", "018_BTCVCervix", number=18),
    ),
    share="per_corpus",
)

multitalent_btcv_test = dataclasses.replace(
    multitalent.with_cases("046_BTCV2", r"PANCREAS_\d{4}|img00([0-3]\d|40)", 73),
    title="MultiTalent without the 17 test scans of BTCV that data set 9 labels",
)
multitalent_without_btcv = dataclasses.replace(
    multitalent.without("017_BTCV").with_cases("046_BTCV2", r"PANCREAS_\d{4}", 43),
    title="MultiTalent without any scan of BTCV (released split 6)",
)
multitalent_without_kits = dataclasses.replace(
    multitalent.without("064_KiTS19"), title="MultiTalent without KiTS19 (released split 7)"
)

tsfm = Pool(
    "TSFM (Xie et al., 2024)",
    (
        Member("MSD_Liver"),
        Member("MSD_Lung"),
        Member("MSD_HepaticVessel"),
        Member("MSD_Colon"),
        Member("MSD_Pancreas"),
        Member("Breast_DCE"),
        Member("KiTS21"),
        Member("AMOS22_CT", cases=200, where="part=Tr", group="AMOS22"),
        Member("AMOS22_MR", cases=40, where="part=Tr", group="AMOS22"),
        Member("BTCV"),
        Member("TotalSegmentator_v1_organs"),
    ),
    renamed={"MSD_HepaticVessel/liver tumour": "tumour of the hepatic vessel set"},
)

brats2020 = Pool("BraTS2020 as three exclusive classes", (Member("BraTS2020"),), exclusive=True)
BRATS_REGIONS = {
    "whole brain tumour": ("non-enhancing tumour core", "oedema", "enhancing tumour"),
    "brain tumour core": ("non-enhancing tumour core", "enhancing tumour"),
}
"""Region -> its classes. Regions are scored; in a softmax they would be classes without a voxel."""

tsfm_separate = dataclasses.replace(
    tsfm, title="TSFM with labels kept apart", share="per_corpus", renamed={}
)

tsfm_without_btcv = dataclasses.replace(tsfm.without("BTCV"), title="TSFM without BTCV")
tsfm_without_amos = dataclasses.replace(
    tsfm.without("AMOS22_CT", "AMOS22_MR"), title="TSFM without AMOS22"
)
tsfm_without_kits = dataclasses.replace(tsfm.without("KiTS21"), title="TSFM without KiTS21")

TSFM_IDS = (
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
    "duodenum",
    "bladder",
    "prostate or uterus",
    "left lung upper lobe",
    "left lung lower lobe",
    "right lung upper lobe",
    "right lung middle lobe",
    "right lung lower lobe",
    "hepatic vessel",
    "kidney",
    "liver tumour",
    "lung tumour",
    "tumour of the hepatic vessel set",
    "colon cancer",
    "pancreas tumour",
    "breast tumour",
    "kidney tumour",
    "kidney cyst",
)
"""Unified id 1..31 -> class, in order."""


def tsfm_remap() -> dict[str, dict[int, int]]:
    """Member of the ten-set pool -> (original value -> unified id)."""
    table = {}
    for name in tsfm.names:
        owns = innermost(tsfm.corpus_of(name))
        table[name] = {
            int(v): TSFM_IDS.index(tsfm.renamed.get(f"{name}/{c}", c)) + 1
            for v, (c,) in owns.items()
        }
    return table


m4oe = Pool(
    "M4oE (Jiang and Shen, 2024), with AMOS MR",
    (
        Member("FLARE22"),
        Member("ATLAS23"),
        Member("AMOS22_CT", group="AMOS22"),
        Member("AMOS22_MR", group="AMOS22"),
    ),
    share="per_corpus",
    exclusive=True,
)
m4oe_ct = dataclasses.replace(
    m4oe.subset("FLARE22", "ATLAS23", "AMOS22_CT"),
    title="M4oE (Jiang and Shen, 2024), without AMOS MR",
)


mast_pro = Pool(
    "MAST-Pro, tumour tasks with public labels (2025)",
    tuple(
        Member(t.corpus, name.replace("-", "_"), annotated=(t.tumour,))
        for name, t in MAST_PRO_TASKS.items()
        if t.tumour
    ),
    share="per_corpus",
)

HEPATIC_SET_TUMOUR = "tumour of the hepatic vessel set"

mast_pro_stage1 = Pool(
    "MAST-Pro, pre-training of the backbone (2025)",
    (
        Member("BTCV"),
        Member("CT_ORG", annotated=("liver", "bladder", "lungs", "kidneys")),
        Member("BTCV_TCIA"),
        Member("CHAOS_CT"),
        Member("IRCADb"),
        Member("WORD"),
        Member("AMOS22_CT"),
        Member("AbdomenCT_1K"),
        Member("LiTS"),
        Member("KiTS21"),
        Member("MSD_Liver"),
        Member("MSD_Lung"),
        Member("MSD_Pancreas"),
        Member("MSD_HepaticVessel"),
        Member("MSD_Spleen"),
        Member("MSD_Colon"),
    ),
    renamed={
        "CT_ORG/kidneys": "kidney",
        "MSD_HepaticVessel/liver tumour": HEPATIC_SET_TUMOUR,
    },
)
"""32 classes. Of the Universal Model's template, left and right lung are one class here (only
CT-ORG has them), nobody annotates the celiac trunk, and two classes have no side: kidney and
adrenal glands: see `mast_pro_stage1_sides`."""

mast_pro_stage1_sides = dataclasses.replace(
    mast_pro_stage1,
    title="MAST-Pro, pre-training of the backbone, paired organs split by side (2025)",
    renamed={
        "MSD_HepaticVessel/liver tumour": HEPATIC_SET_TUMOUR,
        "CT_ORG/right kidneys": "right kidney",
        "CT_ORG/left kidneys": "left kidney",
        "CT_ORG/right lungs": "right lung",
        "CT_ORG/left lungs": "left lung",
        "WORD/right adrenal glands": "right adrenal gland",
        "WORD/left adrenal glands": "left adrenal gland",
    },
    sides={
        "CT_ORG": ("kidneys", "lungs"),
        "WORD": ("adrenal glands",),
        "AbdomenCT_1K": ("kidney",),
        "KiTS21": ("kidney",),
    },
)
"""31 classes: those of the Universal Model's template without the celiac trunk, which none of these
corpora annotates."""

SEGVOL_PROSTATE = ("MSD_Prostate", "PROMISE12", "SAML", "T2W_Prostate")
SEGVOL_BRAIN = ("BraTS2021_FLAIR", "BraTS2021_T1", "BraTS2021_T1ce", "BraTS2021_T2")
SEGVOL_CT = (
    "CHAOS_CT",
    "M3D_0001_HaN_Seg",
    "M3D_0008_Pancreas_CT",
    "M3D_0020_MSD_Liver",
    "AMOS22_CT",
)
SEGVOL_MRI = ("CHAOS_T1in", "CHAOS_T1out", "CHAOS_T2", "AMOS22_MR", *SEGVOL_BRAIN, *SEGVOL_PROSTATE)
SEGVOL_RELEASED = (
    *SEGVOL_PROSTATE,
    *SEGVOL_BRAIN,
    "AMOS22_CT",
    "AMOS22_MR",
    "CHAOS_CT",
    "CHAOS_T1in",
    "CHAOS_T1out",
    "CHAOS_T2",
    "M3D_0018_MSD_Colon",
    "M3D_0020_MSD_Liver",
    "M3D_0022_MSD_Pancreas",
    "M3D_0023_MSD_Spleen",
)


def _segvol(title: str, names: tuple[str, ...]) -> Pool:
    return Pool(f"SegEVOLution, {title}", tuple(Member(name) for name in names))


segvol_ct, segvol_mri = _segvol("CT", SEGVOL_CT), _segvol("MR", SEGVOL_MRI)
segvol_all = _segvol("CT and MR", (*SEGVOL_CT, *SEGVOL_MRI))
segvol_mri_prostate, segvol_mri_brain = (
    _segvol("MR, prostate", SEGVOL_PROSTATE),
    _segvol("MR, brain", SEGVOL_BRAIN),
)
segvol_released400 = _segvol("what the released evaluation used", SEGVOL_RELEASED)

POOLS = {
    "multitalent": multitalent,
    "multitalent_btcv_test": multitalent_btcv_test,
    "multitalent_without_btcv": multitalent_without_btcv,
    "multitalent_without_kits": multitalent_without_kits,
    "tsfm": tsfm,
    "tsfm_separate": tsfm_separate,
    "tsfm_without_btcv": tsfm_without_btcv,
    "tsfm_without_amos": tsfm_without_amos,
    "tsfm_without_kits": tsfm_without_kits,
    "brats2020": brats2020,
    "m4oe": m4oe,
    "m4oe_ct": m4oe_ct,
    "mast_pro": mast_pro,
    "mast_pro_stage1": mast_pro_stage1,
    "mast_pro_stage1_sides": mast_pro_stage1_sides,
    "segvol_ct": segvol_ct,
    "segvol_mri": segvol_mri,
    "segvol_all": segvol_all,
    "segvol_mri_prostate": segvol_mri_prostate,
    "segvol_mri_brain": segvol_mri_brain,
    "segvol_released400": segvol_released400,
}
