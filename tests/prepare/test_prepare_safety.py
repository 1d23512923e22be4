"""Preparation deletes and replaces only what it has written: raw data, foreign folders, links,
names, full disks, signals, locks.
"""

import _thread
import dataclasses
import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings

import numpy as np
import pytest

from medjax import cli, files, locks
from medjax.corpora.cases import each, still_wanted
from medjax.corpora.inputs import Case
from medjax.corpora.sources import read_corpus
from medjax.errors import DataError, UsageError
from medjax.prepare import store, targets
from medjax.prepare.plan import Intensity, Plan
from medjax.prepare.prepare import prepare
from medjax.scans.nifti import DataWarning
from tests.support.marks import slow
from tests.support.raw import make_case, save, write_corpus

SHAPE = (8, 9, 10)


def plan_of(corpus, spacing=(1.0, 1.0, 1.0)):
    return Plan({corpus.store: spacing}, {c: Intensity("zscore") for c in corpus.channels})


def state(folder):
    """Every file and link below a folder, with a hash of its content."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            found[path] = os.readlink(path)
        elif path.is_file():
            found[path] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def pairs(folder):
    for k in (1, 3, 6):
        image, label = make_case(SHAPE, (1, 2), seed=k)
        save(folder / f"case_{k:03d}" / "imaging.nii.gz", image[..., 0])
        save(folder / f"case_{k:03d}" / "segmentation.nii.gz", label)
    return folder


def brats(folder):
    for k in (1, 2):
        image, label = make_case(SHAPE, (1, 2), seed=k, channels=2)
        for c, word in enumerate(("flair", "t1")):
            save(folder / f"B_{k}" / f"B_{k}_{word}.nii.gz", image[..., c])
        save(folder / f"B_{k}" / f"B_{k}_seg.nii.gz", label)
    return folder


def perclass(folder):
    for k in (1, 2):
        image, label = make_case(SHAPE, (1, 2), seed=k)
        save(folder / f"s{k}" / "ct.nii.gz", image[..., 0])
        for value, name in ((1, "organ"), (2, "tumour")):
            save(
                folder / f"s{k}" / "segmentations" / f"{name}.nii.gz",
                (label == value).astype(np.uint8),
            )
    return folder


def bids(folder):
    for k in (1, 2):
        image, label = make_case(SHAPE, (1, 2), seed=k)
        save(folder / f"sub-{k:02d}" / "anat" / f"sub-{k:02d}_T1w.nii.gz", image[..., 0])
        save(folder / f"sub-{k:02d}" / "anat" / f"sub-{k:02d}_dseg.nii.gz", label)
    return folder


LAYOUTS = [pairs, brats, perclass, bids]


@pytest.fixture
def raw(tmp_path):
    corpus, cases = read_corpus(write_corpus(tmp_path / "raw" / "Task01_A", 3, SHAPE))
    return corpus, cases, tmp_path / "s"


# ---------------------------------------------------------------- the store beside or in the raw
# data


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_store_that_is_the_data_set_is_refused_and_nothing_is_lost(tmp_path, capsys, layout):
    data = layout(tmp_path / "D" / "Kits")
    before = state(tmp_path)
    assert cli.main(["prepare", str(data), "-o", str(tmp_path / "D")]) == 2
    err = capsys.readouterr().err
    assert "the store would lie among the raw files" in err and "-o" in err and err.count("\n") == 1
    assert state(tmp_path) == before


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_store_through_a_link_to_the_data_set_is_refused(tmp_path, layout):
    data = layout(tmp_path / "D" / "Kits")
    (tmp_path / "link").symlink_to(tmp_path / "D")
    before = state(tmp_path)
    assert cli.main(["prepare", str(data), "-o", str(tmp_path / "link")]) == 2
    assert (
        cli.main(["prepare", str(tmp_path / "link" / "Kits"), "-o", str(tmp_path / "D"), "--force"])
        == 2
    )
    assert state(tmp_path) == before


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_store_in_the_folder_of_a_case_is_refused(tmp_path, capsys, layout):
    data = layout(tmp_path / "Kits")
    before = state(tmp_path)
    first = sorted(p for p in data.iterdir() if p.is_dir())[0]
    for place in (first, first / "deeper" / "store"):
        assert cli.main(["prepare", str(data), "-o", str(place)]) == 2
        assert "in a folder with the raw files of a case" in capsys.readouterr().err
    assert state(tmp_path) == before


def test_a_store_in_a_dicom_series_is_refused(tmp_path):
    series = tmp_path / "patient"
    series.mkdir()
    (series / "1.dcm").write_bytes(b"")
    with pytest.raises(UsageError, match="in a folder with the raw files"):
        targets.check_targets("A", [Case("x", (str(series),))], series / "store")


def test_training_into_the_data_set_is_refused_and_nothing_is_lost(tmp_path):
    data = pairs(tmp_path / "D" / "Kits")
    before = state(data)
    corpus, cases = read_corpus(data)
    with pytest.raises(UsageError, match="among the raw files"):
        prepare(corpus, cases, plan_of(corpus), tmp_path / "D")
    assert state(data) == before


def test_a_store_beside_images_under_free_names_is_fine(tmp_path):
    folder = write_corpus(tmp_path / "Task01_A", 2, SHAPE)
    before = state(folder)
    corpus, cases = read_corpus(folder)
    assert len(prepare(corpus, cases, plan_of(corpus), folder).ok) == 2
    assert {k: v for k, v in state(folder).items() if k in before} == before


# ---------------------------------------------------------------- what is in the way


def foreign_folder(path):
    path.mkdir(parents=True)
    (path / "thesis.txt").write_text("chapter 1")


def empty_folder(path):
    path.mkdir(parents=True)


def plain_file(path):
    path.parent.mkdir(parents=True)
    path.write_text("mine")


def linked_folder(path):
    foreign_folder(path.parent.parent / "elsewhere")
    path.parent.mkdir(parents=True)
    path.symlink_to(path.parent.parent / "elsewhere")


def dangling_link(path):
    path.parent.mkdir(parents=True)
    path.symlink_to(path.parent.parent / "nowhere")


def foreign_description(path):
    foreign_folder(path)
    (path / "case.json").write_text('{"patient": "x", "key": "1"}')


def damaged_description_beside_raw_files(path):
    foreign_folder(path)
    (path / "case.json").write_text('{"name": "case_0')


def another_case(path):
    foreign_folder(path)
    (path / "case.json").write_text(
        json.dumps({"name": "case_009", "corpus": "A", "key": "", "version": 2, "sources": {}})
    )


def another_corpus(path):
    foreign_folder(path)
    (path / "case.json").write_text(
        json.dumps({"name": "case_001", "corpus": "B", "key": "", "version": 2, "sources": {}})
    )


def linked_description(path):
    foreign_folder(path)
    claimed = path / "thesis.json"
    claimed.write_text(
        json.dumps({"name": "case_001", "corpus": "A", "key": "", "version": 2, "sources": {}})
    )
    (path / "case.json").symlink_to(claimed)


IN_THE_WAY = [
    foreign_folder,
    empty_folder,
    plain_file,
    linked_folder,
    dangling_link,
    foreign_description,
    damaged_description_beside_raw_files,
    another_case,
    another_corpus,
    linked_description,
]


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("plant", IN_THE_WAY)
def test_what_is_in_the_way_stays_and_nothing_is_written(raw, tmp_path, plant, force):
    corpus, cases, root = raw
    plant(root / "A" / "case_001")
    before = state(tmp_path)
    with pytest.raises(
        UsageError, match="case_001: is in the way of a prepared case, and medjax did not write it"
    ) as caught:
        prepare(corpus, cases, plan_of(corpus), root, force=force)
    assert caught.value.exit_code == 2 and "move" in caught.value.fix
    assert state(tmp_path) == before and sorted(p.name for p in (root / "A").iterdir()) == [
        "case_001"
    ]


def test_the_command_writes_nothing_before_it_refuses(tmp_path, capsys):
    folder = write_corpus(tmp_path / "Task01_A", 2, SHAPE)
    other = write_corpus(tmp_path / "Task02_B", 1, SHAPE)
    foreign_folder(tmp_path / "s" / "A" / "case_001")
    before = state(tmp_path)
    assert cli.main(["prepare", str(other), str(folder), "-o", str(tmp_path / "s"), "--quiet"]) == 2
    assert (
        "case_001" in capsys.readouterr().err and state(tmp_path) == before
    )  # neither plan.json nor the other corpus


def test_a_foreign_plan_in_the_store_stays(tmp_path, capsys):
    folder = write_corpus(tmp_path / "Task01_A", 1, SHAPE)
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "plan.json").write_text('{"my": "floor plan"}')
    assert cli.main(["prepare", str(folder), "-o", str(tmp_path / "s"), "--quiet"]) == 2
    assert (
        "plan.json" in capsys.readouterr().err
        and (tmp_path / "s" / "plan.json").read_text() == '{"my": "floor plan"}'
    )


def test_a_linked_corpus_folder_is_refused(raw, tmp_path):
    corpus, cases, root = raw
    foreign_folder(tmp_path / "elsewhere")
    root.mkdir()
    (root / "A").symlink_to(tmp_path / "elsewhere")
    before = state(tmp_path)
    with pytest.raises(
        UsageError, match=r"s/A: the store's folder for this corpus is no folder; found a link to"
    ):
        prepare(corpus, cases, plan_of(corpus), root)
    assert state(tmp_path) == before


@pytest.mark.parametrize(
    "name", ["../../pwn", "/absolute", "..", ".", ".hidden", "a/b", "a\\b", "", "x\0y", "x" * 300]
)
def test_hostile_names_are_refused(raw, tmp_path, name):
    corpus, cases, root = raw
    before = state(tmp_path)
    with pytest.raises(UsageError, match="unusable case name"):
        prepare(
            corpus, [*cases[1:], dataclasses.replace(cases[0], name=name)], plan_of(corpus), root
        )
    with pytest.raises(UsageError, match="unusable corpus name"):
        dataclasses.replace(corpus, name=name, store=name)
    assert state(tmp_path) == before and not root.exists()


def test_two_cases_of_one_name_are_refused(raw):
    corpus, cases, root = raw
    with pytest.raises(UsageError, match="two cases with one name"):
        prepare(
            corpus, [*cases, dataclasses.replace(cases[1], name="case_000")], plan_of(corpus), root
        )


def test_a_hostile_description_deletes_no_foreign_folder(raw, tmp_path, capsys):
    _, cases, root = raw
    foreign_folder(tmp_path / "victims" / "thesis")
    described = tmp_path / "evil"
    described.mkdir()
    corpus = {
        "name": "../victims",
        "labels": [[0, []], [1, ["organ"]], [2, ["tumour"]]],
        "channels": ["MRI"],
        "modality": "MR",
    }
    row = {
        "name": "thesis",
        "images": list(cases[0].images),
        "label": cases[0].label,
        "patient": "p",
    }
    (described / "corpus.json").write_text(
        json.dumps({"format": 1, "corpus": corpus, "cases": [row]})
    )
    before = state(tmp_path)
    root.mkdir()
    assert cli.main(["prepare", str(described), "-o", str(root), "--quiet"]) == 2
    assert "corpus" in capsys.readouterr().err and state(tmp_path) == before


# ---------------------------------------------------------------- what may be replaced


def test_a_prepared_case_with_further_files_is_not_replaced(raw):
    """Somebody keeps notes in a case's folder: as long as it is up to date that is fine, then this
    case fails alone.
    """
    corpus, cases, root = raw
    prepare(corpus, cases, plan_of(corpus), root)
    for place in ("case_001", "case_002/image.zarr/c"):
        (root / "A" / place / "notes.txt").write_text("mine")
    assert prepare(corpus, cases, plan_of(corpus), root).skipped == 3
    for force in (False, True):
        result = prepare(corpus, cases, plan_of(corpus, (2.0, 1.0, 1.0)), root, force=force)
        assert [f["case"] for f in result.failed] == [
            "case_001",
            "case_002",
        ] and "notes.txt" in result.failed[1]["found"]
        assert "move them away" in result.failed[0]["fix"] and result.ok + ["case_000"] * (
            not result.ok
        ) == ["case_000"]
    assert (root / "A" / "case_001" / "notes.txt").exists() and (
        root / "A" / "case_002" / "image.zarr" / "c" / "notes.txt"
    ).exists()
    assert not [p for p in (root / "A").iterdir() if p.name.startswith(".")]


@pytest.mark.parametrize(
    "content", [b"", b"{", b'{"name": "case_0', b"\xff\xfe", b"[" * 100_000, b"[]", b'{"name": 5}']
)
def test_a_damaged_description_is_made_again_only_if_nothing_else_is_there(raw, content):
    corpus, cases, root = raw
    prepare(corpus, cases[:1], plan_of(corpus), root)
    case = root / "A" / "case_000"
    (case / "case.json").write_bytes(content)
    assert prepare(corpus, cases[:1], plan_of(corpus), root).ok == ["case_000"]
    assert store.open_case(case).meta["name"] == "case_000"
    for missing in ("locations.npz", "label.zarr"):
        (case / "case.json").write_bytes(content)
        path = case / missing
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        with pytest.raises(UsageError, match="not of medjax, or damaged"):
            prepare(corpus, cases[:1], plan_of(corpus), root)
        shutil.rmtree(case)
        prepare(corpus, cases[:1], plan_of(corpus), root)


def test_a_case_that_was_exchanged_meanwhile_is_put_back(raw, tmp_path, monkeypatch):
    """Between the look and the move another folder takes the name: it comes back."""
    corpus, cases, root = raw
    prepare(corpus, cases[:1], plan_of(corpus), root)
    rename, final = os.rename, root / "A" / "case_000"

    def late(source, target):
        if str(source) == str(final):
            monkeypatch.setattr(os, "rename", rename)
            rename(final, tmp_path / "aside")
            foreign_folder(final)
        rename(source, target)

    monkeypatch.setattr(os, "rename", late)
    with pytest.raises(DataError, match="medjax did not write it"):
        targets.discard(final, "A")
    assert (final / "thesis.txt").read_text() == "chapter 1" and [
        p.name for p in (root / "A").iterdir()
    ] == ["case_000"]


def test_only_leftovers_of_ended_processes_that_hold_our_files_are_swept(tmp_path):
    import socket

    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    host = socket.gethostname()
    former = [tmp_path / f".tmp-{host}-{ended.pid}-0123abcd-{name}" for name in ("ours", "foreign")]
    for path in former:
        (path / "image.zarr").mkdir(parents=True)
        (path / "image.zarr" / "zarr.json").write_text("{}")
    (former[1] / "thesis.txt").write_text("chapter 1")
    foreign_folder(tmp_path / "elsewhere")
    link = tmp_path / f".tmp-{host}-{ended.pid}-0123abcd-link"
    link.symlink_to(tmp_path / "elsewhere")
    (tmp_path / ".tmp-mine").mkdir()
    assert targets.sweep(tmp_path) is False
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(
        [".tmp-mine", former[1].name, link.name, "elsewhere"]
    )
    assert (tmp_path / "elsewhere" / "thesis.txt").exists()


def test_long_names(raw):
    corpus, cases, root = raw
    name = "x" * 240
    result = prepare(corpus, [dataclasses.replace(cases[0], name=name)], plan_of(corpus), root)
    assert (
        result.ok == [name]
        and prepare(
            corpus, [dataclasses.replace(cases[0], name=name)], plan_of(corpus), root
        ).skipped
        == 1
    )


def test_a_label_changed_behind_our_back_is_found(raw):
    """Same size, modification time set back: the change time tells."""
    corpus, cases, root = raw
    label = cases[0].label.replace(".nii.gz", ".nii")
    case = dataclasses.replace(cases[0], label=label)
    array = make_case(SHAPE, (1, 2))[1]
    save(type(root)(label), array)
    prepare(corpus, [case], plan_of(corpus), root)
    before, size = os.stat(label), os.path.getsize(label)
    with open(label, "r+b") as file:
        file.seek(size - 200)
        file.write(b"\1" * 100)
    os.utime(label, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (os.path.getsize(label), os.stat(label).st_mtime_ns) == (
        before.st_size,
        before.st_mtime_ns,
    )
    result = prepare(corpus, [case], plan_of(corpus), root)
    assert result.ok == ["case_000"] and result.stale == {"case_000": "sources"}


def test_labels_outside_the_image_are_told_of_and_recorded(tmp_path, capsys):
    folder = write_corpus(tmp_path / "Task01_A", 1, SHAPE)
    image, label = make_case(SHAPE, (1, 2))
    image[:4] = 0
    save(folder / "imagesTr" / "case_000.nii.gz", image[..., 0])
    save(folder / "labelsTr" / "case_000.nii.gz", label)
    lost, total = int((label[:4] > 0).sum()), int((label > 0).sum())
    assert 0 < lost < total
    corpus, cases = read_corpus(folder)
    with pytest.warns(
        DataWarning, match=rf"{lost} of {total} labelled voxels \(.*outside the non-zero part"
    ):
        result = prepare(corpus, cases, plan_of(corpus), tmp_path / "s")
    assert result.cropped == {"case_000": (lost, total)}
    assert store.open_case(tmp_path / "s" / "A" / "case_000").meta["cropped_labels"] == [
        lost,
        total,
    ]
    assert prepare(corpus, cases, plan_of(corpus), tmp_path / "s").cropped == {
        "case_000": (lost, total)
    }  # not forgotten
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert cli.main(["prepare", str(folder), "-o", str(tmp_path / "t"), "--quiet"]) == 0
    assert f"case_000: {lost} of {total} labelled voxels" in capsys.readouterr().out


def test_some_cases_can_be_made_again_alone(tmp_path, capsys):
    folder = write_corpus(tmp_path / "Task01_A", 3, SHAPE)
    command = ["prepare", str(folder), "-o", str(tmp_path / "s"), "--quiet"]
    assert cli.main(command) == 0 and "3 prepared, 0 already there" in capsys.readouterr().out
    assert (
        cli.main([*command, "--force", "--cases", "case_001"]) == 0
        and "1 prepared, 0 already there" in capsys.readouterr().out
    )
    assert (
        cli.main([*command, "--cases", "case_01"]) == 2
        and "did you mean case_001" in capsys.readouterr().err
    )


# ---------------------------------------------------------------- disks, signals, rivals

LIMITED = """
import resource, signal, sys
from medjax.prepare.plan import Intensity, Plan
from medjax.prepare.prepare import prepare
from medjax.corpora.sources import read_corpus
corpus, cases = read_corpus(sys.argv[1])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (3500, 3500))
plan = Plan({"A": (1.0, 1.0, 1.0)}, {"MRI": Intensity("zscore")})
result = prepare(corpus, cases, plan, sys.argv[2], packed=sys.argv[3] == "packed")
print(result.ok)
for f in result.failed:
    given = f["case"], f["error"], f.get("path"), f["message"], f.get("fix"), "traceback" in f
    print(*given, sep="|")
