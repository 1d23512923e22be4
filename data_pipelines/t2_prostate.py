"""T2-weighted prostate MR with zones (Zenodo 7676958).

python -m data_pipelines.t2_prostate --raw /downloads/t2_prostate --out /data/store
"""

from data_pipelines.declare import UNKNOWN, Layout, PublicCorpus, numbered
from data_pipelines.ingest import main

CORPORA = (
    PublicCorpus(
        name="T2W_Prostate",
        title="Prostate MRI T2-weighted images with peripheral and transition zone segmentations "
        "including PIRADS and PSA values",
        citation="Gibala et al., Prostate MRI T2-weighted images with peripherial and trasition "
        "zone segmentations including corresponding "
        "PIRADS and PSA values, Zenodo (2023), doi:10.5281/zenodo.7676958",
        licence=UNKNOWN,
        url="https://zenodo.org/record/7676958",
        obtain="download from Zenodo; scans and masks are TIFF, whose voxel size is not in the "
        "file: convert to NIfTI as the layout says",
        layouts=(
            Layout(
                images=("{case}/t2.nii.gz",),
                masks={
                    "prostate peripheral zone": "{case}/peripheral_zone.nii.gz",
                    "prostate transition zone": "{case}/transition_zone.nii.gz",
                    "prostate": ("{case}/peripheral_zone.nii.gz", "{case}/transition_zone.nii.gz"),
                },
                note="this arrangement is ours: the file names inside the published archive are "
                "not known to this project",
            ),
        ),
        labels=numbered("prostate peripheral zone", "prostate transition zone"),
        regions={"prostate": (1, 2)},
        modality="MR",
        channels=("T2",),
        cases=114,
        defects=("TIFF without geometry",),
    ),
)

if __name__ == "__main__":
    main(CORPORA)
