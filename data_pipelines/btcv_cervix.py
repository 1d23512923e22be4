"""BTCV cervix: Multi-Atlas Labeling Beyond the Cranial Vault, four pelvic organs.

python -m data_pipelines.btcv_cervix --raw /downloads/btcv_cervix --out /data/store
"""

from data_pipelines.declare import UNKNOWN, Layout, PublicCorpus, numbered
from data_pipelines.ingest import main

CORPORA = (
    PublicCorpus(
        name="BTCV_Cervix",
        title="Multi-Atlas Labeling Beyond the Cranial Vault, cervix",
        citation="Landman et al., MICCAI Multi-Atlas Labeling Beyond the Cranial Vault - Workshop "
        "and Challenge (2015)",
        licence=UNKNOWN + " (Synapse registration)",
        url="https://www.synapse.org/#!Synapse:syn3193805/wiki/217790",
        obtain='register at Synapse, join the challenge, files "Cervix" / CervixRawData.zip',
        layouts=(
            Layout(
                images=("RawData/Training/img/{case}-Image.nii.gz",),
                label="RawData/Training/label/{case}-Mask.nii.gz",
                fields={"case": r"\d+"},
            ),
        ),
        labels=numbered("bladder", "uterus", "rectum", "small bowel"),
        cases=30,
        defects=(
            "some contours are missing in some scans: small bowel is labelled in 28 of 30",
            "most patients lie prone on a belly board, some supine",
        ),
    ),
)

if __name__ == "__main__":
    main(CORPORA)
