"""CHAOS: liver in CT; liver, kidneys and spleen in MR (T1 in phase, T1 out of phase, T2-SPIR).

python -m data_pipelines.chaos --raw /downloads/CHAOS_Train_Sets --out /data/store
"""

from data_pipelines.declare import Layout, PublicCorpus, numbered
from data_pipelines.ingest import main

GREY = {
    "liver": (55, 70),
    "right kidney": (110, 135),
    "left kidney": (175, 200),
    "spleen": (240, 255),
}  # ranges of the grey PNG labels


def _grey(folder: str, ranges: dict[str, tuple[int, int]]) -> dict[str, str]:
    return {
        name: f"{folder}|value:{','.join(map(str, range(low, high + 1)))}"
        for name, (low, high) in ranges.items()
    }


def _part(suffix: str, title: str, layout: Layout, labels: dict, **fields) -> PublicCorpus:
    return PublicCorpus(
        name=f"CHAOS_{suffix}",
        title=f"Combined Healthy Abdominal Organ Segmentation, {title}",
        citation="Kavur et al., CHAOS Challenge - combined (CT-MR) healthy abdominal organ "
        "segmentation, Medical Image Analysis 69 (2021)",
        licence="CC BY-SA 4.0",
        url="https://zenodo.org/record/3431873",
        obtain="download and unpack CHAOS_Train_Sets.zip",
        layouts=(layout,),
        labels=labels,
        cases=20,
        **fields,
    )


def _mr(suffix: str, title: str, images: str, ground: str, channel: str) -> PublicCorpus:
    layout = Layout(
        images=(f"MR/{{number}}/{images}/",),
        masks=_grey(f"MR/{{number}}/{ground}/", GREY),
        fields={"number": r"\d+"},
        name="mr_{number}",
        patient="CHAOS-MR:{number}",
    )
    return _part(
        suffix,
        title,
        layout,
        numbered(*GREY),
        modality="MR",
        channels=(channel,),
        defects=(
            "grey PNG labels: 55-70 liver, 110-135 right kidney, 175-200 left kidney, 240-255 "
            "spleen",
            "three volumes of one patient: in phase and out of phase share one label; never split "
            "a patient",
            "MR patients are not the CT patients",
        ),
    )


CORPORA = (
    _part(
        "CT",
        "CT",
        Layout(
            images=("CT/{number}/DICOM_anon/",),
            masks={"liver": "CT/{number}/Ground/|value:1,255"},
            fields={"number": r"\d+"},
            name="ct_{number}",
            patient="CHAOS-CT:{number}",
        ),
        numbered("liver"),
        defects=(
            "only the liver is annotated",
            "some series are stored head first, others feet first: slices are paired with the "
            "PNGs by file order",
        ),
    ),
    _mr("T1in", "MR T1-DUAL in phase", "T1DUAL/DICOM_anon/InPhase", "T1DUAL/Ground", "T1 in-phase"),
    _mr(
        "T1out",
        "MR T1-DUAL out of phase",
        "T1DUAL/DICOM_anon/OutPhase",
        "T1DUAL/Ground",
        "T1 out-of-phase",
    ),
    _mr("T2", "MR T2-SPIR", "T2SPIR/DICOM_anon", "T2SPIR/Ground", "T2-SPIR"),
)

if __name__ == "__main__":
    main(CORPORA)
