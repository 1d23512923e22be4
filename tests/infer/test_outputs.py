"""What a prediction may write: nothing of anybody else's, nothing under two names, and after a kill
or a full disk nothing half.
"""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import jax.numpy as jnp
import nibabel as nib
import numpy as np
import pytest

from medjax import cli, files
from medjax.corpora.inputs import Case, find_inputs
from medjax.errors import UsageError
from medjax.infer import outputs, owned, write
from medjax.infer.cases import Files, predict_cases
from medjax.infer.model import Model
from medjax.infer.probabilities import Probabilities
from medjax.infer.segmenter import Segmenter
from medjax.labels import Corpus, merge
from medjax.prepare.plan import Intensity, Plan
from medjax.prompts.request import Request
from tests.infer.test_faults import expected, make_predictor, phantom, put
from tests.support.old_run import extract
from tests.support.run import make_run

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def predictor():
    return make_predictor()


@pytest.fixture
def scans(tmp_path):
    """Two scans in a folder."""
    for name in ("a", "b"):
        put(tmp_path / "in" / f"{name}.nii.gz", phantom())
    return tmp_path / "in"


def predict(predictor, folder, out, **options):
    return predict_cases(
        predictor, find_inputs(folder, channels=1), out, Request("Liver"), **options
    )


def contents(folder):
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in folder.rglob("*")
        if p.is_file() and not p.is_symlink()
    }


# -- files of others -------------------------------------------------------------------------------

EVERYTHING = Files(one_file_per_class=True, probabilities=True, statistics=True)
FOREIGN = {
    "the mask of a case": ("a.nii.gz", b"drawn by hand"),
    "the sidecar of a BIDS scan": ("b.json", b'{"Manufacturer": "X", "EchoTime": 0.03}'),
    "a sidecar of another case": (
        "b.json",
        json.dumps(owned.mark("prediction") | {"case": "c", "files": {}}).encode(),
    ),
    "a manifest": ("run.json", b'{"cases": {}, "mine": 1}'),
    "a table": ("statistics.csv", b"case,class,voxels,volume_ml,mean_intensity\na,liver,1,2,3\n"),
    "probabilities": ("a_prob.npz", b"PK"),
    "a mask in a folder of the case": ("a/liver.nii.gz", b"drawn by hand"),
}


@pytest.mark.parametrize("what", FOREIGN)
@pytest.mark.parametrize("continue_", [False, True])
def test_a_file_of_somebody_else_is_refused_before_anything_is_written(
    predictor, scans, tmp_path, what, continue_
):
    name, content = FOREIGN[what]
    out = tmp_path / "out"
    (out / name).parent.mkdir(parents=True)
    (out / name).write_bytes(content)
    before = contents(out)
    with pytest.raises(UsageError, match=r"that medjax did not write.*--overwrite") as refused:
        predict(predictor, scans, out, files=EVERYTHING, continue_=continue_)
    assert str(out / name) in str(refused.value) and contents(out) == before
    assert predict(predictor, scans, out, files=EVERYTHING, overwrite=True).failed == []
    assert (out / name).read_bytes() != content


def test_a_folder_a_file_or_a_link_in_the_way_is_refused_even_with_overwrite(
    predictor, scans, tmp_path
):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    out = tmp_path / "out"
    for make, words in (
        (lambda: (out / "a").symlink_to(elsewhere), "found a link"),
        (lambda: (out / "a").write_text("x"), "found a file"),
        (lambda: (out / "a.nii.gz").mkdir(), "found a folder"),
    ):
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        make()
        for overwrite in (False, True):
            with pytest.raises(UsageError, match=words):
                predict(predictor, scans, out, files=EVERYTHING, overwrite=overwrite)
    assert list(elsewhere.iterdir()) == []


def test_a_link_under_the_name_of_an_output_is_no_way_out(predictor, scans, tmp_path):
    out, victim = tmp_path / "out", tmp_path / "thesis.txt"
    out.mkdir()
    victim.write_text("chapter 1")
    for name in ("a.nii.gz", "a.json", "run.json"):
        (out / name).symlink_to(victim)
    with pytest.raises(UsageError, match="did not write and 1 more"):
        predict(predictor, scans, out)
    predict(predictor, scans, out, overwrite=True)
    assert victim.read_text() == "chapter 1" and not (out / "a.nii.gz").is_symlink()


