"""KiTS21: kidney, kidney tumour and kidney cyst.

python -m data_pipelines.kits21 --raw /downloads/kits21 --out /data/store
"""

from data_pipelines.declare import Layout, PublicCorpus, Twin
from data_pipelines.ingest import main
from data_pipelines.kits19 import KIDNEY

CORPORA = (
    PublicCorpus(
        name="KiTS21",
        title="Kidney and Kidney Tumor Segmentation Challenge 2021",
        citation="Heller et al., The KiTS21 Challenge: Automatic segmentation of kidneys, renal "
        "tumors, and renal cysts, arXiv:2307.01984",
        licence="CC BY-NC-SA 4.0",
        url="https://github.com/neheller/kits21",
        obtain="clone the repository and run its download script: kits21/data/case_00000 ... "
        "case_00299",
        layouts=(
            Layout(
                images=("data/{case}/imaging.nii.gz",),
                label="data/{case}/aggregated_MAJ_seg.nii.gz",
                fields={"case": r"case_\d{5}"},
                note="the majority vote of the three annotations",
            ),
        ),
        labels={1: "kidney", 2: ("kidney", "kidney tumour"), 3: ("kidney", "kidney cyst")},
        meanings={"kidney": KIDNEY, "kidney tumour": "tumours without cysts"},
        cases=300,
        defects=("stored with the body axis first; the affine says so",),
        twins=(
            Twin(
                "KiTS19",
                r"(case_\d{5})",
                r"\1",
                note="the first 210 are KiTS19's scans under the same names",
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
