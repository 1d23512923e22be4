"""SAML: prostate in T2 MR of six sites.

python -m data_pipelines.saml --raw /downloads/saml --out /data/store
"""

from data_pipelines.declare import UNKNOWN, Layout, PublicCorpus, Twin
from data_pipelines.ingest import main

CORPORA = (
    PublicCorpus(
        name="SAML",
        title="Multi-site dataset for prostate MRI segmentation (SAML)",
        citation="Liu et al., Shape-aware Meta-learning for Generalizing Prostate MRI "
        "Segmentation to Unseen Domains, MICCAI (2020)",
        licence=UNKNOWN + " (the sites keep the terms of their sources)",
        url="https://liuquande.github.io/SAML",
        obtain="download the six sites from the page",
        layouts=(
            Layout(
                images=("{site}/{case}.nii.gz",),
                label="{site}/{case}_*egmentation.nii.gz",
                fields={"site": "RUNMC|BMC|I2CVB|UCL|BIDMC|HK", "case": r"Case\d\d"},
                name="{site}_{case}",
            ),
        ),
        labels={1: "prostate", 2: "prostate"},
        modality="MR",
        channels=("T2",),
        cases=116,
        defects=(
            "some sites write the two zones as 1 and 2, others the gland as 1: both values are "
            "prostate",
            "the spelling of _segmentation varies",
        ),
        twins=(
            Twin(
                "PROMISE12",
                note="the sites UCL, BIDMC and HK come from PROMISE12; case names were never "
                "matched up",
            ),
        ),
    ),
)

if __name__ == "__main__":
    main(CORPORA)
