"""Reports: complete in one file, nothing can break out of their texts, and the viewer really draws
in a browser.
"""

import base64
import gzip
import hashlib
import json
import re
from html.parser import HTMLParser

import matplotlib.image
import nibabel as nib
import numpy as np
import pytest

from medjax import cli
from medjax.errors import UsageError
from medjax.infer.cases import Result as prediction_result
from medjax.report import page, viewer
from medjax.report import prediction as html
from medjax.runs import predict
from tests.support import browser

AFFINE = np.array([[-2.0, 0, 0, 30], [0, 1.0, 0, -20], [0, 0, 1.5, 5], [0, 0, 0, 1]])
EVIL = "</script><img src=x onerror=alert(1)>"


def save(path, array, affine=AFFINE):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array.transpose(2, 1, 0), affine), path)
    return str(path)


@pytest.fixture
def predicted(tmp_path):
    """A folder as `medjax predict` leaves it: two good cases, one failure, and names that try to
    break the page.
    """
    folder = tmp_path / "out & more"
    manifest = {
        "cases": {},
        "failed": [{"case": EVIL, "message": "truncated gzip"}],
        "device": "cpu",
        "corpus": "Phantom",
        "versions": {"jax": "1"},
    }
    for k, name in enumerate(("one", "two")):
        rng = np.random.default_rng(k)
        scan = rng.normal(100, 10, (12, 40, 30)).astype(np.float32)
        mask = np.zeros(scan.shape, np.uint8)
        mask[3:9, 10:30, 5:20], mask[5:7, 15:25, 8:14] = 1, 6
        scan[mask > 0] += 60
        image = save(tmp_path / "scans" / f"{name}.nii.gz", scan)
        save(folder / f"{name}.nii.gz", mask)
        classes = {
            "liver": {"voxels": int((mask == 1).sum()), "volume_ml": (mask == 1).sum() * 3e-3},
            EVIL: {"voxels": 0, "volume_ml": 0.0},
        }
        side = {
            "labels": {"1": "liver", "6": EVIL},
            "classes": classes,
            "images": [image],
            "files": [f"{name}.nii.gz"],
        }
        (folder / f"{name}.json").write_text(json.dumps(side))
        manifest["cases"][name] = {
            "inputs": {image: "0"},
            "outputs": [f"{name}.nii.gz"],
            "seconds": {"load": 0.25, "predict": 1.25},
        }
    (folder / "run.json").write_text(json.dumps(manifest))
    return folder


