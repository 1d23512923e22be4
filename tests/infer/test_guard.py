"""Silent emptiness: scores that are no numbers, scans unlike those trained on, devices that run out
of memory.
"""

import json
import warnings

import jax
import jax.numpy as jnp
import nibabel as nib
import numpy as np
import pytest

import medjax
from medjax import cli
from medjax.corpora.inputs import Case
from medjax.errors import PredictError
from medjax.infer import guard
from medjax.infer.cases import predict_cases
from medjax.infer.model import Model
from medjax.infer.segmenter import Segmenter
from medjax.labels import Corpus, merge
from medjax.prepare import guard as ranges
from medjax.prepare.fingerprint import fingerprint
from medjax.prepare.guard import Guard
from medjax.prepare.plan import Fingerprint, Intensity, Plan, make_plan
from medjax.prompts.request import Request
from medjax.scans import nifti
from tests.infer.test_faults import AFFINE, CORPUS, PLAN, make_predictor, phantom, put, threshold
from tests.support import run as make_run_module
from tests.support.run import make_run

KNOWN = Guard((1.0, 2.0), (16.0, 40.0), {"ct": (-1000.0, 400.0)}, {"ct": (900.0, 1400.0)})
CT = Intensity("ct", (-100.0, 200.0), 50.0, 60.0)


def ct(shape=(12, 16, 16)):
    """Air, soft tissue, some bone."""
    rng = np.random.default_rng(0)
    array = rng.normal(40, 15, shape).astype(np.float32)
    array[:, :3] = -1000
    array[5:7, 8:10, 8:10] = 400
    return array


def nothing(params, image, context):
    return {"logits": image * 0 - 5 + params * 0}


def empty(plan, **options):
    return Segmenter(Model(nothing, jnp.zeros(2), plan, merge([CORPUS]), (6, 8, 8)), **options)


def predict(predictor, path, out):
    said = []
    result = predict_cases(
        predictor, [Case("x", (str(path),))], out, Request("Liver"), warn=said.append
    )
    return result, said


# -- scores ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
@pytest.mark.parametrize("average", ["prob", "logit"])
@pytest.mark.parametrize("where", ["everywhere", "one voxel"])
def test_scores_that_are_no_numbers_fail_the_case_and_name_it(
    tmp_path, value, activation, average, where
):
    def apply(params, image, context):
        logits = image - params
        bad = jnp.full_like(logits, value)
        return {"logits": bad if where == "everywhere" else jnp.where(image > 1.5, bad, logits)}

    model = Model(apply, jnp.array([0.5, 1.5]), PLAN, merge([CORPUS]), (6, 8, 8))
    predictor = Segmenter(model, activation=activation, average=average)
    predictor.name = "runs/broken"
    path = put(tmp_path / "a.nii.gz", phantom())
    result, _ = predict(predictor, path, tmp_path / "out")
    (record,) = result.failed
    assert record["message"] == "the network gives scores that are not finite numbers" and record[
        "path"
    ] == str(path)
    assert (
        "runs/broken" in record["found"]
        and "traceback" not in record
        and not (tmp_path / "out" / "x.nii.gz").exists()
    )


def test_a_class_that_the_network_masks_is_no_fault(tmp_path):
    def apply(params, image, context):
        return {"logits": jnp.concatenate([image - 0.5, jnp.full_like(image, -jnp.inf)], -1)}

    predictor = Segmenter(Model(apply, {}, PLAN, merge([CORPUS]), (6, 8, 8)))
    assert predict(predictor, put(tmp_path / "a.nii.gz", phantom()), tmp_path / "out")[0].ok == [
        "x"
    ]


def test_uncertainty_and_ensembles_notice_one_bad_member(tmp_path):
    bad = make_predictor(ensemble=[jnp.array([np.nan, 1.0])], uncertainty=True)
    assert (
        "not finite"
        in predict(bad, put(tmp_path / "a.nii.gz", phantom()), tmp_path / "out")[0].failed[0][
            "message"
        ]
    )