def test_inputs_are_never_overwritten_however_they_are_spelled(predictor, scans, tmp_path):
    before = contents(scans)
    (tmp_path / "link").symlink_to(scans)
    os.link(scans / "a.nii.gz", tmp_path / "hard.nii.gz")
    with pytest.raises(UsageError, match="overwrite its input"):
        predict(predictor, scans, scans, overwrite=True)
    with pytest.raises(UsageError, match="overwrite its input"):
        predict(predictor, scans, tmp_path / "link" / ".." / "in", overwrite=True)
    with pytest.raises(UsageError, match="overwrite its input"):
        predict(predictor, tmp_path / "link", scans, overwrite=True)
    with pytest.raises(UsageError, match="overwrite its input"):  # another name of the same file
        predict_cases(
            predictor,
            [Case("hard", (str(scans / "a.nii.gz"),))],
            tmp_path,
            Request("Liver"),
            overwrite=True,
        )
    assert contents(scans) == before


def test_the_input_folder_may_take_files_under_free_names(predictor, tmp_path):
    put(tmp_path / "a_0000.nii.gz", phantom())
    before = contents(tmp_path)
    assert predict_cases(
        predictor, [Case("a", (str(tmp_path / "a_0000.nii.gz"),))], tmp_path, Request("Liver")
    ).ok == ["a"]
    after = contents(tmp_path)
    assert {name: after[name] for name in before} == before and set(after) - set(before) == {
        "a.json",
        "a.nii.gz",
        "run.json",
    }


def test_a_loop_of_links_costs_its_own_case_only(predictor, scans, tmp_path):
    (scans / "loop.nii.gz").symlink_to(scans / "loop.nii.gz")
    result = predict(predictor, scans, tmp_path / "out")
    assert (
        result.ok == ["a", "b"]
        and [f["case"] for f in result.failed] == ["loop"]
        and "traceback" not in result.failed[0]
    )


# -- names -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "names, options",
    [
        (("a", "a_entropy"), {"uncertain": True}),
        (("a", "a_preview"), {"endings": ("_preview.nii.gz",)}),
        (("x", "x.json"), {"one_file_per_class": True}),
    ],
)
def test_outputs_of_two_cases_under_one_name_are_refused(scans, tmp_path, names, options):
    uncertain = make_predictor(uncertainty=options.pop("uncertain", False))
    cases = [Case(name, (str(scans / "a.nii.gz"),)) for name in names]
    with pytest.raises(UsageError, match=f"two outputs would have one name.*{names[0]}.*rename"):
        predict_cases(uncertain, cases, tmp_path / "out", Request("Liver"), files=Files(**options))
    assert list((tmp_path / "out").iterdir()) == []


def test_names_that_differ_by_case_follow_the_file_system(predictor, scans, tmp_path, monkeypatch):
    cases = [Case(name, (str(scans / "a.nii.gz"),)) for name in ("A", "a")]
    if not (tmp_path / "IN").exists():
        assert predict_cases(predictor, cases, tmp_path / "out", Request("Liver")).ok == ["A", "a"]
    monkeypatch.setattr(outputs, "make_folder", lambda folder: False)
    with pytest.raises(UsageError, match="two outputs would have one name"):
        predict_cases(predictor, cases, tmp_path / "out", Request("Liver"))


def test_a_long_name_works_and_one_too_long_for_its_maps_fails_alone(predictor, scans, tmp_path):
    cases = [Case(name, (str(scans / "a.nii.gz"),)) for name in ("n" * 240, "b")]
    assert predict_cases(
        predictor, cases, tmp_path / "out", Request("Liver"), files=Files(one_file_per_class=True)
    ).ok == ["n" * 240, "b"]
    unsure = make_predictor(uncertainty=True)
    cases[0] = dataclasses.replace(cases[0], name="n" * 245)  # a mask has room, a map has not
    result = predict_cases(unsure, cases, tmp_path / "maps", Request("Liver"))
    assert (
        result.ok == ["b"]
        and result.failed[0]["message"] == "a file name would be too long"
        and "260 bytes" in result.failed[0]["found"]
    )
    assert "traceback" not in result.failed[0]


