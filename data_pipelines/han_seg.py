"""HaN-Seg: 30 organs at risk of head and neck in CT.

python -m data_pipelines.han_seg --raw /downloads/HaN-Seg --out /data/store
"""

from data_pipelines.declare import Layout, PublicCorpus, numbered
from data_pipelines.ingest import main

ORGANS = {
    "A_Carotid_L": "left carotid artery",
    "A_Carotid_R": "right carotid artery",
    "Arytenoid": "arytenoids",
    "Bone_Mandible": "mandible",
    "Brainstem": "brainstem",
    "BuccalMucosa": "buccal mucosa",
    "Cavity_Oral": "oral cavity",
    "Cochlea_L": "left cochlea",
    "Cochlea_R": "right cochlea",
    "Cricopharyngeus": "cricopharyngeal inlet",
    "Esophagus_S": "cervical oesophagus",
    "Eye_AL": "left anterior eyeball segment",
    "Eye_AR": "right anterior eyeball segment",
    "Eye_PL": "left posterior eyeball segment",
    "Eye_PR": "right posterior eyeball segment",
    "Glnd_Lacrimal_L": "left lacrimal gland",
    "Glnd_Lacrimal_R": "right lacrimal gland",
    "Glnd_Submand_L": "left submandibular gland",
    "Glnd_Submand_R": "right submandibular gland",
    "Glnd_Thyroid": "thyroid gland",
    "Glottis": "glottic larynx",
    "Larynx_SG": "supraglottic larynx",
    "Lips": "lips",
    "OpticChiasm": "optic chiasm",
    "OpticNrv_L": "left optic nerve",
    "OpticNrv_R": "right optic nerve",
    "Parotid_L": "left parotid gland",
    "Parotid_R": "right parotid gland",
    "Pituitary": "pituitary gland",
    "SpinalCord": "spinal cord",
}

CORPORA = (
    PublicCorpus(
        name="HaN_Seg",
        title="Head and Neck organ-at-risk CT and MR segmentation",
        citation="Podobnik et al., HaN-Seg: The head and neck organ-at-risk CT and MR "
        "segmentation dataset, Medical Physics 50(3) (2023)",
        licence="CC BY-ND 4.0 in the data's readme (copies of it differ: read the LICENSE file "
        "that comes with the data)",
        url="https://zenodo.org/records/7442914",
        obtain="download and unpack HaN-Seg.zip",
        layouts=(
            Layout(
                images=("set_1/{case}/{case}_IMG_CT.nrrd",),
                masks={
                    name: f"set_1/{{case}}/{{case}}_OAR_{stem}.seg.nrrd"
                    for stem, name in ORGANS.items()
                },
                fields={"case": r"case_\d\d"},
            ),
        ),
        labels=numbered(*ORGANS.values()),
        cases=42,
        defects=(
            "not every organ is drawn in every case (OAR_data.csv): such a case needs "
            "--allow-missing-masks, and counts the organ as "
            "absent",
            "masks belong to the CT; the MR is on another grid and not registered",
        ),
    ),
)

if __name__ == "__main__":
    main(CORPORA)
