"""AMOS22: 15 abdominal organs in CT and MR.

python -m data_pipelines.amos22 --raw /downloads/amos22 --out /data/store
python -m data_pipelines.amos22 --raw /downloads/amos22 --out /data/store --where part=Tr

The first command makes two corpora, CT and MR; the second one reads imagesTr only.
"""

from data_pipelines.declare import Layout, PublicCorpus, numbered
from data_pipelines.ingest import main

ORGANS = (
    "spleen",
    "right kidney",
    "left kidney",
    "gallbladder",
    "oesophagus",
    "liver",
    "stomach",
    "aorta",
    "inferior vena cava",
    "pancreas",
    "right adrenal gland",
    "left adrenal gland",
    "duodenum",
    "bladder",
    "prostate or uterus",
)


def _part(modality: str, numbers: str, **fields) -> PublicCorpus:
    return PublicCorpus(
        name=f"AMOS22_{modality}",
        title=f"AMOS: multi-modality abdominal multi-organ segmentation, {modality}",
        citation="Ji et al., AMOS: A Large-Scale Abdominal Multi-Organ Benchmark for Versatile "
        "Medical Image Segmentation, NeurIPS (2022)",
        licence="CC BY 4.0",
        url="https://zenodo.org/record/7262581",
        obtain="download amos22.zip from Zenodo and unpack it",
        layouts=(
            Layout(
                images=("images{part}/{case}.nii.gz",),
                label="labels{part}/{case}.nii.gz",
                fields={"part": "Tr|Va", "case": f"amos_{numbers}"},
            ),
        ),
        labels=numbered(*ORGANS),
        modality=modality,
        **fields,
    )


CORPORA = (
    _part(
        "CT",
        r"0[0-4]\d\d",
        cases=300,
        defects=(
            "600 scans in the paper, 360 with public labels: 200 + 40 in Tr, 100 + 20 in Va",
            "dataset.json calls every scan CT",
        ),
    ),
    _part(
        "MR",
        r"0[5-9]\d\d",
        cases=60,
        channels=("MRI",),
        annotated=ORGANS[:13],
        defects=(
            "distinguished from CT by the case number alone: 500 and above is MR",
            "bladder and prostate or uterus have no truth in MR: they count as unknown",
        ),
    ),
)

if __name__ == "__main__":
    main(CORPORA)
