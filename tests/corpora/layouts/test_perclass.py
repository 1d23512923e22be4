"""One mask per class: whether folders are cases or classes, and what is incomplete."""

import numpy as np
import pytest

from medjax.corpora.layouts import perclass
from tests.support.raw import save


def write(folder, *names):
    for name in names:
        save(folder / f"{name}.nii.gz", np.ones((2, 3, 4), np.uint8))


def test_case_folders(tmp_path):
    for name in ("s1", "s2"):
        write(tmp_path / name, "ct", "segmentations/liver", "segmentations/spleen")
    write(tmp_path / "s3", "ct")
    write(tmp_path / "s4", "masks/liver", "masks/spleen")
    write(tmp_path / "s5", "ct", "pet", "segs/liver", "segs/spleen")
    assert perclass.detect(tmp_path)
    corpus, cases, problems = perclass.scan(tmp_path)
    assert (corpus.channels, corpus.modality) == (("CT",), "CT")
    assert [(c.name, [m.name for m in c.masks]) for c in cases] == [
        ("s1", ["liver", "spleen"]),
        ("s2", ["liver", "spleen"]),
    ]
    assert [p.message for p in problems] == [
        "case 's3' has no masks",
        "case 's4' has no image",
        "case 's5' has other images than the rest",
    ]


@pytest.mark.parametrize("form", ["masks/{case}/{name}", "masks/{name}/{case}"])
def test_images_and_masks_apart(tmp_path, form):
    write(tmp_path / "images", "a", "b")
    for case in ("a", "c"):
        write(tmp_path, *(form.format(case=case, name=n) for n in ("liver", "gtv")))
    assert perclass.detect(tmp_path)
    corpus, [case], problems = perclass.scan(tmp_path)
    assert case.name == "a" and [m.name for m in case.masks] == ["gtv", "liver"]
    assert {p.message for p in problems} == {"masks of 'c' have no image", "case 'b' has no masks"}
    # both masks hold every voxel: classes by themselves and their overlap
    assert corpus.labels == ((0, ()), (1, ("gtv",)), (2, ("liver",)), (3, ("gtv", "liver")))


def test_what_it_is_not(tmp_path):
    write(tmp_path / "images", "a")
    write(tmp_path / "labels", "a")  # label maps, no masks by class
    assert not perclass.detect(tmp_path) and not perclass.detect(tmp_path / "none")
