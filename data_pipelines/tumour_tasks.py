"""MAST-Pro's tumour tasks: the corpus, the tumour, its host organs and the sentence of each.

The paper prints its template but not the words of its slots; these sentences are ours.
"""

import dataclasses

from data_pipelines.catalogue import corpora


@dataclasses.dataclass(frozen=True)
class TumourTask:
    """One of MAST-Pro's tasks.

    Attributes:
      corpus: where its cases are. tumour: the class to segment, "" where the public labels have
        none.
      organs: host organs of the anatomical prompt, as classes of TotalSegmentator v2; organs_v1: of
        v1.
      cancer, location, shape, edge, modality: slots of the sentence.
    """

    corpus: str
    tumour: str
    organs: tuple[str, ...]
    cancer: str
    location: str
    shape: str
    edge: str
    modality: str
    organs_v1: tuple[str, ...] = ()

    @property
    def sentence(self) -> str:
        """The text prompt; slots are filled in literally, for other words would be other tokens."""
        return (
            f"This is a {self.cancer} in the {self.location}, appearing as a {self.shape} mass "
            f"with {self.edge} borders on {self.modality}."
        )

    def organ_ids(self, version: int = 2) -> tuple[int, ...]:
        """Label numbers of the host organs in TotalSegmentator's `total` map."""
        names = (self.organs_v1 or self.organs) if version == 1 else self.organs
        values = {
            names[0]: value
            for value, names in corpora()[f"TotalSegmentator_v{version}"].sets.items()
        }
        return tuple(values[name] for name in names)


LOBES = (
    "left lung upper lobe",
    "left lung lower lobe",
    "right lung upper lobe",
    "right lung middle lobe",
    "right lung lower lobe",
)
KIDNEYS = ("right kidney", "left kidney")
PORTAL = "portal-venous phase CT"

MAST_PRO_TASKS = {
    "MSD-Liver": TumourTask(
        "MSD_Liver",
        "liver tumour",
        ("liver",),
        "primary or metastatic liver tumor",
        "liver",
        "round or lobulated low-attenuation",
        "partly ill-defined",
        "portal-venous phase contrast-enhanced CT",
    ),
    "MSD-Lung": TumourTask(
        "MSD_Lung",
        "lung tumour",
        LOBES,
        "non-small cell lung cancer",
        "lung",
        "solid, round to irregular nodular",
        "spiculated or lobulated",
        "chest CT",
    ),
    "MSD-Pancreas": TumourTask(
        "MSD_Pancreas",
        "pancreas tumour",
        ("pancreas",),
        "pancreatic tumor (adenocarcinoma, neuroendocrine tumor or intraductal papillary mucinous "
        "neoplasm)",
        "pancreas",
        "irregular solid or cystic low-attenuation",
        "ill-defined infiltrative",
        PORTAL,
    ),
    "MSD-HepaticVessel": TumourTask(
        "MSD_HepaticVessel",
        "liver tumour",
        ("liver", "portal and splenic vein"),
        "liver tumor close to the hepatic vessels",
        "liver beside the hepatic and portal veins",
        "round low-attenuation",
        "moderately well-defined",
        PORTAL,
    ),
    "MSD-Colon": TumourTask(
        "MSD_Colon",
        "colon cancer",
        ("colon",),
        "primary colon cancer",
        "colon",
        "irregular wall-thickening, often annular soft-tissue",
        "irregular, poorly defined",
        PORTAL,
    ),
    "LiTS": TumourTask(
        "LiTS",
        "liver tumour",
        ("liver",),
        "hepatocellular carcinoma or liver metastasis",
        "liver",
        "multifocal round or oval low-attenuation",
        "variably sharp",
        "contrast-enhanced abdominal CT",
    ),
    "KiTS": TumourTask(
        "KiTS19",
        "kidney tumour",
        (*KIDNEYS, "left kidney cyst", "right kidney cyst"),
        "renal tumor, mostly clear cell renal cell carcinoma",
        "kidney",
        "round, exophytic, heterogeneously enhancing",
        "well-circumscribed",
        "late arterial phase CT",
        organs_v1=KIDNEYS,
    ),
    "AbdomenCT-1K": TumourTask(
        "AbdomenCT_1K",
        "",
        ("liver", *KIDNEYS, "spleen", "pancreas"),
        "abdominal tumor",
        "liver, kidney, spleen or pancreas",
        "heterogeneous irregular",
        "variable",
        "abdominal CT",
    ),
}
"""Task -> prompts, in the paper's order; the public labels of AbdomenCT-1K have no tumour."""
