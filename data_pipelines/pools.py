"""What each paper trains on, as lists of public corpora: what a config puts into `c.data`.

    from data_pipelines import pools
    c.data.update(pools.multitalent.data())  # declared, share, rename; files are below c.data.root
    c.data.declared = pools.m4oe.declared()  # the corpora alone

A pool never changes a corpus: it says which of its cases, classes and modality names the paper
used, and which classes it held to be one.
"""

import dataclasses
from collections.abc import Mapping

from data_pipelines.catalogue import corpora
from data_pipelines.declare import PublicCorpus
from medjax.errors import UsageError, did_you_mean


@dataclasses.dataclass(frozen=True)
class Member:
    """A corpus as a pool uses it.

    Attributes:
      corpus: its public name. name: what the paper calls it; default the public name.
      cases: number the paper counts, if not the published one. where: the `--where` of the
        ingestion that gives them.
      annotated: the classes the paper uses; default all annotated ones.
      group: members of one group count as one data set: one head, one weight in sampling.
      number: the paper's number of the data set.
    """

    corpus: str
    name: str = ""
    cases: int = 0
    where: str = ""
    annotated: tuple[str, ...] = ()
    group: str = ""
    number: int = 0


@dataclasses.dataclass(frozen=True)
class Pool:
    """A paper's list of corpora.

    Attributes:
      title: what it is. members: in the paper's order.
      share: "by_name" or "per_corpus", see `medjax.labels.merge`. renamed: "member/class" ->
        channel name.
      exclusive: every voxel has one class (softmax heads): a nested value keeps only its innermost
        class.
    """

    title: str
    members: tuple[Member, ...]
    share: str = "by_name"
    renamed: Mapping[str, str] = dataclasses.field(default_factory=dict)
    exclusive: bool = False

    def __post_init__(self):
        for member in self.members:
            if member.corpus not in corpora():
                raise UsageError(
                    f"unknown corpus {member.corpus!r}",
                    path=self.title,
                    fix=did_you_mean(member.corpus, corpora()),
                )

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the members, in order."""
        return tuple(member.name or member.corpus for member in self.members)

    @property
    def groups(self) -> dict[str, str]:
        """Member -> the data set it counts as."""
        return {
            member.name or member.corpus: member.group or member.name or member.corpus
            for member in self.members
        }

    @property
    def heads(self) -> dict[str, int]:
        """Member -> number of its data set, counted in order: members of one group share a head."""
        order = list(dict.fromkeys(self.groups.values()))
        return {name: order.index(group) for name, group in self.groups.items()}

    @property
    def modalities(self) -> dict[str, int]:
        """Member -> modality number, in order of first appearance, as `LabelSpace.modalities`
        counts.
        """
        words = [corpora()[member.corpus].modality for member in self.members]
        return {
            name: list(dict.fromkeys(words)).index(word)
            for name, word in zip(self.names, words, strict=True)
        }

    def corpus_of(self, name: str) -> PublicCorpus:
        """The declaration behind a member."""
        return corpora()[dict(zip(self.names, self.members, strict=True))[name].corpus]

    def declared(self) -> dict[str, dict]:
        """What `config.data.declared` holds."""
        found = {}
        for name, member in zip(self.names, self.members, strict=True):
            entry = corpora()[member.corpus].declared(
                annotated=member.annotated, cases=member.cases
            )
            if self.exclusive:
                entry["labels"] = innermost(corpora()[member.corpus])
                present = {c for names in entry["labels"].values() for c in names}
                entry["annotated"] = tuple(c for c in entry["annotated"] if c in present)
            entry["group"] = member.group or name
            found[name] = entry
        return found

    def rename(self) -> dict[str, str]:
        """What `config.data.rename` holds; members of one group share their channels."""
        merged = dict(self.renamed)
        if self.share == "per_corpus":
            for name, entry in self.declared().items():
                if self.groups[name] != name:
                    merged |= {
                        f"{name}/{c}": merged.get(f"{name}/{c}", f"{self.groups[name]}/{c}")
                        for c in entry["annotated"]
                    }
        return merged

    def data(self) -> dict:
        """Everything a config's `c.data` needs to know of the pool: declared, share, rename."""
        return {"declared": self.declared(), "share": self.share, "rename": self.rename()}

    def subset(self, *names: str) -> "Pool":
        """The pool with some of its members only."""
        for name in names:
            if name not in self.names:
                raise UsageError(
                    f"no member {name!r} in this pool",
                    path=self.title,
                    fix=did_you_mean(name, self.names),
                )
        kept = tuple(
            member for name, member in zip(self.names, self.members, strict=True) if name in names
        )
        return dataclasses.replace(
            self,
            members=kept,
            renamed={k: v for k, v in self.renamed.items() if k.split("/")[0] in names},
        )

    def summary(self) -> str:
        """One line for the catalogue."""
        counts = [member.cases or corpora()[member.corpus].cases for member in self.members]
        total = f"{sum(counts)} cases" if all(counts) else "an unpublished number of cases"
        return f"{self.title}: {len(self.members)} corpora, {total} ({', '.join(self.names)})"


