"""3D-IRCADb-01: liver, liver tumours and, in part of the patients, what lies around.

python -m data_pipelines.ircadb --raw /downloads/3Dircadb1 --out /data/store
"""

from data_pipelines.declare import Layout, PublicCorpus, Twin, numbered
from data_pipelines.ingest import main

FOLDERS = {
    "liver": "liver",
    "liver tumour": "livertumo*",
    "liver cyst": "livercyst*",
    "portal and splenic vein": "portalvein*",
    "venous system": "venoussystem",
    "artery": "artery",
    "right kidney": "rightkidney",
    "left kidney": "leftkidney",
    "spleen": "spleen",
    "gallbladder": "gallbladder",
    "right lung": "rightlung",
    "left lung": "leftlung",
    "pancreas": "pancreas",
    "stomach": "stomach",
    "bone": "bone",
}

CORPORA = (
    PublicCorpus(
        name="IRCADb",
        title="3D Image Reconstruction for Comparison of Algorithm Database, 3D-IRCADb-01",
        citation="Soler et al., 3D image reconstruction for comparison of algorithm database, "
        "IRCAD (2010)",
        licence="Creative Commons, the variant is in every patient's folder (Creative Commons "
        "Legal Code.pdf)",
        url="https://www.ircad.fr/research/data-sets/liver-segmentation-3d-ircadb-01",
        obtain="download 3Dircadb1 and unpack PATIENT_DICOM.zip and MASKS_DICOM.zip of every "
        "patient in its place",
        layouts=(
            Layout(
                images=("3Dircadb1.{number}/PATIENT_DICOM/",),
                masks={
                    name: f"3Dircadb1.{{number}}/MASKS_DICOM/{folder}/"
                    for name, folder in FOLDERS.items()
                },
                optional=tuple(name for name in FOLDERS if name != "liver"),
                fields={"number": r"\d+"},
                name="3Dircadb1.{number}",
            ),
        ),
        labels=numbered(*FOLDERS),
        annotated=("liver", "liver tumour"),
        cases=20,
        defects=(
            "which structures are drawn differs from patient to patient: only liver and its "
            "tumours are known to be complete",
            "DICOM files have no ending; tumours are numbered folders (livertumor01, "
            "livertumor02, ...), in one patient livertumors",
        ),
        twins=(
            Twin(
                "LiTS",
                r"3Dircadb1\.(\d+)",
                r"volume-\1",
                offset=27,
                note="reported to be LiTS volumes 28 to 47",
            ),
            Twin("MSD_Liver", r"3Dircadb1\.(\d+)", r"liver_\1", offset=27, note="as LiTS"),
        ),
    ),
)

if __name__ == "__main__":
    main(CORPORA)