def test_the_python_interface_names_the_scan(tmp_path):
    run = make_run(tmp_path / "run")
    predictor = medjax.Predictor(run)
    (network,) = predictor._predictor.networks
    leaf = network._params
    network._params = jax.tree.map(lambda a: a * np.nan, leaf)
    with pytest.raises(PredictError, match=r"array: .*not finite.*run"):
        predictor.predict(ct(), np.eye(4))


# -- device memory ---------------------------------------------------------------------------------


@pytest.mark.parametrize("fits, outcome", [(2, "ok"), (0, "failed")])
def test_a_full_device_gets_half_the_windows_once_then_a_sentence(tmp_path, fits, outcome):
    predictor, asked = make_predictor(batch_windows=4), []
    (network,) = predictor.networks
    program = network.program

    def limited(classes):
        step = program(classes)

        def run(*given):
            asked.append(network.batch_windows)
            if network.batch_windows > fits:
                raise RuntimeError(
                    "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 99 bytes."
                )
            return step(*given)

        return run

    facts = type("Step", (), {"memory_analysis": lambda self: None})()
    network.program = lambda classes: _with(limited(classes), facts)
    result, said = predict(predictor, put(tmp_path / "a.nii.gz", phantom()), tmp_path / "out")
    assert len(said) == 1 and "out of memory with --batch-windows 4; trying 2" in said[0]
    assert sorted(set(asked)) == [2, 4] and len(getattr(result, outcome)) == 1
    if outcome == "failed":
        assert (
            result.failed[0]["message"] == "the device is out of memory"
            and "--batch-windows" in result.failed[0]["fix"]
        )


def _with(function, facts):
    class Step:
        memory_analysis = facts.memory_analysis

        def __call__(self, *given):
            return function(*given)

    return Step()


# -- scans unlike the training ---------------------------------------------------------------------

UNLIKE = {
    "centimetres": (lambda a: a, np.diag([0.1, 0.1, 0.2, 1]), "in training 1 to 2 mm"),
    "a whole body": (
        lambda a: np.tile(a, (8, 1, 1)),
        AFFINE,
        "a field of view of 192 mm, in training 16 to 40 mm",
    ),
    "no rescale intercept": (lambda a: a + 1024, AFFINE, "intensities of CT"),
    "scaled to 0..1": (lambda a: (a + 1000) / 1400, AFFINE, "intensities of CT"),
    "times 100": (lambda a: a * 100, AFFINE, "intensities of CT"),
    "one voxel of 3e38": (
        lambda a: np.where(np.arange(a.size).reshape(a.shape) == 0, 3e38, a),
        AFFINE,
        "",
    ),
}


@pytest.mark.parametrize("what", UNLIKE)
def test_an_empty_class_in_an_unlike_scan_carries_a_warning(tmp_path, what):
    change, affine, words = UNLIKE[what]
    predictor = empty(Plan({"Liver": (2.0, 1.0, 1.0)}, {"CT": CT}, guard=KNOWN))
    path = put(tmp_path / "a.nii.gz", change(ct()).astype(np.float32), affine, codes=(0, 1))
    _, said = predict(predictor, path, tmp_path / "out")
    side = json.loads((tmp_path / "out" / "x.json").read_text())
    manifest = json.loads((tmp_path / "out" / "run.json").read_text())
    if not words:
        assert side["warnings"] == [] == said  # a CT is clipped: one voxel changes nothing
        return
    assert (
        len(side["warnings"]) == 1
        and words in side["warnings"][0]
        and "no voxel of liver, tumour was found" in side["warnings"][0]
    )
    assert manifest["cases"]["x"]["warnings"] == side["warnings"] and said == [
        f"x: {side['warnings'][0]}"
    ]


