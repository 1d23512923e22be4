"""StructSeg 2019, task 3: thoracic organs at risk.

python -m data_pipelines.structseg19 --raw /downloads/structseg19 --out /data/store
"""

from data_pipelines.declare import UNKNOWN, Layout, PublicCorpus, numbered
from data_pipelines.ingest import main

CORPORA = (
    PublicCorpus(
        name="StructSeg19",
        title="StructSeg 2019, task 3: organs at risk in chest CT of lung cancer patients",
        citation="Automatic Structure Segmentation for Radiotherapy Planning Challenge, MICCAI "
        "2019 (no paper)",
        licence=UNKNOWN,
        url="https://structseg2019.grand-challenge.org",
        obtain="register with the challenge; Task3_Thoracic_OAR",
        layouts=(
            Layout(
                images=("Task3_Thoracic_OAR/{number}/data.nii.gz",),
                label="Task3_Thoracic_OAR/{number}/label.nii.gz",
                fields={"number": r"\d+"},
                name="structseg_{number}",
            ),
        ),
        labels=numbered(
            "left lung", "right lung", "heart", "oesophagus", "trachea and bronchi", "spinal cord"
        ),
        meanings={
            "trachea and bronchi": "value 5: trachea in the challenge's text, bronchi in "
            "MultiTalent's label map"
        },
        cases=50,
    ),
)

if __name__ == "__main__":
    main(CORPORA)
