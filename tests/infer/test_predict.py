"""Many cases: isolation, headers, files, continuation, manifest."""

import gzip
import hashlib
import json

import jax.numpy as jnp
import nibabel as nib
import numpy as np
import pytest

from medjax.corpora.inputs import Case
from medjax.errors import LabelError, UsageError
from medjax.infer import write
from medjax.infer.cases import Files, predict_cases
from medjax.infer.model import Model
from medjax.infer.segmenter import Segmenter
from medjax.labels import Corpus, merge
from medjax.prepare.plan import Intensity, Plan
from medjax.prompts.request import Request
from medjax.scans import nifti

CORPUS = Corpus("Liver", ((1, ("liver",)), (2, ("liver", "tumour"))), channels=("CT",))
OTHER = Corpus("Spleen", ((7, ("spleen",)),))
PLAN = Plan({"Liver": (2.0, 1.0, 1.0), "Spleen": (2.0, 1.0, 1.0)}, {"CT": Intensity("nonorm")})


@pytest.fixture(scope="module")
def predictor():
    def apply(params, image, context):
        return {"logits": (image - params) * 20.0}

    space = merge([CORPUS, OTHER])
    return Segmenter(Model(apply, jnp.array([0.5, 1.5, 2.5], jnp.float32), PLAN, space, (6, 8, 8)))