class _Elements(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found, self.scripts, self._inside = [], {}, None

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        self._inside = dict(attributes).get("id", "") if tag == "script" else self._inside

    def handle_endtag(self, tag):
        self._inside = None if tag == "script" else self._inside

    def handle_data(self, text):
        if self._inside is not None:
            self.scripts[self._inside] = self.scripts.get(self._inside, "") + text


def parsed(path):
    elements = _Elements()
    elements.feed(path.read_text(encoding="utf-8"))
    return elements


def test_a_prediction_report_is_complete_and_cannot_be_broken(predicted):
    path = html.prediction_report(predicted)
    assert path == predicted / "report.html" and not [
        p for p in predicted.iterdir() if p.name.endswith(".tmp")
    ]
    elements = parsed(path)
    assert not any(
        tag == "img" and attributes.get("src") == "x" for tag, attributes in elements.found
    )  # texts stay texts
    outside = [
        v
        for tag, a in elements.found
        for k, v in a.items()
        if k in ("src", "href") and not v.startswith(("#", "data:"))
    ]
    assert outside == []  # nothing to fetch
    assert [scan["key"] for scan in json.loads(elements.scripts["scans"])] == ["one", "two"]
    scan = json.loads(elements.scripts["scan-0"])
    assert [label["name"] for label in scan["layers"]["prediction"]["labels"]] == ["liver", EVIL]
    visible = re.sub(r"<script.*?</script>", "", path.read_text(), flags=re.S)
    assert "truncated gzip" in visible and f"{(6 * 20 * 15 - 2 * 10 * 6) * 3e-3:.4g}" in visible


def test_what_the_viewer_gets_is_the_scan(predicted, tmp_path):
    shown = viewer.Shown(
        "a",
        "a",
        (str(tmp_path / "scans" / "one.nii.gz"),),
        None,
        str(predicted / "one.nii.gz"),
        {1: "liver", 6: "cyst"},
    )
    made = viewer.payload(shown, 10**9)
    decoded = {}
    for name, text in {
        "image": made["image"],
        "mask": made["layers"]["prediction"]["data"],
    }.items():
        (tmp_path / f"{name}.nii.gz").write_bytes(base64.b64decode(text))
        decoded[name] = nib.as_closest_canonical(nib.load(tmp_path / f"{name}.nii.gz"))
    original = nib.as_closest_canonical(nib.load(tmp_path / "scans" / "one.nii.gz"))
    mask = np.asarray(nib.as_closest_canonical(nib.load(predicted / "one.nii.gz")).dataobj)
    assert np.allclose(decoded["image"].affine, original.affine) and np.allclose(
        decoded["mask"].affine, original.affine
    )
    assert np.array_equal(
        np.asarray(decoded["mask"].dataobj), np.select([mask == 1, mask == 6], [1, 2])
    )
    grey = original.get_fdata()
    low, high = np.percentile(grey, (0.1, 99.9))
    assert (
        np.abs(decoded["image"].get_fdata() - np.clip(grey, low, high)).max()
        <= (high - low) / 255 / 2 * 1.01
    )  # 8 bits
    x, y, z = np.linalg.inv(original.affine)[:3] @ [*made["focus"], 1]
    assert mask[round(x), round(y), round(z)] > 0 and made["note"] == ""


def test_the_first_window_suits_the_modality(tmp_path):
    values = np.linspace(0, 100, 6 * 8 * 8).reshape(6, 8, 8).astype(np.float32)
    for name, scan, expected in (
        ("mr", values, [1.0, 99.0]),
        ("ct", values * 20 - 1000, [-160.0, 240.0]),
        ("flat", values * 0, [0.0, 1.0]),
    ):
        image, mask = (
            save(tmp_path / f"{name}.nii.gz", scan),
            save(tmp_path / "mask.nii.gz", np.ones(scan.shape, np.uint8)),
        )
        assert viewer.payload(viewer.Shown("a", "a", (image,), None, mask, {1: "a"}), 10**9)[
            "window"
        ] == pytest.approx(expected, abs=0.1)


def test_large_scans_are_cropped_and_coarsened_and_the_page_says_so(tmp_path):
    scan, mask = np.zeros((40, 60, 60), np.float32), np.zeros((40, 60, 60), np.uint8)
    mask[20:22, 30:50, 30:50] = 1
    scan[mask > 0] = 7
    image, label = (
        save(tmp_path / "s.nii.gz", scan, np.diag([1.0, 1, 3, 1])),
        save(tmp_path / "m.nii.gz", mask, np.diag([1.0, 1, 3, 1])),
    )
    made = viewer.payload(viewer.Shown("a", "a", (image,), label, label, {1: "liver"}), 4000)
    assert (
        "cropped" in made["note"]
        and "mm" in made["note"]
        and set(made["layers"]) == {"reference", "prediction", "differences"}
    )
    (tmp_path / "small.nii.gz").write_bytes(base64.b64decode(made["layers"]["reference"]["data"]))
    small = nib.load(tmp_path / "small.nii.gz")
    assert np.prod(small.shape) <= 4000 and small.header.get_zooms()[0] > 1.5
    where = small.affine @ [*np.argwhere(np.asarray(small.dataobj) > 0).mean(0), 1]
    assert (
        np.abs(where[:3] - [39.5, 39.5, 20.5 * 3]).max() <= 3.0
    )  # the middle of the box, to a voxel


def test_the_viewer_is_the_one_that_was_checked_in():
    source = gzip.decompress(page.asset("niivue.umd.js.gz"))
    assert (
        hashlib.sha256(source).hexdigest() == page.NIIVUE_SHA256
        and page.NIIVUE_SHA256 in page.asset("README.md").decode()
    )
    assert len(page.asset("niivue.umd.js.gz")) < 2e6 and b"BSD 2-Clause" in page.asset(
        "LICENSES.txt"
    )


def test_a_folder_without_a_prediction_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match=r"run\.json"):
        html.prediction_report(tmp_path)