def innermost(corpus: PublicCorpus) -> dict[str, tuple[str, ...]]:
    """Value -> the one class it stands for by itself: the last of the names declared for it,
    regions left out.
    """
    return {
        str(value): ((names,) if isinstance(names, str) else tuple(names))[-1:]
        for value, names in corpus.labels.items()
    }


multitalent = Pool(
    "MultiTalent (Ulrich et al., 2023)",
    (
        Member("MSD_Liver", "003_Liver", number=3),
        Member("MSD_Lung", "006_Lung", number=6),
        Member("MSD_Pancreas", "007_Pancreas", number=7),
        Member("MSD_HepaticVessel", "008_HepaticVessel", number=8),
        Member("MSD_Spleen", "009_Spleen", number=9),
        Member("MSD_Colon", "010_Colon", number=10),
        Member("BTCV", "017_BTCV", number=17),
        Member("BTCV_TCIA", "046_BTCV2", number=46),
        Member("StructSeg19", "051_StructSeg19", number=51),
        Member("SegTHOR", "055_SegTHOR", number=55),
        Member("NIH_Pancreas", "062_NIHPancreas", number=62),
        Member("KiTS19", "064_KiTS19", number=64),
        Member("BTCV_Cervix", "018_BTCVCervix", number=18),
    ),
    share="per_corpus",
)

tsfm = Pool(
    "TSFM (Xie et al., 2024)",
    (
        Member("MSD_Liver"),
        Member("MSD_Lung"),
        Member("MSD_HepaticVessel"),
        Member("MSD_Colon"),
        Member("MSD_Pancreas"),
        Member("Breast_DCE"),
        Member("KiTS21"),
        Member("AMOS22_CT", cases=200, where="part=Tr", group="AMOS22"),
        Member("AMOS22_MR", cases=40, where="part=Tr", group="AMOS22"),
        Member("BTCV"),
        Member("TotalSegmentator_v1_organs"),
    ),
    renamed={"MSD_HepaticVessel/liver tumour": "tumour of the hepatic vessel set"},
)

tsfm_separate = dataclasses.replace(
    tsfm, title="TSFM with labels kept apart", share="per_corpus", renamed={}
)

TSFM_IDS = (
    "spleen",
    "right kidney",
    "left kidney",
    "gallbladder",
    "oesophagus",
    "liver",
    "stomach",
    "aorta",
    "inferior vena cava",
    "portal and splenic vein",
    "pancreas",
    "right adrenal gland",
    "left adrenal gland",
    "duodenum",
    "bladder",
    "prostate or uterus",
    "left lung upper lobe",
    "left lung lower lobe",
    "right lung upper lobe",
    "right lung middle lobe",
    "right lung lower lobe",
    "hepatic vessel",
    "kidney",
    "liver tumour",
    "lung tumour",
    "tumour of the hepatic vessel set",
    "colon cancer",
    "pancreas tumour",
    "breast tumour",
    "kidney tumour",
    "kidney cyst",
)
"""Unified id 1..31 -> class, in order."""


def tsfm_remap() -> dict[str, dict[int, int]]:
    """Member of the ten-set pool -> (original value -> unified id)."""
    table = {}
    for name in tsfm.names:
        owns = innermost(tsfm.corpus_of(name))
        table[name] = {
            int(v): TSFM_IDS.index(tsfm.renamed.get(f"{name}/{c}", c)) + 1
            for v, (c,) in owns.items()
        }
    return table