@pytest.fixture
def cases(tmp_path):
    """Three scans with unusual headers; the second is cut in half."""
    found = []
    for i, shape in enumerate([(8, 10, 9), (9, 9, 9), (4, 12, 7)]):
        array = np.zeros(shape)
        array[1:-1, 1:-1, 1:-1] = 1
        array[2, 3, 4] = 2
        turn = np.array(
            [
                [0.0, -1.0, 0, 20],
                [0.9781476, 0, 0.2079117, -3],
                [-0.2079117, 0, 0.9781476, 4],
                [0, 0, 0, 1],
            ]
        )
        image = nib.Nifti1Image(array.T.astype(np.int16), turn @ np.diag([1.0, 1.0, 2.0, 1.0]))
        image.set_sform(image.affine, 2)
        image.set_qform(image.affine, 3)
        image.header.set_xyzt_units("mm", "sec")
        image.header.set_slope_inter(2.0, 0.0)
        path = tmp_path / "in" / f"case {i};$().nii.gz"
        path.parent.mkdir(exist_ok=True)
        nib.save(image, path)
        found.append(Case(f"case{i}", (str(path),)))
    content = open(found[1].images[0], "rb").read()
    open(found[1].images[0], "wb").write(content[: len(content) // 2])
    return found


def test_one_broken_case_leaves_two_masks_and_one_record(predictor, cases, tmp_path):
    told = []
    result = predict_cases(
        predictor,
        cases,
        tmp_path / "out",
        Request("Liver"),
        progress=lambda *event: told.append(event),
    )
    assert result.ok == ["case0", "case2"] and result.skipped == []
    (record,) = result.failed
    assert (
        record["case"] == "case1"
        and "truncated gzip" in record["message"]
        and record["path"] == cases[1].images[0]
    )
    assert told == [
        (1, 3, "case0", "predicted"),
        (2, 3, "case1", "failed"),
        (3, 3, "case2", "predicted"),
    ]
    names = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert names == ["case0.json", "case0.nii.gz", "case2.json", "case2.nii.gz", "run.json"]


def test_masks_keep_the_header_of_the_scan(predictor, cases, tmp_path):
    predict_cases(predictor, cases[::2], tmp_path / "out", Request("Liver"))
    for case in cases[::2]:
        source, mask = nib.load(case.images[0]), nib.load(tmp_path / "out" / f"{case.name}.nii.gz")
        assert mask.shape == source.shape and np.array_equal(mask.affine, source.affine)
        for field in (
            "pixdim",
            "qform_code",
            "sform_code",
            "quatern_b",
            "qoffset_x",
            "srow_x",
            "srow_y",
            "srow_z",
            "xyzt_units",
        ):
            assert np.array_equal(mask.header[field], source.header[field]), field
        assert mask.get_data_dtype() == np.uint8 and mask.header.get_slope_inter() in (
            (None, None),
            (1.0, 0.0),
        )
        values = np.asarray(source.dataobj)
        assert np.array_equal(
            np.asarray(mask.dataobj), np.where(values > 1.5, 2, np.where(values > 0.5, 1, 0))
        )
        assert nifti.label_names(tmp_path / "out" / f"{case.name}.nii.gz") == {
            1: "liver",
            2: "tumour",
        }


def test_sidecar_and_manifest(predictor, cases, tmp_path):
    predict_cases(predictor, cases, tmp_path / "out", Request("Liver"))
    sidecar = json.loads((tmp_path / "out" / "case0.json").read_text())
    assert (
        sidecar["labels"] == {"1": "liver", "2": "tumour"}
        and sidecar["corpus"] == "Liver"
        and list(sidecar["files"]) == ["case0.nii.gz"]
    )
    voxels = int((np.asarray(nib.load(cases[0].images[0]).dataobj) > 0.5).sum())
    assert sidecar["classes"]["liver"] == {
        "voxels": voxels,
        "volume_ml": pytest.approx(voxels * 2 / 1000),
    }
    manifest = json.loads((tmp_path / "out" / "run.json").read_text())
    assert list(manifest["cases"]) == ["case0", "case2"] and [
        f["case"] for f in manifest["failed"]
    ] == ["case1"]
    digest = hashlib.sha256(open(cases[0].images[0], "rb").read()).hexdigest()
    assert manifest["cases"]["case0"]["inputs"] == {cases[0].images[0]: digest}
    assert (
        manifest["cases"]["case0"]["outputs"] == ["case0.nii.gz", "case0.json"]
        and manifest["cases"]["case0"]["seconds"]["predict"] > 0
    )
    assert {"jax", "numpy", "python"} <= set(manifest["versions"]) and manifest["settings"][
        "window"
    ] == [6, 8, 8]


def test_one_file_per_class_and_probabilities(predictor, cases, tmp_path):
    out = tmp_path / "out"
    predict_cases(
        predictor,
        cases[:1],
        out,
        Request("Liver"),
        files=Files(one_file_per_class=True, probabilities=True),
    )
    assert sorted(p.name for p in (out / "case0").iterdir()) == [
        "liver.nii.gz",
        "spleen.nii.gz",
        "tumour.nii.gz",
    ]
    values = np.asarray(nib.load(cases[0].images[0]).dataobj)
    liver = nib.load(out / "case0" / "liver.nii.gz")
    assert np.array_equal(
        np.asarray(liver.dataobj) > 0, values > 0.5
    )  # overlaps the tumour, unlike in the label map
    with np.load(out / "case0_prob.npz", allow_pickle=False) as found:
        assert set(found) == {"liver", "tumour", "spleen"} and found["liver"].dtype == np.float16
        assert found["liver"].shape == values.T.shape
        assert np.array_equal(found["liver"].T > 0.5, values > 0.5)
        assert found["liver"].T[values == 0].max() < 1e-3
    assert json.loads((out / "case0.json").read_text())["files"]["case0/liver.nii.gz"] > 352


def test_continue_trusts_complete_cases_only(predictor, cases, tmp_path):
    out, told = tmp_path / "out", []
    cases = cases[::2]
    predict_cases(predictor, cases, out, Request("Liver"))
    before = {p.name: p.stat().st_mtime_ns for p in out.glob("*.nii.gz")}
    (out / "case2.json").unlink()  # killed before the sidecar
    (out / ".case2.nii.gz.1-abc.tmp").write_bytes(b"half")
    result = predict_cases(
        predictor,
        cases,
        out,
        Request("Liver"),
        continue_=True,
        progress=lambda *event: told.append(event),
    )
    assert (result.ok, result.skipped) == (["case2"], ["case0"])
    assert told == [(1, 2, "case0", "complete"), (2, 2, "case2", "predicted")]
    after = {p.name: p.stat().st_mtime_ns for p in out.glob("*.nii.gz")}
    assert (
        after["case0.nii.gz"] == before["case0.nii.gz"]
        and after["case2.nii.gz"] > before["case2.nii.gz"]
    )
    assert list(json.loads((out / "run.json").read_text())["cases"]) == ["case0", "case2"]
    other = predict_cases(predictor, cases, out, Request("Spleen"), continue_=True)
    assert other.ok == ["case0", "case2"]  # another protocol: nothing there can be kept


def test_cases_that_version_0_1_completed_with_these_weights_are_kept(predictor, cases, tmp_path):
    """It recorded 16 digits of the SHA-256 of all values; those of other weights are not kept."""
    out, cases = tmp_path / "out", cases[::2]
    predict_cases(predictor, cases, out, Request("Liver"))
    for name, digest in (
        ("case0", predictor.settings(earlier=True)["weights"]),
        ("case2", "0123456789abcdef"),
    ):
        side = json.loads((out / f"{name}.json").read_text())
        side["settings"]["weights"] = digest
        (out / f"{name}.json").write_text(json.dumps(side))
    result = predict_cases(predictor, cases, out, Request("Liver"), continue_=True)
    assert (result.skipped, result.ok) == (["case0"], ["case2"])
    again = json.loads((out / "case2.json").read_text())["settings"]["weights"]
    assert again == predictor.settings()["weights"]


def test_a_failure_of_the_network_is_recorded_with_its_message(cases, tmp_path):
    def apply(params, image, context):
        raise RuntimeError("the network fell over")

    space = merge([CORPUS, OTHER])
    broken = Segmenter(Model(apply, jnp.zeros(3), PLAN, space, (6, 8, 8)))
    result = predict_cases(broken, cases[:1], tmp_path / "out", Request("Liver"))
    assert (
        result.failed[0]["error"] == "RuntimeError"
        and result.failed[0]["message"] == "the network fell over"
    )
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["run.json"]


def test_usage_errors_come_before_any_work(predictor, cases, tmp_path):
    with pytest.raises(UsageError, match="no cases"):
        predict_cases(predictor, [], tmp_path / "out", Request("Liver"))
    with pytest.raises(LabelError, match="unknown corpus"):
        predict_cases(predictor, cases, tmp_path / "out", Request("Lung"))
    with pytest.raises(LabelError, match="unknown class"):
        predict_cases(predictor, cases, tmp_path / "out", Request("Liver", ("lung",)))
    with pytest.raises(UsageError, match="occurs twice"):
        predict_cases(predictor, [cases[0], cases[0]], tmp_path / "out", Request("Liver"))
    same = Case("x", (str(tmp_path / "in" / "x.nii.gz"),))
    with pytest.raises(UsageError, match="overwrite"):
        predict_cases(predictor, [same], tmp_path / "in", Request("Liver"))
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be made"):
        predict_cases(predictor, cases, tmp_path / "file", Request("Liver"))


def test_file_and_label_names():
    assert write.file_names(["Liver/liver tumour", "Liver:liver_tumour", "..."]) == [
        "Liver_liver_tumour.nii.gz",
        "Liver_liver_tumour_1.nii.gz",
        "class.nii.gz",
    ]
    assert write.label_names(CORPUS) == {1: "liver", 2: "tumour"}
    assert write.label_names(Corpus("X", ((1, ("a",)), (2, ("b",)), (3, ("a", "b"))))) == {
        1: "a",
        2: "b",
        3: "a+b",
    }


def test_masks_are_written_by_gzip_that_reads_back(predictor, cases, tmp_path):
    predict_cases(predictor, cases[:1], tmp_path / "out", Request("Liver"))
    assert len(gzip.decompress((tmp_path / "out" / "case0.nii.gz").read_bytes())) > 352


@pytest.mark.data
def test_real_scans_come_back_on_their_own_grid(real_data, tmp_path):
    """A threshold as network on two hippocampus crops at another spacing; evaluation accepts the
    pairs.
    """
    from medjax.corpora.sources import read_corpus
    from medjax.metrics.evaluate import evaluate, find_pairs

    corpus, cases = read_corpus(real_data / "Task04_Hippocampus")
    plan = Plan({corpus.store: (1.3, 0.9, 1.0)}, {corpus.channels[0]: Intensity("zscore")})
    space = merge([corpus])

    def apply(params, image, context):
        return {"logits": (image - params) * 20.0}

    predictor = Segmenter(
        Model(apply, jnp.array([0.0, 1.0], jnp.float32), plan, space, (16, 24, 16))
    )
    result = predict_cases(predictor, cases[:2], tmp_path / "out", Request(corpus.name))
    assert len(result.ok) == 2 and result.failed == []
    pairs, extra = find_pairs({case.name: case.label for case in cases[:2]}, tmp_path / "out")
    scores = evaluate(pairs, corpus, surface=True, resamples=50)
    assert scores.failed == () and extra == [] and len(scores.rows) == 4
    for case in cases[:2]:
        mask, source = (
            nifti.read(p) for p in (tmp_path / "out" / f"{case.name}.nii.gz", case.images[0])
        )
        nifti.check_same_geometry(source, mask)
        above = source.array > source.array.mean()
        assert (
            (mask.array > 0) == above
        ).mean() > 0.9  # but for what resampling there and back moves


def test_the_sidecar_holds_a_confidence_by_the_names_of_the_corpus(tmp_path):
    """Of the class that the space calls Two/organ; None where nothing is found."""
    one = Corpus("One", ((1, ("organ",)),), channels=("CT",))
    two = Corpus("Two", ((4, ("organ",)), (5, ("rest",))), channels=("CT",))
    space = merge([one, two], rename={"Two/organ": "Two/organ"})
    plan = Plan({c.name: (1.0, 1.0, 1.0) for c in (one, two)}, {"CT": Intensity("nonorm")})

    def apply(params, image, context):
        return {"logits": image * jnp.array([1.0, 2.0, -3.0])}

    nib.save(nib.Nifti1Image(np.ones((8, 6, 6), np.float32), np.eye(4)), tmp_path / "a.nii.gz")
    case = Case("a", (str(tmp_path / "a.nii.gz"),))
    segmenter = Segmenter(Model(apply, {}, plan, space, (4, 4, 4)))
    for corpus, expected in (
        ("One", {"organ": 1 / (1 + np.exp(-1))}),
        ("Two", {"organ": 1 / (1 + np.exp(-2)), "rest": None}),
    ):
        predict_cases(segmenter, [case], tmp_path / corpus, Request(corpus))
        told = json.loads((tmp_path / corpus / "a.json").read_text())["confidence"]
        assert told == {
            n: None if v is None else pytest.approx(v, abs=1e-5) for n, v in expected.items()
        }