def test_metres_taken_for_millimetres_are_doubted(tmp_path):
    """Also where a reader lets them pass."""
    plan = Plan({"Liver": (2.0, 1.0, 1.0)}, {"CT": CT}, guard=KNOWN)
    volume = nifti.read(put(tmp_path / "a.nii.gz", ct()))
    far = nifti.Volume(volume.array, np.diag([1e-3, 1e-3, 2e-3, 1.0]), volume.header, volume.path)
    found = guard.doubts(plan, ["CT"], far, empty(plan).networks[0].prepare(far, Request("Liver")))
    assert found[0] == "voxels of 0.001 mm, in training 1 to 2 mm" and found[1].startswith(
        "a field of view of 0.024 mm"
    )


def test_a_scan_like_the_training_or_a_class_that_is_there_says_nothing(tmp_path):
    plan = Plan({"Liver": (2.0, 1.0, 1.0)}, {"CT": CT}, guard=KNOWN)
    assert predict(empty(plan), put(tmp_path / "a.nii.gz", ct()), tmp_path / "out")[1] == []
    full = Segmenter(Model(threshold, jnp.array([-99.0, -99.0]), plan, merge([CORPUS]), (6, 8, 8)))
    assert predict(full, put(tmp_path / "b.nii.gz", ct() * 100), tmp_path / "full")[1] == []


@pytest.mark.parametrize("scheme", ["zscore", "rescale_to_0_1"])
def test_one_absurd_voxel_flattens_a_scan_that_is_normalised_by_itself(tmp_path, scheme):
    plan = Plan({"Liver": (2.0, 1.0, 1.0)}, {"CT": Intensity(scheme)}, guard=KNOWN)
    array = ct()
    assert predict(empty(plan), put(tmp_path / "a.nii.gz", array), tmp_path / "1")[1] == []
    array[0, 0, 0] = 1e9
    (said,) = predict(empty(plan), put(tmp_path / "b.nii.gz", array), tmp_path / "2")[1]
    assert "hardly any contrast is left of CT" in said


def test_a_plan_of_an_earlier_version_checks_what_it_can_and_says_what_it_cannot(tmp_path, capsys):
    old = {
        k: v
        for k, v in Plan({"Liver": (2.0, 1.0, 1.0)}, {"CT": CT}).to_json().items()
        if k != "guard"
    }
    plan = Plan.from_json(old)
    assert plan.guard is None and "no ranges of the training scans" in guard.unchecked(plan, ["CT"])
    assert guard.unchecked(Plan({}, {"CT": CT}, guard=KNOWN), ["CT"]) == ""
    for name, array, affine, words in (
        ("mm", ct(), np.diag([0.1, 0.1, 0.1, 1]), "voxels of 0.1x0.1x0.1 mm, in training 2x1x1 mm"),
        ("far", ct() + 5000, AFFINE, "in training -100 to 200 within the classes"),
        ("flat", ct() / 1400, AFFINE, "hardly any contrast"),
    ):
        (said,) = predict(
            empty(plan), put(tmp_path / f"{name}.nii.gz", array, affine), tmp_path / name
        )[1]
        assert words in said
    assert predict(empty(plan), put(tmp_path / "fine.nii.gz", ct()), tmp_path / "fine")[1] == []


def test_the_ranges_are_those_of_the_cases_and_decide_nothing(tmp_path):
    spec = Corpus("Liver", ((1, ("liver",)),), channels=("CT",))
    cases = []
    for k, spacing in enumerate((1.0, 1.5)):
        label = np.zeros((12, 16, 16), np.uint8)
        label[3:6, 8:12, 8:12] = 1
        affine = np.diag([spacing, spacing, 2.0, 1.0])
        image = put(tmp_path / f"{k}.nii.gz", ct() + k, affine)
        cases.append(
            Case(str(k), (str(image),), str(put(tmp_path / f"l{k}.nii.gz", label, affine)))
        )
    found = fingerprint(spec, cases, workers=1)
    assert Fingerprint.from_json(json.loads(json.dumps(found.to_json()))) == found
    plan = make_plan({"Liver": found})
    known = plan.guard
    assert known.spacing_mm == (1.0, 2.0) and known.field_mm == (24.0, 24.0)
    assert known.intensity["ct"] == pytest.approx((-1000.0, ranges.levels(ct() + 1)[2]))
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    assert (
        plan.key() == Plan.from_json(plan.to_json() | {"guard": None}).key()
    )  # stores and runs of earlier versions still fit
    before = Fingerprint.from_json({k: v for k, v in found.to_json().items() if k != "levels"})
    assert make_plan({"Liver": before}).guard is None


