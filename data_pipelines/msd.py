"""Medical Segmentation Decathlon, all ten tasks.

python -m data_pipelines.msd --raw /downloads/msd --out /data/store --only MSD_Liver,MSD_Lung
"""

from data_pipelines.declare import Layout, PublicCorpus, Twin, numbered
from data_pipelines.ingest import main

CONTENT = "case names were never matched up; compare contents with `medjax overlap --content`"


def _task(number: int, folder: str, name: str, title: str, prefix: str, **fields) -> PublicCorpus:
    layout = Layout(
        images=(f"Task{number:02d}_{folder}/imagesTr/{{case}}.nii.gz",),
        label=f"Task{number:02d}_{folder}/labelsTr/{{case}}.nii.gz",
        fields={"case": prefix + r"_\d+"},
        note="multi-channel images are one 4D file; the archives hold AppleDouble files (._*), "
        "which are passed over",
    )
    return PublicCorpus(
        name=f"MSD_{name}",
        title=f"Medical Segmentation Decathlon, Task{number:02d} {title}",
        citation="Antonelli et al., The Medical Segmentation Decathlon, Nature Communications 13, "
        "4128 (2022)",
        licence="CC BY-SA 4.0",
        url="http://medicaldecathlon.com",
        obtain=f"download and unpack Task{number:02d}_{folder}.tar from the link on the site",
        layouts=(layout,),
        **fields,
    )


CORPORA = (
    _task(
        1,
        "BrainTumour",
        "BrainTumour",
        "brain tumour",
        "BRATS",
        cases=484,
        modality="MR",
        channels=("FLAIR", "T1w", "T1gd", "T2w"),
        labels=numbered("oedema", "non-enhancing tumour core", "enhancing tumour"),
        regions={"whole brain tumour": (1, 2, 3), "brain tumour core": (2, 3)},
        defects=("label values differ from BraTS': 1 is oedema here, necrosis there",),
        twins=(
            Twin("BraTS2020", note=f"drawn from BraTS 2016/2017; {CONTENT}"),
            Twin("BraTS2021", note=f"as BraTS2020; {CONTENT}"),
        ),
    ),
    _task(
        2,
        "Heart",
        "Heart",
        "left atrium",
        "la",
        cases=20,
        modality="MR",
        channels=("MRI",),
        labels=numbered("left atrium"),
    ),
    _task(
        3,
        "Liver",
        "Liver",
        "liver",
        "liver",
        cases=131,
        labels={1: "liver", 2: ("liver", "liver tumour")},
        meanings={"liver tumour": "primary and metastatic liver tumours, all that are seen"},
        twins=(
            Twin(
                "LiTS",
                r"liver_(\d+)",
                r"volume-\1",
                note="the same 131 scans; the numbers are taken to agree",
            ),
            Twin(
                "IRCADb",
                r"liver_(2[89]|3\d|4[0-7])",
                r"3Dircadb1.\1",
                offset=-27,
                note="28 to 47 are reported to be 3D-IRCADb-01",
            ),
            Twin("CT_ORG", note=f"CT-ORG took many of its scans from LiTS; {CONTENT}"),
            Twin("AbdomenCT_1K", note=f"AbdomenCT-1K relabelled LiTS; {CONTENT}"),
        ),
    ),
    _task(
        4,
        "Hippocampus",
        "Hippocampus",
        "hippocampus",
        "hippocampus",
        cases=260,
        modality="MR",
        channels=("MRI",),
        labels=numbered("anterior hippocampus", "posterior hippocampus"),
        regions={"hippocampus": (1, 2)},
    ),
    _task(
        5,
        "Prostate",
        "Prostate",
        "prostate",
        "prostate",
        cases=32,
        modality="MR",
        channels=("T2", "ADC"),
        labels=numbered("prostate peripheral zone", "prostate transition zone"),
        regions={"prostate": (1, 2)},
    ),
    _task(
        6,
        "Lung",
        "Lung",
        "lung tumour",
        "lung",
        cases=63,
        labels=numbered("lung tumour"),
        defects=(
            "the paper prints 64 training cases, 63 were released",
            "lung_093 is missing from MultiTalent's released plans",
        ),
    ),
    _task(
        7,
        "Pancreas",
        "Pancreas",
        "pancreas",
        "pancreas",
        cases=281,
        labels={1: "pancreas", 2: ("pancreas", "pancreas tumour")},
        meanings={
            "pancreas tumour": "adenocarcinoma, neuroendocrine tumour or intraductal papillary "
            "mucinous neoplasm"
        },
        defects=("the paper prints 282 training cases, 281 were released",),
        twins=(
            Twin("FLARE22", note=f"FLARE22's 50 labelled scans come from this task; {CONTENT}"),
            Twin("AbdomenCT_1K", note=f"AbdomenCT-1K relabelled this task; {CONTENT}"),
        ),
    ),
    _task(
        8,
        "HepaticVessel",
        "HepaticVessel",
        "hepatic vessels",
        "hepaticvessel",
        cases=303,
        labels=numbered("hepatic vessel", "liver tumour"),
        meanings={
            "liver tumour": "tumours of patients chosen for their hepatic vessels; the liver "
            "itself is not annotated"
        },
        defects=("vessel and tumour are disjoint values; the surrounding liver is background",),
    ),
    _task(
        9,
        "Spleen",
        "Spleen",
        "spleen",
        "spleen",
        cases=41,
        labels=numbered("spleen"),
        twins=(Twin("AbdomenCT_1K", note=f"AbdomenCT-1K relabelled this task; {CONTENT}"),),
    ),
    _task(
        10, "Colon", "Colon", "colon cancer", "colon", cases=126, labels=numbered("colon cancer")
    ),
)

if __name__ == "__main__":
    main(CORPORA)
