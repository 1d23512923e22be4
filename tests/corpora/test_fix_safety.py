"""`verify --fix` never writes outside of its folder, over a file, through a link or into the data;
what verify says about odd data.
"""

import json
import os

import numpy as np
import pytest

from medjax import cli
from medjax.corpora import fix as fixing
from medjax.corpora import survey
from medjax.corpora.fix import fix
from medjax.corpora.verify import verify
from medjax.errors import UsageError, WriteError
from tests.support.raw import save, write_corpus

SHAPE = (6, 7, 8)


@pytest.fixture
def raw(tmp_path):
    return write_corpus(tmp_path / "raw" / "Task01_A", 2, SHAPE)


def _state(folder):
    """Path -> content and kind of everything below."""
    found = {}
    for path in sorted(folder.rglob("*")):
        found[str(path.relative_to(folder))] = (
            os.readlink(path)
            if path.is_symlink()
            else path.read_bytes()
            if path.is_file()
            else None
        )
    return found


def test_an_output_folder_that_is_a_link_is_refused(raw, tmp_path, capsys):
    (tmp_path / "victim").mkdir()
    for name, target in (
        ("link", tmp_path / "victim"),
        ("dangling", tmp_path / "nowhere"),
        ("loop", tmp_path / "loop"),
    ):
        (tmp_path / name).symlink_to(target)
        before = _state(tmp_path)
        assert cli.main(["verify", str(raw), "--quiet", "--fix", str(tmp_path / name)]) == 2
        assert "symbolic link" in capsys.readouterr().err and _state(tmp_path) == before


@pytest.mark.parametrize("planted", ["imagesTr", "labelsTr", "dataset.json", ".medjax-tmp.x"])
def test_a_folder_with_a_planted_link_is_refused(raw, tmp_path, planted):
    out, victim = tmp_path / "out", tmp_path / "victim"
    out.mkdir()
    victim.mkdir()
    (out / planted).symlink_to(victim)
    with pytest.raises(UsageError, match="not empty"):
        fix(raw, out)
    assert not list(victim.iterdir())


def test_a_link_planted_between_the_check_and_the_writing_is_not_followed(
    raw, tmp_path, monkeypatch
):
    out, victim = tmp_path / "out", tmp_path / "victim"
    out.mkdir()
    victim.mkdir()
    check = fixing.check_target

    def plant(*arguments):
        check(*arguments)
        (out / "imagesTr").symlink_to(victim)

    monkeypatch.setattr(fixing, "check_target", plant)
    with pytest.raises(WriteError, match="imagesTr: cannot write"):
        fix(raw, out)
    assert not list(victim.iterdir())


def test_a_file_that_appears_meanwhile_is_kept(raw, tmp_path, monkeypatch):
    out, made = tmp_path / "out", fixing._made

    def plant(target):
        made(target)
        (target / "labelsTr" / "case_000.nii.gz").write_text("mine")
        (target / "dataset.json").symlink_to(tmp_path / "victim")
        return target

    monkeypatch.setattr(fixing, "_made", plant)
    with pytest.raises(WriteError, match=r"dataset\.json"):
        fix(raw, out, workers=1)
    assert (out / "labelsTr" / "case_000.nii.gz").read_text() == "mine" and not (
        tmp_path / "victim"
    ).exists()
    assert not (out / "imagesTr" / "case_000_0000.nii.gz").exists()  # the case is left out whole


def test_an_output_in_the_data_is_refused(raw, tmp_path):
    (tmp_path / "alias").symlink_to(raw)
    for out in (
        raw,
        raw / "imagesTr",
        raw / "new",
        raw / "imagesTr" / "new" / "er",
        tmp_path / "alias" / "new",
        raw.parent / "x" / ".." / raw.name,
    ):
        before = _state(tmp_path)
        with pytest.raises(UsageError, match="outside of the data set"):
            fix(raw, out)
        assert _state(tmp_path) == before


def test_an_output_in_a_folder_that_a_list_names_is_refused(tmp_path):
    rows, label = [], np.zeros(SHAPE, np.uint8)
    label[2:4, 2:4, 2:4] = 1
    for name in ("a", "b"):
        (tmp_path / "scans" / name).mkdir(parents=True)
        save(
            tmp_path / "scans" / name / "ct.nii.gz",
            np.arange(label.size, dtype=np.float32).reshape(SHAPE),
        )
        save(tmp_path / "scans" / name / "seg.nii.gz", label)
        rows.append(
            {
                "name": name,
                "image": f"../scans/{name}/ct.nii.gz",
                "label": f"../scans/{name}/seg.nii.gz",
            }
        )
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "list.json").write_text(
        json.dumps({"training": rows, "labels": {"1": "organ"}, "modality": "CT"})
    )
    for out in (tmp_path / "scans" / "a" / "fixed", tmp_path / "scans" / "b" / "x" / "y"):
        with pytest.raises(UsageError, match="in a case's folder"):
            fix(tmp_path / "lists", out)
        assert not out.exists()
    assert fix(tmp_path / "lists", tmp_path / "scans" / "fixed").ok