def test_class_names_stay_in_the_archive_and_the_spreadsheet(tmp_path):
    evil, formula = "../../../../pwn_class", "=cmd|' /C calc'!A1"
    corpus = Corpus("Odd", ((1, (evil,)), (2, (formula,))), channels=("CT",))
    plan = Plan({"Odd": (2.0, 1.0, 1.0)}, {"CT": Intensity("nonorm")})
    model = Model(
        lambda p, image, c: {"logits": (image - p) * 20.0},
        jnp.array([0.5, 1.5]),
        plan,
        merge([corpus]),
        (6, 8, 8),
    )
    cases = [Case("=2+5", (str(put(tmp_path / "a.nii.gz", phantom())),))]
    result = predict_cases(
        Segmenter(model), cases, tmp_path / "out", Request("Odd"), files=EVERYTHING
    )
    assert result.failed == []
    with zipfile.ZipFile(tmp_path / "out" / "=2+5_prob.npz") as archive:
        stems = [name.removesuffix(".npy") for name in archive.namelist()]
    side = json.loads((tmp_path / "out" / "=2+5.json").read_text())
    assert (
        side["class_files"] == dict(zip((evil, formula), stems, strict=True))
        and stems[0] == "pwn_class"
    )
    assert {f"=2+5/{stem}.nii.gz" for stem in stems} < set(side["files"])
    lines = (tmp_path / "out" / "statistics.csv").read_text().splitlines()[1:]
    assert (
        len(lines) == 2
        and all(line.startswith("'=2+5,") for line in lines)
        and ",'=cmd|" in lines[1]
    )
    rows = write.read_statistics(tmp_path / "out" / "statistics.csv")
    assert [(row["case"], row["class"]) for row in rows] == [("=2+5", evil), ("=2+5", formula)]


# -- again -----------------------------------------------------------------------------------------


def test_a_second_call_keeps_what_the_first_one_did_in_manifest_and_table(
    predictor, scans, tmp_path
):
    out, files_ = tmp_path / "out", Files(statistics=True)
    put(tmp_path / "more" / "c.nii.gz", phantom())
    predict(predictor, scans, out, files=files_)
    predict(predictor, tmp_path / "more", out, files=files_)
    assert set(json.loads((out / "run.json").read_text())["cases"]) == {"a", "b", "c"}
    assert [row["case"] for row in write.read_statistics(out / "statistics.csv")] == [
        "a",
        "a",
        "b",
        "b",
        "c",
        "c",
    ]
    (out / "a.nii.gz").unlink()
    predict(predictor, tmp_path / "more", out, files=files_)
    assert set(json.loads((out / "run.json").read_text())["cases"]) == {"b", "c"}
    assert {row["case"] for row in write.read_statistics(out / "statistics.csv")} == {"b", "c"}


def test_a_replaced_scan_and_a_damaged_mask_are_predicted_again(predictor, scans, tmp_path):
    out = tmp_path / "out"
    predict(predictor, scans, out)
    assert predict(predictor, scans, out, continue_=True).skipped == ["a", "b"]
    put(scans / "a.nii.gz", phantom()[::-1].copy())
    spoiled = bytearray((out / "b.nii.gz").read_bytes())
    spoiled[-6] ^= 1
    (out / "b.nii.gz").write_bytes(spoiled)
    assert predict(predictor, scans, out, continue_=True).ok == ["a", "b"]
    for name, array in (("a", phantom()[::-1]), ("b", phantom())):
        assert np.array_equal(
            np.asarray(nib.load(out / f"{name}.nii.gz").dataobj).T, expected(array)
        )
    assert sorted(p.name for p in out.iterdir()) == [
        "a.json",
        "a.nii.gz",
        "b.json",
        "b.nii.gz",
        "run.json",
    ]