@pytest.fixture
def blank_run(tmp_path, monkeypatch):
    """A run whose network scores 1/2 everywhere, so that it finds nothing."""
    monkeypatch.setattr(
        make_run_module,
        "random_params",
        lambda abstract, seed: jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), abstract),
    )
    return make_run(tmp_path / "run")


def test_the_page_and_the_command_show_the_warning(blank_run, tmp_path, capsys):
    path = put(tmp_path / "in" / "a.nii.gz", ct() / 1e6)
    given = ["predict", "-m", str(blank_run), "-i", str(path), "-o", str(tmp_path / "out")]
    assert cli.main([*given, "--quiet"]) == 0
    assert (
        "medjax: a: no voxel of organ, tumour was found, but the scan is unlike those trained on"
        in capsys.readouterr().err
    )
    assert 'id="warnings"' in (tmp_path / "out" / "report.html").read_text()
    assert (
        cli.main(given) == 0 and "holds no ranges of the training scans" in capsys.readouterr().err
    )


def test_nibabel_images_of_unlike_scans_warn(blank_run):
    predictor = medjax.Predictor(blank_run)
    with pytest.warns(nifti.DataWarning, match="no voxel of organ, tumour was found"):
        predictor.segment(nib.Nifti1Image(ct().T * 0 + 1e5, np.eye(4)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mask = predictor.segment(nib.Nifti1Image(ct().T, np.eye(4)))
    assert mask.label_map.shape == ct().shape


def test_the_page_lists_warnings_escaped(tmp_path):
    from medjax.report import prediction

    (tmp_path / "a.json").write_text(
        json.dumps(
            {"labels": {}, "classes": {}, "images": [], "warnings": ["no voxel of <b>liver</b>"]}
        )
    )
    (tmp_path / "run.json").write_text(
        json.dumps({"cases": {"a": {}, "../../secret": {}}, "failed": []})
    )
    page = prediction.prediction_report(tmp_path).read_text()
    assert 'id="warnings"' in page and "&lt;b&gt;liver" in page and "unusable case name" in page


@pytest.mark.data
@pytest.mark.parametrize("task", ["Task04_Hippocampus", "Task02_Heart"])
def test_real_scans_raise_no_doubts_against_a_plan_of_their_own_set(real_data, task):
    """Also when each is left out of the plan it is compared with."""
    from medjax.corpora.sources import read_corpus

    corpus, cases = read_corpus(real_data / task)
    cases = [case for case in cases if case.labelled][:8]
    plan = make_plan({corpus.store: fingerprint(corpus, cases[::2], workers=1)})
    predictor = Segmenter(
        Model(nothing, jnp.zeros(len(merge([corpus]).classes)), plan, merge([corpus]), (8, 8, 8))
    )
    for case in cases:
        volume = nifti.read_case(case.images)
        prepared = predictor.networks[0].prepare(volume, Request(corpus.name))
        assert guard.doubts(plan, corpus.channels, volume, prepared) == [], case.name
        shrunk = nifti.Volume(
            volume.array, volume.affine @ np.diag([1e-3, 1e-3, 1e-3, 1]), volume.header, volume.path
        )
        assert any(
            "voxels of" in text
            for text in guard.doubts(plan, corpus.channels, shrunk, _like(shrunk, prepared))
        )


def _like(volume, prepared):
    from medjax.prepare import geometry

    small = geometry.fit(volume, None)
    return prepared._replace(transform=small)