def test_several_data_sets_are_checked_before_any_is_written(raw, tmp_path, capsys):
    other = write_corpus(tmp_path / "raw2" / "Task02_B", 1, SHAPE)
    twin = write_corpus(tmp_path / "raw3" / "Task01_A", 1, SHAPE)
    assert cli.main(["verify", str(raw), str(twin), "--quiet", "--fix", str(tmp_path / "out")]) == 2
    assert "two data sets are called" in capsys.readouterr().err and not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "Task02_B").symlink_to(tmp_path / "victim")
    assert (
        cli.main(["verify", str(raw), str(other), "--quiet", "--fix", str(tmp_path / "out")]) == 2
    )
    assert (
        "symbolic link" in capsys.readouterr().err and not (tmp_path / "out" / "Task01_A").exists()
    )
    (tmp_path / "out" / "Task02_B").unlink()
    assert (
        cli.main(["verify", str(raw), str(other), "--quiet", "--fix", str(tmp_path / "out")]) == 0
    )
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["Task01_A", "Task02_B"]


def test_a_name_too_long_for_the_copy_is_left_out(tmp_path):
    raw = write_corpus(tmp_path / "Task01_A", 2, SHAPE)
    said = json.loads((raw / "dataset.json").read_text())
    rows = [
        {"name": n} | row for n, row in zip(("x" * 250, "y" * 240), said["training"], strict=True)
    ]
    (raw / "dataset.json").unlink()
    (raw / "list.json").write_text(
        json.dumps({"training": rows, "labels": said["labels"], "modality": "CT"})
    )
    result = fix(raw, tmp_path / "out")
    assert [row["case"] for row in result.left_out] == [
        "x" * 250
    ] and "longer than 243 bytes" in result.left_out[0]["why"]
    assert (tmp_path / "out" / "imagesTr" / f"{'y' * 240}_0000.nii.gz").is_file()


# -- what verify says ------------------------------------------------------------------------------


def _edit(raw, **fields):
    path = raw / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def _warnings(report):
    return [p["what"] for p in report.problems if p["severity"] == "warning"]


@pytest.mark.parametrize("said", [999, 1, "many", -1, 2.5, [2]])
def test_another_number_of_cases_than_stated_is_warned_of(raw, said):
    _edit(raw, numTraining=said)
    report = verify(raw)
    assert report.ok and _warnings(report) == ["numTraining is not the number of training cases"]
    _edit(raw, numTraining=2)
    assert _warnings(verify(raw)) == []


def test_image_and_label_the_same_file_is_an_error(raw):
    said = json.loads((raw / "dataset.json").read_text())
    first, second = said["training"]
    (raw / "imagesTr" / "link.nii.gz").symlink_to(raw / second["label"])
    _edit(
        raw,
        training=[
            first | {"label": first["image"]},
            {"image": "imagesTr/link.nii.gz", "label": second["label"]},
        ],
    )
    report = verify(raw)
    assert [p["what"] for p in report.problems if p["severity"] == "error"] == [
        "image and label are the same file"
    ] * 2


def test_a_file_of_two_cases_is_warned_of(raw):
    (raw / "imagesTr" / "again.nii.gz").symlink_to(raw / "imagesTr" / "case_000.nii.gz")
    said = json.loads((raw / "dataset.json").read_text())
    _edit(
        raw,
        training=[
            *said["training"],
            {"image": "imagesTr/again.nii.gz", "label": "labelsTr/case_000.nii.gz"},
        ],
        numTraining=3,
    )
    assert sorted(_warnings(verify(raw))) == ["the image of 2 cases", "the label of 2 cases"]