def test_a_mask_that_somebody_corrected_is_kept_beside_the_new_one(predictor, scans, tmp_path):
    out = tmp_path / "out"
    predict(predictor, scans, out)
    corrected = nib.load(out / "a.nii.gz")
    nib.save(
        nib.Nifti1Image(np.asarray(corrected.dataobj) * 0 + 5, corrected.affine, corrected.header),
        out / "a.nii.gz",
    )
    work = (out / "a.nii.gz").read_bytes()
    assert predict(predictor, scans, out, continue_=True).ok == ["a"]
    assert (out / "a.nii.gz.edited").read_bytes() == work and (
        out / "a.nii.gz"
    ).read_bytes() != work


def test_predictions_of_an_earlier_version_go_on_and_are_said_to_be_unhashed(
    repository, tmp_path, monkeypatch, capsys
):
    extract(tmp_path)
    monkeypatch.chdir(tmp_path)
    given = [
        "predict",
        "-m",
        "run",
        "-i",
        "Task01_Blobs/imagesTr/case_000.nii.gz",
        "-o",
        "predictions",
        "--no-html",
    ]
    mask = Path("predictions/case_000.nii.gz").read_bytes()
    assert cli.main([*given, "--continue"]) == 0
    said = capsys.readouterr().err
    assert (
        "1 complete before" in said
        and "1 complete cases of an earlier version carry no hashes" in said
    )
    shutil.copy("Task01_Blobs/imagesTr/case_001.nii.gz", "Task01_Blobs/imagesTr/case_000.nii.gz")
    assert (
        cli.main([*given, "--continue"]) == 0 and "1 predicted" in capsys.readouterr().err
    )  # its run.json knows the old scan's hash
    assert Path("predictions/case_000.nii.gz").read_bytes() != mask
    assert "checksums" in json.loads(Path("predictions/case_000.json").read_text())


def test_files_of_calls_with_other_options_stay_ours(predictor, scans, tmp_path):
    out = tmp_path / "out"
    for files_ in (EVERYTHING, Files(), EVERYTHING):
        assert predict(predictor, scans, out, files=files_).failed == []
    assert json.loads((out / "a.json").read_text())["earlier"] == []


# -- full disks, kills, signals --------------------------------------------------------------------


@pytest.mark.parametrize("axes", ["RAS", "LPS", "SAR", "PIR", "IPL"])
@pytest.mark.parametrize("cropped", [False, True])
def test_probabilities_come_back_in_stored_order(tmp_path, axes, cropped):
    from medjax.prepare import geometry
    from medjax.scans import nifti

    rng, affine = np.random.default_rng(0), np.diag([1.0, 1.0, 2.0, 1.0])
    array = rng.integers(1, 9, (7, 6, 5)).astype(np.float32)
    if cropped:
        array[:2], array[:, :1], array[:, :, -2:] = 0, 0, 0
    image = nib.Nifti1Image(array.T, affine)
    image = image.as_reoriented(
        nib.orientations.ornt_transform(
            nib.io_orientation(affine), nib.orientations.axcodes2ornt(axes)
        )
    )
    nib.save(image, tmp_path / "x.nii.gz")
    volume = nifti.read(tmp_path / "x.nii.gz")
    transform = geometry.fit(volume, None)
    scores = rng.random((*transform.box_shape, 2)).astype(np.float16)
    gathered = Probabilities(tmp_path, "x")
    for rows in (slice(0, 3), slice(3, transform.box_shape[0])):
        for columns in (slice(0, 2), slice(2, transform.box_shape[1])):
            gathered(transform, (rows, columns), ("one", "two"), scores[rows, columns])
    gathered.pack(tmp_path / "x_prob.npz")
    gathered.discard()
    with np.load(tmp_path / "x_prob.npz", allow_pickle=False) as found:
        for k, name in enumerate(("one", "two")):
            wanted = np.zeros(volume.shape, np.float16)
            transform.image(wanted)[...] = scores[..., k]
            assert np.array_equal(found[name], wanted)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.nii.gz", "x_prob.npz"]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 60 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=60k", "tmpfs", folder],
        capture_output=True,
        check=False,
    )
    if made.returncode:
        pytest.skip("mounting a file system is not permitted")
    yield folder
    subprocess.run(["umount", folder], check=False)


