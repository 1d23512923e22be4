"""What users' scans do to prediction: damaged files, odd geometry, odd values, odd shapes; one bad
case never costs another.
"""

import gzip
import json
import os
import shutil
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import jax.numpy as jnp
import nibabel as nib
import numpy as np
import pytest

from medjax.corpora.inputs import Case, find_inputs
from medjax.decision import Sigmoid, Softmax
from medjax.errors import PredictError, UsageError
from medjax.infer.cases import Files, predict_cases
from medjax.infer.model import UNCERTAINTIES, Model
from medjax.infer.pipeline import run as _pipeline
from medjax.infer.segmenter import Segmenter
from medjax.labels import Corpus, merge
from medjax.prepare.plan import Intensity, Plan
from medjax.prompts.request import Request

CORPUS = Corpus("Liver", ((0, ()), (5, ("liver",)), (200, ("liver", "tumour"))), channels=("CT",))
PLAN = Plan({"Liver": (2.0, 1.0, 1.0)}, {"CT": Intensity("nonorm")})
AFFINE = np.diag([1.0, 1.0, 2.0, 1.0])
LIVER = Request("Liver")


def threshold(params, image, context):
    """Liver above 0.5, tumour above 1.5."""
    return {"logits": (image - params) * 20.0}


def make_predictor(**options):
    return Segmenter(
        Model(threshold, jnp.array([0.5, 1.5], jnp.float32), PLAN, merge([CORPUS]), (6, 8, 8)),
        **options,
    )


@pytest.fixture(scope="module")
def predictor():
    return make_predictor()


