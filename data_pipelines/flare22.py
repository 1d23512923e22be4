"""FLARE22: 13 abdominal organs, the 50 labelled cases.

python -m data_pipelines.flare22 --raw /downloads/flare22 --out /data/store
"""

from data_pipelines.declare import UNKNOWN, Layout, PublicCorpus, Twin, numbered
from data_pipelines.ingest import main

CORPORA = (
    PublicCorpus(
        name="FLARE22",
        title="Fast and Low-resource semi-supervised Abdominal oRgan sEgmentation 2022, labelled "
        "cases",
        citation="Ma et al., Unleashing the strengths of unlabelled data in deep "
        "learning-assisted pan-cancer abdominal organ "
        "quantification: "
        "the FLARE22 challenge, Lancet Digital Health (2024)",
        licence=UNKNOWN,
        url="https://flare22.grand-challenge.org",
        obtain="register with the challenge; FLARE22_LabeledCase50",
        layouts=(
            Layout(
                images=("images/{case}_0000.nii.gz",),
                label="labels/{case}.nii.gz",
                fields={"case": r"FLARE22_Tr_\d{4}"},
            ),
        ),
        labels=numbered(
            "liver",
            "right kidney",
            "spleen",
            "pancreas",
            "aorta",
            "inferior vena cava",
            "right adrenal gland",
            "left adrenal gland",
            "gallbladder",
            "oesophagus",
            "stomach",
            "duodenum",
            "left kidney",
        ),
        cases=50,
        defects=("the patients have pancreas disease; tumours are part of the pancreas label",),
        twins=(
            Twin(
                "MSD_Pancreas",
                note="the 50 scans come from MSD Pancreas; case names were never matched up",
            ),
        ),
    ),
)

if __name__ == "__main__":
    main(CORPORA)
