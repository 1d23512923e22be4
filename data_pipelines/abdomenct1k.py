"""AbdomenCT-1K: liver, kidney, spleen and pancreas, relabelled over five older corpora.

python -m data_pipelines.abdomenct1k --raw /downloads/abdomenct1k --out /data/store
"""

from data_pipelines.declare import UNKNOWN, Layout, PublicCorpus, Twin, numbered
from data_pipelines.ingest import main

SOURCES = ("LiTS", "KiTS19", "MSD_Spleen", "MSD_Pancreas", "NIH_Pancreas")
NOTE = (
    "its scans were relabelled; case names were never matched up, compare contents with "
    "`medjax overlap --content`"
)

CORPORA = (
    PublicCorpus(
        name="AbdomenCT_1K",
        title="AbdomenCT-1K",
        citation="Ma et al., AbdomenCT-1K: Is Abdominal Organ Segmentation A Solved Problem?, "
        "IEEE TPAMI 44(10) (2022)",
        licence=UNKNOWN + " (the scans keep the terms of their sources)",
        url="https://zenodo.org/records/5903769",
        obtain="images from Zenodo 5903099, 5903846 and 5903769, Mask.7z from 5903769",
        layouts=(
            Layout(
                images=("AbdomenCT-1K-ImagePart{part}/{case}_0000.nii.gz",),
                label="Mask/{case}.nii.gz",
                fields={"case": r"Case_\d{5}"},
            ),
        ),
        labels=numbered("liver", "kidney", "spleen", "pancreas"),
        meanings={"kidney": "both kidneys, side not given, with all that grows in them"},
        cases=1000,
        defects=(
            "1112 scans in the paper, labels of 1000 are public; the images without a label are "
            "passed over",
            "no tumour is labelled, though many patients have one",
        ),
        twins=tuple(Twin(name, note=NOTE) for name in SOURCES),
    ),
)

if __name__ == "__main__":
    main(CORPORA)