"""


@pytest.mark.parametrize("layout", ["flat", "packed"])
def test_files_that_cannot_grow_are_a_sentence_and_the_others_go_on(tmp_path, repository, layout):
    folder, root = write_corpus(tmp_path / "Task01_A", 3, SHAPE), tmp_path / "s"
    small, label = make_case((4, 5, 6), (1, 2))
    save(folder / "imagesTr" / "case_001.nii.gz", small[..., 0])
    save(folder / "labelsTr" / "case_001.nii.gz", label)
    for k in (0, 2):
        image, label = make_case((30, 30, 30), (1, 2), seed=k)
        save(folder / "imagesTr" / f"case_00{k}.nii.gz", image[..., 0])
        save(folder / "labelsTr" / f"case_00{k}.nii.gz", label)
    command = [sys.executable, "-c", LIMITED, str(folder), str(root), layout]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first, *failed = done.stdout.splitlines()
    assert first == "['case_001']" and len(failed) == 2
    for line in failed:
        case, error, path, message, fix, trace = line.split("|")
        assert (
            error == "WriteError"
            and path == str(root / "A" / case)
            and "cannot write (File too large)" in message
        )
        assert "free space" in fix and trace == "False"
    assert sorted(p.name for p in (root / "A").iterdir()) == ["case_001"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_is_full_from_the_beginning(raw, monkeypatch, number):
    """Not even the lock can be written: every case is reported; cases up to date can be used."""
    corpus, cases, root = raw
    prepare(corpus, cases[:1], plan_of(corpus), root)

    def full(path):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(files, "create", full)
    said, make = [], type(root).mkdir
    monkeypatch.setattr(
        type(root),
        "mkdir",
        lambda self, *a, **k: full(self) if ".medjax-tmp" in str(self) else make(self, *a, **k),
    )
    result = prepare(corpus, cases, plan_of(corpus), root, say=said.append)
    assert result.skipped == 1 and [f["case"] for f in result.failed] == ["case_001", "case_002"]
    assert all(
        f["error"] == "WriteError" and f["fix"] and os.strerror(number) in f["message"]
        for f in result.failed
    )
    assert len(said) == 1 and "cannot be locked" in said[0]


def test_a_store_that_can_only_be_read_is_up_to_date(tmp_path, repository):
    """A training on somebody else's store."""
    folder, root = write_corpus(tmp_path / "Task01_A", 2, SHAPE), tmp_path / "s"
    corpus, cases = read_corpus(folder)
    prepare(corpus, cases, plan_of(corpus), root)
    script = LIMITED.replace(
        "resource.setrlimit(resource.RLIMIT_FSIZE, (3500, 3500))",
        "import encodings.cp437, os\nif os.geteuid() == 0: os.setuid(65534)",
    )
    script = script.replace("print(result.ok)", "print(result.ok, result.skipped)")
    opened = [
        p
        for p in (tmp_path, *tmp_path.parents)
        if os.stat(p).st_uid == os.geteuid() and not os.stat(p).st_mode & 0o005
    ]
    modes = {path: os.stat(path).st_mode for path in (root / "A", *opened)}
    try:
        for path in modes:
            os.chmod(path, 0o555 if path == root / "A" else 0o755)
        command = [sys.executable, "-c", script, str(folder), str(root), "flat"]
        done = subprocess.run(command, cwd=repository, capture_output=True, text=True)
    finally:
        for path, mode in modes.items():
            os.chmod(path, mode)
    if "PermissionError" in done.stderr and "site-packages" in done.stderr:
        pytest.skip("another user cannot read the interpreter's packages here")
    assert done.stdout.strip() == "[] 2" and done.stderr == "", done.stderr


