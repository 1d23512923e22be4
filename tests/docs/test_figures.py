"""The figures of the pages are made by code, from what they claim to show."""

import json
import re

import matplotlib.image
import nibabel as nib
import numpy as np
import pytest

from docs.figures import demo, partial_labels, report
from medjax.corpora.cases import load
from medjax.corpora.sources import read_corpus
from medjax.phantom.corpora import write_corpora
from tests.support import browser


@pytest.mark.slow
def test_the_figure_of_partial_labels_is_drawn_and_its_gradients_are_as_it_says(tmp_path):
    slope = partial_labels.draw(tmp_path / "new" / "figure.png", "tiny")
    picture = matplotlib.image.imread(tmp_path / "new" / "figure.png")
    assert picture.shape[0] > 400 and picture[..., :3].std() > 0.1
    assert slope.shape == (3, 14)
    assert (slope > 0).sum(1).tolist() == [12, 2, 2]  # classes that each corpus annotates
    assert np.allclose(slope[slope > 0], 0.5, atol=1e-3)


@pytest.mark.slow
def test_the_first_picture_shows_scan_annotation_and_prediction(tmp_path):
    """A run whose predictions are the annotations: second and third column are alike."""
    run = tmp_path / "run"
    with pytest.raises(SystemExit, match="no predictions of phantoms"):
        (run / "phantoms").mkdir(parents=True)
        demo.draw(run, tmp_path / "picture.png")
    for folder in write_corpora(run / "phantoms", cases=1, size="tiny"):
        corpus, cases = read_corpus(folder)
        scan, ids = load(cases[0], corpus)
        place = run / "predictions" / corpus.name
        place.mkdir(parents=True)
        mask = nib.Nifti1Image(corpus.to_raw(ids).T, scan.affine)
        nib.save(mask, place / f"{cases[0].name}.nii.gz")
    rows = list(demo.cases(run))
    assert [corpus.name for corpus, *_ in rows] == ["PhantomCT", "PhantomMR", "PhantomCE"]
    assert all((reference == predicted).all() for _, _, reference, predicted in rows)
    demo.draw(run, tmp_path / "picture.png")
    assert matplotlib.image.imread(tmp_path / "picture.png")[..., :3].std() > 0.05


def test_the_marks_of_the_report_are_explained_in_their_order(repository):
    text = (repository / "docs/report.md").read_text()
    numbers = [int(n) for n in re.findall(r"^(\d+)\. \*\*", text, re.M)]
    assert numbers == list(range(1, len(report.MARKS) + 1))
    made = report.marked("<html><body><p>a</body></html>")
    assert made.index("<p>a") < made.index("const mark") < made.index("</body>")
    assert json.dumps(list(report.MARKS)).strip("[]").split('", "')[0].strip('"') in made
    with pytest.raises(ValueError, match="no body"):
        report.marked("nothing")


def test_the_marked_elements_are_on_the_page_of_an_evaluation(repository):
    """Names of sections, and of what is inside them, in the code that writes the page."""
    code = "".join(p.read_text() for p in (repository / "medjax/report").glob("*.py"))
    for mark in report.MARKS:
        for word in re.findall(r"[.#](\w+)", mark):
            assert f'"{word}"' in code, mark


@pytest.mark.slow
def test_the_marks_appear_in_a_browser(tmp_path):
    if browser.executable() is None:
        pytest.skip("no chromium")
    inside = "".join(
        f'<section id="{name}"><div class="{kind}">x</div></section>'
        for name, kind in (("a", "facts"),)
    )
    for name in ("scores", "viewer", "plots", "cases", "worst"):
        inside += f'<section id="{name}"><div class="scroll controls" id="stage">x</div>'
        inside += "<figure>y</figure></section>"
    (tmp_path / "page.html").write_text(report.marked(f"<html><body>{inside}</body></html>"))
    with browser.Page(tmp_path / "page.html", tmp_path / "profile") as opened:
        shown = "[...document.querySelectorAll('.mark')].map(e => e.textContent).join()"
        assert opened.wait_for(shown) == "1,2,3,4,5,6,7"
