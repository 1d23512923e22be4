"""TCIA Pancreas-CT (NIH): pancreas in contrast-enhanced CT of healthy kidney donors and others.

python -m data_pipelines.nih_pancreas --raw /downloads/pancreas_ct --out /data/store
"""

from data_pipelines.declare import Layout, PublicCorpus, Twin, numbered
from data_pipelines.ingest import main

CORPORA = (
    PublicCorpus(
        name="NIH_Pancreas",
        title="TCIA Pancreas-CT",
        citation="Roth et al., Data From Pancreas-CT, The Cancer Imaging Archive (2016); Roth et "
        "al., DeepOrgan, MICCAI (2015)",
        licence="CC BY 3.0 (TCIA collection page)",
        url="https://www.cancerimagingarchive.net/collection/pancreas-ct",
        obtain="images with the NBIA Data Retriever (DICOM), labels as "
        "TCIA_pancreas_labels-02-05-2017.zip",
        layouts=(
            Layout(
                images=("Pancreas-CT/PANCREAS_{number}/*/*/",),
                label="TCIA_pancreas_labels-02-05-2017/label{number}.nii.gz",
                fields={"number": r"\d{4}"},
                name="PANCREAS_{number}",
            ),
        ),
        labels=numbered("pancreas"),
        cases=82,
        defects=(
            "the collection was cut to 80 cases later: 0025 and 0070 were found to be copies of "
            "0002 with another field of view",
            "label files do not always share the orientation of the DICOM series; verification "
            "names the cases",
        ),
        suspects={
            **{
                f"PANCREAS_{n}": "label and scan are not registered (left out by MultiTalent's "
                "converter)"
                for n in ("0007", "0027", "0032", "0045")
            },
            **{f"PANCREAS_{n}": "a copy of PANCREAS_0002" for n in ("0025", "0070")},
        },
        twins=(
            Twin(
                "BTCV_TCIA", r"(PANCREAS_\d{4})", r"\1", note="43 of its 90 cases are these scans"
            ),
            Twin(
                "AbdomenCT_1K",
                note="AbdomenCT-1K relabelled this collection; case names were never matched up",
            ),
        ),
    ),
)

if __name__ == "__main__":
    main(CORPORA)
