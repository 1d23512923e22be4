"""`medjax predict` and `Predictor.open` with a promptable run: flags, files, exit codes."""

import json

import nibabel as nib
import numpy as np
import pytest

import medjax
from medjax import cli
from medjax.errors import UsageError
from medjax.labels import Corpus
from medjax.runs.prompted import prompting
from tests.support import toy_prompted
from tests.support.raw import make_case, save
from tests.support.run import make_run

BODY = Corpus("Body", ((1, ("liver",)), (2, ("spleen",))), channels=("CT",))
SHAPE = (10, 12, 14)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    toy_prompted.installed(patch)
    folder = tmp_path_factory.mktemp("prompted")
    model = {"name": "toy_prompted", "queries": 2, "width": 4}
    make_run(folder / "run", [BODY], model=model)
    for name in ("A", "B"):
        image, _ = make_case(SHAPE, [1, 2], kind="CT", seed=ord(name))
        save(folder / "scans" / f"{name}.nii.gz", image[..., 0])
    yield folder
    patch.undo()


def predict(run, out, *flags, scans=("A", "B")):
    inputs = [str(run / "scans" / f"{name}.nii.gz") for name in scans]
    words = ["predict", "-m", str(run / "run"), "-i", *inputs, "-o", str(out)]
    return cli.main([*words, "--no-html", "--quiet", *flags])


def side(out, name="A"):
    return json.loads((out / f"{name}.json").read_text())


def test_objects_of_a_command_line_become_masks(run, tmp_path):
    code = predict(
        run,
        tmp_path,
        *("--text", "liver", "--object", "lesion", "--point", "-1,5,4", "--point", "2,3,3,neg"),
        *("--box", "0,0,0,6,6,6", "--space", "voxel", "--zoom", "out", "--one-file-per-class"),
        scans=("A",),
    )
    assert code == 2  # the point lies outside: the call has no other scan


def test_voxels_and_millimetres_give_the_same_masks(run, tmp_path):
    affine = nib.load(run / "scans" / "A.nii.gz").affine
    corners = [(affine @ [*c, 1])[:3] for c in ((1, 2, 1), (8, 9, 6))]
    low, high = np.minimum(*corners), np.maximum(*corners)
    words = {
        "voxel": "1,2,1,8,9,6",
        "ras": ",".join(f"{v:g}" for v in (*low, *high)),
        "lps": ",".join(f"{v:g}" for v in (-high[0], -high[1], low[2], -low[0], -low[1], high[2])),
    }
    found = {}
    for space, box in words.items():
        out = tmp_path / space
        assert predict(run, out, "--box", box, "--space", space, scans=("A",)) == 0
        found[space] = np.asarray(nib.load(out / "A.nii.gz").dataobj)
        assert side(out)["labels"] == {"1": "object"}
    np.testing.assert_array_equal(found["voxel"], found["ras"])
    np.testing.assert_array_equal(found["voxel"], found["lps"])
    assert found["voxel"].shape == SHAPE[::-1]
    manifest = json.loads((tmp_path / "ras" / "run.json").read_text())
    assert manifest["programs"] == 2


def test_a_file_names_the_objects_of_each_scan(run, tmp_path, capsys):
    path = tmp_path / "prompts.json"
    far = {"name": "x", "points": [[900, 0, 0]]}
    path.write_text(json.dumps({"A": {"objects": [{"text": "Spleen"}]}, "B": {"objects": [far]}}))
    out = tmp_path / "out"
    assert predict(run, out, "--prompts", str(path)) == 3
    assert side(out)["labels"] == {"1": "Spleen"} and not (out / "B.nii.gz").exists()
    error = capsys.readouterr().err
    assert "point 1 of object 'x'" in error and "prompts.json, case B" in error
    assert predict(run, tmp_path / "again", "--prompts", str(path), scans=("A",)) == 2
    assert "for a scan that is not given: B" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--text", "livr"), "did you mean liver"),
        (("--box", "5,0,0,1,9,9"), "minimum above its maximum"),
        (("--point", "1,2"), "unusable point"),
        (("--prompts", "nothing.json"), "nothing.json"),
        (("--text", "liver", "--classes", "spleen"), "exclude each other"),
        (("--tta", "mirror"), "does not take these options"),
        (("--text", "liver", "--probabilities"), "probabilities"),
    ],
)
def test_unusable_prompts_are_refused(run, tmp_path, capsys, flags, words):
    assert predict(run, tmp_path, *flags, scans=("A",)) == 2
    assert words in capsys.readouterr().err


def test_without_prompts_every_class_is_predicted_by_text(run, tmp_path):
    assert predict(run, tmp_path, scans=("A",)) == 0
    assert side(tmp_path)["labels"] == {"1": "liver", "2": "spleen"}
    assert set(side(tmp_path)["classes"]) == {"liver", "spleen"}


def test_a_run_without_prompts_says_so(tmp_path, capsys):
    make_run(tmp_path / "plain", [BODY])
    image, _ = make_case(SHAPE, [1, 2], kind="CT")
    save(tmp_path / "A.nii.gz", image[..., 0])
    for flags in (("--text", "liver"), ("--zoom", "out")):
        words = ["-m", str(tmp_path / "plain"), "-i", str(tmp_path / "A.nii.gz")]
        assert cli.main(["predict", *words, "-o", str(tmp_path / "out"), *flags]) == 2
        assert "prompt" in capsys.readouterr().err
    with pytest.raises(UsageError, match="reads no prompts"):
        medjax.Predictor(str(tmp_path / "plain")).open(nib.load(tmp_path / "A.nii.gz"))


def test_the_python_interface_opens_a_scan(run):
    image = nib.load(run / "scans" / "A.nii.gz")
    opened = medjax.Predictor(str(run / "run")).open(image)
    mask = opened.segment(text="liver")
    assert mask.shape == SHAPE and mask.dtype == bool
    centre = (image.affine @ [7, 6, 5, 1])[:3]
    opened.click(centre)
    np.testing.assert_array_equal(opened.undo(), mask)
    array = np.asarray(image.dataobj, np.float32).T
    again = medjax.Predictor(str(run / "run")).open(array, image.affine)
    np.testing.assert_array_equal(again.segment(text="liver"), mask)


def test_coordinates_may_begin_with_a_minus():
    words = [
        "predict",
        "--box",
        "-1,-2,3,4,5,6",
        "--point",
        "-.5,1,2",
        "-i",
        "a",
        "--point",
        "1,2,3",
    ]
    assert cli._joined(words)[1:3] == ["--box=-1,-2,3,4,5,6", "--point=-.5,1,2"]
    assert cli._joined(words)[3:] == ["-i", "a", "--point", "1,2,3"]


def test_flags_and_files_add_up(tmp_path):
    path = tmp_path / "lesion.mrk.json"
    points = [{"position": [1, 2, 3]}]
    markup = {"type": "Fiducial", "coordinateSystem": "RAS", "controlPoints": points}
    path.write_text(json.dumps({"markups": [markup]}))
    found = prompting.objects_of(["A", "B"], [("text", "liver")], [path])
    assert [one.name for one in found["B"]] == ["liver", "lesion"]
    assert prompting.names_of(found) == ("liver", "lesion")
    with pytest.raises(UsageError, match="two objects"):
        prompting.objects_of(["A"], [("text", "lesion")], [path])
