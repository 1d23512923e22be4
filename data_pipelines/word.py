"""WORD: 16 organs of the whole abdomen.

python -m data_pipelines.word --raw /downloads/WORD-V0.1.0 --out /data/store
"""

from data_pipelines.declare import Layout, PublicCorpus, numbered
from data_pipelines.ingest import main

CORPORA = (
    PublicCorpus(
        name="WORD",
        title="Whole abdominal ORgan Dataset",
        citation="Luo et al., WORD: A large scale dataset, benchmark and clinical applicable "
        "study for abdominal organ segmentation, "
        "MedIA 82 (2022)",
        licence="academic research only (the repository's statement); not for clinical or "
        "commercial use",
        url="https://github.com/HiLab-git/WORD",
        obtain="ask the authors as the repository says; WORD-V0.1.0.zip",
        layouts=(
            Layout(
                images=("images{part}/{case}.nii.gz",),
                label="labels{part}/{case}.nii.gz",
                fields={"part": "Tr|Val|Ts", "case": r"word_\d{4}"},
            ),
        ),
        labels=numbered(
            "liver",
            "spleen",
            "left kidney",
            "right kidney",
            "stomach",
            "gallbladder",
            "oesophagus",
            "pancreas",
            "duodenum",
            "colon",
            "small bowel",
            "adrenal glands",
            "rectum",
            "bladder",
            "left femoral head",
            "right femoral head",
        ),
        meanings={"adrenal glands": "both glands, side not given"},
        cases=150,
        defects=("one value for both adrenal glands",),
    ),
)

if __name__ == "__main__":
    main(CORPORA)
