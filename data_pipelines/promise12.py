"""PROMISE12: prostate in T2 MR of four centres.

python -m data_pipelines.promise12 --raw /downloads/promise12 --out /data/store
"""

from data_pipelines.declare import UNKNOWN, Layout, PublicCorpus, Twin, numbered
from data_pipelines.ingest import main

CORPORA = (
    PublicCorpus(
        name="PROMISE12",
        title="Prostate MR Image Segmentation 2012",
        citation="Litjens et al., Evaluation of prostate segmentation algorithms for MRI: the "
        "PROMISE12 challenge, Medical Image "
        "Analysis 18(2) (2014)",
        licence=UNKNOWN,
        url="https://zenodo.org/records/8026660",
        obtain="download and unpack training_data.zip",
        layouts=(
            Layout(
                images=("training_data/{case}.mhd",),
                label="training_data/{case}_segmentation.mhd",
                fields={"case": r"Case\d\d"},
            ),
        ),
        labels=numbered("prostate"),
        modality="MR",
        channels=("T2",),
        cases=50,
        twins=(
            Twin(
                "SAML",
                note="SAML's sites UCL, BIDMC and HK come from this challenge; case names were "
                "never matched up",
            ),
        ),
    ),
)

if __name__ == "__main__":
    main(CORPORA)
