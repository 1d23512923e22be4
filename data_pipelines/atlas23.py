"""ATLAS 2023: liver and liver tumour in contrast-enhanced T1 MR.

python -m data_pipelines.atlas23 --raw /downloads/atlas --out /data/store
"""

from data_pipelines.declare import Layout, PublicCorpus
from data_pipelines.ingest import main

CORPORA = (
    PublicCorpus(
        name="ATLAS23",
        title="ATLAS: tumour and liver automatic segmentation in contrast-enhanced MR of "
        "hepatocellular carcinoma",
        citation="Quinton et al., A Tumour and Liver Automatic Segmentation (ATLAS) Dataset on "
        "CE-MRI for Hepatocellular Carcinoma, "
        "Data 8(5) (2023)",
        licence="CC BY-NC-SA 4.0",
        url="https://atlas-challenge.u-bourgogne.fr",
        obtain="register with the challenge; atlas-train-dataset-1.0.1.zip",
        layouts=(
            Layout(
                images=("imagesTr/im{number}.nii.gz",),
                label="labelsTr/lb{number}.nii.gz",
                fields={"number": r"\d+"},
                name="atlas_{number}",
            ),
        ),
        labels={1: "liver", 2: ("liver", "liver tumour")},
        meanings={"liver tumour": "hepatocellular carcinoma"},
        modality="CE-MR",
        channels=("T1 contrast-enhanced",),
        cases=60,
        defects=("the labels of the 30 test scans are hidden",),
    ),
)

if __name__ == "__main__":
    main(CORPORA)
