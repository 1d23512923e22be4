"""MultiTalent's pool: 13 public CT data sets, 1477 cases, 47 classes (paper table and released label map; ids as in each source).

`CORPORA` maps a corpus name to what a config declares: label id -> every class a voxel with that id belongs to (nested regions list both),
channels, modality and the number of cases. The pool's global ids 1..47 follow from the order: channel = global id - 1.
"""


def _corpus(cases: int, **labels: tuple[str, ...]) -> dict:
    return {"cases": cases, "modality": "CT", "channels": ("CT",), "labels": {key[1:]: names for key, names in labels.items()}}


def _organs(cases: int, *names: str, first: int = 1) -> dict:
    return _corpus(cases, **{f"_{first + i}": (name,) for i, name in enumerate(names)})


CORPORA = {
    "003_Liver": _corpus(131, _1=("liver",), _2=("liver", "cancer")),
    "006_Lung": _organs(63, "lung cancer"),
    "007_Pancreas": _corpus(281, _1=("pancreas",), _2=("pancreas", "cancer")),
    "008_HepaticVessel": _organs(303, "hepatic vessel", "liver tumour"),
    "009_Spleen": _organs(41, "spleen"),
    "010_Colon": _organs(126, "colon cancer"),
    "017_BTCV": _organs(
        30, "spleen", "right kidney", "left kidney", "gallbladder", "oesophagus", "liver", "stomach", "aorta",
        "inferior vena cava", "portal and splenic vein", "pancreas", "right adrenal gland", "left adrenal gland",
    ),
    "046_BTCV2": _corpus(
        90, _1=("spleen",), _3=("left kidney",), _4=("gallbladder",), _5=("oesophagus",), _6=("liver",), _7=("stomach",),
        _11=("pancreas",), _14=("duodenum",),
    ),
    "051_StructSeg19": _organs(50, "left lung", "right lung", "heart", "oesophagus", "bronchi", "spinal cord"),
    "055_SegTHOR": _organs(40, "oesophagus", "heart", "trachea", "aorta"),
    "062_NIHPancreas": _organs(82, "pancreas"),
    "064_KiTS19": _corpus(210, _1=("kidney",), _2=("kidney", "tumour")),
    "018_BTCVCervix": _organs(30, "bladder", "uterus", "rectum", "small bowel"),
}  # fmt: skip