def test_probabilities_on_a_full_disk_fail_with_a_sentence_and_the_others_go_on(
    predictor, scans, small_disk
):
    put(scans / "a.nii.gz", np.random.default_rng(0).random((40, 40, 40)).astype(np.float32))
    result = predict(predictor, scans, small_disk / "out", files=Files(probabilities=True))
    assert (
        result.ok == ["b"]
        and "No space left on device" in result.failed[0]["message"]
        and "traceback" not in result.failed[0]
    )
    assert (
        result.failed[0]["path"].endswith("a_prob.npz")
        and "free some space" in result.failed[0]["fix"]
    )
    assert sorted(p.name for p in (small_disk / "out").iterdir()) == [
        "b.json",
        "b.nii.gz",
        "b_prob.npz",
        "run.json",
    ]


def test_a_read_only_folder_is_refused_before_the_work(predictor, scans, small_disk):
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(UsageError, match=r"cannot be written to .Read-only file system"):
        predict(predictor, scans, small_disk)


def test_leftovers_of_a_killed_call_go_with_the_next(predictor, scans, tmp_path):
    out = tmp_path / "out"
    ended = subprocess.Popen(["true"])
    ended.wait()
    (out / "a").mkdir(parents=True)
    ours = [files.temporary(out / "x"), files.temporary(out / "a" / "x")]
    left = [p.with_name(p.name.replace(f".{os.getpid()}.", f".{ended.pid}.")) for p in ours]
    for path in [*ours, *left]:
        path.write_bytes(b"half")
    predict(predictor, scans, out, files=EVERYTHING)
    assert not any(p.exists() for p in left) and all(p.exists() for p in ours)


SLOW = """
import sys, time
from medjax import border
from medjax.scans import nifti
from medjax.corpora.inputs import find_inputs
from medjax.infer import cases as predict
from medjax.prompts.request import Request
from tests.infer.test_faults import make_predictor
written = nifti.write
def slow(path, *given, **more):
    if str(path).endswith("b.nii.gz"):
        print("writing b", flush=True)
        time.sleep(1)
    written(path, *given, **more)
nifti.write = slow
def work():
    files = predict.Files(probabilities=True)
    cases = find_inputs(sys.argv[1] + "/in", channels=1)
    asked, out = Request("Liver"), sys.argv[1] + "/out"
    predict.predict_cases(make_predictor(), cases, out, asked, files=files)
    return 0
sys.exit(border.guarded(work))
"""


@pytest.mark.slow
@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_a_manifest_and_no_hidden_files_and_the_next_call_finishes(
    predictor, scans, tmp_path, number, code
):
    for name in "cdefgh":
        put(scans / f"{name}.nii.gz", phantom())
    command = [sys.executable, "-c", SLOW, str(tmp_path)]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "writing b\n"
    started = time.monotonic()
    process.send_signal(number)
    said = process.communicate(timeout=60)[1]
    assert (
        process.returncode == code
        and "run the same command again" in said
        and "Traceback" not in said
    )
    assert time.monotonic() - started < 20
    out = tmp_path / "out"
    done = json.loads((out / "run.json").read_text())["cases"]
    assert (
        "a" in done and "h" not in done and not [p for p in out.iterdir() if p.name.startswith(".")]
    )
    assert (
        predict(predictor, scans, out, files=Files(probabilities=True), continue_=True).failed == []
    )
    assert {p.name for p in out.glob("?.nii.gz")} == {f"{name}.nii.gz" for name in "abcdefgh"}


