"""SegTHOR: thoracic organs at risk.

python -m data_pipelines.segthor --raw /downloads/segthor --out /data/store
"""

from data_pipelines.declare import UNKNOWN, Layout, PublicCorpus, numbered
from data_pipelines.ingest import main

CORPORA = (
    PublicCorpus(
        name="SegTHOR",
        title="Segmentation of thoracic organs at risk in CT",
        citation="Lambert et al., SegTHOR: Segmentation of Thoracic Organs at Risk in CT images, "
        "IPTA (2020)",
        licence=UNKNOWN,
        url="https://competitions.codalab.org/competitions/21145",
        obtain="register with the challenge at CodaLab; train.zip",
        layouts=(
            Layout(
                images=("train/{case}/{case}.nii.gz",),
                label="train/{case}/GT.nii.gz",
                fields={"case": r"Patient_\d+"},
            ),
        ),
        labels=numbered("oesophagus", "heart", "trachea", "aorta"),
        meanings={"trachea": "from below the larynx to 2 cm below the carina, without the bronchi"},
        cases=40,
    ),
)

if __name__ == "__main__":
    main(CORPORA)