def test_a_damaged_scan_is_named_and_the_rest_is_shown(predicted, tmp_path):
    victim = tmp_path / "scans" / "one.nii.gz"
    victim.write_bytes(victim.read_bytes()[:200])
    elements = parsed(path := html.prediction_report(predicted))
    assert [scan["key"] for scan in json.loads(elements.scripts["scans"])] == [
        "two"
    ] and "Cannot be shown" in path.read_text()


def test_predict_leaves_a_page_and_statistics_of_all_its_calls(predicted, monkeypatch):
    side = json.loads((predicted / "one.json").read_text())
    side["classes"]["liver"]["mean_intensity"] = [163.25, 7.0]
    (predicted / "one.json").write_text(json.dumps(side))
    manifest = json.loads((predicted / "run.json").read_text())
    first, second = (
        {**manifest, "cases": {name: manifest["cases"][name]}, "failed": []}
        for name in ("one", "two")
    )
    (predicted / "run_part0of2.json").write_text(json.dumps(first))
    (predicted / "run_part1of2.json").write_text(
        json.dumps(second | {"failed": [{"case": "three", "message": "not NIfTI"}]})
    )
    (predicted / "run.json").unlink()
    done = prediction_result(ok=["one"], failed=[], skipped=["two"])
    monkeypatch.setattr(predict, "predict", lambda *arguments, **options: done)
    assert (
        cli.main(
            ["predict", "-m", "run", "-i", "scans", "-o", str(predicted), "--quiet", "--no-html"]
        )
        == 0
    )
    assert not (predicted / "report.html").exists()
    assert cli.main(["predict", "-m", "run", "-i", "scans", "-o", str(predicted), "--quiet"]) == 0
    assert [
        scan["key"] for scan in json.loads(parsed(predicted / "report.html").scripts["scans"])
    ] == ["one", "two"]
    visible = re.sub(
        r"<script.*?</script>", "", (predicted / "report.html").read_text(), flags=re.S
    )
    assert "163.2" in visible and "not NIfTI" in visible
    (predicted / "run_part0of2.json").write_text(
        "{"
    )  # a broken manifest costs the page, not the prediction
    assert cli.main(["predict", "-m", "run", "-i", "scans", "-o", str(predicted), "--quiet"]) == 0


@pytest.mark.slow
def test_the_viewer_draws_scan_and_masks_without_a_network(predicted, tmp_path):
    if browser.executable() is None:
        pytest.skip("no chromium")
    with browser.Page(html.prediction_report(predicted), tmp_path / "profile") as opened:
        assert opened.wait_for("document.documentElement?.dataset.viewer") == "ready"
        pictures = [
            matplotlib.image.imread(opened.screenshot(tmp_path / "masks.png", "#stage"))[..., :3]
        ]
        opened.evaluate(
            "const layer = document.getElementById('layer'); layer.value = 'none'; "
            "layer.dispatchEvent(new Event('input'))"
        )
        pictures.append(
            matplotlib.image.imread(opened.screenshot(tmp_path / "bare.png", "#stage"))[..., :3]
        )
        opened.evaluate("document.querySelector('button[data-case=two]').click()")
        opened.wait_for("document.getElementById('scan').value === '1'")
        opened.evaluate("document.querySelector('th.sortable').click()")
        assert opened.console == []
        assert [
            address
            for address in opened.requested
            if not address.startswith(("file:", "data:", "blob:"))
        ] == []
    coloured = [(np.ptp(p, -1) > 0.15).mean() for p in pictures]
    grey = ((np.ptp(pictures[1], -1) < 0.02) & (pictures[1][..., 0] > 0.25)).mean()
    assert (
        coloured[0] > 0.03 and coloured[1] < 0.002 and grey > 0.2
    )  # the masks come and go over the scan