SLOW = """
import sys, time
from medjax import cli
from medjax.prepare import store
from medjax.corpora import cases as tools
from medjax.prepare import prepare
write = store.write_array
def slow(path, array, packed=False):
    write(path, array, packed)
    print("writing", flush=True)
    for _ in range(600):
        tools.still_wanted()
        time.sleep(0.1)
store.write_array = slow
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("number", "code", "word"),
    [(signal.SIGINT, 130, "interrupted"), slow(signal.SIGTERM, 143, "stopped by SIGTERM")],
)
def test_signals_end_a_preparation_quickly_and_leave_nothing(
    tmp_path, repository, number, code, word
):
    folder, root = write_corpus(tmp_path / "Task01_A", 6, SHAPE), tmp_path / "s"
    command = [
        sys.executable,
        "-c",
        SLOW,
        "prepare",
        str(folder),
        "-o",
        str(root),
        "--workers",
        "2",
        "--quiet",
    ]
    process = subprocess.Popen(
        command, cwd=repository, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while "writing" not in (line := process.stdout.readline()):
        assert line, process.stderr.read()
    begin = time.monotonic()
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert (
        process.returncode == code
        and word in err
        and "Traceback" not in err
        and time.monotonic() - begin < 20
    )
    assert list((root / "A").iterdir()) == []


def test_interrupted_cases_that_wait_for_memory_do_not_begin(monkeypatch):
    """A thread at the gate must not start a long case because the one before it was stopped."""
    from medjax.corpora import cases as tools

    monkeypatch.setattr(tools, "MEMORY_SHARE", 1e-12)  # one at a time
    begun = []

    def work(case):
        begun.append(case.name)
        for _ in range(100):
            still_wanted()
            time.sleep(0.05)

    def interrupt(done, total, name, status):
        raise KeyboardInterrupt

    many = [Case(str(i), ("absent",)) for i in range(6)]
    first = lambda case: time.sleep(0.3) if case.name == "0" else work(case)  # noqa: E731
    begin = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        each(first, many, workers=4, progress=interrupt, needs=lambda case: 10)
    assert time.monotonic() - begin < 3 and len(begun) <= 1


def test_a_signal_just_before_the_main_thread_waits_is_heard():
    """`interrupt_main` marks a signal as come without ending the wait of the main thread: what a
    signal between the last look of the interpreter and the wait does.
    """

    def work(case):
        _thread.interrupt_main(signal.SIGINT)
        for _ in range(400):
            still_wanted()
            time.sleep(0.05)

    begin = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        each(work, [Case("0", ("absent",))], workers=1, needs=lambda case: 10)
    assert time.monotonic() - begin < 5


def test_an_outdated_case_stays_if_making_it_again_is_interrupted(raw, monkeypatch):
    from medjax.corpora.cases import Stopped

    corpus, cases, root = raw
    prepare(corpus, cases[:1], plan_of(corpus), root)

    def stopped(*args, **how):
        raise Stopped

    monkeypatch.setattr(store, "write_case", stopped)
    prepare(corpus, cases[:1], plan_of(corpus, (2.0, 1.0, 1.0)), root)
    assert store.open_case(root / "A" / "case_000").meta["spacing_mm"] == [1, 1, 1]


def test_a_second_preparation_waits_for_the_first(raw, tmp_path, repository):
    corpus, cases, root = raw
    said = []
    (root / "A").mkdir(parents=True)
    hold = (
        f"import time\nfrom medjax import locks\nwith locks.lock({str(root / 'A')!r}, "
        "'preparing'):\n print(1, flush=True)\n time.sleep(1)"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", hold], cwd=repository, stdout=subprocess.PIPE, text=True
    )
    other.stdout.readline()
    result = prepare(corpus, cases, plan_of(corpus), root, say=said.append)
    assert other.wait() == 0 and len(result.ok) == 3
    assert (
        len(said) == 1
        and f"waiting for process {other.pid}" in said[0]
        and not (root / "A" / locks.LOCK).exists()
    )
    with targets.holding(
        root, "A", said.append
    ):  # one job, many processes: one of them holds the store
        assert (root / "A" / locks.LOCK).exists() and prepare(
            corpus, cases, plan_of(corpus), root, locked=False
        ).skipped == 3


# ---------------------------------------------------------------- what else is written around a
# store


def test_a_training_with_the_store_in_the_data_set_is_refused_before_anything_is_written(
    tmp_path, repository, capsys, monkeypatch
):
    from medjax import main

    monkeypatch.chdir(repository)
    data = pairs(tmp_path / "D" / "Kits")
    before = state(tmp_path / "D")
    flags = [
        f"--config.data.folders={data}",
        f"--config.data.store={tmp_path / 'D'}",
        "--config.data.split.folds=2",
    ]
    assert (
        main.main(["--config=configs/hippocampus.py:full", f"--workdir={tmp_path / 'x'}", *flags])
        == 2
    )
    assert "the store would lie among the raw files" in capsys.readouterr().err
    assert state(tmp_path / "D") == before and not (tmp_path / "x" / "config.json").exists()


def test_an_ingestion_into_the_download_is_refused_before_anything_is_written(tmp_path, capsys):
    from data_pipelines.ingest import run
    from data_pipelines.kits19 import CORPORA  # one folder per case

    (corpus,) = CORPORA
    for k in (0, 1):
        image, label = make_case(SHAPE, (1, 2), seed=k, kind="CT")
        save(tmp_path / corpus.name / "data" / f"case_{k:05d}" / "imaging.nii.gz", image[..., 0])
        save(tmp_path / corpus.name / "data" / f"case_{k:05d}" / "segmentation.nii.gz", label)
    before = state(tmp_path)
    assert (
        run(CORPORA, ["--raw", str(tmp_path / corpus.name), "--out", str(tmp_path), "--quiet"]) == 2
    )
    assert "among the raw files" in capsys.readouterr().err and state(tmp_path) == before
    out = tmp_path / "out" / corpus.name
    out.mkdir(parents=True)
    for name in ("plan.json", "corpus.json"):
        (out / name).write_text('{"mine": 1}')
        assert (
            run(
                CORPORA,
                ["--raw", str(tmp_path / corpus.name), "--out", str(tmp_path / "out"), "--quiet"],
            )
            == 2
        )
        assert name in capsys.readouterr().err and [p.name for p in out.iterdir()] == [name]
        (out / name).unlink()


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"mine": 1}', '{"key": "x", "fingerprint": {"corpus": 1}}', "\xff"]
)
def test_a_file_under_the_name_of_a_fingerprint_stays(raw, tmp_path, content):
    from medjax.prepare.fingerprint import fingerprint

    corpus, cases, _ = raw
    cache = tmp_path / "fingerprint.json"
    cache.write_bytes(content.encode("latin-1"))
    found = fingerprint(corpus, cases, samples=100, cache=cache)
    assert len(found.cases) == 3 and cache.read_bytes() == content.encode("latin-1")
    cache.unlink()
    assert (
        fingerprint(corpus, cases, samples=100, cache=cache)
        == found
        == fingerprint(corpus, cases, samples=100, cache=cache)
    )
    assert json.loads(cache.read_text())["key"]


def test_a_fingerprint_notices_a_scan_whose_times_were_set_back(raw, tmp_path):
    from medjax.prepare.fingerprint import fingerprint

    corpus, cases, _ = raw
    cache, path = tmp_path / "fingerprint.json", type(tmp_path)(cases[0].images[0])
    fingerprint(corpus, cases, samples=100, cache=cache)
    key, before = json.loads(cache.read_text())["key"], path.stat()
    path.write_bytes(path.read_bytes())
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    fingerprint(corpus, cases, samples=100, cache=cache)
    assert json.loads(cache.read_text())["key"] != key


def foreign_scan(folder):
    save(folder / "imagesTr" / "ct_000.nii.gz", np.ones(SHAPE, np.float32))


def foreign_surplus(folder):
    save(folder / "imagesTr" / "ct_007.nii.gz", np.ones(SHAPE, np.float32))


def foreign_bytes(folder):
    (folder / "labelsTr").mkdir(parents=True)
    (folder / "labelsTr" / "ct_001.nii.gz").write_bytes(b"mine")


def linked_images(folder):
    foreign_scan(folder.parent / "elsewhere")
    folder.mkdir(parents=True)
    (folder / "imagesTr").symlink_to(folder.parent / "elsewhere" / "imagesTr")


def linked_set(folder):
    foreign_scan(folder.parent / "elsewhere")
    folder.symlink_to(folder.parent / "elsewhere")


@pytest.mark.parametrize(
    "plant", [foreign_scan, foreign_surplus, foreign_bytes, linked_images, linked_set]
)
def test_phantoms_replace_phantoms_only(tmp_path, plant):
    """Their folder and file names alone do not make files medjax' own."""
    from medjax.phantom.corpora import PROTOCOLS, write_corpora

    folder = tmp_path / PROTOCOLS["ct"].folder
    plant(folder)
    before = state(tmp_path)
    with pytest.raises(UsageError, match="in the way of the phantom corpora"):
        write_corpora(tmp_path, cases=1, size="tiny")
    assert state(tmp_path) == before