def test_a_case_that_fails_half_way_needs_no_permission_to_be_made_again(
    predictor, scans, tmp_path, monkeypatch
):
    def fail(*given):
        raise OSError(28, "No space left on device")

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(Probabilities, "pack", fail)
        result = predict(predictor, scans, out, files=Files(probabilities=True))
    assert (
        len(result.failed) == 2
        and "No space left" in result.failed[0]["message"]
        and "traceback" not in result.failed[0]
    )
    assert (
        json.loads((out / "a.json").read_text())["complete"] is False
        and (out / "a.nii.gz").is_file()
    )
    assert predict(predictor, scans, out, files=Files(probabilities=True), continue_=True).ok == [
        "a",
        "b",
    ]


# -- the command -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("outputs") / "run")


def test_the_command_exits_2_for_labels_reports_and_pages_of_others(run, scans, tmp_path, capsys):
    labels, out = tmp_path / "labelsTr", tmp_path / "out"
    shutil.copytree(scans, labels)
    (out / "report.html").parent.mkdir()
    (out / "report.html").write_text("<html>my notes</html>")
    (tmp_path / "notes.json").write_text('{"cases": []}')
    before = contents(tmp_path)
    base = ["predict", "-m", str(run), "-i", str(scans), "--quiet"]
    for more, words in (
        (
            ["-o", str(labels)],
            f"{labels / 'a.nii.gz'}: the prediction of a would overwrite a file that medjax did "
            "not write",
        ),
        (["-o", str(scans)], "would overwrite its input"),
        (["-o", str(out)], f"{out / 'report.html'}: the prediction would overwrite"),
        (
            ["-o", str(tmp_path / "new"), "--report", str(tmp_path / "notes.json")],
            "the manifest would overwrite",
        ),
        (
            ["-o", str(tmp_path / "new"), "--report", str(scans / "a.nii.gz"), "--overwrite"],
            "would overwrite its input",
        ),
        (
            ["-o", str(tmp_path / "new"), "--report", str(tmp_path / "new" / "a.json")],
            "overwrite the sidecar",
        ),
    ):
        assert cli.main([*base, *more]) == 2
        assert words in capsys.readouterr().err
    assert contents(tmp_path) == before
    assert (
        cli.main([*base, "-o", str(out), "--no-html"]) == 0
        and (out / "report.html").read_text() == "<html>my notes</html>"
    )
    for _ in range(2):
        assert cli.main([*base, "-o", str(labels), "--overwrite"]) == 0
    assert cli.main([*base, "-o", str(labels)]) == 0  # the page is ours by now


def test_names_with_control_codes_and_bytes_that_are_no_text(run, tmp_path, capsys):
    array = phantom() * 100
    for name in (b"red\x1b[2J.nii.gz", b"latin\xe9.nii.gz", b"cost $x_{$.nii.gz"):
        path = put(tmp_path / "in" / "x.nii.gz", array)
        os.rename(path, os.fsencode(path.parent) + b"/" + name)
    shutil.copy(ROOT / "tests" / "support" / "run.py", tmp_path / "in" / "bad\x1b[31m.nii.gz")
    given = [
        "predict",
        "-m",
        str(run),
        "-i",
        str(tmp_path / "in"),
        "-o",
        str(tmp_path / "out"),
        "--statistics",
        "--preview",
    ]
    assert cli.main(given) == 3
    said = capsys.readouterr()
    assert (
        "\x1b" not in said.err + said.out
        and r"bad\x1b[31m failed" in said.err
        and "could not be written" not in said.err
    )
    assert (tmp_path / "out" / "report.html").is_file() and "3 predicted" in said.err


def test_two_calls_at_once_on_one_folder_do_not_disturb_each_other(predictor, tmp_path):
    for k in range(8):
        put(tmp_path / "in" / f"{k}.nii.gz", phantom())
    cases, failed = find_inputs(tmp_path / "in", channels=1), []

    def part(i):
        failed.extend(
            predict_cases(
                predictor,
                cases[i::2],
                tmp_path / "out",
                Request("Liver"),
                files=Files(suffix=f"_part{i}of2"),
            ).failed
        )

    threads = [threading.Thread(target=part, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == [] and len(list((tmp_path / "out").glob("?.nii.gz"))) == 8
