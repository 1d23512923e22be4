"""LiTS: liver and liver tumours.

python -m data_pipelines.lits --raw /downloads/lits --out /data/store
"""

from data_pipelines.declare import UNKNOWN, Layout, PublicCorpus, Twin
from data_pipelines.ingest import main

CORPORA = (
    PublicCorpus(
        name="LiTS",
        title="Liver Tumor Segmentation Benchmark",
        citation="Bilic et al., The Liver Tumor Segmentation Benchmark (LiTS), Medical Image "
        "Analysis 84 (2023)",
        licence=UNKNOWN + " (a non-commercial Creative Commons licence)",
        url="https://competitions.codalab.org/competitions/17094",
        obtain="register with the challenge at CodaLab; Training Batch 1 and 2",
        layouts=(
            Layout(
                images=("Training Batch {batch}/volume-{number}.nii",),
                label="Training Batch {batch}/segmentation-{number}.nii",
                fields={"number": r"\d+"},
                name="volume-{number}",
            ),
        ),
        labels={1: "liver", 2: ("liver", "liver tumour")},
        meanings={"liver tumour": "primary and metastatic liver tumours, all that are seen"},
        cases=131,
        defects=(
            "headers of some volumes disagree about orientation and spacing; verification names "
            "them",
        ),
        twins=(
            Twin(
                "MSD_Liver",
                r"volume-(\d+)",
                r"liver_\1",
                note="the same 131 scans; the numbers are taken to agree",
            ),
            Twin(
                "IRCADb",
                r"volume-(2[89]|3\d|4[0-7])",
                r"3Dircadb1.\1",
                offset=-27,
                note="volumes 28 to 47 are reported to be 3D-IRCADb-01",
            ),
            Twin(
                "CT_ORG",
                note="CT-ORG took many of its scans from here; case names were never matched up",
            ),
            Twin(
                "AbdomenCT_1K",
                note="AbdomenCT-1K relabelled this corpus; case names were never matched up",
            ),
        ),
    ),
)

if __name__ == "__main__":
    main(CORPORA)
