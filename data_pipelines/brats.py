"""BraTS 2020 and 2021: glioma in four MR sequences.

python -m data_pipelines.brats --raw /downloads/brats --out /data/store --only BraTS2021
"""

import dataclasses

from data_pipelines.declare import UNKNOWN, Layout, PublicCorpus, Twin
from data_pipelines.ingest import main

SEQUENCES, NAMES = ("flair", "t1", "t1ce", "t2"), ("FLAIR", "T1", "T1ce", "T2")
NOTE = (
    "later years contain earlier ones; the organisers' mapping table comes with the data, case "
    "names are not derivable"
)


def _sequence(corpus: PublicCorpus, channel: int, name: str) -> PublicCorpus:
    """One sequence of a year as a corpus of its own, as promptable models take it; the patient
    stays the same.
    """
    layout = corpus.layouts[0]
    single = dataclasses.replace(
        layout, images=(layout.images[channel],), patient=f"{corpus.name}:{{case}}"
    )
    others = tuple(
        Twin(
            f"{corpus.name}_{n}",
            r"(BraTS2021_\d{5})",
            r"\1",
            note="another sequence of the patient",
        )
        for n in NAMES
        if n != name
    )
    whole = Twin(corpus.name, r"(BraTS2021_\d{5})", r"\1", note="all sequences of the patient")
    return dataclasses.replace(
        corpus,
        name=f"{corpus.name}_{name}",
        title=f"{corpus.title}, {name} alone",
        layouts=(single,),
        channels=(corpus.channels[channel],),
        twins=(*corpus.twins, whole, *others),
    )


def _year(
    year: int, folder: str, case: str, cases: int, others: tuple[str, ...], **fields
) -> PublicCorpus:
    return PublicCorpus(
        name=f"BraTS{year}",
        title=f"Brain Tumor Segmentation Challenge {year}",
        citation="Baid et al., The RSNA-ASNR-MICCAI BraTS 2021 Benchmark, arXiv:2107.02314; Menze "
        "et al., IEEE TMI 34(10) (2015); "
        "Bakas et al., Scientific Data 4, 170117 (2017)",
        licence=UNKNOWN + " (registration)",
        url="https://www.med.upenn.edu/cbica/brats2020/data.html"
        if year == 2020
        else "http://braintumorsegmentation.org",
        obtain="register with the challenge; the training data",
        layouts=(
            Layout(
                images=tuple(f"{folder}/{{case}}/{{case}}_{s}.nii*" for s in SEQUENCES),
                label=f"{folder}/{{case}}/*_*eg*.nii*",
                fields={"case": case},
            ),
        ),
        labels={1: "non-enhancing tumour core", 2: "oedema", 4: "enhancing tumour"},
        regions={"whole brain tumour": (1, 2, 4), "brain tumour core": (1, 4)},
        meanings={"non-enhancing tumour core": "necrosis and non-enhancing core"},
        modality="MR",
        channels=("FLAIR", "T1w", "T1gd", "T2w"),
        cases=cases,
        twins=tuple(Twin(other, note=NOTE) for other in others),
        **fields,
    )


BRATS2020 = _year(
    2020,
    "MICCAI_BraTS2020_TrainingData",
    r"BraTS20_Training_\d{3}",
    369,
    ("BraTS2021", "MSD_BrainTumour"),
    defects=(
        "the label of BraTS20_Training_355 is called W39_1998.09.19_Segm.nii",
        "TSFM counts 368 cases",
        "value 3 is not used: 1, 2, 4",
    ),
)
BRATS2021 = _year(
    2021,
    "BraTS2021_Training_Data",
    r"BraTS2021_\d{5}",
    1251,
    ("BraTS2020", "MSD_BrainTumour"),
    defects=(
        "value 3 is not used: 1, 2, 4",
        "2 is oedema and 4 enhancing tumour; some code has them swapped",
    ),
)
CORPORA = (
    BRATS2020,
    BRATS2021,
    *(_sequence(BRATS2021, channel, name) for channel, name in enumerate(NAMES)),
)

if __name__ == "__main__":
    main(CORPORA)
