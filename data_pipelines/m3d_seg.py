r"""M3D-Seg subsets: public corpora repackaged as arrays with sparse masks.

python -m data_pipelines.m3d_seg --raw /downloads/M3D_Seg --out /data/store \
  --only M3D_0020_MSD_Liver
"""

from data_pipelines.declare import UNKNOWN, Layout, PublicCorpus, Twin, numbered
from data_pipelines.han_seg import ORGANS as HAN_ORGANS
from data_pipelines.ingest import main

MOTHER = "repackaged from it; case names were never matched up"


def _subset(
    code: str,
    name: str,
    classes: tuple[str, ...],
    mother: tuple[str, ...],
    cases: int = 0,
    **fields,
) -> PublicCorpus:
    layout = Layout(
        images=(f"{code}/{{case}}/image.npy",),
        masks={c: f"{code}/{{case}}/mask_*.npz" for c in classes},
        index=f"{code}/{code}.json",
        fields={"case": r"[^/.]+"},
        aliases={stem: organ for stem, organ in HAN_ORGANS.items()} if code == "0001" else {},
        note="the order of the classes stands in the subset's JSON file and is read from there",
    )
    return PublicCorpus(
        name=f"M3D_{code}_{name}",
        title=f"M3D-Seg subset {code} ({name.replace('_', ' ')})",
        citation="Bai et al., M3D: Advancing 3D Medical Image Analysis with Multi-Modal Large "
        "Language Models, arXiv:2404.00578; and "
        "the source's",
        licence=UNKNOWN + " (a mixture: every subset keeps its source's terms)",
        url="https://huggingface.co/datasets/GoodBaiBai88/M3D-Seg",
        obtain=f"download and unpack M3D_Seg/{code}.zip",
        layouts=(layout,),
        labels=numbered(*classes),
        cases=cases,
        defects=(
            "intensities are already normalised by foreground percentiles: Hounsfield units are "
            "lost, so the channel is not CT",
            "arrays have no voxel size: give --spacing-mm if you know it, else 1 mm is taken",
            "no validation split; published 80/20 train and test lists",
        ),
        twins=tuple(Twin(m, note=MOTHER) for m in mother),
        channels=("M3D",),
        **fields,
    )


CORPORA = (
    _subset(
        "0000",
        "CHAOS",
        ("liver", "right kidney", "left kidney", "spleen"),
        ("CHAOS_CT", "CHAOS_T1in", "CHAOS_T2"),
    ),
    _subset("0001", "HaN_Seg", tuple(HAN_ORGANS.values()), ("HaN_Seg",)),
    _subset("0008", "Pancreas_CT", ("pancreas",), ("NIH_Pancreas",)),
    _subset("0018", "MSD_Colon", ("colon cancer",), ("MSD_Colon",)),
    _subset("0020", "MSD_Liver", ("liver", "liver tumour"), ("MSD_Liver", "LiTS")),
    _subset("0022", "MSD_Pancreas", ("pancreas", "pancreas tumour"), ("MSD_Pancreas",)),
    _subset("0023", "MSD_Spleen", ("spleen",), ("MSD_Spleen",)),
)

if __name__ == "__main__":
    main(CORPORA)
