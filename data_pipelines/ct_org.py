"""CT-ORG: six organ classes in CT of many kinds.

python -m data_pipelines.ct_org --raw /downloads/ct_org --out /data/store
"""

from data_pipelines.declare import Layout, PublicCorpus, Twin, numbered
from data_pipelines.ingest import main

CORPORA = (
    PublicCorpus(
        name="CT_ORG",
        title="CT-ORG: CT volumes with multiple organ segmentations",
        citation="Rister et al., CT-ORG, a new dataset for multiple organ segmentation in "
        "computed tomography, Scientific Data 7, "
        "381 (2020)",
        licence="CC BY 3.0 (TCIA collection page)",
        url="https://www.cancerimagingarchive.net/collection/ct-org",
        obtain="download the NIfTI files from TCIA (IBM Aspera)",
        layouts=(
            Layout(
                images=("volume-{number}.nii.gz",),
                label="labels-{number}.nii.gz",
                fields={"number": r"\d+"},
                name="volume-{number}",
            ),
        ),
        labels=numbered("liver", "bladder", "lungs", "kidneys", "bone", "brain"),
        meanings={"kidneys": "both kidneys, side not given", "lungs": "both lungs, side not given"},
        cases=140,
        defects=(
            "lungs and bones of the 119 training cases (21 to 139) come from morphology, those of "
            "the test cases (0 to 20) from hand",
            "files are float; the values are whole numbers",
            "the brain is labelled where it is seen, in few scans",
        ),
        twins=(
            Twin(
                "LiTS",
                note="many of the scans come from LiTS; case names were never matched up, compare "
                "contents with `medjax overlap --content`",
            ),
            Twin("MSD_Liver", note="as LiTS"),
        ),
    ),
)

if __name__ == "__main__":
    main(CORPORA)