def phantom(shape=(8, 10, 9)):
    array = np.full(shape, 0.1, np.float32)
    array[tuple(slice(n // 4, n - n // 4) for n in shape)] = 1
    array[tuple(slice(n // 2, n // 2 + 1) for n in shape)] = 2
    return array


def put(path, array, affine=AFFINE, qform=None, codes=(1, 1), kind=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(np.asarray(array).T if kind is None else kind, affine)
    image.set_qform(affine if qform is None else qform, codes[0], strip_shears=True)
    image.set_sform(affine, codes[1])
    nib.save(image, path)
    return path


def outcome(predictor, path, out, request=LIVER, **options):
    """(mask or None, failure record or None, warnings) of one scan."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = predict_cases(predictor, [Case("x", (str(path),))], out, request, **options)
    mask = nib.load(out / "x.nii.gz") if result.ok else None
    return mask, (result.failed or [None])[0], [str(w.message) for w in caught]


def expected(array):
    return np.where(array > 1.5, 200, np.where(array > 0.5, 5, 0))


def rewrite(change):
    def spoil(path):
        content = bytearray(path.read_bytes())
        path.unlink()
        path.write_bytes(change(content))

    return spoil


def crc(content):
    content[-8] ^= 0xFF
    return content


FILES = {
    "cut in half": (rewrite(lambda c: c[: len(c) // 2]), "truncated gzip"),
    "last 8 bytes missing": (rewrite(lambda c: c[:-8]), "truncated gzip"),
    "wrong CRC": (rewrite(crc), "CRC check failed"),
    "empty": (rewrite(lambda c: b""), "not NIfTI"),
    "HTML": (rewrite(lambda c: b"<html>404</html>"), "not NIfTI"),
    "shorter than its header": (
        rewrite(lambda c: gzip.decompress(c)[:-99]),
        "truncated: shorter than its header says",
    ),
    "broken link": (lambda p: (p.unlink(), p.symlink_to("nowhere.nii.gz")), "broken symbolic link"),
    "NaN": (lambda p: put(p, np.where(phantom() == 2, np.nan, phantom())), "non-finite"),
    "4D time series": (lambda p: put(p, np.stack([phantom()] * 3)), "wrong number of channels"),
    "complex": (lambda p: put(p, phantom().astype(np.complex64)), "complex voxels"),
    "shear 0.2": (
        lambda p: put(p, phantom(), AFFINE + np.outer([0.2, 0, 0, 0], [0, 1, 0, 0]), codes=(0, 1)),
        "sheared voxel grid",
    ),
    "NaN affine": (lambda p: _affine(p, np.nan), "affine"),
    "singular affine": (lambda p: _affine(p, 0.0), "affine"),
}


def _affine(path, value):
    raw = bytearray(gzip.decompress(path.read_bytes()))
    header = nib.Nifti1Header(bytes(raw[:348]))
    header["srow_x"] = [value, 0, 0, 0]
    header["qform_code"], header["sform_code"] = 0, 1
    path.write_bytes(gzip.compress(header.binaryblock + bytes(raw[348:])))


@pytest.mark.parametrize("fault", FILES)
def test_one_bad_scan_fails_alone_with_its_reason(predictor, tmp_path, fault):
    spoil, reason = FILES[fault]
    folder = tmp_path / "in $(touch x); ünï"
    for name in ("a", "b", "c"):
        put(folder / f"{name}.nii.gz", phantom())
    spoil(folder / "b.nii.gz")
    result = predict_cases(
        predictor, find_inputs(folder, channels=1), tmp_path / "out", Request("Liver")
    )
    assert result.ok == ["a", "c"] and [f["case"] for f in result.failed] == ["b"]
    assert reason in result.failed[0]["message"] and result.failed[0]["path"].endswith("b.nii.gz")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "a.json",
        "a.nii.gz",
        "c.json",
        "c.nii.gz",
        "run.json",
    ]
    assert json.loads((tmp_path / "out" / "run.json").read_text())["failed"][0]["case"] == "b"
    mask = nib.load(tmp_path / "out" / "a.nii.gz")
    assert (
        np.array_equal(np.asarray(mask.dataobj).T, expected(phantom()))
        and mask.get_data_dtype() == np.uint8
    )


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_scan_without_permission_fails_alone(predictor, tmp_path):
    path = put(tmp_path / "a.nii.gz", phantom())
    path.chmod(0)
    assert "cannot read" in outcome(predictor, path, tmp_path / "out")[1]["message"]


def test_content_decides_not_the_name(predictor, tmp_path):
    plain = put(tmp_path / "a.nii", phantom())
    shutil.copy(plain, tmp_path / "b.nii.gz")
    (tmp_path / "c.nii").write_bytes(gzip.compress(plain.read_bytes()))
    for name in ("b.nii.gz", "c.nii"):
        assert np.array_equal(
            np.asarray(outcome(predictor, tmp_path / name, tmp_path / "out")[0].dataobj).T,
            expected(phantom()),
        )


@pytest.mark.parametrize("axes", ["RAS", "LPS", "SAR", "PIR", "IPL", "ASL"])
def test_orientations_come_back_voxel_by_voxel(predictor, tmp_path, axes):
    canonical = nib.Nifti1Image(phantom((8, 10, 9)).T, AFFINE)
    turned = canonical.as_reoriented(
        nib.orientations.ornt_transform(
            nib.io_orientation(AFFINE), nib.orientations.axcodes2ornt(axes)
        )
    )
    nib.save(turned, tmp_path / "a.nii.gz")
    mask, _, _ = outcome(predictor, tmp_path / "a.nii.gz", tmp_path / "out")
    assert np.array_equal(np.asarray(mask.dataobj), expected(np.asarray(turned.dataobj)))
    assert np.array_equal(mask.header["srow_x"], turned.header["srow_x"])


def test_odd_geometry_is_kept_or_named(predictor, tmp_path):
    turn = np.eye(4)
    turn[:3, :3] = np.array(
        [[1, 0, 0], [0, np.cos(0.21), -np.sin(0.21)], [0, np.sin(0.21), np.cos(0.21)]]
    )  # 12 degrees
    cases = {
        "oblique": ({"affine": turn @ AFFINE}, ""),
        "shear 1e-4": (
            {"affine": AFFINE + np.outer([1e-4, 0, 0, 0], [0, 1, 0, 0]), "codes": (0, 1)},
            "",
        ),
        "shear 1e-2": (
            {"affine": AFFINE + np.outer([1e-2, 0, 0, 0], [0, 1, 0, 0]), "codes": (0, 1)},
            "sheared voxel grid",
        ),
        "forms differ": (
            {"qform": np.diag([1.0, 1.0, 2.0, 1.0]) + np.outer([0, 0, 9, 0], [0, 0, 0, 1])},
            "qform",
        ),
        "no form": ({"codes": (0, 0)}, "pixdim"),
        "codes 0 and 2": ({"codes": (0, 2)}, ""),
    }
    for name, (given, warned) in cases.items():
        path = put(tmp_path / f"{name}.nii.gz", phantom(), **given)
        source = nib.load(path).header
        mask, failed, said = outcome(predictor, path, tmp_path / name)
        assert failed is None, name
        assert np.array_equal(np.asarray(mask.dataobj).T, expected(phantom())), name
        fields = (
            "pixdim",
            "qform_code",
            "sform_code",
            "quatern_b",
            "quatern_c",
            "qoffset_z",
            "srow_x",
            "srow_y",
            "srow_z",
            "xyzt_units",
        )
        assert all(np.array_equal(mask.header[f], source[f]) for f in fields), name
        assert any(warned in text for text in said) if warned else not said, (name, said)


@pytest.mark.parametrize("kind", ["scaled uint16", "big-endian", "float64", "int8"])
def test_storage_does_not_change_the_values(predictor, tmp_path, kind):
    array = phantom()
    array[array < 0.5] = 0
    array[0, 0, 0] = array[-1, -1, -1] = 2  # so that nothing is cropped away
    image = nib.Nifti1Image(
        array.T.astype({"float64": np.float64, "int8": np.int8}.get(kind, np.float32)), AFFINE
    )
    if kind == "scaled uint16":
        image.set_data_dtype(np.uint16)
        image.header.set_slope_inter(0.5, -1.0)
    if kind == "big-endian":
        image = nib.Nifti1Image(array.T, AFFINE, nib.Nifti1Header(endianness=">"))
    nib.save(image, tmp_path / "a.nii.gz")
    mask, _, _ = outcome(predictor, tmp_path / "a.nii.gz", tmp_path / "out")
    assert np.array_equal(
        np.asarray(mask.dataobj), expected(np.asarray(nib.load(tmp_path / "a.nii.gz").dataobj))
    )


@pytest.mark.parametrize("shape", [(1, 12, 11), (3, 4, 5), (1, 1, 1), (2, 30, 3)])
def test_small_and_flat_scans_keep_their_shape(predictor, tmp_path, shape):
    array = np.ones(shape, np.float32)
    mask, failed, _ = outcome(predictor, put(tmp_path / "a.nii.gz", array), tmp_path / "out")
    assert failed is None and mask.shape == shape[::-1] and (np.asarray(mask.dataobj) == 5).all()


def test_a_flat_file_and_a_constant_scan(predictor, tmp_path):
    flat = nib.Nifti1Image(phantom((1, 10, 9))[0].T, AFFINE)
    nib.save(flat, tmp_path / "flat.nii.gz")
    mask, _, _ = outcome(predictor, tmp_path / "flat.nii.gz", tmp_path / "out")
    assert mask.shape == flat.shape
    plan = Plan(PLAN.spacing_mm, {"CT": Intensity("zscore")})
    scored = Segmenter(
        Model(threshold, jnp.array([0.5, 1.5], jnp.float32), plan, merge([CORPUS]), (6, 8, 8))
    )
    mask, failed, said = outcome(
        scored, put(tmp_path / "one.nii.gz", np.full((8, 8, 8), 7.0, np.float32)), tmp_path / "out2"
    )
    assert (
        failed is None
        and not np.asarray(mask.dataobj).any()
        and any("constant image" in text for text in said)
    )


def test_anisotropic_voxels(predictor, tmp_path):
    affine = np.diag([0.4, 0.4, 10.0, 1.0])
    path = put(tmp_path / "a.nii.gz", phantom((4, 24, 26)), affine)
    mask, failed, _ = outcome(predictor, path, tmp_path / "out")
    assert (
        failed is None
        and np.array_equal(mask.affine, nib.load(path).affine)
        and set(np.unique(np.asarray(mask.dataobj))) >= {0, 5}
    )


def test_channels_on_other_grids_name_both_files(tmp_path):
    corpus = Corpus("Two", ((1, ("a",)),), channels=("T1", "T2"))
    plan = Plan({"Two": (2.0, 1.0, 1.0)}, {"T1": Intensity("nonorm"), "T2": Intensity("nonorm")})
    two = Segmenter(
        Model(lambda p, i, c: {"logits": i[..., :1]}, {}, plan, merge([corpus]), (6, 8, 8))
    )
    put(tmp_path / "x_0000.nii.gz", phantom())
    put(tmp_path / "x_0001.nii.gz", phantom(), AFFINE + np.outer([0, 0, 3, 0], [0, 0, 0, 1]))
    result = predict_cases(two, find_inputs(tmp_path, channels=2), tmp_path / "out", Request("Two"))
    (record,) = result.failed
    assert (
        record["message"] == "different geometry"
        and "x_0000" in record["path"]
        and "x_0001" in record["path"]
    )


def test_the_real_error_of_the_network_is_recorded_with_its_place(tmp_path):
    def broken(params, image, context):
        raise RuntimeError("the network fell over")

    fallen = Segmenter(Model(broken, {}, PLAN, merge([CORPUS]), (6, 8, 8)))
    _, record, _ = outcome(fallen, put(tmp_path / "a.nii.gz", phantom()), tmp_path / "out")
    assert record["message"] == "the network fell over" and "test_faults.py" in record["traceback"]


def test_a_full_disk_is_a_clean_failure_and_the_next_case_goes_on(predictor, tmp_path, monkeypatch):
    original, calls = os.replace, []

    def full(source, target):
        calls.append(target)
        if str(target).endswith("a.nii.gz"):
            raise OSError(28, "No space left on device")
        return original(source, target)

    monkeypatch.setattr(os, "replace", full)
    for name in ("a", "b"):
        put(tmp_path / "in" / f"{name}.nii.gz", phantom())
    result = predict_cases(
        predictor, find_inputs(tmp_path / "in", channels=1), tmp_path / "out", Request("Liver")
    )
    assert result.ok == ["b"] and "No space left on device" in result.failed[0]["message"]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "b.json",
        "b.nii.gz",
        "run.json",
    ]


def test_stages_overlap_keep_order_and_never_hold_more_than_three_cases():
    alive, most, spans, lock = set(), [0], {}, threading.Lock()

    def stage(name, seconds):
        def work(given, *_):
            case = int(given.name)
            with lock:
                alive.add(case)
                most[0] = max(most[0], len(alive))
            start = time.perf_counter()
            time.sleep(seconds)
            spans[case, name] = (start, time.perf_counter())
            if name == "write" or (case, name) in ((2, "load"), (4, "work")):
                with lock:
                    alive.discard(case)
            if (case, name) in ((2, "load"), (4, "work"), (6, "write")):
                raise ValueError(f"{case} {name}")
            return case

        return work

    stages = stage("load", 0.01), stage("work", 0.02), stage("write", 0.01)
    cases = [Case(str(i), ()) for i in range(13)]
    found = [
        (int(case.name), error and str(error))
        for case, error in _pipeline(cases[:8], *stages, True)
    ]
    assert found == [(i, {2: "2 load", 4: "4 work", 6: "6 write"}.get(i)) for i in range(8)]
    assert most[0] <= 3
    assert spans[1, "load"][0] < spans[0, "work"][1] and spans[0, "write"][0] < spans[1, "work"][1]
    most[0], alive = 0, set()
    assert len(list(_pipeline(cases[10:], *stages, False))) == 3 and most[0] == 1
    most[0], alive = 0, set()
    found = [(int(case.name), error and str(error)) for case, error in _pipeline(cases, *stages, 3)]
    assert found == [(i, {2: "2 load", 4: "4 work", 6: "6 write"}.get(i)) for i in range(13)]
    assert 3 < most[0] <= 7  # three read, one computed, three written


def test_a_limit_refuses_what_cannot_fit_and_slows_what_can(predictor, tmp_path):
    large = put(tmp_path / "large.nii.gz", np.ones((64, 96, 96), np.float32))
    put(tmp_path / "small.nii.gz", phantom())
    limited = make_predictor(memory_gib=0.008)
    result = predict_cases(
        limited,
        find_inputs([str(large), str(tmp_path / "small.nii.gz")], channels=1),
        tmp_path / "out",
        Request("Liver"),
    )
    assert (
        result.ok == ["small"]
        and "does not fit into the memory allowed" in result.failed[0]["message"]
    )
    assert "--max-memory" in result.failed[0]["fix"]
    with pytest.raises(PredictError):
        limited.forecast(nib_geometry(large), Request("Liver"))
    forecast = make_predictor(memory_gib=1.0).forecast(nib_geometry(large), Request("Liver"))
    assert (
        forecast.windows == 21 * 23 * 23 and forecast.strips == 1 and forecast.shape == (64, 96, 96)
    )  # steps of 3, 4, 4 voxels


def nib_geometry(path):
    from medjax.scans import nifti

    return nifti.read_geometry(path)


def test_entropy_and_disagreement_are_what_they_say(tmp_path):
    p = np.array([[0.5, 0.01], [0.25, 0.75], [0.0, 1.0]], np.float32)
    one = -0.25 * np.log2(0.25) - 0.75 * np.log2(0.75)
    assert np.allclose(Sigmoid().entropy(p), [1.0, one, 0.0], atol=1e-5)
    q = np.array([[0.25, 0.25], [1.0, 0.0], [0.5, 0.5]], np.float32)  # background 1/2, 0, 0
    assert np.allclose(Softmax().entropy(q), [1.5, 0.0, 1.0], atol=1e-5)
    unsure = make_predictor(ensemble=[jnp.array([1.5, 9.0], jnp.float32)], uncertainty=True)
    outcome(unsure, put(tmp_path / "a.nii.gz", phantom()), tmp_path / "out")
    maps = {
        name: np.asarray(nib.load(tmp_path / "out" / f"x_{name}.nii.gz").dataobj).T
        for name in UNCERTAINTIES
    }
    liver = phantom() == 1  # one member says liver, the other does not
    assert np.allclose(maps["disagreement"][liver], 0.5, atol=1e-3) and np.allclose(
        maps["entropy"][liver], 1, atol=1e-3
    )
    outside = phantom() < 0.5
    assert maps["disagreement"][outside].max() < 1e-3 and maps["entropy"][outside].max() < 0.01
    sidecar = json.loads((tmp_path / "out" / "x.json").read_text())
    assert (
        set(sidecar["maps"]) == {"entropy", "disagreement"}
        and sidecar["settings"]["uncertainty"] is True
    )


def test_statistics_and_chosen_classes(predictor, tmp_path):
    path = put(tmp_path / "a.nii.gz", phantom())
    files, asked = Files(statistics=True), Request("Liver", ("liver",))
    mask, _, _ = outcome(predictor, path, tmp_path / "out", files=files, request=asked)
    assert set(np.unique(np.asarray(mask.dataobj))) == {
        0,
        5,
    }  # the tumour's place is liver's, as the liver contains it
    sidecar = json.loads((tmp_path / "out" / "x.json").read_text())
    inside = phantom() > 0.5
    found = sidecar["classes"]["liver"]
    assert list(sidecar["classes"]) == ["liver"] and found["voxels"] == inside.sum()
    assert found["volume_ml"] == pytest.approx(inside.sum() * 0.002) and found[
        "mean_intensity"
    ] == pytest.approx(phantom()[inside].mean())
    table = (tmp_path / "out" / "statistics.csv").read_text().splitlines()
    assert table[0] == "case,class,voxels,volume_ml,mean_intensity" and table[1].startswith(
        f"x,liver,{inside.sum()},"
    )


def test_a_half_written_mask_never_counts(predictor, tmp_path):
    path, out = put(tmp_path / "a.nii.gz", phantom()), tmp_path / "out"
    outcome(predictor, path, out)
    whole = (out / "x.nii.gz").read_bytes()
    (out / "x.nii.gz").write_bytes(whole[: len(whole) // 2])
    result = predict_cases(
        predictor, [Case("x", (str(path),))], out, Request("Liver"), continue_=True
    )
    assert result.ok == ["x"] and (out / "x.nii.gz").read_bytes() == whole
    assert predict_cases(
        predictor, [Case("x", (str(path),))], out, Request("Liver"), continue_=True
    ).skipped == ["x"]
    assert predict_cases(
        make_predictor(overlap=0.25),
        [Case("x", (str(path),))],
        out,
        Request("Liver"),
        continue_=True,
    ).ok == ["x"]


KILLED = """
import sys, time
from pathlib import Path
from medjax.corpora.inputs import find_inputs
from medjax.infer import cases as predict
from medjax.prompts.request import Request
from tests.infer.test_faults import make_predictor
folder = Path(sys.argv[1])
if sys.argv[2] == "slow":
    import os
    original = os.replace
    def slow(source, target):
        if str(target).endswith("b.nii.gz"):
            print("writing b", flush=True)
            time.sleep(60)
        original(source, target)
    os.replace = slow
cases = find_inputs(folder / "in", channels=1)
asked = Request("Liver")
result = predict.predict_cases(make_predictor(), cases, folder / "out", asked, continue_=True)
print(result.ok, result.skipped)
"""


@pytest.mark.slow
def test_a_kill_leaves_no_half_file_and_the_next_call_finishes_the_rest(tmp_path):
    for name in ("a", "b", "c"):
        put(tmp_path / "in" / f"{name}.nii.gz", phantom())
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    place = {"cwd": Path(__file__).parents[2], "env": environment, "text": True}
    process = subprocess.Popen([*command, "slow"], stdout=subprocess.PIPE, **place)
    assert process.stdout.readline() == "writing b\n"
    process.kill()
    process.communicate(timeout=60)
    names = {p.name for p in (tmp_path / "out").iterdir() if not p.name.startswith(".")}
    assert "a.nii.gz" in names and "b.nii.gz" not in names
    assert json.loads((tmp_path / "out" / "b.json").read_text())["complete"] is False
    done = subprocess.run(
        [*command, "quick"], capture_output=True, timeout=200, check=False, **place
    )
    assert done.stdout == "['b', 'c'] ['a']\n", done.stderr
    for name in ("a", "b", "c"):
        assert np.array_equal(
            np.asarray(nib.load(tmp_path / "out" / f"{name}.nii.gz").dataobj).T, expected(phantom())
        )


def test_predictions_repeat_to_the_bit(predictor, tmp_path):
    path = put(
        tmp_path / "a.nii.gz", np.random.default_rng(0).normal(1, 1, (9, 13, 17)).astype(np.float32)
    )
    outcome(predictor, path, tmp_path / "1")
    outcome(make_predictor(batch_windows=1), path, tmp_path / "2")
    assert (tmp_path / "1" / "x.nii.gz").read_bytes() == (tmp_path / "2" / "x.nii.gz").read_bytes()


def test_names_that_would_hide_or_overwrite_are_refused(predictor, tmp_path):
    path = str(put(tmp_path / "a.nii.gz", phantom()))
    for name in ("run", "statistics", "run_part0of2", ".a", "b/c"):
        with pytest.raises(UsageError, match="unusable case name"):
            predict_cases(predictor, [Case(name, (path,))], tmp_path / "out", Request("Liver"))
