"""BTCV abdomen: Multi-Atlas Labeling Beyond the Cranial Vault, 13 abdominal organs.

python -m data_pipelines.btcv --raw /downloads/btcv --out /data/store
"""

from data_pipelines.declare import UNKNOWN, Layout, PublicCorpus, Twin, numbered
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
    "portal and splenic vein",
    "pancreas",
    "right adrenal gland",
    "left adrenal gland",
)

CORPORA = (
    PublicCorpus(
        name="BTCV",
        title="Multi-Atlas Labeling Beyond the Cranial Vault, abdomen",
        citation="Landman et al., MICCAI Multi-Atlas Labeling Beyond the Cranial Vault - Workshop "
        "and Challenge (2015)",
        licence=UNKNOWN + " (Synapse registration)",
        url="https://www.synapse.org/#!Synapse:syn3193805/wiki/217789",
        obtain='register at Synapse, join the challenge, files "Abdomen" / RawData.zip',
        layouts=(
            Layout(
                images=("RawData/Training/img/img{number}.nii.gz",),
                label="RawData/Training/label/label{number}.nii.gz",
                fields={"number": r"\d{4}"},
                name="img{number}",
            ),
        ),
        labels=numbered(*ORGANS),
        cases=30,
        defects=(
            "the labels of the 20 test scans (img0061 to img0080) are not public; BTCV_TCIA "
            "labels 17 of them",
        ),
        twins=(
            Twin(
                "BTCV_TCIA",
                r"(img\d{4})",
                r"\1",
                note="47 of the 90 cases are BTCV's scans, relabelled",
            ),
        ),
    ),
)

if __name__ == "__main__":
    main(CORPORA)