m4oe = Pool(
    "M4oE (Jiang and Shen, 2024), with AMOS MR",
    (
        Member("FLARE22"),
        Member("ATLAS23"),
        Member("AMOS22_CT", group="AMOS22"),
        Member("AMOS22_MR", group="AMOS22"),
    ),
    share="per_corpus",
    exclusive=True,
)
m4oe_ct = dataclasses.replace(
    m4oe.subset("FLARE22", "ATLAS23", "AMOS22_CT"),
    title="M4oE (Jiang and Shen, 2024), without AMOS MR",
)


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

mast_pro = Pool(
    "MAST-Pro, tumour tasks with public labels (2025)",
    tuple(
        Member(t.corpus, name.replace("-", "_"), annotated=(t.tumour,))
        for name, t in MAST_PRO_TASKS.items()
        if t.tumour
    ),
    share="per_corpus",
)

HEPATIC_SET_TUMOUR = "tumour of the hepatic vessel set"

mast_pro_stage1 = Pool(
    "MAST-Pro, pre-training of the backbone (2025)",
    (
        Member("BTCV"),
        Member("CT_ORG", annotated=("liver", "bladder", "lungs", "kidneys")),
        Member("BTCV_TCIA"),
        Member("CHAOS_CT"),
        Member("IRCADb"),
        Member("WORD"),
        Member("AMOS22_CT"),
        Member("AbdomenCT_1K"),
        Member("LiTS"),
        Member("KiTS21"),
        Member("MSD_Liver"),
        Member("MSD_Lung"),
        Member("MSD_Pancreas"),
        Member("MSD_HepaticVessel"),
        Member("MSD_Spleen"),
        Member("MSD_Colon"),
    ),
    renamed={
        "CT_ORG/kidneys": "kidney",
        "MSD_HepaticVessel/liver tumour": HEPATIC_SET_TUMOUR,
    },
)
"""32 classes. Of the Universal Model's template, left and right lung are one class here (only
CT-ORG has them), nobody annotates the celiac trunk, and two classes have no side: kidney and
adrenal glands."""

SEGVOL_PROSTATE = ("MSD_Prostate", "PROMISE12", "SAML", "T2W_Prostate")
SEGVOL_BRAIN = ("BraTS2021_FLAIR", "BraTS2021_T1", "BraTS2021_T1ce", "BraTS2021_T2")
SEGVOL_CT = (
    "CHAOS_CT",
    "M3D_0001_HaN_Seg",
    "M3D_0008_Pancreas_CT",
    "M3D_0020_MSD_Liver",
    "AMOS22_CT",
)
SEGVOL_MRI = ("CHAOS_T1in", "CHAOS_T1out", "CHAOS_T2", "AMOS22_MR", *SEGVOL_BRAIN, *SEGVOL_PROSTATE)
SEGVOL_RELEASED = (
    *SEGVOL_PROSTATE,
    *SEGVOL_BRAIN,
    "AMOS22_CT",
    "AMOS22_MR",
    "CHAOS_CT",
    "CHAOS_T1in",
    "CHAOS_T1out",
    "CHAOS_T2",
    "M3D_0018_MSD_Colon",
    "M3D_0020_MSD_Liver",
    "M3D_0022_MSD_Pancreas",
    "M3D_0023_MSD_Spleen",
)


def _segvol(title: str, names: tuple[str, ...]) -> Pool:
    return Pool(f"SegEVOLution, {title}", tuple(Member(name) for name in names))


segvol_ct, segvol_mri = _segvol("CT", SEGVOL_CT), _segvol("MR", SEGVOL_MRI)
segvol_all = _segvol("CT and MR", (*SEGVOL_CT, *SEGVOL_MRI))
segvol_mri_prostate, segvol_mri_brain = (
    _segvol("MR, prostate", SEGVOL_PROSTATE),
    _segvol("MR, brain", SEGVOL_BRAIN),
)
segvol_released400 = _segvol("what the released evaluation used", SEGVOL_RELEASED)

POOLS = {
    "multitalent": multitalent,
    "tsfm": tsfm,
    "tsfm_separate": tsfm_separate,
    "m4oe": m4oe,
    "m4oe_ct": m4oe_ct,
    "mast_pro": mast_pro,
    "mast_pro_stage1": mast_pro_stage1,
    "segvol_ct": segvol_ct,
    "segvol_mri": segvol_mri,
    "segvol_all": segvol_all,
    "segvol_mri_prostate": segvol_mri_prostate,
    "segvol_mri_brain": segvol_mri_brain,
    "segvol_released400": segvol_released400,
}
