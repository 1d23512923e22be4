"""KiTS19: kidney and kidney tumour.

python -m data_pipelines.kits19 --raw /downloads/kits19 --out /data/store
"""

from data_pipelines.declare import Layout, PublicCorpus, Twin
from data_pipelines.ingest import main

KIDNEY = "both kidneys, side not given, with all that grows in them"

CORPORA = (
    PublicCorpus(
        name="KiTS19",
        title="Kidney Tumor Segmentation Challenge 2019",
        citation="Heller et al., The state of the art in kidney and kidney tumor segmentation in "
        "contrast-enhanced CT imaging, MedIA "
        "67 (2021)",
        licence="CC BY-NC-SA 4.0",
        url="https://github.com/neheller/kits19",
        obtain="clone the repository and run its download script: data/case_00000 ... case_00209",
        layouts=(
            Layout(
                images=("data/{case}/imaging.nii.gz",),
                label="data/{case}/segmentation.nii.gz",
                fields={"case": r"case_00[01]\d\d|case_0020\d"},
            ),
        ),
        labels={1: "kidney", 2: ("kidney", "kidney tumour")},
        meanings={"kidney": KIDNEY, "kidney tumour": "tumours and cysts"},
        cases=210,
        defects=(
            "stored with the body axis first; the affine says so",
            "early label releases had errors that were fixed later (MultiTalent trained on "
            "fixed labels)",
            "case_00000 and case_00154 (and case_00146) are missing from MultiTalent's released "
            "plans",
        ),
        twins=(
            Twin(
                "KiTS21",
                r"(case_\d{5})",
                r"\1",
                note="KiTS21 relabelled the same scans under the same names",
            ),
            Twin(
                "AbdomenCT_1K",
                note="AbdomenCT-1K relabelled KiTS; case names were never matched up",
            ),
        ),
    ),
)

if __name__ == "__main__":
    main(CORPORA)
