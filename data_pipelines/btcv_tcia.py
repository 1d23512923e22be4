"""The 90-case re-annotation of 47 BTCV and 43 TCIA Pancreas-CT scans, eight organs.

python -m data_pipelines.btcv_tcia --raw /downloads/btcv_tcia --out /data/store
"""

from data_pipelines.btcv import ORGANS
from data_pipelines.declare import UNKNOWN, Layout, PublicCorpus, Twin, numbered
from data_pipelines.ingest import main

OURS = (
    "the record holds the labels only; this arrangement of the images, which are obtained from "
    "BTCV and TCIA, is ours"
)

CORPORA = (
    PublicCorpus(
        name="BTCV_TCIA",
        title="Multi-organ abdominal CT reference standard segmentations (47 BTCV and 43 TCIA "
        "scans)",
        citation="Gibson et al., Automatic Multi-Organ Segmentation on Abdominal CT With Dense "
        "V-Networks, IEEE TMI 37(8) (2018)",
        licence=UNKNOWN + "; the images keep the terms of BTCV and TCIA Pancreas-CT",
        url="https://zenodo.org/record/1169361",
        obtain="labels from Zenodo 1169361; images from BTCV (training and test) and TCIA "
        "Pancreas-CT, as NIfTI",
        layouts=(
            Layout(
                images=("image_btcv_multiorgan/img{number}.nii.gz",),
                label="label_btcv_multiorgan/label{number}.nii.gz",
                fields={"number": r"\d{4}"},
                name="img{number}",
                note=OURS,
            ),
            Layout(
                images=("image_tcia_multiorgan/PANCREAS_{number}.nii.gz",),
                label="label_tcia_multiorgan/label{number}.nii.gz",
                fields={"number": r"\d{4}"},
                name="PANCREAS_{number}",
                note=OURS,
            ),
        ),
        labels=numbered(*ORGANS, "duodenum"),
        annotated=(
            "spleen",
            "left kidney",
            "gallbladder",
            "oesophagus",
            "liver",
            "stomach",
            "pancreas",
            "duodenum",
        ),
        cases=90,
        defects=(
            "only eight structures are annotated in all cases; right kidney, vessels and adrenals "
            "occur in some BTCV cases and count "
            "as unknown",
            "orientation is unreliable: labels of TCIA cases are stored reversed along the body "
            "axis against some conversions of the "
            "images",
            "17 of the BTCV cases are BTCV's test scans: never train on them before evaluating "
            "there",
        ),
        twins=(
            Twin("BTCV", r"(img\d{4})", r"\1", note="the same scans"),
            Twin(
                "NIH_Pancreas",
                r"(PANCREAS_\d{4})",
                r"\1",
                note="the same scans, by their 4-digit number",
            ),
        ),
    ),
)

if __name__ == "__main__":
    main(CORPORA)