def test_swapped_image_and_label_are_one_line(tmp_path):
    rng, folder = np.random.default_rng(0), tmp_path / "Task01_A"
    (folder / "imagesTr").mkdir(parents=True)
    (folder / "labelsTr").mkdir()
    label = np.zeros((12, 12, 12), np.uint8)
    label[2:8, 2:8, 2:8] = 1
    rows = []
    for n in range(30):
        save(folder / "imagesTr" / f"c{n}.nii.gz", label)
        save(
            folder / "labelsTr" / f"c{n}.nii.gz", rng.integers(0, 200, label.shape).astype(np.int16)
        )
        rows.append({"image": f"imagesTr/c{n}.nii.gz", "label": f"labelsTr/c{n}.nii.gz"})
    described = {
        "training": rows,
        "labels": {"0": "background", "1": "organ"},
        "modality": {"0": "CT"},
    }
    (folder / "dataset.json").write_text(json.dumps(described))
    report = verify(folder)
    errors = [p for p in report.problems if p["severity"] == "error"]
    assert len(errors) == 30 and all(
        "swapped" in p["fix"] and "198 undeclared label values" == p["what"] for p in errors
    )
    lines = report.text().splitlines()
    assert (
        sum("undeclared label values" in line for line in lines) == 20
        and "ERROR 10 more like these (--json lists them all)" in lines
    )
    assert lines[-1] == "A: NOT usable as it is, 30 errors, 0 warnings"


def test_more_classes_than_make_sense_are_warned_of_and_take_no_time(raw):
    import time

    regions = {f"region_{n}": [1, 2] for n in range(3000)}
    _edit(raw, medjax={"regions": regions}, numTraining=2)
    began = time.process_time()
    report = verify(raw, workers=1)
    assert time.process_time() - began < 20
    assert "very many classes" in _warnings(
        report
    ) and "2999 classes have the voxels of another class" in _warnings(report)


def test_label_voxels_that_cropping_cuts_off_are_warned_of(tmp_path):
    folder = tmp_path / "Task01_A"
    (folder / "files").mkdir(parents=True)
    image, inside, rows = np.zeros((10, 10, 10), np.float32), np.zeros((10, 10, 10), np.uint8), []
    image[2:8, 2:8, 2:8] = np.arange(216).reshape(6, 6, 6) + 1
    inside[3:6, 3:6, 3:6] = 1
    outside, hole = inside.copy(), image.copy()
    outside[5, 5, 0:3] = 1  # two voxels beyond the box
    hole[4, 4, 4] = 0  # inside of the box: not lost
    for name, scan, label in (
        ("in", image, inside),
        ("out", image, outside),
        ("hole", hole, inside),
    ):
        save(folder / "files" / f"{name}.nii.gz", scan)
        save(folder / "files" / f"{name}_seg.nii.gz", label)
        rows.append({"image": f"files/{name}.nii.gz", "label": f"files/{name}_seg.nii.gz"})
    described = {
        "training": rows,
        "labels": {"0": "background", "1": "organ"},
        "modality": {"0": "MR"},
    }
    (folder / "dataset.json").write_text(json.dumps(described))
    report = verify(folder)
    (found,) = [p for p in report.problems if "outside of all that is not 0" in p["what"]]
    assert (
        found["file"].endswith("out_seg.nii.gz")
        and found["found"] == "2 voxels"
        and found["severity"] == "warning"
        and report.ok
    )


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"[" * 200_000, "nested too deeply"),
        (
            '{"labels": {"Größe": 1}}'.encode("latin-1"),
            "another encoding than UTF-8; found Latin-1",
        ),
        ('{"labels": {"a": 1}}'.encode("utf-16"), "another encoding than UTF-8; found UTF-16"),
        (b"[]", "must be objects"),
        (b"\xef\xbb\xbf{", "damaged JSON"),
    ],
)
def test_a_description_that_cannot_be_read_is_a_sentence(raw, capsys, content, words):
    (raw / "dataset.json").write_bytes(content)
    assert cli.main(["verify", str(raw), "--quiet"]) == 2
    shown = capsys.readouterr().err
    assert (
        words in shown
        and "dataset.json" in shown
        and "Traceback" not in shown
        and shown.count("\n") == 1
    )


# -- what is kept between calls --------------------------------------------------------------------


def test_the_survey_keeps_its_notes_at_home_and_leaves_foreign_files_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDJAX_HOME", str(tmp_path / "home"))
    raw = tmp_path / "raw"
    for name in ("a", "b"):
        (raw / name).mkdir(parents=True)
        save(raw / name / "ct.nii.gz", np.arange(336, dtype=np.float32).reshape(SHAPE))
        save(raw / name / "seg.nii.gz", (np.arange(336) % 3).astype(np.uint8).reshape(SHAPE))
    before = _state(raw)
    assert verify(raw).ok and _state(raw) == before
    (notes,) = (tmp_path / "home" / "survey").iterdir()
    kept = json.loads(notes.read_text())
    assert len(kept) == 2
    notes.write_text('{"diary": "mine"}')
    assert verify(raw).ok and notes.read_text() == '{"diary": "mine"}'
    notes.write_text(json.dumps({key: [7] for key in kept}))  # notes of an earlier look are used
    assert survey._read(notes) == {key: [7] for key in kept}
