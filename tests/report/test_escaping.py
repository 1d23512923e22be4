"""Names from files stay text: a page with hostile names has the elements of one with plain names.

Class, corpus, case, group and model names, messages of failures, and what the documents of a
prediction say. Compared are all elements and the names of their attributes, as a browser's parser
would find them.
"""

import json
from html.parser import HTMLParser

import numpy as np
import pytest

from medjax.infer import owned
from medjax.labels import Corpus
from medjax.metrics.aggregate import Row
from medjax.metrics.compare import compare
from medjax.metrics.counts import Counts
from medjax.metrics.result import Pair, build_result
from medjax.report import prediction, prompted
from tests.report.test_pages import save

EVIL = """x"'><script>alert(1)</script><img src=x onerror=alert(2)>"""
SETTINGS = {"surface": False, "tolerance_mm": None, "definition": None}


class Structure(HTMLParser):
    """The elements of a page with the names of their attributes, in order."""

    def __init__(self, page):
        super().__init__()
        self.found, self.texts = [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, [name for name, _ in attrs]))

    def handle_data(self, data):
        self.texts.append(data)


def scored(tmp_path, name, second):
    """An evaluation of two corpora and classes, with a case that failed, as a page."""
    names = (name.replace("/", ""), second.replace("/", ""))  # of corpora, which are folders
    corpora = {corpus: Corpus(corpus, ((1, (name,)), (2, (second,)))) for corpus in names}
    rows, better, pairs = [], [], []
    for corpus in corpora:
        for k in range(3):
            case = f"{name}{k}"
            pairs.append((corpus, Pair(case, f"r/{k}.nii.gz", f"p/{k}.nii.gz")))
            for label, dice in ((name, 0.5 + k / 10), (second, 0.0 if k else 0.7)):
                scores = {"volume_error_ml": 1.0, "Dice": dice}
                status = "found" if dice else "missed"
                counts = Counts(10, 5, 5, 80)
                rows.append(Row(case, case, corpus, label, status, scores, counts, 0.1))
                better.append(Row(case, case, corpus, label, status, scores, counts, 0.1))
    classes = dict.fromkeys(corpora, (name, second))
    failed = [{"corpus": name, "case": name, "message": name, "path": name, "fix": name}]
    groups = {name: (f"{names[0]}/{name}",)}
    first, other = (
        build_result(corpora, classes, each, pairs, failed, [name], SETTINGS, groups, 50, 0)
        for each in (rows, better)
    )
    found = compare(first, other, names=(name, second), resamples=50)
    asked = {
        "rows": {"text": {"dice": cell(name) | {"cells": {name: {name: cell(name)}}}, "empty": 0}},
        "clicks": {},
        "absent": {name: {second: {"n": 2, "found_in": 1, "ml": 1.0, "most": 2.0}}},
        "confusion": {
            "right_minus_wrong": None,
            "corpora": {name: {"classes": [name, second], "dice": [[0.5, None], [0.1, 0.9]]}},
        },
        "compared": {"name": name, "rows": {"text": cell(name)}},
        "without_text": {name: [second]},
        "settings": {"weights": name},
    }
    folder = tmp_path / "scores"
    folder.mkdir()
    (folder / prompted.NUMBERS).write_text(json.dumps(asked | owned.mark(prompted.KIND)))
    (folder / "worst.png").write_bytes(b"PNG")
    return prediction.evaluation_report(
        first, folder, comparison=found, pictures_of=[(name, folder / "worst.png")], cases=2
    )


def cell(_):
    return {"mean": 0.5, "interval": None, "n": 3}


def predicted(tmp_path, name, second):
    """A folder of predictions as a page."""
    folder = tmp_path / "masks"
    mask = np.zeros((4, 12, 10), np.uint8)
    mask[1:3, 3:9, 2:7] = 1
    case = name.replace("/", "")
    image = save(tmp_path / "scans" / f"{case}.nii.gz", mask.astype(np.float32))
    save(folder / f"{case}.nii.gz", mask)
    sizes = {"voxels": 60, "volume_ml": 1.0, "mean_intensity": [100.0]}
    side = {
        "labels": {"1": name, "2": second},
        "classes": {name: sizes, second: sizes},
        "images": [image],
        "warnings": [name],
    }
    (folder / f"{case}.json").write_text(json.dumps(side))
    (folder / f"{case}.png").write_bytes(b"PNG")
    manifest = {
        "cases": {case: {"inputs": {image: "0"}, "outputs": [name], "seconds": {"load": 1.0}}},
        "failed": [{"case": name, "message": name, "found": name, "fix": name}],
        "device": name,
        "corpus": name,
        "model": name,
        "versions": {name: name},
    }
    (folder / "run.json").write_text(json.dumps(manifest))
    return prediction.prediction_report(folder)


@pytest.mark.parametrize("make", [scored, predicted])
def test_hostile_names_add_no_element_and_no_attribute(make, tmp_path):
    structures = []
    for name, second in (("plain", "second"), (EVIL, EVIL + "2")):
        folder = tmp_path / second[0]
        folder.mkdir()
        structures.append(Structure(make(folder, name, second).read_text(encoding="utf-8")))
    plain, hostile = structures
    assert hostile.found == plain.found
    assert sum("alert(1)" in text for text in hostile.texts) > 5  # they are shown, as text
    assert {"table", "svg", "script"} & {tag for tag, _ in plain.found} >= {"table", "script"}
