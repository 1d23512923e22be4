"""Breast DCE-MRI (Zenodo 8068383): breast tumours in dynamic contrast-enhanced MR.

python -m data_pipelines.breast_dce --raw /downloads/breast_dce --out /data/store
"""

from data_pipelines.declare import Layout, PublicCorpus, numbered
from data_pipelines.ingest import main

CORPORA = (
    PublicCorpus(
        name="Breast_DCE",
        title="Breast tumour segmentation from DCE-MRI",
        citation="Zhang et al., A robust and efficient AI assistant for breast tumor segmentation "
        "from DCE-MRI via a "
        "spatial-temporal framework, "
        "Patterns 4(9) (2023)",
        licence="academic research only (the authors' statement); the code is MIT",
        url="https://zenodo.org/record/8068383",
        obtain="download and unpack the archive; phases P0 (taken as before contrast) to P5, "
        "breast masks and tumour masks",
        layouts=(
            Layout(
                images=("{site}/{case}/P1.nii.gz",),
                label="{site}_gt/{case}.nii.gz",
                fields={"site": "[A-Za-z]+", "case": r"[A-Za-z]+_\d+"},
                note="names as in the authors' repository; the archive itself was not inspected. "
                "P1, the first phase with contrast, "
                "is the image",
            ),
        ),
        labels=numbered("breast tumour"),
        modality="MR",
        channels=("DCE",),
        cases=100,
        defects=(
            "the number of cases is inferred from the sum of TSFM's pool",
            "the breast mask ({site}_breast) is not a class here",
        ),
    ),
)

if __name__ == "__main__":
    main(CORPORA)
