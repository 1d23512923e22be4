r"""TotalSegmentator CT: v1 (104 structures), its organ part (17) and v2 (117).

python -m data_pipelines.totalsegmentator --raw /downloads/Totalsegmentator_dataset_v201 \
  --out /data/store --only TotalSegmentator_v2
"""

from data_pipelines.anatomy import canonical
from data_pipelines.declare import Layout, PublicCorpus, Twin, numbered
from data_pipelines.ingest import main


def _span(*parts: str) -> tuple[str, ...]:
    """File stems; "vertebrae_L5..1" counts, "humerus_left/right" is both sides."""
    stems = []
    for part in parts:
        if ".." in part:
            start, last = part.split("..")
            head, first = start.rstrip("0123456789"), int(start[len(start.rstrip("0123456789")) :])
            step = 1 if int(last) >= first else -1
            stems += [f"{head}{n}" for n in range(first, int(last) + step, step)]
        elif "/" in part:
            first, second = part.split("/")
            stems += [first, f"{first.rsplit('_', 1)[0]}_{second}"]
        else:
            stems.append(part)
    return tuple(stems)


V1_ORGANS = _span(
    "spleen",
    "kidney_right/left",
    "gallbladder",
    "liver",
    "stomach",
    "aorta",
    "inferior_vena_cava",
    "portal_vein_and_splenic_vein",
    "pancreas",
    "adrenal_gland_right/left",
    "lung_upper_lobe_left",
    "lung_lower_lobe_left",
    "lung_upper_lobe_right",
    "lung_middle_lobe_right",
    "lung_lower_lobe_right",
)
VERTEBRAE = _span("vertebrae_L5..1", "vertebrae_T12..1", "vertebrae_C7..1")
RIBS = _span("rib_left_1..12", "rib_right_1..12")
LIMBS = _span(
    "humerus_left/right",
    "scapula_left/right",
    "clavicula_left/right",
    "femur_left/right",
    "hip_left/right",
)
MUSCLES = _span(
    "gluteus_maximus_left/right",
    "gluteus_medius_left/right",
    "gluteus_minimus_left/right",
    "autochthon_left/right",
    "iliopsoas_left/right",
)
ILIAC = _span("iliac_artery_left/right", "iliac_vena_left/right")
V1 = (
    *V1_ORGANS,
    *VERTEBRAE,
    "esophagus",
    "trachea",
    "heart_myocardium",
    "heart_atrium_left",
    "heart_ventricle_left",
    "heart_atrium_right",
    "heart_ventricle_right",
    "pulmonary_artery",
    "brain",
    *ILIAC,
    "small_bowel",
    "duodenum",
    "colon",
    *RIBS,
    *LIMBS,
    "sacrum",
    "face",
    *MUSCLES,
    "urinary_bladder",
)
V2 = (
    *V1_ORGANS[:6],
    *V1_ORGANS[9:],
    "esophagus",
    "trachea",
    "thyroid_gland",
    "small_bowel",
    "duodenum",
    "colon",
    "urinary_bladder",
    "prostate",
    *_span("kidney_cyst_left/right"),
    "sacrum",
    "vertebrae_S1",
    *VERTEBRAE,
    "heart",
    "aorta",
    "pulmonary_vein",
    "brachiocephalic_trunk",
    *_span(
        "subclavian_artery_right/left",
        "common_carotid_artery_right/left",
        "brachiocephalic_vein_left/right",
    ),
    "atrial_appendage_left",
    "superior_vena_cava",
    "inferior_vena_cava",
    "portal_vein_and_splenic_vein",
    *ILIAC,
    *LIMBS,
    "spinal_cord",
    *MUSCLES,
    "brain",
    "skull",
    *RIBS,
    "sternum",
    "costal_cartilages",
)
SAME = "v2 relabelled v1's scans and added some; subject numbers are taken to agree"
WHOLE = "the same scans"


def _corpus(
    name: str, title: str, record: str, cases: int, stems: tuple[str, ...], **fields
) -> PublicCorpus:
    return PublicCorpus(
        name=name,
        title=title,
        citation="Wasserthal et al., TotalSegmentator: Robust Segmentation of 104 Anatomic "
        "Structures in CT Images, Radiology AI "
        "5(5) (2023)",
        licence="CC BY 4.0",
        url=f"https://zenodo.org/record/{record}",
        obtain=f"download and unpack the archive of Zenodo {record}",
        layouts=(
            Layout(
                images=("{case}/ct.nii.gz",),
                masks={canonical(stem): f"{{case}}/segmentations/{stem}.nii.gz" for stem in stems},
                fields={"case": r"s\d{4}"},
            ),
        ),
        labels=numbered(*map(canonical, stems)),
        cases=cases,
        **fields,
    )


def _twins(*others: tuple[str, str]) -> tuple[Twin, ...]:
    return tuple(
        Twin(f"TotalSegmentator_{name}", r"(s\d{4})", r"\1", note=note) for name, note in others
    )


CORPORA = (
    _corpus(
        "TotalSegmentator_v1",
        "TotalSegmentator v1, 104 structures",
        "6802614",
        1204,
        V1,
        defects=(
            "labels were made by models and corrected by hand; truncated bodies, so most "
            "structures are absent in many cases",
        ),
        twins=_twins(("v2", SAME), ("v1_organs", WHOLE)),
    ),
    _corpus(
        "TotalSegmentator_v1_organs",
        "TotalSegmentator v1, organ part (17 structures)",
        "6802614",
        1204,
        V1_ORGANS,
        defects=("v2's organ part has 24 structures; this is v1's",),
        twins=_twins(("v1", WHOLE), ("v2", SAME)),
    ),
    _corpus(
        "TotalSegmentator_v2",
        "TotalSegmentator v2, 117 structures",
        "10047292",
        1228,
        V2,
        meanings={"heart": "the whole heart, one structure (v1 has five parts)"},
        defects=("label numbers differ from v1's: pancreas is 7 here, 10 there",),
        twins=_twins(("v1", SAME), ("v1_organs", SAME)),
    ),
)

if __name__ == "__main__":
    main(CORPORA)
