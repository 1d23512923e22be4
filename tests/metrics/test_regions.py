"""Unions of classes and classes without what is nested in them, scored beside the classes."""

import json

import numpy as np
import pytest

from medjax import cli
from medjax.corpora.inputs import Case
from medjax.errors import LabelError, UsageError
from medjax.labels import Corpus
from medjax.metrics import regions
from medjax.metrics.result import Result
from medjax.scans.paths import Mask
from tests.support.raw import save

BRATS = Corpus("B", ((1, ("core",)), (2, ("oedema",)), (4, ("enhancing",))))
KITS = Corpus("K", ((1, ("kidney",)), (2, ("kidney", "tumour")), (3, ("kidney", "cyst"))))
WHOLE = {"whole": ("core", "oedema", "enhancing"), "inner": ("core", "enhancing")}


def test_a_region_is_the_union_of_its_classes():
    found, names = regions.extended(BRATS, WHOLE)
    assert names == ("whole", "inner") and found.annotated == BRATS.annotated
    assert found.ids_of("whole") == (1, 2, 3) and found.ids_of("inner") == (1, 3)
    assert found.values == BRATS.values
    assert regions.extended(KITS, WHOLE) == (KITS, ())  # it has none of the classes


def test_alone_is_what_a_label_map_stores_under_the_name():
    found, names = regions.extended(KITS, {}, alone=True)
    assert names == ("kidney alone",) and found.ids_of("kidney alone") == (1,)
    assert regions.extended(BRATS, {}, alone=True) == (BRATS, ())  # nothing is nested


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"whole": ("core", "edema")}, "unites an unknown class 'edema'.*did you mean oedema"),
        ({"core": ("core", "oedema")}, "is a class already"),
        ({"all": ("core",)}, "is a class already"),
        ({"a": ("core", "oedema"), "b": ("oedema", "core")}, "is a class already"),
    ],
)
def test_unusable_regions_are_refused(wanted, message):
    with pytest.raises(LabelError, match=message):
        regions.extended(BRATS, wanted)


def test_a_run_refuses_regions_that_it_could_not_score():
    with pytest.raises(UsageError, match="no corpus has the classes of region 'w'"):
        regions.check([BRATS], {}, {"w": ("spleen",)})
    masked = Case("a", ("a.nii.gz",), None, "B", masks=(Mask("m.nii.gz", "core"),))
    with pytest.raises(UsageError, match="mask per class"):
        regions.check([BRATS], {"B": [masked]}, WHOLE)
    regions.check([BRATS, KITS], {"B": []}, WHOLE)


def test_the_command_scores_them_apart(tmp_path):
    """Prediction and reference swap two classes: no class is right, their union is."""
    labels = {"background": 0, "kidney": [1, 2], "tumour": 2}
    fields = {"labels": labels, "regions_class_order": [1, 2], "channel_names": {"0": "CT"}}
    (tmp_path / "dataset.json").write_text(json.dumps(fields | {"file_ending": ".nii.gz"}))
    reference = np.zeros((4, 4, 4), np.uint8)
    reference[:2], reference[2] = 1, 2
    prediction = np.where(reference == 2, 1, 0).astype(np.uint8) + 2 * (reference == 1)
    for folder, array in (("truth", reference), ("masks", prediction.astype(np.uint8))):
        (tmp_path / folder).mkdir()
        save(tmp_path / folder / "a.nii.gz", array)
    command = ["evaluate", "--reference", str(tmp_path / "truth"), "--no-report", "--quiet"]
    command += ["--prediction", str(tmp_path / "masks"), "--no-surface", "--resamples", "10"]
    command += ["--alone", "-o", str(tmp_path / "out")]
    assert cli.main(command) == 0
    cells = Result.load(tmp_path / "out").tables["cells"]
    (row,) = cells.values()
    assert row["kidney"]["Dice"]["mean"] == 1.0 and row["tumour"]["Dice"]["mean"] == 0.0
    assert row["kidney alone"]["Dice"]["mean"] == 0.0
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["foreground_mean"]["Dice"] == 0.5 and len(summary["apart"]) == 1
